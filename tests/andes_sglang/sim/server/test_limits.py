"""A small engine under pressure: full queues, aborts, preemption, drain; and mistakes on its command line."""

from __future__ import annotations

import asyncio
import signal
import socket
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from andes_sglang.cli import main
from andes_sglang.metrics import EngineMetrics
from andes_sglang.policy import PolicyError
from andes_sglang.request import RequestSpec
from andes_sglang.sim import profile
from andes_sglang.sim.server.live import LiveReplica

HELLO: Any = [{"role": "user", "content": "Hello"}]
LONG: Any = {"max_tokens": 7000, "ignore_eos": True, "stream": True}


@pytest.fixture(scope="module")
def engine(simulated: Callable[..., Any]) -> Any:
    flags = ("--max-running-requests", "2", "--max-queued-requests", "2", "--max-total-tokens", "8192")
    return simulated("--policy", "fcfs", "--served-model-name", "small", *flags)


def loads(engine: Any) -> tuple[int, int]:
    load = engine.get("/v1/loads")["loads"][0]
    return load["num_running_reqs"], load["num_waiting_reqs"]


def until(engine: Any, running: int, waiting: int) -> None:
    deadline = time.monotonic() + 60
    while loads(engine) != (running, waiting):
        assert time.monotonic() < deadline, loads(engine)


def draining(engine: Any) -> None:
    deadline = time.monotonic() + 60
    while httpx.get(engine.url + "/health").status_code != 503:
        assert time.monotonic() < deadline


@contextmanager
def crowd(engine: Any) -> Iterator[None]:
    """Two streams run and two wait: the engine is full."""
    with ThreadPoolExecutor(4) as pool, httpx.Client(timeout=120) as client:

        def read(k: int) -> str:
            body = {"prompt": f"stream {k}", "rid": f"stream-{k}", **LONG}
            return client.post(engine.url + "/v1/completions", json=body).text

        ends = [pool.submit(read, k) for k in range(2)]
        until(engine, 2, 0)
        ends += [pool.submit(read, k) for k in range(2, 4)]
        until(engine, 2, 2)
        yield
        assert engine.post("/abort_request", {"rid": "stream-"}) == (200, None)
        for end in ends:
            assert '"finish_reason":"abort"' in end.result()
            assert end.result().endswith("data: [DONE]\n\n")
    until(engine, 0, 0)


def test_a_full_queue_turns_away_as_sglang_does(engine: Any) -> None:
    with crowd(engine):
        status, error = engine.post("/v1/completions", {"prompt": "x"})
        assert (status, error["message"], error["code"]) == (503, "The request queue is full.", 503)
        for path, body in (("/v1/completions", {"prompt": "x"}), ("/v1/chat/completions", {"messages": HELLO})):
            answer = httpx.post(engine.url + path, json={**body, "stream": True})
            assert answer.status_code == 200
            error = '"message":"The request queue is full.","type":"SERVICE_UNAVAILABLE","param":null,"code":503'
            assert answer.text == f'data: {{"error":{{"object":"error",{error}}}}}\n\ndata: [DONE]\n\n'
        answer = httpx.post(engine.url + "/generate", json={"text": "x", "stream": True})
        assert '"status_code":503' in answer.text
        with openai.OpenAI(base_url=engine.url + "/v1", api_key="none", max_retries=0) as client:
            with pytest.raises(openai.InternalServerError) as caught:
                client.chat.completions.create(model="small", messages=HELLO)
            assert caught.value.status_code == 503
            with pytest.raises(openai.APIError, match="The request queue is full"):
                list(client.chat.completions.create(model="small", messages=HELLO, stream=True))


def test_bad_aborts_are_refused(engine: Any) -> None:
    for body, says in (({}, "rid must be the id of a request, got None"), ({"abort_all": 1}, "abort_all must be true")):
        status, error = engine.post("/abort_request", body)
        assert status == 400
        assert says in error["message"]


