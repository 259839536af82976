"""Batches on the disk: what each is, who asked for its end, who runs it."""

from __future__ import annotations

import math
import os
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from types import NoneType
from typing import Any

from andes_api.batches.disk import NUMBER, Kinds, is_id, lock, new_id, read_json, sync_folder, write_json
from andes_api.errors import ApiError

__all__ = ["FINAL", "BatchStore", "shown"]

PREFIX = "batch_"
FINAL = frozenset({"failed", "completed", "expired", "cancelled"})
"""States that nothing follows."""
_FIELDS: dict[str, Kinds] = {
    "id": str, "status": str, "tenant": (str, NoneType), "endpoint": str, "input_file_id": str, "created_at": NUMBER,
    "expires_at": NUMBER, "request_counts": dict,
}  # fmt: skip
"""Without which a record is none."""
_PRIVATE = ("tenant", "ends_as", "output_kept_s")


class BatchStore:
    """In ``directory``: a folder per batch. ``batch.json``: as the API shows it, written by who holds ``lock``; ``cancel``:
    it is to be cancelled; ``output.jsonl`` and ``error.jsonl``: a line per request that is done. Call methods in a thread."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        directory.mkdir(mode=0o750, exist_ok=True)
        self._final: dict[str, dict[str, Any]] = {}  # they do not change any more

    def folder(self, batch_id: str) -> Path:
        return self._directory / batch_id

    def create(self, tenant: str | None, **fields: Any) -> dict[str, Any]:
        batch = {"id": new_id(PREFIX), "object": "batch", **_empty(), **fields, "tenant": tenant}
        folder = self.folder(batch["id"])
        folder.mkdir(mode=0o750)
        self.write(batch)
        sync_folder(self._directory)
        return batch

    def write(self, batch: Mapping[str, Any]) -> None:
        """For who holds its lock."""
        write_json(self.folder(batch["id"]) / "batch.json", batch)

    def get(self, batch_id: str, tenant: str | None) -> dict[str, Any]:
        """As it is now. Raises a 404 where there is none, or it is another tenant's."""
        batch = self.read(batch_id) if is_id(batch_id, PREFIX) else None
        if batch is None or batch["tenant"] != tenant:
            raise ApiError(
                404, f"no batch {batch_id[:100]!r}", param="batch_id", code="not_found", reason="batch", retry=False
            )
        return batch

    def read_own(self, batch_id: str) -> dict[str, Any] | None:
        """As its runner has written it, without what it has not seen yet."""
        if batch_id in self._final:
            return self._final[batch_id]
        batch = read_json(self.folder(batch_id) / "batch.json", _FIELDS)
        if batch is not None and batch["status"] in FINAL:
            self._final[batch_id] = batch
        return batch

    def read(self, batch_id: str) -> dict[str, Any] | None:
        batch = self.read_own(batch_id)
        if batch is None or batch["status"] in FINAL:
            return batch
        if (at_s := self.cancelled_at_s(batch_id)) is not None:
            batch |= {"status": "cancelling", "cancelling_at": int(at_s)}
        return batch

    def all(self) -> Iterator[dict[str, Any]]:
        """Every batch of every tenant."""
        for name in os.listdir(self._directory):
            if is_id(name, PREFIX) and (batch := self.read(name)) is not None:
                yield batch

    def of(self, tenant: str | None) -> list[dict[str, Any]]:
        """All batches of this tenant, the newest first."""
        mine = (batch for batch in self.all() if batch["tenant"] == tenant)
        return sorted(mine, key=lambda batch: (-batch["created_at"], batch["id"]))

    def open(self) -> list[dict[str, Any]]:
        """Those that have not ended, the earliest deadline first."""
        return sorted(
            (batch for batch in self.all() if batch["status"] not in FINAL),
            key=lambda batch: float(batch["expires_at"]),
        )

    def remove_ended(self, before_s: float) -> None:
        """Forget batches that ended before that (Unix seconds), and folders that tell of none and are as old."""
        names = [name for name in os.listdir(self._directory) if is_id(name, PREFIX)]
        for name in names:
            batch = self.read_own(name)
            with suppress(FileNotFoundError):  # another gateway removes them too
                if batch is None:
                    ended_s = self.folder(name).stat().st_mtime
                else:
                    ended_s = batch.get(f"{batch['status']}_at") or batch["created_at"]
                    ended_s = ended_s if batch["status"] in FINAL else math.inf
                if ended_s < before_s:
                    shutil.rmtree(self.folder(name))
                    self._final.pop(name, None)
        for name in self._final.keys() - names:
            del self._final[name]

    def lock(self, batch_id: str) -> int | None:
        return lock(self.folder(batch_id) / "lock")

    def cancel(self, batch_id: str) -> None:
        """Have who runs it end it."""
        (self.folder(batch_id) / "cancel").touch(mode=0o640)

    def cancelled_at_s(self, batch_id: str) -> float | None:
        """When its end was asked for, Unix seconds."""
        try:
            return (self.folder(batch_id) / "cancel").stat().st_mtime
        except OSError:
            return None


def shown(batch: Mapping[str, Any]) -> dict[str, Any]:
    """As the API shows it."""
    return {name: value for name, value in batch.items() if name not in _PRIVATE}


def _empty() -> dict[str, Any]:
    names = (
        "errors",
        "output_file_id",
        "error_file_id",
        "in_progress_at",
        "finalizing_at",
        "completed_at",
        "failed_at",
    )
    counts = {"total": 0, "completed": 0, "failed": 0}
    return {
        **dict.fromkeys((*names, "expired_at", "cancelling_at", "cancelled_at", "metadata", "usage", "model")),
        "status": "validating",
        "created_at": int(time.time()),
        "request_counts": counts,
    }
