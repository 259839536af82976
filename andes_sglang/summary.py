"""From records to the figures of ``summary.json``, and the table of them.

``summarise(records)`` for a run in memory; ``Figures().add(record)`` one by one in constant memory; ``combine`` over repeats;
``table`` as text.

Definitions: a request's QoE is scored from its deliveries to the client; a failed or shed request scores 0 and counts.
TTFT runs from the scheduled arrival, ITL is each gap between two deliveries. A stall is time the reader waits inside the
answer. Backlog: requests still open when the last one arrived; they count with the QoE they got in the end.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from andes_sglang.group_figures import GroupFigures
from andes_sglang.request import RequestRecord

__all__ = [
    "INTERRUPTED",
    "Figures",
    "aligned",
    "cells",
    "combine",
    "group_rows",
    "host_line",
    "remarks",
    "summarise",
    "table",
]

Summary = dict[str, Any]
MAX_ROWS = 100_000
"""Requests kept for quantiles: some 30 MB of rows."""
MAX_REASONS = 10
"""Reasons for failures that are kept, the most frequent."""
GOOD_QOE, PERFECT_QOE = 0.95, 0.99
"""Thresholds of the shares reported: that of the evaluation in arXiv 2404.16283, and practically perfect."""
REFUSALS = ("HTTP 429", "HTTP 503")
"""How the error of a request begins that a full server did not take."""
INTERRUPTED = "interrupted"
"""The error of a request that was open when the replay was ended by hand."""
_MIN_GAP_S = 2.0**-20
"""Shorter gaps count as this one: a microsecond, below what a clock of a client tells apart."""
_GAP_BITS = 44
"""Bits of a double below the 8 leading ones of its fraction: 256 steps per doubling, each 0.4 % wide at most."""
_GAP_DOUBLINGS = 40
"""From 1 us to 12 days."""
_FIRST_GAP = int(np.float64(_MIN_GAP_S).view(np.int64)) >> _GAP_BITS
_GAP_ARRAYS = 64
"""Requests whose gaps are counted in one go: numpy's cost per call is then small."""


class _Row(NamedTuple):
    qoe: float
    ttft_s: float
    longest_stall_s: float
    arrival_s: float
    end_s: float
    prompt_tokens: int


