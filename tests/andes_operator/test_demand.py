"""Requests to simulate from those that came lately: lengths, bursts, readers."""

from __future__ import annotations

import itertools
import random
from dataclasses import replace

import pytest
from cases import SPEC

from andes_operator.demand import (
    ANSWERS,
    MAX_REPEATED,
    MIN_SAMPLE,
    MIN_SPAN_S,
    SPAN_S,
    TYPICAL_OUTPUT_TOKENS,
    TYPICAL_PROMPT_TOKENS,
    ExpectedDemand,
    expected_demand,
)  # fmt: skip
from andes_operator.gateway_report import ObservedRequest
from andes_operator.observe import Observation, PodCounts
from andes_operator.spec import DemandSource
from andes_sglang.expectations import ReaderExpectation
from andes_sglang.qoe import QoETarget

NOW_S = 1_000_000.0
PROMETHEUS = replace(SPEC, demand=DemandSource(prometheus_url="http://p", prompt_tokens=700, output_tokens=150))


def observed(rate_rps: float, seconds: float = 300.0) -> Observation:
    chance = random.Random(1)  # noqa: S311
    at_s, requests = NOW_S - seconds, []
    while (at_s := at_s + chance.expovariate(rate_rps)) < NOW_S:
        requests.append(ObservedRequest(at_s, "reading", chance.randint(200, 2000), chance.randint(50, 500), True))
    return Observation(NOW_S, PodCounts(2, 2, 2), rate_rps, recent=tuple(requests))


def of(*requests: ObservedRequest) -> Observation:
    return Observation(NOW_S, PodCounts(2, 2, 2), recent=requests)


def done(count: int = MIN_SAMPLE, tokens: int = 77) -> list[ObservedRequest]:
    return [ObservedRequest(NOW_S - 100 + i, "reading", 100, tokens, True) for i in range(count)]


def lengths(demand: ExpectedDemand) -> list[int]:
    return [r.output_tokens for r in demand.requests]


def test_lengths_and_bursts_stay_at_another_rate() -> None:
    seen = observed(2.0)
    made = expected_demand(
        SPEC, seen, 4.0, {"reading": ReaderExpectation(QoETarget(2.0, 9.0), weight=3.0, yields=True)}
    )
    assert made.rate_rps == pytest.approx(4.0)
    assert [r.prompt_tokens for r in made.requests] == [r.prompt_tokens for r in seen.recent]
    assert lengths(made) == [r.output_tokens for r in seen.recent]
    gaps = [b.arrival_s - a.arrival_s for a, b in itertools.pairwise(seen.recent)]
    scaled = [b.arrival_s - a.arrival_s for a, b in itertools.pairwise(made.requests)]
    assert scaled == pytest.approx([gap * made.span_s / (NOW_S - seen.recent[0].arrival_s) for gap in gaps])
    assert made.requests[0].arrival_s == 0.0
    assert {(r.target, r.weight, r.yields) for r in made.requests} == {(QoETarget(2.0, 9.0), 3.0, True)}
    assert set(made.class_names) == {"reading"}


@pytest.mark.parametrize(("tds", "least_s"), [(1000.0, MIN_SPAN_S), (5.0, 275 / 5.0 * ANSWERS)])
def test_a_few_seconds_of_demand_are_repeated_until_a_fleet_has_filled_up(tds: float, least_s: float) -> None:
    seen = observed(20.0, 7.0)
    made = expected_demand(SPEC, seen, 40.0, {"reading": ReaderExpectation(QoETarget(1.0, tds))})
    assert made.span_s == pytest.approx(least_s, rel=0.15), "a minute, or three answers of 275 tokens"
    assert made.span_s >= MIN_SPAN_S
    assert len(made.requests) / made.span_s == pytest.approx(40.0)
    assert [r.arrival_s for r in made.requests] == sorted(r.arrival_s for r in made.requests)
    once = len(seen.recent)
    assert [r.prompt_tokens for r in made.requests[:once]] == [r.prompt_tokens for r in made.requests[once : 2 * once]]
    assert made.requests[once].arrival_s == pytest.approx(made.span_s / (len(made.requests) / once))
    assert len(made.class_names) == len(made.requests)


def test_slow_readers_do_not_make_it_endless() -> None:
    made = expected_demand(SPEC, observed(100.0, 5.0), 40.0, {"reading": ReaderExpectation(QoETarget(1.0, 0.1))})
    assert MAX_REPEATED <= len(made.requests) <= 1.1 * MAX_REPEATED
    crowd = expected_demand(SPEC, observed(100.0, 5.0), 1000.0, {})
    assert crowd.span_s >= MIN_SPAN_S, "a minute, however many come"


def test_the_sample_is_from_the_first_request_until_now() -> None:
    made = expected_demand(SPEC, of(*done(MIN_SAMPLE)), 0.2, {})
    assert made.span_s == pytest.approx(MIN_SAMPLE / 0.2)
    assert made.requests[1].arrival_s == pytest.approx(1.0 * (MIN_SAMPLE / 100) / 0.2)


def test_an_answer_under_way_is_as_long_as_one_of_its_class() -> None:
    made = expected_demand(SPEC, of(*done(), ObservedRequest(NOW_S - 1, "reading", 100, 5, False)), 1.0, {})
    assert set(lengths(made)) == {77}
    other = ObservedRequest(NOW_S - 1, "code", 100, 5, False)
    assert set(lengths(expected_demand(SPEC, of(*done(), other), 1.0, {}))) == {77, TYPICAL_OUTPUT_TOKENS}
    assert set(lengths(expected_demand(PROMETHEUS, of(*done(), other), 1.0, {}))) == {77, 150}


