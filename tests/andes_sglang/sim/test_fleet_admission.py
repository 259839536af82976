"""Admission in a simulated fleet: it never lowers the sum, and who comes back when told is let in."""

from __future__ import annotations

import heapq
import itertools
from dataclasses import replace

import numpy as np
import pytest

from andes_sglang.admission import Wish
from andes_sglang.arms import Arm
from andes_sglang.qoe import QoETarget
from andes_sglang.request import RequestRecord, RequestSpec
from andes_sglang.sim import profile as profiles
from andes_sglang.sim.configure import configure
from andes_sglang.sim.fleet import Fleet
from andes_sglang.workload import draw_shape

WISH = Wish(shed_below=0.05)
SUSTAINED_RPS = 4.5
"""What the engine of ``cpu-tiny-llama`` carries of these requests."""


def fleet(policy: str, records: list[RequestRecord], wish: Wish | None, replicas: int = 1) -> Fleet:
    engine, make = configure(profiles.load("cpu-tiny-llama").engine, Arm(policy, ("--enable-mixed-chunk",)))
    return Fleet(engine, make, replicas=replicas, decision_interval_s=0.5, wish=wish, sink=records.append)


def requests(rps: float, duration_s: float) -> list[RequestSpec]:
    drawn = draw_shape("poisson", rate_rps=rps, duration_s=duration_s, prompt="200-400", output="150-250", seed=3)
    return list(drawn.with_readers(3, ttft_s=1.0, tds=None, population="reading"))


def scores(policy: str, load: float, wish: Wish | None, duration_s: float) -> np.ndarray:
    records: list[RequestRecord] = []
    served = fleet(policy, records, wish)
    for spec in requests(load * SUSTAINED_RPS, duration_s):
        served.submit(spec)
    served.advance()
    return np.array([record.qoe for record in records])


@pytest.mark.parametrize(("policy", "load", "duration_s"), [("stock", 1, 200), ("stock", 2, 200), ("andes", 3, 40)])
def test_the_sum_over_all_arrivals_is_no_lower(policy: str, load: float, duration_s: float) -> None:
    without, told = scores(policy, load, None, duration_s), scores(policy, load, WISH, duration_s)
    assert len(told) == len(without), "who is refused is on record, with nothing"
    assert told.mean() >= without.mean() - 0.01
    assert (told >= 0.9).mean() >= (without >= 0.9).mean()
    if (policy, load) == ("stock", 2):
        assert told.mean() > without.mean() + 0.1
        assert np.percentile(told[told > 0], 5) > np.percentile(without, 5) + 0.3


def test_of_200_who_come_back_when_told_nine_of_ten_are_let_in() -> None:
    """Two minutes and a half at three times what the engine carries; 200 of those who were refused come again exactly when they
    were told, among all the others who come for the first time."""
    records: list[RequestRecord] = []
    served, tries = fleet("stock", records, WISH), itertools.count()
    coming = [(spec.arrival_s, next(tries), 0, spec) for spec in requests(3 * SUSTAINED_RPS, 150)]
    first, again = [0, 0], [0, 0]
    heapq.heapify(coming)
    while coming:
        at_s, _, attempt, spec = heapq.heappop(coming)
        refusal = served.submit(replace(spec, arrival_s=at_s), ticket=spec.arrival_s)
        counts = again if attempt else first
        counts[refusal is not None] += 1
        if refusal is not None and attempt == 0 and first[1] <= 200:  # the first 200
            heapq.heappush(coming, (at_s + refusal.retry_after_s, next(tries), 1, spec))
    assert first[1] >= 200
    assert sum(again) == 200
    assert again[0] >= 180
    served.advance()


def test_who_is_refused_is_on_record_with_nothing() -> None:
    records: list[RequestRecord] = []
    served = fleet("stock", records, Wish(0.0, max_wait_s=0.5))
    specs = [
        RequestSpec(0.01 * k, 300, 200, QoETarget(1.0, 5.0), reader_class="chat", tenant=f"t{k % 3}")
        for k in range(120)
    ]
    refusals = [served.submit(spec) for spec in specs]
    served.advance()
    assert any(refusals)
    by_index = {record.index: record for record in records}
    assert sorted(by_index) == list(range(120))
    for number, refusal in enumerate(refusals):
        record = by_index[number]
        assert record.error == (f"429 {refusal.reason}" if refusal else None)
        assert (record.qoe == 0.0) == (refusal is not None)
        assert (record.reader_class, record.tenant) == ("chat", f"t{number % 3}")
