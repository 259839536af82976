"""Mixes of GPUs by integer programme and play, beside every pair of kinds: docs/benchmarks/planner.md.

``python benchmarks/planner.py mixes`` plans Llama-3.1-8B on L4, A100-80GB and H100 for chat, for documents and for a mix of
them, in one go or one workload each (``mixes chat``); everything is simulated. Prices are those of Mélange's evaluation
(arXiv 2404.14527). Every pair: all mixes of two kinds that are cheaper than the cheapest kind alone. Answers are kept under
``--out`` and reused. ``--page`` writes the table into the page.

``plays`` has the programme at several rates beside the number of pairs, which are counted and not played.

``search`` runs ``andes plan --search`` for every packaged profile, or those that are named; ``looping`` what an engine would
be worth whose iterations cost half of their fixed part, as kernel looping (arXiv 2410.23668) makes them.
"""

from __future__ import annotations

import argparse
import itertools
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from andes_sglang import cli
from andes_sglang.arms import Arm
from andes_sglang.objective import parse_objective
from andes_sglang.request import RequestSpec
from andes_sglang.results import Progress
from andes_sglang.sim import profile as profiles
from andes_sglang.sim.configure import DEPLOYED, STOCK_MIXED, configure
from andes_sglang.sim.engine import EngineModel
from andes_sglang.sim.plan import score_fleet
from andes_sglang.sim.planner import FleetPlan, Planner
from andes_sglang.workload import SyntheticWorkload, Workload, draw_shape, readers_of
from benchmarks.lengths import CHAT as LENGTHS
from benchmarks.lengths import SHORT_CHAT, Lengths
from benchmarks.markdown import Lines, header, replace_table, row

KINDS = {"l4-llama-3.1-8b": 0.70, "a100-80gb-llama-3.1-8b": 3.67, "h100-llama-3.1-8b": 7.516}
"""Profiles with the prices per hour of Mélange's evaluation, US dollars."""
CHAT = ("p50=70,p90=500,p99=2000", "p50=200,p90=430,p99=640", 24.0)
DOCUMENTS = ("p50=4000,p90=9000,p99=12000", "p50=220,p90=400,p99=500", 5.0)
"""Prompt, answer, requests per second: short prompts as people chat; articles that are summarised."""
WORKLOADS = {"chat": (CHAT,), "documents": (DOCUMENTS,), "mixed": ((*CHAT[:2], 12.0), (*DOCUMENTS[:2], 3.0))}
"""Mixed: four in five are chat, as in the paper."""
THEIRS = {"chat": 0.77, "documents": 0.33, "mixed": 0.51}
"""The most that the paper's mixes save over one kind of GPU."""
OBJECTIVES = {STOCK_MIXED: "goodput(ttft<=5,tpot<=0.12)>=0.95", DEPLOYED: "mean>=0.95"}
"""By arm: theirs is a bound of 120 ms on TPOT, beside which we ask for a first token; ours is QoE."""
DURATION_S = 60.0
MAX_REPLICAS = 60
TIMES = (1.0, 2.0, 4.0)
"""Rates at which plays are counted beside pairs."""
FRESH_SEEDS = (101, 102)
"""Draws that no choice has seen."""
SEARCHED: dict[str, tuple[Lengths, float]] = {
    "l4-llama-3.1-8b": (LENGTHS, 120.0),
    "a100-40gb-llama-2-13b": (SHORT_CHAT, 100.0),
    "h100-qwen2.5-32b": (LENGTHS, 60.0),
    "cpu-tiny-llama": (("200-400", "150-250"), 60.0),
    "a100-40gb-phi-3-mini": (LENGTHS, 45.0),
    "h100x4-llama-3.1-70b": (LENGTHS, 40.0),
    "a100-80gb-llama-3.1-8b": (LENGTHS, 40.0),
    "h100-llama-3.1-8b": (LENGTHS, 30.0),
}
"""Lengths, and seconds of a burst of twice the average for 35 % of them, by profile."""
SEARCH_SEEDS, SETUPS = 2, 10


LOOPING_RATES = ((30.0, 9.8), (60.0, 29.5), (30.0, 9.8))
"""A burst of 1.5 times what stock sustains between half loads (docs/benchmarks/simulated.md): seconds, requests/s."""
LOOPING_SEEDS = (1, 2)


def demand(name: str, seed: int, times: float = 1.0) -> Workload:
    """Poisson arrivals of each part of the workload, merged, at ``times`` its rates."""
    requests: list[RequestSpec] = []
    for part, (prompt, output, rate_rps) in enumerate(WORKLOADS[name]):
        requests += draw_shape("poisson", rate_rps=times * rate_rps, duration_s=DURATION_S, prompt=prompt, output=output,
                               seed=seed + 1000 * part)  # fmt: skip
    requests.sort(key=lambda r: r.arrival_s)
    return Workload(name, tuple(requests)).with_readers(seed, ttft_s=None, tds=None, population="reading")


