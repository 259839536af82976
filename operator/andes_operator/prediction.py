"""Forecast and what-if of one reconcile together: :func:`predict` takes an :class:`Inquiry` and is a pure function of it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any

from andes_operator.demand import expected_demand
from andes_operator.explain import shown
from andes_operator.forecast import DemandForecast, DemandHistory, forecast
from andes_operator.gateway_report import NamedPolicy, options_of
from andes_operator.observe import Observation
from andes_operator.spec import SpecError, TargetSpec
from andes_operator.table import Table, TableKind, tabulate
from andes_operator.whatif import Prediction, predict_replicas
from andes_sglang.engine_flags import EngineFlags
from andes_sglang.expectations import ReaderExpectation
from andes_sglang.policy import SchedulingPolicy, check_policy, find_policy, make_policy
from andes_sglang.request import RequestSpec
from andes_sglang.routing import RoutingPolicy, make_routing_policy
from andes_sglang.sim import overrides
from andes_sglang.sim.engine import EngineModel
from andes_sglang.sim.profile import Profile, load
from andes_sglang.sim.whatif import work_s

__all__ = [
    "Inquiry", "check_options", "cold_start_s", "offline_tps", "predict", "simulated_engine", "simulated_policy",
    "table_kind", "tabulated",
]  # fmt: skip

DEFAULT_POLICY: NamedPolicy = ("andes", ())
"""Of engines that do not report theirs."""
DEFAULT_ROUTING_POLICY: NamedPolicy = ("qoe", ())
"""Of gateways that do not report theirs: the gateway's own default."""
MIN_RATE_RPS = 1e-3
"""Requests/s; of the lengths of those that came, whatever their rate is now."""
STOCK = "stock"
"""SGLang's own scheduler, without a policy."""
SIZES, SIZE_STEP = ("kv_capacity_tokens", "host_capacity_tokens", "max_running", "chunk_tokens"), 1.05
"""Of an engine, and the ratio in steps of which they tell kinds apart: engines of the same flags find room for pools that
differ by a few tokens."""
SURGE_STEP_S = 60.0
"""Seconds; a cold start that changes by less needs no other table."""
_profile = lru_cache(maxsize=32)(load)


@dataclass(frozen=True, slots=True)
class Inquiry:
    """All that a prediction depends on; can be pickled. since_s: ``seen.recent`` is complete from then on (Unix seconds).
    horizon_s: from now until a pod that is started now would serve. readers: by class name. last: the previous prediction."""

    spec: TargetSpec
    seen: Observation
    since_s: float
    horizon_s: float
    history: DemandHistory = field(default_factory=DemandHistory)
    readers: Mapping[str, ReaderExpectation] = field(default_factory=dict)
    last: Prediction | None = None


def predict(inquiry: Inquiry) -> tuple[DemandForecast, Prediction]:
    """Forecast, then what-if. Raises ``ValueError`` naming what cannot be simulated."""
    spec, seen, last = inquiry.spec, inquiry.seen, inquiry.last
    expected = forecast(
        inquiry.history,
        seen.reader_arrivals_s,
        seen.now_s,
        since_s=inquiry.since_s,
        rate_rps=seen.rate_rps,
        horizon_s=inquiry.horizon_s,
    )
    load_factor = 1.0 if last is None else last.update_load_factor(seen, spec.behavior.window_s)
    demand = expected_demand(spec, seen, expected.rate_rps * load_factor, inquiry.readers)
    engine, unplayed = simulated_engine(_profile(spec.profile), seen.flags)
    predicted = predict_replicas(
        spec,
        demand,
        engine,
        _scheduling(simulated_policy(spec, seen)),
        routing_policy=_routing(seen.routing_policy or DEFAULT_ROUTING_POLICY),
        last=last,
        current=seen.pods.ready,
    )
    return expected, replace(predicted, load_factor=load_factor, at_s=seen.now_s, unplayed=tuple(unplayed))


def simulated_engine(profile: Profile, flags: EngineFlags | None) -> tuple[EngineModel, list[str]]:
    """The profile's engine with the flags that the engines report (None: they do not), and what of them cannot be
    simulated."""
    if flags is None:
        return profile.engine, []
    devices = flags.tp_size or profile.engine.devices
    engine, unplayed = profile.on(devices), list[str]()
    if engine is None:
        engine, unplayed = profile.engine, [f"{devices} devices: the profile is of {profile.engine.devices}"]
    played, missing = overrides.play(engine, flags)
    return played, unplayed + missing


