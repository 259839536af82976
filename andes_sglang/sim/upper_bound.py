"""A clairvoyant upper bound on mean QoE: no schedule of an engine, whatever it knows, does better by ``horizon_s``.

Lagrangian relaxation. The requests compete for two things, the engine's time and its KV pool. Give both a price in every
slot of time, and each request can be scheduled alone, at the least sum of lost QoE and of what it pays: a small dynamic
programme. The sum over all requests, less the worth of all there is to sell, is at most what the best schedule loses, *for
every price*; so the result is valid however far the search for good prices has come. ``docs/upper-bound.md`` argues it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from andes_sglang.request import RequestSpec
from andes_sglang.sim.engine import EngineModel

__all__ = ["Bound", "Prices", "upper_bound"]

Array = npt.NDArray[np.float64]
Index = npt.NDArray[np.int64]
BLOCK_TOKENS = 512
UNHELD, HELD = 0, 1


@dataclass(frozen=True, slots=True)
class Prices:
    """Lost QoE, summed over requests, that a second of a resource is worth in every slot, both of shape (T,): of the engine,
    and of its whole KV pool."""

    engine: Array
    pool: Array


@dataclass(frozen=True, slots=True)
class Bound:
    """mean_qoe: no schedule exceeds it. prices: those that prove it. iterations: how many were tried."""

    mean_qoe: float
    prices: Prices
    iterations: int


def upper_bound(
    requests: Sequence[RequestSpec],
    engine: EngineModel,
    horizon_s: float,
    *,
    slot_s: float = 2.0,
    chunks: int = 12,
    growth: float = 1.15,
    iterations: int = 100,
    prices: Prices | None = None,
) -> Bound:
    """Bound on the mean QoE of ``requests`` over every schedule that has delivered them all by ``horizon_s`` (clock of the
    arrivals).

    slot_s; chunks: parts of an answer; growth (> 1): of the steps in which lateness is counted: finer is tighter and slower,
    every setting is valid. iterations: of the search for prices, which starts at ``prices`` (of the same slots). Raises
    ``ValueError`` for what cannot be: a request longer than the KV pool, an arrival after the horizon.
    """
    for k, request in enumerate(requests):
        if request.prompt_tokens + request.output_tokens > engine.kv_capacity_tokens:
            raise ValueError(f"request {k}: {request.prompt_tokens} + {request.output_tokens} tokens exceed the KV pool")
        if not request.arrival_s < horizon_s:
            raise ValueError(f"request {k}: arrives at {request.arrival_s} s, not before horizon_s {horizon_s}")
    if not (slot_s > 0 and chunks > 0 and growth > 1):
        raise ValueError(f"slot_s and chunks must be > 0 and growth > 1, got {slot_s!r}, {chunks!r}, {growth!r}")
    parts = _Relaxation(requests, engine, horizon_s, slot_s, chunks, growth)
    now = prices or Prices(np.zeros(parts.slots), np.zeros(parts.slots))
    best, best_prices = -np.inf, now
    stride, stale, direction = 0.1 * len(requests), 0, np.zeros((2, parts.slots))
    classes = parts.all_classes(now)[1]
    for _ in range(iterations):
        lost, classes, slope = parts.evaluate(now, classes)
        if lost > best + 1e-3 * stride:
            stale = 0
        else:
            stale += 1
        if lost > best:
            best, best_prices = lost, now
        if stale == 5:
            stride, stale, now, direction = stride / 2, 0, best_prices, np.zeros_like(direction)
            if stride < 2e-5 * len(requests):
                break
            continue
        direction = slope + 0.6 * direction
        step = (best + stride - lost) / max(float((direction * slope).sum()), 1e-9)
        now = Prices(*np.maximum(0.0, np.stack([now.engine, now.pool]) + step * direction))
    lost = max(0.0, parts.all_classes(best_prices)[0])
    return Bound(1.0 - lost / len(requests), best_prices, iterations)


class _Relaxation:
    """The requests, in order of arrival, as arrays whose last axis is the request (N).

    An answer has P positions: its first token, ``chunks`` equal parts, its last token; position P is its end. Lateness is
    counted in cells: ``late_s``, shape (D + 1, N), is where each begins, and where the last one ends. A request is of the
    class c if its last token's lateness is in cell c.
    """

    def __init__(
        self, requests: Sequence[RequestSpec], engine: EngineModel, horizon_s: float, slot_s: float, chunks: int, growth: float
    ) -> None:
        requests = sorted(requests, key=lambda r: r.arrival_s)
        costs, pool = engine.costs, float(engine.kv_capacity_tokens)
        arrival, prompt, n, ttft, tds = np.array(
            [(r.arrival_s, r.prompt_tokens, r.output_tokens, r.target.ttft_s, r.target.tds) for r in requests]
        ).T
        own = prompt - _shared_prefix_tokens(requests)
        self.pool_tokens, self.slot_s = pool, slot_s
        self.slots = max(1, int(np.ceil((horizon_s - arrival[0]) / slot_s)))
        self.starts_s = arrival[0] + slot_s * np.arange(self.slots)
        self.arrived = np.searchsorted(arrival, self.starts_s + slot_s, side="left")
        longest = int((prompt + n).max())
        self.longest_s = engine.decision_s + costs.mixed_s(
            engine.chunk_tokens, int(pool), engine.chunk_tokens * float(longest), engine.max_running, int(pool)
        )

        part, once = np.arange(chunks)[:, None], np.zeros((1, len(n)))
        share = (n - 1) / chunks
        size = np.vstack([once, np.broadcast_to(share, (chunks, len(n))), once])
        first = np.vstack([once, np.minimum(1 + part * share, n - 1), n[None] - 1])
        last = np.vstack([once, np.minimum(np.ceil((part + 1) * share), n - 1), n[None] - 1])
        weight = np.vstack([once + 1, size[1:]]) / n
        self.weight = np.vstack([once, np.cumsum(weight, axis=0)])
        self.context = own + first
        by_pool, by_batch = self.context / pool, np.full_like(first, 1.0 / engine.max_running)
        share_of_fixed = by_pool if (size * by_pool).sum() > (size * by_batch).sum() else by_batch
        token_s = (
            costs.decode_request_s + costs.decode_context_s * (prompt + first) + costs.decode_fixed_s * share_of_fixed
        )
        self.decode_s = np.vstack([once, np.cumsum(size * token_s, axis=0)])
        self.compute_s = np.maximum(costs.prefill_token_s * self.context - token_s, 0.0) * (not engine.host_capacity_tokens)
        self.compute_s[0] = costs.prefill_token_s * own
        self.begin_s = arrival + self.compute_s[0]
        self.ideal_s = arrival + ttft + last / tds
        self.half_reading_s = n / (2 * tds)

        steps = [0]
        while steps[-1] * slot_s < horizon_s - float((arrival + ttft).min()):
            steps.append(max(steps[-1] + 1, int(steps[-1] * growth)))
        offset_s = slot_s - np.mod(arrival + ttft - arrival[0], slot_s)
        self.late_s = np.vstack([once, offset_s + slot_s * np.array(steps)[:, None]])
        self.classes = len(self.late_s) - 1
        blur_s = slot_s + 2 * np.ceil(share) / tds
        self.least = self._cell(self.late_s[:-1] - blur_s, slice(None))

    def _cell(self, lateness_s: Array, here: slice) -> Index:
        """The cells of lateness of shape (K, n), of the n requests ``here``."""
        edges = self.late_s[1:-1, here]
        return (lateness_s[:, None] >= edges).sum(axis=1)

    def worth(self, prices: Prices) -> float:
        """What all there is to sell costs. Of the work that counts in a slot, up to one iteration was done before it."""
        rise = np.maximum(np.diff(prices.engine), 0.0).sum()
        return float(self.slot_s * (prices.engine.sum() + prices.pool.sum()) + self.longest_s * rise)

    def all_classes(self, prices: Prices) -> tuple[float, Index]:
        """The bound on the sum of lost QoE at ``prices``, and the class that is cheapest for each request."""
        costs = np.stack([self.costs(prices, np.full(self.late_s.shape[1], c)) for c in range(self.classes)])
        return float(costs.min(axis=0).sum()) - self.worth(prices), costs.argmin(axis=0)

    def evaluate(self, prices: Prices, classes: Index) -> tuple[float, Index, Array]:
        """As :meth:`all_classes`, over ``classes`` and those beside them only, and its slope in (engine, pool), shape (2, T)."""
        values: list[Array] = []
        near = [classes, np.maximum(classes - 1, 0), np.minimum(classes + 1, self.classes - 1)]
        costs = np.stack([self.costs(prices, near[0], values), *(self.costs(prices, c) for c in near[1:])])
        slope = self._used_s(prices, classes, values[::-1])
        rises = np.diff(prices.engine) > 0
        slope[0] -= self.slot_s + self.longest_s * (np.append(0.0, rises) - np.append(rises, 0.0))
        slope[1] -= self.slot_s
        return float(costs.min(axis=0).sum()) - self.worth(prices), np.choose(costs.argmin(axis=0), near), slope

    def _slot(self, prices: Prices, classes: Index, t: int) -> tuple[Array, Array, Array, Index]:
        """For the n who have come by the end of slot ``t``: cost of the positions before each, (P + 1, D, n), of computing the
        KV of each (P, n), of holding it through the slot (P + 1, n), and the cell of who is served now (P, n)."""
        here = slice(0, self.arrived[t])
        top_s = self.late_s[classes[here] + 1, np.arange(self.arrived[t])]
        late = self.late_s[:-1, here] / (self.half_reading_s[here] + top_s)
        total = prices.engine[t] * self.decode_s[:, None, here] + self.weight[:, None, here] * late
        hold = prices.pool[t] * self.slot_s / self.pool_tokens * self.context[:, here]
        late_s = np.maximum(self.starts_s[t], self.begin_s[here]) - self.ideal_s[:, here]
        return (
            total,
            prices.engine[t] * self.compute_s[:, here],
            np.vstack([hold, np.zeros((1, self.arrived[t]))]),
            self._cell(late_s, here),
        )

    def costs(self, prices: Prices, classes: Index, values: list[Array] | None = None) -> Array:
        """Least cost of every request, shape (N,), in its class. To ``values`` goes for the end of every slot, from the last
        to the first, the least cost from there on: (2, P + 1, D, n), by whether its KV is in the pool, position, cell."""
        cells, count = self.classes, self.late_s.shape[1]
        rows = np.arange(cells)[:, None]
        value = np.full((2, len(self.weight), cells, count), np.inf)
        value[:, -1] = np.where((rows >= self.least[classes, np.arange(count)]) & (rows <= classes), 0.0, np.inf)
        for t in range(self.slots - 1, -1, -1):
            after = value[..., : self.arrived[t]].copy()
            if values is not None:
                values.append(after)
            total, compute, hold, cell = self._slot(prices, classes, t)
            stay = np.minimum(after[UNHELD], after[HELD] + hold[:, None])
            resumed, went_on = (
                np.where(rows >= cell[:, None], served, np.take_along_axis(served, cell[:, None], 1))
                for served in (_served(total, after[HELD]), _served(total, stay))
            )
            anew = compute[:, None] + np.minimum(after[HELD, :-1], resumed)
            value[UNHELD, :-1, :, : self.arrived[t]] = np.minimum(after[UNHELD, :-1], anew)
            value[HELD, :-1, :, : self.arrived[t]] = np.minimum(np.minimum(stay[:-1], went_on), anew)
        cheapest: Array = value[UNHELD, 0, 0].copy()
        return cheapest

    def _used_s(self, prices: Prices, classes: Index, values: list[Array]) -> Array:
        """Seconds of the engine and of the whole pool, shape (2, T), that the cheapest schedules of all use in every slot."""
        count, end = len(classes), len(self.weight) - 1
        at, cell, held = (np.zeros(count, dtype=np.int64) for _ in range(3))
        used_s = np.zeros((2, self.slots))
        for t, after in enumerate(values):
            total, compute, hold, now = self._slot(prices, classes, t)
            row = np.flatnonzero(at[: self.arrived[t]] < end)
            k, d, had = at[row], cell[row], held[row] == HELD
            then = np.maximum(d, now[k, row])
            spent = np.where(np.arange(end + 1)[:, None] >= k, total[:, then, row] - total[k, then, row], np.inf)
            leave = after[HELD][:, then, row], np.minimum(after[UNHELD], after[HELD] + hold[:, None])[:, then, row]
            stop = [(spent + cost).argmin(axis=0) for cost in leave]
            idle = after[UNHELD, k, d, row], after[HELD, k, d, row]
            options = np.stack([
                idle[0],
                compute[k, row] + idle[1],
                compute[k, row] + (spent + leave[0]).min(axis=0),
                np.where(had, idle[1] + hold[k, row], np.inf),
                np.where(had, (spent + leave[1]).min(axis=0), np.inf),
            ])  # fmt: skip
            choice = options.argmin(axis=0)
            serves = (choice == 2) | (choice == 4)
            to = np.where(serves, np.where(choice == 2, *stop), k)
            stays = (choice == 3) | ((choice == 4) & (after[HELD, to, then, row] + hold[to, row] <= after[UNHELD, to, then, row]))
            anew = (choice == 1) | (choice == 2)
            used_s[0, t] = (self.compute_s[k, row] * anew + self.decode_s[to, row] - self.decode_s[k, row]).sum()
            used_s[1, t] = (np.vstack([self.context, np.zeros((1, count))])[to, row] * stays).sum() * self.slot_s / self.pool_tokens
            at[row], held[row] = to, stays | anew
            cell[row] = np.where(serves, then, d)
        return used_s


def _served(total: Array, leave: Array) -> Array:
    """From every position the least cost of being served up to any later one, and of what comes ``leave`` then."""
    best = np.minimum.accumulate((total + leave)[::-1], axis=0)[::-1]
    served: Array = (best - total)[:-1]
    return served


def _shared_prefix_tokens(requests: Sequence[RequestSpec]) -> Array:
    """Leading prompt tokens of each request, shape (N,), that it may have in common with another one."""
    blocks = Counter(block for request in requests for block in set(request.blocks))
    turns = Counter(request.session_id for request in requests)
    shared = []
    for request in requests:
        alone = next((k for k, block in enumerate(request.blocks) if blocks[block] == 1), len(request.blocks))
        tokens = alone * BLOCK_TOKENS
        if not request.blocks and request.session_id is not None and turns[request.session_id] > 1:
            tokens = request.prompt_tokens
        shared.append(min(tokens, request.prompt_tokens))
    return np.array(shared, dtype=np.float64)
