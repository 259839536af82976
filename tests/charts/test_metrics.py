"""Alerts and dashboards ask for metrics that the code has."""

from __future__ import annotations

import importlib.util
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import chart
import promql_parser
import pytest

BY_PROMETHEUS = {"up"}
NOT_HERE = {package: importlib.util.find_spec(package) is None for package in ("andes_api", "andes_operator", "sglang")}
_VARIABLES = re.compile(r"\$__rate_interval|\$[a-z]+")


def alerts(values: dict[str, Any] | None = None) -> list[dict[str, Any]]:
    found = chart.objects({"monitoring.prometheusRule.enabled": True, **(values or {})})
    (rule,) = found["prometheusrule.yaml"]
    return [alert for group in rule["spec"]["groups"] for alert in group["rules"]]


def expressions() -> Iterator[tuple[str, str]]:
    """(where, PromQL) of every alert and every panel."""
    for alert in alerts():
        yield alert["alert"], alert["expr"]
    for path in sorted((chart.CHART / "files" / "dashboards").glob("*.json")):
        for panel in json.loads(path.read_text())["panels"]:
            for target in panel["targets"]:
                expression = target["expr"].replace("$__rate_interval", "1m")
                yield f"{path.stem}: {panel['title']}", _VARIABLES.sub("x", expression)


def metrics(node: Any) -> set[str]:
    """Names of the metrics in a parsed expression."""
    if isinstance(node, promql_parser.VectorSelector):
        return {node.name}
    children = [getattr(node, name, None) for name in ("expr", "lhs", "rhs", "param", "vs", "vector_selector")]
    children += list(getattr(node, "args", None) or ())
    return set().union(*(metrics(child) for child in children if child is not None))


EXPRESSIONS = list(expressions())


@pytest.mark.parametrize("expression", [e for _, e in EXPRESSIONS], ids=[where for where, _ in EXPRESSIONS])
def test_every_expression_is_promql_about_our_metrics(expression: str) -> None:
    names = metrics(promql_parser.parse(expression))
    assert names
    assert all(name.startswith(("andes_", "sglang:")) or name in BY_PROMETHEUS for name in names)


@pytest.fixture(scope="module")
def asked() -> set[str]:
    return set().union(*(metrics(promql_parser.parse(expression)) for _, expression in EXPRESSIONS))


def exposed(registry: Any) -> set[str]:
    """Names of the samples of a registry, those without a value yet included."""
    names = set()
    for family in registry.collect():
        suffixes = {"counter": ["_total"], "histogram": ["_bucket", "_sum", "_count"]}.get(family.type, [""])
        names |= {family.name + suffix for suffix in suffixes}
    return names


@pytest.mark.skipif(NOT_HERE["andes_api"], reason="THE GATEWAY IS NOT HERE: its metrics are not compared")
def test_the_gateway_has_the_metrics_that_are_asked_of_it(asked: set[str]) -> None:
    from andes_api.metrics import GatewayMetrics, Levels

    levels = {metric.name for metric in Levels().collect()}
    assert {name for name in asked if name.startswith("andes_gateway_")} <= exposed(GatewayMetrics().registry) | levels


@pytest.mark.skipif(NOT_HERE["andes_operator"], reason="THE OPERATOR IS NOT HERE: its metrics are not compared")
def test_the_operator_has_the_metrics_that_are_asked_of_it(asked: set[str]) -> None:
    from andes_operator.telemetry import OperatorMetrics

    assert {name for name in asked if name.startswith("andes_operator_")} <= exposed(OperatorMetrics().registry)


def test_the_engine_has_the_metrics_that_are_asked_of_it(asked: set[str]) -> None:
    from prometheus_client import CollectorRegistry

    from andes_sglang.metrics import PrometheusEngineMetrics

    registry = CollectorRegistry()
    PrometheusEngineMetrics(registry)
    ours = {n for n in asked if n.startswith("andes_") and not n.startswith(("andes_gateway_", "andes_operator_"))}
    assert ours <= exposed(registry)


@pytest.mark.skipif(NOT_HERE["sglang"], reason="SGLANG IS NOT HERE: its metrics are not compared")
def test_sglang_has_the_metrics_that_are_asked_of_it(asked: set[str]) -> None:
    (folder,) = importlib.util.find_spec("sglang").submodule_search_locations  # type: ignore[union-attr]
    source = "".join(path.read_text() for path in Path(folder, "srt", "observability").glob("*.py"))
    theirs = {name.removesuffix("_bucket") for name in asked if name.startswith("sglang:")}
    assert {name for name in theirs if f'"{name}"' not in source} == set()


@pytest.mark.parametrize("kind", ["ServiceMonitor", "PodMonitor"])
def test_alerts_find_what_either_monitor_scrapes(kind: str) -> None:
    """The Prometheus operator names a job after its Service, or after namespace and name of its PodMonitor."""
    switch = f"monitoring.{kind[0].lower()}{kind[1:]}.enabled"
    found = chart.objects({switch: True, "monitoring.prometheusRule.enabled": True})
    jobs = set()
    for made in found["servicemonitor.yaml"]:
        name = made["metadata"]["name"]
        if kind == "PodMonitor":
            (endpoint,) = made["spec"]["podMetricsEndpoints"]
            jobs |= {r["replacement"] for r in endpoint.get("relabelings", ()) if r["targetLabel"] == "job"}
        else:
            jobs.add(name)
    asked = set(re.findall(r'job="([^"]+)"', json.dumps(found["prometheusrule.yaml"]).replace('\\"', '"')))
    assert asked
    assert asked <= jobs


def test_alerts_say_what_happens_in_words() -> None:
    for alert in alerts():
        assert alert["labels"]["severity"] in ("warning", "critical")
        assert alert["annotations"]["summary"].endswith(".")


def test_the_objective_is_in_the_alert() -> None:
    values = {"monitoring.prometheusRule.qoe": 0.95, "monitoring.prometheusRule.share": 0.99}
    (alert,) = [a for a in alerts(values) if a["alert"] == "AndesQoEBelowTarget"]
    assert 'le="0.95"' in alert["expr"]
    assert float(alert["expr"].rsplit(">", 1)[1]) == pytest.approx(0.01)


def test_dashboards_have_their_own_identity() -> None:
    boards = [json.loads(path.read_text()) for path in (chart.CHART / "files" / "dashboards").glob("*.json")]
    assert len({board["uid"] for board in boards}) == len(boards) > 0
    for board in boards:
        places = [tuple(panel["gridPos"].values()) for panel in board["panels"]]
        assert len(set(places)) == len(places)
