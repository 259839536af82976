"""Real engines under forced preemption: the outputs stay token-identical, and nothing is left behind."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import re
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from andes_sglang.adapter.options import OFFLOAD_PARTS
from andes_sglang.adapter.seams import OFFLOAD_RELEASES
from andes_sglang.bench.engine import Engine, read_metrics
from andes_sglang.engine_flags import EngineFlags

pytestmark = [pytest.mark.engine, pytest.mark.timeout(600)]

ENDLESS_TOKENS = 6000
"""Longer than a test takes to look at an engine on a slow machine: 30 s at 5 ms a step."""
BASE = (
    "--max-total-tokens", "65536", "--enable-metrics", "--max-running-requests", "8", "--max-queued-requests", "6",
    "--enable-return-hidden-states",
)  # fmt: skip
PROMPTS = [[7 + (31 * k + 13 * j) % 900 for j in range(20 + 17 * k)] for k in range(6)]
SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}, "b": {"type": "boolean"}}, "required": ["a", "b"]}


def stream(engine: Engine, prompt: list[int], **more: Any) -> tuple[list[str], list[int], str | None]:
    """Texts and running token counts of every chunk, and the finish reason, or the code of an error in its place."""
    body = {
        "model": "m",
        "prompt": prompt,
        "max_tokens": 40,
        "temperature": 0,
        "ignore_eos": True,
        "stream": True,
        "stream_options": {"include_usage": True, "continuous_usage_stats": True},
        **more,
    }
    request = urllib.request.Request(
        engine.url + "/v1/completions", json.dumps(body).encode(), {"content-type": "application/json"}
    )
    texts, counts, reason = [], [], None
    with urllib.request.urlopen(request, timeout=120) as answer:
        for line in answer:
            if not line.startswith(b"data: ") or line.startswith(b"data: [DONE]"):
                continue
            chunk = json.loads(line[6:])
            if "error" in chunk:
                return texts, counts, str(chunk["error"]["code"])
            for choice in chunk["choices"]:
                texts.append(choice["text"])
                counts.append(chunk["usage"]["completion_tokens"])
                reason = choice["finish_reason"] or reason
    return texts, counts, reason


def conversation(engine: Engine) -> list[list[int]]:
    """Two turns of a session of SGLang: the second is told only what is new."""
    session = json.loads(str(engine.post("/open_session", {"capacity_of_str_len": 1000})["text"]))
    sampling = {"max_new_tokens": 12, "ignore_eos": True, "temperature": 0}
    said, turn = [], None
    for prompt in (PROMPTS[0], PROMPTS[1]):
        body = {"input_ids": prompt, "session_params": {"id": session, "rid": turn}, "sampling_params": sampling}
        answer: Any = engine.post("/generate", body)
        turn = answer["meta_info"]["id"]
        said.append([answer["meta_info"]["prompt_tokens"], *answer["output_ids"]])
    engine.post("/close_session", {"session_id": session})
    assert said[1][0] > len(PROMPTS[0]) + len(PROMPTS[1])
    return said


LAST_STATE = {"return_hidden_states": "last"}
"""By ``/generate`` SGLang 0.5.22 and newer take no mode."""
RANKS = {"top_logprobs_num": 3, "token_ids_logprob": [5, 6]}
EARLY_STOP = {"stop_token_ids": list(range(0, 1000, 2)), "min_new_tokens": 15}
"""Every other token ends the answer, once it may."""


def generate(engine: Engine, prompt: list[int], sampling: dict[str, Any], **more: Any) -> Any:
    return engine.post("/generate", {"input_ids": prompt, "sampling_params": sampling, **more})


def logprobs_of(answer: Any) -> list[float]:
    """Of prompt and answer, each token's, and those of the best ranks and of the tokens asked for."""
    told, found = answer["meta_info"], []
    for side in ("input", "output"):
        found += [value or 0.0 for value, _, _ in told[f"{side}_token_logprobs"]]
        for kind in ("top_logprobs", "token_ids_logprobs"):
            found += [value for row in told[f"{side}_{kind}"] if row for value, _, _ in row]
    assert len(found) == (len(PROMPTS[4]) - 5 + 24) * 6 - 5, "the first of the prompt's has no ranks"
    return found


