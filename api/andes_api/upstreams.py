"""The engines behind the gateway: found, probed and asked for their load in the background."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import time
from collections.abc import Iterable, Mapping
from typing import Any
from urllib.parse import urlsplit

import aiohttp

from andes_api.background import Background
from andes_api.board import Board
from andes_api.discovery import make_resolver
from andes_api.ladders import best_models
from andes_api.lateness import Lateness
from andes_api.models import ModelCatalog, ModelRoute, Offer, read_offers
from andes_api.prompts import Prompt
from andes_api.settings import GatewaySettings
from andes_api.upstream import Upstream
from andes_sglang.engine_flags import EngineFlags
from andes_sglang.lengths import PRIOR_MEDIAN_TOKENS

__all__ = ["ABSENT", "MAX_PROBE_INTERVAL_S", "Upstreams"]

KEEPALIVE_S = 4.0
"""Seconds; engines close what was idle for 5 s (uvicorn), so we close first and no request meets a closing connection."""
MAX_PROBE_INTERVAL_S = 1.0
"""Seconds between probes of an engine that is not healthy, and look-ups of names while no engine accepts streams."""
PROBE_TIMEOUT_S = 5.0
CHARS_PER_TOKEN = 4.0
"""Characters per token of English text (OpenAI's rule of thumb), until an engine has counted."""
LEARN_FROM_CHARS, MIN_CHARS_PER_TOKEN, MAX_CHARS_PER_TOKEN = 100, 0.5, 20.0
_STOCK: dict[str, Any] = {"policy": "stock", "policy_options": {}}
ABSENT = (404, 405, 501)
_NO_ANSWER = (
    aiohttp.ClientError, TimeoutError, OSError, ValueError, KeyError, TypeError, IndexError, AttributeError
)  # fmt: skip


class Upstreams:
    """All engines, by URL, between ``start`` and ``stop``; ``start`` opens a session where none was given."""

    def __init__(
        self,
        settings: GatewaySettings,
        session: aiohttp.ClientSession | None = None,
        *,
        background: Background,
        board: Board | None = None,
    ) -> None:
        self._board = Board() if board is None else board
        self._settings = settings
        self._background = background
        addresses = settings.upstreams_by_model
        self._fixed = {url: model for url, model in addresses.items() if not url.startswith("dns://")}
        self._names = {url: model for url, model in addresses.items() if url.startswith("dns://")}
        self._probes: dict[str, asyncio.Task[None]] = {}
        self._session = session
        self.replicas: dict[str, Upstream] = {}
        self.drained: set[str] = set()  # by hand: names of replicas, listed or not
        self.catalog = ModelCatalog(settings.models, settings.model_aliases, best_models(settings.ladders))
        self._chars_per_token: dict[str | None, float] = {}
        self._thoughts: dict[str | None, float] = {}
        self._answers: dict[str | None, float] = {}
        self._lookup = make_resolver(settings.dns_server)
        self._resolved: dict[str, set[str]] = {}
        self._changed = asyncio.Event()
        self.lateness = Lateness(self._note_late)
        self._list(self._fixed)

    @property
    def session(self) -> aiohttp.ClientSession:
        assert self._session is not None, "the gateway has not been started"  # noqa: S101
        return self._session

    async def start(self) -> None:
        if self._session is None:
            self._session = self._open_session()
        self.lateness.start()
        if self._names:
            await self._resolve()
            self._background.start("resolve", self._keep_resolving)
        self._probe_new()

    def _open_session(self) -> aiohttp.ClientSession:
        key = self._settings.upstream_api_key
        return aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(
                limit=0, keepalive_timeout=KEEPALIVE_S, ttl_dns_cache=int(self._settings.dns_interval_s)
            ),
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=self._settings.connect_timeout_s),
            headers={"authorization": f"Bearer {key.get_secret_value()}"} if key else None,
            cookie_jar=aiohttp.DummyCookieJar(),
            auto_decompress=True,
            read_bufsize=self._settings.send_buffer_bytes,
        )

    async def stop(self) -> None:
        self.lateness.stop()
        if self._session is not None:
            await self._session.close()

    def _note_late(self, late_s: float) -> None:
        """For so long this process has not listened: that time does not count against a replica that owes an answer."""
        for replica in self.replicas.values():
            if replica.unanswered_since_s is not None:
                replica.unanswered_since_s += late_s

    def accepting(self, now_s: float, route: ModelRoute | None = None) -> list[Upstream]:
        """Those that may get a new stream; of ``route``, where one is given."""
        return [r for r in self.replicas.values() if r.accepts(now_s) and (route is None or r.serves(route))]

    def resolve(self, asked: Any) -> ModelRoute:
        """What the ``model`` of a request means now. Raises the error that refuses it."""
        listed = [r for r in self.replicas.values() if not r.gone]
        unasked = any(r.offers is None and r.configured is None and r.healthy is not False for r in listed)
        says_nothing = any(r.offers == {} and r.configured is None for r in listed)
        return self.catalog.resolve(asked, incomplete=unasked or says_nothing)

    def chars_per_token(self, model: str | None) -> float:
        return self._chars_per_token.get(model, CHARS_PER_TOKEN)

    async def wait_for_change(self, timeout_s: float) -> None:
        """Wait until an engine may accept streams that did not before, ``timeout_s`` at most."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._changed.wait(), timeout_s)

    def drain(self, name: str, drained: bool) -> Upstream | None:
        """Give a replica nothing new, or take that back; None where there is none of this name."""
        found = next((replica for replica in self.replicas.values() if replica.name == name), None)
        if found is not None:
            found.drained = drained
            (self.drained.add if drained else self.drained.discard)(name)
            self.notify()
        return found

    def drain_all(self, names: Iterable[str]) -> None:
        """Drain these by hand, listed by now or not."""
        for name in names:
            self.drained.add(name)
            self.drain(name, True)

    def notify(self) -> None:
        """An engine may accept streams that did not before."""
        self._changed.set()
        self._changed.clear()

    def learn_length(self, model: str | None, prompt: Prompt, tokens: int) -> None:
        """An engine of ``model`` counted ``tokens`` for this prompt."""
        if tokens > 0 and prompt.length > LEARN_FROM_CHARS and not prompt.counted:
            ratio = min(MAX_CHARS_PER_TOKEN, max(MIN_CHARS_PER_TOKEN, prompt.length / tokens))
            known = self.chars_per_token(model)
            self._chars_per_token[model] = known + 0.05 * (ratio - known)

    def thought_tokens(self, model: str | None) -> float:
        """Tokens that an engine of ``model`` lately thought before an answer, on average."""
        return self._thoughts.get(model, 0.0)

    def answer_tokens(self, model: str | None) -> float:
        """Tokens of answers of ``model`` that readers were lately shown, on average."""
        return self._answers.get(model, PRIOR_MEDIAN_TOKENS)

    def learn_answer(self, model: str | None, tokens: int, thought: int | None) -> None:
        """An engine of ``model`` has ended an answer of ``tokens``, of which ``thought`` were not shown; None: nothing was to
        be hidden."""
        known = self._answers.get(model, PRIOR_MEDIAN_TOKENS)
        self._answers[model] = known + 0.05 * (max(1, tokens - (thought or 0)) - known)
        if thought is not None:
            known = self._thoughts.setdefault(model, float(thought))
            self._thoughts[model] = known + 0.05 * (thought - known)

    def forget(self, replica: Upstream) -> None:
        """Drop a replica that is no longer listed once it has no stream."""
        if replica.gone and not (replica.streams or replica.offline) and self.replicas.get(replica.url) is replica:
            del self.replicas[replica.url]
            replica.numbers.forget()
            self.drained.discard(replica.name)
            if replica.url in self._probes:
                self._probes.pop(replica.url).cancel()

    def _list(self, listed: Mapping[str, str | None]) -> None:
        """The engines there are now: the model that each has by the settings, by URL."""
        for url, model in listed.items():
            if (replica := self.replicas.get(url)) is None:
                numbers = self._board.replica(url)
                replica = Upstream(url, self._settings, time.monotonic(), model, numbers=numbers)
                replica.drained = replica.name in self.drained
                self.replicas[url] = replica
            if replica.gone:
                replica.gone, replica.healthy, replica.offers = False, None, None
        for url in self.replicas.keys() - listed:
            self.replicas[url].gone = True
            self.forget(self.replicas[url])

    async def _resolve(self) -> None:
        """Look the names up again. Without an answer a name keeps the addresses it had: an outage of DNS empties no fleet."""
        found: dict[str, str | None] = {}
        for name, model in self._names.items():
            parts = urlsplit(name)
            hosts = await self._lookup(str(parts.hostname))
            if hosts is not None:
                self._resolved[name] = {
                    f"http://[{h}]:{parts.port}" if ":" in h else f"http://{h}:{parts.port}" for h in hosts
                }
            found |= dict.fromkeys(sorted(self._resolved.get(name, set())), model)
        self._list({**self._fixed, **found, **self._fixed})
        if self._session is not None:
            self._probe_new()

    def _probe_new(self) -> None:
        for url, replica in self.replicas.items():
            if url not in self._probes:
                self._probes[url] = self._background.start("probe", functools.partial(self._watch, replica))

    async def _watch(self, replica: Upstream) -> None:
        """Health and load of one replica, for as long as it is listed."""
        next_health_s, has_loads = 0.0, True
        while True:
            now_s = time.monotonic()
            if now_s >= next_health_s or not replica.healthy or replica.offers is None:
                if not await self._health(replica):
                    continue
                next_health_s = time.monotonic() + self._settings.health_interval_s
            if has_loads and replica.healthy:
                has_loads = await self._load(replica)
                replica.asked_load = True
                if replica.unanswered_since_s is not None:
                    next_health_s = 0.0
                    continue
            replica.observe_pace(time.monotonic())
            await asyncio.sleep(self._settings.load_interval_s if replica.healthy else MAX_PROBE_INTERVAL_S)

    async def _health(self, replica: Upstream) -> bool:
        """Whether this says anything: a probe that timed out while this process itself did not listen does not."""
        timeout = aiohttp.ClientTimeout(total=max(PROBE_TIMEOUT_S, 2 * self._settings.health_interval_s))
        sent_s, listened = time.monotonic(), self.lateness.asked()
        try:
            async with self.session.get(
                replica.url + self._settings.health_path, timeout=timeout, allow_redirects=False
            ) as answer:
                healthy = answer.status == 200
            replica.unanswered_since_s = None
        except (aiohttp.ClientError, TimeoutError, OSError, ValueError) as error:
            if isinstance(error, TimeoutError) and not listened():
                return False
            healthy = False
            replica.unanswered_since_s = replica.unanswered_since_s or sent_s
        if healthy and replica.healthy is False:
            replica.succeeded()
        came_up = healthy and not replica.healthy
        if healthy:  # what it has may be new, and is known before it gets anything
            await self._ask_models(replica)
        replica.healthy = healthy
        if healthy:
            self.notify()
        if came_up:
            replica.takes_readers = True
            await self._probe_identity(replica)
        return True

    async def _ask_models(self, replica: Upstream) -> None:
        """What it serves. One that has no such endpoint, or gives no list there, says nothing and answers every name; one
        that does not answer, or fails, keeps what it said before."""
        timeout = aiohttp.ClientTimeout(total=PROBE_TIMEOUT_S)
        said: Any = None
        try:
            async with self.session.get(replica.url + "/v1/models", timeout=timeout, allow_redirects=False) as answer:
                if answer.status == 429 or (answer.status >= 500 and answer.status not in ABSENT):
                    return
                if answer.status == 200:
                    said = await answer.json(content_type=None)
        except (aiohttp.ClientError, TimeoutError, OSError):
            return
        except ValueError:  # no JSON
            pass
        offers: dict[str, Offer] = {}
        with contextlib.suppress(*_NO_ANSWER):
            offers = read_offers(said, replica.configured)
        self._announce(replica, offers)

    def _announce(self, replica: Upstream, offers: dict[str, Offer]) -> None:
        before, replica.offers = replica.offers or {}, offers
        fleet = [r.offers for r in self.replicas.values() if r.offers and not r.gone]
        for model in {**before, **offers}:
            found = [said[model] for said in fleet if model in said]
            if found:
                self.catalog.learn(model, found)
            else:
                self.catalog.forget(model)

    async def _probe_identity(self, replica: Upstream) -> None:
        """The policy in charge there, where it says so."""
        timeout = aiohttp.ClientTimeout(total=PROBE_TIMEOUT_S)
        with contextlib.suppress(*_NO_ANSWER):
            async with self.session.get(replica.url + "/server_info", timeout=timeout, allow_redirects=False) as answer:
                if answer.status == 200:
                    info = await answer.json()
                    replica.flags = EngineFlags.from_server_info(info)
                    said = info["internal_states"][0].get("andes", _STOCK)
                    replica.policy = {"name": str(said["policy"]), "options": dict(said["policy_options"])}

    async def _load(self, replica: Upstream) -> bool:
        """Ask for the engine's load; False where it has no such endpoint."""
        timeout = aiohttp.ClientTimeout(total=PROBE_TIMEOUT_S)
        sent = replica.open_streams + len(replica.offline)
        sent_s, listened = time.monotonic(), self.lateness.asked()
        try:
            async with self.session.get(
                replica.url + "/v1/loads?include=core", timeout=timeout, allow_redirects=False
            ) as answer:
                if answer.status in ABSENT:
                    return False
                if answer.status == 200:
                    replica.set_load((await answer.json())["loads"], sent)
        except (aiohttp.ContentTypeError, aiohttp.ClientPayloadError, ValueError, KeyError, TypeError, IndexError):
            pass  # not SGLang's
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            if not isinstance(error, TimeoutError) or listened():
                replica.unanswered_since_s = sent_s
        return True

    async def _keep_resolving(self) -> None:
        while True:
            interval_s = self._settings.dns_interval_s
            await asyncio.sleep(
                interval_s if self.accepting(time.monotonic()) else min(MAX_PROBE_INTERVAL_S, interval_s)
            )
            await self._resolve()
