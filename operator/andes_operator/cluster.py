"""What is read from and written to the API server: raw JSON over the Kubernetes client's connection."""

from __future__ import annotations

import asyncio
import json
import os
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote, urlencode

import aiohttp
from kubernetes.aio import client, config

from andes_operator import names
from andes_operator.spec import ScaleTargetRef
from andes_operator.status import timestamp

__all__ = ["Cluster", "ClusterError", "Scale"]

TIMEOUT_S = 10.0
TRIES = 3  # of a request that the API server puts off
_MERGE = "application/merge-patch+json"


class ClusterError(RuntimeError):
    """The API server said no, or did not answer. status: its HTTP status, 0 where there was none."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


@dataclass(frozen=True, slots=True)
class Scale:
    """wanted: ``spec.replicas``; selector: of the pods, as the API server writes it."""

    wanted: int
    selector: str
    resource_version: str


class Cluster:
    """One client of the API server, closed by :meth:`close`. timeout_s: of each request."""

    def __init__(self, api: client.ApiClient, identity: str = names.OPERATOR, timeout_s: float = TIMEOUT_S) -> None:
        self._api, self._timeout_s = api, timeout_s
        api.user_agent = names.OPERATOR  # also the manager of the fields that it writes
        self._identity = identity
        self._paths: dict[tuple[str, str], str] = {}
        self._cached: dict[str, tuple[float, asyncio.Future[Any]]] = {}

    @classmethod
    async def connect(cls, identity: str = names.OPERATOR, timeout_s: float = TIMEOUT_S) -> Cluster:
        """As the pod's service account, or as the kubeconfig says. Raises :class:`ClusterError`."""
        configuration = client.Configuration()
        try:
            if "KUBERNETES_SERVICE_HOST" in os.environ and "KUBECONFIG" not in os.environ:
                config.load_incluster_config(client_configuration=configuration)
            else:
                await config.load_kube_config(os.environ.get("KUBECONFIG"), client_configuration=configuration)
        except config.ConfigException as error:
            raise ClusterError(0, f"no cluster to connect to: {error}") from None
        return cls(client.ApiClient(configuration), identity, timeout_s)

    async def close(self) -> None:
        await self._api.close()

    async def request(
        self,
        method: str,
        path: str,
        body: Any = None,
        query: Mapping[str, str] | None = None,
        content: str | None = None,
    ) -> dict[str, Any]:
        """One request, made again where the API server says when. Raises :class:`ClusterError`."""
        target = path + ("?" + urlencode(query) if query else "")
        headers = {"Accept": "application/json"}
        if body is not None:
            headers["Content-Type"] = content or (_MERGE if method == "PATCH" else "application/json")
        try:
            serialized = await self._api.param_serialize(
                method, target, header_params=headers, body=body, auth_settings=["BearerToken"]
            )
            for tries_left in reversed(range(TRIES)):
                answer = await self._api.call_api(*serialized, _request_timeout=self._timeout_s)
                text = await answer.read()
                again_s = answer.headers.get("Retry-After", "")
                if answer.status != 429 or not again_s.isdigit() or not tries_left:
                    break
                await asyncio.sleep(min(float(again_s), self._timeout_s))
        except client.ApiException as error:
            raise ClusterError(error.status or 0, f"{method} {path}: {error.reason}") from None
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise ClusterError(0, f"{method} {path}: {error or type(error).__name__}") from None
        if answer.status >= 400:
            said = _message(text)
            # A 404 in plain text is no word of a resource's: the API server is starting and does not serve its group yet.
            status = 0 if answer.status == 404 and said is None else int(answer.status)
            raise ClusterError(status, f"{method} {path}: {said or answer.reason}")
        try:
            return dict(json.loads(text))
        except ValueError:
            raise ClusterError(0, f"{method} {path}: the answer is no JSON") from None

    async def cached(self, key: str, ttl_s: float, get: Callable[[], Awaitable[Any]]) -> Any:
        """``get()``, or what it gave at most ``ttl_s`` ago; those who ask at the same time share one request."""
        now_s = time.monotonic()
        at_s, future = self._cached.get(key, (0.0, None))
        if future is None or now_s - at_s > ttl_s or (future.done() and future.exception() is not None):
            future = asyncio.ensure_future(get())
            self._cached[key] = now_s, future
        return await asyncio.shield(future)

    # Scale

    async def scale_path(self, ref: ScaleTargetRef, namespace: str) -> str:
        """The path of the scale subresource. Raises :class:`ClusterError` where the kind is unknown or has none."""
        known = self._paths.get((ref.api_version, ref.kind))
        root = f"/apis/{ref.api_version}" if "/" in ref.api_version else f"/api/{ref.api_version}"
        if known is None:
            resources = (await self.request("GET", root))["resources"]
            kinds = {r["name"] for r in resources if r["kind"] == ref.kind and "/" not in r["name"]}
            scales = {r["name"].removesuffix("/scale") for r in resources if r["name"].endswith("/scale")}
            if not kinds:
                raise ClusterError(404, f"{ref.api_version} has no kind {ref.kind}")
            if not kinds & scales:
                raise ClusterError(404, f"{ref.kind} of {ref.api_version} has no scale subresource")
            known = self._paths[ref.api_version, ref.kind] = min(kinds & scales)
        return f"{root}/namespaces/{quote(namespace)}/{known}/{quote(ref.name)}/scale"

    async def scale(self, ref: ScaleTargetRef, namespace: str) -> Scale:
        found = await self.request("GET", await self.scale_path(ref, namespace))
        return Scale(
            int((found.get("spec") or {}).get("replicas", 0)),
            str((found.get("status") or {}).get("selector", "")),
            str(found["metadata"]["resourceVersion"]),
        )

    async def set_scale(self, ref: ScaleTargetRef, namespace: str, replicas: int, resource_version: str) -> None:
        """Raises :class:`ClusterError` with status 409 where somebody has changed it since it was read."""
        body = {"metadata": {"resourceVersion": resource_version}, "spec": {"replicas": replicas}}
        await self.request("PATCH", await self.scale_path(ref, namespace), body)

    # Pods and what is around them

    async def pods(self, namespace: str, selector: str) -> list[dict[str, Any]]:
        """Of a selector; of an empty one, none."""
        if not selector:
            return []
        found = await self.request("GET", _core(namespace, "pods"), query={"labelSelector": selector})
        return list(found["items"])

    async def annotate_pod(self, namespace: str, name: str, annotations: Mapping[str, str | None]) -> None:
        body = {"metadata": {"annotations": dict(annotations)}}
        await self.request("PATCH", _core(namespace, "pods", name), body)

    async def service(self, namespace: str, name: str) -> dict[str, Any]:
        return await self.request("GET", _core(namespace, "services", name))

    async def autoscalers(self, namespace: str) -> list[dict[str, Any]]:
        """All HorizontalPodAutoscalers of the namespace, at most 10 s old."""
        path = f"/apis/autoscaling/v1/namespaces/{quote(namespace)}/horizontalpodautoscalers"
        found = await self.cached(path, 10.0, lambda: self.request("GET", path))
        return list(found["items"])

    # Our own resources

    async def serves(self, *plurals: str) -> bool:
        """Whether the API server knows all of these. Raises :class:`ClusterError` where it does not know the group."""
        found = await self.request("GET", f"/apis/{names.GROUP}/{names.VERSION}")
        return {resource["name"] for resource in found["resources"]} >= set(plurals)

    async def list_all(self, plural: str, namespace: str | None, ttl_s: float = 0.0) -> list[dict[str, Any]]:
        path = _own(namespace, plural)
        found = await self.cached(path, ttl_s, lambda: self.request("GET", path))
        return list(found["items"])

    async def get(self, plural: str, namespace: str, name: str) -> dict[str, Any]:
        return await self.request("GET", _own(namespace, plural, name))

    async def patch_status(self, plural: str, namespace: str, name: str, status: Mapping[str, Any]) -> None:
        await self.request("PATCH", _own(namespace, plural, name) + "/status", {"status": status})

    async def config_map(self, namespace: str, name: str) -> dict[str, str]:
        """Its data; empty where there is none."""
        try:
            found = await self.request("GET", _core(namespace, "configmaps", name))
        except ClusterError as error:
            if error.status == 404:
                return {}
            raise
        return dict(found.get("data") or {})

    async def write_config_map(
        self, namespace: str, name: str, data: Mapping[str, str], owner: Mapping[str, Any] | None = None
    ) -> None:
        """Make or change it; with an owner (a QoETarget) it goes when the owner goes. The labels of one that is there stay as
        they are: Helm refuses to upgrade what somebody else has labelled."""
        metadata: dict[str, Any] = {"name": name}
        if owner is not None:
            metadata["ownerReferences"] = [_reference(owner)]
        body = {"metadata": metadata, "data": dict(data)}
        try:
            await self.request("PATCH", _core(namespace, "configmaps", name), body)
        except ClusterError as error:
            if error.status != 404:
                raise
            metadata["labels"] = {names.MANAGED_BY_LABEL: names.OPERATOR}
            await self.request("POST", _core(namespace, "configmaps"), body)

    async def event(self, about: Mapping[str, Any], reason: str, message: str, warning: bool, now_s: float) -> None:
        """An event beside ``about``, for ``kubectl describe``."""
        metadata = about["metadata"]
        await self.request("POST", _core(metadata["namespace"], "events"), {
            "metadata": {"generateName": f"{metadata['name']}.", "namespace": metadata["namespace"]},
            "involvedObject": {
                "apiVersion": about["apiVersion"], "kind": about["kind"], "name": metadata["name"],
                "namespace": metadata["namespace"], "uid": metadata["uid"],
            },
            "type": "Warning" if warning else "Normal",
            "reason": reason,
            "message": message[:1024],
            "source": {"component": names.OPERATOR},
            "reportingComponent": names.OPERATOR,
            "reportingInstance": self._identity,
            "firstTimestamp": timestamp(now_s),
            "lastTimestamp": timestamp(now_s),
            "count": 1,
        })  # fmt: skip


def _core(namespace: str, plural: str, name: str | None = None) -> str:
    return f"/api/v1/namespaces/{quote(namespace)}/{plural}" + (f"/{quote(name)}" if name else "")


def _own(namespace: str | None, plural: str, name: str | None = None) -> str:
    place = f"/namespaces/{quote(namespace)}" if namespace else ""
    return f"/apis/{names.GROUP}/{names.VERSION}{place}/{plural}" + (f"/{quote(name)}" if name else "")


def _reference(owner: Mapping[str, Any]) -> dict[str, Any]:
    metadata = owner["metadata"]
    return {
        "apiVersion": owner["apiVersion"], "kind": owner["kind"], "name": metadata["name"], "uid": metadata["uid"],
        "controller": False, "blockOwnerDeletion": False,
    }  # fmt: skip


def _message(text: bytes) -> str | None:
    try:
        return str(json.loads(text)["message"])
    except (ValueError, KeyError, TypeError):
        return None