def hidden_state(answer: Any) -> list[float]:
    (last,) = np.atleast_2d(answer["choices"][0]["hidden_states"])
    assert len(last) == 64
    return [float(value) for value in last]


def check_same(found: dict[str, Any], expected: dict[str, Any]) -> None:
    assert found.pop("figures") == pytest.approx(expected["figures"], abs=1e-3)
    assert found == {name: value for name, value in expected.items() if name in found}
    assert len(found) >= len(expected) - 3


def answers(engine: Engine) -> dict[str, Any]:
    """What this engine says to a fixed set of requests sent at once."""
    with ThreadPoolExecutor(8) as pool:
        plain = [pool.submit(stream, engine, prompt) for prompt in PROMPTS]
        texts = ["".join(f.result()[0]) for f in plain]
        logprobs = pool.submit(
            engine.post,
            "/v1/completions",
            {"model": "m", "prompt": PROMPTS[0], "max_tokens": 24, "temperature": 0, "logprobs": 1, "ignore_eos": True},
        )
        grammar = pool.submit(
            engine.post,
            "/v1/chat/completions",
            {
                "model": "m",
                "messages": [{"role": "user", "content": "anbe"}],
                "max_tokens": 40,
                "temperature": 0,
                "response_format": {"type": "json_schema", "json_schema": {"name": "s", "schema": SCHEMA}},
            },
        )
        session = pool.submit(conversation, engine)
        penalized = pool.submit(stream, engine, PROMPTS[3], frequency_penalty=1.5, presence_penalty=0.5)
        several = pool.submit(
            engine.post,
            "/v1/completions",
            {"model": "m", "prompt": PROMPTS[1], "max_tokens": 24, "temperature": 0, "n": 2, "ignore_eos": True},
        )
        choice: Any = logprobs.result()["choices"]
        wait([grammar, session, penalized, several])  # more at once, and the queue is full of those that were released
        asked = {"temperature": 0, "max_new_tokens": 24, "ignore_eos": True}
        prompt = pool.submit(generate, engine, PROMPTS[4], asked, return_logprob=True, logprob_start_len=5, **RANKS)
        repeated = pool.submit(generate, engine, PROMPTS[2], {**asked, "repetition_penalty": 1.4})
        minimum = pool.submit(generate, engine, PROMPTS[1], {**asked, "ignore_eos": False, **EARLY_STOP})
        hidden = pool.submit(
            engine.post,
            "/v1/completions",
            {"model": "m", "prompt": PROMPTS[5], "max_tokens": 24, "temperature": 0, "ignore_eos": True, **LAST_STATE},
        )
        cut = texts[2][20:23]
        stopped = stream(engine, PROMPTS[2], stop=[cut])
        return {
            "texts": texts,
            "logprob tokens": choice[0]["logprobs"]["tokens"],
            "logprobs": [round(v, 3) for v in choice[0]["logprobs"]["token_logprobs"]],
            "grammar": grammar.result()["choices"][0]["message"]["content"],  # type: ignore[index]
            "n": [c["text"] for c in several.result()["choices"]],  # type: ignore[attr-defined]
            "session": session.result(),
            "penalty": "".join(penalized.result()[0]),
            "repetition": repeated.result()["output_ids"],
            "min_tokens": minimum.result()["output_ids"],
            "prompt": [token for _, token, _ in prompt.result()["meta_info"]["input_token_logprobs"]],
            "figures": [*logprobs_of(prompt.result()), *hidden_state(hidden.result())],
            "stop": ("".join(stopped[0]), stopped[2]),
        }


