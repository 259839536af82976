"""Offline work on the engine that serves readers: what it costs them, and how much of the slack it takes.

``python benchmarks/slack.py --setting a100-13b`` prints a row per arm. Everything is simulated. Readers come as in
:mod:`benchmarks.simulated`: a burst between half loads. Offline requests of the same lengths come faster than they could be
served, from the start. Lost: how far mean, 5th percentile and the worst group by prompt length lie below what the same arm
gives readers alone. Used: offline tokens/s over the run, relative to what an engine with offline work alone makes in that
time beyond the tokens that readers get when alone.

Arms: ``andes`` with offline work that yields; the same with it as a patient reader of little weight; the rule of HyGen
(arXiv 2501.14808): readers first, offline work where a decode step stays within a latency budget, given up when KV runs
short, but not parked; strict priority, the same without a budget; and SGLang, first come, first served.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from andes_sglang.arms import Arm
from andes_sglang.policy import Displacement, SchedulingPolicy, pack
from andes_sglang.qoe import QoETarget
from andes_sglang.request import RequestSpec
from andes_sglang.sim import profile as profiles
from andes_sglang.sim.configure import configure
from andes_sglang.sim.engine import EngineModel
from andes_sglang.sim.replica import simulate
from andes_sglang.state import Decision, SchedulerState
from benchmarks.markdown import Lines, header, row
from benchmarks.runs import AFTER_S, BEFORE_S, INTERVAL_S, Case, SimulatedRuns
from benchmarks.settings import ARMS, SETTINGS, STOCK, best_arm

PATIENT = QoETarget(3600.0, 1.0)
"""What offline work expects where it does not yield: no reader waits for it within the hour."""
BATCH_WEIGHT = 0.2
"""Of the gateway's class ``batch``."""
BUDGET_SHARE = 0.5
"""HyGen's latency budget, relative to the fastest reader's time per token: as for work that yields."""


BURST_S = 120.0
RUN_S = BEFORE_S + BURST_S + AFTER_S
"""Seconds: until the last reader arrives."""


class Priority:
    """Readers first, in order of arrival; offline work (known by its patience) where there is room, given up when a reader
    needs it. within_budget: only as long as a decode step stays within the budget, as HyGen has it."""

    def __init__(self, *, within_budget: bool) -> None:
        self.within_budget = within_budget
        self.name = "hygen" if within_budget else "priority"

    def decide(self, state: SchedulerState) -> Decision:
        t = state.requests
        offline = t.readers.start_s - t.arrival_s >= PATIENT.ttft_s
        batch = self._batch(state, ~offline) if self.within_budget else state.max_running
        return pack(
            state,
            -t.arrival_s,
            tier=(~offline).astype(float),
            batch=max(batch, int(np.count_nonzero(~offline))),
            displacement=Displacement(~offline, offline & (t.kv_tokens > 0)),
        )

    def _batch(self, state: SchedulerState, readers: np.ndarray[tuple[int], np.dtype[np.bool_]]) -> int:
        if not readers.any():
            return state.max_running
        t = state.requests
        budget_s = BUDGET_SHARE / float(t.readers.tds[readers].max())
        fixed_s = state.latency.decode_s(0, 0)
        each_s = state.latency.decode_s(1, float(t.context_tokens.mean())) - fixed_s
        return min(state.max_running, max(1, int((budget_s - fixed_s) / max(each_s, 1e-9))))


@dataclass(frozen=True)
class SlackArm:
    """flags: an arm of :mod:`benchmarks.settings`; policy: in the place of its own. weight, yields: of offline work."""

    name: str
    flags: Arm
    policy: SchedulingPolicy | None
    weight: float = 1.0
    yields: bool = False


def arms(setting: str) -> Iterator[SlackArm]:
    ours, mixed = ARMS[best_arm(setting)], STOCK["stock, mixed"]
    yield SlackArm("andes, it yields", ours, configure(engine_of(setting, ours), ours)[1](), yields=True)
    yield SlackArm("andes, as class batch", ours, configure(engine_of(setting, ours), ours)[1](), weight=BATCH_WEIGHT)
    yield SlackArm("HyGen's rule", ours, Priority(within_budget=True))
    yield SlackArm("strict priority", ours, Priority(within_budget=False))
    yield SlackArm("stock, mixed", mixed, None)


def engine_of(setting: str, arm: Arm) -> EngineModel:
    return configure(profiles.load(SETTINGS[setting].profile).engine, replace(arm, policy="fcfs"))[0]


