"""Demand, forecast and what-if together, on the real simulator, in its own process."""

from __future__ import annotations

import asyncio
import itertools
import os
import random
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import pytest

from andes_operator.demand import LEAST_SAMPLE, SPAN_S, Reader, arrivals
from andes_operator.names import Statistic
from andes_operator.observe import Observation, Pods, Request
from andes_operator.simulated import Inquiry, PredictionError, Predictor, cold_start_s, predict
from andes_operator.spec import Demand, Objective, ScaleTargetRef, TargetSpec
from andes_sglang.qoe import QoETarget

NOW_S = 1_000_000.0
SPEC = TargetSpec(
    ref=ScaleTargetRef("apps/v1", "Deployment", "engine"),
    objectives=(Objective("*", Statistic.SHARE_ABOVE, 0.95, 0.95),),
    min_replicas=1,
    max_replicas=20,
    demand=Demand(service="gateway"),
    profile="h100-llama-3.1-8b",
)


def observed(rate_rps: float, seconds: float = 300.0) -> Observation:
    chance = random.Random(1)  # noqa: S311
    at_s, requests = NOW_S - seconds, []
    while (at_s := at_s + chance.expovariate(rate_rps)) < NOW_S:
        requests.append(Request(at_s, "reading", chance.randint(200, 2000), chance.randint(50, 500), True))
    return Observation(NOW_S, Pods(2, 2, 2), rate_rps, recent=tuple(requests))


def test_arrivals_keep_lengths_and_bursts_at_another_rate() -> None:
    seen = observed(2.0)
    made, span_s = arrivals(SPEC, seen, 4.0, {"reading": Reader(QoETarget(2.0, 9.0), 3.0)})
    assert len(made) / span_s == pytest.approx(4.0)
    assert [a.prompt_tokens for a in made] == [r.prompt_tokens for r in seen.recent]
    gaps = [b.arrival_s - a.arrival_s for a, b in itertools.pairwise(seen.recent)]
    scaled = [b.at_s - a.at_s for a, b in itertools.pairwise(made)]
    assert scaled == pytest.approx([gap * span_s / (NOW_S - seen.recent[0].arrival_s) for gap in gaps])
    assert {(a.reader, a.weight) for a in made} == {(QoETarget(2.0, 9.0), 3.0)}


@pytest.mark.parametrize(("tds", "least_s"), [(1000.0, 60.0), (5.0, 165.0)])
def test_a_few_seconds_of_demand_go_on_until_a_fleet_has_filled_up(tds: float, least_s: float) -> None:
    seen = observed(20.0, 7.0)
    made, span_s = arrivals(SPEC, seen, 40.0, {"reading": Reader(QoETarget(1.0, tds))})
    assert span_s == pytest.approx(least_s, rel=0.15), "a minute, or three answers of 275 tokens"
    assert len(made) / span_s == pytest.approx(40.0)
    assert [a.at_s for a in made] == sorted(a.at_s for a in made)
    assert [a.prompt_tokens for a in made[: len(seen.recent)]] == [r.prompt_tokens for r in seen.recent]


def test_an_answer_under_way_is_as_long_as_one_of_its_class() -> None:
    done = tuple(Request(NOW_S - 100 + i, "reading", 100, 77, True) for i in range(LEAST_SAMPLE))
    open_now = Request(NOW_S - 1, "reading", 100, 5, False)
    made, _ = arrivals(SPEC, replace(observed(1.0), recent=(*done, open_now)), 1.0, {})
    assert {a.output_tokens for a in made} == {77}


def test_lengths_are_not_taken_from_short_answers_only_because_long_ones_are_not_finished() -> None:
    chance = random.Random(1)  # noqa: S311
    true = [round(chance.expovariate(1 / 100)) + 1 for _ in range(4000)]
    seen = [chance.randint(1, 300) for _ in true]  # how far each could have got by now
    recent = tuple(
        Request(NOW_S - 400 + i / 10, "reading", 100, min(total, so_far), total <= so_far)
        for i, (total, so_far) in enumerate(zip(true, seen))
    )
    made, _ = arrivals(SPEC, replace(observed(1.0), recent=recent), 10.0, {})
    lengths = [a.output_tokens for a in made[: len(true)]]
    finished = [r.output_tokens for r in recent if r.done]
    assert sum(lengths) / sum(true) == pytest.approx(1.0, abs=0.1)
    assert sum(finished) / len(finished) < 0.8 * sum(true) / len(true)


