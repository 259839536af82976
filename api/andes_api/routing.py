"""Which replica a stream goes to. Policies are pure: they order what they are shown, best first, and remember nothing but
whose turn it is."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from typing import Protocol

from andes_api.forecast import Newcomer, ReplicaView, forecast

__all__ = ["LeastLoad", "PrefixAffinity", "QoE", "RoundRobin", "RoutingPolicy", "make"]


class RoutingPolicy(Protocol):
    """Orders replicas for one stream; the first is where it goes, the next where it is retried."""

    def order(self, new: Newcomer, views: Sequence[ReplicaView], now_s: float) -> list[ReplicaView]:
        """``views`` (of those that may get new streams), best first."""
        ...


class RoundRobin:
    """Everyone in turn. Fair in numbers, blind to lengths, prompts and readers."""

    def __init__(self) -> None:
        self._turn = -1

    def order(self, new: Newcomer, views: Sequence[ReplicaView], now_s: float) -> list[ReplicaView]:  # noqa: ARG002
        self._turn += 1
        first = self._turn % max(1, len(views))
        return [*views[first:], *views[:first]]


class LeastLoad:
    """Fewest open streams, then fewest prompt tokens waiting; among equals in turn. Blind to caches and readers."""

    def __init__(self) -> None:
        self._turns = RoundRobin()

    def order(self, new: Newcomer, views: Sequence[ReplicaView], now_s: float) -> list[ReplicaView]:
        return sorted(self._turns.order(new, views, now_s), key=lambda v: (v.load, v.pending_tokens))


class PrefixAffinity:
    """Prompts that begin alike go to the same replica (rendezvous hashing), unless it holds more than ``bound`` times its
    share: then to the next in the prompt's own order. Keeps caches warm; a popular prefix spreads only at the bound."""

    def __init__(self, bound: float = 1.25) -> None:
        self._bound = bound

    def order(self, new: Newcomer, views: Sequence[ReplicaView], now_s: float) -> list[ReplicaView]:  # noqa: ARG002
        most = math.ceil(self._bound * (sum(v.load for v in views) + 1) / max(1, len(views)))
        return sorted(views, key=lambda v: (v.load >= most, _rank(new.key, v.name)))


class QoE:
    """Where the fleet's predicted loss of QoE is least: the newcomer's own, from its expected first token and pace there,
    and what it takes from the readers there. Equals go to the warmest cache, then to the least load."""

    def __init__(self, horizon_s: float = 60.0) -> None:
        self._horizon_s = horizon_s
        self._turns = RoundRobin()

    def order(self, new: Newcomer, views: Sequence[ReplicaView], now_s: float) -> list[ReplicaView]:
        def cost(view: ReplicaView) -> tuple[float, float, float]:
            expected = forecast(new, view, now_s, self._horizon_s)
            # A thousandth of QoE is below what can be predicted; there, the quicker first token decides.
            return round(expected.cost(new.weight), 3), round(expected.ttft_s, 3), view.load

        return sorted(self._turns.order(new, views, now_s), key=cost)


def _rank(key: int, name: str) -> bytes:
    return hashlib.blake2b(f"{key}/{name}".encode(), digest_size=8).digest()


def make(policy: str, *, horizon_s: float, bound: float) -> RoutingPolicy:
    """The policy of this name, as in the settings."""
    policies: dict[str, RoutingPolicy] = {
        "round_robin": RoundRobin(),
        "least_load": LeastLoad(),
        "prefix": PrefixAffinity(bound),
        "qoe": QoE(horizon_s),
    }
    return policies[policy]
