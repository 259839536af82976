"""Open-loop replay: every request is sent at its time, whatever the server does; what each reader receives is recorded."""

from __future__ import annotations

import asyncio
import json
import signal
import sys
import time
from collections.abc import AsyncIterable, Callable, Coroutine, Sequence
from dataclasses import dataclass
from typing import Any

import aiohttp
import numpy as np

from andes_sglang.expectations import to_custom_params
from andes_sglang.request import RequestRecord, RequestSpec
from andes_sglang.shown import ShownTokens
from andes_sglang.summary import INTERRUPTED
from andes_sglang.workload import BLOCK_TOKENS, SyntheticWorkload, Workload

__all__ = ["EndpointError", "check_endpoint", "prompt_ids", "prompt_text", "replay", "run_replays"]

ENDINGS = (signal.SIGINT, signal.SIGTERM)
"""Ctrl-C, and what a supervisor sends: both end a replay and keep what was measured."""
CONNECT_TIMEOUT_S = 30.0
"""A request whose connection takes longer counts as failed."""
MODELS_TIMEOUT_S = 10.0
READ_BUFFER_BYTES = 1 << 20
"""aiohttp's default of 64 KiB stops reading while the event loop is behind, which would be measured as a stall."""
SAMPLE_EVERY_S = 1.0
WORDS = (
    "the", "of", "and", "to", "in", "is", "that", "it", "was", "for", "on", "are", "as",
    "with", "his", "they", "at", "be", "this", "from", "have", "or", "by", "one", "had", "not", "but", "what", "all", "were",
)  # fmt: skip
"""Each one token of the usual vocabularies, or close to it."""
MAX_ERROR_CHARACTERS = 200
"""Of an error text that a record keeps."""


class EndpointError(RuntimeError):
    """No OpenAI-compatible server answers at the endpoint, or it fails every request; the text names the address."""


