"""What can be read of the fleet, and the draining of an engine: ``/fleet/*``, but for ``/fleet/summary``."""

from __future__ import annotations

import functools
import time
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import orjson
from fastapi import FastAPI, Query, Request
from fastapi.responses import Response

from andes_api.batches.service import Batches
from andes_api.demand import Experience
from andes_api.errors import ApiError
from andes_api.expectations import key_matches
from andes_api.gateway import Gateway
from andes_api.merged import merged_batches, merged_demand, merged_kinds, merged_names, merged_replicas
from andes_api.models import ModelRoute
from andes_api.query import ONLY_KNOWN
from andes_api.settings import GatewaySettings

__all__ = ["add_fleet", "json_response"]

OneModel = Annotated[
    str | None, Query(description="one model, by its name in `/v1/models`; without adapters and aliases")
]
Kinds = Mapping[tuple[str | None, str], Experience]
"""By model and class."""


def add_fleet(app: FastAPI, gateway: Gateway, batches: Batches | None) -> None:
    """The endpoints of ``gateway``'s fleet; each worker of it answers for all."""
    siblings = gateway.siblings
    siblings.answers("demand", functools.partial(_demand, gateway))
    siblings.answers("qoe", functools.partial(_qoe_part, gateway))
    siblings.answers("replicas", functools.partial(_replicas_part, gateway))
    siblings.answers("batches", functools.partial(_batches_part, batches))
    siblings.answers("drain", functools.partial(_drain, gateway))

    @app.get("/fleet/demand", dependencies=ONLY_KNOWN, summary="Recent requests, in order of arrival")
    async def demand(since: Annotated[float, Query(allow_inf_nan=False)] = 0.0, model: OneModel = None) -> Response:
        """Requests that arrived after `since` (Unix seconds), of all models or of one. Concatenate those of several gateways.
        `held`: requests that wait for an engine now; `models`: those that this gateway knows."""
        return json_response(merged_demand(await siblings.all("demand", since, model)))

    @app.get("/fleet/qoe", dependencies=ONLY_KNOWN, summary="Distribution of QoE per class")
    async def qoe(window_s: Annotated[float, Query(gt=0, le=3600)] = 300.0, model: OneModel = None) -> Response:
        """QoE of the streams that ended in the window, and of those open now, of all models or of one; `models` has the same
        for each. `ttft_s` and `stall_s`: likewise, of seconds to the first token that is shown, and of seconds that readers
        waited inside their answers; bins of 2 %, a day for what never came. Merge several gateways by adding `counts` and
        `total`; the figures beside them are for reading only."""
        return json_response(_qoe(gateway, await siblings.all("qoe", window_s), window_s, model))

    @app.get("/fleet/replicas", dependencies=ONLY_KNOWN, summary="The engines and what they hold")
    async def replicas(model: OneModel = None) -> Response:
        """All engines, or those of one model."""
        return json_response(_replicas(gateway, await siblings.all("replicas", model)))

    @app.get("/fleet/batches", dependencies=ONLY_KNOWN, summary="Work without a reader that is to be done")
    async def pending(model: OneModel = None) -> Response:
        """Batches that this gateway runs, with what is left of each; `done`: what was, by model. Concatenate those of several
        gateways."""
        told = merged_batches(await siblings.all("batches", model))
        return json_response({"gateway": gateway.settings.name, "now_s": time.time(), **told})

    @app.post(
        "/fleet/replicas/{replica}/drain",
        dependencies=ONLY_KNOWN,
        summary="Give an engine nothing new, or take that back",
    )
    async def drain(replica: str, request: Request, drained: bool = True) -> Response:
        _administrator(request, gateway.settings)
        found = merged_replicas(await siblings.all("drain", replica, drained))
        if not found:
            raise ApiError(404, f"no replica {replica[:100]!r}", reason="replica", retry=False)
        return json_response(found[0])


def json_response(content: object) -> Response:
    return Response(orjson.dumps(content), media_type="application/json")


def _demand(gateway: Gateway, since: float, model: str | None) -> dict[str, Any]:
    gateway.update_open_records()
    known, held = gateway.upstreams.catalog.models, gateway.held_by_model
    return {
        "gateway": gateway.settings.name,
        "now_s": time.time(),
        "models": known,
        "held": gateway.held if model is None else held[model],
        "held_by_model": {name: held[name] for name in known},
        "complete_since_s": gateway.demand.complete_since_s,
        "records": [record.to_dict() for record in gateway.demand.since(since, model)],
    }


