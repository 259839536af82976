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
    from andes_sglang.adapter.scheduler import QoEScheduler

    seams.check(offload=options.preemption_mode == "offload")
    default = options.default_target

    def verify_expectations(result: Any, params: Any, vocab_size: int) -> None:
        expectations.parse(params.custom_params, default)

    schedule_policy.CLIP_MAX_NEW_TOKENS = protocol.ADMISSION_RESERVE_TOKENS
    HookRegistry.register(
        "sglang.srt.sampling.sampling_params.SamplingParams.verify", verify_expectations, HookType.AFTER
    )
    HookRegistry.register("sglang.srt.managers.scheduler.Scheduler", QoEScheduler, HookType.REPLACE)
    if options.preemption_mode == "offload":
        from andes_sglang.adapter.host_tier import HostTier

        HookRegistry.register("sglang.srt.mem_cache.hiradix_cache.HiRadixCache", HostTier, HookType.REPLACE)
