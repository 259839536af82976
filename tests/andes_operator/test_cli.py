from __future__ import annotations

import errno
import os
import socket
import subprocess
import sys
from pathlib import Path

import yaml
from plane import ROOT


def test_a_port_that_is_taken_is_named(tmp_path: Path) -> None:
    kubeconfig = tmp_path / "kubeconfig"
    kubeconfig.write_text(yaml.safe_dump({
        "apiVersion": "v1", "kind": "Config", "current-context": "x", "users": [{"name": "x", "user": {}}],
        "clusters": [{"name": "x", "cluster": {"server": "http://127.0.0.1:1"}}],
        "contexts": [{"name": "x", "context": {"cluster": "x", "user": "x"}}],
    }))  # fmt: skip
    environment = {**os.environ, "KUBECONFIG": str(kubeconfig), "PYTHONPATH": f"{ROOT}:{ROOT / 'operator'}"}
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        command = [sys.executable, "-m", "andes_operator", "--host=127.0.0.1", f"--port={port}"]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=250)
    assert done.returncode == 1
    assert f"--host 127.0.0.1, --port {port}: Address already in use" in done.stderr
    assert "Traceback" not in done.stderr
    assert "Unclosed" not in done.stderr


def test_an_output_that_cannot_be_written_is_one_line() -> None:
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'operator'}"}
    command = ["sh", "-c", 'exec "$@" >&-', "sh", sys.executable, "-m", "andes_operator", "--help"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=250)
    said = f"andes operator: standard output cannot be written: {os.strerror(errno.EBADF)}\n"
    assert (done.returncode, done.stderr) == (1, said)
