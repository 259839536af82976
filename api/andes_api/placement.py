"""Which engines a request may have, best first, or why it is refused."""

from __future__ import annotations

import logging
from typing import Any

from andes_api import admission
from andes_api.capacity import Capacity
from andes_api.errors import ApiError
from andes_api.models import ModelRoute, no_adapters, no_model
from andes_api.settings import GatewaySettings, TenantSettings
from andes_api.stored import StoredResponses
from andes_api.stream import Stream
from andes_api.upstream import Upstream
from andes_api.upstreams import Upstreams
from andes_sglang.routing import make_routing_policy
from andes_sglang.stream_forecast import forecast_stream

__all__ = ["Placement"]

_log = logging.getLogger("andes")


class Placement:
    """Within ``capacity``."""

    def __init__(
        self, settings: GatewaySettings, upstreams: Upstreams, stored: StoredResponses, capacity: Capacity
    ) -> None:
        self._settings, self._upstreams, self._stored, self._capacity = settings, upstreams, stored, capacity
        self._routing_policy = make_routing_policy(settings.policy, **settings.routing_options)
        self._missing_fallbacks: set[str] = set()  # that were warned of

    def route_of(self, asked: Any, tenant: TenantSettings | None) -> ModelRoute:
        """What the ``model`` of this tenant's request means. Raises the error that refuses it."""
        route = self._upstreams.resolve(asked)
        if tenant is not None and tenant.models and route.model not in (None, *tenant.models):
            raise no_model(asked, tenant.models)
        return route

    def place(self, stream: Stream, now_s: float) -> list[Upstream]:
        """Replicas for this stream, best first; the first counts it from now on, so that the next one to come sees it. Those
        of the class's fallback where its own model has none or refuses it. Empty while no engine accepts streams. Raises the
        error that refuses it."""
        if stream.route.model is None:
            stream.routed(self.route_of(stream.body.get("model"), stream.tenant))
        refusal: ApiError | None = None
        try:
            replicas = self._place_on(stream, stream.route, now_s)
        except ApiError as error:
            if error.status != 429:  # the request is wrong for every model
                raise
            replicas, refusal = [], error
        why = "no_replica" if refusal is None else refusal.reason
        replicas = replicas or self._fall_back(stream, why, now_s)
        if not replicas and refusal is not None:
            raise refusal
        if replicas:
            replicas[0].opened(stream)
        return replicas

    def _fall_back(self, stream: Stream, why: str, now_s: float) -> list[Upstream]:
        """Replicas of the class's fallback model; none where it has none, or cannot take the stream either."""
        name = stream.expectation.settings.fallback_model
        if name is None or stream.fallback is not None:
            return []
        try:
            route = self.route_of(name, stream.tenant)
            replicas = self._place_on(stream, route, now_s) if route not in (stream.route, ModelRoute()) else []
        except ApiError as error:
            if error.code == "model_not_found" and name not in self._missing_fallbacks:
                self._missing_fallbacks.add(name)
                _log.warning("fallback_model of class %s: %s", stream.expectation.class_name, error.message)
            return []
        if replicas:
            stream.route, stream.fallback, stream.record.fallback = route, why, route.model
        return replicas

    def _accepting(self, stream: Stream, route: ModelRoute, now_s: float) -> dict[str, Upstream]:
        """The replicas of ``route`` that may get this stream. Raises the error that refuses it."""
        if route.adapter is not None and not stream.endpoint.adapters:
            raise no_adapters(stream.path, route)
        self._capacity.check_model(stream, route, self._upstreams.replicas.values())
        tenant, accepting = stream.tenant, {r.name: r for r in self._upstreams.accepting(now_s, route)}
        if accepting and route.model is None and tenant is not None and tenant.models:
            raise no_model(stream.body.get("model"), tenant.models)  # whose these are cannot be told
        earlier = stream.earlier_answer
        home = self._stored.home(earlier, tenant.name if tenant else None) if earlier else None
        return {home: accepting[home]} if home in accepting else accepting

    def _place_on(self, stream: Stream, route: ModelRoute, now_s: float) -> list[Upstream]:
        """Replicas of ``route`` for this stream, best first. Raises the error that refuses it."""
        settings, new = self._settings, stream.incoming
        accepting = self._accepting(stream, route, now_s)
        if not accepting:
            self._capacity.check_replicas(route, self._upstreams.replicas.values())
            return []
        views = [replica.view(now_s, stream.prompt, stream.prompt_tokens) for replica in accepting.values()]
        order = self._routing_policy.order(new, views, now_s)
        stream.expected = forecast_stream(new, order[0], now_s, settings.horizon_s)
        if settings.admission and stream.streams and order[0].load:
            cls = stream.expectation.settings
            refusal = admission.overload(
                new, stream.expected, cls, class_name=stream.expectation.class_name, horizon_s=settings.horizon_s
            )
            if refusal is not None:
                raise refusal
        replicas = [accepting[view.name] for view in order]
        if stream.yields:  # where readers' figures do not count it, what yields is spread by its own number
            replicas.sort(key=lambda replica: len(replica.offline))
        return sorted(replicas, key=lambda replica: replica.is_full(now_s))
