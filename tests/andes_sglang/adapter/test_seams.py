"""Nothing of SGLang is overridden, called or read without being checked at start."""

from __future__ import annotations

import ast
import importlib.util
import json
import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from andes_sglang.adapter import plugin, seams
from andes_sglang.adapter.attributes import attributes_of
from andes_sglang.adapter.options import ENVIRONMENT, PluginOptions

ADAPTER = Path(seams.__file__).parent
SCHEDULER = "sglang.srt.managers.scheduler.Scheduler"
UNIFIED = "sglang.srt.mem_cache.unified_radix_cache.UnifiedRadixCache"
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
        ("unified_host_tier.py", "UnifiedHostTier", UNIFIED, set()),
    ],
)
def test_every_override_is_checked_at_start(module: str, name: str, base: str, unchecked: set[str]) -> None:
    found = overrides(module, name)
    assert len(found) > 5
    known = [
        *seams.SEAMS,
        *seams.OFFLOAD_SEAMS,
        *seams.UNIFIED_SEAMS,
        *(seam for group in seams.ALTERNATIVES for seam in group),
    ]
    checked = {seam.removeprefix(f"{base}.") for seam in known if seam.startswith(f"{base}.")}
    assert found - unchecked <= checked


OF_SGLANG = (
    r"(?:.*\.)?(?:_?scheduler|req|sampling_params|(?:running_|parked\.|self\.)?batch|other|match|recv_req|time_stats)"
)
"""Expressions in the adapter that stand for objects of SGLang, by their name."""
OFFLOAD_ONLY = {"host_tier.py", "host_transfers.py", "unified_host_tier.py"}


def test_every_attribute_that_is_read_is_checked_at_start() -> None:
    reads = {
        (module.name, node.attr)
        for module in ADAPTER.glob("*.py")
        if module.name not in OFFLOAD_ONLY
        for node in ast.walk(ast.parse(module.read_text()))
        if isinstance(node, ast.Attribute) and re.fullmatch(OF_SGLANG, ast.unparse(node.value))
    }
    assert len(reads) > 50
    functions = [*seams.SEAMS, *seams.SAFEGUARDS, *(seam for group in seams.ALTERNATIVES for seam in group)]
    checked = {seam.rsplit(".", 1)[1] for seam in functions}
    checked |= {name for names in seams.ATTRIBUTES.values() for name in re.split("[ |]", names)}
    checked |= {"Scheduler"}  # of the module scheduler
    assert {f"{module}: {name}" for module, name in reads if name not in checked} == set()


@dataclass
class Base:
    field: int
    limit = 3

    def method(self) -> None:
        self.assigned = self.read  # type: ignore[attr-defined]


class Derived(Base):
    __slots__ = ("slot",)

    def __init__(self) -> None:
        self.first, self.second = 1, 2
        self.annotated: int = 3

    @property
    def made(self) -> int:
        self.in_property = 4
        return 5


def named(names: int) -> type:
    """A class whose one method assigns so many attributes."""
    body = "\n".join(f"        self.name_{k} = {k}" for k in range(names))
    space: dict[str, type] = {}
    exec(f"class Named:\n    def method(self):\n{body}\n", space)  # noqa: S102
    return space["Named"]


def test_what_instances_have_is_read_from_the_methods_of_all_bases() -> None:
    found = attributes_of(Derived)
    assert {
        "field",
        "limit",
        "method",
        "assigned",
        "slot",
        "first",
        "second",
        "annotated",
        "made",
        "in_property",
    } <= found
    assert "read" not in found
    assert {f"name_{k}" for k in range(700)} <= attributes_of(named(700)), "more than a byte counts"


def altered(sglang: Path, folder: Path, changes: dict[str, tuple[str, str]]) -> None:
    """SGLang in ``folder`` by links, but for modules in which a name is called otherwise."""
    (folder / "sglang").symlink_to(sglang)
    for module, (old, new) in changes.items():
        for parent in reversed(list(Path(module).parents)):
            here = folder / "sglang" / parent
            if here.is_symlink():
                there = here.readlink()
                here.unlink()
                here.mkdir()
                for entry in there.iterdir():
                    (here / entry.name).symlink_to(entry)
        source, count = re.subn(rf"\b{old}\b", new, (sglang / module).read_text())
        assert count
        (folder / "sglang" / module).unlink()
        (folder / "sglang" / module).write_text(source)


ASK = (
    "import json\n"
    "from andes_sglang.adapter import launch, options, seams\n"
    "launch.prepare_environment(options.PluginOptions('andes'))\n"
    "print(json.dumps(seams.faults()))\n"
)


