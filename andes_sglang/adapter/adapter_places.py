"""Which waiting requests find a place for their LoRA adapter: a batch holds only so many, the model itself counting as one.

SGLang counts them when it admits. What a policy has displaced for a request that is then left waiting was displaced for
nothing, and would be at every decision again; so a policy is asked again without those that its decision leaves no place.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from andes_sglang.state import Decision

__all__ = ["AdapterPlaces"]


class AdapterPlaces:
    """Of ``scheduler``, an SGLang scheduler, whose drainer is asked here alone: where SGLang admits it would see only whom a
    decision chooses, none of those that starve, and by the clock of each rank."""

    def __init__(self, scheduler: Any) -> None:
        self._scheduler = scheduler
        self._drainer, scheduler.lora_drainer = scheduler.lora_drainer, None

    def decide(self, ask: Callable[[set[str]], Decision], running_batch: Any) -> Decision:
        """A decision that admits none without a place. ask: for a decision without the waiting requests of these ids."""
        if not self._scheduler.enable_lora:
            return ask(set())
        hidden = self._drained(running_batch)
        decision = ask(hidden)
        while placeless := self._placeless(decision, running_batch) - hidden:
            hidden |= placeless
            decision = ask(hidden)
        return decision

    def _drained(self, running_batch: Any) -> set[str]:
        """Whom SGLang does not admit so that a starving adapter gets a place (``--lora-drain-wait-threshold``)."""
        drainer, waiting = self._drainer, self._scheduler.waiting_queue
        if drainer is None:
            return set()
        drainer.update_draining_state(waiting, running_batch.reqs)
        return {req.rid for req in waiting if not drainer.can_schedule(req)}

    def _placeless(self, decision: Decision, running_batch: Any) -> set[str]:
        """All that wait for an adapter of which ``decision`` admits a request and for which there is no place then. Those in
        the batch come first."""
        scheduler = self._scheduler
        placed, placeless = self._staying(decision, running_batch), set[Any]()
        adapter_of = {req.rid: req.lora_id for req in scheduler.waiting_queue}
        fits = scheduler.tp_worker.model_runner.lora_manager.validate_lora_batch
        there = {req.lora_id for req in running_batch.reqs}
        chosen = [adapter_of[rid] for rid in decision.admit if rid in adapter_of]
        for adapter in sorted(chosen, key=lambda adapter: adapter not in there):
            (placed if fits(placed | {adapter}) else placeless).add(adapter)
        return {rid for rid, adapter in adapter_of.items() if adapter in placeless}

    def _staying(self, decision: Decision, running_batch: Any) -> set[Any]:
        """Adapters that the batch still has once those have left whom ``decision`` preempts."""
        leaving = {preemption.rid for preemption in decision.preempt}
        chunked = [] if self._scheduler.chunked_req is None else [self._scheduler.chunked_req]
        staying = [req for req in running_batch.reqs if req.rid not in leaving and not req.finished()]
        return {req.lora_id for req in (*staying, *chunked)}
