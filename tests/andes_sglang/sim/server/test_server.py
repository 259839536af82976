"""The simulated engine as its clients see it: the official OpenAI client, plain HTTP, Prometheus."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable
from typing import Any

import httpx
import openai
import pytest
from prometheus_client.parser import text_string_to_metric_families

from andes_sglang.engine_flags import EngineFlags
from andes_sglang.policy import make
from andes_sglang.request import RequestSpec
from andes_sglang.sim import profile
from andes_sglang.sim.replica import simulate

MODEL = "h100-llama-3.1-8b"
ASK: Any = [{"role": "user", "content": "Tell me about radix trees."}]


@pytest.fixture(scope="module")
def engine(simulated: Callable[..., Any]) -> Any:
    return simulated("--enable-cache-report", "--answer-tokens", "40")


@pytest.fixture(scope="module")
def client(engine: Any) -> Iterable[openai.OpenAI]:
    with openai.OpenAI(base_url=engine.url + "/v1", api_key="none", max_retries=0, timeout=120) as client:
        yield client


def until(engine: Any, name: str, value: float) -> None:
    """What other requests cause shows within moments."""
    deadline = time.monotonic() + 60
    while engine.figure(name) != value:
        assert time.monotonic() < deadline, f"{name} is {engine.figure(name)}, not {value}"


def test_the_model_is_listed(client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == [MODEL]
    assert client.models.retrieve(MODEL).owned_by == "sglang"
    with pytest.raises(openai.NotFoundError, match="'other' does not exist"):
        client.models.retrieve("other")


def test_chat_streamed_and_whole_are_the_same(client: openai.OpenAI) -> None:
    whole = client.chat.completions.create(model=MODEL, messages=ASK, max_tokens=40)
    stream = client.chat.completions.create(
        model=MODEL, messages=ASK, max_tokens=40, stream=True, stream_options={"include_usage": True}
    )
    chunks = list(stream)
    assert whole.usage is not None
    assert whole.usage.completion_tokens == 40
    assert [c.usage for c in chunks[:-1]] == [None] * (len(chunks) - 1)
    assert chunks[-1].choices == []
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens == 40
    assert (
        chunks[-1].usage.prompt_tokens
        == whole.usage.prompt_tokens
        == -(-len("<|user|><|assistant|>" + ASK[0]["content"]) // 4)
    )
    choices = [c.choices[0] for c in chunks[:-1]]
    assert choices[0].delta.role == "assistant"
    assert "".join(c.delta.content or "" for c in choices) == whole.choices[0].message.content
    assert {c.finish_reason for c in choices[:-1]} == {None}
    assert choices[-1].finish_reason == whole.choices[0].finish_reason == "length"
    assert len({c.id for c in chunks}) == 1


def test_completions_streamed_and_whole_are_the_same(client: openai.OpenAI) -> None:
    asked: Any = {
        "model": MODEL,
        "prompt": "Once upon a time",
        "max_tokens": 30,
        "echo": True,
        "extra_body": {"ignore_eos": True},
    }
    whole = client.completions.create(**asked)
    usage = {"include_usage": True, "continuous_usage_stats": True}
    chunks = list(client.completions.create(**asked, stream=True, stream_options=usage))
    assert "".join(c.choices[0].text for c in chunks[:-1]) == whole.choices[0].text
    assert whole.choices[0].text.startswith("Once upon a time")
    counted = [c.usage.completion_tokens for c in chunks if c.usage]
    assert counted == sorted(counted)
    assert counted[-2:] == [30, 30]
    assert len(counted) == len(chunks)


def test_an_answer_ends_by_itself_unless_told_not_to(client: openai.OpenAI) -> None:
    free = client.chat.completions.create(model=MODEL, messages=ASK)
    assert free.choices[0].finish_reason == "stop"
    assert free.usage is not None
    own = free.usage.completion_tokens
    assert len(free.choices[0].message.content or "") == 4 * (own - 1)  # the last token is the end of the text
    more = {"ignore_eos": True}
    longer = client.chat.completions.create(model=MODEL, messages=ASK, max_completion_tokens=own + 9, extra_body=more)
    assert longer.usage is not None
    assert (longer.usage.completion_tokens, longer.choices[0].finish_reason) == (own + 9, "length")
    assert (longer.choices[0].message.content or "").startswith(free.choices[0].message.content or "?")


def test_stop_strings_cut_the_text_and_name_themselves(client: openai.OpenAI) -> None:
    text = client.completions.create(model=MODEL, prompt="x", max_tokens=60).choices[0].text
    stop = text[45:51]
    at = text.index(stop)
    for stream in (False, True):
        cut = client.completions.create(
            model=MODEL, prompt="x", max_tokens=60, stop=["never there", stop], stream=stream
        )
        chunks: Any = list(cut) if stream else [cut]
        assert "".join(c.choices[0].text for c in chunks) == text[:at]
        assert chunks[-1].choices[0].finish_reason == "stop"
        assert chunks[-1].choices[0].matched_stop == stop


def test_several_choices_and_prompts(client: openai.OpenAI) -> None:
    whole = client.completions.create(model=MODEL, prompt=["one", "another"], n=2, max_tokens=12)
    texts = [choice.text for choice in whole.choices]
    assert [choice.index for choice in whole.choices] == [0, 1, 2, 3]
    assert len(set(texts)) == 4
    assert whole.usage is not None
    assert (whole.usage.prompt_tokens, whole.usage.completion_tokens) == (1 + 2, 4 * 12)
    streamed = ["", "", "", ""]
    for chunk in client.completions.create(model=MODEL, prompt=["one", "another"], n=2, max_tokens=12, stream=True):
        for choice in chunk.choices:
            streamed[choice.index] += choice.text
    assert streamed == texts


def test_token_ids_and_a_seed_choose_the_answer(client: openai.OpenAI) -> None:
    def ask(prompt: Any, **more: Any) -> str:
        return client.completions.create(model=MODEL, prompt=prompt, max_tokens=10, **more).choices[0].text

    assert ask([1, 2, 3]) == ask([[1, 2, 3]]) != ask([1, 2, 4])
    assert ask("x", seed=7) == ask("x", seed=7) != ask("x")


def test_a_shared_prompt_is_found_in_the_cache(client: openai.OpenAI) -> None:
    shared = "All requests begin with this long instruction. " * 100
    asked = [client.completions.create(model=MODEL, prompt=shared + end, max_tokens=2).usage for end in ("a", "b")]
    details = [usage.prompt_tokens_details for usage in asked if usage is not None]
    assert details[0] is not None
    assert details[0].cached_tokens == 0
    assert details[1] is not None
    assert details[1].cached_tokens == len(shared) // 4 // 512 * 512 > 0


def test_many_streams_at_once(engine: Any) -> None:
    async def one(client: openai.AsyncOpenAI, k: int) -> int:
        ask: Any = [{"role": "user", "content": f"number {k}"}]
        expectations = {"custom_params": {"qoe": {"ttft": 0.5 + k % 3, "tds": 4 + k % 5}}, "ignore_eos": True}
        stream = await client.chat.completions.create(
            model=MODEL, messages=ask, max_tokens=20 + k, stream=True, extra_body=expectations
        )
        return sum([len(chunk.choices[0].delta.content or "") async for chunk in stream]) // 4

    async def everybody() -> list[int]:
        async with openai.AsyncOpenAI(base_url=engine.url + "/v1", api_key="none", max_retries=0) as client:
            return await asyncio.gather(*(one(client, k) for k in range(60)))

    assert asyncio.run(everybody()) == [20 + k for k in range(60)]


BAD_COMPLETIONS = [
    ({"prompt": "x", "custom_params": {"qoe": {"tds": -4}}}, "custom_params.qoe.tds must be .* got -4"),
    ({"prompt": "x", "custom_params": {"qoe": {"speed": 4}}}, r"custom_params.qoe.speed: unknown field \(value 4\)"),
    ({"prompt": "x", "custom_params": {"qoe": 4}}, "custom_params.qoe must be an object .* got 4"),
    ({"prompt": "x", "custom_params": 4}, "custom_params must be an object, got 4"),
    ({"prompt": "x", "max_tokens": 0}, "max_tokens must be a whole number >= 1, got 0"),
    ({"prompt": "x", "max_tokens": "9"}, "max_tokens must be .* got '9'"),
    ({"prompt": "x", "n": 0}, "n must be .* got 0"),
    ({"prompt": "x", "n": 10**9}, r"n must be in \[1, 128\], got 1000000000"),
    ({"prompt": "x", "seed": 2**63}, "seed must fit into 64 bits, got 9223372036854775808"),
    ({"prompt": "x", "max_tokens": 2.5}, "max_tokens must be .* got 2.5"),
    ({"prompt": "x", "stop": ["y"] * 65}, "stop must have at most 64 entries, got 65"),
    ({"prompt": "x", "repetition_penalty": 1e-300}, r"repetition_penalty must be in \[0.01, 2\], got 1e-300"),
    ({"prompt": "x", "top_p": 0}, r"top_p must be in \(0, 1\], got 0"),
    ({"prompt": "x", "temperature": -1}, "temperature must be >= 0, got -1"),
    ({"prompt": "x", "stop": 5}, "stop must be a string or a list of strings, got 5"),
    ({"prompt": "x", "stream": "yes"}, "stream must be true or false, got 'yes'"),
    ({"prompt": "x", "stream_options": 5}, "stream_options must be an object, got 5"),
    ({"prompt": "x", "logprobs": 3}, r"logprobs is not simulated \(value 3\)"),
    ({"prompt": "x", "rid": 3}, "rid must be a string, got 3"),
    ({"prompt": "x", "max_tokens": 10**6}, "maximum context length of 426788 tokens"),
    ({"prompt": "x" * 2_000_000}, r"The input \(500000 tokens\) is longer than the model's context length"),
    ({"prompt": ""}, "Prompt cannot be empty"),
    ({"prompt": [[1], []]}, "Prompt cannot be empty"),
    ({"prompt": [1, -2]}, r"prompt must be text, token ids, or a list of either, got '\[1, -2\]'"),
    ({"prompt": {"a": 1}}, "prompt must be text"),
    ({}, "prompt: field required"),
    ([1], "the body must be an object"),
    (b'{"prompt":', "the body is not JSON"),
    (rb'{"prompt": "half a pair: \ud83d"}', "the body is not JSON: .* surrogates not allowed"),
    (b"[" * 100_000, "the body is not JSON"),
]


@pytest.mark.parametrize(("body", "says"), BAD_COMPLETIONS, ids=lambda x: str(x)[:50])
def test_bad_bodies_are_refused_with_field_and_value(engine: Any, body: Any, says: str) -> None:
    for stream in (False, True) if isinstance(body, dict) and "stream" not in body else (None,):
        status, error = engine.post("/v1/completions", {**body, "stream": stream} if stream else body)
        assert (status, error["object"], error["type"], error["code"]) == (400, "error", "BadRequestError", 400)
        with pytest.raises(AssertionError, match=says):
            raise AssertionError(error["message"])


@pytest.mark.parametrize(
    ("body", "says"),
    [
        ({}, "messages must be a list, got None"),
        ({"messages": []}, "Messages cannot be empty."),
        ({"messages": [3]}, "messages[0].role must be a string, got 3"),
        ({"messages": [{"role": "user", "content": 3}]}, "messages[0].content must be text, got 3"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages[0].content[0]: only text"),
        ({"messages": ASK, "tool_choice": "required"}, "tool_choice 'required' is not simulated"),
        ({"messages": ASK, "response_format": {"type": "json_object"}}, "response_format is not simulated"),
        ({"messages": ASK, "custom_params": {"qoe": {"ttft": "1"}}}, "custom_params.qoe.ttft must be"),
    ],
)
def test_bad_chats_are_refused_with_field_and_value(engine: Any, body: Any, says: str) -> None:
    status, error = engine.post("/v1/chat/completions", body)
    assert status == 400
    assert says in error["message"]


def test_other_bad_requests(engine: Any) -> None:
    status, error = engine.post("/generate", {"text": "x", "custom_params": 5})
    assert (status, error["error"]["message"]) == (400, "custom_params must be an object, got 5")
    status, error = engine.post("/generate", {"text": "x", "sampling_params": {"custom_params": {"qoe": {"tds": 0}}}})
    assert status == 400
    assert "custom_params.qoe.tds" in error["error"]["message"]
    assert engine.post("/v1/nothing", {}) == (404, {"detail": "Not Found"})
    assert engine.post("/health", {}) == (405, {"detail": "Method Not Allowed"})
    answer = httpx.post(engine.url + "/v1/completions", content=b"{}", headers={"content-type": "text/plain"})
    assert (answer.status_code, answer.json()["message"]) == (
        400, "content-type: only application/json is allowed, got 'text/plain'",
    )  # fmt: skip


def test_generate_in_sglangs_own_words(engine: Any) -> None:
    asked = {"text": "x", "sampling_params": {"max_new_tokens": 5, "ignore_eos": True}}
    status, output = engine.post("/generate", asked)
    assert status == 200
    assert len(output["output_ids"]) == output["meta_info"]["completion_tokens"] == 5
    assert output["meta_info"]["finish_reason"] == {"type": "length", "length": 5}
    _, several = engine.post("/generate", {**asked, "text": ["x", "y"]})
    inside_a_word = {"max_new_tokens": 5, "ignore_eos": True, "stop": output["text"][9:11]}
    _, cut = engine.post("/generate", {"text": "x", "sampling_params": inside_a_word})
    assert (cut["text"], cut["output_ids"]) == (output["text"][:9], output["output_ids"][:3])
    assert cut["meta_info"]["finish_reason"] == {"type": "stop", "matched": output["text"][9:11]}
    _, free = engine.post("/generate", {"text": "x", "sampling_params": {"max_new_tokens": 9999}})
    assert free["output_ids"][-1] == free["meta_info"]["finish_reason"]["matched"] == 2
    assert several[0]["text"] == output["text"]
    with httpx.stream("POST", engine.url + "/generate", json={**asked, "stream": True}) as answer:
        events = [line.removeprefix("data: ") for line in answer.iter_lines() if line]
    assert events[-1] == "[DONE]"
    assert output["text"] in events[-2]


def test_time_passes_as_in_the_simulator(engine: Any, client: openai.OpenAI) -> None:
    """A request alone takes as long as ``simulate`` says, by the engine's own account and at least that by ours."""
    asked = RequestSpec(0.0, 500, 200, max_tokens=200)
    (record,) = simulate(profile.load(MODEL).engine, make("andes"), [asked])
    before = engine.figure("sglang:e2e_request_latency_seconds_sum")
    first = engine.figure("sglang:time_to_first_token_seconds_sum")
    started_s = time.monotonic()
    client.completions.create(model=MODEL, prompt=list(range(9, 509)), max_tokens=200, extra_body={"ignore_eos": True})
    assert time.monotonic() - started_s >= record.end_s
    assert engine.figure("sglang:e2e_request_latency_seconds_sum") - before == pytest.approx(record.end_s, rel=1e-4)
    assert engine.figure("sglang:time_to_first_token_seconds_sum") - first == pytest.approx(record.ttft_s, rel=1e-4)


