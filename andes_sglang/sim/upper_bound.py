"""A clairvoyant upper bound on mean QoE: no schedule of an engine, whatever it knows, does better by ``horizon_s``.

A linear programme over slots of time. Every real schedule, with all it costs, is one of its points (``docs/upper-bound.md``
names each relaxation and argues it), so its optimum is a bound; and the figure returned is computed from the dual prices by
weak duality, so it is valid however early or inexactly the solver stopped.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
from scipy.optimize import linprog
from scipy.sparse import coo_array

from andes_sglang.qoe import QoETarget
from andes_sglang.sim.replica import Costs

__all__ = ["Bound", "Engine", "Request", "upper_bound"]

Array = npt.NDArray[np.float64]
Index = npt.NDArray[np.intp]


class Request(Protocol):
    """What of a request the bound needs; :class:`~andes_sglang.sim.replica.Job` is one."""

    @property
    def arrival_s(self) -> float: ...
    @property
    def prompt_tokens(self) -> int: ...
    @property
    def output_tokens(self) -> int: ...
    @property
    def target(self) -> QoETarget: ...


@dataclass(frozen=True, slots=True)
class Engine:
    """Least costs of an engine, seconds: of a decode iteration, of each of its tokens, of each KV token read for one, and of
    a prefilled token. longest_iteration_s: of any iteration. KV capacity in tokens, batch bound in requests."""

    iteration_s: float
    token_s: float
    context_s: float
    prefill_token_s: float
    longest_iteration_s: float
    kv_capacity_tokens: int
    max_running: int

    @classmethod
    def of(cls, costs: Costs, kv_capacity_tokens: int, max_running: int, largest_prefill_tokens: int) -> Engine:
        """Of a simulated replica; largest_prefill_tokens: of one iteration (its chunk, or the longest context)."""
        return cls(
            costs.decode_fixed_s,
            costs.decode_request_s,
            costs.decode_context_s,
            costs.prefill_token_s,
            costs.prefill_s(largest_prefill_tokens, kv_capacity_tokens)
            + costs.decode_s(max_running, kv_capacity_tokens),
            kv_capacity_tokens,
            max_running,
        )


@dataclass(frozen=True, slots=True)
class Bound:
    """mean_qoe: no schedule exceeds it. optimum: the solver's own figure, None where it gave none; below mean_qoe by what
    safety costs. variables, rows: size of the programme."""

    mean_qoe: float
    optimum: float | None
    variables: int
    rows: int


@dataclass(slots=True)
class _Programme:
    """min cost.x, rows.x <= or = right, 0 <= x <= upper; grown block by block."""

    upper: list[Array] = field(default_factory=list)
    cost: list[Array] = field(default_factory=list)
    entries: dict[bool, list[tuple[Index, Index, Array]]] = field(default_factory=lambda: {False: [], True: []})
    right: dict[bool, list[Array]] = field(default_factory=lambda: {False: [], True: []})
    size: int = 0
    height: dict[bool, int] = field(default_factory=lambda: {False: 0, True: 0})

    def variables(self, count: int, upper: float, cost: float = 0.0) -> Index:
        self.upper.append(np.full(count, upper))
        self.cost.append(np.full(count, cost))
        self.size += count
        return np.arange(self.size - count, self.size)

    def rows(self, count: int, right: float | Array = 0.0, *, equal: bool = False) -> Index:
        self.right[equal].append(np.broadcast_to(np.asarray(right, dtype=np.float64), (count,)))
        self.height[equal] += count
        return np.arange(self.height[equal] - count, self.height[equal])

    def add(self, rows: Any, columns: Index, values: Any, *, equal: bool = False) -> None:
        """``values`` at (``rows``, ``columns``), all broadcast to the columns; entries at one place add up."""
        shape = columns.shape
        self.entries[equal].append(
            (np.broadcast_to(rows, shape), columns, np.broadcast_to(np.asarray(values, dtype=np.float64), shape))
        )

    def matrix(self, equal: bool) -> coo_array:
        rows, columns, values = (np.concatenate(part) for part in zip(*self.entries[equal], strict=True))
        return coo_array((values, (rows, columns)), shape=(self.height[equal], self.size))

    def solve(self, time_limit_s: float) -> tuple[float, float | None]:
        """A valid lower bound of the minimum, and the solver's minimum if it came to one."""
        cost, upper = np.concatenate(self.cost), np.concatenate(self.upper)
        less, equal = self.matrix(False).tocsr(), self.matrix(True).tocsr()
        b, d = np.concatenate(self.right[False]), np.concatenate(self.right[True])
        result = linprog(
            cost,
            A_ub=less,
            b_ub=b,
            A_eq=equal,
            b_eq=d,
            bounds=np.column_stack([np.zeros_like(upper), upper]),
            method="highs-ipm",
            options={"time_limit": time_limit_s},
        )
        if result.ineqlin.marginals is None:
            return float(np.minimum(cost, 0.0) @ upper), None
        y, z = np.minimum(result.ineqlin.marginals, 0.0), result.eqlin.marginals
        reduced = cost - less.T @ y - equal.T @ z
        return float(b @ y + d @ z + np.minimum(reduced, 0.0) @ upper), result.fun


