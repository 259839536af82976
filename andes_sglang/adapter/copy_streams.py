"""Copy streams and events for a machine without an accelerator.

SGLang's cache controller asks ``torch.cuda`` for ``Stream``, ``Event``, ``stream`` and ``current_stream``; this module has
the same names and takes its place (:mod:`andes_sglang.adapter.platform`). Copies between the KV pool and host memory then run
beside the engine, in the order and with the waits they have on a GPU. ``torch.cpu`` has these names too, but there nothing
runs beside anything.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch

__all__ = [
    "CopyEvent", "CopyStream", "Event", "Stream", "copy_rows", "current_stream", "stream", "transfer_kv_direct", "waited_s",
]  # fmt: skip


class CopyStream:
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
            except BaseException as error:  # raised where the stream is waited for
                self.error = error

    def wait_event(self, event: CopyEvent) -> None:
        self.submit(event.synchronize)

    def wait_stream(self, stream: object) -> None:
        """For a stream of ``torch.cpu``: what it was given has been done."""

    def synchronize(self) -> None:
        """Wait for all that was submitted so far."""
        done = threading.Event()
        self.submit(done.set)
        done.wait()


class _ComputeStream:
    """The stream of the engine's own thread: what it does is done when the call returns."""

    waited_s = 0.0

    def wait_event(self, event: CopyEvent) -> None:
        started_s = time.perf_counter()
        event.synchronize()
        self.waited_s += time.perf_counter() - started_s


_compute = _ComputeStream()
_current: list[CopyStream] = []


class CopyEvent:
    """A point in a stream. Raises, where it is asked for, what was raised in the stream before it."""

    def __init__(self, enable_timing: bool = False) -> None:
        self.at_s = 0.0
        self._stream: CopyStream | None = None
        self._reached = threading.Event()
        self._reached.set()

    def record(self, stream: CopyStream | None = None) -> None:
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

    def wait(self, stream: CopyStream | None = None) -> None:
        stream = stream or (_current[-1] if _current else None)
        (_compute if stream is None else stream).wait_event(self)

    def elapsed_time(self, end: CopyEvent) -> float:
        """Milliseconds from here to ``end``; both have been reached."""
        return 1e3 * (end.at_s - self.at_s)


Stream, Event = CopyStream, CopyEvent
"""As ``torch.cuda`` calls them."""


def current_stream(device: object = None) -> CopyStream | _ComputeStream:
    return _current[-1] if _current else _compute


@contextmanager
def stream(to: CopyStream) -> Iterator[None]:
    """Inside, copies and events go to that stream."""
    _current.append(to)
    try:
        yield
    finally:
        _current.pop()


def waited_s() -> float:
    """Seconds that the engine has stood still for copies so far."""
    return _compute.waited_s


def copy_rows(sources: Sequence[Any], targets: Sequence[Any], source_rows: Any, target_rows: Any) -> None:
    """``target[target_rows] = source[source_rows]`` for each pair."""
    with torch.inference_mode():  # per thread, and the pools were made in it
        for source, target in zip(sources, targets, strict=True):
            target[target_rows] = source[source_rows]


def transfer_kv_direct(
    src_layers: Sequence[Any], dst_layers: Sequence[Any], src_indices: Any, dst_indices: Any, page_size: int
) -> None:
    """In the place of the ``sgl_kernel`` function of this name: copy rows of every layer, here in the current stream."""
    to = current_stream()
    if isinstance(to, _ComputeStream):
        copy_rows(src_layers, dst_layers, src_indices, dst_indices)
        return
    sources, targets, busy = list(src_layers), list(dst_layers), to

    def copy() -> None:
        started_s = time.perf_counter()
        copy_rows(sources, targets, src_indices, dst_indices)
        busy.busy_s += time.perf_counter() - started_s

    to.submit(copy)
