"""Tables of the fluid model: what they depend on, and that targets of one kind share one."""

from __future__ import annotations

import asyncio
import copy
from collections.abc import Sequence
from dataclasses import fields, replace
from typing import Any

import pytest
from cases import SPEC
from test_reconcile import TABLE, Tabulated

from andes_operator.cluster import ClusterError
from andes_operator.demand import ExpectedDemand, Lengths
from andes_operator.observe import Observation, PodCounts
from andes_operator.prediction import Inquiry, simulated_engine, table_kind
from andes_operator.spec import ClassObjective
from andes_operator.table import KEPT_S, MAX_TABLES, Table, Tables, near
from andes_sglang.engine_flags import EngineFlags
from andes_sglang.objective import QoEObjective, Statistic
from andes_sglang.qoe import QoETarget
from andes_sglang.request import RequestSpec
from andes_sglang.sim import profile

NOW_S = 1_000_000.0
LENGTHS = TABLE.lengths
PLAIN = EngineFlags(
    64, 200_000, 2048, enable_mixed_chunk=False, disable_overlap_schedule=False, enable_hierarchical_cache=False,
    preemption_mode="release", host_tokens=500_000, tp_size=4, dp_size=1,
)  # fmt: skip
OTHER_FLAGS: dict[str, Any] = {
    "max_running_requests": 32, "max_total_tokens": 100_000, "chunked_prefill_size": 512, "enable_mixed_chunk": True,
    "disable_overlap_schedule": True, "enable_hierarchical_cache": True, "preemption_mode": "offload",
    "host_tokens": 100_000, "tp_size": 8, "dp_size": 2, "speculative_algorithm": "NGRAM",
}  # fmt: skip
NOT_SIMULATED = {"speculative_algorithm"}
SPEC_70B = replace(SPEC, profile="h100x4-llama-3.1-70b")


def looked(flags: EngineFlags = PLAIN, **more: Any) -> Observation:
    return Observation(NOW_S, PodCounts(2, 2, 2), flags=flags, **{"policy": ("andes", ()), **more})


KIND = table_kind(SPEC_70B, looked(), 315.0)


# What targets may share


def test_each_flag_has_a_case() -> None:
    assert {field.name for field in fields(EngineFlags)} == OTHER_FLAGS.keys()


@pytest.mark.parametrize("flag", OTHER_FLAGS)
def test_engines_that_are_simulated_alike_are_of_one_kind_and_others_are_not(flag: str) -> None:
    plain = replace(PLAIN, enable_hierarchical_cache=flag == "host_tokens")
    changed, whole = replace(plain, **{flag: OTHER_FLAGS[flag]}), profile.load(SPEC_70B.profile)
    simulated = simulated_engine(whole, changed)[0] != simulated_engine(whole, plain)[0]
    assert simulated == (flag not in NOT_SIMULATED), "this test does not know the simulator any more"
    kinds = {table_kind(SPEC_70B, looked(flags), 315.0) for flags in (plain, changed)}
    assert len(kinds) == 1 + simulated


def test_pools_that_differ_by_what_engines_find_free_are_of_one_kind() -> None:
    shares = [replace(PLAIN, max_total_tokens=200_000 + more, host_tokens=500_000 + more) for more in (300, -700)]
    assert {table_kind(SPEC_70B, looked(flags), 315.0) for flags in shares} == {KIND}
    unchunked = replace(PLAIN, chunked_prefill_size=-1)
    kinds = {
        table_kind(SPEC_70B, looked(replace(unchunked, max_total_tokens=200_000 + more)), 315.0) for more in (0, 300)
    }
    assert len(kinds) == 1


MEAN = (ClassObjective("reading", QoEObjective(Statistic.MEAN, 0.9)),)


