"""What a request says of its reader: read, refused, written."""

from __future__ import annotations

import math
from typing import Any

import pytest

from andes_sglang.expectations import ReaderExpectation, parse, to_custom_params
from andes_sglang.qoe import QoETarget

DEFAULT = QoETarget(1.5, 4.0)


def test_every_field_is_read() -> None:
    said = {
        "qoe": {"ttft": 2, "tds": 9, "weight": 4, "yield": True, "tokens": 300, "reasoning": "shown", "think_tds": 50}
    }
    assert parse(said, DEFAULT) == ReaderExpectation(
        QoETarget(2, 9, 50), 4, yields=True, expected_tokens=300, reasoning="shown"
    )


def test_null_lets_a_thought_take_no_time_of_its_own() -> None:
    assert parse({"qoe": {"think_tds": None}}, DEFAULT).target.start_s(10.0, 500) == 10.0 + DEFAULT.ttft_s


def test_what_is_left_out_is_the_default_field_by_field() -> None:
    default = ReaderExpectation(DEFAULT, 2.0, yields=True, expected_tokens=7)
    assert parse(None, default) == default
    assert parse({"other": 1}, default) == default
    assert parse({"qoe": {"tds": 9}}, default) == ReaderExpectation(
        QoETarget(1.5, 9), 2.0, yields=True, expected_tokens=7
    )
    assert parse({"qoe": {"yield": False}}, default).yields is False
    assert parse({"qoe": {}}, DEFAULT) == ReaderExpectation(DEFAULT)


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ({"weight": 0}, r"custom_params.qoe.weight must be a number from 0.001 to 1000, got 0"),
        ({"weight": -1}, "weight"),
        ({"weight": 1001}, "weight"),
        ({"weight": float("nan")}, "weight"),
        ({"weight": True}, "weight"),
        ({"weight": "2"}, "weight"),
        ({"yield": 1}, r"custom_params.qoe.yield must be true or false, got 1"),
        ({"yield": None}, "yield"),
        ({"tokens": 0}, r"custom_params.qoe.tokens must be a whole number from 1 to 10000000, got 0"),
        ({"tokens": 2.5}, "tokens"),
        ({"tokens": True}, "tokens"),
        ({"tokens": 10_000_001}, "tokens"),
        ({"tds": 0}, "custom_params.qoe.tds"),
        ({"reasoning": "visible"}, r"custom_params.qoe.reasoning must be one of hidden, shown, got 'visible'"),
        ({"reasoning": None}, "reasoning"),
        (
            {"think_tds": 0},
            r"custom_params.qoe.think_tds must be a number of tokens/s from 1e-3 to 1e9, or infinite, got 0",
        ),
        ({"think_tds": "fast"}, "think_tds"),
        ({"speed": 3}, "custom_params.qoe.speed: unknown field .value 3.; known are ttft, tds, weight, yield, tokens"),
        ([1], "custom_params.qoe must be an object"),
    ],
)
def test_what_makes_no_sense_is_refused_with_field_and_value(said: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse({"qoe": said}, DEFAULT)


@pytest.mark.parametrize(
    "expectation",
    [
        ReaderExpectation(DEFAULT),
        ReaderExpectation(DEFAULT, 0.001),
        ReaderExpectation(QoETarget(1.5, 4.0, 50.0), reasoning="shown"),
        ReaderExpectation(QoETarget(1.5, 4.0, math.inf)),
        ReaderExpectation(DEFAULT, 1000.0, yields=True, expected_tokens=10_000_000),
    ],
)
def test_what_is_written_is_read_back_whole(expectation: ReaderExpectation) -> None:
    assert parse(to_custom_params(expectation), QoETarget(9, 9)) == expectation


def test_defaults_are_not_written() -> None:
    assert to_custom_params(ReaderExpectation(DEFAULT)) == {"qoe": {"ttft": 1.5, "tds": 4.0}}
