"""``andes bench``, ``andes compare``, ``andes score`` and ``andes report``."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from andes_sglang import results, summary
from andes_sglang.bench.client import EndpointError
from andes_sglang.bench.compare import Comparison
from andes_sglang.bench.engine import EngineError
from andes_sglang.bench.measure import ReplayOptions, client_machine, measure, parse_vocabulary
from andes_sglang.flags import (
    UsageError,
    add_arm_arguments,
    add_run_arguments,
    arms_of,
    base_url,
    check_arms,
    check_model,
    check_run,
)
from andes_sglang.qoe import QoETarget
from andes_sglang.request import RecordsError
from andes_sglang.workload import Measured, WorkloadError, from_arguments, load_measured
from andes_sglang.workload import add_arguments as add_workload_arguments
from andes_sglang.workload.measured import TOOLS

__all__ = ["USER_ERRORS", "add_arguments"]

NO_COMPLETIONS = ("HTTP 400", "HTTP 404", "HTTP 405")
"""How the errors begin of a server that knows no completions, or not of token ids."""
USER_ERRORS = (WorkloadError, EndpointError, EngineError, RecordsError)


def add_arguments(parser: argparse.ArgumentParser, command: str) -> None:
    """Add the flags of ``bench``, ``compare``, ``score`` or ``report``."""
    adds = {
        "bench": _bench_arguments, "compare": _compare_arguments, "score": _score_arguments, "report": _report_arguments,
    }  # fmt: skip
    adds[command](parser)


def _bench_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = _bench.__doc__
    parser.add_argument("--url", required=True, help="base address of an OpenAI-compatible endpoint")
    parser.add_argument("--model", help="which of its models; default: the first that it lists")
    parser.add_argument("--name", default="endpoint", help="what to call it in the results")
    parser.add_argument(
        "--endpoint", choices=("completions", "chat"), default="completions",
        help="completions: prompts of token ids; chat: of words, for servers that serve chat only; default: %(default)s",
    )  # fmt: skip
    parser.add_argument("--api-key", default=os.environ.get("OPENAI_API_KEY"), help="default: OPENAI_API_KEY")
    _add_workload(parser)
    parser.set_defaults(run=_bench)


def _compare_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = _compare.__doc__
    parser.epilog = "Every flag not listed here is passed to each engine."
    parser.add_argument("--model", required=True, help="model directory")
    add_arm_arguments(parser, policies="stock,andes")
    add_run_arguments(parser, sustained="a stock engine sustains, measured before every repeat")
    parser.add_argument(
        "--at-once", action="store_true",
        help="run the policies of a repeat at the same time, each on an engine of its own and, where there are enough, on "
        "CPU cores of its own: other load of a shared machine then disturbs all of them alike",
    )  # fmt: skip
    _add_workload(parser)
    parser.set_defaults(run=_compare)


def _score_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = _score.__doc__
    parser.add_argument(
        "files", type=Path, nargs="+", metavar="FILE", help=f"results of {', '.join(TOOLS)}; docs/traces.md"
    )
    parser.add_argument("--ttft", type=float, default=1.0, metavar="S", help="expected seconds to first token")
    parser.add_argument("--tds", type=float, default=4.8, metavar="T", help="reading speed, tokens/s")
    results.add_out(parser, "out/score")
    parser.set_defaults(run=_score)


def _report_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = _report.__doc__
    parser.add_argument("directory", type=Path, help="of a finished run: --out of bench, compare or simulate")
    parser.add_argument("--figures", action="store_true",
                        help="also its charts as SVG files with captions, in figures/: for a paper")  # fmt: skip
    parser.set_defaults(run=_report)


def _add_workload(parser: argparse.ArgumentParser) -> None:
    add_workload_arguments(parser)
    parser.add_argument("--vocabulary", default="10-1000", metavar="LOW-HIGH", help="token ids prompts are made of")
    parser.add_argument("--no-expectations", action="store_true", help="do not tell the server what readers expect")
    results.add_out(parser, "out/bench")


def _options(args: argparse.Namespace, seed: int) -> ReplayOptions:
    return ReplayOptions(seed, parse_vocabulary(args.vocabulary), not args.no_expectations)


def _bench(args: argparse.Namespace, rest: Sequence[str]) -> int:
    """Replay a workload open-loop against an OpenAI-compatible streaming endpoint and measure what readers see."""
    _refuse(rest)
    if not args.name or "/" in args.name:
        raise UsageError(f"--name {args.name!r}: it names files, so it must be a word without /")
    options = replace(
        _options(args, args.seed), api_key=args.api_key, chat=args.endpoint == "chat", model=args.model,
    )  # fmt: skip
    workload = from_arguments(args, args.seed)
    url = base_url(args.url)
    with results.prepared(args.out, force=args.force):
        records, figures, samples, interrupted = measure({args.name: url}, workload, options)[args.name]
        results.keep(args.out, args.name, 1, records, samples)
        engine = {
            "what": f"{url}, measured from the client",
            "url": url,
            "model": args.model,
            "client": client_machine(),
        }
        results.write(
            args.out,
            {"workload": workload.describe(), "engine": engine, "policies": {args.name: summary.combine([figures])}},
            as_json=args.json,
        )
        if interrupted:
            return 130
        if figures["failed"] < figures["requests"]:
            return 0
        if args.endpoint == "completions" and all(reason.startswith(NO_COMPLETIONS) for reason in figures["failures"]):
            print("andes bench: a server that serves chat only is measured with --endpoint chat", file=sys.stderr)
        return 1


def _compare(args: argparse.Namespace, rest: Sequence[str]) -> int:
    """Run several policies on fresh engines of one configuration over the same workload, interleaved, with repeats."""
    passed = [flag for flag in rest if flag != "--"]
    arms = arms_of(args)
    check_arms(arms, passed)
    check_model(args.model)
    check_run(args)
    _options(args, args.seed)  # an invalid one, or an invalid workload, is refused before an engine starts
    from_arguments(args, args.seed)
    with results.prepared(args.out, force=args.force):
        return Comparison(args, arms, passed, lambda seed: _options(args, seed)).run()


def _score(args: argparse.Namespace, rest: Sequence[str]) -> int:
    """Score what readers got in results of other benchmarks: a file is a row of the table."""
    _refuse(rest)
    try:
        target = QoETarget(args.ttft, args.tds)
    except ValueError as error:
        raise UsageError(f"--ttft / --tds: {error}") from None
    runs: dict[str, Measured] = {}
    for file in args.files:
        measured = load_measured(file, target)
        if measured is None:
            raise UsageError(
                f"{file}: no results of {', '.join(TOOLS)}; docs/traces.md says how each is made to write them"
            )
        if file.stem in runs:
            raise UsageError(f"{file}: a second file called {file.stem}, which names its row; rename it")
        runs[file.stem] = measured
    with results.prepared(args.out, force=args.force):
        for name, run in runs.items():
            results.keep(args.out, name, 1, run.records, ())
            if not run.exact:
                print(f"{name}: {run.tool} says only when the first and the last token came: stalls between are not seen",
                      file=sys.stderr)  # fmt: skip
        first = next(iter(runs.values()))
        tools = ", ".join(sorted({run.tool for run in runs.values()}))
        what = f"measured by {tools}; ttft {args.ttft:g} s, tds {args.tds:g}/s"
        results.write(args.out, {
            "workload": first.workload().describe(),
            "engine": {"what": what, "files": [str(file) for file in args.files]},
            "policies": {name: summary.combine([summary.summarise(run.records)]) for name, run in runs.items()},
        }, as_json=args.json)  # fmt: skip
        return 0


def _report(args: argparse.Namespace, rest: Sequence[str]) -> int:
    """Make report.html again from the records and the summary in a directory."""
    _refuse(rest)
    try:
        files = [results.render(args.directory), *(results.draw(args.directory) if args.figures else ())]
    except OSError as error:
        raise UsageError(f"{error.filename or args.directory}: cannot be written ({error.strerror})") from None
    print(*files, sep="\n")
    return 0


def _refuse(rest: Sequence[str]) -> None:
    if rest:
        raise UsageError(f"unknown argument {rest[0]!r}")
