"""What a request says its reader expects: ``custom_params: {"qoe": {"ttft": seconds, "tds": tokens/s}}``."""

from __future__ import annotations

from typing import Any

from andes_sglang.qoe import QoETarget

__all__ = ["KEY", "parse"]

KEY = "qoe"
_FIELDS = {"ttft": "ttft_s", "tds": "tds"}


def parse(custom_params: Any, default: QoETarget) -> QoETarget:
    """The target of a request; ``default`` fills what it leaves out. Raises ``ValueError`` naming field and value."""
    if not isinstance(custom_params, dict) or KEY not in custom_params:
        return default
    wanted = custom_params[KEY]
    if not isinstance(wanted, dict):
        raise ValueError(f"custom_params.qoe must be an object with ttft and tds, got {wanted!r}")
    values = {"ttft_s": default.ttft_s, "tds": default.tds}
    for name, value in wanted.items():
        if name not in _FIELDS:
            raise ValueError(f"custom_params.qoe.{name}: unknown field (value {value!r}); known are ttft and tds")
        values[_FIELDS[name]] = value
    try:
        return QoETarget(**values)
    except ValueError as error:
        raise ValueError(f"custom_params.qoe.{error}") from None
