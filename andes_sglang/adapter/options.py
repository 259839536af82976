"""What the command line tells the plugin, carried to SGLang's processes in one environment variable."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass, field
from typing import Any

from andes_sglang.qoe import QoETarget

__all__ = ["ENVIRONMENT", "OFFLOAD_PARTS", "PluginOptions"]

ENVIRONMENT = "ANDES_OPTIONS"
OFFLOAD_PARTS = ("write-through", "overlap", "increments")


@dataclass(frozen=True, slots=True)
class PluginOptions:
    """policy: a name that :func:`andes_sglang.policy.make_policy` knows, ``forced`` (a diagnostic that preempts every few
    tokens) or None: SGLang's own scheduling. policy_options: by name. default_ttft_s, default_tds: expectations of requests
    that bring none. preemption_mode: what happens to KV that has to go: release, or offload to host memory, of which
    host_kv_gib GiB may be used (None: as much as :mod:`andes_sglang.adapter.host_tier` finds reasonable). offload_without:
    a part of it to leave out, to measure what it is worth, one of ``OFFLOAD_PARTS``."""

    policy: str | None = None
    policy_options: dict[str, Any] = field(default_factory=dict)
    default_ttft_s: float = QoETarget().ttft_s
    default_tds: float = QoETarget().tds
    preemption_mode: str = "release"
    host_kv_gib: float | None = None
    offload_without: str | None = None

    @property
    def default_target(self) -> QoETarget:
        return QoETarget(self.default_ttft_s, self.default_tds)

    def to_env(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def from_env(cls) -> PluginOptions:
        """As :meth:`to_env` wrote them; without the variable, no policy. Raises ``ValueError`` for anything else."""
        text = os.environ.get(ENVIRONMENT)
        if not text:
            return cls()
        try:
            return cls(**json.loads(text))
        except (TypeError, ValueError) as error:
            raise ValueError(f"{ENVIRONMENT}={text!r}: {error}; `andes serve` sets this variable") from None
