"""The batch API of one gateway: files and batches of tenants within their limits, and the runner behind them."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from andes_api.batches.disk import alone
from andes_api.batches.files import FileStore, no_file
from andes_api.batches.peers import Peers
from andes_api.batches.runner import BatchRunner
from andes_api.batches.store import FINAL, BatchStore
from andes_api.classes import BatchLimits, BatchSettings
from andes_api.errors import ApiError
from andes_api.gateway import Gateway
from andes_api.settings import TenantSettings

__all__ = ["Batches"]

READ_BYTES = 1 << 20
"""Bytes that are read at a time to count lines."""


class Batches:
    """On ``directory``; ``start`` and ``stop`` with the gateway. What reads or writes the disk is for a thread."""

    def __init__(self, gateway: Gateway, settings: BatchSettings, directory: Path) -> None:
        self._settings = settings
        self._quota = directory / "quota"  # locked from the look at what a tenant has until it has more
        self.files = FileStore(directory / "files", settings.file_days)
        self.store = BatchStore(directory / "batches")
        peers = Peers(directory / "gateways", gateway.instance)
        self.runner = BatchRunner(gateway, settings, self.store, self.files, peers)

    @classmethod
    def of(cls, gateway: Gateway) -> Batches | None:
        """None where they are not turned on."""
        settings = gateway.settings.batches
        return None if settings.directory is None else cls(gateway, settings, settings.directory)

    def _limits(self, tenant: TenantSettings | None) -> BatchLimits:
        own = tenant.batches if tenant is not None else None
        return own if own is not None else self._settings.limits

    def add_file(
        self, tenant: TenantSettings | None, content: Path, name: str, seconds: float | None
    ) -> dict[str, Any]:
        """Take over an uploaded file. Raises a 400 where the tenant has too much."""
        owner = tenant.name if tenant is not None else None
        with alone(self._quota):
            self.files.check_room(owner, self._limits(tenant), content.stat().st_size)
            return self.files.add(content, name, tenant=owner, purpose="batch", seconds=seconds)

    def delete_file(self, file_id: str, tenant: str | None) -> None:
        """Raises a 404, or a 400 where a batch still reads it."""
        self.files.get(file_id, tenant)
        readers = [batch["id"] for batch in self.store.open() if batch["input_file_id"] == file_id]
        if readers:
            raise ApiError(
                400, f"{file_id} is the input of {readers[0]}, which has not ended: cancel it first", param="file_id",
                code="file_in_use", reason="file", retry=False,
            )  # fmt: skip
        self.files.delete(file_id, tenant)

    def create(self, tenant: TenantSettings | None, **asked: Any) -> dict[str, Any]:
        """Raises a 400 where the file is none of this tenant's, a 429 where it has too many requests."""
        owner, file_id = tenant.name if tenant is not None else None, asked["input_file_id"]
        try:
            self.files.get(file_id, owner)
        except ApiError:
            raise ApiError(
                400, no_file(file_id, "input_file_id").message, param="input_file_id", reason="file", retry=False
            ) from None
        total = self._count(file_id)
        with alone(self._quota):
            self._check_requests(owner, total, self._limits(tenant).requests)
            batch = self.store.create(owner, **asked, request_counts={"total": total, "completed": 0, "failed": 0})
        self.runner.look_soon()
        return batch

    def _check_requests(self, owner: str | None, total: int, most: int) -> None:
        """Raise a 429 where ``total`` more are too many."""
        waiting = sum(
            batch["request_counts"]["total"] - batch["request_counts"]["completed"] - batch["request_counts"]["failed"]
            for batch in self.store.open()
            if batch["tenant"] == owner
        )
        if waiting + total > most:
            raise ApiError(
                429, f"{waiting} requests of batches are to be done, and these are {total} more; {most} are allowed",
                "rate_limit_error", code="batch_quota_exceeded", reason="batch_requests", retry=False,
            )  # fmt: skip

    def _count(self, file_id: str) -> int:
        """Lines of a file, about."""
        with self.files.path(file_id).open("rb") as file:
            return max(1, sum(part.count(b"\n") for part in iter(lambda: file.read(READ_BYTES), b"")))

    def get(self, batch_id: str, tenant: str | None) -> dict[str, Any]:
        """Raises a 404."""
        return self.store.get(batch_id, tenant)

    def cancel(self, batch_id: str, tenant: str | None) -> dict[str, Any]:
        """Raises a 404, or a 400 where it has ended."""
        batch = self.store.get(batch_id, tenant)
        if batch["status"] in FINAL:
            raise ApiError(
                400,
                f"{batch_id} cannot be cancelled: it is {batch['status']}",
                param="batch_id",
                reason="batch",
                retry=False,
            )
        self.store.cancel(batch_id)
        self.runner.look_soon()
        return self.store.get(batch_id, tenant)

    def pending(self, model: str | None = None) -> dict[str, Any]:
        """What this gateway runs: of all models, or of one."""
        now_s, dispatcher = time.monotonic(), self.runner.dispatcher
        batches = []
        for work in self.runner.works:
            models = sorted({str(dispatcher.model_of(work, asked)) for asked in work.orders})
            if model is None or model in models:
                batches.append({
                    "id": work.id, "models": models, "deadline_s": work.expires_at_s, "requests": work.left,
                    "running": len(work.running), "tokens": work.tokens_left,
                })  # fmt: skip
        rates = {}
        for name, rate in dispatcher.rates.items():
            if name is not None and model in (None, name):
                per_s, active_s = rate.measured(now_s)
                rates[name] = {"tokens": rate.done, "tokens_per_s": round(per_s, 2), "measured_s": round(active_s, 1)}
        return {"batches": batches, "done": rates}