@pytest.mark.parametrize(
    ("spec", "seen", "surge_s"),
    [
        (replace(SPEC_70B, profile="h100-llama-3.1-8b"), looked(), 315.0),
        (replace(SPEC_70B, policy="fcfs"), looked(), 315.0),
        (replace(SPEC_70B, policy_options=(("stall_bound_s", 7.0),)), looked(), 315.0),
        (SPEC_70B, looked(policy=("andes", (("stall_bound_s", 7.0),))), 315.0),
        (SPEC_70B, looked(routing_policy=("prefix", ())), 315.0),
        (SPEC_70B, looked(routing_policy=("qoe", (("sacrifice_share", 0.2),))), 315.0),
        (replace(SPEC_70B, objectives=MEAN), looked(), 315.0),
        (replace(SPEC_70B, behavior=replace(SPEC_70B.behavior, margin=0.02)), looked(), 315.0),
        (SPEC_70B, looked(), 75.0),
    ],
)  # fmt: skip
def test_what_else_makes_another_kind(spec: Any, seen: Observation, surge_s: float) -> None:
    assert table_kind(spec, seen, surge_s) != KIND


def test_bounds_and_pace_of_a_target_make_none() -> None:
    spec = replace(SPEC_70B, min_replicas=3, max_replicas=7, behavior=replace(SPEC_70B.behavior, window_s=300.0))
    assert table_kind(spec, looked(routing_policy=("qoe", ())), 320.0) == KIND


@pytest.mark.parametrize("field", Lengths._fields[:-1])
def test_lengths_and_readers_that_differ_by_a_fifth_take_another_table(field: str) -> None:
    value = getattr(LENGTHS, field)
    assert near([TABLE], LENGTHS._replace(**{field: 1.15 * value})) is TABLE
    for times in (1.25, 0.8):
        assert near([TABLE], LENGTHS._replace(**{field: times * value})) is None


def test_a_class_without_requests_that_an_objective_is_about_takes_another_table() -> None:
    """A goal that no request counts for is met by any load."""

    def lengths(*class_names: str) -> Lengths:
        requests = tuple(RequestSpec(float(i), 100, 50, QoETarget()) for i in range(len(class_names)))
        return ExpectedDemand(requests, class_names, 10.0).lengths(MEAN)

    seen, unseen = lengths("reading", "code"), lengths("code", "code")
    assert (seen.unseen, unseen.unseen) == ((), ("reading",))
    assert unseen.moved(seen)
    assert not seen.moved(lengths("reading", "reading"))


def test_hidden_tokens_and_weights_count() -> None:
    request = RequestSpec(0.0, 100, 50, QoETarget(), weight=4.0, reason_tokens=40)
    found = ExpectedDemand((request,), ("reading",), 1.0).lengths(MEAN)
    assert (found.output, found.shown, found.weight) == (50, 10, 4)


# Who makes it


class Many(Tabulated):
    """Targets ``t0``, ``t1``, ... whose tables are made when ``made`` is set."""

    def __init__(self, count: int) -> None:
        super().__init__(7, behavior={"coldStartSeconds": 300})
        self.made: asyncio.Event | None = None
        self.down: ClusterError | None = None
        self.each = {f"t{i}": self._named(i) for i in range(count)}

    def _named(self, number: int) -> dict[str, Any]:
        resource = copy.deepcopy(self.resource)
        assert resource is not None
        resource["metadata"] |= {"name": f"t{number}", "uid": f"u{number}"}
        return resource

    async def make_table(self, inquiry: Inquiry) -> Table:
        made, table = self.made, await super().make_table(inquiry)
        if self.down is not None:
            raise self.down
        if made is not None:
            await made.wait()
        return table

    async def look(self, names: Sequence[str] = ()) -> None:
        """One reconcile of each."""
        for name in names or self.each:
            self.resource = self.each[name]
            await self.reconciler.reconcile(("chat", name))
            await asyncio.sleep(0)
        await asyncio.sleep(0)
        self.now_s += 15.0

    def buffers(self) -> list[Any]:
        return [(target["status"]["headroom"] or {}).get("bufferSeconds") for target in self.each.values()]


def test_targets_of_one_kind_share_a_table_while_it_is_made_and_after() -> None:
    async def scenario() -> None:
        site = Many(8)
        site.made = asyncio.Event()
        for _ in range(3):
            await site.look()
        assert len(site.tables) == 1, "one is being made for all"
        assert site.buffers() == [None] * 8
        site.made.set()
        await asyncio.sleep(0)
        await site.look()
        assert site.buffers() == [200] * 8
        site.each["late"] = site._named(99)
        site.each["late"]["metadata"]["name"] = "late"
        await site.look(["late"])
        assert (len(site.tables), site.buffers()) == (1, [200] * 9), "a new target has it at its first look"

    asyncio.run(scenario())


