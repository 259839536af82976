"""Drawn workloads: Poisson arrivals, Gamma gaps, one burst between two calm phases."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from andes_sglang.request import RequestSpec
from andes_sglang.workload.base import Workload, WorkloadError
from andes_sglang.workload.lengths import parse_lengths

__all__ = ["burst", "draw_shape", "gamma", "poisson", "thoughtful"]

MAX_REQUESTS = 1_000_000
"""Of a shape: they are drawn at once, and more take gigabytes; a trace of rates is drawn as it is played."""
THOUGHT_SEED_OFFSET = 6737
"""Keeps the draw of thoughts apart from the draw of arrivals and answers, which starts from the same seed."""


def poisson(rate_rps: float, duration_s: float, prompt: str, output: str, seed: int) -> Workload:
    """Gaps from an exponential distribution; lengths as in :func:`andes_sglang.workload.parse_lengths`."""
    name = f"poisson {rate_rps:g}/s for {duration_s:g} s"
    return gamma(rate_rps, duration_s, cv=1.0, prompt=prompt, output=output, seed=seed, name=name)


def gamma(
    rate_rps: float, duration_s: float, *, cv: float, prompt: str, output: str, seed: int, name: str | None = None
) -> Workload:
    """Gaps from a Gamma distribution with coefficient of variation ``cv`` (1: Poisson)."""
    rng = np.random.default_rng(seed)
    times_s: list[float] = []
    at_s = 0.0
    while True:
        at_s += float(rng.gamma(1.0 / cv**2, cv**2 / rate_rps))
        if at_s >= duration_s:
            break
        times_s.append(at_s)
    name = name or f"gamma cv {cv:g}, {rate_rps:g}/s for {duration_s:g} s"
    return Workload(name, _requests(times_s, prompt, output, rng))


def burst(
    rate_rps: float, duration_s: float, *, intensity: float, width: float, prompt: str, output: str, seed: int
) -> Workload:
    """One cycle: calm, a burst at ``intensity`` times the average for ``width`` of it, calm; Poisson inside each phase.

    The rate over the whole cycle is ``rate_rps``. Raises :class:`WorkloadError` where the burst would hold more than all.
    """
    peak = intensity * rate_rps
    calm = (rate_rps - peak * width) / (1.0 - width)
    if calm < 0:
        raise WorkloadError(f"burst: intensity {intensity:g} x width {width:g} exceeds 1, nothing is left for the calm")
    rng = np.random.default_rng(seed)
    begin_s, end_s = duration_s * (1 - width) / 2, duration_s * (1 + width) / 2
    times_s: list[float] = []
    for rate, since_s, until_s in ((calm, 0.0, begin_s), (peak, begin_s, end_s), (calm, end_s, duration_s)):
        at_s = since_s
        while rate > 0:
            at_s += float(rng.exponential(1.0 / rate))
            if at_s >= until_s:
                break
            times_s.append(at_s)
    name = f"burst {intensity:g}x for {width:.0%} of {duration_s:g} s, {rate_rps:g}/s on average"
    return Workload(name, _requests(times_s, prompt, output, rng))


def draw_shape(
    kind: str,
    *,
    rate_rps: float,
    duration_s: float,
    prompt: str,
    output: str,
    seed: int,
    intensity: float = 2.0,
    width: float = 0.35,
    cv: float = 2.0,
    thought: str | None = None,
) -> Workload:
    """``poisson``, ``gamma`` or ``burst``. thought: lengths of what is generated before each answer and not shown. Raises
    :class:`WorkloadError` naming the command line's flag."""
    for label, value in (("--rate", rate_rps), ("--duration", duration_s), ("--intensity", intensity), ("--cv", cv)):
        if not (math.isfinite(value) and value > 0):
            raise WorkloadError(f"{label} must be > 0, got {value!r}")
    if not 0 < width < 1:
        raise WorkloadError(f"--width must be between 0 and 1, got {width!r}")
    if rate_rps * duration_s > MAX_REQUESTS:
        raise WorkloadError(
            f"--rate {rate_rps:g} for --duration {duration_s:g}: {rate_rps * duration_s:.3g} requests, and a shape has at "
            f"most {MAX_REQUESTS:,}; a --trace of rates by window has no such limit (docs/traces.md)"
        )
    if kind == "poisson":
        workload = poisson(rate_rps, duration_s, prompt, output, seed)
    elif kind == "gamma":
        workload = gamma(rate_rps, duration_s, cv=cv, prompt=prompt, output=output, seed=seed)
    elif kind == "burst":
        workload = burst(rate_rps, duration_s, intensity=intensity, width=width, prompt=prompt, output=output,
                         seed=seed)  # fmt: skip
    else:
        raise WorkloadError(f"--shape {kind!r}: choose poisson, gamma or burst")
    if not workload.requests:
        raise WorkloadError(f"{workload.name}: no request arrives; raise --rate or --duration")
    return workload if thought is None else thoughtful(workload, thought, seed)


def thoughtful(workload: Workload, thought: str, seed: int) -> Workload:
    """The same requests, before whose answers a thought is generated that is not shown; its lengths as in
    :func:`andes_sglang.workload.parse_lengths`."""
    draw, rng = parse_lengths(thought), np.random.default_rng(seed + THOUGHT_SEED_OFFSET)
    thoughts = [draw(rng) for _ in workload.requests]
    requests = tuple(
        replace(r, output_tokens=r.output_tokens + n, reason_tokens=n)
        for r, n in zip(workload.requests, thoughts, strict=True)
    )
    return Workload(workload.name, requests, workload.stated)


def _requests(times_s: Sequence[float], prompt: str, output: str, rng: np.random.Generator) -> tuple[RequestSpec, ...]:
    draw_prompt, draw_output = parse_lengths(prompt), parse_lengths(output)
    return tuple(RequestSpec(at_s, draw_prompt(rng), draw_output(rng)) for at_s in times_s)
