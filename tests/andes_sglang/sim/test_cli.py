"""``andes simulate`` as its users meet it."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from andes_sglang.cli import main
from andes_sglang.request import read_records
from benchmarks.processes import hear_ctrl_c

SHORT = ("--profile", "cpu-tiny-llama", "--duration", "20", "--tds", "4.5")


def simulate(out: Path, *flags: str) -> dict[str, Any]:
    rate = () if {"--rate", "--load", "--trace"} & {*flags} else ("--rate", "2")
    assert main(["simulate", *SHORT, *rate, "--out", str(out), "--force", *flags]) == 0
    return dict(json.loads((out / "summary.json").read_text()))


def test_what_is_refused_costs_no_earlier_results(tmp_path: Path) -> None:
    (tmp_path / "summary.json").write_text("{}")
    simulated = ["simulate", *SHORT, "--out", str(tmp_path), "--force"]
    for wrong in (["--rate", "-1"], ["--rate", "2", "--prompt", "1000000"]):
        assert main([*simulated, *wrong]) == 2
    assert main(["bench", "--url", "here:1", "--rate", "1", "--out", str(tmp_path), "--force"]) == 2
    assert [path.name for path in tmp_path.iterdir()] == ["summary.json"]


def test_it_leaves_what_compare_leaves_and_says_that_it_is_simulated(tmp_path: Path) -> None:
    result = simulate(tmp_path, "--repeats", "2")
    assert list(result["policies"]) == ["stock", "stock-mixed", "andes"]
    assert result["engine"]["what"].startswith("SIMULATED")
    assert "SIMULATED" in (tmp_path / "report.html").read_text()
    for name, figures in result["policies"].items():
        assert len(figures["repeats"]) == 2
        records = read_records(tmp_path / f"records-{name}-1.jsonl.gz")
        assert len(records) == figures["repeats"][0]["requests"]
        assert sum(r.qoe for r in records) / len(records) == pytest.approx(
            figures["repeats"][0]["qoe"]["mean"], abs=1e-3
        )
        assert {"queue", "running", "open"} <= set(json.loads((tmp_path / f"samples-{name}-1.json").read_text())[0])


def test_engine_flags_and_arms_change_the_engine(tmp_path: Path) -> None:
    arms = ("--policies", "stock", "--arm", "small=stock:--max-total-tokens 1000 --max-running-requests 2")
    result = simulate(tmp_path, *arms, "--arm", "late=andes:--policy-option stall_bound_s=5")
    assert list(result["policies"]) == ["stock", "small", "late"]
    assert result["policies"]["small"]["qoe"]["mean"] < result["policies"]["stock"]["qoe"]["mean"] - 0.1
    assert (
        simulate(tmp_path, "--policies", "stock", "--max-total-tokens", "1000")["engine"]["kv_capacity_tokens"] == 1000
    )


def test_load_is_a_share_of_what_the_replicas_sustain(tmp_path: Path) -> None:
    result = simulate(
        tmp_path, "--policies", "stock", "--load", "0.5", "--shape", "poisson", "--duration", "300", "--replicas", "2"
    )
    served = result["policies"]["stock"]["tokens_per_s"]
    assert served == pytest.approx(0.5 * result["engine"]["sustained_tokens_per_s"], rel=0.15)


def test_rates_by_window_are_drawn_while_they_are_served(tmp_path: Path) -> None:
    rates = tmp_path / "rates.csv"
    rates.write_text("window_start_s,rate_rps\n0,10\n30,1\n60,20\n")
    result = simulate(tmp_path, "--policies", "stock", "--trace", str(rates), "--rate-scale", "0.2", "--duration", "60")
    assert result["workload"]["requests"] == round(30 * 2 + 30 * 0.2)
    assert 45 <= result["policies"]["stock"]["requests"] <= 90


def test_flags_that_rates_cannot_obey_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rates = tmp_path / "rates.csv"
    rates.write_text("window_start_s,rate_rps\n0,10\n30,1\n")
    assert main(["simulate", "--profile", "cpu-tiny-llama", "--trace", str(rates), "--max-prompt", "10"]) == 2
    assert "--max-prompt: not with" in capsys.readouterr().err


def test_ctrl_c_leaves_what_was_computed(tmp_path: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "andes_sglang.cli",
        "simulate",
        "--profile",
        "h100-llama-3.1-8b",
        "--policies",
        "stock",
    ]
    command += ["--shape", "poisson", "--rate", "5", "--duration", "20000", "--out", str(tmp_path)]
    running = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        preexec_fn=hear_ctrl_c,
    )  # fmt: skip
    assert running.stderr is not None
    assert "done" in running.stderr.readline()
    running.send_signal(signal.SIGINT)
    said, complained = running.communicate(timeout=250)
    assert running.returncode == 130, complained
    assert "interrupted" in complained
    assert "QoE mean" in said
    result = json.loads((tmp_path / "summary.json").read_text())
    assert result["interrupted"]
    assert result["policies"]["stock"]["requests"] > 0


def test_policies_and_routers_of_your_own_go_by_module_and_class(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mine.py").write_text("""
from andes_sglang.policy.fcfs import Fcfs
from andes_sglang.routing import LeastLoad

