"""Autoscalers over a simulated fleet: what one day of demand costs under each, and what its readers get.

Build a :class:`Scenario` (demand, engine, clock), an autoscaler for it (None: a static fleet), then call
:func:`simulate_scenario`. An autoscaler is anything with ``interval_s`` and ``desired_replicas(fleet)``: the Protocol
:class:`~andes_sglang.sim.fleet.Autoscaler`.
"""

from andes_sglang.sim.autoscaling.autoscalers import (
    ClairvoyantAutoscaler,
    MetricAutoscaler,
    RatePlanner,
    kv_utilisation,
    open_requests,
    waiting_requests,
)
from andes_sglang.sim.autoscaling.run import AutoscalingRun, simulate_scenario
from andes_sglang.sim.autoscaling.scenario import FinishedRequests, Scenario, busy_rps

__all__ = [
    "AutoscalingRun", "ClairvoyantAutoscaler", "FinishedRequests", "MetricAutoscaler", "RatePlanner", "Scenario", "busy_rps",
    "kv_utilisation", "open_requests", "simulate_scenario", "waiting_requests",
]  # fmt: skip
