"""What can be said of the Dockerfiles without a container engine."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import chart
import pytest
import yaml
from packaging.requirements import Requirement

from andes_sglang import __version__
from andes_sglang.adapter.seams import RELEASES

FOLDER = chart.ROOT / "charts" / "images"
VALUES = yaml.safe_load((chart.CHART / "values.yaml").read_text())
PROJECT = tomllib.loads((chart.ROOT / "pyproject.toml").read_text())["project"]


def instructions(component: str) -> list[tuple[str, str]]:
    text = re.sub(r"\\\n", " ", (FOLDER / f"{component}.Dockerfile").read_text())
    return [(line.partition(" ")[0], line.partition(" ")[2]) for line in text.splitlines() if line and line[0] != "#"]


@pytest.mark.parametrize("component", ["gateway", "operator", "engine"])
def test_an_image_runs_as_the_chart_runs_it(component: str) -> None:
    said = dict(instructions(component))
    user = VALUES["podSecurityContext"]
    assert said["USER"] == f"{user['runAsUser']}:{user['runAsGroup']}"
    assert said["ENTRYPOINT"] == '["tini", "--", "andes"]'
    assert VALUES[component]["image"]["repository"] in (FOLDER / f"{component}.Dockerfile").read_text()
    (deployment,) = chart.objects()[f"{component}-deployment.yaml"]
    (container,) = deployment["spec"]["template"]["spec"]["containers"]
    assert "command" not in container
    if "EXPOSE" in said:
        assert int(said["EXPOSE"]) == container["ports"][0]["containerPort"]


@pytest.mark.parametrize("component", ["gateway", "operator", "engine"])
def test_what_is_copied_passes_the_ignore_file(component: str) -> None:
    kept = {
        line.removeprefix("!") for line in (chart.ROOT / ".dockerignore").read_text().splitlines() if line[0] == "!"
    }
    for name, rest in instructions(component):
        if name == "COPY" and "--from" not in rest:
            assert {Path(source).parts[0] for source in rest.split()[:-1]} <= kept
        if name == "FROM":
            assert ":" in rest
            assert "latest" not in rest


def test_versions_go_together() -> None:
    metadata = yaml.safe_load((chart.CHART / "Chart.yaml").read_text())
    assert "version" in PROJECT["dynamic"], "it is read from andes_sglang/__init__.py"
    assert metadata["appVersion"] == __version__
    (sglang,) = PROJECT["optional-dependencies"]["sglang"]
    (image,) = [rest for name, rest in instructions("engine") if name == "FROM"]
    assert Requirement(sglang).specifier.contains(image.removeprefix("lmsysorg/sglang:v"))
    assert all(map(Requirement(sglang).specifier.contains, RELEASES))
