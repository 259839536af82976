"""``andes profile``: from what was seen of an engine to a file that simulates it."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest

from andes_sglang.bench.client import EndpointError
from andes_sglang.cli import main
from andes_sglang.profiling import costs_from_metrics, load_for, measure
from andes_sglang.request import RequestRecord, read_records, write_records
from andes_sglang.sim import profile
from andes_sglang.sim.engine import Costs, EngineModel, Overlap
from andes_sglang.sim.fit import FitError
from andes_sglang.sim.replica import simulate
from andes_sglang.summary import INTERRUPTED
from andes_sglang.workload import Workload

CPU = profile.load("cpu-tiny-llama").engine
SIZES = ("--kv-tokens", "8192", "--max-running", "64", "--chunk-tokens", "8192")


def test_records_become_a_profile_that_costs_the_same(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    load = load_for(CPU.kv_capacity_tokens, CPU.max_running, CPU.chunk_tokens, 120.0)
    write_records(tmp_path / "records.jsonl.gz", simulate(CPU, None, load))
    out = tmp_path / "mine.toml"
    assert main(["profile", "--records", str(tmp_path / "records.jsonl.gz"), "--out", str(out), *SIZES]) == 0
    assert "decode steps" in capsys.readouterr().err
    found = profile.load(str(out)).engine
    assert (found.kv_capacity_tokens, found.max_running, found.overlap) == (8192, 64, Overlap.SYNC)
    for batch, context in ((1, 300), (16, 4000), (32, 8000)):
        assert found.costs.decode_s(batch, context) == pytest.approx(CPU.costs.decode_s(batch, context), rel=0.08)
    assert found.costs.prefill_s(600) == pytest.approx(CPU.costs.prefill_s(600), rel=0.15)


def test_it_goes_on_until_it_has_seen_enough(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    whole = load_for(CPU.kv_capacity_tokens, CPU.max_running, CPU.chunk_tokens, 120.0)
    short = Workload("a part", whole.requests[:40])
    seeds: list[int] = []

    def replayed(seed: int) -> list[RequestRecord]:
        seeds.append(seed)
        return list(simulate(CPU, None, short))

    kept = tmp_path / "kept.jsonl.gz"
    records, fit = measure(replayed, CPU.chunk_tokens, kept)
    assert seeds[:2] == [1, 2]
    assert len(records) == len(short) * len(seeds) == len({r.index for r in records})
    assert fit.prefill_samples >= 30
    assert len(read_records(kept)) == len(records)
    assert "prefill iterations were seen; 30 are needed: load 1 of at most 4 is over" in capsys.readouterr().err


def test_what_is_never_enough_is_kept_and_says_what_to_do(tmp_path: Path) -> None:
    few = Workload("few", load_for(CPU.kv_capacity_tokens, CPU.max_running, CPU.chunk_tokens, 120.0).requests[:4])
    kept = tmp_path / "kept.jsonl.gz"
    with pytest.raises(FitError, match=r"in 4 loads; the records are in .*kept.jsonl.gz. Measure longer"):
        measure(lambda _: list(simulate(CPU, None, few)), CPU.chunk_tokens, kept)
    assert len(read_records(kept)) == 16

    def interrupted(_: int) -> list[RequestRecord]:
        return [replace(record, error=INTERRUPTED) for record in simulate(CPU, None, few)]

    with pytest.raises(FitError, match="in 1 load;"):
        measure(interrupted, CPU.chunk_tokens, kept)
    with pytest.raises(EndpointError, match=r"4 of 4 requests failed, the first with 'HTTP 500'"):
        measure(lambda _: [replace(r, error="HTTP 500") for r in simulate(CPU, None, few)], CPU.chunk_tokens, kept)


@pytest.mark.parametrize("sizes", [(8192, 64, 8192), (430_000, 256, 2048), (3000, 4, 512)])
def test_the_load_fits_and_is_as_long_as_asked_for(sizes: tuple[int, int, int]) -> None:
    capacity, most, chunk = sizes
    load = load_for(capacity, most, chunk, 60.0)
    assert 45.0 < load.duration_s < 60.0
    assert max(r.prompt_tokens for r in load) <= chunk
    engine = EngineModel(CPU.costs, capacity, most, chunk)
    assert all(r.retractions == 0 for r in simulate(engine, None, load))


def test_what_the_engine_publishes_is_used_when_it_is_sure() -> None:
    fitted = Costs(0.01, 1e-3, 1e-6, 0.02, 1e-4)
    metrics = {
        'andes_cost_seconds{per="iteration",stage="decode"}': 0.004,
        'andes_cost_seconds{per="request",stage="decode"}': 5e-4,
        'andes_cost_seconds{per="context_token",stage="decode"}': 2e-6,
        'andes_cost_relative_error{stage="decode"}': 0.1,
    }
    found = costs_from_metrics(metrics, fitted)
    assert found is not None
    assert (found.decode_fixed_s, found.decode_request_s, found.decode_context_s) == (0.004, 5e-4, 2e-6)
    assert found.prefill_token_s == fitted.prefill_token_s
    assert costs_from_metrics({**metrics, 'andes_cost_relative_error{stage="decode"}': 0.5}, fitted) is None
    assert costs_from_metrics({}, fitted) is None


@pytest.mark.parametrize(
    ("flags", "text"),
    [
        (("--url", "http://127.0.0.1:9", *SIZES), "nothing answers there"),
        (("--url", "http://127.0.0.1:9"), "http://127.0.0.1:9: nothing answers there (Connection refused)"),
        (("--url", "127.0.0.1:9"), "say http:// or https:// first"),
        (("--records", "nowhere.jsonl.gz"), "nowhere.jsonl.gz: cannot be read (No such file or directory)"),
        (("--records", os.devnull), "--kv-tokens is needed: records do not say it"),
        (("--records", os.devnull, "--kv-tokens", "0"), "--kv-tokens must be a whole number > 0, got 0"),
        (("--url", "http://127.0.0.1:9", "--out", "x.json"), "a profile's name ends in .toml"),
        (("--url", "http://127.0.0.1:9", "--seconds", "0"), "--seconds must be a number of seconds >= 1, got 0.0"),
        (("--records", os.devnull, *SIZES, "--seconds", "60"), "--seconds: goes with --url; nothing is measured"),
        (("--records", os.devnull, *SIZES, "--api-key", "sk-1"), "--api-key: goes with --url; nothing is measured"),
        (("--url", "http://127.0.0.1:9", "--start-s", "-1"), "--start-s must be a number of seconds >= 0, got -1.0"),
        (("--url", "http://127.0.0.1:9", "--price", "nan"), "--price must be > 0, got nan"),
        (("--url", "http://127.0.0.1:9", "--out", "/dev/null/x/p.toml"), "--out /dev/null/x: cannot be made"),
        (("--records", "nowhere.jsonl.gz", *SIZES), "nowhere.jsonl.gz: cannot be read (No such file or directory)"),
    ],
)
def test_bad_input_is_refused_in_one_sentence(
    flags: tuple[str, ...], text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["profile", "--out", str(tmp_path / "p.toml"), *flags]) == 2
    assert text in capsys.readouterr().err
