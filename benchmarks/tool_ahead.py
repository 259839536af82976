"""Calls of pure tools run before they are asked for: how many guesses hit, and what the callers of hits do not wait.

``python benchmarks/tool_ahead.py`` plays an agent that repeats itself: workflows of a few calls, one after the other, in
which one of ten calls, or of three, is another one than usual. Before each call the model reads and writes for ``--model-s``;
a call takes the tool ``--tool-s``. Every trace is played twice with real processes: as it comes, and with a runner that runs
the most frequent next call ahead. Both run lazy tools, so that what is saved is the guess's alone. Pauses are real.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from andes_client import Ahead, NextCalls, Tool, ToolRunner
from benchmarks.markdown import header, row

TOOL = """
import json, sys, time
for line in sys.stdin:
    said = json.loads(line)
    if "finish" in said:
        time.sleep(TOOL_S)
        print(json.dumps({"result": "done"}), flush=True)
"""
WORKFLOWS = (
    ("list files", "read README", "read setup", "run tests"),
    ("search issue", "open issue", "list files", "read source"),
    ("query sales", "query costs", "plot both"),
)


def trace(calls: int, noise: float, seed: int) -> list[str]:
    """What an agent asks for, workflow after workflow."""
    chance = random.Random(seed)
    asked: list[str] = []
    while len(asked) < calls:
        asked += [
            f"look at {chance.random():.6f}" if chance.random() < noise else usual for usual in chance.choice(WORKFLOWS)
        ]
    return asked[:calls]


async def play(asked: Sequence[str], tool: Tool, model_s: float, ahead: Ahead | None) -> float:
    """Seconds that the agent waits for tools, altogether."""
    waited_s = 0.0
    for question in asked:
        runner = ToolRunner({"f": tool}, lazy=True, ahead=ahead)
        await asyncio.sleep(model_s)
        began_s = time.monotonic()
        for chunk in _call(question):
            runner.feed(chunk)
        await runner.results()
        waited_s += time.monotonic() - began_s
    if ahead is not None:
        await ahead.close()
    return waited_s


def _call(question: str) -> list[dict[str, Any]]:
    call = {"index": 0, "id": "c", "function": {"name": "f", "arguments": json.dumps({"q": question})}}
    deltas: tuple[tuple[Any, Any], ...] = (({"tool_calls": [call]}, None), ({}, "tool_calls"))
    return [{"choices": [{"index": 0, "delta": delta, "finish_reason": finish}]} for delta, finish in deltas]


async def compare(tool: Tool, given: argparse.Namespace, noise: float) -> list[str]:
    asked = trace(given.calls, noise, given.seed)
    ahead = Ahead(NextCalls())
    plain_s, ahead_s = await asyncio.gather(
        play(asked, tool, given.model_s, None), play(asked, tool, given.model_s, ahead)
    )
    guesses = ahead.hits + ahead.misses
    hits = f"{ahead.hits} of {guesses}" + (f" ({ahead.hits / guesses:.0%})" if guesses else "")
    task_s = given.calls * given.model_s + plain_s
    share = f"{(plain_s - ahead_s) / task_s:.0%}"
    return [f"{noise:.0%}", str(given.calls), hits, f"{plain_s:.1f}", f"{ahead_s:.1f}", share]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n\n")[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--calls", type=int, default=60, help="of each trace")
    parser.add_argument("--model-s", type=float, default=0.5, help="seconds between a result and the next call")
    parser.add_argument("--tool-s", type=float, default=0.5, help="seconds that a call takes")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        program = Path(folder) / "tool.py"
        program.write_text(TOOL.replace("TOOL_S", str(given.tool_s)))
        tool = Tool([sys.executable, str(program)], pure=True)
        columns = ("other than usual", "calls", "hits", "waited, s", "with guesses, s", "of the task's time saved")
        print(*header(*columns), sep="\n", flush=True)
        for noise in (0.0, 0.1, 0.3):
            print(row(*asyncio.run(compare(tool, given, noise))), flush=True)


if __name__ == "__main__":
    main()
