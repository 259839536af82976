"""``andes diff``: what changed from one run to another, and whether that is more than noise."""

from __future__ import annotations

import argparse
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from andes_sglang import results, summary
from andes_sglang.flags import UsageError
from andes_sglang.request import RecordsError, RequestRecord

__all__ = ["USER_ERRORS", "Difference", "add_arguments", "paired_difference"]

USER_ERRORS: tuple[type[Exception], ...] = (RecordsError,)
FIGURES = (
    ("QoE mean", ("qoe", "mean"), ".3f"),
    ("QoE p5", ("qoe", "p5"), ".3f"),
    ("TTFT p50 s", ("ttft_s", "p50"), ".2f"),
    ("TTFT p90 s", ("ttft_s", "p90"), ".2f"),
    ("stall p90 s", ("stall_s", "longest_p90"), ".2f"),
    ("tokens/s", ("tokens_per_s",), ".1f"),
    ("failed", ("failed",), ".0f"),
)
"""Title, path in the summary of a policy, format."""
BLOCKS = 20
"""Of requests in order of arrival: neighbours are not independent, blocks of them nearly are (batch means)."""
T_95 = 2.093
"""Student's t at 97.5 % for ``BLOCKS - 1`` degrees of freedom."""
SAME_S = 1e-3
"""Arrivals closer than that are the same: records round them."""
SETTINGS = (("workload", ("name", "requests", "seeds")), ("engine", ("what", "flags", "arms", "router", "replicas")))


class Difference(NamedTuple):
    """Of mean QoE, B less A, over the requests that both have: 95 % of such runs are within ``half_width`` of it."""

    mean: float
    half_width: float
    requests: int

    @property
    def is_noise(self) -> bool:
        return abs(self.mean) <= self.half_width


def add_arguments(parser: argparse.ArgumentParser, _command: str) -> None:
    parser.description = _diff.__doc__
    parser.add_argument(
        "a", type=Path, metavar="A", help="directory of a run: --out of bench, compare, score or simulate"
    )
    parser.add_argument("b", type=Path, metavar="B", help="directory of another run")
    parser.add_argument(
        "--json", action="store_true", help="print the differences as JSON, and the table to standard error"
    )
    parser.add_argument(
        "--max-loss", type=float, metavar="QOE",
        help="end with status 1 if a policy's mean QoE is lower in B than in A by more than this, and that is no noise, or "
        "if a policy of A is not in B",
    )  # fmt: skip
    parser.set_defaults(run=_diff)


def paired_difference(
    first: Sequence[Sequence[RequestRecord]], second: Sequence[Sequence[RequestRecord]]
) -> Difference | None:
    """B less A, request by request, over the repeats of two runs of one policy; None where these are not the same requests,
    or too few."""
    differences = []
    for one, other in zip(first, second):
        by_index = {record.index: record for record in other}
        for record in sorted(one, key=lambda r: r.arrival_s):
            match = by_index.get(record.index)
            if match is None:
                continue
            if abs(match.arrival_s - record.arrival_s) > SAME_S or match.prompt_tokens != record.prompt_tokens:
                return None
            differences.append(match.qoe - record.qoe)
    if len(differences) < 2 * BLOCKS:
        return None
    means = np.array([block.mean() for block in np.array_split(np.array(differences), BLOCKS)])
    half_width = T_95 * float(means.std(ddof=1)) / math.sqrt(BLOCKS)
    return Difference(float(np.mean(differences)), half_width, len(differences))


def _diff(args: argparse.Namespace, rest: Sequence[str]) -> int:
    """Compare two runs policy by policy: figures of both, what else differs, and whether the change of QoE is noise."""
    if rest:
        raise UsageError(f"unknown argument {rest[0]!r}")
    if args.max_loss is not None and not 0.0 <= args.max_loss <= 1.0:
        raise UsageError(f"--max-loss must be from 0 to 1, as QoE is, got {args.max_loss}")
    a, b = results.read(args.a), results.read(args.b)
    compared = {}
    for title, one, other in _pairs(a, b):
        paired = paired_difference(a.of_readers.get(one, ()), b.of_readers.get(other, ()))
        compared[title] = _compared(a.summary["policies"][one], b.summary["policies"][other], paired)
    changed = _changed(a.summary, b.summary)
    only = _alone(a, b)
    said = {"a": str(args.a), "b": str(args.b), "changed": changed, "policies": compared, "only_in": only}
    results.say(_text(said), said, as_json=args.json)
    if args.max_loss is None:
        return 0
    return int(bool(only.get("a")) or any(_lost(figures) > args.max_loss for figures in compared.values()))


