"""Demand and QoE from a Prometheus that scrapes the gateways, as one :class:`~andes_operator.observe.GatewayReport`:
:func:`ask`.

The gateway's histogram of QoE has an edge at each of the usual thresholds, so shares above those are exact, and so is the
mean; percentiles are too low by up to a bucket, those of seconds too high. Lengths of requests are not in the metrics: the
target gives their means.
"""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

import aiohttp

from andes_operator.explain import explain
from andes_operator.gateway_report import FleetReplica, GatewayReport, ObservedRequest
from andes_operator.spec import DemandSource
from andes_sglang.sketch import BINS, DurationSketch, Sketch

__all__ = ["NoSamplesError", "arrivals", "ask", "durations", "queries", "report", "sketches"]

STEP_S = 30.0
"""Seconds between samples of the rate; the longest usual scrape interval."""
SPAN_S = 600.0
"""Seconds of rates; what the gateways are asked for at most (``ScalingBehavior.history_s``)."""
NAME = "Prometheus"
OFFLINE = "offline"
"""The class of requests without a reader."""
Sample = Mapping[str, Any]


class SaidError(OSError):
    """Prometheus answers that it cannot."""


class NoSamplesError(SaidError):
    """Prometheus answers, but has no samples of the gateways."""


def queries(selector: str, window_s: float) -> dict[str, str]:
    """PromQL by purpose; ``selector``: label matchers without braces."""
    where, window = f"{{{selector}}}", f"[{max(60, round(window_s))}s]"
    return {
        "rate": f"sum by (class) (rate(andes_gateway_requests_total{where}[1m]))",
        "qoe": f"sum by (class, le) (increase(andes_gateway_request_qoe_ratio_bucket{where}{window}))",
        "qoe_sum": f"sum by (class) (increase(andes_gateway_request_qoe_ratio_sum{where}{window}))",
        "ttft": f"sum by (class, le) (increase(andes_gateway_time_to_first_token_seconds_bucket{where}{window}))",
        "stall": f"sum by (class, le) (increase(andes_gateway_stall_seconds_bucket{where}{window}))",
        "streams": f"sum by (replica) (andes_gateway_replica_streams{where})",
        "up": f"max by (replica) (andes_gateway_replica_up{where})",
        "held": f"sum(andes_gateway_held{where})",
        "sampled": f"min(timestamp(andes_gateway_held{where}))",
    }


async def ask(session: aiohttp.ClientSession, demand: DemandSource, window_s: float, now_s: float) -> GatewayReport:
    """Raises ``OSError`` where Prometheus does not answer or has no samples, ``ValueError`` where its answer cannot be
    read."""
    root = f"{str(demand.prometheus_url).rstrip('/')}/api/v1"

    async def get(path: str, **query: Any) -> list[Sample]:
        async with session.get(f"{root}/{path}", params={k: str(v) for k, v in query.items()}) as answer:
            body = await answer.json(content_type=None)
            if answer.status != 200 or body.get("status") != "success":
                raise SaidError(f"{NAME}: HTTP {answer.status}: {str(body.get('error', ''))[:200]}")
            return list(body["data"]["result"])

    asked = queries(demand.prometheus_selector, window_s)
    rate = asked.pop("rate")
    try:
        results = await asyncio.gather(
            get("query_range", query=rate, start=now_s - SPAN_S, end=now_s, step=STEP_S),
            *(get("query", query=query, time=now_s) for query in asked.values()),
        )
        return report(demand, dict(zip(("rate", *asked), results)), now_s)
    except (KeyError, TypeError, IndexError, AttributeError, json.JSONDecodeError) as error:
        raise ValueError(f"{NAME}: {explain(error)}") from None


def report(demand: DemandSource, found: Mapping[str, Sequence[Sample]], now_s: float) -> GatewayReport:
    """All gateways' samples as one report. Raises :class:`NoSamplesError`."""
    if not found["sampled"]:
        raise NoSamplesError(f"{NAME}: no samples of andes_gateway_held{{{demand.prometheus_selector}}}")
    streams = {s["metric"]["replica"]: _value(s) for s in found["streams"]}
    return GatewayReport(
        gateway=NAME,
        now_s=_value(found["sampled"][0]),
        received_s=now_s,
        demand_since_s=now_s - SPAN_S,
        requests=arrivals(demand, found["rate"], now_s),
        ended=sketches(found["qoe"], found["qoe_sum"]),
        running={},
        ttft=durations(found.get("ttft", ())),
        stall=durations(found.get("stall", ())),
        replicas=tuple(
            FleetReplica(name, _value(s) > 0, False, round(streams.get(name, 0.0)), 0, 0)
            for s in found["up"] for name in [s["metric"]["replica"]]
        ),
        held=round(sum(_value(s) for s in found["held"])),
    )  # fmt: skip


def arrivals(demand: DemandSource, rates: Sequence[Sample], now_s: float) -> tuple[ObservedRequest, ...]:
    """Requests spread evenly over each step of ``rates`` (a matrix by class), with the mean lengths; in order."""
    made = []
    for series in rates:
        owed = 0.0
        for at_s, rate in series["values"]:
            owed += max(0.0, _finite(rate)) * STEP_S
            count, end_s = math.floor(owed), min(float(at_s), now_s)
            owed -= count
            made += [
                ObservedRequest(end_s - STEP_S * (count - i - 0.5) / count, str(series["metric"].get("class", "")),
                                round(demand.prompt_tokens), round(demand.output_tokens), True,
                                yields=True if series["metric"].get("class") == OFFLINE else None)
                for i in range(count)
            ]  # fmt: skip
    return tuple(sorted(made, key=lambda r: r.arrival_s))


def sketches(buckets: Sequence[Sample], sums: Sequence[Sample]) -> dict[str, Sketch]:
    """QoE by class from cumulative buckets: each stream at the lower edge of its bucket, the total exact."""
    totals = {str(s["metric"].get("class", "")): _value(s) for s in sums}
    made = {}
    for name, cumulative in _cumulative(buckets).items():
        sketch, lower, before, exact = Sketch(), 0.0, 0, 0.0
        for edge, count in cumulative:
            here = round(count)
            if here > before:
                k = int(min(lower, 1.0) * BINS + 1e-9)
                sketch.counts[k] = sketch.counts.get(k, 0) + here - before
                before = here
            lower = edge
            exact = max(exact, count)
        if before:
            sketch.total = min(float(before), totals.get(name, 0.0) * before / exact)
            made[name] = sketch
    return made


def durations(buckets: Sequence[Sample]) -> dict[str, DurationSketch]:
    """Seconds by class from cumulative buckets: each stream at the upper edge of its bucket."""
    made = {}
    for name, cumulative in _cumulative(buckets).items():
        sketch, before = DurationSketch(), 0
        for edge, count in cumulative:
            for _ in range(round(count) - before):
                sketch.add(edge)
            before = max(before, round(count))
        if before:
            made[name] = sketch
    return made


def _cumulative(buckets: Sequence[Sample]) -> dict[str, list[tuple[float, float]]]:
    """By class, ``(upper edge, streams up to it)`` in order."""
    by_class: dict[str, list[tuple[float, float]]] = {}
    for sample in buckets:
        edge = float(sample["metric"]["le"])
        by_class.setdefault(str(sample["metric"].get("class", "")), []).append((edge, _value(sample)))
    return {name: sorted(edges) for name, edges in by_class.items()}


def _value(sample: Sample) -> float:
    return _finite(sample["value"][1])


def _finite(text: Any) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{NAME}: {text!r} is not a finite number")
    return value
