"""What the operator costs the API server: requests and CPU seconds, on a real one, with many targets and pods.

``PYTHONPATH=tools python benchmarks/api_load.py`` starts a control plane (as the cluster tests do, without controllers: only
the operator acts), makes the objects, waits until each target has a status, and counts for ``--seconds`` what the API
server and, where there is one, the CRD server behind it do; first without the operator. No requests are sent to the engines.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import re
import ssl
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections import Counter
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import yaml
from aiohttp import web
from e2e.control_plane import CRDS as CRD_PORT
from e2e.control_plane import ControlPlane, binaries, until

from benchmarks.markdown import header, row
from benchmarks.processes import cpu_s

ROOT = Path(__file__).parent.parent
CRDS = ROOT / "charts" / "andes" / "files" / "crds"
OWN = "andes.dev/v1alpha1"
NAMESPACE = "many"
SERVERS = ("kube-apiserver", "apiextensions-apiserver", "etcd")
CLIENTS = 8
GATEWAY_IP = "127.0.0.1"
COUNTED = re.compile(r"^apiserver_request_total\{(?P<labels>.*)\} (?P<count>\S+)$", re.MULTILINE)
Counts = Counter[tuple[str, str]]


class Gateway(threading.Thread):
    """Answers as a gateway without requests, whose engines are well."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.port, self._there = 0, threading.Event()

    def run(self) -> None:
        asyncio.run(self._serve())

    async def _serve(self) -> None:
        async def answer(_: web.Request) -> web.Response:
            now_s = time.time()
            idle = dict.fromkeys(("streams", "waiting", "others"), 0)
            engine = {"name": "10.0.0.1:80", "healthy": True, "draining": False, **idle}
            times = {"now_s": now_s, "complete_since_s": now_s - 3600.0}
            return web.json_response({**times, "records": [], "classes": {}, "running": {}, "replicas": [engine]})

        app = web.Application()
        app.add_routes([web.get(f"/fleet/{name}", answer) for name in ("demand", "qoe", "replicas")])
        runner = web.AppRunner(app, access_log=None)
        await runner.setup()
        await web.TCPSite(runner, GATEWAY_IP, 0).start()
        self.port = runner.addresses[0][1]
        self._there.set()
        await asyncio.Event().wait()

    def start(self) -> None:
        super().start()
        self._there.wait()


def make(plane: ControlPlane, args: argparse.Namespace, port: int) -> None:
    """Deployments with their pods, and a QoETarget each."""
    core, apps = f"/api/v1/namespaces/{NAMESPACE}", f"/apis/apps/v1/namespaces/{NAMESPACE}"
    plane("POST", "/api/v1/namespaces", {"metadata": {"name": NAMESPACE}})
    container = {"name": "g", "image": "g", "ports": [{"name": "http", "containerPort": port}]}
    run_pod(plane, core, "gateway", {"app": "gateway"}, container, GATEWAY_IP)
    plane("POST", f"{core}/services", {
        "metadata": {"name": "gateway"},
        "spec": {"selector": {"app": "gateway"}, "ports": [{"name": "http", "port": 80, "targetPort": "http"}]},
    })  # fmt: skip
    each = args.pods // args.targets

    def one(i: int) -> None:
        name, labels = f"t{i:04}", {"app": "engine", "of": f"t{i:04}"}
        template = {"metadata": {"labels": labels}, "spec": {"containers": [{"name": "e", "image": "e"}]}}
        spec = {"replicas": each, "selector": {"matchLabels": labels}, "template": template}
        plane("POST", f"{apps}/deployments", {"metadata": {"name": name}, "spec": spec})
        for k in range(each):
            n = i * each + k
            run_pod(
                plane,
                core,
                f"{name}-{k}",
                labels,
                {"name": "e", "image": "e"},
                f"10.{n >> 14}.{n >> 7 & 127}.{1 + (n & 127)}",
            )
        plane("POST", f"/apis/{OWN}/namespaces/{NAMESPACE}/qoetargets", {
            "apiVersion": OWN, "kind": "QoETarget", "metadata": {"name": name},
            "spec": {
                "scaleTargetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": name},
                "objectives": [{"statistic": "ShareAbove", "threshold": 0.95, "value": 0.95}],
                "minReplicas": each, "maxReplicas": 2 * each, "demand": {"gateway": {"service": "gateway"}},
                "whatIf": {"profile": "h100-llama-3.1-8b"}, "behavior": {"tickSeconds": args.tick, "coldStartSeconds": 300},
            },
        })  # fmt: skip

    with ThreadPoolExecutor(CLIENTS) as pool:
        list(pool.map(one, range(args.targets)))


def run_pod(
    plane: ControlPlane, core: str, name: str, labels: Mapping[str, str], container: dict[str, Any], ip: str
) -> None:
    """A pod that runs and is ready, as far as the API server knows."""
    spec = {"containers": [container], "nodeName": "node"}
    plane("POST", f"{core}/pods", {"metadata": {"name": name, "labels": labels}, "spec": spec})
    now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    conditions = [{"type": c, "status": "True", "lastTransitionTime": now} for c in ("Ready", "PodScheduled")]
    status = {"phase": "Running", "startTime": now, "podIP": ip, "podIPs": [{"ip": ip}], "conditions": conditions}
    plane("PATCH", f"{core}/pods/{name}/status", {"status": status})


