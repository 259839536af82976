"""Prometheus as the source: what is asked of it, and what its answers are read as."""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from aiohttp import web
from e2e.control_plane import until
from prometheus_client import start_http_server
from test_decide import SPEC

from andes_api.metrics import GatewayMetrics
from andes_operator.gateways import Gateways
from andes_operator.names import Reason
from andes_operator.observe import DataFault, Observation, PodCounts, merge
from andes_operator.prometheus import NoSamplesError, arrivals, queries, report, sketches
from andes_operator.spec import DemandSource
from andes_sglang.bench.ports import free_port
from andes_sglang.sketch import LONGEST_S

NOW_S = 1_000_000.0
DEMAND = DemandSource(
    prometheus_url="http://p:9090", prometheus_selector='job="g"', prompt_tokens=500, output_tokens=100
)


def sample(value: float, **labels: str) -> dict[str, object]:
    return {"metric": labels, "value": [NOW_S, str(value)]}


def buckets(name: str, counts: dict[str, float]) -> list[dict[str, object]]:
    return [sample(count, **{"class": name, "le": edge}) for edge, count in counts.items()]


FOUND = {
    "rate": [{"metric": {"class": "reading"}, "values": [[NOW_S - 30, "2"], [NOW_S, "1"]]}],
    "qoe": buckets("reading", {"0.5": 0, "0.9": 10.2, "0.95": 20.1, "1.0": 100.3, "+Inf": 100.3}),
    "qoe_sum": [sample(95.5, **{"class": "reading"})],
    "ttft": buckets("reading", {"0.5": 50.2, "1.0": 90.4, "+Inf": 100.3}),
    "stall": buckets("reading", {"0.5": 100.3, "+Inf": 100.3}),
    "streams": [sample(3, replica="10.0.0.1:80")],
    "up": [sample(1, replica="10.0.0.1:80"), sample(0, replica="10.0.0.2:80")],
    "held": [sample(2)],
    "sampled": [sample(NOW_S - 12)],
}


def test_selectors_reach_every_query() -> None:
    asked = queries('job="g"', 120)
    assert all('{job="g"}' in query for query in asked.values())
    assert "[120s]" in asked["qoe"]


def test_an_answer_becomes_a_report() -> None:
    read = report(DEMAND, FOUND, NOW_S)
    assert read.now_s == NOW_S - 12, "the age of the samples is the age of the report"
    assert [(r.name, r.healthy, r.streams) for r in read.replicas] == [
        ("10.0.0.1:80", True, 3),
        ("10.0.0.2:80", False, 0),
    ]
    assert read.held == 2
    assert len(read.requests) == 90
    assert (read.requests[0].prompt_tokens, read.requests[0].output_tokens) == (500, 100)


def test_the_class_without_a_reader_is_known_by_its_name() -> None:
    mixed = [{"metric": {"class": name}, "values": [(NOW_S, "1")]} for name in ("offline", "reading")]
    assert {(r.class_name, r.yields) for r in arrivals(DEMAND, mixed, NOW_S)} == {("offline", True), ("reading", None)}


def test_arrivals_keep_rates_and_order() -> None:
    made = arrivals(DEMAND, FOUND["rate"], NOW_S)
    assert sum(r.arrival_s <= NOW_S - 30 for r in made) == 60
    assert [r.arrival_s for r in made] == sorted(r.arrival_s for r in made)
    slow = [{"metric": {}, "values": [[NOW_S - 30 * i, "0.01"] for i in range(10, -1, -1)]}]
    assert len(arrivals(DEMAND, slow, NOW_S)) == 3, "fractions add up over the steps"


def test_shares_at_the_edges_and_the_mean_are_exact() -> None:
    reading = sketches(FOUND["qoe"], FOUND["qoe_sum"])["reading"]
    assert reading.count == 100
    assert reading.share_at_least(0.95) == pytest.approx(0.8)
    assert reading.share_at_least(0.9) == pytest.approx(0.9)
    assert reading.mean == pytest.approx(95.5 / 100.3)
    assert reading.quantile(0.05) == 0.5, "a percentile errs downwards"


def test_seconds_err_upwards() -> None:
    read = report(DEMAND, FOUND, NOW_S)
    ttft = read.ttft["reading"]
    assert ttft.count == 100
    assert [ttft.quantile(q) for q in (0.4, 0.85, 0.95)] == [
        pytest.approx(0.5, rel=0.02), pytest.approx(1.0, rel=0.02), LONGEST_S]  # fmt: skip
    assert read.stall["reading"].quantile(0.99) == pytest.approx(0.5, rel=0.02)


def test_no_samples_is_missing_data() -> None:
    with pytest.raises(NoSamplesError, match=r'andes_gateway_held\{job="g"\}'):
        report(DEMAND, {**FOUND, "sampled": []}, NOW_S)
    with pytest.raises(ValueError, match="nan"):
        report(DEMAND, {**FOUND, "up": [sample(float("nan"), replica="x")]}, NOW_S)