def test_a_target_whose_engines_or_lengths_differ_has_its_own() -> None:
    async def scenario() -> None:
        site = Many(4)
        await site.look(["t0", "t1"])
        assert len(site.tables) == 1
        site.flags = EngineFlags(max_running_requests=7)
        await site.look(["t2"])
        assert [inquiry.seen.flags for inquiry in site.tables] == [None, site.flags]
        site.flags, site.lengths = None, LENGTHS._replace(output=LENGTHS.output * 1.3)
        await site.look(["t3"])
        assert len(site.tables) == 3
        await site.look(["t3"])
        site.lengths = LENGTHS
        await site.look(["t0", "t1"])
        assert len(site.tables) == 3, "each of them is kept"

    asyncio.run(scenario())


def test_a_target_whose_lengths_move_leaves_the_others_their_table() -> None:
    async def scenario() -> None:
        site = Many(2)
        await site.look()
        await site.look()
        site.now_s += KEPT_S
        site.lengths = LENGTHS._replace(prompt=LENGTHS.prompt * 2)
        await site.look(["t0"])
        site.lengths = LENGTHS
        await site.look(["t1"])
        assert len(site.tables) == 2
        site.now_s += KEPT_S
        await site.look(["t0"])
        assert len(site.tables) == 2, "and may come back to it"

    asyncio.run(scenario())


def test_what_cannot_be_made_is_asked_for_once_by_all_in_ten_minutes() -> None:
    async def scenario() -> None:
        site = Many(5)
        site.broken = "prompts do not fit"
        for _ in range(3):
            await site.look()
        assert len(site.tables) == 1
        site.broken, site.now_s = None, site.now_s + KEPT_S
        await site.look()
        await site.look()
        assert (len(site.tables), site.buffers()) == (2, [200] * 5)

    asyncio.run(scenario())


def test_a_new_table_that_cannot_be_made_is_not_asked_for_at_every_look_either() -> None:
    """The target has an older one, of lengths that have moved meanwhile."""

    async def scenario() -> None:
        site = Many(1)
        await site.look()
        await site.look()
        site.now_s += KEPT_S
        site.broken, site.lengths = "it took more than 300 s", LENGTHS._replace(prompt=LENGTHS.prompt * 2)
        for _ in range(5):
            await site.look()
        assert len(site.tables) == 2

    asyncio.run(scenario())


def test_an_api_server_that_fails_keeps_no_target_waiting() -> None:
    async def scenario() -> None:
        site = Many(2)
        site.down = ClusterError(503, "the API server is not available")
        await site.look()
        assert len(site.tables) == 2, "the second does not wait for the first"
        site.down = None
        await site.look()
        await site.look()
        assert (len(site.tables), site.buffers()) == (3, [200, 200])

    asyncio.run(scenario())


def test_tables_are_kept_in_bounds_and_those_that_were_used_last() -> None:
    tables = Tables()
    lengths = [LENGTHS._replace(prompt=1.3**i) for i in range(40)]
    kinds = [replace(KIND, surge_steps=100 + i) for i in range(MAX_TABLES // 40 + 2)]
    first = tables.ask(KIND, lengths[0])
    for kind in kinds:
        for one in lengths:
            tables.ask(kind, one)
            assert tables.find(KIND, lengths[0], NOW_S) is first
    assert len(tables._asked) == MAX_TABLES
    assert tables.find(kinds[0], lengths[1], NOW_S) is None


def test_no_reserve_is_given_away_while_its_table_is_made() -> None:
    """After a restart, say, when the what-if alone says what steady demand takes."""

    async def scenario(site: Many, looks: int) -> int:
        site.made = asyncio.Event()
        for _ in range(looks):
            await site.look()
        return site.replicas

    site = Many(1)
    assert asyncio.run(scenario(site, 20)) == 7, "five minutes, twice the stabilisation window"
    assert site.each["t0"]["status"]["message"].endswith("; but what survives a surge is being tabulated")
    failing = Many(1)
    failing.broken = "prompts do not fit"
    assert asyncio.run(scenario(failing, 20)) < 7, "then the what-if decides"
