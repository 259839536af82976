"""The directory of a run: ``summary.json``, ``report.html``, and for each policy and repeat its records and samples.

``prepared`` around a run, ``keep`` after each replay, ``write`` at the end; ``render`` makes the report again. A disk
that is full costs files, never the table.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import math
import os
import platform
import re
import shutil
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

from andes_sglang import report, summary
from andes_sglang.flags import UsageError
from andes_sglang.request import RequestRecord, read_records, write_records

__all__ = [
    "POINTS", "Progress", "Run", "add_out", "directory", "draw", "keep", "made_by", "prepared", "read", "render", "save",
    "say", "write",
]  # fmt: skip

LOG_EVERY_S = 10.0
"""Between two lines of progress in a log: a minute of benchmark is half a screen."""


RESULTS = ("summary.json", "plan.json", "sweep.json")
"""Each says that a directory holds a run."""
PARTS = ("workload", "engine", "policies")
"""Of ``summary.json``."""
POINTS = "points"
"""Of a sweep: a directory for each of its simulations."""
FILES = (*RESULTS, "report.html", "plan.html", "sweep.html", "records-*.jsonl.gz", "samples-*.json")
"""Of a run; what else is there stays."""
EARLIER = ".earlier"
"""Where a run that is to be replaced waits until the new one has results."""
SECRET = re.compile(r"--[a-z-]*(api-key|password|secret)")
"""Flags whose values are in no result."""


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
    parser.add_argument(
        "--json", action="store_true", help="print the results as JSON, and the table to standard error"
    )


def say(text: str, result: Any, *, as_json: bool) -> None:
    """Print ``text``, or ``result`` as JSON to standard output and ``text`` beside it."""
    print(text, file=sys.stderr if as_json else sys.stdout)
    if as_json:
        print(json.dumps(result, indent=1))
    sys.stdout.flush()


@contextlib.contextmanager
def prepared(out: Path, *, force: bool) -> Iterator[None]:
    """Make ``out`` for a run that writes into it meanwhile. Where ``force`` says so, an earlier run there goes when the new
    one has results, and stays where it comes to none. Raises :class:`UsageError` for a directory that holds a run otherwise,
    and for one that cannot be: enter it before anything runs, and after all else that can be refused."""
    directory(out)
    if not os.access(out, os.W_OK):
        raise UsageError(f"--out {out}: cannot be written to")
    _settle(out)  # after a run that was killed
    if _holds_a_run(out) and not force:
        raise UsageError(f"--out {out}: holds the results of an earlier run; name another, or --force to replace them")
    if force:
        _move(out, out / EARLIER)
    try:
        yield
    finally:
        _settle(out)


def _holds_a_run(out: Path) -> bool:
    return any((out / name).exists() for name in RESULTS)


def _settle(out: Path) -> None:
    """Of a new run and the one that was set aside for it, the new one stays if it has results."""
    earlier = out / EARLIER
    if not earlier.is_dir():
        return
    if not _holds_a_run(out):
        for file in (*_files(out), *(out / name.name for name in _files(earlier))):
            _remove(file)
        _move(earlier, out)
    _remove(earlier)


def _files(out: Path) -> list[Path]:
    """Of the run that ``out`` holds."""
    points = [out / POINTS] if (out / "sweep.json").exists() else []
    return [file for pattern in FILES for file in out.glob(pattern)] + points


def _move(source: Path, target: Path) -> None:
    for file in _files(source):
        try:
            target.mkdir(exist_ok=True)
            file.rename(target / file.name)
        except OSError as error:
            raise UsageError(f"{file}: cannot be moved to {target} ({error.strerror})") from None


def _remove(path: Path) -> None:
    with contextlib.suppress(OSError):
        shutil.rmtree(path) if path.is_dir() else path.unlink()


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


def write(out: Path, result: dict[str, Any], *, as_json: bool = False) -> None:
    """Print the table, then write the summary, with what it was made by, and the report. Raises :class:`UsageError` where
    they cannot be written: the table has been seen by then."""
    result = {**result, "made_by": made_by()}
    policies = result["policies"]
    groups = summary.group_rows(policies)
    parts = [summary.table(policies), summary.aligned(groups) if groups else "", summary.remarks(policies)]
    say("\n\n".join(filter(None, parts)), result, as_json=as_json)
    save(out, {"summary.json": json.dumps(result, indent=1) + "\n"})
    try:
        render(out)
    except OSError as error:
        raise _unwritten(out, error) from None
    print(f"\n{out / 'summary.json'}\n{out / 'report.html'}", file=sys.stderr if as_json else sys.stdout)


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
    """Version, command line without its secrets, moment and machine."""
    return {
        "version": version("andes-sglang"),
        "command": [Path(sys.argv[0]).name, *_without_secrets(sys.argv[1:])],
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": {"cores": os.cpu_count(), "machine": platform.machine(), "python": platform.python_version()},
    }


def _without_secrets(words: Sequence[str]) -> list[str]:
    """Results are handed on: values of ``SECRET`` flags, and credentials in URLs, are left out."""
    told = []
    for before, word in zip(["", *words], words):
        flag, is_set, _ = word.partition("=")
        if SECRET.fullmatch(before):
            told.append("...")
        elif is_set and SECRET.fullmatch(flag):
            told.append(f"{flag}=...")
        else:
            told.append(re.sub(r"//[^/@\s]+@", "//...@", word))
    return told


class Run(NamedTuple):
    """What a directory holds. repeats: records of each repeat of each policy; samples: the gauges of the first."""

    summary: dict[str, Any]
    repeats: dict[str, list[list[RequestRecord]]]
    samples: dict[str, list[dict[str, float]]]

    @property
    def of_readers(self) -> dict[str, list[list[RequestRecord]]]:
        """``repeats`` without what yields, whose figures are told apart; all where there is nothing else."""
        return {name: [[r for r in run if not r.yields] or run for run in runs] for name, runs in self.repeats.items()}

    @property
    def records(self) -> dict[str, list[RequestRecord]]:
        """Readers' of the first repeat."""
        return {name: runs[0] for name, runs in self.of_readers.items()}


