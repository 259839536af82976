"""Continuing a cut stream elsewhere: which can be, what is asked for, and how it reads."""

from __future__ import annotations

import json
from typing import Any

import pytest

from andes_sglang.resume import Continuation, StopSeam, continued, ending, resumable, text_of, tokens_left

CHAT = {"messages": [{"role": "user", "content": "hi"}], "temperature": 0, "max_tokens": 10}


@pytest.mark.parametrize(
    ("more", "chat", "whether"),
    [
        ({}, True, True),
        ({"temperature": 0.5}, True, False),
        ({"temperature": 0.5, "seed": 1}, True, True),
        ({"temperature": 1, "top_k": 1}, True, True),
        ({"n": 2}, True, False),
        ({"n": None, "repetition_penalty": 1.0, "logprobs": False, "tools": []}, True, True),
        ({"repetition_penalty": 1.1}, True, False),
        ({"presence_penalty": 0.5}, True, False),
        ({"response_format": {"type": "json_object"}}, True, False),
        ({"tools": [{}]}, True, False),
        ({"prompt": [1, 2]}, False, False),
        ({"prompt": "x"}, False, True),
        ({"prompt": "x", "logprobs": 1}, False, False),
    ],
)
def test_what_can_go_on_elsewhere(more: dict[str, object], chat: bool, whether: bool) -> None:
    assert resumable({**CHAT, **more}, chat) is whether


def test_the_rest_is_asked_for() -> None:
    body = continued(CHAT, True, "so far", 4)
    assert body is not None
    assert body["messages"] == [*CHAT["messages"], {"role": "assistant", "content": "so far"}]  # type: ignore[misc]
    assert (body["max_tokens"], body["continue_final_message"]) == (6, True)
    assert continued(CHAT, True, "all", 10) is None
    assert continued({"prompt": "a"}, False, "b", 16) is None  # the default of the API is 16
    rest = continued({"prompt": "a", "max_tokens": 5}, False, "b", 2)
    assert rest == {"prompt": "ab", "max_tokens": 3}
    begun = {**CHAT, "messages": [{"role": "assistant", "content": "I "}], "continue_final_message": True}
    again = continued(begun, True, "am", 1)
    assert again is not None
    assert again["messages"] == [{"role": "assistant", "content": "I am"}]


def test_only_text_is_continued() -> None:
    events = [
        b'data: {"choices":[{"delta":{"content":"a"}}]}\n\n',
        b": note\n\n",
        b'data: {"choices":[{"text":"b"}]}\n\n',
    ]
    assert text_of(events) == "ab"
    assert text_of([b'data: {"choices":[{"delta":{"tool_calls":[{}]}}]}\n\n']) is None
    assert text_of([b'data: {"choices":[{"delta":{"reasoning_content":"hm"}}]}\n\n']) is None


def test_a_continuation_reads_as_one_stream() -> None:
    rewrite = Continuation(b'data: {"id":"first","choices":[]}\n\n', 4).rewrite
    assert rewrite(b'data: {"id":"b","choices":[{"delta":{"role":"assistant","content":""}}]}\n\n') == b""
    text = b'data: {"id":"b","choices":[{"delta":{"content":"x"}}]}\n\n'
    assert rewrite(text) == text.replace(b'"b"', b'"first"')
    total = rewrite(
        b'data: {"id":"b","choices":[],"usage":{"prompt_tokens":14,"completion_tokens":6,"total_tokens":20}}\n\n'
    )
    assert b'"prompt_tokens":10,"completion_tokens":10,"total_tokens":20' in total
    known = Continuation(b"", 4, prompt_tokens=9).rewrite(b'data: {"choices":[],"usage":{"prompt_tokens":14}}\n\n')
    assert b'"prompt_tokens":9,"completion_tokens":4,"total_tokens":13' in known
    assert rewrite(b"data: [DONE]\n\n") == b"data: [DONE]\n\n"


@pytest.mark.parametrize(
    "field",
    [
        "logprobs", "top_logprobs", "echo", "suffix", "tools", "functions", "response_format", "json_schema", "regex", "ebnf",
        "session_params", "session_id", "best_of", "return_token_ids", "return_hidden_states", "return_routed_experts",
        "min_tokens", "input_ids", "frequency_penalty", "presence_penalty", "stop_regex",
    ],
)  # fmt: skip
def test_what_needs_its_history_cannot_go_on(field: str) -> None:
    assert not resumable({**CHAT, field: [1]}, True)
    for nothing in (None, False, [], 0, 0.0):
        assert resumable({**CHAT, field: nothing}, True)


def test_other_prompts_cannot_go_on() -> None:
    assert not resumable({**CHAT, "messages": None}, True)
    assert not resumable({"prompt": "x"}, False), "sampled"
    assert not resumable({"prompt": ["x", "y"], "temperature": 0}, False)
    assert resumable({"prompt": "x", "temperature": 0, "messages": None}, False)
    assert not resumable({**CHAT, "temperature": None, "seed": None, "top_k": 2}, True)
    assert resumable({**CHAT, "repetition_penalty": 1}, True)


