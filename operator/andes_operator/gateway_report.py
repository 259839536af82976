"""What one gateway says of requests, readers and engines, read and checked: :meth:`GatewayReport.parse`. Pure."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

from andes_operator.explain import explain, shown
from andes_operator.offline import OfflineWork
from andes_operator.spec import PolicyOptions
from andes_sglang.engine_flags import EngineFlags
from andes_sglang.qoe import THINK_TDS, QoETarget
from andes_sglang.sketch import DurationSketch, Sketch

__all__ = ["FleetReplica", "GatewayReport", "NamedPolicy", "ObservedRequest", "add_up", "options_of"]

Merged = TypeVar("Merged", bound=Sketch)
NamedPolicy = tuple[str, PolicyOptions]
"""A policy's name and its options; of :func:`options_of` as they were reported."""


class _Structured(str):
    """An option that is a list or a mapping, as JSON: options are compared, hashed and sorted."""

    __slots__ = ()


REFUSED = ("shed", "failed")
"""Outcomes of requests that no engine served (``andes_api.demand.DemandRecord.outcome``)."""


@dataclass(frozen=True, slots=True)
class ObservedRequest:
    """One request at a gateway. arrival_s: Unix seconds; lengths in tokens; done: ``output_tokens`` is final; refused: no
    engine served it. reason_tokens: of them, thought before the answer and not shown.

    target, weight, yields, expected_tokens: what the request says of its reader (``andes_sglang.expectations``); None where
    the gateway does not report it: then its class says.
    """

    arrival_s: float
    class_name: str
    prompt_tokens: int
    output_tokens: int
    done: bool
    refused: bool = False
    target: QoETarget | None = None
    weight: float | None = None
    yields: bool | None = None
    expected_tokens: int | None = None
    reason_tokens: int = 0


@dataclass(frozen=True, slots=True)
class FleetReplica:
    """An engine as one gateway reports it.

    streams: of readers that this gateway has there; waiting: of these, without a first token; offline: requests without a
    reader that it has there, None: they are among the streams; others: requests that other clients sent.
    policy, flags: the scheduling policy and the flags that the engine reports. requests: that the engine holds by its own
    count. model: that it announces. None: not reported.
    """

    name: str
    healthy: bool
    draining: bool
    streams: int
    waiting: int
    others: int
    policy: NamedPolicy | None = None
    requests: int | None = None
    model: str | None = None
    flags: EngineFlags | None = None
    offline: int | None = None


@dataclass(frozen=True, slots=True)
class GatewayReport:
    """One gateway's answers.

    now_s: its clock when it answered; received_s: the operator's. demand_since_s: ``requests`` is complete from then on.
    ended, running: QoE by class of the streams that ended in the window, and of those open. ttft, stall: of both together,
    seconds; empty where the gateway does not report them. held: requests that wait at the
    gateway for an engine. routing_policy: None: not reported. models: that the gateway knows; empty: it does not say.
    offline: batches that it runs.
    """

    gateway: str
    now_s: float
    received_s: float
    demand_since_s: float
    requests: tuple[ObservedRequest, ...]
    ended: Mapping[str, Sketch]
    running: Mapping[str, Sketch]
    replicas: tuple[FleetReplica, ...]
    held: int = 0
    ttft: Mapping[str, DurationSketch] = field(default_factory=dict)
    stall: Mapping[str, DurationSketch] = field(default_factory=dict)
    routing_policy: NamedPolicy | None = None
    models: tuple[str, ...] = ()
    offline: OfflineWork = field(default_factory=OfflineWork)

    @classmethod
    def parse(
        cls,
        gateway: str,
        demand: Mapping[str, Any],
        qoe: Mapping[str, Any],
        replicas: Mapping[str, Any],
        *,
        since_s: float,
        received_s: float,
        batches: Mapping[str, Any] | None = None,
    ) -> GatewayReport:
        """From the answers of ``/fleet/demand?since=since_s``, ``/fleet/qoe``, ``/fleet/replicas`` and ``/fleet/batches``,
        None where there is none. Raises ``ValueError`` naming gateway and field."""
        try:
            return cls(
                gateway=gateway,
                now_s=min(_number(demand["now_s"]), _number(qoe["now_s"])),
                received_s=received_s,
                demand_since_s=max(since_s, float(demand.get("complete_since_s") or since_s)),
                requests=tuple(_request(record) for record in demand["records"]),
                ended={name: Sketch.from_dict(sketch) for name, sketch in qoe["classes"].items()},
                running={name: Sketch.from_dict(sketch) for name, sketch in qoe["running"].items()},
                replicas=tuple(_replica(replica) for replica in replicas["replicas"]),
                held=int(_number(demand.get("held", 0))),
                ttft=_durations(qoe.get("ttft_s")),
                stall=_durations(qoe.get("stall_s")),
                routing_policy=_policy(replicas.get("routing")),
                models=tuple(str(model) for model in replicas.get("models") or ()),
                offline=OfflineWork.parse(batches) if batches is not None else OfflineWork(),
            )
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise ValueError(f"gateway {gateway}: {explain(error)}") from None


