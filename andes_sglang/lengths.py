"""How long will this answer be? Learned from finished answers, by who asks and by how long the prompt is.

    lengths = LengthEstimator()
    keys = length_keys(tenant="acme", class_name="chat", prompt_tokens=900, prompt_head=b"You are a ...")
    guess = lengths.estimate(keys)             log-normal: guess.median_tokens, guess.quantile(0.9)
    guess.remaining_tokens(120)                tokens still to come of an answer that has 120
    lengths.learn(keys, 431)                   it ended by itself
    lengths.learn(keys, 512, finished=False)   it was cut at ``max_tokens``: a lower bound

Log lengths are averaged per key with exponential forgetting. Keys are given from wide to narrow; each one's mean and variance
are shrunk towards the next wider one's, the more so the fewer answers it has seen, so that a new tenant starts from what its
class does. Who asks tells more than what is asked: see docs/benchmarks/answer-lengths.md.

:func:`length_keys` are hashes, so no text of a prompt is kept; they are forgotten least recently used first.
"""

from __future__ import annotations

import hashlib
import math
from collections import OrderedDict
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any, NamedTuple, Protocol

import numpy as np

__all__ = [
    "AnswerLengths", "Asked", "EngineLengths", "LengthEstimate", "LengthEstimator", "SimilarPrompts", "length_keys",
]  # fmt: skip

_NORMAL = NormalDist()

PRIOR_MEDIAN_TOKENS, PRIOR_SIGMA = 256.0, 1.0
"""Before any answer: medians of public chat and reasoning traces lie between 100 and 764 tokens, sigmas at 0.7 to 1.3."""
MEMORY_ANSWERS = 50.0
"""Answers of a key after which an old one counts 1/e; 20 and 50 differ by about .01 of Kendall's tau (recorded traces)."""
SHRINK_ANSWERS = 8.0
"""Answers of a key that weigh as much as what the next wider key says (our choice, not measured)."""
BUCKETS_PER_OCTAVE = 2
"""Buckets of prompt length per doubling."""
MAX_KEYS = 20_000
"""Keys kept, least recently used first to go (our choice)."""
MIN_SIGMA = 0.05
"""Of log length: answers that were all alike may still differ by 5 % (our choice)."""
MAX_LENGTH_TOKENS = 10_000_000


@dataclass(frozen=True, slots=True)
class LengthEstimate:
    """A log-normal length. mu, sigma: mean and standard deviation of the logarithm of the length in tokens."""

    mu: float
    sigma: float

    @property
    def median_tokens(self) -> float:
        return math.exp(self.mu)

    @property
    def mean_tokens(self) -> float:
        return math.exp(self.mu + 0.5 * self.sigma**2)

    def quantile(self, share: float) -> float:
        """Tokens that ``share`` of such answers stay below; ``share`` in (0, 1). Raises ``ValueError`` for another."""
        if not 0.0 < share < 1.0:
            raise ValueError(f"share must be between 0 and 1, got {share!r}")
        return math.exp(self.mu + self.sigma * _NORMAL.inv_cdf(share))

    def remaining_tokens(self, output_tokens: float) -> float:
        """Tokens still to come, on average, of an answer that has ``output_tokens`` and goes on: E[L - n | L > n], >= 1."""
        return float(mean_remaining_tokens(self.mu, self.sigma, output_tokens))


def mean_remaining_tokens(mu: Any, sigma: Any, output_tokens: Any) -> Any:
    """E[L - n | L > n] of a log-normal L, at least 1; arrays of one shape, or scalars.

    With z = (mu - ln n) / sigma the mean of what exceeds n is exp(mu + sigma^2 / 2) Phi(z + sigma) / Phi(z). It falls while
    an answer is shorter than its guess, and grows for one that has outlived it.
    """
    n = np.maximum(np.asarray(output_tokens, dtype=np.float64), 1e-9)
    z = (mu - np.log(n)) / sigma
    mean = np.exp(mu + 0.5 * np.square(sigma) + _log_normal_cdf(z + sigma) - _log_normal_cdf(z))
    return np.maximum(mean - n, 1.0)