class Figures:
    """The figures of one run, from its records one by one in constant memory: those of readers. Requests that yield have
    none, and are told apart (``offline``); where there are no others, the figures are theirs.

    Quantiles are exact up to ``MAX_ROWS`` requests; beyond, they are those of every 2nd, 4th, ... request. Gaps between
    deliveries are counted in 256 steps per doubling: by the leading bits of the number.
    """

    def __init__(self) -> None:
        self._rows: list[_Row] = []
        self._stride = 1
        self._gaps: npt.NDArray[np.int64] = np.zeros(_GAP_DOUBLINGS * 256, dtype=np.int64)
        self._uncounted: list[npt.NDArray[np.float64]] = []
        self.requests = self.failed = self.tokens = 0
        self._qoe_sum = self._stall_sum = self._effective = self._lag_s = self._last_s = 0.0
        self._good = self._perfect = 0
        self._first_s = self._last_arrival_s = -1.0
        self._engine = dict.fromkeys(("preemptions", "recomputed_tokens", "retractions"), 0)
        self._engine_known = True
        self._failures: Counter[str] = Counter()
        self._groups = {"by_class": GroupFigures(), "by_tenant": GroupFigures()}
        self._offline: Figures | None = None

    def add(self, record: RequestRecord) -> None:
        """Count one finished request."""
        if record.yields:
            self._offline = self._offline or Figures()
            self._offline._count(record)
        else:
            self._count(record)

    def _count(self, record: RequestRecord) -> None:
        times_s = record.token_times_s
        score = record.score()
        qoe = 0.0 if record.error else score.qoe
        if self.requests % self._stride == 0:
            end_s = float(times_s[-1]) if len(times_s) else record.end_s
            self._rows.append(
                _Row(qoe, record.ttft_s, score.longest_stall_s, record.arrival_s, end_s, record.prompt_tokens)
            )  # fmt: skip
            if len(self._rows) > MAX_ROWS:
                self._rows = self._rows[::2]
                self._stride *= 2
        self.requests += 1
        if record.error is not None:
            self.failed += 1
            self._failures[record.error] += 1
        self._qoe_sum += qoe
        self._good += qoe >= GOOD_QOE
        self._perfect += qoe >= PERFECT_QOE
        self._stall_sum += score.stall_s
        self._effective += score.effective_tokens
        self._lag_s = max(self._lag_s, record.sent_s - record.arrival_s)
        self._first_s = record.arrival_s if self._first_s < 0 else min(self._first_s, record.arrival_s)
        self._last_arrival_s = max(self._last_arrival_s, record.arrival_s)
        if len(times_s):
            self.tokens += len(times_s)
            self._last_s = max(self._last_s, float(times_s[-1]))
        at_s = times_s if len(record.deliveries) == len(times_s) else np.array([at for at, _ in record.deliveries])
        if len(at_s) > 1:
            self._uncounted.append(at_s[1:] - at_s[:-1])
            if len(self._uncounted) == _GAP_ARRAYS:
                self._count_gaps()
        counts = record.preemptions, record.recomputed_tokens, record.retractions
        self._engine_known &= None not in counts
        self._groups["by_class"].add(record.reader_class, qoe, record.ttft_s, failed=record.error is not None)
        self._groups["by_tenant"].add(record.tenant, qoe, record.ttft_s, failed=record.error is not None)
        if counts != (0, 0, 0):
            self._engine = {name: n + (more or 0) for (name, n), more in zip(self._engine.items(), counts)}

    def _count_gaps(self) -> None:
        if self._uncounted:
            gaps_s = np.maximum(np.concatenate(self._uncounted), _MIN_GAP_S)
            steps = (gaps_s.view(np.int64) >> _GAP_BITS) - _FIRST_GAP
            self._gaps += np.bincount(np.minimum(steps, len(self._gaps) - 1), minlength=len(self._gaps))
            self._uncounted = []

    @property
    def counted(self) -> int:
        """Requests of both kinds."""
        return self.requests + (self._offline.requests if self._offline else 0)

    @property
    def mean_qoe(self) -> float:
        return self._qoe_sum / max(self.requests, 1)

    def _itl_s(self, share: float) -> float | None:
        self._count_gaps()
        total = int(self._gaps.sum())
        if not total:
            return None
        at = int(np.searchsorted(np.cumsum(self._gaps), share * total))
        return float(np.int64((2 * (at + _FIRST_GAP) + 1) << (_GAP_BITS - 1)).view(np.float64))

    def summary(self) -> Summary:
        """The figures so far; at least one record has been added."""
        if self._offline and not self.requests:
            return self._offline.summary()
        columns = dict(zip(_Row._fields, np.array(self._rows, dtype=np.float64).T, strict=True))
        n = max(self.requests, 1)
        span_s = max(self._last_s - max(self._first_s, 0.0), 1e-9)
        known = self._engine_known
        return {
            "requests": self.requests,
            "failed": self.failed,
            "failures": dict(self._failures.most_common(MAX_REASONS)),
            "qoe": {
                "mean": self.mean_qoe,
                "p5": float(np.percentile(columns["qoe"], 5)),
                "share_ge_095": self._good / n,
                "share_ge_099": self._perfect / n,
                "by_prompt_length": _by_prompt_length(columns),
            },
            "ttft_s": {f"p{p}": float(np.percentile(columns["ttft_s"], p)) for p in (50, 90, 99)},
            "itl_s": {"p50": self._itl_s(0.5), "p99": self._itl_s(0.99)},
            "stall_s": {
                "mean": self._stall_sum / n,
                "longest_p90": float(np.percentile(columns["longest_stall_s"], 90)),
            },
            "tokens_per_s": self.tokens / span_s,
            "effective_tokens_per_s": self._effective / span_s,
            "backlog_requests": int(np.count_nonzero(columns["end_s"] > self._last_arrival_s)) * self._stride,
            "preemptions_per_request": self._engine["preemptions"] / n if known else None,
            "recomputed_tokens": self._engine["recomputed_tokens"] if known else None,
            "retractions": self._engine["retractions"] if known else None,
            "client_lag_s": {"max": self._lag_s},
            **{key: groups.summary() for key, groups in self._groups.items() if len(groups)},
            **({"offline": self._offline.work()} if self._offline else {}),
        }

    def work(self) -> Summary:
        """Without what a reader makes of it."""
        return {
            "requests": self.requests,
            "failed": self.failed,
            "tokens_per_s": self.tokens / max(self._last_s - max(self._first_s, 0.0), 1e-9),
        }


def _by_prompt_length(columns: Mapping[str, npt.NDArray[np.float64]]) -> dict[str, float | None]:
    """Mean QoE of the shorter half of prompts, of the longest tenth, and of those between."""
    half, most = np.percentile(columns["prompt_tokens"], [50, 90])
    short, long = columns["prompt_tokens"] <= half, columns["prompt_tokens"] >= most
    groups = {"shortest_half": short & ~long, "middle": ~short & ~long, "longest_tenth": long}
    return {name: float(columns["qoe"][rows].mean()) if rows.any() else None for name, rows in groups.items()}