@dataclass(frozen=True)
class Served:
    """Of one run. qoe: of the scored readers, in order of arrival; prompts: their lengths; tokens/s of both over the run."""

    qoe: np.ndarray[tuple[int], np.dtype[np.float64]]
    prompts: np.ndarray[tuple[int], np.dtype[np.float64]]
    reader_tokens_per_s: float
    offline_tokens_per_s: float

    @property
    def groups(self) -> list[float]:
        """Mean QoE of the shortest half by prompt, of the middle, and of the longest tenth."""
        by_length = self.qoe[np.argsort(self.prompts, kind="stable")]
        half, tenth = len(by_length) // 2, len(by_length) * 9 // 10
        return [float(part.mean()) for part in (by_length[:half], by_length[half:tenth], by_length[tenth:])]


def serve(
    engine: EngineModel, arm: SlackArm, case: Case, runs: SimulatedRuns, *, readers: bool, offline: bool
) -> Served:
    """The readers of ``case``, offline work, or both."""
    online = runs.requests(case)[0] if readers else ()
    work = _offline(case, runs, arm) if offline else ()
    specs = sorted([*online, *work], key=lambda spec: spec.arrival_s)
    is_offline = [spec.target.ttft_s >= PATIENT.ttft_s for spec in specs]
    done = sorted(simulate(engine, arm.policy, specs, decision_interval_s=INTERVAL_S), key=lambda r: r.index)
    tokens = [0, 0]
    for record in done:
        tokens[is_offline[record.index]] += int(np.count_nonzero(record.token_times_s <= RUN_S))
    scored = [record for record in done if not is_offline[record.index]]
    return Served(
        np.array([record.qoe for record in scored]),
        np.array([float(record.prompt_tokens) for record in scored]),
        *(n / RUN_S for n in tokens),
    )


def _offline(case: Case, runs: SimulatedRuns, arm: SlackArm) -> Iterator[RequestSpec]:
    """More than an engine can serve, drawn as the readers' requests, under another seed."""
    drawn, _, _ = runs.requests(replace(case, kind="steady", x=1.2, seed=case.seed + 100))
    for spec in drawn:
        if spec.arrival_s < RUN_S:
            yield replace(spec, target=PATIENT, weight=arm.weight, yields=arm.yields)


def table(setting: str, seeds: Sequence[int], runs: SimulatedRuns, chosen: str | None) -> Lines:
    yield from header("arm", "readers alone, mean / p5", "lost, mean", "p5", "worst group", "offline tokens/s", "used")
    for arm in arms(setting):
        if chosen and chosen not in arm.name:
            continue
        engine = engine_of(setting, arm.flags)
        rows = []
        for seed in seeds:
            found = SETTINGS[setting]
            case = Case(setting, "burst", found.x, BURST_S, seed, arm.flags)
            alone = serve(engine, arm, case, runs, readers=True, offline=False)
            only = serve(engine, arm, case, runs, readers=False, offline=True)
            both = serve(engine, arm, case, runs, readers=True, offline=True)
            left = only.offline_tokens_per_s - alone.reader_tokens_per_s
            rows.append([
                alone.qoe.mean(), np.quantile(alone.qoe, 0.05), alone.qoe.mean() - both.qoe.mean(),
                np.quantile(alone.qoe, 0.05) - np.quantile(both.qoe, 0.05),
                max(a - b for a, b in zip(alone.groups, both.groups, strict=True)),
                both.offline_tokens_per_s, both.offline_tokens_per_s / left,
            ])  # fmt: skip
        mean, p5, lost, lost_p5, group, rate, used = np.mean(rows, axis=0)
        yield row(
            arm.name,
            f"{mean:.3f} / {p5:.3f}",
            f"{lost:.3f}",
            f"{lost_p5:.3f}",
            f"{group:.3f}",
            f"{rate:.0f}",
            f"{used:.0%}",
        )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n\n")[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--setting", choices=[*SETTINGS], default="a100-13b")
    parser.add_argument("--seeds", type=int, default=1, help="draws that a row is the mean of")
    parser.add_argument("--arm", help="only arms whose name holds this")
    parser.add_argument("--traces", type=Path, help="directory of recorded traces, for settings that replay one")
    parser.add_argument("--out", type=Path, default=Path("out/simulated"), help="where capacities are kept")
    given = parser.parse_args()
    runs = SimulatedRuns(given.out, given.traces, given.seeds)
    for line in table(given.setting, range(1, given.seeds + 1), runs, given.arm):
        print(line, flush=True)


if __name__ == "__main__":
    main()
