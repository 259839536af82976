"""``andes profile``: time a live engine, or read what a benchmark recorded of one, and write its profile.

The load is made of unrelated prompts: alone and together, short and long, in batches that grow to what the engine holds, so
that every term of its costs shows. Costs are fitted to what the client saw; under one of our policies, decode costs are
those that the engine itself has fitted and publishes, because preemptions would blur the client's view.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import sys
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from andes_sglang import results
from andes_sglang.bench.client import EndpointError, replay, run_replays
from andes_sglang.bench.engine import read_metrics
from andes_sglang.flags import UsageError, base_url
from andes_sglang.qoe import QoETarget
from andes_sglang.request import RecordsError, RequestRecord, RequestSpec, read_records, write_records
from andes_sglang.sim.engine import Costs, EngineModel, Overlap
from andes_sglang.sim.fit import CostFit, FitError, TooFewError, fit_costs
from andes_sglang.sim.profile import Profile, dump
from andes_sglang.summary import INTERRUPTED
from andes_sglang.workload import Workload

__all__ = ["USER_ERRORS", "add_arguments", "costs_from_metrics", "load_for", "measure"]

USER_ERRORS = (FitError, EndpointError, RecordsError)
MAX_PUBLISHED_ERROR = 0.25
"""Relative error up to which costs that the engine publishes are taken; beyond, the client's view is the better one."""
DOUBTFUL_ERROR = 0.15
"""Median relative error of a fit above which the command warns: what a plan is then off by, about."""
LOAD_S = 60.0
"""Seconds; default of ``--seconds``."""
MIN_PROMPTS = 100
"""Of a load: three times what the fit needs of prefills (``andes_sglang.sim.fit``)."""
MIN_TOKENS, MAX_ANSWER_TOKENS = 16, 120
"""Shortest prompt and answer of the load; longest answer but that of the long request of a round."""
MAX_LOADS = 4
"""Of ``--seconds`` each: those after the first only where iterations of a kind were too few to fit."""
BETWEEN_LOADS_S = 1.0
"""In the records, from the end of one load to the start of the next."""
DECODE_STEPS_PER_S = 60
"""Of the long request: at this many it lasts for its round."""
ROUND_SHARES = (0.2, 0.5)
"""Of the KV pool that the prompts of a round fill; the rest is for the answers."""
STAGGER_S, STAGGER_SHARE = 0.02, 0.25
"""The first pair of a round comes this long after its long request; the last one after this share of the round."""
SERVER_INFO_TIMEOUT_S = 10


def add_arguments(parser: argparse.ArgumentParser, _command: str) -> None:
    """Add the flags of ``andes profile``."""
    parser.description = _profile.__doc__
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--url", help="base address of a live engine that does nothing else meanwhile")
    source.add_argument(
        "--records", type=Path, help="records of one stock run, as andes bench and andes compare leave them"
    )
    parser.add_argument("--out", type=Path, required=True, metavar="FILE.toml", help="the profile to write")
    parser.add_argument(
        "--hardware", default=f"{os.cpu_count()} cores, {platform.machine()}", help="what it runs on, as text"
    )
    parser.add_argument("--model", help="what it serves, as text; default: what the engine says")
    parser.add_argument(
        "--seconds", type=float, help=f"about how long to load the engine of --url; default: {LOAD_S:g}"
    )
    parser.add_argument("--kv-tokens", type=int, help="tokens of the KV pool, where the engine does not say")
    parser.add_argument("--max-running", type=int, help="most requests in a batch, where the engine does not say")
    parser.add_argument(
        "--chunk-tokens", type=int, help="prefill tokens of an iteration, where the engine does not say"
    )
    parser.add_argument("--start-s", type=float, default=60.0, help="cold start of a replica, s; default: 60")
    parser.add_argument("--price", type=float, help="price of one replica and hour, in any currency")
    parser.add_argument("--api-key", help="of the engine of --url, where it needs one")
    parser.set_defaults(run=_profile)


@dataclass(frozen=True, slots=True)
class _Sizes:
    """What the engine holds and how it batches; lengths in tokens."""

    model: str
    kv_capacity_tokens: int
    max_running: int
    chunk_tokens: int
    mixed: bool
    overlap: bool
    devices: int


def _server_info(url: str) -> Mapping[str, Any]:
    """SGLang's ``/server_info``; empty for another engine. Raises :class:`EndpointError` where nothing answers."""
    for path in ("/server_info", "/get_server_info"):
        try:
            with urllib.request.urlopen(url + path, timeout=SERVER_INFO_TIMEOUT_S) as answer:
                found = json.load(answer)
        except (urllib.error.HTTPError, ValueError):
            continue
        except OSError as error:
            why = getattr(error, "reason", error)
            raise EndpointError(
                f"--url {url}: nothing answers there ({getattr(why, 'strerror', None) or why})"
            ) from None
        if isinstance(found, dict):
            return found
    return {}