def test_expectations_are_what_the_score_is_about(engine: Any, client: openai.OpenAI) -> None:
    def score(**qoe: float) -> float:
        until(engine, "sglang:num_running_reqs", 0)  # whom another test has left
        before = engine.figure("andes_request_qoe_sum"), engine.figure("andes_request_qoe_count")
        client.completions.create(model=MODEL, prompt="x", max_tokens=9, extra_body={"custom_params": {"qoe": qoe}})
        until(engine, "andes_request_qoe_count", before[1] + 1)
        return float(engine.figure("andes_request_qoe_sum") - before[0])

    assert score(ttft=5.0, tds=4.8) == 1.0
    assert score(ttft=0.001, tds=5000.0) < 0.5


def test_a_client_that_goes_frees_what_it_held(engine: Any, client: openai.OpenAI) -> None:
    aborted = engine.figure("sglang:num_aborted_requests_total")
    for streaming in (True, False):
        asked = {"prompt": "x", "max_tokens": 100_000, "ignore_eos": True, "stream": streaming}
        if streaming:
            with httpx.stream("POST", engine.url + "/v1/completions", json=asked) as answer:
                lines = answer.iter_lines()  # kept: its end would close the stream
                next(lines)
                assert engine.get("/v1/loads")["loads"][0]["num_running_reqs"] == 1
        else:
            with pytest.raises(httpx.ReadTimeout):
                httpx.post(engine.url + "/v1/completions", json=asked, timeout=1.0)
        aborted += 1
        until(engine, "sglang:num_aborted_requests_total", aborted)
        until(engine, "sglang:num_used_tokens", 0)
        assert engine.figure("sglang:num_running_reqs") == 0


