"""A node whose pods run at once, gateways that say what a test wants, and the operator as a process."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import json
import os
import socket
import socketserver
import ssl
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import yaml
from aiohttp import web
from e2e.control_plane import API, ApiError, ControlPlane
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from andes_sglang.bench.ports import free_port
from andes_sglang.sketch import DurationSketch, Sketch

ROOT = Path(__file__).parent.parent.parent
CHART_FILES = ROOT / "charts" / "andes" / "files"
RBAC = "/apis/rbac.authorization.k8s.io/v1"


def node_role(namespace: str) -> str:
    """Of the operator there: name of a ClusterRole and its binding."""
    return f"andes-operator-nodes-{namespace}"


def operator_kubeconfig(
    plane: ControlPlane, namespace: str, scales: tuple[tuple[str, str], ...] = (("apps", "deployments"),)
) -> Path:
    """A kubeconfig of a service account that holds the chart's role in ``namespace``, the rules about nodes everywhere, and
    nothing else."""
    rules = yaml.safe_load((CHART_FILES / "operator-rules.yaml").read_text())
    of_nodes = [rule for rule in rules if "nodes" in rule["resources"]]
    rules = [rule for rule in rules if rule not in of_nodes]
    rules += [{"apiGroups": [g], "resources": [f"{r}/scale"], "verbs": ["get", "patch"]} for g, r in scales]
    body: dict[str, Any] = {"metadata": {"name": "andes-operator"}}
    core = f"/api/v1/namespaces/{namespace}"
    plane("POST", f"{core}/serviceaccounts", body)
    roles = [("Role", f"{RBAC}/namespaces/{namespace}/", "andes-operator", rules)]
    roles.append(("ClusterRole", f"{RBAC}/cluster", node_role(namespace), of_nodes))
    for kind, path, name, held in roles:
        plane("POST", f"{path}roles", {"metadata": {"name": name}, "rules": held})
        plane("POST", f"{path}rolebindings", {
            "metadata": {"name": name},
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": kind, "name": name},
            "subjects": [{"kind": "ServiceAccount", "name": "andes-operator", "namespace": namespace}],
        })  # fmt: skip
    return plane.write_kubeconfig(namespace, plane.account_token(namespace, "andes-operator"), namespace)


class Node(threading.Thread):
    """Binds, runs and ends pods. A pod's address is its annotation ``test/ip``, or the next of 127.0.9.x. room: by label, how
    many pods there can be that select nodes by it; others it binds without asking the scheduler. name: of the node that new
    pods get."""

    def __init__(self, plane: ControlPlane) -> None:
        super().__init__(daemon=True)
        self._plane = plane
        self._stopped = threading.Event()
        self._next = 0
        self.room: dict[str, int] = {}
        self.name = "node1"

    @contextlib.contextmanager
    def another(self, name: str) -> Iterator[None]:
        """A second node, which has the pods that come meanwhile. At the end it is gone."""
        self._plane("POST", "/api/v1/nodes", {"metadata": {"name": name}})
        self.name = name
        try:
            yield
        finally:
            self.name = "node1"
            self._plane("DELETE", f"/api/v1/nodes/{name}")

    def run(self) -> None:
        with contextlib.suppress(ApiError):
            self._plane("POST", "/api/v1/nodes", {"metadata": {"name": "node1"}})
        while not self._stopped.wait(0.2):
            try:
                for pod in self._plane.items("/api/v1/pods"):
                    with contextlib.suppress(ApiError):
                        self._handle(pod)
            except (ApiError, OSError) as error:  # the API server is restarted by a test
                print(f"node: {error!r}"[:200], flush=True)

    def _handle(self, pod: dict[str, Any]) -> None:
        metadata, now = pod["metadata"], datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        path = f"/api/v1/namespaces/{metadata['namespace']}/pods/{metadata['name']}"
        if "deletionTimestamp" in metadata:
            self._plane("DELETE", path, {"gracePeriodSeconds": 0})
        elif "nodeName" not in pod["spec"]:
            if not self._has_room(pod):
                return
            target = {"apiVersion": "v1", "kind": "Node", "name": self.name}
            self._plane("POST", f"{path}/binding", {"metadata": {"name": metadata["name"]}, "target": target})
        elif pod["status"]["phase"] == "Pending":
            self._next += 1
            ip = metadata.get("annotations", {}).get("test/ip") or f"127.0.9.{self._next}"
            conditions = [{"type": c, "status": "True", "lastTransitionTime": now} for c in ("Ready", "PodScheduled")]
            self._plane("PATCH", f"{path}/status", {"status": {
                "phase": "Running", "startTime": now, "podIP": ip, "podIPs": [{"ip": ip}], "conditions": conditions,
            }})  # fmt: skip

    def _has_room(self, pod: dict[str, Any]) -> bool:
        labels = pod["spec"].get("nodeSelector") or {}
        bound = [p["spec"] for p in self._plane.items("/api/v1/pods") if "nodeName" in p["spec"]] if labels else []
        return all(sum(of in (p.get("nodeSelector") or {}) for p in bound) < self.room.get(of, 0) for of in labels)

    def stop(self) -> None:
        """Its pods are taken away by the controllers once there is no such node any more."""
        self._stopped.set()
        self.join(30)
        self._plane("DELETE", "/api/v1/nodes/node1")


@dataclass
class World:
    """What the gateways say: demand and QoE as a test sets them."""

    rate_rps: float = 1.0
    prompt_tokens: int = 500
    output_tokens: int = 100
    stay_s: float = 1.0  # about what an H100 takes for such an answer
    qoe: float = 1.0
    ttft_s: float = 0.1
    waiting: int = 0
    skew_s: float = 0.0
    silent: bool = False
    engines: Callable[[], list[str]] = field(default=list)
    streams: dict[str, int] = field(default_factory=dict)
    drained: list[tuple[str, bool]] = field(default_factory=list)
    last_s: float | None = None
    spans: dict[str, dict[str, str]] = field(default_factory=dict)
    window_s: float = 120.0


class Gateway(threading.Thread):
    """Answers ``/fleet/*`` as the gateway does, on 127.0.0.1."""

    def __init__(self, world: World) -> None:
        super().__init__(daemon=True)
        self.world = world
        self.port = free_port()
        self._ready = threading.Event()
        self._loop = asyncio.new_event_loop()

    def start(self) -> None:
        super().start()
        assert self._ready.wait(30)

    def run(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_until_complete(self._serve())
        self._loop.run_forever()

    async def _serve(self) -> None:
        app = web.Application()
        app.add_routes([
            web.get("/fleet/demand", self._demand), web.get("/fleet/qoe", self._qoe),
            web.get("/fleet/replicas", self._replicas), web.post("/fleet/replicas/{name}/drain", self._drain),
            web.post("/v1/traces", self._traces),
        ])  # fmt: skip
        runner = web.AppRunner(app, access_log=None)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", self.port).start()
        self._ready.set()

    def stop(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self.join(10)

    def _now_s(self) -> float:
        if self.world.silent:
            raise web.HTTPServiceUnavailable
        return time.time() + self.world.skew_s

    async def _demand(self, request: web.Request) -> web.Response:
        world, now_s = self.world, self._now_s()
        end_s = now_s if world.last_s is None else world.last_s
        count = int(world.rate_rps * world.window_s)
        times = [end_s - i / world.rate_rps for i in range(count)][::-1] if world.rate_rps else []
        records = [
            {"arrival_s": t, "class": "reading", "stream": True, "prompt_tokens": world.prompt_tokens,
             "output_tokens": world.output_tokens, "ttft_s": 0.1, "qoe": world.qoe, "outcome": "done"}
            for t in times if t > float(request.query["since"])
        ]  # fmt: skip
        return web.json_response(
            {"gateway": "g", "now_s": now_s, "complete_since_s": now_s - world.window_s, "records": records}
        )

    async def _qoe(self, request: web.Request) -> web.Response:
        sketch = Sketch()
        for _ in range(50 if self.world.rate_rps else 0):
            sketch.add(self.world.qoe)
        classes = {"reading": sketch.to_dict()} if sketch.counts else {}
        waited = DurationSketch()
        for _ in range(sketch.count):
            waited.add(self.world.ttft_s)
        ttft = {"classes": {"reading": waited.to_dict()} if sketch.counts else {}, "running": {}}
        return web.json_response(
            {"now_s": self._now_s(), "classes": classes, "running": {}, "ttft_s": ttft, "stall_s": ttft}
        )

    async def _replicas(self, request: web.Request) -> web.Response:
        self._now_s()
        held = round(self.world.rate_rps * self.world.stay_s / max(1, len(self.world.engines())))
        replicas = [
            {"name": name, "healthy": True, "draining": (name, True) in self.world.drained,
             "streams": self.world.streams.get(name, 0), "waiting": self.world.waiting, "others": 0, "requests": held}
            for name in self.world.engines()
        ]  # fmt: skip
        return web.json_response({"replicas": replicas})

    async def _traces(self, request: web.Request) -> web.Response:
        """Spans as a collector gets them: by name, the text attributes of the last."""
        found = ExportTraceServiceRequest.FromString(await request.read())
        for resource in found.resource_spans:
            for scope in resource.scope_spans:
                for span in scope.spans:
                    self.world.spans[span.name] = {a.key: a.value.string_value for a in span.attributes}
        return web.Response()

    async def _drain(self, request: web.Request) -> web.Response:
        if request.headers.get("authorization") != "Bearer secret":
            raise web.HTTPUnauthorized
        self.world.drained.append((request.match_info["name"], request.query["drained"] == "true"))
        return web.json_response({})


class Proxy(socketserver.ThreadingTCPServer):
    """On the way to the API server, as a firewall that forgets: after :meth:`silence` the connections that there are stay open
    and bring nothing any more."""

    daemon_threads = True

    def __init__(self, plane: ControlPlane) -> None:
        super().__init__(("127.0.0.1", 0), self.Connection)
        self.plane = plane
        self.silenced = 0
        self.stopped = threading.Event()

    def __enter__(self) -> Proxy:
        threading.Thread(target=self.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stopped.set()
        self.shutdown()
        self.server_close()

    def silence(self) -> None:
        self.silenced += 1

    def kubeconfig(self, direct: Path) -> Path:
        """``direct``, by way of this."""
        path = direct.with_name(f"{direct.stem}-proxy.kubeconfig")
        path.write_text(direct.read_text().replace(self.plane.url, f"https://localhost:{self.server_address[1]}"))
        return path

    class Connection(socketserver.BaseRequestHandler):
        server: Proxy

        def handle(self) -> None:
            opened = self.server.silenced
            with socket.create_connection((self.server.plane.address, API)) as there, contextlib.suppress(OSError):
                threading.Thread(target=self.forward, args=(there,), daemon=True).start()
                while data := there.recv(65536):
                    if self.server.silenced == opened:
                        self.request.sendall(data)
            if self.server.silenced != opened:
                self.server.stopped.wait()

        def forward(self, there: socket.socket) -> None:
            with contextlib.suppress(OSError):
                while data := self.request.recv(65536):
                    there.sendall(data)
                there.shutdown(socket.SHUT_RDWR)


class Moody(ThreadingHTTPServer):
    """Before the API server: while there is a ``mood``, an HTTP status, that is all the answer to anything ``about`` that; 410
    comes as it does, in a watch. ``told``: how often each was, to watches and to others."""

    daemon_threads = True

    def __init__(self, plane: ControlPlane, mood: int = 0, about: str = "/") -> None:
        super().__init__(("127.0.0.1", 0), self.Request)
        self.plane, self.mood, self.about = plane, mood, about
        self.told: Counter[tuple[int, bool]] = Counter()
        self.tls = ssl.create_default_context(cadata=plane.authority.decode())

    def __enter__(self) -> Moody:
        threading.Thread(target=self.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.shutdown()
        self.server_close()

    def kubeconfig(self, direct: Path) -> Path:
        """``direct``, by way of this."""
        path = direct.with_name(f"{direct.stem}-moody.kubeconfig")
        path.write_text(direct.read_text().replace(self.plane.url, f"http://127.0.0.1:{self.server_port}"))
        return path

    class Request(BaseHTTPRequestHandler):
        server: Moody

        def do_GET(self) -> None:
            body = self.rfile.read(int(self.headers.get("content-length", 0)))
            mood, watch = self.server.mood, "watch=true" in self.path
            if mood and self.path.startswith(self.server.about) and (watch or mood != HTTPStatus.GONE):
                self.server.told[mood, watch] += 1
                status = {"apiVersion": "v1", "kind": "Status", "status": "Failure", "message": "a mood", "code": mood}
                self.send_response(200 if mood == HTTPStatus.GONE else mood)
                self.send_header("content-type", "application/json")
                self.send_header("retry-after", "1")
                self.end_headers()
                said = {"type": "ERROR", "object": status} if mood == HTTPStatus.GONE else status
                self.wfile.write(json.dumps(said).encode() + b"\n")
                return
            there = http.client.HTTPSConnection(self.server.plane.address, API, context=self.server.tls, timeout=300)
            with contextlib.closing(there), contextlib.suppress(OSError, http.client.HTTPException):
                headers = {k: v for k, v in self.headers.items() if k.lower() not in ("host", "connection")}
                there.request(self.command, self.path, body, headers)
                answer = there.getresponse()
                self.send_response(answer.status)
                self.send_header("content-type", answer.headers.get("content-type", ""))
                self.end_headers()
                while part := answer.read1(65536):
                    self.wfile.write(part)

        do_POST = do_PATCH = do_DELETE = do_GET  # noqa: N815

        def log_message(self, *_: Any) -> None:
            pass


class Operator:
    """``python -m andes_operator`` as a process, under the role."""

    def __init__(self, kubeconfig: Path, namespace: str, log: Path, **more: str) -> None:
        self.port = free_port()
        flags = {"namespace": namespace, "host": "127.0.0.1", "port": str(self.port), "lease-namespace": namespace,
                 "lease-seconds": "60", "resync-seconds": "5",
                 "what-if-seconds": "200", **more}  # on a slow machine too  # fmt: skip
        self.log = log
        path = f"{ROOT}:{ROOT / 'operator'}"
        with log.open("ab") as out:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "andes_operator", *(f"--{k}={v}" for k, v in flags.items())], stdout=out, stderr=out,
                env={**os.environ, "KUBECONFIG": str(kubeconfig), "ANDES_ADMIN_KEY": "secret", "PYTHONPATH": path},
            )  # fmt: skip

    def said(self) -> str:
        return self.log.read_text()

    def kill(self) -> None:
        self.process.kill()
        self.process.wait(30)

    def stop(self) -> int:
        if self.process.poll() is None:
            self.process.terminate()
        return self.process.wait(60)


@contextlib.contextmanager
def running(operator: Operator) -> Iterator[Operator]:
    try:
        yield operator
    finally:
        operator.stop()
