"""Files of tenants: what they upload and what their batches give back."""

from __future__ import annotations

import os
import shutil
import time
from contextlib import suppress
from pathlib import Path
from types import NoneType
from typing import Any

from andes_api.batches.disk import NUMBER, Kinds, is_id, new_id, read_json, sync_folder, write_json
from andes_api.classes import BatchLimits
from andes_api.errors import ApiError

__all__ = ["FileStore", "no_file"]

PREFIX = "file-"
DAY_S = 86_400.0
_FIELDS: dict[str, Kinds] = {
    "id": str, "bytes": int, "created_at": NUMBER, "expires_at": NUMBER, "filename": str, "purpose": str,
    "tenant": (str, NoneType),
}  # fmt: skip
"""Without which a record is none."""


class FileStore:
    """In ``directory``: each file as ``ID``, and ``ID.json``, what the API says of it and whose it is. tenant: its name, None
    where there are no tenants. Methods read and write the disk: call them in a thread."""

    def __init__(self, directory: Path, file_days: float) -> None:
        self._directory, self._file_days = directory, file_days
        directory.mkdir(mode=0o750, exist_ok=True)
        self.incoming = directory / "incoming"
        self.incoming.mkdir(mode=0o750, exist_ok=True)
        self._known: dict[str, dict[str, Any]] = {}  # what is said of a file never changes

    def path(self, file_id: str) -> Path:
        return self._directory / file_id

    def add(
        self,
        content: Path,
        name: str,
        *,
        tenant: str | None,
        purpose: str,
        file_id: str = "",
        seconds: float | None = None,
    ) -> dict[str, Any]:
        """Take over the file at ``content``, which is moved. seconds: that it is kept; None: as the settings say. Doing it
        again after a crash does the rest of it."""
        file_id, path = file_id or new_id(PREFIX), self.path(file_id)
        path = self.path(file_id)
        if content.exists():
            content.replace(path)
            sync_folder(self._directory)
        now_s = int(time.time())
        said = {
            "id": file_id,
            "object": "file",
            "bytes": path.stat().st_size,
            "created_at": now_s,
            "expires_at": now_s + int(self._file_days * DAY_S if seconds is None else seconds),
            "filename": name,
            "purpose": purpose,
            "status": "processed",
            "tenant": tenant,
        }
        write_json(self._said(file_id), said)
        return said

    def get(self, file_id: str, tenant: str | None) -> dict[str, Any]:
        """Raises a 404 where there is none, or it is another tenant's."""
        said = self._read(file_id) if is_id(file_id, PREFIX) else None
        if said is None or said["tenant"] != tenant:
            raise no_file(file_id)
        return said

    def of(self, tenant: str | None) -> list[dict[str, Any]]:
        """All files of this tenant, the oldest first."""
        found = (
            self._read(name.removesuffix(".json")) for name in os.listdir(self._directory) if name.endswith(".json")
        )
        mine = [said for said in found if said is not None and said["tenant"] == tenant]
        return sorted(mine, key=lambda said: (said["created_at"], said["id"]))

    def check_room(self, tenant: str | None, limits: BatchLimits, more_bytes: int) -> None:
        """Raise a 400 where ``more_bytes`` in one more file are more than this tenant may have."""
        mine = self.of(tenant)
        total = sum(said["bytes"] for said in mine) + more_bytes
        for what, have, most in (("files", len(mine) + 1, limits.files), ("bytes of files", total, limits.bytes)):
            if have > most:
                raise ApiError(
                    400, f"file: with it there would be {have} {what}, {most} are allowed; delete some", param="file",
                    code="file_quota_exceeded", reason="files", retry=False,
                )  # fmt: skip

    def delete(self, file_id: str, tenant: str | None) -> None:
        """Raises a 404."""
        self.get(file_id, tenant)
        self._remove(file_id)

    def remove_expired(self, in_use: set[str]) -> None:
        """Those whose time is over, but for what batches still read."""
        now_s = time.time()
        for name in os.listdir(self._directory):
            file_id = name.removesuffix(".json")
            said = self._read(file_id) if name.endswith(".json") else None
            if said is not None and said["expires_at"] < now_s and file_id not in in_use:
                self._remove(file_id)
            elif said is None and not name.endswith(".json"):
                self._remove_if_lost(name, now_s)
        for left in self.incoming.iterdir():  # folders of uploads whose gateway died
            with suppress(FileNotFoundError):  # another gateway removes them too
                if left.stat().st_mtime < now_s - DAY_S:
                    shutil.rmtree(left)

    def _remove_if_lost(self, name: str, now_s: float) -> None:
        """What no record tells of goes when its time would be over."""
        path = self._directory / name
        with suppress(FileNotFoundError):
            known = is_id(name, PREFIX) and self._said(name).exists()
            if not known and path.is_file() and path.stat().st_mtime < now_s - self._file_days * DAY_S:
                path.unlink()

    def _said(self, file_id: str) -> Path:
        return self._directory / f"{file_id}.json"

    def _read(self, file_id: str) -> dict[str, Any] | None:
        path = self._said(file_id)
        if not path.exists():
            self._known.pop(file_id, None)
            return None
        if file_id not in self._known:
            said = read_json(path, _FIELDS)
            if said is None:
                return None
            self._known[file_id] = said
        return self._known[file_id]

    def _remove(self, file_id: str) -> None:
        self._said(file_id).unlink(missing_ok=True)
        self.path(file_id).unlink(missing_ok=True)


def no_file(file_id: str, param: str = "id") -> ApiError:
    return ApiError(
        404, f"{param}: no file {file_id[:100]!r}", param=param, code="not_found", reason="file", retry=False
    )