def test_too_few_arrivals_become_poisson_and_none_become_none() -> None:
    few = replace(observed(1.0), recent=(Request(NOW_S - 5, "code", 300, 40, True),))
    made, span_s = arrivals(SPEC, few, 2.0, {})
    assert span_s == SPAN_S
    assert len(made) == pytest.approx(2.0 * SPAN_S, rel=0.15)
    assert {(a.class_name, a.prompt_tokens, a.output_tokens) for a in made} == {("code", 300, 40)}
    assert arrivals(SPEC, few, 2.0, {}) == (made, span_s), "chance is seeded"
    assert arrivals(SPEC, few, 0.0, {}) == ((), SPAN_S)


def test_more_replicas_never_look_worse_and_overload_looks_bad() -> None:
    few, some, many = (
        predict(Inquiry(replace(SPEC, min_replicas=n, max_replicas=n), observed(60.0, 120.0), NOW_S - 120, 75.0))[1]
        for n in (1, 4, 16)
    )
    shares = few.values[1][0], some.values[4][0], many.values[16][0]
    assert shares[0] < 0.95 + SPEC.behavior.margin  # type: ignore[operator]
    assert shares[0] <= shares[1] <= shares[2]  # type: ignore[operator]
    assert shares[2] == 1.0
    assert few.least is None
    assert many.least == 16


def test_a_class_is_told_apart() -> None:
    requests = tuple(Request(NOW_S - 100 + i * 0.5, "fast" if i % 2 else "slow", 500, 100, True) for i in range(200))
    readers = {"fast": Reader(QoETarget(0.02, 500.0)), "slow": Reader(QoETarget())}
    objectives = (Objective("slow", Statistic.MEAN, 0.5), Objective("fast", Statistic.MEAN, 0.01))
    spec = replace(SPEC, objectives=objectives, max_replicas=1)
    seen = replace(observed(2.0), recent=requests)
    predicted = predict(Inquiry(spec, seen, NOW_S - 100, 75.0, readers=readers))[1]
    slow, fast = predicted.values[1]
    assert slow == 1.0
    assert fast < 0.9  # type: ignore[operator]


def test_what_a_request_expects_comes_before_its_class() -> None:
    seen = observed(2.0)
    own = tuple(replace(r, target=QoETarget(0.5, 20.0) if i % 2 else None) for i, r in enumerate(seen.recent))
    made, _ = arrivals(SPEC, replace(seen, recent=own), 2.0, {"reading": Reader(QoETarget(2.0, 9.0), 3.0)})
    assert {a.reader for a in made[1::2]} == {QoETarget(0.5, 20.0)}
    assert {a.reader for a in made[::2]} == {QoETarget(2.0, 9.0)}
    assert {a.weight for a in made} == {3.0}


def test_engines_that_hold_more_than_the_requests_tell_of_take_more_replicas() -> None:
    seen = replace(observed(60.0, 120.0), pods=Pods(12, 12, 12))
    first = predict(Inquiry(SPEC, seen, NOW_S - 120, 75.0))[1]
    assert first.load_factor == 1.0
    usual = round(60.0 * sum(first.stays_s[12]) / len(first.stays_s[12]))
    later = NOW_S + 120.0
    moved = tuple(replace(r, arrival_s=r.arrival_s + 120.0) for r in seen.recent)
    as_told, doubled = (
        predict(
            Inquiry(SPEC, replace(seen, now_s=later, recent=moved, engine_requests=held), later - 120, 75.0, last=first)
        )[1]
        for held in (usual, 2 * usual)
    )
    assert as_told.load_factor == pytest.approx(1.0, abs=0.1)
    assert 1.6 < doubled.load_factor < 2.2
    assert first.least is not None
    assert as_told.least is not None
    assert doubled.least is not None
    assert abs(as_told.least - first.least) <= 1
    assert doubled.least >= 1.4 * first.least


def test_the_whole_prediction() -> None:
    expected, predicted = predict(Inquiry(SPEC, observed(60.0, 120.0), NOW_S - 120, 75.0))
    assert expected.rate_rps >= 60.0
    assert predicted.least is not None
    assert predicted.meets(predicted.least)
    assert not predicted.meets(predicted.least - 1)
    better = predict(Inquiry(replace(SPEC, policy="stock"), observed(60.0, 120.0), NOW_S - 120, 75.0))[1]
    assert better.least is not None


