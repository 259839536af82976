"""What a tenant may use in a minute: in the pure core, and as the official client sees it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import openai
import pytest

from andes_api.demand import DemandRecord
from andes_api.endpoints import CHAT
from andes_api.errors import ApiError
from andes_api.expectations import resolve
from andes_api.limits import TenantLimits
from andes_api.prompts import Prompt
from andes_api.settings import GatewaySettings, GatewaySettingsError, TenantSettings, load
from andes_api.stream import Stream
from andes_sglang.expectations import ReaderExpectation

SETTINGS = GatewaySettings(upstreams=("http://engine:1",))
KEY = "2c70e12b7a0646f92279f427c7b38e7334d8e5389cff167a1dc30e73f826b683"  # of "key"


def stream(prompt_tokens: int) -> Stream:
    body = {"messages": [{"role": "user", "content": "x"}], "stream": True}
    expectation = resolve({}, body, None, SETTINGS)
    record = DemandRecord(0.0, "reading", True, prompt_tokens, ReaderExpectation())
    return Stream(CHAT, body, expectation, None, {}, 0.0, Prompt(body, CHAT.prompt), float(prompt_tokens), record)


@pytest.fixture
def limits() -> Callable[..., TenantLimits]:
    def make(**given: Any) -> TenantLimits:
        return TenantLimits(TenantSettings(name="acme", key_sha256=KEY, **given))

    return make


def refused(limits: TenantLimits, prompt_tokens: int, now_s: float) -> ApiError:
    with pytest.raises(ApiError) as caught:
        limits.admit(stream(prompt_tokens), now_s, 5.0)
    return caught.value


def test_prompts_and_answers_are_charged_as_they_come(limits: Callable[..., TenantLimits]) -> None:
    acme = limits(tokens_per_minute=600)
    one = stream(100)
    acme.admit(one, 0.0, 5.0)
    assert acme.headers(0.0) == {
        "x-ratelimit-limit-tokens": "600", "x-ratelimit-remaining-tokens": "500", "x-ratelimit-reset-tokens": "10.000s",
    }  # fmt: skip
    one.tokens = 450
    assert acme.headers(0.0)["x-ratelimit-remaining-tokens"] == "50"
    error = refused(acme, 80, 0.0)
    assert (error.status, error.reason, error.code) == (429, "tenant_tokens", "rate_limit_exceeded")
    assert error.retry_after_s == pytest.approx(3.0), "30 tokens at 10 a second"
    assert error.headers["x-ratelimit-remaining-tokens"] == "50"
    one.record.prompt_tokens, one.tokens, one.record.outcome = 140, 900, "done"  # as the engine has counted; overdrawn
    acme.ended(one, 0.0)
    assert acme.headers(0.0)["x-ratelimit-remaining-tokens"] == "0"
    assert refused(acme, 10, 0.0).retry_after_s == pytest.approx(45.0)
    acme.admit(stream(10), 45.0, 5.0)


def test_input_and_output_are_apart(limits: Callable[..., TenantLimits]) -> None:
    acme = limits(input_tokens_per_minute=100, output_tokens_per_minute=50)
    one = stream(90)
    acme.admit(one, 0.0, 5.0)
    assert refused(acme, 20, 0.0).message == "acme may use 100 input tokens a minute"
    one.tokens = 50
    assert refused(acme, 5, 0.0).message == "acme may use 50 output tokens a minute"
    assert acme.headers(60.0)["x-ratelimit-remaining-output-tokens"] == "50"
    assert set(acme.headers(60.0)) == {
        f"x-ratelimit-{what}-{kind}-tokens" for what in ("limit", "remaining", "reset") for kind in ("input", "output")
    }


@pytest.mark.parametrize(
    ("outcome", "tokens", "left"),
    [("shed", 0, "600"), ("error", 0, "600"), ("error", 20, "480"), ("failed", 20, "480"), ("abandoned", 0, "500")],
)
def test_what_is_refused_costs_nothing(
    outcome: str, tokens: int, left: str, limits: Callable[..., TenantLimits]
) -> None:
    """But for what was delivered before the engine found it wrong."""
    acme = limits(tokens_per_minute=600)
    one = stream(100)
    acme.admit(one, 0.0, 5.0)
    one.tokens, one.record.outcome = tokens, outcome
    acme.ended(one, 0.0)
    acme.ended(one, 0.0)  # again changes nothing
    assert acme.headers(0.0)["x-ratelimit-remaining-tokens"] == left


def test_a_prompt_that_never_fits_is_not_tried_again(limits: Callable[..., TenantLimits]) -> None:
    error = refused(limits(tokens_per_minute=600), 601, 0.0)
    assert error.headers["x-should-retry"] == "false"
    assert "retry-after" not in error.headers
    assert "this prompt is longer" in error.message


def test_a_request_refused_for_its_tokens_is_not_counted(limits: Callable[..., TenantLimits]) -> None:
    acme = limits(tokens_per_minute=100, requests_per_minute=60, max_streams=2)
    acme.admit(stream(100), 0.0, 5.0)
    for _ in range(20):
        assert refused(acme, 10, 0.0).reason == "tenant_tokens"
    assert acme.headers(0.0)["x-ratelimit-remaining-requests"] == "5"
    assert acme.headers(0.0)["x-ratelimit-limit-requests"] == "60"
    acme.admit(stream(1), 10.0, 5.0)
    full = refused(acme, 1, 20.0)
    assert (full.reason, full.retry_after_s) == ("tenant_streams", 2.5)


@pytest.mark.parametrize("field", ["tokens_per_minute", "input_tokens_per_minute", "output_tokens_per_minute"])
@pytest.mark.parametrize("value", [0, -1, 1.5, "many"])
def test_a_wrong_limit_is_named(field: str, value: Any) -> None:
    with pytest.raises(GatewaySettingsError, match=field):
        load(None, upstreams=["http://a:1"], tenants=[{"name": "a", "key_sha256": KEY, field: value}])


def test_an_error_keeps_its_limits() -> None:
    error = replace(ApiError(429, "x"), limits={"x-ratelimit-limit-tokens": "1"})
    assert error.headers["x-ratelimit-limit-tokens"] == "1"


def test_the_official_client_sees_what_is_left(faulty: Any, gateway: Any) -> None:
    tenants = [{"name": "a", "key_sha256": KEY, "tokens_per_minute": 40, "requests_per_minute": 100}]
    server = gateway(faulty().url, tenants=tenants)
    sdk = openai.OpenAI(base_url=server.url + "/v1", api_key="key", max_retries=0)
    ask: dict[str, Any] = {"model": "m", "messages": [{"role": "user", "content": "say"}], "max_tokens": 60}
    first = sdk.chat.completions.with_raw_response.create(**ask)
    assert first.headers["x-ratelimit-limit-tokens"] == "40"
    assert int(first.headers["x-ratelimit-remaining-requests"]) == 9
    assert len(list(sdk.chat.completions.create(**ask, stream=True))) > 60
    with pytest.raises(openai.RateLimitError, match="a may use 40 tokens a minute") as caught:
        sdk.chat.completions.create(**ask)
    headers = caught.value.response.headers
    assert (headers["x-andes-reason"], headers["x-ratelimit-remaining-tokens"]) == ("tenant_tokens", "0")
    assert 1 <= int(headers["retry-after"]) <= 60
