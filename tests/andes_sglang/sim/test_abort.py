"""Clients that go, at any moment: what they held is free, and nobody else notices."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from andes_sglang.policy import make
from andes_sglang.qoe import QoETarget
from andes_sglang.request import RequestRecord, RequestSpec
from andes_sglang.sim.engine import Costs, EngineModel, Overlap
from andes_sglang.sim.replica import Replica

COSTS = Costs(
    decode_fixed_s=0.01, decode_request_s=0.002, decode_context_s=1e-5, prefill_fixed_s=0.02, prefill_token_s=1e-3
)
ENGINE = EngineModel(COSTS, kv_capacity_tokens=1500, max_running=5, chunk_tokens=200)


@pytest.mark.parametrize("mixed", [False, True], ids=["apart", "mixed"])
@pytest.mark.parametrize("overlap", Overlap)
@pytest.mark.parametrize("policy", ["stock", "fcfs", "andes", "round_robin", "lqsf"])
def test_whoever_goes_leaves_nothing_behind(policy: str, overlap: Overlap, mixed: bool) -> None:
    for seed in range(4):
        rng = np.random.default_rng(seed)
        records: list[RequestRecord] = []
        replica = Replica(
            replace(ENGINE, overlap=overlap, mixed=mixed),
            None if policy == "stock" else make(policy),
            sink=records.append,
        )
        stay, now_s = {}, 0.0
        for k in range(25):
            now_s += rng.exponential(0.5)
            replica.advance(now_s)
            blocks = (int(rng.integers(2)),) if rng.random() < 0.5 else ()
            prompt = int(rng.integers(1, 600))
            spec = RequestSpec(
                now_s, prompt, int(rng.integers(1, 60)), QoETarget(1.0, float(rng.choice((4.0, 40.0)))), blocks=blocks
            )
            stay[k] = replica.submit(spec)
            if rng.random() < 0.5:
                replica.advance(now_s + rng.exponential(0.05))
                now_s = max(now_s, replica.now_s)
                replica.abort(stay.pop(int(rng.choice(list(stay)))))
        replica.advance()
        assert replica.open_requests == replica.kv_uncached_tokens == replica._batch.context_tokens == 0
        assert replica.cache.tokens == replica.cache.evictable <= ENGINE.kv_capacity_tokens
        lengths = {record.index: len(record.token_times_s) for record in records}
        assert {k: job.spec.output_tokens for k, job in stay.items()}.items() <= lengths.items()
