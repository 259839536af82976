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
    assert "(1400 tokens loaded instead of computed, 200 of them ahead of the admission, 6 computed again)" in line
    assert "copies took 1.00 s beside the engine and 0.50 s of it; host memory 25% full" in line
    figures["host"] |= {"copy_seconds": 0.25, "ahead_tokens": None}
    figures["recomputed_tokens"] = None
    line = str(summary.host_line(figures))
    assert ", 0 of them ahead of the admission, 0 computed again); copies took 0.00 s beside the engine" in line
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


def test_every_figure_of_three_requests() -> None:
    """At 5 tokens/s and 1 s: one is on time, one stalls for 3 s and then for 1 s, one fails after a token."""
    on_time = record(0, 0.0, [0.5, 0.6, 0.7, 0.8], prompt=10)
    stalls = record(1, 10.0, [11.0, 14.2, 14.4, 15.6], prompt=20)
    failed = record(2, 12.0, [12.5], prompt=30, error="HTTP 503")
    on_time.sent_s, stalls.sent_s = 0.25, 10.125
    figures = summarise([on_time, stalls, failed])
    qoe = [1.0, stalls.qoe, 0.0]
    assert stalls.qoe == pytest.approx(1 - (0 + 3.0 + 3.0 + 4.0) / (4 * 4.8 - 16 / 10))
    assert (figures["requests"], figures["failed"], figures["backlog_requests"]) == (3, 1, 2)
    assert figures["qoe"]["mean"] == pytest.approx(np.mean(qoe))
    assert figures["qoe"]["p5"] == pytest.approx(np.percentile(qoe, 5))
    assert (figures["qoe"]["share_ge_095"], figures["qoe"]["share_ge_099"]) == (1 / 3, 1 / 3)
    assert figures["ttft_s"] == pytest.approx({"p50": 0.5, "p90": 0.9, "p99": 0.99})
    assert figures["itl_s"] == pytest.approx({"p50": 0.1, "p99": 3.2}, rel=0.005)
    assert figures["stall_s"] == pytest.approx({"mean": 4.0 / 3, "longest_p90": 2.4})
    assert figures["tokens_per_s"] == pytest.approx(9 / 15.6)
    effective = sum(r.score().effective_tokens for r in (on_time, stalls, failed))
    assert figures["effective_tokens_per_s"] == pytest.approx(effective / 15.6)
    assert figures["client_lag_s"] == {"max": 0.25}


def test_shares_count_from_their_threshold_on() -> None:
    def at(qoe: float) -> RequestRecord:
        """One token, late by as much as gives that score: 1 - late / (late + 0.1)."""
        return record(0, 0.0, [1.0 + 0.1 * (1 - qoe) / qoe])

    figures = summarise([at(0.94), at(0.951), at(0.98), at(0.991), at(1.0)])
    assert (figures["qoe"]["share_ge_095"], figures["qoe"]["share_ge_099"]) == (0.8, 0.4)


@pytest.mark.parametrize("gap_s", [1e-6, 3e-4, 0.01, 0.99, 1.0, 1.01, 700.0, 1e5])
def test_gaps_are_counted_to_half_a_percent(gap_s: float) -> None:
    figures = summarise([record(0, 0.0, [0.0, gap_s])])
    assert figures["itl_s"]["p50"] == pytest.approx(gap_s, rel=0.005, abs=1e-7)
    assert figures["itl_s"]["p99"] == figures["itl_s"]["p50"]


def test_gaps_beyond_the_scale_are_its_ends() -> None:
    assert summarise([record(0, 0.0, [1.0, 1.0])])["itl_s"]["p50"] == pytest.approx(2.0**-20, rel=0.005)
    assert summarise([record(0, 0.0, [0.0, 9e9])])["itl_s"]["p50"] == pytest.approx(2.0**20, rel=0.005)
    assert summarise([record(0, 0.0, [1.0])])["itl_s"] == {"p50": None, "p99": None}


