"""A target's part of what its gateways carry: one model of several, and of that model the share of this pool. Pure.

Several targets may serve one model (spot and on demand, two kinds of GPU). Each is scaled for the part of the demand that its
own engines have; what waits for an engine is divided in the same ratio.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, replace
from typing import Any

from andes_operator.gateway_report import FleetReplica, GatewayReport
from andes_operator.supply import is_leaving

__all__ = ["Share", "addresses", "known_models", "model_of", "part", "share"]


def addresses(pods: Sequence[Mapping[str, Any]]) -> frozenset[str]:
    """IP addresses of the pods that exist."""
    found = ((pod.get("status") or {}).get("podIP") for pod in pods if not is_leaving(pod))
    return frozenset(str(ip) for ip in found if ip)


def known_models(reports: Sequence[GatewayReport]) -> list[str]:
    return sorted({model for report in reports for model in report.models})


def model_of(reports: Sequence[GatewayReport], own: Set[str]) -> str | None:
    """The model that most of the engines at these addresses have; None where none says."""
    said = Counter(r.model for report in reports for r in report.replicas if r.model and _address(r) in own)
    return max(said, key=lambda model: said[model], default=None)


def share(reports: Sequence[GatewayReport], own: Set[str]) -> float | None:
    """The share of the streams that are on the engines at these addresses; of the healthy engines where there is no stream.
    None where no engine can be told to be this target's or another's."""
    replicas = [r for report in reports for r in report.replicas]
    if own and not any(_address(r) in own for r in replicas):
        return None
    for weights in ([r.streams for r in replicas], [int(r.healthy) for r in replicas]):
        if sum(weights):
            return sum(w for r, w in zip(replicas, weights) if _address(r) in own) / sum(weights)
    return None


def part(reports: Sequence[GatewayReport], own: Set[str], of: float) -> tuple[GatewayReport, ...]:
    """The reports with the engines at these addresses, and this share of the requests, taken evenly."""
    return tuple(
        replace(
            report,
            replicas=tuple(r for r in report.replicas if _address(r) in own),
            requests=tuple(r for i, r in enumerate(report.requests) if int((i + 1) * of) > int(i * of)),
            held=round(report.held * of),
            offline=report.offline.part(of),
        )
        for report in reports
    )


@dataclass(slots=True)
class Share:
    """A pool's share over time. Streams come and go: it follows what is observed within about ``window_s``."""

    value: float | None = None
    at_s: float = 0.0

    def update(self, seen: float | None, now_s: float, window_s: float) -> float:
        """With what is seen now; None: it cannot be told, and all is taken to be this pool's."""
        if seen is None:
            self.value = None
            return 1.0
        weight = 1.0 if self.value is None or seen in (0.0, 1.0) else min(1.0, (now_s - self.at_s) / window_s)
        self.value = seen if self.value is None else self.value + weight * (seen - self.value)
        self.at_s = now_s
        return self.value


def _address(replica: FleetReplica) -> str:
    """Of the engine ``HOST:PORT``, without the brackets of IPv6."""
    return replica.name.rpartition(":")[0].strip("[]")