BY_GROUP = {"by_class": "class", "by_tenant": "tenant"}
"""Figures by group in a summary, and what a group is called."""


def summarise(
    records: Iterable[RequestRecord], before: Mapping[str, float] | None = None, after: Mapping[str, float] | None = None
) -> Summary:  # fmt: skip
    """Figures of one run of at least one record. before, after: the engine's metrics around it (samples by name with labels,
    as :func:`andes_sglang.bench.engine.read_metrics` reads them), for what a client's records cannot tell."""
    figures = Figures()
    for record in records:
        figures.add(record)
    summary = figures.summary()
    counters, earlier = after or {}, before or {}

    def counted(name: str) -> float | None:
        found = {k: v for k, v in counters.items() if k.split("{")[0] == name}
        return sum(v - earlier.get(k, 0.0) for k, v in found.items()) if found else None

    if any(k.startswith("andes_policy_info") for k in counters):
        summary["preemptions_per_request"] = (counted("andes_preemptions_total") or 0.0) / figures.counted
        summary["recomputed_tokens"] = counted("andes_recomputed_tokens_total")
        summary["retractions"] = counted("andes_retractions_total")
    if capacity := counters.get('andes_host_tokens{what="capacity"}'):
        summary["host"] = {name: counted(f"andes_host_{name}_total") for name in _HOST_COUNTERS}
        summary["host"]["fill"] = counters['andes_host_tokens{what="used"}'] / capacity
        for way in ("write", "load"):
            key = f'andes_host_copied_bytes_total{{direction="{way}"}}'
            summary["host"][f"{way}_bytes"] = counters[key] - earlier.get(key, 0.0)
    return summary


_HOST_COUNTERS = ("hit_tokens", "ahead_tokens", "refused_tokens", "copy_seconds", "wait_seconds")


def combine(runs: Sequence[Summary]) -> Summary:
    """The mean over repeats of every figure, with the repeats themselves (``repeats``) and their sample standard deviation
    (``std``; None for one repeat). Requests and failures are summed."""
    return {
        **_over(runs, lambda values: float(np.mean(values))),
        "repeats": list(runs),
        "std": _over(runs, lambda values: float(np.std(values, ddof=1)) if len(values) > 1 else None),
    }


def _over(runs: Sequence[Summary], statistic: Callable[[list[float]], float | None]) -> Summary:
    out: Summary = {}
    for key, value in runs[0].items():
        if key in BY_GROUP:
            out[key] = _over_groups([run.get(key, {}) for run in runs], statistic)
        elif key == "failures":
            reasons = sum((Counter(run.get(key, {})) for run in runs), Counter[str]())
            out[key] = dict(reasons.most_common(MAX_REASONS))
        elif isinstance(value, dict):
            out[key] = _over([run[key] for run in runs if key in run], statistic)
        else:
            values = [run[key] for run in runs if run[key] is not None]
            out[key] = statistic(values) if values else None
    _sum_counts(out, runs)
    return out


def _over_groups(runs: Sequence[Summary], statistic: Callable[[list[float]], float | None]) -> Summary:
    """Of each group over the runs that have it."""
    names = sorted({name for run in runs for name in run})
    return {name: _over([run[name] for run in runs if name in run], statistic) for name in names}


def _sum_counts(out: Summary, runs: Sequence[Summary]) -> None:
    for key in ("requests", "failed", "interrupted"):
        if key in out and out[key] is not None and all(isinstance(run[key], int) for run in runs):
            out[key] = sum(run[key] for run in runs)


_COLUMNS = (
    ("QoE mean", ("qoe", "mean"), ".3f"),
    ("p5", ("qoe", "p5"), ".3f"),
    (">=0.95", ("qoe", "share_ge_095"), ".0%"),
    ("long prompts", ("qoe", "by_prompt_length", "longest_tenth"), ".3f"),
    ("TTFT p50 s", ("ttft_s", "p50"), ".2f"),
    ("p90 s", ("ttft_s", "p90"), ".2f"),
    ("ITL p99 s", ("itl_s", "p99"), ".2f"),
    ("stall p90 s", ("stall_s", "longest_p90"), ".1f"),
    ("tokens/s", ("tokens_per_s",), ".0f"),
    ("effective", ("effective_tokens_per_s",), ".0f"),
    ("preempt/req", ("preemptions_per_request",), ".2f"),
    ("recomputed", ("recomputed_tokens",), ".0f"),
    ("backlog", ("backlog_requests",), ".0f"),
    ("failed", ("failed",), ".0f"),
)


