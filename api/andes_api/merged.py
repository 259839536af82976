"""What the workers of one gateway have to say, as one gateway says it. Pure; what one worker alone says stays as it is."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import chain
from statistics import fmean
from typing import Any, TypeVar

__all__ = ["merged_batches", "merged_demand", "merged_kinds", "merged_names", "merged_replicas"]

K = TypeVar("K")
V = TypeVar("V")
_SUMS = ("streams", "waiting", "offline")
"""Of a replica: what each worker has there."""
_MEANS = ("decode_s", "predicted_ttft_s")
"""Of a replica: what each worker has learned of it."""
_MOST = ("others", "requests", "context_tokens")
"""Of a replica: what it says that changes, and may be newer with one worker."""
_TOLD = ("model", "policy", "flags")
"""Of a replica: what it says once."""


def merged_names(parts: Iterable[Sequence[str]]) -> list[str]:
    """Each once, in order."""
    return list(dict.fromkeys(name for part in parts for name in part))


def merged_kinds(parts: Iterable[Mapping[K, V]], merge: Callable[[list[V]], V]) -> dict[K, V]:
    """What all have of each kind, by ``merge``."""
    found: dict[K, list[V]] = {}
    for part in parts:
        for kind, value in part.items():
            found.setdefault(kind, []).append(value)
    return {kind: merge(values) for kind, values in found.items()}


def merged_demand(parts: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Of ``/fleet/demand``: all records in order of arrival, complete since all are."""
    if len(parts) == 1:
        return parts[0]
    since = [part["complete_since_s"] for part in parts if part["complete_since_s"] is not None]
    return {
        **parts[0],
        "models": merged_names(part["models"] for part in parts),
        "held": sum(part["held"] for part in parts),
        "held_by_model": merged_kinds((part["held_by_model"] for part in parts), sum),
        "complete_since_s": max(since, default=None),
        "records": sorted((record for part in parts for record in part["records"]), key=lambda r: r["arrival_s"]),
    }


def merged_batches(parts: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Of ``/fleet/batches``: each worker runs batches of its own."""

    def rates(done: list[dict[str, Any]]) -> dict[str, Any]:
        sums = {name: sum(one[name] for one in done) for name in ("tokens", "tokens_per_s")}
        return {**sums, "measured_s": max(one["measured_s"] for one in done)}

    done = merged_kinds((part["done"] for part in parts), rates)
    return {"batches": [batch for part in parts for batch in part["batches"]], "done": done}


def merged_replicas(parts: Sequence[Sequence[dict[str, Any]]]) -> list[dict[str, Any]]:
    """Of ``/fleet/replicas``: every replica once."""
    by_name: dict[str, list[dict[str, Any]]] = {}
    for replica in chain.from_iterable(parts):
        by_name.setdefault(replica["name"], []).append(replica)
    return [_replica(said) for said in by_name.values()]


def _replica(said: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """What one worker has found wrong holds; what an engine says of itself is the same for all, or newer with one."""
    first = min(said, key=lambda one: (one["healthy"] is not False, one["healthy"] is None))
    if len(said) == 1:
        return first

    def values(name: str) -> list[Any]:
        return [one[name] for one in said if one.get(name) is not None]

    return {
        **first,
        **{name: sum(values(name)) for name in _SUMS},
        **{name: round(fmean(values(name)), 5) for name in _MEANS if name in first},
        **{name: max(values(name), default=None) for name in _MOST},
        **{name: next(iter(values(name)), None) for name in _TOLD},
        **{name: any(values(name)) for name in ("draining", "breaker_open")},
        "models": sorted(set(chain(*values("models")))),
    }
