"""What is read from and written to the API server.

Requests are those of the typed API classes of the Kubernetes client; answers stay JSON (``*_without_preload_content``): a
typed list of 2,000 pods takes 0.6 s of CPU (docs/decisions/2026-11-27-typed-requests-raw-answers.md).
"""

from __future__ import annotations

import asyncio
import json
import os
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any

import aiohttp
from kubernetes.aio import client, config

from andes_operator import names
from andes_operator.explain import explain
from andes_operator.selector import SelectorError, matches
from andes_operator.spec import ScaleTargetRef
from andes_operator.status import timestamp

__all__ = ["Cluster", "ClusterError", "Scale", "connect"]

TIMEOUT_S = 10.0
"""Seconds for one request: far above an API server's usual tenths, and below the interval of reconciles."""
ATTEMPTS = 3
"""Of a request that the API server puts off with 429 and Retry-After."""
AUTOSCALERS_TTL_S = 10.0
"""Seconds for which a list of HorizontalPodAutoscalers is reused: one request for all targets of a namespace."""
CACHED = "0"
"""``resourceVersion`` of a list from the API server's watch cache, for what may be seconds old: of a namespace of 2,000
pods a list of four by label takes a tenth of the API server's CPU that a quorum read takes (measured on 1.20)."""
MAX_EVENT_CHARACTERS = 1024
"""``message`` of an Event (k8s.io/api/core/v1)."""
MERGE_PATCH = "application/merge-patch+json"

Json = dict[str, Any]


class ClusterError(RuntimeError):
    """The API server refused a request or did not answer. status: HTTP status, 0 where there was no answer."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


async def connect() -> client.ApiClient:
    """As the pod's service account, or as ``KUBECONFIG`` says. Raises :class:`ClusterError`."""
    configuration = client.Configuration()
    try:
        if "KUBERNETES_SERVICE_HOST" in os.environ and "KUBECONFIG" not in os.environ:
            config.load_incluster_config(client_configuration=configuration)
        else:
            await config.load_kube_config(os.environ.get("KUBECONFIG"), client_configuration=configuration)
    except config.ConfigException as error:
        raise ClusterError(0, f"no cluster to connect to: {error}") from None
    api = client.ApiClient(configuration)
    api.user_agent = names.OPERATOR  # also the manager of the fields that it writes
    return api


@dataclass(frozen=True, slots=True)
class Scale:
    """wanted: ``spec.replicas``; selector: of the pods, as the API server writes it."""

    wanted: int
    selector: str
    resource_version: str


