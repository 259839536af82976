"""QoE-aware, token-granularity scheduling of text streams inside SGLang.

The names below are the public interface; what else can be imported is internal and may change in any release. They are
imported when they are first used, so ``import andes_sglang`` stays cheap. docs/compatibility.md says what is promised.

The core (``qoe``, ``state``, ``latency``, ``policy``, ``routing``) is pure: it reads no clock, no random source, no
environment and no file. Only ``adapter`` imports SGLang and torch.
"""

from __future__ import annotations

from importlib import import_module

TYPE_CHECKING = False  # as in ``typing``, without its 5 ms of import

if TYPE_CHECKING:
    from andes_sglang.expectations import ReaderExpectation as ReaderExpectation
    from andes_sglang.latency import LatencyModel as LatencyModel
    from andes_sglang.objective import QoEObjective as QoEObjective
    from andes_sglang.objective import Statistic as Statistic
    from andes_sglang.policy import Displacement as Displacement
    from andes_sglang.policy import PolicyOptions as PolicyOptions
    from andes_sglang.policy import SchedulingPolicy as SchedulingPolicy
    from andes_sglang.policy import make_policy as make_policy
    from andes_sglang.policy import option as option
    from andes_sglang.policy import pack as pack
    from andes_sglang.qoe import QoETarget as QoETarget
    from andes_sglang.qoe import Readers as Readers
    from andes_sglang.qoe import ReaderStream as ReaderStream
    from andes_sglang.qoe import qoe_of_deliveries as qoe_of_deliveries
    from andes_sglang.request import RequestRecord as RequestRecord
    from andes_sglang.request import RequestSpec as RequestSpec
    from andes_sglang.request import Score as Score
    from andes_sglang.request import read_records as read_records
    from andes_sglang.request import score as score
    from andes_sglang.request import write_records as write_records
    from andes_sglang.routing import IncomingStream as IncomingStream
    from andes_sglang.routing import ReplicaView as ReplicaView
    from andes_sglang.routing import RoutingPolicy as RoutingPolicy
    from andes_sglang.routing import make_routing_policy as make_routing_policy
    from andes_sglang.sim.engine import EngineModel as EngineModel
    from andes_sglang.sim.fleet import Autoscaler as Autoscaler
    from andes_sglang.sim.fleet import Fleet as Fleet
    from andes_sglang.sim.fleet import simulate_fleet as simulate_fleet
    from andes_sglang.sim.plan import score_fleet as score_fleet
    from andes_sglang.sim.plan import smallest_feasible as smallest_feasible
    from andes_sglang.sim.profile import Profile as Profile
    from andes_sglang.sim.profile import load as load_profile  # noqa: F401 (public: see _RENAMED)
    from andes_sglang.sim.replica import simulate as simulate
    from andes_sglang.sketch import Sketch as Sketch
    from andes_sglang.state import Decision as Decision
    from andes_sglang.state import Phase as Phase
    from andes_sglang.state import Preemption as Preemption
    from andes_sglang.state import PreemptionMode as PreemptionMode
    from andes_sglang.state import RequestTable as RequestTable
    from andes_sglang.state import RequestView as RequestView
    from andes_sglang.state import SchedulerState as SchedulerState
    from andes_sglang.summary import summarise as summarise
    from andes_sglang.workload import SyntheticWorkload as SyntheticWorkload
    from andes_sglang.workload import Workload as Workload
    from andes_sglang.workload import WorkloadError as WorkloadError
    from andes_sglang.workload import draw_shape as draw_shape
    from andes_sglang.workload import load_trace as load_trace

__version__ = "0.1.0"

_MODULES = {
    "expectations": "ReaderExpectation",
    "latency": "LatencyModel",
    "objective": "QoEObjective Statistic",
    "policy": "Displacement PolicyOptions SchedulingPolicy make_policy option pack",
    "qoe": "QoETarget ReaderStream Readers qoe_of_deliveries",
    "request": "RequestRecord RequestSpec Score read_records score write_records",
    "routing": "IncomingStream ReplicaView RoutingPolicy make_routing_policy",
    "sim.engine": "EngineModel",
    "sim.fleet": "Autoscaler Fleet simulate_fleet",
    "sim.plan": "score_fleet smallest_feasible",
    "sim.profile": "Profile",
    "sim.replica": "simulate",
    "sketch": "Sketch",
    "state": "Decision Phase Preemption PreemptionMode RequestTable RequestView SchedulerState",
    "summary": "summarise",
    "workload": "SyntheticWorkload Workload WorkloadError draw_shape load_trace",
}
"""Public names by the module that defines them; the same as the imports above, which type checkers read."""
_RENAMED = {"load_profile": ("sim.profile", "load")}
"""Names that are too general outside their module."""
_HOMES = {name: (module, name) for module, names in _MODULES.items() for name in names.split()} | _RENAMED

__all__ = ["__version__", *_HOMES]


if not TYPE_CHECKING:  # a type checker is to report names that do not exist

    def __getattr__(name: str) -> object:
        if name not in _HOMES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        module, attribute = _HOMES[name]
        value = globals()[name] = getattr(import_module(f"{__name__}.{module}"), attribute)
        return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
