"""Tools that the gateway runs: real processes, the official SDK, engines that say what they are told."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from andes_api.limits import TenantLimits
from andes_api.settings import GatewaySettingsError, load
from andes_api.tool_rounds import ToolRounds, added
from andes_api.tool_times import UNKNOWN_S, ToolTimes
from andes_client import AndesClient
from benchmarks.scripted_engine import Delta, ScriptedEngine, call, say
from benchmarks.tool_overlap import PYTHON
from benchmarks.waiting import until

pytestmark = pytest.mark.server

NAMES = ("python", "echo", "dies", "hangs")
Ask = Callable[..., Any]


@pytest.fixture
def tools(tmp_path: Path) -> dict[str, Any]:
    """python: runs statements; echo: gives its arguments back; dies, hangs: what their names say."""
    sources = {
        "python": PYTHON,
        "echo": "import json, sys\nfor line in sys.stdin:\n    said = json.loads(line)\n"
        "    if 'finish' in said: print(json.dumps({'result': json.dumps(said['finish'])}), flush=True)\n",
        "dies": "raise SystemExit(1)",
        "hangs": "import time\ntime.sleep(600)",
    }
    made: dict[str, Any] = {}
    for name, source in sources.items():
        (tmp_path / f"{name}.py").write_text(source)
        made[name] = {"command": [sys.executable, str(tmp_path / f"{name}.py")]}
    made["python"] |= {"argument": "code", "statements": "python", "timeout_s": 120}
    made["hangs"]["timeout_s"] = 0.2
    return made


@pytest.fixture
def engine() -> Iterator[Callable[..., ScriptedEngine]]:
    with ExitStack() as stack:
        yield lambda *rounds: stack.enter_context(ScriptedEngine(rounds).running())


def function(name: str) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, "parameters": {"type": "object"}}}


def ask(url: str, *, header: str = "run", names: tuple[str, ...] = NAMES, **more: Any) -> list[Any]:
    """The chunks of an answer."""
    client = openai.OpenAI(base_url=f"{url}/v1", api_key="x", max_retries=0)
    body: dict[str, Any] = {"model": "scripted", "stream": True, "messages": [{"role": "user", "content": "go"}]}
    body |= {"tools": [function(name) for name in names], "stream_options": {"include_usage": True}, **more}
    with client:
        return list(client.chat.completions.create(**body, extra_headers={"x-andes-tools": header}))


def text_of(chunks: list[Any]) -> str:
    return "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)


def finish_of(chunks: list[Any]) -> list[str]:
    return [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices and chunk.choices[0].finish_reason]


def code(text: str) -> list[Delta]:
    return call("python", json.dumps({"code": text}))


def test_an_answer_goes_on_with_the_results_as_one_stream_on_the_same_engine(
    engine: Any, gateway: Any, tools: dict[str, Any]
) -> None:
    rounds = say("Let me see. "), say("It is 42.")
    rounds[0].extend([*code("x = 6\nprint(x * 7)"), *call("echo", '{"a": "\\ud83d\\ude00"}', number=1)])
    one, two = engine(*rounds), engine(*rounds)
    server = gateway(one.url, two.url, tools=tools)
    for _ in range(3):  # wherever the first round goes, the second one follows
        before = len(one.bodies), len(two.bodies)
        chunks = ask(server.url, tool_choice="required")
        went = len(one.bodies) - before[0], len(two.bodies) - before[1]
        assert went in ((2, 0), (0, 2))
    assert text_of(chunks) == "Let me see. It is 42."
    assert len({chunk.id for chunk in chunks}) == 1
    assert not any(chunk.choices and chunk.choices[0].delta.tool_calls for chunk in chunks)
    assert [chunk.choices[0].delta.role for chunk in chunks if chunk.choices].count("assistant") == 1
    assert finish_of(chunks) == ["stop"]
    first, then = (one.bodies or two.bodies)[-2:]
    said, *results = then["messages"][len(first["messages"]) :]
    assert (said["role"], said["content"], len(said["tool_calls"])) == ("assistant", "Let me see. ", 2)
    assert json.loads(said["tool_calls"][0]["function"]["arguments"]) == {"code": "x = 6\nprint(x * 7)"}
    assert [r["tool_call_id"] for r in results] == [c["id"] for c in said["tool_calls"]]
    assert [r["content"] for r in results] == ["42\n", '{"a": "\\ud83d\\ude00"}']
    assert (first["tool_choice"], then["tool_choice"]) == ("required", "auto")
    usage = chunks[-1].usage
    assert usage.completion_tokens == sum(map(len, rounds))
    assert usage.prompt_tokens == sum(len(json.dumps(body["messages"])) // 4 for body in (first, then))
    assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens
    figures = "".join(f"{s}" for s in server.gateway.metrics.tool_calls.collect()[0].samples)
    assert "'tool': 'python', 'outcome': 'done'" in figures


def test_a_tool_starts_while_the_model_writes_and_the_report_says_what_ran(
    engine: Any, gateway: Any, tools: dict[str, Any], tmp_path: Path
) -> None:
    seen = tmp_path / "seen"
    calling = code(f"open({str(seen)!r}, 'w').close()\nprint(1)\nprint(2)\n")
    scripted = engine(calling, say("done"))
    scripted.holds[(0, len(calling) - 4)] = written = threading.Event()
    url = gateway(scripted.url, tools=tools).url
    threading.Thread(target=lambda: (until(seen.exists), written.set()), daemon=True).start()
    client = openai.OpenAI(base_url=f"{url}/v1", api_key="x", max_retries=0)
    chunks = list(
        client.chat.completions.create(
            model="scripted", stream=True, messages=[{"role": "user", "content": "go"}], tools=[function("python")],
            extra_headers={"x-andes-tools": "run", "x-andes-report": "usage"},
        )
    )  # fmt: skip
    report = chunks[-1].usage.andes
    ((ran),) = report["tools"]
    assert (ran["name"], ran["round"], "error" in ran) == ("python", 1, False)
    assert report["tokens"] == 1, "calls are not shown"
    assert chunks[-1].usage.completion_tokens == len(calling) + 1


def test_what_goes_wrong_in_a_tool_is_for_the_model_to_read(engine: Any, gateway: Any, tools: dict[str, Any]) -> None:
    calls = [("dies", "{}"), ("hangs", "{}"), ("absent", "{}"), ("echo", "[1"), ("echo", '{"a": 1}')]
    scripted = engine(
        [delta for k, (name, text) in enumerate(calls) for delta in call(name, text, number=k)], say("sorry")
    )
    chunks = ask(gateway(scripted.url, tools=tools).url)
    assert (text_of(chunks), finish_of(chunks)) == ("sorry", ["stop"])
    said, *results = scripted.bodies[1]["messages"][1:]
    assert [json.loads(c["function"]["arguments"]) for c in said["tool_calls"]] == [{}, {}, {}, {}, {"a": 1}]
    for result, words in zip(
        results, ("without a result", "within timeout_s", "no tool 'absent'", "not an object", "1}")
    ):
        assert words in result["content"]


def test_a_tenant_pays_for_the_prompts_of_all_rounds_and_may_have_fewer_tools(
    engine: Any, gateway: Any, tools: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    charged = []
    real = TenantLimits._charge
    monkeypatch.setattr(TenantLimits, "_charge", lambda *asked: charged.append(asked[2]) or real(*asked))
    scripted = engine(call("echo", '{"a": 1}'), say("done"))
    tenant = {"name": "t", "key_sha256": hashlib.sha256(b"x").hexdigest(), "tools": ["echo"], "tokens_per_minute": 9000}
    server = gateway(scripted.url, tools=tools, tenants=[tenant])
    with pytest.raises(openai.BadRequestError, match="no tool 'python' runs here; there are echo"):
        ask(server.url)
    usage = ask(server.url, names=("echo",))[-1].usage
    until(lambda: not server.gateway.open)
    assert charged[-1] == (usage.prompt_tokens, usage.completion_tokens)


def test_rounds_are_bounded_and_tokens_count_across_them(engine: Any, gateway: Any, tools: dict[str, Any]) -> None:
    again = call("echo", '{"a": 1}')
    scripted = engine(again, again, again, again)
    url = gateway(scripted.url, tools=tools, tool_rounds=3).url
    chunks = ask(url)
    assert [body.get("tool_choice") for body in scripted.bodies] == [None, None, "none"]
    assert (text_of(chunks), finish_of(chunks)) == ("", ["stop"]), "an engine that calls all the same says no more"
    scripted.bodies.clear()
    chunks = ask(url, max_tokens=len(again) + 1)
    assert [body["max_tokens"] for body in scripted.bodies] == [len(again) + 1, 1]
    assert finish_of(chunks) == ["length"], "a call that is cut is none"
    scripted.bodies.clear()
    chunks = ask(url, max_tokens=len(again))
    assert (len(scripted.bodies), finish_of(chunks)) == (1, ["length"])
    assert chunks[-1].usage.completion_tokens == len(again)


def test_a_caller_who_leaves_takes_the_tool_with_him(
    engine: Any, gateway: Any, tools: dict[str, Any], tmp_path: Path
) -> None:
    file = tmp_path / "pid"
    waits = f"import os, time\nopen({str(file)!r}, 'w').write(str(os.getpid()))\ntime.sleep(600)\n"
    scripted = engine([*say("a b"), *code(waits)], say("never"))
    server = gateway(scripted.url, tools=tools)
    client = openai.OpenAI(base_url=f"{server.url}/v1", api_key="x", max_retries=0)
    answer = client.chat.completions.create(
        model="scripted", stream=True, messages=[{"role": "user", "content": "go"}], tools=[function("python")],
        extra_headers={"x-andes-tools": "run"},
    )  # fmt: skip
    next(iter(answer))
    until(lambda: file.exists() and file.read_text() != "")
    pid = int(file.read_text())
    answer.close()
    until(lambda: not Path(f"/proc/{pid}").exists())
    until(lambda: not server.gateway.open)


def test_a_stream_that_is_cut_off_twice_says_nothing_more(
    engine: Any, gateway: Any, tools: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second time while its tools take long to end."""
    closing, close = threading.Event(), ToolRounds.close

    async def slowly(rounds: ToolRounds) -> None:
        await close(rounds)
        closing.set()
        await asyncio.sleep(600)

    monkeypatch.setattr(ToolRounds, "close", slowly)
    scripted = engine([*say("a b"), *call("hangs", "{}")], say("never"))
    server = gateway(scripted.url, tools={"hangs": tools["hangs"] | {"timeout_s": 600}}, keepalive_s=60)
    body = {"model": "scripted", "stream": True, "messages": [{"role": "user", "content": "go"}]}
    body["tools"] = [function("hangs")]
    with httpx.stream(
        "POST", f"{server.url}/v1/chat/completions", json=body, headers={"x-andes-tools": "run"}, timeout=120
    ):
        ((stream, task),) = server.gateway.open.items()
        timer = server.gateway._relays[stream]._reply._timer
        task.get_loop().call_soon_threadsafe(task.cancel)
        assert closing.wait(120)
        task.get_loop().call_soon_threadsafe(task.cancel)
        until(lambda: not server.gateway.open)
    assert timer.cancelled()


