"""Several policies on fresh engines of one configuration, over the same workload."""

from __future__ import annotations

import argparse
import contextlib
import http
import json
import os
import sys
import urllib.error
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from andes_sglang import results, summary
from andes_sglang.arms import Arm
from andes_sglang.bench.engine import Engine, EngineError
from andes_sglang.bench.measure import Measured, ReplayOptions, client_machine, measure
from andes_sglang.request import RequestRecord
from andes_sglang.workload import SyntheticWorkload, Workload, draw_shape, drawn_lengths, from_arguments, mean_length

__all__ = ["Comparison", "shares_of_cores", "sustained_tokens_per_s"]

WARM_UP_REQUESTS, WARM_UP_PROMPT_TOKENS, WARM_UP_TOKENS = 8, 200, 30
"""Enough for a prefill, decode steps of several batch sizes and the first preemption check of each engine."""
FLUSH_TIMEOUT_S = 60
FLOOD_RATE_RPS, FLOOD_S = 1e3, 0.25
"""Requests per second and seconds of the flood that calibrates: some 250 requests at once, a queue that never empties."""
FIRST_SHARE, LAST_SHARE = 0.1, 0.75
"""Of the flood's tokens: between these the batch is as full as it gets."""


class Comparison:
    """``andes compare``: ``run`` measures every arm in every repeat and writes the results; Ctrl-C reports what finished.

    args: of the command line. passed: flags of all engines. options: of the replay, by seed.
    """

    def __init__(
        self,
        args: argparse.Namespace,
        arms: Mapping[str, Arm],
        passed: Sequence[str],
        options: Callable[[int], ReplayOptions],
    ) -> None:
        self.args = args
        self.arms = dict(arms)
        self.passed = list(passed)
        if args.at_once and "--sleep-on-idle" not in passed:
            self.passed.append("--sleep-on-idle")  # an engine that has finished leaves the cores to the others
        self.options = options
        self.sustained: list[float] = []
        self.figures: dict[str, list[dict[str, Any]]] = {name: [] for name in arms}
        self.result: dict[str, Any] = {}

    def run(self) -> int:
        """The exit status: 0, 1 where every request of a policy failed, or 130 where it was interrupted."""
        status = 0
        try:
            for repeat in range(1, self.args.repeats + 1):
                self._repeat(repeat)
        except KeyboardInterrupt:
            print("\ninterrupted: reporting the finished runs", file=sys.stderr)
            status = 130
            if not self.result:
                return status
        results.write(self.args.out, self.result, as_json=self.args.json)
        return status or int(any(map(_all_failed, self.figures.values())))

    def _repeat(self, repeat: int) -> None:
        """Measure every arm once, in an order that turns with the repeats, all at once where that was asked for."""
        args, names = self.args, list(self.arms)
        seed = args.seed + repeat - 1
        if args.load is not None:
            self._calibrate()
        workload = from_arguments(args, seed)
        order = names[(repeat - 1) % len(names) :] + names[: (repeat - 1) % len(names)]
        for group in [order] if args.at_once else [[name] for name in order]:
            cores = shares_of_cores(len(group))
            engines = {
                f"[{repeat}/{args.repeats}] {name}, seed {seed}": self._engine(
                    self.arms[name], f"{name}-{repeat}", share
                )
                for name, share in zip(group, cores, strict=True)
            }
            runs = replay_on(engines, workload, self.options(seed))
            for name, run in zip(group, runs.values(), strict=True):
                results.keep(args.out, name, repeat, run.records, run.samples)
            if any(run.interrupted for run in runs.values()):
                raise KeyboardInterrupt
            for name, run in zip(group, runs.values(), strict=True):
                self.figures[name].append(run.figures)
            self.result = self._result(workload, cores)
            with contextlib.suppress(OSError):  # a full disk: said by keep, and again at the end
                (args.out / "summary.json").write_text(json.dumps(self.result, indent=1) + "\n")

    def _engine(self, arm: Arm, name: str, cores: Sequence[int]) -> Engine:
        flags = [*self.passed, *arm.flags, "--enable-metrics"]
        return Engine(self.args.model, arm.policy, flags, log=self.args.out / f"engine-{name}.log", cores=cores)

    def _calibrate(self) -> None:
        """Set ``--rate`` to the asked fraction of what a stock engine sustains now."""
        args = self.args
        count = len(self.arms) if args.at_once else 1
        stock = Arm("stock")
        engines = {
            f"calibration {k}/{count}": self._engine(stock, f"calibration-{k}", cores)
            for k, cores in enumerate(shares_of_cores(count), start=1)
        }
        prompt, output = drawn_lengths(args)
        flood = draw_shape("poisson", rate_rps=FLOOD_RATE_RPS, duration_s=FLOOD_S / count, prompt=prompt, output=output,
                           seed=args.seed)  # fmt: skip
        runs = replay_on(engines, flood, self.options(args.seed))
        if any(run.interrupted for run in runs.values()):
            raise KeyboardInterrupt
        self.sustained.append(sum(sustained_tokens_per_s(run.records) for run in runs.values()) / count)
        args.rate = args.load * self.sustained[-1] / mean_length(output)
        print(f"a stock engine sustains {self.sustained[-1]:.0f} tokens/s now: --rate {args.rate:.2f}", file=sys.stderr)

    def _result(self, workload: Workload | SyntheticWorkload, cores: Sequence[Sequence[int]]) -> dict[str, Any]:
        args, model = self.args, Path(self.args.model).name
        return {
            "workload": {**workload.describe(), "seeds": [args.seed + k for k in range(args.repeats)]},
            "engine": {
                "what": f"SGLang on {os.cpu_count()} cores, {model}, {' '.join(self.passed)}",
                "model": model,
                "flags": self.passed,
                "at_once": len(self.arms) if args.at_once else 1,
                "cores": [list(share) for share in cores],
                "sustained_tokens_per_s": self.sustained,
                "arms": {n: {"policy": a.policy, "flags": list(a.flags)} for n, a in self.arms.items()},
                "client": client_machine(),
            },
            "policies": {n: summary.combine(runs) for n, runs in self.figures.items() if runs},
        }


