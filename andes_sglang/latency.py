"""What an iteration, a prefill and a resume cost on this engine, learned from its own iterations.

A decode step costs ``c0 + c1 * batch + c2 * context_tokens``; a prefill ``p0 + p1 * new_tokens + p2 * prefix_tokens``
(Andes, version 2, section 4: latency is close to linear in batch size). Both are least-squares fits with exponential
forgetting and no negative coefficient, so a quiet hour or one slow step cannot turn a cost upside down.
"""

from __future__ import annotations

import itertools
import math
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

__all__ = ["Estimate", "LatencyModel", "LinearCost", "non_negative"]

MOST_UNSOLVED = 16
COPIES_MEMORY = 0.98
"""Weight of what was learned from earlier returns, at each."""
WARM_UP = 20

Array = npt.NDArray[np.float64]


class Estimate(NamedTuple):
    """A predicted duration and its standard error, both in seconds."""

    mean_s: float
    std_s: float


class LinearCost:
    """``seconds ~ coefficients . features``, fitted recursively; all coefficients stay >= 0.

    ``prior``: coefficients believed before anything was seen; ``scale``: typical size of each feature, so that the prior
    weighs alike on all; ``memory``: observations after which an old one has lost 63 % of its weight.
    """

    def __init__(self, prior: tuple[float, ...], scale: tuple[float, ...], memory: float = 2000.0) -> None:
        self._scale = np.array(scale)
        self._theta = np.array(prior) * self._scale
        self._coefficients = prior
        self._information = 1e-3 * np.eye(len(prior))
        self._moment = 1e-3 * self._theta
        self._ridge = 1e-9 * np.eye(len(prior))
        self._weights = np.exp(-np.arange(MOST_UNSOLVED + 1.0) / memory)
        self._unsolved: list[tuple[float, ...]] = []
        self._residual_power = 0.0
        self.observations = 0

    def observe(self, features: tuple[float, ...], seconds: float) -> None:
        """One measured duration. After a warm-up an outlier counts as no more than five times the prediction."""
        if not (math.isfinite(seconds) and seconds >= 0):
            return
        self._solve()
        self._unsolved.append((*features, seconds))
        self.observations += 1

    def _solve(self) -> None:
        """Fit anew after a few observations, at first after each."""
        if not self._unsolved or len(self._unsolved) < min(MOST_UNSOLVED, self.observations / 8):
            return
        seen = np.array(self._unsolved)
        x, seconds = seen[:, :-1] / self._scale, seen[:, -1]
        count = len(seen)
        self._unsolved = []
        predicted = x @ self._theta
        warm = max(0, WARM_UP - (self.observations - count))
        np.minimum(seconds[warm:], 5.0 * predicted[warm:], out=seconds[warm:])
        for number, error in enumerate((seconds - predicted).tolist(), start=self.observations - count + 1):
            self._residual_power += (error * error - self._residual_power) / min(number, 50.0)
        weighed = x * self._weights[count - 1 :: -1, None]
        keep = self._weights[count]
        self._information = keep * self._information + weighed.T @ x
        self._moment = keep * self._moment + seconds @ weighed
        a = self._information + self._ridge
        theta = np.linalg.solve(a, self._moment)
        self._theta = non_negative(a, self._moment) if (theta < 0).any() else theta
        self._coefficients = tuple((self._theta / self._scale).tolist())

    @property
    def coefficients(self) -> tuple[float, ...]:
        self._solve()
        return self._coefficients

    def estimate(self, features: tuple[float, ...]) -> Estimate:
        """Prediction and its standard error: residual noise and, where little was seen, the fit's own uncertainty."""
        self._solve()
        x = np.array(features, dtype=np.float64) / self._scale
        mean = float(x @ self._theta)
        leverage = float(x @ np.linalg.solve(self._information + self._ridge, x))
        noise = max(self._residual_power, (0.5 * mean) ** 2 if not self.observations else 0.0)
        return Estimate(mean, math.sqrt(noise * (1.0 + leverage)))


def non_negative(a: Array, b: Array) -> Array:
    """Minimise ``x.a.x / 2 - b.x`` over x >= 0 exactly, by trying every support (a handful of features)."""
    best, best_value = np.zeros_like(b), 0.0
    for size in range(1, len(b)):
        supports = np.array(list(itertools.combinations(range(len(b)), size)))
        target = b[supports]
        x = np.linalg.solve(a[supports[:, :, None], supports[:, None, :]], target[:, :, None])[:, :, 0]
        values = np.where((x >= 0).all(axis=1), -0.5 * (target * x).sum(axis=1), 0.0)
        k = int(values.argmin())
        if values[k] < best_value:
            best = np.zeros_like(b)
            best[supports[k]] = x[k]
            best_value = float(values[k])
    return best


