"""Tools that start while the model still writes: how much of the possible overlap is had, with real tool processes.

``python benchmarks/tool_overlap.py`` streams the arguments of a call at a fixed speed to a tool: fed as they grow, and in
turn started when they are complete (lazy). The tools run Python statements that sleep, count in SQLite, and
look up values at an HTTP server on loopback that takes its time. Possible is ``1 - max(D, T) / (D + T)``, with D the time of
decoding and T what the lazy run takes beyond it; had is what the fed run takes less than the lazy one. parse: what feeding
takes the client, per chunk.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
from openai.types.chat import ChatCompletionChunk

from andes_client import Tool, ToolRunner
from benchmarks.markdown import header, row

UNITS = 8
"""Statements or values of a call."""
CHARACTERS_PER_TOKEN = 4
PYTHON = """
import contextlib, io
from andes_client import serve
class Python:
    def __init__(self): self.names, self.out = {}, io.StringIO()
    def process_new_data(self, text):
        with contextlib.redirect_stdout(self.out): exec(text, self.names)
    def finish(self, arguments): return self.out.getvalue()
serve(Python)
"""
SQL = """
import sqlite3
from andes_client import serve
class Sql:
    def __init__(self): self.base, self.rows = sqlite3.connect(":memory:"), []
    def process_new_data(self, text): self.rows += self.base.execute(text).fetchall()
    def finish(self, arguments): return repr(self.rows)
serve(Sql)
"""
SEARCH = """
import json, urllib.parse, urllib.request
from andes_client import serve
class Search:
    def __init__(self): self.found = {}
    def look_up(self, values):
        for name, value in values.items():
            if name not in self.found:
                address = "ADDRESS/" + urllib.parse.quote(value)
                with urllib.request.urlopen(address) as answer: self.found[name] = answer.read().decode()
    def process_new_data(self, text): self.look_up(json.loads(text))
    def finish(self, arguments):
        self.look_up(arguments)
        return json.dumps(self.found)
serve(Search)
"""


@dataclass(frozen=True)
class Job:
    """A tool and the arguments of its call."""

    tool: Tool
    arguments: str

    @property
    def pieces(self) -> list[str]:
        n = CHARACTERS_PER_TOKEN
        return [self.arguments[at : at + n] for at in range(0, len(self.arguments), n)]


@contextmanager
def slow_search(unit_s: float) -> Iterator[str]:
    """A server that answers after ``unit_s`` seconds; its address."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            time.sleep(unit_s)
            with suppress(ConnectionError):  # a tool that was ended
                self.send_response(200)
                self.send_header("content-length", "2")
                self.end_headers()
                self.wfile.write(b"ok")

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


def jobs(folder: Path, unit_s: float, address: str) -> dict[str, Job]:
    """One per kind of tool, whose every unit takes about ``unit_s`` seconds; SQL, as long as SQLite counts."""
    made = {}
    for name, source in (("python", PYTHON), ("sql", SQL), ("search", SEARCH.replace("ADDRESS", address))):
        (folder / f"{name}.py").write_text(source)
        made[name] = [sys.executable, str(folder / f"{name}.py")]
    code = "import time\n" + "".join(f"time.sleep({unit_s:.3f})\nprint('step {k} is done')\n" for k in range(UNITS))
    count = int(unit_s * 2_000_000)
    query = "".join(
        f"with recursive n(i) as (select 1 union all select i + 1 from n where i < {count}) select max(i) + {k} from n;\n"  # noqa: S608
        for k in range(UNITS)
    )
    words = {f"question {k}": f"something-to-look-up-{k}" for k in range(UNITS)}
    return {
        "Python statements": Job(Tool(made["python"], "code", "python"), json.dumps({"code": code})),
        "SQLite statements": Job(Tool(made["sql"], "query", "sql"), json.dumps({"query": query})),
        "HTTP look-ups": Job(Tool(made["search"]), json.dumps(words)),
    }


async def run(job: Job, token_s: float, *, lazy: bool) -> tuple[float, float]:
    """Seconds from the first token of the call to its result, and of CPU those that feeding took."""
    chunks = [_chunk(k, piece) for k, piece in enumerate(job.pieces)]
    runner, began, fed_s = ToolRunner({"f": job.tool}, lazy=lazy), time.perf_counter(), 0.0
    for k, chunk in enumerate([*chunks, _chunk(-1, "")]):
        await asyncio.sleep(max(0.0, began + min(k + 1, len(chunks)) * token_s - time.perf_counter()))
        before = time.thread_time()
        runner.feed(chunk)
        fed_s += time.thread_time() - before
    (result,) = await runner.results()
    if result.error is not None:
        raise SystemExit(f"the tool failed: {result.error}")
    return time.perf_counter() - began, fed_s


def _chunk(k: int, piece: str) -> ChatCompletionChunk:
    function = {"name": "f" if k == 0 else None, "arguments": piece}
    delta = {"tool_calls": [{"index": 0, "id": "c" if k == 0 else None, "function": function}]} if k >= 0 else {}
    choice = {"index": 0, "delta": delta, "finish_reason": None if k >= 0 else "tool_calls"}
    return ChatCompletionChunk.model_validate(
        {"id": "x", "created": 1, "model": "m", "object": "chat.completion.chunk", "choices": [choice]}
    )


async def compare(job: Job, decode_s: float, rounds: int) -> list[float]:
    """Possible and had overlap, and seconds of feeding per chunk; medians over rounds."""
    token_s, rows = decode_s / len(job.pieces), []
    for _ in range(rounds):
        lazy_s, _ = await run(job, token_s, lazy=True)
        fed_s, parse_s = await run(job, token_s, lazy=False)
        tool_s = lazy_s - decode_s
        rows.append([tool_s, 1 - max(decode_s, tool_s) / lazy_s, 1 - fed_s / lazy_s, parse_s / len(job.pieces)])
    return [float(value) for value in np.median(rows, axis=0)]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n\n")[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=3, help="of each pair; the medians are shown")
    parser.add_argument("--unit-s", type=float, default=0.25, help="seconds that each of the 8 units of a call takes")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, slow_search(given.unit_s) as address:
        lines = header("tool", "decoding, s", "tool, s", "possible", "had", "share", "parse, ms a chunk")
        print(*lines, sep="\n", flush=True)
        for name, job in jobs(Path(folder), given.unit_s, address).items():
            for ratio in (0.3, 1.0, 2.0):
                decode_s = UNITS * given.unit_s / ratio
                tool_s, possible, had, parse_s = asyncio.run(compare(job, decode_s, given.rounds))
                share = f"{had / possible:.0%}"
                print(
                    row(
                        name,
                        f"{decode_s:.1f}",
                        f"{tool_s:.1f}",
                        f"{possible:.0%}",
                        f"{had:.0%}",
                        share,
                        f"{1e3 * parse_s:.2f}",
                    ),
                    flush=True,
                )


if __name__ == "__main__":
    main()
