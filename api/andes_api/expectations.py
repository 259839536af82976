"""Who calls, and what the reader of this request expects: from headers, body, service tier, class and tenant."""

from __future__ import annotations

import hashlib
import hmac
import math
from collections.abc import Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

from andes_api.errors import ApiError
from andes_api.schema import REQUEST_HEADERS
from andes_api.settings import OFFLINE, ClassSettings, GatewaySettings, ModelSettings, TenantSettings
from andes_sglang.expectations import MAX_EXPECTED_TOKENS, REASONING, ReaderExpectation, parse
from andes_sglang.qoe import THINK_TDS, QoETarget

__all__ = ["ANONYMOUS", "ResolvedExpectation", "key_matches", "key_of", "of_batch", "resolve", "tenant_of"]

ANONYMOUS = "anonymous"
_TTFT_MS = ("x-andes-ttft-ms", "x-llm-d-slo-ttft-ms", "x-slo-ttft-ms")
_REASONING, _THINK_TDS = "x-andes-reasoning", "x-andes-think-tds"
_TPOT_MS = ("x-llm-d-slo-tpot-ms", "x-slo-tpot-ms")
_TIERS = ("auto", "default", "flex", "scale", "priority", "fast", "standard_only")


@dataclass(frozen=True, slots=True)
class ResolvedExpectation:
    """What holds for one request after clamping: its class, what its reader expects, whether to pace, the service tier if one
    was asked for, what was asked for and did not hold, whether the caller wants to know at the end what the stream got,
    whether a weaker model of a ladder may answer."""

    class_name: str
    settings: ClassSettings
    reader: ReaderExpectation
    pace: bool
    tier: str | None = None
    clamped: str = ""
    report: bool = False
    degrade: bool = True

    @property
    def target(self) -> QoETarget:
        return self.reader.target

    @property
    def weight(self) -> float:
        return self.reader.weight

    def headers(self) -> dict[str, str]:
        """What holds, as the response says it."""
        echo = {
            "x-andes-class": self.class_name,
            "x-andes-ttft-ms": f"{self.target.ttft_s * 1000:g}",
            "x-andes-tds": f"{self.target.tds:g}",
        }
        if not self.reader.hides_reasoning:
            echo[_REASONING] = self.reader.reasoning
        if (think_tds := self.target.think_tds) != THINK_TDS:
            echo[_THINK_TDS] = "none" if think_tds == math.inf else f"{think_tds:g}"
        if self.reader.expected_tokens is not None:
            echo["x-andes-expected-tokens"] = str(self.reader.expected_tokens)
        if self.tier:
            echo["x-andes-service-tier"] = self.tier
        if self.clamped:
            echo["x-andes-clamped"] = self.clamped
        return echo


def key_matches(key: str, sha256: str) -> bool:
    """Whether ``key`` has this SHA-256 (hex); takes the same time wherever they differ."""
    return hmac.compare_digest(hashlib.sha256(key.encode("utf-8", "surrogateescape")).hexdigest(), sha256)


def key_of(headers: Mapping[str, str]) -> str:
    """The key that a request carries; empty without one."""
    scheme, _, key = headers.get("authorization", "").partition(" ")
    if scheme.lower() != "bearer":
        key = headers.get("x-api-key", "")  # as Anthropic's clients send it
    return key.strip()


def tenant_of(headers: Mapping[str, str], settings: GatewaySettings) -> TenantSettings | None:
    """The tenant whose key the request carries; None where no tenants are set up. Raises 401."""
    if not settings.tenants:
        return None
    key = key_of(headers)
    matches = [tenant for tenant in settings.tenants if key_matches(key, tenant.key_sha256)]
    if not matches:
        raise ApiError(
            401, "no valid API key: send Authorization: Bearer KEY or x-api-key: KEY", "authentication_error",
            code="invalid_api_key", reason="unauthorized", retry=False,
        )  # fmt: skip
    return matches[0]


def resolve(
    headers: Mapping[str, str],
    body: Mapping[str, Any],
    tenant: TenantSettings | None,
    settings: GatewaySettings,
    model: ModelSettings | None = None,
) -> ResolvedExpectation:
    """What this request's reader expects. ``model``: the settings of the model asked for. Raises a 400 that names header or
    field and value."""
    trusted = settings.trust_anonymous if tenant is None else tenant.trusted
    said: Mapping[str, str] = headers if trusted else {}
    _check_names(said)
    tier = _tier(body)
    asked_name = said.get("x-andes-class") or settings.service_tiers.get(tier or "")
    name = _class_name(asked_name, _allowed(tenant, model, settings), header="x-andes-class" in said)
    cls = settings.classes[name]
    asked = cls.expectation
    if trusted:
        try:
            asked = parse(body.get("custom_params"), asked)
        except ValueError as error:
            raise ApiError(400, str(error), param="custom_params.qoe", reason="expectation") from None
    asked = _with_headers(asked, said)
    reader = cls.clamp(asked, max_tokens=_max_tokens(body))
    pace = said.get("x-andes-pace", "on" if cls.pace else "off")
    if pace not in ("on", "off"):
        raise _bad("x-andes-pace", pace, "on or off")
    report = headers.get("x-andes-report")
    if report not in (None, "usage"):
        raise _bad("x-andes-report", report, "usage")
    degrade = said.get("x-andes-degrade", "on")
    if degrade not in ("on", "off"):
        raise _bad("x-andes-degrade", degrade, "on or off")
    clamped = _clamped(asked, reader)
    return ResolvedExpectation(name, cls, reader, pace == "on", tier, clamped, report is not None, degrade == "on")