def tabulated(inquiry: Inquiry) -> Table:
    """What the engines carry and can put off until help is there. Raises ``ValueError`` naming what cannot be simulated."""
    spec, seen = inquiry.spec, inquiry.seen
    return tabulate(
        spec,
        expected_demand(spec, seen, max(seen.rate_rps, MIN_RATE_RPS), inquiry.readers),
        simulated_engine(_profile(spec.profile), seen.flags)[0],
        _scheduling(simulated_policy(spec, seen)),
        routing_policy=_routing(seen.routing_policy or DEFAULT_ROUTING_POLICY),
        surge_s=inquiry.horizon_s,
        at_s=seen.now_s,
    )


def table_kind(spec: TargetSpec, seen: Observation, surge_s: float) -> TableKind:
    """What :func:`tabulated` depends on beside the requests: targets of one kind share a table. Raises ``ValueError`` for an
    unknown profile."""
    engine = simulated_engine(_profile(spec.profile), seen.flags)[0]
    return TableKind(
        _in_steps(engine),
        simulated_policy(spec, seen),
        seen.routing_policy or DEFAULT_ROUTING_POLICY,
        spec.objectives,
        spec.behavior.margin,
        round(surge_s / SURGE_STEP_S),
    )


def _in_steps(engine: EngineModel) -> EngineModel:
    """With its sizes rounded to ``SIZE_STEP``."""
    sizes: dict[str, Any] = {name: getattr(engine, name) for name in SIZES}
    steps = {name: round(math.log(size, SIZE_STEP)) for name, size in sizes.items() if size > 0}
    return replace(engine, **(sizes | {name: max(1, round(SIZE_STEP**step)) for name, step in steps.items()}))


def simulated_policy(spec: TargetSpec, seen: Observation) -> NamedPolicy:
    """The scheduling policy that the target names, else the one that the engines report; the target's options, else the
    reported ones where they are of that policy."""
    reported, its_options = seen.policy or DEFAULT_POLICY
    name = spec.policy or reported
    return name, spec.policy_options or (its_options if name == reported else ())


def check_options(spec: TargetSpec, seen: Observation) -> None:
    """Raises :class:`~andes_operator.spec.SpecError` where the target's ``policyOptions`` do not fit the policy: unknown, of
    the wrong type or out of range. A policy that is unknown is :func:`predict`'s to name."""
    name, options = simulated_policy(spec, seen)
    if not spec.policy_options:
        return
    for option, value in options:
        if not isinstance(value, bool | int | float | str):
            said = f"spec.whatIf.policyOptions.{option} must be a number, true, false or text, got {shown(value)}"
            raise SpecError(said)
    if name == STOCK:
        raise SpecError(f"spec.whatIf.policyOptions: policy {STOCK} takes none, got {shown(dict(options))}")
    try:
        find_policy(name)
    except ValueError:
        return
    try:
        check_policy(name, dict(options))
    except ValueError as error:
        raise SpecError(f"spec.whatIf.policyOptions: {error}") from None


def _scheduling(policy: NamedPolicy) -> Callable[[], SchedulingPolicy | None]:
    name, options = policy[0], options_of(policy)
    return lambda: None if name == STOCK else make_policy(name, options)


def _routing(policy: NamedPolicy) -> Callable[[], RoutingPolicy]:
    name, options = policy[0], options_of(policy)
    return lambda: make_routing_policy(name, **options)


def offline_tps(spec: TargetSpec, seen: Observation) -> float | None:
    """Tokens/s, of prompts and answers, that a replica would do of the pending batches if it did nothing else, by the
    profile; half of a request's tokens are taken to be its answer's. None without batches, or for an unknown profile."""
    if not seen.offline.requests:
        return None
    try:
        engine = simulated_engine(_profile(spec.profile), seen.flags)[0]
    except ValueError:  # the prediction says it
        return None
    half = max(1, round(seen.offline.tokens / seen.offline.requests / 2))
    return 2 * half / float(work_s(engine, [RequestSpec(0.0, half, half)])[0])


def cold_start_s(spec: TargetSpec, learned_s: float | None) -> float:
    """From the decision for a pod to its first request: as set, as learned from the pods, or as the profile says."""
    if spec.behavior.cold_start_s is not None:
        return spec.behavior.cold_start_s
    if learned_s is not None:
        return learned_s
    profile: Profile = _profile(spec.profile)
    return profile.start_s
