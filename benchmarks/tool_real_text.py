"""Calls that a real model writes on a real engine: how much of the possible overlap is had.

``python benchmarks/tool_real_text.py`` serves SmolLM2-135M-Instruct (``make small-model``) by SGLang on CPU and asks for
a search (``tool_choice: required``: the grammar holds the model to JSON, what it says is its own). Each call goes to two
runners at once, one that feeds the tool as the arguments grow and one that waits for them (lazy); the tool looks its eight
values up at an HTTP server on loopback that takes its time. With D seconds of writing and T of the lazy tool after it,
``min(D, T)`` is possible, and had is what the fed tool is done earlier.

``--gateway`` asks a gateway before that engine instead, which runs the tool (``x-andes-tools: run``): the model calls, the
search runs as a process of its own, and the answer goes on with what was found, in one stream.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import openai

from andes_client import Tool, ToolRunner
from andes_sglang.bench.engine import Engine
from benchmarks.gateways import running_gateway
from benchmarks.markdown import header, row
from benchmarks.tool_overlap import SEARCH, slow_search

QUESTIONS = (
    "I have three days in Paris. What should I look up?",
    "I want to grow tomatoes on a balcony. What should I look up?",
    "My bicycle makes a noise when I brake. What should I look up?",
)
VALUES = 8


def search(properties: dict[str, Any]) -> dict[str, Any]:
    """A tool, all of whose arguments must be given."""
    parameters = {
        "type": "object", "properties": properties, "required": list(properties), "additionalProperties": False,
    }  # fmt: skip
    described = {"name": "search", "description": "Search the web", "parameters": parameters}
    return {"type": "function", "function": described}


TOOL = search({f"query{k}": {"type": "string", "minLength": 8, "maxLength": 40} for k in range(VALUES)})
LOOK_UP = search(
    {
        "query": {"type": "string", "minLength": 3, "maxLength": 40},
        "language": {"type": "string", "enum": ["en", "fr", "de"]},
    }
)
"""As a careful user writes it: every argument has an end, and there are no others."""
SYSTEM = 'Answer with eight short search queries as one line of JSON: [{"name":"search","parameters":{"query0":"..."}}]'


def asked(question: str, **more: Any) -> dict[str, Any]:
    messages = [{"role": "system", "content": SYSTEM}, {"role": "user", "content": question}]
    return {
        "model": "m",
        "messages": messages,
        "tools": [TOOL],
        "tool_choice": "required",
        "parallel_tool_calls": False,
        "temperature": 0,
        "max_tokens": 256,
        "stream": True,
        **more,
    }


async def both(client: openai.AsyncOpenAI, tool: Tool, question: str) -> tuple[str, int, float, float, float]:
    """The arguments, their tokens, seconds of writing them, and from there to the result: of the fed and the lazy tool."""
    fed, lazy = ToolRunner({"search": tool}), ToolRunner({"search": tool}, lazy=True)
    began_s, tokens, written_s = 0.0, 0, 0.0
    async for chunk in await client.chat.completions.create(**asked(question)):
        fed.feed(chunk)
        lazy.feed(chunk)
        if any(choice.delta.tool_calls for choice in chunk.choices):
            began_s, written_s = began_s or time.monotonic(), time.monotonic()
            tokens += 1
    first, second = await asyncio.gather(fed.results(), lazy.results())
    for result in (*first, *second):
        if result.error is not None:
            raise SystemExit(f"the call failed: {result.error}")
    text = json.dumps(first[0].arguments)
    return text, tokens, written_s - began_s, first[0].waited_s, second[0].waited_s


async def by_gateway(url: str, question: str) -> list[str]:
    """What one answer with a call in it looks like, as a table."""
    client = openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="none", timeout=600)
    body = asked(question, model="default", tools=[LOOK_UP], max_tokens=160)
    body["messages"] = body["messages"][1:]
    headers = {"x-andes-tools": "run", "x-andes-report": "usage"}
    began_s = time.monotonic()
    first_s, text, last = 0.0, "", None
    async for chunk in await client.chat.completions.create(**body, extra_headers=headers):
        last = chunk
        for choice in chunk.choices:
            if choice.delta.content:
                first_s, text = first_s or time.monotonic() - began_s, text + choice.delta.content
    if last is None or last.usage is None:
        raise SystemExit("the answer has no end")
    report = last.usage.andes
    said = (
        ("ran", json.dumps(report["tools"])),
        ("first word after, s", f"{first_s:.1f}"),
        ("tokens, shown", f"{last.usage.completion_tokens}, {report['tokens']}"),
        ("answer", json.dumps(text)),
    )
    return [*header("", question), *(row(*cells) for cells in said)]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n\n")[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--model", type=Path, default=Path("out/smollm2"), help="made by `make small-model`")
    parser.add_argument("--unit-s", type=float, default=1.0, help="seconds that the search takes for each value")
    parser.add_argument("--questions", type=int, default=len(QUESTIONS), help="how many are asked")
    parser.add_argument("--gateway", action="store_true", help="a gateway runs the tool, and the answer goes on")
    given = parser.parse_args()
    if not (given.model / "config.json").exists():
        parser.error(
            f"--model: there is no model in {given.model}; `make small-model` makes one (package index needed)"
        )
    flags = (
        "--tool-call-parser",
        "pythonic",
        "--constrained-json-disable-any-whitespace",
        "--max-total-tokens",
        "8192",
    )
    with tempfile.TemporaryDirectory() as folder, slow_search(given.unit_s) as address:
        program = Path(folder) / "search.py"
        program.write_text(SEARCH.replace("ADDRESS", address))
        command = [sys.executable, str(program)]
        with Engine(given.model, "andes", flags, log=Path(folder) / "engine.log") as engine:
            if given.gateway:
                tools = {"search": {"command": command}}
                with running_gateway(engine.url, tools=tools, tool_rounds=2) as url:
                    for question in QUESTIONS[: given.questions]:
                        print(*asyncio.run(by_gateway(url, question)), sep="\n", flush=True)
                return
            client = openai.AsyncOpenAI(base_url=f"{engine.url}/v1", api_key="none")
            print(*header("call", "tokens", "writing, s", "tool, s", "fed: after it, s", "had of possible"), sep="\n")
            for question in QUESTIONS[: given.questions]:
                text, tokens, written_s, fed_s, lazy_s = asyncio.run(both(client, Tool(command), question))
                share = (lazy_s - fed_s) / min(written_s, lazy_s)
                cells = (text, str(tokens), f"{written_s:.1f}", f"{lazy_s:.1f}", f"{fed_s:.1f}", f"{share:.0%}")
                print(row(*cells), flush=True)


if __name__ == "__main__":
    main()
