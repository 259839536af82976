"""What an engine says of its own flags, as far as they change what it does with requests; under SGLang's names.

An engine tells them at ``/server_info`` (SGLang, with or without the plugin, and the simulated engine), a gateway passes them
on in ``/fleet/replicas``, and the operator simulates an engine that has them (:func:`andes_sglang.sim.overrides.play`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

__all__ = ["EngineFlags"]

_MODES = ("release", "offload")


@dataclass(frozen=True, slots=True)
class EngineFlags:
    """None: the engine does not say.

    max_running_requests: in a batch; max_total_tokens: of the KV pool; host_tokens: of the host tier; all as they came out at
    start. chunked_prefill_size: tokens, not positive: prompts are not cut. preemption_mode: ``release`` or ``offload``.
    tp_size: tensor-parallel ranks; dp_size: data-parallel ones, each with a batch, a pool and a host tier of these sizes.
    speculative_algorithm: None also where it decodes a token at a time."""

    max_running_requests: int | None = None
    max_total_tokens: int | None = None
    chunked_prefill_size: int | None = None
    enable_mixed_chunk: bool | None = None
    disable_overlap_schedule: bool | None = None
    enable_hierarchical_cache: bool | None = None
    preemption_mode: str | None = None
    host_tokens: int | None = None
    tp_size: int | None = None
    dp_size: int | None = None
    speculative_algorithm: str | None = None

    @classmethod
    def from_server_info(cls, said: Mapping[str, Any]) -> EngineFlags:
        """From the answer of ``/server_info``."""
        states = said.get("internal_states") or [{}]
        state = states[0] if isinstance(states[0], Mapping) else {}
        andes, memory = state.get("andes") or {}, state.get("memory_usage") or {}
        running = state.get("effective_max_running_requests_per_dp", said.get("max_running_requests"))
        tokens = said.get("max_total_num_tokens", memory.get("token_capacity"))
        found = {name: said.get(name) for name in _names()}
        if said.get("enable_dp_attention"):  # one engine, whose ranks have a batch and a pool each
            ranks, found["dp_size"] = found["dp_size"], None
            running, tokens = _product(ranks, running), _product(ranks, tokens)
        hierarchical, host_tokens = said.get("enable_hierarchical_cache"), andes.get("host_tokens")
        if hierarchical and not host_tokens and not said.get("hicache_size"):
            host_tokens = _product(said.get("hicache_ratio"), tokens)  # --hicache-ratio: of the pool
        return cls.from_dict({
            **found, "max_running_requests": running, "max_total_tokens": tokens, "host_tokens": host_tokens,
            "preemption_mode": andes.get("preemption_mode", "release"),
        })  # fmt: skip

    @classmethod
    def from_dict(cls, said: Mapping[str, Any]) -> EngineFlags:
        """Inverse of :meth:`to_dict`. A value that is none of its flag's is not known."""
        switches = ("enable_mixed_chunk", "disable_overlap_schedule", "enable_hierarchical_cache")
        known: dict[str, Any] = {}
        for name in _names():
            value = said.get(name)
            if name == "preemption_mode":
                known[name] = value if value in _MODES else None
            elif name == "speculative_algorithm":
                known[name] = value if isinstance(value, str) else None
            elif isinstance(value, bool) is (name in switches) and isinstance(value, int):
                known[name] = value if name == "chunked_prefill_size" or name in switches or value > 0 else None
        return cls(**known)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def _names() -> list[str]:
    return [field.name for field in fields(EngineFlags)]


def _product(ratio: Any, size: Any) -> int | None:
    """``ratio`` times ``size``; None where one is not known."""
    if isinstance(ratio, int | float) and isinstance(size, int):
        return int(ratio * size)
    return None
