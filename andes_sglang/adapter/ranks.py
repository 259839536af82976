"""The ranks of a tensor-parallel engine: each runs this scheduler, and all must form the same batches.

Requests, results and aborts reach every rank in the same order, so whatever follows from them is the same everywhere. What a
clock says is not: the policy is asked on the first rank, and its decision is broadcast. Everything else that a clock decides
is kept from mattering (the age of a request is its number, time-outs are those that SGLang itself makes common).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from andes_sglang.adapter import wire
from andes_sglang.adapter.records import StreamRecords
from andes_sglang.state import Decision

__all__ = ["FRAME_WORDS", "RankGroup"]

FRAME_WORDS = 64
"""Size of the message that is always sent, in 32-bit words: longer decisions take a second one (our choice: about 50 requests
admitted)."""


class RankGroup:
    """``group``: SGLang's coordinator of the ranks that share one batch (``attn_tp_group``)."""

    def __init__(self, group: Any, records: StreamRecords) -> None:
        self._group = group
        self._records = records
        self.is_first = group.rank_in_group == 0

    def agree(self, decide: Callable[[], Decision]) -> Decision:
        """What the first rank decides, on every rank. To be called by all of them in the same iteration."""
        if self._group.world_size == 1:
            return decide()
        frame = np.zeros(FRAME_WORDS, dtype=np.int32)
        if self.is_first:
            decision = decide()
            words = wire.encode(decision, self._records.slot_of)
            frame[: len(words)] = words[:FRAME_WORDS]
            self._broadcast(frame)
            if len(words) > FRAME_WORDS:
                self._broadcast(words[FRAME_WORDS:])
            return decision
        self._broadcast(frame)
        length = wire.HEADER_WORDS + wire.words_after_header(frame)
        words = frame[:length]
        if length > FRAME_WORDS:
            rest = np.zeros(length - FRAME_WORDS, dtype=np.int32)
            self._broadcast(rest)
            words = np.concatenate([frame, rest])
        return wire.decode(words, self._records.rid_at)

    def _broadcast(self, words: Any) -> None:
        """On the other ranks ``words`` is written."""
        torch.distributed.broadcast(torch.from_numpy(words), src=self._group.ranks[0], group=self._group.cpu_group)
