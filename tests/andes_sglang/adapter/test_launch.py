"""What the command line refuses, and what a request may say about its reader."""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import re
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from tokenizers import Tokenizer

from andes_sglang import expectations, reception
from andes_sglang.adapter import launch
from andes_sglang.adapter.options import ENVIRONMENT, PluginOptions
from andes_sglang.bench.engine import Engine, EngineError, read_metrics
from andes_sglang.flags import UsageError
from andes_sglang.policy import POLICIES
from andes_sglang.qoe import QoETarget

FIXTURES = Path(__file__).parents[2] / "fixtures" / "policies"


def arguments_of(*arguments: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser(allow_abbrev=False)
    launch.add_arguments(parser)
    return parser.parse_known_args(arguments)[0]


def refusal(*arguments: str) -> str:
    """What ``andes serve`` says to these arguments before SGLang is imported."""
    args = arguments_of(*arguments)
    with pytest.raises(UsageError) as caught:
        launch.check_arguments(args)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.fixture
def model(tmp_path: Path) -> str:
    (tmp_path / "config.json").write_text("{}")
    return str(tmp_path)


FORCED = ("--policy", "forced", "--policy-option")
OFFLOAD = ("--preemption-mode", "offload")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--policy", "magic"), "unknown policy 'magic'"),
        (("--policy-option", "oops"), "--policy-option 'oops': expected NAME=VALUE"),
        (("--policy", "stock", "--policy-option", "horizon_s=30"), "policy stock has no options"),
        (("--policy-option", "horizon_s=-1"), "horizon_s must be > 0"),
        (("--policy-option", "horizon=30"), "unknown option 'horizon'"),
        (("--policy-option", "length_guard=high"), "length_guard must be > 0, got 'high'"),
        (("--policy-option", f"length_guard=1{400 * '0'}"), "length_guard must be > 0, got 1000"),
        (("--policy-option", "preemption=1"), "preemption must be true or false, got 1"),
        ((*FORCED, "every_tokens=-1"), "every_tokens must be an integer >= 0 tokens, got -1"),
        ((*FORCED, "every_tokens=often"), "every_tokens must be an integer >= 0 tokens, got 'often'"),
        ((*FORCED, "mode=gently"), "mode must be one of park, release, offload, alternate, got 'gently'"),
        ((*FORCED, "oftn=3"), "unknown option 'oftn'"),
        ((*FORCED, "mode=offload"), "--policy-option mode=offload: needs --preemption-mode offload"),
        (("--default-tds", "0"), "--default-tds: tds must be"),
        (("--host-kv-gib", "1"), "--host-kv-gib 1.0: goes with --preemption-mode offload"),
        (("--offload-without", "overlap"), "--offload-without overlap: goes with --preemption-mode offload"),
        ((*OFFLOAD, "--host-kv-gib", "99999"), "--host-kv-gib 99999: must be > 0 and at most"),
        ((*OFFLOAD, "--host-kv-gib", "0"), "--host-kv-gib 0: must be > 0"),
        ((*OFFLOAD, "--policy", "stock"), "--preemption-mode offload: policy stock preempts no request"),
    ],
)
def test_a_user_error_is_named_before_anything_starts(model: str, arguments: tuple[str, ...], says: str) -> None:
    assert says in refusal("--model", model, *arguments)


class Hub(BaseHTTPRequestHandler):
    """Knows one model, may not show another, and has never heard of the rest."""

    def do_GET(self) -> None:
        known = {"/api/models/org/there": 200, "/api/models/org/gated": 403}.get(self.path, 404)
        body = b'{"id": "org/there"}' if known == 200 else b"{}"
        self.send_response(known)
        if known == 404:
            self.send_header("x-error-code", "RepoNotFound")
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None: ...