def of_batch(settings: GatewaySettings) -> ResolvedExpectation:
    """What a line of a batch expects, whatever it says: there is no reader."""
    cls = settings.classes[OFFLINE]
    return ResolvedExpectation(OFFLINE, cls, cls.clamp(cls.expectation), pace=False)


def _check_names(said: Mapping[str, str]) -> None:
    """Raise a 400 for a header that is meant for us but misspelt, or that comes twice."""
    seen = set()
    for name in said:
        if name in seen and name in REQUEST_HEADERS:
            raise ApiError(400, f"{name}: given more than once", param=name, reason="expectation", retry=False)
        seen.add(name)
        if name.startswith(("x-andes", "andes-")) and name not in REQUEST_HEADERS:
            name, known = name[:100], ", ".join(REQUEST_HEADERS)
            (near,) = get_close_matches(name, REQUEST_HEADERS, 1, cutoff=0.0)
            what = f"{name}: no such header; did you mean {near}? There are {known}"
            raise ApiError(400, what, param=name, reason="expectation", retry=False)


def _clamped(asked: ReaderExpectation, reader: ReaderExpectation) -> str:
    """What was asked for and does not hold, with what does, as a structured header: ``tds=500;holds=200``."""
    both = {
        "ttft-ms": (asked.target.ttft_s * 1000, reader.target.ttft_s * 1000),
        "tds": (asked.target.tds, reader.target.tds),
        "weight": (asked.weight, reader.weight),
        "expected-tokens": (asked.expected_tokens, reader.expected_tokens),
    }
    told = [f"{name}={said:g};holds={holds:g}" for name, (said, holds) in both.items() if said != holds]
    if asked.yields != reader.yields:
        told.append(f"yield=?{asked.yields:d};holds=?{reader.yields:d}")
    return ", ".join(told)


def _allowed(tenant: TenantSettings | None, model: ModelSettings | None, settings: GatewaySettings) -> list[str]:
    """The classes that a request may have, its default first."""
    by_tenant = tenant.classes if tenant is not None else ()
    by_model = model.classes if model is not None else ()
    names = by_tenant or by_model or (settings.default_class, *settings.classes)
    return [name for name in dict.fromkeys(names) if not by_model or name in by_model]


def _class_name(asked: str | None, allowed: list[str], *, header: bool) -> str:
    if asked is None:
        return allowed[0]
    if asked not in allowed:
        raise _bad("x-andes-class" if header else "service_tier", asked, f"one of: {', '.join(allowed)}")
    return asked


def _with_headers(asked: ReaderExpectation, said: Mapping[str, str]) -> ReaderExpectation:
    """Headers come before the body; of headers that say the same, our own before those of load generators."""
    ttft_s, tds, tokens = asked.target.ttft_s, asked.target.tds, asked.expected_tokens
    for header in reversed(_TTFT_MS):
        if header in said:
            ttft_s = _number(header, said[header], zero=True) / 1000
    for header in reversed(_TPOT_MS):
        if header in said:
            tds = 1000 / _number(header, said[header])
    if "x-andes-tds" in said:
        tds = _number("x-andes-tds", said["x-andes-tds"])
    if "x-andes-expected-tokens" in said:
        tokens = _whole("x-andes-expected-tokens", said["x-andes-expected-tokens"])
    reasoning = said.get(_REASONING, asked.reasoning)
    if reasoning not in REASONING:
        raise _bad(_REASONING, reasoning, " or ".join(REASONING))
    think_tds = asked.target.think_tds
    if _THINK_TDS in said:
        text = said[_THINK_TDS]
        think_tds = math.inf if text == "none" else min(max(_number(_THINK_TDS, text), 1e-3), 1e9)
    # Out of the bounds of what a reader can have; the class's bounds are narrower.
    target = QoETarget(min(ttft_s, 1e6), min(max(tds, 1e-3), 1e9), think_tds)
    return ReaderExpectation(target, asked.weight, asked.yields, tokens, reasoning, asked.returns_s)


def _max_tokens(body: Mapping[str, Any]) -> int | None:
    for name in ("max_completion_tokens", "max_tokens", "max_output_tokens"):
        value = body.get(name)
        if isinstance(value, int) and not isinstance(value, bool) and value > 0:
            return value
    return None


def _tier(body: Mapping[str, Any]) -> str | None:
    tier = body.get("service_tier")
    if tier is None:
        return None
    if tier not in _TIERS:
        raise _bad("service_tier", tier, f"one of: {', '.join(_TIERS)}")
    return "default" if tier in ("auto", "standard_only") else str(tier)


def _number(name: str, text: str, zero: bool = False) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value) or value < 0 or (value == 0 and not zero):
        raise _bad(name, text, f"a number {'>=' if zero else '>'} 0")
    return value


def _whole(name: str, text: str) -> int:
    value = int(text) if text.isascii() and text.isdigit() and len(text) < 10 else 0
    if not 1 <= value <= MAX_EXPECTED_TOKENS:
        raise _bad(name, text, f"a whole number from 1 to {MAX_EXPECTED_TOKENS}")
    return value


def _bad(name: str, value: object, expected: str) -> ApiError:
    return ApiError(400, f"{name}: expected {expected}; got {str(value)[:100]!r}", param=name, reason="expectation")
