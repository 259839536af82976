"""What is replayed: who arrives when, with how long a prompt and answer, and how fast each of them reads.

Read from the public formats of Azure, Mooncake and BurstGPT and from ``jsonl[.gz]``, or drawn from a shape. Everything
random comes from one seed.
"""

from __future__ import annotations

import argparse
import csv
import gzip
import io
import itertools
import json
import math
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np

from andes_sglang.qoe import QoETarget
from andes_sglang.request import RequestSpec

__all__ = [
    "LISTENING",
    "READING",
    "Rates",
    "RequestSpec",
    "Stream",
    "Workload",
    "WorkloadError",
    "add_arguments",
    "burst",
    "from_arguments",
    "gamma",
    "load",
    "load_rates",
    "mean_length",
    "poisson",
    "readers_of",
    "shape",
]

BLOCK_TOKENS = 512
READING = ((0.2804, 0.196), (0.5187, 0.230), (0.1119, 0.240), (0.0556, 0.249), (0.0333, 0.264))
LISTENING = ((0.7929, 0.31), (0.0703, 0.15), (0.0692, 0.19), (0.0358, 0.15), (0.0317, 0.13))
POPULATIONS = {"reading": READING, "listening": LISTENING}
"""Share of users and seconds per token (Andes, version 2, section 2: reading by age group, listening by language)."""


class WorkloadError(ValueError):
    """A workload that cannot be read or makes no sense; the text says where."""


Rates = tuple[tuple[float, float], ...]
"""Duration in seconds and requests per second of windows that follow each other."""


@dataclass(frozen=True, slots=True)
class Workload:
    """Requests in order of arrival, and in words where they came from."""

    name: str
    requests: tuple[RequestSpec, ...]

    def __iter__(self) -> Iterator[RequestSpec]:
        return iter(self.requests)

    def __len__(self) -> int:
        return len(self.requests)

    @property
    def duration_s(self) -> float:
        return self.requests[-1].arrival_s if self.requests else 0.0

    def describe(self) -> dict[str, Any]:
        prompts = [r.prompt_tokens for r in self.requests]
        outputs = [r.output_tokens for r in self.requests]
        return {
            "name": self.name,
            "requests": len(self.requests),
            "duration_s": round(self.duration_s, 3),
            "rate_rps": round(len(self.requests) / self.duration_s, 4) if self.duration_s else None,
            "prompt_tokens": {"mean": float(np.mean(prompts)), "max": max(prompts)},
            "output_tokens": {"mean": float(np.mean(outputs)), "max": max(outputs)},
        }

    def scaled(
        self,
        *,
        rate_scale: float = 1.0,
        prompt_scale: float = 1.0,
        output_scale: float = 1.0,
        max_prompt: int | None = None,
        max_output: int | None = None,
        start_s: float = 0.0,
        duration_s: float | None = None,
        limit: int | None = None,
    ) -> Workload:
        """The window [start_s, start_s + duration_s) of the original clock, then rate and lengths scaled and clamped."""
        kept = [
            replace(
                r,
                arrival_s=(r.arrival_s - start_s) / rate_scale,
                prompt_tokens=_clamp(r.prompt_tokens * prompt_scale, max_prompt),
                output_tokens=_clamp(r.output_tokens * output_scale, max_output),
                blocks=r.blocks if prompt_scale == 1.0 else (),
            )
            for r in self.requests
            if start_s <= r.arrival_s < start_s + (duration_s if duration_s is not None else math.inf)
        ]
        if not kept:
            raise WorkloadError(f"{self.name}: no request arrives within {duration_s} s of second {start_s:g}")
        return Workload(self.name, tuple(kept[:limit]))

    def with_readers(self, seed: int, *, ttft_s: float | None, tds: float | None, population: str | None) -> Workload:
        """The same requests with expectations: a constant ``tds``, or speeds drawn from ``population``.

        ``ttft_s`` None means ``max(1, prompt_tokens / 5000)``, the expectation for long prompts.
        """
        rng = np.random.default_rng(seed + 7919)
        table = POPULATIONS[population or "reading"]
        share = np.array([s for s, _ in table])
        drawn = rng.choice([1.0 / pace for _, pace in table], size=len(self.requests), p=share / share.sum())
        return Workload(
            self.name,
            tuple(
                replace(
                    r,
                    target=QoETarget(
                        max(1.0, r.prompt_tokens / 5000) if ttft_s is None else ttft_s,
                        float(speed) if tds is None else tds,
                    ),
                )
                for r, speed in zip(self.requests, drawn, strict=True)
            ),
        )