def test_limits_of_both_names_shrink_by_what_has_come() -> None:
    body: dict[str, Any] = {"messages": [], "max_completion_tokens": 10, "max_tokens": 8}
    rest = continued(body, True, "x", 3)
    assert rest is not None
    assert (rest["max_completion_tokens"], rest["max_tokens"]) == (7, 5)
    assert continued(body, True, "x", 10) is None
    last = continued(body, True, "x", 9)
    assert last is not None
    assert (last["max_completion_tokens"], last["max_tokens"]) == (1, 1), "engines heed the former where both are given"
    assert body == {"messages": [], "max_completion_tokens": 10, "max_tokens": 8}, "the request is left as it was"
    assert continued({"messages": [], "max_tokens": None}, True, "x", 3) == {
        "messages": [{"role": "assistant", "content": "x"}], "max_tokens": None, "continue_final_message": True,
    }  # fmt: skip
    fewer = continued({"prompt": "a"}, False, "b", 15)
    assert fewer == {"prompt": "ab", "max_tokens": 1}


def test_a_begun_answer_is_extended_only_where_it_is_text() -> None:
    parts = [{"role": "assistant", "content": [{"type": "text", "text": "I"}]}]
    rest = continued({"messages": parts, "continue_final_message": True}, True, " am", 1)
    assert rest is not None
    assert rest["messages"] == [*parts, {"role": "assistant", "content": " am"}]
    begun = [{"role": "assistant", "content": "I"}]
    rest = continued({"messages": begun}, True, " am", 1)
    assert rest is not None
    assert rest["messages"] == [*begun, {"role": "assistant", "content": " am"}], "not asked to continue that message"


def test_text_of_every_choice_and_nothing_else() -> None:
    assert text_of([b'data: {"choices":[{"delta":{}},{"delta":{"content":null}},{"text":"x"}]}\n\n']) == "x"
    assert text_of([b'data: {"usage":{}}\n\n', b"data: [DONE]\n\n"]) == ""
    with pytest.raises(ValueError, match="Expecting"):
        text_of([b"data: {no json"])


def event(**payload: Any) -> bytes:
    return b"data: " + json.dumps(payload, separators=(",", ":"), ensure_ascii=False).encode() + b"\n\n"


def test_a_role_with_text_is_kept_and_one_without_is_not() -> None:
    rewrite = Continuation(b"data: {}\n\n", 1).rewrite
    with_text = event(choices=[{"delta": {"role": "assistant", "content": "x"}}])
    assert rewrite(with_text) == with_text
    assert rewrite(event(choices=[{"delta": {"role": "assistant", "content": ""}}])) == b""
    assert rewrite(event(choices=[{"delta": {"role": "assistant"}}])) == b""
    assert rewrite(event(choices=[{"text": "x"}])) == event(choices=[{"text": "x"}])
    assert rewrite(b": comment\n\n") == b": comment\n\n"


def test_usage_is_of_the_whole_and_never_below_nothing() -> None:
    said = Continuation(b"", 40).rewrite(
        event(choices=[], usage={"prompt_tokens": 14, "completion_tokens": None}, x="é")
    )
    assert said == event(choices=[], usage={"prompt_tokens": 0, "completion_tokens": 40, "total_tokens": 40}, x="é")
    plain = event(choices=[], usage=None)
    assert Continuation(b"", 4).rewrite(plain) == plain
    odd = Continuation(b"", 4).rewrite(event(choices=[], usage={"completion_tokens": 2, "prompt_tokens": None}))
    assert odd == event(choices=[], usage={"completion_tokens": 6, "prompt_tokens": 0, "total_tokens": 6})


def test_only_the_events_own_id_is_replaced() -> None:
    rewrite = Continuation(event(id="first", choices=[]), 1).rewrite
    said = rewrite(event(id="b", choices=[{"delta": {"content": '"id":"c"'}, "id": "d"}]))
    assert said == event(id="first", choices=[{"delta": {"content": '"id":"c"'}, "id": "d"}])
    nameless = Continuation(event(choices=[]), 1).rewrite
    assert nameless(event(id="b", choices=[])) == event(id="b", choices=[])


@pytest.mark.parametrize("garbage", [b"data: {no json\n\n", b"data: {\n\n"])
def test_garbage_is_named(garbage: bytes) -> None:
    with pytest.raises(ValueError, match="Expecting"):
        Continuation(b"", 1).rewrite(garbage)


def test_events_of_any_spacing_are_read() -> None:
    assert text_of([b'data:{"choices":[{"text":"a"}]}\n\n', b'data:  {"choices":null}\n\n', b"data:[DONE]\n\n"]) == "a"
    tight = b'data:{"id":"two","choices":[{"text":"c"}],"usage":{"completion_tokens":1}}\n\n'
    said = json.loads(Continuation(b'data:{"id":"one"}\n\n', 4, 7).rewrite(tight)[5:])
    assert (said["id"], said["usage"]["completion_tokens"], said["usage"]["prompt_tokens"]) == ("one", 5, 7)