def test_a_gateway_that_stops_says_so_and_ends_the_tool(engine: Any, gateway: Any, tools: dict[str, Any]) -> None:
    scripted = engine([*say("a b"), *call("hangs", "{}")], say("never"))
    server = gateway(scripted.url, tools={"hangs": tools["hangs"] | {"timeout_s": 600}})

    def stop() -> None:
        until(lambda: any(stream.tokens > 2 for stream in server.gateway.open))
        server.gateway.cut_streams()

    threading.Thread(target=stop, daemon=True).start()
    with pytest.raises(openai.APIError, match="shutdown"):
        ask(server.url, names=("hangs",))
    assert len(scripted.bodies) == 1


def test_a_call_starts_once_though_its_engine_dies(
    engine: Any, gateway: Any, tools: dict[str, Any], tmp_path: Path
) -> None:
    log = tmp_path / "log"
    calling = code(f"f = open({str(log)!r}, 'a')\nf.write('started ')\nf.flush()\nprint('ran')\n")
    engines = engine(calling, say("done")), engine(calling, say("done"))
    for scripted in engines:
        scripted.deaths.add((0, len(calling) - 3))
        scripted.holds[(0, len(calling) - 3)] = died = threading.Event()
        threading.Thread(target=lambda e=died: (until(log.exists), e.set()), daemon=True).start()
    engines[1].deaths.clear()
    server = gateway(engines[0].url, engines[1].url, tools=tools, policy="round_robin")
    while not engines[0].bodies:  # until one goes to the engine that dies
        log.unlink(missing_ok=True)
        chunks = ask(server.url)
    assert text_of(chunks) == "done"
    assert log.read_text() == "started "
    assert engines[1].bodies[-1]["messages"][-1]["content"] == "ran\n"
    assert chunks[-1].usage.completion_tokens == len(calling) + 1


