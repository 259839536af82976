"""What the adapter asks of one request of SGLang (``Req``) and of its KV in the radix tree.

SGLang's attributes and functions differ from release to release; those that concern a request are named here only.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from sglang.srt.managers.schedule_policy import match_prefix_for_req
from sglang.srt.mem_cache.common import release_kv_cache

__all__ = ["PrefixHit", "is_preemptible", "prefix_hit", "release_into_tree", "tree_node"]


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


def is_preemptible(req: Any, spec_algorithm: Any) -> bool:
    """Whether ``req`` can be stopped and go on unchanged.

    It cannot with LoRA, sessions, multimodal input, input embeddings, logprobs, penalties, ``min_tokens``, custom logit
    processors, sampling masks, hidden states, routed experts, or under speculative decoding: such a request runs to its end.
    """
    params = req.sampling_params
    return bool(
        spec_algorithm.is_none()
        and req.lora_id is None
        and req.session is None
        and req.session_id is None
        and req.multimodal_inputs is None
        and req.input_embeds is None
        and req.positional_embed_overrides is None
        and not req.custom_logit_processor
        and not req.return_logprob
        and not req.return_sampling_mask
        and not req.return_hidden_states
        and not req.return_routed_experts
        and not req.return_indexer_topk
        and not params.frequency_penalty
        and not params.presence_penalty
        and params.repetition_penalty in (None, 1.0)
        and not params.min_new_tokens
    )
