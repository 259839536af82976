"""One request's way through the gateway: tried on a replica, continued elsewhere when that one fails."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from typing import Any

from andes_api import names, telemetry
from andes_api.attempt import Attempt, RelayContext
from andes_api.endpoints import CHAT
from andes_api.errors import ApiError
from andes_api.reply import Reply
from andes_api.response import ResponseWriter, Send
from andes_api.stream import Stream
from andes_api.upstream import Upstream
from andes_api.upstream_answer import UpstreamError
from andes_sglang.resume import Continuation, continued

__all__ = ["Relay", "RelayContext"]

RETRY_AFTER_FAILURE_S = 1.0


class Relay:
    """Answers one request on one connection. ``order``: the replicas to try, best first, each once at most; none: wait for
    one."""

    def __init__(self, context: RelayContext, stream: Stream, order: list[Upstream], send: Send) -> None:
        self.stream = stream
        self._context, self._settings = context, context.settings
        self._order = order
        self._reply = Reply(stream, send, context.settings)
        self._attempt: Attempt | None = None
        self._cut = False

    @property
    def writer(self) -> ResponseWriter:
        return self._reply.writer

    async def run(self) -> None:
        """Until the last byte is out; then ``stream.record.outcome`` says how it ended."""
        beats = asyncio.create_task(self._reply.keep_alive())
        try:
            try:
                outcome = await self._try_replicas()
                await self._reply.end()
                self.stream.record.outcome = outcome
            except ApiError as error:  # no engine has come
                await self._reply.refuse(error)
                await self._reply.end()
                self.stream.shed(error)
        finally:
            beats.cancel()
            await asyncio.gather(beats, return_exceptions=True)
            await self.writer.close()

    def client_is_gone(self, now_s: float) -> bool:
        """Whether the client's socket has taken nothing for too long."""
        heard_s = self.stream.arrival_s if self._attempt is None else self._attempt.heard_s
        idle_s = now_s - max(heard_s, self.stream.delivered_s)
        return self.writer.sending and idle_s > self._settings.client_idle_s

    def end_silent_upstream(self, now_s: float) -> None:
        """Close a stream of the engine that has said nothing for too long while it was listened to."""
        if self._attempt is not None and not self.writer.writing:
            self._attempt.end_if_silent(now_s)

    def cut(self) -> None:
        """Break off with an error: this gateway has no more time."""
        self._cut = True
        if self._attempt is not None:
            self._attempt.end("shutdown")

    async def _try_replicas(self) -> str:
        """Until one has answered or all have failed: "done", "error" (the request's) or "failed" (the engines')."""
        body = self.stream.body
        continuation: Continuation | None = None
        order = self._order
        while True:
            replica, *order = order or await self._context.wait_for_place(self.stream)
            self._attempt = Attempt(self._context, self.stream, self._reply, replica, continuation)
            try:
                return await self._attempt.run(body)
            except UpstreamError as error:
                now_s = time.monotonic()
                self._context.metrics.failures.labels(replica.name).inc()
                if error.blame:
                    replica.breaker.failed(now_s)
                order = [r for r in order if r.accepts(now_s)]
                rest = self._rest() if self._reply.begun else body
                if rest is None or not self._goes_on(order, now_s):
                    await self._give_up(error)
                    return "failed"
                body, continuation = rest, self._continuation() if self._reply.begun else None
                self._note_next_try(error)

    def _goes_on(self, order: Sequence[Upstream], now_s: float) -> bool:
        """Whether another replica is tried. A stream that has not begun waits for an engine while none accepts streams."""
        if self.stream.attempts > self._settings.retries or self._cut:
            return False
        return bool(order) or not (self._reply.begun or self._context.upstreams.accepting(now_s, self.stream.route))

    def _note_next_try(self, error: UpstreamError) -> None:
        metrics, begun = self._context.metrics, self._reply.begun
        (metrics.resumes if begun else metrics.retries).inc()
        event = names.EVENT_RESUME if begun else names.EVENT_RETRY
        self.stream.span.add_event(event, {names.REASON: error.kind})

    def _rest(self) -> dict[str, Any] | None:
        """What to ask another replica for, so that the reader does not notice; None where that cannot be."""
        stream = self.stream
        stream.compact()
        return (
            None if stream.log is None else continued(stream.body, stream.endpoint is CHAT, stream.text, stream.tokens)
        )

    def _continuation(self) -> Continuation:
        stream = self.stream
        prompt_tokens = stream.record.prompt_tokens if stream.counted else None
        return Continuation(stream.first_event, stream.tokens, prompt_tokens)

    async def _give_up(self, error: UpstreamError) -> None:
        telemetry.failed(self.stream.span, error.kind)
        fault = ApiError(
            502, f"the engine failed ({error.kind})", "upstream_error", code="upstream_error", reason="upstream",
            retry_after_s=RETRY_AFTER_FAILURE_S,
        )  # fmt: skip
        if self._reply.started and error.event:
            await self.writer.write([(error.event, 0)])
        elif error.answer is not None:
            await self._reply.whole(*error.answer)
        else:
            await self._reply.refuse(fault)