@pytest.fixture(scope="module")
def expected(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    # SGLang's overlap counts penalties a step late, with or without us: only without it are they the same every time.
    flags = (*BASE, "--disable-overlap-schedule")
    with Engine(tiny_model, "stock", flags, log=tmp_path_factory.mktemp("stock") / "log") as engine:
        told = answers(engine)
        assert not any("andes" in name for name in read_metrics(engine.url)), "the plugin is inert"
        assert "andes" not in json.loads(engine.get("/server_info"))["internal_states"][0]
        return told


CONFIGURATIONS = [
    *itertools.product(("overlap", "no overlap"), ("park", "release"), ("chunked", "whole")),
    *itertools.product(("overlap",), ("park", "release"), ("mixed",)),
    ("overlap", "offload", "chunked"),
    ("no overlap", "offload", "whole"),
    ("overlap", "offload", "mixed"),
]
OFFLOAD = ("--preemption-mode", "offload", "--max-total-tokens", "450")
"""Too little KV for all streams at once, so that what was offloaded has to be loaded back."""


def slow_copies(directory: Path) -> dict[str, str]:
    """An environment in which every copy to or from host memory takes a while: most of what happens does so amid one."""
    (directory / "sitecustomize.py").write_text(
        "import time\n"
        "from andes_sglang.adapter import copy_streams\n"
        "copy_rows = copy_streams.copy_rows\n"
        "copy_streams.copy_rows = lambda *rows: (time.sleep(0.02), copy_rows(*rows))\n"
    )
    return {"PYTHONPATH": os.pathsep.join([str(directory), os.environ.get("PYTHONPATH", "")])}


@pytest.fixture(scope="module", params=CONFIGURATIONS, ids=["-".join(c).replace(" ", "_") for c in CONFIGURATIONS])
def engine(
    request: pytest.FixtureRequest, tiny_model: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Engine, str]]:
    overlap, mode, chunk = request.param
    flags = [*BASE, "--policy-option", f"mode={mode}", "--policy-option", "every_tokens=3"]
    flags += ["--chunked-prefill-size", "-1" if chunk == "whole" else "32"]
    flags += ["--enable-mixed-chunk"] if chunk == "mixed" else []
    flags += ["--disable-overlap-schedule"] if overlap == "no overlap" else []
    if mode == "offload":
        flags += OFFLOAD
        with pytest.MonkeyPatch.context() as patch:
            for name, value in slow_copies(tmp_path_factory.mktemp("slow")).items():
                patch.setenv(name, value)
            patch.setenv("SGLANG_ENABLE_STRICT_MEM_CHECK_DURING_BUSY", "1")
            with Engine(tiny_model, "forced", flags, log=tmp_path_factory.mktemp("forced") / "log") as started:
                yield started, mode
        return
    with Engine(tiny_model, "forced", flags, log=tmp_path_factory.mktemp("forced") / "log") as started:
        yield started, mode


def preemptions(engine: Engine, mode: str) -> float:
    return read_metrics(engine.url).get(f'andes_preemptions_total{{mode="{mode}",reason="forced"}}', 0.0)


def test_outputs_are_token_identical(engine: tuple[Engine, str], expected: dict[str, Any]) -> None:
    server, mode = engine
    found = answers(server)
    if "--disable-overlap-schedule" not in server.flags:
        assert found.pop("penalty")
        assert len(found.pop("repetition")) == 24
    check_same(found, expected)
    assert preemptions(server, mode) > 60
    if mode == "offload":
        check_load(server, evicting=440)
        figures = read_metrics(server.url)
        assert figures['andes_host_copied_bytes_total{direction="load"}'] > 0
        assert figures['andes_host_copy_seconds_total{direction="load"}'] > 0.02
        assert figures["andes_recomputed_tokens_total"] < 10


