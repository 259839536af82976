"""What a request says of its reader, in the body of an OpenAI or SGLang request.

``custom_params: {"qoe": {"ttft": seconds, "tds": tokens/s, "weight": number, "yield": true or false, "tokens": number,
"reasoning": "hidden" or "shown", "think_tds": tokens/s or null, "returns": seconds or null}}``

Every field may be left out. Gateway, engine, simulated engine, benchmark and traces all read and write it through this
module, so that what one of them accepts every other one accepts too.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

from andes_sglang.qoe import THINK_TDS, QoETarget

__all__ = [
    "KEY", "MAX_EXPECTED_TOKENS", "MAX_RETURNS_S", "MAX_WEIGHT", "MIN_WEIGHT", "REASONING", "ReaderExpectation", "parse",
    "to_custom_params", "with_reasoning_shown",
]  # fmt: skip

KEY = "qoe"
MIN_WEIGHT, MAX_WEIGHT = 1e-3, 1e3
"""Ratio to a stream of weight 1; six decades keep every sum of weighted QoE far from rounding."""
MAX_EXPECTED_TOKENS = 10_000_000
"""Tokens; above the context length of any model served today (1e6 to 1e7)."""
_FIELDS = {"ttft": "ttft_s", "tds": "tds", "weight": "weight", "yield": "yields", "tokens": "expected_tokens",
           "reasoning": "reasoning", "think_tds": "think_tds", "returns": "returns_s"}  # fmt: skip
MAX_RETURNS_S = 600.0
"""Seconds; the conversation of a tool that takes longer is one like others (our choice)."""
REASONING = ("hidden", "shown")


@dataclass(frozen=True, slots=True)
class ReaderExpectation:
    """What one request says of its reader.

    target: expected TTFT and reading speed. weight: value of its QoE relative to other streams, 1e-3 to 1e3. yields: it
    has no reader who waits and gives way to those who have one. expected_tokens: length of the whole answer in tokens
    where the caller knows it, 1 to 1e7. reasoning: of a model that thinks first, whether the reader is shown the thought, and
    reads it like the answer (``shown``), or waits for the answer (``hidden``). returns_s: seconds from the end of this answer
    to the next request of the conversation, 0 to 600, where one is to be expected: a tool runs meanwhile. Raises
    ``ValueError`` naming field and value.
    """

    target: QoETarget = field(default_factory=QoETarget)
    weight: float = 1.0
    yields: bool = False
    expected_tokens: int | None = None
    reasoning: str = "hidden"
    returns_s: float | None = None

    def __post_init__(self) -> None:
        number = isinstance(self.weight, int | float) and not isinstance(self.weight, bool)
        if not (number and MIN_WEIGHT <= self.weight <= MAX_WEIGHT):
            raise ValueError(f"weight must be a number from {MIN_WEIGHT:g} to {MAX_WEIGHT:g}, got {self.weight!r}")
        if not isinstance(self.yields, bool):
            raise ValueError(f"yield must be true or false, got {self.yields!r}")
        tokens = self.expected_tokens
        whole = isinstance(tokens, int) and not isinstance(tokens, bool)
        if tokens is not None and not (whole and 1 <= tokens <= MAX_EXPECTED_TOKENS):
            raise ValueError(f"tokens must be a whole number from 1 to {MAX_EXPECTED_TOKENS}, got {tokens!r}")
        if self.reasoning not in REASONING:
            raise ValueError(f"reasoning must be one of {', '.join(REASONING)}, got {self.reasoning!r}")
        number = isinstance(self.returns_s, int | float) and not isinstance(self.returns_s, bool)
        if self.returns_s is not None and not (number and 0.0 <= self.returns_s <= MAX_RETURNS_S):
            raise ValueError(
                f"returns must be a number of seconds from 0 to {MAX_RETURNS_S:g}, or null, got {self.returns_s!r}"
            )

    @property
    def hides_reasoning(self) -> bool:
        return self.reasoning == "hidden"


def parse(custom_params: Any, default: QoETarget | ReaderExpectation) -> ReaderExpectation:
    """The expectation of a request; ``default`` fills what it leaves out. Raises ``ValueError`` naming field and value."""
    base = ReaderExpectation(default) if isinstance(default, QoETarget) else default
    if custom_params is not None and not isinstance(custom_params, dict):
        raise ValueError(f"custom_params must be an object, got {custom_params!r}")
    if not custom_params or KEY not in custom_params:
        return base
    given = custom_params[KEY]
    if not isinstance(given, dict):
        raise ValueError(f"custom_params.qoe must be an object with any of {', '.join(_FIELDS)}; got {given!r}")
    values: dict[str, Any] = {
        "ttft_s": base.target.ttft_s,
        "tds": base.target.tds,
        "think_tds": base.target.think_tds,
        "weight": base.weight,
        "yields": base.yields,
        "expected_tokens": base.expected_tokens,
        "reasoning": base.reasoning,
        "returns_s": base.returns_s,
    }
    for name, value in given.items():
        if name not in _FIELDS:
            raise ValueError(
                f"custom_params.qoe.{name}: unknown field (value {value!r}); known are {', '.join(_FIELDS)}"
            )
        values[_FIELDS[name]] = math.inf if name == "think_tds" and value is None else value
    try:
        target = QoETarget(values.pop("ttft_s"), values.pop("tds"), values.pop("think_tds"))
        return ReaderExpectation(target, **values)
    except ValueError as error:
        raise ValueError(f"custom_params.qoe.{error}") from None


def with_reasoning_shown(custom_params: Any) -> Any:
    """``custom_params`` of a request whose thought is shown, whatever it says of that; malformed ones as they are."""
    given = custom_params or {}
    if not isinstance(given, dict) or not isinstance(said := given.get(KEY, {}), dict):
        return custom_params
    return {**given, KEY: {**said, "reasoning": "shown"}}


def to_custom_params(expectation: ReaderExpectation) -> dict[str, Any]:
    """``{"qoe": {...}}`` for a request body; fields that hold their default are left out, ttft and tds never."""
    said: dict[str, Any] = {"ttft": expectation.target.ttft_s, "tds": expectation.target.tds}
    if expectation.weight != 1.0:
        said["weight"] = expectation.weight
    if expectation.yields:
        said["yield"] = True
    if expectation.expected_tokens is not None:
        said["tokens"] = expectation.expected_tokens
    if not expectation.hides_reasoning:
        said["reasoning"] = expectation.reasoning
    if expectation.returns_s is not None:
        said["returns"] = expectation.returns_s
    if (think_tds := expectation.target.think_tds) != THINK_TDS:
        said["think_tds"] = None if think_tds == math.inf else think_tds
    return {KEY: said}
