"""A real API server, where its binaries are."""

from __future__ import annotations

import json
import os
import shutil
import ssl
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from helm_python.config import Config

from andes_sglang.bench.engine import free_port

ROOT = Path(__file__).parent.parent.parent
TOKEN = "an-administrator-of-a-test"  # noqa: S105
PARTS = ("etcd", "kube-apiserver")


@dataclass
class Cluster:
    """etcd and an API server; no controllers, so objects are kept and nothing runs."""

    url: str

    def __call__(self, method: str, path: str, body: object = None, kind: str = "application/json") -> Any:
        """The API server's answer. Raises ``urllib.error.HTTPError``."""
        request = urllib.request.Request(
            self.url + path,
            None if body is None else json.dumps(body).encode(),
            {"authorization": f"Bearer {TOKEN}", "content-type": kind},
            method=method,
        )
        insecure = ssl._create_unverified_context()  # its own certificate, on this machine  # noqa: S323
        with urllib.request.urlopen(request, timeout=60, context=insecure) as answer:
            content = answer.read()
            return json.loads(content) if content.startswith(b"{") else content

    def serves(self, group_version: str) -> bool:
        try:
            return bool(self("GET", f"/apis/{group_version}"))
        except urllib.error.HTTPError:
            return False

    def helm(self, namespace: str) -> Config:
        return Config(
            kube_apiserver=self.url, kube_token=TOKEN, kube_insecure_skip_tls_verify=True, namespace=namespace
        )


def binaries() -> Path | None:
    folder = os.environ.get("KUBEBUILDER_ASSETS")
    if folder is None:
        unpack = ROOT.parent / "shared" / "kube" / "unpack.sh"
        if unpack.exists():
            folder = subprocess.run([unpack], check=True, capture_output=True, text=True).stdout.strip()
    if folder and all(shutil.which(part, path=folder) for part in PARTS):
        return Path(folder)
    return None


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    found, openssl = binaries(), shutil.which("openssl")
    if found is None or openssl is None:
        pytest.skip(
            "NO API SERVER: set KUBEBUILDER_ASSETS to a folder with etcd and kube-apiserver; openssl is needed too"
        )
    here = tmp_path_factory.mktemp("cluster")
    key, tokens = here / "accounts.key", here / "tokens.csv"
    subprocess.run([openssl, "genrsa", "-out", key, "2048"], check=True, capture_output=True)
    tokens.write_text(f"{TOKEN},admin,admin,system:masters\n")
    store, peer, port = free_port(), free_port(), free_port()
    etcd = [
        found / "etcd", f"--data-dir={here / 'etcd'}", "--unsafe-no-fsync",
        f"--listen-client-urls=http://127.0.0.1:{store}", f"--advertise-client-urls=http://127.0.0.1:{store}",
        f"--listen-peer-urls=http://127.0.0.1:{peer}", f"--initial-advertise-peer-urls=http://127.0.0.1:{peer}",
        f"--initial-cluster=default=http://127.0.0.1:{peer}",
    ]  # fmt: skip
    server = [
        found / "kube-apiserver", f"--etcd-servers=http://127.0.0.1:{store}", f"--cert-dir={here}",
        f"--secure-port={port}", "--bind-address=127.0.0.1", "--authorization-mode=RBAC",
        f"--token-auth-file={tokens}", f"--service-account-key-file={key}", f"--service-account-signing-key-file={key}",
        "--service-account-issuer=https://kubernetes.default.svc", "--service-cluster-ip-range=10.0.0.0/24",
        "--disable-admission-plugins=ServiceAccount",
    ]  # fmt: skip
    running: list[subprocess.Popen[bytes]] = []
    try:
        for command in (etcd, server):
            with (here / f"{Path(command[0]).name}.log").open("wb") as log:
                running.append(subprocess.Popen(command, stdout=log, stderr=log))
        cluster = Cluster(f"https://127.0.0.1:{port}")
        wait(cluster, running, here)
        yield cluster
    finally:
        for process in reversed(running):
            process.terminate()
        for process in running:
            process.wait(60)


def wait(cluster: Cluster, running: list[subprocess.Popen[bytes]], logs: Path) -> None:
    deadline_s = time.monotonic() + 240
    while True:
        try:
            cluster("GET", "/readyz")
            cluster("GET", "/api/v1/namespaces/default")
            return
        except OSError:
            dead = [process.args for process in running if process.poll() is not None]
            if dead or time.monotonic() > deadline_s:
                said = "\n".join(log.read_text()[-2000:] for log in logs.glob("*.log"))
                raise RuntimeError(f"no API server: {dead}\n{said}") from None
            time.sleep(0.2)
