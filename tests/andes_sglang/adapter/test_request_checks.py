"""A real engine that one request cannot end, freeze or confuse, at any endpoint."""

from __future__ import annotations

import json
import re
import urllib.error
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from andes_sglang.bench.engine import Engine

pytestmark = [pytest.mark.engine, pytest.mark.timeout(600)]

VOCABULARY = 1024
"""Tokens of the tiny model."""
MODEL = SimpleNamespace(vocab_size=VOCABULARY, hidden_size=4)
HIGH, HUGE = 10**6, 2**70
BACKTRACKS = "([a-z ]+)+[0-9]{9}Q"
ASK = [{"role": "user", "content": "an be"}]
MALFORMED = {"qoe": {"tds": -4}}


def native(sampling: dict[str, Any] | None = None, **fields: Any) -> tuple[str, dict[str, Any]]:
    return "/generate", {"input_ids": [5, 6, 7], "sampling_params": {"max_new_tokens": 4, **(sampling or {})}, **fields}


def completion(**fields: Any) -> tuple[str, dict[str, Any]]:
    return "/v1/completions", {"model": "m", "prompt": [5, 6, 7], "max_tokens": 4, **fields}


def chat(**fields: Any) -> tuple[str, dict[str, Any]]:
    return "/v1/chat/completions", {"model": "m", "messages": ASK, "max_tokens": 4, **fields}


def responses(**fields: Any) -> tuple[str, dict[str, Any]]:
    return "/v1/responses", {"model": "m", "input": "an be", "max_output_tokens": 4, **fields}


def messages(**fields: Any) -> tuple[str, dict[str, Any]]:
    return "/v1/messages", {"model": "m", "messages": ASK, "max_tokens": 4, **fields}


def score(**fields: Any) -> tuple[str, dict[str, Any]]:
    return "/v1/score", {"model": "m", "query": "an", "items": ["be"], "label_token_ids": [5], **fields}


def ollama(**options: Any) -> tuple[str, dict[str, Any]]:
    return "/api/generate", {"model": "m", "prompt": "an", "stream": False, "options": options}


DEEP: dict[str, Any] = {}
for _ in range(100):
    DEEP = {"deeper": DEEP}

REFUSED: list[tuple[tuple[str, dict[str, Any]], str]] = [
    (
        native(input_ids=[5, HIGH]),
        "input_ids: token ids must be whole numbers in [0, 1023] (the vocabulary), got 1000000",
    ),
    (native(input_ids=[[5, 6], [5, -3]]), "got -3"),
    (completion(prompt=[5, VOCABULARY]), "got 1024"),
    (completion(prompt=[[5], [-1]]), "got -1"),
    (chat(input_ids=[5, HIGH]), "got 1000000"),
    (score(query=[5, -6], items=[[6]]), "got -6"),
    (score(label_token_ids=[HIGH]), "1000000"),
    (("/v1/embeddings", {"model": "m", "input": [5, HIGH]}), "got 1000000"),
    (("/encode", {"input_ids": [5, -1]}), "got -1"),
    (("/classify", {"input_ids": [HIGH]}), "got 1000000"),
    (("/v1/rerank", {"model": "m", "query": "an", "documents": ["be"]}), "embedding model"),
    (native(return_logprob=True, top_logprobs_num=HIGH), "top_logprobs_num must be in [0, 1024] (the vocabulary)"),
    (completion(logprobs=VOCABULARY + 1), "got 1025"),
    (chat(logprobs=True, top_logprobs=HIGH), "top_logprobs_num must be in"),
    (native(return_logprob=True, logprob_start_len=-7), "logprob_start_len must be in [-1, 3] (the prompt), got -7"),
    (native(return_logprob=True, token_ids_logprob=[-1]), "token_ids_logprob: token ids"),
    (native({"stop_token_ids": [HIGH], "min_new_tokens": 2}), "stop_token_ids: token ids"),
    (chat(stop_token_ids=[-HIGH], min_tokens=2), "stop_token_ids: token ids"),
    (native({"stop_token_ids": ["x"]}), "sampling_params.stop_token_ids: expected int, got str"),
    (native({"logit_bias": {"7": "x"}}), "sampling_params.logit_bias: expected float, got str"),
    (native({"logit_bias": [3]}), "sampling_params.logit_bias: expected object"),
    (completion(logit_bias={"x": 1}), "logit_bias: token ids must be"),
    (completion(logit_bias={"7": 1e38}), "logit_bias of token '7' must be in [-1e+09, 1e+09]"),
    (native({"max_new_tokens": 2.5}), "sampling_params.max_new_tokens: expected int | null, got float (value 2.5)"),
    (native({"max_new_tokens": "5"}), "expected int | null, got str"),
    (native({"max_new_tokens": -1}), "max_new_tokens must be in [0, "),
    (native({"top_k": 2**40}), "top_k must be in [-1, 2147483647]"),
    (native({"repetition_penalty": 1e-300}), "repetition_penalty must be in [0.01, 2.0]"),
    (native({"sampling_seed": 2**63}), "sampling_params.sampling_seed must fit into 64 bits"),
    (completion(seed=HUGE), "seed"),
    (native({"n": 10**5}), "n must be in [1, 128], got 100000"),
    (chat(n=1000), "n must be in [1, 128], got 1000"),
    (native({"stream_interval": 0}), "stream_interval must be in [1, "),
    (native({"stop": [5]}), "sampling_params.stop: expected str, got int"),
    (native({"stop": [str(k) for k in range(65)]}), "stop must have at most 64 entries, got 65"),
    (native({"temprature": 1}), "temprature"),
    (native({"beam_width": 3}), "beam_width must be 1, got 3"),
    (native({"beam_width": 2}, input_ids=[[5], [6]]), "beam_width must be 1, got 2"),
    (native({"stop_regex": "(?=a)b"}), "stop_regex '(?=a)b': look-around"),
    (
        completion(stop_regex="((a{0,60000}){0,60000}){0,60000}"),
        "216000000000000 characters with its repetitions written",
    ),
    (chat(stop_regex="("), "stop_regex '(': missing )"),
    (native(rid=["a", "b"]), "rid: a list of 2 for a single prompt"),
    (native(input_ids=[[5], [6]], top_logprobs_num=[1]), "top_logprobs_num: a list of 1 for 2 prompts"),
    (native(positional_embed_overrides={"a": 1}), "positional_embed_overrides cannot be given in JSON"),
    (native(session_params={"sid": "x"}), "session_params.sid: unknown field"),
    (native({"custom_params": DEEP}), "custom_params: nested deeper than 32 levels"),
    (native({"custom_params": 5}), "sampling_params.custom_params: expected object"),
    (native({"custom_params": [{"qoe": {}}]}), "sampling_params.custom_params: expected object"),
    (native(custom_params=MALFORMED), "custom_params.qoe.tds must be"),
    (responses(custom_params=MALFORMED), "custom_params.qoe.tds must be"),
    (messages(custom_params=MALFORMED), "custom_params.qoe.tds must be"),
    (messages(custom_params="fast"), "custom_params: expected object"),
    (messages(top_k=-7), "top_k must be in"),
    (ollama(stop=5), "sampling_params.stop: expected str"),
    (ollama(num_predict=-3), "max_new_tokens must be in"),
]


