"""The last hour at a glance: refused apart from served, by model and class, minute by minute, bounded."""

from __future__ import annotations

from andes_api.history import MAX_KINDS, History

READING, CODE = ("m", "reading"), ("m", "code")


def test_refused_is_not_served_badly() -> None:
    history = History()
    for outcome, qoe in (("done", 1.0), ("abandoned", 0.5), ("shed", 0.0), ("failed", 0.0), ("error", None)):
        history.add(100.0, READING, outcome, qoe, retries=1, moves=2)
    history.add(100.0, CODE, "done", 0.9)
    found = history.of(130.0, 60.0)
    assert list(found) == [CODE, READING]
    told = found[READING].to_dict()
    assert {name: told[name] for name in ("done", "abandoned", "shed", "failed", "error", "retries", "moves")} == {
        "done": 1, "abandoned": 1, "shed": 1, "failed": 1, "error": 1, "retries": 5, "moves": 10,
    }  # fmt: skip
    assert (told["qoe"]["count"], told["qoe"]["mean"], told["qoe"]["share_095"]) == (2, 0.75, 0.5)


def test_a_window_ends_and_an_hour_is_kept() -> None:
    history = History()
    for minute in range(90):
        history.add(60.0 * minute, READING, "done", 1.0)
    now_s = 60.0 * 89 + 59
    assert history.of(now_s, 300.0)[READING].outcomes["done"] == 6  # five minutes and the one they began in
    assert history.of(now_s, 3600.0)[READING].outcomes["done"] == 60
    minutes = history.minutes(now_s)
    assert [now_s - start_s for start_s in minutes][-2:] == [119.0, 59.0]
    assert len(minutes) == 60
    assert history.minutes(now_s + 7200.0) == {}
    assert history.of(now_s + 7200.0, 3600.0) == {}


def test_kinds_are_bounded() -> None:
    history = History()
    for k in range(10 * MAX_KINDS):
        history.add(1.0, (f"model-{k}", "reading"), "done", 1.0)
    found = history.of(1.0, 60.0)
    assert len(found) == MAX_KINDS + 1
    assert found["other", "other"].outcomes["done"] == 9 * MAX_KINDS
