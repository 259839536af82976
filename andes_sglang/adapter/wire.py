"""A decision as numbers, for the other ranks of an engine: requests by their slot in the ledger, which is the same on all.

Layout, 32-bit integers: how many are admitted, resumed and preempted; a checksum of their ids; the slots admitted; those
resumed; slot and mode of each preemption. -1: an id that no request has (a policy of a third party may name one).
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterable

import numpy as np
import numpy.typing as npt

from andes_sglang.state import Decision, Preemption, PreemptionMode

__all__ = ["HEADER_WORDS", "UNKNOWN", "DisagreementError", "decode", "encode", "words_after_header"]

HEADER_WORDS = 4
UNKNOWN = -1
_MODES = tuple(PreemptionMode)
Words = npt.NDArray[np.int32]


class DisagreementError(RuntimeError):
    """The ranks of an engine do not know the same requests by the same slots: going on, their KV would differ."""


def encode(decision: Decision, slot_of: Callable[[str], int]) -> Words:
    """slot_of: the slot of a request; ``UNKNOWN`` without such a request."""
    named = [*decision.admit, *decision.resume, *(p.rid for p in decision.preempt)]
    slots = [slot_of(rid) for rid in named]
    calm = len(decision.admit) + len(decision.resume)
    preempted = [word for slot, p in zip(slots[calm:], decision.preempt) for word in (slot, _MODES.index(p.mode))]
    checksum = _checksum(rid for rid, slot in zip(named, slots) if slot != UNKNOWN)
    header = [len(decision.admit), len(decision.resume), len(decision.preempt), checksum]
    return np.array([*header, *slots[:calm], *preempted], dtype=np.int32)


def words_after_header(words: Words) -> int:
    admitted, resumed, preempted = words[:3]
    return int(admitted + resumed + 2 * preempted)


def decode(words: Words, rid_at: Callable[[int], str]) -> Decision:
    """The decision without its reasons, which only the metrics of the first rank tell. Raises :class:`DisagreementError`."""
    admitted, resumed, preempted = (int(count) for count in words[:3])
    body = words[HEADER_WORDS:].tolist()
    calm = admitted + resumed
    pairs = body[calm : calm + 2 * preempted]
    slots = [*body[:calm], *pairs[0::2]]
    rids = ["" if slot == UNKNOWN else rid_at(slot) for slot in slots]
    if _checksum(rid for rid, slot in zip(rids, slots) if slot != UNKNOWN) != words[3]:
        raise DisagreementError(
            "andes: the ranks of this engine know different requests by the same slots; their KV would differ from here on"
        )
    preempt = tuple(Preemption(rid, _MODES[mode], "") for rid, mode in zip(rids[calm:], pairs[1::2]))
    return Decision(tuple(rids[:admitted]), tuple(rids[admitted:calm]), preempt)


def _checksum(rids: Iterable[str]) -> int:
    return zlib.crc32("\n".join(rids).encode()) & 0x7FFFFFFF