@pytest.fixture
def real(tmp_path: Path) -> Iterator[tuple[DemandSource, GatewayMetrics]]:
    """A real Prometheus that scrapes the gateway's own metrics every second."""
    program = os.environ.get("PROMETHEUS") or shutil.which("prometheus")
    if program is None:
        pytest.skip("NO PROMETHEUS: set PROMETHEUS to one (Debian's package holds it) to ask a real one")
    metrics, scraped, port = GatewayMetrics(), free_port(), free_port()
    server, _ = start_http_server(scraped, "127.0.0.1", metrics.registry)
    jobs = [{"job_name": "g", "static_configs": [{"targets": [f"127.0.0.1:{scraped}"]}]}]
    config = tmp_path / "prometheus.yaml"
    config.write_text(yaml.safe_dump({"global": {"scrape_interval": "1s"}, "scrape_configs": jobs}))
    flags = [f"--config.file={config}", f"--storage.tsdb.path={tmp_path}", f"--web.listen-address=127.0.0.1:{port}"]
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen([program, *flags], stdout=log, stderr=log)
    try:
        yield replace(DEMAND, prometheus_url=f"http://127.0.0.1:{port}"), metrics
    finally:
        process.terminate()
        process.wait(30)
        server.shutdown()


def look(demand: DemandSource) -> Observation:
    """As the operator sees it now."""

    async def ask() -> Observation:
        gateways = Gateways()
        try:
            answers = await gateways.ask(None, "chat", replace(SPEC, demand=demand), time.time())  # type: ignore[arg-type]
        finally:
            await gateways.close()
        return merge(
            answers.reports, PodCounts(1, 1, 1), time.time(), 120.0, missing=answers.missing, broken=answers.broken
        )

    return asyncio.run(ask())


@pytest.mark.server
@pytest.mark.timeout(600)
def test_a_real_prometheus_tells_what_the_gateways_measured(real: tuple[DemandSource, GatewayMetrics]) -> None:
    demand, metrics = real

    for qoe in (0.5, 0.97):  # the series begin: growth shows only between two samples
        metrics.qoe.labels("reading").observe(qoe)
    metrics.requests.labels("reading", "done").inc(2)
    metrics.replicas({"10.0.0.1:80": (True, 3), "10.0.0.2:80": (False, 0)})
    until("it answers", lambda: look(demand).streams_by_replica)
    metrics.held.set(1)
    seen = until("a sample after the beginning", lambda: (found := look(demand)).waiting == 1 and found)
    assert seen.fault is None
    assert seen.streams_by_replica == {"10.0.0.1:80": 3, "10.0.0.2:80": 0}
    for _ in range(80):
        metrics.qoe.labels("reading").observe(0.97)
    for _ in range(20):
        metrics.qoe.labels("reading").observe(0.5)
    metrics.requests.labels("reading", "done").inc(100)
    metrics.held.set(2)
    seen = until("what came", lambda: (found := look(demand)).waiting == 2 and found.ended and found)
    assert seen.open_streams == 5
    assert seen.ended["reading"].share_at_least(0.95) == pytest.approx(0.8, abs=0.02)
    assert seen.ended["reading"].mean == pytest.approx(0.8 * 0.97 + 0.2 * 0.5, abs=0.02)
    assert {request.class_name for request in until("arrivals", lambda: look(demand).recent)} == {"reading"}
    other = look(replace(demand, prometheus_selector='job="x"')).fault
    assert other is not None
    assert (other.reason, other.message) == (
        Reason.DATA_MISSING,
        'Prometheus: no samples of andes_gateway_held{job="x"}',
    )


def test_a_prometheus_that_is_not_there_is_missing_data() -> None:
    fault = look(replace(DEMAND, prometheus_url=f"http://127.0.0.1:{free_port()}")).fault
    assert fault is not None
    assert fault.reason is Reason.DATA_MISSING


@pytest.mark.parametrize(
    "body", ["[]", "null", '{"status": "success"}', "<html>", '{"status": "success", "data": {"result": [7]}}']
)
def test_what_answers_and_is_no_prometheus_is_said(body: str) -> None:
    async def scenario() -> DataFault | None:
        async def answer(_: web.Request) -> web.Response:
            return web.Response(text=body)

        app = web.Application()
        app.router.add_route("*", "/{path:.*}", answer)
        runner = web.AppRunner(app)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        try:
            demand = replace(DEMAND, prometheus_url=f"http://127.0.0.1:{runner.addresses[0][1]}")
            return await asyncio.to_thread(lambda: look(demand).fault)
        finally:
            await runner.cleanup()

    fault = asyncio.run(scenario())
    assert fault is not None
    assert fault.reason is Reason.DATA_CONTRADICTORY
    assert fault.message.startswith("Prometheus: ")
    assert "object" not in fault.message
