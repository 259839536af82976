"""Requests that engines die of: recognised when they come again. Pure; time is an argument."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Any

import orjson

__all__ = ["MAX_DEATHS", "FatalRequests", "content_hash"]

MAX_DEATHS = 2
"""Engines that may die of one request before it is refused: one may have died by chance."""
MEMORY_S = 60.0
"""Seconds; an engine restarts in about as long, and clients have given up."""
MAX_REQUESTS = 1024
_INCIDENTAL = frozenset({"stream", "stream_options", "user", "custom_params", "service_tier", "metadata", "rid"})
"""Fields that say nothing of what an engine computes."""


class FatalRequests:
    """Keeps hashes of contents, never the contents; at most ``MAX_REQUESTS``, for a minute. now_s: clock seconds. tell: is
    called with what :meth:`learn` takes, for the other workers."""

    def __init__(self, tell: Callable[[bytes, float], None] | None = None) -> None:
        self._tell = tell
        self._until_s: OrderedDict[bytes, float] = OrderedDict()

    def add(self, body: Mapping[str, Any], now_s: float) -> None:
        """``MAX_DEATHS`` engines have died of ``body``."""
        key, until_s = content_hash(body), now_s + MEMORY_S
        self.learn(key, until_s)
        if self._tell is not None:
            self._tell(key, until_s)

    def learn(self, key: bytes, until_s: float) -> None:
        """Engines have died of the content with this hash; it is refused until then."""
        self._until_s[key] = until_s
        self._until_s.move_to_end(key)
        while len(self._until_s) > MAX_REQUESTS:
            self._until_s.popitem(last=False)

    def left_s(self, body: Mapping[str, Any], now_s: float) -> float:
        """Seconds for which ``body`` is still refused; 0 for one that is not."""
        while self._until_s and next(iter(self._until_s.values())) <= now_s:
            self._until_s.popitem(last=False)
        return max(0.0, self._until_s.get(content_hash(body), now_s) - now_s) if self._until_s else 0.0


def content_hash(body: Mapping[str, Any]) -> bytes:
    """The same for requests of which an engine computes the same."""
    content = {name: value for name, value in body.items() if name not in _INCIDENTAL}
    return hashlib.blake2b(orjson.dumps(content, default=repr, option=orjson.OPT_SORT_KEYS), digest_size=16).digest()
