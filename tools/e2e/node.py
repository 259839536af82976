"""A node that runs its pods as processes of this machine: what a kubelet does, without a container engine.

What containers would give is replaced (:mod:`e2e.container`). A pod has an address of its own in 127/8; where the pod's
arguments, variables and mounted files say 0.0.0.0 or a path that is mounted, they get that address and the pod's folder.
What the node adds itself (interpreter, kubeconfig, search path) is not translated, wherever this repository lies. Names of
Services resolve to the ready pods that they select (``pod/sitecustomize.py``; Endpoints may not hold addresses of 127/8),
so a Service's port has to be its pods' port. Probes, preStop, grace period, restarts, changing ConfigMaps and conditions
are as Kubernetes has them.
"""

from __future__ import annotations

import base64
import contextlib
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from e2e.container import Probe, Sandbox
from e2e.control_plane import ApiError, ControlPlane, network

__all__ = ["Node"]

Object = Mapping[str, Any]
POLL_S = 0.3
REFRESH_S = 2.0
MAX_BACKOFF_S = 30.0
RESOURCES = {"cpu": "64", "memory": "64Gi", "pods": "200", "ephemeral-storage": "100Gi"}


def _now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _ready(pod: Object) -> bool:
    conditions = pod["status"].get("conditions", [])
    return "deletionTimestamp" not in pod["metadata"] and any(
        c["type"] == "Ready" and c["status"] == "True" for c in conditions
    )


def _selects(service: Object, pod: Object) -> bool:
    selector, labels = service["spec"].get("selector") or {}, pod["metadata"].get("labels", {})
    same = service["metadata"]["namespace"] == pod["metadata"]["namespace"]
    return bool(selector) and same and selector.items() <= labels.items()