def _durations(said: Mapping[str, Any] | None) -> dict[str, DurationSketch]:
    """Of ended and running streams together; of a gateway of an earlier release: none."""
    parts = [said[part] for part in ("classes", "running")] if said is not None else []
    read = [{name: DurationSketch.from_dict(sketch) for name, sketch in part.items()} for part in parts]
    return add_up(read, DurationSketch)


def add_up(parts: Iterable[Mapping[str, Merged]], kind: type[Merged]) -> dict[str, Merged]:
    """Distributions by class; added, never averaged."""
    parts = list(parts)
    names = sorted({name for part in parts for name in part})
    return {name: kind.merged(part[name] for part in parts if name in part) for name in names}


def _request(record: Mapping[str, Any]) -> ObservedRequest:
    weight, yields, tokens = (record.get(key) for key in ("weight", "yield", "expected_tokens"))
    return ObservedRequest(
        arrival_s=_number(record["arrival_s"]),
        class_name=str(record["class"]),
        prompt_tokens=int(_number(record["prompt_tokens"])),
        output_tokens=int(_number(record["output_tokens"])),
        done=record["outcome"] == "done",
        refused=record["outcome"] in REFUSED,
        reason_tokens=int(_number(record.get("reason_tokens", 0))),
        target=_target(record) if "tds" in record else None,
        weight=None if weight is None else _number(weight),
        yields=None if yields is None else bool(yields),
        expected_tokens=None if tokens is None else int(_number(tokens)),
    )


def _target(record: Mapping[str, Any]) -> QoETarget:
    think_tds = record.get("think_tds", THINK_TDS)
    return QoETarget(
        _number(record["ttft_target_s"]), _number(record["tds"]), math.inf if think_tds is None else _number(think_tds)
    )


def _replica(said: Mapping[str, Any]) -> FleetReplica:
    return FleetReplica(
        name=str(said["name"]),
        healthy=bool(said["healthy"]),
        draining=bool(said["draining"]),
        streams=int(_number(said["streams"])),
        waiting=int(_number(said["waiting"])),
        others=int(_number(said["others"])),
        policy=_policy(said.get("policy")),
        requests=None if said.get("requests") is None else int(_number(said["requests"])),
        model=None if said.get("model") is None else str(said["model"]),
        flags=None if said.get("flags") is None else EngineFlags.from_dict(said["flags"]),
        offline=None if said.get("offline") is None else int(_number(said["offline"])),
    )


def _policy(said: Mapping[str, Any] | None) -> NamedPolicy | None:
    if not said:
        return None
    options = said.get("options") or {}
    plain = {
        k: v if isinstance(v, str | int | float | None) else _Structured(json.dumps(v, sort_keys=True))
        for k, v in options.items()
    }
    return str(said["name"]), tuple(sorted(plain.items()))


def options_of(policy: NamedPolicy) -> dict[str, Any]:
    """Options to make the policy with."""
    return {name: json.loads(value) if isinstance(value, _Structured) else value for name, value in policy[1]}


def _number(value: Any) -> float:
    number = float(value)
    if not (math.isfinite(number) and number >= 0):
        raise ValueError(f"expected a number >= 0, got {shown(value)}")
    return number
