"""What an iteration, a prefill and a resume cost on this engine, learned from its own iterations.

A decode step costs ``c0 + c1 * batch + c2 * context_tokens``; a prefill ``p0 + p1 * new_tokens + p2 * prefix_tokens``
(Andes, version 2, section 4: latency is close to linear in batch size). Both are least-squares fits with exponential
forgetting and no negative coefficient, so a quiet hour or one slow step cannot turn a cost upside down.

Feed a :class:`LatencyModel` the iterations of an engine as they end, and ask it what the next ones will take.
"""

from __future__ import annotations

import itertools
import math
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

__all__ = ["Estimate", "LatencyModel", "LinearCost", "non_negative"]

MEMORY_OBSERVATIONS = 2000.0
"""Observations after which one has lost 63 % of its weight: about a minute of decode steps (our choice)."""
MAX_PENDING_OBSERVATIONS = 16
"""Observations that are fitted at once: half the time of a fit after each (measured on a CPU), and no staler than a decision
could notice."""
PENDING_SHARE = 1 / 8
"""Of all observations so far: at most this share waits to be fitted, so that the first ones count at once (our choice)."""
WARM_UP_OBSERVATIONS = 20
"""First observations that are taken as they are: the prior may be off by orders of magnitude (our choice)."""
MAX_OUTLIER_RATIO = 5.0
"""A later observation counts as at most this many times its prediction: a pause of the process is not the engine's cost
(our choice; a real change is followed all the same, by this factor at a time)."""
RESIDUAL_MEMORY_OBSERVATIONS = 50.0
"""Observations over which the square of the residual is averaged (our choice)."""
PRIOR_WEIGHT = 1e-3
"""Weight of the prior, in observations of typical size: what is never observed keeps it."""
RIDGE = 1e-9
"""Added to the diagonal of the normal equations so that they can be solved, in squared observations of typical size."""
UNSEEN_RELATIVE_ERROR = 0.5
"""Standard error, relative to the prediction, while nothing has been observed (our choice)."""
RETURN_MEMORY = 0.98
"""Weight, at each return of a stream, of what earlier returns taught: about 50 returns (our choice)."""
MIN_ITERATION_S = 1e-6
"""Seconds: no iteration is predicted to take less, so that rates stay finite."""

DECODE_PRIOR = (0.01, 2e-4, 2e-8)
"""Seconds, seconds/request, seconds/context token: the order of an 8B model on one GPU, until this engine is known."""
PREFILL_PRIOR = (0.01, 5e-5, 1e-7)
"""Seconds, seconds/new token, seconds/prefix token: likewise."""
LOAD_PRIOR = (0.0, 1e-5)
"""Seconds, seconds/token: 128 KiB of KV a token at 13 GB/s, likewise."""
TYPICAL_DECODE = (1.0, 16.0, 8192.0)
"""One iteration, requests, context tokens: the size at which the prior weighs alike on each, and uncertainty is told."""
TYPICAL_PREFILL = (1.0, 1024.0, 8192.0)
TYPICAL_LOAD = (1.0, 1024.0)

Array = npt.NDArray[np.float64]


class Estimate(NamedTuple):
    """A predicted duration and its standard error, both in seconds."""

    mean_s: float
    std_s: float


