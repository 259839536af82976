"""The gateway before simulated engines over real HTTP, with the clients people use."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from andes_operator.decide import decide
from andes_operator.gateway_report import GatewayReport
from andes_operator.memory import Memory
from andes_operator.observe import PodCounts, merge
from andes_operator.spec import ClassObjective, DemandSource, ScaleTargetRef, TargetSpec
from andes_sglang.bench.engine import Engine, read_metrics
from andes_sglang.bench.ports import free_port
from andes_sglang.objective import QoEObjective, Statistic
from andes_sglang.sketch import DurationSketch, Sketch

pytestmark = pytest.mark.server

ASK: dict[str, Any] = {
    "model": "simulated",
    "messages": [{"role": "user", "content": "Tell me more."}],
    "max_tokens": 24,
}
COMPLETE: dict[str, Any] = {"model": "simulated", "prompt": "Tell me more.", "max_tokens": 24, "stream": True}


def client(server: Any, **more: Any) -> openai.OpenAI:
    return openai.OpenAI(base_url=server.url + "/v1", api_key="sk-any", **{"max_retries": 0, **more})


def test_the_official_client(simulated: Any, gateway: Any) -> None:
    server = gateway(simulated().url)
    sdk = client(server)
    assert [m.id for m in sdk.models.list()] == ["simulated"]
    assert sdk.models.retrieve("simulated").id == "simulated"
    with pytest.raises(openai.NotFoundError):
        sdk.models.retrieve("other")
    answer = sdk.chat.completions.create(**ASK)
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 24
    assert answer.choices[0].finish_reason == "length"
    chunks = list(sdk.chat.completions.create(**ASK, stream=True, stream_options={"include_usage": True}))
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens == 24
    assert chunks[-1].choices == []
    assert all(chunk.usage is None for chunk in chunks[:-1])
    assert chunks[-2].choices[0].finish_reason == "length"
    text = "".join(c.choices[0].delta.content or "" for c in chunks[:-1])
    assert len(text) > 24
    with_two = list(sdk.completions.create(**{**COMPLETE, "n": 2}))
    assert {c.choices[0].index for c in with_two if c.choices} == {0, 1}
    raw = sdk.chat.completions.with_raw_response.create(
        **ASK, extra_headers={"x-andes-class": "code"}, service_tier="auto"
    )
    assert raw.headers["x-andes-class"] == "code"
    assert raw.headers["x-andes-tds"] == "10"
    assert raw.headers["x-andes-service-tier"] == "default"
    assert raw.headers["x-request-id"]


def test_the_official_client_asynchronously_and_its_errors(simulated: Any, gateway: Any) -> None:
    server = gateway(simulated().url)

    async def main() -> None:
        async with openai.AsyncOpenAI(base_url=server.url + "/v1", api_key="sk-any", max_retries=0) as sdk:
            stream = await sdk.chat.completions.create(**ASK, stream=True)
            assert len([c async for c in stream if c.choices and c.choices[0].delta.content]) >= 1
            with pytest.raises(openai.BadRequestError, match="x-andes-tds: expected a number"):
                await sdk.chat.completions.create(**ASK, extra_headers={"x-andes-tds": "fast"})
            with pytest.raises(openai.BadRequestError):  # the engine's own words
                await sdk.chat.completions.create(**{**ASK, "temperature": -1.0})
            with pytest.raises(openai.BadRequestError, match="bootstrap_host"):
                await sdk.chat.completions.create(**ASK, extra_body={"bootstrap_host": "10.0.0.1"})

    asyncio.run(main())


def test_the_official_client_comes_back_when_told_to(faulty: Any, gateway: Any) -> None:
    upstream = faulty()
    upstream.fault = "503"
    server = gateway(upstream.url, breaker_failures=100, model_aliases={"*": "m"})
    answer = httpx.post(server.url + "/v1/chat/completions", json={**ASK, "stream": True})
    assert answer.status_code == 503
    with pytest.raises(openai.InternalServerError):
        client(server, max_retries=1).chat.completions.create(**ASK, stream=True)
    assert len(upstream.bodies) == 3
    tenant = {"name": "a", "key_sha256": "0" * 64}
    closed = gateway(upstream.url, tenants=[tenant], model_aliases={"*": "m"})
    with pytest.raises(openai.AuthenticationError):
        client(closed, max_retries=5).chat.completions.create(**ASK)
    assert len(upstream.bodies) == 3


@pytest.mark.filterwarnings("ignore")
def test_langchain_and_litellm(simulated: Any, gateway: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LITELLM_LOCAL_MODEL_COST_MAP", "True")  # no look-up on the internet
    litellm = pytest.importorskip("litellm")
    langchain = pytest.importorskip("langchain_openai")
    server = gateway(simulated().url)
    model = langchain.ChatOpenAI(
        model="simulated",
        base_url=server.url + "/v1",
        api_key="sk-any",
        max_tokens=12,
        stream_usage=True,
        max_retries=0,
    )
    assert model.invoke("Tell me more.").usage_metadata["output_tokens"] == 12
    parts = list(model.stream("Tell me more."))
    assert sum(p.usage_metadata["output_tokens"] for p in parts if p.usage_metadata) == 12
    options = {"model": "openai/simulated", "api_base": server.url + "/v1", "api_key": "sk-any", "max_tokens": 12}
    messages = [{"role": "user", "content": "Tell me more."}]
    assert litellm.completion(messages=messages, **options).usage.completion_tokens == 12
    stream = list(litellm.completion(messages=messages, stream=True, stream_options={"include_usage": True}, **options))
    assert "".join(c.choices[0].delta.content or "" for c in stream if c.choices)
    assert stream[-1].usage.completion_tokens == 12


def test_what_readers_got_is_measured_and_can_be_merged(simulated: Any, gateway: Any) -> None:
    engine = simulated()
    one, other = gateway(engine.url, name="one"), gateway(engine.url, name="other")
    for server, count in ((one, 3), (other, 2)):
        for _ in range(count):
            assert httpx.post(server.url + "/v1/completions", json=COMPLETE).status_code == 200
    httpx.post(one.url + "/v1/completions", json={**COMPLETE, "stream": False})
    found = [httpx.get(server.url + "/fleet/qoe").json() for server in (one, other)]
    merged = Sketch.merged(Sketch.from_dict(f["classes"]["reading"]) for f in found)
    assert merged.count == 5
    assert merged.mean is not None
    assert merged.mean > 0.95
    for seconds in ("ttft_s", "stall_s"):
        waited = DurationSketch.merged(DurationSketch.from_dict(f[seconds]["classes"]["reading"]) for f in found)
        assert waited.count == 5
        assert waited.mean is not None
        assert (waited.mean > 0.0) is (seconds == "ttft_s"), "an idle engine lets no reader run dry"
    demand = httpx.get(one.url + "/fleet/demand").json()
    assert demand["complete_since_s"] is None
    records = demand["records"]
    assert [r["stream"] for r in records] == [True, True, True, False]
    assert {r["output_tokens"] for r in records} == {24}
    assert {r["outcome"] for r in records} == {"done"}
    assert all(r["ttft_s"] > 0 and r["qoe"] > 0.9 for r in records[:3])
    later = httpx.get(one.url + "/fleet/demand", params={"since": records[1]["arrival_s"]}).json()["records"]
    assert [r["arrival_s"] for r in later] == [r["arrival_s"] for r in records[2:]]
    metrics = httpx.get(one.url + "/metrics").text
    assert 'andes_gateway_requests_total{class="reading",model="simulated",outcome="done"} 4.0' in metrics
    assert 'andes_gateway_tokens_total{class="reading",model="simulated"} 96.0' in metrics
    assert 'andes_gateway_request_qoe_ratio_count{class="reading",model="simulated"} 3.0' in metrics


def test_a_paced_stream_comes_at_the_speed_of_its_reader(simulated: Any, gateway: Any) -> None:
    server = gateway(simulated().url)
    headers = {"x-andes-pace": "on", "x-andes-tds": "20", "x-andes-ttft-ms": "1000"}
    answer = httpx.post(server.url + "/v1/completions", json=COMPLETE, headers=headers)
    record = httpx.get(server.url + "/fleet/demand").json()["records"][-1]
    assert record["qoe"] > 0.99
    assert answer.elapsed.total_seconds() > (24 - 3) / 20  # the engine alone takes about 0.2 s
    assert answer.text.endswith("data: [DONE]\n\n")


@pytest.mark.parametrize(("policy", "least"), [("round_robin", 12), ("least_load", 8), ("prefix", 4), ("qoe", 0)])
def test_every_policy_serves_everybody(policy: str, least: int, simulated: Any, gateway: Any) -> None:
    """``least``: requests that each of two idle engines gets; by QoE they are equal, and the quicker one may get all."""
    engines = simulated(), simulated()
    server = gateway(*(engine.url for engine in engines), policy=policy, admission=False)

    async def main() -> None:
        async with httpx.AsyncClient(timeout=120) as http:
            bodies = [{**COMPLETE, "prompt": f"{k} tell me more"} for k in range(24)]
            answers = await asyncio.gather(*(http.post(server.url + "/v1/completions", json=b) for b in bodies))
        assert {a.status_code for a in answers} == {200}

    asyncio.run(main())
    text = httpx.get(server.url + "/metrics").text
    assert 'outcome="done"} 24.0' in text
    replicas = httpx.get(server.url + "/fleet/replicas").json()["replicas"]
    assert len(replicas) == 2
    assert all(r["healthy"] and r["streams"] == 0 for r in replicas)
    served = [read_metrics(engine.url)["andes_request_qoe_count"] for engine in engines]
    assert sum(served) == 24
    assert min(served) >= least


@pytest.mark.timeout(300)
def test_the_first_request_waits_for_an_engine_and_brings_it_about(gateway: Any, tmp_path: Path) -> None:
    """From zero, and once more when the engine has gone a moment ago: what the operator reads makes it start one."""
    engine = Engine("simulated", "andes", ("--engine", "sim"), log=tmp_path / "engine.log")
    server = gateway(engine.url, hold_s=240)
    spec = TargetSpec(
        ScaleTargetRef("apps/v1", "Deployment", "engine"),
        (ClassObjective("*", QoEObjective(Statistic.SHARE_ABOVE, 0.9, 0.95)),),
        min_replicas=0, max_replicas=4, demand=DemandSource(service="gateway"),
    )  # fmt: skip

    def answers(path: str) -> Any:
        return httpx.get(server.url + path).json()

    with ThreadPoolExecutor() as pool:
        for streams in (True, False):
            asked = pool.submit(
                httpx.post, server.url + "/v1/completions", json={**COMPLETE, "stream": streams}, timeout=250
            )
            while (demand := answers("/fleet/demand"))["held"] != 1:
                assert not asked.done()
            assert answers("/readyz") == {"status": "no engine", "engines": 0, "held": 1, "failing": {}}
            now_s = time.time()
            report = GatewayReport.parse(
                "g", demand, answers("/fleet/qoe"), answers("/fleet/replicas"), since_s=now_s - 600, received_s=now_s
            )
            seen = merge([report], PodCounts(0, 0, 0), now_s, 60.0)
            assert seen.routing_policy == ("qoe", (("horizon_s", 60.0),))
            assert (seen.waiting, seen.open_streams, seen.fault) == (1, 1, None)
            assert decide(spec, seen, None, Memory()).replicas == 1
            with engine:
                answer = asked.result()
                assert answer.status_code == 200
                assert '"error"' not in answer.text
                assert answers("/readyz") == {"status": "ok", "engines": 1, "held": 0, "failing": {}}
    records = answers("/fleet/demand")["records"]
    assert [(r["outcome"], r["output_tokens"]) for r in records] == [("done", 24), ("done", 24)]


def test_an_engine_that_is_killed_is_not_noticed(simulated: Any, gateway: Any) -> None:
    doomed, other = simulated(), simulated()
    server = gateway(doomed.url, other.url, policy="round_robin")
    body = {**COMPLETE, "max_tokens": 900, "temperature": 0, "ignore_eos": True}

    async def main() -> list[httpx.Response]:
        async with httpx.AsyncClient(timeout=120) as http:
            tasks = [asyncio.create_task(http.post(server.url + "/v1/completions", json=body)) for _ in range(20)]
            streams = server.app.state.gateway.open
            while len(streams) < 20 or not all(s.reader.delivered > 5 for s in list(streams)):
                await asyncio.sleep(0.01)
            os.killpg(doomed._process.pid, signal.SIGKILL)
            return list(await asyncio.gather(*tasks))

    answers = asyncio.run(main())
    assert {a.status_code for a in answers} == {200}
    assert all(a.text.endswith("data: [DONE]\n\n") for a in answers)
    assert all('"error"' not in a.text for a in answers)
    records = httpx.get(server.url + "/fleet/demand").json()["records"]
    assert {(r["outcome"], r["output_tokens"]) for r in records} == {("done", 900)}
    assert "andes_gateway_resumes_total 10.0" in httpx.get(server.url + "/metrics").text
    ready = httpx.get(server.url + "/readyz")
    assert ready.status_code == 200


@pytest.mark.timeout(300)
def test_overload_is_shed_and_who_was_let_in_is_served_well(simulated: Any, gateway: Any) -> None:
    """An engine of two slots and a hundred readers of 100 tokens/s: many must be told to come back; those let in get at least
    what their class promises (``shed_below``), and so are those of the refused who come again when they were told."""
    engine = simulated("--max-running-requests", "2", policy="stock")
    server = gateway(engine.url, load_interval_s=0.1, classes={"code": {"shed_below": 0.4}})
    headers = {"x-andes-class": "code", "x-andes-tds": "100", "x-andes-ttft-ms": "200"}
    body = {**COMPLETE, "max_tokens": 150}

    async def one(http: httpx.AsyncClient, k: int) -> httpx.Response:
        return await http.post(server.url + "/v1/completions", json={**body, "prompt": f"{k} " * 200}, headers=headers)

    async def main() -> list[httpx.Response]:
        async with httpx.AsyncClient(timeout=250, limits=httpx.Limits(max_connections=200)) as http:
            warm = [await one(http, k) for k in range(3)]
            assert {a.status_code for a in warm} == {200}
            while (await http.get(server.url + "/fleet/replicas")).json()["replicas"][0]["slots"] != 2:
                pass
            answers = await asyncio.gather(*(one(http, k) for k in range(100)))
            told = [(k, int(a.headers["retry-after"])) for k, a in enumerate(answers) if a.status_code == 429]
            soon = sorted(told, key=lambda place: place[1])[:10]
            again.extend(await asyncio.gather(*(one_later(http, k, wait_s) for k, wait_s in soon)))
            return list(answers)

    async def one_later(http: httpx.AsyncClient, k: int, wait_s: int) -> httpx.Response:
        await asyncio.sleep(wait_s)
        return await one(http, k)

    again: list[httpx.Response] = []
    answers = asyncio.run(main())
    assert [a.status_code for a in again] == [200] * 10
    refused = [a for a in answers if a.status_code == 429]
    served = [a for a in answers if a.status_code == 200]
    assert len(refused) + len(served) == 100
    assert len(refused) > 20
    assert served
    for answer in refused:
        assert answer.headers["x-andes-reason"] in ("predicted_qoe", "predicted_loss")
        assert 1 <= int(answer.headers["retry-after"]) <= 120
        assert answer.json()["error"]["code"] == "overloaded"
    records = httpx.get(server.url + "/fleet/demand").json()["records"]
    assert sum(r["outcome"] == "shed" and r["qoe"] == 0.0 for r in records) == len(refused)
    scores = [r["qoe"] for r in records if r["outcome"] == "done"]
    assert sum(scores) / len(scores) > 0.25


def test_two_commands(simulated: Any) -> None:
    engine: Engine = simulated()
    port = free_port()
    command = [sys.executable, "-m", "andes_sglang.cli", "gateway", "--upstream", engine.url, "--port", str(port)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        assert process.stderr is not None
        for line in process.stderr:
            if "listens" in line:
                break
        assert httpx.post(f"http://127.0.0.1:{port}/v1/completions", json=COMPLETE).status_code == 200
    finally:
        process.send_signal(signal.SIGTERM)
        out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    (line,) = out.splitlines()
    logged = json.loads(line)
    assert (logged["status"], logged["outcome"], logged["output_tokens"]) == (200, "done", 24)
    assert "Tell me" not in out + err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "upstreams"),
        (["--upstream", "nonsense"], "'nonsense'"),
        (["--upstream", "http://a:1", "--config", "/absent.yaml"], "/absent.yaml"),
        (["--upstream", "http://a:1", "--policy", "best", "--port", "99999"], "policy"),
        (["--upstream", "http://a:1", "--host", "192.0.2.1"], "host 192.0.2.1"),
        (["--upstream", "http://a:1", "--what"], "--what"),
    ],
)
def test_a_wrong_command_says_what_is_wrong(arguments: list[str], said: str) -> None:
    command = [sys.executable, "-m", "andes_sglang.cli", "gateway", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 2
    assert said in done.stderr
    assert "Traceback" not in done.stderr


def test_a_heavier_class_is_served_before_a_lighter_one(simulated: Any, gateway: Any) -> None:
    """Two streams hold both slots until six light requests and then six heavy ones wait at the engine, which hears of their
    weight from the gateway: the heavy ones, who came last, are served first."""
    engine = simulated("--max-running-requests", "2", "--policy-option", "preemption=false")
    server = gateway(engine.url, admission=False)
    first_token: list[str] = []
    asked: list[Future[None]] = []

    def ask(name: str, body: dict[str, Any]) -> None:
        headers = {"x-andes-class": name}
        with httpx.stream("POST", server.url + "/v1/completions", json=body, headers=headers, timeout=250) as answer:
            next(line for line in answer.iter_lines() if '"text":"' in line and '"text":""' not in line)
            first_token.append(name)

    def wait_for(running: int, waiting: int) -> None:
        deadline = time.monotonic() + 250
        while True:
            load = httpx.get(engine.url + "/v1/loads?include=core", timeout=120).json()["loads"][0]
            if (load["num_running_reqs"], load["num_waiting_reqs"]) == (running, waiting):
                return
            for each in asked:
                assert not each.done(), each.result()
            assert time.monotonic() < deadline, load

    with httpx.Client(timeout=250) as holders, ExitStack() as held, ThreadPoolExecutor(12) as pool:
        for _ in range(2):
            body = {**COMPLETE, "max_tokens": 30_000, "ignore_eos": True}
            held.enter_context(holders.stream("POST", server.url + "/v1/completions", json=body))
        wait_for(2, 0)
        for waiting, name in enumerate(["reading"] * 6 + ["priority"] * 6, start=1):
            asked.append(pool.submit(ask, name, {**COMPLETE, "max_tokens": 60}))
            wait_for(2, waiting)
        held.close()
        for each in asked:
            each.result()
    heavy = [place for place, name in enumerate(first_token) if name == "priority"]
    assert sum(heavy) <= sum(range(6)) + 3, first_token  # those of one pair may be seen in either order
    records = httpx.get(server.url + "/fleet/demand").json()["records"]
    assert {r["weight"] for r in records if r["class"] == "priority"} == {4.0}
