"""One writer: a Lease that the operator holds while it works. A second operator waits for it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any
from urllib.parse import quote

from andes_operator.cluster import Cluster, ClusterError

__all__ = ["Lease", "LeaseLostError"]


class LeaseLostError(RuntimeError):
    """Somebody else holds the lease, or it could not be renewed in time."""


class Lease:
    """``coordination.k8s.io/v1``. Whether another holder is gone is judged by our own clock: by how long its lease has not
    changed, not by the times in it."""

    def __init__(
        self,
        cluster: Cluster,
        namespace: str,
        name: str,
        holder: str,
        *,
        duration_s: float = 15.0,
        retry_s: float = 3.0,
    ) -> None:
        self._cluster, self._holder = cluster, holder
        self._root = f"/apis/coordination.k8s.io/v1/namespaces/{quote(namespace)}/leases"
        self._name = name
        self.duration_s, self.retry_s = duration_s, retry_s
        self._seen: tuple[str, float] = ("", 0.0)

    async def acquire(self) -> None:
        """Wait until it is ours."""
        while not await self._try():
            await asyncio.sleep(self.retry_s)

    async def hold(self) -> None:
        """Renew it for ever. Raises :class:`LeaseLostError`, early enough that nobody else holds it yet."""
        renewed_s = time.monotonic()
        while True:
            await asyncio.sleep(self.retry_s)
            try:
                if not await self._try():
                    raise LeaseLostError(f"somebody else holds the lease {self._name}")
                renewed_s = time.monotonic()
            except ClusterError as error:
                if time.monotonic() - renewed_s > self.duration_s - self.retry_s:
                    raise LeaseLostError(f"the lease {self._name} could not be renewed: {error}") from None

    async def release(self) -> None:
        """Let the next one have it at once."""
        try:
            found = await self._cluster.request("GET", f"{self._root}/{self._name}")
            if found["spec"].get("holderIdentity") == self._holder:
                await self._write(found, "")
        except ClusterError:
            pass

    async def _try(self) -> bool:
        """Take or renew it. Raises :class:`ClusterError` where the API server does not answer."""
        try:
            found = await self._cluster.request("GET", f"{self._root}/{self._name}")
        except ClusterError as error:
            if error.status != 404:
                raise
            return await self._make()
        holder = found["spec"].get("holderIdentity") or ""
        version = found["metadata"]["resourceVersion"]
        if version != self._seen[0]:
            self._seen = version, time.monotonic()
        length_s = float(found["spec"].get("leaseDurationSeconds") or self.duration_s)
        if holder in ("", self._holder) or time.monotonic() - self._seen[1] > length_s:
            return await self._write(found, self._holder)
        return False

    async def _make(self) -> bool:
        body = {"metadata": {"name": self._name}, "spec": self._spec(self._holder)}
        return await self._attempt("POST", self._root, body)

    async def _write(self, found: Mapping[str, Any], holder: str) -> bool:
        body = {
            "metadata": {"resourceVersion": found["metadata"]["resourceVersion"]},
            "spec": self._spec(holder),
        }
        return await self._attempt("PATCH", f"{self._root}/{self._name}", body)

    async def _attempt(self, method: str, path: str, body: Mapping[str, Any]) -> bool:
        try:
            await self._cluster.request(method, path, body)
        except ClusterError as error:
            if error.status == 409:
                return False
            raise
        return True

    def _spec(self, holder: str) -> dict[str, Any]:
        now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
        return {"holderIdentity": holder, "leaseDurationSeconds": int(self.duration_s), "renewTime": now}