@dataclass(frozen=True, slots=True)
class Stream:
    """A workload drawn while it is read, the same each time: Poisson arrivals at a rate that changes by window.

    rates: ``(duration_s, rate_rps)`` of each window. prompt, output: lengths as in :func:`lengths`. readers:
    ``(share, target)`` of each kind of reader. A Stream of millions of requests takes no more memory than one window's.
    """

    name: str
    rates: Rates
    prompt: str
    output: str
    readers: tuple[tuple[float, QoETarget], ...]
    seed: int = 1

    @property
    def duration_s(self) -> float:
        return sum(duration_s for duration_s, _ in self.rates)

    def __len__(self) -> int:
        """About how many there will be."""
        return round(sum(duration_s * rate for duration_s, rate in self.rates))

    @property
    def requests(self) -> tuple[RequestSpec, ...]:
        return tuple(self)

    def __iter__(self) -> Iterator[RequestSpec]:
        rng = np.random.default_rng(self.seed)
        draw_prompt, draw_output = lengths(self.prompt), lengths(self.output)
        share = np.array([share for share, _ in self.readers])
        targets = [target for _, target in self.readers]
        since = 0.0
        for duration_s, rate in self.rates:
            count = int(rng.poisson(duration_s * rate))
            times = since + np.sort(rng.uniform(0, duration_s, count))
            kinds = rng.choice(len(targets), count, p=share / share.sum())
            for at, kind in zip(times.tolist(), kinds.tolist()):
                yield RequestSpec(at, draw_prompt(rng), draw_output(rng), targets[kind])
            since += duration_s

    def describe(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "requests": len(self),
            "duration_s": round(self.duration_s, 3),
            "rate_rps": round(len(self) / self.duration_s, 4),
            "prompt_tokens": {"mean": mean_length(self.prompt)},
            "output_tokens": {"mean": mean_length(self.output)},
        }


def readers_of(
    population: str, *, ttft_s: float = 1.0, tds: float | None = None
) -> tuple[tuple[float, QoETarget], ...]:
    """The kinds of readers of a population, ``reading`` or ``listening``; with ``tds`` one constant kind."""
    if tds is not None:
        return ((1.0, QoETarget(ttft_s, tds)),)
    return tuple((share, QoETarget(ttft_s, 1.0 / pace)) for share, pace in POPULATIONS[population])


def _clamp(tokens: float, most: int | None) -> int:
    return max(1, min(round(tokens), most if most is not None else 1 << 30))


# Shapes

Lengths = Callable[[np.random.Generator], int]


def lengths(text: str) -> Lengths:
    """``200`` constant, ``200-400`` uniform, ``p50=210,p90=431,p99=638`` piecewise log-linear between quantiles."""
    try:
        if "=" in text:
            points = sorted(
                (float(k.strip().lstrip("p")) / 100, float(v)) for k, v in (p.split("=") for p in text.split(","))
            )
            quantiles = [0.0, *(q for q, _ in points), 1.0]
            values = [points[0][1] / 4, *(v for _, v in points), points[-1][1] * 1.5]
            if any(q <= 0 or q >= 1 for q, _ in points) or any(b < a or a <= 0 for a, b in itertools.pairwise(values)):
                raise ValueError
            logs = np.log(values)
            return lambda rng: max(1, round(float(np.exp(np.interp(rng.random(), quantiles, logs)))))
        low, _, high = text.partition("-")
        first, last = int(low), int(high or low)
        if not 1 <= first <= last:
            raise ValueError
        return lambda rng: int(rng.integers(first, last + 1))
    except ValueError:
        raise WorkloadError(f"lengths {text!r}: expected N, LOW-HIGH or p50=N,p90=N,p99=N in tokens") from None


