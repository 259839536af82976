"""Who is late for the others' sake, where engines serve in order and more comes than they can serve."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from andes_sglang.qoe import QoETarget
from andes_sglang.routing import QoE
from andes_sglang.sim.engine import Costs
from andes_sglang.stream_forecast import IncomingStream, ReplicaView
from andes_sglang.waits import WaitView

COSTS = Costs(0.01, 0.0, 0.0, 0.02, 1e-5)
READER = IncomingStream(200.0, QoETarget(1.0, 4.0), answer_tokens=320.0)
"""Reads for 80 s: in time up to 3.1 s, at half of the QoE after 41 s."""


def replica(name: str, rate_rps: float, wait_s: float, *, sent_rps: float | None = None, **more: Any) -> ReplicaView:
    """It gives ``rate_rps`` first tokens a second, those that wait there are through after ``wait_s``, and it is sent a tenth
    more than it gives."""
    sent_rps = 1.1 * rate_rps if sent_rps is None else sent_rps
    waits = WaitView(round(wait_s * rate_rps), rate_rps, sent_rps=sent_rps, queues=more.pop("queues", True))
    return ReplicaView(name, COSTS, streams=round(wait_s * rate_rps), waits=waits, **more)


def order(*views: ReplicaView, **options: float) -> str:
    return "".join(view.name for view in QoE(**options).order(READER, list(views), 100.0))


def test_while_one_has_it_in_time_it_goes_there() -> None:
    """Though by the engines' costs alone the others are as good, and have fewer streams."""
    views = [replica("a", 20, 8.0), replica("b", 20, 2.0), replica("s", 3, 5.0)]
    assert order(*views).startswith("b")
    assert order(*views, sacrifice_share=0).startswith("s")


def test_where_none_has_it_goes_where_least_is_lost() -> None:
    """To the slow one, and of equals to the one that is the latest already."""
    assert order(replica("a", 20, 4.0), replica("b", 20, 4.0), replica("s", 3, 4.0)).startswith("s")
    equals = [replica(name, 20, wait_s) for name, wait_s in zip("abcdefgh", (4, 4, 9, 4, 4, 4, 4, 4))]
    assert order(*equals).startswith("c")


def test_not_more_than_a_share_are_late() -> None:
    """Of two alike more than half of all would be, of four 32 %."""
    two = [replica("a", 20, 4.0), replica("b", 20, 9.0)]
    assert order(*two) == order(*two, sacrifice_share=0) == "ab"
    assert order(*two, sacrifice_share=0.6) == "ba"
    four = [replica(name, 20, wait_s) for name, wait_s in zip("abcd", (4, 9, 4, 4))]
    assert order(*four).startswith("b")
    assert order(*four, sacrifice_share=0.3).startswith("a")


def test_nor_does_any_wait_for_longer_than_four_minutes() -> None:
    views = [replica("a", 20, 4.0), replica("b", 20, 4.0), replica("s", 2, 241.0), replica("t", 2, 30.0)]
    assert order(*views).startswith("t")
    assert order(*views[:3]).startswith("a"), "with one of the quick ones too, more than a third would be late"


def test_where_newcomers_come_first_or_nothing_is_known_all_is_as_it_was() -> None:
    quick = [replica(name, 20, 4.0) for name in "ab"]
    unknown = ReplicaView("u", COSTS, streams=12, waits=WaitView(12, None, sent_rps=10.0))
    for other in (replica("s", 3, 4.0, queues=False, pending_tokens=100.0), replace(unknown, pending_tokens=100.0)):
        assert order(*quick, other) == order(*quick, other, sacrifice_share=0)
        assert not order(*quick, other).startswith(other.name)


@pytest.mark.parametrize(("sent_rps", "chosen"), [(20.5, "a"), (24.0, "s")])
def test_an_overload_is_significant_beyond_two_standard_deviations(sent_rps: float, chosen: str) -> None:
    """43 are served a second; of 44 that come it may be chance."""
    quick = [replica("a", 20, 4.0, sent_rps=sent_rps), replica("b", 20, 4.0, sent_rps=sent_rps, pending_tokens=10.0)]
    assert order(*quick, replica("s", 3, 4.0, sent_rps=3.0, pending_tokens=100.0)).startswith(chosen)
