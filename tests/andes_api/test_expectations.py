"""What a reader expects: sources, their order, clamps, tenants; malformed is a 400 that names header and value."""

from __future__ import annotations

import hashlib
from typing import Any

import pytest

from andes_api.errors import ApiError
from andes_api.expectations import key_matches, resolve, tenant_of
from andes_api.settings import ClassSettings, GatewaySettings, TenantSettings

SETTINGS = GatewaySettings(upstreams=("http://127.0.0.1:1",))


def tenant(**more: Any) -> TenantSettings:
    return TenantSettings(name="acme", key_sha256=hashlib.sha256(b"sk-1").hexdigest(), **more)


@pytest.mark.parametrize(
    ("headers", "body", "expected"),
    [
        ({}, {}, ("reading", 1.0, 4.8)),
        ({"x-andes-class": "listening"}, {}, ("listening", 1.0, 3.3)),
        ({}, {"service_tier": "flex"}, ("offline", 600.0, 1.0)),
        ({}, {"service_tier": "auto"}, ("reading", 1.0, 4.8)),
        ({"x-andes-ttft-ms": "250", "x-andes-tds": "8"}, {}, ("reading", 0.25, 8.0)),
        ({"x-llm-d-slo-ttft-ms": "500", "x-llm-d-slo-tpot-ms": "100"}, {}, ("reading", 0.5, 10.0)),
        ({"x-slo-ttft-ms": "500", "x-slo-tpot-ms": "50"}, {}, ("reading", 0.5, 20.0)),
        ({"x-andes-tds": "9", "x-slo-tpot-ms": "50"}, {}, ("reading", 1.0, 9.0)),
        ({}, {"custom_params": {"qoe": {"ttft": 2, "tds": 7}}}, ("reading", 2.0, 7.0)),
        ({"x-andes-tds": "9"}, {"custom_params": {"qoe": {"tds": 7}}}, ("reading", 1.0, 9.0)),
        ({"x-andes-tds": "100000", "x-andes-ttft-ms": "0"}, {}, ("reading", 0.1, 200.0)),  # clamped
    ],
)
def test_where_it_comes_from(headers: dict[str, str], body: dict[str, Any], expected: tuple[str, float, float]) -> None:
    found = resolve(headers, body, None, SETTINGS)
    assert (found.class_name, found.target.ttft_s, found.target.tds) == expected
    assert found.headers()["x-andes-class"] == expected[0]


@pytest.mark.parametrize(
    ("headers", "body", "named"),
    [
        ({"x-andes-tds": "fast"}, {}, "x-andes-tds"),
        ({"x-andes-tds": "0"}, {}, "x-andes-tds"),
        ({"x-andes-ttft-ms": "-1"}, {}, "x-andes-ttft-ms"),
        ({"x-andes-ttft-ms": "nan"}, {}, "x-andes-ttft-ms"),
        ({"x-slo-tpot-ms": "inf"}, {}, "x-slo-tpot-ms"),
        ({"x-andes-class": "lazy"}, {}, "x-andes-class"),
        ({"x-andes-pace": "maybe"}, {}, "x-andes-pace"),
        ({}, {"service_tier": "gold"}, "service_tier"),
        ({}, {"service_tier": []}, "service_tier"),
        ({}, {"custom_params": {"qoe": {"tds": -1}}}, "custom_params.qoe"),
        ({}, {"custom_params": {"qoe": 3}}, "custom_params.qoe"),
    ],
)
def test_malformed_is_refused_by_name(headers: dict[str, str], body: dict[str, Any], named: str) -> None:
    with pytest.raises(ApiError) as caught:
        resolve(headers, body, None, SETTINGS)
    assert caught.value.status == 400
    assert caught.value.param == named
    assert named in caught.value.message


def test_a_tenant_has_its_classes_and_its_first_is_the_default() -> None:
    bound = tenant(classes=("batch", "code"))
    assert resolve({}, {}, bound, SETTINGS).class_name == "batch"
    assert resolve({"x-andes-class": "code"}, {}, bound, SETTINGS).class_name == "code"
    with pytest.raises(ApiError, match="one of: batch, code"):
        resolve({"x-andes-class": "priority"}, {}, bound, SETTINGS)
    with pytest.raises(ApiError, match="service_tier"):
        resolve({}, {"service_tier": "priority"}, bound, SETTINGS)


def test_what_an_untrusted_caller_says_is_ignored() -> None:
    said = {"x-andes-class": "priority", "x-andes-tds": "not even a number", "x-andes-pace": "?"}
    found = resolve(said, {"custom_params": {"qoe": "?"}}, tenant(trusted=False), SETTINGS)
    assert (found.class_name, found.target.tds, found.pace) == ("reading", 4.8, False)


def test_pacing_by_class_and_by_request() -> None:
    settings = GatewaySettings(
        upstreams=("http://127.0.0.1:1",), classes={"reading": ClassSettings(pace=True)}, service_tiers={}
    )
    assert resolve({}, {}, None, settings).pace
    assert not resolve({"x-andes-pace": "off"}, {}, None, settings).pace


def test_keys() -> None:
    settings = GatewaySettings(upstreams=("http://127.0.0.1:1",), tenants=(tenant(),))
    found = tenant_of({"authorization": "Bearer sk-1"}, settings)
    assert found is not None
    assert found.name == "acme"
    for header in ("", "Bearer sk-2", "Basic sk-1", "sk-1", "Bearer", "Bearer \udcff"):
        with pytest.raises(ApiError) as caught:
            tenant_of({"authorization": header}, settings)
        assert (caught.value.status, caught.value.retry) == (401, False)
    assert key_matches("sk-1", settings.tenants[0].key_sha256)
