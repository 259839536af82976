"""Where the binaries come from, and what is said where there are none."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from e2e.control_plane import NEEDED, ROOT, AbsentError, binaries


def test_kubebuilder_assets_come_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KUBEBUILDER_ASSETS", str(tmp_path))
    for name in NEEDED:
        (tmp_path / name).touch(mode=0o755)
    assert binaries() == tmp_path


def test_what_is_missing_and_how_to_get_it_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KUBEBUILDER_ASSETS", str(tmp_path))
    (tmp_path / "etcd").touch(mode=0o755)
    with pytest.raises(
        AbsentError, match=r"NO CONTROL PLANE: .* has no kube-apiserver, kubectl\. .*make control-plane"
    ):
        binaries()


def test_the_demo_says_so_too(tmp_path: Path) -> None:
    environment = {**os.environ, "KUBEBUILDER_ASSETS": str(tmp_path), "PYTHONPATH": f"{ROOT / 'tools'}:{ROOT}"}
    command = [sys.executable, "-m", "e2e", "--out", str(tmp_path / "out")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=250)
    assert done.returncode == 2
    assert "NO CONTROL PLANE" in done.stderr
    assert "Traceback" not in done.stderr
