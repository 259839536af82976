"""A request as it is asked for, and the record of how it was served: the same for a benchmark and for the simulator."""

from __future__ import annotations

import gzip
import json
import math
import zlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import MISSING, dataclass, field, fields
from pathlib import Path
from typing import Any, NamedTuple, overload

import numpy as np
import numpy.typing as npt

from andes_sglang.expectations import ReaderExpectation
from andes_sglang.qoe import MIN_STALL_S, THINK_TDS, QoETarget, ReaderStream

__all__ = [
    "RecordsError",
    "RequestRecord",
    "RequestSpec",
    "Score",
    "TokenTimes",
    "read_records",
    "readers_times",
    "score",
    "write_records",
]

Array = npt.NDArray[np.float64]
_RAMP = np.arange(1 << 16, dtype=np.float64)
"""Token numbers, made once: longer answers than 65,536 tokens make their own."""


@dataclass(frozen=True, slots=True)
class RequestSpec:
    """arrival_s from the start of the workload; lengths in tokens; blocks: prefix-block ids, equal id, equal prefix.

    max_tokens: the most the client allows, which is all that the engine knows of the answer's length beforehand; None:
    exactly ``output_tokens``, as the benchmark asks for. reason_tokens: the first of ``output_tokens``, a thought that the
    reader is not shown. weight, yields, expected_tokens, reasoning, returns_s: as in
    :class:`~andes_sglang.expectations.ReaderExpectation`. reader_class, tenant: groups that figures are told by.
    """

    arrival_s: float
    prompt_tokens: int
    output_tokens: int
    target: QoETarget = field(default_factory=QoETarget)
    session_id: str | None = None
    blocks: tuple[int, ...] = ()
    max_tokens: int | None = None
    weight: float = 1.0
    yields: bool = False
    expected_tokens: int | None = None
    reason_tokens: int = 0
    reasoning: str = "hidden"
    returns_s: float | None = None
    reader_class: str | None = None
    tenant: str | None = None

    @property
    def expectation(self) -> ReaderExpectation:
        """What the request says of its reader. Raises ``ValueError`` naming field and value."""
        return ReaderExpectation(
            self.target, self.weight, self.yields, self.expected_tokens, self.reasoning, self.returns_s
        )


MAX_ANSWER_TOKENS = 1_000_000
"""Of an answer in a file: each token has a time of its own in memory, and more is a count that was mistaken."""


class RecordsError(ValueError):
    """A file of records that cannot be read; the text names file and row."""


class Score(NamedTuple):
    """What one reader got. QoE in [0, 1]; effective_tokens: those that came while the reader could still use them."""

    qoe: float
    stalls: int
    stall_s: float
    longest_stall_s: float
    effective_tokens: float


NOTHING = Score(0.0, 0, 0.0, 0.0, 0.0)


def score(times_s: Array, arrival_s: float, target: QoETarget, thought_tokens: int = 0) -> Score:
    """The score of a finished stream from the delivery times of its tokens, shape (n,), in order; clock seconds.
    thought_tokens: generated before them and not shown.

    With ``u[k] = times_s[k] - ideal start - k / tds`` a token is digested at ``k / tds + max(0, u[0..k])``: the whole of
    :class:`andes_sglang.qoe.ReaderStream` is one running maximum. A token counts as effective while, as it arrives, the
    reader's buffer is below 10 % of the answer's length, falling linearly to nothing at 20 % (TokenFlow, arXiv 2510.02758).
    """
    n = len(times_s)
    if not n:
        return NOTHING
    pace = 1.0 / target.tds
    k = _RAMP[:n] if n <= len(_RAMP) else np.arange(n, dtype=np.float64)
    behind = times_s - k * pace
    behind -= target.start_s(arrival_s, thought_tokens)
    buffered = -behind[1:]
    qoe, stalls, stall_s, longest_s = 1.0, 0, 0.0, 0.0
    if behind.max() > 0.0:
        delay = np.maximum.accumulate(behind)
        np.maximum(delay, 0.0, out=delay)
        buffered += delay[:-1]
        waits = delay[1:] - delay[:-1]
        span = n * (float(delay[-1]) + n * pace) - 0.5 * n * n * pace
        qoe = min(1.0, max(0.0, 1.0 - float(delay.sum()) / span))
        stalls, stall_s = int(np.count_nonzero(waits > MIN_STALL_S)), float(delay[-1] - delay[0])
        longest_s = float(waits.max()) if n > 1 else 0.0
    buffered *= target.tds
    worth = 2.0 - 10.0 / n * np.minimum(buffered, k[1:])
    return Score(qoe, stalls, stall_s, longest_s, 1.0 + float(worth.clip(0.0, 1.0).sum()))


