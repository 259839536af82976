"""What of offload is decided without an engine: who is copied behind a step, and how much memory copies get."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from andes_sglang.adapter.copies import copies_behind
from andes_sglang.adapter.memory import GIB, free_bytes, pool_bytes
from andes_sglang.adapter.options import ENVIRONMENT, PluginOptions


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


TIERS = {
    "0.5.17": """
from andes_sglang.adapter.host_tier import HostTier

HostTier.__mro__[1].__init__ = lambda self, params, server_args: sizes.append(server_args.hicache_size)
made = HostTier
""",
    "0.5.23": """
from contextlib import contextmanager

from andes_sglang.adapter import unified_host_tier
from andes_sglang.adapter.unified_host_tier import UnifiedHostTier

@contextmanager
def override(hicache_size):
    sizes.append(hicache_size)
    yield

unified_host_tier.get_memory = lambda: SimpleNamespace(override=override)
unified_host_tier.get_parallel = lambda: SimpleNamespace(tp_group=SimpleNamespace(world_size=1))
UnifiedHostTier.__mro__[1].init_hicache = lambda self, server_args, params: None
made = lambda params, server_args: UnifiedHostTier.__new__(UnifiedHostTier).init_hicache(server_args, params)
""",
}
"""By the release whose cache it extends: ``made(params, server_args)`` leaves the memory that SGLang is told, in GB."""
FRAME = """
from types import SimpleNamespace

from andes_sglang.adapter import launch, options

launch.prepare_environment(options.PluginOptions.from_env())
sizes = []
%s
params = SimpleNamespace()
params.token_to_kv_pool_allocator = SimpleNamespace(get_kvcache=lambda: SimpleNamespace(get_kv_size_bytes=lambda: (5, 5)))
for ranks in (1, 4):
    made(params, SimpleNamespace(dp_size=ranks, hicache_size=0))
print(*sizes)
"""


@pytest.mark.engine  # none is started, but SGLang and torch are imported
@pytest.mark.parametrize("release", TIERS)
def test_data_parallel_ranks_share_what_was_asked_for(release: str, path_with: Callable[..., str]) -> None:
    """Each has a pool of its own; together they hold no more than one that is alone."""
    environment = {
        **os.environ,
        ENVIRONMENT: PluginOptions("andes", preemption_mode="offload", host_kv_gib=2.0).to_env(),
        "PYTHONPATH": path_with(release),
    }
    script = FRAME % TIERS[release]
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    alone, one_of_four = map(float, done.stdout.split()[-2:])
    assert (alone, one_of_four) == pytest.approx((2 * GIB / 1e9, 0.5 * GIB / 1e9))
