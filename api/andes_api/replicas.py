"""The engines behind the gateway: where they are, whether they answer, what they hold and how fast they are."""

from __future__ import annotations

import asyncio
import contextlib
import math
import time
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import aiohttp
import numpy as np

from andes_api.discovery import look_up
from andes_api.prompts import Prompt
from andes_api.settings import Settings
from andes_sglang.latency import LatencyModel
from andes_sglang.qoe import Readers
from andes_sglang.routing import PrefixTracker, ReplicaView
from andes_sglang.stream_forecast import OpenStreams, StreamForecast, usable_slots

if TYPE_CHECKING:
    from andes_api.stream import Stream

__all__ = ["LOOK_S", "Breaker", "Fleet", "Replica"]

VIEW_AGE_S = 0.1
MOST_READERS = 256  # streams sampled for the forecast: of more, every second, third ... of them
KEEPALIVE_S = 4.0  # engines close what was idle for 5 s: we are first, so that no request meets a closing connection
LATE_MEMORY_S = 10.0
LOOK_S = 1.0  # how often to look for an engine while there is none
_STOCK: dict[str, Any] = {"policy": "stock", "policy_options": {}}
_ABSENT = (404, 405, 501)
_NO_ANSWER = (aiohttp.ClientError, TimeoutError, OSError, ValueError, KeyError, TypeError, IndexError)


class Breaker:
    """Opens after ``failures`` in a row, for ``cooldown_s`` doubling up to a minute; then one request may try. Pure."""

    def __init__(self, failures: int, cooldown_s: float) -> None:
        self._most, self._first_s = failures, cooldown_s
        self.failures = 0
        self.open_until_s = -math.inf

    def allows(self, now_s: float) -> bool:
        return now_s >= self.open_until_s

    def succeeded(self) -> None:
        self.failures = 0
        self.open_until_s = -math.inf

    def failed(self, now_s: float) -> None:
        self.failures += 1
        beyond = self.failures - self._most
        if beyond >= 0:
            self.open_until_s = now_s + min(60.0, self._first_s * 2 ** min(beyond, 10))

    def trying(self, now_s: float) -> None:
        """A request goes out; after a cooldown it is the only one until its result is known."""
        if self.failures >= self._most:
            self.open_until_s = now_s + self._first_s


