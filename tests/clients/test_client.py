"""The client against a gateway with a simulated engine, over real HTTP."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from andes_client import AndesClient, AsyncAndesClient, InterruptedAnswerError, Tool, ToolRunner

pytestmark = pytest.mark.server

ANOTHER_SERVER = json.loads((Path(__file__).parents[1] / "fixtures" / "reader.json").read_text())["another_server"]


def client(url: str, **options: Any) -> AndesClient:
    return AndesClient(base_url=url + "/v1", api_key="sk-any", **options)


def test_a_stream_says_what_its_reader_got(simulated: Any, gateway: Any) -> None:
    url = gateway(simulated("--speed", "20").url)
    with client(url).stream(
        "Tell me more.", model="simulated", max_tokens=30, reading_speed=9, first_token_s=2.5
    ) as answer:
        pieces = list(answer)
    assert "".join(pieces) == answer.text
    assert answer.finish_reason == "length"
    assert answer.usage is not None
    assert answer.usage.completion_tokens == answer.experience.tokens == 30
    assert (answer.reader.reading_speed, answer.reader.first_token_s) == (9, 2.5)
    assert 0.0 < answer.experience.qoe <= 1.0
    report = answer.gateway_report
    assert report is not None
    assert (report["tds"], report["ttft_target_s"], report["tokens"]) == (9.0, 2.5, 30)
    assert answer.request_id
    assert answer.model == "simulated"


def test_the_class_says_what_the_caller_does_not(simulated: Any, gateway: Any) -> None:
    url = gateway(simulated("--speed", "20").url)
    with client(url).stream("x", model="simulated", max_tokens=3, klass="agent") as answer:
        list(answer)
    assert (answer.reader.reading_speed, answer.reader.first_token_s) == (20.0, 2.0)


def test_behind_an_engine_without_a_gateway_it_paces_and_scores_all_the_same(simulated: Any) -> None:
    """Forty tokens at 40/s are shown over most of a second, whatever the engine does: it has sent them at once."""
    url = simulated("--speed", "1000").url
    with client(url).stream("x", model="simulated", max_tokens=40, reading_speed=40, pace=True) as answer:
        shown_s = [time.monotonic() for _ in answer]
    assert shown_s[-1] - shown_s[0] >= (40 - 1) / 40 - 0.3
    assert answer.gateway_report is None
    assert answer.experience.tokens == 40


def test_the_asynchronous_client_is_the_same(simulated: Any, gateway: Any) -> None:
    url = gateway(simulated("--speed", "20").url)

    async def ask() -> tuple[list[str], Any]:
        sdk = AsyncAndesClient(base_url=url + "/v1", api_key="sk-any")
        async with await sdk.stream(
            [{"role": "user", "content": "x"}], model="simulated", max_tokens=12, pace=True
        ) as answer:
            return [text async for text in answer], answer

    pieces, answer = asyncio.run(ask())
    assert "".join(pieces) == answer.text
    assert answer.experience.tokens == answer.gateway_report["tokens"] == 12


def test_a_full_service_is_asked_again_when_it_says(simulated: Any, gateway: Any) -> None:
    """One stream is all that the gateway takes; the second is told to come back and does, once the first has gone."""
    url = gateway(simulated().url, max_streams=1)
    held = client(url).stream("x", model="simulated", max_tokens=4000)
    next(iter(held))
    waits: list[tuple[float, str]] = []

    def waiting(seconds: float, reason: str) -> None:
        waits.append((seconds, reason))
        held.close()

    with client(url, max_wait_s=600).stream("x", model="simulated", max_tokens=3, on_wait=waiting) as answer:
        list(answer)
    assert answer.experience.tokens == 3
    assert waits
    assert waits[0][0] > 0
    assert answer.experience.ttft_s is not None
    assert answer.experience.ttft_s > waits[0][0], "the wait counts"

    with client(url).stream("x", model="simulated", max_tokens=4000) as held:
        next(iter(held))
        with pytest.raises(openai.RateLimitError):
            client(url, max_wait_s=0).stream("x", model="simulated", max_tokens=3)


def test_an_answer_that_is_cut_says_so_and_keeps_what_came(simulated: Any, gateway: Any) -> None:
    engine = simulated("--speed", "0.5")
    url = gateway(engine.url, retries=0)
    answer = client(url).stream("x", model="simulated", max_tokens=4000, temperature=1.0)
    pieces = iter(answer)
    came = [next(pieces)]
    os.kill(engine._process.pid, signal.SIGKILL)
    with pytest.raises(InterruptedAnswerError) as caught:
        came.extend(pieces)
    assert caught.value.text == answer.text
    assert answer.text.startswith("".join(came))
    assert caught.value.request_id == answer.request_id
    assert "interrupted after" in str(caught.value)


def test_a_connection_that_breaks_is_an_answer_that_is_cut() -> None:
    """No gateway is there to say so: the transport's own error becomes ours."""
    chunk = b'data: {"id": "x", "object": "chat.completion.chunk", "created": 1, "model": "m", '
    chunk += b'"choices": [{"index": 0, "delta": {"content": "Well"}, "finish_reason": null}]}\n\n'
    head = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"

    def answer_half(listening: socket.socket) -> None:
        connection, _ = listening.accept()
        with connection:
            connection.recv(1 << 16)
            connection.sendall(head + f"{len(chunk):x}\r\n".encode() + chunk + b"\r\n")

    with socket.create_server(("127.0.0.1", 0)) as listening:
        serving = threading.Thread(target=answer_half, args=(listening,))
        serving.start()
        answer = client(f"http://127.0.0.1:{listening.getsockname()[1]}").stream("x", model="m")
        with pytest.raises(InterruptedAnswerError) as caught:
            list(answer)
        serving.join()
    assert caught.value.text == "Well"


