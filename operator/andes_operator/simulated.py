"""Forecast and what-if in a process of their own: the project's simulator under the engines' own policy."""

from __future__ import annotations

import asyncio
import multiprocessing
import multiprocessing.connection
import os
import threading
from collections.abc import Mapping
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field, replace
from functools import lru_cache

from andes_operator.demand import Reader, arrivals
from andes_operator.forecast import Forecast, History, forecast
from andes_operator.observe import Observation, PolicyOptions
from andes_operator.spec import TargetSpec
from andes_operator.whatif import Prediction, answer
from andes_sglang.policy import SchedulingPolicy, make
from andes_sglang.sim.profile import Profile, load
from andes_sglang.sim.replica import RefusedError

__all__ = ["Inquiry", "PredictionError", "Predictor", "cold_start_s", "predict"]

DEFAULT_POLICY: tuple[str, PolicyOptions] = ("andes", ())
"""Of engines that do not say theirs."""
_profile = lru_cache(maxsize=32)(load)


class PredictionError(RuntimeError):
    """There is no prediction, and why."""


@dataclass(frozen=True, slots=True)
class Inquiry:
    """Everything that a prediction takes, to be sent to another process. horizon_s: until a pod started now would serve.
    last: what was predicted before."""

    spec: TargetSpec
    seen: Observation
    since_s: float
    horizon_s: float
    history: History = field(default_factory=History)
    readers: Mapping[str, Reader] = field(default_factory=dict)
    last: Prediction | None = None


def predict(inquiry: Inquiry) -> tuple[Forecast, Prediction]:
    """Forecast, then what-if under the policy that the target names, else the one in charge of the engines. Raises
    ``ValueError`` naming what cannot be played."""
    spec, seen = inquiry.spec, inquiry.seen
    expected = forecast(
        inquiry.history, [r.arrival_s for r in seen.recent], seen.now_s, inquiry.since_s, seen.rate_rps, inquiry.horizon_s
    )  # fmt: skip
    load_factor = 1.0 if inquiry.last is None else inquiry.last.load_factor_by(seen, spec.behavior.window_s)
    demand, span_s = arrivals(spec, seen, expected.rate_rps * load_factor, inquiry.readers)
    in_charge, its_options = seen.policy or DEFAULT_POLICY
    name = spec.policy or in_charge
    options = spec.policy_options or (its_options if name == in_charge else ())

    def policy() -> SchedulingPolicy | None:
        return None if name == "stock" else make(name, **dict(options))

    predicted = answer(spec, demand, span_s, _profile(spec.profile).engine, policy, inquiry.last, seen.pods.ready)
    return expected, replace(predicted, load_factor=load_factor, at_s=seen.now_s)


def _end_with_parent() -> None:
    """In the worker: an operator that was killed leaves no process behind."""
    parent = multiprocessing.parent_process()

    def watch() -> None:
        if parent is not None:
            multiprocessing.connection.wait([parent.sentinel])
            os._exit(0)

    threading.Thread(target=watch, daemon=True).start()


def _load() -> None:
    """In the worker: what a first seasonal forecast would load."""
    import statsmodels.tsa.forecasting.theta  # noqa: F401


class Predictor:
    """Predictions in one process beside this one, so that neither simulator nor forecast holds up the operator's loop.
    turn_s: how long a question waits for those before it; with more targets than one process can play, each goes without a
    prediction now and then."""

    def __init__(self, timeout_s: float = 30.0, turn_s: float = 60.0) -> None:
        self.timeout_s, self.turn_s = timeout_s, turn_s
        self._turn = asyncio.Lock()
        self._pool: ProcessPoolExecutor | None = None

    def start(self) -> None:
        """Begin the process now, so that the first question does not wait for it."""
        self._running().submit(_load)

    async def __call__(self, inquiry: Inquiry) -> tuple[Forecast, Prediction]:
        """One at a time, in order of asking. Raises :class:`PredictionError`."""
        try:
            async with asyncio.timeout(self.turn_s):
                await self._turn.acquire()
        except TimeoutError:
            raise PredictionError(f"no turn for a what-if in {self.turn_s:g} s: too many targets ask") from None
        try:
            return await self._ask(inquiry)
        finally:
            self._turn.release()

    async def _ask(self, inquiry: Inquiry) -> tuple[Forecast, Prediction]:
        try:
            running = asyncio.get_running_loop().run_in_executor(self._running(), predict, inquiry)
            return await asyncio.wait_for(running, self.timeout_s)
        except TimeoutError:
            self._end()
            raise PredictionError(f"the what-if took more than {self.timeout_s:g} s") from None
        except BrokenProcessPool:
            self._end()
            raise PredictionError("the what-if's process has died") from None
        except (ValueError, RefusedError) as error:
            raise PredictionError(str(error)) from None

    def _running(self) -> ProcessPoolExecutor:
        if self._pool is None:
            self._pool = ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), _end_with_parent)
        return self._pool

    def _end(self) -> None:
        """End the process, also in mid-simulation; the next question starts another."""
        pool, self._pool = self._pool, None
        if pool is not None:
            for process in list((pool._processes or {}).values()):
                process.terminate()
            pool.shutdown(wait=False, cancel_futures=True)

    def close(self) -> None:
        self._end()


def cold_start_s(spec: TargetSpec, learned_s: float | None) -> float:
    """From the wish for a pod to its first request: as set, as learned from the pods, or as the profile says."""
    if spec.behavior.cold_start_s is not None:
        return spec.behavior.cold_start_s
    if learned_s is not None:
        return learned_s
    profile: Profile = _profile(spec.profile)
    return profile.start_s
