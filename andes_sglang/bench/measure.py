"""One replay, or several at the same time, with the figures of each and samples of the engine's gauges."""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from andes_sglang import results, summary
from andes_sglang.bench.client import replay, run_replays
from andes_sglang.bench.engine import read_metrics
from andes_sglang.flags import UsageError
from andes_sglang.request import RequestRecord
from andes_sglang.workload import SyntheticWorkload, Workload

__all__ = ["Measured", "ReplayOptions", "client_machine", "measure", "parse_vocabulary"]

SAMPLE_TIMEOUT_S = 2.0
"""For one reading of the metrics: an engine in a long prefill answers late, and a sample is due every second."""
GAUGES = {
    "sglang:num_queue_reqs": "queue",
    "sglang:num_running_reqs": "running",
    "sglang:token_usage": "kv_usage",
}
"""SGLang 0.5.17's gauges by metric, and what samples call them."""


@dataclass(frozen=True, slots=True)
class ReplayOptions:
    """vocabulary: lowest and highest token id of prompts. send_expectations: tell the server what readers expect. chat:
    over chat completions. model: None for the first that a server lists."""

    seed: int
    vocabulary: tuple[int, int] = (10, 1000)
    send_expectations: bool = True
    api_key: str | None = None
    chat: bool = False
    model: str | None = None


class Measured(NamedTuple):
    """What one replay left: its records, its figures, samples of the engine's gauges, one a second, and whether a signal
    ended it."""

    records: list[RequestRecord]
    figures: dict[str, Any]
    samples: list[dict[str, float]]
    interrupted: bool = False


def parse_vocabulary(text: str) -> tuple[int, int]:
    """``LOW-HIGH`` token ids. Raises :class:`UsageError`."""
    low, _, high = text.partition("-")
    if not (low.isdigit() and high.isdigit() and int(low) < int(high)):
        raise UsageError(f"--vocabulary {text!r}: expected LOW-HIGH token ids")
    return int(low), int(high)


def client_machine() -> dict[str, Any]:
    """The machine that measures, for ``summary.json``."""
    return {"cores": os.cpu_count(), "machine": platform.machine(), "python": platform.python_version()}


def measure(
    urls: dict[str, str], workload: Workload | SyntheticWorkload, options: ReplayOptions
) -> dict[str, Measured]:
    """Replay ``workload`` against each of ``urls`` (by label) at the same time. Ctrl-C ends all and keeps what was measured.
    Raises :class:`~andes_sglang.bench.client.EndpointError`, and ``KeyboardInterrupt`` where nothing had been."""
    samples: dict[str, list[dict[str, float]]] = {label: [] for label in urls}
    before = {label: read_metrics(url) for label, url in urls.items()}

    replays = [
        replay(url, workload, seed=options.seed, vocabulary=options.vocabulary, api_key=options.api_key,
               send_expectations=options.send_expectations, chat=options.chat, model=options.model,
               progress=results.Progress(label), sample=_sampler(url, samples[label]) if before[label] else None)
        for label, url in urls.items()
    ]  # fmt: skip
    runs, interrupted = run_replays(replays)
    if sys.stderr.isatty():
        print(file=sys.stderr)
    return {
        label: Measured(
            records, _figures(records, before[label], read_metrics(url)), samples[label], interrupted=interrupted
        )
        for (label, url), records in zip(urls.items(), runs, strict=True)
    }


def _figures(
    records: Sequence[RequestRecord], before: Mapping[str, float], after: Mapping[str, float]
) -> dict[str, Any]:
    """Of the requests that ended by themselves; ``interrupted``: how many did not. Raises ``KeyboardInterrupt`` where none
    did."""
    ended = [record for record in records if record.error != summary.INTERRUPTED]
    if not ended:
        raise KeyboardInterrupt
    return {**summary.summarise(ended, before, after), "interrupted": len(records) - len(ended)}


def _sampler(url: str, into: list[dict[str, float]]) -> Callable[[float], None]:
    """Appends a sample each time it is called; from one thread at a time."""

    def sample(at_s: float) -> None:
        point = {"at_s": at_s}
        for key, value in read_metrics(url, SAMPLE_TIMEOUT_S).items():
            if (name := GAUGES.get(key.split("{")[0])) is not None:
                point[name] = value
        into.append(point)

    return sample
