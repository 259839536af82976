"""What is read from the gateways, one by one, and what they are told."""

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
from andes_operator.observe import Report
from andes_operator.spec import Demand, TargetSpec
from andes_operator.victims import ready

__all__ = ["Answers", "Gateways"]

TIMEOUT = aiohttp.ClientTimeout(total=5.0)
MOST_BYTES = 32 << 20


@dataclass(frozen=True, slots=True)
class Answers:
    """Reports, what did not answer, and what answered nonsense, as sentences. addresses: of all gateways."""

    reports: tuple[Report, ...] = ()
    missing: tuple[str, ...] = ()
    broken: tuple[str, ...] = ()
    addresses: tuple[str, ...] = ()


class Gateways:
    """Asks the pods behind a Service. admin_key: the gateway's administrator key, to drain an engine there."""

    def __init__(self, admin_key: str | None = None) -> None:
        self._session = aiohttp.ClientSession(timeout=TIMEOUT)
        self._admin = {"authorization": f"Bearer {admin_key}"} if admin_key else {}

    async def close(self) -> None:
        await self._session.close()

    async def ask(self, cluster: Cluster, namespace: str, spec: TargetSpec, now_s: float) -> Answers:
        """All ready gateways have to answer. Those that are going are asked too, for the streams that they still hold; so are
        those that are not ready, and where none is, one answer of theirs will do."""
        demand, window_s = spec.demand, spec.behavior.window_s
        if demand.prometheus_url is not None:
            return await self._ask_prometheus(demand, window_s, now_s)
        try:
            required, optional = await self._addresses(cluster, namespace, demand)
        except ClusterError as error:
            return Answers(missing=(str(error),))
        since_s = now_s - spec.behavior.history_s
        wanted = [*required, *optional]
        found = await asyncio.gather(*(self._report(address, since_s, window_s) for address in wanted))
        reports: list[Report] = []
        missing: list[str] = []
        broken: list[str] = []
        for address, answer in zip(wanted, found):
            if isinstance(answer, Report):
                reports.append(answer)
            elif address in required:
                (broken if isinstance(answer, ValueError) else missing).append(str(answer))
        if not reports and not missing and not broken:
            missing.append(f"no gateway behind Service {demand.service} answers")
        return Answers(tuple(reports), tuple(missing), tuple(broken), tuple(wanted))

    async def _ask_prometheus(self, demand: Demand, window_s: float, now_s: float) -> Answers:
        try:
            return Answers(reports=(await prometheus.ask(self._session, demand, window_s, now_s),))
        except ValueError as error:
            return Answers(broken=(str(error),))
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            return Answers(missing=(str(error) or f"{prometheus.NAME}: timed out",))

    async def drain(self, addresses: Sequence[str], replica: str, drained: bool) -> list[str]:
        """Tell all gateways to send nothing new to an engine, or to send again; what failed, as sentences. A gateway
        that does not know it, or has no key for it, finds out by itself when the pod goes."""

        async def tell(address: str) -> str | None:
            url = f"http://{address}/fleet/replicas/{quote(replica, safe='')}/drain"
            try:
                query = {"drained": str(drained).lower()}
                async with self._session.post(url, params=query, headers=self._admin) as answer:
                    return (
                        None if answer.status < 400 else f"gateway {address}: HTTP {answer.status} to drain {replica}"
                    )
            except (aiohttp.ClientError, TimeoutError, OSError) as error:
                return f"gateway {address}: {error or type(error).__name__}"

        told = await asyncio.gather(*(tell(address) for address in addresses))
        return [failed for failed in told if failed is not None]

    async def _addresses(self, cluster: Cluster, namespace: str, demand: Demand) -> tuple[list[str], list[str]]:
        """``IP:port`` of the gateways that are ready, and of the others."""
        service = await cluster.service(namespace, str(demand.service))
        selector = ",".join(f"{k}={v}" for k, v in sorted((service["spec"].get("selector") or {}).items()))
        port = _port(service, demand.port)
        serving: list[str] = []
        others: list[str] = []
        for pod in await cluster.pods(namespace, selector):
            ip, number = (pod.get("status") or {}).get("podIP"), _number(pod, port)
            if ip and number:
                address = f"[{ip}]:{number}" if ":" in ip else f"{ip}:{number}"
                (serving if ready(pod) else others).append(address)
        return serving, others

    async def _report(self, address: str, since_s: float, window_s: float) -> Report | Exception:
        async def get(path: str, **query: float) -> Any:
            params = {name: str(value) for name, value in query.items()}
            async with self._session.get(f"http://{address}{path}", params=params, headers=self._admin) as answer:
                if answer.status != 200:
                    raise OSError(f"HTTP {answer.status} from {path}")
                if (answer.content_length or 0) > MOST_BYTES:
                    raise ValueError(f"{path} is longer than {MOST_BYTES >> 20} MiB")
                return await answer.json(content_type=None)

        try:
            demand, qoe, replicas = await asyncio.gather(
                get("/fleet/demand", since=since_s),
                get("/fleet/qoe", window_s=min(3600.0, window_s)),
                get("/fleet/replicas"),
            )
            return await asyncio.to_thread(Report.of, address, demand, qoe, replicas, since_s, time.time())
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            return OSError(f"gateway {address}: {error or 'timed out'}")
        except ValueError as error:
            text = str(error)
            return ValueError(text if text.startswith("gateway ") else f"gateway {address}: {text}")


def _port(service: Mapping[str, Any], wanted: str | int | None) -> int | str:
    """The target port of the Service's port. Raises :class:`ClusterError` where there is no such port."""
    for port in service["spec"].get("ports") or []:
        if wanted is None or wanted in (port.get("name"), port["port"]):
            return port.get("targetPort") or int(port["port"])
    raise ClusterError(404, f"Service {service['metadata']['name']} has no port {wanted!r}")


def _number(pod: Mapping[str, Any], port: int | str) -> int | None:
    if isinstance(port, int):
        return port
    for container in pod["spec"]["containers"]:
        for declared in container.get("ports") or []:
            if declared.get("name") == port:
                return int(declared["containerPort"])
    return None