class Mine(Fcfs):
    name = "mine"

class MostLoad(LeastLoad):
    name = "most_load"

    def order(self, new, views, now_s):
        return super().order(new, views, now_s)[::-1]
""")
    monkeypatch.syspath_prepend(str(tmp_path))
    flags = ("--policies", "fcfs,mine:Mine", "--arm", "small=mine:Mine:--max-running-requests 1", "--replicas", "2",
             "--rate", "4", "--router")  # fmt: skip
    spread = simulate(tmp_path / "a", *flags, "least_load")["policies"]
    heaped = simulate(tmp_path / "b", *flags, "mine:MostLoad")["policies"]
    assert spread["mine:Mine"]["qoe"] == spread["fcfs"]["qoe"]
    assert spread["small"]["qoe"]["mean"] < spread["mine:Mine"]["qoe"]["mean"], "an arm with flags of its own"
    assert heaped["fcfs"]["ttft_s"]["p50"] > spread["fcfs"]["ttft_s"]["p50"], "all on one of the two"


def test_of_many_requests_every_nth_record_is_kept_and_all_are_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("andes_sglang.sim.cli.MAX_RECORDS", 10)
    result = simulate(tmp_path, "--policies", "stock", "--limit", "30")
    assert result["policies"]["stock"]["requests"] == 30
    kept = read_records(tmp_path / "records-stock-1.jsonl.gz")
    assert sorted(r.index for r in kept) == list(range(0, 30, 3))


def test_a_request_that_one_arm_cannot_hold_is_named_before_any_arm_runs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ("--policies", "stock", "--arm", "small=stock:--max-total-tokens 500")
    assert main(["simulate", *SHORT, "--out", str(tmp_path / "out"), *flags, "--prompt", "100-600"]) == 2
    assert "clamp it with --max-prompt" in capsys.readouterr().err
    assert not list((tmp_path / "out").glob("records-*"))


@pytest.mark.parametrize(
    ("flags", "text"),
    [
        (("--profile", "h200"), "profile 'h200': not known; give a .toml file or one of"),
        (("--policies", "best"), "unknown policy 'best'"),
        (("--policies", "stock", "--fast"), "unknown argument '--fast'"),
        (("--arm", "x=stock:--policy-option a=1"), "policy stock has no options"),
        (("--arm", "x=andes:--policy-option horizon_s=-1"), "andes: horizon_s must be > 0"),
        (("--policies", "clairvoyant"), "must be given the final lengths of answers"),
        (("--policies", "no.such:Policy"), "policy 'no.such:Policy' cannot be loaded"),
        (("--router", "best"), "--router: unknown routing policy 'best'; choose one of least_load"),
        (("--decision-interval", "-1"), "--decision-interval must be >= 0 seconds, got -1.0"),
        (("--load", "-0.5", "--shape", "poisson"), "--load -0.5: must be > 0"),
        (("--load", "95"), "--load 95: a fraction, at most 5; 95 % would be 0.95"),
        (("--load", "0.5", "--rate", "3"), "--rate 3: not with --load 0.5, which sets it"),
        (("--load", "0.5", "--shape", "square", "--prompt", "9000"), "square"),
        (("--max-total-tokens", "0"), "--max-total-tokens: must be a whole number >= 1, got '0'"),
        (("--max-total-tokens", "many"), "--max-total-tokens: must be a whole number >= 1, got 'many'"),
        (("--replicas", "0"), "--replicas must be >= 1, got 0"),
        (("--prompt", "9000"), "request 0: prompt_tokens 9000 with output_tokens"),
    ],
)  # fmt: skip
def test_bad_input_is_refused_in_one_sentence(
    flags: tuple[str, ...], text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["simulate", *SHORT, "--out", str(tmp_path), *flags]) == 2
    error = capsys.readouterr().err
    assert text in error
    assert "Traceback" not in error
