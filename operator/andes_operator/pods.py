"""How many pods of a target there are, by what they are good for."""

from __future__ import annotations

from dataclasses import dataclass

from andes_operator.names import Reason

__all__ = ["PodCounts", "PodFailure"]


@dataclass(frozen=True, slots=True)
class PodFailure:
    """Pods that are no supply. words: the scheduler's or the kubelet's."""

    reason: Reason
    count: int
    words: str

    def __str__(self) -> str:
        what = "1 engine is" if self.count == 1 else f"{self.count} engines are"
        return f"{what} {_FAILS[self.reason]}: {self.words}"


_FAILS = {Reason.UNSCHEDULABLE: "without a node", Reason.NOT_CREATED: "missing", Reason.ENGINES_FAILING: "failing"}


@dataclass(frozen=True, slots=True)
class PodCounts:
    """Pods of the target. wanted: ``spec.replicas`` of its scale. existing: not terminating; ready: of these, serving;
    unready: were, and may be again. terminating: still draining, and holding their GPUs. unscheduled: existing ones that hold
    none. returnable: of those that would be removed next, how many have never served or do not any more; failures: those
    that several cold starts have not made ready."""

    wanted: int
    existing: int
    ready: int
    terminating: int = 0
    unready: int = 0
    unscheduled: int = 0
    returnable: int = 0
    failures: tuple[PodFailure, ...] = ()

    @property
    def failing(self) -> int:
        return sum(failure.count for failure in self.failures)

    @property
    def starting(self) -> int:
        """Wanted or existing, neither ready yet nor given up."""
        return max(0, max(self.wanted, self.existing) - self.ready - self.unready - self.failing)

    @property
    def holding(self) -> int:
        """Those that hold their GPUs."""
        return self.existing - self.unscheduled + self.terminating

    @property
    def placeable(self) -> int | None:
        """Replicas that can be had: all but the failing ones, and one more to find out when there is room again. None: none
        fails, so it is not known that there is a limit."""
        return max(self.wanted, self.existing) - self.failing + 1 if self.failures else None
