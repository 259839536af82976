"""Rules that engine and simulator share: each by example, and the figures beside the installed SGLang."""

from __future__ import annotations

import ast
import importlib.metadata
import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest

from andes_sglang import protocol

STOCK = {name: getattr(protocol, name) for name in protocol.__all__ if name.startswith("SGLANG_")}
RELEASE = STOCK.pop("SGLANG_RELEASE")


def sglang_directory() -> Path:
    spec = importlib.util.find_spec("sglang")
    if spec is None or not spec.submodule_search_locations:
        pytest.skip("SGLang is not installed")
    return Path(spec.submodule_search_locations[0])


def test_the_figures_are_those_of_the_installed_sglang() -> None:
    """Read, not imported: the defaults of its environment variables."""
    source = ast.parse((sglang_directory() / "srt" / "environ.py").read_text())
    defaults = {
        target.id: node.value.args[0].value
        for node in ast.walk(source)
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Call) and node.value.args
        for target in node.targets
        if isinstance(target, ast.Name) and isinstance(node.value.args[0], ast.Constant)
    }
    assert {name: defaults.get(name) for name in STOCK} == STOCK
    assert importlib.metadata.version("sglang") == RELEASE


def test_health_checks_are_known_by_the_name_that_sglang_gives_them() -> None:
    source = (sglang_directory() / "srt" / "constants.py").read_text()
    assert f'HEALTH_CHECK_RID_PREFIX = "{protocol.HEALTH_CHECK_RID_PREFIX}"\n' in source
    assert protocol.is_health_check(f"{protocol.HEALTH_CHECK_RID_PREFIX}_1")
    assert not protocol.is_health_check("a")


RULES = """
import json
from types import SimpleNamespace

from andes_sglang.adapter import launch, options

launch.prepare_environment(options.PluginOptions("andes"))
from sglang.srt.managers import schedule_batch, schedule_policy
from sglang.srt.managers.schedule_batch import ScheduleBatch
from sglang.srt.managers.scheduler_components import new_token_ratio_tracker
from sglang.srt.arg_groups.overrides import _page_size_default

from andes_sglang import protocol

reqs = [
    SimpleNamespace(output_ids=[0] * output, origin_input_ids=[0] * prompt, sampling_params=SimpleNamespace(max_new_tokens=50))
    for output, prompt in ((7, 3), (2, 9), (2, 4), (30, 1), (2, 5))
]
defaults = SimpleNamespace(retraction_policy="length", schedule_conservativeness=1.0)
schedule_batch.get_schedule = new_token_ratio_tracker.get_schedule = lambda: defaults
NewTokenRatioTracker = new_token_ratio_tracker.NewTokenRatioTracker
order = ScheduleBatch._get_decode_retraction_order(reqs)
rank = lambda i: protocol.stock_retraction_rank(len(reqs[i].output_ids), len(reqs[i].origin_input_ids))
tracker, stepped = NewTokenRatioTracker.from_config(), NewTokenRatioTracker.from_config()
for _ in range(250):
    stepped.decay_step()
after = protocol.new_token_ratio_after_retraction(sum(len(r.output_ids) for r in reqs), 50 * len(reqs), len(reqs))
page = _page_size_default(SimpleNamespace(page_size=None))
print(json.dumps([
    [order, sorted(range(len(reqs)), key=rank, reverse=True)],
    [[tracker.init, tracker.min], [protocol.INIT_NEW_TOKEN_RATIO, protocol.MIN_NEW_TOKEN_RATIO]],
    [round(stepped.current, 9), round(protocol.decayed_new_token_ratio(tracker.init, 250), 9)],
    [NewTokenRatioTracker.estimate_new_token_ratio_after_retract(reqs), after],
    [schedule_policy.CLIP_MAX_NEW_TOKENS, protocol.SGLANG_CLIP_MAX_NEW_TOKENS_ESTIMATION],
    [page["page_size"], protocol.PAGE_TOKENS],
]))
"""


