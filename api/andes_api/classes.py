"""Classes of readers, tenants and models: what readers expect, and the bounds of what requests may ask for."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from andes_sglang.admission import Wish
from andes_sglang.expectations import MAX_WEIGHT, MIN_WEIGHT, ReaderExpectation
from andes_sglang.qoe import THINK_TDS, QoETarget

__all__ = [
    "BUILT_IN", "BatchLimits", "BatchSettings", "ClassName", "ClassSettings", "Count", "ModelSettings", "Seconds", "Strict",
    "TenantSettings", "UpstreamAddress", "option_values", "over_built_in",
]  # fmt: skip

Seconds = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Count = Annotated[int, Field(ge=1)]
ClassName = Annotated[str, Field(pattern=r"^[a-z0-9_-]{1,64}$")]


def _upstream(url: str) -> str:
    parts = urlsplit(url)
    try:
        port = parts.port
    except ValueError as error:
        raise ValueError(f"{error} in {url!r}") from None
    if parts.scheme == "dns":
        if not parts.hostname or port is None:
            raise ValueError(f"expected dns://NAME:PORT, got {url!r}")
    elif parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError(f"expected http://HOST:PORT, https://HOST or dns://NAME:PORT, got {url!r}")
    if parts.query or parts.fragment or parts.username:
        raise ValueError(f"an upstream is only an address, got {url!r}")
    return url.rstrip("/").removesuffix("/v1")


UpstreamAddress = Annotated[str, AfterValidator(_upstream)]


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class ClassSettings(Strict):
    """A class of readers: what they expect, the bounds of what a request may ask for, and what they are worth.

    ttft_s, tds: expected seconds to the first token and tokens/s. weight: value of their QoE relative to others; a request
    may ask for less, not for more. yields: no reader waits for these answers; they give way to those that have one.
    reasoning: whether they are shown what a model thinks before it answers, and read it (shown), or not (hidden); think_tds:
    tokens/s at which a hidden thought may go on before they wait for the answer, null: ``ttft_s`` holds whatever is thought.
    shed_below, max_wait_s: these readers would rather be told at once that their QoE would be less, or that the first token
    would take longer, than be served so; ``shed_below`` 0: never refused by forecast. pace: release tokens
    at the reader's speed. fallback_model: who answers while the model asked for has no engine or would refuse the stream.
    least_quality: the least of a rung that may answer a request for a ladder.
    """

    ttft_s: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 1.0
    tds: Seconds = 4.8
    min_ttft_s: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.1
    max_ttft_s: Seconds = 600.0
    min_tds: Seconds = 0.5
    max_tds: Seconds = 200.0
    weight: Annotated[float, Field(ge=MIN_WEIGHT, le=MAX_WEIGHT)] = 1.0
    yields: bool = False
    reasoning: Literal["hidden", "shown"] = "hidden"
    think_tds: Annotated[float, Field(ge=1e-3, le=1e9)] | None = THINK_TDS
    shed_below: Annotated[float, Field(ge=0, le=1)] = 0.05
    max_wait_s: Seconds | None = None
    pace: bool = False
    fallback_model: str | None = None
    least_quality: Annotated[float, Field(ge=0, le=1)] = 0.0

    @model_validator(mode="after")
    def _in_bounds(self) -> ClassSettings:
        for tds in (self.min_tds, self.max_tds):
            QoETarget(self.max_ttft_s, tds)  # raises for bounds that a reader cannot have
        if not self.min_ttft_s <= self.ttft_s <= self.max_ttft_s:
            raise ValueError(f"ttft_s {self.ttft_s:g} is outside {self.min_ttft_s:g} to {self.max_ttft_s:g}")
        if not self.min_tds <= self.tds <= self.max_tds:
            raise ValueError(f"tds {self.tds:g} is outside {self.min_tds:g} to {self.max_tds:g}")
        return self

    @property
    def wish(self) -> Wish:
        return Wish(self.shed_below, self.max_wait_s)

    @property
    def expectation(self) -> ReaderExpectation:
        """Of a request that says nothing of its reader."""
        think_tds = math.inf if self.think_tds is None else self.think_tds
        target = QoETarget(self.ttft_s, self.tds, think_tds)
        return ReaderExpectation(target, self.weight, self.yields, reasoning=self.reasoning)

    def clamp(self, asked: ReaderExpectation, max_tokens: int | None = None) -> ReaderExpectation:
        """``asked`` within this class's bounds. max_tokens: of the request; an answer is not expected to be longer."""
        ttft_s = min(max(asked.target.ttft_s, self.min_ttft_s), self.max_ttft_s)
        tds = min(max(asked.target.tds, self.min_tds), self.max_tds)
        tokens = asked.expected_tokens
        if tokens is not None and max_tokens is not None:
            tokens = min(tokens, max_tokens)
        target = QoETarget(ttft_s, tds, asked.target.think_tds)
        yields = asked.yields or self.yields
        return ReaderExpectation(
            target, min(asked.weight, self.weight), yields, tokens, asked.reasoning, asked.returns_s
        )


