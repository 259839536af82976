"""How much of one stream its reader has really got: what the client's kernel has acknowledged, or less where the client says
that less was shown. Pure; times are clock seconds.

While a reader keeps up, nothing is written down but one point for each sample: what counts as delivered is what was written
to its socket. A reader has fallen behind when what was there at one sample is not acknowledged at the next. From then on its
timeline (``received``) is that of what was acknowledged, beginning with the last moment at which all was.

The engine, and the forecast of this gateway, are told of a reader whom this leaves without text (``told_tokens``): such a
reader's clock stands still in ``written``, so that no engine has to make up for it. Where the way is long, a reader has asked
before the request came and has each token after it was written: seen from here, it has asked a round trip earlier.
"""

from __future__ import annotations

import math
from collections import deque
from typing import NamedTuple

from andes_api.reader_report import ClientClock, ReaderReport
from andes_sglang.qoe import QoETarget, ReaderStream
from andes_sglang.reception import has_until_s

__all__ = ["SAMPLE_INTERVAL_S", "Receipt"]

SAMPLE_INTERVAL_S = 0.5
"""Seconds between looks at what is acknowledged: more than a round trip."""
MIN_ROUND_TRIP_S = 0.01
"""A shorter way to the reader and back is not worth a timeline of its own."""
MAX_IN_FLIGHT_BYTES = 4096
"""What is acknowledged a moment later on any link that is not slow: at the end of a stream more is waited for."""
MIN_LACK_S = 1.0
"""Seconds of reading that a reader must lack of what was sent before the engine is told (our choice)."""
TOLD_FOR_S = 15.0
"""Seconds for which the engine is kept informed after a reader has last lacked something: what was slow may be again."""
REPORT_S, HIDDEN_REPORT_S = 15.0, 300.0
"""Seconds for which a report counts; browsers hold back those of a hidden page."""
MAX_SPREAD = 16
"""Pieces that the tokens of an interval are spread over."""


class _Point(NamedTuple):
    """At one sample: all bytes and tokens written, and the reader's timeline then."""

    written_bytes: int
    tokens: int
    reader: ReaderStream