@pytest.mark.parametrize("choice", ['{"text":"\\ud83d"}', '{"text":7}', '{"delta":"a"}', "7"])
def test_what_cannot_be_sent_as_text_is_not_continued(choice: str) -> None:
    assert text_of([f'data: {{"choices":[{choice}]}}\n\n'.encode()]) is None


def test_what_is_left_of_a_limit() -> None:
    assert tokens_left({"max_tokens": 8}, True, 3) == 5
    assert tokens_left({"max_completion_tokens": 4, "max_tokens": 8}, True, 9) == 0
    assert tokens_left({}, True, 3) is None
    assert tokens_left({"max_tokens": None}, True, 3) is None
    assert tokens_left({}, False, 3) == 13
    assert tokens_left({"max_completion_tokens": 4}, False, 3) == 13, "no field of /v1/completions"


@pytest.mark.parametrize(
    ("stop", "before", "parts", "passed"),
    [
        ("STOP", "it is ST", ["OP more"], [""]),
        ("STOP", "it is ST", ["O", "P", " more"], ["O", ""]),
        (["no", "END", "STOP"], "it is S", ["TOP END"], [""]),
        (["--", "-->"], "a <!-", ["-> b"], [""]),
        ("aab", "xaa", ["ab"], [""]),
        ("\n\n", "line\n", ["\nnext"], [""]),
    ],
)
def test_a_stop_string_across_the_seam_ends_the_answer(
    stop: Any, before: str, parts: list[str], passed: list[str]
) -> None:
    go_on = Continuation(b"", 3, 5, StopSeam({"stop": stop}, before))
    said = [json.loads(go_on.rewrite(_chunk(text))[6:]) for text in parts[: len(passed)]]
    assert [s["choices"][0]["delta"]["content"] for s in said] == passed
    assert go_on.stopped
    assert said[-1]["choices"][0]["finish_reason"] == "stop"
    assert [s["choices"][0]["finish_reason"] for s in said[:-1]] == [None] * (len(said) - 1)


def test_a_stop_string_is_kept_where_it_is_asked_for() -> None:
    seam = StopSeam({"stop": "STOP", "no_stop_trim": True}, "it is ST")
    assert seam.find("O") is None
    assert seam.find("P more") == (1, "STOP")
    assert StopSeam({"stop": "STOP", "include_stop_str_in_output": True}, "ST").find("OP more") == (2, "STOP")


@pytest.mark.parametrize(
    ("stop", "before", "parts"),
    [
        ("STOP", "it is ST", ["OX", "P"]),
        ("STOP", "it is", [" STOP"]),  # the engine's own to find
        (None, "it is ST", ["OP"]),
        ("x", "it is ", ["x"]),
        (["", 7], "it is ", ["x"]),
        ("ab", "ab c", ["d"]),
    ],
)
def test_what_is_no_stop_across_the_seam_goes_on(stop: Any, before: str, parts: list[str]) -> None:
    go_on = Continuation(b"", 3, 5, StopSeam({"stop": stop}, before))
    for text in parts:
        assert go_on.rewrite(_chunk(text)) == _chunk(text)
    assert not go_on.stopped


def test_a_completion_stops_at_the_seam_and_says_at_what() -> None:
    event = b'data: {"id":"b","choices":[{"index":0,"text":"OP x","finish_reason":null,"matched_stop":null}]}\n\n'
    go_on = Continuation(b'data: {"id":"a"}\n\n', 3, 5, StopSeam({"stop": "STOP"}, "ST"))
    choice = {"index": 0, "text": "", "finish_reason": "stop", "matched_stop": "STOP"}
    assert json.loads(go_on.rewrite(event)[6:]) == {"id": "a", "choices": [choice]}


def test_how_a_stream_is_ended_whose_engine_does_not() -> None:
    first = (
        b'data: {"id":"a","object":"o","created":1,"model":"m","choices":[{"delta":{"role":"assistant"}}],"x":1}\n\n'
    )
    finish, usage, done = ending(first, True, "length", {"prompt_tokens": 1})
    about = {"id": "a", "object": "o", "created": 1, "model": "m"}
    choice = {"index": 0, "delta": {}, "logprobs": None, "finish_reason": "length"}
    assert json.loads(finish[6:]) == {**about, "choices": [choice]}
    assert json.loads(usage[6:]) == {**about, "choices": [], "usage": {"prompt_tokens": 1}}
    assert done == b"data: [DONE]\n\n"
    assert ending(first, True, None, None) == [done]
    assert json.loads(ending(first, False, "stop", None)[0][6:])["choices"][0]["text"] == ""


def _chunk(text: str) -> bytes:
    choice = {"index": 0, "delta": {"content": text}, "finish_reason": None}
    return b"data: " + json.dumps({"id": "b", "choices": [choice]}).encode() + b"\n\n"