def test_an_engine_that_dies_in_a_call_before_anything_was_shown(
    engine: Any, gateway: Any, tools: dict[str, Any]
) -> None:
    """A status can still say it, and no event has come before."""
    calling = call("echo", '{"a": 1}')
    scripted = engine(calling)
    scripted.deaths.add((0, len(calling) - 1))
    scripted.says_role = False
    server = gateway(scripted.url, tools=tools)
    with pytest.raises(openai.InternalServerError, match="the engine failed") as error:
        ask(server.url)
    assert error.value.status_code == 502


def test_tools_see_nothing_of_the_gateways_environment(
    engine: Any, gateway: Any, tools: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SECRET", "1")
    python = tools["python"] | {"environment": {"GIVEN": "2"}}
    scripted = engine(code("import os\nprint(sorted(os.environ))"), say("done"))
    ask(gateway(scripted.url, tools={"python": python}).url, names=("python",))
    seen = scripted.bodies[1]["messages"][-1]["content"]
    assert "GIVEN" in seen
    assert "SECRET" not in seen


@pytest.mark.parametrize(
    ("more", "says"),
    [
        ({"header": "walk"}, "x-andes-tools: expected run; got 'walk'"),
        ({"stream": False, "stream_options": None}, "needs a streamed answer"),
        ({"n": 2}, "n: x-andes-tools needs a single answer, n: 1; got 2"),
        ({"names": ("rm",)}, "tools: no tool 'rm' runs here; there are echo"),
        ({"names": ()}, "needs the functions that may be called; there are echo"),
    ],
)
def test_what_cannot_run_here_is_refused(
    more: dict[str, Any], says: str, engine: Any, gateway: Any, tools: dict[str, Any]
) -> None:
    scripted = engine(say("never"))
    with pytest.raises(openai.BadRequestError, match=says.replace("(", r"\(")):
        ask(gateway(scripted.url, tools={"echo": tools["echo"]}).url, **{"names": ("echo",), **more})
    assert not scripted.bodies


def test_without_tools_in_the_settings_none_run_and_without_the_header_calls_pass(engine: Any, gateway: Any) -> None:
    scripted = engine(call("echo", "{}"))
    url = gateway(scripted.url).url
    with pytest.raises(openai.BadRequestError, match="no tools run here"):
        ask(url)
    client = openai.OpenAI(base_url=f"{url}/v1", api_key="x", max_retries=0)
    chunks = list(
        client.chat.completions.create(model="scripted", stream=True, messages=[{"role": "user", "content": "go"}])
    )
    assert finish_of(chunks) == ["tool_calls"]


@pytest.mark.parametrize(
    ("tool", "says"),
    [
        ({"command": []}, "tools.f.command"),
        ({"command": ["true"], "statements": "sql"}, "argument and statements go together"),
        ({"command": ["true"], "timeout_s": 0}, "tools.f.timeout_s"),
        ({"command": ["true"], "user": "no-such-user"}, "tools.f.user: there is no user 'no-such-user'"),
        ({"command": ["true"], "user": "-"}, "tools.f.user: there is no user '-'"),
        ({"command": ["true"], "user": ""}, "tools.f.user: String should have at least 1 character"),
        ({"command": ["true"], "shell": True}, "tools.f.shell"),
    ],
)
def test_settings_that_make_no_sense_are_named(tool: dict[str, Any], says: str) -> None:
    with pytest.raises(GatewaySettingsError, match=says):
        load(upstreams=["http://127.0.0.1:1"], tools={"f": tool})


def test_a_gateway_without_the_package_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("andes_api.tools.find_spec", lambda _: None)
    with pytest.raises(GatewaySettingsError, match=r"need the package andes-client: install andes-sglang\[tools\]"):
        load(upstreams=["http://127.0.0.1:1"], tools={"f": {"command": ["true"]}})
    load(upstreams=["http://127.0.0.1:1"])


@pytest.mark.parametrize("capability", ["setuid", "setgid"])
def test_a_gateway_that_may_not_become_a_tools_user_says_so(capability: str) -> None:
    if os.geteuid() == 0 and not shutil.which("setpriv"):
        pytest.skip("root needs setpriv to drop a capability")
    drop = ["setpriv", f"--bounding-set=-{capability}", f"--inh-caps=-{capability}"] if os.geteuid() == 0 else []
    start = "from andes_api.tools import *; print(tool_faults({'f': ToolSettings(command=['true'], user='nobody')}))"
    done = subprocess.run([*drop, sys.executable, "-c", start], capture_output=True, text=True, timeout=600, check=True)
    assert (
        "tools.f.user: this process may not become 'nobody': name one that there is, and run the gateway as root"
        in done.stdout
    )


def test_a_tool_runs_as_its_user(engine: Any, gateway: Any, caplog: pytest.LogCaptureFixture) -> None:
    script = 'read start; read finish; printf \'{"result": "%s"}\\n\' "$(id -un)$(id -Gn)"'
    tools = {"who": {"command": ["sh", "-c", script], "user": "nobody"}}
    try:
        load(upstreams=["http://127.0.0.1:1"], tools=tools)
    except GatewaySettingsError as error:
        pytest.skip(str(error))
    scripted = engine(call("who", "{}"), say("done"))
    try:
        ask(gateway(scripted.url, tools=tools).url, names=("who",))
    except (openai.APIError, httpx.HTTPError) as error:
        pytest.fail(f"{error!r}; the gateway: {caplog.text[-4000:]}", pytrace=False)
    assert scripted.bodies[1]["messages"][-1]["content"].startswith("nobodynogroup"), caplog.text


def test_usage_adds_up() -> None:
    one = {"prompt_tokens": 3, "completion_tokens": 1, "prompt_tokens_details": {"cached_tokens": 2}, "other": "a"}
    two = {"prompt_tokens": 5, "completion_tokens": 4, "prompt_tokens_details": {"cached_tokens": 4}, "other": "b"}
    both = {"prompt_tokens": 8, "completion_tokens": 5, "prompt_tokens_details": {"cached_tokens": 6}, "other": "b"}
    assert added(one, two) == both
    assert added({}, two) == added(two, {}) == added(two, {"prompt_tokens_details": None}) == two


@pytest.mark.parametrize("before", ["Let me see", ""])
def test_who_waits_for_a_tool_says_so_at_both_ends(before: str, engine: Any, gateway: Any, tmp_path: Path) -> None:
    """The reader's score is the client's; what engines can change is not touched by a tool that takes two seconds."""
    program = tmp_path / "slow.py"
    program.write_text('import time\ninput()\ntime.sleep(2)\nprint(\'{"result": "done"}\', flush=True)\n')
    scripted = engine([*(say(before) if before else []), *call("slow", "{}")], say("and so on " * 5))
    server = gateway(scripted.url, tools={"slow": {"command": [sys.executable, str(program)]}})
    client = AndesClient(base_url=server.url + "/v1", api_key="x")
    with client.stream(
        "go", model="scripted", reading_speed=5, first_token_s=0.2, tools=[function("slow")],
        extra_headers={"x-andes-tools": "run"},
    ) as answer:  # fmt: skip
        text = "".join(answer)
    report = answer.gateway_report
    assert text.startswith(before + "and so on")
    assert report is not None
    assert report["tools"][0]["waited_s"] >= 1.5
    assert answer.experience.tokens == report["tokens"]
    assert answer.experience.qoe == pytest.approx(report["qoe"], abs=0.1)
    assert report["served_qoe"] > report["qoe"] + 0.02


def test_engines_are_told_when_a_conversation_returns(engine: Any, gateway: Any, tools: dict[str, Any]) -> None:
    """Where another round may come, by what the tools that it may call have taken."""
    scripted = engine(call("echo", '{"a": 1}'), call("echo", '{"a": 2}'), say("done"))
    server = gateway(scripted.url, tools=tools, tool_rounds=3)
    ask(server.url, names=("echo",))

    def told() -> list[float | None]:
        return [body["custom_params"]["qoe"].get("returns") for body in scripted.bodies]

    first, second, last = told()
    assert first == UNKNOWN_S
    assert second is not None
    assert 0 <= second != UNKNOWN_S
    assert last is None, "it may call no more"
    ask(server.url, names=("echo",), tool_choice="none")
    assert told()[3] is None


def test_a_tools_time_is_a_mean_that_follows_and_the_longest_counts() -> None:
    times = ToolTimes()
    assert times.expected_s(["slow"]) == UNKNOWN_S
    times.learn(["slow", "quick"], 10.0)
    times.learn(["quick"], 5.0)
    assert (times.expected_s(["quick"]), times.expected_s(["quick", "slow"])) == (9.0, 10.0)
    assert times.expected_s(["quick", "new"]) == 9.0
    times.learn(["slow"], 1e6)
    assert times.expected_s(["slow"]) == 600.0