def metrics(plane: ControlPlane) -> str:
    """Of the API server and of the CRD server, which counts what is handed on to it."""
    user = yaml.safe_load(plane.kubeconfig.read_text())["users"][0]["user"]
    tls = ssl.create_default_context(cadata=plane.authority.decode())
    said = [plane("GET", "/metrics")["text"]]
    if SERVERS[1] in plane.pids:
        url = f"https://{plane.address}:{CRD_PORT}/metrics"
        asked = urllib.request.Request(url, headers={"authorization": f"Bearer {user['token']}"})
        with urllib.request.urlopen(asked, context=tls, timeout=60) as answer:
            said.append(answer.read().decode())
    return "\n".join(said)


def requests(plane: ControlPlane) -> Counts:
    """Answered so far, by verb and resource."""
    found: Counts = Counter()
    for match in COUNTED.finditer(metrics(plane)):
        labels = dict(re.findall(r'(\w+)="([^"]*)"', match["labels"]))
        name = "/".join(filter(None, (labels.get("resource"), labels.get("subresource"))))
        found[labels["verb"], name] += round(float(match["count"]))
    return found


def measured(plane: ControlPlane, seconds: float) -> tuple[dict[str, float], Counts]:
    """CPU seconds of the servers, and requests, meanwhile."""
    pids = {name: pid for name, pid in plane.pids.items() if name in SERVERS}
    before, asked = {name: cpu_s(pid) for name, pid in pids.items()}, requests(plane)
    time.sleep(seconds)
    return {name: cpu_s(pid) - before[name] for name, pid in pids.items()}, requests(plane) - asked


@contextlib.contextmanager
def operator(plane: ControlPlane, log: Path, code: Path) -> Iterator[subprocess.Popen[bytes]]:
    environment = {**os.environ, "KUBECONFIG": str(plane.kubeconfig), "PYTHONPATH": f"{code}:{code / 'operator'}"}
    flags = [
        f"--namespace={NAMESPACE}",
        f"--lease-namespace={NAMESPACE}",
        "--host=127.0.0.1",
        "--port=0",
        "--lease-seconds=60",
    ]
    with log.open("wb") as out:
        process = subprocess.Popen(
            [sys.executable, "-m", "andes_operator", *flags], stdout=out, stderr=out, env=environment
        )
    try:
        yield process
    finally:
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(60)
        process.kill()


def report(
    args: argparse.Namespace, idle: dict[str, float], busy: dict[str, float], asked: Counts, own_s: float
) -> Iterator[str]:
    yield from header(
        "", f"CPU, ms a second, idle ({args.idle:g} s)", f"with {args.targets} targets ({args.seconds:g} s)"
    )
    for name, taken_s in busy.items():
        yield row(name, f"{1e3 * idle[name] / args.idle:.0f}", f"{1e3 * taken_s / args.seconds:.0f}")
    yield row("the operator itself", "-", f"{1e3 * own_s / args.seconds:.0f}")
    yield ""
    yield from header("requests", "a second")
    for (verb, name), count in asked.most_common(12):
        yield row(f"{verb} {name}", f"{count / args.seconds:.2f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--targets", type=int, default=500, help="default: %(default)s")
    parser.add_argument("--pods", type=int, default=2000, help="of all targets; default: %(default)s")
    parser.add_argument("--tick", type=float, default=15.0, help="seconds between reconciles; default: %(default)s")
    parser.add_argument("--idle", type=float, default=20.0, help="seconds without the operator; default: %(default)s")
    parser.add_argument(
        "--warm", type=float, default=30.0, help="seconds after all have a status; default: %(default)s"
    )
    parser.add_argument("--seconds", type=float, default=120.0, help="that are counted; default: %(default)s")
    parser.add_argument(
        "--code", type=Path, default=ROOT, help="checkout whose operator is measured; default: this one"
    )
    args = parser.parse_args()
    if not 1 <= args.targets <= args.pods:
        parser.error(f"--targets must be from 1 to --pods, {args.pods}, got {args.targets}")
    gateway = Gateway()
    gateway.start()
    with tempfile.TemporaryDirectory() as folder:
        plane = ControlPlane(Path(folder) / "plane", binaries())
        plane.controllers = False
        with plane:
            plane.serve(OWN)
            for crd in sorted(CRDS.glob("*.yaml")):
                plane.kubectl("apply", "--validate=false", "-f", str(crd))
                path = f"/apis/{OWN}/{crd.stem}"
                until(f"{crd.stem} are served", lambda path=path: "items" in plane("GET", path))  # type: ignore[misc]
            plane.wait_until_served(OWN)
            make(plane, args, gateway.port)
            path, log = f"/apis/{OWN}/namespaces/{NAMESPACE}/qoetargets", Path(folder) / "operator.log"
            idle, _ = measured(plane, args.idle)
            with operator(plane, log, args.code) as process:
                try:
                    until("all have a status", lambda: all("status" in item for item in plane.items(path)), 600.0)
                except AssertionError:
                    sys.exit(f"not all targets have a status\n{log.read_text()[-3000:]}")
                time.sleep(args.warm)
                own_s = cpu_s(process.pid)
                busy, asked = measured(plane, args.seconds)
                own_s = cpu_s(process.pid) - own_s
                print("\n".join(report(args, idle, busy, asked, own_s)), flush=True)


if __name__ == "__main__":
    main()
