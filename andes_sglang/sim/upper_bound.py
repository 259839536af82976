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
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from scipy.optimize import linprog
from scipy.sparse import csc_array, diags_array, eye_array, hstack, vstack

from andes_sglang.request import RequestSpec
from andes_sglang.sim.engine import EngineModel

__all__ = ["Bound", "Prices", "upper_bound"]

Array = npt.NDArray[np.float64]
Index = npt.NDArray[np.int64]
BLOCK_TOKENS = 512
UNHELD, HELD = 0, 1


class Prices(NamedTuple):
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
    latest_s: float | Sequence[float] = np.inf,
    slot_s: float = 2.0,
    chunks: int = 12,
    growth: float = 1.15,
    iterations: int = 40,
    tolerance: float = 0.001,
    prices: Prices | None = None,
) -> Bound:
    """Bound on the mean QoE of ``requests`` over every schedule that has delivered them all by ``horizon_s`` (clock of the
    arrivals), and no last token more than ``latest_s``, of all or of each, after its ideal time.

    slot_s; chunks: parts of an answer; growth (> 1): of the steps in which lateness is counted: finer is tighter and slower,
    every setting is valid. iterations: of the search for prices, which begins at ``prices`` (for the same slots), ends where
    less than ``tolerance`` could be gained. Raises ``ValueError`` for what cannot be: a request longer than the KV pool, an
    arrival after the horizon.
    """
    _check(requests, engine, horizon_s)
    if not (slot_s > 0 and chunks > 0 and growth > 1):
        raise ValueError(f"slot_s and chunks must be > 0 and growth > 1, got {slot_s!r}, {chunks!r}, {growth!r}")
    latest = np.broadcast_to(np.asarray(latest_s, dtype=np.float64), len(requests))
    if not (latest >= 0).all():
        raise ValueError(f"latest_s must be >= 0 seconds, got {float(latest[~(latest >= 0)][0])!r}")
    parts = _Relaxation(requests, engine, horizon_s, latest_s=latest, slot_s=slot_s, chunks=chunks, growth=growth)
    plans = _Plans(parts)
    best, best_lost, tried = parts.opening()[0], 0.0, 0
    for now in [prices] if prices is not None else parts.opening():
        lost, classes = parts.cheapest(now)
        plans.add(now, classes)
        if lost > best_lost:
            best, best_lost = now, lost
    while tried < iterations:
        tried += 1
        optimum, wanted = plans.solve()
        if optimum - best_lost < tolerance * len(requests):
            break
        now = Prices(*(0.5 * (ours + theirs) for ours, theirs in zip(best, wanted, strict=True)))
        lost, classes = parts.cheapest(now)
        plans.add(now, classes)
        if lost > best_lost:
            best, best_lost = now, lost
    return Bound(1.0 - best_lost / len(requests), best, tried)


def _check(requests: Sequence[RequestSpec], engine: EngineModel, horizon_s: float) -> None:
    for k, request in enumerate(requests):
        if request.prompt_tokens + request.output_tokens > engine.kv_capacity_tokens:
            raise ValueError(
                f"request {k}: {request.prompt_tokens} + {request.output_tokens} tokens exceed the KV pool"
            )
        if request.reason_tokens:
            raise ValueError(
                f"request {k}: reason_tokens {request.reason_tokens}: the bound is of tokens that are read"
            )
        if not request.arrival_s < horizon_s:
            raise ValueError(f"request {k}: arrives at {request.arrival_s} s, not before horizon_s {horizon_s}")


class _Plans:
    """Plans for every request, not to be served at all among them, and the linear programme that mixes them within what the
    engine has: its prices are the ones to plan with next (column generation)."""

    def __init__(self, parts: _Relaxation) -> None:
        self.parts = parts
        count = len(parts.half_reading_s)
        self.losses: list[Array] = [np.ones(count)]
        self.uses: list[csc_array] = [csc_array((2 * parts.slots, count))]

    def add(self, prices: Prices, classes: Index) -> None:
        """The cheapest plan of every request in its class."""
        costs, used_s = self.parts.plan(prices, classes)
        self.losses.append(costs - np.concatenate(prices) @ used_s)
        self.uses.append(used_s)

    def solve(self) -> tuple[float, Prices]:
        """The least sum of losses of a mixture, and the prices that it suggests."""
        parts, count = self.parts, len(self.losses[0])
        slots, rounds = parts.slots, len(self.losses)
        moved = diags_array([np.ones(slots - 1), -np.ones(slots - 1)], offsets=[-1, 0], shape=(slots, slots - 1))
        resources = hstack([*self.uses, vstack([-moved, csc_array((slots, slots - 1))])]).tocsr()
        each = hstack([*[eye_array(count)] * rounds, csc_array((count, slots - 1))]).tocsr()
        result = linprog(
            np.concatenate([*self.losses, np.zeros(slots - 1)]),
            A_ub=resources,
            b_ub=np.full(2 * slots, parts.slot_s),
            A_eq=each,
            b_eq=np.ones(count),
            bounds=np.column_stack(
                [np.zeros(resources.shape[1]), np.repeat([np.inf, parts.longest_s], [rounds * count, slots - 1])]
            ),
            method="highs",
        )
        return float(result.fun), Prices(*np.split(np.maximum(0.0, -result.ineqlin.marginals), 2))


