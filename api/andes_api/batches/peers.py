"""What the gateways that share a directory tell each other: how many requests of batches each has at which engine."""

from __future__ import annotations

import secrets
import time
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import orjson

from andes_api.batches.disk import read_json
from andes_api.upstream import Upstream

__all__ = ["Peers"]

STALE_S = 30.0
"""Seconds after which a gateway that says nothing is taken for gone."""


class Peers:
    """In ``directory``: a file per gateway, written again every time. It is a hint for forecasts: who runs a batch is decided
    by its lock."""

    def __init__(self, directory: Path, name: str) -> None:
        self._directory = directory
        directory.mkdir(mode=0o750, exist_ok=True)
        self._file = directory / f"{name}-{secrets.token_hex(4)}.json"

    def exchange(self, replicas: Iterable[Upstream]) -> None:
        """Say what we have, and take over what the others have: readers there are forecast without it."""
        replicas = list(replicas)
        if ours := {replica.name: len(replica.offline) for replica in replicas if replica.offline}:
            new = self._file.with_suffix(".new")
            new.write_bytes(orjson.dumps(ours))
            new.replace(self._file)
        else:
            self.leave()
        theirs: Counter[str] = Counter()
        for path in self._directory.glob("*.json"):
            if path != self._file:
                theirs.update(self._read(path))
        for replica in replicas:
            replica.others_offline = theirs[replica.name]

    def leave(self) -> None:
        self._file.unlink(missing_ok=True)

    def _read(self, path: Path) -> dict[str, int]:
        """What another has; nothing of one that has gone, whose file is removed in time."""
        try:
            age_s = time.time() - path.stat().st_mtime
        except OSError:
            return {}
        if age_s > STALE_S:
            if age_s > 100 * STALE_S:
                path.unlink(missing_ok=True)
            return {}
        said = read_json(path) or {}
        return {name: count for name, count in said.items() if isinstance(count, int)}
