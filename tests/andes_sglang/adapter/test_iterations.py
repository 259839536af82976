"""How long an iteration lasted, and which cost it teaches; and how often the engine reports."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from andes_sglang.adapter.iterations import IterationTimes
from andes_sglang.adapter.records import StreamRecord, StreamRecords
from andes_sglang.adapter.reports import COSTS_PERIOD_S, REPORT_PERIOD_S, Reports
from andes_sglang.expectations import ReaderExpectation
from andes_sglang.latency import LatencyModel
from andes_sglang.metrics import EngineMetrics, HostUse

Told = tuple[Any, ...]


class Observations(LatencyModel):
    """Keeps what it is told."""

    def __init__(self) -> None:
        super().__init__()
        self.told: list[Told] = []

    def observe_decode(self, *figures: Any) -> None:
        self.told.append(("decode", *figures))

    def observe_prefill(self, *figures: Any) -> None:
        self.told.append(("prefill", *figures))

    def observe_mixed(self, *figures: Any) -> None:
        self.told.append(("mixed", *figures))


def batch(mode: str, **more: Any) -> Any:
    """The attributes of SGLang's ``ScheduleBatch`` that are read."""
    kinds = {f"is_{kind}": lambda kind=kind: mode == kind for kind in ("decode", "mixed", "extend")}
    return SimpleNamespace(forward_mode=SimpleNamespace(**kinds), **more)


DECODE = batch("decode", reqs=[1, 2], seq_lens_cpu=np.array([30, 40]))


def times(*clock_s: float) -> tuple[IterationTimes, list[Told]]:
    latency, clock = Observations(), iter(clock_s)
    return IterationTimes(latency, lambda: next(clock)), latency.told


def test_an_iteration_lasts_from_its_launch() -> None:
    iterations, told = times(1.0, 5.0)
    iterations.launched(DECODE)
    iterations.ended(1.25)
    iterations.launched(DECODE)
    iterations.ended(5.5)
    assert told == [("decode", 2, 70, 0.25), ("decode", 2, 70, 0.5)]


def test_in_overlap_mode_it_lasts_from_the_end_of_the_one_before() -> None:
    iterations, told = times(1.0, 1.5)
    iterations.launched(DECODE)
    iterations.launched(DECODE)
    iterations.ended(2.0)
    iterations.ended(2.5)
    assert [seconds for *_, seconds in told] == [1.0, 0.5]


def test_where_a_step_gives_several_tokens_the_time_of_one_is_learned() -> None:
    """What is accepted differs from step to step: it is averaged, and no step counts as less than a token."""
    steps = 400
    iterations, told = times(*map(float, range(steps)))
    for k in range(steps):
        iterations.launched(DECODE)
        iterations.ended(k + 0.9, tokens_each=2.0 + k % 3)
    assert 0.9 / told[-1][-1] == pytest.approx(3.0, abs=0.05)
    iterations, told = times(0.0)
    iterations.launched(DECODE)
    iterations.ended(0.5, tokens_each=0.2)
    assert told == [("decode", 2, 70, 0.5)]


def test_what_a_prefill_gives_says_nothing_of_what_a_step_gives() -> None:
    steps = 400
    iterations, told = times(*map(float, range(2 * steps)))
    for k in range(steps):
        iterations.launched(batch("extend", extend_num_tokens=12, prefix_lens=[3]))
        iterations.ended(2 * k + 0.9, tokens_each=1.0)
        iterations.launched(DECODE)
        iterations.ended(2 * k + 1.9, tokens_each=3.0)
    assert told[-1] == ("decode", 2, 70, pytest.approx(0.9 / 3.0, rel=0.02))


def test_what_each_kind_of_iteration_teaches() -> None:
    iterations, told = times(0.0, 0.0, 0.0, 0.0)
    iterations.launched(batch("extend", extend_num_tokens=12, prefix_lens=[3, 4]))
    mixed = {"decoding_reqs": [1, 2], "extend_num_tokens": 12, "prefix_lens": [3, 4, 50, 60]}
    iterations.launched(batch("mixed", seq_lens_cpu=np.array([9, 9, 51, 61]), **mixed))
    iterations.launched(batch("idle"))
    for end_s in (1.0, 3.0, 4.0):
        iterations.ended(end_s)
    assert told == [("prefill", 12, 7, 1.0), ("mixed", 10, 7, 2, 112, 2.0)]
    iterations.ended(9.0)
    assert len(told) == 2


class Sent(EngineMetrics):
    def __init__(self) -> None:
        self.populations: list[dict[str, int]] = []
        self.unpreemptible_counts: list[int] = []
        self.costs_sent = 0
        self.host_uses: list[HostUse] = []

    def population(self, **counts: int) -> None:
        self.populations.append(counts)

    def unpreemptible(self, running: int) -> None:
        self.unpreemptible_counts.append(running)

    def costs(self, latency: LatencyModel) -> None:
        self.costs_sent += 1

    def host(self, use: HostUse) -> None:
        self.host_uses.append(use)


def reports(sent: Sent, clock: list[float], **more: Any) -> tuple[Reports, list[Any]]:
    records, waiting = StreamRecords(), []
    for rid in ("new", "begun"):
        sampling = SimpleNamespace(max_new_tokens=9)
        waiting.append(
            SimpleNamespace(rid=rid, origin_input_ids=[0], output_ids=[], sampling_params=sampling, to_finish=None)
        )
        records.add(StreamRecord(waiting[-1], 0.0, 0.0, ReaderExpectation(), preemptible=rid == "new"))
    records["begun"].stop("release", 0.0)
    return Reports(sent, records, latency=LatencyModel(), clock=lambda: clock[0], **more), waiting


def test_reports_keep_their_periods() -> None:
    sent, clock = Sent(), [10.0]
    reporter, waiting = reports(sent, clock)
    health_check = SimpleNamespace(rid="HEALTH_CHECK_1")
    reporter.send(running=[*waiting, health_check], parked=1, waiting=waiting)
    assert sent.populations == [{"running": 3, "parked": 1, "released": 1, "waiting": 1}]
    assert sent.unpreemptible_counts == [1]
    clock[0] += 0.9 * REPORT_PERIOD_S
    reporter.send(running=waiting, parked=1, waiting=waiting)
    assert len(sent.populations) == 1
    reporter.send(running=[], parked=0, waiting=[], now=True)
    assert sent.populations[-1] == {"running": 0, "parked": 0, "released": 0, "waiting": 0}
    clock[0] = 10.0 + 0.9 * COSTS_PERIOD_S
    reporter.send(running=[], parked=0, waiting=[])
    assert (len(sent.populations), sent.costs_sent, sent.host_uses) == (3, 1, [])
    clock[0] = 10.0 + COSTS_PERIOD_S
    reporter.send(running=[], parked=0, waiting=[])
    assert sent.costs_sent == 2


def test_host_memory_is_reported_where_there_is_any() -> None:
    sent = Sent()
    reporter, waiting = reports(sent, [1.0], host_use=lambda: HostUse(used_tokens=5))
    reporter.send(running=[], parked=0, waiting=waiting)
    assert sent.host_uses == [HostUse(used_tokens=5)]
