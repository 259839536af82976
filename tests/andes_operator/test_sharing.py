"""A budget over several targets: who gets what, and what no division may ever do."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from andes_operator.sharing import Member, PoolBudget, divide

CHAT = Member("chat", "chat", 4, 1, 20, 4, 4, value=10.0, cold_s=300.0)
CODE = Member("code", "code", 4, 1, 20, 4, 4, value=10.0, cold_s=300.0)
H100 = Member("h100", "llama", 3, 0, 20, 3, 3, price=4.0, value=10.0, cold_s=300.0)
L4 = Member("l4", "llama", 10, 0, 20, 0, 0, price=0.8, value=10.0, cold_s=300.0)


def counts(budget: PoolBudget, *members: Member) -> dict[str, int]:
    return {name: given.replicas for name, given in divide(budget, members).items()}


def run(budget: PoolBudget, members: list[Member], steps: int = 40) -> list[Member]:
    """Pods follow what is given: those that go are gone at the next step, those that come serve at the one after."""
    for _ in range(steps):
        given = counts(budget, *members)
        held = [max(m.existing, given[m.name]) for m in members]
        assert sum(m.gpus * n for m, n in zip(members, held)) <= budget.gpus + 1e-9, "also while they change places"
        members = [
            replace(m, existing=given[m.name], ready=min(m.existing, given[m.name]), granted=given[m.name]) for m in members
        ]  # fmt: skip
    return members


def test_all_get_what_they_ask_for_where_there_is_enough() -> None:
    assert counts(PoolBudget(24), replace(CHAT, alone=7), replace(CODE, alone=9, existing=9, ready=9)) == {
        "chat": 7,
        "code": 9,
    }
    assert counts(PoolBudget(24), replace(CHAT, alone=2), CODE)["chat"] == 4, "its target itself knows when to let go"


def test_models_whose_peaks_alternate_change_places() -> None:
    day = run(PoolBudget(8), [replace(CHAT, alone=7), replace(CODE, alone=1)])
    assert {m.name: m.existing for m in day} == {"chat": 7, "code": 1}
    night = run(PoolBudget(8), [replace(day[0], alone=1), replace(day[1], alone=7)])
    assert {m.name: m.existing for m in night} == {"chat": 1, "code": 7}


def test_nothing_begins_before_there_is_room_for_it() -> None:
    chat, code = replace(CHAT, alone=8, existing=2, ready=2), replace(CODE, alone=1, existing=6, ready=6)
    assert counts(PoolBudget(8), chat, code) == {"chat": 2, "code": 1}, "first it goes, draining"
    assert counts(PoolBudget(8), chat, replace(code, existing=5, ready=1)) == {"chat": 3, "code": 1}
    assert counts(PoolBudget(8), chat, replace(code, existing=1, ready=1)) == {"chat": 7, "code": 1}


def test_many_kinds_of_one_model_are_divided_too() -> None:
    """All mixes of forty kinds would take longer than the universe has."""
    kinds = [Member(f"kind-{i:02}", "llama", 60 + i, 0, 3, 0, 0, price=1.0 + i % 7, value=1.0) for i in range(40)]
    wished = {name: given.wished for name, given in divide(PoolBudget(gpus=1000), kinds).items()}
    assert 1.0 <= sum(wished[m.name] * m.carries for m in kinds) < 1.0 + kinds[0].carries
    assert [wished[m.name] for m in kinds[:8:7]] == [3, 3], "the cheapest first"


def test_what_drains_holds_its_part_until_it_has_gone() -> None:
    chat, code = replace(CHAT, alone=8, existing=2, ready=2), replace(CODE, alone=1, existing=1, ready=1, draining=4)
    assert counts(PoolBudget(8), chat, code) == {"chat": 3, "code": 1}
    assert counts(PoolBudget(8), chat, replace(code, draining=0)) == {"chat": 7, "code": 1}
    own = replace(CODE, alone=6, existing=2, ready=2, draining=4)
    assert counts(PoolBudget(7), own) == {"code": 3}, "also what drains of its own"


def test_too_little_goes_where_readers_gain_most() -> None:
    even = counts(PoolBudget(8), replace(CHAT, alone=8), replace(CODE, alone=8))
    assert even == {"chat": 4, "code": 4}
    worth = counts(PoolBudget(8), replace(CHAT, alone=8, value=30.0), replace(CODE, alone=8))
    assert worth["chat"] > worth["code"] >= CODE.least
    dear = counts(PoolBudget(8), replace(CHAT, alone=8, gpus=2.0, existing=2), replace(CODE, alone=8))
    assert dear["chat"] < dear["code"]


def test_present_readers_go_before_what_may_come() -> None:
    crowd = replace(CHAT, alone=14, present=7, existing=7, ready=7, value=6.0)
    quiet = replace(CODE, alone=3, present=1, existing=1, ready=1, value=1.0)
    assert counts(PoolBudget(8), crowd, quiet) == {"chat": 7, "code": 1}
    assert counts(PoolBudget(13), crowd, quiet)["code"] > 1, "and where they are served, the rest is divided likewise"


def test_a_cold_start_is_a_price() -> None:
    chat, code = replace(CHAT, alone=8, existing=5, ready=5), replace(CODE, alone=8, value=11.0)
    assert counts(PoolBudget(9), chat, code) == {"chat": 5, "code": 4}, (
        "a little more is not worth five minutes without"
    )
    assert counts(PoolBudget(9), replace(chat, cold_s=0.0), replace(code, cold_s=0.0, value=13.0))["chat"] == 4


def test_values_that_waver_move_nothing() -> None:
    chat, code = replace(CHAT, least=2, existing=2), replace(CODE, least=2, existing=1)
    for worth in (9.5, 10.5):
        assert counts(PoolBudget(3), chat, replace(code, value=worth)) == {"chat": 2, "code": 1}
    assert counts(PoolBudget(3), chat, replace(code, value=20.0))["chat"] == 1
    short = [replace(CHAT, alone=8, cold_s=0.0), replace(CODE, alone=8, cold_s=0.0, value=10.5)]
    assert counts(PoolBudget(8), *short) == {"chat": 4, "code": 4}


def test_cheap_hardware_goes_first_where_it_carries_what_the_dear_one_does() -> None:
    rest = run(PoolBudget(40, 100.0), [H100, L4])
    assert {m.name: m.existing for m in rest} == {"h100": 0, "l4": 10}, "8.0 an hour instead of 12.0"
    assert {m.name: m.existing for m in run(PoolBudget(40), [H100, replace(L4, price=2.0)])} == {"h100": 3, "l4": 0}
    mixed = run(PoolBudget(40), [replace(H100, alone=3), replace(L4, alone=10, price=1.3)])
    assert sum(m.price * m.existing for m in mixed) <= 12.0


def test_the_dear_one_serves_until_the_cheap_one_does() -> None:
    begun = counts(PoolBudget(40), H100, L4)
    assert begun == {"h100": 3, "l4": 10}
    half = counts(PoolBudget(40), H100, replace(L4, existing=10, ready=5))
    assert half["h100"] == 3
    assert counts(PoolBudget(40), H100, replace(L4, existing=10, ready=10)) == {"h100": 0, "l4": 10}


def test_a_kind_that_cannot_be_scheduled_is_made_up_for_by_another() -> None:
    fallen = run(PoolBudget(40), [H100, replace(L4, most=4)])
    carried = sum(m.existing * m.carries for m in fallen)
    assert carried >= 1.0
    assert {m.name: m.existing for m in fallen}["h100"] >= 2


def test_what_is_not_known_yet_stays_as_it_is() -> None:
    assert counts(PoolBudget(24), replace(CHAT, alone=None), replace(CODE, alone=9)) == {"chat": 4, "code": 9}


MEMBERS = st.builds(
    Member, st.just(""), st.sampled_from(["a", "b", "c"]), st.one_of(st.none(), st.integers(1, 12)), st.integers(0, 2),
    st.integers(2, 12), st.integers(0, 6), st.integers(0, 6), gpus=st.sampled_from([0.0, 0.5, 1.0, 4.0]),
    price=st.sampled_from([0.8, 2.0, 12.0]), value=st.floats(1e-6, 100.0), cold_s=st.sampled_from([0.0, 300.0, 3600.0]),
)  # fmt: skip


@given(st.lists(MEMBERS, min_size=1, max_size=4), st.integers(4, 40), st.floats(5.0, 200.0))
def test_no_division_exceeds_budget_or_bounds(made: list[Member], gpus: int, price: float) -> None:
    members = [replace(m, name=f"m{i}", ready=min(m.ready, m.existing)) for i, m in enumerate(made)]
    budget = PoolBudget(gpus, price)
    before = {m.name: m.existing for m in members}
    given = divide(budget, members)
    after = {name: allotment.replicas for name, allotment in given.items()}
    assert all(0 <= n <= max(m.most, m.existing) for m, n in zip(members, after.values()))
    held = {m.name: max(before[m.name], after[m.name]) for m in members}
    grown = [m.name for m in members if after[m.name] > before[m.name]]
    assert not grown or budget.holds(members, held), "what begins fits beside what still exists"
    assert divide(budget, members) == given
    again = [replace(m, granted=after[m.name], existing=held[m.name]) for m in members]
    then = {name: allotment.replicas for name, allotment in divide(budget, again).items()}
    may = {m.name: max(held[m.name], then[m.name]) for m in members}
    grown = [m.name for m in members if then[m.name] > after[m.name]]
    assert not grown or budget.holds(members, may), "and what was given may still come about"


@pytest.mark.parametrize("kinds", [2, 3])
def test_the_mix_is_the_cheapest_there_is(kinds: int) -> None:
    members = [replace(L4, name="a", alone=9, price=1.0), replace(L4, name="b", alone=4, price=2.5),
               replace(L4, name="c", alone=2, price=5.5)][:kinds]  # fmt: skip
    members = [replace(m, cold_s=0.0, most=6) for m in members]
    given = divide(PoolBudget(), members)
    found = sum(m.price * given[m.name].wished for m in members)
    best = min(
        sum(m.price * n for m, n in zip(members, mix))
        for mix in itertools.product(range(7), repeat=kinds)
        if sum(n * m.carries for m, n in zip(members, mix)) >= 1.0 - 1e-9
    )
    assert found == pytest.approx(best)