@pytest.mark.parametrize("part", OFFLOAD_PARTS)
def test_without_a_part_of_it_offload_is_only_slower(
    tiny_model: Path,
    tmp_path: Path,
    expected: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
    part: str,
    path_with: Callable[..., str],
) -> None:
    """The same tokens, and the figures show that the part is not there. On the release that can leave a part out."""
    slow_copies(tmp_path)
    monkeypatch.setenv("PYTHONPATH", path_with(OFFLOAD_RELEASES[0], tmp_path))
    monkeypatch.setenv("SGLANG_ENABLE_STRICT_MEM_CHECK_DURING_BUSY", "1")
    flags = ("--disable-overlap-schedule", "--policy-option", "mode=offload", "--policy-option", "every_tokens=3")
    with Engine(
        tiny_model, "forced", (*BASE, *flags, *OFFLOAD, "--offload-without", part), log=tmp_path / "log"
    ) as engine:

        def generate(prompt: list[int], tokens: int) -> list[int]:
            sampling = {"max_new_tokens": tokens, "ignore_eos": True, "temperature": 0}
            answer: Any = engine.post("/generate", {"input_ids": prompt, "sampling_params": sampling})
            return list(answer["output_ids"])

        conversation = PROMPTS[5] + generate(PROMPTS[5], 40)
        until(engine, lambda told: told[USED] > 130)
        generate(PROMPTS[4], 2)  # too short to be preempted
        generate([11 + (17 * j) % 890 for j in range(440)], 2)  # nearly the whole pool
        generate(conversation, 20)
        until(engine, lambda told: told[HITS] > 130)
        until(engine, lambda told: (told[USED] < 300) == (part == "write-through"))
        until(engine, lambda told: again_tokens(told) > 130 if part == "increments" else again_tokens(told) == 0)
        found = answers(engine)
        assert len(found.pop("logprob tokens")) == 24, "of bytes that are no text the releases write different tokens"
        check_same(found, expected)
        assert preemptions(engine, "offload") > 60
        wait_until_idle(engine)
        until(engine, lambda told: told[USED] == 0)
        figures = read_metrics(engine.url)
        assert figures["andes_recomputed_tokens_total"] < 10
        if part == "overlap":
            copies_s = sum(figures[f'andes_host_copy_seconds_total{{direction="{way}"}}'] for way in ("write", "load"))
            assert figures["andes_host_wait_seconds_total"] > 0.7 * copies_s
        assert "leak" not in engine.log.read_text(errors="replace").lower()


STATES = ("running", "parked", "released", "waiting")
PATIENCE_S = 60.0
USED = 'andes_host_tokens{what="used"}'
HITS = "andes_host_hit_tokens_total"


def again_tokens(told: dict[str, float]) -> float:
    """Tokens copied to host memory more than once, where nothing has been evicted there."""
    written, loaded = (told[f'andes_host_copied_bytes_total{{direction="{way}"}}'] for way in ("write", "load"))
    return written / (loaded / told[HITS]) - told[USED]


def until(engine: Engine, holds: Callable[[dict[str, float]], bool]) -> None:
    """EngineMetrics follow within a moment."""
    deadline_s = time.monotonic() + PATIENCE_S
    while True:
        if (figures := read_metrics(engine.url)) and holds(figures):
            return
        if time.monotonic() > deadline_s:
            raise AssertionError({name: value for name, value in figures.items() if name.startswith("andes_")})


def check_load(engine: Engine, evicting: int) -> None:
    """What a prompt of ``evicting`` tokens, nearly the whole pool, drives off the device comes back from host memory, and is
    what it was."""

    wait_until_idle(engine)
    before = read_metrics(engine.url)[HITS]
    first = "".join(stream(engine, PROMPTS[5])[0])
    stream(engine, [11 + (17 * j) % 890 for j in range(evicting)], max_tokens=2)
    assert "".join(stream(engine, PROMPTS[5])[0]) == first
    until(engine, lambda told: told[HITS] >= before + len(PROMPTS[5]) - 15)


def test_server_info_names_the_policy(engine: tuple[Engine, str]) -> None:
    server, mode = engine
    info = json.loads(server.get("/server_info"))
    (told,) = info["internal_states"]
    assert told["andes"]["policy"] == "forced"
    assert told["andes"]["policy_options"]["mode"] == mode
    flags = EngineFlags.from_server_info(info)
    assert None not in (flags.max_running_requests, flags.max_total_tokens, flags.chunked_prefill_size)
    assert None not in (flags.enable_mixed_chunk, flags.disable_overlap_schedule, flags.enable_hierarchical_cache)
    assert flags.tp_size == 1
    assert flags.preemption_mode == ("offload" if flags.host_tokens else "release")


