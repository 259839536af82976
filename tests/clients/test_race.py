"""A second device against simulated engines over real HTTP. They say the same to the same question, so that what two wrote
must read as what one would have written."""

from __future__ import annotations

import asyncio
import functools
import math
import os
import signal
import threading
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

import openai
import pytest

from andes_client import AsyncAndesClient, InterruptedAnswerError, Part, Race, RacedAnswer, Reader, race
from andes_client.race_history import Plan
from andes_client.writers import Request, writer_of
from andes_sglang.bench.engine import Engine
from andes_sglang.bench.ports import free_port

pytestmark = pytest.mark.server
OPENED: list[openai.AsyncOpenAI] = []
COUNTED = {"stream_options": {"include_usage": True, "continuous_usage_stats": True}}


def in_a_loop(test: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
    """Its clients are closed in the loop that they were used in."""

    async def whole(arguments: dict[str, Any]) -> None:
        try:
            await test(**arguments)
        finally:
            while OPENED:
                await OPENED.pop().close()

    @functools.wraps(test)
    def run(**arguments: Any) -> None:
        asyncio.run(whole(arguments))

    return run


def sdk(url: str) -> openai.AsyncOpenAI:
    OPENED.append(openai.AsyncOpenAI(base_url=url + "/v1", api_key="sk-any", max_retries=0))
    return OPENED[-1]


@pytest.fixture(scope="module")
def engines(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, str]]:
    """A fast one and a slow one; both write faster than a reader of 20 tokens/s reads."""
    folder = tmp_path_factory.mktemp("race")
    with (
        Engine("simulated", "andes", ("--engine", "sim", "--speed", "20"), log=folder / "fast.log") as fast,
        Engine("simulated", "andes", ("--engine", "sim", "--speed", "4"), log=folder / "slow.log") as slow,
    ):
        yield fast.url, slow.url


@pytest.fixture(scope="module")
def whole(engines: tuple[str, str]) -> str:
    """What one engine says."""
    said = []

    @in_a_loop
    async def ask() -> None:
        asked = AsyncAndesClient(sdk(engines[0])).stream("Tell me.", model="simulated", max_tokens=80)
        async with await asked as answer:
            said.extend([text async for text in answer])

    ask()
    return "".join(said)


def raced(local: Any, remote: Any, **options: Any) -> Race:
    names = {
        f"{side}_model": "simulated" for side, source in (("local", local), ("remote", remote)) if not callable(source)
    }
    return race(local, remote, **names, **{"allow_other_model": True, **options})


async def read(of: Race, *, stop_after: int | None = None, **options: Any) -> tuple[RacedAnswer, str]:
    pieces = []
    async with of.stream("Tell me.", max_tokens=80, **COUNTED, **options) as answer:
        async for text in answer:
            pieces.append(text)
            if len(pieces) == stop_after:
                break
    assert answer.text == "".join(pieces)
    return answer, answer.text


