"""The objective: what its text means, what it reads of scores and of a sketch, and what it refuses."""

from __future__ import annotations

import numpy as np
import pytest

from andes_sglang.objective import LatencyObjective, Metric, QoEObjective, Statistic, parse_objective
from andes_sglang.sketch import DurationSketch, Sketch


@pytest.mark.parametrize(
    ("text", "scores", "value"),
    [
        ("mean>=0.95", [0.5, 1.0], 0.75),
        ("p5>=0.8", [k / 100 for k in range(101)], 0.05),
        ("p95>=0.8", [k / 100 for k in range(101)], 0.95),
        ("share(0.9) >= .5", [0.89, 0.9, 1.0, 0.1], 0.5),
    ],
)
def test_text_names_a_statistic_of_scores_and_of_a_sketch(text: str, scores: list[float], value: float) -> None:
    objective = QoEObjective.parse(text)
    assert QoEObjective.parse(str(objective)) == objective
    assert objective.of(np.array(scores)) == pytest.approx(value)
    sketch = Sketch()
    for score in scores:
        sketch.add(score)
    assert objective.of_sketch(sketch) == pytest.approx(value, abs=0.005), "a bin of the sketch is 0.005 wide"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("mean>=0.95", "QoE mean"),
        ("p0>=0.95", "QoE p0"),
        ("p2.5>=0.95", "QoE p2.5"),
        ("share(0.95)>=0.9", "QoE share(0.95)"),
        ("mean(tpot)<=0.1", "mean(tpot)"),
        ("p90(ttft)<=1", "p90(ttft)"),
        ("goodput(ttft<=1,tpot<=0.05)>=0.9", "goodput(ttft<=1,tpot<=0.05)"),
    ],
)
def test_people_are_told_of_a_statistic_in_words(text: str, words: str) -> None:
    assert parse_objective(text).words == words


def test_without_streams_every_objective_holds_and_a_sketch_says_nothing() -> None:
    for text in ("mean>=0.9", "p5>=0.9", "share(0.95)>=0.9"):
        objective = QoEObjective.parse(text)
        assert objective.of(np.array([])) == 1.0
        assert objective.of_sketch(Sketch()) is None


@pytest.mark.parametrize(
    "text",
    ["median>=0.9", "mean>0.9", "mean>=1.2", "p101>=0.9", "share>=0.9", "share(1.2)>=0.9", "mean>=0", "share(.)>=0.5"],
)
def test_text_that_names_no_objective_is_refused_by_name(text: str) -> None:
    with pytest.raises(ValueError, match="objective"):
        QoEObjective.parse(text)


@pytest.mark.parametrize(
    ("statistic", "value", "at", "text"),
    [
        (Statistic.MEAN, 1.01, None, r"value must be in \[0, 1\], got 1.01"),
        (Statistic.MEAN, 0.9, 5.0, "at must be None for Mean, got 5.0"),
        (Statistic.PERCENTILE, 0.9, None, r"at must be in \[0, 100\] for Percentile, got None"),
        (Statistic.PERCENTILE, 0.9, 101.0, r"at must be in \[0, 100\] for Percentile, got 101.0"),
        (Statistic.SHARE_ABOVE, 0.9, 5.0, r"at must be in \[0, 1\] for ShareAbove, got 5.0"),
    ],
)
def test_fields_out_of_range_are_refused(statistic: Statistic, value: float, at: float | None, text: str) -> None:
    with pytest.raises(ValueError, match=text):
        QoEObjective(statistic, value, at)


@pytest.mark.parametrize("metric", [Metric.TTFT, Metric.STALL])
def test_a_latency_objective_is_at_most_its_seconds_of_values_and_of_a_sketch(metric: Metric) -> None:
    objective = LatencyObjective(metric, 2.0, 90.0)
    seconds = np.array([0.1 * k for k in range(1, 22)])
    sketch = DurationSketch()
    for each in seconds:
        sketch.add(float(each))
    assert objective.of(seconds) == pytest.approx(1.9)
    assert objective.of_sketch(sketch) == pytest.approx(1.9, rel=0.021)
    assert (objective.met(2.0), objective.met(2.01), objective.met(1.95, margin=0.05)) == (True, False, False)
    assert (objective.of(np.array([])), objective.of_sketch(DurationSketch())) == (0.0, None)
    assert str(objective) == f"p90({metric.lower()})<=2"
    assert parse_objective(str(objective)) == objective


@pytest.mark.parametrize(
    ("metric", "value", "at", "text"),
    [
        (Metric.QOE, 1.0, 95.0, "metric must be one of Stall, TPOT, TTFT, got QoE"),
        (Metric.TTFT, 0.0, 95.0, "value must be seconds > 0, got 0.0"),
        (Metric.TTFT, float("nan"), 95.0, "value must be seconds > 0, got nan"),
        (Metric.STALL, 1.0, 100.5, r"at must be in \[0, 100\], got 100.5"),
    ],
)
def test_latency_fields_out_of_range_are_refused(metric: Metric, value: float, at: float, text: str) -> None:
    with pytest.raises(ValueError, match=text):
        LatencyObjective(metric, value, at)