def test_no_chunk_is_empty_or_repeated(engine: tuple[Engine, str], expected: dict[str, Any]) -> None:
    server, _mode = engine
    with ThreadPoolExecutor(6) as pool:
        results = list(pool.map(lambda prompt: stream(server, prompt), PROMPTS))
    for (texts, counts, reason), text in zip(results, expected["texts"], strict=True):
        assert "".join(texts) == text
        assert counts == sorted(set(counts))
        assert counts[-1] == 40
        assert reason == "length"


def test_the_preempted_do_not_go_to_the_back_of_the_queue(engine: tuple[Engine, str]) -> None:
    """Eight streams lose their slot every few tokens, three newcomers wait for one all the while: none gets any.

    There is KV for all eight to their end: what does not fit would let a newcomer pass."""
    server, mode = engine
    if mode == "offload":
        pytest.skip("too little KV for all streams at once: a newcomer that fits may pass a stream that does not")

    def generate(k: int) -> int:
        sampling = {"max_new_tokens": ENDLESS_TOKENS, "ignore_eos": True, "temperature": 0}
        answer: Any = server.post("/generate", {"input_ids": PROMPTS[k % 6], "sampling_params": sampling})
        assert answer["meta_info"]["finish_reason"]["type"] == "abort"
        return int(answer["meta_info"]["completion_tokens"])

    def population(begun: int, waiting: int) -> None:
        def holds(told: dict[str, float]) -> bool:
            count = {state: told[f'andes_requests{{state="{state}"}}'] for state in STATES}
            return count.pop("waiting") == waiting and sum(count.values()) == begun

        until(server, holds)

    wait_until_idle(server)
    with ThreadPoolExecutor(11) as pool:
        first = [pool.submit(generate, k) for k in range(4)]
        population(4, 0)
        first += [pool.submit(generate, k) for k in range(4)]
        population(8, 0)
        newcomers = [pool.submit(generate, k) for k in range(3)]
        population(8, 3)
        enough = preemptions(server, mode) + 80
        until(server, lambda _: preemptions(server, mode) >= enough)
        server.post("/abort_request", {"abort_all": True})
        assert min(future.result() for future in first) > 15
        assert [future.result() for future in newcomers] == [0, 0, 0]


@pytest.mark.parametrize(
    "bodies", [[{"abort_all": True}], [{"rid": f"gone-{k}"} for k in range(4)]], ids=["all", "each"]
)
def test_an_abort_frees_everything(engine: tuple[Engine, str], bodies: list[dict[str, Any]]) -> None:
    server, mode = engine
    before = preemptions(server, mode)
    with ThreadPoolExecutor(4) as pool:
        pending = [
            pool.submit(
                server.post,
                "/generate",
                {
                    "rid": f"gone-{k}",
                    "input_ids": PROMPTS[k],
                    "sampling_params": {"max_new_tokens": ENDLESS_TOKENS, "ignore_eos": True, "temperature": 0},
                },
            )
            for k in range(4)
        ]
        while preemptions(server, mode) < before + 40:
            assert server.alive()
        for body in bodies:
            server.post("/abort_request", body)
        for future in pending:
            future.result()
    wait_until_idle(server)


def test_nothing_is_left_when_idle(engine: tuple[Engine, str]) -> None:
    server, mode = engine
    wait_until_idle(server)
    for state in STATES:
        assert read_metrics(server.url)[f'andes_requests{{state="{state}"}}'] == 0
    if mode == "offload":
        until(server, lambda told: told[USED] == 0)
    assert "leak" not in server.log.read_text(errors="replace").lower()
    assert server.alive()


