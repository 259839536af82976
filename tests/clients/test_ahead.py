"""Calls of pure tools that run before they are asked for."""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path
from typing import Any

import pytest
from openai.types.chat import ChatCompletionChunk

from andes_client import Ahead, NextCalls, Tool, ToolResult, ToolRunner

SOURCE = """
import json, sys
for line in sys.stdin:
    said = json.loads(line)
    if "finish" in said:
        with open(LOG, "a") as log: log.write(json.dumps(said["finish"]) + "\\n")
        print(json.dumps({"result": said["finish"]["q"].upper()}), flush=True)
        sys.exit(said["finish"]["q"] == "fails")
"""


def answer(*calls: tuple[str, dict[str, Any]]) -> list[ChatCompletionChunk]:
    chunks = []
    for number, (name, arguments) in enumerate(calls):
        text = json.dumps(arguments)
        for piece in (text[:4], text[4:]):
            call = {"index": number, "id": f"c{number}", "function": {"name": name, "arguments": piece}}
            chunks.append({"index": 0, "delta": {"tool_calls": [call]}, "finish_reason": None})
    chunks.append({"index": 0, "delta": {}, "finish_reason": "tool_calls"})
    head = {"id": "x", "created": 1, "model": "m", "object": "chat.completion.chunk"}
    return [ChatCompletionChunk.model_validate({**head, "choices": [choice]}) for choice in chunks]


async def ask(runner: ToolRunner, *calls: tuple[str, dict[str, Any]]) -> list[ToolResult]:
    for chunk in answer(*calls):
        runner.feed(chunk)
    return await runner.results()


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return tmp_path / "log"


def tool(log: Path, *, pure: bool) -> Tool:
    file = log.with_name("tool.py")
    file.write_text(SOURCE.replace("LOG", repr(str(log))))
    return Tool([sys.executable, str(file)], pure=pure, timeout_s=120)


@pytest.mark.server
def test_the_call_that_always_follows_runs_once_and_before_it_is_asked_for(log: Path) -> None:
    tools = {"f": tool(log, pure=True)}
    ahead = Ahead(NextCalls())

    async def talk() -> list[ToolResult]:
        await ask(ToolRunner(tools, ahead=ahead), ("f", {"q": "a"}))
        await ask(ToolRunner(tools, ahead=ahead), ("f", {"q": "b", "n": 1}))
        await ask(ToolRunner(tools, ahead=ahead), ("f", {"q": "a"}))
        runs = log.read_text().count('"b"')
        while log.read_text().count('"b"') == runs:  # before it is asked for
            await asyncio.sleep(0.01)
        hit = await ask(ToolRunner(tools, ahead=ahead), ("f", {"n": 1, "q": "b"}))
        miss = await ask(ToolRunner(tools, ahead=ahead), ("f", {"q": "c"}))
        await ahead.close()
        return [*hit, *miss]

    hit, miss = asyncio.run(talk())
    assert (hit.id, hit.text, hit.ahead) == ("c0", "B", True)
    assert (miss.id, miss.text, miss.ahead) == ("c0", "C", False)
    assert (ahead.hits, ahead.misses) == (1, 1)
    assert log.read_text().count('"b"') == 2, "once ahead, and not again"


@pytest.mark.server
def test_a_tool_that_is_not_pure_never_runs_ahead(log: Path) -> None:
    tools = {"f": tool(log, pure=False)}
    ahead = Ahead(NextCalls())

    async def talk() -> None:
        for q in "abab":
            (result,) = await ask(ToolRunner(tools, ahead=ahead), ("f", {"q": q}))
            assert (result.text, result.ahead) == (q.upper(), False)
        assert ahead.expected("f") is None
        await ahead.close()

    asyncio.run(talk())
    assert log.read_text().count("\n") == 4


def test_the_most_frequent_next_call_is_guessed_and_of_equals_the_latest() -> None:
    guesses = NextCalls()
    a, b, c = ("f", "a"), ("f", "b"), ("f", "c")
    assert guesses.guess(None) is None
    for following in (b, c, c):
        guesses.learn(a, following)
    assert guesses.guess(a) == c
    guesses.learn(a, b)
    assert guesses.guess(a) == b
    assert guesses.guess(b) is None
    for k in range(3):
        guesses.learn(a, ("f", str(k)))
    assert guesses.guess(a) is None, "two of seven are too few"
    assert NextCalls(least=2).guess(a) is None


def test_what_is_remembered_is_bounded() -> None:
    guesses = NextCalls(most=2, least_share=0)
    for before in "abc":
        guesses.learn(("f", before), ("f", "x"))
    assert guesses.guess(("f", "a")) is None
    assert guesses.guess(("f", "b")) == guesses.guess(("f", "c")) == ("f", "x")
    for following in "xyz":
        guesses.learn(("f", "c"), ("f", following))
    assert guesses.guess(("f", "c")) == ("f", "z")
    assert len(guesses._after[("f", "c")]) == 2
