"""The command line's flags of a workload."""

from __future__ import annotations

import argparse
from pathlib import Path

import pytest

from andes_sglang.qoe import QoETarget
from andes_sglang.workload import SyntheticWorkload, Workload, WorkloadError, add_arguments, from_arguments


def asked(*flags: str) -> Workload | SyntheticWorkload:
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    return from_arguments(parser.parse_args(flags), 5)


@pytest.fixture
def trace(tmp_path: Path) -> Path:
    path = tmp_path / "t.csv"
    path.write_text("arrival_s,prompt_tokens,output_tokens,tds\n0,100,40,\n1,100,40,7\n2,20000,40,\n3,100,40,\n")
    return path


@pytest.fixture
def rates(tmp_path: Path) -> Path:
    path = tmp_path / "r.csv"
    path.write_text("window_start_s,rate_rps\n0,10\n600,20\n")
    return path


def test_without_flags_it_is_a_burst_of_three_minutes() -> None:
    workload = asked()
    assert workload.name == "burst 2x for 35% of 180 s, 1.6/s on average"
    assert workload == asked("--shape", "burst", "--duration", "180", "--population", "reading")
    assert {r.target.ttft_s for r in workload} == {1.0}


def test_a_shape_is_cut_and_clamped() -> None:
    workload = asked("--limit", "5", "--max-prompt", "30", "--max-output", "20")
    assert [(r.prompt_tokens, r.output_tokens) for r in workload] == [(30, 20)] * 5


def test_a_trace_is_cut_scaled_and_read_at_the_speed_asked_for(trace: Path) -> None:
    workload = asked("--trace", str(trace), "--start", "1", "--limit", "2", "--max-output", "30", "--rate-scale", "2",
                     "--ttft", "0", "--tds", "4")  # fmt: skip
    assert [(r.arrival_s, r.output_tokens, r.target) for r in workload] == [
        (0.0, 30, QoETarget(1.0, 7.0)),
        (0.5, 30, QoETarget(4.0, 4.0)),
    ]


def test_rates_are_drawn_from_with_the_lengths_of_a_shape(rates: Path) -> None:
    drawn = asked("--trace", str(rates), "--rate-scale", "0.1", "--duration", "900", "--prompt", "9", "--tds", "3")
    assert isinstance(drawn, SyntheticWorkload)
    assert (drawn.rates, drawn.prompt, drawn.output, drawn.seed) == (((600.0, 1.0), (300.0, 2.0)), "9", "150-250", 5)
    assert drawn.readers == ((1.0, QoETarget(1.0, 3.0)),)


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (("--limit", "3"), "--limit: not with"),
        (("--max-prompt", "3"), "--max-prompt: not with"),
        (("--output-scale", "2"), "--output-scale: not with"),
        (("--ttft", "0"), "--ttft 0: not with"),
        (("--reasoning", "shown"), "--reasoning shown: not with"),
        (("--prompt", "x"), "lengths 'x'"),
    ],
)
def test_flags_that_do_not_go_with_rates_are_refused(rates: Path, flags: tuple[str, ...], says: str) -> None:
    with pytest.raises(WorkloadError, match=says):
        asked("--trace", str(rates), *flags)


def test_a_format_that_is_named_is_not_guessed(rates: Path) -> None:
    with pytest.raises(WorkloadError, match=r"row 2, field window_start_s: unknown; known are"):
        asked("--trace", str(rates), "--format", "andes")


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (
            ("--rate-scale", "2"),
            "--rate-scale 2: is of traces; .*prompts.jsonl, a data set, which arrives as --rate and --shape say",
        ),
        (("--start", "30"), "--start 30: is of traces; .*prompts.jsonl, a data set"),
        (("--start", "1", "--rate", "2"), "--start 1: is of traces"),
    ],
)
def test_what_a_data_set_has_no_use_for_is_refused(flags: tuple[str, ...], says: str, tmp_path: Path) -> None:
    path = tmp_path / "prompts.jsonl"
    path.write_text('{"prompt": "aaaaaaaa", "output_tokens": 7}\n')
    with pytest.raises(WorkloadError, match=says):
        asked("--trace", str(path), *flags)
    assert asked("--trace", str(path), "--output-scale", "2").requests[0].output_tokens == 14