def read(out: Path) -> Run:
    """Raises :class:`UsageError` for a directory without a run, :class:`~andes_sglang.request.RecordsError` for damaged
    records."""
    result = _read_json(out / "summary.json")
    parts: list[Any] = [result.get(name) for name in PARTS] if isinstance(result, dict) else [None]
    if not (all(isinstance(part, dict) for part in parts) and _are_policies(parts[-1])):
        raise UsageError(f"{out / 'summary.json'}: not a summary (it needs workload, engine and policies)")
    if not isinstance(result.get("made_by", {}), dict):
        raise UsageError(f"{out / 'summary.json'}: made_by: expected an object, got {result['made_by']!r:.50}")
    repeats, samples = {}, {}
    for name in result["policies"]:
        files = itertools.takewhile(Path.exists, (out / f"records-{name}-{k}.jsonl.gz" for k in itertools.count(1)))
        if runs := [read_records(file) for file in files]:
            repeats[name] = runs
        points = out / f"samples-{name}-1.json"
        samples[name] = _read_json(points) if points.exists() else []
    return Run(result, repeats, samples)


def render(out: Path) -> Path:
    """Make ``report.html`` of the run in ``out``; where it lies. Raises as :func:`read` does."""
    run = read(out)
    page = out / "report.html"
    page.write_text(report.render(run.summary, run.records, run.samples, repeats=run.of_readers))
    return page


def draw(out: Path) -> list[Path]:
    """Make the charts of the report as files of their own, ``figures/*.svg``, with their captions in ``captions.md``; where
    they lie. Raises as :func:`read` does."""
    run = read(out)
    key, source = report.colours_of(run.records), report.made_by(run.summary)
    folder = out / "figures"
    folder.mkdir(exist_ok=True)
    files, captions = [], []
    for part, drawn in report.figures(run.records, run.samples, repeats=run.of_readers).items():
        for number, figure in enumerate(drawn, start=1):
            files.append(folder / f"{part.replace('_', '-')}-{number}.svg")
            files[-1].write_text(report.standalone(figure.svg, {} if part == "timeline" else key))
            captions.append(
                f"- `{files[-1].name}`: {figure.caption} {run.summary['workload']['name']}. Made by: `{source}`."
            )
    (folder / "captions.md").write_text("\n".join(captions) + "\n")
    return [*files, folder / "captions.md"]


def _are_policies(policies: dict[str, Any]) -> bool:
    """With figures of the QoE under each, without which there is nothing to tell."""
    return bool(policies) and all(
        isinstance(one, dict) and isinstance(one.get("qoe"), dict) for one in policies.values()
    )


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text())
    except OSError as error:
        raise UsageError(f"{path.parent}: no results there ({error.strerror})") from None
    except ValueError as error:
        raise UsageError(f"{path}: not JSON ({error})") from None