def _alone(a: results.Run, b: results.Run) -> dict[str, list[str]]:
    """Policies of A and of B that are in no pair."""
    ours, theirs = a.summary["policies"], b.summary["policies"]
    if len(ours) == len(theirs) == 1:
        return {}
    found = {"a": [name for name in ours if name not in theirs], "b": [name for name in theirs if name not in ours]}
    return {side: names for side, names in found.items() if names}


def _pairs(a: results.Run, b: results.Run) -> list[tuple[str, str, str]]:
    """What to call it, and its name in A and in B: policies of the same name, or the only ones."""
    ours, theirs = a.summary["policies"], b.summary["policies"]
    if len(ours) == len(theirs) == 1:
        one, other = next(iter(ours)), next(iter(theirs))
        return [(one if one == other else f"{one} -> {other}", one, other)]
    common = [name for name in ours if name in theirs]
    if not common:
        raise UsageError(f"no policy is in both: {', '.join(ours)}; {', '.join(theirs)}")
    return [(name, name, name) for name in common]


def _compared(ours: Mapping[str, Any], theirs: Mapping[str, Any], paired: Difference | None) -> dict[str, Any]:
    """Figures by title: [A, B]; and the paired difference of QoE."""
    both = {title: [_at(ours, path), _at(theirs, path)] for title, path, _ in FIGURES}
    return {
        "figures": both,
        "qoe_difference": None if paired is None else {**paired._asdict(), "noise": paired.is_noise},
    }


def _at(figures: Mapping[str, Any], path: Sequence[str]) -> float | None:
    value: Any = figures
    for key in path:
        value = value.get(key) if isinstance(value, Mapping) else None
    return value if isinstance(value, int | float) else None


def _changed(a: Mapping[str, Any], b: Mapping[str, Any]) -> dict[str, list[Any]]:
    """Settings that differ: [in A, in B] by name."""
    pairs = {f"{part}.{name}": [a[part].get(name), b[part].get(name)] for part, names in SETTINGS for name in names}
    pairs["version"] = [(made.get("made_by") or {}).get("version") for made in (a, b)]
    return {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}


def _lost(figures: Mapping[str, Any]) -> float:
    """Mean QoE that B has less than A; 0 where that is noise."""
    paired = figures["qoe_difference"]
    if paired is not None:
        return 0.0 if paired["noise"] else -float(paired["mean"])
    before, after = figures["figures"]["QoE mean"]
    return float(before - after)


def _text(said: Mapping[str, Any]) -> str:
    lines = [f"{name}: {a} -> {b}" for name, (a, b) in said["changed"].items()]
    rows = [["", *(title for title, _, _ in FIGURES)]]
    for policy, compared in said["policies"].items():
        for label, side in ((f"{policy}: A", 0), (f"{policy}: B", 1)):
            rows.append([label, *(_shown(compared["figures"][title][side], form) for title, _, form in FIGURES)])
        changes = [compared["figures"][title] for title, _, _ in FIGURES]
        rows.append(["  B - A", *(_shown(_less(pair), f"+{form}") for pair, (_, _, form) in zip(changes, FIGURES))])
    notes = [f"{policy}: {_verdict(compared['qoe_difference'])}" for policy, compared in said["policies"].items()]
    notes += [f"only in {side.upper()}, not compared: {', '.join(names)}" for side, names in said["only_in"].items()]
    return "\n\n".join(filter(None, ["\n".join(lines), summary.aligned(rows), "\n".join(notes)]))


def _shown(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)


def _less(pair: Sequence[float | None]) -> float | None:
    before, after = pair
    return None if before is None or after is None else after - before


def _verdict(paired: Mapping[str, Any] | None) -> str:
    if paired is None:
        return (
            "other requests in A and B, or too few: whether the difference is noise cannot be said request by request"
        )
    sure = "no more than noise" if paired["noise"] else "more than noise"
    change = f"mean QoE {paired['mean']:+.3f} ±{paired['half_width']:.3f} (95 %)"
    return f"{change} over {paired['requests']} requests that both have: {sure}"
