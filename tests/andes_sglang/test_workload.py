"""Workloads from shapes and from the public formats, and what is said of files that make no sense."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from andes_sglang.bench.client import prompt_ids
from andes_sglang.workload import (
    RequestSpec,
    Stream,
    Workload,
    WorkloadError,
    burst,
    gamma,
    lengths,
    load,
    load_rates,
    poisson,
    readers_of,
)


def arrivals(workload: Workload) -> np.ndarray:
    return np.array([r.arrival_s for r in workload.requests])


def test_a_burst_has_the_rates_it_promises() -> None:
    at = arrivals(burst(20.0, 1000.0, 2.0, 0.35, "10", "10", seed=3))
    inside = ((at >= 325) & (at < 675)).sum() / 350
    outside = ((at < 325) | (at >= 675)).sum() / 650
    assert inside == pytest.approx(40.0, rel=0.05)
    assert outside == pytest.approx((20 - 40 * 0.35) / 0.65, rel=0.08)
    assert (np.diff(at) >= 0).all()


def test_gamma_and_poisson() -> None:
    gaps = np.diff(arrivals(gamma(10.0, 2000.0, 3.0, "10", "10", seed=1)))
    assert gaps.std() / gaps.mean() == pytest.approx(3.0, rel=0.1)
    assert len(poisson(10.0, 1000.0, "10", "10", seed=1).requests) == pytest.approx(10_000, rel=0.05)


def test_one_seed_one_workload() -> None:
    assert burst(2, 60, 2, 0.35, "5-50", "5-50", 7) == burst(2, 60, 2, 0.35, "5-50", "5-50", 7)
    assert burst(2, 60, 2, 0.35, "5-50", "5-50", 7) != burst(2, 60, 2, 0.35, "5-50", "5-50", 8)


def test_length_quantiles() -> None:
    rng = np.random.default_rng(0)
    draw = lengths("p50=210,p90=431,p99=638")
    drawn = [draw(rng) for _ in range(20_000)]
    assert np.percentile(drawn, [50, 90, 99]) == pytest.approx([210, 431, 638], rel=0.05)


@pytest.mark.parametrize("text", ["0", "9-3", "x", "p50=9,p90=3", "p0=3", ""])
def test_lengths_that_make_no_sense(text: str) -> None:
    with pytest.raises(WorkloadError, match=r"lengths"):
        lengths(text)


def write(path: Path, text: str) -> Path:
    if path.suffix == ".gz":
        path.write_bytes(gzip.compress(text.encode()))
    else:
        path.write_text(text)
    return path


AZURE = (
    "TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 18:15:46.6805900,374,44\n2023-11-16 18:15:50.9951690,396,109\n"
)
BURSTGPT = "Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type\n5,ChatGPT,472,18,490,Conversation log\n45,ChatGPT,1087,0,1087,API log\n118,GPT-4,417,276,693,API log\n"
MOONCAKE = "".join(
    json.dumps({"timestamp": t, "input_length": 1200, "output_length": 52, "hash_ids": [46, 47, h]}) + "\n"
    for t, h in ((0, 1), (3000, 2))
)
OURS = json.dumps({"arrival_s": 0.5, "prompt_tokens": 1100, "output_tokens": 7, "blocks": [[4, 2]]}) + "\n"


@pytest.mark.parametrize(
    ("name", "text", "count", "first"),
    [
        ("a.csv", AZURE, 2, RequestSpec(0.0, 374, 44)),
        ("marked.csv", "\ufeff" + AZURE, 2, RequestSpec(0.0, 374, 44)),
        ("b.csv", BURSTGPT, 2, RequestSpec(0.0, 472, 18)),
        ("m.jsonl", MOONCAKE, 2, RequestSpec(0.0, 1200, 52, blocks=(46, 47, 1))),
        ("o.jsonl.gz", OURS, 1, RequestSpec(0.0, 1100, 7, blocks=(4, 5))),
    ],
)
def test_public_formats_are_recognised(tmp_path: Path, name: str, text: str, count: int, first: RequestSpec) -> None:
    workload = load(write(tmp_path / name, text))
    assert len(workload.requests) == count
    assert workload.requests[0] == first


def test_azure_times_are_differences(tmp_path: Path) -> None:
    assert load(write(tmp_path / "a.csv", AZURE)).requests[1].arrival_s == pytest.approx(4.314579, abs=1e-5)


def broken(**change: object) -> str:
    row = {"arrival_s": 1.0, "prompt_tokens": 5, "output_tokens": 5} | change
    return OURS + json.dumps(row) + "\n"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (broken(prompt_tokens=-3), "row 2, field prompt_tokens: must be >= 1, got -3"),
        (broken(arrival_s="soon"), "row 2, field arrival_s: expected a number, got 'soon'"),
        (broken(output_tokens=None), "row 2, field output_tokens: expected a number"),
        (broken(blocks=[3]), "row 2, field blocks"),
        (OURS + "{oops\n", "row 2: not JSON"),
        ('{"hello": 1}\n', "row 1: no known format"),
        ("", "empty"),
    ],
)
def test_a_bad_row_is_named_with_file_row_and_field(tmp_path: Path, text: str, says: str) -> None:
    path = write(tmp_path / "bad.jsonl", text)
    with pytest.raises(WorkloadError) as caught:
        load(path)
    assert str(path) in str(caught.value)
    assert says in str(caught.value)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(WorkloadError, match=r"nowhere.csv: cannot be read"):
        load(tmp_path / "nowhere.csv")


@pytest.mark.parametrize("spoil", [lambda raw: raw[:-9], lambda raw: raw[:12] + b"x" * 40], ids=["cut", "garbled"])
def test_a_damaged_archive_is_named(tmp_path: Path, spoil: Callable[[bytes], bytes]) -> None:
    path = tmp_path / "bad.jsonl.gz"
    path.write_bytes(spoil(gzip.compress((OURS * 50).encode())))
    with pytest.raises(WorkloadError, match=r"bad.jsonl.gz: a damaged gzip file"):
        load(path)


def test_scaling_and_readers() -> None:
    workload = poisson(5.0, 100.0, "100", "50", seed=1)
    scaled = workload.scaled(rate_scale=2.0, prompt_scale=0.5, max_output=20, start_s=10, duration_s=40)
    assert scaled.duration_s < 20
    assert {(r.prompt_tokens, r.output_tokens) for r in scaled.requests} == {(50, 20)}
    readers = workload.with_readers(1, ttft_s=None, tds=None, population="reading")
    speeds = {round(r.target.tds, 2) for r in readers.requests}
    assert speeds <= {5.1, 4.35, 4.17, 4.02, 3.79}
    assert len(speeds) > 3


def test_equal_blocks_give_equal_tokens_and_nothing_else_does() -> None:
    def ids(spec: RequestSpec, index: int) -> list[int]:
        return prompt_ids(spec, index, 1, (10, 1000))

    first, second = RequestSpec(0, 1100, 1, blocks=(4, 5)), RequestSpec(0, 1300, 1, blocks=(4, 6))
    assert ids(first, 0)[:512] == ids(second, 1)[:512]
    assert ids(first, 0)[512:1024] != ids(second, 1)[512:1024]
    assert (len(ids(first, 0)), len(ids(second, 1))) == (1100, 1300)


def test_a_stream_is_the_same_each_time_and_keeps_to_its_rates() -> None:
    stream = Stream("s", ((100.0, 20.0), (50.0, 2.0), (100.0, 10.0)), "100-200", "50", readers_of("reading"), seed=3)
    requests = list(stream)
    assert requests == list(stream)
    at = np.array([r.arrival_s for r in requests])
    assert (np.diff(at) >= 0).all()
    counts = np.histogram(at, [0, 100, 150, 250])[0]
    assert counts == pytest.approx([2000, 100, 1000], rel=0.3)
    assert len(stream) == 3100
    assert {round(r.target.tds, 2) for r in requests} == {5.1, 4.35, 4.17, 4.02, 3.79}


def test_rates_are_cut_to_a_window_and_refused_when_they_make_no_sense(tmp_path: Path) -> None:
    path = tmp_path / "rates.csv"
    path.write_text("window_start_s,rate_rps\n0,10\n600,20\n1200,30\n")
    assert load_rates(path) == ((600.0, 10.0), (600.0, 20.0), (600.0, 30.0))
    assert load_rates(path, start_s=300.0, duration_s=600.0, scale=0.5) == ((300.0, 5.0), (300.0, 10.0))
    with pytest.raises(WorkloadError, match="nobody arrives"):
        load_rates(path, start_s=5000.0)
    path.write_text("window_start_s,rate_rps\n0,-10\n600,20\n")
    with pytest.raises(WorkloadError, match=r"row 2, field rate_rps: must be >= 0, got '-10'"):
        load_rates(path)
    path.write_text("ContextTokens\n1\n")
    assert load_rates(path) is None
