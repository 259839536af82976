"""Results of other benchmarks and data sets, each as its tool writes it."""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path
from typing import Any

import pytest

from andes_sglang import cli
from andes_sglang.qoe import QoETarget
from andes_sglang.workload import Workload, WorkloadError, add_arguments, from_arguments, load_dataset, load_measured

TARGET = QoETarget(1.0, 5.0)
VLLM = {
    "date": "20250101-000000", "duration": 9.0, "request_throughput": 0.3, "request_rate": 0.5, "completed": 2,
    "input_lens": [100, 200, 50], "output_lens": [3, 4, 0], "ttfts": [0.5, 2.0, 0.0],
    "itls": [[0.1, 0.1], [0.2, 4.0, 0.2], []], "errors": ["", "", "Traceback\nTimeoutError: late"],
}  # fmt: skip


def guidellm_request(**more: Any) -> dict[str, Any]:
    times = {"request_start": 100.0, "first_token_iteration": 101.0, "last_token_iteration": 103.0}
    return {"prompt_tokens": 90, "output_tokens": 11, "info": {"timings": times}, **more}


GUIDELLM = {
    "benchmarks": [{"requests": {
        "successful": [guidellm_request()],
        "incomplete": [],
        "errored": [guidellm_request(output_tokens=None, info={"timings": {"request_start": 99.0}}, error="refused")],
    }}]
}  # fmt: skip
OLD_GUIDELLM = {"benchmarks": [{"requests": {"successful": [
    {"prompt_tokens": 9, "output_tokens": 3, "start_time": 5.0, "first_token_time": 5.5, "last_token_time": 6.5, "end_time": 6.6},
]}}]}  # fmt: skip


def aiperf_line(**more: Any) -> dict[str, Any]:
    return {
        "metadata": {"session_num": 0, "request_start_ns": 2_000_000_000, "request_end_ns": 4_000_000_000,
                     "benchmark_phase": "profiling", "was_cancelled": False},
        "metrics": {
            "input_sequence_length": {"value": 300, "unit": "tokens"},
            "output_sequence_length": {"value": 5, "unit": "tokens"},
            "time_to_first_token": {"value": 250.0, "unit": "ms"},
            "inter_chunk_latency": {"value": [100.0, 1000.0], "unit": "ms"},
        },
        "error": None,
        **more,
    }  # fmt: skip


def write(path: Path, what: object, *, lines: bool = False) -> Path:
    entries = what if lines else [what]
    path.write_text("\n".join(entry if isinstance(entry, str) else json.dumps(entry) for entry in entries) + "\n")  # type: ignore[attr-defined]
    return path


def test_vllm_says_when_each_chunk_came(tmp_path: Path) -> None:
    measured = load_measured(write(tmp_path / "run.json", VLLM), TARGET)
    assert measured is not None
    assert (measured.tool, measured.exact) == ("vllm", True)
    first, second, failed = measured.records
    assert [r.arrival_s for r in measured.records] == [0.0, 2.0, 4.0], "sent evenly at the request rate"
    assert first.deliveries == [(0.5, 1), (0.6, 1), (pytest.approx(0.7), 1)]
    assert second.score().longest_stall_s > 3.0, "a stall inside the answer is seen"
    assert failed.error == "TimeoutError: late"
    assert failed.qoe == 0.0
    assert [r.prompt_tokens for r in measured.workload()] == [100, 200]
    started = load_measured(write(tmp_path / "new.json", {**VLLM, "start_times": [70.0, 75.5, 71.0]}), TARGET)
    assert started is not None
    assert [r.arrival_s for r in started.records] == [0.0, 1.0, 5.5], "in order of arrival"


def test_sglangs_lines_are_the_same_and_the_last_run_counts(tmp_path: Path) -> None:
    later = {**VLLM, "request_rate": float("inf")}
    measured = load_measured(write(tmp_path / "run.jsonl", [VLLM, later], lines=True), TARGET)
    assert measured is not None
    assert [r.arrival_s for r in measured.records] == [0.0, 0.0, 0.0]


def test_guidellm_says_first_and_last(tmp_path: Path) -> None:
    measured = load_measured(write(tmp_path / "benchmarks.json", GUIDELLM), TARGET)
    assert measured is not None
    assert (measured.tool, measured.exact) == ("guidellm", False)
    failed, answered = measured.records
    assert (failed.error, failed.arrival_s) == ("refused", 0.0)
    assert answered.ttft_s == pytest.approx(1.0)
    assert len(answered.deliveries) == 11
    assert answered.deliveries[-1][0] == pytest.approx(4.0)
    old = load_measured(write(tmp_path / "old.json", OLD_GUIDELLM), TARGET)
    assert old is not None
    assert old.records[0].deliveries == [(0.5, 1), (1.0, 1), (1.5, 1)]