def _all_failed(runs: Sequence[Mapping[str, Any]]) -> bool:
    return bool(runs) and all(figures["failed"] == figures["requests"] for figures in runs)


def replay_on(
    engines: Mapping[str, Engine], workload: Workload | SyntheticWorkload, options: ReplayOptions
) -> dict[str, Measured]:
    """Start the engines (by label), replay on all of them at the same time, end them. Raises :class:`EngineError`."""
    with contextlib.ExitStack() as stack:
        for label, engine in engines.items():
            print(f"{label}: starting an engine", file=sys.stderr, flush=True)
            stack.enter_context(engine)
            warm_up(engine, options.vocabulary[0])
            engine.check_policy()
        runs = measure({label: engine.url for label, engine in engines.items()}, workload, options)
        for label, engine in engines.items():
            if not engine.alive():
                raise EngineError(
                    f"{label}: the engine ended during the run; the end of {engine.log}:\n{engine.tail()}"
                )
    return runs


def warm_up(engine: Engine, first_token_id: int) -> None:
    """A few requests, so that no arm pays for the first of anything; then an empty cache."""
    prompts = [[first_token_id + (k + j) % 50 for j in range(WARM_UP_PROMPT_TOKENS)] for k in range(WARM_UP_REQUESTS)]
    with ThreadPoolExecutor(WARM_UP_REQUESTS) as pool:
        bodies = [{"model": "m", "prompt": p, "max_tokens": WARM_UP_TOKENS, "ignore_eos": True} for p in prompts]
        list(pool.map(lambda body: engine.post("/v1/completions", body), bodies))
    try:  # with a time-out: the last request is not quite over when its answer is
        engine.post(f"/flush_cache?timeout={FLUSH_TIMEOUT_S}", {})
    except urllib.error.HTTPError as error:
        if error.code != http.HTTPStatus.NOT_FOUND:  # of a simulated engine
            raise


def sustained_tokens_per_s(records: Sequence[RequestRecord]) -> float:
    """Output tokens per second over the middle of a flood, where the queue is never empty and the batch is full."""
    arrived_s = sorted(at_s for r in records for at_s, tokens in r.deliveries for _ in range(tokens))
    first, last = int(len(arrived_s) * FIRST_SHARE), int(len(arrived_s) * LAST_SHARE)
    return (LAST_SHARE - FIRST_SHARE) * len(arrived_s) / (arrived_s[last] - arrived_s[first])


def shares_of_cores(engines: int) -> list[tuple[int, ...]]:
    """Cores for each of several engines at the same time, equally many for each; empty where any core will do."""
    each = len(available := sorted(os.sched_getaffinity(0))) // engines if hasattr(os, "sched_getaffinity") else 0
    if engines == 1 or not each:
        return [()] * engines
    return [tuple(available[k * each : (k + 1) * each]) for k in range(engines)]