def cells(summary: Summary) -> list[tuple[str, str]]:
    """Heading and text of every column of the table, with the spread over repeats where there is one."""
    texts = _texts(_COLUMNS, summary, summary.get("std", {}))
    return [(title, text) for (title, _, _), text in zip(_COLUMNS, texts, strict=True)]


def _texts(columns: Sequence[tuple[str, tuple[str, ...], str]], summary: Summary, std: Summary) -> list[str]:
    texts = []
    for title, path, form in columns:
        value, spread = _at(summary, path), _at(std, path)
        text = "-" if value is None else format(value, form)
        if spread is not None and title not in ("failed", "requests") and value is not None:
            text += f" ±{format(spread, form)}"
        texts.append(text)
    return texts


def _at(summary: Summary, path: Sequence[str]) -> Any:
    """None where the figure is missing, as in summaries of older versions."""
    value: Any = summary
    for key in path:
        value = value.get(key) if isinstance(value, dict) else None
    return value


def host_line(summary: Summary) -> str | None:
    """What went to host memory and back, as a sentence; None for an engine without a host tier."""
    if (host := summary.get("host")) is None:
        return None
    hidden_s = max(0.0, host["copy_seconds"] - host["wait_seconds"])
    recomputed, ahead = summary["recomputed_tokens"] or 0.0, host.get("ahead_tokens") or 0.0
    return (
        f"{host['write_bytes'] / 2**20:.1f} MiB copied to host memory, {host['load_bytes'] / 2**20:.1f} MiB back "
        f"({host['hit_tokens']:.0f} tokens loaded instead of computed, {ahead:.0f} of them ahead of the admission, "
        f"{recomputed:.0f} computed again); copies took "
        f"{hidden_s:.2f} s beside the engine and {host['wait_seconds']:.2f} s of it; host memory {host['fill']:.0%} full at "
        f"the end, {host['refused_tokens']:.0f} tokens found no room."
    )


_GROUP_COLUMNS = (
    ("requests", ("requests",), ".0f"),
    ("QoE mean", ("qoe", "mean"), ".3f"),
    ("p5", ("qoe", "p5"), ".3f"),
    ("TTFT p50 s", ("ttft_s", "p50"), ".2f"),
    ("p90 s", ("ttft_s", "p90"), ".2f"),
    ("failed", ("failed",), ".0f"),
)


def group_rows(policies: Mapping[str, Summary]) -> list[list[str]]:
    """A heading, then a row for each class and tenant under each policy; empty where requests have neither."""
    rows = []
    for key, noun in BY_GROUP.items():
        for group in sorted({name for summary in policies.values() for name in summary.get(key, {})}):
            for policy, summary in policies.items():
                if group in summary.get(key, {}):
                    figures = summary[key][group]
                    spread = _at(summary, ("std", key, group)) or {}
                    rows.append([f"{noun} {group}", policy, *_texts(_GROUP_COLUMNS, figures, spread)])
    return [["", "policy", *(title for title, _, _ in _GROUP_COLUMNS)], *rows] if rows else []


def table(policies: Mapping[str, Summary]) -> str:
    """One line a policy, aligned."""
    rows = [["", *(title for title, _, _ in _COLUMNS)]]
    rows += [[name, *(text for _, text in cells(summary))] for name, summary in policies.items()]
    return aligned(rows)


def remarks(policies: Mapping[str, Summary]) -> str:
    """Below the table: why requests failed, apart those that the server refused as full and those that were open when the run
    was ended by hand; and what was done without a reader."""
    lines = []
    for name, summary in policies.items():
        for reason, count in summary.get("failures", {}).items():
            lines.append(f"{name}: {count} {'refused' if reason.startswith(REFUSALS) else 'failed'}: {reason}")
        if cut := summary.get("interrupted"):
            lines.append(f"{name}: {cut:.0f} interrupted, in no figure")
        if work := summary.get("offline"):
            failed = f", {work['failed']:.0f} failed" if work["failed"] else ""
            speed = f"{work['tokens_per_s']:.0f} tokens/s"
            lines.append(
                f"{name}: {work['requests']:.0f} requests without a reader, {speed}{failed}, in no figure above"
            )
    return "\n".join(lines)


def aligned(rows: Sequence[Sequence[str]]) -> str:
    """Columns of equal width, the first to the left, the others to the right."""
    widths = [max(len(row[k]) for row in rows) for k in range(len(rows[0]))]
    return "\n".join(
        "  ".join(cell.rjust(w) if k else cell.ljust(w) for k, (cell, w) in enumerate(zip(row, widths, strict=True)))
        for row in rows
    )
