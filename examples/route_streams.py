"""Write a routing policy and compare it with the built-in ones, in a simulated fleet.

The same class routes real streams: ``andes gateway --policy package.module:TwoChoices`` (docs/gateway.md).
"""

from collections.abc import Sequence

from andes_sglang import (
    Fleet,
    IncomingStream,
    ReplicaView,
    RequestRecord,
    draw_shape,
    load_profile,
    make_policy,
    make_routing_policy,
)


class TwoChoices:
    """The less loaded of two replicas; which two turns with every stream. Blind to caches and readers."""

    name = "two-choices"

    def __init__(self) -> None:
        self.streams = 0

    def order(self, new: IncomingStream, views: Sequence[ReplicaView], now_s: float) -> list[ReplicaView]:
        """Every replica, the preferred one first: the gateway goes on to the next where one fails."""
        self.streams += 1
        first = self.streams % len(views)
        turned = [*views[first:], *views[:first]]
        return sorted(turned[:2], key=lambda view: view.streams) + turned[2:]


engine = load_profile("cpu-tiny-llama").engine
workload = draw_shape(
    "gamma", rate_rps=24.0, duration_s=10.0, prompt="p50=200,p90=1500", output="50-400", cv=2.0, seed=1
)
workload = workload.with_readers(1, ttft_s=1.0, tds=None, population="reading")

for policy in (make_routing_policy("round_robin"), TwoChoices(), make_routing_policy("qoe")):
    records: list[RequestRecord] = []
    fleet = Fleet(
        engine,
        lambda: make_policy("andes"),
        replicas=3,
        routing_policy=policy,
        decision_interval_s=0.1,  # simulates faster than a decision in every iteration
        sink=records.append,
    )
    for request in workload:
        fleet.submit(request)
    fleet.advance()
    print(f"{policy.name:12s} mean QoE {sum(r.qoe for r in records) / len(records):.3f}")