def test_a_model_that_is_none_is_named_at_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with ThreadingHTTPServer(("127.0.0.1", 0), Hub) as hub:
        thread = threading.Thread(target=hub.serve_forever)
        thread.start()
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{hub.server_port}")
        launch.check_hub("org/there")
        launch.check_hub("org/gated")
        launch.check_hub("s3://bucket/model")
        launch.check_hub(str(tmp_path))
        for name in ("org/unknown", "org/un known"):
            with pytest.raises(UsageError, match=f"--model {name}: no such directory, and the hub has no such model"):
                launch.check_hub(name)
        hub.shutdown()
        thread.join()
    with pytest.raises(UsageError, match=r"not in the local cache, and the hub cannot be reached"):
        launch.check_hub("org/there")


@pytest.mark.parametrize("policy", [*POLICIES, "forced", "stock"])
def test_every_policy_can_be_served(model: str, policy: str) -> None:
    parser = argparse.ArgumentParser(allow_abbrev=False)
    launch.add_arguments(parser)
    args = parser.parse_args(["--model", model, "--policy", policy, "--port", "0"])
    assert launch.check_arguments(args).policy == (None if policy == "stock" else policy)


@pytest.mark.parametrize(
    ("ranks", "cores", "bound"),
    [(1, [0, 1], None), (2, [0, 1], "0|1"), (2, [4, 7, 9], "4,9|7"), (4, [2, 3], "2|3|2|3"), (3, [5], "5|5|5")],
)
def test_ranks_on_a_cpu_are_given_their_cores(
    monkeypatch: pytest.MonkeyPatch, ranks: int, cores: list[int], bound: str | None
) -> None:
    """Tensor-parallel ones: SGLang wants as many entries, however many data-parallel ranks there are."""
    monkeypatch.setattr(os, "environ", {})
    server_args = SimpleNamespace(tp_size=ranks, dp_size=2, pp_size=1)
    launch.bind_ranks(server_args, cores)
    assert os.environ.get("SGLANG_CPU_OMP_THREADS_BIND") == bound
    os.environ["SGLANG_CPU_OMP_THREADS_BIND"] = "mine"
    launch.bind_ranks(server_args, cores)
    assert os.environ["SGLANG_CPU_OMP_THREADS_BIND"] == "mine"


def test_a_model_that_is_none_is_refused(tmp_path: Path) -> None:
    assert "no such directory" in refusal("--model", str(tmp_path / "none"))
    assert "it has no config.json" in refusal("--model", str(tmp_path))


def test_a_busy_port_is_refused(model: str) -> None:
    with socket.socket() as busy:
        busy.bind(("127.0.0.1", 0))
        busy.listen()
        port = str(busy.getsockname()[1])
        assert f"--port {port}: cannot listen there" in refusal("--model", model, "--port", port)