def mean_length(text: str) -> float:
    """Mean of the distribution that ``text`` describes, in tokens."""
    draw, rng = lengths(text), np.random.default_rng(0)
    return float(np.mean([draw(rng) for _ in range(2000)]))


def _requests(times: Sequence[float], prompt: str, output: str, rng: np.random.Generator) -> tuple[RequestSpec, ...]:
    draw_prompt, draw_output = lengths(prompt), lengths(output)
    return tuple(RequestSpec(t, draw_prompt(rng), draw_output(rng)) for t in times)


def poisson(rate_rps: float, duration_s: float, prompt: str, output: str, seed: int) -> Workload:
    return gamma(rate_rps, duration_s, 1.0, prompt, output, seed, name=f"poisson {rate_rps:g}/s for {duration_s:g} s")


def gamma(
    rate_rps: float, duration_s: float, cv: float, prompt: str, output: str, seed: int, name: str | None = None
) -> Workload:
    """Gaps from a Gamma distribution with coefficient of variation ``cv`` (1: Poisson)."""
    rng = np.random.default_rng(seed)
    times: list[float] = []
    at = 0.0
    while True:
        at += float(rng.gamma(1.0 / cv**2, cv**2 / rate_rps))
        if at >= duration_s:
            break
        times.append(at)
    name = name or f"gamma cv {cv:g}, {rate_rps:g}/s for {duration_s:g} s"
    return Workload(name, _requests(times, prompt, output, rng))


def burst(
    rate_rps: float, duration_s: float, intensity: float, width: float, prompt: str, output: str, seed: int
) -> Workload:
    """One cycle: calm, a burst at ``intensity`` times the average for ``width`` of it, calm; Poisson inside each phase."""
    peak = intensity * rate_rps
    calm = (rate_rps - peak * width) / (1.0 - width)
    if calm < 0:
        raise WorkloadError(f"burst: intensity {intensity:g} x width {width:g} exceeds 1, nothing is left for the calm")
    rng = np.random.default_rng(seed)
    begin, end = duration_s * (1 - width) / 2, duration_s * (1 + width) / 2
    times: list[float] = []
    for rate, since, until in ((calm, 0.0, begin), (peak, begin, end), (calm, end, duration_s)):
        at = since
        while rate > 0:
            at += float(rng.exponential(1.0 / rate))
            if at >= until:
                break
            times.append(at)
    name = f"burst {intensity:g}x for {width:.0%} of {duration_s:g} s, {rate_rps:g}/s on average"
    return Workload(name, _requests(times, prompt, output, rng))


def shape(
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
) -> Workload:
    for label, value in (("--rate", rate_rps), ("--duration", duration_s), ("--intensity", intensity), ("--cv", cv)):
        if not (math.isfinite(value) and value > 0):
            raise WorkloadError(f"{label} must be > 0, got {value!r}")
    if not 0 < width < 1:
        raise WorkloadError(f"--width must be between 0 and 1, got {width!r}")
    if kind == "poisson":
        workload = poisson(rate_rps, duration_s, prompt, output, seed)
    elif kind == "gamma":
        workload = gamma(rate_rps, duration_s, cv, prompt, output, seed)
    elif kind == "burst":
        workload = burst(rate_rps, duration_s, intensity, width, prompt, output, seed)
    else:
        raise WorkloadError(f"--shape {kind!r}: choose poisson, gamma or burst")
    if not workload.requests:
        raise WorkloadError(f"{workload.name}: nobody arrives; raise --rate or --duration")
    return workload


# Files


