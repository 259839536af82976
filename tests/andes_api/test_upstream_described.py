"""An engine as ``/fleet/replicas`` tells of it."""

from __future__ import annotations

from andes_api.settings import GatewaySettings
from andes_api.upstream import Upstream
from andes_sglang.latency import LatencyModel


def test_it_is_described_by_what_is_known_of_it() -> None:
    settings = GatewaySettings(upstreams=("http://engine:1",), max_streams_per_replica=4, breaker_failures=1)
    engine = Upstream("http://engine:1", settings, 100.0)
    expected = {
        "name": "engine:1", "model": None, "models": [], "healthy": None, "reason": None, "draining": False,
        "breaker_open": False, "streams": 0, "waiting": 0, "offline": 0, "others": 0, "requests": None, "slots": 4, "policy": None,
        "flags": None, "context_tokens": 0,
        "decode_s": round(LatencyModel().decode_s(1, 0.0), 5),
    }  # fmt: skip
    assert engine.describe(100.0) == expected
    engine.drained, engine.context_tokens, engine.others, engine.requests = True, 70000.9, 2, 3
    engine.failed("garbage", 100.0)
    assert engine.describe(100.0) == {
        **expected, "healthy": False, "reason": "garbage", "draining": True, "breaker_open": True, "others": 2,
        "requests": 3, "context_tokens": 70000,
        "decode_s": round(LatencyModel().decode_s(1, 70000.9), 5),
    }  # fmt: skip
