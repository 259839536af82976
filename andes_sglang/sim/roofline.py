"""Costs of an engine from the data sheets of its accelerator and its model, where nothing has been measured.

Weights are read once per iteration, KV once per decoded or prefilled token's attention, and arithmetic adds to both: the
terms of a roofline summed instead of the larger taken, which is within some 10 % where one of them dominates and
pessimistic by at most 2x at the ridge, between them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields

from andes_sglang.sim.engine import Costs

__all__ = ["Roofline"]


@dataclass(frozen=True, slots=True)
class Roofline:
    """One model over ``devices`` accelerators in tensor parallel. Sizes in bytes, rates per device and second.

    parameters: weights, of which active_parameters compute a token (0: all). flops: dense, in the weights' precision;
    flops_efficiency, bandwidth_efficiency: shares of the peaks that kernels reach. memory_share: of memory_bytes for weights
    and KV (``--mem-fraction-static``). host_bytes_per_s: over the link to host memory, each way; host_memory_bytes: room for
    KV there. overhead_s: of an iteration, launches and collectives. Raises ``ValueError`` naming field and value.
    """

    devices: int
    parameters: float
    layers: int
    query_heads: int
    kv_heads: int
    head_dim: int
    flops: float
    bandwidth_bytes_per_s: float
    memory_bytes: float
    host_bytes_per_s: float
    host_memory_bytes: float
    overhead_s: float
    active_parameters: float = 0.0
    parameter_bytes: float = 2.0
    kv_bytes: float = 2.0
    flops_efficiency: float = 0.55
    bandwidth_efficiency: float = 0.8
    memory_share: float = 0.9

    def __post_init__(self) -> None:
        may_be_zero = {"active_parameters", "host_bytes_per_s", "host_memory_bytes", "overhead_s"}
        for field in fields(self):
            value = getattr(self, field.name)
            if not math.isfinite(value) or value < 0 or (value == 0 and field.name not in may_be_zero):
                bound = ">= 0" if field.name in may_be_zero else "> 0"
                raise ValueError(f"{field.name} must be {bound}, got {value!r}")
        for name in ("flops_efficiency", "bandwidth_efficiency", "memory_share"):
            if getattr(self, name) > 1:
                raise ValueError(f"{name} must be a share between 0 and 1, got {getattr(self, name)!r}")
        if self.kv_capacity_tokens < 1:
            raise ValueError(
                f"memory_bytes {self.memory_bytes:g} on {self.devices} devices: no room for KV beside weights of "
                f"{self.parameters * self.parameter_bytes:g} bytes"
            )

    @property
    def token_bytes(self) -> float:
        """KV of one token: key and value of every layer."""
        return 2 * self.layers * self.kv_heads * self.head_dim * self.kv_bytes

    @property
    def kv_token_bytes(self) -> float:
        """The same where its numbers have 16 bits, as codecs need them; else 0."""
        return self.token_bytes if self.kv_bytes == 2 else 0.0

    @property
    def kv_capacity_tokens(self) -> int:
        weights = self.parameters * self.parameter_bytes
        return int((self.devices * self.memory_bytes * self.memory_share - weights) / self.token_bytes)

    @property
    def host_tokens_per_s(self) -> float:
        return self.devices * self.host_bytes_per_s / self.token_bytes

    @property
    def host_capacity_tokens(self) -> int:
        return int(self.host_memory_bytes / self.token_bytes)

    def costs(self) -> Costs:
        bandwidth = self.devices * self.bandwidth_bytes_per_s * self.bandwidth_efficiency
        flops = self.devices * self.flops * self.flops_efficiency
        weights_s = self.parameters * self.parameter_bytes / bandwidth + self.overhead_s
        token_s = 2 * (self.active_parameters or self.parameters) / flops
        context_s = self.token_bytes / bandwidth
        return Costs(
            decode_fixed_s=weights_s,
            decode_request_s=token_s,
            decode_context_s=context_s,
            prefill_fixed_s=weights_s,
            prefill_token_s=token_s,
            prefill_prefix_s=context_s,
            prefill_pair_s=4 * self.layers * self.query_heads * self.head_dim / flops,
        )