def _log_normal_cdf(z: Any) -> Any:
    """ln Phi(z), relative error of Phi below 2e-7 for every z (rational Chebyshev fit of erfc, Numerical Recipes 6.2)."""
    x = np.abs(z) / math.sqrt(2.0)
    t = 1.0 / (1.0 + 0.5 * x)
    poly = np.polyval(_ERFC, t)
    log_upper = np.log(0.5 * t) - x * x + poly
    return np.where(np.asarray(z) < 0, log_upper, np.log1p(-np.exp(log_upper)))


_ERFC = (
    0.17087277, -0.82215223, 1.48851587, -1.13520398, 0.27886807, -0.18628806, 0.09678418, 0.37409196, 1.00002368,
    -1.26551223,
)  # fmt: skip
"""Coefficients of ln(erfc(x) / t) + x^2 as a polynomial in t = 1 / (1 + x / 2), highest power first."""


def length_keys(
    *,
    tenant: str | None,
    class_name: str,
    prompt_tokens: int,
    prompt_head: bytes | None = None,
    salt: bytes = b"lengths",
) -> tuple[bytes, ...]:
    """Keys of a request, from wide to narrow: class, bucket of prompt length in it, tenant, tenant and bucket, and the head
    of the prompt (its first tokens or bytes: an application's instructions) of that tenant. Hashes of 8 bytes, keyed by
    ``salt``, of which at most 64 bytes count."""
    bucket = prompt_bucket(prompt_tokens)
    parts: list[tuple[object, ...]] = [("class", class_name), ("prompt", class_name, bucket)]
    if tenant is not None:
        parts += [("tenant", class_name, tenant), ("tenant", class_name, tenant, bucket)]
    if prompt_head:
        parts.append(("head", class_name, tenant, prompt_head))
    return tuple(hashlib.blake2b(repr(part).encode(), key=salt[:64], digest_size=8).digest() for part in parts)


def prompt_bucket(prompt_tokens: int) -> int:
    """Prompts of about the same length: half a doubling."""
    return int(BUCKETS_PER_OCTAVE * math.log2(max(1, prompt_tokens)))


class _Moments(NamedTuple):
    """Of the log lengths of one key, with old ones forgotten: how many count, their mean and variance."""

    answers: float
    mean: float
    variance: float

    def with_one(self, mean: float, variance: float, fading: float) -> _Moments:
        """One answer more, whose log length is ``mean``, known up to ``variance``; those before count ``fading`` times."""
        answers = self.answers * fading + 1.0
        step = 1.0 / answers
        off = mean - self.mean
        spread = (1.0 - step) * (self.variance + step * off * off) + step * variance
        return _Moments(answers, self.mean + step * off, spread)


