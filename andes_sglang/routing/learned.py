"""A ladder's rung by what a small network learned in simulated fleets: the rival of :mod:`andes_sglang.routing.value`.

Named ``andes_sglang.routing.learned:Learned``. Its options are what ``andes train-router`` wrote.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from andes_sglang.routing.least_load import LeastLoad
from andes_sglang.stream_forecast import IncomingStream, ReplicaView

__all__ = ["Learned", "RungRouter"]

Array = npt.NDArray[np.float64]
RATE_MEMORY_S = 5.0
"""Seconds after which an arrival has lost 63 % of its weight in the rate."""
LOAD_SCALE, RATE_SCALE, TDS_SCALE = 100.0, 10.0, 10.0
"""Streams per replica, requests/s and tokens/s that stand for 1 in the network's input."""


class RungRouter:
    """``choose(state)`` says what each rung is worth, shape (rungs,); within a rung, the replica with the fewest streams.

    qualities: of the rungs, the best first; a view counts for the nearest. The state, shape (rungs + 3,), is that of Learned
    best-effort serving (arXiv 2401.07886): streams per replica of each rung (a rung without replicas is full), arrivals per
    second, and what the reader expects (seconds to the first token, tokens/s) in the place of a task.
    """

    def __init__(self, qualities: Sequence[float], choose: Callable[[Array], Array]) -> None:
        self.qualities, self._choose = np.array(qualities), choose
        self._least_load = LeastLoad()
        self._rate, self._at_s = 0.0, -math.inf

    def order(self, new: IncomingStream, views: Sequence[ReplicaView], now_s: float) -> list[ReplicaView]:
        views = self._least_load.order(new, views, now_s)
        rungs = [int(np.abs(self.qualities - view.quality).argmin()) for view in views]
        worth = self._choose(self._state(new, views, rungs, now_s))
        return [view for _, view in sorted(zip(rungs, views), key=lambda pair: -worth[pair[0]])]

    def _state(self, new: IncomingStream, views: Sequence[ReplicaView], rungs: Sequence[int], now_s: float) -> Array:
        self._rate = 1 / RATE_MEMORY_S + self._rate * math.exp(min(0.0, self._at_s - now_s) / RATE_MEMORY_S)
        self._at_s = now_s
        replicas = np.bincount(rungs, minlength=len(self.qualities))
        streams = np.bincount(rungs, [view.load for view in views], len(self.qualities))
        load = np.where(replicas > 0, streams / np.maximum(replicas, 1) / LOAD_SCALE, 1.0)
        return np.array([*load, self._rate / RATE_SCALE, new.target.ttft_s, new.target.tds / TDS_SCALE])


class Learned(RungRouter):
    """The rung with the largest learned value. weights: ``qualities`` of the rungs, the best first, and ``layers``, each with
    ``matrix`` and ``bias``, rectified between.

    When: to compare with ``value``, which needs no training and does as well or better (docs/benchmarks/ladder.md). Cost: two
    small products. It knows the engines, lengths and loads that it was trained with, and no caches. Raises ``ValueError``.
    """

    name: ClassVar[str] = "learned"

    def __init__(self, weights: Mapping[str, Any]) -> None:
        qualities, layers = _parse(weights)

        def choose(state: Array) -> Array:
            for matrix, bias in layers[:-1]:
                state = np.maximum(0.0, matrix @ state + bias)
            matrix, bias = layers[-1]
            worth: Array = matrix @ state + bias
            return worth

        super().__init__(qualities, choose)


def _parse(weights: Mapping[str, Any]) -> tuple[list[float], list[tuple[Array, Array]]]:
    """Qualities, and (matrix, bias) of each layer. Raises ``ValueError``."""
    try:
        qualities = [float(quality) for quality in weights["qualities"]]
        layers = [(np.array(layer["matrix"], float), np.array(layer["bias"], float)) for layer in weights["layers"]]
        widths = [len(qualities) + 3, *(len(bias) for _, bias in layers)]
        fits = [matrix.shape == (out, into) for (matrix, _), into, out in zip(layers, widths, widths[1:])]
    except (KeyError, TypeError, ValueError):
        raise ValueError(
            "weights: expected qualities, and layers of matrix and bias in numbers, as andes train-router writes them"
        ) from None
    if not (layers and all(fits) and widths[-1] == len(qualities)):
        raise ValueError(f"weights: layers that do not fit {len(qualities)} rungs")
    return qualities, layers
