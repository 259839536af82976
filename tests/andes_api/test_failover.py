"""Replicas that refuse, stop, fall silent, are full or die, over real HTTP: readers get what one sound engine would have said.

Engines are simulated ones in processes of their own; ``faulty`` stands in only where no engine can be made to misbehave so.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import time
from typing import Any

import httpx
import pytest

from andes_sglang.qoe import QoETarget
from andes_sglang.sim.server.bodies import Limits, read_chat, read_completion
from andes_sglang.sim.server.choice import plan

LIMITS = Limits(1 << 20, 1 << 20, 256.0, QoETarget(1.0, 4.8))
pytestmark = pytest.mark.server

BODY: dict[str, Any] = {"model": "m", "prompt": "say", "max_tokens": 6, "temperature": 0, "stream": True}
ANSWER = "".join(f"w{k} x" for k in range(6))
ASK: dict[str, Any] = {"model": "simulated", "temperature": 0, "ignore_eos": True, "stream": True}


def said(answer: httpx.Response) -> str:
    """The text of a stream."""
    events = [json.loads(line[6:]) for line in answer.text.split("\n\n") if line.startswith("data: {")]
    choices = [choice for event in events for choice in event.get("choices", ())]
    return "".join(c.get("text") or (c.get("delta") or {}).get("content") or "" for c in choices)


def undisturbed(body: dict[str, Any]) -> str:
    """What a simulated engine answers."""
    asked = read_chat(body, LIMITS) if "messages" in body else read_completion(body, LIMITS)
    choice = plan(asked, asked.prompts[0], 0, LIMITS)
    return choice.text(0, choice.tokens)


def ask(server: Any, body: dict[str, Any] = BODY, path: str = "/v1/completions") -> httpx.Response:
    return httpx.post(server.url + path, json=body, timeout=120)


def replicas(server: Any) -> dict[str, dict[str, Any]]:
    found = httpx.get(server.url + "/fleet/replicas").json()["replicas"]
    return {"http://" + r["name"]: r for r in found}


def last_record(server: Any) -> dict[str, Any]:
    return dict(httpx.get(server.url + "/fleet/demand").json()["records"][-1])


@pytest.mark.parametrize("fault", ["404", "401", "400", "500", "302", "empty", "end"])
def test_a_replica_that_refuses_at_once_takes_no_traffic(fault: str, faulty: Any, gateway: Any) -> None:
    bad, good = faulty(), faulty()
    bad.fault = fault
    enough = 3 if fault in ("404", "401", "302") else 2  # once is enough where the door itself is wrong
    server = gateway(bad.url, good.url, policy="round_robin", breaker_failures=enough, breaker_cooldown_s=600)
    answers = [ask(server) for _ in range(20)]
    assert {a.status_code for a in answers} == {200}
    assert {said(a) for a in answers} == {ANSWER}
    assert len(bad.bodies) == (1 if enough == 3 else 2)
    at_fault, sound = replicas(server)[bad.url], replicas(server)[good.url]
    assert (at_fault["healthy"], at_fault["breaker_open"]) == (False, True)
    assert at_fault["reason"].endswith("where another answers")
    assert (sound["reason"], sound["breaker_open"]) == (None, False)


@pytest.mark.parametrize("status", ["400", "404", "413"])
def test_a_request_that_every_replica_refuses_blames_none(status: str, faulty: Any, gateway: Any) -> None:
    one, other = faulty(), faulty()
    one.fault = other.fault = status
    server = gateway(one.url, other.url, breaker_failures=1)
    for _ in range(5):
        answer = ask(server)
        assert (answer.status_code, answer.json()["error"]["message"]) == (int(status), "said so")
    one.fault = other.fault = None
    assert ask(server).status_code == 200
    assert not any(r["breaker_open"] or r["reason"] for r in replicas(server).values())
    assert (len(one.bodies), len(other.bodies)) != (0, 0)


def test_a_replica_that_is_full_is_asked_last(faulty: Any, gateway: Any) -> None:
    full, free = faulty(), faulty()
    full.fault = "429"
    server = gateway(full.url, free.url, policy="round_robin")
    assert {ask(server).status_code for _ in range(10)} == {200}
    assert len(full.bodies) < 10 / 2
    assert not replicas(server)[full.url]["breaker_open"]


@pytest.mark.parametrize(("sign", "chat"), [(signal.SIGSTOP, True), (signal.SIGKILL, False)], ids=["stopped", "killed"])
def test_readers_of_a_dead_engine_get_the_rest_to_the_letter(
    sign: signal.Signals, chat: bool, simulated: Any, gateway: Any
) -> None:
    """Stopped: found by its silence in seconds, far below ``stream_idle_s``; those that wait for their first token too."""
    doomed, other = simulated("--max-running-requests", "8"), simulated()
    server = gateway(doomed.url, other.url, policy="round_robin", admission=False)
    path = "/v1/chat/completions" if chat else "/v1/completions"

    def body(k: int) -> dict[str, Any]:
        prompt = {"messages": [{"role": "user", "content": f"Tell me {k}."}]} if chat else {"prompt": f"Tell me {k}."}
        return {**ASK, **prompt, "max_tokens": 400 + k, "stream_options": {"include_usage": True}}

    async def main() -> list[httpx.Response]:
        async with httpx.AsyncClient(timeout=120) as http:
            tasks = [asyncio.create_task(http.post(server.url + path, json=body(k))) for k in range(24)]
            streams = server.app.state.gateway.open
            while len(streams) < 24 or sum(s.reader.delivered > 5 for s in list(streams)) < 20:
                await asyncio.sleep(0.01)
            os.killpg(doomed._process.pid, sign)
            return list(await asyncio.gather(*tasks))

    begun_s = time.monotonic()
    try:
        answers = asyncio.run(main())
    finally:
        os.killpg(doomed._process.pid, signal.SIGCONT) if sign is signal.SIGSTOP else None
    assert time.monotonic() - begun_s < 100
    for k, answer in enumerate(answers):
        assert said(answer) == undisturbed(body(k)), k
        events = [line[6:] for line in answer.text.split("\n\n") if line.startswith("data: {")]
        usage = json.loads(events[-1])["usage"]
        assert usage["completion_tokens"] == 400 + k
        assert len({json.loads(event)["id"] for event in events}) == 1
        assert answer.text.endswith("data: [DONE]\n\n")
    records = httpx.get(server.url + "/fleet/demand").json()["records"]
    assert {r["outcome"] for r in records} == {"done"}


def test_a_dead_engine_without_another_keeps_its_readers(faulty: Any, gateway: Any) -> None:
    """Nothing is gained by giving up: it may go on."""
    upstream = faulty()
    upstream.fault, upstream.after = "stall", 2
    server = gateway(upstream.url, hold_s=0)
    stream = server.app.state.gateway

    async def main() -> httpx.Response:
        async with httpx.AsyncClient(timeout=60) as http:
            task = asyncio.create_task(http.post(server.url + "/v1/completions", json=BODY))
            while not upstream.stalled.is_set():
                await asyncio.sleep(0.01)
            (relay,) = stream._relays.values()
            replica = next(iter(stream.upstreams.replicas.values()))
            replica.unanswered_since_s = now_s = time.monotonic()
            relay.end_silent_upstream(now_s + 60)
            upstream.release.set()
            return await task

    assert said(asyncio.run(main())) == ANSWER


@pytest.mark.parametrize("steady_s", [0.0, 600.0])
def test_a_long_answer_outlives_its_engines_again_and_again(
    steady_s: float, faulty: Any, gateway: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each talks nonsense after three words; unless it had gone well for long, that counts as one row of failures."""
    monkeypatch.setattr("andes_api.relay.STEADY_S", steady_s)
    fleet = faulty(), faulty()
    for upstream in fleet:
        upstream.fault, upstream.after = "garbage", 3
    server = gateway(*(u.url for u in fleet), retries=1, breaker_failures=100)
    answer = ask(server, {**BODY, "max_tokens": 12})
    if steady_s == 0:
        assert said(answer) == "".join(f"w{k} x" for k in range(12))
        assert [len(u.bodies) for u in fleet] == [2, 2]
    else:
        assert said(answer) == ANSWER
        assert "the engine failed" in answer.text


