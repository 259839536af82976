"""What the soak draws, what it compares, and that its figures add up."""

from __future__ import annotations

import importlib.metadata
import json
import random
from collections import Counter
from pathlib import Path

import pytest

from benchmarks import soak
from benchmarks.soak_answers import MARGIN, MOST_ALIKE, Answers, length_told_apart


def test_every_kind_is_drawn_on_one_rank_and_on_two(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.metadata, "version", lambda _: "0.5.23")
    engines = [soak.draw(index, seed=0) for index in range(140)]
    drawn = Counter(
        (flag, engine.policy == "forced", "--tp" in engine.flags)
        for engine in engines
        for flag in (*engine.flags, "overlap")
        if flag.startswith(("mode=", "--enable-mixed", "--page-size", "--disable-overlap", "overlap"))
    )
    for flag in ("mode=park", "mode=release", "mode=offload", "mode=alternate", "--enable-mixed-chunk", "--page-size"):
        assert drawn[flag, True, False] > 3, flag
        assert drawn[flag, True, True], flag
    assert drawn["overlap", False, False] > 3
    assert engines == [soak.draw(index, seed=0) for index in range(140)]
    assert engines != [soak.draw(index, seed=1) for index in range(140)]


@pytest.mark.parametrize(
    ("tokens", "margins", "length"),
    [
        ([1, 2, 3], [1.0, 1.0, 1.0], 3),
        ([1, 2, 3], [1.0, MARGIN / 2, 1.0], 1),
        ([0, *[7] * MOST_ALIKE, 1], [1.0] * (MOST_ALIKE + 2), MOST_ALIKE + 2),
        ([0, *[7] * (MOST_ALIKE + 1), 1], [1.0] * (MOST_ALIKE + 3), MOST_ALIKE + 1),
    ],
    ids=["told apart", "two as likely", "a few alike", "too many alike"],
)
def test_an_answer_ends_where_a_wrong_token_would_not_be_seen(
    tokens: list[int], margins: list[float], length: int
) -> None:
    assert length_told_apart(tokens, margins) == length


def test_answers_are_read_from_the_file_and_fit_the_pool(tmp_path: Path) -> None:
    known = [([9] * length, [1] * 50) for length in (600, 5, 40)]
    (tmp_path / "expected.json").write_text(json.dumps(known))
    answers = Answers.of(tmp_path / "no model", tmp_path)
    rng = random.Random(0)  # noqa: S311 - prompts, no secrets
    drawn = Counter(len(answers.draw(rng, room_tokens=500.0)[0]) for _ in range(200))
    assert set(drawn) == {5, 40}
    assert drawn[5] > 3 * drawn[40]


def test_faults_and_ranks_are_told_apart_in_the_total() -> None:
    counted = {"answers": 5, "aborted": 1, "tokens": 100}
    engines = [
        {"index": 0, "flags": ["--tp", "2"], "preemptions": {"park": 7}, "faults": [], **counted},
        {"index": 1, "flags": [], "preemptions": {"park": 2, "release": 4}, "faults": ["wrong tokens"], **counted},
    ]
    said = soak.total(engines).splitlines()
    assert said[0] == (
        "2 engines, 10 answers (2 aborted), 200 tokens; 13 times off the engine: "
        "2 park on one rank, 7 park on two ranks, 4 release on one rank"
    )
    assert said[1:] == ["1 faults", "engine 1: wrong tokens"]


def test_an_interrupted_wave_is_an_interruption_also_where_its_engine_has_ended(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Ended:
        def post(self, *_: object) -> None:
            raise ConnectionRefusedError

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(soak.Load, "_stream", interrupted)
    answers, drawn = Answers([([1], [2])]), soak.draw(0, seed=0)
    load = soak.Load(Ended(), answers, drawn, soak.Counts())  # type: ignore[arg-type]
    with pytest.raises(KeyboardInterrupt):
        load.wave(1.0, random.Random(0))  # noqa: S311 - no secrets
