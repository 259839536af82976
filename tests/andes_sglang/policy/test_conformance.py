"""The rules that every policy keeps, run on each of ours; and what holds of andes over whole surges."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from andes_sglang.conformance import FAST, PolicyConformance, surge
from andes_sglang.policy import CLAIRVOYANT, POLICIES, make
from andes_sglang.policy.oracle import best_total_gain
from andes_sglang.request import RequestRecord
from andes_sglang.sim.engine import EngineModel
from andes_sglang.sim.replica import simulate


class TestFcfs(PolicyConformance):
    policy = "fcfs"


class TestLifo(PolicyConformance):
    policy = "lifo"


class TestRoundRobin(PolicyConformance):
    policy = "round_robin"


class TestLqsf(PolicyConformance):
    policy = "lqsf"


class TestAndes(PolicyConformance):
    policy = "andes"


class TestAndesWithoutPreemption(PolicyConformance):
    policy = "andes"
    options = {"preemption": False}  # noqa: RUF012
    may_starve = True
    may_hold_back = False


class TestAndesWithoutRefiner(PolicyConformance):
    policy = "andes"
    options = {"refine": False, "max_preemptions": 1.0}  # noqa: RUF012


class TestAndesByFinalValue(PolicyConformance):
    policy = "andes"
    options = {"fairness": -1.0}  # noqa: RUF012


class TestAndesV1(PolicyConformance):
    policy = "andes-v1"


class TestAndesV2(PolicyConformance):
    policy = "andes-v2"


class TestSarathi(PolicyConformance):
    policy = "sarathi"


class TestTokenFlow(PolicyConformance):
    policy = "tokenflow"


class TestAlise(PolicyConformance):
    policy = "alise"


class TestLearningToRank(PolicyConformance):
    policy = "ltr"


class TestSrpt(PolicyConformance):
    policy = "srpt"


class TestClairvoyant(PolicyConformance):
    policy = "clairvoyant"


def test_every_policy_is_tested() -> None:
    assert {suite.policy for suite in PolicyConformance.__subclasses__()} >= {*POLICIES, *CLAIRVOYANT}


def test_what_policies_say_of_themselves() -> None:
    """``may_starve`` and ``may_hold_back`` switch rules off, ``uses_weight`` switches one on: none of it by accident."""

    def saying(attribute: str) -> set[str]:
        return {name for name, policy in {**POLICIES, **CLAIRVOYANT}.items() if getattr(policy, attribute, False)}

    assert saying("may_starve") == {"lifo", "andes-v1", "andes-v2", "clairvoyant", "srpt", "tokenflow"}
    assert saying("may_hold_back") == {"andes", "andes-v1", "andes-v2", "tokenflow"}
    assert saying("uses_weight") == {"andes", "andes-v1", "andes-v2", "clairvoyant", "lqsf", "tokenflow"}


def test_andes_keeps_the_stall_bound_and_beats_the_queue() -> None:
    def run(policy: str, **options: Any) -> list[RequestRecord]:
        return list(simulate(EngineModel(FAST, 8192), make(policy, **options), surge(2, rate_rps=2.2)))

    def mean_qoe(records: list[RequestRecord]) -> float:
        return float(np.mean([record.qoe for record in records]))

    ours = run("andes", stall_bound_s=10.0)
    assert mean_qoe(ours) > mean_qoe(run("fcfs"))
    assert np.percentile([record.score().longest_stall_s for record in ours], 90) < 15.0


@given(st.integers(0, 200))
@settings(max_examples=30)
def test_the_oracle_is_exact(seed: int) -> None:
    rng = np.random.default_rng(seed)
    gains, blocks = rng.uniform(0, 1, 9), rng.integers(1, 8, 9)
    capacity, batch = 15, 4
    best = 0.0
    for mask in range(1 << 9):
        rows = [k for k in range(9) if mask >> k & 1]
        if len(rows) <= batch and blocks[rows].sum() <= capacity:
            best = max(best, float(gains[rows].sum()))
    assert best_total_gain(gains, blocks, capacity, batch) == pytest.approx(best)


def test_an_unknown_policy_or_option_is_named() -> None:
    with pytest.raises(ValueError, match=r"unknown policy 'fifo'.*andes"):
        make("fifo")
    with pytest.raises(ValueError, match=r"horizn"):
        make("andes", horizn=3)
    with pytest.raises(ValueError, match=r"horizon_s must be > 0"):
        make("andes", horizon_s=0)
