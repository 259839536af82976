"""What feeding a tool costs the one who reads the stream: CPU of a token, over calls of 10,000 tokens.

``python benchmarks/tool_parsing.py`` feeds chunks of four characters to :class:`andes_client.ToolRunner`, whose tool is a
process that reads and says nothing, and measures the CPU of this thread. Long statements, long values and many are where
a parser that begins again at each token becomes slow.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import time
from typing import Any

import numpy as np

from andes_client import Tool, ToolRunner
from benchmarks.markdown import header, row
from benchmarks.scripted_engine import call

SILENT = ("sh", "-c", "cat > /dev/null")


def arguments(characters: int) -> dict[str, tuple[str, str | None, dict[str, str]]]:
    """By what is long: the argument that has statements, their language, the arguments."""

    def many(line: str) -> str:
        return "".join(line.format(k) for k in range(characters // len(line)))

    return {
        "Python, short statements": ("code", "python", {"code": many("x{0} = {0} + 1\nprint(x{0})\n")}),
        "Python, one long function": ("code", "python", {"code": "def f():\n" + many("    x{0} = {0} + 1\n") + "f()\n"}),
        "Python, one long string": ("code", "python", {"code": "x = '''\n" + many("text {0}, and more\n") + "'''\nf(x)\n"}),
        "SQL, short statements": ("query", "sql", {"query": many("select {0} from t;\n")}),
        "SQL, one long statement": ("query", "sql", {"query": "select " + many("'word {0}', ") + "1;\n"}),
        "values, many": ("", None, {f"question {k}": f"something {k}" for k in range(characters // 32)}),
        "values, one long": ("", None, {"text": many("word {0} ")}),
    }  # fmt: skip


async def feed(tool: Tool, text: str) -> list[float]:
    """Seconds of CPU for each chunk."""
    runner, costs_s = ToolRunner({"f": tool}), []
    try:
        for delta in call("f", text):
            chunk: dict[str, Any] = {"choices": [{"index": 0, "delta": delta, "finish_reason": None}]}
            began_s = time.thread_time()
            runner.feed(chunk)
            costs_s.append(time.thread_time() - began_s)
            await asyncio.sleep(0)  # the process reads
    finally:
        await runner.close()
    return costs_s


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n\n")[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--chunks", type=int, default=10_000, help="of a call, about")
    given = parser.parse_args()
    print(*header("arguments", "chunks", "mean, ms", "99 %, ms", "largest, ms"), sep="\n", flush=True)
    for name, (argument, language, values) in arguments(4 * given.chunks).items():
        tool = Tool(SILENT, argument or None, language)  # type: ignore[arg-type]
        ms = 1e3 * np.array(asyncio.run(feed(tool, json.dumps(values))))
        print(
            row(name, f"{len(ms):,}", f"{ms.mean():.3f}", f"{np.quantile(ms, 0.99):.3f}", f"{ms.max():.2f}"), flush=True
        )


if __name__ == "__main__":
    main()
