"""``andes bench``, ``andes compare`` and ``andes report``."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
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
from andes_sglang.bench.client import EndpointError, replay
from andes_sglang.bench.engine import Engine, EngineError, read_metrics
from andes_sglang.flags import add_arm_arguments, add_run_arguments, arms_of, check_arms, check_model, check_run
from andes_sglang.request import RecordsError, RequestRecord
from andes_sglang.workload import SyntheticWorkload, Workload, WorkloadError, from_arguments, mean_length, shape
from andes_sglang.workload import add_arguments as add_workload_arguments

__all__ = ["USER_ERRORS", "add_arguments"]

USER_ERRORS = (WorkloadError, EndpointError, EngineError, RecordsError)
WARM_UP_REQUESTS = 8


def add_arguments(parser: argparse.ArgumentParser, command: str) -> None:
    """Of ``bench``, ``compare`` or ``report``."""
    {"bench": _bench_arguments, "compare": _compare_arguments, "report": _report_arguments}[command](parser)


def _bench_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = _bench.__doc__
    parser.add_argument("--url", required=True, help="base address of an OpenAI-compatible endpoint")
    parser.add_argument("--name", default="endpoint", help="what to call it in the results")
    parser.add_argument("--api-key", default=os.environ.get("OPENAI_API_KEY"), help="default: OPENAI_API_KEY")
    _add_workload(parser)
    parser.set_defaults(run=_bench)


def _compare_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = _compare.__doc__
    parser.epilog = "Every flag not listed here is passed to each engine."
    parser.add_argument("--model", required=True, help="model directory")
    add_arm_arguments(parser, policies="stock,andes")
    add_run_arguments(parser, sustained="a stock engine sustains, measured anew before every repeat")
    parser.add_argument(
        "--at-once", action="store_true",
        help="run the policies of a repeat at the same time, each on an engine of its own and, where there are enough, on "
        "CPU cores of its own: what else happens on a shared machine happens to all alike",
    )  # fmt: skip
    _add_workload(parser)
    parser.set_defaults(run=_compare)


def _report_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = _report.__doc__
    parser.add_argument("directory", type=Path)
    parser.set_defaults(run=_report)


def _add_workload(parser: argparse.ArgumentParser) -> None:
    add_workload_arguments(parser)
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


Run = tuple[list[RequestRecord], dict[str, Any], list[dict[str, float]]]
"""What one replay left: its records, its figures, and samples of the engine's state."""


def _run(
    urls: dict[str, str],
    workload: Workload | SyntheticWorkload,
    seed: int,
    args: argparse.Namespace,
    api_key: str | None = None,
) -> dict[str, Run]:
    """Replay ``workload`` against each of ``urls`` (by label) at the same time."""
    samples: dict[str, list[dict[str, float]]] = {label: [] for label in urls}
    before = {label: read_metrics(url) for label, url in urls.items()}

    async def main() -> list[list[RequestRecord]]:
        tasks = [
            asyncio.ensure_future(
                replay(url, workload, seed=seed, vocabulary=_vocabulary(args.vocabulary), api_key=api_key,
                       send_expectations=not args.no_expectations, progress=results.Progress(label),
                       sample=_sampler(url, samples[label]) if before[label] else None)
            )
            for label, url in urls.items()
        ]  # fmt: skip
        for task in tasks:
            task.add_done_callback(lambda done: [t.cancel() for t in tasks] if _failed(done) else None)
        loop = asyncio.get_running_loop()
        for sign in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(sign, lambda: [task.cancel() for task in tasks])
        return await asyncio.gather(*tasks)

    everything = dict(zip(urls, asyncio.run(main()), strict=True))
    if sys.stderr.isatty():
        print(file=sys.stderr)
    if not all(everything.values()):
        raise EndpointError("nothing was sent")
    return {
        label: (records, summary.summarise(records, before[label], read_metrics(urls[label])), samples[label])
        for label, records in everything.items()
    }


def _failed(task: asyncio.Task[Any]) -> bool:
    return not task.cancelled() and task.exception() is not None


def _machine() -> dict[str, Any]:
    return {"cores": os.cpu_count(), "machine": platform.machine(), "python": platform.python_version()}


