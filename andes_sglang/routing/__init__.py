"""Which replica a stream goes to: the same objects in the gateway, in the simulated fleet and in the what-if.

    policy = make_routing_policy("qoe", horizon_s=60.0)
    first = policy.order(IncomingStream(500.0, QoETarget(1.0, 4.8)), views, now_s)[0]

A policy of your own is a class with ``name``, keyword options and :meth:`RoutingPolicy.order`; name it
``package.module:Class``, or publish it under the entry-point group ``andes_sglang.routing_policies``.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

from andes_sglang.extensions import check_options, find_class
from andes_sglang.routing.base import RoutingError, RoutingPolicy, ordered
from andes_sglang.routing.least_load import LeastLoad
from andes_sglang.routing.least_tokens import LeastTokens
from andes_sglang.routing.prefix import PrefixAffinity, PrefixTracker
from andes_sglang.routing.qoe import QoE
from andes_sglang.routing.round_robin import RoundRobinRouting
from andes_sglang.routing.value import Value, worth
from andes_sglang.stream_forecast import IncomingStream, ReplicaView

__all__ = [
    "ENTRY_POINT_GROUP", "ROUTING_POLICIES", "IncomingStream", "LeastLoad", "LeastTokens", "PrefixAffinity",
    "PrefixTracker", "QoE", "ReplicaView", "RoundRobinRouting", "RoutingError", "RoutingPolicy", "Value", "current_name",
    "find_routing_policy", "make_routing_policy", "ordered", "worth",
]  # fmt: skip

ENTRY_POINT_GROUP = "andes_sglang.routing_policies"

ROUTING_POLICIES: dict[str, Callable[..., RoutingPolicy]] = {
    policy.name: policy for policy in (RoundRobinRouting, LeastLoad, LeastTokens, PrefixAffinity, QoE, Value)
}
OLD_NAMES = {"least_requests": "least_load"}


def current_name(name: str) -> str:
    """``name``, or for one release with a warning, what an old name stands for."""
    if name not in OLD_NAMES:
        return name
    warnings.warn(
        f"routing policy {name!r} is now called {OLD_NAMES[name]!r}; the old name goes with the next release",
        FutureWarning,
        stacklevel=3,
    )
    return OLD_NAMES[name]


def find_routing_policy(name: str) -> Callable[..., RoutingPolicy]:
    """The class of the routing policy ``name``. Raises ``ValueError`` for a name that is unknown, cannot be imported or is
    no routing policy."""
    factory: Callable[..., RoutingPolicy] = find_class(name, ROUTING_POLICIES, ENTRY_POINT_GROUP, "routing policy")
    if not (callable(getattr(factory, "order", None)) and isinstance(getattr(factory, "name", None), str)):
        raise ValueError(f"routing policy {name!r} is no routing policy: it needs a name and order(new, views, now_s)")
    return factory


def make_routing_policy(name: str, **options: Any) -> RoutingPolicy:
    """The routing policy called ``name`` with its options. Raises ``ValueError`` naming an unknown policy or option."""
    name = current_name(name)
    factory = find_routing_policy(name)
    check_options(f"routing policy {name!r}", factory, options, given="{} among its options")
    try:
        return factory(**options)
    except ValueError as error:
        raise ValueError(f"routing policy {name!r}: {error}") from None
    except Exception as error:  # whatever another package's class raises
        raise ValueError(f"routing policy {name!r} cannot be made: {type(error).__name__}: {error}") from error
