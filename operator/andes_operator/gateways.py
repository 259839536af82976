"""Requests to the gateways: :meth:`Gateways.ask` reads demand and QoE from each, :meth:`Gateways.drain` tells all."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

import aiohttp

from andes_operator import prometheus
from andes_operator.cluster import Cluster, ClusterError
from andes_operator.explain import explain
from andes_operator.gateway_report import GatewayReport
from andes_operator.spec import DemandSource, TargetSpec
from andes_operator.supply import is_ready

__all__ = ["Answers", "Gateways"]

TIMEOUT_S = 5.0
"""Seconds for one answer; a gateway that takes longer counts as missing, which holds the scale."""
SHARED_S = 5.0
"""Seconds for which a Service and its pods are reused: one request for all targets behind the same gateways."""
MAX_BYTES = 32 << 20
"""Of one answer: the 20,000 records that a gateway keeps by default take 4 MiB."""
MAX_WINDOW_S = 3600.0
"""Seconds; the longest window that a gateway keeps QoE for (``andes_api.demand.QoEWindow``)."""


@dataclass(frozen=True, slots=True)
class Answers:
    """missing: messages about gateways that did not answer; broken: about answers that could not be read. addresses: of all
    gateways."""

    reports: tuple[GatewayReport, ...] = ()
    missing: tuple[str, ...] = ()
    broken: tuple[str, ...] = ()
    addresses: tuple[str, ...] = ()


class Gateways:
    """The pods of the gateways' Service. admin_key: the gateway's administrator key, which draining an engine there takes."""

    def __init__(self, admin_key: str | None = None, timeout_s: float = TIMEOUT_S) -> None:
        self._session = aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=timeout_s))
        self._admin = {"authorization": f"Bearer {admin_key}"} if admin_key else {}

    async def close(self) -> None:
        await self._session.close()

    async def ask(
        self, cluster: Cluster, namespace: str, spec: TargetSpec, now_s: float, model: str | None = None
    ) -> Answers:
        """Demand and QoE since the history began, of one model where one is given. All ready gateways have to answer.
        Terminating ones are asked too, for the streams that they still hold, and so are those that are not ready: where none
        is ready, one answer is enough."""
        demand, window_s = spec.demand, spec.behavior.window_s
        if demand.prometheus_url is not None:
            return await self._ask_prometheus(demand, window_s, now_s)
        try:
            required, optional = await self._addresses(cluster, namespace, demand)
        except ClusterError as error:
            return Answers(missing=(str(error),))
        since_s = now_s - spec.behavior.history_s
        wanted = [*required, *optional]
        found = await asyncio.gather(*(self._report(address, since_s, window_s, model) for address in wanted))
        reports: list[GatewayReport] = []
        missing: list[str] = []
        broken: list[str] = []
        for address, answer in zip(wanted, found):
            if isinstance(answer, GatewayReport):
                reports.append(answer)
            elif address in required:
                (broken if isinstance(answer, ValueError) else missing).append(str(answer))
        if not reports and not missing and not broken:
            missing.append(f"no gateway behind Service {demand.service} answers")
        return Answers(tuple(reports), tuple(missing), tuple(broken), tuple(wanted))

    async def _ask_prometheus(self, demand: DemandSource, window_s: float, now_s: float) -> Answers:
        try:
            return Answers(reports=(await prometheus.ask(self._session, demand, window_s, now_s),))
        except ValueError as error:
            return Answers(broken=(str(error),))
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            said = str(error) if isinstance(error, prometheus.SaidError) else f"{prometheus.NAME}: {explain(error)}"
            return Answers(missing=(said,))

    async def drain(self, addresses: Sequence[str], replica: str, *, drained: bool) -> list[str]:
        """Tell all gateways to send no new streams to an engine, or to send them again; messages about those that failed. A
        gateway that was not told notices by its health checks when the pod goes."""

        query = {"drained": str(drained).lower()}

        async def tell(address: str) -> str | None:
            url = f"http://{address}/fleet/replicas/{quote(replica, safe='')}/drain"
            try:
                async with self._session.post(url, params=query, headers=self._admin) as answer:
                    failed = f"gateway {address}: HTTP {answer.status} to drain {replica}"
                    return None if answer.status < 400 else failed
            except (aiohttp.ClientError, TimeoutError, OSError) as error:
                return f"gateway {address}: {explain(error)}"

        told = await asyncio.gather(*(tell(address) for address in addresses))
        return [failed for failed in told if failed is not None]

    async def _addresses(self, cluster: Cluster, namespace: str, demand: DemandSource) -> tuple[list[str], list[str]]:
        """``IP:port`` of the ready gateways, and of the others."""
        service = await cluster.service(namespace, str(demand.service), SHARED_S)
        selector = ",".join(f"{k}={v}" for k, v in sorted((service["spec"].get("selector") or {}).items()))
        port = _port(service, demand.port)
        serving: list[str] = []
        others: list[str] = []
        for pod in await cluster.pods(namespace, selector, SHARED_S):
            ip, number = (pod.get("status") or {}).get("podIP"), _number(pod, port)
            if ip and number:
                address = f"[{ip}]:{number}" if ":" in ip else f"{ip}:{number}"
                (serving if is_ready(pod) else others).append(address)
        return serving, others

    async def _report(
        self, address: str, since_s: float, window_s: float, model: str | None = None
    ) -> GatewayReport | Exception:
        async def get(path: str, absent: int | None = None, **query: float) -> Any:
            params = {name: str(value) for name, value in query.items()} | ({"model": model} if model else {})
            async with self._session.get(f"http://{address}{path}", params=params, headers=self._admin) as answer:
                if answer.status == absent:  # of an earlier release
                    return None
                if answer.status != 200:
                    raise ConnectionError(f"HTTP {answer.status} from {path}")
                if (answer.content_length or 0) > MAX_BYTES:
                    raise ValueError(f"{path} is longer than {MAX_BYTES >> 20} MiB")
                return await answer.json(content_type=None)

        try:
            demand, qoe, replicas, batches = await asyncio.gather(
                get("/fleet/demand", since=since_s),
                get("/fleet/qoe", window_s=min(MAX_WINDOW_S, window_s)),
                get("/fleet/replicas"),
                get("/fleet/batches", absent=404),
            )
            return await asyncio.to_thread(
                GatewayReport.parse,
                address,
                demand,
                qoe,
                replicas,
                since_s=since_s,
                received_s=time.time(),
                batches=batches,
            )
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            return OSError(f"gateway {address}: {explain(error)}")
        except ValueError as error:
            text = str(error)
            return ValueError(text if text.startswith("gateway ") else f"gateway {address}: {explain(error)}")


def _port(service: Mapping[str, Any], wanted: str | int | None) -> int | str:
    """The target port of the Service's port. Raises :class:`ClusterError` where there is no such port."""
    for port in service["spec"].get("ports") or []:
        if wanted is None or wanted in (port.get("name"), port["port"]):
            return port.get("targetPort") or int(port["port"])
    raise ClusterError(404, f"Service {service['metadata']['name']} has no port {wanted}")


def _number(pod: Mapping[str, Any], port: int | str) -> int | None:
    if isinstance(port, int):
        return port
    for container in pod["spec"]["containers"]:
        for declared in container.get("ports") or []:
            if declared.get("name") == port:
                return int(declared["containerPort"])
    return None