class Receipt:
    """written: the timeline of what was written to the connection. round_trip_s: to the reader and back; 0 where it is next
    to nothing. written_bytes: with what is around each piece. received:
    the timeline of what has arrived, once the two differ. late: whether the client's kernel owes an acknowledgement. behind:
    whether the reader lacks something that was written, by what is known; behind_s: for how long in all. first_s: when the
    first token was received; of interest once ``received`` is there. told_tokens: how many a reader has who lacks text to
    read; None: no reader lacks it for what lies between."""

    def __init__(self, arrival_s: float, target: QoETarget) -> None:
        self._asked = arrival_s, target
        self.written = ReaderStream(arrival_s, target)
        self.round_trip_s = 0.0
        self._own: ReaderStream | None = None
        self.received: ReaderStream | None = None
        self.written_bytes = 0
        self.late = self.behind = False
        self.behind_s = 0.0
        self.first_s: float | None = None
        self.told_tokens: int | None = None
        self._points = deque([_Point(0, 0, self.written.copy())])
        self._acknowledged_bytes = self._acknowledged_tokens = 0
        self._progress_s = self._sampled_s = arrival_s
        self._lacked_s = -math.inf
        self._shown: ReaderStream | None = None
        self._shown_s = self._reported_s = arrival_s
        self._visible = True
        self._clock = ClientClock()

    @property
    def reader(self) -> ReaderStream:
        """The timeline that counts."""
        return self.received or self._own or self.written

    def comes_over(self, round_trip_s: float) -> None:
        """The reader is so far away. To be said before anything is written."""
        if round_trip_s >= MIN_ROUND_TRIP_S:
            arrival_s, target = self._asked
            self.round_trip_s = round_trip_s
            self._asked = arrival_s - round_trip_s, target
            self._own = ReaderStream(*self._asked)
            self._points = deque([_Point(0, 0, self._own.copy())])

    def tool_ran(self, since_s: float, until_s: float) -> None:
        """No engine had this answer to write meanwhile. Its reader has waited; who serves it has not let it wait."""
        if self._own is None and self.received is None:
            self._own = self.written.copy()
        dry_at_s = self.written.start_s + self.written.end_s
        self.written.stand_still(dry_at_s + until_s - max(since_s, dry_at_s))

    @property
    def is_settled(self) -> bool:
        """Whether a sample could change nothing."""
        return self._acknowledged_bytes == self.written_bytes and not self.behind and self._shown is None

    def delivered(self, now_s: float, tokens: int) -> None:
        """``tokens`` more were written to the connection."""
        self.written.deliver(now_s, tokens)
        if self._own is not None:
            self._own.deliver(now_s, tokens)
        if self.received is not None and not self.behind:
            self.received.deliver(now_s, tokens)

    def think(self, tokens: int) -> None:
        """``tokens`` more were generated that are not shown."""
        self.written.think(tokens)
        if self._own is not None:
            self._own.think(tokens)

    def wrote(self, size: int) -> None:
        """A piece of ``size`` bytes was written; around it are its length in hexadecimal digits and two line ends."""
        self.written_bytes += size + (size.bit_length() + 3) // 4 + 4

    def owes(self, unacknowledged_bytes: int) -> bool:
        """Whether more is on its way than a moment explains."""
        return self.late or unacknowledged_bytes > MAX_IN_FLIGHT_BYTES

    def idle_s(self, now_s: float) -> float:
        """Seconds for which the client has acknowledged none of the tokens, or comments, that it has been sent."""
        return now_s - self._progress_s if self.late else 0.0

    def report(self, report: ReaderReport, now_s: float, tokens_per_character: float) -> None:
        """The client says what has been shown. A report that is older than one before it changes nothing."""
        at_s, tokens = self._clock.seconds_here(report.at_s, now_s), report.tokens
        if report.characters is not None:
            tokens = round(report.characters * tokens_per_character)
        shown = self._shown if self._shown is not None and self._shown.delivered else self._unread()
        if at_s < self._shown_s or (tokens is not None and tokens < shown.delivered):
            return
        new = 0 if tokens is None else min(tokens, self.written.delivered) - shown.delivered
        since_s = self._shown_s if shown.delivered else at_s  # when the first were shown is not known better
        _spread(shown, new, since_s - self.round_trip_s, at_s - self.round_trip_s)
        self._shown, self._shown_s, self._reported_s = shown, at_s, now_s
        if report.visible is not None:
            self._visible = report.visible

    def sample(self, now_s: float, unacknowledged_bytes: int) -> None:
        """Of what was written so many bytes are not acknowledged."""
        acknowledged = max(0, self.written_bytes - unacknowledged_bytes)
        points = self._points
        while len(points) > 1 and points[1].written_bytes <= acknowledged:
            points.popleft()
        self.late = len(points) > 1
        tokens = self._tokens_at(acknowledged)
        if tokens > self._acknowledged_tokens or not self.late:
            self._progress_s = now_s
        self._acknowledged_bytes, self._acknowledged_tokens = acknowledged, tokens
        shown = self._fresh_report(now_s)
        if shown is not None and shown.delivered < tokens and self._lacks(shown.delivered, self._shown_s, now_s):
            self._receive_shown(now_s, shown)
        else:
            self._receive(now_s, tokens)
            if not self._lacks(tokens if self.late else self.written.delivered, now_s, now_s):
                self.told_tokens = None
        self._sampled_s = now_s
        if self.written_bytes != points[-1].written_bytes:
            points.append(_Point(self.written_bytes, self.written.delivered, self.reader.copy()))

    def _tokens_at(self, acknowledged: int) -> int:
        """Tokens in so many bytes; between two samples, in proportion."""
        first = self._points[0]
        after = self._points[1] if len(self._points) > 1 else None
        end_bytes, end_tokens = after[:2] if after else (self.written_bytes, self.written.delivered)
        if acknowledged >= end_bytes or end_bytes <= first.written_bytes:
            return end_tokens
        share = (acknowledged - first.written_bytes) / (end_bytes - first.written_bytes)
        return first.tokens + int(share * (end_tokens - first.tokens))

    def _fresh_report(self, now_s: float) -> ReaderStream | None:
        """What has been shown, as far as it is still known."""
        return self._shown if now_s - self._reported_s <= (REPORT_S if self._visible else HIDDEN_REPORT_S) else None

    def _lacks(self, tokens: int, as_of_s: float, now_s: float) -> bool:
        """Whether a reader with ``tokens`` at ``as_of_s`` is left without text that was sent; then the engine is told."""
        written = self.written
        until_s = has_until_s(as_of_s, written.delivered - tokens, written.tds)
        lack_s = until_s - written.start_s - written.end_s
        hidden = not self._visible and self._fresh_report(now_s) is not None
        lacked_lately = self.told_tokens is not None and now_s - self._lacked_s < TOLD_FOR_S
        if lack_s <= MIN_LACK_S and not lacked_lately and not hidden:
            return False
        if lack_s > 0 or hidden:
            self._lacked_s = now_s
        written.stand_still(until_s)
        self.told_tokens = tokens
        return True

    def _receive_shown(self, now_s: float, shown: ReaderStream) -> None:
        """By its report the reader has less than was acknowledged."""
        if not self._visible:
            shown.stand_still(now_s)
        self._fall_behind(now_s, shown)
        self.received = shown.copy()
        self.first_s = self._shown_s if self.first_s is None and shown.delivered else self.first_s

    def _receive(self, now_s: float, tokens: int) -> None:
        """As acknowledged."""
        if self.late:
            self._fall_behind(now_s, self._points[0].reader)
        elif self.behind:
            self.behind = False
        else:
            return
        received = self.received
        if (
            received is not None
            and (new := (tokens if self.behind else self.written.delivered) - received.delivered) > 0
        ):
            self.first_s = now_s if self.first_s is None else self.first_s
            _spread(received, new, self._sampled_s - self.round_trip_s, now_s - self.round_trip_s)

    def _fall_behind(self, now_s: float, since: ReaderStream) -> None:
        self.behind_s += now_s - self._sampled_s
        self.behind = True
        if self.received is None:
            self.received = since.copy() if since.delivered else self._unread()
            self.first_s = -math.inf if since.delivered else None

    def _unread(self) -> ReaderStream:
        """One who has read nothing, and waits for the answer since the model has thought."""
        reader = ReaderStream(*self._asked)
        reader.think(self.written.thought_tokens)
        return reader


def _spread(reader: ReaderStream, tokens: int, since_s: float, until_s: float) -> None:
    """``tokens`` reach ``reader`` somewhere in that interval."""
    pieces = min(tokens, MAX_SPREAD)
    for piece in range(pieces):
        there = tokens * (piece + 1) // pieces - tokens * piece // pieces
        reader.deliver(since_s + (until_s - since_s) * (piece + 0.5) / pieces, there)