def prompt_ids(spec: RequestSpec, index: int, seed: int, vocabulary: tuple[int, int]) -> list[int]:
    """Token ids of the prompt: random and its own, except that equal blocks give equal tokens."""
    low, high = vocabulary
    parts: list[int] = []
    for block in spec.blocks[: spec.prompt_tokens // BLOCK_TOKENS]:
        parts += np.random.default_rng((seed, 1, block)).integers(low, high, BLOCK_TOKENS).tolist()
    rest = spec.prompt_tokens - len(parts)
    tail: list[int] = np.random.default_rng((seed, 2, index)).integers(low, high, rest).tolist()
    return parts + tail


def prompt_text(ids: Sequence[int]) -> str:
    """A text of about as many tokens, equal where the ids are: a short common English word for each."""
    return " ".join(WORDS[k % len(WORDS)] for k in ids)


async def check_endpoint(session: aiohttp.ClientSession, url: str, model: str | None = None) -> str:
    """``model``, or the first that is listed at ``url`` without one. Raises :class:`EndpointError`, also where ``model`` is
    not listed."""
    try:
        async with session.get(f"{url}/v1/models", timeout=aiohttp.ClientTimeout(MODELS_TIMEOUT_S)) as answer:
            if answer.status in (401, 403):
                raise EndpointError(f"{url}/v1/models answers {answer.status}: it takes a valid --api-key")
            if answer.status != 200:
                raise EndpointError(f"{url}/v1/models answers {answer.status}; is this an OpenAI-compatible endpoint?")
            listed = [str(card["id"]) for card in json.loads(await answer.text())["data"]]
            if model is not None and model not in listed:
                raise EndpointError(f"--model {model}: not served at {url}; there are: {', '.join(listed)}")
            return model or listed[0]
    except (aiohttp.ClientError, TimeoutError, OSError) as error:
        raise EndpointError(f"--url {url}: nothing answers there ({str(error) or type(error).__name__})") from None
    except (KeyError, IndexError, TypeError, ValueError):
        raise EndpointError(f"{url}/v1/models does not list a model") from None


async def read_stream(
    lines: AsyncIterable[bytes], now_s: Callable[[], float], record: RequestRecord, *, hides: bool = True
) -> str | None:
    """Fill ``record`` with (seconds, tokens) for each event of a completion stream; the stream's error, None for one that
    finished. hides: what is thought before the answer is not shown; its tokens are ``reason_tokens``.

    Tokens are counted by ``usage`` where events carry it (``continuous_usage_stats``), else one for each piece of text.
    Raises ``ValueError`` for an event that is not JSON.
    """
    deliveries: list[tuple[float, int]] = []
    record.deliveries = deliveries
    all_tokens, shown = 0, ShownTokens(hides=hides)
    finish: str | None = None
    async for line in lines:
        if not line.startswith(b"data:"):
            continue
        at_s = now_s()
        data = line[5:].strip()
        if data == b"[DONE]":
            break
        chunk = json.loads(data)
        if "error" in chunk:
            return f"in the stream: {str(chunk['error'])[:MAX_ERROR_CHARACTERS]}"
        choices = chunk.get("choices") or ()
        finish = next((c["finish_reason"] for c in choices if c.get("finish_reason")), finish)
        tokens, all_tokens = _shown_tokens(choices, chunk.get("usage"), all_tokens, shown)
        if not deliveries:
            record.reason_tokens = shown.thought
        if tokens > 0:
            deliveries.append((at_s, tokens))
    if finish is None:
        return "the stream ended without a finish reason"
    return None if finish in ("length", "stop") else f"finish reason {finish}"


def _shown_tokens(
    choices: Sequence[dict[str, Any]], usage: dict[str, Any] | None, before: int, shown: ShownTokens
) -> tuple[int, int]:
    """Tokens of an event that its reader is shown, and all tokens up to it; ``before``: up to the one before it."""
    deltas = [choice.get("delta") or {} for choice in choices]
    answers = sum(bool(c.get("text") or d.get("content")) for c, d in zip(choices, deltas, strict=True))
    thoughts = sum(bool(delta.get("reasoning_content")) for delta in deltas)
    tokens = usage.get("completion_tokens", 0) - before if usage else answers + thoughts
    told = usage.get("reasoning_tokens") if usage else None
    read = shown.of(tokens, thought=thoughts > 0, text=answers > 0, counted_thought=told)
    return read, before + max(0, tokens)


@dataclass(frozen=True, slots=True)
class _Endpoint:
    """Where requests go; origin_s: the replay's second 0 on the monotonic clock."""

    session: aiohttp.ClientSession
    url: str
    model: str
    headers: dict[str, str]
    send_expectations: bool
    chat: bool
    origin_s: float

    @property
    def path(self) -> str:
        return "/v1/chat/completions" if self.chat else "/v1/completions"

    def now_s(self) -> float:
        return time.monotonic() - self.origin_s

    def body(self, spec: RequestSpec, prompt: list[int]) -> dict[str, Any]:
        body: dict[str, Any] = {
            "model": self.model,
            **({"messages": [{"role": "user", "content": prompt_text(prompt)}]} if self.chat else {"prompt": prompt}),
            "max_tokens": spec.output_tokens,
            "temperature": 0,
            "ignore_eos": True,
            "stream": True,
            "stream_options": {"include_usage": True, "continuous_usage_stats": True},
        }
        if self.send_expectations:
            body["custom_params"] = to_custom_params(spec.expectation)
        return body

    async def request(self, spec: RequestSpec, prompt: list[int], record: RequestRecord) -> None:
        """Send one request and fill ``record`` while its answer comes."""
        where = f"{self.url}{self.path}"
        try:
            async with self.session.post(where, json=self.body(spec, prompt), headers=self.headers) as answer:
                if answer.status == 200:
                    record.error = await read_stream(
                        answer.content, self.now_s, record, hides=spec.expectation.hides_reasoning
                    )
                else:
                    record.error = f"HTTP {answer.status}: {(await answer.text())[:MAX_ERROR_CHARACTERS]}"
        except (aiohttp.ClientError, TimeoutError, OSError, ValueError, TypeError, AttributeError) as error:
            record.error = f"{type(error).__name__}: {error}"
        finally:
            record.end_s = self.now_s()


async def replay(
    url: str,
    workload: Workload | SyntheticWorkload,
    *,
    seed: int = 0,
    vocabulary: tuple[int, int] = (10, 1000),
    send_expectations: bool = True,
    api_key: str | None = None,
    model: str | None = None,
    chat: bool = False,
    progress: Callable[[str], None] | None = None,
    sample: Callable[[float], None] | None = None,
) -> list[RequestRecord]:
    """Replay ``workload`` against ``url`` and return a record for each request that was sent. Each has a connection of its
    own: a server may close a kept one at the moment it is used again. chat: over chat completions, with words for token ids.
    model: None for the first that the server lists.

    ``sample`` is called about once a second, in a thread, with the seconds since the start. Cancelling (Ctrl-C) ends the
    streams still open and keeps what was measured. Raises :class:`EndpointError` where nothing answers.
    """
    headers = {"authorization": f"Bearer {api_key}"} if api_key else {}
    specs = workload.requests
    prompts = [prompt_ids(spec, k, seed, vocabulary) for k, spec in enumerate(specs)]
    records: list[RequestRecord] = []
    tasks: list[asyncio.Task[None]] = []
    async with aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0, force_close=True),
        timeout=aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_TIMEOUT_S, sock_read=None),
        headers=headers,
        read_bufsize=READ_BUFFER_BYTES,
    ) as session:
        model = await check_endpoint(session, url, model)
        endpoint = _Endpoint(session, url, model, headers, send_expectations, chat, time.monotonic())
        watcher = asyncio.create_task(_watch(endpoint, records, len(specs), progress, sample))
        try:
            for index, (spec, prompt) in enumerate(zip(specs, prompts, strict=True)):
                await asyncio.sleep(max(0.0, spec.arrival_s - endpoint.now_s()))
                record = RequestRecord(
                    index, spec.arrival_s, endpoint.now_s(), spec.prompt_tokens, spec.output_tokens,
                    spec.target.ttft_s, spec.target.tds, think_tds=spec.target.think_tds,
                    reader_class=spec.reader_class, tenant=spec.tenant, yields=spec.yields,
                )  # fmt: skip
                records.append(record)
                tasks.append(asyncio.create_task(endpoint.request(spec, prompt, record)))
            await asyncio.gather(*tasks)
        except asyncio.CancelledError:
            print("\ninterrupted: keeping what was measured", file=sys.stderr)
            for task, record in zip(tasks, records, strict=False):
                if not task.done():
                    task.cancel()
                    record.error = record.error or INTERRUPTED
            await asyncio.gather(*tasks, return_exceptions=True)
        finally:
            watcher.cancel()
    return records


