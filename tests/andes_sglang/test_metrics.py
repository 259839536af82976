"""What an engine reports, as Prometheus reads it."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.multiprocess import MultiProcessCollector
from prometheus_client.parser import text_string_to_metric_families

from andes_sglang.latency import LatencyModel
from andes_sglang.metrics import EngineMetrics, HostUse, PrometheusEngineMetrics


def tell(metrics: EngineMetrics) -> None:
    metrics.in_charge("andes")
    metrics.decision(0.0004)
    metrics.preemption("park", "displaced")
    metrics.preemption("release", "kv")
    metrics.retraction()
    metrics.resume("release", 17)
    metrics.finished(0.97)
    metrics.population(running=3, parked=1)
    metrics.population(running=2, parked=1)
    metrics.unpreemptible(2)
    latency = LatencyModel()
    for batch in (4, 8, 12) * 100:
        latency.observe_decode(batch, 100 * batch, 0.01 + 0.002 * batch)
    for tokens in (100, 200, 400) * 30:
        latency.observe_load(tokens, 0.001 + 2e-6 * tokens)
    metrics.costs(latency)
    metrics.host(HostUse(written_bytes=100, write_s=0.5, used_tokens=7, capacity_tokens=9))
    metrics.host(
        HostUse(
            150,
            40,
            0.75,
            0.25,
            0.125,
            hit_tokens=11,
            ahead_tokens=6,
            refused_tokens=2,
            used_tokens=5,
            capacity_tokens=9,
        )
    )


def exposed(registry: CollectorRegistry) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    """What a scrape of ``registry`` reads, by name and labels."""
    families = text_string_to_metric_families(generate_latest(registry).decode())
    return {(s.name, frozenset(s.labels.items())): s.value for family in families for s in family.samples}


def test_names_and_values() -> None:
    registry = CollectorRegistry()
    tell(PrometheusEngineMetrics(registry))
    scraped = exposed(registry)

    def value(name: str, **labels: str) -> float:
        return scraped[name, frozenset(labels.items())]

    assert value("andes_policy_info", policy="andes") == 1
    assert value("andes_decision_seconds_count") == 1
    assert value("andes_decision_seconds_bucket", le="0.00025") == 0
    assert value("andes_decision_seconds_bucket", le="0.0005") == 1
    assert value("andes_preemptions_total", mode="park", reason="displaced") == 1
    assert value("andes_preemptions_total", mode="release", reason="kv") == 1
    assert value("andes_retractions_total") == 1
    assert value("andes_resumes_total", mode="release") == 1
    assert value("andes_recomputed_tokens_total") == 17
    assert value("andes_request_qoe_bucket", le="0.95") == 0
    assert value("andes_request_qoe_bucket", le="0.99") == 1
    assert value("andes_requests", state="running") == 2
    assert value("andes_requests", state="parked") == 1
    assert value("andes_unpreemptible_requests") == 2
    assert value("andes_cost_seconds", stage="decode", per="iteration") == pytest.approx(0.01, rel=0.05)
    assert value("andes_cost_seconds", stage="decode", per="request") == pytest.approx(0.002, rel=0.1)
    assert value("andes_cost_seconds", stage="load", per="token") == pytest.approx(2e-6, rel=0.05)
    assert 0 < value("andes_cost_relative_error", stage="decode") < 0.1
    assert value("andes_cost_relative_error", stage="prefill") > 0.5
    assert value("andes_host_copied_bytes_total", direction="write") == 150
    assert value("andes_host_copied_bytes_total", direction="load") == 40
    assert value("andes_host_copy_seconds_total", direction="write") == 0.75
    assert value("andes_host_copy_seconds_total", direction="load") == 0.25
    assert value("andes_host_wait_seconds_total") == 0.125
    assert value("andes_host_hit_tokens_total") == 11
    assert value("andes_host_ahead_tokens_total") == 6
    assert value("andes_host_refused_tokens_total") == 2
    assert value("andes_host_tokens", what="used") == 5
    assert value("andes_host_tokens", what="capacity") == 9


def test_an_engine_without_host_tier_or_loads_says_nothing_of_them() -> None:
    registry = CollectorRegistry()
    PrometheusEngineMetrics(registry).costs(LatencyModel())
    names = {name for name, _ in exposed(registry)}
    assert not {name for name in names if name.startswith("andes_host")}
    assert ("andes_cost_seconds", frozenset({"stage": "load", "per": "token"}.items())) not in exposed(registry)


def test_each_is_explained() -> None:
    registry = CollectorRegistry()
    tell(PrometheusEngineMetrics(registry))
    explained = (Path(__file__).parents[2] / "docs" / "metrics.md").read_text()
    for family in registry.collect():
        name = family.name + ("_total" if family.type == "counter" else "")
        labels = {label for sample in family.samples for label in sample.labels} - {"le"}
        row = next((row for row in explained.splitlines() if row.startswith(f"| `{name}")), "")
        assert labels == set(filter(None, re.findall(r"\w+", row.split("`")[1].removeprefix(name)))), name


def test_silent_without_metrics() -> None:
    tell(EngineMetrics())


RANK = (
    "from andes_sglang.metrics import HostUse, PrometheusEngineMetrics\n"
    "metrics = PrometheusEngineMetrics()\n"
    "metrics.population(running=3)\n"
    "metrics.unpreemptible(2)\n"
    "metrics.host(HostUse(used_tokens=5, capacity_tokens=9))\n"
    "metrics.in_charge('andes')\n"
)


def test_data_parallel_ranks_add_up(tmp_path: Path) -> None:
    """Each is a process, with a batch of its own."""
    for _ in range(2):
        environment = {**os.environ, "PROMETHEUS_MULTIPROC_DIR": str(tmp_path)}
        subprocess.run([sys.executable, "-c", RANK], env=environment, check=True)
    registry = CollectorRegistry()
    MultiProcessCollector(registry, str(tmp_path))
    scraped = exposed(registry)
    assert scraped["andes_requests", frozenset({("state", "running")})] == 6
    assert scraped["andes_unpreemptible_requests", frozenset()] == 4
    assert scraped["andes_host_tokens", frozenset({("what", "capacity")})] == 18
    assert scraped["andes_policy_info", frozenset({("policy", "andes")})] == 1
