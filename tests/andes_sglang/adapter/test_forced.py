"""The diagnostic that preempts for its own sake."""

from __future__ import annotations

import pytest

from andes_sglang.adapter.forced import make_engine_policy
from andes_sglang.latency import LatencyModel
from andes_sglang.qoe import QoETarget, ReaderStream
from andes_sglang.state import Phase, RequestTable, RequestView, SchedulerState


@pytest.mark.parametrize(
    ("mode", "modes"),
    [("park", ["park"] * 3), ("release", ["release"] * 3), ("alternate", ["park", "release", "park"])],
)
def test_a_slice_ends_in_the_mode_asked_for(mode: str, modes: list[str]) -> None:
    def running(rid: str, preemptions: int, tokens: int = 4, preemptible: bool = True) -> RequestView:
        reader = ReaderStream(0.0, QoETarget())
        return RequestView(
            rid, Phase.RUNNING, 0.0, reader, 10, tokens, kv_tokens=10 + tokens, slice_tokens=tokens,
            preemptions=preemptions, preemptible=preemptible,
        )  # fmt: skip

    views = [running("a", 0), running("b", 1), running("c", 2), running("d", 0, 3), running("e", 0, 4, False)]
    state = SchedulerState(1.0, RequestTable.of(views), kv_capacity_tokens=999, max_running=9, latency=LatencyModel())
    preempt = make_engine_policy("forced", {"mode": mode}).decide(state).preempt
    assert [(p.rid, p.mode.value, p.reason) for p in preempt] == [
        (r, m, "forced") for r, m in zip("abc", modes, strict=True)
    ]


def test_a_share_of_those_due_is_drawn_at_each_decision() -> None:
    views = [
        RequestView(str(k), Phase.RUNNING, 0.0, ReaderStream(0.0, QoETarget()), 10, 1, kv_tokens=11, slice_tokens=0)
        for k in range(100)
    ]
    state = SchedulerState(
        1.0, RequestTable.of(views), kv_capacity_tokens=9999, max_running=100, latency=LatencyModel()
    )
    policy = make_engine_policy("forced", {"every_tokens": 0, "share": 0.3})
    first, second = ({p.rid for p in policy.decide(state).preempt} for _ in range(2))
    assert 10 < len(first) < 50
    assert 10 < len(second) < 50
    assert first != second
    assert len(make_engine_policy("forced", {"every_tokens": 0}).decide(state).preempt) == 100
