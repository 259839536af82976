"""The what-if's fleet: the project's simulator under the engines' own policy, in a process of its own."""

from __future__ import annotations

import asyncio
import multiprocessing
import multiprocessing.connection
import os
import threading
from collections.abc import Mapping
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from functools import lru_cache

from andes_operator.demand import Reader, arrivals
from andes_operator.forecast import Forecast, History, forecast
from andes_operator.observe import Observation
from andes_operator.spec import TargetSpec
from andes_operator.whatif import Arrival, Prediction, Question, answer
from andes_sglang.policy import make
from andes_sglang.request import RequestRecord, RequestSpec
from andes_sglang.sim.plan import capacity_rps
from andes_sglang.sim.profile import Profile, load
from andes_sglang.sim.replica import RefusedError, Replica
from andes_sglang.sketch import Sketch

__all__ = ["Inquiry", "PredictionError", "Predictor", "RepresentativeReplicas", "predict"]

LEAST_REQUESTS, MOST_REQUESTS = 400, 2500
LEAST_S = 60.0
HOPELESS_S = 10.0
_profile = lru_cache(maxsize=32)(load)


class PredictionError(RuntimeError):
    """There is no prediction, and why."""


class RepresentativeReplicas:
    """A balanced fleet of N is N replicas that each get every Nth request, so a few of them tell how all are.

    They are given 60 s of demand, in which a queue has time to build up, and at least 400 requests in all, with which a
    share of them is off by about one percent. A replica whose queue has grown beyond hope (10 s of prefill) is not played
    on: whoever is left there gets nothing.
    """

    def guess(self, question: Question) -> int:
        """As many as the work keeps busy."""
        requests = len(question.demand)
        if not requests:
            return 1
        prompt = sum(a.prompt_tokens for a in question.demand) / requests
        output = sum(a.output_tokens for a in question.demand) / requests
        capacity = capacity_rps(_profile(question.profile).engine, prompt, output)
        return max(1, round(question.rate_rps / capacity))

    def qoe(self, question: Question, replicas: int) -> Mapping[str, Sketch]:
        """See :class:`~andes_operator.whatif.FleetSimulator`."""
        most = min(MOST_REQUESTS, max(LEAST_REQUESTS, round(LEAST_S * question.rate_rps / replicas)))
        engine = _profile(question.profile).engine
        options = dict(question.policy_options)
        sketches: dict[str, Sketch] = {}
        played = 0
        for first in range(replicas):
            share = question.demand[first::replicas]
            budget = most - played
            if not share or budget <= 0:
                break
            share = share[-budget:]
            played += len(share)
            policy = None if question.policy == "stock" else make(question.policy, **options)
            scores = [0.0] * len(share)

            def keep(record: RequestRecord, scores: list[float] = scores) -> None:
                scores[record.index] = record.qoe

            replica = Replica(engine, policy, sink=keep)
            hopeless = False
            for index, arrival in enumerate(share):
                at_s = arrival.at_s - share[0].at_s
                replica.advance(at_s)
                hopeless = _hopeless(replica)
                if hopeless:
                    break
                replica.submit(_request(arrival, at_s), index=index)
            if not hopeless:
                replica.advance()
            for arrival, score in zip(share, scores):
                sketches.setdefault(arrival.class_name, Sketch()).add(min(1.0, max(0.0, score)))
        return sketches


def _request(arrival: Arrival, at_s: float) -> RequestSpec:
    return RequestSpec(at_s, arrival.prompt_tokens, arrival.output_tokens, arrival.reader)


def _hopeless(replica: Replica) -> bool:
    queued_tokens = max(0, replica.open_prompt_tokens - replica.kv_used_tokens)
    queued_s = replica.engine.costs.prefill_s(queued_tokens)
    return queued_s > HOPELESS_S or replica.open_requests > 2 * replica.engine.max_running


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
    """Forecast, then what-if. Raises ``ValueError`` naming what cannot be played."""
    spec, seen = inquiry.spec, inquiry.seen
    expected = forecast(
        inquiry.history, [r.arrival_s for r in seen.recent], seen.now_s, inquiry.since_s, seen.rate_rps, inquiry.horizon_s
    )  # fmt: skip
    demand, span_s = arrivals(spec, seen, expected.rate_rps, inquiry.readers)
    question = Question(spec.profile, spec.policy, spec.policy_options, demand, span_s)
    return expected, answer(spec, question, RepresentativeReplicas(), inquiry.last)


def _end_with_parent() -> None:
    """In the worker: an operator that was killed leaves no process behind."""
    parent = multiprocessing.parent_process()

    def watch() -> None:
        if parent is not None:
            multiprocessing.connection.wait([parent.sentinel])
            os._exit(0)

    threading.Thread(target=watch, daemon=True).start()


class Predictor:
    """Predictions in one process beside this one, so that neither simulator nor forecast holds up the operator's loop."""

    def __init__(self, timeout_s: float = 30.0) -> None:
        self.timeout_s = timeout_s
        self._turn = asyncio.Lock()
        self._pool: ProcessPoolExecutor | None = None

    async def __call__(self, inquiry: Inquiry) -> tuple[Forecast, Prediction]:
        """One at a time, in order of asking. Raises :class:`PredictionError`."""
        async with self._turn:
            if self._pool is None:
                self._pool = ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), _end_with_parent)
            try:
                running = asyncio.get_running_loop().run_in_executor(self._pool, predict, inquiry)
                return await asyncio.wait_for(running, self.timeout_s)
            except TimeoutError:
                self._end()
                raise PredictionError(f"the what-if took more than {self.timeout_s:g} s") from None
            except BrokenProcessPool:
                self._end()
                raise PredictionError("the what-if's process has died") from None
            except (ValueError, RefusedError) as error:
                raise PredictionError(str(error)) from None

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