def crowd(engine: Engine, size: int, **more: Any) -> list[str]:
    """The texts of ``size`` streams of different lengths sent at once; each must be whole."""

    def one(k: int) -> str:
        tokens = 40 + 7 * k % 80
        prompt = [7 + (31 * k + 13 * j) % 900 for j in range(20 + 11 * k % 30)]
        texts, counts, reason = stream(engine, prompt, max_tokens=tokens, **more)
        assert (counts[-1], counts, reason) == (tokens, sorted(set(counts)), "length")
        return "".join(texts)

    with ThreadPoolExecutor(size) as pool:
        return list(pool.map(one, range(size)))


@pytest.fixture(scope="module")
def unhurried(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    log = tmp_path_factory.mktemp("unhurried") / "log"
    with Engine(tiny_model, "stock", ("--max-total-tokens", "16384"), log=log) as engine:
        return crowd(engine, 24)


def test_kv_runs_out(tiny_model: Path, tmp_path: Path, unhurried: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """With no room kept for growth the pool overflows: retracted streams come back whole, in every iteration no KV is lost."""
    monkeypatch.setenv("SGLANG_ENABLE_STRICT_MEM_CHECK_DURING_BUSY", "1")
    flags = ("--max-total-tokens", "500", "--max-running-requests", "16", "--max-queued-requests", "24")
    policy = ("--policy-option", "preemption=false", "--policy-option", "growth_tokens=0")
    with Engine(tiny_model, "andes", (*flags, *policy, "--enable-metrics"), log=tmp_path / "log") as engine:
        assert crowd(engine, 24) == unhurried
        wait_until_idle(engine)
        figures = read_metrics(engine.url)
        assert figures["andes_retractions_total"] > 0
        assert figures['andes_resumes_total{mode="retracted"}'] == figures["andes_retractions_total"]


def test_host_memory_fills_up(
    tiny_model: Path, tmp_path: Path, unhurried: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Room for fewer copies than the device holds: some preemptions are plain releases, and all streams come whole. The
    engine is ended amid all that once: a new one knows nothing of it."""
    monkeypatch.setenv("SGLANG_ENABLE_STRICT_MEM_CHECK_DURING_BUSY", "1")
    flags = ("--max-total-tokens", "700", "--max-running-requests", "16", "--enable-metrics")
    policy = ("--policy-option", "mode=offload", "--policy-option", "every_tokens=6")
    offload = ("--preemption-mode", "offload", "--host-kv-gib", "0.0004")
    with Engine(tiny_model, "forced", (*flags, *policy, *offload), log=tmp_path / "log") as engine:
        with ThreadPoolExecutor(1) as pool:
            interrupted = pool.submit(crowd, engine, 24)
            while preemptions(engine, "offload") < 20:
                assert engine.alive(), engine.tail()
                assert not interrupted.done()
            engine.stop()
            assert interrupted.exception() is not None
        with engine:
            assert crowd(engine, 24) == unhurried
            figures = read_metrics(engine.url)
            assert figures["andes_host_refused_tokens_total"] > 0
            assert preemptions(engine, "offload") > 0
            assert preemptions(engine, "release") > 0
            check_load(engine, evicting=690)
            wait_until_idle(engine)
            assert "leak" not in engine.log.read_text(errors="replace").lower()


def test_the_parked_do_not_hold_the_slots_of_the_admitted(
    tiny_model: Path, tmp_path: Path, unhurried: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Plenty of KV, four slots, all streams in turn: one that is displaced has to give its slot up."""
    monkeypatch.setenv("SGLANG_ENABLE_STRICT_MEM_CHECK_DURING_BUSY", "1")
    flags = ("--max-total-tokens", "16384", "--max-running-requests", "4", "--enable-metrics")
    policy = ("--policy-option", "slice_tokens=10")
    with Engine(tiny_model, "round_robin", (*flags, *policy), log=tmp_path / "log") as engine:
        assert crowd(engine, 24) == unhurried
        wait_until_idle(engine)
        figures = read_metrics(engine.url)
        assert figures['andes_preemptions_total{mode="release",reason="displaced"}'] > 20


@pytest.mark.parametrize("overlap", [(), ("--disable-overlap-schedule",)], ids=["overlap", "no_overlap"])
def test_a_returning_stream_is_loaded_ahead(
    tiny_model: Path, tmp_path: Path, unhurried: list[str], monkeypatch: pytest.MonkeyPatch, overlap: tuple[str, ...]
) -> None:
    """KV for a few of those who take turns: what they left behind is back before they are admitted."""
    monkeypatch.setenv("SGLANG_ENABLE_STRICT_MEM_CHECK_DURING_BUSY", "1")
    flags = ("--max-total-tokens", "450", "--max-running-requests", "16", "--enable-metrics", *overlap)
    policy = ("--policy-option", "slice_tokens=10", "--preemption-mode", "offload")
    with Engine(tiny_model, "round_robin", (*flags, *policy), log=tmp_path / "log") as engine:
        assert crowd(engine, 24) == unhurried
        wait_until_idle(engine)
        figures = read_metrics(engine.url)
        assert 0 < figures["andes_host_ahead_tokens_total"] <= figures[HITS]


def test_limits_shed_only_those_that_never_ran(tiny_model: Path, tmp_path: Path) -> None:
    """A full queue turns newcomers away with 503, by SGLang's priorities if there are any, and never a begun stream."""
    flags = ("--max-total-tokens", "4096", "--max-running-requests", "2", "--max-queued-requests", "3")
    policy = ("--policy-option", "mode=release", "--policy-option", "every_tokens=3")
    more = ("--enable-priority-scheduling", "--enable-metrics")

    def one(engine: Engine, k: int) -> int:
        try:
            body = {"rid": f"r{k}", "input_ids": PROMPTS[k % 6], "priority": k}
            sampling = {"max_new_tokens": 60, "ignore_eos": True, "temperature": 0}
            answer: Any = engine.post("/generate", {**body, "sampling_params": sampling})
            return int(answer["meta_info"]["completion_tokens"])
        except urllib.error.HTTPError as error:
            return -error.code

    with Engine(tiny_model, "forced", (*flags, *policy, *more), log=tmp_path / "log") as engine:
        with ThreadPoolExecutor(16) as pool:
            results = list(pool.map(lambda k: one(engine, k), range(16)))
        wait_until_idle(engine)
        assert set(results) == {60, -503}
        figures = read_metrics(engine.url)
        assert figures["andes_request_qoe_count"] == len(results)
        assert figures['andes_request_qoe_bucket{le="0.1"}'] >= results.count(-503)


def test_waiting_time_outs_spare_the_begun(tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Streams that take turns wait far beyond the time-out in all; only a request that never got a turn is turned away."""
    monkeypatch.setenv("SGLANG_REQ_WAITING_TIMEOUT", "1")
    flags = ("--max-total-tokens", "4096", "--max-running-requests", "2", "--enable-metrics")
    policy = ("--policy-option", "mode=release", "--policy-option", "every_tokens=3")

    def one(engine: Engine, k: int) -> str:
        texts, _, reason = stream(engine, PROMPTS[k % 6], max_tokens=300)
        return f"{reason} after {'nothing' if not texts else 'tokens'}"

    with Engine(tiny_model, "forced", (*flags, *policy), log=tmp_path / "log") as engine:
        with ThreadPoolExecutor(8) as pool:
            results = list(pool.map(lambda k: one(engine, k), range(8)))
        wait_until_idle(engine)
        assert set(results) == {"length after tokens", "503 after nothing"}
        assert results.count("length after tokens") >= 2


def wait_until_idle(engine: Engine) -> None:
    """SGLang checks its pools for leaks whenever it is idle, and flushes only then; a leak ends the process."""
    deadline_s = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline_s:
        assert engine.alive(), engine.tail()
        with contextlib.suppress(OSError):
            if re.search("flushed", str(engine.post("/flush_cache", {}))):
                return
    raise AssertionError(f"the engine never became idle:\n{engine.tail()}")