class _Row:
    """One row of a file, asked for its fields by name; what is missing or makes no sense is named with its place."""

    def __init__(self, path: Path, number: int, fields: dict[str, Any]) -> None:
        self.place = f"{path}, row {number}"
        self.fields = fields

    def number(self, name: str, least: float) -> float:
        value = self.fields.get(name)
        try:
            number = float(value)  # type: ignore[arg-type]
        except (TypeError, ValueError):
            raise WorkloadError(f"{self.place}, field {name}: expected a number, got {value!r}") from None
        if isinstance(value, bool) or not math.isfinite(number) or number < least:
            raise WorkloadError(f"{self.place}, field {name}: must be >= {least:g}, got {value!r}")
        return number

    def tokens(self, name: str, least: int = 1) -> int:
        return int(self.number(name, least))

    def timestamp(self, name: str) -> float:
        value = str(self.fields.get(name))
        try:
            return datetime.fromisoformat(value[:26]).timestamp()
        except ValueError:
            raise WorkloadError(f"{self.place}, field {name}: expected a date and time, got {value!r}") from None


def _azure(row: _Row) -> RequestSpec:
    return RequestSpec(
        row.timestamp("TIMESTAMP"), row.tokens("ContextTokens"), max(1, row.tokens("GeneratedTokens", 0))
    )


def _burstgpt(row: _Row) -> RequestSpec | None:
    output = row.tokens("Response tokens", 0)
    return RequestSpec(row.number("Timestamp", 0), row.tokens("Request tokens"), output) if output else None


def _mooncake(row: _Row) -> RequestSpec:
    ids = row.fields.get("hash_ids", [])
    if not isinstance(ids, list) or not all(isinstance(i, int) for i in ids):
        raise WorkloadError(f"{row.place}, field hash_ids: expected a list of whole numbers, got {ids!r}")
    return RequestSpec(
        row.number("timestamp", 0) / 1000,
        row.tokens("input_length"),
        max(1, row.tokens("output_length", 0)),
        blocks=tuple(ids),
    )


def _ours(row: _Row) -> RequestSpec:
    runs = row.fields.get("blocks") or []
    try:
        blocks = tuple(i for start, count in runs for i in range(int(start), int(start) + int(count)))
    except (TypeError, ValueError):
        raise WorkloadError(f"{row.place}, field blocks: expected [[start, count], ...], got {runs!r}") from None
    session = row.fields.get("session_id")
    return RequestSpec(
        row.number("arrival_s", 0),
        row.tokens("prompt_tokens"),
        row.tokens("output_tokens"),
        session_id=None if session is None else str(session),
        blocks=blocks,
    )


_FORMATS: dict[str, tuple[str, Callable[[_Row], RequestSpec | None]]] = {
    "andes": ("arrival_s", _ours),
    "mooncake": ("input_length", _mooncake),
    "azure": ("ContextTokens", _azure),
    "burstgpt": ("Response tokens", _burstgpt),
}


def _rows(path: Path) -> Iterator[_Row]:
    try:
        raw = path.read_bytes()
        text = (gzip.decompress(raw) if path.suffix == ".gz" else raw).decode("utf-8-sig")
    except OSError as error:
        raise WorkloadError(f"{path}: cannot be read ({error.strerror or error})") from None
    except (EOFError, zlib.error) as error:
        raise WorkloadError(f"{path}: a damaged gzip file ({error})") from None
    except UnicodeDecodeError:
        raise WorkloadError(f"{path}: not a text file") from None
    if text.lstrip().startswith("{"):
        for number, line in enumerate(text.splitlines(), start=1):
            if line.strip():
                try:
                    fields = json.loads(line)
                except json.JSONDecodeError as error:
                    raise WorkloadError(
                        f"{path}, row {number}: not JSON ({error.msg} at column {error.colno})"
                    ) from None
                if not isinstance(fields, dict):
                    raise WorkloadError(f"{path}, row {number}: expected an object, got {fields!r}")
                yield _Row(path, number, fields)
    else:
        for number, fields in enumerate(csv.DictReader(io.StringIO(text)), start=2):
            yield _Row(path, number, fields)


