"""The command line's flags that describe a workload, shared by ``bench``, ``compare``, ``simulate`` and ``plan``."""

from __future__ import annotations

import argparse
import math
import sys
from pathlib import Path

from andes_sglang.expectations import REASONING
from andes_sglang.qoe import QoETarget
from andes_sglang.workload.base import Workload, WorkloadError
from andes_sglang.workload.datasets import CHARACTERS_PER_TOKEN, Dataset, load_dataset
from andes_sglang.workload.lengths import parse_lengths
from andes_sglang.workload.measured import load_measured
from andes_sglang.workload.readers import POPULATIONS, readers_of
from andes_sglang.workload.shapes import draw_shape
from andes_sglang.workload.synthetic import Rates, SyntheticWorkload
from andes_sglang.workload.traces import FORMATS, load_trace
from andes_sglang.workload.traces.rates import load_rates

__all__ = ["add_arguments", "arrives_by_shape", "drawn_lengths", "from_arguments"]

SHAPE_RATE_RPS = 1.6
"""Default of ``--rate``, requests/s."""
SHAPE_DURATION_S = 180.0
"""Default of ``--duration`` for a shape: one burst and the calm around it."""
SHAPE_PROMPT, SHAPE_OUTPUT = "200-400", "150-250"
"""Defaults of ``--prompt`` and ``--output``, tokens."""
OF_SHAPES = {"intensity": "burst", "width": "burst", "cv": "gamma"}
"""Flags that only one shape has a use for."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags that :func:`from_arguments` reads."""
    source = parser.add_argument_group("workload")
    source.add_argument(
        "--trace", type=Path,
        help="a trace: Azure or BurstGPT CSV, Mooncake or andes jsonl[.gz], results of vLLM's, SGLang's, guidellm's or "
        "AIPerf's benchmark; a CSV of rates by window, for which lengths are those of a shape; or a data set (ShareGPT, "
        "prompts one a row), for which arrivals are; docs/traces.md has the columns",
    )  # fmt: skip
    source.add_argument("--format", help=f"its format, where it is not recognised: {', '.join(FORMATS)}")
    source.add_argument("--characters-per-token", type=float, metavar="N",
                        help=f"data set: tokens of a text are estimated so; default: {CHARACTERS_PER_TOKEN:g}")  # fmt: skip
    source.add_argument("--shape", help="without a trace: burst (default), poisson or gamma")
    source.add_argument("--rate", type=float, help="average requests/s of a shape; default 1.6")
    source.add_argument("--duration", type=float, default=None, help="seconds; default 180 for a shape, all of a trace")
    source.add_argument("--intensity", type=float, help="burst: peak over average; default: 2")
    source.add_argument("--width", type=float, help="burst: share of the duration; default: 0.35")
    source.add_argument("--cv", type=float, help="gamma: coefficient of variation of the gaps; default: 2")
    source.add_argument("--prompt", help=f"shape: prompt tokens, N, LOW-HIGH or p50=N,p90=N; default: {SHAPE_PROMPT}")
    source.add_argument("--output", help=f"shape: answer tokens, likewise; default: {SHAPE_OUTPUT}")
    source.add_argument("--thought", help="shape: tokens that are generated before each answer and not shown, likewise")
    source.add_argument("--reasoning", choices=REASONING, default="hidden",
                        help="whether readers are shown what is generated before the answer and read it too")  # fmt: skip
    source.add_argument("--start", type=float, default=0.0, help="trace: skip this many seconds")
    source.add_argument("--rate-scale", type=float, default=1.0, help="trace: arrivals this many times faster")
    source.add_argument("--prompt-scale", type=float, default=1.0, help="trace: prompt lengths times this")
    source.add_argument("--output-scale", type=float, default=1.0, help="trace: answer lengths times this")
    source.add_argument("--max-prompt", type=int, help="clamp prompts to this many tokens")
    source.add_argument("--max-output", type=int, help="clamp answers to this many tokens")
    source.add_argument("--limit", type=int, help="only the first N requests")
    source.add_argument("--tds", type=float, help="constant reading speed, tokens/s; default: a population")
    source.add_argument("--population", choices=tuple(POPULATIONS),
                        help="whose speeds of reading are drawn; default: reading")  # fmt: skip
    source.add_argument("--ttft", type=float, default=1.0,
                        help="expected seconds to first token; 0: by prompt length. A trace's own ttft_s and tds win "
                        "over these flags")  # fmt: skip
    source.add_argument("--seed", type=int, default=1, help="of everything random; each repeat takes the next")


