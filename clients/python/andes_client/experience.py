"""What a reader got: QoE, time to the first token, stalls, from when text was shown. Pure: times are arguments."""

from __future__ import annotations

from dataclasses import dataclass, field

__all__ = ["Experience", "Timeline", "count_tokens"]

MIN_STALL_S = 1e-6
"""Shorter waits are rounding of the clock."""
LONGEST_TOKEN = 12
"""Characters: a longer piece of text counts as several tokens (our choice; the exact count comes with ``usage``)."""
CHARACTERS_PER_TOKEN = 4
"""Of English text, roughly."""


def count_tokens(text: str) -> int:
    """Of one piece of a stream: one, unless it is long."""
    return 1 if len(text) <= LONGEST_TOKEN else int(len(text) / CHARACTERS_PER_TOKEN + 0.5)


@dataclass(frozen=True)
class Experience:
    """qoe: in [0, 1], 0 when nothing came. ttft_s: seconds from the question to the first text shown, None when nothing came.
    stalls: how often the reader had to wait inside the answer, for stall_s seconds in all and longest_stall_s at most."""

    qoe: float
    tokens: int
    ttft_s: float | None
    stalls: int
    stall_s: float
    longest_stall_s: float

    def __str__(self) -> str:
        if self.ttft_s is None:
            return "QoE 0.00: nothing came"
        stalls = f"{self.stalls} stalls of {self.stall_s:.1f} s in all" if self.stalls else "no stall"
        return f"QoE {self.qoe:.2f}: first text after {self.ttft_s:.2f} s, {stalls}, {self.tokens} tokens"


@dataclass
class Timeline:
    """When text was shown to one reader. asked_s: when the question was asked, on the clock of :meth:`show`."""

    asked_s: float
    _shown: list[tuple[float, int]] = field(default_factory=list)

    def show(self, now_s: float, tokens: int) -> None:
        """``tokens`` > 0 more are shown at ``now_s``. A clock that jumps back counts as one that stands."""
        last_s = self._shown[-1][0] if self._shown else self.asked_s
        self._shown.append((max(now_s, last_s), tokens))

    @property
    def tokens(self) -> int:
        """As counted piece by piece."""
        return sum(tokens for _, tokens in self._shown)

    def experience(self, *, first_token_s: float, reading_speed: float, tokens: int | None = None) -> Experience:
        """For a reader who expects the first token after ``first_token_s`` seconds and reads ``reading_speed`` tokens/s.

        tokens: exact number of those shown, as the server counts them; they are spread over the pieces in proportion.
        QoE is that of Andes (arXiv 2404.16283, version 2, section 3): a token is digested when it is there and those before
        it are; the area under the digested curve over the one expected, until the last token is digested.
        """
        if not self._shown:
            return Experience(0.0, 0, None, 0, 0.0, 0.0)
        start_s, pace_s = self.asked_s + first_token_s, 1.0 / reading_speed
        scale = (tokens or self.tokens) / self.tokens
        done, counted, end_s, lateness_s, waits_s = 0, 0, 0.0, 0.0, []
        for at_s, piece in self._shown:
            counted += piece
            new = int(counted * scale + 0.5) - done
            if new <= 0:
                continue
            digest_s = max(at_s - start_s, end_s)
            if done and digest_s - end_s > MIN_STALL_S:
                waits_s.append(digest_s - end_s)
            lateness_s += new * (digest_s - done * pace_s)
            end_s = digest_s + new * pace_s
            done += new
        qoe = 1.0 - lateness_s / (done * end_s - done * done * pace_s / 2)
        return Experience(
            qoe=min(1.0, max(0.0, qoe)),
            tokens=done,
            ttft_s=self._shown[0][0] - self.asked_s,
            stalls=len(waits_s),
            stall_s=float(sum(waits_s)),
            longest_stall_s=max(waits_s, default=0.0),
        )
