"""Sketches: the distribution of a fleet is the sum of its parts."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from andes_sglang.sketch import BINS, LONGEST_S, DurationSketch, Sketch

SCORES = st.lists(st.floats(0, 1), max_size=200)


def of(scores: list[float]) -> Sketch:
    sketch = Sketch()
    for score in scores:
        sketch.add(score)
    return sketch


@given(SCORES, SCORES)
def test_merging_is_adding(left: list[float], right: list[float]) -> None:
    merged = Sketch.merged([of(left), of(right)])
    whole = of(left + right)
    assert merged.counts == whole.counts
    assert merged.total == pytest.approx(whole.total)


@given(SCORES.filter(bool), st.floats(0, 1))
def test_quantiles_are_off_by_a_bin_at_most(scores: list[float], q: float) -> None:
    exact = float(np.quantile(scores, q, method="lower"))
    found = of(scores).quantile(q)
    assert found is not None
    assert found - 1e-6 <= exact <= found + 1 / BINS + 1e-6


def test_counts_means_and_shares_are_exact() -> None:
    sketch = of([0.949999, 0.95, 0.99, 1.0])
    assert (sketch.count, sketch.mean) == (4, pytest.approx(0.97249975))
    assert (sketch.share_at_least(0.95), sketch.share_at_least(0.99), sketch.share_at_least(1.0)) == (0.75, 0.5, 0.25)


def test_every_edge_belongs_to_the_bin_above_it() -> None:
    assert of([k / BINS for k in range(BINS + 1)]).counts == dict.fromkeys(range(BINS + 1), 1)
    assert of([0.0049, 0.9999]).counts == {0: 1, 199: 1}


def test_quantiles_of_a_known_distribution() -> None:
    sketch = of([0.1, 0.2, 0.3, 0.4, 0.5])
    assert [sketch.quantile(q) for q in (0.0, 0.24, 0.25, 0.5, 1.0)] == [0.1, 0.1, 0.2, 0.3, 0.5]
    assert of([0.3, 0.3, 0.7]).quantile(0.5) == 0.3


def test_an_empty_sketch_has_no_figures() -> None:
    empty = Sketch()
    assert (empty.count, empty.mean, empty.quantile(0.5), empty.share_at_least(0.5)) == (0, None, None, None)
    assert Sketch.merged([]).to_dict() == empty.to_dict()


def test_merging_leaves_the_parts_as_they_are() -> None:
    part = of([0.5])
    whole = Sketch.merged([part, part, part])
    whole.add(0.5)
    assert (part.counts, part.total) == ({100: 1}, 0.5)
    assert (whole.counts, whole.total) == ({100: 4}, 2.0)


def test_what_others_read_of_it() -> None:
    said = of([0.0, *[0.96] * 9, *[1.0] * 10]).to_dict()
    assert said["counts"] == {"0": 1, "192": 9, "200": 10}
    assert (said["count"], said["total"], said["mean"]) == (20, pytest.approx(18.64), pytest.approx(0.932))
    assert (said["p5"], said["p50"], said["share_095"], said["share_099"]) == (0.0, 0.96, 0.95, 0.5)


def test_a_quantile_is_the_score_of_its_rank() -> None:
    sketch = of([0.1, 0.2, 0.3, 0.3])
    assert [sketch.quantile(q) for q in (0.0, 0.3, 0.34, 0.66, 0.67, 1.0)] == [0.1, 0.1, 0.2, 0.2, 0.3, 0.3]
    assert Sketch().quantile(0.5) is None
    assert Sketch().share_at_least(0.0) is None


def test_what_is_sent_can_be_read() -> None:
    assert of([0.1] * 1 + [0.955] * 18 + [1.0]).to_dict() == {
        "counts": {"20": 1, "191": 18, "200": 1}, "total": pytest.approx(0.1 + 18 * 0.955 + 1.0), "count": 20,
        "mean": pytest.approx((0.1 + 18 * 0.955 + 1.0) / 20), "p5": 0.1, "p50": 0.955, "share_095": 0.95, "share_099": 0.05,
    }  # fmt: skip
    assert Sketch.from_dict({"counts": {"7": 0, "200": 1}, "total": 1}).mean == 1.0


def test_over_the_wire_and_back() -> None:
    sketch = of([0.0, 0.5, 1.0])
    back = Sketch.from_dict(json.loads(json.dumps(sketch.to_dict())))
    assert (back.counts, back.total) == (sketch.counts, sketch.total)
    assert Sketch().to_dict()["mean"] is None


@pytest.mark.parametrize(
    "data",
    [
        {},
        [],
        {"counts": {"1": 1}},
        {"counts": {"1": 1}, "total": None},
        {"counts": {"x": 1}, "total": 0},
        {"counts": {"201": 1}, "total": 0},
        {"counts": {"-1": 1}, "total": 0},
        {"counts": {"1": -1}, "total": 0},
        {"counts": {"1": 1.5}, "total": 0},
        {"counts": [1], "total": 0},
    ],
)
def test_what_is_no_sketch_is_refused(data: dict[str, object]) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 (the text is Python's for a key that is no number)
        Sketch.from_dict(data)


def test_what_is_just_a_sketch_is_read() -> None:
    sketch = Sketch.from_dict({"counts": {"0": 0, "200": 2}, "total": 2})
    assert (sketch.counts, sketch.total) == ({0: 0, 200: 2}, 2.0)


@pytest.mark.parametrize("score", [-0.1, 1.1, float("nan")])
def test_scores_outside_are_refused(score: float) -> None:
    with pytest.raises(ValueError, match="score must be in"):
        Sketch().add(score)


@given(st.lists(st.floats(0, 80_000), min_size=1, max_size=200), st.floats(0, 1))
def test_durations_are_told_two_per_cent_too_long_at_most(seconds: list[float], q: float) -> None:
    sketch = DurationSketch()
    for each in seconds:
        sketch.add(each)
    exact = float(np.quantile(seconds, q, method="lower"))
    found = sketch.quantile(q)
    assert found is not None
    assert exact - 1e-3 <= found <= 1.0201 * max(exact, 1e-3)
    assert sketch.mean == pytest.approx(float(np.mean(seconds)))


def test_what_never_came_is_a_day_and_nothing_is_no_time() -> None:
    sketch = DurationSketch()
    for each in (0.0, 0.0, float("inf")):
        sketch.add(each)
    assert (sketch.quantile(0.5), sketch.quantile(1.0)) == (0.0, LONGEST_S)
    again = DurationSketch.from_dict(json.loads(json.dumps(sketch.to_dict())))
    assert DurationSketch.merged([again, sketch]).counts == {k: 2 * n for k, n in sketch.counts.items()}


@pytest.mark.parametrize("seconds", [-0.1, float("nan")])
def test_what_is_no_duration_is_refused(seconds: float) -> None:
    with pytest.raises(ValueError, match="duration must be seconds >= 0"):
        DurationSketch().add(seconds)


def test_bins_beyond_the_last_are_refused_by_either() -> None:
    for kind in (Sketch, DurationSketch):
        kind.from_dict({"counts": {str(kind.last): 1}, "total": 1.0})
        with pytest.raises(ValueError, match="counts"):
            kind.from_dict({"counts": {str(kind.last + 1): 1}, "total": 1.0})
