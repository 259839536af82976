"""The chart on a real control plane with pods that are real processes: what the whole is for, from install to uninstall."""

from __future__ import annotations

import json
import re
import signal
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest
from e2e.control_plane import ControlPlane
from e2e.story import CLASS_HEADERS, MAX_REPLICAS, OBJECTIVE, OUTPUT_TOKENS, Outcome, tell
from e2e.timeline import draw, summary

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(7200)]


@pytest.fixture(scope="module")
def outcome(control_plane: ControlPlane, tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    """The story is told once; each test looks at one side of it. That it went as told is checked on the way."""
    if not control_plane.controllers:
        pytest.skip("NO CONTROLLERS: KUBEBUILDER_ASSETS has no kube-controller-manager and kube-scheduler")
    if not control_plane.cel:
        pytest.skip(f"NO CEL: Kubernetes {control_plane.version} does not know the rules of the CRDs")
    return tell(control_plane, tmp_path_factory.mktemp("node"), print)


def test_not_one_stream_is_cut(outcome: Outcome) -> None:
    assert len(outcome.records) > 50
    assert [record.error for record in outcome.cut] == []
    assert {len(record.token_times_s) for record in outcome.records} == {OUTPUT_TOKENS}


def test_a_class_reaches_running_gateways(outcome: Outcome) -> None:
    assert CLASS_HEADERS in outcome.promised


def test_qoe_dips_and_recovers(outcome: Outcome) -> None:
    seen = [sample["qoe"] for sample in outcome.samples if sample["qoe"] is not None]
    lowest = seen.index(min(seen))
    assert seen[lowest] < OBJECTIVE
    assert max(seen[:lowest]) >= OBJECTIVE
    assert max(seen[lowest:]) >= OBJECTIVE


def test_it_scales_up_and_down_one_by_one(outcome: Outcome) -> None:
    ready = [sample["ready"] for sample in outcome.samples if sample["ready"] is not None]
    assert ready[0] == 1
    assert 2 < max(ready) <= MAX_REPLICAS
    steps = [
        re.match(r"(\d+) to (\d+) replicas: ", message) for reason, message in outcome.events if "Scaled" in reason
    ]
    changes = [int(step[2]) - int(step[1]) for step in steps if step is not None]
    assert len(changes) == len(steps)
    assert changes.count(-1) >= max(ready) - 1
    assert min(changes) == -1
    assert max(changes) >= 1
    assert float(outcome.gpu_hours_saved) > 0


def test_an_upgrade_changes_what_runs(outcome: Outcome) -> None:
    assert outcome.policies == ({"andes"}, {"lqsf"})


def test_the_first_request_brings_an_engine_back_and_is_answered(outcome: Outcome) -> None:
    assert outcome.first_answer[-1] == "data: [DONE]"
    assert not [event for event in outcome.first_answer if '"error"' in event]
    assert any("FirstRequest" in reason or "a request has come" in message for reason, message in outcome.events)


def test_helm_test_passes(outcome: Outcome) -> None:
    assert outcome.smoke == "deployed"


def test_who_holds_streams_ends_by_itself_in_the_grace_period(outcome: Outcome) -> None:
    parts = {name.split("-")[2] for name in outcome.exits}
    assert parts == {"gateway", "engine", "operator", "test"}
    ends = {name: code for name, code in outcome.exits.items() if "-operator-" not in name}
    assert {name: code for name, code in ends.items() if code not in (0, -signal.SIGTERM)} == {}


def test_uninstalling_leaves_nothing_behind(outcome: Outcome) -> None:
    assert outcome.left == set()
    assert outcome.processes == []


def test_the_picture_shows_it(outcome: Outcome, tmp_path: Path) -> None:
    panels = ET.fromstring(draw(outcome)).findall("{http://www.w3.org/2000/svg}svg")  # noqa: S314
    assert len(panels) == 3
    assert json.loads(json.dumps(summary(outcome)))["cut"] == []
