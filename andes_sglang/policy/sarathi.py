"""First come, first served with chunked prefill mixed into decode batches (Sarathi-Serve, OSDI 2024).

What makes it Sarathi is the engine's mode, not the order: whoever builds an engine for this policy turns mixed chunked
prefill on (``mixed_chunk``; SGLang's ``--enable-mixed-chunk``). Without that it is ``fcfs``.

Trade-off: decode never stands still for a long prompt; under overload whoever comes last waits for everybody before him.
"""

from __future__ import annotations

from andes_sglang.policy.fcfs import Fcfs

__all__ = ["Sarathi"]


class Sarathi(Fcfs):
    name = "sarathi"
    mixed_chunk = True