class Replica:
    """One engine."""

    def __init__(self, url: str, settings: Settings) -> None:
        self.url = url
        self.name = url.partition("://")[2]
        self.breaker = Breaker(settings.breaker_failures, settings.breaker_cooldown_s)
        self.healthy: bool | None = None
        self.drained = False  # by hand
        self.gone = False  # no longer listed
        self.policy: dict[str, Any] | None = None  # name and options, as the engine says; None: it does not say
        self.streams: set[Stream] = set()
        self.others = 0
        self.requests: int | None = None  # what it holds, whosoever, by its own count
        self.slots = settings.max_streams_per_replica
        self.context_tokens = 0.0
        self.latency = LatencyModel()
        self.prefixes = PrefixTracker()
        self.stream_s = 5.0  # how long a stream usually lasts
        self._limit = settings.max_streams_per_replica
        self._late, self._late_at_s = 1.0, 0.0
        self._decoding = 0
        self._decoding_at_s = self._observed_at_s = time.monotonic()
        self._decoding_s = 0.0
        self.tokens = 0  # received since its pace was last observed
        self._counted_at_s = -math.inf
        self._rows, self._count = np.empty((6, 0)), 0
        self._prompt_tokens = self._pending = 0.0

    @property
    def draining(self) -> bool:
        return self.drained or self.gone

    def takes(self, now_s: float) -> bool:
        """Whether it may get a new stream: listed, not known to be down, breaker closed, not full."""
        return (
            self.healthy is not False
            and not self.draining
            and self.breaker.allows(now_s)
            and len(self.streams) < self._limit
        )

    def view(self, now_s: float, prompt: Prompt, prompt_tokens: float) -> ReplicaView:
        """This replica as routing and admission see it; its readers are at most 0.1 s old, or have come since."""
        if now_s - self._counted_at_s > VIEW_AGE_S:
            self._recount(now_s)
        step = -(-self._count // MOST_READERS) or 1
        *readers, weights = self._rows[:, : self._count : step]
        crowded = self._pending > 0 or len(self.streams) + self.others >= self.slots
        return ReplicaView(
            self.name, self.latency, len(self.streams), OpenStreams(Readers(*readers), weights * step), self._prompt_tokens,
            self._pending, self.others, self.slots, self.context_tokens, prompt.share(self.prefixes) * prompt_tokens,
            self.late(now_s) if crowded else 1.0,
        )  # fmt: skip

    def _recount(self, now_s: float) -> None:
        self._counted_at_s, self._count = now_s, 0
        self._prompt_tokens = self._pending = 0.0
        self._rows = np.empty((6, 2 * len(self.streams) + 64))
        for stream in self.streams:
            self._append(stream)

    def _append(self, stream: Stream) -> None:
        if self._count == self._rows.shape[1]:
            self._counted_at_s = -math.inf
            return
        r = stream.reader
        row = (r.start_s, r.tds, r.delivered, r.end_s, r.lateness_s, stream.expectation.settings.weight)
        self._rows[:, self._count] = row
        self._count += 1
        self._prompt_tokens += stream.prompt_tokens
        self._pending += 0.0 if stream.tokens else stream.prompt_tokens

    def late(self, now_s: float) -> float:
        """Observed over predicted time to first token lately, drifting back to 1."""
        return 1.0 + (self._late - 1.0) * math.exp((self._late_at_s - now_s) / LATE_MEMORY_S)

    # What is seen of it

    def finds_no_queue(self, stream: Stream) -> bool:
        """Whether ``stream``, sent now, would find nothing queued ahead of it."""
        before = self.streams - {stream}
        return len(before) + self.others < self.slots and all(s.tokens for s in before)

    def opened(self, stream: Stream) -> None:
        if stream not in self.streams:
            self.streams.add(stream)
            self._append(stream)

    def first_token(
        self, stream: Stream, waited_s: float, expected: StreamForecast | None, alone: bool, now_s: float
    ) -> None:
        """A stream has its first token ``waited_s`` after it was sent. ``alone``: nothing was queued ahead of it."""
        self._count_decoding(now_s, +1)
        if alone:
            self.latency.observe_prefill(round(stream.prompt_tokens), 0, waited_s)
        elif expected is not None:
            late = self.late(now_s)
            base_s = max(1e-4, (expected.ttft_s - expected.interval_s) / late)
            seen = min(50.0, max(0.2, (waited_s - expected.interval_s) / base_s))
            self._late, self._late_at_s = late + 0.2 * (seen - late), now_s

    def closed(self, stream: Stream, sent_s: float, started: bool, now_s: float) -> None:
        self.streams.discard(stream)
        if started:
            self._count_decoding(now_s, -1)
            self.stream_s += 0.1 * (now_s - sent_s - self.stream_s)

    def _count_decoding(self, now_s: float, change: int) -> None:
        self._decoding_s += self._decoding * (now_s - self._decoding_at_s)
        self._decoding_at_s = now_s
        self._decoding += change

    def observe_pace(self, now_s: float) -> None:
        """Since the last call: how long its streams took per token, as one observation of a decode step."""
        self._count_decoding(now_s, 0)
        elapsed_s = now_s - self._observed_at_s
        if self.tokens >= 10 and elapsed_s > 0.2:
            batch = self._decoding_s / elapsed_s
            sharing = max(1.0, batch / self.slots)
            interval_s = self._decoding_s / self.tokens / sharing
            if batch >= 0.5:
                self.latency.observe_decode(round(min(batch, self.slots)) or 1, int(self.context_tokens), interval_s)
        self.tokens, self._decoding_s, self._observed_at_s = 0, 0.0, now_s

    def load_is(self, loads: list[dict[str, Any]], held: int) -> None:
        """What the engine's ``/v1/loads`` says. ``held``: our streams there when it was asked."""
        running = sum(int(load["num_running_reqs"]) + int(load["num_waiting_reqs"]) for load in loads)
        self.requests = running
        self.others = max(0, running - max(held, len(self.streams)))
        self.context_tokens = float(sum(int(load["num_used_tokens"]) for load in loads))
        slots = sum(int(load["max_running_requests"]) for load in loads)
        capacity = sum(int(load["max_total_num_tokens"]) for load in loads)
        decoding = sum(int(load["num_running_reqs"]) for load in loads)
        if slots > 0:
            self.slots = usable_slots(slots, capacity, self.context_tokens, decoding)

    def describe(self, now_s: float) -> dict[str, Any]:
        return {
            "name": self.name,
            "healthy": self.healthy,
            "draining": self.draining,
            "breaker_open": not self.breaker.allows(now_s),
            "streams": len(self.streams),
            "waiting": sum(not s.tokens for s in self.streams),
            "others": self.others,
            "requests": self.requests,
            "slots": self.slots,
            "policy": self.policy,
            "context_tokens": int(self.context_tokens),
            "decode_s": round(self.latency.decode_s(max(1, len(self.streams)), self.context_tokens), 5),
        }


class Fleet:
    """All engines: discovered, probed and observed in the background between ``start`` and ``stop``."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._fixed = [url for url in settings.upstreams if not url.startswith("dns://")]
        self._names = [url for url in settings.upstreams if url.startswith("dns://")]
        self._tasks: set[asyncio.Task[None]] = set()
        self._probes: dict[str, asyncio.Task[None]] = {}
        self._session: aiohttp.ClientSession | None = None
        self.replicas: dict[str, Replica] = {}
        self.models: bytes | None = None  # what an engine last said of ``/v1/models``
        self.chars_per_token = 4.0
        self._look_up = look_up(settings.dns_server)
        self._resolved: dict[str, set[str]] = {}
        self._news = asyncio.Event()
        self._list(self._fixed)

    @property
    def session(self) -> aiohttp.ClientSession:
        assert self._session is not None, "the gateway has not been started"  # noqa: S101
        return self._session

    async def start(self) -> None:
        key = self._settings.upstream_api_key
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(
                limit=0, keepalive_timeout=KEEPALIVE_S, ttl_dns_cache=int(self._settings.dns_interval_s)
            ),
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=self._settings.connect_timeout_s),
            headers={"authorization": f"Bearer {key.get_secret_value()}"} if key else None,
            cookie_jar=aiohttp.DummyCookieJar(),
            auto_decompress=True,
            read_bufsize=self._settings.send_buffer_bytes,
        )
        if self._names:
            await self._resolve()
            self._spawn(self._keep_resolving())
        self._probe_new()

    async def stop(self) -> None:
        tasks = [*self._tasks, *self._probes.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if self._session is not None:
            await self._session.close()

    def taking(self, now_s: float) -> list[Replica]:
        return [replica for replica in self.replicas.values() if replica.takes(now_s)]

    async def news(self, patience_s: float) -> None:
        """Wait until an engine may take streams that did not before, so long at most."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._news.wait(), patience_s)

    def tell(self) -> None:
        """That is the news."""
        self._news.set()
        self._news.clear()

    def learn_length(self, prompt: Prompt, tokens: int) -> None:
        """The engine counted ``tokens`` for this prompt."""
        if tokens > 0 and prompt.length > 100 and not prompt.counted:
            ratio = min(20.0, max(0.5, prompt.length / tokens))
            self.chars_per_token += 0.05 * (ratio - self.chars_per_token)

    def forget(self, replica: Replica) -> None:
        """Drop a replica that is no longer listed once nobody reads from it."""
        if replica.gone and not replica.streams and self.replicas.get(replica.url) is replica:
            del self.replicas[replica.url]
            if replica.url in self._probes:
                self._probes.pop(replica.url).cancel()

    def _list(self, urls: Iterable[str]) -> None:
        listed = dict.fromkeys(urls)
        for url in listed:
            replica = self.replicas.setdefault(url, Replica(url, self._settings))
            if replica.gone:
                replica.gone, replica.healthy = False, None
        for url in self.replicas.keys() - listed:
            self.replicas[url].gone = True
            self.forget(self.replicas[url])

    async def _resolve(self) -> None:
        """Look the names up again. Without an answer a name keeps what it had: an outage of DNS empties no fleet."""
        found: set[str] = set()
        for name in self._names:
            parts = urlsplit(name)
            hosts = await self._look_up(str(parts.hostname))
            if hosts is not None:
                self._resolved[name] = {
                    f"http://[{h}]:{parts.port}" if ":" in h else f"http://{h}:{parts.port}" for h in hosts
                }
            found |= self._resolved.get(name, set())
        self._list([*self._fixed, *sorted(found)])
        if self._session is not None:
            self._probe_new()

    def _probe_new(self) -> None:
        for url, replica in self.replicas.items():
            if url not in self._probes:
                self._probes[url] = asyncio.create_task(self._watch(replica))

    async def _watch(self, replica: Replica) -> None:
        """Health and load of one replica, for as long as it is listed."""
        next_health_s, has_loads = 0.0, True
        while True:
            now_s = time.monotonic()
            if now_s >= next_health_s or not replica.healthy:
                await self._health(replica)
                next_health_s = time.monotonic() + self._settings.health_interval_s
            if has_loads and replica.healthy:
                has_loads = await self._load(replica)
            replica.observe_pace(time.monotonic())
            await asyncio.sleep(self._settings.load_interval_s if replica.healthy else LOOK_S)

    async def _health(self, replica: Replica) -> None:
        timeout = aiohttp.ClientTimeout(total=max(5.0, 2 * self._settings.health_interval_s))
        try:
            async with self.session.get(
                replica.url + self._settings.health_path, timeout=timeout, allow_redirects=False
            ) as answer:
                healthy = answer.status == 200
        except (aiohttp.ClientError, TimeoutError, OSError, ValueError):
            healthy = False
        if healthy and replica.healthy is False:
            replica.breaker.succeeded()
        came_up = healthy and not replica.healthy
        replica.healthy = healthy
        if healthy:
            self.tell()
        if came_up:
            await self._ask_about(replica)

    async def _ask_about(self, replica: Replica) -> None:
        """What it serves, and the policy in charge there, where it says so."""
        timeout = aiohttp.ClientTimeout(total=5.0)
        with contextlib.suppress(*_NO_ANSWER):
            async with self.session.get(replica.url + "/v1/models", timeout=timeout, allow_redirects=False) as answer:
                if answer.status == 200:
                    self.models = await answer.read()
        with contextlib.suppress(*_NO_ANSWER):
            async with self.session.get(replica.url + "/server_info", timeout=timeout, allow_redirects=False) as answer:
                if answer.status == 200:
                    said = (await answer.json())["internal_states"][0].get("andes", _STOCK)
                    replica.policy = {"name": str(said["policy"]), "options": dict(said["policy_options"])}

    async def _load(self, replica: Replica) -> bool:
        """Ask for the engine's load; False where it has no such thing."""
        timeout, held = aiohttp.ClientTimeout(total=5.0), len(replica.streams)
        with contextlib.suppress(*_NO_ANSWER):
            async with self.session.get(
                replica.url + "/v1/loads?include=core", timeout=timeout, allow_redirects=False
            ) as answer:
                if answer.status in _ABSENT:
                    return False
                if answer.status == 200:
                    replica.load_is((await answer.json())["loads"], held)
        return True

    def _spawn(self, work: Any) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _keep_resolving(self) -> None:
        while True:
            interval_s = self._settings.dns_interval_s
            await asyncio.sleep(interval_s if self.taking(time.monotonic()) else min(LOOK_S, interval_s))
            await self._resolve()
