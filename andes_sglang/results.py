"""The directory of a run: ``summary.json``, ``report.html``, and for each policy and repeat its records and samples.

``prepare`` before anything runs, ``keep`` after each run, ``write`` at the end; ``render`` makes the report again. A disk
that is full costs files, never the table.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from andes_sglang import report, summary
from andes_sglang.flags import UsageError
from andes_sglang.request import RequestRecord, read_records, write_records

__all__ = ["Progress", "add_out", "directory", "keep", "made_by", "prepare", "render", "save", "write"]

LOG_EVERY_S = 10.0
"""Between two lines of progress in a log: a minute of benchmark is half a screen."""


RESULTS = ("summary.json", "plan.json")
"""Either says that a directory holds a run."""
FILES = (*RESULTS, "report.html", "plan.html", "records-*.jsonl.gz", "samples-*.json")
"""Of a run; what else is there stays."""


class Progress:
    """One line rewritten on a terminal; a line every ten seconds in a log."""

    def __init__(self, label: str) -> None:
        self.label = label
        self.last_s = -math.inf

    def __call__(self, text: str) -> None:
        if sys.stderr.isatty():
            print(f"\r\x1b[K{self.label}: {text}", end="", file=sys.stderr, flush=True)
        elif time.monotonic() - self.last_s >= LOG_EVERY_S:
            self.last_s = time.monotonic()
            print(f"{self.label}: {text}", file=sys.stderr, flush=True)


def add_out(parser: argparse.ArgumentParser, default: str) -> None:
    """``--out`` and ``--force``, as :func:`prepare` takes them."""
    parser.add_argument(
        "--out", type=Path, default=Path(default), help="directory for the results; default: %(default)s"
    )
    parser.add_argument("--force", action="store_true", help="replace the results of an earlier run in --out")


def prepare(out: Path, *, force: bool) -> None:
    """Make ``out``, or empty it of an earlier run where ``force`` says so. Raises :class:`UsageError` for one that holds a
    run otherwise, and for one that cannot be: call it before anything runs, and after all else that can be refused."""
    directory(out)
    if force:
        for file in (file for pattern in FILES for file in out.glob(pattern)):
            file.unlink()
    elif any((out / name).exists() for name in RESULTS):
        raise UsageError(f"--out {out}: holds the results of an earlier run; name another, or --force to replace them")
    if not os.access(out, os.W_OK):
        raise UsageError(f"--out {out}: cannot be written to")


def directory(out: Path) -> None:
    """Make ``out`` where it is missing. Raises :class:`UsageError`: call it before anything runs."""
    try:
        out.mkdir(parents=True, exist_ok=True)
    except FileExistsError:
        raise UsageError(f"--out {out}: is a file, and results are a directory") from None
    except OSError as error:
        raise UsageError(f"--out {out}: cannot be made ({error.strerror})") from None


def keep(
    out: Path, name: str, repeat: int, records: Sequence[RequestRecord], samples: Iterable[dict[str, float]]
) -> None:
    """Write records and samples of one run; ``open`` is added to samples without it: the requests open at that second. Where
    they cannot be written, a warning says so: figures need them no more."""
    points = list(samples)
    for point in points:
        if "open" not in point:
            point["open"] = sum(r.arrival_s <= point["at_s"] < (r.end_s or math.inf) for r in records)
    try:
        write_records(out / f"records-{name}-{repeat}.jsonl.gz", records)
        (out / f"samples-{name}-{repeat}.json").write_text(json.dumps(points))
    except OSError as error:
        print(f"\nwarning: --out {out}: no records of {name} there ({error.strerror})", file=sys.stderr)


def write(out: Path, result: dict[str, Any]) -> None:
    """Print the table, then write the summary, with what it was made by, and the report. Raises :class:`UsageError` where
    they cannot be written: the table has been seen by then."""
    print(summary.table(result["policies"]))
    if rows := summary.group_rows(result["policies"]):
        print(f"\n{summary.aligned(rows)}")
    if why := summary.failures(result["policies"]):
        print(f"\n{why}")
    sys.stdout.flush()
    save(out, {"summary.json": json.dumps({**result, "made_by": made_by()}, indent=1) + "\n"})
    try:
        render(out)
    except OSError as error:
        raise _unwritten(out, error) from None
    print(f"\n{out / 'summary.json'}\n{out / 'report.html'}")


def save(out: Path, files: Mapping[str, str]) -> None:
    """Write ``files`` by name, after what is in them has been printed. Raises :class:`UsageError` where that cannot be."""
    for name, text in files.items():
        try:
            (out / name).write_text(text)
        except OSError as error:
            if (out / name).is_file():
                (out / name).unlink()  # a part of it would pass for a run
            raise _unwritten(out, error) from None


def _unwritten(out: Path, error: OSError) -> UsageError:
    return UsageError(f"--out {out}: the results above cannot be written there ({error.strerror})")


def made_by() -> dict[str, Any]:
    """Version, command line, moment and machine."""
    return {
        "version": version("andes-sglang"),
        "command": [Path(sys.argv[0]).name, *sys.argv[1:]],
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": {"cores": os.cpu_count(), "machine": platform.machine(), "python": platform.python_version()},
    }


def render(out: Path) -> None:
    """Make ``report.html`` from the summary and the first repeat of each policy. Raises :class:`UsageError` for a directory
    without a run, :class:`~andes_sglang.request.RecordsError` for damaged records."""
    result = _read_json(out / "summary.json")
    if not (isinstance(result, dict) and result.get("policies") and {"workload", "engine"} <= result.keys()):
        raise UsageError(f"{out / 'summary.json'}: not a summary (it needs workload, engine and policies)")
    records, samples = {}, {}
    for name in result["policies"]:
        file = out / f"records-{name}-1.jsonl.gz"
        if file.exists():
            records[name] = read_records(file)
        points = out / f"samples-{name}-1.json"
        samples[name] = _read_json(points) if points.exists() else []
    (out / "report.html").write_text(report.render(result, records, samples))


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text())
    except OSError as error:
        raise UsageError(f"{path.parent}: no results there ({error.strerror})") from None
    except ValueError as error:
        raise UsageError(f"{path}: not JSON ({error})") from None