def readers_times(times_s: Array, holds: Sequence[tuple[float, float]] | None) -> Array:
    """``times_s``, seconds, shape (n,), as a clock shows them that has stood still: ``holds`` are when that was found and for
    how many seconds (:meth:`andes_sglang.qoe.ReaderStream.stand_still`); None: never."""
    if not holds:
        return times_s
    stood_s = np.zeros_like(times_s)
    for at_s, held_s in holds:
        stood_s[times_s > at_s] += held_s
    return times_s - stood_s


class TokenTimes(Sequence[tuple[float, int]]):
    """Deliveries of one token each, kept as an array of times, shape (tokens,), in seconds."""

    __slots__ = ("times_s",)

    def __init__(self, times_s: Array) -> None:
        self.times_s = times_s

    def __len__(self) -> int:
        return len(self.times_s)

    @overload
    def __getitem__(self, at: int) -> tuple[float, int]: ...
    @overload
    def __getitem__(self, at: slice) -> TokenTimes: ...
    def __getitem__(self, at: int | slice) -> tuple[float, int] | TokenTimes:
        return TokenTimes(self.times_s[at]) if isinstance(at, slice) else (float(self.times_s[at]), 1)


@dataclass(slots=True)
class RequestRecord:
    """One request as its reader saw it; times in seconds from the start of the replay. deliveries: (when, tokens), of those
    that were shown. output_tokens: of all; reason_tokens of them were generated before the first that was shown.
    reader_class, tenant, yields: as in :class:`RequestSpec`.

    What only an engine can tell is None where the record was made by a client: prefix_hit_tokens, of all the times it was
    prefilled; recomputed_tokens, prefilled again; preemptions, which the policy chose; retractions, which KV forced;
    holds, for how long its reader could not receive (:func:`readers_times`), which is not held against the engine.
    """

    index: int
    arrival_s: float
    sent_s: float
    prompt_tokens: int
    output_tokens: int
    ttft_target_s: float
    tds: float
    deliveries: Sequence[tuple[float, int]] = field(default_factory=list)
    end_s: float = 0.0
    error: str | None = None
    replica: int | None = None
    prefix_hit_tokens: int | None = None
    recomputed_tokens: int | None = None
    preemptions: int | None = None
    retractions: int | None = None
    reason_tokens: int = 0
    think_tds: float = THINK_TDS
    holds: Sequence[tuple[float, float]] | None = None
    reader_class: str | None = None
    tenant: str | None = None
    yields: bool = False

    @property
    def target(self) -> QoETarget:
        return QoETarget(self.ttft_target_s, self.tds, self.think_tds)

    def reader(self) -> ReaderStream:
        """The reader after everything that was delivered."""
        stream = ReaderStream(self.arrival_s, self.target)
        stream.think(self.reason_tokens)
        for at in self._readers_times().tolist():
            stream.deliver(at)
        return stream

    def _readers_times(self) -> Array:
        return readers_times(self.token_times_s, self.holds)

    @property
    def token_times_s(self) -> Array:
        """When each token came, shape (tokens,)."""
        if isinstance(self.deliveries, TokenTimes):
            return self.deliveries.times_s
        return np.repeat(np.array([at for at, _ in self.deliveries], dtype=np.float64), [n for _, n in self.deliveries])

    def score(self) -> Score:
        return score(self._readers_times(), self.arrival_s, self.target, self.reason_tokens)

    @property
    def qoe(self) -> float:
        return 0.0 if self.error else self.score().qoe

    @property
    def ttft_s(self) -> float:
        """From the arrival, not from the sending, to the first token that was shown; without any, the whole wait."""
        if isinstance(self.deliveries, TokenTimes) and len(self.deliveries):
            return float(self.deliveries.times_s[0]) - self.arrival_s
        return (self.deliveries[0][0] if self.deliveries else self.end_s) - self.arrival_s


