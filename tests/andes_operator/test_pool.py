"""Whose demand it is: one model of several, one pool of several."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from cases import pod, request_at

from andes_operator.gateway_report import FleetReplica, GatewayReport
from andes_operator.offline import OfflineWork, PendingBatch
from andes_operator.pool import Share, addresses, known_models, model_of, part, share

NOW_S = 1_795_251_720.0


def engine(ip: str, streams: int, model: str | None = "llama", *, healthy: bool = True) -> FleetReplica:
    return FleetReplica(f"{ip}:80", healthy, False, streams, 1, 0, model=model)


def report(
    *replicas: FleetReplica, requests: int = 10, held: int = 0, models: tuple[str, ...] = ("llama",)
) -> GatewayReport:
    times = tuple(request_at(NOW_S - 100 + i) for i in range(requests))
    offline = OfflineWork((PendingBatch(NOW_S + 3600, 9000.0, 90),))
    return GatewayReport("g", NOW_S, NOW_S, NOW_S - 600, times, {}, {}, replicas, held, models=models, offline=offline)


OWN = frozenset({"10.0.0.1", "10.0.0.2", "fd00::1"})


def test_the_addresses_of_pods_that_exist() -> None:
    pods = [pod("a", "10.0.0.1"), pod("b"), pod("c", "10.0.0.3", deletionTimestamp="2026-11-21T09:00:00Z")]
    assert addresses(pods) == {"10.0.0.1"}


def test_the_model_is_what_most_of_the_own_engines_announce() -> None:
    reports = [
        report(engine("10.0.0.1", 0), engine("10.0.0.2", 0), engine("10.0.0.8", 0, "qwen"), models=("llama", "qwen")),
        report(engine("10.0.0.1", 0), engine("[fd00::1]", 0, "qwen"), models=("llama",)),
    ]
    assert model_of(reports, OWN) == "llama"
    assert model_of(reports, frozenset({"10.0.0.8"})) == "qwen"
    assert model_of([report(engine("10.0.0.1", 0, None))], OWN) is None
    assert known_models(reports) == ["llama", "qwen"]


@pytest.mark.parametrize(
    ("replicas", "expected"),
    [
        ((engine("10.0.0.1", 6), engine("10.0.0.8", 2)), 0.75),
        ((engine("10.0.0.1", 3), engine("10.0.0.2", 5)), 1.0),
        ((engine("10.0.0.1", 0), engine("10.0.0.8", 0), engine("10.0.0.9", 0), engine("10.0.0.2", 0)), 0.5),
        ((engine("10.0.0.1", 0, healthy=False), engine("10.0.0.8", 0)), 0.0),
        ((engine("10.0.0.1", 0, healthy=False), engine("10.0.0.8", 0, healthy=False)), None),
        ((engine("engine-0", 5), engine("engine-1", 4)), None),
        ((), None),
    ],
)  # fmt: skip
def test_a_pools_share_is_that_of_the_streams(replicas: tuple[FleetReplica, ...], expected: float | None) -> None:
    """With no stream that of the healthy engines; where none of the engines is known to be its own it is not known."""
    assert share([report(*replicas)], OWN) == expected


def test_a_pool_without_engines_has_no_share_while_others_serve() -> None:
    assert share([report(engine("10.0.0.8", 4))], frozenset()) == 0.0
    assert share([], frozenset()) is None


@pytest.mark.parametrize("of", [0.0, 0.3, 0.5, 1.0])
def test_the_parts_of_all_pools_add_up(of: float) -> None:
    whole = [report(engine("10.0.0.1", 6), engine("10.0.0.8", 2), requests=1000, held=10)]
    (mine,), (theirs,) = part(whole, OWN, of), part(whole, frozenset({"10.0.0.8"}), 1.0 - of)
    assert len(mine.requests) + len(theirs.requests) == pytest.approx(1000, abs=1)
    assert len(mine.requests) == pytest.approx(1000 * of, abs=1)
    assert mine.held + theirs.held == 10
    assert mine.offline.tokens + theirs.offline.tokens == pytest.approx(9000.0)
    assert 0 <= mine.offline.requests + theirs.offline.requests - 90 <= 1
    assert mine.offline.requests == pytest.approx(90 * of, abs=1)
    assert [r.name for r in mine.replicas] == ["10.0.0.1:80"]
    gaps = [b.arrival_s - a.arrival_s for a, b in zip(mine.requests, mine.requests[1:])]
    assert not gaps or max(gaps) <= 1.0 / of + 1.0, "taken evenly"


def test_a_share_follows_within_a_window_and_knows_alone_from_shared_at_once() -> None:
    mine = Share()
    assert mine.update(0.4, NOW_S, 120.0) == 0.4
    assert mine.update(0.8, NOW_S + 12.0, 120.0) == pytest.approx(0.44)
    assert mine.update(0.8, NOW_S + 500.0, 120.0) == pytest.approx(0.8)
    assert mine.update(1.0, NOW_S + 501.0, 120.0) == 1.0
    assert mine.update(0.0, NOW_S + 502.0, 120.0) == 0.0
    assert mine.update(None, NOW_S + 503.0, 120.0) == 1.0
    assert mine.value is None


def parsed(**more: Any) -> GatewayReport:
    sketches = {"now_s": NOW_S, "classes": {}, "running": {}}
    said = {"name": "10.0.0.3:80", "healthy": True, "draining": False, "streams": 0, "waiting": 0, "others": 0, **more}
    answer = {"replicas": [said], **({"models": ["llama", "qwen"]} if more else {})}
    return GatewayReport.parse("a", {"now_s": NOW_S, "records": []}, sketches, answer, since_s=0.0, received_s=NOW_S)


def test_a_gateway_that_knows_models_says_so_and_an_older_one_does_not() -> None:
    assert (parsed(model="llama").replicas[0].model, parsed(model="llama").models) == ("llama", ("llama", "qwen"))
    assert (parsed().replicas[0].model, parsed().models) == (None, ())
    assert replace(parsed(model=None), models=()).replicas[0].model is None