def test_the_engines_policy_is_played_unless_the_target_names_one() -> None:
    """A policy of the engines that does not exist shows that it is asked for."""
    seen = replace(observed(2.0), policy=("magic", ()))
    with pytest.raises(ValueError, match="magic"):
        predict(Inquiry(SPEC, seen, NOW_S - 300, 75.0))
    named = predict(Inquiry(replace(SPEC, policy="stock"), seen, NOW_S - 300, 75.0))[1]
    assert named.values == predict(Inquiry(SPEC, replace(seen, policy=("stock", ())), NOW_S - 300, 75.0))[1].values
    with pytest.raises(ValueError, match="no_such_option"):
        predict(Inquiry(SPEC, replace(seen, policy=("andes", (("no_such_option", 1),))), NOW_S - 300, 75.0))


def test_nobody_to_serve_needs_the_least() -> None:
    expected, predicted = predict(Inquiry(SPEC, Observation(NOW_S, Pods(3, 3, 3)), NOW_S - 600, 75.0))
    assert (expected.rate_rps, predicted.least) == (0.0, 1)


@pytest.mark.parametrize(
    ("field", "value"), [("profile", "abacus"), ("policy", "magic"), ("policy_options", (("no", 1.0),))]
)
def test_what_cannot_be_played_is_named(field: str, value: object) -> None:
    with pytest.raises(ValueError, match=r"abacus|magic|no"):
        predict(Inquiry(replace(SPEC, **{field: value}), observed(2.0), NOW_S - 300, 75.0))  # type: ignore[arg-type]


def test_a_cold_start_is_as_set_or_learned_or_of_the_profile() -> None:
    assert cold_start_s(replace(SPEC, behavior=replace(SPEC.behavior, cold_start_s=5.0)), 80.0) == 5.0
    assert cold_start_s(SPEC, 80.0) == 80.0
    assert cold_start_s(SPEC, None) > 0


@contextmanager
def predictor(timeout_s: float, turn_s: float = 60.0) -> Iterator[Predictor]:
    made = Predictor(timeout_s, turn_s)
    try:
        yield made
    finally:
        made.close()


@pytest.mark.timeout(300)
def test_the_loop_goes_on_while_it_predicts_and_a_dead_process_is_replaced() -> None:
    async def scenario(ask: Predictor) -> None:
        inquiry = Inquiry(SPEC, observed(40.0, 120.0), NOW_S - 120, 75.0)
        running = asyncio.ensure_future(ask(inquiry))
        turns_s = [time.perf_counter()]
        while not running.done():
            await asyncio.sleep(0.01)
            turns_s.append(time.perf_counter())
        assert running.result()[1].least is not None
        longest_s = max(end_s - start_s for start_s, end_s in itertools.pairwise(turns_s))
        assert longest_s < 0.5 * (turns_s[-1] - turns_s[0]), "the loop had no turn for most of the prediction"
        (worker,) = ask._pool._processes.values()  # type: ignore[union-attr]
        doomed = asyncio.ensure_future(ask(inquiry))
        await asyncio.sleep(0)
        os.kill(worker.pid, signal.SIGKILL)
        with pytest.raises(PredictionError, match="process has died"):
            await doomed
        assert (await ask(inquiry))[1].least is not None

    with predictor(120.0) as ask:
        asyncio.run(scenario(ask))


@pytest.mark.timeout(300)
def test_a_prediction_that_takes_too_long_is_ended() -> None:
    async def scenario(ask: Predictor) -> None:
        with pytest.raises(PredictionError, match=r"more than 0\.2 s"):
            await ask(Inquiry(SPEC, observed(60.0, 120.0), NOW_S - 120, 75.0))

    with predictor(0.2) as ask:
        asyncio.run(scenario(ask))


@pytest.mark.timeout(300)
def test_nobody_waits_for_ever_behind_many_others() -> None:
    """A look that waits in a queue is no look that hangs, for which the liveness probe would have the operator restarted."""

    async def scenario(ask: Predictor) -> None:
        inquiry = Inquiry(SPEC, observed(5.0, 120.0), NOW_S - 120, 75.0)
        first = asyncio.ensure_future(ask(inquiry))
        await asyncio.sleep(0)
        with pytest.raises(PredictionError, match="no turn for a what-if in 0 s"):
            await ask(inquiry)
        assert (await first)[1].least is not None
        assert (await ask(inquiry))[1].least is not None

    with predictor(120.0, turn_s=0.0) as ask:
        asyncio.run(scenario(ask))
