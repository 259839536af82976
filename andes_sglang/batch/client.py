"""OpenAI's batch API over HTTP: what ``andes batch`` needs of it."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import aiohttp

__all__ = ["BatchClient", "BatchError", "UnavailableError"]

TIMEOUT = aiohttp.ClientTimeout(total=None, sock_connect=10.0, sock_read=60.0)
"""Seconds to connect, and of silence; a file takes as long as it takes."""
READ_BYTES = 1 << 16
MAX_PAGES = 100
"""Pages of a list that are looked through."""
_AGAIN = (408, 409, 429, 500, 502, 503, 504)
"""Statuses after which the same may work a moment later."""
_NO_API = (404, 405)
"""Statuses of a server that has no batches, where it says no more."""


class BatchError(Exception):
    """What went wrong, in a sentence."""


class UnavailableError(BatchError):
    """The server does not answer, or asks to come back: the same may work a moment later."""


class BatchClient:
    """An asynchronous context manager. url: of the server, with or without ``/v1``."""

    def __init__(self, url: str, api_key: str | None) -> None:
        self.url = url.rstrip("/").removesuffix("/v1")
        headers = {"authorization": f"Bearer {api_key}"} if api_key else {}
        self._session = aiohttp.ClientSession(timeout=TIMEOUT, headers=headers)

    async def __aenter__(self) -> BatchClient:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._session.close()

    async def upload(self, path: Path, name: str) -> dict[str, Any]:
        with path.open("rb") as file:
            form = aiohttp.FormData()
            form.add_field("purpose", "batch")
            form.add_field("file", file, filename=name, content_type="application/jsonl")
            return await self._json("POST", "/v1/files", data=form)

    async def create(self, **fields: Any) -> dict[str, Any]:
        return await self._json("POST", "/v1/batches", json=fields)

    async def get(self, batch_id: str) -> dict[str, Any]:
        return await self._json("GET", f"/v1/batches/{batch_id}")

    async def cancel(self, batch_id: str) -> dict[str, Any]:
        return await self._json("POST", f"/v1/batches/{batch_id}/cancel")

    async def files(self) -> AsyncIterator[dict[str, Any]]:
        async for file in self._pages("/v1/files", purpose="batch", limit="1000"):
            yield file

    async def batches(self) -> AsyncIterator[dict[str, Any]]:
        """The newest first."""
        async for batch in self._pages("/v1/batches", limit="100"):
            yield batch

    async def download(self, file_id: str, path: Path) -> None:
        """Write a file to ``path``, all of it or nothing."""
        part = path.with_name(path.name + ".part")
        try:
            async with self._session.get(f"{self.url}/v1/files/{file_id}/content") as answer:
                await self._check(answer)
                with part.open("wb") as file:
                    async for content in answer.content.iter_chunked(READ_BYTES):
                        file.write(content)
        except (aiohttp.ClientError, TimeoutError) as error:
            raise self._silent(error) from None
        part.replace(path)

    async def _pages(self, path: str, **query: str) -> AsyncIterator[dict[str, Any]]:
        for _ in range(MAX_PAGES):
            page = await self._json("GET", path, params=query)
            for item in page["data"]:
                yield item
            if not (page.get("has_more") and page["data"]):
                return
            query["after"] = page["data"][-1]["id"]

    async def _json(self, method: str, path: str, **given: Any) -> dict[str, Any]:
        try:
            async with self._session.request(method, self.url + path, **given) as answer:
                await self._check(answer)
                content: dict[str, Any] = await answer.json(content_type=None)
                return content
        except (aiohttp.ClientError, TimeoutError) as error:
            raise self._silent(error) from None
        except ValueError:
            raise BatchError(f"{self.url}{path} gives no JSON: is that the address of a gateway?") from None

    def _silent(self, error: Exception) -> UnavailableError:
        return UnavailableError(f"{self.url} does not answer: {str(error) or type(error).__name__}")

    async def _check(self, answer: aiohttp.ClientResponse) -> None:
        if answer.status == 200:
            return
        text = await answer.text(errors="replace")
        if answer.status in _NO_API and not _message(text):
            raise BatchError(
                f"{self.url} has no batch API ({answer.status} at {answer.url.path}); "
                "expected a gateway with batches.directory"
            )
        again = answer.status in _AGAIN and answer.headers.get("x-should-retry") != "false"
        raise (UnavailableError if again else BatchError)(f"{self.url}: {_message(text) or f'HTTP {answer.status}'}")


def _message(text: str) -> str:
    try:
        error = json.loads(text)["error"]
    except (ValueError, KeyError, TypeError):
        return ""
    return str(error.get("message", "")) if isinstance(error, Mapping) else str(error)
