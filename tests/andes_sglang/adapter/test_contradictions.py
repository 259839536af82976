"""What does less under a policy than its name says is told at start."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from andes_sglang.adapter.contradictions import notes


def server_args(**given: Any) -> Any:
    return SimpleNamespace(**{"enable_priority_scheduling": False, "speculative_algorithm": None, **given})


def test_what_nobody_asked_for_is_not_mentioned() -> None:
    assert notes(server_args()) == []


def test_what_is_left_of_priorities_is_said() -> None:
    (said,) = notes(server_args(enable_priority_scheduling=True))
    assert "whom a full queue turns away" in said
    assert "custom_params.qoe.weight" in said


@pytest.mark.parametrize("algorithm", ["EAGLE", "eagle3", "STANDALONE"])
def test_that_drafts_of_a_model_are_not_preempted_is_said(algorithm: str) -> None:
    (said,) = notes(server_args(speculative_algorithm=algorithm))
    assert said.startswith(f"--speculative-algorithm {algorithm}: no stream is preempted")
    assert notes(server_args(speculative_algorithm="NGRAM")) == notes(server_args(speculative_algorithm="ngram")) == []
