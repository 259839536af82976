"""Whether there is room for another stream: limits of the gateway, its tenants and its models, of all workers together."""

from __future__ import annotations

from collections.abc import Collection

from andes_api import admission
from andes_api.board import Board
from andes_api.limits import TenantLimits
from andes_api.models import ModelRoute
from andes_api.settings import GatewaySettings
from andes_api.stream import Stream
from andes_api.upstream import STREAM_S, Upstream

__all__ = ["Capacity"]


class Capacity:
    """streams: this worker's open ones; those of batches take no reader's place. replicas: those there are. now_s: clock
    seconds. Refusals are raised as :class:`ApiError`."""

    def __init__(self, settings: GatewaySettings, board: Board, streams: Collection[Stream]) -> None:
        self._settings, self._board, self._streams = settings, board, streams
        self._batched = 0
        self._tenants = {tenant.name: TenantLimits(tenant, board, k) for k, tenant in enumerate(settings.tenants)}
        limited = ((k, name, model.max_streams) for k, (name, model) in enumerate(settings.models.items()))
        self._models = {name: (board.of_model(k), limit) for k, name, limit in limited if limit is not None}

    @property
    def open_streams(self) -> int:
        """Readers' streams of all workers."""
        return len(self._streams) - self._batched + int(self._board.open.others)

    def admit(self, stream: Stream, replicas: Collection[Upstream]) -> None:
        """Count ``stream`` in with its tenant, until :meth:`ended`, and refuse it where there are too many."""
        if limits := self._tenants.get(stream.tenant_name):
            limits.admit(stream, stream.arrival_s, until_one_ends_s(1, replicas))
            stream.limits = limits.headers(stream.arrival_s)
        if self.open_streams >= self._settings.max_streams:
            raise admission.full(until_one_ends_s(self.open_streams, replicas))

    def opened(self, stream: Stream) -> None:
        """``stream`` is among the open ones now."""
        self._batched += stream.batched
        self.count()

    def left(self, stream: Stream) -> None:
        """``stream`` is no longer among the open ones."""
        self._batched -= stream.batched
        self.count()

    def ended(self, stream: Stream, now_s: float) -> None:
        """``stream`` is over, whether it was open or refused."""
        if limits := self._tenants.get(stream.tenant_name):
            limits.ended(stream, now_s)

    def charge_late(self, stream: Stream, output_tokens: int, now_s: float) -> None:
        """``stream`` is over and has had that many tokens more."""
        if limits := self._tenants.get(stream.tenant_name):
            limits.charge_late(output_tokens, now_s)

    def settle(self, now_s: float) -> None:
        """Charge tenants what their open streams have had by now."""
        for limits in self._tenants.values():
            limits.settle(now_s)

    def count(self) -> None:
        """The open streams, or the models they are for, have changed."""
        self._board.open.set(len(self._streams) - self._batched)
        for name, (numbers, _) in self._models.items():
            numbers.set(self._of_model(name))

    def _of_model(self, name: str, without: Stream | None = None) -> int:
        counted = (other for other in self._streams if other is not without and not other.batched)
        return sum(other.route.model == name for other in counted)

    def check_model(self, stream: Stream, route: ModelRoute, replicas: Collection[Upstream]) -> None:
        """Refuse ``stream`` where the model of ``route`` has as many streams as it may."""
        name = route.model
        if name is None or name not in self._models:
            return
        numbers, limit = self._models[name]
        held = self._of_model(name, stream) + int(numbers.others)
        if held >= limit:
            raise admission.model_full(name, limit, until_one_ends_s(held, replicas))

    def check_replicas(self, route: ModelRoute, replicas: Collection[Upstream]) -> None:
        """Refuse where a replica of ``route`` that is up has as many streams as it may."""
        up = [r for r in replicas if r.healthy and not r.draining and r.serves(route)]
        if max((r.open_streams for r in up), default=0) >= self._settings.max_streams_per_replica:
            raise admission.full(until_one_ends_s(self.open_streams, replicas))


def until_one_ends_s(streams: int, replicas: Collection[Upstream]) -> float:
    """Seconds until one of ``streams`` usually ends."""
    lasts_s = [replica.stream_s for replica in replicas] or [STREAM_S]
    return max(1.0, sum(lasts_s) / len(lasts_s) / max(1, streams))
