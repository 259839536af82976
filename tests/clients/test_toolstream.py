"""What can be read of tool calls while they are written, however their text is cut."""

from __future__ import annotations

import itertools
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from openai.types.chat import ChatCompletionChunk

from andes_client.toolstream import (
    MAX_ARGUMENT_BYTES,
    Call,
    Failed,
    Finished,
    Grew,
    Started,
    ToolStream,
    python_statements,
    sql_statements,
)

JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**40), 2**40) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=8,
)


def chunk(
    *calls: tuple[int, str | None, str | None, str], choice: int = 0, finish: str | None = None
) -> ChatCompletionChunk:
    """calls: number, id, name, piece of arguments."""
    deltas = [
        {"index": n, "id": id_, "type": "function" if id_ else None, "function": {"name": name, "arguments": piece}}
        for n, id_, name, piece in calls
    ]
    said = {"index": choice, "delta": {"tool_calls": deltas}, "finish_reason": finish}
    return ChatCompletionChunk.model_validate(
        {"id": "x", "created": 1, "model": "m", "object": "chat.completion.chunk", "choices": [said]}
    )


def last(finish: str = "tool_calls", choice: int = 0) -> ChatCompletionChunk:
    return chunk(choice=choice, finish=finish)


def cut(text: str, at: list[int]) -> list[str]:
    edges = [0, *sorted(min(k, len(text)) for k in at), len(text)]
    return [text[a:b] for a, b in itertools.pairwise(edges)]


@given(st.dictionaries(st.text(), JSON, min_size=1), st.lists(st.integers(0, 200), max_size=12))
def test_any_cutting_gives_one_start_growth_that_holds_and_the_whole(arguments: dict[str, Any], at: list[int]) -> None:
    stream, events = ToolStream(), []
    for k, piece in enumerate(cut(json.dumps(arguments), at)):
        events += stream.feed(chunk((0, "c" if k == 0 else None, "f" if k == 0 else None, piece)))
    events += stream.feed(last())
    assert [e for e in events if isinstance(e, Started)] == [Started(Call(0, 0), "c", "f")]
    assert [e for e in events if isinstance(e, Failed)] == []
    assert events[-1] == Finished(Call(0, 0), arguments)
    for grew in (e for e in events if isinstance(e, Grew)):
        *closed, growing = grew.arguments.items() if grew.arguments else [("", "")]
        assert all(arguments[name] == value for name, value in closed if len(set(arguments)) == len(arguments))
        if isinstance(growing[1], str) and growing[0] in arguments:
            assert str(arguments[growing[0]]).startswith(growing[1]) or not isinstance(arguments[growing[0]], str)
    assert stream.end() == []


def test_parallel_calls_and_choices_each_end_when_the_next_begins() -> None:
    stream = ToolStream()
    assert stream.feed(chunk((0, "a", "f", '{"x": 1}'))) == [Started(Call(0, 0), "a", "f"), Grew(Call(0, 0), {"x": 1})]
    assert stream.feed(chunk((0, "b", "g", ""), choice=1)) == [Started(Call(1, 0), "b", "g")]
    assert stream.feed(chunk((1, "c", "f", '{"y'))) == [
        Finished(Call(0, 0), {"x": 1}),
        Started(Call(0, 1), "c", "f"),
        Grew(Call(0, 1), {}),
    ]
    assert stream.feed(last(choice=1)) == [Finished(Call(1, 0), {})], "no arguments are an empty object"
    assert stream.feed(chunk((1, None, None, '": 2}'))) == [Grew(Call(0, 1), {"y": 2})]
    assert stream.feed(last()) == [Finished(Call(0, 1), {"y": 2})]
    assert stream.feed(last()) == []


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('{"x": nope', "no JSON"), ("[1, 2", "are list, not an object"), ('"text', "are str, not an object"),
        ("{" + "x" * MAX_ARGUMENT_BYTES, "longer than"),
    ],
)  # fmt: skip
def test_arguments_that_will_never_be_any_fail_early_and_once(text: str, says: str) -> None:
    stream = ToolStream()
    started, failed = stream.feed(chunk((0, "a", "f", text)))
    assert isinstance(started, Started)
    assert isinstance(failed, Failed)
    assert says in failed.why
    assert stream.feed(chunk((0, None, None, "}"))) == stream.feed(last()) == stream.end() == []


def test_an_answer_that_is_cut_fails_what_was_open() -> None:
    stream = ToolStream()
    stream.feed(chunk((0, "a", "f", '{"x": 1}')))
    stream.feed(chunk((1, "b", "g", '{"y": ')))
    assert stream.end() == [Failed(Call(0, 1), "the answer ended before the call was complete")]
    unfinished = ToolStream()
    unfinished.feed(chunk((0, "a", "f", '{"x": ')))
    (failed,) = unfinished.feed(last("length"))
    assert isinstance(failed, Failed)


SOURCE = "import os\n\n\n@decorated\ndef f():\n    return 1\n\nif f():\n    x = '''\n# no statement\n'''\nelse:\n    y = 2\nprint(x)\n"


def test_a_statement_of_python_is_whole_when_the_next_one_has_begun() -> None:
    units, done = [], 0
    for end in range(len(SOURCE) + 1):
        now = python_statements(SOURCE[:end], done)
        if now > done:
            units.append(SOURCE[done:now])
            done = now
    assert "".join(units) + SOURCE[done:] == SOURCE
    assert [unit.split("\n")[0] for unit in units] == ["import os", "@decorated", "if f():"]
    assert SOURCE[done:] == "print(x)\n"
    assert python_statements("x = (", 0) == python_statements("", 0) == python_statements("x = 1", 0) == 0


def test_a_statement_of_sql_ends_with_its_semicolon() -> None:
    text = "select ';' from \"a;b\"; -- no; end\ninsert into t values ('it''s;'); /* ; */ select 1"
    first = sql_statements(text, 0)
    assert sql_statements(text, first) == text.index(" /*")
    assert sql_statements(text, text.index(" /*")) == text.index(" /*")
    assert text[: sql_statements(text[:25], 0)] == "select ';' from \"a;b\";"
    assert sql_statements("select 'open;", 0) == 0
