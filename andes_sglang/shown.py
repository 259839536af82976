"""Which tokens of a stream of events its reader is shown: of a model that thinks first, those of the answer. Pure.

    tokens = ShownTokens(hides=True)
    tokens.of(3, thought=True)                          # 0: what the model thinks
    tokens.of(4, text=True, counted_thought=5)          # 2: the end of the thought came with the answer

Gateway and benchmark count alike through it; QoE is of what is shown (:mod:`andes_sglang.qoe`).
"""

from __future__ import annotations

__all__ = ["ShownTokens"]


class ShownTokens:
    """``thought``: tokens so far that were not shown. hides: whether the reader is not shown what comes as a thought."""

    __slots__ = ("_answers", "_hides", "thought")

    def __init__(self, *, hides: bool) -> None:
        self._hides = hides
        self._answers = False
        self.thought = 0

    def of(self, new: int, *, thought: bool = False, text: bool = False, counted_thought: int | None = None) -> int:
        """Of ``new`` tokens of an event those that are shown. thought, text: what it holds. counted_thought: tokens of the
        whole thought so far as the engine counts them, the end of the thought, which no event shows, among them.

        What comes as text is shown, whatever the engine takes it for: its count is believed until the answer has begun.
        """
        if not self._hides or new <= 0:
            return new
        hidden = 0
        if thought and not text:
            hidden = new
        elif self.thought and not self._answers and counted_thought is not None:
            hidden = min(new - text, max(0, counted_thought - self.thought))
        self._answers = self._answers or text
        self.thought += hidden
        return new - hidden

    def at_end(self, new: int, hidden: int) -> int:
        """Of ``new`` tokens that no event has brought those that were shown, if ``hidden`` are said to be of the thought."""
        hidden = min(new, max(0, hidden)) if self._hides else 0
        self.thought += hidden
        return new - hidden
