"""What of offload is decided without an engine: who is copied behind a step, and how much memory copies get."""

from __future__ import annotations

from pathlib import Path

import psutil
import pytest

from andes_sglang.adapter.copies import copies_behind
from andes_sglang.adapter.memory import GIB, free_bytes, pool_bytes


def test_who_has_most_in_store_is_copied_first_as_far_as_the_step_hides_it() -> None:
    dry_s, copy_s = [5.0, 30.0, 20.0, 10.0], [0.004, 0.006, 0.003, 0.002]
    assert copies_behind(dry_s, copy_s, 1.0) == [1, 2, 3, 0]
    assert copies_behind(dry_s, copy_s, 0.008) == [1, 2]
    assert copies_behind(dry_s, copy_s, 0.0) == [1]
    assert copies_behind([], [], 1.0) == []


def container(folder: Path, limit: str) -> Path:
    (folder / "memory.max").write_text(f"{limit}\n")
    (folder / "memory.current").write_text("700000\n")
    (folder / "memory.stat").write_text("anon 400000\ninactive_file 200000\nactive_file 100000\n")
    return folder


def test_a_container_has_what_it_may_use_and_not_what_the_machine_has(tmp_path: Path) -> None:
    assert free_bytes(container(tmp_path, "1000000")) == 500_000
    assert free_bytes(container(tmp_path, "600000")) == 100_000
    assert free_bytes(container(tmp_path, "100")) == 0
    machine = psutil.virtual_memory().total
    for nothing_said in (container(tmp_path, "max"), tmp_path / "nowhere"):
        assert 0 < free_bytes(nothing_said) <= machine


def test_the_pool_is_what_was_asked_for_or_a_part_of_what_is_free() -> None:
    assert pool_bytes(1.5, 1e6) == 1.5 * GIB
    assert pool_bytes(1.5, 1e6, ranks=3) == 0.5 * GIB
    assert pool_bytes(None, 1e18, ranks=4) == pytest.approx(free_bytes() / 16, rel=0.5)
    assert pool_bytes(None, 1e6) == 16e6
    assert pool_bytes(None, 1e18) == pytest.approx(0.25 * free_bytes(), rel=0.5)