def from_arguments(args: argparse.Namespace, seed: int) -> Workload | SyntheticWorkload:
    """The workload that the flags of :func:`add_arguments` describe. Raises :class:`WorkloadError`."""
    _check(args)
    dataset = _dataset(args)
    if args.trace is None or dataset is not None:
        workload = _shaped(args, dataset, seed)
    else:
        rates = load_rates(args.trace, start_s=args.start, duration_s=args.duration, scale=args.rate_scale)
        _check_no_shape(args)
        if rates is not None and args.format is None:
            return _drawn_at(rates, args, seed)
        workload = _traced(args, seed)
    if workload.left_out and seed == args.seed:
        print(f"{args.trace}: {workload.left_out} rows without a request are left out", file=sys.stderr)
    if args.reasoning == "shown":
        if not any(spec.reason_tokens for spec in workload):
            raise WorkloadError(f"--reasoning shown: {workload.name} has no thoughts; a shape has them by --thought")
        workload = workload.with_reasoning_shown()
    return workload.with_readers(seed, ttft_s=args.ttft or None, tds=args.tds, population=_population(args))


def arrives_by_shape(args: argparse.Namespace) -> bool:
    """Whether arrivals are drawn at ``args.rate``: without a trace, and of a data set's texts."""
    return args.trace is None or _dataset(args) is not None


def drawn_lengths(args: argparse.Namespace) -> tuple[str, str]:
    """``--prompt`` and ``--output``, as :func:`andes_sglang.workload.parse_lengths` takes them."""
    return args.prompt or SHAPE_PROMPT, args.output or SHAPE_OUTPUT


def _population(args: argparse.Namespace) -> str:
    return args.population or "reading"


def _dataset(args: argparse.Namespace) -> Dataset | None:
    if args.trace is None or args.format is not None:
        return None
    return load_dataset(args.trace, args.characters_per_token or CHARACTERS_PER_TOKEN)


def _shaped(args: argparse.Namespace, dataset: Dataset | None, seed: int) -> Workload:
    """A shape, with the lengths of ``dataset`` where there is one."""
    _check_no_trace(args, dataset)
    shape = args.shape or "burst"
    for flag, of in OF_SHAPES.items():
        if shape != of:
            _refuse(args, flag, f"is of --shape {of}; --shape {shape} has no use for it")
    given = {flag: getattr(args, flag) for flag in OF_SHAPES if getattr(args, flag) is not None}
    prompt, output = drawn_lengths(args)
    rate_rps = SHAPE_RATE_RPS if args.rate is None else args.rate
    workload = draw_shape(shape, rate_rps=rate_rps, duration_s=args.duration or SHAPE_DURATION_S, prompt=prompt,
                          output=output, seed=seed, thought=args.thought, **given)  # fmt: skip
    if dataset is not None:
        workload = dataset.applied_to(workload, seed)
        workload = workload.scaled(prompt_scale=args.prompt_scale, output_scale=args.output_scale)
    return workload.scaled(limit=args.limit, max_prompt=args.max_prompt, max_output=args.max_output)


def _traced(args: argparse.Namespace, seed: int) -> Workload:
    """A trace, or what another benchmark has measured."""
    for flag in ("prompt", "output"):
        _refuse(args, flag, f"not with --trace, whose lengths are played; see --{flag}-scale and --max-{flag}")
    measured = load_measured(args.trace, QoETarget()) if args.format is None else None
    workload = load_trace(args.trace, form=args.format, seed=seed) if measured is None else measured.workload()
    return workload.scaled(start_s=args.start, duration_s=args.duration, rate_scale=args.rate_scale,
                           prompt_scale=args.prompt_scale, output_scale=args.output_scale,
                           max_prompt=args.max_prompt, max_output=args.max_output, limit=args.limit)  # fmt: skip


