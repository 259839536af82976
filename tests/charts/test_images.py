"""What can be said of the Dockerfiles without a container engine; and, where ANDES_IMAGES=1 and buildah is there, the images."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tomllib
from pathlib import Path

import chart
import pytest
import yaml
from packaging.requirements import Requirement

from andes_sglang import __version__
from andes_sglang.adapter.seams import RELEASES

BUILDER = str(chart.ROOT / "tools" / "images.sh")
MAX_MIB = 600
"""Of an image with all its layers; the operator's had 948."""
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
            image = rest.replace("${BASE}", dict(instructions(component)).get("ARG", "").removeprefix("BASE="))
            assert ":" in image
            assert "latest" not in image


def test_versions_go_together() -> None:
    metadata = yaml.safe_load((chart.CHART / "Chart.yaml").read_text())
    assert "version" in PROJECT["dynamic"], "it is read from andes_sglang/__init__.py"
    assert metadata["appVersion"] == __version__
    (sglang,) = PROJECT["optional-dependencies"]["sglang"]
    (image,) = [rest for name, rest in instructions("engine") if name == "FROM"]
    assert Requirement(sglang).specifier.contains(image.removeprefix("lmsysorg/sglang:v"))
    assert all(map(Requirement(sglang).specifier.contains, RELEASES))


@pytest.mark.timeout(1800)
@pytest.mark.parametrize("component", ["gateway", "operator"])
def test_an_image_is_small_and_runs_as_nobody(component: str) -> None:
    """With what tools/images.sh takes from the environment (``BASE``, ``BUILD_FLAGS``)."""
    if not os.environ.get("ANDES_IMAGES"):
        pytest.skip("NOT RUN: ANDES_IMAGES=1 builds the images (minutes, a package index, buildah)")
    if shutil.which("buildah") is None:
        pytest.skip("NOT HERE: buildah")
    subprocess.run([BUILDER, component], check=True, env={**os.environ, "TAG": "test"})
    name = subprocess.check_output(["buildah", "from", f"andes-{component}:test"], text=True).strip()
    try:
        root = subprocess.check_output(["buildah", "mount", name], text=True).strip()
        size = int(subprocess.check_output(["du", "-sm", root], text=True).split()[0])
        assert size < MAX_MIB, f"{size} MiB"
        run = ["buildah", "run", "--user", "10001:10001", name, "--", "tini", "--", "andes", component, "--help"]
        assert f"usage: andes {component}" in subprocess.check_output(run, text=True)
    finally:
        subprocess.run(["buildah", "rm", name], check=False, capture_output=True)


@pytest.mark.parametrize(
    ("there", "parts", "said"),
    [
        ([], ["gateway"], "neither buildah nor a docker daemon is here"),
        (["buildah"], ["nothing"], "nothing: choose gateway"),
    ],
)
def test_the_builder_says_what_it_lacks(there: list[str], parts: list[str], said: str, tmp_path: Path) -> None:
    for tool in ("dirname", "sed", *there):
        (tmp_path / tool).symlink_to(shutil.which(tool) or "/bin/true")
    ended = subprocess.run(["/bin/bash", BUILDER, *parts], capture_output=True, text=True, check=False,
                           env={"PATH": str(tmp_path)})  # fmt: skip
    assert ended.returncode == 1
    assert ended.stderr.startswith(f"images: {said}")