def _bench(args: argparse.Namespace, rest: Sequence[str]) -> int:
    """Replay a workload open-loop against an OpenAI-compatible streaming endpoint and measure what readers see."""
    _refuse(rest)
    workload = from_arguments(args, args.seed)
    results.directory(args.out)
    url = args.url.rstrip("/").removesuffix("/v1")
    records, figures, samples = _run({args.name: url}, workload, args.seed, args, args.api_key)[args.name]
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
    arms = arms_of(args)
    check_arms(arms, passed)
    check_model(args.model)
    check_run(args)
    results.directory(args.out)
    from_arguments(args, args.seed)  # an invalid one is refused before an engine starts
    sustained: list[float] = []
    figures: dict[str, list[dict[str, Any]]] = {name: [] for name in arms}
    passed += ["--sleep-on-idle"] if args.at_once and "--sleep-on-idle" not in passed else []
    result: dict[str, Any] = {}
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # the engines are to end with us
    try:
        for repeat in range(1, args.repeats + 1):
            seed = args.seed + repeat - 1
            if args.load is not None:
                sustained.append(_sustained_tokens_per_s(args, passed, len(arms) if args.at_once else 1))
                args.rate = args.load * sustained[-1] / mean_length(args.output)
                print(
                    f"a stock engine sustains {sustained[-1]:.0f} tokens/s now: --rate {args.rate:.2f}", file=sys.stderr
                )
            workload = from_arguments(args, seed)
            names = list(arms)
            order = names[(repeat - 1) % len(names) :] + names[: (repeat - 1) % len(names)]
            for group in [order] if args.at_once else [[name] for name in order]:
                shares = _shares_of_cores(len(group))
                engines = {
                    f"[{repeat}/{args.repeats}] {name}, seed {seed}": Engine(
                        args.model, arms[name].policy, [*passed, *arms[name].flags, "--enable-metrics"],
                        log=args.out / f"engine-{name}-{repeat}.log", cores=cores,
                    )
                    for name, cores in zip(group, shares, strict=True)
                }  # fmt: skip
                runs = _replay_on(engines, workload, seed, args)
                for name, (records, figure, samples) in zip(group, runs.values(), strict=True):
                    results.keep(args.out, name, repeat, records, samples)
                    figures[name].append(figure)
                result = {
                    "workload": {**workload.describe(), "seeds": [args.seed + k for k in range(args.repeats)]},
                    "engine": {
                        "what": f"SGLang on {_machine()['cores']} cores, {Path(args.model).name}, {' '.join(passed)}",
                        "model": Path(args.model).name,
                        "flags": passed,
                        "at_once": len(arms) if args.at_once else 1,
                        "cores": [list(cores) for cores in shares],
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


def _replay_on(
    engines: dict[str, Engine], workload: Workload | SyntheticWorkload, seed: int, args: argparse.Namespace
) -> dict[str, Run]:
    """Start the engines, replay on all of them at the same time, end them."""
    with contextlib.ExitStack() as stack:
        for label, engine in engines.items():
            print(f"{label}: starting an engine", file=sys.stderr, flush=True)
            stack.enter_context(engine)
            _warm_up(engine, args)
            engine.check_policy()
        runs = _run({label: engine.url for label, engine in engines.items()}, workload, seed, args)
        for label, engine in engines.items():
            if not engine.alive():
                raise EngineError(
                    f"{label}: the engine ended during the run; the end of {engine.log}:\n{engine.tail()}"
                )
    return runs


def _sustained_tokens_per_s(args: argparse.Namespace, passed: list[str], engines: int) -> float:
    """Output tokens per second of a stock engine with a queue that is never empty, over the middle of the run; the mean
    of several ``engines`` at the same time."""
    flood = shape("poisson", rate_rps=1e3, duration_s=0.25 / engines, prompt=args.prompt, output=args.output,
                  seed=args.seed)  # fmt: skip
    flood = flood.with_readers(args.seed, ttft_s=1.0, tds=4.5, population=None)
    flooded = {
        f"calibration {k + 1}/{engines}": Engine(
            args.model, "stock", [*passed, "--enable-metrics"],
            log=args.out / f"engine-calibration-{k + 1}.log", cores=cores,
        )
        for k, cores in enumerate(_shares_of_cores(engines))
    }  # fmt: skip
    total = 0.0
    for records, _, _ in _replay_on(flooded, flood, args.seed, args).values():
        arrived = sorted(at for r in records for at, tokens in r.deliveries for _ in range(tokens))
        first, last = arrived[len(arrived) // 10], arrived[len(arrived) * 3 // 4]
        total += 0.65 * len(arrived) / (last - first)
    return total / engines


def _shares_of_cores(engines: int) -> list[tuple[int, ...]]:
    """Cores for each of several engines at the same time, as many for one as for the other; empty where any will do."""
    each = len(available := sorted(os.sched_getaffinity(0))) // engines if hasattr(os, "sched_getaffinity") else 0
    if engines == 1 or not each:
        return [()] * engines
    return [tuple(available[k * each : (k + 1) * each]) for k in range(engines)]


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
    engine.post("/flush_cache?timeout=60", {})  # the last request is not quite over when its answer is


def _report(args: argparse.Namespace, rest: Sequence[str]) -> int:
    """Make report.html again from the records and the summary in a directory."""
    _refuse(rest)
    results.render(args.directory)
    print(args.directory / "report.html")
    return 0