def load_rates(
    path: Path, *, start_s: float = 0.0, duration_s: float | None = None, scale: float = 1.0
) -> Rates | None:
    """Windows ``(duration_s, rate_rps)`` of a CSV with ``window_start_s`` and ``rate_rps``; None for any other file.

    scale: rates times this. The last window is as long as the one before it.
    """
    lines = _rows(path)
    first = next(lines, None)
    if first is None or "rate_rps" not in first.fields:
        return None
    rows = [first, *lines]
    starts = [row.number("window_start_s", 0) for row in rows]
    if len(rows) < 2 or any(b <= a for a, b in itertools.pairwise(starts)):
        raise WorkloadError(f"{path}, field window_start_s: expected two or more windows in order")
    starts.append(2 * starts[-1] - starts[-2])
    until = start_s + (duration_s if duration_s is not None else math.inf)
    cut = [(min(b, until) - max(a, start_s), row.number("rate_rps", 0) * scale)
           for row, a, b in zip(rows, starts, starts[1:])]  # fmt: skip
    kept = tuple((length, rate) for length, rate in cut if length > 0)
    if not kept or not any(rate for _, rate in kept):
        raise WorkloadError(f"{path}: nobody arrives within {duration_s} s of second {start_s:g}")
    return kept


def load(path: Path, *, form: str | None = None, seed: int = 0) -> Workload:
    """Read a trace. The format is recognised by its fields unless ``form`` names it.

    Arrivals start at 0. Mooncake's clock ticks every 3 s: its arrivals are spread inside the tick, by ``seed``.
    """
    rows = iter(_rows(path))
    first = next(rows, None)
    if first is None:
        raise WorkloadError(f"{path}: empty")
    if form is None:
        form = next((name for name, (key, _) in _FORMATS.items() if key in first.fields), None)
        if form is None:
            known = ", ".join(f"{name} ({key})" for name, (key, _) in _FORMATS.items())
            raise WorkloadError(f"{first.place}: no known format; looked for the fields of {known}")
    if form not in _FORMATS:
        raise WorkloadError(f"--format {form!r}: choose one of {', '.join(_FORMATS)}")
    parse = _FORMATS[form][1]
    specs = [spec for spec in (parse(first), *(parse(row) for row in rows)) if spec is not None]
    if form == "mooncake":
        rng = np.random.default_rng(seed)
        specs = [replace(s, arrival_s=s.arrival_s + float(rng.uniform(0, 3))) for s in specs]
    specs.sort(key=lambda s: s.arrival_s)
    origin = specs[0].arrival_s if specs else 0.0
    return Workload(path.name, tuple(replace(s, arrival_s=s.arrival_s - origin) for s in specs))


