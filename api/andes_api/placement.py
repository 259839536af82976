"""Which engines a request may have, best first, or why it is refused."""

from __future__ import annotations

import logging
from collections.abc import Collection, Hashable, Mapping
from contextlib import suppress
from typing import Any

from andes_api import admission
from andes_api.capacity import Capacity
from andes_api.errors import ApiError
from andes_api.fatal import content_hash
from andes_api.ladders import Rung, usable_rungs
from andes_api.models import ModelRoute, no_adapters, no_model
from andes_api.settings import GatewaySettings, TenantSettings
from andes_api.stored import StoredResponses
from andes_api.stream import Stream
from andes_api.upstream import Upstream
from andes_api.upstreams import Upstreams
from andes_sglang.admission import Admission
from andes_sglang.routing import RoutingError, make_routing_policy, ordered
from andes_sglang.stream_forecast import ReplicaView, forecast_stream

__all__ = ["Placement"]

Offers = Mapping[ModelRoute, float | None]
"""Models that may answer, the best first, with what their answers are worth; None: it is no rung of a ladder."""
_Found = dict[str, tuple[Upstream, ModelRoute]]
"""Replicas by name, with the model that each would answer with."""
_log = logging.getLogger("andes")


class Placement:
    """Within ``capacity``."""

    def __init__(
        self, settings: GatewaySettings, upstreams: Upstreams, stored: StoredResponses, capacity: Capacity
    ) -> None:
        self._settings, self._upstreams, self._stored, self._capacity = settings, upstreams, stored, capacity
        self._routing_policy = make_routing_policy(settings.policy, **settings.routing_options)
        self._ladder_policy = make_routing_policy(settings.ladder_policy, **settings.ladder_options)
        self._admission = Admission()
        self._warned: set[tuple[str, str]] = set()

    def route_of(self, asked: Any, tenant: TenantSettings | None) -> ModelRoute:
        """What the ``model`` of this tenant's request means. Raises the error that refuses it."""
        route = self._upstreams.resolve(asked)
        if tenant is None or not tenant.models:
            return route
        if ladder := self._upstreams.catalog.ladder_of(asked):
            if rungs := self._rungs(ladder, tenant):
                return ModelRoute(usable_rungs(rungs)[0].model)
            raise no_model(asked, tenant.models)
        if route.model not in (None, *tenant.models):
            raise no_model(asked, tenant.models)
        return route

    def may_ask(self, name: str, tenant: TenantSettings) -> bool:
        """Whether this tenant may name ``name`` as its model."""
        try:
            return self.route_of(name, tenant).model is not None
        except ApiError:
            return False

    def _rungs(self, ladder: str, tenant: TenantSettings | None) -> list[Rung]:
        """Those that this tenant may use: all where it may use the ladder, else those that it may use anyway."""
        rungs = self._settings.ladders[ladder]
        if tenant is None or not tenant.models or ladder in tenant.models:
            return [*rungs]
        return [rung for rung in rungs if rung.model in tenant.models]

    def _offers(self, stream: Stream) -> Offers:
        """Who may answer: what it asks for, or of a ladder every rung that its class and its caller allow. A stream that was
        tried on a model stays with it."""
        ladder = self._upstreams.catalog.ladder_of(stream.body.get("model"))
        if ladder is None or stream.fallback is not None:
            return {stream.route: None}
        if stream.attempts:
            return {stream.route: stream.record.quality}
        return self._rungs_for(stream, ladder)

    def _rungs_for(self, stream: Stream, ladder: str) -> Offers:
        stream.record.ladder = ladder
        least = stream.expectation.settings.least_quality
        rungs = usable_rungs(
            self._rungs(ladder, stream.tenant), least_quality=least, degrade=stream.expectation.degrade
        )
        if not rungs:  # the class allows none of those that the tenant may use
            raise no_model(ladder, stream.tenant.models if stream.tenant else ())
        for rung in rungs:
            if rung.model not in self._upstreams.catalog.models:
                self._warn_if_missing(rung.model, f"ladder {ladder}")
        return {ModelRoute(rung.model): rung.quality for rung in rungs}

    def _warn_if_missing(self, model: str, where: str) -> None:
        """Warn, once, of a name in the settings that no engine has announced."""
        try:
            self._upstreams.resolve(model)
        except ApiError as error:
            if error.code == "model_not_found" and (where, model) not in self._warned:
                self._warned.add((where, model))
                _log.warning("%s: %s", where, error.message)

    def place(self, stream: Stream, now_s: float) -> list[Upstream]:
        """Replicas for this stream, best first; the first counts it from now on, so that the next one to come sees it. Those
        of the class's fallback where its own model has none or refuses it. Empty while no engine accepts streams. Raises the
        error that refuses it."""
        if stream.route.model is None:
            stream.routed(self.route_of(stream.body.get("model"), stream.tenant))
        refusal: ApiError | None = None
        try:
            replicas = self._place_on(stream, self._offers(stream), now_s)
        except ApiError as error:
            if error.status != 429:  # the request is wrong for every model
                raise
            replicas, refusal = [], error
        why = "no_replica" if refusal is None else refusal.reason
        replicas = replicas or self._fall_back(stream, why, now_s)
        if not replicas and refusal is not None:
            raise refusal
        if refusal is not None:
            self._admission.let_in(_ticket(stream))
        if replicas:
            replicas[0].opened(stream)
            replicas[0].awaits(stream, now_s)
        return replicas

    def place_elsewhere(
        self, stream: Stream, tried: Collection[ModelRoute], failed: Collection[Upstream], now_s: float
    ) -> list[Upstream]:
        """Replicas of a model other than those ``tried``, all of whose engines have failed this stream before it began: of
        another rung of its ladder, else of the class's fallback; none of ``failed``. Empty where there are none."""
        ladder = self._upstreams.catalog.ladder_of(stream.body.get("model"))
        replicas: list[Upstream] = []
        if ladder is not None and stream.fallback is None:
            with suppress(ApiError):  # none of them may or will take it
                rungs = self._rungs_for(stream, ladder).items()
                replicas = self._place_on(stream, {route: q for route, q in rungs if route not in tried}, now_s, failed)
        return replicas or self._fall_back(stream, "engine_failed", now_s, failed)

    def _fall_back(self, stream: Stream, why: str, now_s: float, failed: Collection[Upstream] = ()) -> list[Upstream]:
        """Replicas of the class's fallback model; none where it has none, or cannot take the stream either."""
        name = stream.expectation.settings.fallback_model
        if name is None or stream.fallback is not None:
            return []
        try:
            route = self.route_of(name, stream.tenant)
            other = route not in (stream.route, ModelRoute())
            replicas = self._place_on(stream, {route: None}, now_s, failed) if other else []
        except ApiError:
            self._warn_if_missing(name, f"fallback_model of class {stream.expectation.class_name}")
            return []
        if replicas:
            stream.fallback, stream.record.fallback = why, route.model
        return replicas

    def _accepting(self, stream: Stream, route: ModelRoute, now_s: float) -> _Found:
        """The replicas of ``route`` that may get this stream. Raises the error that refuses it."""
        if route.adapter is not None and not stream.endpoint.adapters:
            raise no_adapters(stream.path, route)
        self._capacity.check_model(stream, route, self._upstreams.replicas.values())
        tenant, accepting = stream.tenant, self._upstreams.accepting(now_s, route)
        if accepting and route.model is None and tenant is not None and tenant.models:
            raise no_model(stream.body.get("model"), tenant.models)  # whose these are cannot be told
        return {replica.name: (replica, route) for replica in accepting}

    def _place_on(
        self, stream: Stream, offers: Offers, now_s: float, failed: Collection[Upstream] = ()
    ) -> list[Upstream]:
        """Replicas for this stream, best first, all of one model of ``offers``: the best that does not refuse it; none of
        ``failed``. Raises the error that refuses it."""
        found: _Found = {}
        refusals: list[ApiError] = []
        for route in offers:
            try:
                accepting = self._accepting(stream, route, now_s)
                found = {name: (r, of) for name, (r, of) in accepting.items() if r not in failed} | found
            except ApiError as error:
                refusals.append(error)
        if found:
            return self._choose(stream, self._at_home(stream, found), offers, refusals, now_s=now_s)
        if refusals:
            raise refusals[0]
        for route in offers:
            self._capacity.check_replicas(route, self._upstreams.replicas.values())
        return []

    def _choose(
        self, stream: Stream, found: _Found, offers: Offers, refusals: list[ApiError], *, now_s: float
    ) -> list[Upstream]:
        """Those of ``found`` that have the best model that does not refuse the stream by forecast, best first. Raises the
        first error that refuses it, after ``refusals``."""
        new = stream.incoming
        views = [
            replica.view(now_s, stream.prompt, stream.prompt_tokens, offers[route] or 1.0)
            for replica, route in found.values()
        ]
        policy = self._routing_policy if None in offers.values() else self._ladder_policy
        try:
            order = ordered(policy, new, views, now_s)
        except RoutingError as error:
            _log.error("%s", error)
            raise ApiError(500, str(error), "server_error", reason="routing_policy") from error
        order = sorted(order, key=lambda view: found[view.name][0].is_full(now_s))
        by_route: dict[ModelRoute, list[ReplicaView]] = {}
        for view in order:
            by_route.setdefault(found[view.name][1], []).append(view)
        for route, of_route in by_route.items():
            stream.expected = forecast_stream(new, of_route[0], now_s, self._settings.horizon_s)
            refusal = self._overload(stream, of_route[0], found[of_route[0].name][0], now_s)
            if refusal is None:
                if refusals:
                    self._admission.let_in(_ticket(stream))
                stream.answered_by(route, offers[route])
                replicas = [found[view.name][0] for view in of_route]
                if stream.yields:  # where readers' figures do not count it, what yields is spread by its own number
                    replicas.sort(key=lambda replica: (replica.is_full(now_s), len(replica.offline)))
                return replicas
            refusals.append(refusal)
        raise refusals[0]

    def _at_home(self, stream: Stream, found: _Found) -> _Found:
        """Where an earlier response that this one follows is kept, the replica that keeps it alone."""
        earlier, tenant = stream.earlier_answer, stream.tenant
        home = self._stored.home(earlier, tenant.name if tenant else None) if earlier else None
        return {home: found[home]} if home in found else found

    def _overload(self, stream: Stream, view: ReplicaView, replica: Upstream, now_s: float) -> ApiError | None:
        """What refuses this stream by its forecast, on the best replica there is for it."""
        if not (self._settings.admission and stream.streams and stream.expected):
            return None
        if not stream.yields:
            replica.waits.offered(now_s)
        if not view.load:
            return None
        wish = stream.expectation.settings.wish
        refusal = self._admission.refuse(stream.incoming, stream.expected, view, wish, now_s, ticket=_ticket(stream))
        return None if refusal is None else admission.overload(refusal)


def _ticket(stream: Stream) -> Hashable:
    """The same for a request that comes again."""
    return stream.tenant_name, content_hash(stream.body)
