"""How things get to the disk: JSON whole or not at all, lines one by one, locks that die with their process."""

from __future__ import annotations

import fcntl
import logging
import os
import re
import secrets
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import orjson

__all__ = [
    "NUMBER", "Journal", "Kinds", "alone", "is_id", "lock", "new_id", "read_json", "read_lines", "unlock", "write_json",
]  # fmt: skip

_log = logging.getLogger("andes")
Kinds = type | tuple[type, ...]
NUMBER = (int, float)
_ABSENT = object()
_ID = re.compile(r"(file-|batch_)[0-9a-f]{32}")


def new_id(prefix: str) -> str:
    """An id that no other has: 128 random bits."""
    return prefix + secrets.token_hex(16)


def is_id(text: str, prefix: str) -> bool:
    """Whether ``text`` is one of ours: nothing else becomes a path."""
    return text.startswith(prefix) and _ID.fullmatch(text) is not None


def write_json(path: Path, content: Any) -> None:
    """Replace ``path`` in one step; it is on the disk when this returns."""
    new = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    with new.open("wb") as file:
        file.write(orjson.dumps(content))
        file.flush()
        os.fsync(file.fileno())
    new.replace(path)
    sync_folder(path.parent)


def sync_folder(path: Path) -> None:
    """Names in ``path`` are on the disk."""
    folder = os.open(path, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def read_json(path: Path, fields: Mapping[str, Kinds] | None = None) -> dict[str, Any] | None:
    """None where there is none. What is no object with ``fields`` of these types becomes ``NAME.corrupt``, and the log tells
    of it: nothing stumbles over it again."""
    try:
        with path.open("rb") as file:
            inode, text = os.fstat(file.fileno()).st_ino, file.read()
    except (FileNotFoundError, NotADirectoryError):
        return None
    try:
        content = orjson.loads(text)
        lacks = ["an object"]
        if isinstance(content, dict):
            lacks = [
                name for name, kinds in (fields or {}).items() if not isinstance(content.get(name, _ABSENT), kinds)
            ]
        if not lacks:
            return dict(content)
        why = f"it lacks {', '.join(lacks)}"
    except ValueError as error:
        why = str(error)
    aside = path.with_name(path.name + ".corrupt")
    with suppress(FileNotFoundError):
        if path.stat().st_ino == inode:  # else it has been written again
            path.replace(aside)
            _log.error("%s cannot be read (%s) and is passed over; it is %s now", path, why, aside.name)
    return None


def read_lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """Lines that are complete or the last, with the byte each begins at; nothing where there is no file."""
    try:
        file = path.open("rb")
    except FileNotFoundError:
        return
    with file:
        at = 0
        for line in file:
            yield at, line
            at += len(line)


class Journal:
    """A file that lines are appended to. A line survives the death of this process from :meth:`append` on, and that of the
    machine from :meth:`sync` on."""

    def __init__(self, path: Path) -> None:
        """What a dead writer left half written at the end is cut off."""
        self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o640)
        whole = 0
        for at, line in read_lines(path):
            if line.endswith(b"\n"):
                whole = at + len(line)
        os.ftruncate(self._file, whole)
        self._dirty = False

    def append(self, content: Any) -> None:
        """Raises ``OSError`` where the disk is full; then nothing of it is there."""
        line, size = orjson.dumps(content) + b"\n", os.fstat(self._file).st_size
        try:
            while line:
                line = line[os.write(self._file, line) :]
        except OSError:
            os.ftruncate(self._file, size)
            raise
        self._dirty = True

    def sync(self) -> None:
        if self._dirty:
            self._dirty = False
            os.fsync(self._file)

    def close(self) -> None:
        if self._file >= 0:
            try:
                self.sync()
            finally:
                os.close(self._file)
                self._file = -1


def lock(path: Path) -> int | None:
    """Hold ``path`` until :func:`unlock` or the end of this process; None where another holds it. Raises ``OSError`` where
    the file system has no locks."""
    file = os.open(path, os.O_RDWR | os.O_CREAT, 0o640)
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(file)
        return None
    except OSError:
        os.close(file)
        raise
    return file


@contextmanager
def alone(path: Path) -> Iterator[None]:
    """Nothing else is in here, of all threads and gateways; for a moment, in a thread."""
    file = os.open(path, os.O_RDWR | os.O_CREAT, 0o640)
    try:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
    finally:
        os.close(file)


def unlock(file: int) -> None:
    os.close(file)
