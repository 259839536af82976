"""What differs between the releases of SGLang that the adapter runs on (:data:`andes_sglang.adapter.seams.RELEASES`).

Each difference is met by what is there, not by a version number: a release that changes nothing here needs no line.
"""

from __future__ import annotations

import inspect
from types import SimpleNamespace
from typing import Any

from sglang.srt.environ import envs
from sglang.srt.managers.schedule_batch import ScheduleBatch
from sglang.srt.managers.scheduler import Scheduler
from sglang.srt.mem_cache import common

try:
    from sglang.srt.managers.schedule_policy import match_prefix_for_req as match_prefix
except ImportError:  # since 0.5.22

    def match_prefix(tree: Any, req: Any) -> Any:
        return common.match_kv_cache(req, tree)


__all__ = [
    "BLANK",
    "HICACHE_EVENTS_APART",
    "MIXED_PREFIX_BY_OUTPUT",
    "computed_tokens",
    "device_hit_tokens",
    "extend_tokens",
    "match_prefix",
    "own_time_outs",
    "protected_tokens",
    "release_kv",
]

BLANK = SimpleNamespace(reqs=())
"""In the place of a batch whose result has been processed early: since 0.5.22 SGLang asks it for its requests."""
HICACHE_EVENTS_APART = hasattr(Scheduler, "_process_hicache_events")
"""Whether SGLang looks after copies to host memory in every iteration (since 0.5.20), or when it looks for a prefill."""
MIXED_PREFIX_BY_OUTPUT = "enable_overlap" in ScheduleBatch.mix_with_running.__code__.co_names
"""Whether SGLang tells the KV of what decodes beside a prefill by its output, taken to lag under overlap (0.5.17), or by its
KV."""
_COMMON_TIME_OUTS = hasattr(Scheduler, "_poll_timeout_aborts")
_CHECKPOINT = "checkpoint" in inspect.signature(common.release_kv_cache).parameters


def own_time_outs() -> list[str]:
    """Time-outs that are set and that each rank of an engine reads by its own clock (until 0.5.19)."""
    names = ("SGLANG_REQ_WAITING_TIMEOUT", "SGLANG_REQ_RUNNING_TIMEOUT")
    return [] if _COMMON_TIME_OUTS else [name for name in names if getattr(envs, name).get() > 0]


def device_hit_tokens(match: Any) -> int:
    """Tokens of a prefix match whose KV is on the device."""
    return int(match.device_prefix_len) if hasattr(match, "device_prefix_len") else len(match.device_indices)


def release_kv(req: Any, tree: Any) -> None:
    """Give up the KV and the slot of ``req``, which has not finished; the tree keeps the KV. Since 0.5.22 a tree with Mamba
    states does not: there it is computed again, as after a retraction of SGLang's own."""
    if _CHECKPOINT:
        common.release_kv_cache(req, tree, checkpoint=not tree.supports_mamba())
    else:
        common.release_kv_cache(req, tree, is_insert=True)


def protected_tokens(req: Any) -> int:
    """Leading tokens of a request that holds its KV which are the radix tree's."""
    return int(req.cache_protected_len if hasattr(req, "cache_protected_len") else req.kv.cache_protected_len)


def extend_tokens(req: Any) -> int:
    """Tokens that ``req`` computes in the prefill that has just been formed."""
    if hasattr(req, "extend_range"):
        return req.extend_range.length if req.extend_range is not None else 0
    return req.extend_end - req.prefix_len if req.extend_end is not None else 0  # since 0.5.22


def computed_tokens(req: Any) -> int:
    """Tokens of ``req``, of which some chunks have been computed, whose KV is there."""
    return int(req.prefix_len) if hasattr(req, "prefix_len") else len(req.prefix_indices)