def upper_bound(
    requests: Sequence[Request],
    engine: Engine,
    horizon_s: float,
    *,
    slot_s: float = 1.0,
    chunks: int = 5,
    lateness_ratio: float = 1.25,
    time_limit_s: float = 600.0,
) -> Bound:
    """Bound on the mean QoE of all ``requests`` over every schedule that has delivered them by ``horizon_s`` (clock of the
    arrivals).

    slot_s, chunks (parts of an answer), lateness_ratio (> 1): finer is tighter and slower; every setting is valid. Raises
    ``ValueError`` for what cannot be: a request longer than the KV pool, an arrival after the horizon.
    """
    for k, request in enumerate(requests):
        if request.prompt_tokens + request.output_tokens > engine.kv_capacity_tokens:
            raise ValueError(f"request {k}: {request.prompt_tokens} + {request.output_tokens} tokens exceed the KV pool")
        if not request.arrival_s < horizon_s:
            raise ValueError(f"request {k}: arrives at {request.arrival_s} s, not before horizon_s {horizon_s}")
    begin_s = min(request.arrival_s for request in requests)
    slots = max(1, int(np.ceil((horizon_s - begin_s) / slot_s)))
    edges_s = begin_s + slot_s * np.arange(slots + 1)
    lp = _Programme()

    iterations = lp.variables(slots, (slot_s + engine.longest_iteration_s) / max(engine.iteration_s, 1e-6))
    carry = lp.variables(slots, engine.longest_iteration_s)
    time_rows = lp.rows(slots, slot_s)
    lp.add(time_rows, iterations, engine.iteration_s)
    lp.add(time_rows, carry, 1.0)
    lp.add(time_rows[1:], carry[:-1], -1.0)
    pool_rows = lp.rows(slots, float(engine.kv_capacity_tokens))
    batch_rows, read_rows = lp.rows(slots), lp.rows(slots)
    lp.add(batch_rows, iterations, -float(engine.max_running))
    lp.add(read_rows, iterations, -float(engine.kv_capacity_tokens))

    for request in requests:
        pace_rows = lp.rows(slots)
        lp.add(pace_rows, iterations, -1.0)
        one_class = lp.rows(1, 1.0, equal=True)
        n, tds = request.output_tokens, request.target.tds
        sizes = np.array([1, *(len(part) for part in np.array_split(np.arange(n - 1), min(chunks, n - 1)))]) if n > 1 else np.array([1])
        after = np.cumsum(sizes)
        before = after - sizes
        ideal_s = request.arrival_s + request.target.ttft_s
        ideal_last_s = ideal_s + (after - 1) / tds
        ideal_mean_s = ideal_s + (before + after - 1) / 2 / tds
        prefill_s = request.prompt_tokens * engine.prefill_token_s
        earliest_s = np.maximum(edges_s[:-1], request.arrival_s + prefill_s)
        first = int(np.searchsorted(edges_s, request.arrival_s + prefill_s, side="right")) - 1
        arrived = int(np.searchsorted(edges_s, request.arrival_s, side="right")) - 1
        first, arrived = min(first, slots - 1), min(arrived, slots - 1)
        resident = request.prompt_tokens + np.maximum(before - 1, 0)
        half_reading_s = n / (2 * tds)
        latest_s = max(0.0, horizon_s - ideal_s)
        bounds_s = half_reading_s * (lateness_ratio ** np.arange(1, 99) - 1)
        bounds_s = [*bounds_s[bounds_s < latest_s], max(latest_s, 1e-9)]
        for bound_s in bounds_s:
            y = lp.variables(1, 1.0)
            lp.add(one_class, y, 1.0, equal=True)
            previous = None  # (slots, variables) of the chunk before
            previous_lateness = None
            for j, size in enumerate(sizes):
                end = int(np.searchsorted(edges_s[:-1], ideal_last_s[j] + bound_s, side="right"))
                at = np.arange(first, max(end, first + 1))
                a = lp.variables(len(at), 1.0)
                whole = lp.rows(1, equal=True)
                lp.add(whole, a, 1.0, equal=True)
                lp.add(whole, y, -1.0, equal=True)

                lateness = lp.variables(1, max(bound_s, slot_s), size / (n * (half_reading_s + bound_s)))
                late = lp.rows(2)
                lp.add(late[0], a, np.maximum(earliest_s[at] - ideal_last_s[j], 0.0))
                lp.add(late[1], a, earliest_s[at] - begin_s)
                lp.add(late[1:], y, begin_s - ideal_mean_s[j])
                lp.add(late, np.repeat(lateness, 2), -1.0)
                if previous_lateness is not None:
                    chain = lp.rows(1)
                    lp.add(chain, previous_lateness, 1.0)
                    lp.add(chain, lateness, -1.0)
                previous_lateness = lateness

                gap = np.arange(arrived if previous is None else previous[0][0], at[-1] + 1)
                compute, held = lp.variables(len(gap), 1.0), lp.variables(len(gap), 1.0)
                flow = lp.rows(len(gap))
                lp.add(flow, held, 1.0)
                lp.add(flow[1:], held[:-1], -1.0)
                lp.add(flow, compute, -1.0)
                lp.add(flow[at - gap[0]], a, 1.0)
                if previous is not None:
                    waiting = lp.variables(len(gap), 1.0)
                    balance = lp.rows(len(gap), equal=True)
                    lp.add(balance, waiting, 1.0, equal=True)
                    lp.add(balance[1:], waiting[:-1], -1.0, equal=True)
                    lp.add(balance[at - gap[0]], a, 1.0, equal=True)
                    lp.add(balance[previous[0] - gap[0]], previous[1], -1.0, equal=True)
                    lp.add(flow[previous[0] - gap[0]], previous[1], -1.0)
                previous = (at, a)

                lp.add(time_rows[gap], compute, engine.prefill_token_s * resident[j])
                lp.add(pool_rows[gap], held, float(resident[j]))
                if j:
                    context = request.prompt_tokens + before[j]
                    lp.add(time_rows[at], a, size * (engine.token_s + engine.context_s * context))
                    lp.add(batch_rows[at], a, float(size))
                    lp.add(read_rows[at], a, float(size * context))
                    lp.add(pace_rows[at], a, float(size))
    loss, optimum = lp.solve(time_limit_s)
    count = len(requests)
    return Bound(
        min(1.0, 1.0 - loss / count),
        None if optimum is None else 1.0 - optimum / count,
        lp.size,
        lp.height[False] + lp.height[True],
    )
