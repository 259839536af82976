"""Where the binaries come from, and what is said where there are none."""

from __future__ import annotations

from pathlib import Path

import pytest
from e2e.control_plane import NEEDED, AbsentError, binaries


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