def test_a_third_partys_policy_that_cannot_decide_is_refused(
    model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its options are not declared, so only asking it shows that one of them is of the wrong type."""
    (tmp_path / "their_policy.py").write_text(
        "from andes_sglang.state import Decision\n"
        "class Theirs:\n"
        "    name = 'theirs'\n"
        "    def __init__(self, patience_s=3.0):\n"
        "        self.patience_s = patience_s\n"
        "    def decide(self, state):\n"
        "        return Decision() if state.now_s > self.patience_s else Decision()\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    theirs = ("--model", model, "--policy", "their_policy:Theirs")
    said = refusal(*theirs, "--policy-option", "patience_s=long")
    assert "--policy their_policy:Theirs, options {'patience_s': 'long'}: policy 'theirs': decide(state) raised" in said
    assert "TypeError" in said
    assert "unknown option 'patiens_s'; its options are patience_s" in refusal(
        *theirs, "--policy-option", "patiens_s=3"
    )


def test_a_third_partys_policy_that_returns_no_decision_is_refused(
    model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "their_draft.py").write_text(
        "class Draft:\n    name = 'draft'\n    def decide(self, state):\n        return ['probe-waiting']\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    said = refusal("--model", model, "--policy", "their_draft:Draft")
    assert "--policy their_draft:Draft" in said
    assert "policy 'draft': decide(state) returned ['probe-waiting'] (a list)" in said


def test_an_old_option_name_reaches_the_engine_as_the_new_one(model: str) -> None:
    """The engine's process then says nothing more of what the command has warned of."""
    args = arguments_of("--model", model, "--policy-option", "slice-worth=0.5", "--port", "0")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        assert launch.check_arguments(args).policy_options == {"min_runtime_ratio": 0.5}


def test_the_command_ends_with_one_sentence(model: str) -> None:
    command = [sys.executable, "-m", "andes_sglang.cli", "serve", "--model", model, "--policy-option", "horizon=30"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 2
    assert "unknown option 'horizon'" in done.stderr
    assert "Traceback" not in done.stderr


def test_options_travel_in_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    options = PluginOptions("andes", {"stall_bound_s": 30.0}, 2.0, 5.0, "offload", 1.5, "overlap")
    monkeypatch.setenv(ENVIRONMENT, options.to_env())
    assert PluginOptions.from_env() == options
    monkeypatch.delenv(ENVIRONMENT)
    assert PluginOptions.from_env().policy is None


@pytest.mark.parametrize(("wanted", "waits"), [(None, "0"), ("1", "1")])
def test_a_crash_waits_for_core_dumps_only_where_they_were_asked_for(
    monkeypatch: pytest.MonkeyPatch, wanted: str | None, waits: str
) -> None:
    environ = {} if wanted is None else {"CUDA_ENABLE_USER_TRIGGERED_COREDUMP": wanted}
    monkeypatch.setattr(os, "environ", environ)
    monkeypatch.setattr(sys, "path", [*sys.path])
    launch.prepare_environment(PluginOptions())
    assert environ["SGLANG_CUDA_COREDUMP_BEFORE_CRASH"] == environ["SGLANG_PYSPY_DUMP_BEFORE_CRASH"] == waits
    assert PluginOptions.from_env().policy is None
    assert environ[ENVIRONMENT]


@pytest.mark.parametrize("text", ['{"polcy": "andes"}', "andes", "[1]"])
def test_options_that_andes_did_not_write_are_refused(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setenv(ENVIRONMENT, text)
    with pytest.raises(ValueError, match=f"{ENVIRONMENT}=.*`andes serve` sets this variable"):
        PluginOptions.from_env()


def flags_of(line: list[str]) -> dict[str, str]:
    """Flags and their values, or the flag itself where it has none."""
    return {
        word: line[k + 1] if k + 1 < len(line) and not line[k + 1].startswith("--") else word
        for k, word in enumerate(line)
        if word.startswith("--")
    }


def line_of(passed: list[str], *, cpu: bool, offload: bool = False) -> dict[str, str]:
    mode = "offload" if offload else "release"
    args = argparse.Namespace(model="m", host="h", port=1, preemption_mode=mode)
    line = launch.server_arguments(args, passed, cpu)
    assert len([word for word in line if word.startswith("--")]) == len(flags_of(line)), "no flag twice"
    return flags_of(line)


def test_what_the_user_passes_goes_before_our_defaults() -> None:
    line = line_of(["--max-total-tokens", "99", "--dtype=bfloat16", "--sleep-on-idle"], cpu=True)
    assert line["--max-total-tokens"] == "99"
    assert "--dtype" not in line
    assert (line["--device"], line["--model-path"], line["--port"]) == ("cpu", "m", "1")


def test_on_an_accelerator_sglang_keeps_its_own_defaults() -> None:
    assert set(line_of([], cpu=False)) == {"--model-path", "--host", "--port"}


def test_offload_needs_the_hierarchical_cache() -> None:
    assert "--enable-hierarchical-cache" not in line_of([], cpu=True)
    assert "--enable-hierarchical-cache" in line_of([], cpu=False, offload=True)
    assert line_of([], cpu=True, offload=True)["--hicache-io-backend"] == "direct"
    assert "--hicache-io-backend" not in line_of([], cpu=False, offload=True)


@pytest.mark.parametrize(
    ("value", "says"),
    [
        (5, "custom_params must be an object, got 5"),
        ({"qoe": 3}, "custom_params.qoe must be an object"),
        ({"qoe": {"tds": 0}}, "custom_params.qoe.tds must be .* got 0"),
        ({"qoe": {"tds": 5e-324}}, "custom_params.qoe.tds must be .* got 5e-324"),
        ({"qoe": {"ttft": "1"}}, "custom_params.qoe.ttft must be .* got '1'"),
        ({"qoe": {"speed": 3}}, "custom_params.qoe.speed: unknown field"),
    ],
)
def test_malformed_expectations(value: Any, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        expectations.parse(value, QoETarget())


def test_expectations_fall_back_field_by_field() -> None:
    default = QoETarget(1.5, 4.0)
    assert expectations.parse(None, default).target == default
    assert expectations.parse({"other": 1}, default).target == default
    assert expectations.parse({"qoe": {"tds": 9}}, default).target == QoETarget(1.5, 9)


@pytest.fixture(scope="module")
def andes(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    flags = ("--enable-metrics", "--max-total-tokens", "4096", "--max-running-requests", "1")
    thinks = ("--reasoning-parser", "deepseek-r1", "--enable-custom-logit-processor")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join([str(FIXTURES), *filter(None, [os.environ.get("PYTHONPATH")])]))
        with Engine(tiny_model, "andes", (*flags, *thinks), log=tmp_path_factory.mktemp("andes") / "log") as engine:
            yield engine


@pytest.mark.engine
@pytest.mark.timeout(600)
def test_a_real_server_refuses_malformed_expectations_with_400(andes: Engine) -> None:
    refused = {"max_tokens": 4, "custom_params": {"qoe": {"tds": 5e-324}}}
    for path, body in (
        ("/v1/completions", {"model": "m", "prompt": [5, 6], "stream": True, **refused}),
        ("/v1/completions", {"model": "m", "prompt": [5, 6], **refused}),
        ("/v1/chat/completions", {"model": "m", "messages": [{"role": "user", "content": "an"}], **refused}),
        ("/generate", {"input_ids": [5, 6], "sampling_params": {"custom_params": refused["custom_params"]}}),
    ):
        with pytest.raises(urllib.error.HTTPError) as caught:
            andes.post(path, body)
        assert caught.value.code == 400
        said = caught.value.read().decode()
        assert "custom_params.qoe.tds" in said
        assert "got 5e-324" in said


@pytest.mark.engine
@pytest.mark.timeout(600)
def test_a_real_server_tells_who_is_in_charge(andes: Engine) -> None:
    body = {"model": "m", "prompt": [5, 6], "max_tokens": 6, "ignore_eos": True}
    andes.post("/v1/completions", {**body, "custom_params": {"qoe": {"ttft": 1, "tds": 4}}})
    andes.check_policy()
    found = read_metrics(andes.url)
    assert found['andes_policy_info{policy="andes"}'] == 1.0
    assert found["andes_decision_seconds_count"] >= 1
    assert found["andes_request_qoe_count"] >= 1
    assert any(name.startswith("andes_cost_seconds") for name in found)
    assert any(name.startswith("andes_cost_relative_error") for name in found)
    assert {f'andes_requests{{state="{s}"}}' for s in ("running", "parked", "released", "waiting")} <= set(found)


def qoe_of(engine: Engine, path: str, body: dict[str, Any]) -> tuple[float, Any]:
    """What the engine says of the reader of the one answer that is asked for, and the answer."""
    before = read_metrics(engine.url)
    answer = engine.post(path, {"model": "m", "temperature": 0, **body})
    deadline_s = time.monotonic() + 120
    while (now := read_metrics(engine.url))["andes_request_qoe_count"] == before.get("andes_request_qoe_count", 0.0):
        assert time.monotonic() < deadline_s
    return now["andes_request_qoe_sum"] - before.get("andes_request_qoe_sum", 0.0), answer


@pytest.mark.engine
@pytest.mark.timeout(600)
def test_a_real_server_counts_what_a_reader_is_shown(andes: Engine, tiny_model: Path) -> None:
    """Expectations that no engine can meet, of 60 tokens: QoE is below 1 - 1/60; hours of patience for each of a thought: 1."""
    expects = {"ttft": 0, "tds": 1e9, "think_tds": 1e-3}
    ids = Tokenizer.from_file(str(tiny_model / "tokenizer.json")).encode("</think>").ids
    asked = {
        "messages": [{"role": "user", "content": "an be cor"}], "max_tokens": 60, "ignore_eos": True,
        "custom_logit_processor": json.dumps({"callable": b"cthinks_for\nThinksFor\n.".hex()}),
    }  # fmt: skip

    def chat(thought: int, more_expects: dict[str, Any], **more: Any) -> tuple[float, Any]:
        told = {"qoe": expects | more_expects, "thought": thought, "ids": ids}
        return qoe_of(andes, "/v1/chat/completions", {**asked, **more, "custom_params": told})

    qoe, answer = chat(20, {})
    said = answer["choices"][0]["message"]
    assert said["content"]
    assert said["reasoning_content"]
    assert answer["usage"]["reasoning_tokens"] == 20 + len(ids)
    assert qoe == pytest.approx(1.0)
    assert chat(20, {"reasoning": "shown"})[0] < 0.984
    assert chat(20, {"think_tds": None})[0] < 0.984
    assert chat(20, {}, separate_reasoning=False)[0] < 0.984, "a part of the text"
    qoe, answer = chat(4000, {})
    assert (qoe, answer["choices"][0]["message"]["content"] or "") == (0.0, "")


@pytest.mark.engine
@pytest.mark.timeout(600)
def test_a_model_that_thinks_keeps_to_a_grammar(andes: Engine) -> None:
    sampling = {"max_new_tokens": 60, "temperature": 0, "regex": "(ab|cd){3}"}
    answer: Any = andes.post("/generate", {"input_ids": [5, 6, 7], "sampling_params": sampling})
    assert re.fullmatch("(ab|cd){3}", answer["text"])


@pytest.mark.engine
@pytest.mark.timeout(600)
@pytest.mark.parametrize("regex", ["(([a-z]{1,900}){1,900}X)", "(([a-z]{1,500}-?){1,999}[0-9]X)"])
def test_a_grammar_that_becomes_too_complex_ends_its_answer_alone(andes: Engine, regex: str) -> None:
    """It is compiled, and grows beyond what llguidance allows while the answer is written."""
    sampling = {"max_new_tokens": 300, "temperature": 0, "regex": regex}
    answer: Any = andes.post("/generate", {"input_ids": [5, 6, 7], "sampling_params": sampling})
    assert answer["meta_info"]["completion_tokens"] < 300
    assert andes.alive(), andes.tail()
    assert "its grammar became too complex" in andes.log.read_text(errors="replace")


def generate(engine: Engine, rid: str, tokens: int, **more: Any) -> float:
    """Run one request to its end; when that was."""
    sampling = {"max_new_tokens": tokens, "ignore_eos": True, **more.pop("sampling_params", {})}
    engine.post("/generate", {"rid": rid, "input_ids": [5, 6, 7], "sampling_params": sampling, **more})
    return time.monotonic()


def wait_until_waiting(engine: Engine, count: int) -> None:
    """Until one request runs and ``count`` wait."""
    deadline_s = time.monotonic() + 120
    while True:
        found = read_metrics(engine.url)
        if [found.get(f'andes_requests{{state="{state}"}}') for state in ("running", "waiting")] == [1.0, count]:
            return
        assert time.monotonic() < deadline_s, found
        time.sleep(0.05)


def tell_until_parked(engine: Engine, rid: str, tokens: int) -> None:
    deadline_s = time.monotonic() + 120
    while read_metrics(engine.url).get('andes_requests{state="parked"}') != 1.0:
        assert time.monotonic() < deadline_s
        engine.post(reception.PATH, {"readers": {rid: tokens}})


@pytest.mark.engine
@pytest.mark.timeout(600)
def test_a_real_server_waits_for_a_reader_and_goes_on_with_the_same_words(andes: Engine) -> None:
    """It holds the one place in the batch, and gives it away; meanwhile the engine answers its health checks with nothing else
    to do, serves others, and lets one go that is aborted."""
    body = {
        "rid": "slow",
        "input_ids": [5, 6, 7],
        "sampling_params": {"max_new_tokens": 1200, "ignore_eos": True, "temperature": 0},
    }
    stops = 'andes_preemptions_total{mode="park",reason="reader"}'
    whole = andes.post("/generate", {**body, "rid": "fast"})
    with ExitStack() as stack:
        pool = stack.enter_context(ThreadPoolExecutor(1))
        stack.callback(andes.post, "/abort_request", {"abort_all": True})
        slow = pool.submit(andes.post, "/generate", body)
        tell_until_parked(andes, "slow", 10)
        with urllib.request.urlopen(andes.url + "/health", timeout=100) as answer:
            assert answer.status == 200
        generate(andes, "other", 20)
        assert not slow.done()
        andes.post(reception.PATH, {"readers": {"slow": None, "unknown": 3}})
        assert slow.result(120)["output_ids"] == whole["output_ids"]
        assert read_metrics(andes.url)[stops] >= 1.0
        gone = pool.submit(andes.post, "/generate", {**body, "rid": "gone"})
        tell_until_parked(andes, "gone", 0)
        andes.post("/abort_request", {"rid": "gone"})
        assert gone.result(120)["meta_info"]["finish_reason"]["type"] == "abort"
    with pytest.raises(urllib.error.HTTPError) as caught:
        andes.post(reception.PATH, {"readers": {"slow": -3}})
    assert "readers.slow: expected a whole number" in caught.value.read().decode()


@pytest.mark.engine
@pytest.mark.timeout(600)
@pytest.mark.parametrize("heavy", ["early", "late"])
def test_a_real_server_serves_a_heavier_stream_first(andes: Engine, heavy: str) -> None:
    """Two streams wait for the one slot, which a far heavier request holds; ``heavy`` has so many times the weight of the
    other that how long either has waited does not matter. Were weights ignored, one of the two cases would fail. One slot:
    served first, ended forty tokens before the other."""
    with ThreadPoolExecutor(3) as pool:
        urgent = {"custom_params": {"qoe": {"ttft": 0, "tds": 100_000, "weight": 1000}}}
        holder = pool.submit(generate, andes, "holder", 3500, sampling_params=urgent)
        wait_until_waiting(andes, 0)
        ends_s = {}
        for count, rid in enumerate(("early", "late"), start=1):
            weight = {"custom_params": {"qoe": {"weight": 8.0 if rid == heavy else 0.01}}}
            ends_s[rid] = pool.submit(generate, andes, rid, 40, sampling_params=weight)
            wait_until_waiting(andes, count)
        assert not holder.done()
        andes.post("/abort_request", {"rid": "holder"})
        assert min(ends_s, key=lambda rid: ends_s[rid].result()) == heavy


@pytest.mark.engine
@pytest.mark.timeout(600)
def test_a_real_server_takes_a_stream_without_a_reader_off_for_one_with_a_reader(andes: Engine) -> None:
    """It has the only slot and most of its answer before it; the reader's request comes and is served at once, and the other
    goes on to its end afterwards."""
    taken_off = re.compile(r'andes_preemptions_total\{.*reason="yield".*\}')
    with ThreadPoolExecutor(2) as pool:
        sampling = {"custom_params": {"qoe": {"yield": True}}}
        offline = pool.submit(generate, andes, "offline", 3000, sampling_params=sampling)
        wait_until_waiting(andes, 0)
        reader_end_s = generate(andes, "reader", 20)
        assert not offline.done()
        assert offline.result() > reader_end_s
    assert sum(value for name, value in read_metrics(andes.url).items() if taken_off.fullmatch(name)) >= 1


@pytest.mark.engine
@pytest.mark.timeout(600)
def test_an_sglang_that_is_another_ends_the_server(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A start-up hook of Python pretends that SGLang is another, in every process of the server."""
    (tmp_path / "sitecustomize.py").write_text(
        "from andes_sglang.adapter import seams\n"
        "seams.RELEASES = ('0.5.16',)\n"
        "seams.SEAMS['sglang.srt.mem_cache.common.release_kv_cache'] = ('req', 'cache')\n"
        "seams.SEAMS['sglang.srt.managers.scheduler.Scheduler.gone'] = ('self',)\n"
        "seams.ATTRIBUTES['sglang.srt.managers.schedule_batch.Req'] += ' unheard_of'\n"
    )
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")]))
    with pytest.raises(EngineError) as caught, Engine(tiny_model, "andes", log=tmp_path / "log"):
        pass
    for says in (
        f"sglang {importlib.metadata.version('sglang')} is installed; andes was run on 0.5.16",
        "seam sglang.srt.mem_cache.common.release_kv_cache takes (req, tree_cache, checkpoint), expected (req, cache)",
        "seam sglang.srt.managers.scheduler.Scheduler.gone is missing",
        "seam sglang.srt.managers.schedule_batch.Req has no attribute unheard_of",
    ):
        assert says in str(caught.value)


@pytest.mark.engine
@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    ("flags", "plugins", "says"),
    [
        ((), "andes_cpu", "SGLang has not loaded our plugin"),
        (("--pp-size", "2"), "andes,andes_cpu", "--pp-size 2 is not supported with a policy"),
    ],
)
def test_nothing_is_served_without_the_policy(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, flags: tuple[str, ...], plugins: str, says: str
) -> None:
    monkeypatch.setenv("SGLANG_PLUGINS", plugins)
    with pytest.raises(EngineError) as caught, Engine(tiny_model, "andes", flags, log=tmp_path / "log"):
        pass
    assert says in str(caught.value)
    assert "Traceback" not in str(caught.value)


VICTIMS = """
import json
from array import array
from types import SimpleNamespace

from andes_sglang.adapter import launch, options

launch.prepare_environment(options.PluginOptions("andes"))
from sglang.srt.plugins import load_plugins

load_plugins()
from sglang.srt.managers.schedule_batch import Req, ScheduleBatch
from sglang.srt.sampling.custom_logit_processor import CustomLogitProcessor, DisallowedTokensLogitsProcessor
from sglang.srt.sampling import penaltylib
from sglang.srt.sampling.sampling_params import SamplingParams
from sglang.srt.speculative.spec_info import SpeculativeAlgorithm

from andes_sglang.adapter.penalties import restore_penalties
from andes_sglang.adapter.sglang_request import is_preemptible


def preemptible(speculative="NONE", sampling={}, generation=None, **features):
    algorithm = SpeculativeAlgorithm.from_string(speculative)
    req = Req("r", "", array("q", [5, 6]), SamplingParams(**sampling), vocab_size=100, **features)
    req.session_generation = generation
    return is_preemptible(req, algorithm)


class Stateful(CustomLogitProcessor):
    def __call__(self, logits, custom_param_list=None):
        return logits


class Stateless(Stateful):
    andes_stateless = True


class SaysOtherwise(Stateless):
    andes_stateless = "no"


class Batch:
    # one request that has said ``said``, as it is formed after a return
    device, cumulate = "cpu", ScheduleBatch.cumulate_penalty_output_tokens

    def __init__(self, said):
        sampling = SamplingParams(frequency_penalty=0.5, presence_penalty=0.25, repetition_penalty=1.5, min_new_tokens=9)
        self.reqs = [Req("r", "", array("q", [5, 6]), sampling, vocab_size=20)]
        self.reqs[0].output_ids = array("q", said)
        self.reqs[0].tokenizer = SimpleNamespace(additional_stop_token_ids=None, eos_token_id=1)
        names = ("Frequency", "Presence", "Repetition", "MinNewTokens")
        kinds = {getattr(penaltylib, f"Batched{name}Penalizer") for name in names}
        penalizers = penaltylib.BatchedPenalizerOrchestrator(20, self, kinds)
        self.sampling_info = SimpleNamespace(penalizer_orchestrator=penalizers)

    def counters(self):
        names = [f"cumulated_{kind}_penalties" for kind in ("frequency", "presence", "repetition")] + ["len_output_tokens"]
        kinds = self.sampling_info.penalizer_orchestrator.penalizers.values()
        return {name: getattr(kind, name)[0].tolist() for kind in kinds for name in names if hasattr(kind, name)}


def undisturbed(said, overlap):
    # before the token after ``said`` is drawn: each step counts what it knows to be the last token
    batch = Batch([])
    for k in range(len(said)):
        batch.reqs[0].output_ids = array("q", said[:k] if overlap else said[: k + 1])
        batch.cumulate()
    return batch.counters()


def restored(said, before_decode, overlap):
    batch = Batch(said)
    restore_penalties(batch, [0], before_decode=before_decode, overlap=overlap)
    if before_decode:
        batch.cumulate()
    return batch.counters()


SAID = [7, 8, 8, 9, 8]
print(json.dumps([
    [restored(SAID, before_decode, overlap), undisturbed(SAID, overlap)]
    for before_decode in (False, True) for overlap in (False, True)
]))
print(json.dumps({
    "plain": preemptible(sampling={"stop": ["x"], "temperature": 0.5, "json_schema": "{}"}),
    "last hidden state": preemptible(return_hidden_states="last"),
    **{name: preemptible(sampling={name: value}) for name, value in (
        ("frequency_penalty", 0.5), ("presence_penalty", 0.5), ("repetition_penalty", 1.1), ("min_new_tokens", 3),
    )},
    **{name: preemptible(**{name: value}) for name, value in (
        ("speculative", "EAGLE"), ("lora_id", "a"), ("session_id", "s"), ("generation", 1), ("return_logprob", True),
        ("input_embeds", [[0.1]]), ("positional_embed_overrides", object()),
        ("return_sampling_mask", True), ("return_hidden_states", True), ("return_routed_experts", True),
        ("return_indexer_topk", True),
    )},
    "n-grams": preemptible("NGRAM"),
    **{f"n-grams, {name}": preemptible("NGRAM", {name: value}) for name, value in (
        ("frequency_penalty", 0.5), ("presence_penalty", 0.5), ("repetition_penalty", 1.1), ("min_new_tokens", 3),
    )},
    "n-grams, hidden state": preemptible("NGRAM", return_hidden_states="last"),
    "session": preemptible(session=SimpleNamespace(streaming=False)),
    "streaming session": preemptible(session=SimpleNamespace(streaming=True)),
    **{kind.__name__: preemptible(custom_logit_processor=kind.to_str()) for kind in (
        Stateful, Stateless, SaysOtherwise, DisallowedTokensLogitsProcessor,
    )},
}))
"""


@pytest.mark.engine
@pytest.mark.timeout(300)
def test_what_could_not_survive_a_preemption_is_never_preempted_and_counters_do() -> None:
    done = subprocess.run([sys.executable, "-c", VICTIMS], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    counters, may = map(json.loads, done.stdout.splitlines()[-2:])
    for restored, undisturbed in counters:
        assert len(restored) == 4
        assert restored == undisturbed
    assert len(may) == 29
    survive = {"frequency_penalty", "presence_penalty", "repetition_penalty", "min_new_tokens", "return_logprob"}
    survive |= {"n-grams", "lora_id", "session", "session_id", "Stateless", "DisallowedTokensLogitsProcessor"}
    assert {name for name, preemptible in may.items() if preemptible} == {"plain", "last hidden state", *survive}


@pytest.mark.parametrize("passed", [["--host-kv-codec", "int8"], ["--tp-size", "1", "--host-kv-codec=lossless"]])
def test_a_codec_of_the_simulator_is_refused_with_a_sentence(model: str, passed: list[str]) -> None:
    with pytest.raises(
        UsageError, match="--host-kv-codec: only the simulator has it; an engine's host copies are exact"
    ):
        launch.serve(arguments_of("--model", model), passed)