@pytest.fixture(scope="module")
def engine(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    flags = (
        "--enable-metrics", "--max-total-tokens", "4096", "--max-running-requests", "4", "--tool-call-parser", "pythonic",
        "--constrained-json-disable-any-whitespace", "--served-model-name", "m",
    )  # fmt: skip
    with Engine(tiny_model, "andes", flags, log=tmp_path_factory.mktemp("checks") / "log") as engine:
        yield engine


def words(engine: Engine, sampling: dict[str, Any] | None = None) -> Any:
    path, body = native({"temperature": 0, "ignore_eos": True, **(sampling or {})})
    return engine.post(path, body)["output_ids"]


def post(engine: Engine, path: str, body: Any) -> tuple[int, str]:
    """Status and text of the answer, with quotation marks as they are inside strings."""
    try:
        status, text = 200, json.dumps(engine.post(path, body))
    except urllib.error.HTTPError as error:
        status, text = error.code, error.read().decode()
    return status, text.replace('\\"', '"')


def test_what_would_end_an_engine_is_refused_with_field_and_value(engine: Engine) -> None:
    """All at one engine, which answers as before afterwards."""
    before = words(engine)
    found = [(path, *post(engine, path, body), says) for (path, body), says in REFUSED]
    assert [case for case in found if case[1] != 400 or case[3] not in case[2]] == []
    assert words(engine) == before


def test_a_stream_is_refused_too(engine: Engine) -> None:
    """SGLang's ``/generate`` begins its answer before it looks at the request."""
    status, text = post(engine, *completion(prompt=[HIGH], stream=True))
    assert (status, "got 1000000" in text) == (400, True)
    status, text = post(engine, *native(input_ids=[HIGH], stream=True))
    assert '"code":400' in text
    assert "got 1000000" in text


def test_a_pattern_that_backtracks_stops_nobody(engine: Engine) -> None:
    """Python's ``re`` would take longer than anybody lives; the tiny model writes no digits in a row."""
    plain = words(engine, {"max_new_tokens": 200})
    assert words(engine, {"max_new_tokens": 200, "stop_regex": [BACKTRACKS, "(.*)*#Q"]}) == plain


def test_a_pattern_still_ends_an_answer(engine: Engine) -> None:
    path, body = native({"max_new_tokens": 200, "stop_regex": "[a-z]{3}", "temperature": 0, "ignore_eos": True})
    answer: Any = engine.post(path, body)
    assert answer["meta_info"]["finish_reason"] == {"type": "stop", "matched": "[a-z]{3}"}
    assert len(answer["output_ids"]) < 200


def test_a_call_that_is_required_comes_to_an_end(engine: Engine) -> None:
    """Of a model whose words mean nothing, at a high temperature: whatever its arguments leave open it would go on with."""
    parameters = {
        "type": "object",
        "properties": {"n": {"type": "integer", "minimum": 0, "maximum": 9}},
        "required": ["n"],
    }
    function = {"name": "look", "parameters": {**parameters, "additionalProperties": False}}
    tools = [{"type": "function", "function": function}]
    for seed in range(8):
        path, body = chat(
            tools=tools, tool_choice="required", parallel_tool_calls=False, max_tokens=120, temperature=2, seed=seed
        )
        answer: Any = engine.post(path, body)
        (choice,) = answer["choices"]
        assert choice["finish_reason"] == "tool_calls"
        (call,) = choice["message"]["tool_calls"]
        assert 0 <= json.loads(call["function"]["arguments"])["n"] <= 9


@pytest.mark.parametrize("ask", [messages, responses, chat, completion])
def test_an_expectation_reaches_the_policy_from_every_endpoint(engine: Engine, ask: Any) -> None:
    status, text = post(engine, *ask(custom_params={"qoe": {"ttft": 1, "tds": 4, "weight": 0.5}}))
    assert (status, text[:1]) == (200, "{")
    status, text = post(engine, *ask(custom_params={"qoe": {"weight": 0}}))
    assert (status, "custom_params.qoe.weight must be a number" in text) == (400, True)


def test_http_processes_of_their_own_refuse_as_well(tiny_model: Path, tmp_path: Path) -> None:
    """Several requests, so that each of the two has had one."""
    flags = ("--max-total-tokens", "4096", "--tokenizer-worker-num", "2")
    with Engine(tiny_model, "stock", flags, log=tmp_path / "log") as engine:
        for _ in range(6):
            for ask, says in (
                (native(input_ids=[HIGH]), "got 1000000"),
                (native({"max_new_tokens": 2.5}), "got float"),
                (ollama(stop=5), "sampling_params.stop: expected str"),
            ):
                status, text = post(engine, *ask)
                assert (status, says in text) == (400, True), text
        assert len(words(engine)) == 4


@pytest.mark.parametrize(
    ("pattern", "says"),
    [
        (r"(a)\1", "backreferences are not supported"),
        ("(" * 5000 + "a" + ")" * 5000, "nested too deep"),
        (r"\w{256}", "Compiled regex exceeds size limit"),
        ("(?:[a-z ]?){1000}Q", "1001 characters"),
    ],
)
def test_patterns_that_no_linear_search_can_take(pattern: str, says: str) -> None:
    from andes_sglang.adapter import stop_regex

    assert says in str(stop_regex.fault(pattern))


def test_the_linear_search_finds_what_python_finds() -> None:
    from andes_sglang.adapter import stop_regex

    with pytest.raises(re.error, match="look-around"):
        stop_regex.LinearSearch.search("(?=a)b", "ab")
    for pattern, text in ((r"END|\n\n", "a\n\nb"), ("(?i)stop", "please STOP"), (r"\d{3}$", "x 123"), ("a|b", "c")):
        assert stop_regex.fault(pattern) is None
        assert stop_regex.LinearSearch.search(pattern, text) == ((pattern != "a|b") or None)


def test_a_tokenizer_with_more_tokens_than_the_model_is_no_danger() -> None:
    """A text whose tokens the model has no embeddings for."""
    from andes_sglang.adapter.request_checks import RequestRefusedError, check_values

    asked = SimpleNamespace(sampling_params={}, input_ids=None, contains_mm_input=lambda: False)
    check_values(MODEL, asked, [5, VOCABULARY - 1], loads_processors=False)
    with pytest.raises(RequestRefusedError, match="got 1024"):
        check_values(MODEL, asked, [5, VOCABULARY], loads_processors=False)


def test_embeddings_have_the_models_size() -> None:
    from andes_sglang.adapter.request_checks import RequestRefusedError, check_values

    asked = SimpleNamespace(sampling_params={}, input_ids=None, contains_mm_input=lambda: False)
    asked.input_embeds = [[0.1] * 4] * 3
    check_values(MODEL, asked, None, loads_processors=False)
    for wrong in ([[0.1] * 4, [0.1] * 3], [[]], [0.1]):
        asked.input_embeds = wrong
        with pytest.raises(RequestRefusedError, match="input_embeds: rows must have 4 numbers"):
            check_values(MODEL, asked, None, loads_processors=False)


@pytest.mark.parametrize("code", ["x", "[]", '{"callable": "00"}'])
def test_code_that_cannot_be_loaded_is_refused_and_only_loaded_where_the_server_runs_such_code(code: str) -> None:
    from andes_sglang.adapter.request_checks import RequestRefusedError, check_values

    asked = SimpleNamespace(
        sampling_params={}, input_ids=[5], contains_mm_input=lambda: False, custom_logit_processor=code
    )
    check_values(MODEL, asked, [5], loads_processors=False)
    with pytest.raises(RequestRefusedError, match=r"custom_logit_processor .* cannot be loaded"):
        check_values(MODEL, asked, [5], loads_processors=True)
