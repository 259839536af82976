"""Slow readers: looked at twice a second, and told of to the engines that work for them."""

from __future__ import annotations

import asyncio
import hmac
import logging
import time
from collections.abc import Mapping

import aiohttp

from andes_api.attempt import Attempt
from andes_api.connection import ACKNOWLEDGED_IS_KNOWN
from andes_api.errors import ApiError
from andes_api.expectations import key_of
from andes_api.reader_report import ReaderReport
from andes_api.receipt import SAMPLE_INTERVAL_S
from andes_api.relay import Relay
from andes_api.siblings import Siblings
from andes_api.sse import GarbageError, payload_of
from andes_api.stream import Stream, count_answers
from andes_api.upstream import Upstream
from andes_api.upstreams import ABSENT, Upstreams
from andes_sglang import reception

__all__ = ["Readers"]

TELL_TIMEOUT = aiohttp.ClientTimeout(total=2.0)
"""Seconds for an engine to take note; it answers after an iteration."""
_log = logging.getLogger("andes")


class Readers:
    """Those of ``relays``, the open streams."""

    def __init__(self, relays: Mapping[Stream, Relay], upstreams: Upstreams, siblings: Siblings) -> None:
        self._relays = relays
        self._upstreams = upstreams
        self._siblings = siblings
        siblings.answers("reader", self._take)
        self._by_id: dict[str, Relay] = {}
        self._telling: dict[Upstream, asyncio.Task[None]] = {}

    def opened(self, relay: Relay) -> None:
        self._by_id[relay.stream.report_id] = relay

    def closed(self, relay: Relay) -> None:
        self._by_id.pop(relay.stream.report_id, None)

    async def report(self, report_id: str, headers: Mapping[str, str], report: ReaderReport) -> None:
        """A client says what its reader has been shown. Raises a 404 where it has opened no such stream."""
        said = (report_id, key_of(headers), report)
        if not self._take(*said) and not any(await self._siblings.others("reader", *said)):
            raise ApiError(404, "no such stream", code="not_found", reason="stream", retry=False)

    def _take(self, report_id: str, key: str, report: ReaderReport) -> bool:
        """Whether the stream is open in this worker, by this key."""
        relay = self._by_id.get(report_id)
        if relay is None or not hmac.compare_digest(key_of(relay.stream.headers).encode(), key.encode()):
            return False
        relay.report(report, time.monotonic())
        return True

    def count_behind(self) -> int:
        """Readers who lack something that was sent."""
        return sum(stream.receipt.behind for stream in self._relays)

    async def watch(self) -> None:
        """For as long as the gateway runs."""
        if not ACKNOWLEDGED_IS_KNOWN:
            _log.warning(
                "what clients have acknowledged is known on Linux only: slow readers are seen by their reports"
            )
        while True:
            await asyncio.sleep(SAMPLE_INTERVAL_S)
            self.look(time.monotonic())

    def look(self, now_s: float) -> None:
        """At every reader who may be behind; the engines are told of those who are."""
        news: dict[Upstream, list[tuple[Attempt, str, int | None]]] = {}
        for relay in self._relays.values():
            relay.look_at_reader(now_s)
            attempt = relay.attempt
            if attempt is not None and (said := _news(relay.stream, attempt)) is not None:
                news.setdefault(attempt.replica, []).append((attempt, *said))
        for replica, readers in news.items():
            if replica.takes_readers and replica not in self._telling:
                self._telling[replica] = asyncio.create_task(self._tell(replica, readers))

    async def _tell(self, replica: Upstream, readers: list[tuple[Attempt, str, int | None]]) -> None:
        """What does not arrive is said again at the next look."""
        body = {"readers": {rid: tokens for _, rid, tokens in readers}}
        try:
            async with self._upstreams.session.post(
                replica.url + reception.PATH, json=body, timeout=TELL_TIMEOUT, allow_redirects=False
            ) as answer:
                if answer.status in ABSENT:
                    replica.takes_readers = False
                if answer.status != 204:
                    return
        except (aiohttp.ClientError, TimeoutError, OSError):
            return
        finally:
            del self._telling[replica]
        for attempt, _, tokens in readers:
            attempt.told = tokens is not None


def _news(stream: Stream, attempt: Attempt) -> tuple[str, int | None] | None:
    """What its engine is to be told of a reader: the id that the answer has there, and the tokens of it that the reader has
    got (:mod:`andes_sglang.reception`). None where there is nothing to tell, or no single answer with an id."""
    tokens = stream.receipt.told_tokens
    if (tokens is None and not attempt.told) or not stream.endpoint.chunks or count_answers(stream.body) > 1:
        return None
    try:
        rid = payload_of(attempt.first_event).get("id")
    except GarbageError:
        return None
    got = None if tokens is None else max(0, tokens + stream.thought - attempt.tokens_before)
    return (rid, got) if isinstance(rid, str) and rid else None
