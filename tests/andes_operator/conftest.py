from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from e2e.control_plane import ControlPlane, until

sys.path.insert(0, str(Path(__file__).parent))

import plane as parts


@pytest.fixture(scope="module")
def plane(control_plane: ControlPlane) -> Iterator[ControlPlane]:
    """The control plane with the CRDs, which are gone afterwards."""
    if not control_plane.cel:
        pytest.skip(f"NO CEL: Kubernetes {control_plane.version} does not know the rules of the CRDs")
    crds = sorted((parts.CHART_FILES / "crds").glob("*.yaml"))
    paths = [f"/apis/andes.dev/v1alpha1/{crd.stem}" for crd in crds]
    control_plane.serve("andes.dev/v1alpha1")
    for crd, path in zip(crds, paths):
        control_plane.kubectl("apply", "--validate=false", "-f", str(crd))
        until(f"{crd.stem} are served", lambda path=path: "items" in control_plane("GET", path))
    control_plane.wait_until_served("andes.dev/v1alpha1")
    yield control_plane
    for crd in crds:
        control_plane.kubectl("delete", "--timeout=280s", "-f", str(crd))
    control_plane.unserve("andes.dev/v1alpha1")


@pytest.fixture(scope="module")
def node(plane: ControlPlane) -> Iterator[parts.Node]:
    if not plane.controllers:
        pytest.skip("NO CONTROLLERS: KUBEBUILDER_ASSETS has no kube-controller-manager and kube-scheduler")
    made = parts.Node(plane)
    made.start()
    yield made
    made.stop()
