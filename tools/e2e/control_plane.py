"""A Kubernetes control plane on loopback: etcd, API server, controllers, scheduler, and a CRD server where the API server is
too old for CEL rules. All of it listens on one address of 127/8 that belongs to this process, so ports never collide."""

from __future__ import annotations

import base64
import contextlib
import http.client
import json
import os
import re
import shutil
import ssl
import subprocess
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import trustme
import yaml
from helm_python.config import Config

__all__ = ["AbsentError", "ApiError", "ControlPlane", "binaries", "network", "until"]

ROOT = Path(__file__).parents[2]
NEEDED = ("etcd", "kube-apiserver", "kubectl")
CONTROLLERS = ("kube-controller-manager", "kube-scheduler")
CRD_SERVER = "apiextensions-apiserver"
API, STORE, PEER, MANAGER, SCHEDULER, CRDS = 6443, 2379, 2380, 10257, 10259, 6444
SERVICES = "/apis/apiregistration.k8s.io/v1/apiservices"
WITH_CEL = (1, 29)
TRIES = 10  # of a call that the server puts off: it does so for a second or two when a kind was just defined
AUDIT_LOG = "audit.log"
AUDIT_POLICY = {
    "apiVersion": "audit.k8s.io/v1", "kind": "Policy", "omitStages": ["RequestReceived"],
    "rules": [
        {"level": "None", "userGroups": ["system:serviceaccounts:kube-system"]},  # the controllers
        {"level": "Metadata", "userGroups": ["system:serviceaccounts"]},
        {"level": "None"},
    ],
}  # fmt: skip
USERS = {
    "admin": "system:masters",
    "system:kube-controller-manager": "",
    "system:kube-scheduler": "",
}


class AbsentError(RuntimeError):
    """There are no binaries; the text says what to do about it."""


class ApiError(Exception):
    """What the API server says no to."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(f"{status}: {message}")
        self.status, self.message = status, message


def binaries() -> Path:
    """The folder with etcd, kube-apiserver and kubectl, perhaps more. Raises :class:`AbsentError`."""
    assets = os.environ.get("KUBEBUILDER_ASSETS")
    unpack = ROOT.parent / "shared" / "kube" / "unpack.sh"
    if assets:
        folder = Path(assets)
    elif unpack.exists():
        folder = Path(
            subprocess.run(
                [shutil.which("bash") or "bash", unpack], check=True, capture_output=True, text=True
            ).stdout.strip()
        )
    else:
        folder = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "andes" / "control-plane"
    missing = [name for name in NEEDED if shutil.which(name, path=str(folder)) is None]
    if missing:
        raise AbsentError(
            f"NO CONTROL PLANE: {folder} has no {', '.join(missing)}. Set KUBEBUILDER_ASSETS to a folder of binaries, or "
            "run `make control-plane`, which builds them from Debian's packages"
        )
    return folder


def network() -> str:
    """The first three bytes of the addresses of 127/8 that are this process's own."""
    return f"127.{64 + os.getpid() // 256 % 128}.{os.getpid() % 256}"


def until(what: str, holds: Callable[[], Any], timeout_s: float = 900.0) -> Any:
    """What ``holds`` gives once it is true; asked again every 0.2 s. Raises ``AssertionError`` with the last it gave. Time in
    which this process does not run (a machine that sleeps) is not counted."""
    left_s, last_s = timeout_s, time.monotonic()
    seen: Any = None
    while left_s > 0:
        now_s = time.monotonic()
        left_s, last_s = left_s - min(5.0, now_s - last_s), now_s
        try:
            seen = holds()
            if seen:
                return seen
        except (ApiError, OSError, http.client.HTTPException) as error:
            seen = error
        time.sleep(0.2)
    raise AssertionError(f"not within {timeout_s:g} s: {what} (last: {seen!r})")