def pairs(needed: Sequence[int | None]) -> Iterator[tuple[float, tuple[int, ...]]]:
    """Every mix of two kinds that is cheaper than the cheapest kind alone, with its price. needed: of each kind alone, None
    where that is more than ``MAX_REPLICAS``."""
    prices = list(KINDS.values())
    most = [MAX_REPLICAS if n is None else n for n in needed]
    least = min(n * price for n, price in zip(needed, prices, strict=True) if n is not None)
    for a, b in itertools.combinations(range(len(prices)), 2):
        for x, y in itertools.product(range(1, most[a] + 1), range(1, most[b] + 1)):
            if (price := x * prices[a] + y * prices[b]) < least - 1e-9:
                yield price, tuple(x * (k == a) + y * (k == b) for k in range(len(prices)))


def exhaustive_pairs(
    planner: Planner, engines: Sequence[EngineModel], arm: str, alone: Sequence[FleetPlan]
) -> tuple[float, list[int], int]:
    """The least price of every pair of kinds, its mix, and how many mixes were played to find it."""
    prices = list(KINDS.values())
    _, policy = configure(engines[0], Arm(arm))
    needed = [plan.replicas for plan in alone]
    best, kind = min((n * price, k) for k, (n, price) in enumerate(zip(needed, prices, strict=True)) if n is not None)
    mix, before = [(needed[k] or 0) * (k == kind) for k in range(len(prices))], planner.plays
    for price, pair in pairs(needed):
        trial = planner.trial([engine for engine, n in zip(engines, pair, strict=True) for _ in range(n)], policy)
        if trial.holds(planner.objective) and price < best:
            best, mix = price, list(pair)
    return best, mix, planner.plays - before


def answer(name: str, arm: str) -> dict[str, Any]:
    """The programme's mix and every pair's, of one workload under one arm."""
    objective = parse_objective(OBJECTIVES[arm])
    planner = Planner(objective, [demand(name, 1)], max_replicas=MAX_REPLICAS, progress=Progress(f"{name}, {arm}"))
    chosen = [configure(profiles.load(kind).engine, Arm(arm)) for kind in KINDS]
    engines = [engine for engine, _ in chosen]
    alone = [planner.smallest_fleet(engine, policy) for engine, policy in chosen]
    singles = planner.plays
    found = planner.cheapest_mix(engines, chosen[0][1], alone, list(KINDS.values()))
    assert found is not None
    price, pair, plays = exhaustive_pairs(planner, engines, arm, alone)
    fleet = [engine for engine, n in zip(engines, found.replicas) for _ in range(n)]
    fresh = planner.trial(fleet, chosen[0][1], [demand(name, seed) for seed in FRESH_SEEDS])
    return {
        "alone": [plan.replicas for plan in alone], "plays_alone": singles, "mix": found.replicas,
        "price": found.price_per_hour, "plays": found.plays, "value": found.trial.mean, "pair": pair, "pair_price": price,
        "pair_plays": plays, "fresh": fresh.values, "fresh_hold": sum(objective.margin(v) >= 0 for v in fresh.values),
    }  # fmt: skip


def planned(name: str, arm: str, times: float) -> dict[str, Any]:
    """The programme's mix at ``times`` the workload's rate, and how many pairs there are; those are not played."""
    planner = Planner(parse_objective(OBJECTIVES[arm]), [demand(name, 1, times)], max_replicas=MAX_REPLICAS,
                      progress=Progress(f"{name} x {times:g}, {arm}"))  # fmt: skip
    chosen = [configure(profiles.load(kind).engine, Arm(arm)) for kind in KINDS]
    alone = [planner.smallest_fleet(engine, policy) for engine, policy in chosen]
    needed, policy = [plan.replicas for plan in alone], chosen[0][1]
    found = planner.cheapest_mix([engine for engine, _ in chosen], policy, alone, list(KINDS.values()))
    assert found is not None
    return {"alone": needed, "mix": found.replicas, "price": found.price_per_hour, "plays": found.plays,
            "pairs": sum(1 for _ in pairs(needed))}  # fmt: skip


