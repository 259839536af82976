"""Everything of SGLang that the adapter overrides, replaces, calls or reads, checked at start.

SGLang logs what a plugin raises and goes on with its own scheduling; so a seam that is not as expected ends the process,
with a message that names it.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import inspect
import os
import pkgutil
import sys
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from andes_sglang.adapter.attributes import attributes_of

__all__ = [
    "ALTERNATIVES", "ATTRIBUTES", "OFFLOAD_RELEASES", "OFFLOAD_SEAMS", "REFUSED", "RELEASES", "SAFEGUARDS", "SEAMS",
    "UNIFIED_ATTRIBUTES", "UNIFIED_SEAMS", "check", "faults", "offload_fault", "safeguard_faults", "unsupported",
]  # fmt: skip

RELEASES = ("0.5.17", "0.5.21", "0.5.22", "0.5.23")
"""Releases of SGLang that the adapter was run on (docs/sglang-releases.md)."""
OFFLOAD_RELEASES = ("0.5.17", "0.5.22", "0.5.23")
"""Those of them with a cache that :mod:`~andes_sglang.adapter.host_tier` or :mod:`~andes_sglang.adapter.unified_host_tier`
extends."""

_MANAGERS = "sglang.srt.managers"
_SCHEDULER = f"{_MANAGERS}.scheduler.Scheduler"
_BATCH = f"{_MANAGERS}.schedule_batch.ScheduleBatch"
_REQ = f"{_MANAGERS}.schedule_batch.Req"
_COMMON = "sglang.srt.mem_cache.common"
_HICACHE = "sglang.srt.mem_cache.hiradix_cache.HiRadixCache"
_TOKENIZER = f"{_MANAGERS}.tokenizer_manager"
_UNIFIED = "sglang.srt.mem_cache.unified_radix_cache.UnifiedRadixCache"


class Either(NamedTuple):
    """Parameters of a function in releases that differ."""

    older: tuple[str, ...]
    newer: tuple[str, ...]


Parameters = tuple[str, ...] | Either | None

SEAMS: dict[str, Parameters] = {
    f"{_SCHEDULER}.get_new_batch_prefill": ("self", "running_batch"),
    f"{_SCHEDULER}.update_running_batch": ("self", "batch"),
    f"{_SCHEDULER}.run_batch": ("self", "batch", "pp_proxy_tensors"),
    f"{_SCHEDULER}.process_batch_result": ("self", "batch", "result"),
    f"{_SCHEDULER}.abort_request": ("self", "recv_req"),
    f"{_SCHEDULER}.is_fully_idle": Either(("self", "for_health_check"), ("self", "for_health_check", "ignore_waiting")),
    f"{_SCHEDULER}._add_request_to_queue": ("self", "req", "is_retracted"),
    f"{_SCHEDULER}._abort_on_queued_limit": ("self", "recv_req"),
    f"{_SCHEDULER}.pause_generation": ("self", "recv_req"),
    f"{_SCHEDULER}.init_schedule_policy": ("self",),
    f"{_SCHEDULER}.init_invariant_checker": ("self",),
    f"{_SCHEDULER}.init_load_inquirer": ("self",),
    f"{_SCHEDULER}.on_idle": ("self",),
    f"{_SCHEDULER}.get_internal_state": ("self", "recv_req"),
    f"{_SCHEDULER}.set_internal_state": ("self", "recv_req"),
    f"{_MANAGERS}.scheduler.NextBatchPlan": ("batch_to_run", "running_batch"),
    f"{_BATCH}.filter_batch": Either(
        ("self", "chunked_req_to_exclude", "keep_indices"), ("self", "reqs_to_exclude", "keep_indices")
    ),
    f"{_BATCH}.merge_batch": ("self", "other"),
    f"{_BATCH}.mix_with_running": ("self", "running_batch"),
    f"{_BATCH}.check_decode_mem": ("self", "selected_indices"),
    f"{_BATCH}.new_tokens_required_next_decode": ("self", "selected_indices"),
    f"{_REQ}.reset_for_retract": ("self",),
    f"{_REQ}.set_finish_with_abort": Either(("self", "error_msg"), ("self", "error_msg", "status_code", "err_type")),
    f"{_MANAGERS}.schedule_batch.BaseFinishReason.to_json": ("self",),
    f"{_COMMON}.release_kv_cache": Either(("req", "tree_cache", "is_insert"), ("req", "tree_cache", "checkpoint")),
    "sglang.srt.constants.HEALTH_CHECK_RID_PREFIX": None,
    f"{_TOKENIZER}.TokenizerManager.set_internal_state": ("self", "obj"),
    f"{_MANAGERS}.scheduler_components.idle_sleeper.IdleSleeper.maybe_sleep": ("self",),
    "sglang.srt.sampling.penaltylib.orchestrator.BatchedPenalizerOrchestrator": ("vocab_size", "batch", "penalizers"),
    "sglang.srt.sampling.sampling_params.SamplingParams.verify": ("self", "vocab_size"),
    f"{_MANAGERS}.scheduler_components.output_sender.SenderWrapper.send_output": ("self", "output", "recv_obj"),
    f"{_MANAGERS}.schedule_policy.CLIP_MAX_NEW_TOKENS": None,
    "sglang.srt.lora.lora_drainer.LoRADrainer.can_schedule": ("self", "req"),
    "sglang.srt.lora.lora_drainer.LoRADrainer.update_draining_state": ("self", "waiting_queue", "running_reqs"),
    "sglang.srt.lora.lora_manager.LoRAManager.validate_lora_batch": ("self", "lora_ids"),
}
"""By dotted name: the parameters of what is called or overridden; None for what only has to be there."""

ALTERNATIVES: tuple[dict[str, tuple[str, ...]], ...] = (
    {f"{_SCHEDULER}._abort_on_waiting_timeout": ("self",), f"{_SCHEDULER}._poll_timeout_aborts": ("self",)},
    {
        f"{_SCHEDULER}._abort_on_running_timeout": ("self", "running_batch"),
        f"{_SCHEDULER}._poll_timeout_aborts": ("self",),
    },
    {
        f"{_MANAGERS}.schedule_policy.match_prefix_for_req": (
            "tree_cache",
            "req",
            "token_ids",
            "cow_mamba",
            "include_req",
        ),
        f"{_COMMON}.match_kv_cache": ("req", "tree_cache", "token_ids", "cow_mamba", "max_prefix_len"),
    },
)
"""Of each group a release has one, by older and newer name."""

OFFLOAD_SEAMS: dict[str, Parameters] = {
    f"{_HICACHE}.__init__": ("self", "params", "server_args"),
    f"{_HICACHE}.write_backup": ("self", "node", "write_back"),
    f"{_HICACHE}.writing_check": ("self", "write_back", "finish_count"),
    f"{_HICACHE}.load_back": ("self", "node", "mem_quota"),
    f"{_HICACHE}.loading_check": ("self", "finish_count"),
    f"{_HICACHE}.check_hicache_events": ("self",),
    f"{_HICACHE}.ready_to_load_host_cache": ("self",),
    f"{_HICACHE}.reset": ("self",),
    "sglang.srt.mem_cache.radix_cache.RadixCache.cache_unfinished_req": ("self", "req", "chunked"),
    "sglang.srt.mem_cache.evict_policy.EvictionStrategy.get_priority": ("self", "node"),
    f"{_MANAGERS}.cache_controller.device_module": None,
    "sglang.srt.mem_cache.pool_host.common.ALLOC_MEMORY_FUNCS": None,
    "sglang.srt.mem_cache.pool_host.base.HICACHE_HOST_MEMORY_RESERVE_BYTES": None,
}
"""As :data:`SEAMS`; needed with ``--preemption-mode offload`` only."""

SAFEGUARDS: dict[str, Parameters] = {
    f"{_TOKENIZER}.TokenizerManager.generate_request": ("self", "obj", "request"),
    f"{_TOKENIZER}.TokenizerManager._validate_one_request": ("self", "obj", "input_ids"),
    f"{_TOKENIZER}.TokenizerManager.dump_requests_before_crash": ("self", "hostname"),
    f"{_TOKENIZER}.SignalHandler.running_phase_sigquit_handler": ("self", "signum", "frame"),
    "sglang.srt.server_args.ServerArgs.get_tokenizer_worker_class": ("self",),
    f"{_TOKENIZER}.kill_process_tree": ("parent_pid", "include_parent", "skip_pid", "wait_timeout"),
    f"{_MANAGERS}.io_struct.GenerateReqInput.contains_mm_input": ("self",),
    f"{_MANAGERS}.schedule_batch.Req._check_str_based_finish": ("self", "new_accepted_len"),
    f"{_MANAGERS}.schedule_batch.re": None,
    "sglang.srt.layers.logprob_processor.get_token_ids_logprobs": ("logprobs", "token_ids_logprobs", "no_copy_to_cpu"),
    "sglang.srt.constrained.llguidance_backend.GuidanceGrammar.fill_vocab_mask": ("self", "vocab_mask", "idx"),
    "sglang.srt.constrained.llguidance_backend.GuidanceGrammar.rollback": ("self", "num_tokens"),
    "sglang.srt.sampling.custom_logit_processor.CustomLogitProcessor.from_str": ("json_str",),
    "sglang.srt.sampling.sampling_params.sre_parse": None,
    "sglang.srt.sampling.sampling_params.SamplingParams.normalize": ("self", "tokenizer"),
}
"""What request checks and endings hook into, under every policy and none."""

UNIFIED_SEAMS: dict[str, Parameters] = {
    f"{_UNIFIED}.__init__": ("self", "params"),
    f"{_UNIFIED}.init_hicache": ("self", "server_args", "params"),
    f"{_UNIFIED}.checkpoint_into_tree": ("self", "req", "up_to", "kwargs"),
    f"{_UNIFIED}.is_backuped": ("self", "node_id"),
    f"{_UNIFIED}._execute_kv_backup": ("self", "node_id", "device_value", "comp_xfers", "sidecar_xfers"),
    f"{_UNIFIED}.flush_pending_backups": ("self",),
    f"{_UNIFIED}.writing_check": ("self", "write_back", "finish_count"),
    f"{_UNIFIED}.load_back": ("self", "node_id", "mem_quota", "req"),
    f"{_UNIFIED}.loading_check": ("self", "finish_count"),
    f"{_UNIFIED}.check_hicache_events": ("self",),
    f"{_UNIFIED}.ready_to_load_host_cache": ("self",),
    f"{_UNIFIED}.reset": ("self",),
    f"{_REQ}.refresh_fill_ids": ("self",),
    "sglang.srt.runtime_context.get_memory": (),
    "sglang.srt.runtime_context.get_parallel": (),
    "sglang.srt.mem_cache.l2_transfer.device_module": None,
    "sglang.srt.mem_cache.pool_host.common.ALLOC_MEMORY_FUNCS": None,
}
"""The same where the tree is ``UnifiedRadixCache``."""

UNIFIED_ATTRIBUTES: dict[str, str] = {
    _UNIFIED: "cache_controller load_back_threshold ongoing_load_back",
    "sglang.srt.mem_cache.hybrid_cache.hybrid_cache_controller.HybridCacheController": "ack_load_queue ack_write_queue "
    "l2_transfer_engine load_queue mem_pool_host",
    f"{_MANAGERS}.cache_controller.HiCacheAck": "finish_event num_tokens start_event timing_enabled",
    "sglang.srt.mem_cache.pool_host.group.HostPoolGroup": "anchor_entry available_size logical_size",
    "sglang.srt.mem_cache.l2_transfer.L2TransferEngine": "device_to_host_stream",
}

ATTRIBUTES: dict[str, str] = {
    _SCHEDULER: "attn_tp_group chunked_prefill_size chunked_req enable_hierarchical_cache enable_lora enable_overlap "
    "grammar_manager idle_sleeper invariant_checker is_mixed_chunk last_batch load_inquirer lora_drainer max_prefill_tokens "
    "max_running_requests max_total_num_tokens page_size policy req_to_token_pool result_queue running_batch server_args "
    "spec_algorithm token_to_kv_pool_allocator tp_worker tree_cache waiting_queue",
    _REQ: "cache_protected_len|kv kv custom_logit_processor extend_end|extend_range finished finished_reason host_hit_length "
    "hidden_states input_embeds last_node logprob logprob_start_len lora_id "
    "multimodal_inputs origin_input_ids output_ids positional_embed_overrides prefix_len|extend_range "
    "prefix_len|prefix_indices reasoning_tokens return_hidden_states return_indexer_topk return_logprob "
    "return_routed_experts return_sampling_mask rid sampling_params "
    "session session_generation time_stats to_finish",
    "sglang.srt.session.session_controller.Session": "streaming",
    f"{_MANAGERS}.schedule_batch.ScheduleBatch": "batch_is_full decoding_reqs extend_num_tokens forward_mode is_empty "
    "prefix_lens reqs sampling_info seq_lens_cpu spec_info",
    f"{_MANAGERS}.schedule_batch.ReqKvInfo": "kv_allocated_len",
    "sglang.srt.speculative.spec_info.SpeculativeAlgorithm": "is_ngram is_none",
    "sglang.srt.mem_cache.base_prefix_cache.MatchResult": "best_match_node device_prefix_len|device_indices host_hit_length "
    "last_device_node",
    "sglang.srt.mem_cache.base_prefix_cache.BasePrefixCache": "check_hicache_events evictable_size",
    "sglang.srt.mem_cache.allocator.base.BaseTokenToKVPoolAllocator": "available_size",
    "sglang.srt.mem_cache.memory_pool.ReqToTokenPool": "available_size",
    "sglang.srt.sampling.sampling_params.SamplingParams": "custom_params ignore_eos max_new_tokens",
    "sglang.srt.sampling.sampling_batch_info.SamplingBatchInfo": "penalizer_orchestrator",
    "sglang.srt.sampling.penaltylib.orchestrator.BatchedPenalizerOrchestrator": "device is_required penalizers "
    "vocab_size",
    "sglang.srt.sampling.penaltylib.frequency_penalty.BatchedFrequencyPenalizer": "cumulated_frequency_penalties "
    "frequency_penalties is_prepared",
    "sglang.srt.sampling.penaltylib.presence_penalty.BatchedPresencePenalizer": "cumulated_presence_penalties "
    "presence_penalties",
    "sglang.srt.sampling.penaltylib.repetition_penalty.BatchedRepetitionPenalizer": "cumulated_repetition_penalties "
    "repetition_penalties",
    "sglang.srt.sampling.penaltylib.min_new_tokens.BatchedMinNewTokensPenalizer": "len_output_tokens",
    "sglang.srt.model_executor.forward_batch_info.ForwardMode": "is_decode is_extend is_mixed",
    "sglang.srt.constrained.grammar_manager.GrammarManager": "get_ready_grammar_requests has_waiting_grammars",
    "sglang.srt.observability.req_time_stats.SchedulerReqTimeStats": "scheduler_recv_time trace_ctx",
    "sglang.srt.observability.trace.TraceReqContext": "trace_event",
    "sglang.srt.distributed.parallel_state.GroupCoordinator": "cpu_group rank_in_group ranks world_size",
    f"{_MANAGERS}.schedule_policy.SchedulePolicy": "calc_priority",
    f"{_MANAGERS}.scheduler_components.invariant_checker.SchedulerInvariantChecker": "get_running_batch",
    f"{_MANAGERS}.scheduler_components.load_inquirer.SchedulerLoadInquirer": "get_running_batch",
    f"{_MANAGERS}.io_struct.AbortReq": "abort_all rid",
    f"{_MANAGERS}.io_struct.PauseGenerationReqInput": "mode",
    f"{_MANAGERS}.io_struct.GetInternalStateReqOutput": "internal_state",
    f"{_MANAGERS}.io_struct.SetInternalStateReq": "server_args",
    f"{_MANAGERS}.io_struct.SetInternalStateReqOutput": "updated",
    "sglang.srt.server_args.ServerArgs": "attn_cp_size dcp_size disaggregation_mode dp_size enable_dp_attention "
    "enable_metrics enable_prefill_delayer enable_priority_scheduling min_free_slots_delay pp_size retraction_policy "
    "radix_eviction_policy schedule_policy speculative_algorithm tp_size",
}
"""By class: what instances must have; ``a|b`` for what one release calls a and another b."""


def faults(offload: bool = False) -> list[str]:
    """One sentence for each seam that is not as expected. offload: whether KV is to go to host memory."""
    functions, attributes = SEAMS | SAFEGUARDS, ATTRIBUTES
    if offload and importlib.util.find_spec("sglang.srt.mem_cache.hiradix_cache") is not None:
        functions = functions | OFFLOAD_SEAMS
    elif offload:
        functions, attributes = functions | UNIFIED_SEAMS, attributes | UNIFIED_ATTRIBUTES
    return [*_version_faults(), *_function_faults(functions), *_attribute_faults(attributes)]


def safeguard_faults() -> list[str]:
    """One sentence for each seam of :data:`SAFEGUARDS` that is not as expected."""
    return [fault for seam, expected in SAFEGUARDS.items() if (fault := _function_fault(seam, expected))]


def _version_faults() -> Iterator[str]:
    version = importlib.metadata.version("sglang")
    if version not in RELEASES:
        yield f"sglang {version} is installed; andes was run on {', '.join(RELEASES)}"


def _function_faults(seams: dict[str, Parameters]) -> Iterator[str]:
    for target, expected in seams.items():
        if fault := _function_fault(target, expected):
            yield fault
    for group in ALTERNATIVES:
        tried = [_function_fault(target, expected) for target, expected in group.items()]
        if None not in tried:
            yield " and ".join(filter(None, tried))


def _function_fault(target: str, expected: Parameters) -> str | None:
    try:
        seam = pkgutil.resolve_name(target)
    except (AttributeError, ImportError) as error:
        return f"seam {target} is missing ({error})"
    if expected is None:
        return None
    found = tuple(inspect.signature(seam).parameters)
    accepted = expected if isinstance(expected, Either) else (expected,)
    if found in accepted:
        return None
    return f"seam {target} takes ({', '.join(found)}), expected " + " or ".join(f"({', '.join(p)})" for p in accepted)


def _attribute_faults(attributes: dict[str, str]) -> Iterator[str]:
    for target, names in attributes.items():
        try:
            found = attributes_of(pkgutil.resolve_name(target))
        except (AttributeError, ImportError) as error:
            yield f"seam {target} is missing ({error})"
            continue
        for name in names.split():
            if not found.intersection(name.split("|")):
                yield f"seam {target} has no attribute {name.replace('|', ' or ')}"


def offload_fault(without: str | None = None) -> str | None:
    """A sentence where the installed SGLang has no cache that offload can extend, or not ``without`` a part of it; None: it
    has. One that is refused for another reason is not looked at."""
    version = importlib.metadata.version("sglang")
    if version not in RELEASES:
        return None
    if version not in OFFLOAD_RELEASES:
        return (
            f"--preemption-mode offload: not supported on sglang {version}; leave the flag out, or install sglang "
            f"{' or '.join(OFFLOAD_RELEASES)}"
        )
    if without is not None and version != OFFLOAD_RELEASES[0]:
        needed = OFFLOAD_RELEASES[0]
        return f"--offload-without {without}: needs sglang {needed}, and {version} is installed; leave the flag out"
    return None


_UNCHECKED = "requests then reach the scheduler without the checks of the HTTP server"
_WHEN = "it decides when a prompt is computed"
REFUSED: tuple[tuple[str, Any, str], ...] = (
    ("pp_size", 1, "the stages of a pipeline hold different batches at the same time, so no rank can decide for all"),
    ("enable_dp_attention", False, "its ranks wait for each other's prefills, which the policy of one would hold back"),
    ("attn_cp_size", 1, "context parallelism was never run with a policy"),
    ("dcp_size", 1, "context parallelism was never run with a policy"),
    ("disaggregation_mode", "null", "prefill and decode engines take no decision on each other's requests"),
    ("decoupled_spec_role", "null", "drafting and verifying engines take no decision on each other's requests"),
    ("enable_pdmux", False, "prompts and answers are then computed at the same time, in batches that no policy sees"),
    ("dllm_algorithm", None, "a diffusion model writes blocks, which SGLang schedules without asking a policy"),
    ("enable_hisparse", False, "KV is then moved between prompt and answer, where a policy would take streams off"),
    ("encoder_only", False, "such an engine writes no text"),
    ("use_ray", False, "Ray starts the schedulers, and they would not hear of the policy"),
    ("smg_grpc_mode", False, _UNCHECKED),
    ("grpc_mode", False, _UNCHECKED),
    ("schedule_policy", "fcfs", "it decides in which order requests are served"),
    ("retraction_policy", "length", "it decides who makes room when KV runs out"),
    ("enable_prefill_delayer", False, _WHEN),
    ("min_free_slots_delay", 0, _WHEN),
)
"""Fields of SGLang's ``ServerArgs`` that a policy refuses unless they are as usual, and why. A release that lacks one lacks
its flag."""


def unsupported(server_args: Any, offload: bool = False, own_time_outs: Sequence[str] = ()) -> str | None:
    """A sentence on a flag with which a policy's decision is not the engine's; None: there is none.

    offload: whether KV is to go to host memory in each rank's own order. own_time_outs: variables that are set, and read by
    each rank by its clock.
    """
    for name, usual, why in REFUSED:
        if (given := getattr(server_args, name, usual)) not in (usual, None):
            flag = f"--{name.replace('_', '-')}{'' if given is True else f' {given}'}"
            return f"{flag} is not supported with a policy: {why}; leave it out, or start with --policy stock"
    if os.environ.get("SGLANG_RUST_SERVER", "").lower() in ("true", "1", "yes", "y"):
        return (
            f"SGLANG_RUST_SERVER is not supported with a policy: {_UNCHECKED}; unset it, or start with --policy stock"
        )
    with_ranks = f"is not supported with a policy and --tp-size {server_args.tp_size}"
    if server_args.tp_size > 1 and offload:
        return (
            f"--preemption-mode offload {with_ranks} on this release of SGLang: each rank would evict by its own clock; "
            "leave one of the two out, or install sglang 0.5.22 or newer"
        )
    if server_args.tp_size > 1 and own_time_outs:
        return (
            f"{own_time_outs[0]} {with_ranks} on this release of SGLang: each rank would look at its own clock, and all hang "
            "where these differ; unset it, or install sglang 0.5.21 or newer"
        )
    return None


def check(offload: bool = False) -> None:
    """End the process unless every seam is as expected. offload: whether KV is to go to host memory."""
    if found := faults(offload):
        print(
            "andes: cannot put a policy in charge of this SGLang:\n  "
            + "\n  ".join(found)
            + f"\nInstall sglang {' or '.join(RELEASES)}, or start with --policy stock.",
            file=sys.stderr,
            flush=True,
        )
        os._exit(3)
