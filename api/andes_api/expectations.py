"""Who calls, and what the reader of this request expects: from headers, body, service tier, class and tenant."""

from __future__ import annotations

import hashlib
import hmac
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from andes_api.errors import ApiError
from andes_api.settings import ClassSettings, Settings, TenantSettings
from andes_sglang import expectations as engine
from andes_sglang.qoe import QoETarget

__all__ = ["ANONYMOUS", "Expectation", "key_matches", "resolve", "tenant_of"]

ANONYMOUS = "anonymous"
_TTFT_MS = ("x-andes-ttft-ms", "x-llm-d-slo-ttft-ms", "x-slo-ttft-ms")
_TPOT_MS = ("x-llm-d-slo-tpot-ms", "x-slo-tpot-ms")
_TIERS = ("auto", "default", "flex", "scale", "priority", "fast")


@dataclass(frozen=True, slots=True)
class Expectation:
    """What one request's reader expects, after clamping: class, target, whether to pace, service tier if one was asked."""

    class_name: str
    settings: ClassSettings
    target: QoETarget
    pace: bool
    tier: str | None = None

    def headers(self) -> dict[str, str]:
        echo = {
            "x-andes-class": self.class_name,
            "x-andes-ttft-ms": f"{self.target.ttft_s * 1000:g}",
            "x-andes-tds": f"{self.target.tds:g}",
        }
        return echo | ({"x-andes-service-tier": self.tier} if self.tier else {})


def key_matches(key: str, sha256: str) -> bool:
    """Whether ``key`` has this SHA-256 (hex); takes the same time wherever they differ."""
    return hmac.compare_digest(hashlib.sha256(key.encode("utf-8", "surrogateescape")).hexdigest(), sha256)


def tenant_of(headers: Mapping[str, str], settings: Settings) -> TenantSettings | None:
    """The tenant whose key the request carries; None where no tenants are set up. Raises 401."""
    if not settings.tenants:
        return None
    scheme, _, key = headers.get("authorization", "").partition(" ")
    matches = [tenant for tenant in settings.tenants if key_matches(key.strip(), tenant.key_sha256)]
    if scheme.lower() != "bearer" or not matches:
        raise ApiError(
            401, "no valid API key: send Authorization: Bearer KEY", "authentication_error", code="invalid_api_key",
            reason="unauthorized", retry=False,
        )  # fmt: skip
    return matches[0]


def resolve(
    headers: Mapping[str, str], body: Mapping[str, Any], tenant: TenantSettings | None, settings: Settings
) -> Expectation:
    """What this request's reader expects. Raises a 400 that names header or field and value."""
    trusted = settings.trust_anonymous if tenant is None else tenant.trusted
    said: Mapping[str, str] = headers if trusted else {}
    tier = _tier(body)
    name = said.get("x-andes-class") or settings.service_tiers.get(tier or "")
    allowed = tenant.classes if tenant and tenant.classes else tuple(settings.classes)
    if name is None:
        name = tenant.classes[0] if tenant and tenant.classes else settings.default_class
    elif name not in settings.classes or name not in allowed:
        known = ", ".join(allowed)
        raise _bad("x-andes-class" if "x-andes-class" in said else "service_tier", name, f"one of: {known}")
    cls = settings.classes[name]
    wanted = QoETarget(cls.ttft_s, cls.tds)
    if trusted:
        try:
            wanted = engine.parse(body.get("custom_params"), wanted).target
        except ValueError as error:
            raise ApiError(400, str(error), param="custom_params.qoe", reason="expectation") from None
    ttft_s, tds = wanted.ttft_s, wanted.tds
    for header in reversed(_TTFT_MS):
        if header in said:
            ttft_s = _number(header, said[header], zero=True) / 1000
    for header in reversed(_TPOT_MS):
        if header in said:
            tds = 1000 / _number(header, said[header])
    if "x-andes-tds" in said:
        tds = _number("x-andes-tds", said["x-andes-tds"])
    pace = said.get("x-andes-pace", "on" if cls.pace else "off")
    if pace not in ("on", "off"):
        raise _bad("x-andes-pace", pace, "on or off")
    return Expectation(name, cls, cls.clamp(ttft_s, tds), pace == "on", tier)


def _tier(body: Mapping[str, Any]) -> str | None:
    tier = body.get("service_tier")
    if tier is None:
        return None
    if tier not in _TIERS:
        raise _bad("service_tier", tier, f"one of: {', '.join(_TIERS)}")
    return "default" if tier == "auto" else str(tier)


def _number(name: str, text: str, zero: bool = False) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value) or value < 0 or (value == 0 and not zero):
        raise _bad(name, text, f"a number {'>=' if zero else '>'} 0")
    return value


def _bad(name: str, value: object, expected: str) -> ApiError:
    return ApiError(400, f"{name}: expected {expected}; got {str(value)[:100]!r}", param=name, reason="expectation")
