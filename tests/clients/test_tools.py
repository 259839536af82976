"""Tools as real processes, fed while their arguments are written."""

from __future__ import annotations

import asyncio
import json
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import uvloop
from openai.types.chat import ChatCompletionChunk

from andes_client import Tool, ToolResult, ToolRunner
from andes_client.process import ToolCall
from andes_client.toolstream import Started

pytestmark = pytest.mark.server

PYTHON = """
import contextlib, io
from andes_client import serve

class Python:
    def __init__(self):
        self.names, self.out = {}, io.StringIO()
    def process_new_data(self, text):
        with contextlib.redirect_stdout(self.out):
            exec(text, self.names)
    def finish(self, arguments):
        return self.out.getvalue()

serve(Python)
"""
SQL = """
import sqlite3
from andes_client import serve

class Sql:
    def __init__(self):
        self.base, self.rows = sqlite3.connect(":memory:"), []
    def process_new_data(self, text):
        self.rows += self.base.execute(text).fetchall()
    def finish(self, arguments):
        return repr(self.rows)

serve(Sql)
"""


def program(tmp_path: Path, source: str, **options: Any) -> Tool:
    file = tmp_path / f"tool{len(list(tmp_path.iterdir()))}.py"
    file.write_text(source)
    return Tool([sys.executable, str(file)], **options)


def pieces(number: int, id_: str, name: str, arguments: str, size: int = 4) -> list[ChatCompletionChunk]:
    """A call in pieces of ``size`` characters."""
    chunks = []
    for at in range(0, max(1, len(arguments)), size):
        function = {"name": name if at == 0 else None, "arguments": arguments[at : at + size]}
        call = {"index": number, "id": id_ if at == 0 else None, "function": function}
        chunks.append(_chunk({"tool_calls": [call]}))
    return chunks


def _chunk(delta: Any, finish: str | None = None) -> ChatCompletionChunk:
    choice = {"index": 0, "delta": delta, "finish_reason": finish}
    return ChatCompletionChunk.model_validate(
        {"id": "x", "created": 1, "model": "m", "object": "chat.completion.chunk", "choices": [choice]}
    )


END = _chunk({}, "tool_calls")


async def run(tools: dict[str, Tool], *chunks: ChatCompletionChunk, **options: Any) -> list[ToolResult]:
    runner = ToolRunner(tools, **options)
    for chunk in chunks:
        runner.feed(chunk)
    return await runner.results()


async def appears(path: Path) -> None:
    while not path.exists():
        await asyncio.sleep(0.01)


def test_a_statement_runs_before_the_next_one_is_written(tmp_path: Path) -> None:
    """The second half of the arguments is sent only when the first statement has been seen to run."""
    python = program(tmp_path, PYTHON, argument="code", statements="python")
    seen = tmp_path / "seen"
    code = f"open({str(seen)!r}, 'w').close()\nprint('one')\nprint('two')\n"
    chunks = pieces(0, "c", "python", json.dumps({"code": code}))

    async def ask() -> list[ToolResult]:
        runner = ToolRunner({"python": python})
        for chunk in chunks[:-3]:
            runner.feed(chunk)
        await asyncio.wait_for(appears(seen), 120)
        for chunk in [*chunks[-3:], END]:
            runner.feed(chunk)
        return await runner.results()

    (result,) = asyncio.run(ask())
    assert result == ToolResult("c", "python", "one\ntwo\n")
    assert result.message() == {"role": "tool", "tool_call_id": "c", "content": "one\ntwo\n"}
    seen.unlink()
    assert asyncio.run(run({"python": python}, *chunks, END, lazy=True)) == [result]


def test_two_calls_of_one_answer_and_statements_of_sql(tmp_path: Path) -> None:
    tools = {
        "python": program(tmp_path, PYTHON, argument="code", statements="python"),
        "sql": program(tmp_path, SQL, argument="query", statements="sql"),
    }
    query = "create table t (x); insert into t values (';'); select * from t"
    chunks = [
        *pieces(0, "a", "sql", json.dumps({"query": query})),
        *pieces(1, "b", "python", json.dumps({"code": "print(7)"})),
    ]
    for lazy in (False, True):  # one statement at a time either way: SQLite takes no two
        first, second = asyncio.run(run(tools, *chunks, END, lazy=lazy))
        assert (first.text, second.text) == ("[(';',)]", "7\n")


def test_without_statements_every_closed_value_is_a_unit(tmp_path: Path) -> None:
    source = """
from andes_client import serve
class Units:
    def __init__(self): self.units = []
    def process_new_data(self, text): self.units.append(text)
    def finish(self, arguments): return " ".join(self.units) + " then " + arguments["last"]
serve(Units)
"""
    arguments = json.dumps({"city": "Ulm", "days": [1, 2], "last": "x y"})
    (result,) = asyncio.run(run({"f": program(tmp_path, source)}, *pieces(0, "a", "f", arguments), END))
    assert result.text == '{"city": "Ulm"} {"days": [1, 2]} {"last": "x y"} then x y'


