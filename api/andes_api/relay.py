"""One request's way through the gateway: tried on a replica, continued elsewhere when that one fails."""

from __future__ import annotations

import logging
import time
from typing import Any

from andes_api import admission, names, telemetry
from andes_api.attempt import Attempt
from andes_api.connection import Connection
from andes_api.errors import ApiError, own_fault
from andes_api.fatal import MAX_DEATHS, MEMORY_S
from andes_api.models import ModelRoute
from andes_api.reader_report import ReaderReport
from andes_api.relay_context import RelayContext
from andes_api.reply import Reply
from andes_api.response import ResponseWriter, Send
from andes_api.stream import Stream, count_answers
from andes_api.tool_rounds import ToolRounds
from andes_api.upstream import Upstream
from andes_api.upstream_answer import Blame, UpstreamError
from andes_sglang.resume import Continuation, StopSeam, continued, ending, tokens_left

__all__ = ["Relay", "RelayContext"]

_log = logging.getLogger("andes")
RETRY_AFTER_FAILURE_S = 1.0
STEADY_S = 30.0
"""Of streaming, after which a failure stands alone: what a request itself breaks, it breaks again at once (our choice)."""


class Relay:
    """Answers one request on one connection. ``order``: the replicas to try, best first, each once in a row of failures;
    none: wait for one."""

    def __init__(
        self, context: RelayContext, stream: Stream, order: list[Upstream], send: Send, connection: Connection
    ) -> None:
        self.stream = stream
        self._connection = connection
        stream.receipt.comes_over(connection.round_trip_s())
        self._context, self._settings = context, context.settings
        self._order = order
        self._tried: set[Upstream] = set()
        self._tried_routes: set[ModelRoute] = set()
        self._tools: ToolRounds | None = None
        if stream.tools:
            most = context.settings.tool_rounds
            self._tools = ToolRounds(stream, context.metrics, context.tool_slots, times=context.tool_times, most=most)
        seen = self._tools.take if self._tools else None
        self._reply = Reply(stream, send, connection, context.settings, seen=seen)
        self._attempt: Attempt | None = None
        self._cut = False
        self._suspects: list[tuple[Upstream, UpstreamError]] = []  # at fault if another replica answers
        self._refusals = self._deaths = self._uncounted = 0

    @property
    def writer(self) -> ResponseWriter:
        return self._reply.writer

    async def run(self) -> None:
        """Until the last byte is out; then ``stream.record.outcome`` says how it ended."""
        self._reply.keep_alive()
        try:
            try:
                outcome = await self._answer()
                await self._reply.end()
                self.stream.record.outcome = outcome
            except ApiError as error:  # no engine has come
                await self._reply.refuse(error)
                await self._reply.end()
                self.stream.shed(error)
            except Exception:
                if self._reply.started and not self.writer.ended:  # too late for another answer
                    _log.exception("request %s failed", self.stream.request_id)
                    await self._reply.refuse(own_fault(self.stream.request_id))
                    await self._reply.end()
                raise
        finally:
            try:  # each, though it is cancelled once more while it waits for the other
                await self._reply.stop()
            finally:
                if self._tools is not None:
                    await self._tools.close()
                self._attempt = None  # which refers to this: nothing is left for the collector

    def client_is_gone(self, now_s: float) -> bool:
        """Whether the client's socket has taken nothing for too long."""
        heard_s = self.stream.arrival_s if self._attempt is None else self._attempt.heard_s
        idle_s = now_s - max(heard_s, self.stream.delivered_s)
        limit_s = self._settings.client_idle_s
        return (self.writer.sending and idle_s > limit_s) or self.stream.receipt.idle_s(now_s) > limit_s

    def look_at_reader(self, now_s: float) -> None:
        """Take note of what the client has acknowledged."""
        if self.stream.streams and not self.stream.receipt.is_settled:
            self.stream.sample(now_s, self._connection.unacknowledged_bytes())

    def report(self, report: ReaderReport, now_s: float) -> None:
        """The client says what its reader has been shown."""
        characters = self.stream.characters if self._attempt is None else self._attempt.characters
        shown = self.stream.tokens - self.stream.thought
        self.stream.receipt.report(report, now_s, shown / characters if characters else 0.0)

    @property
    def attempt(self) -> Attempt | None:
        """The last one."""
        return self._attempt

    def end_silent_upstream(self, now_s: float) -> None:
        """Close a stream of the engine that is dead, or has brought no token for too long while it was listened to."""
        if self._attempt is not None and not self.writer.writing:
            self._attempt.end_if_silent(now_s, self._can_move)

    def cut(self) -> None:
        """Break off with an error: this gateway has no more time."""
        self._cut = True
        self.writer.hurry()
        if self._attempt is not None:
            self._attempt.end("shutdown")
        if self._tools is not None:
            self._tools.cut()

    async def _answer(self) -> str:
        """In one round, or in as many as its tools need: how the last one ended."""
        while True:
            outcome = await self._try_replicas()
            if self._tools is None or outcome != "done" or await self._tools.next_body() is None:
                return outcome
            if self._cut:
                return await self._give_up(UpstreamError("shutdown", blame=Blame.NONE), time.monotonic())
            if self._has_all_tokens():
                outcome = await self._end_by_length()
                await self._tools.next_body()
                return outcome
            self._begin_round()

    def _begin_round(self) -> None:
        """On the replica that has the conversation's KV, if it still accepts streams."""
        self._order.sort(key=lambda replica: replica.name != self.stream.replica)
        self._tried.clear()
        self._attempt = None
        self._refusals = self._deaths = 0
        self._uncounted = self.stream.attempts

    async def _try_replicas(self) -> str:
        """Until one has answered or all have failed: "done", "error" (the request's) or "failed" (the engines')."""
        body = self.stream.body if self._tools is None else self._tools.body
        continuation: Continuation | None = None
        while True:
            if not (self._order and (left := self._candidates(time.monotonic()))):
                self._order = left = await self._context.wait_for_place(self.stream)
            replica = left[0]
            self._tried.add(replica)
            self._tried_routes.add(self.stream.route)
            last = self._refusals > 0 or len(left) == 1 or self._tries >= self._settings.retries
            self._attempt = Attempt(
                self._context, self.stream, self._reply, replica, continuation, answered=self._blame_suspects,
                accept_empty=last,
            )  # fmt: skip
            try:
                await self._attempt.run(body)
                return "done"
            except UpstreamError as error:
                now_s = time.monotonic()
                self._judge(replica, error, now_s)
                if _streamed_s(self._attempt) >= STEADY_S:
                    self._forget_tries_before(replica)
                if self._has_all_tokens():
                    return await self._end_by_length()
                rest = self._rest()
                if rest is None or not self._goes_on(error, now_s):
                    return await self._give_up(error, now_s)
                body = rest
                if self._tools is not None:
                    self._tools.again()
                elif self._reply.begun:
                    continuation = self._continuation()
                self._note_next_try(error)

    def _judge(self, replica: Upstream, error: UpstreamError, now_s: float) -> None:
        """Whose fault it is. What one replica refuses or fails and another answers is the first one's; what all refuse is the
        request's."""
        self._refusals += error.refused
        self._deaths += error.died
        self._uncounted += error.full_s is not None
        if error.full_s is not None:
            replica.full_until_s = now_s + error.full_s
            self._context.metrics.full.labels(replica.name).inc()
        elif error.blame is Blame.REPLICA:
            replica.failed(error.kind, now_s)
        elif error.blame is not Blame.NONE:
            self._suspects.append((replica, error))
        if error.full_s is None and not error.refused:
            self._context.metrics.failures.labels(replica.name).inc()

    def _blame_suspects(self) -> None:
        """A replica answers: those that did not are at fault."""
        now_s = time.monotonic()
        for replica, error in self._suspects:
            if error.refused:
                self._context.metrics.failures.labels(replica.name).inc()
            enough = error.blame is Blame.REPLICA_IF_OTHERS_ANSWER
            replica.failed(f"{error.kind} where another answers", now_s, enough=enough)
        self._suspects.clear()

    def _forget_tries_before(self, replica: Upstream) -> None:
        """A long answer may outlive any number of engines, and come back to one that has been restarted."""
        self._tried = {replica}
        self._uncounted = self.stream.attempts - 1

    @property
    def _tries(self) -> int:
        """On replicas that had room, in this row of failures."""
        return self.stream.attempts - self._uncounted

    def _candidates(self, now_s: float) -> list[Upstream]:
        """Replicas that have not been tried and accept streams: in the order of the routing policy, then those that have come
        since."""
        accepting = self._context.upstreams.accepting(now_s, self.stream.route)
        since = [replica for replica in accepting if replica not in self._order]
        placed = [r for r in self._order if r in accepting or r.holds(self.stream)]
        return [replica for replica in (*placed, *since) if replica not in self._tried]

    def _can_move(self, now_s: float) -> bool:
        """Whether another replica could go on with this answer now."""
        if self._tries > self._settings.retries or (self._reply.begun and self._rest() is None):
            return False
        return bool(self._candidates(now_s))

    def _goes_on(self, error: UpstreamError, now_s: float) -> bool:
        """Whether another replica is tried. Where its model has none left, a stream that has not begun may get one of another
        model, and waits for an engine while none accepts streams."""
        if self._tries > self._settings.retries or self._cut or self._deaths >= MAX_DEATHS:
            return False
        if error.refused and (self._refusals > 1 or (self._reply.begun and error.event)):
            return False
        if self._candidates(now_s):
            return True
        if not (self._reply.started or error.refused):
            order = self._context.place_elsewhere(self.stream, self._tried_routes, self._tried)
            if order:
                self._order = order
                return True
        return not (self._reply.begun or error.refused or self._context.upstreams.accepting(now_s, self.stream.route))

    def _note_next_try(self, error: UpstreamError) -> None:
        metrics, begun = self._context.metrics, self._reply.begun
        (metrics.resumes if begun else metrics.retries).inc()
        self.stream.moves += begun
        self.stream.retries += not begun
        event = names.EVENT_RESUME if begun else names.EVENT_RETRY
        self.stream.span.add_event(event, {names.REASON: error.kind})

    def _rest(self) -> dict[str, Any] | None:
        """What to ask another replica for, so that the reader does not notice; None where that cannot be."""
        stream = self.stream
        if self._tools is not None:
            return self._tools.body if self._tools.restartable else None
        if not stream.tokens:  # a role at most
            return stream.body
        if stream.log is not None and stream.only_thinks:  # what is not shown can be thought again
            return stream.body
        stream.compact()
        return (
            None
            if stream.log is None or stream.thought
            else continued(stream.body, stream.chat, stream.text, stream.tokens)
        )

    def _continuation(self) -> Continuation:
        stream = self.stream
        prompt_tokens = stream.record.prompt_tokens if stream.counted else None
        seam = StopSeam(stream.body, stream.text)
        return Continuation(stream.first_event, stream.tokens, prompt_tokens, seam)

    def _has_all_tokens(self) -> bool:
        """Whether a single answer has as many tokens as were asked for."""
        stream = self.stream
        alone = stream.endpoint.chunks and count_answers(stream.body) == 1
        if not stream.tokens or not self._reply.begun or not alone:
            return False
        return tokens_left(stream.body, stream.chat, stream.tokens) == 0

    async def _end_by_length(self) -> str:
        """Nothing is missing but the end."""
        stream = self.stream
        stream.usage = stream.own_usage()
        wanted = stream.asked.get("include_usage") and stream.counted and not stream.expectation.report
        closing = ending(stream.first_event, stream.chat, "length", stream.usage if wanted else None)
        await self._reply.events([(event, 0) for event in closing])
        return "done"

    async def _give_up(self, error: UpstreamError, now_s: float) -> str:
        """Say what is wrong: "error" (the request), "shed" (no engine has room) or "failed"."""
        fault = ApiError(
            502, f"the engine failed ({error.kind})", "upstream_error", code="upstream_error", reason="upstream",
            retry_after_s=RETRY_AFTER_FAILURE_S,
        )  # fmt: skip
        event, answer, begun = error.event, error.answer, self._reply.begun
        if self._deaths >= MAX_DEATHS:
            self._context.fatal.add(self.stream.body, now_s)
            fault, event, answer = admission.fatal(self._deaths, MEMORY_S), b"", None
        if self._reply.started and (begun or event):  # say it in the stream, and end without a finish reason
            await self.writer.write([(event or self.stream.endpoint.error_event(fault.status, fault.body), 0)])
        elif answer is not None:
            await self._reply.whole(*answer)
        else:
            await self._reply.refuse(fault)
        if error.refused and (event or (answer and not begun)):
            return "error"
        if error.full_s is not None and not begun:
            self.stream.reason = "engine_full"
            return "shed"
        telemetry.failed(self.stream.span, error.kind)
        return "failed"


def _streamed_s(attempt: Attempt) -> float:
    """From the first token to what was last heard."""
    return 0.0 if attempt.waited_s is None else attempt.heard_s - attempt.sent_s - attempt.waited_s