def test_a_prompt_that_never_fits_is_refused(engine: Any) -> None:
    status, error = engine.post("/v1/completions", {"prompt": [5] * 8170, "max_tokens": 9})
    assert status == 400
    assert "Input length (8170 tokens) exceeds the maximum allowed length (8159 tokens)." in error["message"]
    assert engine.post("/v1/completions", {"prompt": [5] * 8150, "max_tokens": 9, "ignore_eos": True})[0] == 200


def test_streams_that_take_turns_lose_nothing(simulated: Callable[..., Any]) -> None:
    flags = ("--policy", "round_robin", "--policy-option", "slice_tokens=20", "--max-running-requests", "2")
    engine = simulated(*flags, "--max-total-tokens", "900", "--speed", "2")
    body = {"max_tokens": 150, "ignore_eos": True}
    with ThreadPoolExecutor(6) as pool:
        answers = list(pool.map(lambda k: engine.post("/v1/completions", {"prompt": f"turn {k}", **body}), range(6)))
    alone = [engine.post("/v1/completions", {"prompt": f"turn {k}", **body}) for k in range(6)]
    assert [a["choices"] for _, a in answers] == [a["choices"] for _, a in alone]
    assert engine.figure("andes_preemptions_total") > 5
    assert engine.figure("andes_resumes_total") == engine.figure("andes_preemptions_total")
    assert engine.figure("andes_request_qoe_count") == 12


def test_told_to_stop_it_finishes_what_has_begun(simulated: Callable[..., Any]) -> None:
    engine = simulated()
    body = {"prompt": "x", "max_tokens": 900, "ignore_eos": True, "stream": True}
    with httpx.stream("POST", engine.url + "/v1/completions", json=body) as answer:
        lines = answer.iter_lines()
        next(lines)
        engine.process.send_signal(signal.SIGTERM)
        draining(engine)
        assert engine.post("/v1/completions", {"prompt": "y"})[1]["message"] == "The server is shutting down."
        events = [line for line in lines if line]
    assert '"finish_reason":"length"' in events[-2]
    assert events[-1] == "data: [DONE]"
    assert len(events) <= 900
    assert engine.process.wait(60) == 0


@pytest.mark.parametrize(
    ("path", "last"),
    [("/v1/completions", ('"error":{', "data: [DONE]")), ("/v1/messages", ('"type":"error"', '"message_stop"'))],
)
def test_told_twice_it_ends_every_stream_with_an_error(
    path: str, last: tuple[str, str], simulated: Callable[..., Any]
) -> None:
    engine = simulated()
    prompt = {"messages": [{"role": "user", "content": "x"}]} if "messages" in path else {"prompt": "x"}
    body = {**prompt, "model": "m", "max_tokens": 100_000, "ignore_eos": True, "stream": True}
    with httpx.stream("POST", engine.url + path, json=body) as answer:
        lines = answer.iter_lines()
        next(lines)
        engine.process.send_signal(signal.SIGINT)
        draining(engine)
        engine.process.send_signal(signal.SIGINT)
        data = [line for line in lines if line.startswith("data")]
    assert "The server is shutting down." in data[-2]
    for line, expected in zip(data[-2:], last, strict=True):
        assert expected in line
    assert sum("message_start" in line for line in data) <= 1
    assert engine.process.wait(60) == 0


def test_a_reader_who_takes_nothing_does_not_keep_it_from_leaving(simulated: Callable[..., Any]) -> None:
    engine = simulated()
    body = {"prompt": "x", "max_tokens": 100_000, "ignore_eos": True, "stream": True}
    with httpx.stream("POST", engine.url + "/v1/completions", json=body) as answer:
        lines = answer.iter_lines()  # kept: its end would close the stream
        next(lines)
        engine.process.send_signal(signal.SIGINT)
        draining(engine)
        engine.process.send_signal(signal.SIGINT)
        assert engine.process.wait(60) == 0


def test_a_policy_that_fails_ends_the_engine() -> None:
    class Broken:
        name = "broken"

        def decide(self, _state: object) -> Any:
            raise ZeroDivisionError

    class Nobody:
        def tokens(self, count: int, gap_s: float) -> None: ...
        def first(self, answer: object, ttft_s: float) -> None: ...
        def ended(self, answer: object, e2e_s: float) -> None: ...

    async def serve() -> None:
        live = LiveReplica(profile.load("cpu-tiny-llama").engine, Broken(), metrics=EngineMetrics(), observer=Nobody())
        live.submit("x", lambda now_s: [RequestSpec(now_s, 5, 5)], stream=True)
        await asyncio.wait_for(live.run(), 60)

    with pytest.raises(PolicyError, match=r"policy 'broken'.* raised ZeroDivisionError"):
        asyncio.run(serve())