def _check_no_trace(args: argparse.Namespace, dataset: Dataset | None) -> None:
    """What only a trace has: a format, a clock of its own, and without a data set lengths."""
    if args.format is not None:
        raise WorkloadError(f"--format {args.format}: is of traces; goes with --trace")
    of_a_trace = {"start": args.start != 0, "rate-scale": args.rate_scale != 1}
    if dataset is None:
        of_a_trace |= {"prompt-scale": args.prompt_scale != 1, "output-scale": args.output_scale != 1}
        _refuse(args, "characters_per_token", "is of data sets, which hold texts; goes with --trace")
    else:
        _refuse(args, "prompt", f"not with {args.trace}, whose prompts are taken; see --prompt-scale and --max-prompt")
        if dataset.has_answers:
            _refuse(
                args, "output", f"not with {args.trace}, whose answers are taken; see --output-scale and --max-output"
            )
    for flag in (flag for flag, given in of_a_trace.items() if given):
        what = "a shape" if dataset is None else f"{args.trace}, a data set, which"
        raise WorkloadError(
            f"--{flag} {getattr(args, flag.replace('-', '_')):g}: is of traces; {what} arrives as --rate and --shape say"
        )


def _check_no_shape(args: argparse.Namespace) -> None:
    for flag in ("shape", "rate", *OF_SHAPES):
        _refuse(args, flag, "not with --trace, whose arrivals are played; see --rate-scale")
    _refuse(args, "thought", "not with --trace, whose lengths are played")
    _refuse(args, "characters_per_token", f"is of data sets, which hold texts; {args.trace} holds lengths")


def _refuse(args: argparse.Namespace, flag: str, why: str) -> None:
    """A flag that would be ignored in silence. Raises :class:`WorkloadError` where it was given."""
    value = getattr(args, flag)
    if value is not None:
        told = f"{value:g}" if isinstance(value, float) else value
        raise WorkloadError(f"--{flag.replace('_', '-')} {told}: {why}")


def _check(args: argparse.Namespace) -> None:
    for flag in ("rate_scale", "prompt_scale", "output_scale", "duration", "characters_per_token"):
        value = getattr(args, flag)
        if value is not None and not 0 < value < math.inf:
            raise WorkloadError(f"--{flag.replace('_', '-')} must be > 0, got {value!r}")
    for flag in ("limit", "max_prompt", "max_output"):
        value = getattr(args, flag)
        if value is not None and value < 1:
            raise WorkloadError(f"--{flag.replace('_', '-')} must be >= 1, got {value!r}")
    if args.tds is not None:
        _refuse(args, "population", f"not with --tds {args.tds:g}, the speed of all readers")
    if not 0 <= args.start < math.inf:
        raise WorkloadError(f"--start must be >= 0 seconds, got {args.start!r}")
    if args.seed < 0:
        raise WorkloadError(f"--seed must be >= 0, got {args.seed!r}")
    try:
        QoETarget(args.ttft, args.tds if args.tds is not None else QoETarget().tds)
    except ValueError as error:
        raise WorkloadError(f"--ttft / --tds: {error}") from None


def _drawn_at(rates: Rates, args: argparse.Namespace, seed: int) -> SyntheticWorkload:
    """Requests drawn at the rates of ``--trace``, with the lengths and readers of a shape."""
    refused = {
        "limit": args.limit,
        "max-prompt": args.max_prompt,
        "max-output": args.max_output,
        "prompt-scale": args.prompt_scale != 1,
        "output-scale": args.output_scale != 1,
        "ttft 0": not args.ttft,
        "reasoning shown": args.reasoning == "shown",
    }
    for flag in (flag for flag, given in refused.items() if given):
        raise WorkloadError(f"--{flag}: not with {args.trace}, which holds rates, not requests")
    prompt, output = drawn_lengths(args)
    parse_lengths(prompt), parse_lengths(output)
    readers = readers_of(_population(args), ttft_s=args.ttft, tds=args.tds)
    name = f"{args.trace.name}, rates times {args.rate_scale:g}"
    return SyntheticWorkload(name, rates, prompt, output, readers, seed)
