"""The answer of ``andes plan``: as rows, notes, JSON and a page."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from andes_sglang import report
from andes_sglang.objective import AnyObjective
from andes_sglang.sim.planner import SURE, FleetMix, FleetPlan, Saving
from andes_sglang.sim.profile import Profile

__all__ = ["ArmPlan", "MixPlan", "model_of", "notes", "page", "table"]


def model_of(profile: Profile) -> str:
    """Without its number format: ``Llama-3.1-8B`` of ``Llama-3.1-8B, bf16``."""
    return profile.model.partition(",")[0].strip()


@dataclass(frozen=True, slots=True)
class ArmPlan:
    """The smallest fleet of one profile under one arm. flags: of its engines, policy among them, as ``andes serve`` takes
    them. saving: over the better stock arm of the profile."""

    profile: Profile
    arm: str
    fleet: FleetPlan
    flags: str
    saving: Saving | None = None

    @property
    def price_per_hour(self) -> float | None:
        each = self.profile.price_per_hour
        return None if each is None or self.fleet.replicas is None else each * self.fleet.replicas

    def as_json(self, objective: AnyObjective) -> dict[str, Any]:
        fleet, saving = self.fleet, self.saving
        return {
            "profile": self.profile.name,
            "policy": self.arm,
            "flags": self.flags,
            "replicas": fleet.replicas,
            "certainty": None if fleet.replicas is None else fleet.trials[fleet.replicas].certainty(objective),
            "used": fleet.used,
            "headroom": fleet.headroom,
            "price_per_hour": self.price_per_hour,
            "saving_over_better_stock": None if saving is None else saving.share,
            "saving_certainty": None if saving is None else saving.certainty,
            "predicted": {
                n: {"values": list(trial.values), "backlog_share": trial.backlog_share}
                for n, trial in sorted(fleet.trials.items())
            },
        }


@dataclass(frozen=True, slots=True)
class MixPlan:
    """The cheapest fleet of several profiles under one arm. cheapest_kind: what the cheapest of them costs alone per hour."""

    profiles: tuple[Profile, ...]
    arm: str
    fleet: FleetMix
    cheapest_kind: float | None

    @property
    def saving(self) -> float | None:
        return None if not self.cheapest_kind else 1.0 - self.fleet.price_per_hour / self.cheapest_kind

    def as_json(self) -> dict[str, Any]:
        return {
            "policy": self.arm,
            "replicas": {p.name: n for p, n in zip(self.profiles, self.fleet.replicas, strict=True)},
            "price_per_hour": self.fleet.price_per_hour,
            "saving_over_cheapest_kind": self.saving,
            "values": list(self.fleet.trial.values),
            "used": self.fleet.used,
            "headroom": self.fleet.headroom,
            "plays": self.fleet.plays,
        }


def _spread(values: Sequence[float]) -> str:
    return f"{np.mean(values):.3f}" + (f" ±{np.std(values, ddof=1):.3f}" if len(values) > 1 else "")


def _saving(saving: Saving | None) -> str:
    """A share that is sure, or a question mark behind it."""
    if saving is None:
        return "-"
    return f"{saving.share:.0%}" if saving.sure or saving.share <= 0.0 else f"({saving.share:.0%}?)"


def _share(used: float | None, headroom: float | None) -> tuple[str, str]:
    return "-" if used is None else f"{used:.0%}", "-" if headroom is None else f"{headroom - 1.0:+.0%}"


def table(plans: Sequence[ArmPlan], mixes: Sequence[MixPlan], objective: AnyObjective) -> list[list[str]]:
    def hold(values: Sequence[float]) -> str:
        return f"{sum(objective.margin(v) >= 0 for v in values)} of {len(values)}"

    rows = [[
        "fleet", "policy", "replicas", objective.words, "seeds that hold", "with one fewer", "used", "headroom", "price/h",
        "saving",
    ]]  # fmt: skip
    for p in plans:
        trials, n = p.fleet.trials, p.fleet.replicas
        if n is None:
            largest = max(trials)
            rows.append([p.profile.name, p.arm, f"> {largest}", _spread(trials[largest].values), *["-"] * 6])
            continue
        rows.append([
            p.profile.name, p.arm, str(n), _spread(trials[n].values), hold(trials[n].values),
            _spread(trials[n - 1].values) if n - 1 in trials else "-",
            *_share(p.fleet.used, p.fleet.headroom),
            "-" if p.price_per_hour is None else f"{p.price_per_hour:.2f}", _saving(p.saving),
        ])  # fmt: skip
    for mix in mixes:
        fleet = " + ".join(f"{n} {p.name}" for p, n in zip(mix.profiles, mix.fleet.replicas, strict=True) if n)
        values = mix.fleet.trial.values
        rows.append([fleet, mix.arm, str(sum(mix.fleet.replicas)), _spread(values), hold(values), "-",
                     *_share(mix.fleet.used, mix.fleet.headroom), f"{mix.fleet.price_per_hour:.2f}", "-"])  # fmt: skip
    return rows


def notes(chosen: Sequence[Profile], plans: Sequence[ArmPlan], mixes: Sequence[MixPlan], seeds: int) -> Iterator[str]:
    """What the table does not say."""
    models = {model_of(profile): profile.name for profile in chosen}
    if len(models) > 1:
        which = ", ".join(f"{name} serves {model}" for model, name in models.items())
        yield f"the profiles are of different models ({which}): their rows answer different questions; no mixes of them"
    for plan in plans:
        yield f"{plan.profile.name}, {plan.arm}: andes serve {plan.flags}"
    for plan in plans:
        if plan.saving is not None and plan.saving.share > 0.0 and not plan.saving.sure:
            yield _doubt(plan, plan.saving, seeds)
    for mix in mixes:
        if mix.saving is not None:
            names = ", ".join(p.name for p in mix.profiles)
            verdict = f"{mix.saving:.0%} cheaper than" if mix.saving > 0 else "nothing cheaper was found than"
            yield f"mix of {names}, {mix.arm}: {verdict} the cheapest of them alone; {mix.fleet.plays} mixes simulated"
    for profile in chosen:
        if profile.engine.devices > 1:
            yield (
                f"{profile.name}: a replica is {profile.engine.devices} GPUs by tensor parallelism, which andes serve takes "
                "under every policy; --preemption-mode offload over several GPUs takes SGLang 0.5.22 or newer"
            )


def _doubt(plan: ArmPlan, saving: Saving, seeds: int) -> str:
    where = f"{plan.profile.name}, {plan.arm}"
    if saving.certainty is None:
        return f"{where}: no saving is claimed: {seeds} seed cannot tell it from chance; --seeds 5"
    return (
        f"{where}: no saving is claimed: {seeds} seeds make it {saving.certainty:.0%} sure, and {SURE:.0%} is asked for; "
        f"--seeds {2 * seeds}"
    )


def page(
    result: dict[str, Any], plans: Sequence[ArmPlan], rows: Sequence[Sequence[str]], objective: AnyObjective
) -> str:
    """One self-contained page: the table, and for each profile the objective's statistic by fleet size."""
    arms = list(dict.fromkeys(p.arm for p in plans))
    colours = {name: report.COLOURS[k % len(report.COLOURS)] for k, name in enumerate(arms)}
    figures = []
    for profile in dict.fromkeys(p.profile.name for p in plans):
        mine = [p for p in plans if p.profile.name == profile]
        series: list[report.Series] = []
        for p in mine:
            trials = sorted(p.fleet.trials.items())
            series.append((p.arm, colours[p.arm], [n for n, _ in trials], [trial.mean for _, trial in trials]))
        largest = max(n for p in mine for n in p.fleet.trials)
        top = max([1.0, objective.value, *(trial.mean for p in mine for trial in p.fleet.trials.values())])
        series.append(("objective", "#888 dash", [0.0, float(largest)], [objective.value] * 2))
        chart = report.plot(series, "replicas", objective.words, top)
        figures.append(report.Figure(chart, profile))
    title = f"SIMULATED: replicas for {objective}"
    return report.render_page("plan", title=title, workload=result["workload"], columns=rows[0], rows=rows[1:],
                              colours=colours, figures=figures)  # fmt: skip