@pytest.mark.engine
@pytest.mark.timeout(300)
def test_the_rules_are_those_of_the_installed_sglang() -> None:
    """Its own functions beside ours, in a process of their own (importing SGLang takes seconds)."""
    sglang_directory()
    done = subprocess.run([sys.executable, "-c", RULES], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    pairs = json.loads(done.stdout.splitlines()[-1])
    assert len(pairs) == 6
    for theirs, ours in pairs:
        assert ours == theirs


def test_a_policy_is_asked_when_there_is_something_to_decide() -> None:
    ample, few = 8 * 4, 8 * 4 - 1
    assert not protocol.asks_policy(waiting=0, parked=0, running=4, free_tokens=ample)
    assert protocol.asks_policy(waiting=0, parked=0, running=4, free_tokens=few)
    assert protocol.asks_policy(waiting=1, parked=0, running=4, free_tokens=ample)
    assert protocol.asks_policy(waiting=0, parked=1, running=4, free_tokens=ample)
    assert not protocol.asks_policy(waiting=0, parked=0, running=0, free_tokens=0, behind=1)
    assert protocol.asks_policy(waiting=0, parked=0, running=4, free_tokens=ample, behind=1)


@pytest.mark.parametrize("free_tokens", [31, 32, 33, 39, 40, 100, 101])
def test_pressure_comes_after_as_many_steps_as_foretold(free_tokens: int) -> None:
    running, steps, left = 4, 0, free_tokens
    while not protocol.is_kv_pressure(left, running):
        left, steps = left - running, steps + 1
    assert max(0, protocol.steps_to_kv_pressure(free_tokens, running)) == steps


def test_prefix_hits_are_refreshed_in_turn() -> None:
    cursor, seen = 0, []
    for _ in range(6):
        (cursor,) = protocol.prefix_lookup_rows(cursor, waiting=3)
        seen.append(cursor)
    assert seen == [1, 2, 0, 1, 2, 0]
    assert protocol.prefix_lookup_rows(5, waiting=0) == []
    assert protocol.prefix_lookup_rows(7, waiting=2) == [0]


def test_what_was_just_released_is_not_admitted_at_once() -> None:
    assert protocol.admissible(["c", "gone", "a", "b", "c"], {"a", "b", "c"}, {"a"}) == ["c", "b"]


def test_the_youngest_parked_gives_way_then_the_youngest_running_but_one() -> None:
    def victim(
        parked: list[int], running: list[int], kept: tuple[int, ...] = (), prefilling: bool = False
    ) -> int | None:
        return protocol.retraction_victim(
            parked, running, age=lambda arrival: arrival, may_leave=lambda a: a not in kept, prefilling=prefilling
        )

    assert victim([1, 3, 2], [9]) == 3
    assert victim([], [4, 9, 5]) == 9
    assert victim([], [4, 9, 5], kept=(9,)) == 5
    assert victim([], [4, 9], kept=(4, 9)) is None
    assert victim([], [4]) is None
    assert victim([], [4], prefilling=True) == 4
    assert victim([], [], prefilling=True) is None
    assert victim([2], []) == 2
    assert protocol.retraction_victim([], [0, -1], age=lambda arrival: arrival) == 0


def test_a_half_computed_prompt_makes_way_where_only_it_has_no_reader_or_nothing_else_can_go() -> None:
    assert [protocol.prompt_makes_way(yields, victim) for yields in (False, True) for victim in (None, False, True)] == [
        True, False, False, True, True, False,
    ]  # fmt: skip


def test_a_prefill_takes_what_chunk_and_kv_leave_beside_the_step_of_the_batch() -> None:
    assert protocol.prefill_room_tokens(32, 100) == 32
    assert protocol.prefill_room_tokens(32, 100, beside=14, growth_tokens=14) == 18
    assert protocol.prefill_room_tokens(32, 20, beside=14, growth_tokens=14) == 6
    assert protocol.prefill_room_tokens(32, 14, beside=14, growth_tokens=14) == 0
    assert protocol.prefill_room_tokens(16, 900, beside=16, growth_tokens=16) == 0
    assert protocol.prefill_room_tokens(32, 48, beside=2, growth_tokens=16, page_tokens=16) == 17, (
        "its last page is begun"
    )


def test_mixed_no_policy_lets_so_many_run_that_prompts_stand_still() -> None:
    assert protocol.running_bound(64, 32, mixed=False) == 64
    assert protocol.running_bound(64, 32, mixed=True) == 31
    assert protocol.running_bound(64, 32, mixed=True, page_tokens=16) == 16
    assert protocol.running_bound(64, 8, mixed=True, page_tokens=16) == 1
    assert protocol.running_bound(16, 8192, mixed=True) == 16


def test_the_parked_run_rather_than_nothing() -> None:
    def resumed(running: int = 0, parked: str = "ab", preempted: int = 0, can: str = "ab", waits: bool = False) -> str:
        return "".join(protocol.parked_to_resume(running, parked, preempted, can.__contains__, waits=waits))

    assert resumed() == "ab"
    assert resumed(running=1) == resumed(parked="") == resumed(preempted=1) == ""
    assert resumed(can="b") == resumed(can="b", waits=True) == "b"
    assert resumed(can="") == "", "the engine waits for readers"
    assert resumed(can="", waits=True) == "ab", "but not while another request does"


def test_what_an_admission_needs() -> None:
    assert protocol.admission_tokens(100, 500, clip_tokens=16) == 117
    assert protocol.admission_tokens(100, 5, clip_tokens=16) == 106
    assert protocol.admission_tokens(100, -3, clip_tokens=16) == 101


def test_the_reserve_falls_while_decoding_goes_well() -> None:
    assert protocol.decayed_new_token_ratio(0.7, 300) == pytest.approx(0.7 * (1 + 0.14) / 2)
    assert protocol.decayed_new_token_ratio(0.7, 6000) == pytest.approx(0.098)
    assert protocol.new_token_ratio_after_retraction(100, 999, 5) == pytest.approx(0.2)
    assert protocol.new_token_ratio_after_retraction(100, 9, 5) == 1.0


def test_one_token_is_always_computed_and_is_no_recomputation() -> None:
    assert protocol.max_prefix_hit_tokens(10) == 9
    assert [protocol.recomputed_tokens(n) for n in (0, 1, 8)] == [0, 0, 7]


def test_a_release_with_a_copy_on_the_host_counts_as_an_offload() -> None:
    assert protocol.off_device_mode("release", True) == "offload"
    assert protocol.off_device_mode("release", False) == "release"
    assert protocol.off_device_mode("retracted", True) == "retracted"