class ControlPlane:
    """A context manager; ``plane("GET", path)`` is the API server's answer to its administrator.

    controllers: whether the controller manager and the scheduler run too. cel: whether CEL rules of CRDs are enforced.
    """

    def __init__(self, folder: Path, programs: Path) -> None:
        self.folder, self._programs = folder, programs
        self.address = f"{network()}.1"
        self.url = f"https://{self.address}:{API}"
        said = subprocess.run([programs / "kube-apiserver", "--version"], check=True, capture_output=True, text=True)
        major, minor = re.findall(r"\d+", said.stdout)[:2]
        self.version = int(major), int(minor)
        self.controllers = all(shutil.which(name, path=str(programs)) for name in CONTROLLERS)
        self._crd_server = self.version < WITH_CEL and shutil.which(CRD_SERVER, path=str(programs)) is not None
        self.cel = self._crd_server or self.version >= WITH_CEL
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self._tokens = {user: os.urandom(16).hex() for user in USERS}
        self._tls = ssl.create_default_context()

    def __enter__(self) -> ControlPlane:
        self.folder.mkdir(parents=True, exist_ok=True)
        try:
            self._start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    # Talking to it

    def __call__(self, method: str, path: str, body: Any = None, kind: str | None = None) -> dict[str, Any]:
        """The API server's answer; where it says to come again soon, the one after that, as kubectl does it.

        Raises :class:`ApiError`, and ``OSError`` where it does not answer.
        """
        kind = kind or ("application/merge-patch+json" if method == "PATCH" else "application/json")
        headers = {"authorization": f"Bearer {self._tokens['admin']}", "content-type": kind}
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.url + path, data, headers, method=method)
        for tries_left in reversed(range(TRIES)):
            try:
                with urllib.request.urlopen(request, timeout=60, context=self._tls) as answer:
                    content = answer.read()
                break
            except urllib.error.HTTPError as error:
                text = error.read().decode()
                with contextlib.suppress(ValueError, KeyError):
                    text = json.loads(text)["message"]
                again_s = error.headers.get("retry-after", "")
                if error.code != 429 or not again_s.isdigit() or not tries_left:
                    raise ApiError(error.code, text) from None
                time.sleep(int(again_s))
            except http.client.HTTPException as error:  # it was ended in the middle of its answer
                raise ConnectionError(repr(error)) from None
        return dict(json.loads(content)) if content.startswith(b"{") else {"text": content.decode()}

    def items(self, path: str) -> list[dict[str, Any]]:
        return list(self("GET", path)["items"])

    def serves(self, group_version: str) -> bool:
        try:
            return bool(self("GET", f"/apis/{group_version}"))
        except ApiError:
            return False

    def kubectl(self, *args: str, stdin: str | None = None) -> str:
        """What kubectl says, as the administrator. Raises ``AssertionError`` where it fails."""
        command = [str(self._programs / "kubectl"), "--kubeconfig", str(self.kubeconfig), *args]
        with tempfile.TemporaryDirectory() as home:  # it would remember there for ten minutes what kinds there are
            done = subprocess.run(
                command, input=stdin, capture_output=True, text=True, check=False, timeout=300,
                env={**os.environ, "HOME": home},
            )  # fmt: skip
        assert done.returncode == 0, f"kubectl {' '.join(args)}: {done.stderr}"
        return str(done.stdout + done.stderr)

    def helm(self, namespace: str) -> Config:
        """Helm, as the administrator."""
        return Config(kubeconfig_path=self.kubeconfig, namespace=namespace)

    @property
    def kubeconfig(self) -> Path:
        """The administrator's."""
        return self.folder / "admin.kubeconfig"

    @property
    def authority(self) -> bytes:
        """The certificate of its authority, PEM."""
        return (self.folder / "ca.crt").read_bytes()

    def write_kubeconfig(self, name: str, token: str, namespace: str = "default") -> Path:
        """A kubeconfig of the holder of ``token``."""
        cluster = {"server": self.url, "certificate-authority-data": base64.b64encode(self.authority).decode()}
        path = self.folder / f"{name.removeprefix('system:')}.kubeconfig"
        path.write_text(yaml.safe_dump({
            "apiVersion": "v1", "kind": "Config", "current-context": "x",
            "clusters": [{"name": "x", "cluster": cluster}], "users": [{"name": "x", "user": {"token": token}}],
            "contexts": [{"name": "x", "context": {"cluster": "x", "user": "x", "namespace": namespace}}],
        }))  # fmt: skip
        return path

    def audited(self, user: str) -> list[tuple[str, str, str, int]]:
        """Every answered request of a service account about a resource: (group, resource, verb, HTTP status)."""
        found = []
        for line in (self.folder / AUDIT_LOG).read_text().splitlines():
            with contextlib.suppress(ValueError):  # the last line may be half written
                event = json.loads(line)
                about = event.get("objectRef")
                if event["user"]["username"] == user and about:
                    resource = "/".join(filter(None, (about["resource"], about.get("subresource"))))
                    status = int(event["responseStatus"]["code"])
                    found.append((about.get("apiGroup", ""), resource, event["verb"], status))
        return found

    def account_token(self, namespace: str, name: str) -> str:
        """A token of a service account."""
        body = {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {"expirationSeconds": 7200}}
        made = self("POST", f"/api/v1/namespaces/{namespace}/serviceaccounts/{name}/token", body)
        return str(made["status"]["token"])

    def serve(self, group_version: str) -> None:
        """Have CRDs of this group served. The API server does by itself where there is no CRD server behind it."""
        if not self._crd_server:
            return
        group, _, version = group_version.partition("/")
        name = f"{version}.{group}"
        service = {"name": "crd-server", "namespace": "kube-system", "port": CRDS}
        spec = {"group": group, "version": version, "service": service, "insecureSkipTLSVerify": True,
                "groupPriorityMinimum": 2000, "versionPriority": 20}  # fmt: skip
        # Without the label the API server would take its own group back whenever it starts.
        body = {"metadata": {"name": name, "labels": {"kube-aggregator.kubernetes.io/automanaged": None}}, "spec": spec}
        try:
            self("PATCH", f"{SERVICES}/{name}", body)
        except ApiError as error:
            if error.status != 404:
                raise
            self("POST", SERVICES, {"metadata": {"name": name}, "spec": spec})

    def wait_until_served(self, group_version: str) -> None:
        """Until CRDs of this group, which are there, are served where they stay. For a moment after :meth:`serve` the
        API server may still answer for them itself, from a store of its own: what is created there is lost."""
        found = self._is_handed_on if self._crd_server else self.serves
        until(f"{group_version} is served", lambda: found(group_version))

    def _is_handed_on(self, group_version: str) -> bool:
        """Whether the CRD server has answered for this group."""
        group, _, version = group_version.partition("/")
        service = self("GET", f"{SERVICES}/{version}.{group}")
        conditions = service.get("status", {}).get("conditions", [])
        passed = any((c["type"], c["status"], c["reason"]) == ("Available", "True", "Passed") for c in conditions)
        return "service" in service["spec"] and passed and self.serves(group_version)

    def unserve(self, group_version: str) -> None:
        """The opposite: once its CRDs are gone, so that no client waits for the group."""
        if self._crd_server:
            group, _, version = group_version.partition("/")
            self("DELETE", f"{SERVICES}/{version}.{group}")

    # Its processes

    @property
    def pids(self) -> dict[str, int]:
        """By program."""
        return {name: process.pid for name, process in self._processes.items()}

    def stop(self) -> None:
        for process in reversed(self._processes.values()):
            process.terminate()
        for process in self._processes.values():
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(30)
            process.kill()
            process.wait()
        self._processes.clear()

    def restart_api_server(self) -> Callable[[], None]:
        """Kill it; the returned function starts it again as it was."""
        process = self._processes.pop("kube-apiserver")
        process.kill()
        process.wait()
        return lambda: self._run(*[str(arg) for arg in process.args])  # type: ignore[union-attr]

    def _start(self) -> None:
        here, address = self.folder, self.address
        self._make_certificates()
        self._tls.load_verify_locations(here / "ca.crt")
        tokens = [f"{self._tokens[user]},{user},{user},{group}" for user, group in USERS.items()]
        (here / "tokens.csv").write_text("\n".join(tokens) + "\n")
        (here / "audit.yaml").write_text(yaml.safe_dump(AUDIT_POLICY))
        config = {user: self.write_kubeconfig(user, token) for user, token in self._tokens.items()}
        config["admin"].rename(self.kubeconfig)
        self._run(
            "etcd", f"--data-dir={here / 'etcd'}", "--unsafe-no-fsync", "--log-level=warn",
            f"--listen-client-urls=http://{address}:{STORE}", f"--advertise-client-urls=http://{address}:{STORE}",
            f"--listen-peer-urls=http://{address}:{PEER}", f"--initial-advertise-peer-urls=http://{address}:{PEER}",
            f"--initial-cluster=default=http://{address}:{PEER}",
        )  # fmt: skip
        served = (f"--bind-address={address}", f"--cert-dir={here}", f"--tls-cert-file={here / 'server.crt'}",
                  f"--tls-private-key-file={here / 'server.key'}", f"--etcd-servers=http://{address}:{STORE}")  # fmt: skip
        self._run(
            "kube-apiserver", *served, f"--secure-port={API}", f"--advertise-address={address}",
            "--authorization-mode=RBAC", f"--token-auth-file={here / 'tokens.csv'}",
            f"--service-account-key-file={here / 'server.key'}",
            f"--service-account-signing-key-file={here / 'server.key'}",
            "--service-account-issuer=https://kubernetes.default.svc", "--service-cluster-ip-range=10.0.0.0/24",
            "--endpoint-reconciler-type=none", f"--requestheader-client-ca-file={here / 'ca.crt'}",
            "--requestheader-allowed-names=front-proxy", "--requestheader-username-headers=X-Remote-User",
            "--requestheader-group-headers=X-Remote-Group", "--requestheader-extra-headers-prefix=X-Remote-Extra-",
            f"--proxy-client-cert-file={here / 'front.crt'}", f"--proxy-client-key-file={here / 'front.key'}",
            f"--audit-policy-file={here / 'audit.yaml'}", f"--audit-log-path={here / AUDIT_LOG}",
            *(() if self.controllers else ("--disable-admission-plugins=ServiceAccount",)),
        )  # fmt: skip
        for made in ("/readyz", "/api/v1/namespaces/default", "/api/v1/namespaces/kube-system"):  # in any order
            self._wait("the API server", lambda path=made: self("GET", path))  # type: ignore[misc]
        if self._crd_server:
            self._start_crd_server(served)
        if self.controllers:
            self._start_controllers(config)

    def _start_crd_server(self, served: tuple[str, ...]) -> None:
        config = self.kubeconfig
        self._run(
            CRD_SERVER, *served, f"--secure-port={CRDS}", "--etcd-prefix=/registry-crds", f"--kubeconfig={config}",
            f"--authentication-kubeconfig={config}", f"--authorization-kubeconfig={config}",
            "--disable-admission-plugins=ValidatingAdmissionPolicy,MutatingAdmissionPolicy",
            "--enable-priority-and-fairness=false",
        )  # fmt: skip
        spec = {"type": "ExternalName", "externalName": self.address, "ports": [{"port": CRDS}]}
        self("POST", "/api/v1/namespaces/kube-system/services", {"metadata": {"name": "crd-server"}, "spec": spec})
        self.serve("apiextensions.k8s.io/v1")
        self._wait("the CRD server", lambda: self._is_handed_on("apiextensions.k8s.io/v1"))

    def _start_controllers(self, config: dict[str, Path]) -> None:
        for program, port, more in (
            ("kube-controller-manager", MANAGER, (
                f"--service-account-private-key-file={self.folder / 'server.key'}", "--use-service-account-credentials",
                f"--root-ca-file={self.folder / 'ca.crt'}", "--controllers=*,-nodelifecycle",
                "--kube-api-qps=200", "--kube-api-burst=300")),
            ("kube-scheduler", SCHEDULER, ()),
        ):  # fmt: skip
            own = config[f"system:{program}"]
            old = ("--port=0",) if self.version < (1, 23) else ()  # of the insecure server
            self._run(
                program, f"--kubeconfig={own}", f"--authentication-kubeconfig={own}",
                f"--authorization-kubeconfig={own}", "--leader-elect=false", f"--bind-address={self.address}",
                f"--secure-port={port}", f"--cert-dir={self.folder}", *old, *more,
            )  # fmt: skip
        self._wait("the controllers", lambda: self("GET", "/api/v1/namespaces/default/serviceaccounts/default"))

    def _make_certificates(self) -> None:
        """One authority, a certificate of all servers, and the one by which the API server calls the CRD server."""
        authority = trustme.CA()
        authority.cert_pem.write_to_path(str(self.folder / "ca.crt"))
        for name, certificate in {
            "server": authority.issue_cert(self.address, "localhost", "kubernetes.default.svc"),
            "front": authority.issue_cert("front-proxy.local", common_name="front-proxy"),
        }.items():
            certificate.private_key_pem.write_to_path(str(self.folder / f"{name}.key"))
            for pem in certificate.cert_chain_pems:
                pem.write_to_path(str(self.folder / f"{name}.crt"), append=True)

    def _run(self, program: str, *args: str) -> None:
        name = Path(program).name
        with (self.folder / f"{name}.log").open("ab") as log:
            self._processes[name] = subprocess.Popen(
                [self._programs / name, *args], stdout=log, stderr=log, start_new_session=True
            )

    def _wait(self, what: str, ready: Callable[[], Any], timeout_s: float = 900.0) -> None:
        end_s = time.monotonic() + timeout_s
        while True:
            with contextlib.suppress(ApiError, OSError):
                if ready():
                    return
            dead = [name for name, process in self._processes.items() if process.poll() is not None]
            if dead or time.monotonic() > end_s:
                logs = "\n".join((self.folder / f"{name}.log").read_text()[-2000:] for name in dead or self._processes)
                raise RuntimeError(f"{what} did not start; ended: {', '.join(dead) or 'none'}\n{logs}")
            time.sleep(0.1)