class Silent:
    """Takes connections and says nothing."""

    async def __aenter__(self) -> str:
        self.gone = asyncio.Event()
        self.server = await asyncio.start_server(self._take, "127.0.0.1", 0)
        return f"http://127.0.0.1:{self.server.sockets[0].getsockname()[1]}"

    async def _take(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while await reader.read(1 << 16):
            pass
        self.gone.set()
        writer.close()

    async def __aexit__(self, *_: object) -> None:
        self.server.close()


@in_a_loop
async def test_a_silent_server_is_hung_up_on_when_the_device_speaks(engines: tuple[str, str], whole: str) -> None:
    server = Silent()
    async with server as url:
        answer, text = await read(raced(sdk(engines[0]), sdk(url), wait_s=0.01))
        await server.gone.wait()
    assert text == whole
    assert answer.parts == [Part("local", "simulated", 0, len(whole), "race")]
    assert (answer.cost.local, answer.cost.remote, answer.cost.spared) == (80, 0, 80)
    assert answer.finish_reason == "length"
    assert answer.experience.tokens == 80
    assert answer.experience.ttft_s is not None


@in_a_loop
async def test_a_server_that_cannot_be_reached_is_not_waited_for(engines: tuple[str, str], whole: str) -> None:
    answer, text = await read(raced(sdk(engines[0]), sdk(f"http://127.0.0.1:{free_port()}"), wait_s=1e6))
    assert (text, [part.writer for part in answer.parts]) == (whole, ["local"])


@pytest.mark.parametrize("finish_by", ["local", "remote"])
@in_a_loop
async def test_the_rest_is_handed_over_and_reads_as_one(engines: tuple[str, str], whole: str, finish_by: str) -> None:
    """Who writes first has 40 tokens, and writes on only once nothing else can come."""
    hung_up = asyncio.Event()

    async def simulated(messages: Any) -> AsyncIterator[str]:
        for k in range(40):
            yield whole[4 * k : 4 * k + 4]
        try:
            await asyncio.Event().wait()
        finally:
            hung_up.set()

    engine = sdk(engines[0])
    of = (
        raced(engine, simulated, finish_by="local")
        if finish_by == "local"
        else raced(simulated, engine, finish_by="remote")
    )
    first = "remote" if finish_by == "local" else "local"
    of.plan = lambda *_: Plan(first, 1e6)  # type: ignore[method-assign]
    pieces = []
    async with of.stream("Tell me.", reading_speed=20, **COUNTED) as answer:
        async for text in answer:
            pieces.append(text)
            if len("".join(pieces)) >= len(whole):
                break
    await hung_up.wait()
    assert "".join(pieces)[: len(whole)] == whole
    assert [(part.writer, part.why) for part in answer.parts] == [(first, "race"), (finish_by, "hand-over")]
    assert (answer.parts[0].end, answer.parts[1].end) == (answer.parts[1].start, len("".join(pieces)))
    handed_at = answer.parts[0].end // 4
    assert 20 * (1.0 + 0.25) <= handed_at <= 40
    assert handed_at <= getattr(answer.cost, first) <= 40
    assert answer.cost.spared == answer._rules.tokens - answer.cost.remote


@in_a_loop
async def test_a_server_that_dies_inside_an_answer_is_gone_on_for(
    simulated: Callable[..., Engine], engines: tuple[str, str], whole: str
) -> None:
    engine = simulated("--speed", "0.05")
    of, pieces = raced(sdk(engines[0]), sdk(engine.url), wait_s=1e6), []
    async with of.stream("Tell me.", max_tokens=80, **COUNTED) as answer:
        async for text in answer:
            pieces.append(text)
            if len(pieces) == 3:
                assert engine._process is not None
                os.kill(engine._process.pid, signal.SIGKILL)
    assert "".join(pieces) == whole
    assert [(part.writer, part.why) for part in answer.parts] == [("remote", "race"), ("local", "rescue")]
    assert answer.cost.local > 0


@in_a_loop
async def test_a_paced_answer_is_paced_whichever_device_writes(engines: tuple[str, str], whole: str) -> None:
    answer, text = await read(raced(sdk(engines[0]), sdk(engines[1]), wait_s=0), reading_speed=200, pace=True)
    assert text == whole
    assert (answer.experience.tokens, answer.text) == (80, whole)


def counting(calls: list[list[Any]]) -> Callable[[Any], AsyncIterator[str]]:
    """A device that counts from what it has said."""

    async def generate(messages: Any) -> AsyncIterator[str]:
        calls.append(list(messages))
        said = messages[-1]["content"] if messages[-1]["role"] == "assistant" else ""
        for k in range(len(said.split()), 80):
            yield f"{k} "

    return generate


@in_a_loop
async def test_a_function_can_be_the_device_and_goes_on_with_what_was_said(engines: tuple[str, str]) -> None:
    calls: list[list[Any]] = []
    of = raced(counting(calls), sdk(engines[0]), wait_s=0, local_model="counter")
    answer, text = await read(of)
    assert text == "".join(f"{k} " for k in range(80))
    assert answer.parts == [Part("local", "counter", 0, len(text), "race")]
    generate = of._writers["local"]._generate  # type: ignore[attr-defined]
    assert await anext(generate([{"role": "assistant", "content": "0 1 2"}])) == "3 "
    assert calls[0] == [{"role": "user", "content": "Tell me."}]


@in_a_loop
async def test_a_model_in_this_process_may_block_and_is_stopped_when_it_is_not_wanted(engines: tuple[str, str]) -> None:
    stopped, go = threading.Event(), threading.Event()

    def generate(messages: Any) -> Iterator[str]:
        try:
            yield "a "
            go.wait(60)
            yield "b "
        finally:
            stopped.set()

    of = raced(generate, sdk(f"http://127.0.0.1:{free_port()}"), wait_s=0)
    threading.Timer(0.2, go.set).start()
    answer, text = await read(of, stop_after=1)
    assert text == "a "
    await asyncio.to_thread(stopped.wait, 60)
    assert answer.parts[0].model == "generate"
    of = raced(generate, sdk(engines[0]), wait_s=0)
    assert (await read(of))[0].finish_reason in ("stop", "length")


@in_a_loop
async def test_a_thought_is_no_text_that_a_reader_has_left(tmp_path: Path) -> None:
    """Else a writer that falls silent after a thought would not be replaced before the thought had been read."""
    flags = ("--engine", "sim", "--speed", "20", "--thought-tokens", "4000")
    options = {"max_tokens": 80, **COUNTED, "extra_body": {"custom_params": {"thinking_budget": 50}}}
    with Engine("simulated", "andes", flags, log=tmp_path / "thinks.log") as engine:
        writer = writer_of(sdk(engine.url), "simulated", "remote", 0.0)
        asked = [{"role": "user", "content": "Tell me."}]
        request = Request(asked, "", 0, Reader(), options, lambda *_: None, lambda _: None)
        pieces = [piece async for piece in writer.write(request)]
    assert sum(piece.tokens for piece in pieces) == 30


@in_a_loop
async def test_a_reader_has_patience_for_a_thought_of_who_begins(tmp_path: Path) -> None:
    flags = ("--engine", "sim", "--speed", "20", "--thought-tokens", "4000")
    options = {"extra_body": {"custom_params": {"thinking_budget": 50}}}
    with Engine("simulated", "andes", flags, log=tmp_path / "thinks.log") as engine:
        of = raced(lambda _: iter(["never asked"]), sdk(engine.url), wait_s=600.0)
        answer, _ = await read(of, first_token_s=0.0, reading_speed=2.0, **options)
    assert answer._timeline is not None
    impatient = answer._timeline.experience(first_token_s=0.0, reading_speed=2.0, tokens=answer.experience.tokens)
    assert answer.experience.tokens == 30
    assert impatient.qoe < answer.experience.qoe


@in_a_loop
async def test_both_gone_is_an_error_that_names_both() -> None:
    def broken(messages: Any) -> Iterator[str]:
        yield "Well, "
        raise RuntimeError("out of battery")

    with pytest.raises(InterruptedAnswerError, match=r"local: out of battery") as caught:
        await read(raced(broken, sdk(f"http://127.0.0.1:{free_port()}"), wait_s=0, max_wait_s=0))
    assert "remote: Connection error" in str(caught.value)
    assert caught.value.text == "Well, "


@in_a_loop
async def test_only_classes_that_allow_it_are_raced(engines: tuple[str, str]) -> None:
    calls: list[list[Any]] = []
    of = raced(counting(calls), sdk(engines[0]), wait_s=0, allow_other_model=["reading"], local_model="counter")
    answer, _ = await read(of)
    assert ([part.writer for part in answer.parts], calls) == (["remote"], [])
    await read(of, klass="reading")
    assert len(calls) == 1


@in_a_loop
async def test_what_was_seen_is_remembered(engines: tuple[str, str]) -> None:
    of = raced(sdk(engines[0]), sdk(engines[1]))
    for _ in range(2):
        await read(of)
    assert len(of.history._server_s) + len(of.history._device_s) >= 2
    assert all(0 < seconds < 60 for seconds in of.history._server_s)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"wait_s": -1}, "wait_s must be seconds from 0, got -1"),
        ({"wait_s": math.nan}, "wait_s must be seconds from 0, got nan"),
        ({"wait_s": True}, "wait_s must be seconds from 0, got True"),
        ({"max_wait_s": "long"}, "max_wait_s must be seconds from 0, got 'long'"),
        ({"share": 1.1}, "share must be a number from 0 to 1, got 1.1"),
        ({"finish_by": "me"}, "finish_by must be 'local', 'remote' or None, got 'me'"),
        ({"allow_other_model": "reading"}, "allow_other_model must be True, False or a list of classes, got 'reading'"),
        (
            {"allow_other_model": False},
            "allow_other_model must be True, or name classes: 'small' would write for 'large'",
        ),
        ({"local_model": None}, "local_model must name the model"),
        ({"local": openai.OpenAI(api_key="any")}, "local must be asynchronous: openai.AsyncOpenAI, got openai.OpenAI"),
        ({"remote": 7}, "remote must be an openai.AsyncOpenAI, an AsyncAndesClient or a function, got 7"),
    ],
)
def test_arguments_that_make_no_sense_are_named(options: dict[str, Any], said: str) -> None:
    good = {"local": sdk("http://a"), "remote": sdk("http://b"), "local_model": "small", "remote_model": "large"}
    with pytest.raises(ValueError, match=said.replace("(", r"\(")):
        race(**{**good, "allow_other_model": True, **options})  # type: ignore[arg-type]


@in_a_loop
async def test_an_answer_is_one_stream_of_two_known_models() -> None:
    of = raced(sdk("http://a"), sdk("http://b"))
    for name in ("model", "n", "stream"):
        with pytest.raises(ValueError, match=f"{name} cannot be given"):
            of.stream("x", **{name: 1})
    for name in ("tools", "tool_choice", "response_format", "on_wait", "on_chunk"):
        with pytest.raises(ValueError, match=f"{name} cannot be raced"):
            of.stream("x", **{name: [1]})
    of.stream("x", tools=None)
    for messages in (None, 5, [1], {"role": "user"}):
        with pytest.raises(ValueError, match="messages must be text or a list of messages, got "):
            of.stream(messages)  # type: ignore[arg-type]
    with pytest.raises(RuntimeError, match="async with"):
        await anext(aiter(of.stream("x")))
