"""The simulated engine and the policies of one arm: a policy with the engine flags that SGLang would get."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace

from andes_sglang.arms import Arm, policy_options
from andes_sglang.flags import UsageError
from andes_sglang.kv_codecs import prices
from andes_sglang.policy import SchedulingPolicy, make_policy
from andes_sglang.sim import overrides
from andes_sglang.sim.engine import EngineModel

__all__ = [
    "DEPLOYED",
    "SIMULATED",
    "STOCK_MIXED",
    "configure",
    "expanded",
    "lossy",
    "servable",
    "stock_engine",
    "unlike_served",
]

STOCK_MIXED = "stock-mixed"
"""The name of stock SGLang with ``--enable-mixed-chunk``."""

SIMULATED = {
    "--drafts": "an engine drafts by SGLang's flags, the same for every request",
    "--host-kv-codec": "an engine's host copies are exact and as they are on the device",
}
"""Flags of the simulator alone, and what ``andes serve`` has in their place."""
BY_READER = -1
"""Of ``--drafts``: as many as each reader needs."""
NO_CODEC = "none"
"""Of ``--host-kv-codec``: whatever the profile says."""
DEPLOYED = "andes-deployed"
"""The name of andes with the flags that README recommends on a GPU: mixed chunks, and offload where there is host memory."""


def expanded(engine: EngineModel, arm: Arm) -> Arm:
    """``arm`` with the flags that its name stands for, those of ``andes serve``."""
    if arm.policy == STOCK_MIXED:
        return Arm("stock", (*arm.flags, "--enable-mixed-chunk"))
    if arm.policy == DEPLOYED:
        offload = ("--preemption-mode", "offload") if engine.host_capacity_tokens else ()
        return Arm("andes", (*arm.flags, "--enable-mixed-chunk", *offload))
    return arm


def _engine_flags() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(allow_abbrev=False, add_help=False, exit_on_error=False)
    overrides.add_arguments(parser)
    parser.add_argument("--policy-option", action="append", default=[])
    parser.add_argument("--drafts", type=_drafts, default=0)
    parser.add_argument("--host-kv-codec", choices=(NO_CODEC, *prices.NAMES))
    return parser


def servable(flags: Sequence[str]) -> list[str]:
    """``flags`` without those of :data:`SIMULATED`."""
    for name in SIMULATED:
        flags = _without(name, flags)
    return list(flags)


def stock_engine(engine: EngineModel, passed: Sequence[str]) -> EngineModel:
    """``engine`` with the flags of every arm as stock has it: options of policies, and drafts by reader, are theirs."""
    given, _ = _engine_flags().parse_known_args(list(passed))
    flags = _without("--policy-option", _without("--drafts", passed) if given.drafts == BY_READER else passed)
    return configure(engine, Arm("stock"), flags)[0]


def _without(name: str, flags: Sequence[str]) -> list[str]:
    named = [k for k, flag in enumerate(flags) if flag.partition("=")[0] == name]
    gone = {*named, *(k + 1 for k in named if "=" not in flags[k])}
    return [flag for k, flag in enumerate(flags) if k not in gone]


def _drafts(text: str) -> int:
    """Tokens drafted for every request; :data:`BY_READER` for ``readers``."""
    return BY_READER if text == "readers" else overrides.whole(text)


def _speculating(engine: EngineModel, drafts: int) -> EngineModel:
    if not drafts:
        return engine
    if engine.speculation is None:
        raise ValueError("--drafts: the profile has no table [speculation]")
    if drafts == BY_READER:
        return replace(engine, drafts_by_reader=True)
    return replace(engine, draft_tokens=drafts)


def _coding(engine: EngineModel, name: str | None) -> EngineModel:
    if name is None:
        return engine
    if name == NO_CODEC:
        return replace(engine, codec=None)
    if not engine.host_capacity_tokens:
        raise ValueError(
            f"--host-kv-codec {name}: nothing is copied to host memory; it goes with --preemption-mode offload, in an arm's "
            f'own flags too (--arm "coded=andes:--preemption-mode offload --host-kv-codec {name}")'
        )
    if not engine.kv_token_bytes:
        raise ValueError(
            f"--host-kv-codec {name}: the profile does not say how many bytes of KV a token has in 16 bits a number; give it "
            "a table [codec], or engine.kv_token_bytes"
        )
    return replace(engine, codec=prices.packaged(name, engine.kv_token_bytes))


def lossy(engines: Mapping[str, EngineModel]) -> Iterator[str]:
    """What is to be known of arms whose host copies are not exact."""
    for arm, engine in engines.items():
        if engine.host_capacity_tokens and engine.codec is not None and engine.codec.equal_tokens < 1:
            others = 1.0 - engine.codec.equal_tokens
            yield f"{arm}: answers that return from host memory are no longer exact: {others:.1%} of their tokens change"


def unlike_served(engines: Mapping[str, EngineModel]) -> Iterator[str]:
    """What is not so where ``engines``, by arm, are served; a profile may say it as well as a flag."""
    used = {
        "--drafts": any(engine.drafts for engine in engines.values()),
        "--host-kv-codec": any(engine.host_capacity_tokens and engine.codec for engine in engines.values()),
    }
    yield from (f"andes serve has no {name}: {what}" for name, what in SIMULATED.items() if used[name])
    yield from lossy(engines)


def configure(
    engine: EngineModel, arm: Arm, passed: Sequence[str] = ()
) -> tuple[EngineModel, Callable[[], SchedulingPolicy | None]]:
    """``engine`` with the flags of ``arm``, and what makes a policy for each replica (None: stock).

    passed: SGLang's flags for every arm, before the arm's own. Raises :class:`~andes_sglang.flags.UsageError` naming flag or
    option, before anything is simulated.
    """
    arm = expanded(engine, arm)
    policy, flags = arm.policy, [*passed, *arm.flags]
    try:
        given, unknown = _engine_flags().parse_known_args(flags)
    except argparse.ArgumentError as error:
        raise UsageError(str(error)) from None
    if unknown:
        raise UsageError(f"unknown argument {unknown[0]!r}")
    try:
        engine = _coding(_speculating(overrides.apply(engine, given), given.drafts), given.host_kv_codec)
    except ValueError as error:
        raise UsageError(f"policy {arm.policy}: {error}") from None
    try:
        options = policy_options(given.policy_option)
        if policy == "stock":
            if engine.drafts_by_reader:
                raise ValueError("--drafts readers: is a policy's decision, and policy stock has none; give a number")
            if options:
                raise ValueError(f"--policy-option {given.policy_option[0]!r}: policy stock has no options")
            return engine, lambda: None
        if getattr(make_policy(policy, options), "mixed_chunk", False):  # a policy that is nothing without
            engine = replace(engine, mixed=True)
    except ValueError as error:
        raise UsageError(str(error)) from None
    return engine, lambda: make_policy(policy, options)
