"""What a policy displaces for requests whose LoRA adapter has no place in the batch: nothing."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest

from andes_sglang.adapter.adapter_places import AdapterPlaces
from andes_sglang.latency import LatencyModel
from andes_sglang.policy import make_policy
from andes_sglang.qoe import QoETarget, ReaderStream
from andes_sglang.state import Decision, Phase, RequestTable, RequestView, SchedulerState

NOW_S = 100.0
RUNNING_TOKENS = 900


class Drainer:
    """Holds the requests ``held`` back once it has been shown them."""

    def __init__(self, held: Sequence[str]) -> None:
        self.held = held
        self.shown: list[str] = []

    def update_draining_state(self, waiting: Sequence[Any], running: Sequence[Any]) -> None:
        self.shown = [req.rid for req in (*waiting, *running)]

    def can_schedule(self, req: Any) -> bool:
        return req.rid not in self.held or req.rid not in self.shown


class Engine:
    """Streams and requests by their adapter (None: the model itself), as an SGLang scheduler holds them; ``lqsf`` decides. The
    batch is full; those who run have much to read, those who wait have waited long, the first longest."""

    def __init__(
        self, running: Sequence[str | None], waiting: Sequence[str | None], places: int, drained: Sequence[str] = ()
    ) -> None:
        self.running = [self.request(f"runs {k}", adapter) for k, adapter in enumerate(running)]
        self.waiting_queue = [self.request(f"waits {k}", adapter) for k, adapter in enumerate(waiting)]
        self.enable_lora = places > 0
        self.chunked_req = None
        self.drainer = Drainer(drained)
        self.lora_drainer = self.drainer if drained else None
        manager = SimpleNamespace(validate_lora_batch=lambda adapters: len(adapters) <= places)
        self.tp_worker = SimpleNamespace(model_runner=SimpleNamespace(lora_manager=manager))
        self.asked: list[set[str]] = []

    def request(self, rid: str, adapter: str | None) -> Any:
        return SimpleNamespace(rid=rid, lora_id=adapter, finished=lambda: False)

    def ask(self, hidden: set[str]) -> Decision:
        self.asked.append(set(hidden))
        views = [self.view(req.rid, k, runs=True) for k, req in enumerate(self.running)]
        views += [self.view(r.rid, k, runs=False) for k, r in enumerate(self.waiting_queue) if r.rid not in hidden]
        state = SchedulerState(
            NOW_S,
            RequestTable.of(views),
            kv_capacity_tokens=99_999,
            max_running=len(self.running),
            latency=LatencyModel(),
        )
        return make_policy("lqsf", {}).decide(state)

    def view(self, rid: str, k: int, *, runs: bool) -> RequestView:
        arrival_s = NOW_S - 60.0 + k if not runs else NOW_S - 1.0
        reader = ReaderStream(arrival_s, QoETarget())
        if runs:
            reader.deliver(NOW_S - 0.5, RUNNING_TOKENS + k)
        phase, tokens = (Phase.RUNNING, RUNNING_TOKENS) if runs else (Phase.WAITING, 0)
        return RequestView(
            rid, phase, arrival_s, reader, 10, tokens, kv_tokens=tokens, slice_tokens=tokens, remaining_tokens=500
        )

    def decide(self) -> Decision:
        return AdapterPlaces(self).decide(self.ask, SimpleNamespace(reqs=self.running))


@pytest.mark.parametrize(
    ("running", "waiting", "places", "displaced", "admitted"),
    [
        (["one", "one"], ["two"], 0, 1, ["waits 0"]),
        (["one", "one"], ["two"], 2, 1, ["waits 0"]),
        (["one", "one"], ["two"], 1, 0, []),
        (["one"], ["two"], 1, 1, ["waits 0"]),
        (["one", "one"], ["two", "one"], 1, 1, ["waits 1"]),
        (["one", None], ["two", "two"], 2, 2, ["waits 0", "waits 1"]),
        (["one", None, None], ["two", "three"], 2, 0, []),
        ([None, None], ["two", None], 1, 1, ["waits 1"]),
    ],
    ids=[
        "no adapters here", "a place is free", "no place: none makes room", "the last of its adapter makes room", "an own one",
        "both make room for one adapter", "places for none of two", "the model itself is one of them",
    ],
)  # fmt: skip
def test_only_for_those_who_then_run(
    running: list[str | None], waiting: list[str | None], places: int, displaced: int, admitted: list[str]
) -> None:
    decision = Engine(running, waiting, places).decide()
    assert len(decision.preempt) == displaced
    assert list(decision.admit) == admitted


def test_whom_sglang_holds_back_for_a_starving_adapter_displaces_none() -> None:
    """SGLang's drainer is shown all that wait, those without a place too, and decides nothing after the policy."""
    engine = Engine(["one", "one"], ["one", "one", "two"], places=1, drained=["waits 0"])
    assert engine.decide().admit == ("waits 1",)
    assert engine.asked == [{"waits 0"}, {"waits 0", "waits 2"}]
    assert engine.drainer.shown == ["waits 0", "waits 1", "waits 2", "runs 0", "runs 1"]
    assert engine.lora_drainer is None


def test_a_policy_that_insists_is_not_asked_for_ever() -> None:
    """One of another package may name a request that it has not been shown; SGLang leaves it waiting."""
    asked: list[set[str]] = []

    def insists(hidden: set[str]) -> Decision:
        asked.append(set(hidden))
        assert len(asked) < 9
        return Decision(admit=("waits 0",))

    engine = Engine(["one"], ["two"], places=1)
    decision = AdapterPlaces(engine).decide(insists, SimpleNamespace(reqs=engine.running))
    assert decision.admit == ("waits 0",)
    assert asked == [set(), {"waits 0"}]
