"""What a routing policy is asked and what it answers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Protocol

from andes_sglang.stream_forecast import IncomingStream, ReplicaView

__all__ = ["RoutingError", "RoutingPolicy", "ordered"]

OWN = "andes_sglang."


class RoutingError(RuntimeError):
    """A routing policy that raised, or whose order is none; the text names it and what to do."""


class RoutingPolicy(Protocol):
    """Orders replicas for one stream: the first is where it goes, the next are where it is retried.

    Pure but for whose turn it is: no clock, no chance; ``views`` are not changed. Its options are the keyword arguments of
    its constructor.
    """

    name: ClassVar[str]

    def order(self, new: IncomingStream, views: Sequence[ReplicaView], now_s: float) -> list[ReplicaView]:
        """All of ``views`` (those that may get new streams), best first. now_s: clock seconds, as in the views."""
        ...


def ordered(
    policy: RoutingPolicy, new: IncomingStream, views: Sequence[ReplicaView], now_s: float
) -> Sequence[ReplicaView]:
    """``policy.order(new, views, now_s)``. Raises :class:`RoutingError` where the policy is another package's and raises, or
    returns no order of ``views``: each of them once."""
    if type(policy).__module__.startswith(OWN):
        return policy.order(new, views, now_s) if len(views) > 1 else views
    try:
        order: object = policy.order(new, list(views), now_s)
    except Exception as error:  # whatever another package's code raises
        raise RoutingError(f"routing policy {policy.name!r}: order() raised {type(error).__name__}: {error}") from error
    if isinstance(order, list | tuple) and len(order) == len(views) and {*map(id, order)} == {*map(id, views)}:
        return order
    names = {id(view): view.name for view in views}
    said = [names.get(id(one), one) for one in order] if isinstance(order, list | tuple) else order
    raise RoutingError(
        f"routing policy {policy.name!r}: order() returned {str(said)[:120]} for the replicas {list(names.values())}; it "
        "must return a list of all views that it was given, each once, best first"
    )
