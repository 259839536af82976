"""The planner: its searches, what it simulates, and ``andes plan`` as its users meet it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from andes_sglang.cli import main
from andes_sglang.objective import QoEObjective, parse_objective
from andes_sglang.qoe import QoETarget
from andes_sglang.request import RequestSpec
from andes_sglang.routing import IncomingStream, LeastLoad, ReplicaView
from andes_sglang.sim import profile
from andes_sglang.sim.engine import Costs, EngineModel, Overlap
from andes_sglang.sim.outcomes import Goal
from andes_sglang.sim.plan import capacity_rps, score_fleet, smallest_feasible, sustained_tokens_per_s
from andes_sglang.sim.planner import MORE, FleetPlan, Planner, Saving, Trial, denser
from andes_sglang.sim.whatif import WhatIf
from andes_sglang.workload import SyntheticWorkload, Workload, readers_of

CPU = EngineModel(Costs(4e-3, 5e-4, 1.2e-6, 5e-3, 30e-6, 3e-3), 8192, 64, 8192, overlap=Overlap.SYNC)
SMALL = EngineModel(Costs(0.01, 0.002, 1e-5, 0.02, 1e-3), kv_capacity_tokens=2000, chunk_tokens=500)
TINY = EngineModel(Costs(0.01, 0.002, 1e-5, 0.02, 1e-3), kv_capacity_tokens=900, chunk_tokens=500)
READERS = readers_of("reading", tds=4.5)
MEAN = parse_objective("mean>=0.95")


def demand(rate: float, duration_s: float = 60.0, **more: Any) -> SyntheticWorkload:
    return SyntheticWorkload(
        "forecast", ((duration_s, rate),), "200-400", "150-250", more.pop("readers", READERS), **more
    )


def steady(rate_rps: float, seconds: float, output: int = 50) -> Workload:
    times_s = np.arange(1, round(rate_rps * seconds) + 1) / rate_rps
    return Workload("steady", tuple(RequestSpec(float(t), 200, output, QoETarget(1.0, 4.5)) for t in times_s))


def planner(*workloads: Workload, max_replicas: int = 9, **more: Any) -> Planner:
    return Planner(MEAN, workloads, max_replicas=max_replicas, **{"routing": LeastLoad, **more})


def stock() -> None:
    return None


# Searches


@given(st.integers(1, 70), st.integers(-5, 100), st.integers(1, 12))
def test_the_smallest_that_holds_is_found_wherever_the_search_begins(answer: int, guess: int, step: int) -> None:
    asked: list[int] = []

    def holds(n: int) -> bool:
        asked.append(n)
        return n >= answer

    assert smallest_feasible(holds, guess, 64, step) == (answer if answer <= 64 else None)
    assert len(asked) == len(set(asked)) <= 14
    assert asked[0] == min(max(guess, 1), 64)
    assert all(1 <= n <= 64 for n in asked)


def test_a_good_guess_is_confirmed_by_two_questions() -> None:
    asked: list[int] = []

    def holds(n: int) -> bool:
        asked.append(n)
        return n >= 17

    assert smallest_feasible(holds, 17, 64) == 17
    assert asked == [17, 16]


def test_capacity_is_about_what_a_flooded_engine_serves() -> None:
    served_rps = sustained_tokens_per_s(CPU, "300", "200", seed=1) / 200
    assert capacity_rps(CPU, 300, 200) == pytest.approx(served_rps, rel=0.25)


def test_each_chunk_of_a_prompt_costs_an_iteration_of_its_own() -> None:
    whole, halves = (1.0 / capacity_rps(replace(SMALL, chunk_tokens=n), 1000, 50) for n in (1000, 500))
    assert halves - whole == pytest.approx(SMALL.costs.prefill_fixed_s)


def test_scores_are_of_every_request_and_the_backlog_is_of_the_last_arrival() -> None:
    scores, backlog = score_fleet([SMALL], stock, steady(20.0, 4.0))
    assert len(scores) == 80
    assert 40 < backlog < 80, "far more than it can serve"
    more, fewer = score_fleet([SMALL] * 8, stock, steady(20.0, 4.0))
    assert fewer < backlog
    assert more.mean() > scores.mean()


# The planner


def test_the_smallest_fleet_holds_and_what_was_tried_below_it_does_not() -> None:
    for guess in (1, 9):
        plan = planner(steady(12.0, 8.0)).smallest_fleet(SMALL, stock, guess=guess)
        assert plan.replicas is not None
        assert 1 < plan.replicas < 9
        assert plan.replicas == planner(steady(12.0, 8.0)).smallest_fleet(SMALL, stock).replicas
        for replicas, trial in plan.trials.items():
            assert trial.holds(MEAN) == (replicas >= plan.replicas)
        assert plan.replicas - 1 in plan.trials, "the one below was tried"


def test_no_fleet_within_the_bound_is_no_plan() -> None:
    plan = planner(steady(12.0, 8.0), max_replicas=1).smallest_fleet(SMALL, stock)
    assert plan.replicas is None
    assert list(plan.trials) == [1]


def test_an_objective_holds_on_average_over_the_seeds() -> None:
    assert Trial((1.0, 0.9), 0.0).holds(MEAN)
    assert not Trial((1.0, 0.88), 0.0).holds(MEAN)
    quiet, busy = steady(1.0, 8.0), steady(12.0, 8.0)
    both = planner(quiet, busy).trial([SMALL], stock)
    alone = [planner(one).trial([SMALL], stock) for one in (quiet, busy)]
    assert both.values == (*alone[0].values, *alone[1].values)
    assert both.backlog_share == pytest.approx(np.mean([one.backlog_share for one in alone]))
    assert 0.0 < both.backlog_share < 1.0
    assert both.mean == pytest.approx(np.mean(both.values))


def test_the_search_begins_at_arithmetic_or_for_long_workloads_at_the_what_ifs_answer() -> None:
    each_rps = capacity_rps(SMALL, 200, 50)
    assert planner(steady(3.2 * each_rps, 40.0)).guess(SMALL, stock) == 4
    busy, calm = steady(4.2 * each_rps, 1205 / (4.2 * each_rps)), steady(0.8 * each_rps, 1205 / (0.8 * each_rps))
    since_s = busy.duration_s
    long = Workload("busy, then calm", (*busy, *(replace(r, arrival_s=r.arrival_s + since_s) for r in calm)))
    told: list[str] = []
    guess = planner(long, progress=told.append).guess(SMALL, stock)
    asked = WhatIf(
        SMALL, stock, long.requests, long.duration_s, [Goal(QoEObjective.parse("mean>=0.95"))], routing_policy=LeastLoad
    )
    assert guess == asked.fewest(9)
    assert guess >= 4, "the busy half decides; arithmetic over the whole says 2"
    assert not told, "without simulating a whole fleet"


def test_a_mix_is_no_dearer_than_either_alone_and_simulates_nothing_twice() -> None:
    told: list[str] = []
    both = planner(steady(8.0, 8.0), progress=told.append)
    alone = both.smallest_fleet(SMALL, stock), both.smallest_fleet(TINY, stock)
    assert alone[0].replicas is not None
    assert alone[1].replicas is not None
    assert alone[0].replicas < alone[1].replicas
    prices = 1.0, 0.6
    mix = both.cheapest_mix((SMALL, TINY), stock, alone, prices)
    assert mix is not None
    a, b = mix.replicas
    assert mix.price_per_hour == pytest.approx(a * prices[0] + b * prices[1])
    assert mix.trial.holds(MEAN)
    assert both.trial([SMALL] * a + [TINY] * b, stock).values == mix.trial.values, "the answer holds when it is played"
    every = [
        (x * prices[0] + y * prices[1], x, y)
        for x in range(alone[0].replicas + 1) for y in range(alone[1].replicas + 1)
        if x + y and x * prices[0] + y * prices[1] < mix.price_per_hour - 1e-9
    ]  # fmt: skip
    assert not any(both.trial([SMALL] * x + [TINY] * y, stock).holds(MEAN) for _, x, y in every)
    dear = both.cheapest_mix((SMALL, TINY), stock, alone, (1.0, 100.0))
    assert dear is not None
    assert dear.replicas == (alone[0].replicas, 0)
    assert dear.trial is alone[0].trials[alone[0].replicas]
    assert dear.plays == 0, "no mix can be cheaper, so none was simulated"


def test_a_saving_is_over_the_best_rival_that_has_a_plan() -> None:
    def fleet(replicas: int | None) -> FleetPlan:
        return FleetPlan(
            replicas, {n: Trial((0.99, 0.98) if replicas and n >= replicas else (0.5, 0.6), 0.0) for n in range(1, 9)}
        )

    def share(have: int | None, *needed: int | None) -> float | None:
        saving = Saving.over(fleet(have), [fleet(n) for n in needed], MEAN)
        return None if saving is None else saving.share

    assert share(3, 8, 6, None) == 0.5
    assert share(6, 4) == -0.5
    assert share(3, None) is None
    assert share(None, 4) is None


def test_a_saving_that_is_a_coin_toss_is_none() -> None:
    """Three against four replicas; the rival misses with three, by much or by chance."""
    ours = FleetPlan(3, {3: Trial((0.99, 0.98, 0.99), 0.0)})

    def saving(*with_three: float) -> Saving:
        rival = FleetPlan(4, {4: Trial((0.99,) * 3, 0.0), 3: Trial(with_three, 0.0), 1: Trial((0.1,) * 3, 0.0)})
        found = Saving.over(ours, [rival], MEAN)
        assert found is not None
        return found

    assert saving(0.80, 0.82, 0.81).sure
    assert not saving(0.99, 0.99, 0.80).sure, "0.927 on average, and two of three seeds hold"
    unsure = Saving.over(
        FleetPlan(3, {3: Trial((0.951, 0.949, 0.952), 0.0)}), [FleetPlan(4, {3: Trial((0.8, 0.8, 0.8), 0.0)})], MEAN
    )
    assert unsure is not None
    assert not unsure.sure, "ours may not hold either"
    one = Saving.over(FleetPlan(3, {3: Trial((0.99,), 0.0)}), [FleetPlan(4, {3: Trial((0.1,), 0.0)})], MEAN)
    assert one is not None
    assert one.certainty is None, "one seed tells nothing of chance"
    assert not one.sure


def test_without_a_plan_for_any_there_is_no_mix() -> None:
    none = FleetPlan(None, {9: Trial((0.1,), 0.0)})
    assert planner(steady(1.0, 5.0)).cheapest_mix((SMALL, TINY), stock, (none, none), (1.0, 1.0)) is None


def test_denser_demand_has_more_requests_in_the_same_seconds() -> None:
    calm = steady(4.0, 25.0)
    for factor in MORE:
        more = denser(calm, factor)
        assert len(more) == round(100 * factor)
        assert more.duration_s == calm.duration_s
        times_s = [r.arrival_s for r in more]
        assert times_s == sorted(times_s)
        assert sum(t < 12.5 for t in times_s) == pytest.approx(len(more) / 2, abs=2), "evenly"
    assert len(denser(demand(2.0), 1.5)) == 180


def test_headroom_is_how_much_more_demand_is_held_and_use_how_much_of_the_fleet_works() -> None:
    both = planner(steady(4.0, 8.0))
    plan = both.smallest_fleet(SMALL, stock)
    assert plan.replicas is not None
    fleet = [SMALL] * plan.replicas
    headroom = both.headroom(fleet, stock)
    assert both.headroom([SMALL] * 4 * plan.replicas, stock) == MORE[-1]
    more = planner(*(w for w in [denser(both.workloads[0], headroom)] if isinstance(w, Workload)))
    assert more.trial(fleet, stock).holds(MEAN)
    assert 0.1 < both.used(fleet) < 1.5
    assert both.used(fleet * 2) == pytest.approx(both.used(fleet) / 2)


class MostLoad(LeastLoad):
    """Sends everything to one replica."""

    name = "most_load"

    def order(self, new: IncomingStream, views: Sequence[ReplicaView], now_s: float) -> list[ReplicaView]:
        return super().order(new, views, now_s)[::-1]


def test_the_routing_policy_is_the_one_that_was_given() -> None:
    spread = planner(steady(12.0, 8.0)).trial([SMALL] * 4, stock)
    heaped = planner(steady(12.0, 8.0), routing=MostLoad).trial([SMALL] * 4, stock)
    assert heaped.mean < spread.mean - 0.1


def test_a_planner_without_workload_or_replicas_is_refused() -> None:
    with pytest.raises(ValueError, match="workloads must not be empty"):
        planner()
    with pytest.raises(ValueError, match="max_replicas must be >= 1, got 0"):
        planner(steady(1.0, 5.0), max_replicas=0)


# The command


CPU_PROFILE = ("--profile", "cpu-tiny-llama")


def plan(out: Path, *flags: str, status: int = 0) -> dict[str, Any]:
    base = ("--shape", "poisson", "--rate", "6", "--duration", "15", "--tds", "4.5")
    assert main(["plan", *base, "--seeds", "2", "--out", str(out), "--force", *flags]) == status
    return dict(json.loads((out / "plan.json").read_text()))


def test_plan_finds_the_least_fleet_and_its_saving(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    result = plan(tmp_path, *CPU_PROFILE, "--policies", "stock,stock-mixed,andes", "--rate", "12", "--duration", "10")
    stock, mixed, andes = result["plans"]
    for p in (stock, mixed, andes):
        assert np.mean(p["predicted"][str(p["replicas"])]["values"]) >= 0.95
        fewer = p["predicted"].get(str(p["replicas"] - 1))
        assert fewer is None or np.mean(fewer["values"]) < 0.95
    better = min(stock["replicas"], mixed["replicas"])
    assert andes["replicas"] < better
    assert andes["saving_over_better_stock"] == pytest.approx(1 - andes["replicas"] / better)
    assert (result["objective"], result["router"]) == ("mean>=0.95", "qoe")
    assert andes["used"] > 0.0
    assert andes["headroom"] >= 1.0
    assert "seeds that hold" in capsys.readouterr().out
    page = (tmp_path / "plan.html").read_text()
    assert "SIMULATED" in page
    assert "<svg" in page
    assert "http" not in page
    most = str(andes["replicas"])
    flags = ("--policies", "stock,andes", "--rate", "12", "--duration", "10", "--max-replicas", most)
    found = plan(tmp_path, *CPU_PROFILE, *flags)["plans"]
    assert [str(p["replicas"]) for p in found] == ["None", most], "one answer is enough for the exit status"


def test_by_default_andes_as_one_would_deploy_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What it may be told to serve with, how many GPUs a replica is, and that models differ."""
    big = ("--profile", "h100x4-llama-3.1-70b")
    result = plan(tmp_path, *CPU_PROFILE, *big, "--rate", "2", "--duration", "5", "--seeds", "1")
    flags = {(p["profile"], p["policy"]): p["flags"] for p in result["plans"]}
    assert flags == {
        ("cpu-tiny-llama", "stock-mixed"): "--policy stock --enable-mixed-chunk",
        ("cpu-tiny-llama", "andes-deployed"): "--policy andes --enable-mixed-chunk --preemption-mode offload",
        ("h100x4-llama-3.1-70b", "stock-mixed"): "--policy stock --tp-size 4 --enable-mixed-chunk",
        ("h100x4-llama-3.1-70b", "andes-deployed"): (
            "--policy andes --tp-size 4 --enable-mixed-chunk --preemption-mode offload"
        ),
    }
    assert result["mixes"] == []
    said = capsys.readouterr().out
    assert (
        "different models (cpu-tiny-llama serves Llama of 8 layers, h100x4-llama-3.1-70b serves Llama-3.1-70B)" in said
    )
    assert "h100x4-llama-3.1-70b: a replica is 4 GPUs by tensor parallelism" in said
    assert "h100x4-llama-3.1-70b, andes-deployed: andes serve --policy andes --tp-size 4" in said


