"""The run on a GPU, as far as no GPU is needed: its files, its time, the machine's side of the kit, flags that SGLang takes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

import pytest

from andes_sglang.adapter.launch import STANDINS
from andes_sglang.bench.engine import Engine
from andes_sglang.sim import profile as profiles
from benchmarks.gpu import measure, predict, steps
from benchmarks.gpu.journal import Journal
from benchmarks.gpu.model import write_model
from benchmarks.gpu.setting import ARMS, GPU, REHEARSAL, surge

ROOT = Path(__file__).parents[2]
MAX_FILES = 8
"""That come back from a machine which is lent."""


def test_a_step_that_fails_is_told_and_the_next_has_its_turn(tmp_path: Path) -> None:
    (tmp_path / "logs").mkdir()
    (tmp_path / "logs" / "engine.log").write_text("no kernel")
    journal = Journal(tmp_path / "out", tmp_path / "logs", 60.0, {"hardware": "a test"})

    def fails(entry: dict[str, Any]) -> None:
        entry["rows"] = [{"half": 0.5}]
        raise RuntimeError("no kernel")

    assert not journal.step("first", 1.0, fails)
    told = json.loads((tmp_path / "out" / "results.json").read_text())
    assert told["steps"][0]["state"] == "failed: RuntimeError: no kernel"
    assert told["steps"][0]["rows"] == [{"half": 0.5}]
    assert journal.step("second", 1.0, lambda entry: entry.update(rows=[{"ms": 12.5}]))
    assert not journal.step("third", 61.0, fails)
    table = (tmp_path / "out" / "table.md").read_text()
    assert "- second: done\n    ms 12.5\n- third: left out: " in table
    with tarfile.open(tmp_path / "out" / "logs.tar.gz") as packed:
        assert packed.getnames() == ["engine.log"]
    assert len(list((tmp_path / "out").iterdir())) + len(["profile.toml", "profile-records.jsonl.gz"]) <= MAX_FILES


def test_a_run_that_is_killed_in_a_step_leaves_those_before(tmp_path: Path) -> None:
    code = (
        "import os, pathlib, sys; from benchmarks.gpu.journal import Journal; out = pathlib.Path(sys.argv[1]);"
        "j = Journal(out, out, 60.0, {'hardware': 'a test'}); j.step('first', 1.0, lambda e: e.update(rows=[{'ms': 7}]));"
        "j.step('second', 1.0, lambda e: os.kill(os.getpid(), 9))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "out")], cwd=ROOT, check=False, capture_output=True
    )
    assert done.returncode == -9
    (first,) = json.loads((tmp_path / "out" / "results.json").read_text())["steps"]
    assert (first["state"], first["rows"]) == ("done", [{"ms": 7}])


def test_the_model_has_a_word_for_each_token(tmp_path: Path) -> None:
    from transformers import AutoConfig, AutoTokenizer

    out = str(write_model(tmp_path / "model", REHEARSAL.large))
    tokenizer, config = AutoTokenizer.from_pretrained(out), AutoConfig.from_pretrained(out)
    size = REHEARSAL.large.vocabulary
    assert len(tokenizer) == config.vocab_size == size
    assert len(tokenizer.decode([10, size - 4]).split()) == 2
    assert (config.bos_token_id, config.eos_token_id) == (tokenizer.bos_token_id, tokenizer.eos_token_id)


def test_sglang_knows_every_flag() -> None:
    code = (
        "import argparse, json, sys; from sglang.srt.server_args import ServerArgs; p = argparse.ArgumentParser();"
        "ServerArgs.add_cli_args(p); print(p.parse_known_args(json.loads(sys.argv[1]))[1])"
    )
    flags = ["--model-path", "x", "--load-format", "dummy", "--enable-metrics", *GPU.flags, *GPU.sizes]
    flags += ["--enable-mixed-chunk", "--no-such-flag"]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([os.environ.get("PYTHONPATH", ""), str(STANDINS)])}
    done = subprocess.run(
        [sys.executable, "-c", code, json.dumps(flags)], env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines()[-1] == "['--no-such-flag']"


def test_what_returns_fits_the_pool_and_the_time() -> None:
    for setting in (GPU, REHEARSAL):
        room = setting.pool_tokens - 1024  # SGLang's reserve for a request, twice
        assert max(setting.resume_tokens) + steps.WRITTEN_ANSWER_TOKENS <= room
        assert 2 * steps.FILLER_SHARE * setting.pool_tokens > setting.pool_tokens
    needed_s = (
        measure.NEEDS_S["start"] + sum(measure.NEEDS_S.values()) + len(ARMS) * len(measure.SEEDS) * 1.4 * GPU.surge_s
    )
    assert needed_s + measure.RESERVE_S < 540


def test_the_machine_gets_what_the_kit_says_and_the_time_that_is_left(tmp_path: Path) -> None:
    script = tmp_path / "benchmarks" / "gpu" / "run.sh"
    script.parent.mkdir(parents=True)
    script.write_bytes((ROOT / "benchmarks" / "gpu" / "run.sh").read_bytes())
    for name, text in {
        ".kit/part1/install.sh": '[ "$1" = none ] && echo "kit: CUDA_HOME=/opt/cuda nvcc=/usr/bin/nvcc"; sleep 1',
        ".kit/andes/andes.whl": "",
        "bin/python3": '#!/bin/bash\necho "$CUDA_HOME|$PYTHONPATH|$*" >> calls',
    }.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    (tmp_path / "bin" / "python3").chmod(0o755)
    environment = {
        "PATH": f"{tmp_path}/bin:{os.environ['PATH']}", "OUT": "back", "LIMIT_S": "300", "KIT_SITE": "/site",
    }  # fmt: skip
    subprocess.run(["bash", str(script)], env=environment, check=True, capture_output=True)
    pip, run = (tmp_path / "calls").read_text().splitlines()
    assert "pip install" in pip
    assert pip.endswith("--target /site .kit/andes/andes.whl")
    assert run.startswith("/opt/cuda|/site|-m benchmarks.gpu.measure --out back --limit-s ")
    assert int(run.rpartition(" ")[2]) < 300


def test_what_was_measured_stands_beside_the_prediction(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    figures = {"qoe": {"mean": 0.8123, "p5": 0.5}, "ttft_s": {"p90": 1.5}, "stall_s": {"longest_p90": 0.0},
               "tokens_per_s": 1000.0, "preemptions_per_request": None}  # fmt: skip
    results = {"steps": [
        {"step": "calibrate", "state": "done", "rate_rps": 2.0},
        {"step": "surge, seed 2: andes mixed", "state": "done", "figures": figures},
        {"step": "resumes", "state": "failed: it broke", "rows": [{"context_tokens": 1024, "computed_ms": 41.4}]},
    ]}  # fmt: skip
    (tmp_path / "results.json").write_text(json.dumps(results))
    told = "\n".join(predict._tables(profiles.load("h100-llama-3.1-8b"), results))
    assert "|  | GPU | 0.812 | 0.500 | 1.5 | 0.0 | 1000 | - |" in told
    assert told.count("not measured") == 2 + 1 + 2 * 2
    assert "| 41 |" in told
    assert "2.00 requests/s" in told


def test_the_surge_is_the_same_for_every_arm_of_a_seed() -> None:
    assert surge(GPU, 5.0, 1).requests == surge(GPU, 5.0, 1).requests != surge(GPU, 5.0, 2).requests


def test_a_limit_without_time_is_refused(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["measure.py", "--out", "x", "--limit-s", "5"])
    with pytest.raises(SystemExit):
        measure.main()
    assert "--limit-s 5: must be > 10" in capsys.readouterr().err


@pytest.mark.engine
@pytest.mark.timeout(600)
def test_contexts_return_from_host_memory(tmp_path: Path) -> None:
    """On the engine of the rehearsal: what was there before the fillers is loaded, not computed."""
    model = write_model(tmp_path / "model", REHEARSAL.large)
    arm = ARMS[measure.OFFLOAD]
    flags = (*REHEARSAL.sizes, *arm.flags, "--host-kv-gib", str(REHEARSAL.host_gib))
    engine: Engine = steps.engine_of(REHEARSAL, model, arm.policy, flags, tmp_path / "engine.log")
    entry: dict[str, Any] = {}
    with engine:
        steps.resumes(engine, REHEARSAL, entry)
    for row in entry["rows"]:
        assert row["loaded_tokens"] >= row["context_tokens"] - 2, row
        assert min(row["computed_ms"], row["loaded_ms"], row["on_device_ms"]) > 0