class Node:
    """A context manager. images: how the containers of an image start, by the name of its repository. exits: how the
    processes of the pods that are gone have ended."""

    def __init__(
        self, plane: ControlPlane, folder: Path, images: Mapping[str, Sequence[str]], name: str = "node"
    ) -> None:
        self.plane, self.folder, self.images, self.name = plane, folder, images, name
        self.pods: dict[str, Pod] = {}
        self.exits: dict[str, int | None] = {}
        self.hosts = folder / "hosts"
        self._started = 0
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name=name)

    def __enter__(self) -> Node:
        self.folder.mkdir(parents=True, exist_ok=True)
        self.hosts.touch()
        self._register()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Every process ends, whatever the API server thinks."""
        self._stopped.set()
        self._thread.join()
        for pod in self.pods.values():
            pod.kill()
        for pod in self.pods.values():
            pod.join()
        with contextlib.suppress(ApiError, OSError):
            self.plane("DELETE", f"/api/v1/nodes/{self.name}")

    def addresses(self, service: str) -> list[str]:
        """Of the ready pods behind ``NAME.NAMESPACE.svc``, as the pods find them."""
        lines = [line.split() for line in self.hosts.read_text().splitlines()]
        return [address for address, name in lines if name == service]

    def _register(self) -> None:
        root = "/api/v1/nodes"
        labels = {"kubernetes.io/hostname": self.name, "kubernetes.io/os": "linux"}
        self.plane("POST", root, {"metadata": {"name": self.name, "labels": labels}})
        ready = {"type": "Ready", "status": "True", "reason": "Running", "lastHeartbeatTime": _now(),
                 "lastTransitionTime": _now()}  # fmt: skip
        status = {"capacity": RESOURCES, "allocatable": RESOURCES, "conditions": [ready]}
        self.plane("PATCH", f"{root}/{self.name}/status", {"status": status})
        self.plane("PATCH", f"{root}/{self.name}", {"spec": {"taints": None}})  # a new node is tainted as not ready

    def _run(self) -> None:
        while not self._stopped.wait(POLL_S):
            try:
                self._reconcile()
            except (ApiError, OSError) as error:
                print(f"node: {error!r}"[:200], file=sys.stderr, flush=True)

    def _reconcile(self) -> None:
        bound = self.plane.items(f"/api/v1/pods?fieldSelector=spec.nodeName%3D{self.name}")
        for found in bound:
            uid = found["metadata"]["uid"]
            if uid not in self.pods:
                self._started += 1
                self.pods[uid] = Pod(self, found, f"{network()}.{10 + self._started % 240}")
                self.pods[uid].start()
            if "deletionTimestamp" in found["metadata"]:
                self.pods[uid].delete(found["metadata"].get("deletionGracePeriodSeconds", 30))
        there = {found["metadata"]["uid"] for found in bound}
        for uid in self.pods.keys() - there:
            self.pods[uid].delete(0)  # one that has ended by itself goes without notice
            if self.pods[uid].is_alive():
                continue
            pod = self.pods.pop(uid)
            self.exits[pod.name] = None if pod.process is None else pod.process.returncode
        self._write_hosts([pod for pod in bound if _ready(pod)])

    def _write_hosts(self, ready: Sequence[Object]) -> None:
        lines = sorted(
            f"{pod['status']['podIP']} {service['metadata']['name']}.{service['metadata']['namespace']}.svc\n"
            for service in self.plane.items("/api/v1/services")
            for pod in ready
            if _selects(service, pod)
        )
        new = self.hosts.with_suffix(".new")
        new.write_text("".join(lines))
        new.replace(self.hosts)


class Pod(threading.Thread):
    """One pod of one container, from its start to its end."""

    def __init__(self, node: Node, pod: Object, address: str) -> None:
        metadata = pod["metadata"]
        super().__init__(name=metadata["name"])
        self.address, self.namespace = address, str(metadata["namespace"])
        self.folder = node.folder / "pods" / f"{metadata['name']}-{metadata['uid'][:8]}"
        self.process: subprocess.Popen[bytes] | None = None
        self.restarts = 0
        self._node, self._plane, self._pod = node, node.plane, pod
        (self._container,) = pod["spec"]["containers"]
        mounts = tuple(mount["mountPath"] for mount in self._container.get("volumeMounts", ()))
        self._sandbox = Sandbox(self.folder, address, mounts)
        self._path = f"/api/v1/namespaces/{self.namespace}/pods/{metadata['name']}"
        self._grace_s: float | None = None
        self._told = threading.Event()
        self._killed = False
        self._since: dict[str, tuple[str, str]] = {}

    def delete(self, grace_s: float) -> None:
        """It is to go: preStop, SIGTERM, and SIGKILL after the grace period."""
        if self._grace_s is None:
            self._grace_s = grace_s
            self._told.set()

    def kill(self) -> None:
        self._killed = True
        self._told.set()

    @property
    def log(self) -> str:
        path = self.folder / "log"
        return path.read_text(errors="replace") if path.exists() else ""

    def run(self) -> None:
        try:
            self._live()
        except (ApiError, OSError) as error:
            if not self._killed:
                print(f"pod {self.name}: {error!r}"[:300], file=sys.stderr, flush=True)
        finally:
            self._signal(signal.SIGKILL)
            shutil.rmtree(self.folder / "tmp", ignore_errors=True)

    def _live(self) -> None:
        image = self._container["image"].rpartition("/")[2].partition(":")[0].partition("@")[0]
        if image not in self._node.images:
            self._report("Pending", {"waiting": {"reason": "ErrImagePull", "message": f"no image {image}"}})
            self._told.wait()
        backoff_s = 1.0
        while not self._told.is_set():
            try:
                self._start(self._node.images[image])
            except (ApiError, OSError) as error:  # what it mounts is not there yet
                self._report("Pending", {"waiting": {"reason": "CreateContainerConfigError", "message": str(error)}})
                self._told.wait(1.0)
                continue
            self._probe()
            self._end()
            code = self._process.returncode
            over = {"terminated": {"exitCode": code, "reason": "Completed" if code == 0 else "Error"}}
            if self._pod["spec"].get("restartPolicy", "Always") == "Never":
                self._report("Succeeded" if code == 0 else "Failed", over)
                self._told.wait()
            elif not self._told.is_set():
                self._report("Running", over)
                self._told.wait(backoff_s)
                self.restarts, backoff_s = self.restarts + 1, min(MAX_BACKOFF_S, 2 * backoff_s)
        if not self._killed:
            with contextlib.suppress(ApiError):
                self._plane("DELETE", self._path, {"gracePeriodSeconds": 0})

    @property
    def _process(self) -> subprocess.Popen[bytes]:
        assert self.process is not None
        return self.process

    # The container

    def _start(self, entrypoint: Sequence[str]) -> None:
        self._mount()
        variables = self._variables()
        command = self._sandbox.command(self._container, entrypoint, variables)
        environment = {name: os.environ[name] for name in ("PATH", "LANG", "LD_LIBRARY_PATH") if name in os.environ}
        paths = [str(Path(__file__).parent / "pod"), os.environ.get("PYTHONPATH", "")]
        environment |= {"HOME": str(self.folder), "TMPDIR": str(self.folder / "tmp"), "NODE_HOSTS": str(self._node.hosts),
                        "NODE_NAMESPACE": self.namespace}  # fmt: skip
        environment |= {"PYTHONPATH": os.pathsep.join(filter(None, paths)), "PYTHONUNBUFFERED": "1", **variables}
        (self.folder / "tmp").mkdir(parents=True, exist_ok=True)
        with (self.folder / "log").open("ab") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=log, env=environment, start_new_session=True)

    def _probe(self) -> None:
        """Until the process ends, a probe wants it to end, or the pod is to go."""
        found = {
            kind: Probe(self._container[f"{kind}Probe"], self._container, self.address)
            for kind in ("startup", "liveness", "readiness") if f"{kind}Probe" in self._container
        }  # fmt: skip
        started, ready = "startup" not in found, False
        refresh_s = time.monotonic()
        self._report_running(started, ready := started and "readiness" not in found)
        while self._process.poll() is None and not self._told.is_set():
            if time.monotonic() >= refresh_s:
                with contextlib.suppress(ApiError, OSError):
                    self._mount()
                refresh_s = time.monotonic() + REFRESH_S
            before = started, ready
            if not started and time.monotonic() >= found["startup"].due_s:
                started = found["startup"].ask()
                ready = started and "readiness" not in found
            for kind in ("readiness", "liveness") if started else ():
                probe = found.get(kind)
                if probe is not None and time.monotonic() >= probe.due_s:
                    good = probe.ask()
                    if kind == "readiness":
                        ready = good or (ready and not probe.failed)
            if (started, ready) != before:
                self._report_running(started, ready)
            if any(found[kind].failed for kind in ("startup", "liveness") if kind in found):
                break
            due_s = [p.due_s for kind, p in found.items() if (kind == "startup") != started]
            self._told.wait(max(0.05, min([POLL_S, *(due - time.monotonic() for due in due_s)])))

    def _end(self) -> None:
        """As a kubelet ends a container; all of its processes are gone afterwards."""
        if self._process.poll() is None and not self._killed:
            own_s = float(self._pod["spec"].get("terminationGracePeriodSeconds", 30))
            grace_s = own_s if self._grace_s is None else self._grace_s
            end_s = time.monotonic() + grace_s
            before = self._container.get("lifecycle", {}).get("preStop", {}).get("exec", {}).get("command")
            if before and self._grace_s is not None:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    subprocess.run(before, timeout=grace_s, check=False, stdin=subprocess.DEVNULL)
            self._process.send_signal(signal.SIGTERM)
            while self._process.poll() is None and time.monotonic() < end_s and not self._killed:
                time.sleep(0.05)
        self._signal(signal.SIGKILL)
        self._process.wait()

    def _signal(self, number: int) -> None:
        if self.process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, number)

    # What it finds inside

    def _variables(self) -> dict[str, str]:
        found = {}
        for variable in self._container.get("env", []):
            source = variable.get("valueFrom", {})
            if "fieldRef" in source:
                fields = {"metadata.name": self._pod["metadata"]["name"], "metadata.namespace": self.namespace,
                          "status.podIP": self.address}  # fmt: skip
                found[variable["name"]] = fields[source["fieldRef"]["fieldPath"]]
            elif "secretKeyRef" in source:
                found[variable["name"]] = self._secret(source["secretKeyRef"]["name"])[source["secretKeyRef"]["key"]]
            else:
                found[variable["name"]] = self._sandbox.translate(variable.get("value", ""))
        account = self.folder / "var/run/secrets/kubernetes.io/serviceaccount/token"
        if account.exists():  # clients look for it at a path that is fixed
            kubeconfig = self._plane.write_kubeconfig(self.name, account.read_text(), self.namespace)
            found["KUBECONFIG"] = str(kubeconfig)
        return found

    def _mount(self) -> None:
        """ConfigMaps and Secrets as files; again and again, since they change."""
        volumes = {volume["name"]: volume for volume in self._pod["spec"].get("volumes", [])}
        for mount in self._container.get("volumeMounts", []):
            files = self._files(volumes[mount["name"]])
            folder = self.folder / mount["mountPath"].lstrip("/")
            folder.mkdir(parents=True, exist_ok=True)
            for name, text in files.items():
                path, text = folder / name, self._sandbox.translate(text)
                if not path.exists() or path.read_text() != text:
                    new = path.with_name(f".{name}")
                    new.write_text(text)
                    new.replace(path)

    def _files(self, volume: Object) -> dict[str, str]:
        if "projected" in volume:
            return {
                name: text for source in volume["projected"]["sources"] for name, text in self._files(source).items()
            }
        if "serviceAccountToken" in volume:
            account = self._pod["spec"]["serviceAccountName"]
            return {volume["serviceAccountToken"]["path"]: self._plane.account_token(self.namespace, account)}
        if "secret" in volume:
            return self._secret(volume["secret"]["secretName"])
        if "configMap" not in volume:
            return {}
        source = volume["configMap"]
        try:
            found = self._plane("GET", f"/api/v1/namespaces/{self.namespace}/configmaps/{source['name']}")
        except ApiError as error:
            if error.status == 404 and source.get("optional"):
                return {}
            raise
        return dict(found.get("data") or {})

    def _secret(self, name: str) -> dict[str, str]:
        found = self._plane("GET", f"/api/v1/namespaces/{self.namespace}/secrets/{name}")
        return {key: base64.b64decode(value).decode() for key, value in (found.get("data") or {}).items()}

    # What the API server is told

    def _report_running(self, started: bool, ready: bool) -> None:
        self._report("Running", {"running": {"startedAt": _now()}}, started=started, ready=ready)

    def _report(self, phase: str, state: Object, *, started: bool = False, ready: bool = False) -> None:
        container = self._container
        conditions = {"PodScheduled": True, "Initialized": True, "ContainersReady": ready, "Ready": ready}
        for kind, holds in conditions.items():
            if self._since.get(kind, ("",))[0] != str(holds):
                self._since[kind] = str(holds), _now()
        status = {
            "phase": phase, "hostIP": f"{network()}.1", "podIP": self.address, "podIPs": [{"ip": self.address}],
            "startTime": self._since["PodScheduled"][1],
            "conditions": [{"type": k, "status": s, "lastTransitionTime": at} for k, (s, at) in self._since.items()],
            "containerStatuses": [{
                "name": container["name"], "image": container["image"], "imageID": container["image"], "ready": ready,
                "started": started, "restartCount": self.restarts, "state": state,
            }],
        }  # fmt: skip
        with contextlib.suppress(ApiError, OSError):  # it may be gone
            self._plane("PATCH", f"{self._path}/status", {"status": status})