def kept(out: Path, name: str, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """The answer of this name under ``out``, made where it is not there."""
    out.mkdir(parents=True, exist_ok=True)
    file = out / f"{name}.json"
    if not file.exists():
        file.write_text(json.dumps(make()))
    found: dict[str, Any] = json.loads(file.read_text())
    return found


def rows(out: Path, names: Sequence[str]) -> Lines:
    kinds = [kind.partition("-llama")[0] for kind in KINDS]
    yield from header(
        "workload", "policy, objective", *(f"{kind} alone, $/h" for kind in kinds), "mix", "$/h", "over each kind",
        "Mélange's most", "every pair, $/h", "mixes played, of pairs", "fresh draws that hold",
    )  # fmt: skip
    for name, (arm, objective) in itertools.product(names, OBJECTIVES.items()):
        found = kept(out, f"{name}-{arm}", partial(answer, name, arm))
        alone = [n and n * price for n, price in zip(found["alone"], KINDS.values())]
        mix = " + ".join(f"{n} {kind}" for n, kind in zip(found["mix"], kinds) if n)
        savings = ", ".join("-" if price is None else f"{found['price'] / price - 1:+.0%}" for price in alone)
        yield row(
            name, f"{arm}, `{objective}`",
            *("none holds" if price is None else f"{price:.2f} ({n})" for n, price in zip(found["alone"], alone)), mix,
            f"{found['price']:.2f}", savings, f"-{THEIRS[name]:.0%}", f"{found['pair_price']:.2f}",
            f"{found['plays']} of {found['pair_plays']}", f"{found['fresh_hold']} of {len(found['fresh'])}",
        )  # fmt: skip


def plays(out: Path, names: Sequence[str]) -> Lines:
    """How many mixes are played, beside how many pairs there are, in fleets of several sizes."""
    kinds = [kind.partition("-llama")[0] for kind in KINDS]
    yield from header("workload", "times its rate", "alone", "mix", "$/h", "mixes played", "pairs", "share")
    played = there = 0
    for name, times in itertools.product(names, TIMES):
        found = kept(out, f"plays-{name}-{times:g}", partial(planned, name, STOCK_MIXED, times))
        alone = ", ".join(f"{n or f'> {MAX_REPLICAS}'} {kind}" for n, kind in zip(found["alone"], kinds, strict=True))
        mix = " + ".join(f"{n} {kind}" for n, kind in zip(found["mix"], kinds, strict=True) if n)
        share = f"{found['plays'] / found['pairs']:.0%}" if found["pairs"] else "-"
        yield row(name, f"{times:g}", alone, mix, f"{found['price']:.2f}", found["plays"], found["pairs"], share)
        played, there = played + found["plays"], there + found["pairs"]
    yield row("all", "", "", "", "", played, there, f"{played / there:.0%}")


def searched(out: Path, names: Sequence[str]) -> Lines:
    yield from header(
        "profile", "defaults hold, requests/s and device", "the best holds", "more", "`andes serve`", "plays"
    )
    for name in names:
        (prompt, output), duration_s = SEARCHED[name]
        folder = out / f"search-{name}"
        if not (folder / "plan.json").exists():
            flags = ["--profile", name, "--prompt", prompt, "--output", output, "--duration", str(duration_s)]
            flags += ["--setups", str(SETUPS)]
            code = cli.main(["plan", "--search", *flags, "--seeds", str(SEARCH_SEEDS), "--out", str(folder)])
            assert code == 0
        found = json.loads((folder / "plan.json").read_text())
        yield row(
            name, f"{found['default_held_rps_per_device']:.3g}", f"{found['chosen_held_rps_per_device']:.3g}",
            f"{found['gain']:+.0%}", f"`{found['chosen']['flags']}`", found["plays"],
        )  # fmt: skip


def looping(_out: Path, _names: Sequence[str]) -> Lines:
    """An H100 with an 8B in a burst of 1.5 C, as it is and with half of the fixed part of a decode step."""
    engine, policy = configure(profiles.load("h100-llama-3.1-8b").engine, Arm(DEPLOYED))
    looped = replace(engine, costs=replace(engine.costs, decode_fixed_s=engine.costs.decode_fixed_s / 2))
    yield from header("readers", "mean QoE", "with half of `decode_fixed_s`", "seeds")
    for readers, tds in (("people", None), ("agents at 60 tokens/s", 60.0)):
        values: list[list[float]] = [[], []]
        for seed in LOOPING_SEEDS:
            drawn = SyntheticWorkload("burst", LOOPING_RATES, *LENGTHS, readers_of("reading", tds=tds), seed)
            for kind, one in enumerate((engine, looped)):
                scores, _ = score_fleet([one], policy, drawn, decision_interval_s=0.1)
                values[kind].append(float(scores.mean()))
        yield row(readers, *(f"{np.mean(v):.3f} ({min(v):.3f} to {max(v):.3f})" for v in values), len(LOOPING_SEEDS))


TABLES: dict[str, tuple[Callable[[Path, Sequence[str]], Lines], Sequence[str]]] = {
    "mixes": (rows, list(WORKLOADS)), "plays": (plays, list(WORKLOADS)), "search": (searched, list(SEARCHED)),
    "looping": (looping, []),
}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("table", choices=list(TABLES))
    parser.add_argument("only", nargs="*", default=[], metavar="WORKLOAD|PROFILE")
    parser.add_argument("--out", type=Path, default=Path("out/planner"))
    parser.add_argument("--page", type=Path)
    args = parser.parse_args()
    table, names = TABLES[args.table]
    if unknown := [name for name in args.only if name not in names]:
        parser.error(f"{unknown[0]}: not one of {', '.join(names)}")
    text = "\n".join(table(args.out, args.only or names))
    print(text)
    if args.page is not None:
        replace_table(args.page, args.table, text)


if __name__ == "__main__":
    main()
