"""The what-if: a few replicas played for a fleet of many, and the fewest that do."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from andes_sglang.objective import LatencyObjective, Metric, QoEObjective
from andes_sglang.policy import make
from andes_sglang.qoe import QoETarget
from andes_sglang.request import RequestSpec
from andes_sglang.routing import QoE, RoundRobinRouting
from andes_sglang.sim import profile
from andes_sglang.sim.engine import Costs, EngineModel, Overlap
from andes_sglang.sim.outcomes import Goal, Outcomes
from andes_sglang.sim.plan import score_fleet, smallest_feasible
from andes_sglang.sim.replica import RefusedError
from andes_sglang.sim.whatif import WhatIf, decision_interval, warmup_s, work_s
from andes_sglang.state import Phase
from andes_sglang.workload import SyntheticWorkload, readers_of

CPU = EngineModel(Costs(4e-3, 5e-4, 1.2e-6, 5e-3, 30e-6, 3e-3), 8192, 64, 8192, overlap=Overlap.SYNC)
MEAN, SHARE = QoEObjective.parse("mean>=0.95"), QoEObjective.parse("share(0.95)>=0.9")


def demand(rate_rps: float, seconds: float = 60.0, seed: int = 1) -> list[RequestSpec]:
    return list(SyntheticWorkload("demand", ((seconds, rate_rps),), "200-400", "150-250", readers_of("reading"), seed))


def what_if(requests: list[RequestSpec], policy: str = "stock", *goals: Goal, **more: Any) -> WhatIf:
    span_s = more.pop("span_s", requests[-1].arrival_s if requests else 60.0)
    return WhatIf(
        CPU, lambda: None if policy == "stock" else make(policy), requests, span_s, goals or [Goal(MEAN)], **more
    )


def whole_fleet(requests: list[RequestSpec], objective: QoEObjective, guess: int) -> int | None:
    return smallest_feasible(
        lambda n: objective.of(score_fleet([CPU] * n, lambda: None, requests)[0]) >= objective.value, guess, 60
    )


def test_a_small_fleet_is_played_whole() -> None:
    requests = demand(8.0, 30.0)
    question = what_if(requests, "andes", Goal(MEAN), Goal(SHARE))
    played = question.simulate(4)
    scores, _ = score_fleet(
        [CPU] * 4, lambda: make("andes"), requests, decision_interval_s=question.decision_interval_s
    )
    assert played.exact
    assert played.values == pytest.approx((MEAN.of(scores), SHARE.of(scores)))


@pytest.mark.parametrize("objective", [MEAN, SHARE])
def test_a_cell_tells_about_a_fleet_of_many(objective: QoEObjective) -> None:
    requests = demand(36.0)
    question = what_if(requests, "stock", Goal(objective))
    found = question.fewest(60)
    fleet = whole_fleet(requests, objective, found or 60)
    assert found is not None
    assert fleet is not None
    assert abs(found - fleet) <= 1
    scores, _ = score_fleet([CPU] * found, lambda: None, requests)
    assert question.simulated[found].values[0] == pytest.approx(objective.of(scores), abs=0.06)


def test_work_is_the_fleets_whichever_requests_are_picked() -> None:
    """Every twelfth request is ten times as long: a cell of one replica in twelve would see all of them, or none."""
    requests = [
        RequestSpec(r.arrival_s, 250, 1000 if i % 12 == 0 else 100, r.target) for i, r in enumerate(demand(36.0, 120.0))
    ]
    found = what_if(requests, max_requests=200).fewest(60)
    fleet = whole_fleet(requests, MEAN, found or 60)
    assert found is not None
    assert fleet is not None
    assert abs(found - fleet) <= 2


def test_the_busiest_stretch_decides() -> None:
    """A minute of surge in ten of calm: whoever comes in it counts, although all that came are too many to play."""
    calm, surge = 4.0, 16.0
    rates = ((270.0, calm), (60.0, surge), (270.0, calm))
    requests = list(SyntheticWorkload("surge", rates, "200-400", "150-250", readers_of("reading"), 1))
    found = what_if(requests, max_requests=100).fewest(60)
    steady = what_if(demand(surge), max_requests=100).fewest(60)
    assert found is not None
    assert steady is not None
    assert abs(found - steady) <= 1


def test_it_gives_up_early_what_cannot_be_met() -> None:
    requests = demand(30.0, 120.0)
    question = what_if(requests)
    hopeless = question.simulate(3)
    assert not hopeless.exact
    assert hopeless.values[0] < 0.95  # type: ignore[operator]
    assert not question.meets(3)
    assert what_if(requests).fewest(3) is None


def test_one_objective_for_each_kind_of_reader() -> None:
    fast, slow = QoETarget(0.05, 180.0), QoETarget(1.0, 4.5)
    requests = [
        RequestSpec(r.arrival_s, r.prompt_tokens, r.output_tokens, fast if i % 2 else slow)
        for i, r in enumerate(demand(6.0))
    ]
    kinds = [i % 2 for i in range(len(requests))]
    both = what_if(requests, "stock", Goal(MEAN, 0), Goal(MEAN, 1), kinds=kinds).fewest(60)
    slow_only = what_if(requests, "stock", Goal(MEAN, 0), kinds=kinds).fewest(60)
    nobody = what_if(requests, "stock", Goal(MEAN, 2), kinds=kinds)
    assert both is not None
    assert slow_only is not None
    assert both > slow_only
    assert nobody.fewest(60) == 1
    assert nobody.simulated[1].values == (None,)


@pytest.mark.parametrize(("metric", "policy"), [(Metric.TTFT, "stock"), (Metric.STALL, "andes")])
def test_fewer_seconds_take_more_replicas(metric: Metric, policy: str) -> None:
    requests = demand(16.0, 40.0)
    tight, loose = (
        what_if(requests, policy, Goal(LatencyObjective(metric, seconds, 95.0))) for seconds in (0.3, 1000.0)
    )
    most, least = tight.fewest(60), loose.fewest(60)
    assert most is not None
    assert least is not None
    assert most > least
    (got,) = tight.simulated[most].values
    assert got is not None
    assert got <= 0.3, "and with them it is met"


def test_margin_is_on_top_as_far_as_qoe_goes() -> None:
    assert [Goal(MEAN, margin=0.02).met(value) for value in (0.969, 0.97, None)] == [False, True, True]
    assert [Goal(MEAN, margin=0.2).met(value) for value in (0.999, 1.0)] == [False, True]
    fast = Goal(LatencyObjective(Metric.TTFT, 2.0, 95.0), margin=0.1)
    assert [fast.met(value) for value in (1.8, 1.81, None)] == [True, False, True], "a tenth fewer seconds"


def test_a_good_guess_is_cheap_and_bounds_are_kept() -> None:
    requests = demand(12.0)
    found = what_if(requests).fewest(60)
    assert found is not None
    again = what_if(requests)
    assert again.fewest(60, guess=found) == found
    assert sorted(again.simulated) == [found - 1, found]
    assert what_if(requests).fewest(60, min_replicas=found + 3) == found + 3


def test_nobody_needs_the_least_and_what_can_never_fit_is_refused() -> None:
    assert what_if([]).fewest(60) == 1
    with pytest.raises(RefusedError, match="prompt_tokens 9000"):
        what_if([RequestSpec(0.0, 9000, 10)], span_s=60.0).fewest(60)
    with pytest.raises(ValueError, match="span_s"):
        what_if(demand(1.0), span_s=0.0)


def test_a_policy_is_asked_as_often_as_prefill_needs_it() -> None:
    """Asked every half second, an engine that computes a chunk in a tenth would prefill a fifth of the time."""
    h100, slow = (profile.load(name).engine for name in ("h100-llama-3.1-8b", "l4-llama-3.1-8b"))
    assert decision_interval(h100) == h100.costs.prefill_s(h100.chunk_tokens) < 0.1
    assert decision_interval(slow) == 0.5


def test_work_is_about_the_time_that_a_flooded_engine_takes() -> None:
    from andes_sglang.sim.replica import simulate

    flood = [RequestSpec(0.0, 300, 200) for _ in range(400)]
    end_s = max(r.end_s for r in simulate(CPU, None, flood))
    assert work_s(CPU, flood).sum() == pytest.approx(end_s, rel=0.15)


def test_the_fleet_is_routed_by_the_policy_it_is_given() -> None:
    made = []

    class Counted(RoundRobinRouting):
        def __init__(self) -> None:
            super().__init__()
            made.append(self)

    requests = demand(8.0, 30.0)
    given, default = what_if(requests, routing_policy=Counted), what_if(requests)
    routed, qoe, same = (
        question.simulate(4).residence_times_s for question in (given, default, what_if(requests, routing_policy=QoE))
    )
    assert routed is not None
    assert qoe is not None
    assert same is not None
    assert qoe.tolist() == same.tolist() != routed.tolist()
    given.simulate(3)
    assert len(made) == 2, "one for every simulated fleet: a policy remembers whose turn it is"


COSTS = Costs(0.01, 0.001, 1e-6, 0.02, 1e-4, prefill_request_s=0.003, prefill_pair_s=2e-8)
TWO = [RequestSpec(0.0, 1000, 100), RequestSpec(1.0, 200, 300)]


def test_the_work_of_a_request_is_its_prefill_and_its_share_of_each_step() -> None:
    """A pool of 4,000 tokens holds 7.62 of these two, weighted by how long they run: 400 steps over 210,000 token steps."""
    batch = 4000 * 400 / (1050 * 100 + 350 * 300)
    first = 0.003 + 0.1 + 0.01 + 2 * 0.02 + 100 * (0.01 / batch + 0.001 + 1050e-6)
    second = 0.003 + 0.02 + 0.0004 + 1 * 0.02 + 300 * (0.01 / batch + 0.001 + 350e-6)
    assert work_s(EngineModel(COSTS, 4000, 64, 500), TWO) == pytest.approx([first, second], rel=1e-12)
    four = 100 * (0.01 / 4 - 0.01 / batch)
    assert work_s(EngineModel(COSTS, 4000, 4, 500), TWO)[0] == pytest.approx(first + four, rel=1e-12)


def test_a_request_larger_than_the_pool_runs_alone() -> None:
    one = work_s(EngineModel(COSTS, 500, 64, 500), TWO[:1])
    assert one == pytest.approx([0.003 + 0.1 + 0.01 + 0.04 + 100 * (0.01 + 0.001 + 1050e-6)])


def test_a_fleet_is_warm_after_the_answer_of_a_running_request() -> None:
    """Running ones are the first with a quarter, the second with three quarters: 250 tokens, contexts of 525, eight at a time."""
    assert warmup_s(EngineModel(COSTS, 4000, 64, 500), TWO) == pytest.approx(250 * (0.01 + 0.001 * 8 + 1e-6 * 4000))
    assert warmup_s(EngineModel(COSTS, 4000, 64, 500), []) == 0.0


def test_what_an_open_request_can_still_reach() -> None:
    """As if it got the rest now: 10 s of reading for 100 tokens at half their number."""

    def job(index: int, phase: Phase, generated: int, first_s: float) -> Any:
        spec = RequestSpec(2.0, 10, 100, QoETarget(1.0, 5.0))
        times_s = [np.array([first_s])]
        return SimpleNamespace(spec=spec, phase=phase, generated=generated, times_s=times_s, index=index)

    jobs = [
        job(1, Phase.WAITING, 0, 0.0), job(2, Phase.WAITING, 40, 3.0), job(3, Phase.RUNNING, 40, 5.0),
        job(4, Phase.RUNNING, 40, 3.0), job(5, Phase.WAITING, 100, 3.0),
    ]  # fmt: skip
    fleet: Any = SimpleNamespace(replicas=[SimpleNamespace(by_rid={j.index: j for j in jobs}, now_s=20.0)])
    before = Outcomes(np.array([0.4, 1.0, 1.0, 1.0, 1.0, 1.0]), np.full(6, 0.5), np.zeros(6))
    found = before.at_best(fleet)
    late = [17 / 27, 0.6 * 9 / 19, 2 / 12, 0.0, 0.0]
    assert found.qoe == pytest.approx([0.4, *(1 - x for x in late)])
    assert found.ttft_s == pytest.approx([0.5, 18.0, 0.5, 3.0, 1.0, 0.5]), "waited so far, or to the first token"
    assert before.qoe[1] == 1.0, "what has ended is kept apart"