def test_mistakes_are_named_before_anything_starts(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "bad.toml").write_text("hardware = 3")
    with socket.socket() as busy:
        busy.bind(("127.0.0.1", 0))
        busy.listen()
        for flags, says in (
            (("--profile", "abacus"), "--profile: profile 'abacus': not known; give a .toml file or one of a100-"),
            (("--profile", str(tmp_path / "bad.toml")), "bad.toml: needs one of the tables"),
            (("--policy", "magic"), "--policy magic: unknown policy 'magic'; choose one of alise, andes"),
            (("--policy", "stock", "--policy-option", "a=1"), "policy stock has no options"),
            (("--policy", "stock", "--preemption-mode", "offload"), "policy stock preempts no request"),
            (
                ("--otlp-traces-endpoint", "http://c:4318"),
                "--otlp-traces-endpoint http://c:4318: goes with --enable-trace",
            ),
            (("--policy-option", "horizon_s=-1"), "horizon_s must be > 0"),
            (("--default-tds", "0"), "--default-tds: tds must be"),
            (("--port", str(busy.getsockname()[1])), "cannot listen there (Address already in use)"),
            (("--port", "70000"), "--port 70000: cannot listen there"),
            (("--host", "256.0.0.1"), "--host 256.0.0.1 --port 30000: cannot listen there"),
            (("--max-total-tokens", "20"), "--max-total-tokens 20: must be at least 34"),
            (("--mem-fraction-static", "0.9"), "--mem-fraction-static: the simulated engine has no such flag"),
        ):
            assert main(["serve", "--engine", "sim", *flags]) == 2
            assert says in capsys.readouterr().err
    for flags, says in (
        (("--speed", "0"), "--speed: must be a number > 0, got '0'"),
        (("--max-running-requests", "1.5"), "--max-running-requests: must be a whole number >= 1, got '1.5'"),
        (("--engine", "steam"), "--engine: invalid choice: 'steam'"),
    ):
        with pytest.raises(SystemExit):
            main(["serve", "--engine", "sim", *flags])
        assert says in capsys.readouterr().err


def test_a_heavier_stream_is_served_before_a_lighter_one(simulated: Callable[..., Any]) -> None:
    """One place, taken; of two streams that wait for it the heavier one is served first, whichever came first."""
    engine = simulated("--policy", "andes", "--max-running-requests", "1", "--max-total-tokens", "8192")
    url = engine.url + "/v1/completions"

    def first_event_s(weight: float) -> float:
        qoe = {"ttft": 1.0, "tds": 20.0, "weight": weight, "tokens": 40}
        body = {"prompt": f"weight {weight}", **LONG, "max_tokens": 40, "custom_params": {"qoe": qoe}}
        with httpx.stream("POST", url, json=body, timeout=120) as answer:
            next(answer.iter_lines())
            return time.monotonic()

    for order in ((0.01, 100.0), (100.0, 0.01)):
        with ThreadPoolExecutor(2) as pool, httpx.stream("POST", url, json={"prompt": "x", **LONG}, timeout=120):
            until(engine, 1, 0)
            first = pool.submit(first_event_s, order[0])
            while not first.done() and sum(loads(engine)) < 2:
                pass
            at_s = {order[0]: first, order[1]: pool.submit(first_event_s, order[1])}
            assert at_s[100.0].result() < at_s[0.01].result()
        until(engine, 0, 0)


def test_a_weight_out_of_range_is_refused_with_field_and_value(engine: Any) -> None:
    status, error = engine.post("/v1/completions", {"prompt": "x", "custom_params": {"qoe": {"weight": 0}}})
    assert status == 400
    assert "custom_params.qoe.weight must be a number from 0.001 to 1000, got 0" in error["message"]
