"""``andes bench``, ``andes compare`` and ``andes report``."""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import signal
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from andes_sglang import results, summary
from andes_sglang.arms import parse_arms
from andes_sglang.bench.client import EndpointError, replay
from andes_sglang.bench.engine import Engine, EngineError, read_metrics
from andes_sglang.request import RequestRecord
from andes_sglang.workload import Stream, Workload, WorkloadError, add_arguments, from_arguments, mean_length, shape

__all__ = ["BenchError", "add_parsers"]

BenchError = (WorkloadError, EndpointError, EngineError)
WARM_UP_REQUESTS = 8


def add_parsers(commands: Any) -> None:
    one = commands.add_parser("bench", help="replay a workload against an endpoint", description=_bench.__doc__)
    one.add_argument("--url", required=True, help="base address of an OpenAI-compatible endpoint")
    one.add_argument("--name", default="endpoint", help="what to call it in the results")
    one.add_argument("--api-key", default=os.environ.get("OPENAI_API_KEY"), help="default: OPENAI_API_KEY")
    _add_workload(one)
    one.set_defaults(run=_bench)
    many = commands.add_parser(
        "compare",
        help="replay one workload under several policies",
        description=_compare.__doc__,
        epilog="Every flag not listed here is passed to each engine.",
        allow_abbrev=False,
    )
    many.add_argument("--model", required=True, help="model directory")
    many.add_argument("--policies", default="stock,andes", help="comma-separated; default: stock,andes")
    many.add_argument(
        "--arm", action="append", default=[], metavar="NAME=POLICY[:FLAGS]",
        help="one more arm: a policy with engine flags of its own; repeatable",
    )  # fmt: skip
    many.add_argument(
        "--load", type=float, metavar="FRACTION",
        help="shape: set --rate to this fraction of what a stock engine sustains, measured anew before every repeat",
    )  # fmt: skip
    many.add_argument(
        "--repeats", type=int, default=1, help="runs of each policy, interleaved; each with the next seed"
    )
    _add_workload(many)
    many.set_defaults(run=_compare)
    again = commands.add_parser("report", help="make the report of a finished run again", description=_report.__doc__)
    again.add_argument("directory", type=Path)
    again.set_defaults(run=_report)


def _add_workload(parser: argparse.ArgumentParser) -> None:
    add_arguments(parser)
    parser.add_argument("--vocabulary", default="10-1000", metavar="LOW-HIGH", help="token ids prompts are made of")
    parser.add_argument("--no-expectations", action="store_true", help="do not tell the server what readers expect")
    parser.add_argument("--out", type=Path, default=Path("out/bench"), help="directory for the results")


def _vocabulary(text: str) -> tuple[int, int]:
    low, _, high = text.partition("-")
    if not (low.isdigit() and high.isdigit() and int(low) < int(high)):
        raise WorkloadError(f"--vocabulary {text!r}: expected LOW-HIGH token ids")
    return int(low), int(high)


def _sampler(url: str, into: list[dict[str, float]]) -> Any:
    lock = threading.Lock()

    def sample(at_s: float) -> None:
        found = read_metrics(url, 2.0)
        point = {"at_s": at_s}
        for name, value in found.items():
            base = name.split("{")[0]
            if base == "sglang:num_queue_reqs":
                point["queue"] = value
            elif base == "sglang:num_running_reqs":
                point["running"] = value
            elif base == "sglang:token_usage":
                point["kv_usage"] = value
        with lock:
            into.append(point)

    return sample


def _run(
    url: str, workload: Workload | Stream, seed: int, args: argparse.Namespace, label: str, api_key: str | None = None
) -> tuple[list[RequestRecord], dict[str, Any], list[dict[str, float]]]:
    samples: list[dict[str, float]] = []
    before = read_metrics(url)

    async def main() -> list[RequestRecord]:
        task = asyncio.ensure_future(
            replay(url, workload, seed=seed, vocabulary=_vocabulary(args.vocabulary), api_key=api_key,
                   send_expectations=not args.no_expectations, progress=results.Progress(label),
                   sample=_sampler(url, samples) if before else None)
        )  # fmt: skip
        asyncio.get_running_loop().add_signal_handler(signal.SIGINT, task.cancel)
        return await task

    records = asyncio.run(main())
    if sys.stderr.isatty():
        print(file=sys.stderr)
    if not records:
        raise EndpointError("nothing was sent")
    return records, summary.summarise(records, before, read_metrics(url)), samples


def _machine() -> dict[str, Any]:
    return {"cores": os.cpu_count(), "machine": platform.machine(), "python": platform.python_version()}


def _bench(args: argparse.Namespace, rest: Sequence[str]) -> int:
    """Replay a workload open-loop against an OpenAI-compatible streaming endpoint and measure what readers see."""
    _refuse(rest)
    workload = from_arguments(args, args.seed)
    url = args.url.rstrip("/").removesuffix("/v1")
    records, figures, samples = _run(url, workload, args.seed, args, args.name, args.api_key)
    args.out.mkdir(parents=True, exist_ok=True)
    results.keep(args.out, args.name, 1, records, samples)
    engine = {"what": f"{url}, measured from the client", "url": url, "client": _machine()}
    results.write(
        args.out,
        {"workload": workload.describe(), "engine": engine, "policies": {args.name: summary.combine([figures])}},
    )
    return 1 if figures["failed"] == len(records) else 0


