"""What admission by forecast gains and costs: ``python benchmarks/admission.py``. Simulated, one replica, cold.

Poisson arrivals for four minutes at multiples of C, what stock SGLang sustains, with and without the gateway's own admission
(:mod:`andes_sglang.admission`) before the engine. A refused stream scores 0 and counts.
"""

from __future__ import annotations

import argparse
from dataclasses import replace

import numpy as np

from andes_sglang.admission import Wish
from andes_sglang.arms import Arm
from andes_sglang.request import RequestRecord, RequestSpec
from andes_sglang.sim import profile as profiles
from andes_sglang.sim.configure import configure
from andes_sglang.sim.engine import EngineModel
from andes_sglang.sim.fleet import Fleet
from andes_sglang.sim.plan import sustained_tokens_per_s
from andes_sglang.workload import draw_shape, mean_length
from benchmarks.markdown import header, row
from benchmarks.waits import MIXED, SETTINGS, Setting

SPAN_S = 240.0


def played(setting: Setting, policy: str, requests: list[RequestSpec], wish: Wish | None) -> list[RequestRecord]:
    engine, make = configure(_engine(setting), Arm(policy, MIXED))
    records: list[RequestRecord] = []
    fleet = Fleet(engine, make, decision_interval_s=0.1, wish=wish, sink=records.append)
    for spec in requests:
        fleet.submit(spec)
    fleet.advance()
    return records


def requests_of(setting: Setting, load: float, seed: int, span_s: float) -> list[RequestSpec]:
    stock, _ = configure(_engine(setting), Arm("stock", MIXED))
    sustained_rps = sustained_tokens_per_s(stock, setting.prompt, setting.output, seed=1) / mean_length(setting.output)
    drawn = draw_shape("poisson", rate_rps=load * sustained_rps, duration_s=span_s, prompt=setting.prompt,
                       output=setting.output, seed=seed)  # fmt: skip
    return list(drawn.with_readers(seed, ttft_s=1.0, tds=None, population="reading"))


def figures(records: list[RequestRecord]) -> list[float]:
    """Share let in, mean QoE of all, share of all >= 0.9, mean and 5th percentile of those let in."""
    qoe = np.array([record.qoe for record in records])
    admitted = qoe[[record.error is None for record in records]]
    return [
        len(admitted) / len(qoe), float(qoe.mean()), float((qoe >= 0.9).mean()), float(admitted.mean()),
        float(np.percentile(admitted, 5)),
    ]  # fmt: skip


def _engine(setting: Setting) -> EngineModel:
    engine = profiles.load(setting.profile).engine
    return replace(engine, max_running=setting.max_running or engine.max_running)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("settings", nargs="*", default=[*SETTINGS], help=f"of {', '.join(SETTINGS)}; default: all")
    parser.add_argument("--policies", default="stock,andes", help="scheduling policies; default: %(default)s")
    parser.add_argument("--loads", default="1,2,4", help="of C; default: %(default)s")
    parser.add_argument("--shed-below", default="0.05", help="QoE below which a class would rather be told at once, one or "
                        "several; default: %(default)s")  # fmt: skip
    parser.add_argument(
        "--duration", type=float, default=SPAN_S, metavar="S", help="of the arrivals; default: %(default)g"
    )
    parser.add_argument(
        "--seeds",
        default="2,3",
        help="figures are means; the rule's constants were chosen on seed 1; default: %(default)s",
    )
    args = parser.parse_args()
    for name in args.settings:
        if name not in SETTINGS:
            parser.error(f"setting {name!r}: not known; choose of {', '.join(SETTINGS)}")
    wishes = {"none": None} | {f"below {value}": Wish(float(value)) for value in args.shed_below.split(",")}
    for text in header("setting", "policy", "load, x C", "refused", "let in", "mean, all", ">= 0.9, all", "mean, let in",
                       "p5, let in", "mean, all, by seed"):  # fmt: skip
        print(text)
    for name in args.settings:
        for policy in args.policies.split(","):
            for load in args.loads.split(","):
                drawn = [
                    requests_of(SETTINGS[name], float(load), int(seed), args.duration) for seed in args.seeds.split(",")
                ]
                for title, wish in wishes.items():
                    runs = np.array([figures(played(SETTINGS[name], policy, requests, wish)) for requests in drawn])
                    let_in, *means = runs.mean(axis=0)
                    by_seed = ", ".join(f"{mean:.3f}" for mean in runs[:, 1])
                    print(
                        row(name, policy, load, title, f"{let_in:.0%}", *(f"{m:.3f}" for m in means), by_seed),
                        flush=True,
                    )


if __name__ == "__main__":
    main()
