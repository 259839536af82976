"""The directory of a run: ``summary.json``, ``report.html``, and for each policy and repeat its records and samples."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from andes_sglang import report, summary
from andes_sglang.request import RequestRecord, read_records, write_records
from andes_sglang.workload import WorkloadError

__all__ = ["Progress", "directory", "keep", "render", "write"]


class Progress:
    """One line rewritten on a terminal; a line every ten seconds in a log."""

    def __init__(self, label: str) -> None:
        self.label = label
        self.last_s = -10.0

    def __call__(self, text: str) -> None:
        if sys.stderr.isatty():
            print(f"\r\x1b[K{self.label}: {text}", end="", file=sys.stderr, flush=True)
        elif time.monotonic() - self.last_s >= 10:
            self.last_s = time.monotonic()
            print(f"{self.label}: {text}", file=sys.stderr, flush=True)


def directory(out: Path) -> None:
    """Make ``out`` where it is missing, before anything is run for it."""
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise WorkloadError(f"--out {out}: cannot be made ({error.strerror})") from None


def keep(
    out: Path, name: str, repeat: int, records: Sequence[RequestRecord], samples: Iterable[dict[str, float]]
) -> None:
    """Write what one run left behind; to each sample the number of requests open then is added."""
    write_records(out / f"records-{name}-{repeat}.jsonl.gz", records)
    points = list(samples)
    for point in points:
        point.setdefault("open", sum(r.arrival_s <= point["at_s"] < (r.end_s or 1e18) for r in records))
    (out / f"samples-{name}-{repeat}.json").write_text(json.dumps(points))


def write(out: Path, result: dict[str, Any]) -> None:
    """Write the summary and the report, and print the table."""
    (out / "summary.json").write_text(json.dumps(result, indent=1) + "\n")
    render(out)
    print(summary.table(result["policies"]))
    print(f"\n{out / 'summary.json'}\n{out / 'report.html'}")


def render(out: Path) -> None:
    """Make ``report.html`` from the summary and the first repeat of each policy."""
    try:
        result = json.loads((out / "summary.json").read_text())
    except OSError as error:
        raise WorkloadError(f"{out}: no results there ({error.strerror})") from None
    except ValueError as error:
        raise WorkloadError(f"{out / 'summary.json'}: not JSON ({error})") from None
    records, samples = {}, {}
    for name in result["policies"]:
        file = out / f"records-{name}-1.jsonl.gz"
        if file.exists():
            records[name] = read_records(file)
        points = out / f"samples-{name}-1.json"
        samples[name] = json.loads(points.read_text()) if points.exists() else []
    (out / "report.html").write_text(report.render(result, records, samples))
