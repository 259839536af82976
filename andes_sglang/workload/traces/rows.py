"""Rows of a trace file, CSV or JSON lines, plain or gzipped; every error names file, row and field."""

from __future__ import annotations

import csv
import gzip
import io
import json
import math
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

from andes_sglang.request import RequestSpec
from andes_sglang.workload.base import StatedTarget, WorkloadError

__all__ = ["Row", "TraceFormat", "TracedRequest", "read_document", "read_rows", "rows_of"]


class Row:
    """One row, asked for its fields by name. Each method raises :class:`WorkloadError` naming ``place`` and field.

    fault: why a line has no fields; None where it has.
    """

    __slots__ = ("fault", "fields", "place")

    def __init__(self, place: str, fields: dict[str, Any], fault: WorkloadError | None = None) -> None:
        self.place = place
        self.fields = fields
        self.fault = fault

    def whole(self) -> Row:
        """The row itself, if it could be read."""
        if self.fault is not None:
            raise self.fault
        return self

    def states(self, name: str) -> bool:
        """Whether the field is there; an empty cell of a CSV and a null of JSON are not."""
        return self.fields.get(name) not in (None, "")

    def error(self, name: str, expected: str) -> WorkloadError:
        return WorkloadError(f"{self.place}, field {name}: {expected}, got {self.fields.get(name)!r}")

    def number(self, name: str, least: float) -> float:
        value = self.fields.get(name)
        try:
            number = float(value)  # type: ignore[arg-type]
        except (TypeError, ValueError):
            raise self.error(name, "expected a number") from None
        if isinstance(value, bool) or not math.isfinite(number) or number < least:
            raise self.error(name, f"must be a number >= {least:g}")
        return number

    def tokens(self, name: str, least: int = 1) -> int:
        number = self.number(name, least)
        if number != int(number):
            raise self.error(name, "expected a whole number of tokens")
        return int(number)

    def flag(self, name: str) -> bool:
        """``true`` or ``false``, as JSON or as the text of a CSV's cell."""
        value = self.fields.get(name)
        if isinstance(value, bool):
            return value
        if isinstance(value, str) and value.lower() in ("true", "false"):
            return value.lower() == "true"
        raise self.error(name, "expected true or false")

    def timestamp_s(self, name: str) -> float:
        """Unix seconds of an ISO 8601 date and time; UTC where it names no zone."""
        try:
            at = datetime.fromisoformat(str(self.fields.get(name)))
        except ValueError:
            raise self.error(name, "expected a date and time") from None
        return (at if at.tzinfo else at.replace(tzinfo=UTC)).timestamp()


class TracedRequest(NamedTuple):
    """A request of a trace, and what its row says of its reader."""

    spec: RequestSpec
    stated: StatedTarget = StatedTarget()


@dataclass(frozen=True, slots=True)
class TraceFormat:
    """``marker``: the field a file of this format is recognised by. ``parse``: a row's request; None for a row without one.

    tick_s: the trace's clock stands still this long; arrivals are spread inside the tick.
    """

    name: str
    marker: str
    parse: Callable[[Row], TracedRequest | None]
    tick_s: float = 0.0


def read_document(path: Path) -> Any:
    """A JSON document: its value, a list or an object; of any other file, JSON lines among them, the text. Raises
    :class:`WorkloadError`."""
    try:
        raw = path.read_bytes()
        text = (gzip.decompress(raw) if path.suffix == ".gz" else raw).decode("utf-8-sig")
    except OSError as error:
        raise WorkloadError(f"{path}: cannot be read ({error.strerror or error})") from None
    except (EOFError, zlib.error) as error:
        raise WorkloadError(f"{path}: a damaged gzip file ({error})") from None
    except UnicodeDecodeError:
        raise WorkloadError(f"{path}: not a text file") from None
    start = text.lstrip()[:1]
    try:
        return json.loads(text) if start in ("[", "{") else text
    except json.JSONDecodeError as error:
        if start == "[":
            raise WorkloadError(f"{path}: not JSON ({error})") from None
        return text
    except RecursionError:
        raise WorkloadError(f"{path}: JSON that is nested too deeply") from None


def read_rows(path: Path, *, whole: bool = True) -> Iterator[Row]:
    """Rows of a CSV with a header line, or of JSON objects one a line; without ``whole``, also those that are none. Raises
    :class:`WorkloadError`."""
    document = read_document(path)
    if isinstance(document, list):
        raise WorkloadError(
            f"{path}: a JSON array that is no data set of conversations; docs/traces.md has the formats"
        )
    rows = _rows(path, document)
    return (row.whole() for row in rows) if whole else rows


def rows_of(path: Path, text: str | dict[str, Any]) -> Iterator[Row]:
    """Rows of what :func:`read_document` has read: a text, or the object of the only line. Raises :class:`WorkloadError`."""
    return (row.whole() for row in _rows(path, text))


def _rows(path: Path, text: str | dict[str, Any]) -> Iterator[Row]:
    if isinstance(text, dict):
        yield Row(f"{path}, row 1", text)
        return
    if not text.lstrip().startswith("{"):
        for number, fields in enumerate(csv.DictReader(io.StringIO(text)), start=2):
            yield Row(f"{path}, row {number}", fields)
        return
    for number, line in enumerate(text.splitlines(), start=1):
        if line.strip():
            place = f"{path}, row {number}"
            try:
                yield Row(place, _object(place, line))
            except WorkloadError as fault:
                yield Row(place, {}, fault)


def _object(place: str, line: str) -> dict[str, Any]:
    try:
        fields = json.loads(line)
    except json.JSONDecodeError as error:
        raise WorkloadError(f"{place}: not JSON ({error.msg} at column {error.colno})") from None
    if not isinstance(fields, dict):
        raise WorkloadError(f"{place}: expected an object, got {fields!r}")
    return fields