class Cluster:
    """The operator's requests. identity: of this operator, in events. timeout_s: of each request. Every method raises
    :class:`ClusterError`."""

    def __init__(self, api: client.ApiClient, identity: str = names.OPERATOR, timeout_s: float = TIMEOUT_S) -> None:
        self._api, self._identity, self._timeout_s = api, identity, timeout_s
        self._core, self._custom = client.CoreV1Api(api), client.CustomObjectsApi(api)
        self._autoscaling, self._apis = client.AutoscalingV1Api(api), client.ApisApi(api)
        self._authorization = client.AuthorizationV1Api(api)
        self._plurals: dict[tuple[str, str], str] = {}
        self._cached: dict[str, tuple[float, asyncio.Future[Any]]] = {}
        self._forgotten = set[str]()

    async def close(self) -> None:
        await self._api.close()

    async def _send(self, what: str, method: Callable[..., Awaitable[Any]], *args: Any, **kwargs: Any) -> Json:
        """The JSON that a ``*_without_preload_content`` method answers; again where the API server says when. what: it does,
        in words."""
        if "patch" in method.__name__:
            kwargs["_content_type"] = MERGE_PATCH
        try:
            for attempts_left in reversed(range(ATTEMPTS)):
                answer = await method(*args, **kwargs, _request_timeout=self._timeout_s)
                text = await answer.read()
                retry_after = answer.headers.get("Retry-After", "")
                if answer.status != 429 or not retry_after.isdigit() or not attempts_left:
                    break
                await asyncio.sleep(min(float(retry_after), self._timeout_s))
        except client.ApiException as error:
            raise ClusterError(error.status or 0, f"{what}: {error.reason or 'the API server refuses it'}") from None
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise ClusterError(0, f"{what}: {explain(error)}") from None
        if answer.status >= 400:
            raise _refusal(what, int(answer.status), answer.reason, text)
        try:
            return dict(json.loads(text))
        except ValueError:
            raise ClusterError(0, f"{what}: the answer is not JSON") from None

    async def _cache(self, key: str, ttl_s: float, get: Callable[[], Awaitable[Any]]) -> Any:
        """``get()``, or its result of at most ``ttl_s`` ago; callers at the same time share one request."""
        now_s = time.monotonic()
        at_s, future = self._cached.get(key, (0.0, None))
        if future is None or now_s - at_s > ttl_s or (future.done() and future.exception() is not None):
            future = asyncio.ensure_future(get())
            self._cached[key] = now_s, future
        return await asyncio.shield(future)

    # Scale subresources, of any kind that has one

    async def scale(self, ref: ScaleTargetRef, namespace: str) -> Scale:
        """Status 404 also where API or kind are unknown or there is no scale subresource."""
        try:
            return await self._read_scale(ref, namespace)
        except ClusterError:
            self._plurals.pop((ref.api_version, ref.kind), None)  # its CRD may have gone
            raise

    async def _read_scale(self, ref: ScaleTargetRef, namespace: str) -> Scale:
        if "/" in ref.api_version:
            method = self._custom.get_namespaced_custom_object_scale_without_preload_content
            found = await self._send(f"read the scale of {ref}", method, *await self._custom_path(ref, namespace))
        else:
            await self._plural(ref)
            method = self._core.read_namespaced_replication_controller_scale_without_preload_content
            found = await self._send(f"read the scale of {ref}", method, ref.name, namespace)
        return Scale(
            int((found.get("spec") or {}).get("replicas", 0)),
            str((found.get("status") or {}).get("selector", "")),
            str(found["metadata"]["resourceVersion"]),
        )

    async def set_scale(self, ref: ScaleTargetRef, namespace: str, replicas: int, resource_version: str) -> None:
        """Status 409 where it has changed since ``resource_version`` was read."""
        body = {"metadata": {"resourceVersion": resource_version}, "spec": {"replicas": replicas}}
        if "/" in ref.api_version:
            method = self._custom.patch_namespaced_custom_object_scale_without_preload_content
            await self._send(f"set the scale of {ref}", method, *await self._custom_path(ref, namespace), body)
        else:
            method = self._core.patch_namespaced_replication_controller_scale_without_preload_content
            await self._send(f"set the scale of {ref}", method, ref.name, namespace, body)

    async def _custom_path(self, ref: ScaleTargetRef, namespace: str) -> tuple[str, str, str, str, str]:
        group, _, version = ref.api_version.partition("/")
        return group, version, namespace, await self._plural(ref), ref.name

    async def _plural(self, ref: ScaleTargetRef) -> str:
        """The resource of this kind, by the API server's discovery."""
        known = self._plurals.get((ref.api_version, ref.kind))
        if known is None:
            resources = await self._resources(ref.api_version)
            kinds = {r["name"] for r in resources if r["kind"] == ref.kind and "/" not in r["name"]}
            scales = {r["name"].removesuffix("/scale") for r in resources if r["name"].endswith("/scale")}
            if not kinds:
                raise ClusterError(404, f"{ref.api_version} has no kind {ref.kind}")
            if not kinds & scales:
                raise ClusterError(404, f"{ref.kind} of {ref.api_version} has no scale subresource")
            known = self._plurals[ref.api_version, ref.kind] = min(kinds & scales)
        return known

    async def _resources(self, api_version: str) -> list[Json]:
        """Raises status 404 where the cluster has no such API."""
        what = f"look {api_version} up"
        if "/" not in api_version:
            return list((await self._send(what, self._core.get_api_resources_without_preload_content))["resources"])
        group, _, version = api_version.partition("/")
        try:
            found = await self._send(what, self._custom.get_api_resources_without_preload_content, group, version)
        except ClusterError as error:
            if error.status in (0, 404) and not await self._has_api(api_version):
                raise ClusterError(404, f"this cluster has no API {api_version}: install what defines it") from None
            raise
        return list(found["resources"])

    async def _has_api(self, api_version: str) -> bool:
        found = await self._send("list the APIs", self._apis.get_api_versions_without_preload_content)
        return api_version in {v["groupVersion"] for group in found["groups"] for v in group["versions"]}

    # Pods and what is around them

    async def pods(self, namespace: str, selector: str, ttl_s: float = 0.0) -> list[Json]:
        """Of a label selector, at most ``ttl_s`` old; of an empty one, none. From the API server's cache: what is written is
        the scale, against its version."""
        if not selector:
            return []
        what, method = f"list the pods of {namespace}", self._core.list_namespaced_pod_without_preload_content

        def get() -> Awaitable[Json]:
            return self._send(what, method, namespace, label_selector=selector, resource_version=CACHED)

        found = await (self._cache(f"pods/{namespace}/{selector}", ttl_s, get) if ttl_s else get())
        return list(found["items"])

    async def shared_pods(self, namespace: str, selector: str, ttl_s: float) -> list[Json]:
        """Of a label selector, out of one list of the whole namespace, at most ``ttl_s`` old: cheaper for the API server
        where many selectors are asked for."""
        what, method = f"list the pods of {namespace}", self._core.list_namespaced_pod_without_preload_content

        def get() -> Awaitable[Json]:
            return self._send(what, method, namespace, resource_version=CACHED)

        found = await self._cache(f"pods/{namespace}", ttl_s, get)
        try:
            return [pod for pod in found["items"] if matches(selector, pod["metadata"].get("labels") or {})]
        except SelectorError as error:
            raise ClusterError(0, str(error)) from None

    async def annotate_pod(self, namespace: str, name: str, annotations: Mapping[str, str | None]) -> None:
        body = {"metadata": {"annotations": dict(annotations)}}
        method = self._core.patch_namespaced_pod_without_preload_content
        await self._send(f"annotate pod {name}", method, name, namespace, body)

    async def evict_pod(self, namespace: str, name: str) -> None:
        """Status 429 where a PodDisruptionBudget forbids it now. Names no API version: before 1.22 there is but a beta."""
        method = self._core.create_namespaced_pod_eviction_without_preload_content
        body = {"metadata": {"name": name, "namespace": namespace}}
        await self._send(f"evict pod {name}", method, name, namespace, body)

    async def may(self, verb: str, resource: str) -> bool:
        """Whether this operator has the right to, of a resource of the core group."""
        method = self._authorization.create_self_subject_access_review_without_preload_content
        body = {"spec": {"resourceAttributes": {"verb": verb, "resource": resource}}}
        return bool((await self._send("look rights up", method, body))["status"]["allowed"])

    async def service(self, namespace: str, name: str, ttl_s: float = 0.0) -> Json:
        """At most ``ttl_s`` old."""
        method = self._core.read_namespaced_service_without_preload_content

        def get() -> Awaitable[Json]:
            return self._send(f"read Service {name}", method, name, namespace)

        return dict(await (self._cache(f"services/{namespace}/{name}", ttl_s, get) if ttl_s else get()))

    async def autoscalers(self, namespace: str) -> list[Json]:
        """All HorizontalPodAutoscalers of the namespace, at most ``AUTOSCALERS_TTL_S`` old."""
        method = self._autoscaling.list_namespaced_horizontal_pod_autoscaler_without_preload_content
        what = f"list the autoscalers of {namespace}"

        def get() -> Awaitable[Json]:
            return self._send(what, method, namespace, resource_version=CACHED)

        return list((await self._cache(what, AUTOSCALERS_TTL_S, get))["items"])

    # The operator's own resources

    async def serves(self, *plurals: str) -> bool:
        """Whether the API server knows all of these."""
        found = await self._resources(f"{names.GROUP}/{names.VERSION}")
        return {resource["name"] for resource in found} >= set(plurals)

    async def list_all(self, plural: str, namespace: str | None, ttl_s: float = 0.0) -> list[Json]:
        """Of a namespace, or of all where it is None; at most ``ttl_s`` old, and then from the API server's cache, but the
        first after :meth:`forget_list`."""
        key = f"{plural}/{namespace}"

        async def get() -> Json:
            version = {"resource_version": CACHED} if ttl_s and key not in self._forgotten else {}
            self._forgotten.discard(key)
            if namespace is None:
                method = self._custom.list_custom_object_for_all_namespaces_without_preload_content
                return await self._send(f"list all {plural}", method, names.GROUP, names.VERSION, plural, **version)
            method = self._custom.list_namespaced_custom_object_without_preload_content
            what = f"list the {plural} of {namespace}"
            return await self._send(what, method, names.GROUP, names.VERSION, namespace, plural, **version)

        return list((await self._cache(key, ttl_s, get))["items"])

    async def get(self, plural: str, namespace: str, name: str) -> Json:
        method = self._custom.get_namespaced_custom_object_without_preload_content
        what = f"read {name} of the {plural} of {namespace}"
        return await self._send(what, method, names.GROUP, names.VERSION, namespace, plural, name)

    async def patch_status(
        self, plural: str, namespace: str, name: str, status: Mapping[str, Any], *, resource_version: str | None = None
    ) -> None:
        """Status 409 where the resource is not of ``resource_version`` any more; None: of any."""
        method = self._custom.patch_namespaced_custom_object_status_without_preload_content
        what, body = f"write the status of {name} of the {plural} of {namespace}", {"status": dict(status)}
        if resource_version is not None:
            body["metadata"] = {"resourceVersion": resource_version}
        await self._send(what, method, names.GROUP, names.VERSION, namespace, plural, name, body)

    def forget_list(self, plural: str, namespace: str) -> None:
        """The next :meth:`list_all` of a namespace asks the API server, and not its cache, which may be of before."""
        key = f"{plural}/{namespace}"
        self._cached.pop(key, None)
        self._forgotten.add(key)

    async def config_map(self, namespace: str, name: str) -> dict[str, str]:
        """Its data; empty where there is none."""
        try:
            method = self._core.read_namespaced_config_map_without_preload_content
            found = await self._send(f"read ConfigMap {name}", method, name, namespace)
        except ClusterError as error:
            if error.status == 404:
                return {}
            raise
        return dict(found.get("data") or {})

    async def write_config_map(
        self, namespace: str, name: str, data: Mapping[str, str], owner: Mapping[str, Any] | None = None
    ) -> None:
        """Create or change it; with an owner (a QoETarget) it is deleted with the owner. The labels of an existing one
        stay as they are: Helm refuses to upgrade an object that has lost its labels."""
        metadata: Json = {"name": name}
        if owner is not None:
            metadata["ownerReferences"] = [_owner_reference(owner)]
        body = {"metadata": metadata, "data": dict(data)}
        try:
            method = self._core.patch_namespaced_config_map_without_preload_content
            await self._send(f"write ConfigMap {name}", method, name, namespace, body)
        except ClusterError as error:
            if error.status != 404:
                raise
            metadata["labels"] = {names.MANAGED_BY_LABEL: names.OPERATOR}
            method = self._core.create_namespaced_config_map_without_preload_content
            await self._send(f"write ConfigMap {name}", method, namespace, body)

    async def event(self, about: Mapping[str, Any], reason: str, message: str, *, warning: bool, now_s: float) -> None:
        """An Event in the namespace of ``about``, for ``kubectl describe``."""
        metadata = about["metadata"]
        body = {
            "metadata": {"generateName": f"{metadata['name']}.", "namespace": metadata["namespace"]},
            "involvedObject": {
                "apiVersion": about["apiVersion"], "kind": about["kind"], "name": metadata["name"],
                "namespace": metadata["namespace"], "uid": metadata["uid"],
            },
            "type": "Warning" if warning else "Normal",
            "reason": reason,
            "message": message[:MAX_EVENT_CHARACTERS],
            "source": {"component": names.OPERATOR},
            "reportingComponent": names.OPERATOR,
            "reportingInstance": self._identity,
            "firstTimestamp": timestamp(now_s),
            "lastTimestamp": timestamp(now_s),
            "count": 1,
        }  # fmt: skip
        method = self._core.create_namespaced_event_without_preload_content
        await self._send(f"create an event in {metadata['namespace']}", method, metadata["namespace"], body)


def _owner_reference(owner: Mapping[str, Any]) -> Json:
    metadata = owner["metadata"]
    return {
        "apiVersion": owner["apiVersion"], "kind": owner["kind"], "name": metadata["name"], "uid": metadata["uid"],
        "controller": False, "blockOwnerDeletion": False,
    }  # fmt: skip


def _refusal(what: str, status: int, reason: str | None, text: bytes) -> ClusterError:
    said = _message(text)
    # A 404 in plain text is not about a resource: the API server is starting and does not serve the group yet.
    return ClusterError(0 if status == 404 and said is None else status, f"{what}: {said or reason}")


def _message(text: bytes) -> str | None:
    try:
        return str(json.loads(text)["message"])
    except (ValueError, KeyError, TypeError):
        return None