# Command line


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of the command line that describe a workload."""
    source = parser.add_argument_group("workload")
    source.add_argument(
        "--trace", type=Path,
        help="a trace: Azure or BurstGPT CSV, Mooncake or andes jsonl[.gz]; or a CSV of rates by window, for which lengths "
        "are those of a shape",
    )  # fmt: skip
    source.add_argument("--format", help="its format, where it is not recognised: andes, mooncake, azure, burstgpt")
    source.add_argument("--shape", default="burst", help="without a trace: burst (default), poisson or gamma")
    source.add_argument("--rate", type=float, default=1.6, help="average requests/s of a shape")
    source.add_argument("--duration", type=float, default=None, help="seconds; default 180 for a shape, all of a trace")
    source.add_argument("--intensity", type=float, default=2.0, help="burst: peak over average")
    source.add_argument("--width", type=float, default=0.35, help="burst: share of the duration")
    source.add_argument("--cv", type=float, default=2.0, help="gamma: coefficient of variation of the gaps")
    source.add_argument("--prompt", default="200-400", help="shape: prompt tokens, N, LOW-HIGH or p50=N,p90=N")
    source.add_argument("--output", default="150-250", help="shape: answer tokens, likewise")
    source.add_argument("--start", type=float, default=0.0, help="trace: skip this many seconds")
    source.add_argument("--rate-scale", type=float, default=1.0, help="trace: arrivals this many times faster")
    source.add_argument("--prompt-scale", type=float, default=1.0, help="trace: prompt lengths times this")
    source.add_argument("--output-scale", type=float, default=1.0, help="trace: answer lengths times this")
    source.add_argument("--max-prompt", type=int, help="clamp prompts to this many tokens")
    source.add_argument("--max-output", type=int, help="clamp answers to this many tokens")
    source.add_argument("--limit", type=int, help="only the first so many requests")
    source.add_argument("--tds", type=float, help="constant reading speed, tokens/s; default: a population")
    source.add_argument("--population", choices=("reading", "listening"), default="reading")
    source.add_argument("--ttft", type=float, default=1.0, help="expected seconds to first token; 0: by prompt length")
    source.add_argument("--seed", type=int, default=1)


def from_arguments(args: argparse.Namespace, seed: int) -> Workload | Stream:
    """The workload that the flags of :func:`add_arguments` describe. Raises :class:`WorkloadError`."""
    for flag in ("rate_scale", "prompt_scale", "output_scale", "duration"):
        value = getattr(args, flag)
        if value is not None and not 0 < value < math.inf:
            raise WorkloadError(f"--{flag.replace('_', '-')} must be > 0, got {value!r}")
    for flag in ("limit", "max_prompt", "max_output"):
        value = getattr(args, flag)
        if value is not None and value < 1:
            raise WorkloadError(f"--{flag.replace('_', '-')} must be >= 1, got {value!r}")
    if not 0 <= args.start < math.inf:
        raise WorkloadError(f"--start must be >= 0 seconds, got {args.start!r}")
    if args.seed < 0:
        raise WorkloadError(f"--seed must be >= 0, got {args.seed!r}")
    try:
        QoETarget(args.ttft, args.tds if args.tds is not None else QoETarget().tds)
    except ValueError as error:
        raise WorkloadError(f"--ttft / --tds: {error}") from None
    if args.trace is not None and args.format is None:
        rates = load_rates(args.trace, start_s=args.start, duration_s=args.duration, scale=args.rate_scale)
        if rates is not None:
            given = {"limit": args.limit, "max-prompt": args.max_prompt, "max-output": args.max_output}
            given |= {
                "prompt-scale": args.prompt_scale != 1,
                "output-scale": args.output_scale != 1,
                "ttft 0": not args.ttft,
            }
            for flag in (flag for flag, value in given.items() if value):
                raise WorkloadError(f"--{flag}: not with {args.trace}, which holds rates, not requests")
            readers = readers_of(args.population, ttft_s=args.ttft, tds=args.tds)
            lengths(args.prompt), lengths(args.output)
            name = f"{args.trace.name}, rates times {args.rate_scale:g}"
            return Stream(name, rates, args.prompt, args.output, readers, seed)
    if args.trace is not None:
        workload = load(args.trace, form=args.format, seed=seed)
        workload = workload.scaled(start_s=args.start, duration_s=args.duration, rate_scale=args.rate_scale,
                                   prompt_scale=args.prompt_scale, output_scale=args.output_scale,
                                   max_prompt=args.max_prompt, max_output=args.max_output, limit=args.limit)  # fmt: skip
    else:
        workload = shape(args.shape, rate_rps=args.rate, duration_s=args.duration or 180.0, prompt=args.prompt,
                         output=args.output, seed=seed, intensity=args.intensity, width=args.width, cv=args.cv)  # fmt: skip
        workload = workload.scaled(limit=args.limit, max_prompt=args.max_prompt, max_output=args.max_output)
    return workload.with_readers(seed, ttft_s=args.ttft or None, tds=args.tds, population=args.population)
