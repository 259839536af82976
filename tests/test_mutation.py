"""The set-up of ``make mutation``: each room's files and tests are there, and what is not there is said."""

from __future__ import annotations

from pathlib import Path

import mutation
import pytest

PLANTED = """
skip_lines = []
[rooms.small]
mutate = ["api/andes_api/*.py"]
except = ["api/andes_api/left_out.py"]
tests = ["tests/test_*.py"]
"""


def plant(root: Path, config: str = PLANTED) -> Path:
    for name in ("api/andes_api/kept.py", "api/andes_api/left_out.py", "tests/test_it.py"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    (root / "mutation.toml").write_text(config)
    return root / "mutation.toml"


def test_every_path_of_every_room_exists() -> None:
    rooms, skip_lines = mutation.load_rooms()
    assert {"policy", "state", "qoe", "latency", "radix", "eviction", "whatif", "routing", "operator"} <= rooms.keys()
    assert all(room.mutate and room.tests for room in rooms.values())
    assert skip_lines


def test_a_room_is_its_files_without_those_left_out(tmp_path: Path) -> None:
    rooms, _ = mutation.load_rooms(plant(tmp_path), tmp_path)
    assert rooms["small"].mutate == (Path("api/andes_api/kept.py"),)
    assert rooms["small"].tests == (Path("tests/test_it.py"),)


@pytest.mark.parametrize("gone", ["api/andes_api/*.py", "api/andes_api/left_out.py", "tests/test_*.py"])
def test_a_path_that_does_not_exist_is_named(gone: str, tmp_path: Path) -> None:
    with pytest.raises(mutation.RoomError, match=r"rooms\.small.*'moved/\*\.py'"):
        mutation.load_rooms(plant(tmp_path, PLANTED.replace(gone, "moved/*.py")), tmp_path)


def test_a_timeout_is_a_kill_and_what_no_test_reaches_is_none() -> None:
    results = {"a": 1, "b": 36, "c": 0, "d": 33, "e": None}
    expected = {"mutants": 5, "killed": 2, "survived": 1, "no tests": 1, "not tried": 1}
    assert mutation.summary(results) == expected
    assert mutation.survivors(results) == ["c", "d"]
