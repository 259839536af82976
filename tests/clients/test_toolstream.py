"""What can be read of tool calls while they are written, however their text is cut."""

from __future__ import annotations

import ast
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
)
from andes_client.units import PythonStatements, SqlStatements

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
        if grew.whole and len(grew.arguments) == len(set(grew.arguments)) and list(grew.arguments)[-1] in arguments:
            assert arguments[list(grew.arguments)[-1]] == list(grew.arguments.values())[-1]
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


def test_a_string_is_closed_by_its_quote_however_it_is_cut() -> None:
    text = r'{"a": "x\"y\\", "b": "z", "c": 1}'
    for size in (1, 2, 3):
        stream = ToolStream()
        cuts = [text[: at + size] for at in range(0, len(text), size)]
        events = [
            (cut, event)
            for cut in cuts
            for event in stream.feed(chunk((0, "i", "f", cut[(len(cut) - 1) // size * size :])))
        ]
        whole = [(list(e.arguments)[-1], cut) for cut, e in events if isinstance(e, Grew) and e.whole]
        assert [name for name, _ in whole][:1] == ["a"]
        assert whole[0][1].startswith(r'{"a": "x\"y\\"')
        assert len(whole[0][1]) < len(r'{"a": "x\"y\\"') + size
        assert {name for name, _ in whole} == {"a", "b"}, "a number may go on"


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


def grow(splitter: PythonStatements | SqlStatements, source: str, size: int = 1) -> list[str]:
    """The units of ``source``, shown ``size`` characters more at a time."""
    ends = [*range(0, len(source), size), len(source)]
    return [unit for end in ends for unit in splitter.units(source[:end])]


@pytest.mark.parametrize("size", [1, 3, 7])
def test_a_statement_of_python_is_whole_when_the_next_one_has_begun(size: int) -> None:
    splitter = PythonStatements()
    units = grow(splitter, SOURCE, size)
    assert "".join(units) == SOURCE[: splitter.done]
    assert SOURCE[splitter.done :] == "print(x)\n"
    assert [unit.split("\n")[0] for unit in units] == ["import os", "@decorated", "if f():"]


@pytest.mark.parametrize(
    "source",
    ["x = (\n1\n", "", "x = 1", "x = 1\n", "x = 1 \\\n+ 2\n", "try:\n    f()\n", "try:\n    f()\nexcept", "# a\nx\n",
     "x = '''\na\nb\nc\nd\ne\nf", "if x:\n    f()\nel", "@d\ndef f", "x\0\ny"],
)  # fmt: skip
def test_what_may_go_on_is_no_statement_of_python_yet(source: str) -> None:
    assert grow(PythonStatements(), source) == []


def test_the_first_character_of_the_next_statement_is_enough() -> None:
    splitter = PythonStatements()
    assert splitter.units("x = 1\n") == []
    assert splitter.units("x = 1\ne") == [], "it may be an else"
    assert splitter.units("x = 1\nev") == ["x = 1\n"]
    assert splitter.units("x = 1\neval(x)\nif") == ["eval(x)\n"]


def test_a_long_statement_is_not_read_again_at_each_token(monkeypatch: pytest.MonkeyPatch) -> None:
    parsed = []
    real = ast.parse
    monkeypatch.setattr(ast, "parse", lambda source: parsed.append(len(source)) or real(source))
    body = "def f():\n" + "    x = 1\n" * 2000
    assert grow(PythonStatements(), body + "f()\n", 20) == [body]
    assert parsed == [len(body)]
    text = "x = '''\n" + "no statement\n" * 2000
    splitter = PythonStatements()
    assert grow(splitter, text + "'''\nf()\ng()\n", 20) == [], "tried again when it is an eighth longer"
    assert sum(parsed) < 12 * len(text)


@pytest.mark.parametrize("size", [1, 5, 400])
def test_a_statement_of_sql_ends_with_its_semicolon(size: int) -> None:
    first = "select ';' from \"a;b\";"
    second = " -- no; end\ninsert into t values ('it''s;', 1 - 2 / 3);"
    splitter = SqlStatements()
    assert grow(splitter, first + second + " /* ; */ select 1", size) == [first, second]
    assert splitter.done == len(first + second)
    for unclosed in ("select 'open;", "select 1 /* ; ", "select 1 -- ;", "`;", '";'):
        assert grow(SqlStatements(), unclosed, size) == []


@pytest.mark.parametrize("number", [0, None])
def test_calls_that_a_server_numbers_alike_are_told_apart_by_their_ids(number: int | None) -> None:
    """As Ollama, which numbers each 0, and Gemini, which leaves the number out."""
    said = [("a", "f", '{"x": 1}'), ("b", "f", '{"x"'), (None, None, ": 2}"), ("b", None, ""), ("c", "g", "{}")]
    events, by_json = [], []
    stream, other = ToolStream(), ToolStream()
    for id_, name, piece in said:
        delta = {"index": number, "id": id_, "function": {"name": name, "arguments": piece}}
        told = {"choices": [{"index": 0, "delta": {"tool_calls": [delta]}, "finish_reason": None}]}
        events += stream.feed(ChatCompletionChunk.construct(**told))
        by_json += other.feed(told)
    events += stream.feed(last())
    by_json += other.feed({"choices": [{"index": 0, "delta": None, "finish_reason": "tool_calls"}]})
    assert [(e.call.number, e.id, e.name) for e in events if isinstance(e, Started)] == [
        (0, "a", "f"), (1, "b", "f"), (2, "c", "g"),
    ]  # fmt: skip
    assert [e.arguments for e in events if isinstance(e, Finished)] == [{"x": 1}, {"x": 2}, {}]
    assert by_json == events


def test_a_chunk_may_leave_out_what_it_has_none_of() -> None:
    stream = ToolStream()
    assert stream.feed(ChatCompletionChunk.construct(choices=None)) == []
    nothing = {"choices": [{"index": 0, "delta": None, "finish_reason": "stop"}]}
    assert stream.feed(ChatCompletionChunk.construct(**nothing)) == stream.feed(nothing) == []
