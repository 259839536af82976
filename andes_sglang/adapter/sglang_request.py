"""What the adapter asks of one request of SGLang (``Req``) and of its KV in the radix tree.

SGLang's attributes and functions differ from release to release; those that concern a request are named here only.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from sglang.srt.managers.schedule_policy import match_prefix_for_req
from sglang.srt.mem_cache.common import release_kv_cache

__all__ = ["PrefixHit", "is_preemptible", "prefix_hit", "release_into_tree", "tree_node", "uncomputed_tokens"]

_NONE_IF_PREEMPTIBLE = (
    "lora_id", "session", "session_id", "multimodal_inputs", "input_embeds", "positional_embed_overrides",
)  # fmt: skip
_FALSE_IF_PREEMPTIBLE = (
    "custom_logit_processor", "return_logprob", "return_sampling_mask", "return_hidden_states", "return_routed_experts",
    "return_indexer_topk",
)  # fmt: skip
_ZERO_IF_PREEMPTIBLE = ("frequency_penalty", "presence_penalty", "min_new_tokens")
"""Attributes of ``Req`` and of its ``SamplingParams`` that ask for what does not survive a preemption."""


class PrefixHit(NamedTuple):
    """The longest prefix of a request in the radix tree: tokens on the device, then tokens in host memory only, and the last
    node of each part."""

    device_tokens: int
    host_tokens: int
    device_node: Any
    host_node: Any


def prefix_hit(tree: Any, req: Any) -> PrefixHit:
    """Counts as a use: what is found is evicted later."""
    match = match_prefix_for_req(tree, req)
    return PrefixHit(len(match.device_indices), match.host_hit_length, match.last_device_node, match.best_match_node)


def release_into_tree(tree: Any, req: Any) -> None:
    """Give up the KV and the slot of ``req``: its KV stays in the tree, unlocked, until others need the room."""
    release_kv_cache(req, tree, is_insert=True)
    req.reset_for_retract()


def tree_node(req: Any) -> Any:
    """Where the KV of a waiting request ends in the tree, as of its last look-up; None: not looked up."""
    if req.last_node is None:
        return None
    return req.best_match_node if req.host_hit_length else req.last_node


def uncomputed_tokens(req: Any) -> int:
    """What is left to compute of the context of ``req``, a prompt of which some chunks have been computed."""
    computed = req.prefix_len if hasattr(req, "prefix_len") else len(req.prefix_indices)
    return int(len(req.origin_input_ids) + len(req.output_ids) - computed)


def is_preemptible(req: Any, spec_algorithm: Any) -> bool:
    """Whether ``req`` can be stopped and go on unchanged. Otherwise it runs to its end.

    It cannot with LoRA, sessions, multimodal input, input embeddings, logprobs, penalties, ``min_tokens``, custom logit
    processors, sampling masks, hidden states, routed experts, or under speculative decoding.
    """
    return bool(
        spec_algorithm.is_none()
        and all(getattr(req, name) is None for name in _NONE_IF_PREEMPTIBLE)
        and not any(getattr(req, name) for name in _FALSE_IF_PREEMPTIBLE)
        and not any(getattr(req.sampling_params, name) for name in _ZERO_IF_PREEMPTIBLE)
        and req.sampling_params.repetition_penalty in (None, 1.0)
    )