class LinearCost:
    """``seconds ~ coefficients . features``, fitted recursively; all coefficients stay >= 0.

    prior: coefficients believed before anything was seen. scale: typical size of each feature, so that the prior weighs alike
    on all. memory: observations after which an old one has lost 63 % of its weight.
    """

    def __init__(self, prior: tuple[float, ...], scale: tuple[float, ...], memory: float = MEMORY_OBSERVATIONS) -> None:
        self._scale = np.array(scale)
        self._theta = np.array(prior) * self._scale
        self._coefficients = prior
        self._information = PRIOR_WEIGHT * np.eye(len(prior))
        self._moment = PRIOR_WEIGHT * self._theta
        self._ridge = RIDGE * np.eye(len(prior))
        self._weights = np.exp(-np.arange(MAX_PENDING_OBSERVATIONS + 1.0) / memory)
        self._pending: list[tuple[float, ...]] = []
        self._residual_power = 0.0
        self.observations = 0

    def observe(self, features: tuple[float, ...], seconds: float) -> None:
        """One measured duration; what is no duration (negative, infinite, NaN) is left out."""
        if not (math.isfinite(seconds) and seconds >= 0):
            return
        self._fit_pending()
        self._pending.append((*features, seconds))
        self.observations += 1

    def _fit_pending(self) -> None:
        """Fit what is pending, once there is enough of it."""
        count = len(self._pending)
        if not count or count < min(MAX_PENDING_OBSERVATIONS, self.observations * PENDING_SHARE):
            return
        pending = np.array(self._pending)
        self._pending = []
        x, seconds = pending[:, :-1] / self._scale, pending[:, -1]
        predicted = x @ self._theta
        warm = max(0, WARM_UP_OBSERVATIONS - (self.observations - count))
        np.minimum(seconds[warm:], MAX_OUTLIER_RATIO * predicted[warm:], out=seconds[warm:])
        for number, error in enumerate((seconds - predicted).tolist(), start=self.observations - count + 1):
            self._residual_power += (error * error - self._residual_power) / min(number, RESIDUAL_MEMORY_OBSERVATIONS)
        weighted = x * self._weights[count - 1 :: -1, None]
        kept = self._weights[count]
        self._information = kept * self._information + weighted.T @ x
        self._moment = kept * self._moment + seconds @ weighted
        a = self._information + self._ridge
        theta = np.linalg.solve(a, self._moment)
        self._theta = non_negative(a, self._moment) if (theta < 0).any() else theta
        self._coefficients = tuple((self._theta / self._scale).tolist())

    @property
    def coefficients(self) -> tuple[float, ...]:
        """Seconds per unit of each feature."""
        self._fit_pending()
        return self._coefficients

    def estimate(self, features: tuple[float, ...]) -> Estimate:
        """Prediction and its standard error: residual noise and, where little was seen, the fit's own uncertainty."""
        self._fit_pending()
        x = np.array(features, dtype=np.float64) / self._scale
        mean = float(x @ self._theta)
        leverage = float(x @ np.linalg.solve(self._information + self._ridge, x))
        noise = max(self._residual_power, (UNSEEN_RELATIVE_ERROR * mean) ** 2 if not self.observations else 0.0)
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
    """Costs of one engine, in seconds. mixed: the engine decodes beside a prefill (``--enable-mixed-chunk``), which then has
    no iteration of its own."""

    def __init__(self, *, mixed: bool = False) -> None:
        self.mixed = mixed
        self.decode = LinearCost(DECODE_PRIOR, TYPICAL_DECODE)
        self.prefill = LinearCost(PREFILL_PRIOR, TYPICAL_PREFILL)
        self.load = LinearCost(LOAD_PRIOR, TYPICAL_LOAD)
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
        """A request preempted with ``copied_tokens`` in host memory is back, and ``computed_tokens`` were computed again:
        room ran out there, and their copies were given up for others."""
        self._copied_tokens = RETURN_MEMORY * self._copied_tokens + copied_tokens
        self._lost_tokens = RETURN_MEMORY * self._lost_tokens + min(computed_tokens, copied_tokens)

    @property
    def kept_share(self) -> float:
        """Of what is in host memory when a request is preempted, the share that is still there when it returns, in [0, 1]."""
        return 1.0 - self._lost_tokens / max(1.0, self._copied_tokens)

    def decode_s(self, batch: float, context_tokens: float) -> float:
        """Seconds of one decode step of ``batch`` requests over ``context_tokens`` KV tokens in all."""
        c = self.decode.coefficients
        return max(MIN_ITERATION_S, c[0] + c[1] * batch + c[2] * context_tokens)

    def prefill_s(self, new_tokens: float, prefix_tokens: float = 0.0) -> float:
        """Seconds to compute ``new_tokens`` after a cached prefix of ``prefix_tokens``."""
        c = self.prefill.coefficients
        return max(MIN_ITERATION_S, c[0] + c[1] * new_tokens + c[2] * prefix_tokens)

    def resume_s(self, new_tokens: Array | float, cached_tokens: Array | float, host_tokens: Array | float) -> Array:
        """Seconds, of the arguments' shape, until requests run that have ``cached_tokens``, ``host_tokens`` of them in host
        memory only: they are loaded while the others are computed. In a mixed iteration, what that adds to a decode step.

        A cached token is taken to cost no more than a new one. The fit knows no such bound: the first returns from host
        memory, whose prefix is all there is to explain what they take, teach that prefixes are dear, and then none would be
        preempted to teach otherwise.
        """
        c, load = self.prefill.coefficients, self.load.coefficients
        compute_s = c[0] * (not self.mixed) + c[1] * new_tokens + min(c[1], c[2]) * cached_tokens
        slower_s: Array = np.maximum(compute_s, load[0] * (host_tokens > 0) + load[1] * host_tokens)
        return np.maximum(slower_s, MIN_ITERATION_S)

    def load_s(self, tokens: float) -> float:
        """Seconds to copy the KV of ``tokens`` tokens from host memory."""
        c = self.load.coefficients
        return c[0] + c[1] * tokens if tokens > 0 else 0.0

    def uncertainty(self) -> tuple[float, float]:
        """Relative standard error of a decode step (batch 16, 8192 tokens) and of a prefill (1024 tokens)."""
        decode = self.decode.estimate(TYPICAL_DECODE)
        prefill = self.prefill.estimate((*TYPICAL_PREFILL[:2], 0.0))
        return decode.std_s / max(decode.mean_s, 1e-9), prefill.std_s / max(prefill.mean_s, 1e-9)
