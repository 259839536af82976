"""What the chart shares with the operator, in files that its own tests read too: CRDs and the rules of its role."""

from __future__ import annotations

from typing import Any

import chart
import pytest
import yaml

CRDS = sorted((chart.CHART / "files" / "crds").glob("*.yaml"))
RULES = yaml.safe_load((chart.CHART / "files" / "operator-rules.yaml").read_text())


def crds(**values: bool) -> list[dict[str, Any]]:
    return chart.objects({f"crds.{name}": value for name, value in values.items()}).get("crds.yaml", [])


def roles(values: dict[str, Any] | None = None) -> dict[tuple[str, str, str | None], list[dict[str, Any]]]:
    """Rules by kind, name and namespace; each has its binding to the operator's account."""
    found = chart.objects(values)["operator-rbac.yaml"]
    bound = {
        (o["roleRef"]["kind"], o["roleRef"]["name"], o["metadata"].get("namespace")) for o in found if "subjects" in o
    }
    assert all(
        o["subjects"] == [{"kind": "ServiceAccount", "name": "demo-andes-operator", "namespace": "chat"}]
        for o in found
        if "subjects" in o
    )
    made = {
        (o["kind"], o["metadata"]["name"], o["metadata"].get("namespace")): o["rules"] for o in found if "rules" in o
    }
    assert made.keys() == bound
    return made


def scale(resource: str, group: str) -> dict[str, list[str]]:
    return {"apiGroups": [group], "resources": [f"{resource}/scale"], "verbs": ["get", "patch"]}


def test_every_crd_is_installed_as_it_is() -> None:
    written = [yaml.safe_load(path.read_text()) for path in CRDS]
    assert [crd["spec"] for crd in crds()] == [crd["spec"] for crd in written]
    assert {crd["metadata"]["name"] for crd in crds()} == {
        f"{kind}.andes.dev" for kind in ("qoetargets", "qoeclasses", "qoepools")
    }


def test_older_servers_get_no_rules_that_they_would_refuse() -> None:
    rules = "x-kubernetes-validations"
    assert rules in chart.render()["crds.yaml"]
    assert rules in chart.render(kubernetes="v1.28.0")["crds.yaml"]
    old = chart.render(kubernetes="v1.20.2")["crds.yaml"]
    assert rules not in old
    assert old.count("\n") > 100


def test_crds_outlive_the_release_if_wanted() -> None:
    assert all(crd["metadata"]["annotations"]["helm.sh/resource-policy"] == "keep" for crd in crds())
    assert not any("annotations" in crd["metadata"] for crd in crds(keep=False))
    assert crds(enabled=False) == []


def test_the_operator_has_the_rules_it_is_tested_under() -> None:
    scales = [scale("deployments", "apps"), scale("statefulsets", "apps")]
    scales.append(scale("leaderworkersets", "leaderworkerset.x-k8s.io"))
    leases, nodes = ([rule for rule in RULES if kind in rule["resources"]] for kind in ("leases", "nodes"))
    others = [rule for rule in RULES if rule not in leases + nodes]
    assert leases
    assert nodes
    everywhere = {"demo-andes-operator-chat": others + scales, "demo-andes-operator-nodes-chat": nodes}
    found = roles()
    assert {name: rules for (kind, name, _), rules in found.items() if kind == "ClusterRole"} == everywhere
    assert {namespace: rules for (kind, _, namespace), rules in found.items() if kind == "Role"} == {"chat": leases}
    assert roles({"operator.nodes": False}).keys() == found.keys() - {
        ("ClusterRole", "demo-andes-operator-nodes-chat", None)
    }


def test_in_chosen_namespaces_it_has_no_rights_elsewhere() -> None:
    found = roles({"operator.namespaces": ["a", "b"], "rbac.scaleTargets": []})
    assert {(kind, namespace) for kind, _, namespace in found} == {("Role", "a"), ("Role", "b"), ("Role", "chat")}
    a, b = ([rules for (_, _, of), rules in found.items() if of == namespace] for namespace in "ab")
    assert a == b
    wanted = roles({"operator.namespaces": ["a"], "operator.nodes": True})
    assert [rules for (kind, *_), rules in wanted.items() if kind == "ClusterRole"] == [
        [rule for rule in RULES if "nodes" in rule["resources"]]
    ]


def test_the_target_in_the_notes_names_things_that_are_there() -> None:
    notes = chart.render()["NOTES.txt"]
    target = yaml.safe_load(notes.partition("<<'EOF'\n")[2].partition("EOF")[0])
    there = {(o["kind"], o["metadata"]["name"]) for found in chart.objects().values() for o in found}
    ref = target["spec"]["scaleTargetRef"]
    assert (ref["kind"], ref["name"]) in there
    assert ("Service", target["spec"]["demand"]["gateway"]["service"]) in there
    (crd,) = [crd for crd in crds() if crd["spec"]["names"]["kind"] == target["kind"]]
    (version,) = crd["spec"]["versions"]
    assert target["apiVersion"] == f"{crd['spec']['group']}/{version['name']}"
    assert version["schema"]["openAPIV3Schema"]["properties"]["spec"]["properties"].keys() >= target["spec"].keys()


@pytest.mark.parametrize(
    ("profile", "of"),
    [("h100x4-llama-3.1-70b", "Llama-3.1-70B"), ("l4-llama-3.1-8b", "L4"), ("mine", "one of your own")],
)
def test_the_notes_say_of_what_the_simulated_profile_is(profile: str, of: str) -> None:
    (line,) = [
        line for line in chart.render({"engine.profile": profile})["NOTES.txt"].splitlines() if "whatIf:" in line
    ]
    assert profile in line
    assert of in line.partition("#")[2]