def _sizes(args: argparse.Namespace, info: Mapping[str, Any]) -> _Sizes:
    def size(flag: str, given: int | None, *names: str) -> int:
        value = given if given is not None else next((info[n] for n in names if info.get(n)), None)
        if not isinstance(value, int) or value < 1:
            raise FitError(
                f"{flag} must be a whole number > 0, got {value}"
                if value is not None
                else f"{flag} is needed: {'the engine does not say it' if args.url else 'records do not say it'}"
            )
        return value

    return _Sizes(
        args.model or str(info.get("served_model_name") or info.get("model_path") or "unknown"),
        size("--kv-tokens", args.kv_tokens, "max_total_num_tokens", "max_total_tokens"),
        size("--max-running", args.max_running, "max_running_requests"),
        size("--chunk-tokens", args.chunk_tokens, "chunked_prefill_size"),
        bool(info.get("enable_mixed_chunk")),
        not info.get("disable_overlap_schedule"),
        int(info.get("tp_size") or 1),
    )


def load_for(kv_capacity_tokens: int, max_running: int, chunk_tokens: int, seconds: float) -> Workload:
    """Rounds of requests, each with room in the KV pool, about ``seconds`` long in all.

    In a round one long answer keeps the engine busy while pairs of prompts of different lengths that fit a chunk together
    arrive, until the round's batch runs: this shows prefills of one and of two prompts, and decode steps of every batch size.
    """
    batches = [b for b in (1, 2, 4, 8, 16, 32, 64, 128, 256) if b < max_running]
    rounds = [(batch, share) for share in ROUND_SHARES for batch in batches]
    rounds *= -(-MIN_PROMPTS // max(1, sum(batch for batch, _ in rounds)))
    each_s = seconds / max(1, len(rounds))
    specs: list[RequestSpec] = []
    for number, (batch, share) in enumerate(rounds):
        answer = max(MIN_TOKENS, min(MAX_ANSWER_TOKENS, kv_capacity_tokens // (4 * batch)))
        prompt = int(min(chunk_tokens // 2, share * kv_capacity_tokens / batch - answer))
        if prompt < MIN_TOKENS:
            continue
        at_s = number * each_s
        long_answer = int(min(kv_capacity_tokens / 4, DECODE_STEPS_PER_S * each_s)) + MIN_TOKENS
        specs.append(RequestSpec(at_s, MIN_TOKENS, long_answer, QoETarget()))
        for k in range(batch):
            late_s = STAGGER_S + STAGGER_SHARE * each_s * (k // 2) / max(1, batch // 2)
            specs.append(RequestSpec(at_s + late_s, max(MIN_TOKENS, prompt * (k % 4 + 2) // 5), answer, QoETarget()))
    specs.sort(key=lambda spec: spec.arrival_s)
    return Workload("profiling load", tuple(specs))


def costs_from_metrics(metrics: Mapping[str, float], fitted: Costs) -> Costs | None:
    """``fitted`` with the decode costs that the engine publishes (``andes_cost_seconds``); None where it publishes none, or
    its own relative error of them is above 0.25."""

    def one(name: str, **labels: str) -> float | None:
        wanted = {f'{key}="{value}"' for key, value in labels.items()}
        return next((v for k, v in metrics.items() if k.startswith(name + "{") and all(w in k for w in wanted)), None)

    error = one("andes_cost_relative_error", stage="decode")
    terms = [one("andes_cost_seconds", stage="decode", per=per) for per in ("iteration", "request", "context_token")]
    fixed_s, request_s, context_s = terms
    if error is None or error > MAX_PUBLISHED_ERROR or fixed_s is None or request_s is None or context_s is None:
        return None
    return replace(fitted, decode_fixed_s=fixed_s, decode_request_s=request_s, decode_context_s=context_s)


def _profile(args: argparse.Namespace, rest: Sequence[str]) -> int:
    """Load a live engine for a minute, or read the records of a stock run, fit what its iterations cost, and write a profile
    for andes simulate, andes plan and andes serve --engine sim."""
    if rest:
        raise FitError(f"unknown argument {rest[0]!r}")
    _check(args)
    records: Sequence[RequestRecord]
    if args.url:
        url = base_url(args.url)
        info = _server_info(url)
        sizes = _sizes(args, info)
        load = load_for(sizes.kv_capacity_tokens, sizes.max_running, sizes.chunk_tokens, args.seconds or LOAD_S)
        records, fit = measure(lambda seed: _replay(url, load, seed, args.api_key), sizes.chunk_tokens, _kept(args.out))
        what = f"{url}: {len(records)} requests"
    else:
        url, records, what = "", read_records(args.records), f"records of {args.records.name}"
        sizes = _sizes(args, {})
        fit = fit_costs(records, chunk_tokens=sizes.chunk_tokens)
    published = costs_from_metrics(read_metrics(url), fit.costs) if url else None
    profile = _build(args, sizes, fit, published, what)
    _write(args.out, dump(profile))
    print(profile.source, file=sys.stderr)
    for stage, error in (("decode", fit.decode_error), ("prefill", fit.prefill_error)):
        if error > DOUBTFUL_ERROR:
            print(
                f"warning: {stage} costs have a median error of {error:.0%}; measure longer (--seconds), or with less "
                "other load on the machines of the engine and of this command",
                file=sys.stderr,
            )
    print(args.out)
    return 0


def measure(
    replayed: Callable[[int], Sequence[RequestRecord]], chunk_tokens: int, kept: Path
) -> tuple[list[RequestRecord], CostFit]:
    """Load after load, each with prompts of its own (``replayed(seed)``), until there is enough to fit costs to.

    All that was measured is in ``kept`` then, also where :class:`FitError` or :class:`EndpointError` is raised.
    """
    records: list[RequestRecord] = []
    for number in range(1, MAX_LOADS + 1):
        records += _after(records, replayed(number))
        try:
            write_records(kept, records)
        except OSError as error:
            print(f"warning: {kept} cannot be written ({error.strerror})", file=sys.stderr)
        interrupted = any(record.error == INTERRUPTED for record in records)
        if failed := [r for r in records if r.error not in (None, INTERRUPTED)]:
            raise EndpointError(f"{len(failed)} of {len(records)} requests failed, the first with {failed[0].error!r}")
        try:
            return records, fit_costs(records, chunk_tokens=chunk_tokens)
        except TooFewError as error:
            short = error
        if interrupted:
            break
        print(f"{short}: load {number} of at most {MAX_LOADS} is over", file=sys.stderr)
    raise FitError(
        f"{short}, in {number} load{'s'[: number > 1]}; the records are in {kept}. Measure longer (--seconds), from a "
        "machine that does nothing else; of a simulated engine, at a lower --speed"
    )


def _after(earlier: Sequence[RequestRecord], records: Sequence[RequestRecord]) -> list[RequestRecord]:
    """``records`` as those of a load that began when ``earlier`` had ended."""
    if not earlier:
        return list(records)
    by_s, count = max(r.end_s for r in earlier) + BETWEEN_LOADS_S, len(earlier)
    return [
        replace(
            r, index=r.index + count, arrival_s=r.arrival_s + by_s, sent_s=r.sent_s + by_s, end_s=r.end_s + by_s,
            deliveries=[(at_s + by_s, tokens) for at_s, tokens in r.deliveries],
        )
        for r in records
    ]  # fmt: skip


def _replay(url: str, load: Workload, seed: int, api_key: str | None) -> list[RequestRecord]:
    progress = results.Progress("profile")
    measured = replay(url, load, seed=seed, api_key=api_key, send_expectations=False, progress=progress)
    return run_replays([measured])[0][0]


def _kept(out: Path) -> Path:
    return out.with_name(f"{out.stem}-records.jsonl.gz")


def _write(out: Path, text: str) -> None:
    try:
        out.write_text(text)
    except OSError as error:
        print(text)
        raise UsageError(f"--out {out}: the profile above cannot be written there ({error.strerror})") from None


def _check(args: argparse.Namespace) -> None:
    """Raise for what would only be found after the engine was measured."""
    if args.out.suffix != ".toml":
        raise FitError(f"--out {str(args.out)!r}: a profile's name ends in .toml")
    if args.out.is_dir():
        raise UsageError(f"--out {args.out}: is a directory")
    for flag, given in (("--seconds", args.seconds), ("--api-key", args.api_key)):
        if given is not None and args.url is None:
            raise FitError(f"{flag}: goes with --url; nothing is measured with --records")
    for flag, value, least in (("--seconds", args.seconds, 1.0), ("--start-s", args.start_s, 0.0)):
        if value is not None and not least <= value < math.inf:
            raise FitError(f"{flag} must be a number of seconds >= {least:g}, got {value!r}")
    if args.price is not None and not 0 < args.price < math.inf:
        raise FitError(f"--price must be > 0, got {args.price!r}")
    results.directory(args.out.parent)


def _build(args: argparse.Namespace, sizes: _Sizes, fit: CostFit, published: Costs | None, what: str) -> Profile:
    overlap = Overlap.NONE if not sizes.overlap else Overlap.SYNC if fit.sends_late else Overlap.ASYNC
    try:
        engine = EngineModel(
            published or fit.costs,
            sizes.kv_capacity_tokens,
            max_running=sizes.max_running,
            chunk_tokens=sizes.chunk_tokens,
            mixed=sizes.mixed,
            overlap=overlap,
            devices=sizes.devices,
            entry_s=fit.entry_s,
        )
        source = (
            f"measured over {what}; {fit.decode_samples} decode steps (median error {fit.decode_error:.0%}"
            f"{', costs as the engine publishes them' if published else ''}) and {fit.prefill_samples} prefills "
            f"({fit.prefill_error:.0%})"
        )
        return Profile(
            args.out.stem, args.hardware, sizes.model, source, engine, start_s=args.start_s, price_per_hour=args.price
        )
    except ValueError as error:
        raise FitError(str(error)) from None
