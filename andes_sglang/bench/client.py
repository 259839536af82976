"""Open-loop replay: every request is sent at its time, whatever the server does; what each reader receives is recorded."""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections.abc import Callable
from typing import Any

import aiohttp
import numpy as np

from andes_sglang.expectations import to_custom_params
from andes_sglang.request import RequestRecord, RequestSpec
from andes_sglang.workload import BLOCK_TOKENS, SyntheticWorkload, Workload

__all__ = ["EndpointError", "check_endpoint", "prompt_ids", "replay"]


class EndpointError(RuntimeError):
    """Nothing useful answers at the endpoint."""


def prompt_ids(spec: RequestSpec, index: int, seed: int, vocabulary: tuple[int, int]) -> list[int]:
    """Token ids of the prompt: random and its own, except that equal blocks give equal tokens."""
    low, high = vocabulary
    parts: list[int] = []
    for block in spec.blocks[: spec.prompt_tokens // BLOCK_TOKENS]:
        parts += np.random.default_rng((seed, 1, block)).integers(low, high, BLOCK_TOKENS).tolist()
    rest = spec.prompt_tokens - len(parts)
    tail: list[int] = np.random.default_rng((seed, 2, index)).integers(low, high, rest).tolist()
    return parts + tail


async def check_endpoint(session: aiohttp.ClientSession, url: str) -> str:
    """The name of the first model served at ``url``. Raises :class:`EndpointError`."""
    try:
        async with session.get(f"{url}/v1/models", timeout=aiohttp.ClientTimeout(10)) as answer:
            if answer.status != 200:
                raise EndpointError(f"{url}/v1/models answers {answer.status}; is this an OpenAI-compatible endpoint?")
            models = await answer.json()
            return str(models["data"][0]["id"])
    except (aiohttp.ClientError, TimeoutError, OSError) as error:
        raise EndpointError(f"--url {url}: nothing answers there ({error or type(error).__name__})") from None
    except (KeyError, IndexError, TypeError, ValueError):
        raise EndpointError(f"{url}/v1/models does not list a model") from None


async def _one(
    session: aiohttp.ClientSession, url: str, model: str, spec: RequestSpec, prompt: list[int], record: RequestRecord,
    origin_s: float, send_expectations: bool, headers: dict[str, str],
) -> None:  # fmt: skip
    body: dict[str, Any] = {
        "model": model,
        "prompt": prompt,
        "max_tokens": spec.output_tokens,
        "temperature": 0,
        "ignore_eos": True,
        "stream": True,
        "stream_options": {"include_usage": True, "continuous_usage_stats": True},
    }
    if send_expectations:
        body["custom_params"] = to_custom_params(spec.expectation)
    deliveries: list[tuple[float, int]] = []
    record.deliveries = deliveries
    counted = 0
    finish: str | None = None
    try:
        async with session.post(f"{url}/v1/completions", json=body, headers=headers) as answer:
            if answer.status != 200:
                record.error = f"HTTP {answer.status}: {(await answer.text())[:200]}"
                return
            async for line in answer.content:
                if not line.startswith(b"data:"):
                    continue
                now_s = time.monotonic() - origin_s
                data = line[5:].strip()
                if data == b"[DONE]":
                    break
                chunk = json.loads(data)
                if "error" in chunk:
                    record.error = f"in the stream: {str(chunk['error'])[:200]}"
                    return
                usage = chunk.get("usage")
                for choice in chunk.get("choices") or ():
                    finish = choice.get("finish_reason") or finish
                    if usage is None and choice.get("text"):
                        counted += 1
                        deliveries.append((now_s, 1))
                if usage and usage.get("completion_tokens", 0) > counted:
                    deliveries.append((now_s, usage["completion_tokens"] - counted))
                    counted = usage["completion_tokens"]
        if finish is None:
            record.error = "the stream ended without a finish reason"
        elif finish not in ("length", "stop"):
            record.error = f"finish reason {finish}"
    except (aiohttp.ClientError, TimeoutError, OSError, ValueError) as error:
        record.error = f"{type(error).__name__}: {error}"
    finally:
        record.end_s = time.monotonic() - origin_s


async def replay(
    url: str,
    workload: Workload | SyntheticWorkload,
    *,
    seed: int = 0,
    vocabulary: tuple[int, int] = (10, 1000),
    send_expectations: bool = True,
    api_key: str | None = None,
    progress: Callable[[str], None] | None = None,
    sample: Callable[[float], None] | None = None,
) -> list[RequestRecord]:
    """Replay ``workload`` against ``url`` and return a record per request that was sent. Each has a connection of its own: a
    server may close a kept one at the moment it is used again.

    ``sample`` is called about once a second, in a thread, with the seconds since the start. Cancelling (Ctrl-C) ends the
    streams still open and keeps what was measured.
    """
    headers = {"authorization": f"Bearer {api_key}"} if api_key else {}
    specs = workload.requests
    prompts = [prompt_ids(spec, k, seed, vocabulary) for k, spec in enumerate(specs)]
    records: list[RequestRecord] = []
    tasks: list[asyncio.Task[None]] = []
    timeout = aiohttp.ClientTimeout(total=None, sock_connect=30, sock_read=None)
    async with aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0, force_close=True),
        timeout=timeout,
        headers=headers,
        read_bufsize=1 << 20,
    ) as session:
        model = await check_endpoint(session, url)
        origin_s = time.monotonic()

        async def watch() -> None:
            while True:
                at = time.monotonic() - origin_s
                if sample is not None:
                    await asyncio.to_thread(sample, at)
                if progress is not None:
                    done = [r for r in records if r.end_s]
                    mean = f", mean QoE {np.mean([r.qoe for r in done]):.3f}" if done else ""
                    progress(f"{at:5.0f} s  {len(done)}/{len(specs)} done, {len(records) - len(done)} open{mean}")
                await asyncio.sleep(1.0)

        watcher = asyncio.create_task(watch())
        try:
            for index, (spec, prompt) in enumerate(zip(specs, prompts, strict=True)):
                await asyncio.sleep(max(0.0, origin_s + spec.arrival_s - time.monotonic()))
                record = RequestRecord(
                    index, spec.arrival_s, time.monotonic() - origin_s, spec.prompt_tokens, spec.output_tokens,
                    spec.target.ttft_s, spec.target.tds,
                )  # fmt: skip
                records.append(record)
                tasks.append(
                    asyncio.create_task(
                        _one(session, url, model, spec, prompt, record, origin_s, send_expectations, headers)
                    )
                )
            await asyncio.gather(*tasks)
        except asyncio.CancelledError:
            print("\ninterrupted: keeping what was measured", file=sys.stderr)
            for task, record in zip(tasks, records, strict=False):
                if not task.done():
                    task.cancel()
                    record.error = record.error or "interrupted"
            await asyncio.gather(*tasks, return_exceptions=True)
        finally:
            watcher.cancel()
    return records
