"""Costs that are put into a simulated engine come out of what its clients see."""

from __future__ import annotations

import numpy as np
import pytest

from andes_sglang.policy import make
from andes_sglang.qoe import QoETarget
from andes_sglang.request import RequestRecord, RequestSpec
from andes_sglang.sim.engine import Costs, EngineModel, Overlap
from andes_sglang.sim.fit import FitError, fit_costs, host_pace
from andes_sglang.sim.replica import simulate

COSTS = Costs(
    decode_fixed_s=0.004, decode_request_s=6e-4, decode_context_s=1.5e-6, prefill_fixed_s=0.006, prefill_request_s=2e-3,
    prefill_token_s=4e-5,
)  # fmt: skip


def records(overlap: Overlap, count: int = 200, jitter_s: float = 0.0) -> list[RequestRecord]:
    rng = np.random.default_rng(3)
    times = np.cumsum(rng.choice([0.02, 0.5, 1.0], count))
    specs = [
        RequestSpec(float(t), int(rng.integers(50, 600)), int(rng.integers(20, 150)), QoETarget(1.0, 5.0))
        for t in times
    ]
    served = list(simulate(EngineModel(COSTS, 20_000, 32, 8192, overlap=overlap), None, specs))
    for record in served:
        late_s = rng.uniform(0, jitter_s, len(record.deliveries)) if jitter_s else np.zeros(len(record.deliveries))
        record.deliveries = [(at + float(d), n) for (at, n), d in zip(record.deliveries, late_s, strict=True)]
    return served


@pytest.mark.parametrize("overlap", [Overlap.NONE, Overlap.SYNC])
@pytest.mark.parametrize("jitter_s", [0.0, 4e-4])
def test_costs_are_found_again(overlap: Overlap, jitter_s: float) -> None:
    fit = fit_costs(records(overlap, jitter_s=jitter_s))
    assert fit.sends_late == (overlap is Overlap.SYNC)
    for batch in (1, 4, 16):
        assert fit.costs.decode_s(batch, 400 * batch) == pytest.approx(COSTS.decode_s(batch, 400 * batch), rel=0.05)
    for tokens, requests in ((100, 1), (500, 1), (900, 3)):
        found, true = (c.prefill_s(tokens, requests=requests) for c in (fit.costs, COSTS))
        assert found == pytest.approx(true, rel=0.12)
    assert fit.decode_error < 0.08


def test_hiccups_count_with_the_time_they_took() -> None:
    """One step in twenty takes three times as long: the mean is ten percent up."""
    served = records(Overlap.NONE)
    ends = np.unique(np.concatenate([r.token_times_s for r in served]))
    slow = np.random.default_rng(1).random(len(ends)) < 0.05
    extra = np.cumsum(np.where(slow, 2 * np.diff(ends, prepend=ends[0]).clip(0, 0.02), 0.0))
    for record in served:
        record.deliveries = [(at + float(extra[np.searchsorted(ends, at)]), n) for at, n in record.deliveries]
    fit = fit_costs(served)
    assert fit.costs.decode_s(8, 3200) == pytest.approx(1.1 * COSTS.decode_s(8, 3200), rel=0.06)


@pytest.mark.parametrize("policy", [None, "andes"])
def test_a_slower_machine_is_told_whatever_the_policy(policy: str | None) -> None:
    """Too little KV for all, so that andes preempts: what is prefilled again must not pass for slow decoding."""
    rng = np.random.default_rng(5)
    specs = [RequestSpec(0.05 * k, int(rng.integers(100, 300)), 150, QoETarget(1.0, 5.0)) for k in range(60)]
    engine = EngineModel(COSTS.times(1.3), 4000, 32, 8192, overlap=Overlap.SYNC)
    served = list(simulate(engine, make(policy) if policy else None, specs))
    assert policy is None or sum(r.preemptions or 0 for r in served) > 10
    pace, hiccups = host_pace(served, COSTS, sends_late=True)
    assert pace == pytest.approx(1.3, rel=0.06)
    assert policy or hiccups == pytest.approx(1.0, abs=0.03)


def test_what_the_way_in_takes_is_found_again() -> None:
    specs = [RequestSpec(2.0 * k + 0.1 * j, 100, 30, QoETarget()) for k in range(40) for j in range(2)]
    engine = EngineModel(COSTS, 20_000, 32, 8192, overlap=Overlap.SYNC, entry_s=0.02)
    assert fit_costs(list(simulate(engine, None, specs))).entry_s == pytest.approx(0.02, abs=2e-3)


def test_too_little_is_said() -> None:
    with pytest.raises(FitError, match="decode iterations were seen; 30 are needed"):
        fit_costs(records(Overlap.NONE, 3)[:1])
    with pytest.raises(FitError, match="no deliveries"):
        fit_costs([])