def test_mixes_cost_no_more_than_either_alone(tmp_path: Path) -> None:
    small = tmp_path / "small.toml"
    small.write_text(profile.dump(profile.load("cpu-tiny-llama")).replace("8192", "3000", 1))
    result = plan(tmp_path, "--policies", "stock", "--profile", f"{small}@0.4", "--profile", "cpu-tiny-llama@1")
    alone = [p["price_per_hour"] for p in result["plans"] if p["price_per_hour"]]
    (mix,) = result["mixes"]
    assert mix["price_per_hour"] <= min(alone) + 1e-9
    assert np.mean(mix["values"]) >= 0.95


def test_a_fleet_that_does_not_reach_is_said_to_be_larger_than_the_bound(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    few = ("--rate", "30", "--duration", "10", "--most", "1")
    result = plan(tmp_path, *CPU_PROFILE, "--policies", "stock", *few, status=1)
    said = capsys.readouterr()
    assert result["plans"][0]["replicas"] is None
    assert "> 1" in said.out
    assert "--most is now --max-replicas" in said.err


@pytest.mark.parametrize("flags", [("--drafts", "3"), ("--arm", "drafted=andes:--drafts=readers")])
def test_drafts_are_the_simulators_alone_and_no_flag_to_serve_with(
    flags: tuple[str, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    result = plan(
        tmp_path, "--profile", "h100-llama-3.1-8b", "--policies", "andes", "--duration", "4", "--seeds", "1", *flags
    )
    assert [p["flags"] for p in result["plans"]] == ["--policy andes"] * len(result["plans"])
    assert "andes serve has no --drafts" in capsys.readouterr().out


def test_a_codec_is_the_simulators_alone_and_a_lossy_one_says_what_it_changes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arm = "coded=andes:--preemption-mode offload --host-kv-codec int8"
    base = ("--profile", "h100-llama-3.1-8b", "--policies", "andes", "--duration", "4", "--seeds", "1")
    result = plan(tmp_path, *base, "--arm", arm)
    plain, coded = result["plans"]
    assert (plain["flags"], coded["flags"]) == ("--policy andes", "--policy andes --preemption-mode offload")
    said = capsys.readouterr().out
    assert "andes serve has no --host-kv-codec: an engine's host copies are exact" in said
    assert "h100-llama-3.1-8b, coded: answers that return from host memory are no longer exact" in said
    assert all(line in said for line in result["unlike_served"])
    assert len(result["unlike_served"]) == 2, "in the file and with --json too"


@pytest.mark.parametrize(
    ("flags", "text"),
    [
        (("--objective", "best"), "--objective: objective 'best': expected mean>=X"),
        (("--objective", "p90(ttft)<=0"), "--objective: objective 'p90(ttft)<=0': seconds must be > 0"),
        (("--profile", "a100-40gb-phi-3-mini@cheap"), "expected NAME@PRICE"),
        (("--profile", "a100-40gb-phi-3-mini@-1"), "expected NAME@PRICE, a price > 0"),
        (("--profile", "a100-40gb-phi-3-mini@nan"), "expected NAME@PRICE, a price > 0"),
        (("--profile", "cpu-tiny-llama@1"), "--profile 'cpu-tiny-llama@1': cpu-tiny-llama is given twice"),
        (("--seeds", "0"), "--seeds must be >= 1, got 0"),
        (("--max-replicas", "0"), "--max-replicas must be >= 1, got 0"),
        (("--setups", "8"), "--setups 8: goes with --search"),
        (("--router", "best"), "--router: unknown routing policy 'best'"),
        (("--decision-interval", "nan"), "--decision-interval must be >= 0 seconds, got nan"),
        (("--policies", "best"), "unknown policy 'best'"),
        (("--prompt", "9000"), "prompt_tokens 9000 with output_tokens"),
    ],
)
def test_bad_input_is_refused_in_one_sentence(
    flags: tuple[str, ...], text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base = ["plan", *CPU_PROFILE, "--rate", "3", "--duration", "10"]
    assert main([*base, "--out", str(tmp_path), *flags]) == 2
    error = capsys.readouterr().err
    assert text in error
    assert "Traceback" not in error
    assert not (tmp_path / "plan.json").exists()


def test_what_yields_is_in_no_objective() -> None:
    """Offline work that comes last and is never in time takes no replica."""
    readers = [RequestSpec(0.5 * k, 100, 40) for k in range(40)]
    late = [RequestSpec(20.0 + 0.001 * k, 100, 400, QoETarget(0.01, 100.0), yields=True) for k in range(300)]
    for specs in (readers, readers + late):
        found = planner(Workload("w", tuple(specs))).smallest_fleet(CPU, stock)
        assert found.replicas == 1