def test_gaps_of_many_requests_are_all_counted() -> None:
    records = [record(k, 0.0, [0.0, 0.1 if k % 10 else 5.0]) for k in range(200)]
    figures = summarise(records)
    assert figures["itl_s"]["p50"] == pytest.approx(0.1, rel=0.005)
    assert figures["itl_s"]["p99"] == pytest.approx(5.0, rel=0.005)
    grouped = RequestRecord(0, 0.0, 0.0, 1, 6, 1.0, 5.0, [(0.0, 3), (2.0, 3)], 2.0)
    assert summarise([grouped])["itl_s"]["p50"] == pytest.approx(2.0, rel=0.005)
    assert summarise([grouped])["tokens_per_s"] == 3.0


def test_a_run_begins_with_its_first_arrival() -> None:
    figures = summarise([record(0, 100.0, [101.0, 104.0]), record(1, 90.0, [91.0])])
    assert figures["tokens_per_s"] == pytest.approx(3 / 14)


def test_counters_are_differences_over_the_run() -> None:
    before = {'andes_preemptions_total{mode="park"}': 3.0, "andes_recomputed_tokens_total": 100.0}
    after = {
        'andes_policy_info{policy="andes"}': 1.0,
        'andes_preemptions_total{mode="park"}': 5.0,
        'andes_preemptions_total{mode="release"}': 4.0,
        "andes_recomputed_tokens_total": 150.0,
        "andes_retractions_total": 2.0,
        "andes_retractions_total_of_something_else": 7.0,
    }
    figures = summarise([record(k, 0.0, [1.0, 2.0]) for k in range(2)], before, after)
    assert (figures["preemptions_per_request"], figures["recomputed_tokens"], figures["retractions"]) == (
        3.0,
        50.0,
        2.0,
    )
    stock = summarise([record(0, 0.0, [1.0, 2.0])], before, {"sglang:token_usage": 0.5})
    assert stock["preemptions_per_request"] is None


def test_repeats_are_averaged_and_counts_added() -> None:
    one, other = summarise([record(0, 0.0, [1.0, 2.0])]), summarise([record(k, 0.0, [5.0, 6.0]) for k in range(3)])
    both = summary.combine([one, other])
    qoe = [one["qoe"]["mean"], other["qoe"]["mean"]]
    assert both["qoe"]["mean"] == pytest.approx(np.mean(qoe))
    assert both["std"]["qoe"]["mean"] == pytest.approx(np.std(qoe, ddof=1))
    assert (both["requests"], both["failed"], both["repeats"]) == (4, 0, [one, other])
    assert summary.combine([{**one, "failed": 1}, {**one, "failed": 2}])["failed"] == 3
    assert both["preemptions_per_request"] is None
    assert summary.combine([one])["std"]["qoe"]["mean"] is None
    half_known = summary.combine([{**one, "retractions": 4.0}, one])
    assert half_known["retractions"] == 4.0


def test_cells_of_the_table() -> None:
    told = {
        "qoe": {"mean": 0.98765, "p5": 0.5, "share_ge_095": 0.951, "by_prompt_length": {"longest_tenth": None}},
        "ttft_s": {"p50": 0.123, "p90": 4.567},
        "tokens_per_s": 1234.6,
        "failed": 3,
        "std": {"qoe": {"mean": 0.0123}, "failed": 1.5},
    }
    cells = dict(summary.cells(told))
    assert cells == {
        "QoE mean": "0.988 ±0.012", "p5": "0.500", ">=0.95": "95%", "long prompts": "-", "TTFT p50 s": "0.12",
        "p90 s": "4.57", "ITL p99 s": "-", "stall p90 s": "-", "tokens/s": "1235", "effective": "-", "preempt/req": "-",
        "recomputed": "-", "backlog": "-", "failed": "3",
    }  # fmt: skip


