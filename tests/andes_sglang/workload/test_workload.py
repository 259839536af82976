"""Drawn workloads: shapes, lengths, readers, rates by window."""

from __future__ import annotations

import numpy as np
import pytest

from andes_sglang.bench.client import prompt_ids
from andes_sglang.qoe import QoETarget
from andes_sglang.workload import (
    LISTENING,
    READING,
    RequestSpec,
    SyntheticWorkload,
    Workload,
    WorkloadError,
    burst,
    draw_shape,
    gamma,
    mean_length,
    parse_lengths,
    poisson,
    readers_of,
)


def arrivals(workload: Workload) -> np.ndarray:
    return np.array([r.arrival_s for r in workload.requests])


def some_burst(seed: int) -> Workload:
    return burst(2, 60, intensity=2, width=0.35, prompt="5-50", output="5-50", seed=seed)


def test_a_burst_has_the_rates_it_promises() -> None:
    at = arrivals(burst(20.0, 1000.0, intensity=2.0, width=0.35, prompt="10", output="10", seed=3))
    inside = ((at >= 325) & (at < 675)).sum() / 350
    outside = ((at < 325) | (at >= 675)).sum() / 650
    assert inside == pytest.approx(40.0, rel=0.05)
    assert outside == pytest.approx((20 - 40 * 0.35) / 0.65, rel=0.08)
    assert (np.diff(at) >= 0).all()


def test_a_burst_that_is_everything_leaves_nothing_before_and_after() -> None:
    at = arrivals(burst(20.0, 100.0, intensity=2.0, width=0.5, prompt="10", output="10", seed=3))
    assert at.min() >= 25
    assert at.max() < 75
    with pytest.raises(WorkloadError, match=r"intensity 2.01 x width 0.5 exceeds 1"):
        burst(20.0, 100.0, intensity=2.01, width=0.5, prompt="10", output="10", seed=3)


def test_gamma_and_poisson() -> None:
    gaps = np.diff(arrivals(gamma(10.0, 2000.0, cv=3.0, prompt="10", output="10", seed=1)))
    assert gaps.std() / gaps.mean() == pytest.approx(3.0, rel=0.1)
    gaps = np.diff(arrivals(poisson(10.0, 1000.0, "10", "10", seed=1)))
    assert gaps.mean() == pytest.approx(0.1, rel=0.03)
    assert gaps.std() / gaps.mean() == pytest.approx(1.0, rel=0.03)


def test_one_seed_one_workload() -> None:
    assert some_burst(7) == some_burst(7)
    assert some_burst(7) != some_burst(8)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"rate_rps": 0.0}, "--rate must be > 0, got 0.0"),
        ({"cv": -1.0}, "--cv must be > 0, got -1.0"),
        ({"intensity": float("inf")}, "--intensity must be > 0, got inf"),
        ({"width": 1.0}, "--width must be between 0 and 1, got 1.0"),
        ({"kind": "square"}, "--shape 'square': choose poisson, gamma or burst"),
        ({"rate_rps": 1e9}, r"--rate 1e\+09 for --duration 10: 1e\+10 requests, and a shape has at most 1,000,000"),
        ({"duration_s": 1e300}, r"1e\+300 requests"),
        ({"rate_rps": 1e-9}, "no request arrives; raise --rate or --duration"),
    ],
)
def test_a_shape_that_makes_no_sense(change: dict[str, object], says: str) -> None:
    given = {"kind": "poisson", "rate_rps": 1.0, "duration_s": 10.0, "prompt": "9", "output": "9", "seed": 1, **change}
    with pytest.raises(WorkloadError, match=says):
        draw_shape(**given)  # type: ignore[arg-type]


def test_length_quantiles() -> None:
    rng = np.random.default_rng(0)
    draw = parse_lengths("p50=210,p90=431,p99=638")
    drawn = [draw(rng) for _ in range(20_000)]
    assert np.percentile(drawn, [50, 90, 99]) == pytest.approx([210, 431, 638], rel=0.05)
    assert min(drawn) >= 210 / 4 - 1
    assert max(drawn) <= 638 * 1.5 + 1


def test_uniform_lengths_include_both_ends() -> None:
    rng = np.random.default_rng(0)
    assert {parse_lengths("3-5")(rng) for _ in range(100)} == {3, 4, 5}
    assert parse_lengths("7")(rng) == 7
    assert mean_length("100-300") == pytest.approx(200, rel=0.02)


@pytest.mark.parametrize("text", ["0", "9-3", "x", "p50=9,p90=3", "p0=3", "p100=3", "p50=0", ""])
def test_lengths_that_make_no_sense(text: str) -> None:
    with pytest.raises(WorkloadError, match=r"lengths .*: expected N, LOW-HIGH or p50=N,p90=N,p99=N in tokens"):
        parse_lengths(text)