class LatencyModel:
    """Costs of one engine, in seconds. Feed it iterations as they happen; ask it before every decision. ``mixed``: the engine
    decodes beside a prefill, which then costs no iteration of its own."""

    def __init__(self, *, mixed: bool = False) -> None:
        self.mixed = mixed
        self.decode = LinearCost(prior=(0.01, 2e-4, 2e-8), scale=(1.0, 16.0, 8192.0))
        self.prefill = LinearCost(prior=(0.01, 5e-5, 1e-7), scale=(1.0, 1024.0, 8192.0))
        self.load = LinearCost(prior=(0.0, 1e-5), scale=(1.0, 1024.0))
        self._copied_tokens = self._lost_tokens = 0.0

    def observe_decode(self, batch: int, context_tokens: int, seconds: float) -> None:
        self.decode.observe((1.0, float(batch), float(context_tokens)), seconds)

    def observe_prefill(self, new_tokens: int, prefix_tokens: int, seconds: float) -> None:
        self.prefill.observe((1.0, float(new_tokens), float(prefix_tokens)), seconds)

    def observe_mixed(
        self, new_tokens: int, prefix_tokens: int, batch: int, context_tokens: int, seconds: float
    ) -> None:
        """An iteration that computed ``new_tokens`` beside a decode step: what it took beyond such a step."""
        beyond_s = max(0.0, seconds - self.decode_s(batch, context_tokens))
        self.prefill.observe((0.0, float(new_tokens), float(prefix_tokens)), beyond_s)

    def observe_load(self, tokens: int, seconds: float) -> None:
        self.load.observe((1.0, float(tokens)), seconds)

    def observe_return(self, copied_tokens: int, computed_tokens: int) -> None:
        """A request preempted with ``copied_tokens`` in host memory is back, ``computed_tokens`` of them computed anew: room
        ran out, and their copies were given up for others."""
        self._copied_tokens = COPIES_MEMORY * self._copied_tokens + copied_tokens
        self._lost_tokens = COPIES_MEMORY * self._lost_tokens + min(computed_tokens, copied_tokens)

    @property
    def kept_share(self) -> float:
        """Of what is in host memory when a request is preempted, the share that is still there when it returns, in [0, 1]."""
        return 1.0 - self._lost_tokens / max(1.0, self._copied_tokens)

    def decode_s(self, batch: float, context_tokens: float) -> float:
        """Seconds of one decode step of ``batch`` requests over ``context_tokens`` KV tokens in all."""
        c = self.decode.coefficients
        return max(1e-6, c[0] + c[1] * batch + c[2] * context_tokens)

    def prefill_s(self, new_tokens: float, prefix_tokens: float = 0.0) -> float:
        """Seconds to compute ``new_tokens`` after a cached prefix of ``prefix_tokens``."""
        c = self.prefill.coefficients
        return max(1e-6, c[0] + c[1] * new_tokens + c[2] * prefix_tokens)

    def resume_s(self, new_tokens: Array | float, cached_tokens: Array | float, host_tokens: Array | float) -> Array:
        """Seconds, of the arguments' shape, until requests run that have ``cached_tokens``, ``host_tokens`` of them in host
        memory only: they are loaded while the others are computed. In a mixed iteration, what that adds to a decode step."""
        c, load = self.prefill.coefficients, self.load.coefficients
        compute_s = c[0] * (not self.mixed) + c[1] * new_tokens + c[2] * cached_tokens
        slower_s: Array = np.maximum(compute_s, load[0] * (host_tokens > 0) + load[1] * host_tokens)
        return np.maximum(slower_s, 1e-6)

    def load_s(self, tokens: float) -> float:
        """Seconds to copy the KV of ``tokens`` tokens from host memory."""
        c = self.load.coefficients
        return c[0] + c[1] * tokens if tokens > 0 else 0.0

    def uncertainty(self) -> tuple[float, float]:
        """Relative standard error of a decode step (batch 16, 8192 tokens) and of a prefill (1024 tokens)."""
        decode = self.decode.estimate((1.0, 16.0, 8192.0))
        prefill = self.prefill.estimate((1.0, 1024.0, 0.0))
        return decode.std_s / max(decode.mean_s, 1e-9), prefill.std_s / max(prefill.mean_s, 1e-9)
