"""The SGLang plugin: inert in a server that ``andes serve`` has not started."""

from __future__ import annotations

import importlib.util
import logging
import os
import sys
import traceback
from functools import partial
from typing import Any

from andes_sglang.adapter import seams
from andes_sglang.adapter.options import ENVIRONMENT, PluginOptions

__all__ = ["register"]

log = logging.getLogger(__name__)
_LLGUIDANCE = "sglang.srt.constrained.llguidance_backend.GuidanceGrammar"


def register() -> None:
    """Entry point of ``sglang.srt.plugins``. SGLang logs exceptions here and goes on, so we end the process ourselves."""
    if not os.environ.get(ENVIRONMENT):
        return
    try:
        options = PluginOptions.from_env()
        if options.policy is not None:
            seams.check(offload=options.preemption_mode == "offload")
            _register_policy(options)
            _register_safeguards()
        elif found := seams.safeguard_faults():
            print(
                "andes: requests are not checked before they reach this SGLang:\n  " + "\n  ".join(found),
                file=sys.stderr,
            )
        else:
            _register_safeguards()
    except Exception:
        traceback.print_exc()
        print("andes: the plugin failed to load; not serving without the policy that was asked for", file=sys.stderr)
        sys.stderr.flush()
        os._exit(3)


def _to_its_worker(_sender: Any, output: Any, recv_obj: Any = None) -> None:
    """Of several tokenizer workers, the end of a request that waits is told to the one that has sent it; SGLang 0.5.17 tells
    it to none."""
    worker = getattr(recv_obj, "http_worker_ipc", None)
    if worker is not None and getattr(output, "http_worker_ipc", worker) is None:
        output.http_worker_ipc = worker


def _nothing_but_a_call(schema: Any, *_: Any, **__: Any) -> None:
    """Of the grammar for ``tool_choice: required``: a call is a name and arguments. llguidance, by the letter of JSON Schema,
    lets a model that comes to no end go on with members of its own, until ``max_tokens``; xgrammar does not."""
    schema["additionalProperties"] = False


def _allow_grammars_after_a_thought() -> None:
    """With ``--reasoning-parser`` SGLang (0.5.17 to 0.5.23) asks a grammar's backend for what llguidance's grammars have, and
    its backend has not: every request with a grammar is answered with 400."""
    from sglang.srt.constrained.llguidance_backend import GuidanceBackend, GuidanceGrammar

    for name in ("allocate_vocab_mask", "move_vocab_mask", "apply_vocab_mask"):
        if not hasattr(GuidanceBackend, name):
            setattr(GuidanceBackend, name, vars(GuidanceGrammar)[name])


def _no_logprobs_as_tensors(result: Any, logprobs: Any, *_: Any, no_copy_to_cpu: bool = False) -> None:
    """Of requests that ask for no token's logprobs beside some that do, SGLang 0.5.17 to 0.5.23 has a list where it takes a
    tensor, and its scheduler ends."""
    if no_copy_to_cpu:
        values = result[0]
        values[:] = [logprobs.new_empty(0) if isinstance(row, list) else row for row in values]


def _no_fault_in_a_batch(original: Any, grammar: Any, *args: Any) -> None:
    """Of llguidance: a grammar that has become too complex allows the end of its answer alone, and nothing else of a batch is
    concerned. SGLang raises between two steps where it asks grammars one by one, as with ``--reasoning-parser``."""
    try:
        original(grammar, *args)
    except ValueError as fault:
        log.warning("an answer ends: its grammar became too complex (%s)", str(fault).partition("<state>")[0].strip())


def _register_policy(options: PluginOptions) -> None:
    from sglang.srt.managers import schedule_policy
    from sglang.srt.plugins.hook_registry import HookRegistry, HookType

    from andes_sglang import expectations, protocol
    from andes_sglang.adapter.host_transfers import tier_of_release
    from andes_sglang.adapter.scheduler import QoEScheduler

    default = options.default_target

    def verify_expectations(result: Any, params: Any, vocab_size: int) -> None:
        expectations.parse(params.custom_params, default)

    schedule_policy.CLIP_MAX_NEW_TOKENS = protocol.ADMISSION_RESERVE_TOKENS
    HookRegistry.register(
        "sglang.srt.sampling.sampling_params.SamplingParams.verify", verify_expectations, HookType.AFTER
    )
    HookRegistry.register(
        "sglang.srt.managers.scheduler_components.output_sender.SenderWrapper.send_output",
        _to_its_worker,
        HookType.BEFORE,
    )
    HookRegistry.register("sglang.srt.managers.scheduler.Scheduler", QoEScheduler, HookType.REPLACE)
    if options.preemption_mode == "offload":
        HookRegistry.register(*tier_of_release(), HookType.REPLACE)


def _register_safeguards() -> None:
    """One request must not end or freeze the engine, under any policy; and where it has ended, streams end with it."""
    from sglang.srt.function_call import utils as calls
    from sglang.srt.managers import schedule_batch, tokenizer_manager
    from sglang.srt.plugins.hook_registry import HookRegistry, HookType

    from andes_sglang.adapter import endings, request_checks, stop_regex

    def check_fields(manager: Any, obj: Any, request: Any = None) -> None:
        request_checks.check_fields(obj, request)

    def check_values(manager: Any, obj: Any, input_ids: Any) -> None:
        loads = manager.server_args.enable_custom_logit_processor
        request_checks.check_values(manager.model_config, obj, input_ids, loads_processors=loads)

    def bound_stop_regex(result: Any, params: Any, tokenizer: Any) -> None:
        params.stop_regex_max_len = min(params.stop_regex_max_len, stop_regex.MAX_CHARACTERS)

    def end_connections(manager: Any, *_: Any, **__: Any) -> None:
        endings.end_connections(manager.server_args.port)

    if hasattr(calls, "_get_tool_schema"):
        HookRegistry.register(f"{calls.__name__}._get_tool_schema", _nothing_but_a_call, HookType.AFTER)
    if importlib.util.find_spec("llguidance") is not None:
        _allow_grammars_after_a_thought()
        for method in ("fill_vocab_mask", "rollback"):
            HookRegistry.register(f"{_LLGUIDANCE}.{method}", _no_fault_in_a_batch, HookType.AROUND)
    schedule_batch.re = stop_regex.LinearSearch
    tokenizer_manager.kill_process_tree = partial(endings.kill_children, tokenizer_manager.kill_process_tree)
    manager = "sglang.srt.managers.tokenizer_manager"
    for target, hook, kind in (
        (f"{manager}.TokenizerManager.generate_request", check_fields, HookType.BEFORE),
        (f"{manager}.TokenizerManager._validate_one_request", check_values, HookType.BEFORE),
        ("sglang.srt.sampling.sampling_params.SamplingParams.normalize", bound_stop_regex, HookType.AFTER),
        ("sglang.srt.layers.logprob_processor.get_token_ids_logprobs", _no_logprobs_as_tensors, HookType.AFTER),
        (f"{manager}.TokenizerManager.dump_requests_before_crash", end_connections, HookType.BEFORE),
        (f"{manager}.SignalHandler.running_phase_sigquit_handler", endings.end_after_crash, HookType.AFTER),
    ):
        HookRegistry.register(target, hook, kind)