def _qoe_part(gateway: Gateway, window_s: float) -> tuple[Kinds, Kinds, list[str]]:
    """Of this worker: what ended, what is open, the models it knows."""
    now_s = time.monotonic()
    running: dict[tuple[str | None, str], Experience] = {}
    for stream in gateway.open:
        if (served := stream.served(now_s)) is not None:
            kind = (stream.record.model, stream.record.class_name)
            running.setdefault(kind, Experience.none()).add(served)
    return gateway.qoe.of(now_s, window_s), running, gateway.upstreams.catalog.models


def _qoe(
    gateway: Gateway, parts: Sequence[tuple[Kinds, Kinds, list[str]]], window_s: float, model: str | None
) -> dict[str, Any]:
    ended = merged_kinds((past for past, _, _ in parts), Experience.merged)
    running = merged_kinds((now for _, now, _ in parts), Experience.merged)
    known = merged_names(models for _, _, models in parts)
    return {
        "gateway": gateway.settings.name,
        "now_s": time.time(),
        "window_s": window_s,
        **_by_class(ended, running, model),
        "models": {name: _by_class(ended, running, name) for name in known if model in (None, name)},
    }


def _by_class(ended: Kinds, running: Kinds, model: str | None) -> dict[str, Any]:
    """Sketches per class of one model, or of all."""

    def of(kinds: Kinds) -> dict[str, Experience]:
        chosen = {kind: experience for kind, experience in kinds.items() if model is None or kind[0] == model}
        classes = sorted({cls for _, cls in chosen})
        return {name: Experience.merged(one for (_, cls), one in chosen.items() if cls == name) for name in classes}

    past, now = of(ended), of(running)

    def sketches(name: str) -> dict[str, Any]:
        return {
            "classes": {cls: getattr(experience, name).to_dict() for cls, experience in past.items()},
            "running": {cls: getattr(experience, name).to_dict() for cls, experience in now.items()},
            "all": getattr(Experience.merged(past.values()), name).to_dict(),
        }

    return {**sketches("qoe"), "ttft_s": sketches("ttft_s"), "stall_s": sketches("stall_s")}


def _replicas_part(gateway: Gateway, model: str | None) -> dict[str, Any]:
    now_s = time.monotonic()
    listed = [r for r in gateway.upstreams.replicas.values() if model is None or r.serves(ModelRoute(model))]
    return {
        "models": gateway.upstreams.catalog.models,
        "held": gateway.held if model is None else gateway.held_by_model[model],
        "replicas": [replica.describe(now_s) for replica in listed],
    }


def _replicas(gateway: Gateway, parts: Sequence[dict[str, Any]]) -> dict[str, Any]:
    settings = gateway.settings
    return {
        "gateway": settings.name,
        "policy": settings.policy,  # deprecated: the name alone
        "routing": {"name": settings.policy, "options": settings.routing_options},
        "models": merged_names(part["models"] for part in parts),
        "held": sum(part["held"] for part in parts),
        "replicas": merged_replicas([part["replicas"] for part in parts]),
    }


def _batches_part(batches: Batches | None, model: str | None) -> dict[str, Any]:
    return batches.pending(model) if batches is not None else {"batches": [], "done": {}}


def _drain(gateway: Gateway, name: str, drained: bool) -> list[dict[str, Any]]:
    """The replica as it is then; none where there is none of this name."""
    found = gateway.upstreams.drain(name, drained)
    return [] if found is None else [found.describe(time.monotonic())]


def _administrator(request: Request, settings: GatewaySettings) -> None:
    if settings.admin_key_sha256 is None:
        if settings.loopback and "origin" not in request.headers:  # no page of a browser
            return
        raise ApiError(403, "set admin_key_sha256 to use this from outside", "permission_error", reason="admin")
    key = request.headers.get("authorization", "").partition(" ")[2].strip()
    if not key_matches(key, settings.admin_key_sha256):
        raise ApiError(401, "no valid administrator's key", "authentication_error", reason="admin", retry=False)
