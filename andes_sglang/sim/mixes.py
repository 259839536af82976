"""Mixes of several kinds of replica by integer programme, as Mélange chooses them (arXiv 2404.14527, section 5).

Requests fall into buckets of prompt and answer length. ``load[g, b]`` is how many replicas of kind g the requests of bucket
b would keep busy, all of them, in batches of their own; ``factor[g]`` how many times as many it takes for the objective to
hold, as play has shown of that kind alone. A mix ``y`` has strength s where the requests can be divided so that
``s * factor[g] * sum_b x[g, b] load[g, b] <= y[g]`` for every kind, with ``sum_g x[g, b] = 1`` for every bucket. What holds
is then for play to say: bursts, routing and the reader's patience are in no programme. Of the mixes that the programme
proposes the one is played that promises most: the probability that it holds, which grows with its strength and is learned
from every play, times what it would save.

Pure functions of their arguments. Needs SciPy (extra ``plan``).
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

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
STRENGTHS = np.arange(0.6, 1.51, 0.05)
"""Of the mixes that are proposed, the cheapest of each."""
THRESHOLDS = np.linspace(0.5, 1.6, 111)
"""Strengths from which on a mix may hold."""
USUAL_THRESHOLD, THRESHOLD_SPREAD, WIDTH = 1.0, 0.15, 0.04
"""What is believed of that strength before any mix is played: mean, standard deviation, and how sharp it is."""
WORTH_A_PLAY = 0.004
"""Of the best price: a mix is played that promises to save this, on average."""
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
    since more replicas never harm, about none that is part of a mix that fails.
    """
    if all(n is None for n in alone):
        return None
    search = _Search(holds, _calibrated(load, alone, prices), alone, max_replicas)
    while search.play():
        pass
    return search.best


def _calibrated(load: Array, alone: Sequence[int | None], prices: Sequence[float]) -> Programme:
    """By what each kind needs alone. That n hold and n - 1 do not says little where n is small, so the factor of a kind is as
    near to the others' as these bounds allow; one that never holds alone has the others'."""
    busy = np.maximum(load.sum(axis=1), 1e-9)
    most = np.array([np.inf if n is None else n for n in alone]) / busy
    least = np.array([0.0 if n is None else n - 1 + 1e-3 for n in alone]) / busy
    weights = np.array([0.0 if n is None else n for n in alone])
    common = float(np.average(np.where(weights > 0, 0.5 * (least + np.minimum(most, 1e9)), 0.0), weights=weights))
    return Programme(load, np.clip(common, least, most), np.array(prices, dtype=np.float64))


class _Search:
    """best: the cheapest mix that holds so far. failed: mixes that do not, and so no part of them. pool: mixes that may be
    played, with their strengths."""

    def __init__(
        self, holds: Callable[[Mix], bool], programme: Programme, alone: Sequence[int | None], max_replicas: int
    ) -> None:
        def only(kind: int, replicas: int) -> Mix:
            return tuple(replicas if k == kind else 0 for k in range(len(alone)))

        self.holds, self.programme, self.max_replicas = holds, programme, max_replicas
        self.best = min((only(k, n) for k, n in enumerate(alone) if n is not None), key=programme.price)
        self.failed = [only(k, max_replicas if n is None else n - 1) for k, n in enumerate(alone)]
        self.pool: dict[Mix, float] = {}
        self._belief = -0.5 * ((THRESHOLDS - USUAL_THRESHOLD) / THRESHOLD_SPREAD) ** 2
        if len(alone) > 1:
            self._consider(_proposals(programme, max_replicas, below=programme.price(self.best)))
            self._consider(_neighbours(programme, self.best, max_replicas))

    def _consider(self, mixes: Iterator[Mix]) -> None:
        for mix in mixes:
            if mix not in self.pool:
                self.pool[mix] = self.programme.strength(mix)

    def _promise(self, mix: Mix) -> float:
        """What playing ``mix`` would save on average; 0 where nothing can come of it."""
        if any(all(a <= b for a, b in zip(mix, other, strict=True)) for other in self.failed):
            return 0.0
        saved = self.programme.price(self.best) - self.programme.price(mix)
        belief = np.exp(self._belief - self._belief.max())
        return float(belief @ _sigmoid((self.pool[mix] - THRESHOLDS) / WIDTH)) / float(belief.sum()) * max(0.0, saved)

    def play(self) -> bool:
        """Play the mix that promises most; whether there was one worth it."""
        mix = max(self.pool, key=self._promise, default=None)
        if mix is None or self._promise(mix) < WORTH_A_PLAY * self.programme.price(self.best):
            return False
        held = self.holds(mix)
        away = (self.pool.pop(mix) - THRESHOLDS) / WIDTH
        self._belief += np.log(_sigmoid(away if held else -away))
        if held:
            self.best = mix
            self._consider(_neighbours(self.programme, mix, self.max_replicas))
        else:
            self.failed.append(mix)
        return True


def _sigmoid(x: Array) -> Array:
    return np.asarray(1.0 / (1.0 + np.exp(-np.clip(x, -30.0, 30.0))))


def _proposals(programme: Programme, max_replicas: int, *, below: float) -> Iterator[Mix]:
    """The cheapest mix of each strength, of all kinds and of every two, without what is no cheaper than ``below``."""
    kinds = len(programme.prices)
    choices = {tuple(range(kinds)), *itertools.combinations(range(kinds), 2)}
    for chosen in sorted(choices):
        rows = list(chosen)
        some = replace(
            programme, load=programme.load[rows], factor=programme.factor[rows], prices=programme.prices[rows]
        )
        for strength in STRENGTHS:
            found = some.cheapest(float(strength), max_replicas)
            if found is None or some.price(found) >= below - _CENT:
                break  # stronger ones are dearer still
            yield tuple(found[rows.index(k)] if k in rows else 0 for k in range(kinds))


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
