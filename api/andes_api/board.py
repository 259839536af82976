"""Numbers that the workers of one gateway have in common, in memory that all of them map. Each worker writes its own row, and
what one writes the others see at once; only token buckets are written by all, under :meth:`Board.lock`.

A gateway of one worker has the same numbers in memory of its own.
"""

from __future__ import annotations

import fcntl
import hashlib
import mmap
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

__all__ = ["BUCKETS", "COUNTS_FOLDER", "READY", "Board", "ReplicaNumbers", "Shared", "Worker"]

READY = b"."
"""What a worker tells its supervisor once it serves."""
COUNTS_FOLDER = "PROMETHEUS_MULTIPROC_DIR"
"""The variable that has prometheus_client keep the counts of several processes in files of one folder."""
BUCKETS = 4
"""Token buckets of a tenant: requests, tokens, input and output."""
MAX_REPLICAS = 1024
"""Replicas whose streams workers tell each other of; of further ones each knows its own alone."""
_WORD = 8
_CELL = 2
"""Numbers of a bucket: what is left, and when that was."""
_REPLICA = 4
"""Numbers of a replica in a worker's row: whether the worker has it listed, streams, their prompt tokens, those pending."""


@dataclass(frozen=True, slots=True)
class Worker:
    """One process of a gateway: ``number``, from 0, of ``count``. folder: where they meet, this user's alone; None: it is the
    only one. replaces: another one had this number before and has died."""

    folder: Path | None = None
    count: int = 1
    number: int = 0
    replaces: bool = False

    @property
    def others(self) -> list[int]:
        """The numbers of the others."""
        return [number for number in range(self.count) if number != self.number]


class Board:
    """tenants, models: how many have limits. open: streams; waiting: requests that wait for an engine."""

    def __init__(self, worker: Worker | None = None, *, tenants: int = 0, models: int = 0) -> None:
        self._worker = Worker() if worker is None else worker
        self._keys_at = tenants * BUCKETS * _CELL
        self._rows_at = self._keys_at + MAX_REPLICAS
        self._tenants_at = 2
        self._models_at = self._tenants_at + tenants
        self._replicas_at = self._models_at + models
        self._row = self._replicas_at + _REPLICA * MAX_REPLICAS
        size, folder = _WORD * (self._rows_at + self._worker.count * self._row), self._worker.folder
        self._file = -1 if folder is None else os.open(folder / "board", os.O_RDWR | os.O_CREAT, 0o600)
        if folder is not None:
            os.ftruncate(self._file, size)
        memory = memoryview(mmap.mmap(self._file, size))
        self._numbers = memory.cast("d")
        self._keys = memory.cast("Q")
        self.open, self.waiting = self._shared(0), self._shared(1)

    @contextmanager
    def lock(self) -> Iterator[None]:
        """No other worker is in here. Held for microseconds; the kernel takes it back from a worker that dies."""
        if self._file < 0:
            yield
            return
        fcntl.flock(self._file, fcntl.LOCK_EX)
        try:
            yield
        finally:
            fcntl.flock(self._file, fcntl.LOCK_UN)

    def bucket(self, tenant: int, kind: int) -> memoryview[float]:
        """What is left and since when, of one of a tenant's buckets; zeros when it has not been used."""
        start = _CELL * (tenant * BUCKETS + kind)
        return self._numbers[start : start + _CELL]

    def held(self, tenant: int) -> Shared:
        """A tenant's open streams."""
        return self._shared(self._tenants_at + tenant)

    def of_model(self, model: int) -> Shared:
        """A model's open streams."""
        return self._shared(self._models_at + model)

    def replica(self, url: str) -> ReplicaNumbers:
        """The replica there, in this worker's row until it is forgotten."""
        with self.lock():
            slot = self._slot(url)
            if slot is None:
                return Board().replica(url)
            at = self._replicas_at + _REPLICA * slot
            numbers = ReplicaNumbers(*(self._shared(at + k) for k in range(_REPLICA)))
            numbers.listed.set(1.0)
        return numbers

    def _slot(self, url: str) -> int | None:
        key = int.from_bytes(hashlib.blake2b(url.encode(), digest_size=_WORD).digest())
        keys = self._keys[self._keys_at : self._rows_at].tolist()
        if key in keys:
            return keys.index(key)
        for slot in range(MAX_REPLICAS):
            if not keys[slot] or not self._is_listed(slot):
                self._keys[self._keys_at + slot] = key
                return slot
        return None

    def _is_listed(self, slot: int) -> bool:
        at = self._rows_at + self._replicas_at + _REPLICA * slot
        return any(self._numbers[at + number * self._row] for number in range(self._worker.count))

    def clear(self, number: int) -> None:
        """This worker has ended: nothing of it is open any more."""
        start = self._rows_at + number * self._row
        for k in range(start, start + self._row):
            self._numbers[k] = 0.0

    def _shared(self, at: int) -> Shared:
        own, *others = [
            self._rows_at + number * self._row + at for number in (self._worker.number, *self._worker.others)
        ]
        return Shared(self._numbers, own, others)


class Shared:
    """A number that every worker has one of."""

    __slots__ = ("_numbers", "_others", "_own")

    def __init__(self, numbers: memoryview[float], own: int, others: list[int]) -> None:
        self._numbers, self._own, self._others = numbers, own, others

    def set(self, value: float) -> None:
        """This worker's."""
        self._numbers[self._own] = value

    def add(self, amount: float) -> None:
        """To this worker's."""
        self._numbers[self._own] += amount

    @property
    def others(self) -> float:
        """The sum of all other workers'."""
        numbers = self._numbers
        return sum([numbers[place] for place in self._others])


class ReplicaNumbers:
    """One replica's. listed: 1 while a worker has it; streams: open ones; prompt_tokens: of those; pending_tokens: of those
    that have no token yet."""

    __slots__ = ("listed", "pending_tokens", "prompt_tokens", "streams")

    def __init__(self, listed: Shared, streams: Shared, prompt_tokens: Shared, pending_tokens: Shared) -> None:
        self.listed, self.streams = listed, streams
        self.prompt_tokens, self.pending_tokens = prompt_tokens, pending_tokens

    def forget(self) -> None:
        """This worker has it listed no longer."""
        for number in (self.listed, self.streams, self.prompt_tokens, self.pending_tokens):
            number.set(0.0)