def _refuse(rest: Sequence[str]) -> None:
    if rest:
        raise WorkloadError(f"unknown argument {rest[0]!r}")


def _compare(args: argparse.Namespace, rest: Sequence[str]) -> int:
    """Run several policies on fresh engines of one configuration over the same workload, interleaved, with repeats."""
    passed = [flag for flag in rest if flag != "--"]
    try:
        arms = parse_arms(args.policies, args.arm)
    except ValueError as error:
        raise WorkloadError(str(error)) from None
    if args.repeats < 1:
        raise WorkloadError(f"--repeats must be >= 1, got {args.repeats}")
    args.out.mkdir(parents=True, exist_ok=True)
    if args.load is not None and (args.trace is not None or not args.load > 0):
        raise WorkloadError(f"--load {args.load!r}: must be > 0, and goes with a --shape")
    from_arguments(args, args.seed)  # an invalid one is refused before an engine starts
    sustained: list[float] = []
    figures: dict[str, list[dict[str, Any]]] = {name: [] for name in arms}
    total = len(arms) * args.repeats
    done = 0
    result: dict[str, Any] = {}
    try:
        for repeat in range(1, args.repeats + 1):
            seed = args.seed + repeat - 1
            if args.load is not None:
                sustained.append(_sustained_tokens_per_s(args, passed))
                args.rate = args.load * sustained[-1] / mean_length(args.output)
                print(
                    f"a stock engine sustains {sustained[-1]:.0f} tokens/s now: --rate {args.rate:.2f}", file=sys.stderr
                )
            workload = from_arguments(args, seed)
            names = list(arms)
            order = names[(repeat - 1) % len(names) :] + names[: (repeat - 1) % len(names)]
            for name in order:
                done += 1
                arm = arms[name]
                label = f"[{done}/{total}] {name}, seed {seed}"
                print(f"{label}: starting an engine", file=sys.stderr, flush=True)
                log = args.out / f"engine-{name}-{repeat}.log"
                with Engine(args.model, arm.policy, [*passed, *arm.flags, "--enable-metrics"], log=log) as engine:
                    _warm_up(engine, args)
                    engine.check_policy()
                    records, figure, samples = _run(engine.url, workload, seed, args, label)
                    if not engine.alive():
                        raise EngineError(f"the engine ended during the run; the end of {log}:\n{engine.tail()}")
                results.keep(args.out, name, repeat, records, samples)
                figures[name].append(figure)
                result = {
                    "workload": {**workload.describe(), "seeds": [args.seed + k for k in range(args.repeats)]},
                    "engine": {
                        "what": f"SGLang on {_machine()['cores']} cores, {Path(args.model).name}, {' '.join(passed)}",
                        "model": Path(args.model).name,
                        "flags": passed,
                        "sustained_tokens_per_s": sustained,
                        "arms": {n: {"policy": a.policy, "flags": list(a.flags)} for n, a in arms.items()},
                        "client": _machine(),
                    },
                    "policies": {n: summary.combine(runs) for n, runs in figures.items() if runs},
                }
                (args.out / "summary.json").write_text(json.dumps(result, indent=1) + "\n")
    except KeyboardInterrupt:
        print("\ninterrupted: reporting the finished runs", file=sys.stderr)
        if not result:
            return 130
    results.write(args.out, result)
    return 0


def _sustained_tokens_per_s(args: argparse.Namespace, passed: list[str]) -> float:
    """Output tokens per second of a stock engine with a queue that is never empty, over the middle of the run."""
    label = "calibration"
    print(f"{label}: starting an engine", file=sys.stderr, flush=True)
    flood = shape("poisson", rate_rps=1e3, duration_s=0.25, prompt=args.prompt, output=args.output, seed=args.seed)
    flood = flood.with_readers(args.seed, ttft_s=1.0, tds=4.5, population=None)
    with Engine(args.model, "stock", [*passed, "--enable-metrics"], log=args.out / "engine-calibration.log") as engine:
        _warm_up(engine, args)
        records, _, _ = _run(engine.url, flood, args.seed, args, label)
    arrived = sorted(at for r in records for at, tokens in r.deliveries for _ in range(tokens))
    first, last = arrived[len(arrived) // 10], arrived[len(arrived) * 3 // 4]
    return 0.65 * len(arrived) / (last - first)


def _warm_up(engine: Engine, args: argparse.Namespace) -> None:
    """A few requests of the workload's kind, so that no arm pays for the first of anything; then an empty cache."""
    low, _ = _vocabulary(args.vocabulary)
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(WARM_UP_REQUESTS) as pool:
        bodies = [
            {"model": "m", "prompt": [low + (k + j) % 50 for j in range(200)], "max_tokens": 30, "ignore_eos": True}
            for k in range(WARM_UP_REQUESTS)
        ]
        list(pool.map(lambda body: engine.post("/v1/completions", body), bodies))
    engine.post("/flush_cache", {})


def _report(args: argparse.Namespace, rest: Sequence[str]) -> int:
    """Make report.html again from the records and the summary in a directory."""
    _refuse(rest)
    results.render(args.directory)
    print(args.directory / "report.html")
    return 0