class _Relaxation:
    """The requests, in order of arrival, as arrays whose last axis is the request (N).

    An answer has P positions: its first token, ``chunks`` equal parts, its last token; position P is its end. Lateness is
    counted in cells: ``late_s``, shape (D + 1, N), is where each begins, and where the last one ends. A request is of the
    class c if its last token's lateness is in cell c.
    """

    def __init__(
        self,
        requests: Sequence[RequestSpec],
        engine: EngineModel,
        horizon_s: float,
        *,
        latest_s: Array,
        slot_s: float,
        chunks: int,
        growth: float,
    ) -> None:
        order = sorted(range(len(requests)), key=lambda k: requests[k].arrival_s)
        self.order = order
        requests, latest_s = [requests[k] for k in order], latest_s[order]
        costs, pool = engine.costs, float(engine.kv_capacity_tokens)
        arrival, prompt, n, ttft, tds = np.array(
            [(r.arrival_s, r.prompt_tokens, r.output_tokens, r.target.ttft_s, r.target.tds) for r in requests]
        ).T
        own = prompt - _shared_prefix_tokens(requests)
        self.pool_tokens, self.slot_s = pool, slot_s
        self.slots = max(1, int(np.ceil((horizon_s - arrival[0]) / slot_s)))
        self.starts_s = arrival[0] + slot_s * np.arange(self.slots)
        self.slot_of_arrival = np.minimum((arrival - arrival[0]) // slot_s, self.slots - 1).astype(np.int64)
        self.arrived = np.searchsorted(arrival, self.starts_s + slot_s, side="left")
        longest, chunk = int((prompt + n).max()), min(engine.chunk_tokens, int(pool))
        self.longest_s = engine.decision_s + costs.mixed_s(
            chunk,
            int(pool),
            chunk * float(longest),
            engine.max_running,
            batch=engine.max_running,
            context_tokens=int(pool),
        )

        part, once = np.arange(chunks)[:, None], np.zeros((1, len(n)))
        share, final = np.maximum(n - 2, 0) / chunks, (n[None] > 1).astype(np.float64)
        size = np.vstack([once, np.broadcast_to(share, (chunks, len(n))), final])
        first = np.vstack([once, np.minimum(1 + part * share, n - 1), n[None] - 1])
        last = np.maximum(first, np.vstack([once, np.minimum(np.ceil((part + 1) * share), n - 1), n[None] - 1]))
        weight = np.vstack([once + 1, size[1:]]) / n
        self.weight = np.vstack([once, np.cumsum(weight, axis=0)])
        self.context = own + first
        by_pool, by_batch = self.context / pool, np.full_like(first, 1.0 / engine.max_running)
        share_of_fixed = by_pool if (size * by_pool).sum() > (size * by_batch).sum() else by_batch
        token_s = (
            costs.decode_request_s + costs.decode_context_s * (prompt + first) + costs.decode_fixed_s * share_of_fixed
        )
        self.decode_s = np.vstack([once, np.cumsum(size * token_s, axis=0)])
        again_s = costs.prefill_token_s * self.context * (not engine.host_capacity_tokens) + costs.prefill_request_s
        self.compute_s = np.maximum(again_s - token_s, 0.0)
        self.compute_s[0] = costs.prefill_token_s * own + costs.prefill_request_s
        self.begin_s = arrival + self.compute_s[0]
        self.ideal_s = arrival + ttft + last / tds
        self.half_reading_s = n / (2 * tds)

        steps = [0]
        while steps[-1] * slot_s < min(float(latest_s.max()), horizon_s - float((arrival + ttft).min())):
            steps.append(max(steps[-1] + 1, int(steps[-1] * growth)))
        offset_s = slot_s - np.mod(arrival + ttft - arrival[0], slot_s)
        self.late_s = np.vstack([once, offset_s + slot_s * np.array(steps)[:, None]])
        self.classes = len(self.late_s) - 1
        self.allowed = self.late_s[:-1] <= latest_s
        blur_s = slot_s + (np.maximum(np.ceil(share), 1) - 1 + (last - np.floor(first)).max(axis=0)) / tds
        self.least = self._cell(self.late_s[:-1] - blur_s, slice(None))

    def _cell(self, lateness_s: Array, here: slice) -> Index:
        """The cells of lateness of shape (K, n), of the n requests ``here``."""
        edges = self.late_s[1:, here]
        cells: Index = (lateness_s[:, None] >= edges).sum(axis=1)
        return cells

    def opening(self) -> list[Prices]:
        """Prices to begin with: of the engine, by how long it will go on being busy if it never idles, up to a cap; and such
        that there is no hurry at all."""
        work_s = np.bincount(self.slot_of_arrival, self.decode_s[-1] + self.compute_s[0], minlength=self.slots)
        busy_s, left_s, begin = np.zeros(self.slots), 0.0, 0
        for t in range(self.slots):
            left_s = max(0.0, left_s + work_s[t] - self.slot_s)
            if not left_s or t == self.slots - 1:
                busy_s[begin : t + 1] = self.slot_s * np.arange(t - begin, -1, -1)
                begin = t + 1
        shape = np.minimum(busy_s, 0.5 * busy_s.max())
        worth = len(self.half_reading_s) / float(self.slot_s * shape.sum() or 1.0)
        return [Prices(level * worth * shape, np.zeros(self.slots)) for level in (0.0, 0.03, 0.1, 0.3, 3.0)]

    def worth(self, prices: Prices) -> float:
        """What all there is to sell costs. Of the work that counts in a slot, up to one iteration was done before it."""
        rise = np.maximum(np.diff(prices.engine), 0.0).sum()
        return float(self.slot_s * (prices.engine.sum() + prices.pool.sum()) + self.longest_s * rise)

    def cheapest(self, prices: Prices) -> tuple[float, Index]:
        """The bound on the sum of lost QoE at ``prices``, and the class that is cheapest for each request."""
        all_of = np.full(len(self.half_reading_s), 1)
        costs = np.stack([self.costs(prices, c * all_of) for c in range(self.classes)])
        costs[~self.allowed] = np.inf
        if not np.isfinite(costs.min(axis=0)).all():
            k = self.order[int(np.argmax(costs.min(axis=0)))]
            raise ValueError(f"request {k}: no schedule delivers it by horizon_s and within its latest_s")
        return float(costs.min(axis=0).sum()) - self.worth(prices), costs.argmin(axis=0)

    def plan(self, prices: Prices, classes: Index) -> tuple[Array, csc_array]:
        """Least cost of every request in its class, (N,), and the seconds of the engine and of the pool it takes in every
        slot, (2 T, N)."""
        values: list[Array] = []
        return self.costs(prices, classes, values), self._used_s(prices, classes, values[::-1])

    def _spans(self, classes: Index) -> list[slice]:
        """For every slot a span of requests that holds all who have come by its end and can still end in their class."""
        end_s = self.ideal_s[-1] + self.late_s[classes + 1, np.arange(len(classes))] + self.slot_s
        begun = np.searchsorted(np.maximum.accumulate(end_s), self.starts_s, side="right")
        return [slice(min(low, high), high) for low, high in zip(begun.tolist(), self.arrived.tolist(), strict=True)]

    def _slot(
        self, prices: Prices, classes: Index, t: int, here: slice, cells: int
    ) -> tuple[Array, Array, Array, Index]:
        """For the n requests ``here`` in slot ``t``: cost of the positions before each, (P + 1, D, n), of computing the KV of
        each (P, n), of holding it through the slot (P + 1, n), and the cell of who is served now (P, n)."""
        top_s = self.late_s[classes[here] + 1, np.arange(here.start, here.stop)]
        late = self.late_s[:cells, here] / (self.half_reading_s[here] + top_s)
        total = prices.engine[t] * self.decode_s[:, None, here] + self.weight[:, None, here] * late
        hold = prices.pool[t] * self.slot_s / self.pool_tokens * self.context[:, here]
        late_s = np.maximum(self.starts_s[t], self.begin_s[here]) - self.ideal_s[:, here]
        return (
            total,
            prices.engine[t] * self.compute_s[:, here],
            np.vstack([hold, np.zeros((1, hold.shape[1]))]),
            self._cell(late_s, here),
        )

    def costs(self, prices: Prices, classes: Index, values: list[Array] | None = None) -> Array:
        """Least cost of every request, shape (N,), in its class. To ``values`` goes for the end of every slot, from the last
        to the first, the least cost from there on: (2, P + 1, D, n), by whether its KV is in the pool, position, cell; D
        cells up to the highest class, and the n requests of the slot's span."""
        cells, count = int(classes.max()) + 1, len(classes)
        rows = np.arange(cells)[:, None]
        value = np.full((2, len(self.weight), cells, count), np.inf)
        value[:, -1] = np.where((rows >= self.least[classes, np.arange(count)]) & (rows <= classes), 0.0, np.inf)
        for t, here in reversed(list(enumerate(self._spans(classes)))):
            after = value[..., here].copy()
            if values is not None:
                values.append(after)
            total, compute, hold, cell = self._slot(prices, classes, t, here, cells)
            lost = cell >= cells
            cell = np.minimum(cell, cells - 1)
            stay = np.minimum(after[UNHELD], after[HELD] + hold[:, None])
            resumed, went_on = (
                np.where(
                    lost[:, None],
                    np.inf,
                    np.where(rows >= cell[:, None], served, np.take_along_axis(served, cell[:, None], 1)),
                )
                for served in (_served(total, after[HELD]), _served(total, stay))
            )
            computed = compute[:, None] + np.minimum(after[HELD, :-1], resumed)
            value[UNHELD, :-1, :, here] = np.minimum(after[UNHELD, :-1], computed)
            value[HELD, :-1, :, here] = np.minimum(np.minimum(stay[:-1], went_on), computed)
        cheapest: Array = value[UNHELD, 0, 0].copy()
        return cheapest

    def _used_s(self, prices: Prices, classes: Index, values: list[Array]) -> csc_array:
        """What the cheapest schedules use, as :meth:`plan` gives it."""
        cells, end = int(classes.max()) + 1, len(self.weight) - 1
        at, cell, held = (np.zeros(len(classes), dtype=np.int64) for _ in range(3))
        context = np.vstack([self.context, np.zeros((1, len(classes)))])
        rows, columns, entries = [], [], []
        for t, (after, here) in enumerate(zip(values, self._spans(classes), strict=True)):
            total, compute, hold, now = self._slot(prices, classes, t, here, cells)
            n = np.flatnonzero(at[here] < end)
            row = n + here.start
            k, d, had = at[row], cell[row], held[row] == HELD
            then = np.minimum(np.maximum(d, now[k, n]), cells - 1)
            allowed = (np.arange(end + 1)[:, None] >= k) & (now[k, n] < cells)
            spent = np.where(allowed, total[:, then, n] - total[k, then, n], np.inf)
            stay = np.minimum(after[UNHELD], after[HELD] + hold[:, None])
            leave = spent + after[HELD][:, then, n], spent + stay[:, then, n]
            options = np.stack([
                after[UNHELD, k, d, n],
                compute[k, n] + after[HELD, k, d, n],
                compute[k, n] + leave[0].min(axis=0),
                np.where(had, after[HELD, k, d, n] + hold[k, n], np.inf),
                np.where(had, leave[1].min(axis=0), np.inf),
            ])  # fmt: skip
            choice = options.argmin(axis=0)
            computed, serves = (choice == 1) | (choice == 2), (choice == 2) | (choice == 4)
            to = np.where(serves, np.where(had & (choice == 4), leave[1].argmin(axis=0), leave[0].argmin(axis=0)), k)
            kept = after[HELD, to, then, n] + hold[to, n] <= after[UNHELD, to, then, n]
            holds = (choice == 3) | ((choice == 4) & kept)
            computed_s = self.compute_s[k, row] * computed
            rows += [np.full(len(row), t), np.full(len(row), self.slots + t)]
            columns += [row, row]
            entries += [
                computed_s + self.decode_s[to, row] - self.decode_s[k, row],
                context[to, row] * holds * self.slot_s / self.pool_tokens,
            ]
            at[row], held[row], cell[row] = to, holds | computed, np.where(serves, then, d)
        found = np.concatenate(entries), (np.concatenate(rows), np.concatenate(columns))
        used_s = csc_array(found, shape=(2 * self.slots, len(classes)))
        used_s.eliminate_zeros()
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