def write_records(path: Path, records: Iterable[RequestRecord]) -> None:
    """One JSON object a line, gzipped; times in seconds, deliveries rounded to 0.1 ms."""
    with gzip.open(path, "wt", encoding="utf-8") as file:
        for r in records:
            row = {name: getattr(r, name) for name in RequestRecord.__dataclass_fields__}
            row["deliveries"] = [[round(at, 4), tokens] for at, tokens in r.deliveries]
            file.write(json.dumps({k: v for k, v in row.items() if v is not None}) + "\n")


def read_records(path: Path) -> list[RequestRecord]:
    """What :func:`write_records` wrote. Raises :class:`RecordsError`."""
    try:
        with gzip.open(path, "rt", encoding="utf-8") as file:
            lines = file.readlines()
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        raise RecordsError(f"{path}: cannot be read ({getattr(error, 'strerror', None) or error})") from None
    return [_record(f"{path}, row {number}", line) for number, line in enumerate(lines, start=1)]


def _record(place: str, line: str) -> RequestRecord:
    try:
        row = json.loads(line)
    except ValueError as error:
        raise RecordsError(f"{place}: not JSON ({error})") from None
    if not isinstance(row, dict):
        raise RecordsError(f"{place}: expected an object, got {row!r:.50}")
    for name in _NEEDED - row.keys():
        raise RecordsError(f"{place}, field {name}: is missing")
    for name, value in row.items():
        if name not in _EXPECTED:
            raise RecordsError(f"{place}, field {name}: unknown; known are {', '.join(sorted(_EXPECTED))}")
        what, holds = _EXPECTED[name]
        if not holds(value) and not (value is None and name in _MAY_BE_NONE):
            raise RecordsError(f"{place}, field {name}: expected {what}, got {value!r:.50}")
    if (tokens := sum(n for _, n in row["deliveries"])) > MAX_ANSWER_TOKENS:
        raise RecordsError(f"{place}: an answer of {tokens} tokens; expected at most {MAX_ANSWER_TOKENS}")
    record = RequestRecord(**{**row, "deliveries": [(float(at_s), n) for at_s, n in row["deliveries"]]})
    try:
        QoETarget(record.ttft_target_s, record.tds, record.think_tds)
    except ValueError as error:
        raise RecordsError(f"{place}: {error}") from None
    return record


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _are_pairs(value: Any, holds: Callable[[Any], bool]) -> bool:
    """[[seconds, what ``holds`` takes], ...]."""
    return isinstance(value, list) and all(
        isinstance(pair, list) and len(pair) == 2 and _is_number(pair[0]) and holds(pair[1]) for pair in value
    )


_KINDS: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "int": ("a whole number >= 0", _is_count),
    "float": ("a number", _is_number),
    "bool": ("true or false", lambda value: isinstance(value, bool)),
    "str": ("a text", lambda value: isinstance(value, str)),
    "Sequence[tuple[float, int]]": ("[[seconds, tokens], ...]", lambda value: _are_pairs(value, _is_count)),
    "Sequence[tuple[float, float]]": ("[[seconds, seconds], ...]", lambda value: _are_pairs(value, _is_number)),
}
"""What a field of a record holds, by its annotation: in words, and whether a value is that."""
_EXPECTED = {f.name: _KINDS[str(f.type).removesuffix(" | None")] for f in fields(RequestRecord)}
_MAY_BE_NONE = {f.name for f in fields(RequestRecord) if f.default is None}
_NEEDED = {f.name for f in fields(RequestRecord) if f.default is MISSING}
"""``deliveries`` among them, which a record of nothing has empty."""