@pytest.mark.engine
def test_attributes_that_are_gone_are_named(tmp_path: Path) -> None:
    (sglang,) = importlib.util.find_spec("sglang").submodule_search_locations  # type: ignore[union-attr]
    gone = {
        "srt/managers/schedule_batch.py": ("finished_reason", "why"),
        "srt/managers/scheduler.py": ("is_mixed_chunk", "mixes"),
        "srt/mem_cache/base_prefix_cache.py": ("host_hit_length", "on_host"),
    }
    altered(Path(sglang), tmp_path, gone)
    path = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    ask = [sys.executable, "-c", ASK]
    done = subprocess.run(ask, env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert [fault.rsplit(".", 1)[1] for fault in json.loads(done.stdout.splitlines()[-1])] == [
        "Scheduler has no attribute is_mixed_chunk",
        "Req has no attribute finished_reason",
        "MatchResult has no attribute host_hit_length",
    ]


@pytest.mark.parametrize(
    ("release", "says"),
    [
        ("0.5.17", None),
        ("0.5.21", "--preemption-mode offload: not supported on sglang 0.5.21"),
        ("0.5.23", "--offload-without overlap: needs sglang 0.5.17, and 0.5.23 is installed"),
        ("0.5.99", None),  # refused for another reason
    ],
)
def test_offload_is_refused_where_its_cache_is_gone(
    monkeypatch: pytest.MonkeyPatch, release: str, says: str | None
) -> None:
    monkeypatch.setattr(seams.importlib.metadata, "version", lambda _: release)
    fault = seams.offload_fault("overlap")
    assert release != "0.5.23" or seams.offload_fault() is None
    assert (fault is None) == (says is None)
    assert says is None or says in str(fault)


def test_a_release_that_was_never_run_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(seams.importlib.metadata, "version", lambda _: "0.5.99")
    (said,) = seams._version_faults()
    assert said == f"sglang 0.5.99 is installed; andes was run on {', '.join(seams.RELEASES)}"


def server_args(**given: Any) -> Any:
    sizes = dict.fromkeys(("tp_size", "pp_size", "attn_cp_size", "dcp_size"), 1)
    defaults = {**sizes, "enable_dp_attention": False, "disaggregation_mode": "null"}
    return SimpleNamespace(**{**defaults, **given})


@pytest.mark.parametrize(
    ("given", "flag"),
    [
        ({"pp_size": 2}, "--pp-size 2"),
        ({"tp_size": 2, "enable_dp_attention": True}, "--enable-dp-attention"),
        ({"attn_cp_size": 2}, "--attn-cp-size 2"),
        ({"dcp_size": 2}, "--dcp-size 2"),
        ({"disaggregation_mode": "prefill"}, "--disaggregation-mode prefill"),
        ({"decoupled_spec_role": "drafter"}, "--decoupled-spec-role drafter"),
        ({"enable_pdmux": True}, "--enable-pdmux"),
        ({"dllm_algorithm": "LowConfidence"}, "--dllm-algorithm LowConfidence"),
        ({"enable_hisparse": True}, "--enable-hisparse"),
        ({"encoder_only": True}, "--encoder-only"),
        ({"use_ray": True}, "--use-ray"),
        ({"smg_grpc_mode": True}, "--smg-grpc-mode"),
        ({"grpc_mode": True}, "--grpc-mode"),
        ({"schedule_policy": "lpm"}, "--schedule-policy lpm"),
        ({"retraction_policy": "priority"}, "--retraction-policy priority"),
        ({"enable_prefill_delayer": True}, "--enable-prefill-delayer"),
        ({"min_free_slots_delay": 4}, "--min-free-slots-delay 4"),
    ],
)
def test_engines_that_would_not_do_what_a_policy_decides_are_refused(given: dict[str, Any], flag: str) -> None:
    usual = {"min_free_slots_delay": 0, "schedule_policy": "fcfs", "retraction_policy": "length"}
    assert seams.unsupported(server_args()) is seams.unsupported(server_args(**usual)) is None
    assert str(seams.unsupported(server_args(**given))).startswith(f"{flag} is not supported with a policy: ")


@pytest.mark.parametrize(("value", "refused"), [("1", True), ("TRUE", True), ("0", False), ("", False)])
def test_the_front_end_that_checks_no_request_is_refused(
    monkeypatch: pytest.MonkeyPatch, value: str, *, refused: bool
) -> None:
    monkeypatch.setenv("SGLANG_RUST_SERVER", value)
    said = seams.unsupported(server_args())
    assert refused == str(said).startswith("SGLANG_RUST_SERVER is not supported with a policy: requests then reach")


def test_what_ranks_would_decide_by_themselves_is_refused() -> None:
    one, two = server_args(), server_args(tp_size=2)
    assert seams.unsupported(two) is None
    assert seams.unsupported(one, offload=True, own_time_outs=["SGLANG_REQ_WAITING_TIMEOUT"]) is None
    assert "offload is not supported with a policy and --tp-size 2" in str(seams.unsupported(two, offload=True))
    said = seams.unsupported(two, own_time_outs=["SGLANG_REQ_WAITING_TIMEOUT"])
    assert str(said).startswith("SGLANG_REQ_WAITING_TIMEOUT is not supported with a policy and --tp-size 2")


@pytest.mark.engine
@pytest.mark.timeout(300)
def test_safeguards_are_left_out_with_a_word_where_stock_sglang_has_no_such_seam(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Without a policy an unknown release is served all the same."""
    monkeypatch.setenv(ENVIRONMENT, PluginOptions().to_env())
    monkeypatch.setitem(seams.SAFEGUARDS, "sglang.srt.managers.scheduler.gone", None)
    plugin.register()
    said = capsys.readouterr().err
    assert "requests are not checked before they reach this SGLang" in said
    assert "seam sglang.srt.managers.scheduler.gone is missing" in said