@pytest.mark.parametrize("chatter", ["comment", "space", "role"])
def test_what_is_no_token_is_silence(chatter: str, faulty: Any, gateway: Any) -> None:
    bad, good = faulty(), faulty()
    bad.fault, bad.after = chatter, 2
    server = gateway(bad.url, good.url, policy="round_robin", stream_idle_s=0.5)
    answer = ask(server)
    assert said(answer).replace(" ", "") == ANSWER.replace(" ", "")
    assert answer.text.endswith("data: [DONE]\n\n")
    assert bad.cancelled.wait(60)


def test_a_full_engine_says_when_to_come_back(simulated: Any, gateway: Any) -> None:
    engine = simulated("--max-running-requests", "2", "--max-queued-requests", "1", "--max-total-tokens", "8192")
    server = gateway(engine.url, admission=False)
    body = {**ASK, "prompt": "more", "max_tokens": 1000}

    async def main() -> list[httpx.Response]:
        async with httpx.AsyncClient(timeout=120) as http:
            tasks = []
            for k in range(3):
                more = {**body, "prompt": f"more {k}"}
                tasks.append(asyncio.create_task(http.post(server.url + "/v1/completions", json=more)))
                while len(server.app.state.gateway.open) <= k or json.loads(engine.get("/v1/loads"))["loads"][0][
                    "num_running_reqs"
                ] < min(k + 1, 2):
                    await asyncio.sleep(0.01)
            while json.loads(engine.get("/v1/loads"))["loads"][0]["num_waiting_reqs"] < 1:
                await asyncio.sleep(0.01)
            refused = [
                await http.post(server.url + "/v1/completions", json={**body, "stream": stream})
                for stream in (True, False)
            ]
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            return refused

    for refused in asyncio.run(main()):
        assert (refused.status_code, refused.headers["x-andes-reason"]) == (429, "engine_full")
        assert int(refused.headers["retry-after"]) >= 1
        assert refused.json()["error"]["message"] == "The request queue is full."
    assert replicas(server)[engine.url]["breaker_open"] is False
    metrics = httpx.get(server.url + "/metrics").text
    assert f'andes_gateway_upstream_full_total{{replica="{engine.url[7:]}"}} 2.0' in metrics
    assert "andes_gateway_upstream_failures_total{" not in metrics
    assert 'andes_gateway_shed_total{class="reading",model="simulated",reason="engine_full"} 2.0' in metrics


@pytest.mark.parametrize("stream", [True, False])
def test_a_request_that_kills_engines_kills_two_and_no_more(stream: bool, faulty: Any, gateway: Any) -> None:
    fleet = [faulty() for _ in range(4)]
    for upstream in fleet:
        upstream.fault = "hang up"
    server = gateway(*(u.url for u in fleet), retries=9, policy="round_robin")
    fatal = {**BODY, "prompt": "die", "stream": stream}
    answer = ask(server, fatal)
    assert (answer.status_code, answer.headers["x-andes-reason"]) == (502, "engine_died")
    assert answer.headers["x-should-retry"] == "false"
    assert sum(len(u.bodies) for u in fleet) == 2
    again = ask(server, {**fatal, "user": "me", "stream": not stream})
    assert (again.status_code, again.headers["x-andes-reason"]) == (502, "engine_died")
    assert sum(len(u.bodies) for u in fleet) == 2
    for upstream in fleet:
        upstream.fault = None
    assert said(ask(server, {**BODY, "prompt": "live"})) == ANSWER