def test_an_answer_under_way_is_longer_than_it_is_already() -> None:
    further = ObservedRequest(NOW_S - 50, "reading", 100, 400, False)
    made = expected_demand(SPEC, of(*done(), further), 1.0, {})
    assert max(lengths(made)) == 800, "none has got further: twice its own"
    longer = [*done(), ObservedRequest(NOW_S - 60, "reading", 100, 500, True)]
    assert sorted(set(lengths(expected_demand(SPEC, of(*longer, further), 1.0, {})))) == [77, 500]


def test_thoughts_are_simulated_as_they_were_and_go_with_their_answers() -> None:
    thinking = [replace(r, output_tokens=500, reason_tokens=400) for r in done(30)]
    made = expected_demand(SPEC, of(*thinking, ObservedRequest(NOW_S - 1, "reading", 100, 5, False)), 1.0, {})
    assert {(r.output_tokens, r.reason_tokens) for r in made.requests} == {(500, 400)}
    first = ObservedRequest(NOW_S - 1, "reading", 100, 300, False, reason_tokens=300)
    alone = expected_demand(SPEC, of(*[first] * MIN_SAMPLE), 1.0, {})
    assert {(r.output_tokens, r.reason_tokens) for r in alone.requests} == {(600, 300)}


def test_a_request_that_ended_without_an_answer_says_nothing_of_lengths() -> None:
    refused = ObservedRequest(NOW_S - 1, "reading", 100, 0, True)
    assert set(lengths(expected_demand(SPEC, of(*done(), refused), 1.0, {}))) == {77}


def test_lengths_are_not_those_of_the_short_answers_that_have_finished() -> None:
    chance = random.Random(1)  # noqa: S311
    true = [round(chance.expovariate(1 / 100)) + 1 for _ in range(4000)]
    so_far = [chance.randint(1, 300) for _ in true]
    recent = [
        ObservedRequest(NOW_S - 400 + i / 10, "reading", 100, min(total, far), total <= far)
        for i, (total, far) in enumerate(zip(true, so_far))
    ]
    made = expected_demand(SPEC, of(*recent), 10.0, {})
    finished = [r.output_tokens for r in recent if r.done]
    assert sum(lengths(made)[: len(true)]) / sum(true) == pytest.approx(1.0, abs=0.1)
    assert sum(finished) / len(finished) < 0.8 * sum(true) / len(true)


def test_too_few_requests_become_poisson_and_none_become_none() -> None:
    few = of(ObservedRequest(NOW_S - 5, "code", 300, 40, True))
    made = expected_demand(SPEC, few, 2.0, {})
    assert made.span_s == SPAN_S
    assert len(made.requests) == pytest.approx(2.0 * SPAN_S, rel=0.15)
    assert {(r.prompt_tokens, r.output_tokens) for r in made.requests} == {(300, 40)}
    assert set(made.class_names) == {"code"}
    assert 0.0 < made.requests[0].arrival_s < made.requests[-1].arrival_s < SPAN_S
    assert expected_demand(SPEC, few, 2.0, {}) == made, "chance is seeded"
    assert expected_demand(SPEC, few, 2.0, {}, seed=1) != made
    assert expected_demand(SPEC, few, 0.0, {}) == ExpectedDemand((), (), SPAN_S)
    assert (
        len({r.arrival_s for r in expected_demand(SPEC, of(*done(MIN_SAMPLE - 1)), 1.0, {}).requests}) != MIN_SAMPLE - 1
    )


def test_without_any_request_lengths_are_as_told_or_assumed() -> None:
    for spec, expected in ((SPEC, (TYPICAL_PROMPT_TOKENS, TYPICAL_OUTPUT_TOKENS)), (PROMETHEUS, (700, 150))):
        made = expected_demand(spec, of(), 1.0, {})
        assert {(r.prompt_tokens, r.output_tokens) for r in made.requests} == {expected}


def test_what_a_request_says_comes_before_its_class() -> None:
    own = {"target": QoETarget(0.5, 20.0), "weight": 0.5, "yields": False, "expected_tokens": 90}
    recent = [replace(r, **own) if i % 2 else r for i, r in enumerate(done())]
    readers = {"reading": ReaderExpectation(QoETarget(2.0, 9.0), weight=3.0, yields=True)}
    made = expected_demand(SPEC, of(*recent), 0.2, readers).requests
    assert {(r.target, r.weight, r.yields, r.expected_tokens) for r in made[1::2]} == {
        (QoETarget(0.5, 20.0), 0.5, False, 90)
    }
    assert {(r.target, r.weight, r.yields, r.expected_tokens) for r in made[::2]} == {
        (QoETarget(2.0, 9.0), 3.0, True, None)
    }
    unknown = expected_demand(SPEC, of(*done()), 0.2, {}).requests[0]
    assert (unknown.target, unknown.weight, unknown.yields) == (QoETarget(), 1.0, False)


def test_a_prompt_has_a_token_at_least() -> None:
    made = expected_demand(SPEC, of(*(replace(r, prompt_tokens=0) for r in done())), 1.0, {})
    assert {r.prompt_tokens for r in made.requests} == {1}
