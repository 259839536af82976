"""Nothing of SGLang is overridden without being checked at start."""

from __future__ import annotations

import ast
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from andes_sglang.adapter import seams

ADAPTER = Path(seams.__file__).parent
SCHEDULER = "sglang.srt.managers.scheduler.Scheduler"
HICACHE = "sglang.srt.mem_cache.hiradix_cache.HiRadixCache"


def overrides(module: str, name: str) -> set[str]:
    """Methods of the class ``name`` that call the method of their name, or of another one, of SGLang's class."""
    (found,) = [
        node
        for node in ast.parse((ADAPTER / module).read_text()).body
        if isinstance(node, ast.ClassDef) and node.name == name
    ]
    return {
        node.func.attr
        for node in ast.walk(found)
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and isinstance(node.func.value, ast.Call)
        and isinstance(node.func.value.func, ast.Name)
        and node.func.value.func.id == "super"
    }


@pytest.mark.parametrize(
    ("module", "name", "base", "unchecked"),
    [
        ("scheduler.py", "QoEScheduler", SCHEDULER, {"__init__"}),  # takes what SGLang's takes, whatever that is
        ("host_tier.py", "HostTier", HICACHE, set()),
    ],
)
def test_every_override_is_checked_at_start(module: str, name: str, base: str, unchecked: set[str]) -> None:
    found = overrides(module, name)
    assert len(found) > 5
    checked = {seam.removeprefix(f"{base}.") for seam in seams.SEAMS if seam.startswith(f"{base}.")}
    assert found - unchecked <= checked


def server_args(**given: Any) -> Any:
    defaults = {"tp_size": 1, "pp_size": 1, "enable_dp_attention": False, "disaggregation_mode": "null"}
    return SimpleNamespace(**{**defaults, **given})


@pytest.mark.parametrize(
    ("given", "flag"),
    [
        ({"tp_size": 2}, "--tp-size"),
        ({"pp_size": 2}, "--pp-size"),
        ({"tp_size": 2, "enable_dp_attention": True}, "--enable-dp-attention"),
        ({"disaggregation_mode": "prefill"}, "--disaggregation-mode"),
    ],
)
def test_engines_whose_ranks_would_decide_differently_are_refused(given: dict[str, Any], flag: str) -> None:
    assert seams.unsupported(server_args()) is None
    assert seams.unsupported(server_args(**given)) == (
        f"{flag} is not supported with a policy; start with --policy stock"
    )
