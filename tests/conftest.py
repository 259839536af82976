"""Shared by all tests: a tiny model and a Kubernetes control plane, each made once."""

from __future__ import annotations

import gc
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import settings

if TYPE_CHECKING:
    from e2e.control_plane import ControlPlane

settings.register_profile("repeatable", deadline=None, derandomize=True, max_examples=40)
settings.register_profile("search", deadline=None, max_examples=2000)
settings.load_profile("repeatable")


def pytest_configure() -> None:
    """A run that is told to end (by timeout(1), say) ends what its fixtures have started, as at Ctrl-C."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)


def pytest_itemcollected(item: pytest.Item) -> None:
    """A test that asks for a simulated engine's process is one of servers, without saying so itself."""
    if "simulated" in getattr(item, "fixturenames", ()):
        item.add_marker(pytest.mark.server)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The files that take longest first: of two processes neither ends long before the other."""
    places: dict[Path, int] = {}
    for item in items:
        names = [mark.name for mark in item.iter_markers()]
        place = next((i for i, name in enumerate(("cluster", "engine", "server")) if name in names), 3)
        places[item.path] = min(place, places.get(item.path, place))
    items.sort(key=lambda item: places[item.path])


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from andes_sglang.adapter.tiny_model import make_tiny_model

    return make_tiny_model(tmp_path_factory.mktemp("model") / "tiny", layers=2, hidden=64)


@pytest.fixture(scope="session")
def control_plane(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ControlPlane]:
    """One for all suites: each leaves it as it was."""
    from e2e.control_plane import AbsentError, ControlPlane, binaries

    try:
        programs = binaries()
    except AbsentError as absent:
        pytest.skip(str(absent))
    with ControlPlane(tmp_path_factory.mktemp("control-plane"), programs) as made:
        yield made


@pytest.fixture(scope="session")
def chromium() -> str:
    from e2e.browser import find_chromium

    return find_chromium() or pytest.skip("NO BROWSER: install chromium to test what runs in one")


def pytest_collection(session: pytest.Session) -> None:
    gc.disable()


def pytest_collection_finish(session: pytest.Session) -> None:
    """What was imported stays: the collector need not walk it again after every few tests (a tenth of the unit tests' time)."""
    gc.enable()
    gc.freeze()
