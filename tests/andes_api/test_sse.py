"""Events on their way through: nothing lost, nothing added, tokens counted, however the network cuts them."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from andes_api.sse import EventStream


def chunk(text: str, usage: Any = None, index: int = 0, finish: str | None = None, chat: bool = False) -> bytes:
    said = {"delta": {"content": text}} if chat else {"text": text}
    choice = {"index": index, **said, "finish_reason": finish}
    data: dict[str, Any] = {"id": "a", "object": "x", "choices": [choice], "model": "m"}
    if usage is not None or not chat:
        data["usage"] = usage
    return b"data: " + json.dumps(data, separators=(",", ":")).encode() + b"\n\n"


def usage(tokens: int, cached: int | None = 2) -> dict[str, Any]:
    details = None if cached is None else {"cached_tokens": cached}
    return {
        "prompt_tokens": 5,
        "completion_tokens": tokens,
        "total_tokens": 5 + tokens,
        "prompt_tokens_details": details,
    }


def last(tokens: int) -> bytes:
    return b"data: " + json.dumps({"id": "a", "choices": [], "usage": usage(tokens)}).encode() + b"\n\n"


DONE = b"data: [DONE]\n\n"


def read(parts: list[bytes], **options: Any) -> tuple[bytes, int, EventStream]:
    stream = EventStream(**{"chat": False, "asked": {}, "usage": True, **options})
    out, tokens = b"", 0
    for part in parts:
        for event, new in stream.feed(part):
            out += event
            tokens += new
    return out, tokens, stream


# Text that looks like what the stream parses must pass unharmed.
TEXTS = st.lists(
    st.sampled_from(['"usage":{"completion_tokens":9}', 'a\n\nb', '"choices":[]', "data: [DONE]", "é", "🙂", "}", '"', "\\"]),
    min_size=1,
    max_size=6,
)  # fmt: skip


@given(TEXTS, st.data(), st.booleans(), st.sampled_from([None, 2]))
def test_however_it_is_cut_the_same_comes_out(
    texts: list[str], data: st.DataObject, chat: bool, cached: int | None
) -> None:
    chunks = [chunk(text, usage(3 * (k + 1), cached), chat=chat) for k, text in enumerate(texts)]
    sent = b"".join(chunks) + last(30) + DONE
    wanted = b"".join(chunk(text, chat=chat) for text in texts) + DONE
    cuts = sorted(data.draw(st.lists(st.integers(0, len(sent)), max_size=8)))
    parts = [sent[a:b] for a, b in zip([0, *cuts], [*cuts, len(sent)])]
    out, tokens, stream = read([part for part in parts if part], chat=chat)
    assert out == wanted
    assert tokens == 3 * len(texts)
    assert stream.done
    assert stream.usage == usage(30)
    assert stream.garbage is None


def test_a_client_gets_the_usage_it_asked_for() -> None:
    sent = [chunk("a", usage(1)), chunk("b", usage(2)), last(2), DONE]
    assert read(sent, asked={"include_usage": True})[0] == chunk("a") + chunk("b") + last(2) + DONE
    everything = read(sent, asked={"include_usage": True, "continuous_usage_stats": True})
    assert everything[0] == b"".join(sent)
    assert everything[1] == 2


@pytest.mark.parametrize("count", ["null", "-1", "1.5", '"1"', " 7"])
def test_a_count_that_is_none_is_garbage_to_nobody(count: str) -> None:
    odd = chunk("a", {"completion_tokens": 0, "prompt_tokens": 5}).replace(
        b'"completion_tokens":0', f'"completion_tokens":{count}'.encode()
    )
    out, _, stream = read([odd, chunk("b", usage(8, None)), DONE])
    assert out == chunk("a") + chunk("b") + DONE
    assert stream.garbage is None


def test_one_event_may_bring_no_token_or_several() -> None:
    assert read([chunk("a", usage(4)), chunk("", usage(4)), chunk("bc", usage(6)), DONE])[1] == 6


def test_tokens_of_several_choices_are_summed() -> None:
    sent = [chunk("a", usage(1)), chunk("b", usage(2), index=1), chunk("c", usage(2)), last(4), DONE]
    assert read(sent, several=True)[1] == 4


def test_without_usage_an_event_with_text_is_a_token() -> None:
    sent = [chunk("a"), chunk(""), chunk("b"), DONE]
    out, tokens, _ = read(sent, usage=False)
    assert (out, tokens) == (b"".join(sent), 2)
    assert read(sent)[1] == 2  # asked for, but the engine gives none


def test_other_ways_of_writing_the_same() -> None:
    crlf = chunk("a", usage(1)).replace(b"\n", b"\r\n")
    tight = chunk("b", usage(2)).replace(b"data: ", b"data:")
    out, tokens, stream = read([crlf + tight + b": a comment\n\n" + b"data:[DONE]\n\n"])
    assert tokens == 2
    assert stream.done
    assert b": a comment\n\n" in out


@pytest.mark.parametrize(
    "garbage",
    [b"<html>\n\n", b"data: {no json\n\n", b'data: {"x": 1}\n\n', b"data: 7\n\n", b"\xff\x00\n\n", b"x" * (5 << 20)],
    ids=["html", "broken", "no chunk", "number", "bytes", "endless"],
)
def test_garbage_ends_the_stream_and_keeps_what_came_before(garbage: bytes) -> None:
    out, tokens, stream = read([chunk("a", usage(1)) + garbage])
    assert (out, tokens) == (chunk("a"), 1)
    assert stream.garbage
    assert not stream.done


@pytest.mark.parametrize("start", [b"data: ", b"data:", b"data:  "])
def test_an_error_ends_the_stream_and_keeps_what_came_before(start: bytes) -> None:
    error = start + b'{"error":{"message":"gone","code":500}}\n\n'
    out, tokens, stream = read([chunk("a", usage(1)) + error + chunk("never") + DONE])
    assert (out, tokens) == (chunk("a"), 1)
    assert stream.error == {"message": "gone", "code": 500}
    assert stream.error_event == error


def test_how_the_last_choice_ended() -> None:
    assert read([chunk("a", usage(1), finish="length"), last(1), DONE])[2].finish_reasons == {0: "length"}
    assert read([chunk("a", usage(1)), DONE])[2].finish_reasons == {}


def test_null_and_empty_say_nothing() -> None:
    no_error = last(1).replace(b"}\n\n", b',"error":null}\n\n')
    out, _, stream = read([chunk("a", usage(1), finish="stop"), no_error, DONE], asked={"include_usage": True})
    assert (out, stream.error_event, stream.usage) == (chunk("a", finish="stop") + no_error + DONE, b"", usage(1))
    assert read([chunk("a", usage(1), finish="")])[2].finish_reasons == {}
    no_choices = last(1).replace(b"[]", b"null")
    out, _, stream = read([chunk("a", usage(1)), no_choices, b'data: {"choices":[]}\n\n', DONE])
    assert (out, stream.garbage, stream.usage) == (chunk("a") + b'data: {"choices":[]}\n\n' + DONE, None, usage(1))


def test_usage_beside_a_choice_is_known_when_events_are_counted() -> None:
    assert read([chunk("a", usage(1)), DONE], usage=False)[2].usage_so_far == usage(1)


@pytest.mark.parametrize("text", [b"NaN", b'"\\ud83d"', b'"\xff"'], ids=["nan", "half a pair", "not utf-8"])
def test_what_is_no_strict_json_passes_as_it_came(text: bytes) -> None:
    odd = chunk("a", usage(1)).replace(b'"object":"x"', b'"object":' + text)
    passed = chunk("a").replace(b'"object":"x"', b'"object":' + text)
    assert read([odd, DONE])[:2] == (passed + DONE, 1)


@pytest.mark.parametrize(
    "choice", ['{"delta":"a"}', '{"delta":{"tool_calls":[7]}}', '{"delta":{"tool_calls":5}}', '{"index":[]}', "7"]
)
def test_a_choice_of_another_shape_passes(choice: str) -> None:
    for more in ("", ',"usage":{"completion_tokens":1}'):
        event = f'data: {{"choices":[{choice}]{more}}}\n\n'.encode()
        assert read([event, DONE], several=True, asked={"continuous_usage_stats": True})[0] == event + DONE


def test_line_ends_may_be_mixed() -> None:
    crlf = chunk("a", usage(1)).replace(b"\n", b"\r\n")
    assert read([crlf + chunk("b", usage(2))])[1] == 2


def test_part_of_an_event_can_be_dropped() -> None:
    stream = EventStream(chat=False, asked={}, usage=True)
    assert stream.feed(chunk("a", usage(1)) + b'data: {"id"') == [(chunk("a"), 1)]
    stream.drop_partial()
    assert stream.feed(DONE) == [(DONE, 0)]
