"""The chunk that nearly every event of a stream is, read by comparing bytes: a third of the time that parsing takes. Pure.

    usual = UsualChunk.of(event, text, count, without)  # from one that was parsed
    usual.read(event)                                   # the next: its text, the tokens so far, and it without usage

What differs from the chunk it was made of in more than text, total and count is left to the parser: the first of every
second, in which ``created`` changes, escapes in the text, thoughts, tools, the end.
"""

from __future__ import annotations

import re

__all__ = ["UsualChunk"]

_TEXT = re.compile(rb'"(?:content|text)":"')
_USAGE = re.compile(
    rb',"usage":\{"prompt_tokens":\d+,"total_tokens":(\d+),"completion_tokens":(\d+)(\D.*\}\}\n\n)', re.S
)
"""As SGLang and vLLM write it, last."""
_CLOSINGS = (b"}\n\n", b',"usage":null}\n\n')
"""What follows the choices where usage was last and has been taken out."""
_COUNT = b',"completion_tokens":'


class UsualChunk:
    """What stays the same: up to the text, from there to the total, after the count. used: whether a chunk was like it."""

    __slots__ = ("_after", "_before", "_between", "_closed", "_closing", "used")

    def __init__(self, before: bytes, between: bytes, after: bytes, *, closed: int, closing: bytes) -> None:
        """closed: bytes of ``between`` before usage; closing: what comes there instead."""
        self._before, self._between, self._after = before, between, after
        self._closed, self._closing = closed, closing
        self.used = False

    @classmethod
    def of(cls, event: bytes, text: str, count: int, without: bytes) -> UsualChunk | None:
        """From an event whose only choice brings ``text``, whose usage counts ``count`` tokens, and which is ``without`` once
        usage is taken out. None where it is written in another way."""
        keys, usage, written = list(_TEXT.finditer(event)), _USAGE.search(event), text.encode(errors="replace")
        if len(keys) != 1 or usage is None or int(usage[2]) != count:
            return None
        start, until = keys[0].end(), usage.start()
        end = start + len(written)
        closing = without[until:]
        if event[start : end + 1] != written + b'"' or end > until:
            return None
        if without[:until] != event[:until] or closing not in _CLOSINGS:
            return None
        between = event[end : usage.start(1)]
        return cls(event[:start], between, usage[3], closed=until - end, closing=closing)

    def read(self, event: bytes) -> tuple[str, int, bytes] | None:
        """Its text, the tokens so far and the event without usage; None where it is another chunk."""
        before, after = self._before, self._after
        start = len(before)
        end = event.find(b'"', start)
        if not (event.startswith(before) and event.startswith(self._between, end) and event.endswith(after)):
            return None
        written = event[start:end]
        total, _, count = event[end + len(self._between) : -len(after)].partition(_COUNT)
        if b"\\" in written or not (total.isdigit() and count.isdigit()):
            return None
        try:
            text = written.decode()
        except UnicodeDecodeError:
            return None
        if not text.isprintable():  # some of which are no JSON
            return None
        self.used = True
        return text, int(count), event[: end + self._closed] + self._closing