def test_reports_tell_the_gateway_what_the_network_cannot(simulated: Any, gateway: Any) -> None:
    """What the engine has said is in this machine's buffers long before the caller has taken it."""
    url = gateway(simulated().url)

    async def ask(**options: Any) -> Any:
        sdk = AsyncAndesClient(base_url=url + "/v1", api_key="sk-any")
        answer = await sdk.stream(
            "x", model="simulated", max_tokens=3000, reading_speed=20, first_token_s=0.1, **options
        )
        pieces = aiter(answer)
        for _ in range(8):
            await anext(pieces)
            await asyncio.sleep(0.5)
        await answer.close()
        return answer

    answer = asyncio.run(ask(report_every_s=0.5))
    assert answer.experience.stalls >= 3
    found = httpx.get(url + "/metrics").text
    assert "andes_gateway_slow_readers_total 1.0" in found
    with pytest.raises(ValueError, match=r"report_every_s must be seconds from 0.1 to 10, or None, got 60"):
        client(url).stream("x", model="simulated", report_every_s=60)
    with client(url).stream("x", model="simulated", max_tokens=20, report_every_s=0.1) as answer:
        assert "".join(answer) == answer.text


@pytest.fixture
def another_server() -> Iterator[str]:
    """The address of a server that fails once, and then leaves out of its chunks what can be left out."""
    asked = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["content-length"]))
            asked.append(self.path)
            failed = len(asked) == 1
            body = "<html>bad gateway</html>" if failed else "".join(f"{e}\n\n" for e in ANOTHER_SERVER["events"])
            self.send_response(502 if failed else 200)
            self.send_header("content-type", "text/html" if failed else "text/event-stream")
            if failed:
                self.send_header("retry-after", "0")
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body.encode())

        def log_message(self, *_: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def test_another_server_and_calls_of_tools(another_server: str) -> None:
    chunks: list[Any] = []
    with client(another_server).stream(
        "x", model="m", thinking_speed=1, first_token_s=0, on_chunk=chunks.append, extra_headers=None
    ) as answer:
        assert "".join(answer) == answer.text == ANOTHER_SERVER["text"]
    assert answer.finish_reason == "tool_calls"
    assert answer.experience.qoe == 1.0, f"patience for {ANOTHER_SERVER['thought']}"
    assert len(chunks) == len(ANOTHER_SERVER["events"]) - 2, "of a comment and the end there is no chunk"

    def failing(_: Any) -> None:
        raise LookupError("the caller's own")

    with client(another_server).stream("x", model="m", on_chunk=failing) as answer, pytest.raises(LookupError):
        list(answer)


def test_tools_start_while_an_answer_is_read(another_server: str, tmp_path: Path) -> None:
    program = tmp_path / "weather.py"
    program.write_text(
        "from andes_client import serve\n"
        "class Weather:\n"
        "    def process_new_data(self, text): pass\n"
        "    def finish(self, arguments): return 'rain in ' + arguments['city']\n"
        "serve(Weather)\n"
    )

    async def ask() -> list[Any]:
        runner = ToolRunner({"weather": Tool([sys.executable, str(program)])})
        sdk = AsyncAndesClient(base_url=another_server + "/v1", api_key="sk-any")
        async with await sdk.stream("x", model="m", on_chunk=runner.feed) as answer:
            assert "".join([text async for text in answer]) == ANOTHER_SERVER["text"]
        return await runner.results()

    assert [result.text for result in asyncio.run(ask())] == ["rain in Oslo", "rain in Rome"]
