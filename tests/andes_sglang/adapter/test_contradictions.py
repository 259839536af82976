"""SGLang's own scheduling has no say under a policy, and is told so at start."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from andes_sglang.adapter.contradictions import contradiction, notes


def server_args(**given: Any) -> Any:
    switches = dict.fromkeys(("enable_priority_scheduling", "enable_prefill_delayer"), False)
    usual = {"schedule_policy": "fcfs", "retraction_policy": "length", "min_free_slots_delay": None, **switches}
    return SimpleNamespace(**{**usual, "speculative_algorithm": None, **given})


def test_what_nobody_asked_for_is_not_mentioned() -> None:
    assert contradiction(server_args()) is None
    assert notes(server_args()) == []


@pytest.mark.parametrize(
    ("given", "text"),
    [
        (
            {"schedule_policy": "lpm"},
            "--schedule-policy lpm: a policy decides in which order requests are served; leave",
        ),
        (
            {"retraction_policy": "priority"},
            "--retraction-policy priority: a policy decides who makes room when KV runs",
        ),
        ({"enable_prefill_delayer": True}, "--enable-prefill-delayer: a policy decides when a prompt is computed"),
        ({"min_free_slots_delay": 4}, "--min-free-slots-delay: a policy decides when a prompt is computed; leave"),
    ],
)
def test_what_a_policy_decides_instead_is_refused(given: dict[str, Any], text: str) -> None:
    assert (contradiction(server_args(**given)) or "").startswith(text)


def test_what_is_left_of_priorities_is_said() -> None:
    (said,) = notes(server_args(enable_priority_scheduling=True))
    assert "whom a full queue turns away" in said
    assert "custom_params.qoe.weight" in said


@pytest.mark.parametrize("algorithm", ["EAGLE", "eagle3", "STANDALONE"])
def test_that_drafts_of_a_model_are_not_preempted_is_said(algorithm: str) -> None:
    (said,) = notes(server_args(speculative_algorithm=algorithm))
    assert said.startswith(f"--speculative-algorithm {algorithm}: no stream is preempted")
    assert notes(server_args(speculative_algorithm="NGRAM")) == notes(server_args(speculative_algorithm="ngram")) == []
