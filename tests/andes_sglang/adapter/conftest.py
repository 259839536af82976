"""Tests that import SGLang itself find what it needs on a machine without an accelerator, before anything looks for it."""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Callable

import pytest
from sglang_releases import UnreachableError, python_path

from andes_sglang.adapter.launch import STANDINS

if importlib.util.find_spec("triton") is None:
    sys.path.append(str(STANDINS))


@pytest.fixture(scope="session")
def path_with() -> Callable[..., str]:
    """``PYTHONPATH`` with a release of SGLang (none: the one there is), then with folders, before what is in it. A test is
    skipped where pip cannot get the release."""

    def path(release: str, *folders: object) -> str:
        try:
            beside = python_path(release) if release else []
        except UnreachableError as unreachable:
            pytest.skip(f"NOT TESTED on sglang {release}: {unreachable}")
        return os.pathsep.join(filter(None, (*beside, *map(str, folders), os.environ.get("PYTHONPATH"))))

    return path
