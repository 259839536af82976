"""``andes plan --search``: set-ups of one engine, halved until the best is left."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import pytest
import yaml

from andes_sglang.cli import main
from andes_sglang.flags import UsageError
from andes_sglang.objective import parse_objective
from andes_sglang.sim import plan_cli, profile, search_cli
from andes_sglang.sim.configure import configure
from andes_sglang.sim.search import LADDER, OPTIONS, Found, Setup, Space, engine_of, held_rate, search


@pytest.mark.parametrize("name", profile.names())
def test_every_set_up_that_is_drawn_is_an_engine(name: str) -> None:
    loaded = profile.load(name)
    space = Space.of(loaded, 500.0)
    drawn = space.draws(40, seed=3)
    assert drawn[:2] == [space.defaults, space.deployed]
    assert len(drawn) == len(set(drawn)) == 40
    assert {name for setup in drawn for name, _ in setup.options} == set(OPTIONS), "each is tried"
    for setup in drawn:
        engine, policy = configure(engine_of(loaded, setup), setup.arm)
        assert engine.devices == setup.devices
        assert engine.mixed == setup.mixed
        assert setup.chunk_tokens in (None, engine.chunk_tokens)
        assert policy() is not None
    assert space.draws(40, seed=3) == drawn
    assert space.draws(40, seed=4) != drawn


def test_defaults_are_the_profiles_own_and_only_what_fits_is_tried() -> None:
    big = profile.load("h100x4-llama-3.1-70b")
    devices = Space.of(big, 500.0).choices["devices"]
    assert devices[0] == 4
    assert 1 not in devices, "70B does not fit one H100"
    measured = Space.of(profile.load("cpu-tiny-llama"), 500.0)
    assert measured.choices["devices"] == (1,), "what was measured on one device says nothing of two"
    assert measured.defaults.serve_flags() == "--policy andes"
    engine, _ = configure(big.engine, Space.of(big, 500.0).defaults.arm)
    assert (engine.chunk_tokens, engine.mixed, engine.max_running) == (
        big.engine.chunk_tokens,
        False,
        big.engine.max_running,
    )
    with pytest.raises(ValueError, match=r"devices 1: the profile h100x4-llama-3\.1-70b cannot tell"):
        engine_of(big, Setup(1))


def test_the_line_to_serve_with_and_the_charts_values_say_the_same() -> None:
    setup = Setup(2, chunk_tokens=4096, mixed=True, offload=True, options=(("fairness", -1.0), ("horizon_s", 30.0)))
    assert setup.serve_flags() == (
        "--policy andes --tp-size 2 --enable-mixed-chunk --preemption-mode offload --chunked-prefill-size 4096 "
        "--policy-option fairness=-1 --policy-option horizon_s=30"
    )
    values = yaml.safe_load(setup.chart_values("mine"))
    assert values == {"engine": {
        "profile": "mine", "policy": "andes", "policyOptions": {"fairness": -1, "horizon_s": 30}, "gpu": {"count": 2},
        "args": ["--tp-size=2", "--enable-mixed-chunk", "--preemption-mode=offload", "--chunked-prefill-size=4096"],
    }}  # fmt: skip
    assert yaml.safe_load(Setup(1).chart_values("mine")) == {
        "engine": {"profile": "mine", "policy": "andes", "args": []}
    }


SPACE = Space({
    "devices": (1,), "chunk_tokens": (None, 512, 1024, 4096), "max_running": (None, 64), "mixed": (False, True),
    "offload": (False, True),
})  # fmt: skip


def true_rate(setup: Setup) -> float:
    """One set-up is the best by far, and what is near it is better than the rest."""
    return (
        10.0
        * (1.3 if setup.mixed else 1.0)
        * (1.2 if setup.chunk_tokens == 1024 else 1.0)
        * (0.9 if setup.max_running else 1.0)
    )


def margin(setup: Setup, rate_rps: float, share: float) -> float:
    return true_rate(setup) / rate_rps - 1.0


@pytest.mark.parametrize("guess_rps", [1.5, 9.0, 60.0])
def test_the_held_rate_is_found_wherever_the_search_begins(guess_rps: float) -> None:
    held = held_rate(margin, SPACE.defaults, guess_rps)
    assert 10.0 / LADDER < held <= 10.0
    assert held_rate(lambda *_: -1.0, SPACE.defaults, guess_rps) == 0.0


def test_halving_spends_little_on_most_and_finds_the_best() -> None:
    played: list[tuple[Setup, float]] = []

    def counted(setup: Setup, rate_rps: float, share: float) -> float:
        played.append((setup, share))
        return margin(setup, rate_rps, share)

    found = search(counted, SPACE, count=40, seed=1, guess_rps=8.0)
    assert found[0].setup == SPACE.defaults
    best = max(found, key=lambda one: one.held_rps)
    assert (best.setup.mixed, best.setup.chunk_tokens, best.setup.max_running) == (True, 1024, None)
    assert best.held_rps == pytest.approx(15.6, rel=LADDER - 1)
    assert all(
        isinstance(one, Found) and true_rate(one.setup) / LADDER <= one.held_rps <= true_rate(one.setup)
        for one in found
    )
    whole = {setup for setup, share in played if share == 1.0}
    assert len(whole) <= 13, "most are played on a part only"


BASE = (
    "plan",
    "--search",
    "--profile",
    "cpu-tiny-llama",
    "--duration",
    "10",
    "--tds",
    "4.5",
    "--seeds",
    "1",
    "--setups",
    "3",
)


def test_the_command_says_what_to_serve_with_and_how_much_more_it_holds(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*BASE, "--out", str(tmp_path)]) == 0
    result = json.loads((tmp_path / "plan.json").read_text())
    said = capsys.readouterr().out
    assert f"andes serve --model MODEL {result['chosen']['flags']}" in said
    assert result["chosen"]["chart"] in said
    assert result["chosen_held_rps_per_device"] >= result["default_held_rps_per_device"] > 0
    assert result["found"][0]["flags"] == "--policy andes"
    assert result["predicted"]["qoe"]["mean"] >= 0.95
    assert "simulated" in said


def test_flags_for_all_set_ups_are_said_and_are_no_longer_a_choice(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    passed = ("--chunked-prefill-size=512", "--max-running-requests", "4", "--policy-option", "length_guard=2")
    assert main([*BASE, "--duration", "4", "--out", str(tmp_path), *passed]) == 0
    result = json.loads((tmp_path / "plan.json").read_text())
    for one in [*result["found"], result["chosen"]]:
        assert one["flags"].startswith(f"--policy andes {' '.join(passed)}")
        assert one["flags"].count("--chunked-prefill-size") == one["flags"].count("--max-running-requests") == 1
    chart = yaml.safe_load(result["chosen"]["chart"])["engine"]
    assert chart["args"][:2] == ["--chunked-prefill-size=512", "--max-running-requests=4"]
    assert chart["policyOptions"]["length_guard"] == 2
    assert "On 1 fresh draw, which" in capsys.readouterr().out or result["gain"] == 0.0


@pytest.mark.parametrize("passed", [("--drafts", "3"), ("--drafts=readers",)])
def test_drafts_are_searched_on_the_profiles_own_devices_and_are_no_flag_of_an_engine(passed: tuple[str, ...]) -> None:
    loaded = profile.load("h100-llama-3.1-8b")
    space = Space.of(loaded, 500.0).under(passed)
    assert space.choices["devices"] == (1,), "what drafts cost on others is not known"
    for setup in space.draws(20, seed=1):
        engine, _ = configure(engine_of(loaded, setup), setup.arm, passed)
        assert engine.drafts
        assert "drafts" not in setup.serve_flags(passed) + setup.chart_values("mine", passed)


def test_what_an_engine_that_is_served_has_not_is_said_of_a_search_too(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(search_cli, "search", lambda _margin, space, **_: [Found(space.defaults, 1.0)])
    monkeypatch.setattr(search_cli, "held_rate", lambda *_: 1.0)
    packaged = resources.files("andes_sglang.sim") / "profiles" / "cpu-tiny-llama.toml"
    own = tmp_path / "own.toml"
    own.write_text(packaged.read_text().replace("[engine]", "[engine]\nkv_token_bytes = 4096"))
    passed = ("--preemption-mode", "offload", "--host-kv-codec", "int8")
    base = [str(own) if flag == "cpu-tiny-llama" else flag for flag in BASE]
    assert main([*base, "--out", str(tmp_path / "out"), *passed]) == 0
    said = capsys.readouterr().out
    assert "andes serve has no --host-kv-codec: an engine's host copies are exact" in said
    assert "own: answers that return from host memory are no longer exact: 1.0% of their tokens change" in said
    result = json.loads((tmp_path / "out" / "plan.json").read_text())
    assert "--host-kv-codec" not in result["chosen"]["flags"]
    assert len(result["unlike_served"]) == 2


def rig(trace: Path, *flags: str) -> search_cli._Rig:
    parser = argparse.ArgumentParser()
    plan_cli.add_arguments(parser, "plan")
    args = parser.parse_args(["--profile", "cpu-tiny-llama", "--trace", str(trace), *flags])
    return search_cli._Rig(args, profile.load("cpu-tiny-llama"), parse_objective("mean>=0.9"), ())


def test_texts_of_a_data_set_arrive_at_the_rate_that_is_asked_about(tmp_path: Path) -> None:
    talk = {"conversations": [{"from": "human", "value": "what? " * 20}, {"from": "gpt", "value": "that. " * 30}]}
    (tmp_path / "talks.json").write_text(json.dumps([talk] * 5))
    about = rig(tmp_path / "talks.json", "--rate", "3", "--duration", "40")
    few, many, half = about.demand(2.0, 1.0, 1), about.demand(8.0, 1.0, 1), about.demand(8.0, 0.5, 1)
    assert len(many) > 3 * len(few)
    assert 0.35 * len(many) < len(half) < 0.65 * len(many)


@pytest.mark.parametrize("scale", [0.5, 10.0])
def test_half_of_a_trace_is_half_of_its_requests_however_fast_it_is_played(scale: float, tmp_path: Path) -> None:
    rows = ({"arrival_s": float(k), "prompt_tokens": 9, "output_tokens": 9} for k in range(100))
    (tmp_path / "trace.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    about = rig(tmp_path / "trace.jsonl", "--rate-scale", str(scale))
    for rate_rps in (0.5, 4.0):
        whole, half = about.demand(rate_rps, 1.0, 1), about.demand(rate_rps, 0.5, 1)
        assert len(whole) == 100
        assert len(half) == pytest.approx(50, abs=1)
        assert float(half.describe()["rate_rps"] or 0.0) == pytest.approx(rate_rps, rel=0.05)


def test_where_all_arrive_at_once_there_is_no_rate_to_search(tmp_path: Path) -> None:
    row = json.dumps({"arrival_s": 0.0, "prompt_tokens": 9, "output_tokens": 9})
    (tmp_path / "trace.jsonl").write_text(f"{row}\n{row}\n")
    with pytest.raises(UsageError, match=r"--search: all requests of .*trace\.jsonl arrive at once: they have no rate"):
        rig(tmp_path / "trace.jsonl")


def test_an_objective_that_fresh_draws_miss_at_any_rate_is_said_in_one_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    margins = search_cli._Rig.margin

    def held_on_the_first(rig: Any, setup: Setup, rate_rps: float, share: float, seeds: Sequence[int]) -> float:
        return margins(rig, setup, rate_rps, share, seeds) if max(seeds) < search_cli.FRESH else -1.0

    monkeypatch.setattr(search_cli._Rig, "margin", held_on_the_first)
    assert main([*BASE, "--out", str(tmp_path)]) == 1
    error = capsys.readouterr().err
    assert "andes plan: cpu-tiny-llama holds mean>=0.95 with seed 1, but on 1 fresh draw at no rate" in error
    assert not (tmp_path / "plan.json").exists()


def test_an_objective_that_is_missed_at_any_rate_is_said_too(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(search_cli._Rig, "margin", lambda *_: -1.0)
    assert main([*BASE, "--out", str(tmp_path)]) == 1
    assert "andes plan: cpu-tiny-llama holds mean>=0.95 at no rate that was tried" in capsys.readouterr().err


def test_a_price_has_no_say_in_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "--search", "--profile", "cpu-tiny-llama@2", "--out", str(tmp_path)]) == 2
    assert "--profile cpu-tiny-llama@2: a price is of mixes; --search counts" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "text"),
    [
        (("--router", "best"), "--router: unknown routing policy 'best'"),
        (("--no-such-flag",), "unknown argument '--no-such-flag'"),
        (("--profile", "l4-llama-3.1-8b"), "--search: one --profile at a time, got 2"),
        (("--policies", "stock"), "--search: chooses flags and options of andes itself; not with --policies or --arm"),
        (("--setups", "0"), "--setups must be >= 1, got 0"),
        (("--router", "least_load"), "--router least_load: not with --search, which looks at one engine"),
        (("--rate", "8"), "--rate 8: not with --search, which looks for the rate that an engine holds"),
        (("--max-replicas", "8"), "--max-replicas 8: not with --search"),
        (("--reasoning", "shown"), "--reasoning shown: burst 2x"),
    ],
)
def test_what_it_does_not_do_is_refused(
    flags: tuple[str, ...], text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*BASE, "--out", str(tmp_path), *flags]) == 2
    assert text in capsys.readouterr().err
