"""Requests that engines die of: recognised when they come again. Pure; time is an argument."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

import orjson

__all__ = ["MAX_DEATHS", "FatalRequests"]

MAX_DEATHS = 2
"""Engines that may die of one request before it is refused: one may have died by chance."""
MEMORY_S = 60.0
"""Seconds; an engine restarts in about as long, and clients have given up."""
MAX_REQUESTS = 1024
_INCIDENTAL = frozenset({"stream", "stream_options", "user", "custom_params", "service_tier", "metadata", "rid"})
"""Fields that say nothing of what an engine computes."""


class FatalRequests:
    """Keeps hashes of contents, never the contents; at most ``MAX_REQUESTS``, for a minute. now_s: clock seconds."""

    def __init__(self) -> None:
        self._until_s: OrderedDict[bytes, float] = OrderedDict()

    def add(self, body: Mapping[str, Any], now_s: float) -> None:
        """``MAX_DEATHS`` engines have died of ``body``."""
        key = _hash(body)
        self._until_s[key] = now_s + MEMORY_S
        self._until_s.move_to_end(key)
        while len(self._until_s) > MAX_REQUESTS:
            self._until_s.popitem(last=False)

    def left_s(self, body: Mapping[str, Any], now_s: float) -> float:
        """Seconds for which ``body`` is still refused; 0 for one that is not."""
        while self._until_s and next(iter(self._until_s.values())) <= now_s:
            self._until_s.popitem(last=False)
        return max(0.0, self._until_s.get(_hash(body), now_s) - now_s) if self._until_s else 0.0


def _hash(body: Mapping[str, Any]) -> bytes:
    content = {name: value for name, value in body.items() if name not in _INCIDENTAL}
    return hashlib.blake2b(orjson.dumps(content, default=repr, option=orjson.OPT_SORT_KEYS), digest_size=16).digest()