def test_a_format_of_nothing_is_refused() -> None:
    with pytest.raises(WorkloadError, match="--format azure: is of traces; goes with --trace"):
        asked("--format", "azure")


@pytest.mark.parametrize("flag", ["--rate-scale", "--start", "--prompt-scale", "--output-scale"])
def test_what_a_shape_has_no_use_for_is_refused(flag: str) -> None:
    with pytest.raises(WorkloadError, match=f"{flag} 2: is of traces; a shape arrives as --rate and --shape say"):
        asked(flag, "2")


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (("--cv", "3"), "--cv 3: is of --shape gamma; --shape burst has no use for it"),
        (("--shape", "poisson", "--intensity", "3"), "--intensity 3: is of --shape burst; --shape poisson has no use"),
        (("--shape", "gamma", "--width", "0.2"), "--width 0.2: is of --shape burst; --shape gamma has no use"),
        (("--characters-per-token", "3"), "--characters-per-token 3: is of data sets"),
        (("--tds", "3", "--population", "listening"), "--population listening: not with --tds 3"),
        (("--reasoning", "shown"), "--reasoning shown: burst 2x .* has no thoughts; a shape has them by --thought"),
    ],
)
def test_a_flag_that_a_shape_would_ignore_is_refused(flags: tuple[str, ...], says: str) -> None:
    with pytest.raises(WorkloadError, match=says):
        asked(*flags)


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (("--intensity", "3"), "--intensity 3: not with --trace, whose arrivals are played"),
        (("--cv", "2"), "--cv 2: not with --trace"),  # also where it says what would hold
        (("--width", "0.35"), "--width 0.35: not with --trace"),
        (("--prompt", "10"), "--prompt 10: not with --trace, whose lengths are played; see --prompt-scale and --max-prompt"),
        (("--output", "3-9"), "--output 3-9: not with --trace, whose lengths are played"),
        (("--thought", "50"), "--thought 50: not with --trace, whose lengths are played"),
        (("--characters-per-token", "4"), "--characters-per-token 4: is of data sets, which hold texts"),
        (("--reasoning", "shown"), "--reasoning shown: t.csv has no thoughts"),
    ],
)  # fmt: skip
def test_a_flag_that_a_trace_would_ignore_is_refused(trace: Path, flags: tuple[str, ...], says: str) -> None:
    with pytest.raises(WorkloadError, match=says):
        asked("--trace", str(trace), *flags)


def test_flags_that_hold_are_used(tmp_path: Path) -> None:
    assert asked("--shape", "gamma", "--cv", "3", "--rate", "2").name.startswith("gamma cv 3")
    path = tmp_path / "prompts.jsonl"
    path.write_text('{"prompt": "aaaaaaaa"}\n')
    drawn = asked("--trace", str(path), "--output", "7", "--characters-per-token", "2")
    assert {(r.prompt_tokens, r.output_tokens) for r in drawn} == {(4, 7)}
    with pytest.raises(WorkloadError, match=r"--prompt 9: not with .*prompts.jsonl, whose prompts are taken"):
        asked("--trace", str(path), "--prompt", "9")
    path.write_text('{"prompt": "aaaaaaaa", "output_tokens": 3}\n')
    with pytest.raises(WorkloadError, match=r"--output 9: not with .*prompts.jsonl, whose answers are taken; see"):
        asked("--trace", str(path), "--output", "9")
    shown = asked("--thought", "20", "--output", "10", "--reasoning", "shown")
    assert {(r.output_tokens, r.reason_tokens) for r in shown} == {(30, 0)}