def run_replays(replays: Sequence[Coroutine[Any, Any, list[RequestRecord]]]) -> tuple[list[list[RequestRecord]], bool]:
    """Several at the same time in an event loop of their own: the records of each, and whether a signal ended them; what is
    kept then is kept whatever follows. One that fails ends the others. Raises what it raises, and ``KeyboardInterrupt`` where
    a signal came before any had begun."""
    received: list[int] = []

    async def main() -> list[list[RequestRecord]]:
        tasks = [asyncio.ensure_future(one) for one in replays]
        for task in tasks:
            task.add_done_callback(lambda done: _cancel(tasks) if _failed(done) else None)

        def end(sign: int) -> None:
            if not received:
                _cancel(tasks)
            received.append(sign)

        loop = asyncio.get_running_loop()
        for sign in ENDINGS:
            loop.add_signal_handler(sign, end, sign)
        return await asyncio.gather(*tasks)

    handlers = {sign: signal.getsignal(sign) for sign in ENDINGS}
    try:
        return asyncio.run(main()), bool(received)
    except asyncio.CancelledError:
        if not received:
            raise
        raise KeyboardInterrupt from None
    finally:  # asyncio puts the defaults in their place
        for sign, handler in handlers.items():
            signal.signal(sign, handler)


def _cancel(tasks: Sequence[asyncio.Future[Any]]) -> None:
    for task in tasks:
        task.cancel()


def _failed(task: asyncio.Task[Any]) -> bool:
    return not task.cancelled() and task.exception() is not None


async def _watch(
    endpoint: _Endpoint,
    records: list[RequestRecord],
    total: int,
    progress: Callable[[str], None] | None,
    sample: Callable[[float], None] | None,
) -> None:
    """Tell progress and take samples, about once a second, until cancelled."""
    while True:
        at_s = endpoint.now_s()
        if sample is not None:
            await asyncio.to_thread(sample, at_s)
        if progress is not None:
            done = [r for r in records if r.end_s]
            mean = f", mean QoE {np.mean([r.qoe for r in done]):.3f}" if done else ""
            progress(f"{at_s:5.0f} s  {len(done)}/{total} done, {len(records) - len(done)} open{mean}")
        await asyncio.sleep(SAMPLE_EVERY_S)
