"""Costs of an engine from what its clients saw: a streaming engine shows each of its iterations.

Tokens of one iteration reach the clients together, so deliveries fall into clusters; the time from one to the next is what
an iteration took, and the cluster says of how many requests, over how much context, or of which prompts. No prefix may have
been cached and no request preempted: use records of unrelated prompts under stock scheduling.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from andes_sglang.latency import non_negative
from andes_sglang.request import RequestRecord
from andes_sglang.sim.engine import Costs

__all__ = ["CostFit", "FitError", "TooFewError", "fit_costs", "host_pace"]

Array = npt.NDArray[np.float64]
MIN_SAMPLES = 30
"""Iterations of a kind below which four coefficients are not fitted to them (our choice)."""
MIN_GAP_S, PREFILL_GAP_S = 1e-3, 3e-3
"""Seconds between deliveries of two iterations: shorter than any decode step, longer than the time over which a client sees
the tokens of one; and between first tokens of two prefills (our choice)."""


class FitError(ValueError):
    """Too little was seen to tell what an iteration costs; the text says what is missing."""


class TooFewError(FitError):
    """Iterations of a kind: more of the same load would show more of them."""


class CostFit(NamedTuple):
    """costs, and the median relative error of a decode step and of a prefill with the numbers they were fitted to.
    sends_late: results of an iteration are sent when the next one has ended (:class:`~andes_sglang.sim.engine.Overlap`).
    entry_s: what the first token of a request that found the engine idle took beside its iterations; 0 if none did."""

    costs: Costs
    decode_error: float
    decode_samples: int
    prefill_error: float
    prefill_samples: int
    sends_late: bool
    entry_s: float = 0.0


@dataclass(slots=True)
class _Iterations:
    """Columns, a row per iteration. busy: a request was being served all the time since the one before it."""

    at_s: Array
    decoding: Array
    context_tokens: Array
    prefilling: Array
    new_tokens: Array
    pairs: Array
    busy: npt.NDArray[np.bool_]


def _deliveries(records: Sequence[RequestRecord]) -> list[tuple[float, int, int, int, bool]]:
    """In order of time: (when, which request, tokens before, tokens, whether it is the last)."""
    deliveries: list[tuple[float, int, int, int, bool]] = []
    for index, record in enumerate(records):
        sent = np.cumsum([0, *(n for _, n in record.deliveries)]).tolist()
        last = len(record.deliveries) - 1
        for k, (at, n) in enumerate(record.deliveries):
            deliveries.append((at, index, sent[k], n, k == last))
    if not deliveries:
        raise TooFewError("no deliveries to fit costs to")
    return sorted(deliveries)


class _Scan:
    """The state of :func:`_iterations` between deliveries. rows: one an iteration, columns as in :class:`_Iterations`."""

    def __init__(self, records: Sequence[RequestRecord], chunk_tokens: int) -> None:
        self.rows: list[list[float]] = []
        self._prompt_tokens = [record.prompt_tokens for record in records]
        self._chunk_tokens = chunk_tokens
        self._to_come = sorted(((r.sent_s, index) for index, r in enumerate(records)), reverse=True)
        self._waiting: dict[int, int] = {}
        self._begun: set[int] = set()
        self._served: set[int] = set()
        self._overfull = False
        self._members: set[int] = set()
        self._known: set[int] = set()
        self._firsts = False
        self._opened = 0
        self._before_s = -np.inf

    def add(self, at: float, index: int, k: int, n: int, *, ends: bool) -> None:
        """``n`` tokens after ``k`` others came to request ``index``."""
        if self._begins_iteration(at, index, k):
            self._begin_iteration(at, k)
        self._members.add(index)
        self._before_s = at
        row, prompt = self.rows[-1], self._prompt_tokens[index]
        if k == 0:
            self._opened += 1
            self._served.add(index)
            self._waiting.pop(index, None)
            row[6] = row[6] and not self._overfull and index not in self._begun
            row[3] += 1
            row[4] += prompt
            row[5] += prompt * prompt / 2
        else:
            row[1] += 1
            row[2] += prompt + k
        row[6] = row[6] and n == 1 and (k > 0 or prompt <= self._chunk_tokens)
        self._opened -= ends

    def _begins_iteration(self, at: float, index: int, k: int) -> bool:
        if not self.rows:
            return True
        gap_s = at - self._before_s
        begins = index in self._members or self._firsts != (k == 0)
        return (begins and gap_s > MIN_GAP_S) or (k == 0 and gap_s > PREFILL_GAP_S)

    def _begin_iteration(self, at: float, k: int) -> None:
        if self.rows:
            if not self._firsts:
                self.rows[-1][6] = self.rows[-1][6] and not self._known.isdisjoint(self._members)
            self._let_wait(self.rows[-1][0])
        if k == 0:
            self._overfull = sum(self._waiting.values()) > self._chunk_tokens
            self._begun |= self._waiting.keys() if self._overfull else set()
        self._known = self._known | self._members if self._firsts else self._members
        self.rows.append([at, 0, 0, 0, 0, 0, self._opened > 0])
        self._members, self._firsts = set(), k == 0

    def _let_wait(self, until_s: float) -> None:
        """Requests that were sent by then wait for their prefill, unless they have been served."""
        while self._to_come and self._to_come[-1][0] <= until_s:
            _, newcomer = self._to_come.pop()
            if newcomer not in self._served:
                self._waiting[newcomer] = self._prompt_tokens[newcomer]


def _iterations(records: Sequence[RequestRecord], chunk_tokens: int) -> _Iterations:
    """An iteration ends where a request comes up again, and between first tokens and later ones, unless both come at once:
    then a token was held up on its way. First tokens some time apart are of two prefills. Where no request goes on that
    was there before, a preempted one was prefilled again, of which the length cannot be seen: left out. So is a prefill at
    whose start more than a chunk waited, and the next one: who can tell how far it came."""
    records = [r for r in records if not r.error]
    scan = _Scan(records, chunk_tokens)
    for at, index, k, n, ends in _deliveries(records):
        scan.add(at, index, k, n, ends=ends)
    at_s, decoding, context, prefilling, new, pairs, busy = np.array(scan.rows, dtype=np.float64).T
    return _Iterations(at_s, decoding, context, prefilling, new, pairs, busy > 0)


def fit_costs(records: Sequence[RequestRecord], *, chunk_tokens: int = 1 << 30) -> CostFit:
    """Costs from the records of one engine's requests. chunk_tokens: longer prompts are left out, for they take several
    iterations. Raises :class:`FitError`."""
    seen = _iterations(records, chunk_tokens)
    fits = [fit for late in (False, True) if (fit := _fit(seen, late)) is not None]
    if not fits:
        raise FitError("the time between deliveries does not depend on what was computed; is this one engine's stream?")
    best = min(fits, key=lambda fit: fit.decode_error + fit.prefill_error)
    return best._replace(entry_s=_entry_s(records, best, chunk_tokens))


def _entry_s(records: Sequence[RequestRecord], fit: CostFit, chunk_tokens: int) -> float:
    beside: list[float] = []
    idle_s = -np.inf
    for record in sorted((r for r in records if r.deliveries), key=lambda r: r.sent_s):
        tokens = record.prompt_tokens
        if record.sent_s > idle_s and tokens <= chunk_tokens:
            took_s = fit.costs.prefill_s(tokens, pairs=0.5 * tokens * tokens)
            took_s += fit.costs.decode_s(1, tokens + 1) if fit.sends_late else 0.0
            beside.append(record.deliveries[0][0] - record.sent_s - took_s)
        idle_s = max(idle_s, record.end_s)
    return max(0.0, float(np.median(beside))) if beside else 0.0


def _intervals(seen: _Iterations, late: bool) -> tuple[Array, npt.NDArray[np.intp], npt.NDArray[np.bool_]]:
    """What iterations took, their rows, and whether the engine was busy all the time."""
    took_s = np.diff(seen.at_s)
    rows = np.arange(1, len(seen.at_s))
    if late:
        took_s, rows = took_s[:-1], rows[:-1] + 1
        return took_s, rows, seen.busy[rows] & seen.busy[rows - 1]
    return took_s, rows, seen.busy[rows]


def _fit(seen: _Iterations, late: bool) -> CostFit | None:
    """Sent late, the time up to a cluster is what the iteration of the next one took. None where that makes no sense."""
    took_s, rows, busy = _intervals(seen, late)
    decode = busy & (seen.decoding[rows] > 0) & (seen.prefilling[rows] == 0)
    prefill = busy & (seen.prefilling[rows] > 0) & (seen.decoding[rows] == 0)
    ones = np.ones(len(rows))
    what = {"decode": (decode, np.stack([ones, seen.decoding[rows], seen.context_tokens[rows]], axis=1))}
    prefill_features = np.stack([ones, seen.prefilling[rows], seen.new_tokens[rows], seen.pairs[rows]], axis=1)
    what["prefill"] = (prefill, prefill_features)
    found = {}
    for name, (mask, features) in what.items():
        if np.count_nonzero(mask) < MIN_SAMPLES:
            raise TooFewError(f"only {np.count_nonzero(mask)} {name} iterations were seen; {MIN_SAMPLES} are needed")
        found[name] = _robust(features[mask], took_s[mask])
    (d, decode_error, decode_samples), (p, prefill_error, prefill_samples) = found["decode"], found["prefill"]
    if d[0] + d[1] <= 0 or p[0] + p[2] <= 0:
        return None
    costs = Costs(
        decode_fixed_s=d[0], decode_request_s=d[1], decode_context_s=d[2], prefill_fixed_s=p[0], prefill_request_s=p[1],
        prefill_token_s=p[2], prefill_pair_s=p[3],
    )  # fmt: skip
    return CostFit(costs, decode_error, decode_samples, prefill_error, prefill_samples, late)


def host_pace(
    records: Sequence[RequestRecord], costs: Costs, *, sends_late: bool, window_s: float = 3.0
) -> tuple[Array, float]:
    """How slow the machine was meanwhile: in windows of ``window_s``, how many times as long as ``costs`` say a decode step
    took; and by what factor hiccups add to that.

    Medians, weighted by time, so that what only looks like a decode step (a preempted request is prefilled again) has no
    part in it. A window without steps lies between its neighbours. Raises :class:`FitError`.
    """
    seen = _iterations(records, 1 << 30)
    took_s, rows, busy = _intervals(seen, sends_late)
    decode = busy & (seen.decoding[rows] > 0) & (seen.prefilling[rows] == 0)
    took_s, rows = took_s[decode], rows[decode]
    features = np.stack([np.ones(len(rows)), seen.decoding[rows], seen.context_tokens[rows]], axis=1)
    expected_s = features @ np.array([costs.decode_fixed_s, costs.decode_request_s, costs.decode_context_s])
    ratio, window = took_s / expected_s, (seen.at_s[rows] / window_s).astype(np.int64)
    medians: dict[int, float] = {}
    steady_s = 0.0
    for k in np.unique(window).tolist():
        inside = window == k
        if np.count_nonzero(inside) >= MIN_SAMPLES // 2:
            medians[k] = _weighted_median(ratio[inside], expected_s[inside])
            steady_s += medians[k] * float(expected_s[inside].sum())
    if len(rows) < MIN_SAMPLES or not medians:
        raise FitError(f"only {len(rows)} decode iterations were seen; {MIN_SAMPLES} are needed")
    counted = (ratio < 10.0) & np.isin(window, list(medians))
    pace = np.interp(np.arange(window.max() + 1), list(medians), list(medians.values()))
    return pace, float(took_s[counted].sum()) / steady_s


def _weighted_median(values: Array, weights: Array) -> float:
    order = np.argsort(values)
    reached = np.cumsum(weights[order])
    return float(values[order][np.searchsorted(reached, reached[-1] / 2)])


def _robust(features: Array, took_s: Array) -> tuple[list[float], float, int]:
    """Non-negative coefficients, median relative error, number of samples. Their proportions are those of least relative
    squares without what lies far off; their level is that of the time spent in all, hiccups included."""
    scale = np.maximum(np.abs(features).max(axis=0), 1e-12)
    floor_s = 0.1 * float(np.median(took_s))
    kept = np.ones(len(took_s), dtype=np.bool_)
    predicted = np.full(len(took_s), 10.0 * floor_s)
    error, coefficients = predicted, scale
    for _ in range(6):
        weight = 1.0 / np.maximum(predicted[kept], floor_s)
        x, y = (features[kept] / scale) * weight[:, None], took_s[kept] * weight
        a, b = x.T @ x + 1e-9 * len(y) * np.eye(len(scale)), x.T @ y
        solved = np.linalg.solve(a, b)
        coefficients = (non_negative(a, b) if (solved < 0).any() else solved) / scale
        predicted = features @ coefficients
        error = np.abs(predicted - took_s) / np.maximum(predicted, floor_s)
        kept = error <= max(4.0 * float(np.median(error)), 1e-6)
    level = error <= 10.0
    coefficients = coefficients * (took_s[level].sum() / predicted[level].sum())
    return coefficients.tolist(), float(np.median(error)), int(np.count_nonzero(level))
