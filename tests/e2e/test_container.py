"""What a pod's command line and paths become on the machine that its process runs on."""

from __future__ import annotations

import functools
import sys
from pathlib import Path

import chart
import pytest
from e2e.container import Sandbox

FOLDER = Path("/tmp/node/pods/chat")  # noqa: S108
MOUNTS = ("/tmp", "/etc/andes", "/etc/andes-classes", "/var/run", "/dev/shm")  # noqa: S108


def sandbox(*mounts: str) -> Sandbox:
    return Sandbox(FOLDER, "127.64.0.10", mounts)


@functools.cache
def mounted_by_the_chart() -> tuple[str, ...]:
    made = [found for documents in chart.objects({"engine.kind": "sim"}).values() for found in documents]
    pods = [found["spec"]["template"]["spec"] for found in made if found["kind"] == "Deployment"]
    return tuple({mount["mountPath"] for pod in pods for mount in pod["containers"][0].get("volumeMounts", ())})


def test_the_chart_mounts_what_this_test_is_about() -> None:
    assert {"/tmp", "/etc/andes"} <= set(mounted_by_the_chart())  # noqa: S108


@pytest.mark.parametrize("mount", MOUNTS)
def test_the_interpreter_stays_itself_below_any_path_that_is_mounted(
    mount: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    python = f"{mount}/clone/.venv/bin/python"
    monkeypatch.setattr(sys, "executable", python)
    inside = sandbox(mount, *mounted_by_the_chart())
    entrypoint = [python, "-m", "andes_sglang.cli"]
    assert inside.command({"args": [f"{mount}/x"]}, entrypoint, {}) == [*entrypoint, f"{FOLDER}{mount}/x"]
    assert inside.command({"command": ["python", "-c", "pass"]}, entrypoint, {}) == [python, "-c", "pass"]


def test_a_variable_that_holds_a_path_is_translated_once() -> None:
    inside = sandbox("/tmp")  # noqa: S108
    variables = {"HERE": inside.translate("/tmp/x")}  # noqa: S108
    assert inside.command({"args": ["--path=$(HERE)", "$(UNKNOWN)"]}, ["run"], variables) == [
        "run", f"--path={FOLDER}/tmp/x", "$(UNKNOWN)",  # noqa: S108
    ]  # fmt: skip


def test_only_whole_paths_are_translated_and_the_longest_mount_wins() -> None:
    inside = sandbox(*MOUNTS)
    assert inside.translate("/etc/andes-classes/a /etc/andes/b") == f"{FOLDER}/etc/andes-classes/a {FOLDER}/etc/andes/b"
    for other in ("/home/tmp", "/etc/andes.yaml", "/etc/android"):
        assert inside.translate(other) == other
    assert inside.translate("0.0.0.0:80") == "127.64.0.10:80"


def test_without_mounts_only_the_address_changes() -> None:
    assert sandbox().translate("/tmp 0.0.0.0") == "/tmp 127.64.0.10"  # noqa: S108
