"""Readers who keep coming: the benchmark's open-loop client, a few seconds at a time, so that their number can change."""

from __future__ import annotations

import asyncio
import contextlib
import random
import threading
import time
from collections.abc import Callable, Sequence
from types import TracebackType

from andes_sglang.bench.client import replay
from andes_sglang.qoe import QoETarget
from andes_sglang.request import RequestRecord, RequestSpec
from andes_sglang.workload import Workload

__all__ = ["Traffic"]

BLOCK_S = 3.0


class Traffic:
    """A context manager; Poisson arrivals at ``rate_rps``, which may be set at any time. gateways: the addresses to choose
    from when a connection is opened, as a Service would. Leaving waits until every stream has ended, after an exception cuts
    them.

    Lengths in tokens. records: of all requests, once their block has ended; times in seconds since ``origin_s`` (Unix).
    """

    def __init__(
        self, gateways: Callable[[], Sequence[str]], prompt_tokens: int, output_tokens: int, *, reader: QoETarget,
        origin_s: float, seed: int = 1,
    ) -> None:  # fmt: skip
        self.rate_rps = 0.0
        self.origin_s = origin_s
        self.records: list[RequestRecord] = []
        self._gateways, self._lengths, self._reader = gateways, (prompt_tokens, output_tokens), reader
        self._chance = random.Random(seed)  # noqa: S311
        self._stop = threading.Event()
        self._error: BaseException | None = None
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, name="traffic")

    def __enter__(self) -> Traffic:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        if error is not None:
            with contextlib.suppress(RuntimeError):  # it has ended by itself
                self._loop.call_soon_threadsafe(lambda: [task.cancel() for task in asyncio.all_tasks(self._loop)])
        self._thread.join()
        if error is None and self._error is not None:
            raise self._error

    def _run(self) -> None:
        with asyncio.Runner(loop_factory=lambda: self._loop) as runner:
            try:
                runner.run(self._come())
            except BaseException as error:
                self._error = error

    async def _come(self) -> None:
        blocks = []
        while not self._stop.is_set():
            blocks.append(asyncio.create_task(self._block()))
            await asyncio.sleep(BLOCK_S)
        await asyncio.gather(*blocks)

    async def _block(self) -> None:
        requests, at_s = [], 0.0
        while self.rate_rps and (at_s := at_s + self._chance.expovariate(self.rate_rps)) < BLOCK_S:
            requests.append(RequestSpec(at_s, *self._lengths, self._reader))
        if not requests:
            return
        start_s = time.time() - self.origin_s
        url = f"http://{self._chance.choice(self._gateways())}"
        records = await replay(
            url, Workload("readers", tuple(requests)), seed=len(self.records), send_expectations=False
        )
        for record in records:
            record.deliveries = [(at + start_s, tokens) for at, tokens in record.deliveries]
            record.arrival_s, record.sent_s = record.arrival_s + start_s, record.sent_s + start_s
            record.end_s += start_s
            record.index = len(self.records)
            self.records.append(record)
