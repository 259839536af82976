"""Chunks that are like the one before: what is read by comparing bytes is what parsing says, whatever comes."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from andes_api import sse
from andes_api.sse import EventStream
from andes_api.usual_chunk import UsualChunk


def chunk(text: Any, count: int, *, chat: bool = True, **more: Any) -> dict[str, Any]:
    """As SGLang writes it."""
    delta = {"role": None, "content": text, "reasoning_content": None, "tool_calls": None}
    said = {"delta": delta} if chat else {"text": text}
    choice = {"index": 0, **said, "logprobs": None, "finish_reason": None, "matched_stop": None}
    usage = {
        "prompt_tokens": 9, "total_tokens": 9 + count, "completion_tokens": count, "prompt_tokens_details": None,
        "reasoning_tokens": 0,
    }  # fmt: skip
    return {"id": "a", "object": "x", "created": 1, "model": "m", "choices": [choice], "usage": usage} | more


def event(payload: dict[str, Any], ascii_only: bool = False) -> bytes:
    text = json.dumps(payload, separators=(",", ":"), ensure_ascii=ascii_only)
    return b"data: " + text.encode(errors="surrogatepass") + b"\n\n"


def read(events: list[bytes], **options: Any) -> tuple[list[Any], dict[str, Any], EventStream]:
    stream = EventStream(**{"chat": True, "asked": {}, "usage": True, **options})
    out = [stream.feed(each) for each in events]
    left = ("_counts", "thought", "said", "characters", "done", "error", "finish_reasons", "garbage")
    return out, {name: getattr(stream, name) for name in left}, stream


def parsed(events: list[bytes], **options: Any) -> tuple[list[Any], dict[str, Any]]:
    """The same with every event parsed."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(sse.UsualChunk, "of", lambda *_: None)
        return read(events, **options)[:2]


def test_most_chunks_of_a_stream_are_not_parsed(monkeypatch: pytest.MonkeyPatch) -> None:
    counts = [0]
    loads = sse.object_of

    def counted(text: bytes) -> dict[str, Any]:
        counts[0] += 1
        return loads(text)

    monkeypatch.setattr(sse, "object_of", counted)
    texts = ["The ", "café ", "is", " open", '"', "\n", "now", "!"]
    events = [event(chunk(text, k, created=1 + k // 4)) for k, text in enumerate(texts, 1)]
    out, left, _ = read(events)
    assert counts[0] == 5, "the first of each second, and two with an escape"
    assert "".join(json.loads(each[0][0][6:])["choices"][0]["delta"]["content"] for each in out) == "".join(texts)
    assert all(b"usage" not in each[0][0] and each[0][1] == 1 for each in out)
    assert left["characters"] == len("".join(texts))


def test_a_stream_whose_chunks_are_never_alike_is_left_to_the_parser() -> None:
    events = [event(chunk("a", k, id=f"id-{k}")) for k in range(1, 20)]
    _, left, stream = read(events)
    usual = stream._usual
    assert usual is not None
    assert not usual.used
    assert usual.read(events[sse.MAX_UNUSUAL - 1]) is not None, "the last that was looked at"
    assert left["characters"] == 19


ODD: list[dict[str, Any]] = [
    {"created": 2}, {"id": "b"}, {"choices": []}, {"usage": None}, {"sglext": {"content": "x"}}, {"error": {"message": "x"}},
    {"choices": [{"index": 0, "delta": {"content": "x"}, "finish_reason": "stop"}]},
    {"choices": [{"index": 0, "delta": {"reasoning_content": "x"}}]},
    {"choices": [{"index": 0, "delta": {"content": "x"}}, {"index": 1, "delta": {"content": "y"}}]},
    {"choices": [{"index": 0, "delta": {"tool_calls": [{"function": {"arguments": "x"}}]}}]},
    {"usage": {"prompt_tokens": 9, "total_tokens": 99, "completion_tokens": "7"}},
    {"usage": {"prompt_tokens": 9, "total_tokens": 12, "completion_tokens": 3, "prompt_tokens_details": {"cached_tokens": 1}}},
]  # fmt: skip
TEXT = st.text(max_size=4) | st.sampled_from(
    ['"', "\\", "\0", "\n", "é", "🙂", "\ud800", '","usage":{', "\u2028", " ", "", "a"]
)
ONE = st.tuples(TEXT, st.integers(-1, 3), st.none() | st.sampled_from(ODD), st.booleans(), st.booleans())
SPOILT = st.none() | st.tuples(st.integers(0, 40), st.integers(0, 400), st.binary(max_size=2))


@given(
    st.lists(ONE, min_size=1, max_size=12), SPOILT, st.booleans(), st.booleans(), st.sampled_from([{}, {"include_usage": True}])
)  # fmt: skip
def test_what_is_compared_says_what_parsing_says(
    drawn: list[Any], spoilt: Any, chat: bool, hides: bool, asked: dict[str, Any]
) -> None:
    """Some with changed fields, one with changed bytes."""
    events, count = [], 0
    for text, more, odd, ascii_only, again in drawn:
        count = max(0, count + more)
        one = chunk(text, count, chat=chat) | (odd or {})
        events += [event(one, ascii_only)] * (1 + again)
    if spoilt is not None:
        which, at, what = spoilt
        k = which % len(events)
        events[k] = events[k][:-2][:at] + what.replace(b"\n", b"") + events[k][:-2][at + len(what) :] + b"\n\n"
    options = {"chat": chat, "hides": hides, "asked": asked}
    assert read(events, **options)[:2] == parsed(events, **options)


def test_a_chunk_that_is_written_in_another_way_is_none() -> None:
    one = event(chunk("a", 3))
    bare = one[: one.index(b',"usage"')] + b"}\n\n"
    assert UsualChunk.of(one, "a", 3, bare) is not None
    assert UsualChunk.of(one, "a", 4, bare) is None, "another count"
    assert UsualChunk.of(one, "b", 3, bare) is None, "another text"
    assert UsualChunk.of(one, "a", 3, one) is None, "usage is still there"
    assert UsualChunk.of(one, "a", 3, bare.replace(b"stop", b"end")) is None, "written anew"
    assert UsualChunk.of(one.replace(b'"total_tokens":12,', b""), "a", 3, bare) is None
    assert UsualChunk.of(event({**chunk("a", 3), "choices": [{"content": "a", "text": "a"}]}), "a", 3, bare) is None
