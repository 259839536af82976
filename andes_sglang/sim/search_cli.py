"""``andes plan --search``."""

from __future__ import annotations

import argparse
import copy
import json
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np

from andes_sglang import results, summary
from andes_sglang.flags import UsageError
from andes_sglang.objective import AnyObjective
from andes_sglang.sim.cli import check_requests
from andes_sglang.sim.configure import configure, unlike_served
from andes_sglang.sim.plan import capacity_rps, play_fleet
from andes_sglang.sim.profile import Profile
from andes_sglang.sim.search import LADDER, Found, Setup, Space, changed, engine_of, held_rate, search
from andes_sglang.sim.served import Served
from andes_sglang.summary import Figures
from andes_sglang.workload import SyntheticWorkload, Workload, from_arguments
from andes_sglang.workload.arguments import SHAPE_DURATION_S, arrives_by_shape

__all__ = ["run"]

FRESH = 1000
"""Added to the seeds of what the search has not seen."""


class _Rig:
    """Set-ups of ``profile`` under the workload of ``args``, which is drawn at other rates. passed: flags for all of them."""

    def __init__(
        self, args: argparse.Namespace, profile: Profile, objective: AnyObjective, passed: Sequence[str]
    ) -> None:
        self.args, self.profile, self.objective, self.passed = args, profile, objective, passed
        self.plays = 0
        first = from_arguments(args, args.seed)
        check_requests(first, [profile.engine])
        self.shaped, span_s = arrives_by_shape(args), first.duration_s
        if isinstance(first, Workload) and not self.shaped:
            span_s *= args.rate_scale  # --duration is of the trace's own clock
        if not span_s:
            raise UsageError(f"--search: all requests of {args.trace} arrive at once: they have no rate to search")
        self.span_s = args.duration or (SHAPE_DURATION_S if self.shaped else span_s)
        described = first.describe()
        self.base_rps = float(described["rate_rps"] or 1.0)
        self.prompt = float(described["prompt_tokens"]["mean"])
        self.output = float(described["output_tokens"]["mean"])

    def demand(self, rate_rps: float, share: float, seed: int) -> Workload | SyntheticWorkload:
        """The workload at another rate; share: of its seconds."""
        args = copy.copy(self.args)
        if self.shaped:
            args.rate = rate_rps
        else:
            args.rate_scale *= rate_rps / self.base_rps
        if self.shaped or share < 1.0:
            args.duration = share * self.span_s
        return from_arguments(args, seed)

    def margin(self, setup: Setup, rate_rps: float, share: float, seeds: Sequence[int]) -> float:
        """How far one replica holds the objective at ``rate_rps`` for each of its devices, on average over ``seeds``."""
        engine, policy = configure(engine_of(self.profile, setup), setup.arm, self.passed)
        values = []
        for seed in seeds:
            self.plays += 1
            served = Served()
            demand = self.demand(rate_rps * setup.devices, share, seed)
            play_fleet([engine], policy, demand, served.add, decision_interval_s=self.args.decision_interval)
            values.append(served.statistic(self.objective))
        return self.objective.margin(float(np.mean(values)))

    def predicted(self, found: Found, seed: int) -> dict[str, Any]:
        """Figures at the rate that it holds."""
        engine, policy = configure(engine_of(self.profile, found.setup), found.setup.arm, self.passed)
        figures = Figures()
        demand = self.demand(found.held_rps * found.setup.devices, 1.0, seed)
        play_fleet([engine], policy, demand, figures.add, decision_interval_s=self.args.decision_interval)
        return figures.summary()


def run(args: argparse.Namespace, profile: Profile, objective: AnyObjective, passed: Sequence[str]) -> int:
    """Search set-ups of one profile for the one that holds the objective under most requests per second and device."""
    rig = _Rig(args, profile, objective, passed)
    space = Space.of(profile, rig.prompt + rig.output / 2).under(passed)
    configure(profile.engine, space.defaults.arm, passed)
    with results.prepared(args.out, force=args.force):
        return _searched(rig, space)


