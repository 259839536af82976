"""What an arm's policy and flags make of an engine."""

from __future__ import annotations

from dataclasses import replace

import pytest

from andes_sglang.arms import Arm
from andes_sglang.flags import UsageError
from andes_sglang.kv_codecs import prices
from andes_sglang.kv_codecs.prices import CodecPrice
from andes_sglang.sim.configure import DEPLOYED, STOCK_MIXED, configure, lossy, servable, unlike_served
from andes_sglang.sim.engine import Costs, EngineModel
from andes_sglang.speculation import Speculation

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


COPIED = ("--preemption-mode", "offload", "--host-kv-codec")


def test_a_codec_makes_room_in_host_memory_and_takes_its_time() -> None:
    """Twice the tokens in the same bytes; a copy is as slow as the slower of link and core; on the device the link carries
    coded bytes."""
    half = CodecPrice("half", 0.5, encode_token_s=4e-5, decode_token_s=1e-6)
    coded = replace(WITH_HOST, codec=half)
    assert (WITH_HOST.host_room_tokens, coded.host_room_tokens) == (10_000, 20_000)
    assert (WITH_HOST.host_write_s(100), coded.host_write_s(100)) == (pytest.approx(1e-3), pytest.approx(4e-3))
    assert (WITH_HOST.host_load_s(100), coded.host_load_s(100)) == (pytest.approx(1e-3), pytest.approx(1e-3))
    kernel = replace(WITH_HOST, codec=CodecPrice("half", 0.5, on_device=True))
    assert kernel.host_write_s(100) == kernel.host_load_s(100) == pytest.approx(5e-4)


def test_the_flag_takes_the_packaged_price_for_the_models_bytes() -> None:
    engine = replace(WITH_HOST, kv_token_bytes=1e5)
    assert configure(engine, Arm("andes", (*COPIED, "lossless")))[0].codec == prices.packaged("lossless", 1e5)
    own = replace(engine, codec=CodecPrice("mine", 0.4))
    assert configure(own, Arm("andes", COPIED[:2]))[0].codec == own.codec, "what the profile says"
    assert configure(own, Arm("andes", (*COPIED, "none")))[0].codec is None
    assert configure(engine, Arm("stock"), ["--enable-hierarchical-cache", "--host-kv-codec=int8"])[0].codec is not None


@pytest.mark.parametrize(
    ("engine", "flags", "said"),
    [
        (WITH_HOST, COPIED, "expected one argument"),
        (WITH_HOST, (*COPIED, "zip"), "invalid choice: 'zip'"),
        (
            WITH_HOST,
            (*COPIED, "int8"),
            "--host-kv-codec int8: the profile does not say how many bytes of KV a token has",
        ),
        (
            WITH_HOST,
            ("--host-kv-codec", "int8"),
            "--host-kv-codec int8: nothing is copied to host memory; it goes with",
        ),
        (ENGINE, ("--host-kv-codec", "lossless"), "nothing is copied to host memory"),
    ],
)
def test_a_codec_that_cannot_be_had_is_refused(engine: EngineModel, flags: tuple[str, ...], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        configure(engine, Arm("andes", flags))


def test_arms_that_are_not_exact_say_so() -> None:
    exact = replace(WITH_HOST, codec=CodecPrice("lossless", 0.7))
    near = replace(WITH_HOST, codec=CodecPrice("int8", 0.5, equal_tokens=0.98))
    said = list(lossy({"a": WITH_HOST, "b": exact, "c": near, "d": replace(near, host_capacity_tokens=0)}))
    assert said == ["c: answers that return from host memory are no longer exact: 2.0% of their tokens change"]


def test_what_a_plan_was_made_with_is_not_what_serve_takes() -> None:
    assert servable(["--drafts=3", "--tp-size", "2", "--host-kv-codec", "int8", "--x"]) == ["--tp-size", "2", "--x"]


def test_what_a_profile_has_and_no_engine_that_is_served_is_said_without_a_flag() -> None:
    coded = replace(WITH_HOST, codec=CodecPrice("lossless", 0.7))
    drafting = replace(ENGINE, speculation=Speculation(0.7, 0.001, 1e-4, 1e-4), draft_tokens=2)
    assert list(unlike_served({"a": WITH_HOST, "b": replace(coded, host_capacity_tokens=0)})) == []
    (said,) = unlike_served({"a": WITH_HOST, "b": coded})
    assert said.startswith("andes serve has no --host-kv-codec: an engine's host copies are exact")
    (said,) = unlike_served({"a": drafting})
    assert said.startswith("andes serve has no --drafts: ")
