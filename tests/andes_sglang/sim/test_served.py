"""What a plan may be asked to hold."""

from __future__ import annotations

import numpy as np
import pytest

from andes_sglang.objective import Metric, parse_objective
from andes_sglang.request import RequestRecord
from andes_sglang.sim.served import Served, certainty


def served(*streams: tuple[float, list[float]]) -> Served:
    """Of requests, when they arrive and when their tokens come."""
    of = Served()
    for number, (arrival_s, times_s) in enumerate(streams):
        deliveries = [(at, 1) for at in times_s]
        of.add(RequestRecord(number, arrival_s, arrival_s, 10, len(times_s), 1.0, 5.0, deliveries, times_s[-1]))
    return of


QUICK, SLOW, LATE = (0.0, [0.5, 0.6, 0.7]), (1.0, [1.5, 2.5, 3.5]), (2.0, [7.0, 7.1])


@pytest.mark.parametrize(
    ("text", "value", "margin"),
    [
        ("mean(ttft)<=2.5", 2.0, 0.2),
        ("p50(ttft) <= 0.4", 0.5, -0.25),
        ("mean(tpot)<=0.4", 0.4, 0.0),
        ("mean(stall)<=1.1", 1.1 / 3, 2 / 3),
        ("goodput(ttft<=1,tpot<=0.2)>=0.5", 1 / 3, 1 / 3 - 0.5),
        ("goodput(ttft<=1)>=0.5", 2 / 3, 2 / 3 - 0.5),
        ("goodput(tpot<=2)>=1", 1.0, 0.0),
        ("p100(ttft)<=5", 5.0, 0.0),
        ("p0(tpot)<=0.2", 0.1, 0.5),
        ("share(0.99)>=0.5", 1 / 3, 1 / 3 - 0.5),
    ],
)
def test_a_statistic_and_how_far_it_is_on_the_right_side(text: str, value: float, margin: float) -> None:
    objective = parse_objective(text)
    found = served(QUICK, SLOW, LATE).statistic(objective)
    assert found == pytest.approx(value, abs=1e-9)
    assert objective.margin(found) == pytest.approx(margin, abs=1e-9)
    assert str(objective) == text.replace(" ", "")


def test_an_answer_of_one_token_has_no_gaps_and_no_request_breaks_nothing() -> None:
    assert served((0.0, [0.4])).of[Metric.TPOT] == [0.0]
    for text in ("mean>=0.9", "p99(tpot)<=1", "goodput(ttft<=1)>=1"):
        objective = parse_objective(text)
        assert objective.margin(Served().statistic(objective)) >= 0.0


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("p90(itl)<=1", "expected mean>=X, pN>=X, share(Q)>=X, mean(ttft)<=S"),
        ("p90(ttft)>=1", "expected"),
        ("p101(ttft)<=1", "percentiles lie between 0 and 100"),
        ("goodput(ttft<=1)>=1.5", "goodput is a share between 0 and 1"),
        ("goodput(ttft<=0)>=0.5", "seconds must be > 0"),
        ("goodput()>=0.5", "expected"),
        ("goodput(ttft<=1tpot<=2)>=0.5", "expected"),
        ("goodput(,ttft<=1)>=0.5", "expected"),
        ("mean>=1.5", "QoE and shares lie between 0 and 1"),
    ],
)
def test_what_is_none_is_refused_with_its_text(text: str, says: str) -> None:
    with pytest.raises(ValueError, match="objective ") as error:
        parse_objective(text)
    assert says in str(error.value)
    assert text in str(error.value)


def test_certainty_is_students() -> None:
    """Against the table: t = 2.920 with two degrees of freedom is 95 %, one-sided."""
    deviation = np.std([1.0, 2.0, 3.0], ddof=1)
    shift = 2.920 * deviation / 3**0.5 - 2.0
    assert certainty([1.0 + shift, 2.0 + shift, 3.0 + shift]) == pytest.approx(0.95, abs=1e-3)
    assert certainty([-1.0, 1.0]) == pytest.approx(0.5)
    assert certainty([0.2, 0.2]) == 1.0
    assert certainty([-0.2, -0.2]) == 0.0
    assert certainty([0.0, 0.0]) == 0.5
    assert certainty([0.3]) is None
