"""First come, first served with chunked prefill mixed into decode batches (Sarathi-Serve, OSDI 2024).

What makes it Sarathi is the engine's mode, not the order: an engine for this policy has mixed chunked prefill on
(``mixed_chunk``; SGLang's ``--enable-mixed-chunk``). Without that it is ``fcfs``.

Trade-off: decode never stands still for a long prompt; under overload each request waits for all that came before it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from andes_sglang.policy.fcfs import Fcfs, QueueOptions

__all__ = ["Sarathi", "SarathiOptions"]


@dataclass(frozen=True, kw_only=True)
class SarathiOptions(QueueOptions):
    """Options of ``sarathi``."""

    policy: ClassVar[str] = "sarathi"


class Sarathi(Fcfs):
    """See the module."""

    name = "sarathi"
    options_type = SarathiOptions
    mixed_chunk = True