class BatchLimits(Strict):
    """What one tenant may have of batches, or all callers together where there are no tenants. files, bytes: of its files,
    outputs included. requests: of its batches that have not ended."""

    files: Count = 1_000
    bytes: Count = 20 << 30
    requests: Count = 500_000


class BatchSettings(Strict):
    """The batch API. directory: where files and batches lie, the same for all gateways; null: there is no batch API.
    max_requests, max_file_bytes: of one batch. file_days: days that a file is kept; batch_days: those that a batch is kept
    from its end on. per_engine: requests of batches that one engine has at a time, at most. limits: of each tenant that has
    none of its own."""

    directory: Path | None = None
    max_requests: Count = 50_000
    max_file_bytes: Count = 200 << 20
    file_days: Seconds = 30.0
    batch_days: Seconds = 30.0
    per_engine: Count = 256
    limits: BatchLimits = BatchLimits()


class TenantSettings(Strict):
    """A caller. key_sha256: SHA-256 of the API key, in hex; the key itself is stored nowhere.

    classes: those it may use, the first being its default; empty: all. models: those it may use, with their adapters; empty:
    all. tools: those it may have run here; empty: all. trusted: whether what it says its readers expect counts. max_streams,
    requests_per_minute, tokens_per_minute (of prompts and answers together), input_tokens_per_minute,
    output_tokens_per_minute: limits; null: none. batches: limits of its batches; null: those of
    ``batches.limits``.
    """

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9._-]{1,64}$")]
    key_sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    classes: tuple[str, ...] = ()
    models: tuple[str, ...] = ()
    tools: tuple[str, ...] = ()
    trusted: bool = True
    max_streams: Count | None = None
    requests_per_minute: Annotated[float, Field(gt=0)] | None = None
    tokens_per_minute: Count | None = None
    input_tokens_per_minute: Count | None = None
    output_tokens_per_minute: Count | None = None
    batches: BatchLimits | None = None


class ModelSettings(Strict):
    """A model. upstreams: its engines, whatever they call it; empty: those that announce it. classes: those that its readers
    may have, the first being its default; empty: all. max_streams: open streams of it; null: no limit of its own."""

    upstreams: tuple[UpstreamAddress, ...] = ()
    classes: tuple[str, ...] = ()
    max_streams: Count | None = None


BUILT_IN: dict[str, dict[str, float]] = {
    "reading": {},
    "listening": {"tds": 3.3},
    "code": {"tds": 10.0},
    "agent": {"ttft_s": 2.0, "tds": 20.0},
    "batch": {"ttft_s": 30.0, "tds": 1.0, "weight": 0.2, "shed_below": 0.5},
    "priority": {"weight": 4.0, "shed_below": 0.0},
    "offline": {"ttft_s": 600.0, "tds": 1.0, "yields": True, "shed_below": 0.0},
}
"""Reading and listening speeds of Andes, section 3 (4.8 and 3.3 tokens/s); the others are this product's own."""


def over_built_in(given: Any) -> Any:
    """Classes as given over the built-in ones, field by field; null takes one away."""
    if not isinstance(given, dict):
        return given
    classes: dict[str, Any] = {**BUILT_IN}
    for name, fields in given.items():
        classes[name] = {**BUILT_IN.get(name, {}), **fields} if isinstance(fields, dict) else fields
    return {name: fields for name, fields in classes.items() if fields is not None}


def option_values(options: Any) -> Any:
    """In the environment every option is text: as JSON where it is JSON."""
    if not isinstance(options, dict):
        return options
    return {name: _json(value) if isinstance(value, str) else value for name, value in options.items()}


def _json(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text
