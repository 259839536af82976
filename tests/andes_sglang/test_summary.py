"""Figures from records one by one are those of all of them together."""

from __future__ import annotations

import numpy as np
import pytest

from andes_sglang import summary
from andes_sglang.request import RequestRecord, TokenTimes
from andes_sglang.summary import Figures, summarise


def record(index: int, arrival_s: float, times_s: list[float], prompt: int = 100, **more: object) -> RequestRecord:
    times = np.array(times_s)
    return RequestRecord(
        index, arrival_s, arrival_s, prompt, len(times), 1.0, 5.0, TokenTimes(times), times_s[-1], **more
    )  # type: ignore[arg-type]


def random_records(count: int) -> list[RequestRecord]:
    rng = np.random.default_rng(1)
    records = []
    for k in range(count):
        at = float(rng.uniform(0, 100))
        times = at + np.cumsum(rng.exponential(0.3, int(rng.integers(2, 30))))
        records.append(record(k, at, list(times), int(rng.integers(1, 1000))))
    return records


def test_quantiles_and_means_are_those_of_the_whole() -> None:
    records = random_records(500)
    figures = summarise(records)
    qoe = np.array([r.qoe for r in records])
    gaps = np.concatenate([np.diff(r.token_times_s) for r in records])
    assert figures["qoe"]["mean"] == pytest.approx(qoe.mean())
    assert figures["qoe"]["p5"] == pytest.approx(np.percentile(qoe, 5))
    assert figures["ttft_s"]["p90"] == pytest.approx(np.percentile([r.ttft_s for r in records], 90))
    assert figures["itl_s"]["p99"] == pytest.approx(np.percentile(gaps, 99), rel=0.02)
    assert figures["tokens_per_s"] == pytest.approx(
        sum(r.output_tokens for r in records) / (max(r.end_s for r in records) - min(r.arrival_s for r in records))
    )


def test_beyond_what_is_kept_quantiles_stay_close_and_memory_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    records = random_records(3000)
    exact = summarise(records)
    monkeypatch.setattr(summary, "MAX_ROWS", 400)
    figures = Figures()
    for r in records:
        figures.add(r)
    assert len(figures._rows) <= 400
    thinned = figures.summary()
    assert thinned["qoe"]["mean"] == exact["qoe"]["mean"]
    assert thinned["ttft_s"]["p90"] == pytest.approx(exact["ttft_s"]["p90"], rel=0.15)
    assert thinned["qoe"]["p5"] == pytest.approx(exact["qoe"]["p5"], abs=0.05)


def test_backlog_and_prompt_groups() -> None:
    good = [record(k, float(k), [k + 0.5, k + 0.6], prompt=10 + k) for k in range(9)]
    late = record(9, 9.0, [40.0, 41.0], prompt=5000)
    figures = summarise([*good, late])
    assert figures["backlog_requests"] == 1
    groups = figures["qoe"]["by_prompt_length"]
    assert groups["shortest_half"] == groups["middle"] == 1.0
    assert groups["longest_tenth"] == pytest.approx(late.qoe)


def test_what_the_engine_tells_is_counted_from_records_or_else_from_its_counters() -> None:
    told = [record(k, 0.0, [1.0, 2.0], preemptions=k, recomputed_tokens=10, retractions=0) for k in range(4)]
    assert summarise(told)["preemptions_per_request"] == 1.5
    assert summarise(told)["recomputed_tokens"] == 40
    assert summarise([record(0, 0.0, [1.0, 2.0])])["preemptions_per_request"] is None
    after = {'andes_policy_info{policy="andes"}': 1.0, 'andes_preemptions_total{mode="park"}': 5.0}
    assert summarise([record(0, 0.0, [1.0, 2.0])], {}, after)["preemptions_per_request"] == 5.0


def test_what_went_to_host_memory_is_a_line_of_the_report() -> None:
    def told(scale: float) -> dict[str, float]:
        return {
            'andes_policy_info{policy="andes"}': 1.0,
            "andes_recomputed_tokens_total": 3 * scale,
            'andes_host_copied_bytes_total{direction="write"}': scale * 2**20,
            'andes_host_copied_bytes_total{direction="load"}': scale * 2**19,
            'andes_host_copy_seconds_total{direction="write"}': 0.5 * scale,
            'andes_host_copy_seconds_total{direction="load"}': 0.25 * scale,
            "andes_host_wait_seconds_total": 0.25 * scale,
            "andes_host_hit_tokens_total": 700 * scale,
            "andes_host_ahead_tokens_total": 100 * scale,
            "andes_host_refused_tokens_total": 0.0,
            'andes_host_tokens{what="used"}': 50.0,
            'andes_host_tokens{what="capacity"}': 200.0,
        }

    figures = summary.combine([summarise([record(0, 0.0, [1.0, 2.0])], told(1.0), told(3.0))])
    line = summary.host_line(figures)
    assert line is not None
    assert line.startswith("2.0 MiB copied to host memory, 1.0 MiB back (1400 tokens loaded")
    assert "6 computed again); copies took 1.00 s beside the engine and 0.50 s of it; host memory 25% full" in line
    assert summary.host_line(summarise([record(0, 0.0, [1.0, 2.0])])) is None


def test_summary_json_has_the_keys_that_others_read() -> None:
    figures = summary.combine([summarise([record(0, 0.0, [1.0, 2.0])])])
    for key, inside in {
        "requests": (),
        "failed": (),
        "qoe": ("mean", "p5", "share_ge_095", "share_ge_099"),
        "ttft_s": ("p50", "p90", "p99"),
        "itl_s": ("p50", "p99"),
        "stall_s": ("mean", "longest_p90"),
        "tokens_per_s": (),
        "effective_tokens_per_s": (),
        "preemptions_per_request": (),
        "recomputed_tokens": (),
    }.items():
        assert key in figures
        assert set(inside) <= set(figures[key] if inside else ())


def test_a_failed_request_scores_nothing_and_counts() -> None:
    failed = RequestRecord(1, 0.0, 0.0, 10, 10, 1.0, 5.0, [], 3.0, "HTTP 503")
    figures = summarise([record(0, 0.0, [0.5, 0.6]), failed])
    assert (figures["requests"], figures["failed"], figures["qoe"]["mean"]) == (2, 1, 0.5)
    assert figures["ttft_s"]["p99"] == pytest.approx(2.975)
