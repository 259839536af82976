"""Responses that engines keep: the engine that gave one is the only one that knows it. No I/O."""

from __future__ import annotations

from collections import OrderedDict

from andes_api.errors import ApiError

__all__ = ["StoredResponses"]

MAX_RESPONSES = 100_000
"""Ids that are remembered; at about 200 bytes each, 20 MB."""


class StoredResponses:
    """Which replica keeps a response, and for which tenant: the last ``MAX_RESPONSES`` that went through this gateway."""

    def __init__(self) -> None:
        self._homes: OrderedDict[str, tuple[str, str]] = OrderedDict()

    def add(self, response_id: str, replica: str, tenant: str) -> None:
        self._homes[response_id] = (replica, tenant)
        if len(self._homes) > MAX_RESPONSES:
            self._homes.popitem(last=False)

    def home(self, response_id: object, tenant: str) -> str | None:
        """The replica that keeps it; None where it did not go through this gateway. Raises a 404 where it is another
        tenant's."""
        replica, owner = self._homes.get(str(response_id), (None, tenant))
        if owner != tenant:
            raise ApiError(
                404, f"no response {str(response_id)[:100]!r}", code="not_found", reason="response", retry=False
            )
        return replica