def test_aiperf_says_when_each_chunk_came(tmp_path: Path) -> None:
    warm_up = aiperf_line(metadata={**aiperf_line()["metadata"], "benchmark_phase": "warmup"})
    failed = aiperf_line(metrics={}, error={"code": 429, "type": "TooMany", "message": "full"})
    even = aiperf_line()
    even["metrics"] = {k: v for k, v in even["metrics"].items() if k != "inter_chunk_latency"}
    even["metrics"]["inter_token_latency"] = {"value": 0.1, "unit": "s"}
    path = write(tmp_path / "profile_export.jsonl", [warm_up, aiperf_line(), failed, even], lines=True)
    measured = load_measured(path, TARGET)
    assert measured is not None
    assert (measured.tool, measured.exact, len(measured.records)) == ("aiperf", False, 3)
    chunked, refused, spread = measured.records
    assert chunked.deliveries == [(0.25, 2), (pytest.approx(0.35), 2), (pytest.approx(1.35), 1)], "5 tokens in 3 chunks"
    assert (refused.error, refused.end_s) == ("full", 2.0)
    assert [round(at, 2) for at, _ in spread.deliveries] == [0.25, 0.35, 0.45, 0.55, 0.65]


@pytest.mark.parametrize(
    ("name", "what", "said"),
    [
        ("run.json", {k: v for k, v in VLLM.items() if k != "itls"}, "vllm .*no itls; run it with --save-detailed"),
        ("run.json", {**VLLM, "itls": []}, "not equally long"),
        ("run.json", {**VLLM, "ttfts": ["x", 1, 1]}, "results of vllm that cannot be read: could not convert"),
        ("b.json", {"benchmarks": [{}]}, "results of guidellm that cannot be read: no 'requests'"),
        ("b.json", {"benchmarks": []}, "results of guidellm without a request"),
        ("a.jsonl", {"metadata": {}, "metrics": {}}, "results of aiperf that cannot be read: no 'request_start_ns'"),
        ("a.jsonl", aiperf_line(metrics={"time_to_first_token": {"value": 1, "unit": "weeks"}}), "the unit 'weeks'"),
        ("run.json", {**VLLM, "ttfts": [math.nan, 1, 1]}, "vllm that cannot be read: a wait of nan s for a token"),
        ("run.json", {**VLLM, "ttfts": [-0.5, 1, 1]}, "a wait of -0.5 s for a token"),
        ("run.json", {**VLLM, "itls": [[0.1, math.inf], [0.1], []]}, "a wait of inf s for a token"),
        ("run.json", {**VLLM, "ttfts": [5e8, 1, 1]}, "a wait of 500000000.0 s for a token; expected 0 to 1e.06"),
        ("run.json", {**VLLM, "output_lens": [-3, 4, 0]}, "an answer of -3 tokens"),
        ("run.json", {**VLLM, "output_lens": [500_000_000, 4, 0]}, "vllm .*an answer of 500000000 tokens; expected 0 to 1000000"),
        ("b.json", {"benchmarks": [{"requests": {"successful": [guidellm_request(output_tokens=500_000_000)]}}]},
         "guidellm .*an answer of 500000000 tokens; expected 0 to 1000000"),
        ("a.jsonl", aiperf_line(metrics={"output_sequence_length": {"value": 1_000_001}, "inter_token_latency": {"value": 1}}),
         "aiperf .*an answer of 1000001 tokens"),
        ("run.json", {**VLLM, "output_lens": [math.inf, 4, 0]}, "vllm that cannot be read: cannot convert float infinity"),
        ("run.json", {**VLLM, "start_times": [math.nan, 1, 2]}, "a request that began at nan s"),
        ("b.json", {"benchmarks": [{"requests": [guidellm_request()]}]}, "results of guidellm that cannot be read"),
        ("b.json", {"benchmarks": [{"requests": {"successful": [guidellm_request(info=5)]}}]},
         "guidellm that cannot be read: a value of another kind than guidellm writes"),
        ("run.json", {**VLLM, "itls": 5}, "vllm that cannot be read: a value of another kind than vllm writes"),
        ("a.jsonl", aiperf_line(metrics={"time_to_first_token": 5}), "results of aiperf that cannot be read"),
        ("a.jsonl", aiperf_line(metadata="x"), "results of aiperf that cannot be read"),
        ("deep.json", "[" * 100_000, "nested too deeply"),
        ("deep.json", '{"a":' * 100_000, "nested too deeply"),
    ],
)  # fmt: skip
def test_what_is_missing_is_named(name: str, what: object, said: str, tmp_path: Path) -> None:
    with pytest.raises(WorkloadError, match=said):
        load_measured(write(tmp_path / name, what), TARGET)