def test_metrics_are_well_formed_and_complete(engine: Any) -> None:
    page = httpx.get(engine.url + "/metrics")
    assert page.headers["content-type"].startswith("text/plain")
    families = {family.name for family in text_string_to_metric_families(page.text)}
    assert {f"sglang:{name}" for name in SGLANGS} | {f"andes_{name}" for name in OURS} <= families
    figures = engine.figures()
    for histogram in ("inter_token_latency_seconds", "time_to_first_token_seconds", "e2e_request_latency_seconds"):
        buckets = [v for k, v in figures.items() if k.startswith(f"sglang:{histogram}_bucket") and '"false"' not in k]
        assert buckets == sorted(buckets)
    assert figures['andes_policy_info{policy="andes"}'] == 1
    free, held = engine.figure("sglang:kv_available_tokens"), engine.figure("sglang:kv_evictable_tokens")
    assert free + held + engine.figure("sglang:kv_used_tokens") == engine.figure("sglang:max_total_num_tokens")


SGLANGS = [
    "num_running_reqs",
    "num_queue_reqs",
    "gen_throughput",
    "cache_hit_rate",
    "token_usage",
    "num_used_tokens",
    "num_retracted_requests",
    "max_total_num_tokens",
    "prompt_tokens",
    "generation_tokens",
    "num_requests",
    "cached_tokens",
    "num_aborted_requests",
    "time_to_first_token_seconds",
    "e2e_request_latency_seconds",
    "inter_token_latency_seconds",
]
OURS = [
    "policy_info",
    "decision_seconds",
    "preemptions",
    "retractions",
    "resumes",
    "request_qoe",
    "requests",
    "cost_seconds",
]


def test_what_it_says_of_itself(engine: Any) -> None:
    for path in ("/health", "/health_generate"):
        assert httpx.get(engine.url + path).status_code == 200
    for path in ("/get_model_info", "/model_info"):
        assert engine.get(path)["model_path"] == MODEL
    for path in ("/get_server_info", "/server_info"):
        info = engine.get(path)
        assert (info["profile"], info["policy"], info["max_total_num_tokens"]) == (MODEL, "andes", 426788)
        assert info["internal_states"][0]["andes"] == {
            "policy": "andes", "policy_options": {}, "preemption_mode": "release", "host_tokens": 0,
        }  # fmt: skip
        told = EngineFlags.from_server_info(info).to_dict()
        absent = [name for name, value in told.items() if value is None]
        assert absent == ["host_tokens", "speculative_algorithm"], "it has neither"
