"""SGLang's own flags, where they change what a profile says of an engine."""

from __future__ import annotations

import argparse
from dataclasses import replace
from typing import Any

from andes_sglang.engine_flags import EngineFlags
from andes_sglang.sim.engine import EngineModel, Overlap

__all__ = ["add_arguments", "apply", "play", "whole"]


def add_arguments(parser: argparse._ActionsContainer) -> None:
    """The flags; every one may be left out."""
    parser.add_argument("--max-running-requests", type=whole, metavar="N", help="most requests in the batch")
    parser.add_argument("--max-total-tokens", type=whole, metavar="N", help="tokens of the KV pool")
    parser.add_argument("--chunked-prefill-size", type=whole, metavar="N", help="most tokens of a prefill iteration")
    parser.add_argument("--enable-mixed-chunk", action="store_true", help="decode beside the prefill")
    parser.add_argument("--disable-overlap-schedule", action="store_true", help="plan between the passes")
    parser.add_argument("--enable-hierarchical-cache", action="store_true", help="copy KV to host memory as well")
    parser.add_argument("--preemption-mode", choices=("release", "offload"), default="release",
                        help="offload: with a hierarchical cache")  # fmt: skip


def apply(engine: EngineModel, given: argparse.Namespace) -> EngineModel:
    """``engine`` with the flags ``given``. Without a hierarchical cache there is no host tier. Raises ``ValueError``."""
    host = given.enable_hierarchical_cache or given.preemption_mode == "offload"
    if host and not engine.host_capacity_tokens:
        raise ValueError(
            "--enable-hierarchical-cache, --preemption-mode offload: the profile has no host_capacity_tokens"
        )
    changes: dict[str, Any] = {
        "max_running": given.max_running_requests,
        "kv_capacity_tokens": given.max_total_tokens,
        "chunk_tokens": given.chunked_prefill_size,
        "mixed": given.enable_mixed_chunk or None,
        "overlap": Overlap.NONE if given.disable_overlap_schedule else None,
        "write_through": host or None,
        "host_capacity_tokens": None if host else 0,
    }
    return replace(engine, **{name: value for name, value in changes.items() if value is not None})


def play(engine: EngineModel, flags: EngineFlags) -> tuple[EngineModel, list[str]]:
    """``engine`` with the flags that one has reported, and what of them it cannot be simulated with."""
    offload = flags.preemption_mode == "offload"
    says = flags.preemption_mode is not None or flags.enable_hierarchical_cache is not None
    host = offload or bool(flags.enable_hierarchical_cache)
    missing = ["its host memory: the profile has no host_tokens_per_s"] if host and not engine.host_tokens_per_s else []
    host_tokens = engine.host_capacity_tokens
    if says:
        host_tokens = (flags.host_tokens or host_tokens) if host and not missing else 0
    changes: dict[str, Any] = {
        "max_running": flags.max_running_requests,
        "kv_capacity_tokens": flags.max_total_tokens,
        "chunk_tokens": _chunk_tokens(engine, flags),
        "mixed": flags.enable_mixed_chunk,
        "overlap": _overlap(engine, flags),
        "host_capacity_tokens": host_tokens,
        "write_through": host_tokens > 0 if says else None,
    }
    if flags.speculative_algorithm is not None:
        missing.append(f"its speculative decoding ({flags.speculative_algorithm})")
    played = replace(engine, **{name: value for name, value in changes.items() if value is not None})
    if flags.dp_size is not None and flags.dp_size > 1:
        missing.append(f"how unevenly its {flags.dp_size} data-parallel ranks share requests")
        played = played.beside_itself(flags.dp_size)
    return played, missing


def _chunk_tokens(engine: EngineModel, flags: EngineFlags) -> int | None:
    """Prompts that are not cut come in chunks as large as the pool."""
    if flags.chunked_prefill_size is None or flags.chunked_prefill_size > 0:
        return flags.chunked_prefill_size
    return flags.max_total_tokens or engine.kv_capacity_tokens


def _overlap(engine: EngineModel, flags: EngineFlags) -> Overlap | None:
    """An overlap that the profile was measured without is taken to be a GPU's."""
    if flags.disable_overlap_schedule is None:
        return None
    if flags.disable_overlap_schedule:
        return Overlap.NONE
    return Overlap.ASYNC if engine.overlap is Overlap.NONE else engine.overlap


def whole(text: str) -> int:
    """The type of a flag that counts."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number >= 1, got {text!r}")
    return int(text)