def workload(*flags: str) -> Workload:
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    drawn = from_arguments(parser.parse_args(flags), 1)
    assert isinstance(drawn, Workload)
    return drawn


def test_results_are_replayed_as_a_trace(tmp_path: Path) -> None:
    path = write(tmp_path / "run.json", VLLM)
    assert [(r.arrival_s, r.prompt_tokens, r.output_tokens) for r in workload("--trace", str(path))] == [
        (0.0, 100, 3),
        (2.0, 200, 4),
    ]
    assert workload("--trace", str(path), "--rate-scale", "2").duration_s == 1.0


SHAREGPT = [
    {"id": "a", "conversations": [{"from": "human", "value": "x" * 400}, {"from": "gpt", "value": "y" * 80}]},
    {"id": "b", "conversations": [{"from": "gpt", "value": "hello"}]},
    {"id": "c", "messages": [{"role": "system", "content": "be kind"}, {"role": "user", "content": "z" * 40},
                             {"role": "assistant", "content": "w" * 4000}]},
    "nonsense",
]  # fmt: skip


def test_sharegpt_gives_lengths_and_a_shape_arrivals(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write(tmp_path / "sharegpt.json", SHAREGPT)
    dataset = load_dataset(path)
    assert dataset is not None
    assert (dataset.lengths, dataset.left_out) == (((100, 20), (10, 1000)), 2)
    drawn = workload("--trace", str(path), "--shape", "poisson", "--rate", "2", "--duration", "30")
    bare = workload("--shape", "poisson", "--rate", "2", "--duration", "30")
    assert [r.arrival_s for r in drawn] == [r.arrival_s for r in bare]
    assert {(r.prompt_tokens, r.output_tokens) for r in drawn} == {(100, 20), (10, 1000)}
    assert "2 rows without a request are left out" in capsys.readouterr().err
    thoughtful = workload("--trace", str(path), "--rate", "2", "--duration", "30", "--thought", "50")
    assert {(r.output_tokens, r.reason_tokens) for r in thoughtful} == {(70, 50), (1050, 50)}
    assert {r.prompt_tokens for r in workload("--trace", str(path), "--characters-per-token", "2")} == {200, 20}


@pytest.mark.parametrize(
    ("text", "lengths"),
    [
        ('{"prompt": "aaaaaaaa", "output_tokens": 7}\n{"prompt": "bbbb", "output_tokens": 9}\n', ((2, 7), (1, 9))),
        ('{"text": "aaaaaaaa"}\n', ((2, None),)),
        ('{"question": "aaaa", "answer": "bbbbbbbb"}\n', ((1, 2),)),
        ("prompt,completion\naaaaaaaa,bbbb\n", ((2, 1),)),
    ],
)
def test_prompts_one_a_row(text: str, lengths: object, tmp_path: Path) -> None:
    path = tmp_path / "prompts.txt"
    path.write_text(text)
    dataset = load_dataset(path)
    assert dataset is not None
    assert dataset.lengths == lengths


def test_traces_are_no_data_sets_and_no_results(tmp_path: Path) -> None:
    path = write(tmp_path / "t.jsonl", [{"arrival_s": 0, "prompt_tokens": 3, "output_tokens": 4}], lines=True)
    assert load_dataset(path) is None
    assert load_measured(path, TARGET) is None
    with pytest.raises(WorkloadError, match="no entry is a conversation"):
        load_dataset(write(tmp_path / "list.json", [1, 2]))


def test_results_are_scored(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = [str(write(tmp_path / "vllm.json", VLLM)), str(write(tmp_path / "benchmarks.json", GUIDELLM))]
    out = tmp_path / "out"
    assert cli.main(["score", *files, "--tds", "5", "--out", str(out)]) == 0
    said = capsys.readouterr()
    assert "benchmarks: guidellm says only when the first and the last token came" in said.err
    assert "vllm: 1 failed: TimeoutError: late" in said.out
    result = json.loads((out / "summary.json").read_text())
    records = load_measured(tmp_path / "vllm.json", QoETarget(1.0, 5.0))
    assert records is not None
    assert result["policies"]["vllm"]["qoe"]["mean"] == pytest.approx(sum(r.qoe for r in records.records) / 3)
    assert (out / "report.html").exists()
    assert cli.main(["score", str(out / "summary.json"), "--out", str(tmp_path / "b")]) == 2
    assert "no results of vllm, guidellm, aiperf" in capsys.readouterr().err
