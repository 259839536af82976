"""Ladders: which rungs may answer, that a weaker one does before a request is refused, and that it says so."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from andes_api.ladders import Rung, usable_rungs
from andes_api.models import ModelCatalog, ModelRoute
from andes_api.settings import GatewaySettings, GatewaySettingsError, load, with_classes

BIG, SMALL = {"model": "big", "quality": 1}, {"model": "small", "quality": 0.86}
LADDER = {"chat": [BIG, SMALL]}
MODELS = {"big": {"upstreams": ["http://127.0.0.1:9"]}, "small": {"upstreams": ["http://127.0.0.1:10"]}}


def test_the_rungs_that_may_answer() -> None:
    rungs = [Rung(model=model, quality=quality) for model, quality in (("c", 0.5), ("a", 1.0), ("b", 0.86))]

    def names(**of: Any) -> str:
        return "".join(rung.model for rung in usable_rungs(rungs, **of))

    assert names() == "abc", "the best first"
    assert names(least_quality=0.86) == "ab"
    assert names(least_quality=0.87) == "a"
    assert names(degrade=False) == "a"


def test_a_ladder_is_a_name_like_that_of_a_model() -> None:
    known = ModelCatalog(("big", "small"), {"gpt-4o": "chat"}, {"chat": "big"})
    assert [known.resolve(name) for name in ("chat", "gpt-4o", "small")] == [
        ModelRoute("big"), ModelRoute("big"), ModelRoute("small"),
    ]  # fmt: skip
    assert [known.ladder_of(name) for name in ("chat", "gpt-4o", "big", None, 7)] == ["chat", "chat", None, None, None]
    assert known.names() == ["big", "small", "chat", "gpt-4o"]
    assert known.cards()[2]["root"] == "big"
    own = ModelCatalog(("big", "small"), {}, {"big": "big"})
    assert (own.ladder_of("big"), own.names()) == ("big", ["big", "small"])


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"ladders": {"chat": [{"model": "huge", "quality": 1}]}}, "ladders.chat.0.model: no model 'huge'; there are: big, small"),
        ({"ladders": {"chat": [{"model": "big", "quality": 0}]}}, "ladders.chat.0.quality"),
        ({"ladders": {"chat": [{"model": "big", "quality": 1.01}]}}, "(got 1.01)"),
        ({"ladders": {"chat": [{"model": "big"}]}}, "ladders.chat.0.quality: is missing"),
        ({"ladders": {"chat": [{"model": "big", "quality": 1, "cost": 2}]}}, "ladders.chat.0.cost: there is no such setting"),
        ({"ladders": {"chat": BIG}}, "ladders.chat: expected a list"),
        ({"ladders": {"chat": ["big"]}}, "ladders.chat.0: expected a mapping (got 'big')"),
        ({"ladders": ["chat"]}, "ladders: expected a mapping"),
        ({"ladders": {"chat": [BIG, SMALL, BIG]}}, "ladders.chat.2.model: 'big' is there twice"),
        ({"ladders": {"chat": []}}, "ladders.chat: is empty"),
        ({"ladders": {"*": [BIG]}}, "ladders: '*' is no name"),
        ({"ladders": {"small": [BIG]}}, "ladders.small: a model has this name, and is none of its rungs"),
        ({"ladders": LADDER, "model_aliases": {"chat": "big"}}, "ladders.chat: model_aliases has this name too"),
        ({"ladders": {"chat": [{"model": "gpt", "quality": 1}]}, "model_aliases": {"gpt": "big"}}, "'gpt' is another name, not a model"),
        ({"ladders": {"a": [BIG], "b": [{"model": "a", "quality": 1}]}}, "ladders.b.0.model: 'a' is another name"),
        ({"ladders": {"chat": [SMALL]}, "classes": {"code": {"least_quality": 0.9}}}, "classes.code.least_quality: 0.9 is above every rung of ladders.chat"),
        ({"classes": {"code": {"least_quality": 1.5}}}, "classes.code.least_quality"),
        ({"ladder_policy": "best"}, "ladder_policy: unknown routing policy 'best'"),
        ({"ladder_policy_options": {"horizon_s": 0}}, "ladder_policy: routing policy 'value': horizon_s must be"),
    ],
)  # fmt: skip
def test_wrong_ladders_are_named_at_the_start(changed: dict[str, Any], said: str) -> None:
    with pytest.raises(GatewaySettingsError) as caught:
        load(None, models=MODELS, **changed)
    assert said in str(caught.value)


def test_a_model_that_engines_may_announce_is_no_fault_and_a_class_read_later_may_be(tmp_path: Path) -> None:
    settings = load(None, upstreams=["http://127.0.0.1:11"], ladders={"chat": [SMALL]})
    assert settings.ladder_options == {"horizon_s": 60.0, "pace_margin": 1.0}
    file = tmp_path / "classes.yaml"
    file.write_text("classes: {code: {least_quality: 0.87}}")
    with pytest.raises(GatewaySettingsError, match=r"classes.code.least_quality: 0.87 is above every rung"):
        with_classes(settings, file)
    assert GatewaySettings(models=MODELS).ladders == {}


def ask(server: Any, model: str = "chat", prompt: str = "Tell me more.", **headers: str) -> httpx.Response:
    body = {"model": model, "prompt": prompt, "max_tokens": 8, "temperature": 0, "stream": True}
    return httpx.post(server.url + "/v1/completions", json=body, headers=headers, timeout=120)


@pytest.mark.server
def test_the_official_client_before_two_unlike_engines(simulated: Any, gateway: Any) -> None:
    """The better model has room for one stream; the next ones get the weaker one, or a refusal where that may not be."""
    big = simulated("--profile", "a100-40gb-llama-2-13b", "--served-model-name", "big-1")
    small = simulated("--profile", "a100-40gb-phi-3-mini", "--served-model-name", "small-1")
    server = gateway(
        models={"big": {"upstreams": [big.url], "max_streams": 1}, "small": {"upstreams": [small.url]}},
        ladders=LADDER,
        classes={"code": {"least_quality": 0.9}},
        admission=False,  # limits alone, however slow this machine is
        client_idle_s=3600,
    )
    sdk = openai.OpenAI(base_url=server.url + "/v1", api_key="any", max_retries=0)
    assert [m.id for m in sdk.models.list()] == ["big", "small", "chat"]
    said: dict[str, Any] = {"model": "chat", "messages": [{"role": "user", "content": "Hi"}]}
    chat = sdk.chat.completions.with_raw_response
    with sdk.chat.completions.create(**said, max_tokens=10_000, stream=True) as held:
        assert next(iter(held)).model == "big-1"
        assert held.response.headers["x-andes-model"] == "big"
        assert held.response.headers["x-andes-quality"] == "1"
        weaker = chat.create(**said, max_tokens=4)
        assert (weaker.headers["x-andes-model"], weaker.headers["x-andes-quality"]) == ("small", "0.86")
        assert weaker.parse().model == "small-1", "the body says who answered"
        assert {chunk.model for chunk in sdk.chat.completions.create(**said, max_tokens=4, stream=True)} == {"small-1"}
        for strict in ({"x-andes-degrade": "off"}, {"x-andes-class": "code"}):
            with pytest.raises(openai.RateLimitError) as caught:
                chat.create(**said, extra_headers=strict)
            assert caught.value.response.headers["x-andes-reason"] == "model_streams"
        plain = chat.create(**{**said, "model": "small"}, max_tokens=4)
        assert "x-andes-quality" not in plain.headers
        with pytest.raises(openai.BadRequestError, match="x-andes-degrade: expected on or off; got 'never'"):
            chat.create(**said, extra_headers={"x-andes-degrade": "never"})
    records = httpx.get(server.url + "/fleet/demand").json()["records"]
    assert [(r["ladder"], r["model"], r["quality"]) for r in records] == [
        ("chat", "big", 1.0), ("chat", "small", 0.86), ("chat", "small", 0.86), ("chat", "big", None), ("chat", "big", None),
        (None, "small", None),
    ]  # fmt: skip
    counted = 'andes_gateway_ladder_total{class="reading",ladder="chat",model="small"} 2.0'
    while counted not in httpx.get(server.url + "/metrics").text:  # once the last one is on record
        time.sleep(0.01)


@pytest.mark.server
def test_a_weaker_answer_in_time_is_worth_more_than_a_good_one_that_comes_late(
    faulty: Any, gateway: Any, make_backend: Any
) -> None:
    """A prompt of 250,000 tokens waits for its prefill at the better model; nothing is full and nothing is refused."""
    one, other, backend = faulty(), faulty(), make_backend()
    one.fault, one.after = "stall", 0
    server = gateway(
        models={"big": {"upstreams": [one.url]}, "small": {"upstreams": [other.url]}},
        ladders={**LADDER, "deep": [BIG, {"model": "small", "quality": 0.1}]},
        classes={"code": {"shed_below": 0.9}, "speech": {"shed_below": 0.9, "fallback_model": "small"}},
        otlp_endpoint=backend.url,
    )
    with ThreadPoolExecutor() as pool:
        first = pool.submit(ask, server, prompt="word " * 200_000)
        assert one.stalled.wait(120)
        assert ask(server).headers["x-andes-model"] == "small"
        strict = {"x-andes-class": "code"}
        passed_over = ask(server, "deep", **strict)  # late at the better model is worth more, but that would refuse it
        assert (passed_over.headers["x-andes-model"], passed_over.headers["x-andes-quality"]) == ("small", "0.1")
        fallen = ask(server, "big", **{"x-andes-class": "speech"})
        assert (fallen.headers["x-andes-model"], fallen.headers["x-andes-fallback"]) == ("small", "predicted_qoe")
        promised = len(server.app.state.gateway.placement._admission._places)
        refused = ask(server, "deep", **strict, **{"x-andes-degrade": "off"})
        assert (refused.status_code, refused.headers["x-andes-reason"]) == (429, "predicted_qoe")
        one.fault = None
        assert ask(server, **{"x-andes-degrade": "off"}).headers["x-andes-model"] == "big"
        one.release.set()
        assert first.result(60).headers["x-andes-model"] == "big"
    assert not promised, "neither was told to come again"
    counted = 'andes_gateway_ladder_total{class="reading",ladder="chat",model="big"} 2.0'
    while counted not in httpx.get(server.url + "/metrics").text:  # its span has ended by then
        time.sleep(0.01)
    server.app.state.gateway.telemetry.stop()
    spans = [backend.said(span) for span in backend.spans]
    assert sorted(s["andes.quality"] for s in spans if s.get("andes.ladder") == "chat") == [0.86, 1.0, 1.0]


@pytest.mark.server
@pytest.mark.parametrize("fault", ["hang up", "die", "429", "500"])
def test_where_the_only_engine_of_a_rung_fails_at_once_another_rung_answers(
    fault: str, faulty: Any, gateway: Any
) -> None:
    one, other = faulty(), faulty()
    one.fault, one.after = fault, 0
    models = {"big": {"upstreams": [one.url]}, "small": {"upstreams": [other.url]}}
    server = gateway(models=models, ladders=LADDER, classes={"code": {"fallback_model": "small"}}, breaker_failures=100)
    answer = ask(server)
    assert (answer.status_code, answer.headers["x-andes-model"], answer.headers["x-andes-quality"]) == (
        200,
        "small",
        "0.86",
    )
    assert "w7 x" in answer.text
    fallen = ask(server, "big", **{"x-andes-class": "code"})
    assert (fallen.status_code, fallen.headers["x-andes-model"]) == (200, "small")
    assert fallen.headers["x-andes-fallback"] == "engine_failed"
    for model, headers in (("chat", {"x-andes-degrade": "off"}), ("big", {})):
        alone = ask(server, model, **headers)
        assert alone.status_code == (429 if fault == "429" else 500 if fault == "500" else 502)
    record = httpx.get(server.url + "/fleet/demand").json()["records"][0]
    assert (record["ladder"], record["model"], record["quality"]) == ("chat", "small", 0.86)


@pytest.mark.server
def test_where_the_better_engine_alone_is_left_it_answers(faulty: Any, gateway: Any) -> None:
    """The weaker one was chosen, and dies of the request."""
    one, other = faulty(), faulty()
    one.fault, one.after, other.fault, other.after = "stall", 0, "hang up", 0
    server = gateway(
        models={"big": {"upstreams": [one.url], "max_streams": 2}, "small": {"upstreams": [other.url]}}, ladders=LADDER
    )
    with ThreadPoolExecutor() as pool:
        first = pool.submit(ask, server, prompt="word " * 200_000)
        assert one.stalled.wait(120)
        one.fault = None
        assert ask(server).headers["x-andes-model"] == "big"
        assert len(other.bodies) == 1
        one.release.set()
        assert first.result(60).status_code == 200


@pytest.mark.server
def test_an_engine_that_failed_is_not_asked_for_its_other_model(faulty: Any, gateway: Any) -> None:
    """Then no stream has fallen back, and the failure is on the record of the model that was asked for."""
    engine = faulty()
    engine.models = (200, b'{"object":"list","data":[{"id":"big"},{"id":"small"}]}')
    engine.fault = "hang up"
    server = gateway(engine.url, classes={"code": {"fallback_model": "small"}}, breaker_failures=100)
    answer = ask(server, "big", **{"x-andes-class": "code"})
    assert (answer.status_code, answer.headers["x-andes-model"]) == (502, "big")
    assert "x-andes-fallback" not in answer.headers
    assert {body["model"] for body in engine.bodies} == {"big"}
    record = httpx.get(server.url + "/fleet/demand").json()["records"][-1]
    assert record["model"] == "big"


@pytest.mark.server
def test_an_answer_goes_on_with_the_model_that_began_it(faulty: Any, gateway: Any) -> None:
    one, twin, other = faulty(), faulty(), faulty()
    one.fault, one.after, one.strike = "die", 3, threading.Event()
    twin.healthy = False
    server = gateway(
        models={"big": {"upstreams": [one.url, twin.url]}, "small": {"upstreams": [other.url]}},
        ladders=LADDER,
        health_interval_s=0.05,
    )
    with ThreadPoolExecutor() as pool:
        asked = pool.submit(ask, server)
        while not one.bodies:
            assert not asked.done()
            time.sleep(0.01)
        twin.healthy = True
        while httpx.get(server.url + "/readyz").json()["engines"] < 3:
            assert not asked.done()
            time.sleep(0.01)
        one.strike.set()
        answer = asked.result(60)
    assert (answer.status_code, answer.headers["x-andes-model"]) == (200, "big")
    assert "w7 x" in answer.text, "all eight tokens"
    assert (len(twin.bodies), len(other.bodies)) == (1, 0)


@pytest.mark.server
def test_a_tenant_has_the_rungs_that_it_may_use(faulty: Any, gateway: Any) -> None:
    one, other = faulty(), faulty()
    hashes = {
        "key": "2c70e12b7a0646f92279f427c7b38e7334d8e5389cff167a1dc30e73f826b683",
        "other": "d9298a10d1b0735837dc4bd85dac641b0f3cef27a47e5d53a54f2f3f5b2fcffa",
    }
    server = gateway(
        models={"big": {"upstreams": [one.url]}, "small": {"upstreams": [other.url]}},
        ladders=LADDER,
        tenants=[
            {"name": "a", "key_sha256": hashes["key"], "models": ["small"]},
            {"name": "b", "key_sha256": hashes["other"], "models": ["chat"]},
        ],
    )
    poor, rich = {"authorization": "Bearer key"}, {"authorization": "Bearer other"}
    assert ask(server, **poor).headers["x-andes-model"] == "small"
    assert ask(server, **rich).headers["x-andes-model"] == "big"
    assert ask(server, "big", **rich).status_code == 404
    listed = [httpx.get(server.url + "/v1/models", headers=key).json()["data"] for key in (poor, rich)]
    assert [[card["id"] for card in cards] for cards in listed] == [["small", "chat"], ["chat"]]
