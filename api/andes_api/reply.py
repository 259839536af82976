"""The answer to one client, whichever replicas it comes from: in one piece, or event by event."""

from __future__ import annotations

from collections.abc import Mapping

import orjson

from andes_api.errors import ApiError
from andes_api.pacing import Pacer
from andes_api.response import PacedResponseWriter, ResponseWriter, Send
from andes_api.sse import Event
from andes_api.stream import Stream

__all__ = ["Reply"]


class Reply:
    """Every answer echoes the request's id and what holds of its reader. pace_interval_s: seconds of tokens that a paced
    answer releases together."""

    def __init__(self, stream: Stream, send: Send, pace_interval_s: float) -> None:
        self._stream = stream
        if stream.streams and stream.expectation.pace:
            pacer = Pacer(stream.expectation.target.tds, pace_interval_s)
            self.writer: ResponseWriter = PacedResponseWriter(send, stream.delivered, pacer)
        else:
            self.writer = ResponseWriter(send, stream.delivered)

    @property
    def started(self) -> bool:
        return self.writer.started

    async def whole(self, status: int, headers: Mapping[str, str], content: bytes) -> None:
        """An answer in one piece."""
        await self._start(status, {**headers, "content-length": str(len(content))})
        await self.writer.write([(content, 0)])

    async def refuse(self, error: ApiError) -> None:
        headers = {"content-type": "application/json", **error.headers}
        await self.whole(error.status, headers, orjson.dumps(error.body))

    async def events(self, batch: list[Event], content_type: str) -> None:
        """Pass ``batch`` on; the head goes out once there is something to follow it."""
        if not self.started:
            if not any(event for event, _ in batch):
                return
            headers = {"content-type": content_type, "cache-control": "no-cache", "x-accel-buffering": "no"}
            await self._start(200, headers)
        await self.writer.write(batch)

    async def _start(self, status: int, headers: Mapping[str, str]) -> None:
        self._stream.status = status
        stream = self._stream
        echo = {"x-request-id": stream.request_id, **stream.expectation.headers(), **stream.model_headers()}
        await self.writer.start(status, {**headers, **echo})
