"""Simulated runs of :mod:`benchmarks.simulated`, kept in files until a source that they depend on changes."""

from __future__ import annotations

import hashlib
import inspect
import json
import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from andes_sglang.arms import Arm
from andes_sglang.policy import CLAIRVOYANT, SchedulingPolicy, make
from andes_sglang.request import RequestRecord, RequestSpec, TokenTimes
from andes_sglang.results import Progress
from andes_sglang.sim import profile as profiles
from andes_sglang.sim.configure import configure
from andes_sglang.sim.engine import EngineModel
from andes_sglang.sim.plan import smallest_feasible, sustained_tokens_per_s
from andes_sglang.sim.replica import simulate
from andes_sglang.summary import Figures, Summary
from andes_sglang.workload import (
    Rates,
    SyntheticWorkload,
    Workload,
    draw_shape,
    load_trace,
    mean_length,
    readers_of,
)
from benchmarks.oracles import make_oracle
from benchmarks.settings import ARMS, SETTINGS, STOCK
from benchmarks.sources import source_of

__all__ = ["Case", "SimulatedRuns", "flooded_rps"]

BEFORE_S, AFTER_S = 60.0, 120.0
"""Seconds at half load before and after a burst."""
INTERVAL_S = 0.1
"""Between two decisions while nothing is prefilled; after every chunk of prefill there is one anyway."""
REPLAY_S = 600.0
"""Seconds of a recorded trace that are replayed."""
CYCLE_S = 1200.0
"""Seconds of the paper's load: 20 minutes."""
MAX_OUTPUT_TOKENS = 4_000
"""Recorded answers are clamped to this, and prompts to what the setting says."""
CAPACITY_REQUESTS = 1500
"""Recorded requests that a stock engine is flooded with to find its capacity."""
HELD_QOE, NEAR_QOE = 0.95, 0.03
"""Load held: the mean QoE asked for, and how near one seed must come to it for the others to be run."""
MIN_LOAD, MAX_LOAD, LOAD_STEP = 0.1, 13.0, 1.05
"""Load held: the ladder of loads, in C, and the ratio of neighbouring ones."""


@dataclass(frozen=True, slots=True)
class Case:
    """One run. kind: ``burst`` of ``x`` C for ``span`` seconds, ``steady`` load, ``cycle`` (the paper's: intensity ``x``, the
    burst a share ``span`` of 20 minutes that average C) or ``replay`` of a trace's own arrivals. interval_s: least time
    between two decisions. reasoning: whether recorded thoughts are ``shown`` and read like the answers, are ``hidden``, or
    are hidden from the readers and ``unknown`` to the policy, which takes every token for one that is read."""

    setting: str
    kind: str
    x: float
    span: float
    seed: int
    arm: Arm
    interval_s: float = INTERVAL_S
    reasoning: str = "shown"


