"""The CRDs: files that are also plain YAML, installed as templates so that Helm upgrades them."""

from __future__ import annotations

from typing import Any

import chart
import pytest
import yaml

FILES = sorted((chart.CHART / "files" / "crds").glob("*.yaml"))
pytestmark = pytest.mark.skipif(not FILES, reason="THE CRDS ARE NOT HERE")


def rendered(**values: bool) -> list[dict[str, Any]]:
    return chart.objects({f"crds.{name}": value for name, value in values.items()}).get("crds.yaml", [])


def test_every_file_is_installed_as_it_is() -> None:
    written = [yaml.safe_load(path.read_text()) for path in FILES]
    assert [crd["spec"] for crd in rendered()] == [crd["spec"] for crd in written]
    assert {crd["metadata"]["name"] for crd in rendered()} == {"qoetargets.andes.dev", "qoeclasses.andes.dev"}


def test_older_servers_get_no_rules_that_they_would_refuse() -> None:
    rules = "x-kubernetes-validations"
    assert rules in chart.render()["crds.yaml"]
    assert rules in chart.render(kubernetes="v1.28.0")["crds.yaml"]
    old = chart.render(kubernetes="v1.20.2")["crds.yaml"]
    assert rules not in old
    assert old.count("\n") > 100


def test_they_outlive_the_release_if_wanted() -> None:
    assert all(crd["metadata"]["annotations"]["helm.sh/resource-policy"] == "keep" for crd in rendered())
    assert not any("annotations" in crd["metadata"] for crd in rendered(keep=False))
    assert rendered(enabled=False) == []


def test_the_operator_may_do_what_it_does_with_them() -> None:
    (role,) = [o for o in chart.objects()["operator-rbac.yaml"] if o["kind"] == "ClusterRole"]
    (ours,) = [rule for rule in role["rules"] if "qoetargets" in rule["resources"]]
    assert {crd["spec"]["names"]["plural"] for crd in rendered()} == set(ours["resources"])
    assert ours["apiGroups"] == [crd["spec"]["group"] for crd in rendered()][:1]


def test_the_target_in_the_notes_names_things_that_are_there() -> None:
    notes = chart.render()["NOTES.txt"]
    text = notes.partition("<<'EOF'\n")[2].partition("EOF")[0]
    target = yaml.safe_load(text)
    there = {(o["kind"], o["metadata"]["name"]) for found in chart.objects().values() for o in found}
    ref = target["spec"]["scaleTargetRef"]
    assert (ref["kind"], ref["name"]) in there
    assert ("Service", target["spec"]["demand"]["gateway"]["service"]) in there
    (crd,) = [crd for crd in rendered() if crd["spec"]["names"]["kind"] == target["kind"]]
    (version,) = crd["spec"]["versions"]
    assert target["apiVersion"] == f"{crd['spec']['group']}/{version['name']}"
    assert version["schema"]["openAPIV3Schema"]["properties"]["spec"]["properties"].keys() >= target["spec"].keys()