def _searched(rig: _Rig, space: Space) -> int:
    args, profile, objective = rig.args, rig.profile, rig.objective
    progress = results.Progress(profile.name)
    fresh = [args.seed + FRESH + k for k in range(args.seeds)]
    guess = capacity_rps(profile.engine, rig.prompt, rig.output) / profile.engine.devices
    try:
        found = search(
            lambda setup, rate_rps, share: rig.margin(setup, rate_rps, share, [args.seed]),
            space, count=args.setups, seed=args.seed, guess_rps=guess, told=progress,
        )  # fmt: skip
        if not found[0].held_rps:
            return _none(f"{profile.name} holds {objective} at no rate that was tried")
        progress("defaults and the best on fresh draws")
        best = max(found, key=lambda one: one.held_rps)
        default, chosen = (
            Found(one.setup, held_rate(lambda s, r, share: rig.margin(s, r, share, fresh), one.setup, one.held_rps))
            for one in (found[0], best)
        )
        if not default.held_rps:
            return _none(
                f"{profile.name} holds {objective} with seed {args.seed}, but on {_draws(fresh)} at no rate that was tried; "
                "a lower objective, or a longer --duration"
            )
    except KeyboardInterrupt:
        print("\ninterrupted: nothing was chosen", file=sys.stderr)
        return 130
    if chosen.held_rps <= default.held_rps:
        chosen = default
    _report(rig, found, default, chosen, fresh)
    return 0


def _none(why: str) -> int:
    """The exit status where nothing holds the objective; ``why``, said."""
    print(f"andes plan: {why}", file=sys.stderr)
    return 1


def _report(rig: _Rig, found: Sequence[Found], default: Found, chosen: Found, fresh: Sequence[int]) -> None:
    """Table, the line for ``andes serve``, the chart's values, what is predicted; then the files."""
    args, profile = rig.args, rig.profile
    rows = [["set-up", "requests/s and device", "over the defaults", "fresh draws"]]
    for one in found:
        again = {default.setup: default, chosen.setup: chosen}.get(one.setup)
        gain = one.held_rps / found[0].held_rps - 1.0
        rows.append([_name(one.setup, found[0].setup), f"{one.held_rps:.3g}", f"{gain:+.0%}",
                     "-" if again is None else f"{again.held_rps:.3g}"])  # fmt: skip
    gain = chosen.held_rps / default.held_rps - 1.0
    predicted, flags = rig.predicted(chosen, fresh[0]), chosen.setup.serve_flags(rig.passed)
    chart = chosen.setup.chart_values(profile.name, rig.passed)
    engine, _ = configure(engine_of(profile, chosen.setup), chosen.setup.arm, rig.passed)
    unlike = list(unlike_served({profile.name: engine}))
    result = {
        "made_by": results.made_by(), "simulated": True, "objective": str(rig.objective), "profile": profile.name,
        "found": [{"flags": one.setup.serve_flags(rig.passed), "held_rps_per_device": one.held_rps} for one in found],
        "default_held_rps_per_device": default.held_rps, "chosen_held_rps_per_device": chosen.held_rps, "gain": gain,
        "chosen": {"flags": flags, "chart": chart},
        "predicted": predicted, "plays": rig.plays, "unlike_served": unlike,
    }  # fmt: skip
    better = (
        f"On {_draws(fresh)}, which the search has not seen, the best holds {rig.objective} at {chosen.held_rps:.3g} "
        f"requests/s and device, {gain:.0%} more than the defaults; steps of {LADDER - 1:.0%}."
    )
    told = (
        f"Predicted there: mean QoE {predicted['qoe']['mean']:.3f}, TTFT p90 {predicted['ttft_s']['p90']:.2f} s, "
        f"{predicted['tokens_per_s']:.0f} tokens/s; everything is simulated."
    )
    serve = f"andes serve --model MODEL {flags}"
    verdict = better if gain > 0.0 else "Nothing better than the defaults was found."
    said = [summary.aligned(rows), "", verdict, told, *unlike, "", serve, "", chart]
    results.say("\n".join(said), result, as_json=args.json)
    results.save(args.out, {"plan.json": json.dumps(result, indent=1) + "\n"})
    print(f"\n{args.out / 'plan.json'}", file=sys.stderr if args.json else sys.stdout)


def _draws(seeds: Sequence[int]) -> str:
    return "1 fresh draw" if len(seeds) == 1 else f"{len(seeds)} fresh draws"


def _name(setup: Setup, defaults: Setup) -> str:
    if setup == defaults:
        return "defaults"
    names = {"chunk_tokens": "chunk", "max_running": "batch"}
    parts = []
    for field in changed(setup, defaults):
        value = getattr(setup, field)
        if field == "options":
            parts += [f"{name}={option:g}" for name, option in value]
        else:
            parts.append(field if value is True else f"{names.get(field, field)} {value}")
    return ", ".join(parts)
