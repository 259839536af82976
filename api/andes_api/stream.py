"""One request while it is open: what was asked, what its reader has, how it ended."""

from __future__ import annotations

import math
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from opentelemetry.trace import INVALID_SPAN, Span

from andes_api import names
from andes_api.demand import DemandRecord, Served
from andes_api.endpoints import CHAT, RESPONSES, Endpoint
from andes_api.errors import ApiError
from andes_api.expectations import ANONYMOUS, ResolvedExpectation
from andes_api.history import Kind
from andes_api.models import ModelRoute
from andes_api.prompts import Prompt
from andes_api.receipt import Receipt
from andes_api.settings import TenantSettings
from andes_api.tools import ToolSettings
from andes_sglang.lengths import PRIOR_MEDIAN_TOKENS
from andes_sglang.qoe import MAX_TDS, QoETarget, ReaderStream
from andes_sglang.resume import text_of
from andes_sglang.stream_forecast import IncomingStream, StreamForecast

__all__ = ["Stream", "count_answers"]

COMPACT_EVENTS = 64
"""Events kept as they came before they are turned into text: about two seconds of reading."""
MAX_SPAN_STALLS = 32
"""Stalls of one stream that become span events; spans keep 128 events (OpenTelemetry's default)."""


@dataclass(eq=False, slots=True)
class Stream:
    """A request and its reader. Times are of the monotonic clock, in seconds.

    tokens: what engines have produced for it, ``thought`` of them before the answer and not shown; ``receipt``: what of the
    others its reader has; earlier_tokens: in rounds before this one; later_prompt_tokens: of the prompts of rounds after the
    first. characters: of the answer, by the attempts that are over. report_id: by which its client reports of the reader.
    tools: those that run here; ran: what did; returns_s: seconds from the end of this round to the next, should it call one.
    log: events not yet turned into text; None where the answer could not be continued elsewhere.
    fallback: why another model than the one asked for answers.
    """

    endpoint: Endpoint
    body: dict[str, Any]
    expectation: ResolvedExpectation
    tenant: TenantSettings | None
    headers: Mapping[str, str]
    arrival_s: float
    prompt: Prompt
    prompt_tokens: float
    record: DemandRecord
    route: ModelRoute = field(default_factory=ModelRoute)
    fallback: str | None = None
    limits: Mapping[str, str] = field(default_factory=dict)  # headers: what is left of its tenant's
    span: Span = INVALID_SPAN
    request_id: str = ""
    asked: dict[str, Any] = field(default_factory=dict)
    expected: StreamForecast | None = None
    first_s: float | None = None  # from its arrival to the first token that an engine produced
    tokens: int = 0
    characters: int = 0
    report_id: str = field(default_factory=lambda: uuid.uuid4().hex)
    thought: int = 0
    expected_thought: float = 0.0
    expected_answer: float = PRIOR_MEDIAN_TOKENS
    thinking_s: float | None = None  # when the first token of a thought came
    earlier_tokens: int = 0
    later_prompt_tokens: int = 0
    tools: Mapping[str, ToolSettings] = field(default_factory=dict)
    ran: list[dict[str, Any]] = field(default_factory=list)
    returns_s: float | None = None
    attempts: int = 0
    retries: int = 0  # attempts after the first, before it had begun
    moves: int = 0  # and after it had
    status: int = 0
    replica: str = ""
    delivered_s: float = 0.0
    counted: bool = False  # whether an engine has said how long the prompt is
    first_event: bytes = b""
    reason: str | None = None  # why it was refused
    answer_id: str | None = None  # as its engine calls it
    unfinished: bool = False  # whether its engine goes on with the answer in the background
    said: dict[str, Any] = field(default_factory=dict)  # attributes of the answer, for its spans
    usage: dict[str, Any] | None = None  # of the whole stream, as its last engine said
    batched: bool = False  # a line of a batch: no connection waits, and it is queued again instead of held
    log: list[bytes] | None = None
    text: str = ""
    receipt: Receipt = field(init=False)

    def __post_init__(self) -> None:
        self.request_id = self.headers.get("x-request-id") or uuid.uuid4().hex
        if self.streams and self.endpoint.chunks:
            self.asked = self.body.get("stream_options") or {}
        # Several answers in one stream are read side by side: their tokens together against as many times the speed.
        target = self.expectation.target
        answers = count_answers(self.body)
        tds, think_tds = (min(MAX_TDS, speed * answers) for speed in (target.tds, target.think_tds))
        fixed = target.think_tds == math.inf
        self.receipt = Receipt(self.arrival_s, QoETarget(target.ttft_s, tds, math.inf if fixed else think_tds))

    @property
    def streams(self) -> bool:
        return self.record.stream

    @property
    def reader(self) -> ReaderStream:
        """By what was written to its socket, as the engines serve it: its clock stands still while it cannot receive."""
        return self.receipt.written

    @property
    def yields(self) -> bool:
        """Whether no reader waits for it."""
        return self.expectation.reader.yields

    @property
    def path(self) -> str:
        return self.endpoint.path

    @property
    def chat(self) -> bool:
        return self.endpoint is CHAT

    @property
    def hides_thought(self) -> bool:
        """Whether its reader is not shown what the model thinks before it answers."""
        return self.expectation.reader.hides_reasoning

    @property
    def hidden_thought(self) -> int | None:
        """Tokens that were generated and not shown; None: nothing was to be hidden."""
        return self.thought if self.hides_thought else None

    @property
    def only_thinks(self) -> bool:
        """Whether all that has come is a thought that is not shown: another engine may start over."""
        return self.thought > 0 and self.thought == self.tokens

    @property
    def kind(self) -> Kind:
        """Model, empty while no engine has said which there are, and class."""
        return self.record.model or "", self.expectation.class_name

    @property
    def earlier_answer(self) -> str | None:
        """The response that this one follows."""
        earlier = self.body.get("previous_response_id") if self.endpoint is RESPONSES else None
        return earlier if isinstance(earlier, str) else None

    @property
    def tenant_name(self) -> str:
        return self.tenant.name if self.tenant else ANONYMOUS

    @property
    def incoming(self) -> IncomingStream:
        """As routing and admission see it before it has a place."""
        expects = self.expectation
        return IncomingStream(
            self.prompt_tokens, expects.target, expects.weight, self.prompt.key,
            self.expected_thought if self.hides_thought else 0.0, expects.reader.expected_tokens or self.expected_answer,
        )  # fmt: skip

    def forecast_headers(self) -> dict[str, str]:
        """Milliseconds from its arrival to its first token, as they were forecast when it got its place."""
        wait = None if self.expected is None else self.expected.wait
        return {} if wait is None else {"x-andes-wait-ms": f"{1000 * wait.ttft_s:.0f}"}

    def model_headers(self) -> dict[str, str]:
        """Who answers, why where that is not who was asked, and what its answers are worth where it is of a ladder."""
        route = self.route
        if route.model is None:
            return {}
        name = route.model if route.adapter is None else f"{route.model}:{route.adapter}"
        said = {"x-andes-model": name}
        if self.record.quality is not None:
            said["x-andes-quality"] = f"{self.record.quality:g}"
        return said | ({"x-andes-fallback": self.fallback} if self.fallback else {})

    @property
    def tpot_s(self) -> float | None:
        """Mean seconds per token after the first, of what ended well; None where there is none."""
        n, ttft_s = self.receipt.reader.delivered, self.record.ttft_s
        if ttft_s is None or n < 2 or self.record.outcome != "done":
            return None
        return (self.delivered_s - self.arrival_s - ttft_s) / (n - 1)

    @property
    def read_tokens(self) -> int:
        """Tokens of the prompts of all rounds."""
        return self.record.prompt_tokens + self.later_prompt_tokens

    def own_usage(self) -> dict[str, int]:
        """Usage of this round of the answer so far, by our own count."""
        prompt, tokens = self.record.prompt_tokens, self.tokens - self.earlier_tokens
        return {"prompt_tokens": prompt, "total_tokens": prompt + tokens, "completion_tokens": tokens}

    def routed(self, route: ModelRoute) -> None:
        """``route`` is what it asks for."""
        self.route = route
        self.record.model, self.record.adapter = route.model, route.adapter

    def think(self, tokens: int, now_s: float) -> None:
        """An engine has produced ``tokens`` more that its reader is not shown."""
        if self.thinking_s is None:
            self.thinking_s = now_s
        self.tokens += tokens
        self.thought += tokens
        self.receipt.think(tokens)
        self.record.reason_tokens = self.thought

    def answered_by(self, route: ModelRoute, quality: float | None) -> None:
        """Engines of ``route`` are asked; quality: of a rung of the ladder that it asks for, None: it is none."""
        self.route = route
        if quality is not None:
            self.record.model, self.record.quality = route.model, quality

    def delivered(self, now_s: float, tokens: int) -> None:
        """The reader's socket has taken ``tokens`` more tokens."""
        self.delivered_s = now_s
        receipt, reader = self.receipt, self.receipt.written
        if not reader.delivered:
            self.record.ttft_s = now_s - self.arrival_s
            if self.thinking_s is not None:
                self.record.thinking_s = now_s - self.thinking_s
        stalls, stall_s = reader.stalls, reader.stall_s
        receipt.delivered(now_s, tokens)
        if reader.stalls != stalls and reader.stalls <= MAX_SPAN_STALLS:
            self.span.add_event(names.EVENT_STALL, {names.STALL_SECONDS: reader.stall_s - stall_s})

    def sample(self, now_s: float, unacknowledged_bytes: int) -> None:
        """Of what was written to the reader's socket so many bytes are not acknowledged."""
        receipt, before = self.receipt, self.receipt.reader.delivered
        receipt.sample(now_s, unacknowledged_bytes)
        if receipt.received is None:
            return
        if receipt.first_s is None:
            self.record.ttft_s = None
        elif receipt.first_s > self.arrival_s and not before:
            self.record.ttft_s = receipt.first_s - self.arrival_s
        if receipt.received.delivered != before:
            self.delivered_s = now_s

    def keep(self, events: list[bytes]) -> None:
        """Keep what was passed on, to continue from it."""
        if self.log is not None:
            self.log += events
            if len(self.log) >= COMPACT_EVENTS:
                self.compact()

    def compact(self) -> None:
        """Turn what was kept into text."""
        if self.log is None:
            return
        text = text_of(self.log)
        if text is None:
            self.log = None
        else:
            self.text += text
            self.log = []

    def report(self, now_s: float) -> dict[str, Any]:
        """What its reader got, for the caller who asks; docs/gateway.md describes every field."""
        reader, ttft_s, target = self.receipt.reader, self.record.ttft_s, self.expectation.target
        return {
            "class": self.expectation.class_name,
            "qoe": round(reader.final_qoe(), 4) if self.streams else None,
            "served_qoe": round(self.reader.final_qoe(), 4) if self.streams else None,
            "behind_s": round(self.receipt.behind_s, 4),
            "round_trip_s": round(self.receipt.round_trip_s, 4),
            "tokens": reader.delivered if self.streams else self.tokens,
            "duration_s": round(now_s - self.arrival_s, 4),
            "ttft_s": None if ttft_s is None else round(ttft_s, 4),
            "thought_tokens": max(self.thought, reader.thought_tokens),  # calls before the first word, too
            "thinking_s": None if self.record.thinking_s is None else round(self.record.thinking_s, 4),
            "stalls": reader.stalls,
            "stall_s": round(reader.stall_s, 4),
            "longest_stall_s": round(reader.longest_stall_s, 4),
            "ttft_target_s": target.ttft_s,
            "tds": target.tds,
            **({"tools": self.ran} if self.tools else {}),
        }

    @property
    def wait_outcome(self) -> str | None:
        """Where its wait for a first token, shown or not, lay beside the bounds of the forecast; None where either is not
        known."""
        wait = None if self.expected is None else self.expected.wait
        if wait is None or self.first_s is None or self.retries:
            return None
        return "below" if self.first_s < wait.low_s else "above" if self.first_s > wait.high_s else "within"

    def _forecast(self) -> dict[str, Any]:
        """What was forecast, and what came of it, for the log."""
        if self.expected is None or (wait := self.expected.wait) is None:
            return {}
        return {
            "forecast_wait_s": round(wait.ttft_s, 4),
            "forecast_wait_low_s": round(wait.low_s, 4),
            "forecast_wait_high_s": round(wait.high_s, 4),
            "forecast_qoe": round(self.expected.qoe, 4),
            "waited_s": None if self.first_s is None else round(self.first_s, 4),
        }

    def line(self, duration_s: float) -> dict[str, Any]:
        """Of the access log."""
        line = {
            "request_id": self.request_id,
            "tenant": self.tenant_name,
            "path": self.path,
            "asked_model": str(self.body.get("model", ""))[:100],
            "replica": self.replica,
            "attempts": self.attempts,
            "status": self.status,
            "duration_s": round(duration_s, 4),
            "stalls": self.receipt.reader.stalls,
            "stall_s": round(self.receipt.reader.stall_s, 3),
            "behind_s": round(self.receipt.behind_s, 3),
            **self._forecast(),
            **self.record.to_dict(),
        }
        return line if self.reason is None else {**line, "reason": self.reason}

    def shed(self, error: ApiError) -> None:
        """It is refused with ``error``."""
        self.status, self.reason = error.status, error.reason
        self.record.outcome = "shed" if error.status in (429, 503) else "error"

    def score(self, now_s: float) -> float | None:
        """QoE as it counts in the end: 0 for what was refused or broken off by the gateway or an engine; what its reader had,
        when the reader left; None where nothing was streamed."""
        return self._score(self.receipt.reader, now_s)

    def served(self, now_s: float) -> Served | None:
        """The same without what lies between the socket and the reader, and what it waited: what engines can change. A first
        token that has not come counts once the reader expected it."""
        written, outcome = self.receipt.written, self.record.outcome
        qoe = self._score(written, now_s)
        if qoe is None:
            return None
        ttft_s = self.record.ttft_s
        if outcome in ("shed", "failed"):
            ttft_s = math.inf
        elif ttft_s is None and (outcome != "open" or now_s - self.arrival_s > self.expectation.target.ttft_s):
            ttft_s = now_s - self.arrival_s
        return Served(qoe, ttft_s, written.stalled_s(now_s) if outcome == "open" else written.stall_s)

    def _score(self, reader: ReaderStream, now_s: float) -> float | None:
        if not self.streams:
            return None
        outcome = self.record.outcome
        if outcome in ("shed", "failed"):
            return 0.0
        if outcome in ("open", "abandoned"):
            return reader.qoe_at(now_s)
        return reader.final_qoe() if reader.delivered or self.thought else None


def count_answers(body: Mapping[str, Any]) -> int:
    """How many answers a request asks for: ``n`` for each of its prompts."""
    n, prompt = body.get("n"), body.get("prompt")
    prompts = len(prompt) if isinstance(prompt, list) and prompt and not isinstance(prompt[0], int) else 1
    return (n if isinstance(n, int) and n > 1 else 1) * prompts
