"""Mixes of several kinds of replica by integer programme, as Mélange chooses them (arXiv 2404.14527, section 5).

Requests fall into buckets of prompt and answer length. ``load[g, b]`` is how many replicas of kind g the requests of bucket
b would keep busy, all of them, in batches of their own; ``factor[g]`` how many times as many it takes for the objective to
hold, as play has shown of that kind alone. A mix ``y`` has strength s where the requests can be divided so that
``s * factor[g] * sum_b x[g, b] load[g, b] <= y[g]`` for every kind, with ``sum_g x[g, b] = 1`` for every bucket. What holds
is then for play to say: bursts, routing and the reader's patience are in no programme.

Pure functions of their arguments. Needs SciPy (extra ``plan``).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.optimize import LinearConstraint, linprog, milp
from scipy.sparse import block_diag, csc_array, eye_array, hstack, vstack

from andes_sglang.request import RequestSpec
from andes_sglang.sim.engine import EngineModel
from andes_sglang.sim.whatif import work_s

__all__ = ["Mix", "Programme", "bucket_loads", "cheapest_mix"]

Array = npt.NDArray[np.float64]
Mix = tuple[int, ...]
"""Replicas of each kind."""
STRENGTHS = np.arange(0.70, 1.61, 0.03)
"""Of the mixes that are proposed, the cheapest of each: below, no fleet has held; above, a kind alone is cheaper."""
WEAKEST_NEIGHBOUR = 0.85
"""Neighbours of the best mix are played that have this share of its strength."""
MAX_REMOVED = 2
"""Replicas of one kind that a neighbour lacks."""
_CENT = 1e-6
"""Prices closer than this are equal."""


@dataclass(frozen=True, slots=True)
class Programme:
    """load: replicas kept busy, shape (kinds, buckets). factor: replicas needed for one that is busy, shape (kinds,).
    prices: per replica and hour, shape (kinds,)."""

    load: Array
    factor: Array
    prices: Array

    def price(self, mix: Sequence[int]) -> float:
        return float(self.prices @ np.array(mix, dtype=np.float64))

    def cheapest(self, strength: float, max_replicas: int) -> Mix | None:
        """The cheapest mix of this strength; None where it takes more than ``max_replicas``."""
        kinds, buckets = self.load.shape
        needed = strength * self.factor[:, None] * self.load
        busy = hstack([csc_array(block_diag([row[None, :] for row in needed])), -eye_array(kinds)])
        divided = hstack([csc_array(np.tile(np.eye(buckets), kinds)), csc_array((buckets, kinds))])
        fleet = csc_array(np.concatenate([np.zeros(kinds * buckets), np.ones(kinds)])[None, :])
        found = milp(
            np.concatenate([np.zeros(kinds * buckets), self.prices]),
            integrality=np.concatenate([np.zeros(kinds * buckets), np.ones(kinds)]),
            bounds=(0, np.inf),
            constraints=[
                LinearConstraint(busy, -np.inf, 0),
                LinearConstraint(divided, 1, 1),
                LinearConstraint(fleet, 1, max_replicas),
            ],
        )
        return None if found.x is None else tuple(int(n) for n in np.rint(found.x[-kinds:]))

    def strength(self, mix: Sequence[int]) -> float:
        """The most that ``mix`` has; 0 for one without a replica."""
        kinds, buckets = self.load.shape
        there = [g for g in range(kinds) if mix[g] > 0]
        if not there:
            return 0.0
        share = self.factor[there, None] * self.load[there] / np.array([mix[g] for g in there])[:, None]
        busy = hstack([csc_array(block_diag([row[None, :] for row in share])), csc_array(-np.ones((len(there), 1)))])
        divided = hstack([csc_array(np.tile(np.eye(buckets), len(there))), csc_array((buckets, 1))])
        cost = np.zeros(len(there) * buckets + 1)
        cost[-1] = 1.0
        found = linprog(cost, A_ub=vstack([busy]), b_ub=np.zeros(len(there)), A_eq=divided, b_eq=np.ones(buckets))
        return 1.0 / max(float(found.fun), 1e-12)


def bucket_loads(engines: Sequence[EngineModel], requests: Sequence[RequestSpec], span_s: float) -> Array:
    """Replicas of each engine that each bucket keeps busy, shape (kinds, buckets): buckets by powers of two of prompt and
    answer length, those that hold a request. span_s: seconds in which ``requests`` arrive."""
    lengths = np.array([(r.prompt_tokens, r.output_tokens) for r in requests], dtype=np.float64)
    names, bucket = np.unique(np.floor(np.log2(lengths)), axis=0, return_inverse=True)
    members = [[r for r, k in zip(requests, bucket.ravel()) if k == b] for b in range(len(names))]
    return np.array([[float(work_s(engine, those).sum()) / span_s for those in members] for engine in engines])


def cheapest_mix(
    holds: Callable[[Mix], bool],
    load: Array,
    alone: Sequence[int | None],
    prices: Sequence[float],
    *,
    max_replicas: int,
) -> Mix | None:
    """The cheapest mix for which ``holds`` that is found; None where none is known to.

    load: as :func:`bucket_loads` gives it. alone: the fewest replicas of each kind that hold without the others; None: not
    even ``max_replicas`` do. ``holds`` is asked about no mix twice, about none that is dearer than one known to hold, and,
    since more replicas never harm, about none that is part of a mix that fails. First the programme's proposals, from weak to
    strong, by bisection; then the neighbours of the cheapest that holds, until none of them does.
    """
    if all(n is None for n in alone):
        return None
    search = _Search(holds, _calibrated(load, alone, prices), alone, max_replicas)
    if len(alone) > 1:
        search.bisect(_proposals(search.programme, max_replicas, below=search.programme.price(search.best)))
        while search.improve():
            pass
    return search.best


def _calibrated(load: Array, alone: Sequence[int | None], prices: Sequence[float]) -> Programme:
    """By what each kind needs alone; one that never holds alone is taken to need as much more than its load as the others."""
    factors = np.array([np.nan if n is None else n / max(row.sum(), 1e-9) for n, row in zip(alone, load, strict=True)])
    factors[np.isnan(factors)] = np.nanmean(factors)
    return Programme(load, factors, np.array(prices, dtype=np.float64))


class _Search:
    """best: the cheapest mix that holds so far. failed: mixes that do not, and so no part of them."""

    def __init__(
        self, holds: Callable[[Mix], bool], programme: Programme, alone: Sequence[int | None], max_replicas: int
    ) -> None:
        def only(kind: int, replicas: int) -> Mix:
            return tuple(replicas if k == kind else 0 for k in range(len(alone)))

        self.holds, self.programme, self.max_replicas = holds, programme, max_replicas
        self.best = min((only(k, n) for k, n in enumerate(alone) if n is not None), key=programme.price)
        self.failed = [only(k, max_replicas if n is None else n - 1) for k, n in enumerate(alone)]

    def plays(self, mix: Mix) -> bool:
        """Whether ``mix`` holds, and is cheaper than the best: then it is the best. Not asked where that is known."""
        known = any(all(a <= b for a, b in zip(mix, other, strict=True)) for other in self.failed)
        if known or self.programme.price(mix) >= self.programme.price(self.best) - _CENT:
            return False
        if self.holds(mix):
            self.best = mix
            return True
        self.failed.append(mix)
        return False

    def bisect(self, proposals: Sequence[Mix]) -> None:
        """The first of ``proposals``, weakest first, that holds."""
        low, high = 0, len(proposals)
        while low < high:
            middle = (low + high) // 2
            low, high = (low, middle) if self.plays(proposals[middle]) else (middle + 1, high)

    def improve(self) -> bool:
        """Whether a neighbour of the best, the strongest first, is better."""
        strength = {
            mix: self.programme.strength(mix) for mix in _neighbours(self.programme, self.best, self.max_replicas)
        }
        enough = WEAKEST_NEIGHBOUR * self.programme.strength(self.best)
        near = sorted((mix for mix in strength if strength[mix] >= enough), key=strength.__getitem__, reverse=True)
        return any(self.plays(mix) for mix in near)


def _proposals(programme: Programme, max_replicas: int, *, below: float) -> list[Mix]:
    """The cheapest mix of each strength, weakest first, without what is no cheaper than ``below``."""
    found = dict.fromkeys(programme.cheapest(float(strength), max_replicas) for strength in STRENGTHS)
    return [mix for mix in found if mix is not None and programme.price(mix) < below - _CENT]


def _neighbours(programme: Programme, mix: Mix, max_replicas: int) -> Iterator[Mix]:
    """Cheaper mixes: one or two replicas of a kind fewer, and in their place as many of another as are cheaper still."""
    kinds = len(mix)
    seen: set[Mix] = set()
    for gone in range(kinds):
        for count in range(1, min(MAX_REMOVED, mix[gone]) + 1):
            fewer = tuple(n - count * (g == gone) for g, n in enumerate(mix))
            spare = programme.prices[gone] * count - 2 * _CENT
            for other in range(kinds):
                more = 0 if other == gone else int(spare / programme.prices[other])
                near = tuple(n + more * (g == other) for g, n in enumerate(fewer))
                if near not in seen and 0 < sum(near) <= max_replicas:
                    seen.add(near)
                    yield near
