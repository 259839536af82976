"""What the option ``fairness`` of ``andes`` does: every reader of one burst, from the worst served to the best, by its value.

``python benchmarks/fairness.py --picture docs/fairness.svg`` prints a table and draws the readers' QoE. Simulated, one seed.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from andes_sglang import report
from andes_sglang.policy import make
from andes_sglang.sim import profile as profiles
from andes_sglang.sim.configure import configure
from andes_sglang.sim.replica import simulate
from andes_sglang.summary import PERFECT_QOE
from benchmarks.markdown import header, row
from benchmarks.runs import INTERVAL_S, SimulatedRuns
from benchmarks.settings import ARMS, SETTINGS, best_arm
from benchmarks.simulated import burst

FAIRNESS = (1.0, 0.0, -1.0, -4.0)
POINTS = 200
"""Of a line."""


def served(runs: SimulatedRuns, setting: str, fairness: float) -> npt.NDArray[np.float64]:
    """QoE of those who arrive in the burst, ascending."""
    case = burst(setting)
    requests, since_s, until_s = runs.requests(case)
    engine, _ = configure(profiles.load(SETTINGS[setting].profile).engine, ARMS[best_arm(setting)])
    policy = make("andes", fairness=fairness)
    records = simulate(engine, policy, requests, decision_interval_s=INTERVAL_S)
    return np.sort([record.qoe for record in records if since_s <= record.arrival_s < until_s])


def picture(by_fairness: Sequence[tuple[float, npt.NDArray[np.float64]]]) -> str:
    """QoE over the share of readers who have less, a line for each."""
    shares = np.linspace(0.0, 1.0, POINTS)
    key = {f"fairness {f:g}": colour for (f, _), colour in zip(by_fairness, report.COLOURS, strict=False)}
    series = [
        (name, colour, (100 * shares).tolist(), np.quantile(qoe, shares).tolist())
        for (name, colour), (_, qoe) in zip(key.items(), by_fairness, strict=True)
    ]
    return report.standalone(report.plot(series, "% of readers, the worst served first", "QoE", 1.05, 100.0), key)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--setting", default="cpu", choices=SETTINGS, help="default: %(default)s")
    parser.add_argument("--picture", type=Path, metavar="FILE", help="where to draw it, an SVG")
    parser.add_argument("--out", type=Path, default=Path("out/simulated"), help="folder where the load is kept")
    args = parser.parse_args()
    runs = SimulatedRuns(args.out, None, seeds=1)
    found = [(fairness, served(runs, args.setting, fairness)) for fairness in FAIRNESS]
    for line in header("fairness", "mean QoE", "p1", "p5", "half of them have", "perfect"):
        print(line)
    for fairness, qoe in found:
        low = (f"{value:.3f}" for value in np.percentile(qoe, (1, 5, 50)))
        print(row(f"{fairness:g}", f"{qoe.mean():.3f}", *low, f"{(qoe >= PERFECT_QOE).mean():.0%}"))
    if args.picture:
        args.picture.write_text(picture(found))


if __name__ == "__main__":
    main()
