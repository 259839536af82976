"""Responses that engines keep: the engine that gave one is the only one that knows it. No I/O."""

from __future__ import annotations

from collections import OrderedDict

from andes_api.errors import ApiError

__all__ = ["StoredResponses"]

MAX_RESPONSES = 100_000
"""Ids that are remembered; at about 200 bytes each, 20 MB."""
MAX_ID_CHARS = 128
"""Of an id that is remembered: SGLang's have 37, but without tenants a caller may choose its own."""


class StoredResponses:
    """Which replica keeps a response, and for which tenant: the last ``MAX_RESPONSES`` that went through this gateway.
    tenant: its name; None where there are no tenants."""

    def __init__(self) -> None:
        self._homes: OrderedDict[str, tuple[str, str | None]] = OrderedDict()

    def add(self, response_id: str, replica: str, tenant: str | None) -> None:
        if len(response_id) > MAX_ID_CHARS:
            return
        self._homes[response_id] = (replica, tenant)
        if len(self._homes) > MAX_RESPONSES:
            self._homes.popitem(last=False)

    def find(self, response_id: str) -> tuple[str, str | None] | None:
        """Replica and tenant, as for :meth:`add`; None where it did not go through this worker."""
        return self._homes.get(response_id)

    def home(self, response_id: object, tenant: str | None) -> str | None:
        """The replica that keeps it; None where it did not go through this gateway. Raises a 404 where it is another
        tenant's, or a tenant's that cannot be told."""
        replica, owner = self._homes.get(str(response_id), (None, None))
        if owner != tenant:
            raise ApiError(
                404, f"no response {str(response_id)[:100]!r}", code="not_found", reason="response", retry=False
            )
        return replica