class SimulatedRuns:
    """Runs cases, or finds them among those kept in ``out``. seeds: draws that a row is the mean of."""

    def __init__(self, out: Path, traces: Path | None, seeds: int) -> None:
        self.out, self.traces, self.seeds = out, traces, seeds
        self.progress = Progress("simulated")
        self.found = self.ran = 0
        out.mkdir(parents=True, exist_ok=True)

    def figures(self, case: Case) -> Summary:
        """Of the requests that are scored; the backlog is of the moment when the last of them has arrived."""
        key = SETTINGS[case.setting].key + repr(case)
        return self._kept(_sources(case.setting, case.arm.policy) + key, key, lambda: self._run(case))

    def capacity_rps(self, setting: str) -> float:
        """C: requests per second that stock SGLang sustains with a queue that is never empty."""
        key = SETTINGS[setting].key
        kept = self._kept(_sources(setting, "stock") + key, key, lambda: {"rps": self._capacity_rps(setting)})
        return float(kept["rps"])

    def _kept(self, depends_on: str, key: str, compute: Callable[[], Summary]) -> Summary:
        file = self.out / (hashlib.sha256(depends_on.encode()).hexdigest()[:24] + ".json")
        if file.exists():
            kept: Summary = json.loads(file.read_text())["figures"]
        else:
            kept = compute()
            file.write_text(json.dumps({"key": key, "figures": kept}))
            self.ran += 1
        self.found += 1
        self.progress(f"{self.found} runs, {self.found - self.ran} of them kept; {time.process_time():.0f} CPU s")
        return kept

    def _run(self, case: Case) -> Summary:
        requests, since_s, until_s = self.requests(case)
        engine = profiles.load(SETTINGS[case.setting].profile).engine
        policy: SchedulingPolicy | None
        if case.arm.policy in CLAIRVOYANT:
            engine, _ = configure(engine, replace(case.arm, policy="fcfs"))
            policy = make_oracle(case.arm.policy, requests)
        else:
            engine, factory = configure(engine, case.arm)
            policy = factory()
        scored, backlog = Figures(), 0
        thoughts = [r.reason_tokens for r in requests]
        if case.reasoning != "hidden":
            requests = Workload("", tuple(requests)).with_reasoning_shown().requests
        for record in simulate(engine, policy, requests, decision_interval_s=case.interval_s):
            if since_s <= record.arrival_s < until_s:
                scored.add(_hidden(record, thoughts[record.index]) if case.reasoning == "unknown" else record)
                backlog += record.end_s > until_s
        return {**scored.summary(), "backlog_requests": backlog}

    def requests(self, case: Case) -> tuple[Sequence[RequestSpec], float, float]:
        """What arrives, and the window (seconds) whose arrivals are scored."""
        setting, rps = SETTINGS[case.setting], self.capacity_rps(case.setting)
        since_s, until_s = 0.0, REPLAY_S
        if case.kind == "replay":
            whole = _trace(self.trace_file(setting.trace), setting.max_prompt)
            own_rps = len(whole) / whole.duration_s
            drawn = whole.scaled(rate_scale=case.x * rps / own_rps).scaled(duration_s=REPLAY_S)
        elif case.kind == "cycle":
            drawn = draw_shape("burst", rate_rps=rps, duration_s=CYCLE_S, prompt=setting.prompt, output=setting.output,
                               seed=case.seed, intensity=case.x, width=case.span)  # fmt: skip
            until_s = CYCLE_S
        else:
            since_s, until_s = BEFORE_S, BEFORE_S + case.span
            drawn = self._poisson(case, rps)
        drawn = drawn.with_readers(case.seed, ttft_s=None, tds=None, population="reading")
        return drawn.requests, since_s, until_s

    def _poisson(self, case: Case, rps: float) -> Workload:
        """A burst between half loads, or steady load; where the setting has a trace, the trace's requests in their order."""
        setting = SETTINGS[case.setting]
        rates: Rates = ((BEFORE_S, 0.5 * rps), (case.span, case.x * rps), (AFTER_S, 0.5 * rps))
        if case.kind == "steady":
            rates = ((BEFORE_S + case.span + AFTER_S, case.x * rps),)
        lengths = (setting.prompt, setting.output) if not setting.trace else ("1", "1")
        drawn = tuple(SyntheticWorkload(case.kind, rates, *lengths, readers_of("reading"), case.seed))
        if not setting.trace:
            return Workload(case.kind, drawn)
        rows = _trace(self.trace_file(setting.trace), setting.max_prompt).requests
        first = case.seed * len(drawn) % len(rows)
        rows = (*rows[first:], *rows[:first]) * (len(drawn) // len(rows) + 1)
        recorded = (replace(r, arrival_s=at.arrival_s) for r, at in zip(rows, drawn, strict=False))
        return Workload(case.kind, tuple(recorded))

    def trace_file(self, name: str) -> Path:
        if self.traces is None:
            raise SystemExit(f"--traces: say where {name}.jsonl.gz is")
        return self.traces / f"{name}.jsonl.gz"

    def _capacity_rps(self, name: str) -> float:
        setting = SETTINGS[name]
        engine, _ = configure(profiles.load(setting.profile).engine, Arm("stock"))
        if setting.trace:
            recorded = _trace(self.trace_file(setting.trace), setting.max_prompt)
            return flooded_rps(engine, recorded.requests[:CAPACITY_REQUESTS])
        tokens_per_s = sustained_tokens_per_s(engine, setting.prompt, setting.output, seed=1)
        return tokens_per_s / mean_length(setting.output)

    def row(self, case: Case, better: Summary | None = None) -> Summary:
        """Means over seeds; ``worst_group``: the least of QoE by prompt length less that of ``better``, the better stock."""
        runs = [self.figures(replace(case, seed=seed)) for seed in range(1, self.seeds + 1)]

        def mean(*path: str) -> float:
            values: list[Any] = list(runs)
            for key in path:
                values = [value[key] for value in values]
            return float(np.mean([np.nan if value is None else value for value in values]))

        groups = [mean("qoe", "by_prompt_length", g) for g in ("shortest_half", "middle", "longest_tenth")]
        stock = groups if better is None else better["groups"]
        return {
            "mean": mean("qoe", "mean"), "p5": mean("qoe", "p5"), "stall": mean("stall_s", "longest_p90"),
            "ttft": mean("ttft_s", "p90"), "groups": groups, "backlog": mean("backlog_requests"),
            "preemptions": mean("preemptions_per_request"),
            "worst_group": float(np.nanmin(np.subtract(groups, stock))),
        }  # fmt: skip

    def better_stock(self, case: Case) -> Summary:
        """The row of the stock arm with the higher mean QoE."""
        return max((self.row(replace(case, arm=arm)) for arm in STOCK.values()), key=lambda r: float(r["mean"]))

    def compare(self, case: Case, arms: Iterable[str]) -> Iterator[tuple[str, Summary]]:
        """A row per arm, both stock arms first."""
        better = self.better_stock(case)
        for name in STOCK:
            yield name, self.row(replace(case, arm=ARMS[name]), better)
        for name in arms:
            yield name, self.row(replace(case, arm=ARMS[name]), better)

    def load_held(self, name: str, kind: str, span: float, arm: Arm, *, guess: float = 1.0) -> float:
        """The largest load, in C, of a ladder at which the mean QoE is at least 0.95; 0 where none above ``MIN_LOAD`` is."""

        def falls_short(rung: int) -> bool:
            case = Case(name, kind, round(MIN_LOAD * LOAD_STEP**rung, 4), span, 1, arm)
            if abs((first := self.figures(case)["qoe"]["mean"]) - HELD_QOE) > NEAR_QOE:
                return bool(first < HELD_QOE)
            return float(self.row(case)["mean"]) < HELD_QOE

        def rung(load: float) -> int:
            return round(math.log(load / MIN_LOAD) / math.log(LOAD_STEP))

        short = smallest_feasible(falls_short, max(1, rung(guess)), rung(MAX_LOAD))
        held = rung(MAX_LOAD) if short is None else short - 1
        return float(MIN_LOAD * LOAD_STEP**held) if held else 0.0


@cache
def _sources(setting: str, policy: str) -> str:
    """All that a run depends on, as text: the simulator, the profile and, but for stock, the modules of the policy."""
    simulator = source_of(
        "andes_sglang.sim.configure", "andes_sglang.sim.plan", "andes_sglang.workload", package="andes_sglang",
        without="andes_sglang.policy",
    )  # fmt: skip
    text = simulator + inspect.getsource(SimulatedRuns) + repr(profiles.load(SETTINGS[setting].profile))
    if policy == "stock":
        return text
    made = make_oracle(policy, ()) if policy in CLAIRVOYANT else make(policy)
    return text + source_of(type(made).__module__, package="andes_sglang")


@cache
def _trace(file: Path, max_prompt: int) -> Workload:
    """As recorded, lengths clamped."""
    return load_trace(file, seed=1).scaled(max_prompt=max_prompt, max_output=MAX_OUTPUT_TOKENS)


def _hidden(record: RequestRecord, reason_tokens: int) -> RequestRecord:
    """``record`` of an answer that was served as if all of it were read, as a reader saw it who was not shown the thought."""
    shown_s = record.token_times_s[reason_tokens:]
    return replace(record, deliveries=TokenTimes(shown_s), reason_tokens=reason_tokens)


def flooded_rps(engine: EngineModel, requests: Sequence[RequestSpec]) -> float:
    """Requests per second of a stock engine with all of ``requests`` there at once, over the middle of the run."""
    ends_s = np.sort([r.end_s for r in simulate(engine, None, [replace(r, arrival_s=0.0) for r in requests])])
    first, last = len(ends_s) // 4, len(ends_s) * 3 // 4
    return (last - first) / float(ends_s[last] - ends_s[first])