class LengthEstimator:
    """See the module. memory_answers: answers of a key after which an old one counts 1/e. max_keys: keys kept. Raises
    ``ValueError``."""

    def __init__(self, *, memory_answers: float = MEMORY_ANSWERS, max_keys: int = MAX_KEYS) -> None:
        if not memory_answers >= 1:
            raise ValueError(f"memory_answers must be >= 1, got {memory_answers!r}")
        if not max_keys >= 1:
            raise ValueError(f"max_keys must be >= 1, got {max_keys!r}")
        self._fading, self._max_keys = math.exp(-1.0 / memory_answers), max_keys
        self._by_key: OrderedDict[Hashable, _Moments] = OrderedDict()
        self._all: _Moments | None = None

    def __len__(self) -> int:
        """Keys known."""
        return len(self._by_key)

    def estimate(self, keys: Sequence[Hashable]) -> LengthEstimate:
        """The length of an answer to a request with ``keys``, from wide to narrow."""
        mean, variance = self._shrunk(self._all, math.log(PRIOR_MEDIAN_TOKENS), PRIOR_SIGMA**2)
        for key in keys:
            mean, variance = self._shrunk(self._by_key.get(key), mean, variance)
        return LengthEstimate(mean, max(MIN_SIGMA, math.sqrt(variance)))

    def learn(self, keys: Sequence[Hashable], output_tokens: int, *, finished: bool = True) -> None:
        """An answer of ``output_tokens`` has ended; ``finished`` False: it was cut there (``max_tokens``), so that its length
        is known only to be no less. An answer that was aborted teaches nothing: leave it out. Raises ``ValueError``."""
        if not 0 <= output_tokens <= MAX_LENGTH_TOKENS:
            raise ValueError(f"output_tokens must be from 0 to {MAX_LENGTH_TOKENS}, got {output_tokens!r}")
        log_length, variance = math.log(max(1, output_tokens)), 0.0
        if not finished:
            log_length, variance = _beyond(self.estimate(keys), log_length)
        self._all = self._moved(self._all, log_length, variance)
        for key in keys:
            self._by_key[key] = self._moved(self._by_key.pop(key, None), log_length, variance)
        while len(self._by_key) > self._max_keys:
            self._by_key.popitem(last=False)

    def _moved(self, known: _Moments | None, log_length: float, variance: float) -> _Moments:
        return (known or _Moments(0.0, log_length, variance)).with_one(log_length, variance, self._fading)

    @staticmethod
    def _shrunk(known: _Moments | None, mean: float, variance: float) -> tuple[float, float]:
        """Mean and variance of a key between its own and those of the next wider one."""
        if known is None:
            return mean, variance
        own = known.answers / (known.answers + SHRINK_ANSWERS)
        apart = known.mean - mean
        return mean + own * apart, own * known.variance + (1.0 - own) * (variance + own * apart * apart)


class Asked(NamedTuple):
    """What is known of a request when it comes. told_tokens: the length of its answer, as its caller says. prompt_head: its
    first tokens or bytes. class_name, tenant: of the caller, where the engine is told."""

    prompt_tokens: int
    told_tokens: int | None = None
    prompt_head: bytes | None = None
    class_name: str = ""
    tenant: str | None = None

    def as_keys(self) -> tuple[bytes, ...]:
        """:func:`length_keys` of it."""
        return length_keys(
            tenant=self.tenant, class_name=self.class_name, prompt_tokens=self.prompt_tokens, prompt_head=self.prompt_head
        )  # fmt: skip


class AnswerLengths(Protocol):
    """How an engine foresees its answers; a policy may bring one of its own, as ``answer_lengths``."""

    def expected_tokens(self, asked: Asked) -> float:
        """Length of the answer in tokens; what the request says, where it does."""
        ...

    def learn(self, asked: Asked, output_tokens: int, *, finished: bool) -> None:
        """As :meth:`LengthEstimator.learn`."""
        ...


class EngineLengths:
    """What an engine knows of the answers to come: what requests say, else what it has learned for prompts as long."""

    def __init__(self) -> None:
        self._lengths = LengthEstimator()

    def expected_tokens(self, asked: Asked) -> float:
        """The median; see :class:`AnswerLengths`."""
        if asked.told_tokens is not None:
            return float(asked.told_tokens)
        return self._lengths.estimate(self._keys(asked)).median_tokens

    def learn(self, asked: Asked, output_tokens: int, *, finished: bool) -> None:
        self._lengths.learn(self._keys(asked), output_tokens, finished=finished)

    def _keys(self, asked: Asked) -> tuple[Hashable, ...]:
        return (prompt_bucket(asked.prompt_tokens),)


class SimilarPrompts(EngineLengths):
    """The same for prompts that begin alike and are as long, of the same caller where the engine is told."""

    def _keys(self, asked: Asked) -> tuple[Hashable, ...]:
        return asked.as_keys()


def _beyond(guess: LengthEstimate, log_length: float) -> tuple[float, float]:
    """Mean and variance of the log length of an answer that would have gone beyond ``log_length``: of a normal distribution
    cut off below it (expectation step of a Tobit fit)."""
    a = (log_length - guess.mu) / guess.sigma
    hazard = math.exp(-0.5 * a * a - 0.5 * math.log(2 * math.pi) - float(_log_normal_cdf(-a)))
    return guess.mu + guess.sigma * hazard, guess.sigma**2 * max(0.0, 1.0 + a * hazard - hazard * hazard)
