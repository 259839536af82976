"""A small KV pool, prompts in many chunks, and a batch that grows beside them: KV never runs out, and every request gets everything."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from andes_sglang.policy import make
from andes_sglang.qoe import QoETarget
from andes_sglang.request import RequestRecord, RequestSpec
from andes_sglang.sim.engine import Costs, EngineModel, Overlap
from andes_sglang.sim.replica import Replica

COSTS = Costs(0.01, 0.002, 1e-5, 0.02, 1e-3)
POLICIES = (None, "andes", "andes-v1", "lqsf", "tokenflow", "round_robin", "fcfs")
Lengths = Sequence[tuple[int, int]]


def served(
    engine: EngineModel, policy: str | None, lengths: Lengths, apart_s: float = 0.0, *, offline: bool = False
) -> list[RequestRecord]:
    """Requests of these prompt and answer lengths, ``apart_s`` between two; a pool that runs out raises. offline: every other
    one yields."""
    records: list[RequestRecord] = []
    replica = Replica(engine, make(policy) if policy else None, sink=records.append)
    for k, (prompt, output) in enumerate(lengths):
        replica.advance(k * apart_s)
        replica.submit(RequestSpec(k * apart_s, prompt, output, QoETarget(1.0, 4.5), yields=offline and k % 2 == 0))
    replica.advance()
    assert replica.kv_used_tokens == 0
    assert [record.output_tokens for record in sorted(records, key=lambda r: r.index)] == [out for _, out in lengths]
    assert all(len(record.token_times_s) == record.output_tokens for record in records)
    return records


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize(
    ("capacity", "chunk", "lengths"),
    [
        (1500, 32, [(20, 150)] * 14 + [(700, 20)] * 4),
        (900, 16, [(8, 240)] * 12 + [(400, 5), (8, 9), (390, 60)]),
        (600, 3, [(10, 400), (500, 5)]),
        (600, 24, [(300, 200), (20, 200), (20, 200), (280, 220), (10, 150), (10, 100)]),
    ],
    ids=["several long prompts", "as many run as the chunk has tokens", "the last makes way", "long contexts return"],
)
def test_the_batch_grows_beside_prompts_in_chunks(
    capacity: int, chunk: int, lengths: Lengths, policy: str | None
) -> None:
    engine = EngineModel(COSTS, capacity, max_running=16, chunk_tokens=chunk, mixed=True, overlap=Overlap.ASYNC)
    served(engine, policy, lengths)


@given(
    lengths=st.lists(st.tuples(st.integers(1, 400), st.integers(1, 120)), min_size=1, max_size=20),
    policy=st.sampled_from(POLICIES),
    capacity=st.integers(560, 1500),
    chunk=st.integers(2, 64),
    max_running=st.integers(1, 24),
    mixed=st.booleans(),
    host=st.sampled_from((0, 300, 5000)),
    apart_s=st.sampled_from((0.0, 0.3)),
    overlap=st.sampled_from(Overlap),
    offline=st.booleans(),
)
def test_kv_never_runs_out(
    lengths: Lengths,
    policy: str | None,
    capacity: int,
    chunk: int,
    max_running: int,
    mixed: bool,
    host: int,
    apart_s: float,
    overlap: Overlap,
    offline: bool,
) -> None:
    engine = EngineModel(
        COSTS, capacity, max_running=max_running, chunk_tokens=chunk, mixed=mixed, host_capacity_tokens=host,
        host_tokens_per_s=1e5, write_through=host > 1000, overlap=overlap,
    )  # fmt: skip
    served(engine, policy, lengths, apart_s, offline=offline)
