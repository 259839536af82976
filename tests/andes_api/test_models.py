"""Whose engines answer: by announced names, adapters and aliases, over real HTTP and in the pure core."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import openai
import pytest

from andes_api.errors import ApiError
from andes_api.models import ModelCatalog, ModelRoute, read_offers
from andes_api.settings import GatewaySettings, GatewaySettingsError, load
from andes_api.upstream import Upstream
from andes_operator.gateway_report import GatewayReport
from andes_operator.gateways import Gateways

LISTED: dict[str, Any] = {
    "object": "list",
    "data": [
        {"id": "big", "object": "model", "created": 7, "root": "big", "parent": None, "max_model_len": 4096},
        {"id": "sql", "object": "model", "root": "/adapters/sql", "parent": "big"},
    ],
}  # fmt: skip
SMALL = {"data": [{"id": "small"}]}
URL = "http://127.0.0.1:9"


def catalog(*answers: Any, configured: tuple[str, ...] = (), **aliases: str) -> ModelCatalog:
    known = ModelCatalog(configured, {name.replace("any", "*"): model for name, model in aliases.items()})
    for answer in answers:
        for model, offer in read_offers(answer).items():
            known.learn(model, [offer])
    return known


@pytest.mark.parametrize(
    ("asked", "route"),
    [
        ("big", ModelRoute("big")),
        ("small", ModelRoute("small")),
        ("sql", ModelRoute("big", "sql")),
        ("big:sql", ModelRoute("big", "sql")),
        ("gpt-4o", ModelRoute("big")),
        ("coder", ModelRoute("big", "sql")),
        ("whatever", ModelRoute("small")),
        ("small:sql", ModelRoute("small")),  # no such adapter there: a name like any other
        ("default", ModelRoute("small")),
        ("", ModelRoute("small")),
        (None, ModelRoute("small")),
    ],
)
def test_a_name_is_a_model(asked: Any, route: ModelRoute) -> None:
    aliases = {"gpt-4o": "big", "coder": "sql", "*": "small"}
    known = ModelCatalog((), aliases)
    for answer in (LISTED, SMALL):
        for model, offer in read_offers(answer).items():
            known.learn(model, [offer])
    assert known.resolve(asked) == route


@pytest.mark.parametrize(
    ("asked", "adapter", "name"),
    [
        ("big", "sql", "big:sql"),
        ("gpt-4o", "sql", "big:sql"),
        ("sql", "sql", "sql"),
        ("coder", "sql", "sql"),
        ("big:sql", "sql", "big:sql"),
        ("big", None, "big"),
        (None, None, None),
    ],
)
def test_sglangs_other_name_of_an_adapter_is_part_of_the_model(asked: Any, adapter: Any, name: Any) -> None:
    body = {"model": asked, "lora_path": adapter, "prompt": "x"}
    catalog(LISTED, SMALL, **{"gpt-4o": "big", "coder": "sql"}).name_adapter(body)
    assert body == {"model": name, "prompt": "x"}
    unnamed = {"lora_path": "sql"}
    catalog(LISTED).name_adapter(unnamed)
    assert unnamed == {"model": "big:sql"}


@pytest.mark.parametrize(
    ("asked", "adapter", "status", "what"),
    [
        ("big", ["sql", None], 400, "lora_path: expected the name of one adapter; got \"['sql', None]\""),
        ("big", "", 400, "lora_path: expected the name of one adapter; got ''"),
        ("big:sql", "other", 400, "lora_path: 'other', but model names adapter 'sql'"),
        (None, "sql", 400, "lora_path: name the model as well"),
        ("small", "sql", 404, "no model 'small:sql'"),  # not that of every other name
    ],
)
def test_an_adapter_that_cannot_be_told_is_refused(asked: Any, adapter: Any, status: int, what: str) -> None:
    known = catalog(LISTED, SMALL, **({"any": "small"} if asked else {}))
    with pytest.raises(ApiError) as caught:
        known.name_adapter({"model": asked, "lora_path": adapter})
    assert caught.value.status == status
    assert what in caught.value.message


@pytest.mark.parametrize("asked", ["large", "big:", "big:sq", "BIG", "big ", ":", "x" * 9999])
def test_a_name_that_is_no_model_is_refused_with_the_list(asked: str) -> None:
    with pytest.raises(ApiError) as caught:
        catalog(LISTED, SMALL).resolve(asked)
    error = caught.value
    assert (error.status, error.code, error.param) == (404, "model_not_found", "model")
    assert error.message.endswith("there are: big, sql, small")
    assert len(error.message) < 300
    assert error.headers["x-should-retry"] == "false"


@pytest.mark.parametrize("asked", [7, ["big"], {"id": "big"}, True])
def test_a_model_is_a_name(asked: Any) -> None:
    with pytest.raises(ApiError, match="model: expected a name") as caught:
        catalog(LISTED).resolve(asked)
    assert caught.value.status == 400


def test_without_a_name_there_has_to_be_one_model() -> None:
    for asked in (None, "", "default"):
        assert catalog(LISTED).resolve(asked) == ModelRoute("big")
        with pytest.raises(ApiError, match="name one of: big, sql, small") as caught:
            catalog(LISTED, SMALL).resolve(asked)
        assert caught.value.status == 400


def test_while_an_engine_may_still_announce_it_no_name_is_wrong() -> None:
    assert catalog().resolve("big") == ModelRoute()
    assert catalog(SMALL).resolve("big", incomplete=True) == ModelRoute()
    assert catalog(configured=("big",)).resolve("big") == ModelRoute("big")
    with pytest.raises(ApiError, match="there are: big"):
        catalog(configured=("big",)).resolve("small")


def test_the_list_is_what_engines_announce_and_the_aliases() -> None:
    known = catalog(LISTED, SMALL, gpt="sql", any="small", lost="gone")
    cards = known.cards()
    assert [card["id"] for card in cards] == ["big", "sql", "small", "gpt"]
    assert cards[0] == LISTED["data"][0]
    assert (cards[1]["parent"], cards[3]["root"]) == ("big", "sql")
    known.learn("big", [*read_offers({"data": [{"id": "big"}]}).values()])  # the adapter was unloaded
    assert known.names() == ["big", "small"]
    known.forget("big")
    assert known.names() == ["small"]


def test_an_engine_of_a_configured_model_is_called_by_its_own_name() -> None:
    engine = Upstream(URL, GatewaySettings(upstreams=(URL,)), model="chat")
    assert engine.serves(ModelRoute("chat"))
    assert not engine.serves(ModelRoute("chat", "sql"))
    engine.offers = read_offers(LISTED, "chat")
    assert engine.serves(ModelRoute("chat", "sql"))
    assert not engine.serves(ModelRoute("big"))
    body = {"model": "chat", "prompt": "x"}
    assert engine.asked_for(ModelRoute("chat"), body) == {"model": "big", "prompt": "x"}
    assert engine.asked_for(ModelRoute("chat", "sql"), body)["model"] == "big:sql"
    assert (engine.describe(0.0)["model"], engine.describe(0.0)["models"]) == ("chat", ["chat", "sql"])


def test_what_an_engine_that_says_nothing_answers() -> None:
    engine = Upstream(URL, GatewaySettings(upstreams=(URL,)))
    assert not engine.serves(ModelRoute()), "it has not been asked yet"
    engine.offers = {}
    assert engine.serves(ModelRoute())
    assert not engine.serves(ModelRoute("big"))
    body = {"model": "any"}
    assert engine.asked_for(ModelRoute(), body) is body


@pytest.mark.parametrize(
    "answer", [[], {"data": None}, {"data": [{"name": "x"}]}, {"data": [{"id": 7}]}, {"data": ["x"]}]
)
def test_an_answer_that_lists_no_models(answer: Any) -> None:
    with pytest.raises((KeyError, TypeError, AttributeError, ValueError)):
        read_offers(answer)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({}, "upstreams: no engine"),
        ({"models": {"a": {"upstreams": ["ftp://x"]}}}, "models.a.upstreams"),
        ({"models": {"a": {"upstreams": [URL]}, "b": {"upstreams": [URL]}}}, f"{URL} is listed twice"),
        ({"upstreams": [URL], "models": {"a": {"upstreams": [URL]}}}, f"{URL} is listed twice"),
        ({"models": {"*": {"upstreams": [URL]}}}, "models: '*' is no name"),
        ({"models": {"a": {"upstreams": [URL], "classes": ["none"]}}}, "models.a.classes: no class 'none'"),
        ({"models": {"a": {"upstreams": [URL]}}, "model_aliases": {"a": "b"}}, "model_aliases: 'a' is a model"),
        ({"models": {"a": {"upstreams": [URL], "max_streams": 0}}}, "models.a.max_streams"),
    ],
)  # fmt: skip
def test_wrong_settings_are_named(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(GatewaySettingsError) as caught:
        load(None, **settings)
    assert said in str(caught.value)


def ask(server: Any, model: Any, **headers: str) -> httpx.Response:
    body = {"model": model, "prompt": "Tell me more.", "max_tokens": 8, "stream": True}
    return httpx.post(server.url + "/v1/completions", json=body, headers=headers, timeout=60)


def fleet(server: Any, path: str, **query: Any) -> Any:
    return httpx.get(f"{server.url}/fleet/{path}", params=query).json()


def test_every_model_by_its_own_engines(simulated: Any, gateway: Any) -> None:
    big = simulated("--served-model-name", "big", "--lora-paths", "sql=/adapters/sql")
    small = simulated("--served-model-name", "small")
    server = gateway(big.url, small.url, model_aliases={"gpt-4o": "big"})
    for model, answered in (
        ("big", "big"),
        ("small", "small"),
        ("gpt-4o", "big"),
        ("sql", "big:sql"),
        ("big:sql", "big:sql"),
    ):
        answer = ask(server, model)
        assert (answer.status_code, answer.headers["x-andes-model"]) == (200, answered)
        assert f'"model":"{answered}"' in answer.text, "the engine itself was asked for it"
    assert ask(server, "sql").text.split('"choices"')[1] != ask(server, "big").text.split('"choices"')[1]
    as_sglang = {"model": "gpt-4o", "lora_path": "sql", "prompt": "x", "max_tokens": 2}
    assert httpx.post(server.url + "/v1/completions", json=as_sglang).json()["model"] == "big:sql"
    refused = httpx.post(
        server.url + "/v1/score", json={"model": "big", "lora_path": "sql", "query": "x", "items": "y"}
    )
    assert "no LoRA adapters at /v1/score" in refused.json()["error"]["message"]
    sdk = openai.OpenAI(base_url=server.url + "/v1", api_key="any", max_retries=0)
    assert [m.id for m in sdk.models.list()] == ["big", "sql", "small", "gpt-4o"]
    assert sdk.models.retrieve("small").id == "small"
    with pytest.raises(openai.NotFoundError, match="there are: big, sql, small, gpt-4o") as caught:
        sdk.completions.create(model="large", prompt="x")
    assert caught.value.code == "model_not_found"

    replicas = {r["model"]: r for r in fleet(server, "replicas")["replicas"]}
    assert replicas["big"]["models"] == ["big", "sql"]
    assert [r["model"] for r in fleet(server, "replicas", model="small")["replicas"]] == ["small"]
    records = fleet(server, "demand")["records"]
    assert [(r["model"], r["adapter"]) for r in records[:4]] == [
        ("big", None), ("small", None), ("big", None), ("big", "sql"),
    ]  # fmt: skip
    assert [r["model"] for r in fleet(server, "demand", model="small")["records"]] == ["small"]
    qoe = fleet(server, "qoe")
    assert {name: said["all"]["count"] for name, said in qoe["models"].items()} == {"big": 6, "small": 1}
    assert qoe["all"]["count"] == 7
    assert fleet(server, "qoe", model="small")["classes"]["reading"]["count"] == 1
    unknown = fleet(server, "demand", model="smal")
    assert (unknown["records"], unknown["models"]) == ([], ["big", "small"])
    assert (
        'andes_gateway_requests_total{class="reading",model="small",outcome="done"} 1.0'
        in httpx.get(server.url + "/metrics").text
    )


def test_limits_classes_and_tenants_of_a_model(faulty: Any, gateway: Any) -> None:
    one, other = faulty(), faulty()
    one.fault, one.after = "stall", 2
    key = {"key_sha256": "2c70e12b7a0646f92279f427c7b38e7334d8e5389cff167a1dc30e73f826b683"}  # of "key"
    server = gateway(
        models={
            "slow": {"upstreams": [one.url], "max_streams": 1, "classes": ["batch", "code"]},
            "quick": {"upstreams": [other.url]},
        },
        tenants=[{"name": "a", **key, "models": ["slow"]}],
    )
    headers = {"authorization": "Bearer key"}
    assert [m["id"] for m in httpx.get(server.url + "/v1/models", headers=headers).json()["data"]] == ["slow"]
    refused = ask(server, "quick", **headers)
    assert (refused.status_code, refused.json()["error"]["code"]) == (404, "model_not_found")
    assert "quick" not in refused.json()["error"]["message"].partition("there are:")[2]
    assert ask(server, "slow", **headers, **{"x-andes-class": "reading"}).status_code == 400
    body = {"model": "slow", "prompt": "x", "stream": True}
    with httpx.stream("POST", server.url + "/v1/completions", json=body, headers=headers) as held:
        assert held.headers["x-andes-class"] == "batch"
        full = ask(server, "slow", **headers)
        assert (full.status_code, full.headers["x-andes-reason"]) == (429, "model_streams")
        assert "slow has 1 streams open" in full.json()["error"]["message"]
    one.release.set()


def test_another_model_answers_where_the_class_says_so(faulty: Any, gateway: Any) -> None:
    other = faulty()
    server = gateway(
        models={"big": {"upstreams": [URL]}, "small": {"upstreams": [other.url]}},
        classes={"reading": {"fallback_model": "small"}},
        hold_s=0.2,
    )
    answer = ask(server, "big")
    assert answer.status_code == 200
    assert (answer.headers["x-andes-model"], answer.headers["x-andes-fallback"]) == ("small", "no_replica")
    assert other.bodies[-1]["model"] == "m", "what its engine calls it"
    assert "x-andes-fallback" not in ask(server, "small").headers
    strict = ask(server, "big", **{"x-andes-class": "code"})
    assert (strict.status_code, strict.headers["x-andes-reason"]) == (503, "no_replica")
    records = fleet(server, "demand", model="big")["records"]
    assert [(r["outcome"], r["fallback"]) for r in records] == [("done", "small"), ("shed", None)]
    other.healthy = False
    while httpx.get(server.url + "/readyz").json()["engines"]:
        time.sleep(0.01)
    assert ask(server, "big").status_code == 503


@pytest.mark.parametrize(
    "said", [(404, b"{}"), (401, b"no"), (200, b"<html>"), (200, b'{"data": 7}'), (200, b'{"data": []}')]
)
def test_an_engine_that_lists_nothing_answers_every_name(said: tuple[int, bytes], faulty: Any, gateway: Any) -> None:
    silent = faulty()
    silent.models = said
    server = gateway(silent.url)
    for name in ("m", "whatever"):
        assert ask(server, name).status_code == 200
        assert silent.bodies[-1]["model"] == name
    assert httpx.get(server.url + "/v1/models").status_code == 503
    assert fleet(server, "demand")["records"][0]["model"] is None


def test_an_engine_that_cannot_say_keeps_what_it_said(faulty: Any, gateway: Any) -> None:
    upstream = faulty()
    server = gateway(upstream.url, health_interval_s=0.05, hold_s=0.2)
    assert ask(server, "m").status_code == 200
    upstream.models = (503, b"{}")
    asked = upstream.asked_models
    while upstream.asked_models < asked + 3:
        time.sleep(0.01)
    assert ask(server, "m").status_code == 200
    assert ask(server, "n").status_code == 404
    never = faulty()
    never.models = (500, b"{}")
    assert ask(gateway(never.url, hold_s=0.2), "m").status_code == 503


def test_an_engine_comes_back_with_another_model(faulty: Any, gateway: Any) -> None:
    upstream = faulty()
    server = gateway(upstream.url, health_interval_s=0.05)
    assert ask(server, "m").status_code == 200
    upstream.models = (200, b'{"data":[{"id":"n"},{"id":"a","parent":"n"}]}')
    while [m["id"] for m in httpx.get(server.url + "/v1/models").json()["data"]] != ["n", "a"]:
        time.sleep(0.01)
    assert ask(server, "m").status_code == 404
    assert (ask(server, "a").status_code, upstream.bodies[-1]["model"]) == (200, "n:a")


def test_another_model_answers_where_the_first_has_no_room(
    faulty: Any, gateway: Any, caplog: pytest.LogCaptureFixture
) -> None:
    one, other = faulty(), faulty()
    one.fault, one.after = "stall", 2
    server = gateway(
        models={"big": {"upstreams": [one.url], "max_streams": 1}, "small": {"upstreams": [other.url]}},
        classes={"reading": {"fallback_model": "small"}, "code": {"fallback_model": "nothing"}},
    )
    body = {"model": "big", "prompt": "x", "stream": True}
    with httpx.stream("POST", server.url + "/v1/completions", json=body) as held:
        assert held.headers["x-andes-model"] == "big"
        answer = ask(server, "big")
        assert (answer.status_code, answer.headers["x-andes-fallback"]) == (200, "model_streams")
        strict = ask(server, "big", **{"x-andes-class": "code"})  # whose fallback is no model
        assert (strict.status_code, strict.headers["x-andes-reason"]) == (429, "model_streams")
        ask(server, "big", **{"x-andes-class": "code"})
    warned = [r.getMessage() for r in caplog.records if "fallback_model" in r.getMessage()]
    assert warned == ["fallback_model of class code: model: no model 'nothing' is served here; there are: big, small"]
    one.release.set()


def test_a_held_request_is_not_refused_for_itself(faulty: Any, gateway: Any) -> None:
    upstream = faulty()
    upstream.healthy = False
    server = gateway(models={"big": {"upstreams": [upstream.url], "max_streams": 2}}, health_interval_s=0.05)
    with ThreadPoolExecutor() as pool:
        waiting = [pool.submit(ask, server, "big") for _ in range(2)]
        while server.app.state.gateway.held < 2:
            assert not any(one.done() for one in waiting)
            time.sleep(0.01)
        assert ask(server, "big").headers["x-andes-reason"] == "model_streams"
        upstream.healthy = True
        assert [one.result(60).status_code for one in waiting] == [200, 200]


def test_who_may_use_one_model_gets_no_answer_of_an_engine_that_names_none(faulty: Any, gateway: Any) -> None:
    named, silent = faulty(), faulty()
    silent.models = (404, b"{}")
    tenant = {"name": "a", "key_sha256": "2c70e12b7a0646f92279f427c7b38e7334d8e5389cff167a1dc30e73f826b683"}  # of "key"
    server = gateway(named.url, silent.url, tenants=[{**tenant, "models": ["m"]}])
    key = {"authorization": "Bearer key"}
    while not silent.asked_models or ask(server, "m", **key).status_code != 200:
        time.sleep(0.01)
    refused = ask(server, "other", **key)
    assert (refused.status_code, refused.json()["error"]["code"]) == (404, "model_not_found")
    assert not silent.bodies


def test_no_adapter_stands_in_where_an_engine_would_leave_it_out(faulty: Any, gateway: Any) -> None:
    other = faulty()
    other.models = (200, b'{"data":[{"id":"m"},{"id":"sql","parent":"m"}]}')
    server = gateway(
        models={"big": {"upstreams": [URL]}, "small": {"upstreams": [other.url]}},
        classes={"reading": {"fallback_model": "small:sql"}},
        hold_s=0.2,
    )
    while (answer := ask(server, "big")).status_code != 200:
        time.sleep(0.01)
    assert answer.headers["x-andes-model"] == "small:sql"
    strict = httpx.post(server.url + "/v1/responses", json={"model": "big", "input": "x", "stream": True})
    assert (strict.status_code, strict.headers["x-andes-reason"]) == (503, "no_replica")


def test_no_model_stands_in_for_a_request_that_is_wrong(faulty: Any, gateway: Any) -> None:
    one, other = faulty(), faulty()
    one.models = (200, b'{"data":[{"id":"m"},{"id":"sql","parent":"m"}]}')
    server = gateway(
        models={"big": {"upstreams": [one.url]}, "small": {"upstreams": [other.url]}},
        classes={"reading": {"fallback_model": "small"}},
    )
    while ask(server, "big").headers["x-andes-model"] != "big":
        time.sleep(0.01)
    wrong = httpx.post(server.url + "/v1/responses", json={"model": "big:sql", "input": "x", "stream": True})
    assert (wrong.status_code, wrong.json()["error"]["param"]) == (400, "model")


def test_a_head_before_any_engine_does_not_say_who_answers(faulty: Any, gateway: Any) -> None:
    other = faulty()
    other.healthy = False
    server = gateway(
        models={"big": {"upstreams": [URL]}, "small": {"upstreams": [other.url]}},
        classes={"reading": {"fallback_model": "small"}},
        keepalive_s=0.1,
        health_interval_s=0.05,
    )
    while any(r["healthy"] is None for r in fleet(server, "replicas")["replicas"]):
        time.sleep(0.01)
    body = {"model": "big", "prompt": "x", "stream": True}
    with httpx.stream("POST", server.url + "/v1/completions", json=body, timeout=60) as answer:
        other.healthy = True
        text = answer.read().decode()
    assert "x-andes-model" not in answer.headers, "the other model answered"
    assert text.startswith(": keep-alive")
    assert "w15 x" in text


def test_a_held_request_is_refused_once_its_model_is_known_not_to_be(faulty: Any, gateway: Any) -> None:
    upstream = faulty()
    upstream.healthy = False
    server = gateway(upstream.url, health_interval_s=0.05)
    held = server.app.state.gateway
    with ThreadPoolExecutor() as pool:
        waiting = [pool.submit(ask, server, model) for model in ("m", "n")]
        while held.held < 2:
            time.sleep(0.01)
        assert fleet(server, "demand")["held"] == 2
        upstream.healthy = True
        right, wrong = (one.result(60) for one in waiting)
    assert (right.status_code, right.headers["x-andes-model"]) == (200, "m")
    assert (wrong.status_code, wrong.json()["error"]["code"]) == (404, "model_not_found")
    records = fleet(server, "demand")["records"]
    assert {(r["model"], r["outcome"]) for r in records} == {("m", "done"), (None, "error")}


@pytest.mark.timeout(600)
def test_an_operator_reads_the_demand_of_one_model_and_the_flags_of_its_engines(
    gateway: Callable[..., Any], simulated: Callable[..., Any]
) -> None:
    """What ``andes_operator`` makes of a real gateway's ``/fleet/*``: one model of two, two pools of it, and their flags."""
    big, more, small = (
        simulated("--model", name, "--max-running-requests", limit)
        for name, limit in (("big", "7"), ("big", "7"), ("small", "9"))
    )
    server = gateway(big.url, more.url, small.url, health_interval_s=0.2)
    address = server.url.removeprefix("http://")

    def read(model: str | None) -> GatewayReport:
        async def ask() -> Any:
            gateways = Gateways()
            try:
                return await gateways._report(address, time.time() - 600, 120.0, model)
            finally:
                await gateways.close()

        found = asyncio.run(ask())
        assert isinstance(found, GatewayReport), found
        return found

    while sum(replica.flags is not None for replica in read(None).replicas) < 3:
        time.sleep(0.1)
    for model, count in (("big", 4), ("small", 2)):
        for _ in range(count):
            body = {"model": model, "messages": [{"role": "user", "content": "hi"}], "max_tokens": 4, "stream": True}
            assert httpx.post(f"{server.url}/v1/chat/completions", json=body, timeout=60).status_code == 200
    assert len(read(None).requests) == 6
    theirs = read("big")
    assert (len(theirs.requests), theirs.models) == (4, ("big", "small"))
    assert sum(sketch.count for sketch in theirs.ended.values()) == 4
    assert {(r.model, r.flags and r.flags.max_running_requests) for r in theirs.replicas} == {("big", 7)}
    assert len(read("small").requests) == 2