def test_the_table_is_aligned() -> None:
    assert summary.aligned([["x", "a", "long"], ["name", "12", "3"]]) == "x      a  long\nname  12     3"
    assert summary.table({"stock": {}}).splitlines()[0].startswith("       QoE mean  p5")
    first, second = summary.table({"stock": {"failed": 3}, "andes": {"failed": 12}}).splitlines()[1:]
    assert first.startswith("stock  ")
    assert (first[-4:], second[-4:]) == ("   3", "  12")


def test_the_mean_before_anything_is_counted_is_nought() -> None:
    figures = Figures()
    assert figures.mean_qoe == 0.0
    figures.add(record(0, 0.0, [0.5, 0.6]))
    assert figures.mean_qoe == 1.0


def test_classes_and_tenants_have_figures_of_their_own() -> None:
    records = [
        record(0, 0.0, [1.0, 1.2], reader_class="chat", tenant="a"),
        record(1, 0.0, [9.0, 9.2], reader_class="batch", tenant="a"),
        record(2, 0.0, [3.0, 3.2], reader_class="chat"),
        record(3, 0.0, [0.5], reader_class="chat", tenant="b", error="HTTP 500"),
    ]
    figures = summarise(records)
    chat = [records[0], records[2], records[3]]
    assert figures["by_class"]["chat"]["requests"] == 3
    assert figures["by_class"]["chat"]["failed"] == 1
    assert figures["by_class"]["chat"]["qoe"]["mean"] == pytest.approx(np.mean([r.qoe for r in chat]))
    assert figures["by_class"]["chat"]["ttft_s"]["p50"] == 1.0
    assert {name: group["requests"] for name, group in figures["by_tenant"].items()} == {"a": 2, "b": 1}
    assert "by_class" not in summarise(random_records(5))


def test_groups_are_combined_over_repeats_where_they_are_there() -> None:
    first = summarise([record(0, 0.0, [1.0], reader_class="chat"), record(1, 0.0, [3.0], reader_class="rare")])
    second = summarise([record(0, 0.0, [2.0], reader_class="chat")])
    both = summary.combine([second, first])
    assert both["by_class"]["chat"]["ttft_s"]["p50"] == pytest.approx(1.5)
    assert both["by_class"]["rare"]["requests"] == 1
    rows = summary.group_rows({"andes": both, "stock": summary.combine([first])})
    assert [row[:3] for row in rows[1:]] == [
        ["class chat", "andes", "2"], ["class chat", "stock", "1"], ["class rare", "andes", "1"], ["class rare", "stock", "1"],
    ]  # fmt: skip
    assert "±" in rows[1][3]
    assert summary.group_rows({"stock": summary.combine([summarise(random_records(3))])}) == []


def test_beyond_fifty_groups_the_others_are_one() -> None:
    groups = summarise([record(k, 0.0, [1.0], tenant=f"t{k}") for k in range(60)])["by_tenant"]
    assert len(groups) == 51
    assert groups["(others)"]["requests"] == 10


def test_what_yields_is_in_no_figure_of_readers() -> None:
    def served(index: int, late_s: float, *, yields: bool) -> RequestRecord:
        at_s = index + late_s
        return RequestRecord(
            index, float(index), float(index), 10, 2, 1.0, 4.8, [(at_s, 1), (at_s + 0.1, 1)], at_s + 0.1, tenant="a", yields=yields
        )  # fmt: skip

    readers = [served(k, 0.5, yields=False) for k in range(4)]
    offline = [served(k, 60.0, yields=True) for k in range(4, 14)]
    both = summary.summarise(readers + offline)
    work = both.pop("offline")
    assert both == summary.summarise(readers)
    assert (work["requests"], work["failed"]) == (10, 0)
    assert work["tokens_per_s"] == pytest.approx(20 / 69.1)
    combined = summary.combine([summary.summarise(readers + offline), summary.summarise(readers)])
    assert summary.remarks({"andes": combined}) == "andes: 10 requests without a reader, 0 tokens/s, in no figure above"
    assert summary.remarks({"andes": both}) == ""
    alone = summary.summarise(offline)
    assert (alone["requests"], "offline" in alone) == (10, False)
