"""Every function of SGLang that is overridden, replaced or called by the adapter, checked at start.

SGLang logs what a plugin raises and goes on with its own scheduling; so a seam that is not as expected ends the process,
with a message that names it.
"""

from __future__ import annotations

import importlib.metadata
import inspect
import os
import pkgutil
import sys
from typing import Any

from andes_sglang.protocol import SGLANG_RELEASE

__all__ = ["SEAMS", "SGLANG_VERSION", "check", "faults", "unsupported"]

SGLANG_VERSION = SGLANG_RELEASE

_SCHEDULER = "sglang.srt.managers.scheduler.Scheduler"
_BATCH = "sglang.srt.managers.schedule_batch.ScheduleBatch"
_HICACHE = "sglang.srt.mem_cache.hiradix_cache.HiRadixCache"

SEAMS: dict[str, tuple[str, ...] | None] = {
    f"{_SCHEDULER}.get_new_batch_prefill": ("self", "running_batch"),
    f"{_SCHEDULER}.update_running_batch": ("self", "batch"),
    f"{_SCHEDULER}.run_batch": ("self", "batch", "pp_proxy_tensors"),
    f"{_SCHEDULER}.process_batch_result": ("self", "batch", "result"),
    f"{_SCHEDULER}.abort_request": ("self", "recv_req"),
    f"{_SCHEDULER}.is_fully_idle": ("self", "for_health_check"),
    f"{_SCHEDULER}._add_request_to_queue": ("self", "req", "is_retracted"),
    f"{_SCHEDULER}._abort_on_waiting_timeout": ("self",),
    f"{_SCHEDULER}._abort_on_running_timeout": ("self", "running_batch"),
    f"{_SCHEDULER}._abort_on_queued_limit": ("self", "recv_req"),
    f"{_SCHEDULER}.pause_generation": ("self", "recv_req"),
    f"{_SCHEDULER}.init_schedule_policy": ("self",),
    f"{_SCHEDULER}.init_invariant_checker": ("self",),
    f"{_SCHEDULER}.init_load_inquirer": ("self",),
    f"{_SCHEDULER}.on_idle": ("self",),
    f"{_SCHEDULER}.get_internal_state": ("self", "recv_req"),
    f"{_BATCH}.filter_batch": ("self", "chunked_req_to_exclude", "keep_indices"),
    f"{_BATCH}.merge_batch": ("self", "other"),
    f"{_BATCH}.mix_with_running": ("self", "running_batch"),
    f"{_BATCH}.check_decode_mem": ("self", "selected_indices"),
    f"{_BATCH}.new_tokens_required_next_decode": ("self", "selected_indices"),
    "sglang.srt.managers.schedule_batch.Req.reset_for_retract": ("self",),
    "sglang.srt.managers.schedule_batch.Req.set_finish_with_abort": ("self", "error_msg"),
    "sglang.srt.managers.schedule_batch.BaseFinishReason.to_json": ("self",),
    "sglang.srt.managers.schedule_policy.match_prefix_for_req": (
        "tree_cache",
        "req",
        "token_ids",
        "cow_mamba",
        "include_req",
    ),
    "sglang.srt.constants.HEALTH_CHECK_RID_PREFIX": None,
    "sglang.srt.sampling.penaltylib.orchestrator.BatchedPenalizerOrchestrator": ("vocab_size", "batch", "penalizers"),
    "sglang.srt.mem_cache.common.release_kv_cache": ("req", "tree_cache", "is_insert"),
    "sglang.srt.mem_cache.radix_cache.RadixCache.cache_unfinished_req": ("self", "req", "chunked"),
    f"{_HICACHE}.__init__": ("self", "params", "server_args"),
    f"{_HICACHE}.write_backup": ("self", "node", "write_back"),
    f"{_HICACHE}.writing_check": ("self", "write_back", "finish_count"),
    f"{_HICACHE}.load_back": ("self", "node", "mem_quota"),
    f"{_HICACHE}.loading_check": ("self", "finish_count"),
    f"{_HICACHE}.check_hicache_events": ("self",),
    f"{_HICACHE}.ready_to_load_host_cache": ("self",),
    f"{_HICACHE}.reset": ("self",),
    "sglang.srt.mem_cache.evict_policy.EvictionStrategy.get_priority": ("self", "node"),
    "sglang.srt.managers.scheduler_components.output_sender.SenderWrapper.send_output": ("self", "output", "recv_obj"),
    "sglang.srt.sampling.sampling_params.SamplingParams.verify": ("self", "vocab_size"),
    "sglang.srt.managers.schedule_policy.CLIP_MAX_NEW_TOKENS": None,
    "sglang.srt.managers.cache_controller.device_module": None,
    "sglang.srt.mem_cache.pool_host.common.ALLOC_MEMORY_FUNCS": None,
    "sglang.srt.mem_cache.pool_host.base.HICACHE_HOST_MEMORY_RESERVE_BYTES": None,
}
"""By dotted name: the parameters of what is called or overridden; None for what only has to be there."""


def faults() -> list[str]:
    """One sentence for each seam that is not as expected."""
    version = importlib.metadata.version("sglang")
    found = []
    if version != SGLANG_VERSION:
        found.append(f"sglang {version} is installed, sglang=={SGLANG_VERSION} is required")
    for target, expected in SEAMS.items():
        try:
            seam = pkgutil.resolve_name(target)
        except (AttributeError, ImportError) as error:
            found.append(f"seam {target} is missing ({error})")
            continue
        if expected is not None and (parameters := tuple(inspect.signature(seam).parameters)) != expected:
            found.append(f"seam {target} takes ({', '.join(parameters)}), expected ({', '.join(expected)})")
    return found


def unsupported(server_args: Any) -> str | None:
    """A sentence on a flag with which one scheduler's decision is not the engine's; None: there is none."""
    for flag, given in (
        ("--tp-size", server_args.tp_size > 1 and not server_args.enable_dp_attention),
        ("--pp-size", server_args.pp_size > 1),
        ("--enable-dp-attention", server_args.enable_dp_attention),
        ("--disaggregation-mode", server_args.disaggregation_mode != "null"),
    ):
        if given:
            return f"{flag} is not supported with a policy; start with --policy stock"
    return None


def check() -> None:
    """End the process unless every seam is as expected."""
    if found := faults():
        print(
            "andes: cannot put a policy in charge of this SGLang:\n  "
            + "\n  ".join(found)
            + f"\nInstall sglang=={SGLANG_VERSION}, or start with --policy stock.",
            file=sys.stderr,
            flush=True,
        )
        os._exit(3)
