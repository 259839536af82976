"""Requests to the API server and what becomes of its answers, over HTTP on loopback."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from aiohttp import web
from kubernetes.aio import client

from andes_operator.cluster import ATTEMPTS, Cluster, ClusterError
from andes_operator.spec import ScaleTargetRef
from andes_operator.watch import _may_watch_nodes

ENGINE = ScaleTargetRef("apps/v1", "Deployment", "engine")
STATUS = {"kind": "Status", "message": "pods is forbidden: cannot list resource", "code": 403}
RESOURCES = {"resources": [
    {"name": "deployments", "kind": "Deployment"}, {"name": "deployments/scale", "kind": "Scale"},
    {"name": "controllerrevisions", "kind": "ControllerRevision"},
]}  # fmt: skip
SCALE = {"metadata": {"resourceVersion": "7"}, "spec": {"replicas": 3}, "status": {"selector": "app=engine"}}


class Server:
    """Answers ``METHOD /path`` with (status, body) in turn, the last one again and again; keeps what it was asked."""

    def __init__(self, answers: dict[str, list[tuple[int, Any]]]) -> None:
        self.answers, self.asked = answers, list[tuple[str, Any, str]]()

    async def handle(self, request: web.Request) -> web.Response:
        what = f"{request.method} {request.path_qs}"
        self.asked.append((what, await request.json() if request.can_read_body else None, request.content_type))
        answers = self.answers[what]
        status, body = answers.pop(0) if len(answers) > 1 else answers[0]
        headers = {"Retry-After": "0"} if status == 429 else {}
        if isinstance(body, str):
            return web.Response(status=status, text=body, headers=headers)
        return web.json_response(body, status=status, headers=headers)


def against(answers: dict[str, list[tuple[int, Any]]], work: Callable[[Cluster], Awaitable[Any]]) -> tuple[Any, Server]:
    """What ``work`` gives with these answers (an error it raises), and the server."""

    async def scenario() -> tuple[Any, Server]:
        server = Server(answers)
        app = web.Application()
        app.router.add_route("*", "/{path:.*}", server.handle)
        runner = web.AppRunner(app)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        host, port = runner.addresses[0][:2]
        cluster = Cluster(client.ApiClient(client.Configuration(host=f"http://{host}:{port}")), "op-1", timeout_s=5.0)
        try:
            return await work(cluster), server
        except ClusterError as error:
            return error, server
        finally:
            await cluster.close()
            await runner.cleanup()

    return asyncio.run(scenario())


def test_pods_are_listed_by_selector_and_none_without_one() -> None:
    path = "GET /api/v1/namespaces/chat/pods?labelSelector=app%3Dengine&resourceVersion=0"
    found, _ = against(
        {path: [(200, {"items": [{"metadata": {"name": "a"}}]})]}, lambda c: c.pods("chat", "app=engine")
    )
    assert found == [{"metadata": {"name": "a"}}]
    found, server = against({}, lambda c: c.pods("chat", ""))
    assert (found, server.asked) == ([], [])


def test_a_pod_is_evicted_in_words_that_old_servers_know_too() -> None:
    path = "POST /api/v1/namespaces/chat/pods/a/eviction"
    _, server = against({path: [(201, {})]}, lambda c: c.evict_pod("chat", "a"))
    assert server.asked == [(path, {"metadata": {"name": "a", "namespace": "chat"}}, "application/json")]
    refused, server = against({path: [(429, {"message": "disruption budget"})]}, lambda c: c.evict_pod("chat", "a"))
    assert (refused.status, str(refused)) == (429, "evict pod a: disruption budget")


@pytest.mark.parametrize("allowed", [True, False])
def test_a_right_is_looked_up(allowed: bool) -> None:
    path = "POST /apis/authorization.k8s.io/v1/selfsubjectaccessreviews"
    found, server = against({path: [(201, {"status": {"allowed": allowed}})]}, lambda c: c.may("watch", "nodes"))
    assert found is allowed
    assert server.asked[0][1] == {"spec": {"resourceAttributes": {"verb": "watch", "resource": "nodes"}}}


def test_one_that_may_not_ask_for_its_rights_watches_no_nodes_and_all_else() -> None:
    path = "POST /apis/authorization.k8s.io/v1/selfsubjectaccessreviews"
    found, _ = against({path: [(403, STATUS)]}, _may_watch_nodes)
    assert found is False
    failed, _ = against({path: [(500, {"message": "broken"})]}, _may_watch_nodes)
    assert failed.status == 500, "asked again"


def test_a_refusal_says_what_and_why() -> None:
    error, _ = against(
        {"GET /api/v1/namespaces/chat/pods?labelSelector=a&resourceVersion=0": [(403, STATUS)]},
        lambda c: c.pods("chat", "a"),
    )
    assert (error.status, str(error)) == (403, "list the pods of chat: pods is forbidden: cannot list resource")


@pytest.mark.parametrize(
    ("answer", "status", "said"),
    [
        ((404, {"message": "not found", "code": 404}), 404, "not found"),
        ((404, "404 page not found"), 0, "Not Found"),  # an API server that starts
        ((500, "oh"), 500, "Internal Server Error"),
        ((200, "<html>"), 0, "the answer is not JSON"),
    ],
)  # fmt: skip
def test_every_answer_that_is_none_becomes_one_error(answer: tuple[int, Any], status: int, said: str) -> None:
    path = "GET /apis/andes.dev/v1alpha1/namespaces/chat/qoetargets/t"
    error, _ = against({path: [answer]}, lambda c: c.get("qoetargets", "chat", "t"))
    assert isinstance(error, ClusterError)
    assert (error.status, str(error)) == (
        status, f"read t of the qoetargets of chat: {said}")  # fmt: skip


def test_a_request_that_is_put_off_is_made_again_a_few_times() -> None:
    path = "GET /api/v1/namespaces/chat/services/gateway"
    later = (429, {"message": "too many requests"})
    found, server = against({path: [later, later, (200, {"spec": {}})]}, lambda c: c.service("chat", "gateway"))
    assert (found, len(server.asked)) == ({"spec": {}}, 3)
    error, server = against({path: [later]}, lambda c: c.service("chat", "gateway"))
    assert (error.status, len(server.asked)) == (429, ATTEMPTS)


def test_an_api_server_that_is_away_is_no_status() -> None:
    async def scenario() -> ClusterError:
        cluster = Cluster(client.ApiClient(client.Configuration(host="http://127.0.0.1:1")))
        try:
            await cluster.service("chat", "gateway")
        except ClusterError as error:
            return error
        finally:
            await cluster.close()
        raise AssertionError

    assert asyncio.run(scenario()).status == 0


def test_a_scale_is_found_by_discovery_once_and_written_against_its_version() -> None:
    path = "/apis/apps/v1/namespaces/chat/deployments/engine/scale"

    async def work(cluster: Cluster) -> Any:
        scale = await cluster.scale(ENGINE, "chat")
        await cluster.set_scale(ENGINE, "chat", 4, scale.resource_version)
        return scale

    scale, server = against(
        {"GET /apis/apps/v1": [(200, RESOURCES)], f"GET {path}": [(200, SCALE)], f"PATCH {path}": [(200, {})]}, work
    )
    assert (scale.wanted, scale.selector, scale.resource_version) == (3, "app=engine", "7")
    assert [what for what, *_ in server.asked] == ["GET /apis/apps/v1", f"GET {path}", f"PATCH {path}"]
    body = {"metadata": {"resourceVersion": "7"}, "spec": {"replicas": 4}}
    assert server.asked[-1][1:] == (body, "application/merge-patch+json")


def test_an_api_that_the_cluster_does_not_have_is_not_found_and_one_that_starts_is_no_answer() -> None:
    plain = (404, "404 page not found")
    groups = {"groups": [{"versions": [{"groupVersion": "apps/v1"}]}]}
    answers = {"GET /apis/leaderworkerset.x-k8s.io/v1": [plain], "GET /apis/": [(200, groups)]}
    gangs = ScaleTargetRef("leaderworkerset.x-k8s.io/v1", "LeaderWorkerSet", "engine")
    error, _ = against(answers, lambda c: c.scale(gangs, "chat"))
    assert error.status == 404
    assert str(error) == "this cluster has no API leaderworkerset.x-k8s.io/v1: install what defines it"
    error, _ = against({"GET /apis/apps/v1": [plain], "GET /apis/": [(200, groups)]}, lambda c: c.scale(ENGINE, "chat"))
    assert error.status == 0, "the API server knows it, and does not serve it yet"


def test_a_kind_that_went_is_looked_up_again() -> None:
    path = "/apis/apps/v1/namespaces/chat/deployments/engine/scale"

    async def work(cluster: Cluster) -> list[int]:
        said = []
        for _ in range(3):
            try:
                said.append((await cluster.scale(ENGINE, "chat")).wanted)
            except ClusterError as error:
                said.append(error.status)
        return said

    answers: dict[str, list[tuple[int, Any]]] = {
        "GET /apis/apps/v1": [(200, RESOURCES), (404, "404 page not found")], "GET /apis/": [(200, {"groups": []})],
        f"GET {path}": [(200, SCALE), (404, "404 page not found")],
    }  # fmt: skip
    assert against(answers, work)[0] == [3, 0, 404]


def test_a_list_of_pods_and_a_service_are_shared_for_a_while() -> None:
    pods = "GET /api/v1/namespaces/chat/pods?labelSelector=app%3Dgateway&resourceVersion=0"
    service = "GET /api/v1/namespaces/chat/services/gateway"

    async def work(cluster: Cluster) -> None:
        for _ in range(3):
            await cluster.service("chat", "gateway", 60.0)
            await cluster.pods("chat", "app=gateway", 60.0)

    _, server = against({pods: [(200, {"items": []})], service: [(200, {"spec": {}})]}, work)
    assert [what for what, *_ in server.asked] == [service, pods]


def test_one_list_of_a_namespace_serves_many_selectors() -> None:
    path = "GET /api/v1/namespaces/chat/pods?resourceVersion=0"
    items = [{"metadata": {"name": f"p{i}", "labels": {"app": f"e{i % 2}"}}} for i in range(4)]

    async def work(cluster: Cluster) -> list[list[str]]:
        wanted = ("app=e0", "app in (e1)", "app=e2")
        found = [await cluster.shared_pods("chat", selector, 60.0) for selector in wanted]
        return [[pod["metadata"]["name"] for pod in pods] for pods in found]

    found, server = against({path: [(200, {"items": items})]}, work)
    assert found == [["p0", "p2"], ["p1", "p3"], []]
    assert len(server.asked) == 1
    error, _ = against({path: [(200, {"items": items})]}, lambda c: c.shared_pods("chat", "a b", 60.0))
    assert str(error) == "not a label selector: a b"


def test_a_scale_of_the_core_group() -> None:
    path = "/api/v1/namespaces/chat/replicationcontrollers/engine/scale"
    resources = {"resources": [
        {"name": "replicationcontrollers", "kind": "ReplicationController"},
        {"name": "replicationcontrollers/scale", "kind": "Scale"}, {"name": "services", "kind": "Service"},
    ]}  # fmt: skip
    answers = {"GET /api/v1/": [(200, resources)], f"GET {path}": [(200, SCALE)], f"PATCH {path}": [(200, {})]}
    ref = ScaleTargetRef("v1", "ReplicationController", "engine")

    async def work(cluster: Cluster) -> Any:
        await cluster.set_scale(ref, "chat", 4, "7")
        return await cluster.scale(ref, "chat")

    assert against({**answers}, work)[0].wanted == 3
    service, _ = against({**answers}, lambda c: c.scale(ScaleTargetRef("v1", "Service", "g"), "chat"))
    assert str(service) == "Service of v1 has no scale subresource"


@pytest.mark.parametrize(
    ("kind", "said"),
    [("Rocket", "apps/v1 has no kind Rocket"), ("ControllerRevision", "ControllerRevision of apps/v1 has no scale subresource")],
)  # fmt: skip
def test_what_cannot_be_scaled_is_not_found(kind: str, said: str) -> None:
    ref = ScaleTargetRef("apps/v1", kind, "x")
    error, _ = against({"GET /apis/apps/v1": [(200, RESOURCES)]}, lambda c: c.scale(ref, "chat"))
    assert (error.status, str(error)) == (404, said)


def test_lists_are_shared_for_a_while() -> None:
    path = "GET /apis/andes.dev/v1alpha1/namespaces/chat/qoetargets?resourceVersion=0"

    async def work(cluster: Cluster) -> Any:
        first, second = await asyncio.gather(*(cluster.list_all("qoetargets", "chat", 60.0) for _ in range(2)))
        await cluster.list_all("qoetargets", "chat", 60.0)
        await cluster.list_all("qoetargets", "chat", -1.0)
        return first + second

    found, server = against({path: [(200, {"items": [1]})]}, work)
    assert (found, len(server.asked)) == ([1, 1], 2)
    found, server = against(
        {"GET /apis/andes.dev/v1alpha1/qoetargets": [(200, {"items": [2]})]}, lambda c: c.list_all("qoetargets", None)
    )
    assert found == [2]


def test_a_list_that_is_to_be_new_is_not_from_the_cache() -> None:
    path = "GET /apis/andes.dev/v1alpha1/namespaces/chat/qoepools"

    async def work(cluster: Cluster) -> Any:
        old = await cluster.list_all("qoepools", "chat", 60.0)
        cluster.forget_list("qoepools", "chat")
        return old + await cluster.list_all("qoepools", "chat", 60.0)

    answers = {f"{path}?resourceVersion=0": [(200, {"items": ["old"]})], path: [(200, {"items": ["new"]})]}
    assert against(answers, work)[0] == ["old", "new"]


def test_a_config_map_is_changed_or_created_with_its_owner() -> None:
    path = "/api/v1/namespaces/chat/configmaps"
    owner = {"apiVersion": "andes.dev/v1alpha1", "kind": "QoETarget", "metadata": {"name": "t", "uid": "u"}}
    answers = {f"PATCH {path}/m": [(404, {"message": "not found"})], f"POST {path}": [(201, {})]}
    _, server = against(answers, lambda c: c.write_config_map("chat", "m", {"k": "v"}, owner))
    (patched, patch, _), (created, body, _) = server.asked
    assert (patched, created) == (f"PATCH {path}/m", f"POST {path}")
    assert "labels" not in patch["metadata"], "those of an existing one stay"
    assert body["metadata"]["labels"] == {"app.kubernetes.io/managed-by": "andes-operator"}
    assert body["metadata"]["ownerReferences"][0]["uid"] == "u"
    assert body["data"] == {"k": "v"}
    assert against({f"GET {path}/m": [(404, {"message": "not found"})]}, lambda c: c.config_map("chat", "m"))[0] == {}
    assert against({f"GET {path}/m": [(200, {"data": {"k": "v"}})]}, lambda c: c.config_map("chat", "m"))[0] == {
        "k": "v"
    }


def test_an_event_is_about_its_object() -> None:
    about = {
        "apiVersion": "andes.dev/v1alpha1",
        "kind": "QoETarget",
        "metadata": {"name": "t", "namespace": "chat", "uid": "u"},
    }
    path = "POST /api/v1/namespaces/chat/events"
    _, server = against({path: [(201, {})]}, lambda c: c.event(about, "ScaledUp", "m" * 2000, warning=False, now_s=0.0))
    ((_, body, _),) = server.asked
    assert (body["involvedObject"]["kind"], body["type"], body["reason"]) == ("QoETarget", "Normal", "ScaledUp")
    assert body["firstTimestamp"].startswith("1970-01-01T00:00:00")
    assert len(body["message"]) == 1024
    assert body["reportingInstance"] == "op-1"
