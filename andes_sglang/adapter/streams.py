"""Streams and events for a machine without an accelerator, with the names that SGLang's cache controller asks ``torch.cuda``
for: copies between the KV pool and host memory then run beside the engine, in the order and with the waits they have on a
GPU. ``torch.cpu`` has these names too, but there nothing runs beside anything.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch

__all__ = ["Event", "Stream", "copy_rows", "current_stream", "stream", "transfer_kv_direct", "waited_s"]


class Stream:
    """Runs what is submitted in order, in a thread of its own. busy_s: seconds spent so far."""

    def __init__(self, priority: int = -1) -> None:
        self.busy_s = 0.0
        self.error: BaseException | None = None
        self._work: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        threading.Thread(target=self._run, name="andes-copies", daemon=True).start()

    def submit(self, work: Callable[[], None]) -> None:
        self._work.put(work)

    def _run(self) -> None:
        while True:
            work = self._work.get()
            try:
                work()
            except BaseException as error:  # told to whoever waits for it
                self.error = error

    def wait_event(self, event: Event) -> None:
        self.submit(event.synchronize)


class _Engine:
    """The stream of whoever computes: what it does is done when the call returns."""

    waited_s = 0.0

    def wait_event(self, event: Event) -> None:
        started_s = time.perf_counter()
        event.synchronize()
        self.waited_s += time.perf_counter() - started_s


_engine = _Engine()
_current: list[Stream] = []


class Event:
    """A point in a stream. Raises, where it is asked for, what was raised in the stream before it."""

    def __init__(self, enable_timing: bool = False) -> None:
        self.at_s = 0.0
        self._stream: Stream | None = None
        self._reached = threading.Event()
        self._reached.set()

    def record(self, stream: Stream | None = None) -> None:
        self._stream = stream or (_current[-1] if _current else None)
        if self._stream is None:
            self.at_s = time.perf_counter()
            self._reached.set()
            return
        self._reached = reached = threading.Event()

        def reach() -> None:
            self.at_s = time.perf_counter()
            reached.set()

        self._stream.submit(reach)

    def query(self) -> bool:
        if self._stream is not None and self._stream.error is not None:
            raise RuntimeError("a copy between the KV pool and host memory failed") from self._stream.error
        return self._reached.is_set()

    def synchronize(self) -> None:
        self._reached.wait()
        self.query()

    def wait(self, stream: Stream | None = None) -> None:
        stream = stream or (_current[-1] if _current else None)
        (_engine if stream is None else stream).wait_event(self)

    def elapsed_time(self, end: Event) -> float:
        """Milliseconds from here to ``end``; both have been reached."""
        return 1e3 * (end.at_s - self.at_s)


def current_stream(device: object = None) -> Stream | _Engine:
    return _current[-1] if _current else _engine


@contextmanager
def stream(to: Stream) -> Iterator[None]:
    """Inside, copies and events go to that stream."""
    _current.append(to)
    try:
        yield
    finally:
        _current.pop()


def waited_s() -> float:
    """Seconds that the engine has stood still for copies so far."""
    return _engine.waited_s


def copy_rows(sources: Sequence[Any], targets: Sequence[Any], source_rows: Any, target_rows: Any) -> None:
    """``target[target_rows] = source[source_rows]`` for each pair."""
    with torch.inference_mode():  # each thread is asked for it anew, and the pools may be written in no other
        for source, target in zip(sources, targets, strict=True):
            target[target_rows] = source[source_rows]


def transfer_kv_direct(
    src_layers: Sequence[Any], dst_layers: Sequence[Any], src_indices: Any, dst_indices: Any, page_size: int
) -> None:
    """What ``sgl_kernel`` calls so: copy rows of every layer, here in the current stream."""
    to = current_stream()
    if isinstance(to, _Engine):
        copy_rows(src_layers, dst_layers, src_indices, dst_indices)
        return
    sources, targets, busy = list(src_layers), list(dst_layers), to

    def copy() -> None:
        started_s = time.perf_counter()
        copy_rows(sources, targets, src_indices, dst_indices)
        busy.busy_s += time.perf_counter() - started_s

    to.submit(copy)
