"""The simulator's prediction of what :mod:`benchmarks.gpu.measure` measures, beside it what was measured: the tables of
docs/benchmarks/engine-gpu.md.

``python -m benchmarks.gpu.predict`` for a roofline; ``--results results.json --profile profile.toml`` after a run, at the
rate of that run.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from andes_sglang.arms import Arm
from andes_sglang.sim import profile as profiles
from andes_sglang.sim.configure import configure
from andes_sglang.sim.engine import EngineModel
from andes_sglang.sim.plan import sustained_tokens_per_s
from andes_sglang.sim.profile import Profile
from andes_sglang.sim.replica import simulate
from andes_sglang.summary import Figures
from andes_sglang.workload import mean_length
from benchmarks.gpu.setting import ARMS, GPU, LOAD, surge
from benchmarks.markdown import header, row

__all__ = ["main"]

SEEDS = (1, 2)
NOT_MEASURED = "not measured"


def predicted_rate_rps(profile: Profile) -> tuple[float, float]:
    """What stock sustains, in tokens/s, and the requests/s of the surge that follow from it."""
    engine, _ = configure(profile.engine, ARMS["stock mixed"], GPU.sizes)
    sustained = sustained_tokens_per_s(engine, GPU.prompt, GPU.output, seed=1)
    return sustained, LOAD * sustained / mean_length(GPU.output)


def predicted_surge(profile: Profile, arm: Arm, rate_rps: float, seed: int) -> dict[str, Any]:
    engine, policy = configure(profile.engine, arm, GPU.sizes)
    figures = Figures()
    for record in simulate(engine, policy(), surge(GPU, rate_rps, seed).requests):
        figures.add(record)
    return figures.summary()


def predicted_return_ms(engine: EngineModel, tokens: int) -> tuple[float, float]:
    """To compute ``tokens`` of context in chunks, and to load all but the last from host memory, which is computed."""
    costs, seconds, done = engine.costs, 0.0, 0
    while done < tokens:
        new = min(engine.chunk_tokens, tokens - done)
        seconds += costs.prefill_s(new, done, new * (done + new / 2))
        done += new
    loaded_s = tokens / engine.host_tokens_per_s + costs.prefill_s(1, tokens - 1, tokens)
    return 1e3 * seconds, 1e3 * loaded_s


def surge_rows(profile: Profile, rate_rps: float, measured: Mapping[tuple[str, int], Any]) -> Iterator[str]:
    for name, arm in ARMS.items():
        runs = [predicted_surge(profile, arm, rate_rps, seed) for seed in SEEDS]
        found = [measured[name, seed] for seed in SEEDS if (name, seed) in measured]
        yield row(name, "simulated", *_cells(runs))
        yield row("", "GPU", *(_cells(found) if found else [NOT_MEASURED, *[""] * 5]))


def _cells(runs: list[dict[str, Any]]) -> list[str]:
    """Means over the runs, with the smallest and the largest of the mean QoE."""

    def values(*path: str) -> list[float]:
        found: list[Any] = list(runs)
        for key in path:
            found = [each[key] for each in found]
        return [np.nan if value is None else float(value) for value in found]

    qoe = values("qoe", "mean")
    spread = f" ({min(qoe):.3f} to {max(qoe):.3f})" if len(qoe) > 1 else ""
    return [
        f"{np.mean(qoe):.3f}{spread}", f"{np.mean(values('qoe', 'p5')):.3f}", f"{np.mean(values('ttft_s', 'p90')):.1f}",
        f"{np.mean(values('stall_s', 'longest_p90')):.1f}", f"{np.mean(values('tokens_per_s')):.0f}",
        "-" if runs[0]["preemptions_per_request"] is None else f"{np.mean(values('preemptions_per_request')):.2f}",
    ]  # fmt: skip


def _tables(profile: Profile, results: Mapping[str, Any]) -> Iterator[str]:
    steps = results.get("steps", ())
    measured_rate = next((step["rate_rps"] for step in steps if "rate_rps" in step), None)
    sustained, rate_rps = predicted_rate_rps(profile)
    yield f"Profile: {profile.name} ({profile.source})."
    yield f"Stock sustains {sustained:.0f} tokens/s simulated; {LOAD} of it is {rate_rps:.2f} requests/s."
    if measured_rate is not None:
        rate_rps = measured_rate
        yield f"Measured, and played by the simulator too: {rate_rps:.2f} requests/s."
    surges = {}
    for step in steps:
        kind, _, name = step["step"].partition(": ")
        if "figures" in step:
            surges[name, int(kind.rpartition(" ")[2])] = step["figures"]
    columns = ("mean QoE", "p5", "TTFT p90, s", "longest stall p90, s", "tokens/s", "preemptions/request")
    yield from ("", *header("arm", "", *columns), *surge_rows(profile, rate_rps, surges), "")
    returns = {r["context_tokens"]: r for s in steps if s["step"] == "resumes" for r in s.get("rows", ())}
    engine, _ = configure(profile.engine, ARMS["andes mixed + offload"], GPU.sizes)
    yield from header("context, tokens", "computed again, ms: simulated", "GPU", "loaded, ms: simulated", "GPU")
    for tokens in GPU.resume_tokens:
        computed_ms, loaded_ms = predicted_return_ms(engine, tokens)
        told = [_ms(returns.get(tokens, {}).get(name)) for name in ("computed_ms", "loaded_ms")]
        yield row(f"{tokens:,}", f"{computed_ms:.0f}", told[0], f"{loaded_ms:.0f}", told[1])


def _ms(value: float | None) -> str:
    return NOT_MEASURED if value is None else f"{value:.0f}"


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="predict.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--profile", default="h100-llama-3.1-8b", help="a profile with host memory; default: %(default)s"
    )
    parser.add_argument("--results", type=Path, help="results.json of a run")
    args = parser.parse_args()
    results = json.loads(args.results.read_text()) if args.results else {}
    print(*_tables(profiles.load(args.profile), results), sep="\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