def test_an_answer_that_is_written_again_starts_no_call_twice(tmp_path: Path) -> None:
    """Its engine died: another one writes the same call, or others."""
    log = tmp_path / "log"
    python = program(tmp_path, PYTHON, argument="code", statements="python")
    first = f"f = open({str(log)!r}, 'a')\nf.write('started ')\nf.flush()\n"
    same, other = json.dumps({"code": first + "print('same')"}), json.dumps({"code": first + "print('other')"})

    async def ask(*again: ChatCompletionChunk) -> list[ToolResult]:
        log.unlink(missing_ok=True)
        runner = ToolRunner({"python": python})
        for chunk in [*pieces(0, "a", "python", same), *pieces(1, "b", "python", json.dumps({"code": "1\n"}))]:
            runner.feed(chunk)
        await asyncio.wait_for(appears(log), 120)
        runner.again()
        for chunk in again:
            runner.feed(chunk)
        return await runner.results()

    (result,) = asyncio.run(ask(*pieces(0, "x", "python", same, size=9), END))
    assert result == ToolResult("a", "python", "same\n"), "under its first id"
    assert log.read_text() == "started "
    (result,) = asyncio.run(ask(*pieces(0, "x", "python", other), END))
    assert result.text == "other\n", "what was complete has other arguments now: it is another call"
    (result,) = asyncio.run(ask(*pieces(0, "x", "python", '{"code": "print(1)\\nprint(2)"}'), END))
    assert result.text == "1\n2\n"
    (result,) = asyncio.run(ask(*pieces(0, "x", "nothing", "{}"), END))
    assert result.error == "there is no tool 'nothing'"


def test_names_that_come_twice_start_nothing_twice(tmp_path: Path) -> None:
    """What JSON says twice has its last value; the tool has seen the first, and all of them at the end."""
    log = tmp_path / "log"
    source = f"""
from andes_client import serve
class Units:
    def __init__(self): open({str(log)!r}, "a").write("started ")
    def process_new_data(self, text): pass
    def finish(self, arguments): return arguments["a"]
serve(Units)
"""
    text = '{"a": "1", "b": "x", "a": "2", "b": "y", "a": "3"}'
    (result,) = asyncio.run(run({"f": program(tmp_path, source)}, *pieces(0, "i", "f", text), END))
    assert (result.text, log.read_text()) == ("3", "started ")


def test_a_tool_that_reads_nothing_is_given_up_however_much_it_is_fed(tmp_path: Path) -> None:
    tool = program(tmp_path, "import time; time.sleep(600)", argument="code", statements="python", timeout_s=0.5)
    chunks = pieces(0, "a", "f", json.dumps({"code": "x = 1\n" * 20_000}), size=100_000)
    (result,) = asyncio.run(run({"f": tool}, *chunks, END))
    assert result.error == "it gave no result within timeout_s, 0.5 s"


@pytest.mark.parametrize(
    ("source", "says"),
    [
        ("raise SystemExit(3)", "it ended without a result"),
        ("print('hello')", "which is no line of JSON"),
        ("print('[1]')", "which holds no result"),
        ("print('x' * 100_000)", "longer than output_bytes, 2000"),
        ("import time; time.sleep(600)", "no result within timeout_s, 0.5 s"),
    ],
    ids=["dies", "garbage", "no result", "floods", "hangs"],
)  # fmt: skip
def test_a_tool_that_misbehaves_gives_an_error_and_is_gone(tmp_path: Path, source: str, says: str) -> None:
    tool = program(tmp_path, source, timeout_s=0.5 if "sleep" in source else 120.0, output_bytes=2000)
    (result,) = asyncio.run(run({"f": tool}, *pieces(0, "a", "f", "{}"), END))
    assert result.error is not None
    assert says in result.error
    assert result.message()["content"].startswith("error: ")


def test_what_a_tool_raises_is_for_the_model_to_read(tmp_path: Path) -> None:
    python = program(tmp_path, PYTHON, argument="code", statements="python")
    (result,) = asyncio.run(
        run({"python": python}, *pieces(0, "a", "python", json.dumps({"code": "1/0\nprint(1)"})), END)
    )
    assert result.text == "ZeroDivisionError: division by zero"


def test_memory_is_limited(tmp_path: Path) -> None:
    python = program(tmp_path, PYTHON, argument="code", statements="python", memory_bytes=2 << 30)
    code = json.dumps({"code": "x = bytes(8 << 30)"})
    (result,) = asyncio.run(run({"python": python}, *pieces(0, "a", "python", code), END))
    assert "MemoryError" in result.text


