"""The SGLang plugin: inert unless its options (set by ``andes serve``) name a policy."""

from __future__ import annotations

import os
import sys
import traceback
from typing import Any

from andes_sglang.adapter.options import PluginOptions

__all__ = ["register"]


def register() -> None:
    """Entry point of ``sglang.srt.plugins``. SGLang logs exceptions here and goes on, so we end the process ourselves."""
    try:
        options = PluginOptions.from_env()
        if options.policy is not None:
            _register(options)
    except Exception:
        traceback.print_exc()
        print("andes: the plugin failed to load; not serving without the policy that was asked for", file=sys.stderr)
        sys.stderr.flush()
        os._exit(3)


def _register(options: PluginOptions) -> None:
    from sglang.srt.managers import schedule_policy
    from sglang.srt.plugins.hook_registry import HookRegistry, HookType

    from andes_sglang import expectations, protocol
    from andes_sglang.adapter import seams
    from andes_sglang.adapter.host_transfers import tier_of_release
    from andes_sglang.adapter.scheduler import QoEScheduler

    seams.check(offload=options.preemption_mode == "offload")
    default = options.default_target

    def verify_expectations(result: Any, params: Any, vocab_size: int) -> None:
        expectations.parse(params.custom_params, default)

    def to_its_worker(_sender: Any, output: Any, recv_obj: Any = None) -> None:
        """Of several tokenizer workers, the end of a request that waits is told to the one that has sent it: SGLang 0.5.17
        tells it to none."""
        worker = getattr(recv_obj, "http_worker_ipc", None)
        if worker is not None and getattr(output, "http_worker_ipc", worker) is None:
            output.http_worker_ipc = worker

    schedule_policy.CLIP_MAX_NEW_TOKENS = protocol.ADMISSION_RESERVE_TOKENS
    HookRegistry.register(
        "sglang.srt.sampling.sampling_params.SamplingParams.verify", verify_expectations, HookType.AFTER
    )
    HookRegistry.register(
        "sglang.srt.managers.scheduler_components.output_sender.SenderWrapper.send_output",
        to_its_worker,
        HookType.BEFORE,
    )
    HookRegistry.register("sglang.srt.managers.scheduler.Scheduler", QoEScheduler, HookType.REPLACE)
    if options.preemption_mode == "offload":
        HookRegistry.register(*tier_of_release(), HookType.REPLACE)
