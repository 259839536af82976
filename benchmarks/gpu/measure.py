"""Everything that is measured on a GPU, in one call: smoke, profile, surges, copies and returns; results after every step.

``python -m benchmarks.gpu.measure --out FOLDER --limit-s 480``; with ``--rehearse`` the same on a CPU, on small models.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import tempfile
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any, NoReturn

from andes_sglang.bench.engine import Engine
from benchmarks.gpu import steps
from benchmarks.gpu.journal import Journal
from benchmarks.gpu.model import write_model
from benchmarks.gpu.setting import ARMS, GPU, REHEARSAL, Setting

__all__ = ["main"]

SMOKE, PLAIN, STOCK, OFFLOAD = "smoke", "plain", "stock mixed", "andes mixed + offload"
"""Engines. The plain one has prefills of their own, without which there is nothing to fit their costs to."""
SEEDS = (1, 2)
SMOKE_POOL_TOKENS = 20_000
NEEDS_S = {"start": 60.0, "smoke": 5.0, "profile": 40.0, "calibrate": 20.0, "copies": 10.0, "resumes": 30.0}
"""Seconds without which a step is not begun."""
PROFILE_LOADS = 2.5
"""Of the seconds of a profile's load: after these it is given up, for the time is the surges'. Its records stay."""
RESERVE_S = 10.0
"""Kept for the last files and the end of the engines."""


class Run:
    """One call. logs: of the engines; work: for the models."""

    def __init__(self, setting: Setting, out: Path, limit_s: float, work: Path) -> None:
        self.setting, self.out, self.work = setting, out, work
        self.hardware = _hardware(setting)
        about = {"hardware": self.hardware, "sglang": version("sglang"), "torch": version("torch")}
        self.journal = Journal(out, work, limit_s - RESERVE_S, about)
        self.engines: dict[str, Engine] = {}

    def all(self) -> None:
        journal, setting, out = self.journal, self.setting, self.out
        small = write_model(self.work / "small", setting.small)
        large = write_model(self.work / "large", setting.large)
        flags, profile = ("--max-total-tokens", str(SMOKE_POOL_TOKENS)), out / "profile.toml"
        first = {
            SMOKE: steps.engine_of(setting, small, "andes", flags, self.work / "smoke.log"),
            PLAIN: steps.engine_of(setting, large, "stock", setting.sizes, self.work / "plain.log"),
        }
        self.engines.update(first)
        try:
            journal.step("start of two", NEEDS_S["start"], partial(steps.start_together, first))
            self._on(SMOKE, "smoke", steps.smoke)
            first[SMOKE].stop()
            self._on(PLAIN, "profile", partial(self._profile, profile))
        finally:
            steps.stop_together(first)
        for name, arm in ARMS.items():
            host = ("--host-kv-gib", str(setting.host_gib)) if name == OFFLOAD else ()
            log = self.work / f"{name.replace(' ', '-')}.log"
            self.engines[name] = steps.engine_of(setting, large, arm.policy, (*setting.sizes, *arm.flags, *host), log)
        try:
            arms = {name: self.engines[name] for name in ARMS}
            journal.step("start of the arms", NEEDS_S["start"], partial(steps.start_together, arms))
            rate_rps = self._calibrated()
            self._surges(rate_rps, SEEDS[0])
            self._copies(profile)
            for seed in SEEDS[1:]:
                self._surges(rate_rps, seed)
        finally:
            steps.stop_together(self.engines)
            journal.save()

    def _on(self, name: str, step: str, work: Any, needs_s: float | None = None) -> bool:
        """A step on the engine ``name``, where it runs."""
        engine = self.engines[name]
        if not engine.alive():
            self.journal.say(f"{step}: {name} does not run")
            return False
        return self.journal.step(step, NEEDS_S[step] if needs_s is None else needs_s, partial(work, engine))

    def _profile(self, out: Path, engine: Engine, entry: dict[str, Any]) -> None:
        seconds = self.setting.profile_s
        timeout_s = min(self.journal.left_s(), PROFILE_LOADS * seconds)
        steps.take_profile(engine, seconds, self.hardware, out=out, timeout_s=timeout_s, entry=entry)

    def _calibrated(self) -> float | None:
        def work(engine: Engine, entry: dict[str, Any]) -> None:
            steps.calibrate(engine, self.setting, self.journal.left_s(), entry)

        self._on(STOCK, "calibrate", work)
        return next((e["rate_rps"] for e in self.journal.results["steps"] if "rate_rps" in e), None)

    def _surges(self, rate_rps: float | None, seed: int) -> None:
        """Every arm once, in an order that turns with the seed."""
        if rate_rps is None:
            return
        turn = (seed - 1) % len(ARMS)
        for name in (*list(ARMS)[turn:], *list(ARMS)[:turn]):
            work = partial(self._surge, rate_rps, seed)
            self._on(name, f"surge, seed {seed}: {name}", work, 1.4 * self.setting.surge_s)

    def _surge(self, rate_rps: float, seed: int, engine: Engine, entry: dict[str, Any]) -> None:
        cut_s = min(self.journal.left_s(), 3 * self.setting.surge_s)
        steps.surge_on(engine, self.setting, rate_rps, seed=seed, cut_s=cut_s, entry=entry)

    def _copies(self, profile: Path) -> None:
        journal = self.journal
        if journal.step("copies", NEEDS_S["copies"], partial(steps.copy_rates, self.setting)) and profile.exists():
            link = min(row["gb_per_s"] for row in journal.results["steps"][-1]["rows"])
            steps.with_host_tier(profile, self.setting, link)
        self._on(OFFLOAD, "resumes", lambda engine, entry: steps.resumes(engine, self.setting, entry))


def _hardware(setting: Setting) -> str:
    import torch

    if not torch.cuda.is_available():
        return setting.hardware
    return f"{torch.cuda.get_device_name(0)}, {os.cpu_count()} cores"


def _out_of_time(*_: object) -> NoReturn:
    raise TimeoutError("the time of the whole run is over")


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="measure.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True, help="folder of the results")
    parser.add_argument(
        "--limit-s", type=float, default=540.0, help="seconds after which it ends by itself; default: 540"
    )
    parser.add_argument("--rehearse", action="store_true", help="on a CPU, on small models")
    args = parser.parse_args()
    if not args.limit_s > RESERVE_S:
        parser.error(f"--limit-s {args.limit_s:g}: must be > {RESERVE_S:g}")
    signal.signal(signal.SIGALRM, _out_of_time)
    signal.setitimer(signal.ITIMER_REAL, args.limit_s - RESERVE_S)
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as work:
        run = Run(REHEARSAL if args.rehearse else GPU, args.out, args.limit_s, Path(work))
        try:
            run.all()
        except TimeoutError as error:
            run.journal.say(str(error))
        run.journal.save()
    print((args.out / "table.md").read_text())
    return int(any(entry["state"] != "done" for entry in run.journal.results["steps"]))


if __name__ == "__main__":
    sys.exit(main())
