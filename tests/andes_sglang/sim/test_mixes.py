"""The integer programme that proposes mixes of kinds of replica, and the search around it."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from andes_sglang.request import RequestSpec
from andes_sglang.sim import profile
from andes_sglang.sim.mixes import Mix, Programme, _Search, bucket_loads, cheapest_mix

SHORT_AND_LONG = np.array([[2.0, 6.0], [1.5, 2.0]])
"""The first kind is as good at short requests by price, and bad at long ones."""


def programme(prices: tuple[float, ...] = (1.0, 2.5), load: np.ndarray = SHORT_AND_LONG) -> Programme:
    return Programme(load, np.ones(len(load)), np.array(prices))


def test_short_requests_go_to_the_cheap_kind_and_long_ones_to_the_other() -> None:
    assert programme().cheapest(1.0, 20) == (2, 2)
    assert programme().price((2, 2)) == 7.0
    assert programme().cheapest(2.0, 20) == (4, 4)
    assert programme(prices=(1.0, 9.0)).cheapest(1.0, 20) == (8, 0)
    assert programme().cheapest(1.0, 3) is None


@given(st.lists(st.integers(0, 6), min_size=2, max_size=2), st.floats(0.3, 2.0))
def test_a_mix_is_as_strong_as_the_programme_says(mix: list[int], strength: float) -> None:
    """The cheapest mix of a strength has it, and one with no replica has none."""
    found = programme().cheapest(strength, 40)
    assert found is not None
    assert programme().strength(found) >= strength - 1e-6
    assert (programme().strength(mix) > 0) == (sum(mix) > 0)


@settings(deadline=None, max_examples=8)
@given(
    st.lists(st.lists(st.floats(0.3, 4.0), min_size=3, max_size=3), min_size=3, max_size=3),
    st.lists(st.floats(0.5, 4.0), min_size=3, max_size=3),
    st.floats(0.8, 1.25),
)
def test_the_mix_found_costs_no_more_than_every_pair_tried(
    rows: list[list[float]], prices: list[float], truth: float
) -> None:
    """Where a fleet holds that is as strong as it says, times what the programme does not know."""
    load = np.array(rows)
    true = Programme(load, np.ones(3), np.array(prices))
    asked: list[Mix] = []

    def holds(mix: Mix) -> bool:
        asked.append(mix)
        return true.strength(mix) >= truth - 1e-9

    alone = [
        next(n for n in itertools.count(1) if true.strength([n * (g == k) for g in range(3)]) >= truth - 1e-9)
        for k in range(3)
    ]
    best = cheapest_mix(holds, load, alone, prices, max_replicas=64)
    assert best is not None
    assert true.strength(best) >= truth - 1e-9
    pairs = [
        mix
        for a, b in itertools.combinations(range(3), 2)
        for x, y in itertools.product(range(alone[a] + 1), range(alone[b] + 1))
        if true.strength(mix := [x * (g == a) + y * (g == b) for g in range(3)]) >= truth - 1e-9
    ]
    assert true.price(best) <= min(true.price(mix) for mix in pairs) + min(prices), "at most one replica from the best"
    assert len(asked) == len(set(asked)) <= 30


def test_what_is_part_of_a_mix_that_fails_or_no_cheaper_than_the_best_promises_nothing() -> None:
    search = _Search(lambda _mix: False, programme(), [8, 4], 20)
    assert search.best == (8, 0)
    strong = {(3, 1): 5.0, (2, 2): 5.0, (7, 0): 5.0, (0, 3): 5.0, (1, 3): 5.0}
    search.pool = dict(strong)
    search.failed.append((3, 1))
    assert {mix for mix in strong if search._promise(mix) > 0} == {(2, 2)}
    search.pool = {(2, 1): 5.0}
    assert not search.play(), "nothing is left to play"


def test_each_play_teaches_how_strong_a_mix_must_be() -> None:
    asked: list[Mix] = []

    def holds(mix: Mix) -> bool:
        asked.append(mix)
        return False

    assert cheapest_mix(holds, 10 * SHORT_AND_LONG, [80, 35], (1.0, 2.5), max_replicas=200) == (80, 0)
    strengths = [programme(load=10 * SHORT_AND_LONG).strength(mix) for mix in asked]
    assert len(asked) == len(set(asked)) <= 12
    assert max(strengths) > strengths[0], "what failed was too weak, so stronger ones came next"


def test_a_kind_that_never_holds_alone_may_be_part_of_a_mix() -> None:
    """It can take the short ones however few replicas of the other there are."""
    best = cheapest_mix(
        lambda mix: mix[1] >= 2 and sum(mix) >= 4, SHORT_AND_LONG, [None, 4], (1.0, 2.5), max_replicas=9
    )
    assert best == (2, 2)
    assert cheapest_mix(lambda _mix: True, SHORT_AND_LONG, [None, None], (1.0, 2.5), max_replicas=9) is None
    assert cheapest_mix(lambda _mix: True, SHORT_AND_LONG[:1], [3], (1.0,), max_replicas=9) == (3,)


def test_buckets_are_by_powers_of_two_and_loads_are_of_full_batches() -> None:
    engines = [profile.load(name).engine for name in ("l4-llama-3.1-8b", "h100-llama-3.1-8b")]
    requests = [
        RequestSpec(0.0, prompt, output) for prompt, output in ((100, 200), (110, 250), (3000, 200), (100, 1000))
    ]
    load = bucket_loads(engines, requests, 10.0)
    assert load.shape == (2, 3)
    assert (load[0] > load[1]).all(), "an H100 is faster at everything"
    twice = bucket_loads(engines, requests, 5.0)
    assert twice == pytest.approx(2 * load)
