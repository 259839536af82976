"""``andes export``: the requests and figures of a run as tables for other tools, CSV or Parquet."""

from __future__ import annotations

import argparse
import csv
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from andes_sglang import results
from andes_sglang.flags import UsageError
from andes_sglang.request import RecordsError, RequestRecord

__all__ = ["USER_ERRORS", "add_arguments", "figure_rows", "request_rows"]

USER_ERRORS: tuple[type[Exception], ...] = (RecordsError,)
COUNTED = ("replica", "prefix_hit_tokens", "recomputed_tokens", "preemptions", "retractions")
Row = dict[str, Any]


def add_arguments(parser: argparse.ArgumentParser, _command: str) -> None:
    parser.description = _export.__doc__
    parser.add_argument("directory", type=Path, help="of a finished run: --out of bench, compare, score or simulate")
    parser.add_argument(
        "--format", choices=("csv", "parquet"), default="csv", help="parquet needs andes-sglang[parquet]"
    )
    parser.add_argument("--out", type=Path, help="directory for requests.* and figures.*; default: that of the run")
    parser.set_defaults(run=_export)


def request_rows(run: results.Run) -> Iterator[Row]:
    """A row for each request whose record is kept; times in seconds from the start of the run."""
    for policy, repeats in run.repeats.items():
        for repeat, records in enumerate(repeats, start=1):
            for record in records:
                yield {"policy": policy, "repeat": repeat, **_row(record)}


def _row(record: RequestRecord) -> Row:
    score, times_s = record.score(), record.token_times_s
    return {
        "index": record.index,
        "class": record.reader_class,
        "tenant": record.tenant,
        "yields": record.yields,
        "arrival_s": record.arrival_s,
        "sent_s": record.sent_s,
        "first_token_s": float(times_s[0]) if len(times_s) else None,
        "last_token_s": float(times_s[-1]) if len(times_s) else None,
        "end_s": record.end_s,
        "prompt_tokens": record.prompt_tokens,
        "output_tokens": record.output_tokens,
        "shown_tokens": len(times_s),
        "ttft_target_s": record.ttft_target_s,
        "tds": record.tds,
        "qoe": record.qoe,
        "ttft_s": record.ttft_s,
        "stalls": score.stalls,
        "stall_s": score.stall_s,
        "longest_stall_s": score.longest_stall_s,
        **{name: getattr(record, name) for name in COUNTED},
        "error": record.error,
    }


def figure_rows(run: results.Run) -> Iterator[Row]:
    """A row for each figure of each repeat of each policy; ``figure`` is its path in ``summary.json``, with dots."""
    for policy, combined in run.summary["policies"].items():
        for repeat, figures in enumerate(combined.get("repeats") or [combined], start=1):
            for name, value in _flat(figures):
                yield {"policy": policy, "repeat": repeat, "figure": name, "value": value}


def _flat(figures: dict[str, Any], before: str = "") -> Iterator[tuple[str, float]]:
    for name, value in figures.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{before}{name}.")
        elif isinstance(value, int | float):
            yield f"{before}{name}", float(value)


def _export(args: argparse.Namespace, rest: Sequence[str]) -> int:
    """Write the requests of a run, and its figures, as tables: requests.csv and figures.csv, or the same as Parquet."""
    if rest:
        raise UsageError(f"unknown argument {rest[0]!r}")
    run = results.read(args.directory)
    out = args.out or args.directory
    results.directory(out)
    write = {"csv": _write_csv, "parquet": _write_parquet}[args.format]
    for name, rows in (("requests", list(request_rows(run))), ("figures", list(figure_rows(run)))):
        file = out / f"{name}.{args.format}"
        if not rows:
            print(f"no {file}: the run has kept no {name}")
            continue
        try:
            write(file, rows)
        except OSError as error:
            raise UsageError(f"{file}: cannot be written ({error.strerror or error})") from None
        print(file)
    return 0


def _write_csv(file: Path, rows: Sequence[Row]) -> None:
    with file.open("w", newline="", encoding="utf-8") as text:
        table = csv.DictWriter(text, rows[0])
        table.writeheader()
        table.writerows(rows)


def _write_parquet(file: Path, rows: Sequence[Row]) -> None:
    try:
        import pyarrow
        from pyarrow import parquet
    except ModuleNotFoundError:
        raise UsageError("--format parquet needs pyarrow: install andes-sglang[parquet], or use csv") from None
    parquet.write_table(pyarrow.Table.from_pylist(list(rows)), file)