def test_the_populations_are_whole_and_the_papers() -> None:
    for population in (READING, LISTENING):
        assert sum(share for share, _ in population) == pytest.approx(1.0, abs=1e-3)
    assert sum(share / pace for share, pace in READING) == pytest.approx(4.5, abs=0.1)  # tokens/s
    assert readers_of("reading", ttft_s=2.0)[1] == (0.5187, QoETarget(2.0, 1 / 0.230))
    assert readers_of("listening", tds=3.0) == ((1.0, QoETarget(1.0, 3.0)),)


def test_a_window_is_cut_before_it_is_scaled() -> None:
    specs = tuple(RequestSpec(float(k), 1000, 40, blocks=(1,), max_tokens=80, expected_tokens=50) for k in range(10))
    whole = Workload("w", specs)
    cut = whole.scaled(rate_scale=2.0, output_scale=0.5, max_output=15, start_s=2.0, duration_s=4.0, limit=3)
    assert [r.arrival_s for r in cut] == [0.0, 0.5, 1.0]
    assert {(r.prompt_tokens, r.output_tokens, r.max_tokens, r.expected_tokens) for r in cut} == {(1000, 15, 15, 15)}
    assert [r.arrival_s for r in whole.scaled(start_s=2.0, duration_s=4.0)] == [0.0, 1.0, 2.0, 3.0]
    assert cut.requests[0].blocks == (1,)
    assert whole.scaled(prompt_scale=0.5).requests[0] == RequestSpec(0.0, 500, 40, max_tokens=80, expected_tokens=50)
    assert {r.output_tokens for r in whole.scaled(output_scale=1e-6)} == {1}
    with pytest.raises(WorkloadError, match=r"w: no request arrives within 5 s after second 30"):
        whole.scaled(start_s=30.0, duration_s=5)


def test_readers_are_drawn_by_their_shares() -> None:
    drawn = poisson(50.0, 100.0, "20000", "50", seed=1).with_readers(1, ttft_s=None, tds=None, population="reading")
    speeds = np.array([r.target.tds for r in drawn])
    assert np.mean(np.isclose(speeds, 1 / 0.230)) == pytest.approx(0.5187, abs=0.03)
    assert {r.target.ttft_s for r in drawn} == {4.0}
    short = Workload("s", (RequestSpec(0.0, 10, 10),)).with_readers(1, ttft_s=None, tds=2.5, population="reading")
    assert short.requests[0].target == QoETarget(1.0, 2.5)


def test_what_a_workload_says_of_itself() -> None:
    said = Workload("w", (RequestSpec(0.0, 10, 4), RequestSpec(2.0, 30, 8))).describe()
    assert (said["requests"], said["duration_s"], said["rate_rps"]) == (2, 2.0, 1.0)
    assert said["prompt_tokens"] == {"mean": 20.0, "max": 30}
    assert said["output_tokens"] == {"mean": 6.0, "max": 8}


def test_equal_blocks_give_equal_tokens_and_nothing_else_does() -> None:
    def ids(spec: RequestSpec, index: int) -> list[int]:
        return prompt_ids(spec, index, 1, (10, 1000))

    first, second = RequestSpec(0, 1100, 1, blocks=(4, 5)), RequestSpec(0, 1300, 1, blocks=(4, 6))
    assert ids(first, 0)[:512] == ids(second, 1)[:512]
    assert ids(first, 0)[512:1024] != ids(second, 1)[512:1024]
    assert (len(ids(first, 0)), len(ids(second, 1))) == (1100, 1300)


def test_a_synthetic_workload_is_the_same_each_time_and_keeps_to_its_rates() -> None:
    rates = ((100.0, 20.0), (50.0, 2.0), (100.0, 10.0))
    drawn = SyntheticWorkload("s", rates, "100-200", "50", readers_of("reading"), seed=3)
    requests = list(drawn)
    assert requests == list(drawn.requests)
    at = np.array([r.arrival_s for r in requests])
    assert (np.diff(at) >= 0).all()
    counts = np.histogram(at, [0, 100, 150, 250])[0]
    assert counts == pytest.approx([2000, 100, 1000], rel=0.3)
    assert (len(drawn), drawn.duration_s, drawn.describe()["rate_rps"]) == (3100, 250.0, 12.4)
    speeds = np.array([round(r.target.tds, 2) for r in requests])
    assert set(speeds) == {5.1, 4.35, 4.17, 4.02, 3.79}
    assert np.mean(speeds == 4.35) == pytest.approx(0.5187, abs=0.03)