def test_no_such_tool_a_bad_program_and_arguments_that_are_cut(tmp_path: Path) -> None:
    python = program(tmp_path, PYTHON, argument="code", statements="python")
    tools = {"python": python, "gone": Tool([str(tmp_path / "gone")])}
    chunks = [
        *pieces(0, "a", "nothing", "{}"),
        *pieces(1, "b", "gone", "{}"),
        *pieces(2, "c", "python", '{"code": "print('),
    ]
    began = time.monotonic()
    unknown, absent, torn = asyncio.run(run(tools, *chunks))
    assert unknown.error == "there is no tool 'nothing'"
    assert absent.error == "it cannot be started: No such file or directory"
    assert torn.error == "the answer ended before the call was complete"
    assert time.monotonic() - began < python.timeout_s


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("command", "rm -r"),
        ("command", []),
        ("statements", "perl"),
        ("argument", "code"),
        ("timeout_s", 0),
        ("memory_bytes", -1),
    ],
)
def test_a_tool_that_makes_no_sense_is_named(field: str, value: Any) -> None:
    more = {"argument": "code"} if field == "statements" else {}
    with pytest.raises(ValueError, match=field):
        Tool(**{"command": ["true"], **more, field: value})


@pytest.mark.parametrize("fault", [RuntimeError("no thread"), PermissionError(), asyncio.CancelledError()])
def test_what_a_tool_has_said_stands_whatever_its_end_is(
    fault: BaseException, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def end(*_: Any) -> None:
        raise fault

    async def run() -> ToolResult:
        call = ToolCall(Started((0, 0), "one", "says"), Tool(["echo", '{"result": "said"}']))
        call.finish({})
        return await call.result

    monkeypatch.setattr("andes_client.process._end", end)
    assert asyncio.run(run()).text == "said"
    assert f"of tool 'says' may still run: {fault!r}" in caplog.text


@pytest.mark.parametrize(
    ("tool", "why"),
    [
        (Tool(["/no/such/program"], memory_bytes=1 << 32), "it cannot be started: No such file or directory"),
        (Tool(["true"], user="no-such-user"), "it cannot be started: there is no user 'no-such-user'"),
        (Tool(["true"], user="-"), "it cannot be started: there is no user '-'"),
        (Tool(["echo", '{"error": "no row has that name"}']), "no row has that name"),
        (Tool(["echo", '{"error": 7}']), "it wrote b'{\"error\": 7}', which holds no result"),
    ],
)
@pytest.mark.parametrize("loop", [asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"])
def test_why_a_tool_gives_no_result(tool: Tool, why: str, loop: Any) -> None:
    async def call() -> ToolResult:
        called = ToolCall(Started((0, 0), "one", "tool"), tool)
        called.finish({})
        return await called.result

    with asyncio.Runner(loop_factory=loop) as runner:
        assert runner.run(call()).error == why


@pytest.mark.parametrize("fault", [subprocess.SubprocessError("odd"), RuntimeError("can't start new thread")])
def test_whatever_keeps_a_tool_from_starting_is_its_result(fault: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    async def start(*_: Any, **__: Any) -> None:
        raise fault

    async def run() -> ToolResult:
        call = ToolCall(Started((0, 0), "one", "says"), Tool(["true"]))
        call.finish({})
        return await call.result

    monkeypatch.setattr("asyncio.create_subprocess_exec", start)
    assert asyncio.run(run()).error == f"it cannot be run: {fault!r}"


def may_become_nobody() -> bool:
    try:
        subprocess.run(["true"], user="nobody", extra_groups=[], check=True)
    except (OSError, LookupError):
        return False
    return True


UNPRIVILEGED = """
import asyncio, os, sys, uvloop
from andes_client import Tool
from andes_client.process import ToolCall
from andes_client.toolstream import Started

async def main():
    script = 'read start; read finish; printf \\'{"result": "%s"}\\n\\' $$; ' + sys.argv[1]
    call = ToolCall(Started((0, 0), "one", "lingers"), Tool(["sh", "-c", script], user="nobody"))
    call.finish({})
    result = await call.result
    assert result.error is None, result
    try:
        os.kill(int(result.text), 0)
    except ProcessLookupError:
        print("ended")

with asyncio.Runner(loop_factory=uvloop.new_event_loop if sys.argv[2] == "uvloop" else None) as runner:
    runner.run(main())
"""


@pytest.mark.skipif(
    not (may_become_nobody() and shutil.which("setpriv")), reason="needs the right to become nobody, and setpriv"
)
@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
@pytest.mark.parametrize("lingers", ["sleep 600", "sleep 600 & wait"])
def test_a_tool_of_another_user_is_ended_without_the_right_to_kill_it(lingers: str, loop: str) -> None:
    command = ["setpriv", "--bounding-set=-kill", "--inh-caps=-kill", sys.executable, "-c", UNPRIVILEGED, lingers, loop]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
    assert done.stdout == "ended\n", done.stderr
