"""Tools that start while the model still writes, beside tools that wait, in client and gateway: a table and a picture.

``python benchmarks/tool_demo.py`` has an engine write the calls of :mod:`benchmarks.tool_overlap` at a fixed speed (a script,
not a model: only when tokens come matters) and runs each tool as a real process: by the client, and by a gateway whose answer
goes on with the result. Seconds are from the first token of the call to its result. Possible is ``1 - max(D, T) / (D + T)``,
with D the time of writing and T what the waiting tool takes after it.
"""

from __future__ import annotations

import argparse
import asyncio
import html
import statistics
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import openai

from andes_client import Tool, ToolResult, ToolRunner
from benchmarks.gateways import running_gateway
from benchmarks.markdown import header, row
from benchmarks.scripted_engine import ScriptedEngine, call, say
from benchmarks.tool_overlap import UNITS, Job, jobs, slow_search

WIDTH, BAR, LEFT = 900, 16, 190
COLOURS = {"writing": "#2166ac", "waiting for the tool": "#b35806"}


class Run(NamedTuple):
    """waited_s: from the end of the arguments to the result."""

    kind: str
    where: str
    lazy: bool
    written_s: float
    waited_s: float

    @property
    def total_s(self) -> float:
        return self.written_s + self.waited_s


class Pair(NamedTuple):
    lazy: Run
    early: Run

    @property
    def possible(self) -> float:
        written_s, tool_s = self.lazy.written_s, self.lazy.waited_s
        return 1 - max(written_s, tool_s) / (written_s + tool_s)

    @property
    def had(self) -> float:
        return 1 - self.early.total_s / self.lazy.total_s


def asked(**more: Any) -> dict[str, Any]:
    return {"model": "scripted", "stream": True, "messages": [{"role": "user", "content": "go"}], **more}


async def by_client(engine: ScriptedEngine, tool: Tool) -> ToolResult:
    runner = ToolRunner({"f": tool})
    async with openai.AsyncOpenAI(base_url=f"{engine.url}/v1", api_key="none") as client:
        async for chunk in await client.chat.completions.create(**asked()):
            runner.feed(chunk)
    (result,) = await runner.results()
    return result


async def by_gateway(engine: ScriptedEngine, tool: Tool) -> ToolResult:
    settings = {"command": tool.command, "argument": tool.argument, "statements": tool.statements, "lazy": tool.lazy}
    functions = [{"type": "function", "function": {"name": "f"}}]
    headers = {"x-andes-tools": "run", "x-andes-report": "usage"}
    with running_gateway(engine.url, tools={"f": settings}) as url:
        async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="none") as client:
            answer = await client.chat.completions.create(**asked(tools=functions), extra_headers=headers)
            chunks = [chunk async for chunk in answer]
    (ran,) = chunks[-1].usage.andes["tools"]
    return ToolResult("f", "f", error=ran.get("error"), waited_s=ran["waited_s"])


def measure(kind: str, job: Job, written_s: float, rounds: int) -> list[Pair]:
    """For each place the medians of ``rounds``."""
    pairs = []
    token_s = written_s / len(job.pieces)
    for where, run in (("client", by_client), ("gateway", by_gateway)):
        waited: dict[bool, list[float]] = {True: [], False: []}
        with ScriptedEngine([call("f", job.arguments), say("done")], token_s).running() as engine:
            for _ in range(rounds):
                for lazy in waited:
                    result = asyncio.run(run(engine, replace(job.tool, lazy=lazy)))
                    if result.error is not None:
                        raise SystemExit(f"{kind}, {where}: {result.error}")
                    waited[lazy].append(result.waited_s)
        pairs.append(Pair(*(Run(kind, where, lazy, written_s, statistics.median(waited[lazy])) for lazy in waited)))
    return pairs


def table(pairs: list[Pair]) -> str:
    lines = [*header("tool", "run by", "waits, s", "starts early, s", "possible", "had", "share")]
    for pair in pairs:
        lazy, early = pair
        shares = (f"{pair.possible:.0%}", f"{pair.had:.0%}", f"{pair.had / pair.possible:.0%}")
        lines.append(row(lazy.kind, lazy.where, f"{lazy.total_s:.1f}", f"{early.total_s:.1f}", *shares))
    return "\n".join(lines)


def picture(pairs: list[Pair]) -> str:
    """A bar for each run, as SVG."""
    runs = [run for pair in pairs for run in pair]
    scale = (WIDTH - LEFT - 60) / max(run.total_s for run in runs)
    height = 40 + len(runs) * (BAR + 6) + len(pairs) * 8
    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" role="img" ',
        'font-family="sans-serif" font-size="12"><title>From the first token of a call to its result</title>',
    ]
    for k, (name, colour) in enumerate(COLOURS.items()):
        out.append(f'<rect x="{LEFT + 180 * k}" y="6" width="12" height="12" fill="{colour}"/>')
        out.append(f'<text x="{LEFT + 180 * k + 18}" y="16">{name}</text>')
    y = 30
    for k, run in enumerate(runs):
        name = f"{run.kind}, {run.where}" if run.lazy else "starts early"
        x = float(LEFT)
        out.append(f'<text x="{LEFT - 8}" y="{y + BAR - 4}" text-anchor="end">{html.escape(name)}</text>')
        for seconds, colour in zip((run.written_s, run.waited_s), COLOURS.values()):
            out.append(f'<rect x="{x:.1f}" y="{y}" width="{seconds * scale:.1f}" height="{BAR}" fill="{colour}"/>')
            x += seconds * scale
        out.append(f'<text x="{x + 6:.1f}" y="{y + BAR - 4}">{run.total_s:.1f} s</text>')
        y += BAR + 6 + 8 * (k % 2)
    return "".join([*out, "</svg>"])


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n\n")[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path("out/demo-tools"), help="directory of table and picture")
    parser.add_argument("--unit-s", type=float, default=0.3, help="seconds that each of the 8 units of a call takes")
    parser.add_argument("--ratio", type=float, default=1.0, help="seconds of the tool over those of writing")
    parser.add_argument("--rounds", type=int, default=1, help="of each run; the medians are shown")
    given = parser.parse_args()
    pairs: list[Pair] = []
    with tempfile.TemporaryDirectory() as folder, slow_search(given.unit_s) as address:
        for kind, job in jobs(Path(folder), given.unit_s, address).items():
            print(f"{kind}: in the client and in the gateway, waiting and starting early", flush=True)
            pairs += measure(kind, job, UNITS * given.unit_s / given.ratio, given.rounds)
    given.out.mkdir(parents=True, exist_ok=True)
    (given.out / "table.md").write_text(table(pairs) + "\n")
    (given.out / "tools.svg").write_text(picture(pairs))
    print(f"\n{table(pairs)}\n\ntable and picture in {given.out}")


if __name__ == "__main__":
    main()
