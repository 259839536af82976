"""Prometheus as the source: what is asked of it, and what its answers are read as."""

from __future__ import annotations

import pytest

from andes_operator.prometheus import NoSamplesError, arrivals, queries, report, sketches
from andes_operator.spec import Demand

NOW_S = 1_000_000.0
DEMAND = Demand(prometheus_url="http://p:9090", prometheus_selector='job="g"', prompt_tokens=500, output_tokens=100)


def sample(value: float, **labels: str) -> dict[str, object]:
    return {"metric": labels, "value": [NOW_S, str(value)]}


def buckets(name: str, counts: dict[str, float]) -> list[dict[str, object]]:
    return [sample(count, **{"class": name, "le": edge}) for edge, count in counts.items()]


FOUND = {
    "rate": [{"metric": {"class": "reading"}, "values": [[NOW_S - 30, "2"], [NOW_S, "1"]]}],
    "qoe": buckets("reading", {"0.5": 0, "0.9": 10.2, "0.95": 20.1, "1.0": 100.3, "+Inf": 100.3}),
    "qoe_sum": [sample(95.5, **{"class": "reading"})],
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


def test_no_samples_is_missing_data() -> None:
    with pytest.raises(NoSamplesError, match=r'andes_gateway_held\{job="g"\}'):
        report(DEMAND, {**FOUND, "sampled": []}, NOW_S)
    with pytest.raises(ValueError, match="nan"):
        report(DEMAND, {**FOUND, "up": [sample(float("nan"), replica="x")]}, NOW_S)
