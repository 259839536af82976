from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

import plane as parts


@pytest.fixture(scope="session")
def plane(tmp_path_factory: pytest.TempPathFactory) -> Iterator[parts.Plane]:
    if not (parts.KUBE / "start.sh").exists():
        pytest.skip(f"NO CONTROL PLANE: {parts.KUBE} is not there; set ANDES_KUBE to a folder like it")
    made = parts.Plane(tmp_path_factory.mktemp("kube"))
    try:
        made.start()
        made.install_crds()
        yield made
    finally:
        made.stop()


@pytest.fixture(scope="session")
def node(plane: parts.Plane) -> Iterator[parts.Node]:
    made = parts.Node(plane)
    made.start()
    yield made
    made.stop()
