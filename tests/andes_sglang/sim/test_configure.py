"""What an arm's policy and flags make of an engine."""

from __future__ import annotations

from dataclasses import replace

import pytest

from andes_sglang.arms import Arm
from andes_sglang.flags import UsageError
from andes_sglang.sim.configure import DEPLOYED, STOCK_MIXED, configure
from andes_sglang.sim.engine import Costs, EngineModel

ENGINE = EngineModel(Costs(0.01, 0.002, 1e-5, 0.02, 1e-3), kv_capacity_tokens=2000, chunk_tokens=500)
WITH_HOST = replace(ENGINE, host_capacity_tokens=10_000, host_tokens_per_s=1e5)


def test_stock_has_no_policy_and_stock_mixed_is_a_flag() -> None:
    engine, policy = configure(ENGINE, Arm("stock"))
    assert engine == ENGINE
    assert policy() is None
    assert configure(ENGINE, Arm(STOCK_MIXED))[0] == configure(ENGINE, Arm("stock", ("--enable-mixed-chunk",)))[0]
    assert configure(ENGINE, Arm(STOCK_MIXED))[0].mixed


def test_andes_as_deployed_offloads_where_there_is_host_memory() -> None:
    assert configure(ENGINE, Arm(DEPLOYED))[0] == configure(ENGINE, Arm("andes", ("--enable-mixed-chunk",)))[0]
    flags = ("--enable-mixed-chunk", "--preemption-mode", "offload")
    engine, policy = configure(WITH_HOST, Arm(DEPLOYED))
    assert engine == configure(WITH_HOST, Arm("andes", flags))[0]
    assert engine.write_through
    made = policy()
    assert made is not None
    assert made.name == "andes"


def test_each_replica_gets_a_policy_of_its_own_with_the_arms_options() -> None:
    _, policy = configure(ENGINE, Arm("andes", ("--policy-option", "horizon_s=7")))
    first, second = policy(), policy()
    assert first is not second
    assert first is not None
    assert first.name == "andes"
    with pytest.raises(UsageError, match="horizon_s"):
        configure(ENGINE, Arm("andes", ("--policy-option", "horizon_s=never")))


def test_an_arms_own_flags_win_over_those_for_all() -> None:
    passed = ("--max-total-tokens", "1000", "--max-running-requests", "8")
    engine, _ = configure(ENGINE, Arm("andes", ("--max-total-tokens", "700")), passed)
    assert (engine.kv_capacity_tokens, engine.max_running) == (700, 8)


def test_a_policy_that_needs_mixed_chunks_gets_them() -> None:
    assert configure(ENGINE, Arm("sarathi"))[0].mixed
    assert not configure(ENGINE, Arm("andes"))[0].mixed


def test_host_memory_is_used_only_with_the_hierarchical_cache() -> None:
    assert configure(WITH_HOST, Arm("andes"))[0].host_capacity_tokens == 0
    for flags in (("--enable-hierarchical-cache",), ("--preemption-mode", "offload")):
        engine = configure(WITH_HOST, Arm("andes", flags))[0]
        assert (engine.host_capacity_tokens, engine.write_through) == (10_000, True)
        with pytest.raises(UsageError, match=r"policy andes: .* the profile has no host_capacity_tokens"):
            configure(ENGINE, Arm("andes", flags))


@pytest.mark.parametrize(
    ("arm", "text"),
    [
        (Arm("stock", ("--fast",)), "unknown argument '--fast'"),
        (Arm("stock", ("--policy-option", "a=1")), "policy stock has no options"),
        (Arm("andes", ("--policy-option", "a")), "expected NAME=VALUE"),
        (Arm("andes", ("--max-running-requests", "0")), "--max-running-requests: must be a whole number >= 1, got '0'"),
        (Arm("best"), "unknown policy 'best'"),
    ],
)
def test_a_mistake_names_flag_and_value(arm: Arm, text: str) -> None:
    with pytest.raises(UsageError, match=text):
        configure(ENGINE, arm)
