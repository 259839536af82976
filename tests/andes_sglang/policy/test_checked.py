"""What a policy of another package gets wrong is one sentence that names it; nothing ends with a traceback."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from andes_sglang import cli
from andes_sglang.latency import LatencyModel
from andes_sglang.lengths import Asked
from andes_sglang.policy import PolicyError, answer_lengths, ask, make_policy, try_out
from andes_sglang.qoe import QoETarget, ReaderStream
from andes_sglang.routing import RoutingError, ordered
from andes_sglang.state import (
    Decision,
    Phase,
    Preemption,
    PreemptionMode,
    RequestTable,
    RequestView,
    SchedulerState,
)
from andes_sglang.stream_forecast import IncomingStream, ReplicaView

READER = ReaderStream(0.0, QoETarget())
VIEWS = [
    RequestView("waits", Phase.WAITING, 0.0, READER, 100),
    RequestView("runs", Phase.RUNNING, 0.0, READER, 100, 10, kv_tokens=110),
    RequestView("bound", Phase.RUNNING, 0.0, READER, 100, 10, kv_tokens=110, preemptible=False),
    RequestView("parked", Phase.PARKED, 0.0, READER, 100, 10, kv_tokens=110),
]
STATE = SchedulerState(10.0, RequestTable.of(VIEWS), kv_capacity_tokens=4096, max_running=4, latency=LatencyModel())
PARK, RELEASE = PreemptionMode.PARK, PreemptionMode.RELEASE


class Theirs:
    name = "theirs"

    def __init__(self, answer: Any) -> None:
        self.answer = answer

    def decide(self, state: SchedulerState) -> Any:
        return self.answer(state) if callable(self.answer) else self.answer


@pytest.mark.parametrize(
    ("answer", "fault"),
    [
        (None, "returned None;"),
        (["waits"], "returned ['waits'] (a list);"),
        ({"admit": ["waits"]}, "returned {'admit': ['waits']} (a dict);"),
        (Decision(admit="waits"), "returned admit='waits' (a str);"),
        (Decision(admit=None), "returned admit=None;"),
        (Decision(resume=(3,)), "returned resume with 3 (a int) in it, not a str;"),
        (Decision(preempt=("runs",)), "returned preempt with 'runs' (a str) in it, not a Preemption;"),
        (Decision(preempt=(Preemption("runs", "park", "x"),)), "returned preempt with mode 'park' (a str), not a"),
        (Decision(admit=("nobody",)), "named the request 'nobody' in admit, which is not in state.requests.rids;"),
        (Decision(preempt=(Preemption("gone", PARK, "x"),)), "named the request 'gone' in preempt, which is not in"),
        (Decision(admit=("runs",)), "named the request 'runs' in admit, which is RUNNING;"),
        (Decision(resume=("waits",)), "named the request 'waits' in resume, which is WAITING;"),
        (
            Decision(preempt=(Preemption("parked", PARK, "x"),)),
            "named the request 'parked' in preempt, which is PARKED;",
        ),
        (
            Decision(preempt=(Preemption("bound", PARK, "x"),)),
            "named the request 'bound' in preempt, which is not preempt",
        ),
        (Decision(admit=("waits", "waits")), "named the request 'waits' twice;"),
        (lambda _state: 1 / 0, "raised ZeroDivisionError: division by zero ("),
        (lambda state: state.nothing, "raised AttributeError: "),
    ],
)
def test_a_decision_that_is_none_is_named(answer: Any, fault: str) -> None:
    with pytest.raises(PolicyError) as refused:
        ask(Theirs(answer), STATE)
    assert str(refused.value).startswith(f"policy 'theirs': decide(state) {fault}")
    if "raised" not in fault:
        assert "it must return an andes_sglang.state.Decision" in str(refused.value)


def test_a_right_decision_is_passed_on_as_it_is() -> None:
    every = Decision(("waits",), ("parked",), (Preemption("runs", PARK, "x"),))
    for decision in (Decision(), every, Decision(preempt=(Preemption("parked", RELEASE, "x"),))):
        assert ask(Theirs(decision), STATE) is decision
    assert ask(Theirs(Decision(admit=["waits"])), STATE).admit == ["waits"], "a list is as good"  # type: ignore[arg-type]
    assert ask(make_policy("andes"), STATE) == make_policy("andes").decide(STATE)


def test_trying_out_asks_once() -> None:
    try_out(make_policy("andes"))
    with pytest.raises(PolicyError, match="returned None"):
        try_out(Theirs(None))


@pytest.mark.parametrize(
    ("body", "fault"),
    [
        ("pass", "policy 'mine': decide(state) returned None;"),
        ("return Decision(admit=('r1',))", "named the request 'r1' in admit, which is not in state.requests.rids"),
        ("return Decision(admit=tuple(state.requests.rids) * 2)", "twice"),
        ("return state.requests.nothing", "raised AttributeError"),
        ("return Decision()", "policy 'mine' leaves the engine idle with"),
    ],
)
@pytest.mark.parametrize("command", ["simulate", "plan"])
def test_the_command_ends_with_that_sentence(
    command: str,
    body: str,
    fault: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    module = f"wrong_{abs(hash((command, body)))}"
    (tmp_path / f"{module}.py").write_text(
        f"from andes_sglang.state import Decision\nclass Mine:\n    name = 'mine'\n    def decide(self, state):\n        {body}\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    flags = [
        "--profile",
        "h100-llama-3.1-8b",
        "--policies",
        f"{module}:Mine",
        "--limit",
        "20",
        "--out",
        str(tmp_path / "out"),
    ]
    assert cli.main([command, *flags]) == 2
    assert fault in (said := capsys.readouterr().err)
    assert "Traceback" not in said


Order = Callable[[list[ReplicaView]], Any]


class Router:
    name = "theirs"

    def __init__(self, answer: Order) -> None:
        self.answer = answer

    def order(self, new: IncomingStream, views: list[ReplicaView], now_s: float) -> Any:
        return self.answer(views)


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (lambda _views: None, "returned None for the replicas ['a', 'b']"),
        (lambda views: views.sort(key=lambda view: view.name), "returned None"),
        (lambda views: views[:1], "returned ['a']"),
        (lambda views: [views[0], views[0]], "returned ['a', 'a']"),
        (lambda views: [view.name for view in views], "must return a list of all views"),
        (lambda views: views[5], "raised IndexError"),
    ],
)
def test_an_order_that_is_none_is_named(answer: Order, said: str) -> None:
    views = [ReplicaView("a"), ReplicaView("b")]
    with pytest.raises(RoutingError, match=r"^routing policy 'theirs': order") as refused:
        ordered(Router(answer), IncomingStream(100.0, QoETarget()), views, 0.0)  # type: ignore[arg-type]
    assert said in str(refused.value)


def test_a_right_order_is_passed_on() -> None:
    views = [ReplicaView("a"), ReplicaView("b")]
    assert list(ordered(Router(lambda given: given[::-1]), IncomingStream(9.0, QoETarget()), views, 0.0)) == views[::-1]  # type: ignore[arg-type]


class Lengths:
    def __init__(self, told: Any = 5) -> None:
        self.told = told

    def expected_tokens(self, asked: Asked) -> Any:
        return self.told(asked) if callable(self.told) else self.told

    def learn(self, asked: Asked, output_tokens: int, *, finished: bool) -> None:
        if output_tokens < 0:
            raise LookupError(asked.prompt_tokens)


@pytest.mark.parametrize(
    ("told", "fault"),
    [
        (None, "its expected_tokens(asked) returned None; it must return a number of tokens > 0"),
        ("9", "returned '9' (a str)"),
        (math.nan, "returned nan (a float)"),
        (0, "returned 0 (a int)"),
        (lambda asked: asked.nothing, "its expected_tokens(asked) raised AttributeError: "),
    ],
)
def test_lengths_that_are_none_are_named(told: Any, fault: str) -> None:
    policy = Theirs(Decision())
    policy.answer_lengths = type("Guess", (Lengths,), {"__init__": lambda self: Lengths.__init__(self, told)})  # type: ignore[attr-defined]
    with pytest.raises(PolicyError) as refused:
        answer_lengths(policy).expected_tokens(Asked(7))
    assert str(refused.value).startswith("policy 'theirs': ")
    assert fault in str(refused.value)
    with pytest.raises(PolicyError, match="policy 'theirs'"):
        try_out(policy)


def test_lengths_that_cannot_be_made_or_do_not_learn_are_named() -> None:
    policy = Theirs(Decision())
    policy.answer_lengths = Lengths  # type: ignore[attr-defined]
    lengths = answer_lengths(policy)
    assert lengths.expected_tokens(Asked(7)) == 5.0
    policy.answer_lengths = type("Array", (Lengths,), {"__init__": lambda self: Lengths.__init__(self, np.int64(6))})  # type: ignore[attr-defined]
    assert answer_lengths(policy).expected_tokens(Asked(7)) == 6.0
    lengths.learn(Asked(7), 3, finished=True)
    with pytest.raises(PolicyError, match=r"its learn\(asked, ...\) raised LookupError: 7 \("):
        lengths.learn(Asked(7), -1, finished=True)
    policy.answer_lengths = type("Needy", (Lengths,), {"__init__": lambda: None})  # type: ignore[attr-defined]
    with pytest.raises(PolicyError, match=r"its answer_lengths\(\) raised TypeError"):
        answer_lengths(policy)
