"""What the adapter asks of one request of SGLang (``Req``) and of its KV in the radix tree.

Those that differ from release to release are in :mod:`andes_sglang.adapter.compat`.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from sglang.srt.sampling.custom_logit_processor import CustomLogitProcessor, DisallowedTokensLogitsProcessor

from andes_sglang.adapter.compat import computed_tokens, device_hit_tokens, match_prefix, release_kv

__all__ = ["PrefixHit", "is_preemptible", "prefix_hit", "release_into_tree", "tree_node", "uncomputed_tokens"]

_NONE_IF_PREEMPTIBLE = ("session_generation", "multimodal_inputs", "input_embeds", "positional_embed_overrides")
_FALSE_IF_PREEMPTIBLE = ("return_sampling_mask", "return_routed_experts", "return_indexer_topk")
"""Attributes of ``Req`` that ask for what does not survive a preemption."""
STATELESS = "andes_stateless"
"""The class attribute with which a custom logit processor says that it looks at nothing but logits and ``custom_params``."""


class PrefixHit(NamedTuple):
    """The longest prefix of a request in the radix tree: tokens on the device, then tokens in host memory only, and the last
    node of each part."""

    device_tokens: int
    host_tokens: int
    device_node: Any
    host_node: Any


def prefix_hit(tree: Any, req: Any) -> PrefixHit:
    """Counts as a use: what is found is evicted later."""
    match = match_prefix(tree, req)
    return PrefixHit(device_hit_tokens(match), match.host_hit_length, match.last_device_node, match.best_match_node)


def release_into_tree(tree: Any, req: Any) -> None:
    """Give up the KV and the slot of ``req``: its KV stays in the tree, unlocked, until others need the room.

    The logprobs of a prompt that has been computed are not wanted again: to get them SGLang would leave the tree's KV aside.
    The hidden state of a last token that is to have a successor is no longer the last.
    """
    release_kv(req, tree)
    if req.return_logprob and req.logprob.input_token_logprobs_val is not None:
        req.logprob_start_len = -1
    if req.return_hidden_states:
        req.hidden_states.clear()
    req.reset_for_retract()


def tree_node(req: Any) -> Any:
    """Where the KV of a waiting request ends in the tree, as of its last look-up; None: not looked up."""
    if req.last_node is None:
        return None
    return req.best_match_node if req.host_hit_length else req.last_node


def uncomputed_tokens(req: Any) -> int:
    """What is left to compute of the context of ``req``, a prompt of which some chunks have been computed."""
    return len(req.origin_input_ids) + len(req.output_ids) - computed_tokens(req)


def is_preemptible(req: Any, spec_algorithm: Any) -> bool:
    """Whether ``req`` can be stopped and go on unchanged. Otherwise it runs to its end.

    It cannot with a session that keeps its KV between turns, multimodal input, input embeddings, a custom logit processor
    that may have a state, sampling masks, hidden states but the last, routed experts, nor under a speculative decoding
    of which more is kept than tokens.
    """
    return bool(
        _survives_drafts(req, spec_algorithm)
        and all(getattr(req, name) is None for name in _NONE_IF_PREEMPTIBLE)
        and not any(getattr(req, name) for name in _FALSE_IF_PREEMPTIBLE)
        and (req.session is None or not req.session.streaming)
        and req.return_hidden_states in (False, None, "last")
        and (not req.custom_logit_processor or _is_stateless(req.custom_logit_processor))
    )


def _is_stateless(code: str) -> bool:
    """Of a custom logit processor that SGLang has loaded already, and keeps."""
    kind = type(CustomLogitProcessor.from_str(code))
    return kind is DisallowedTokensLogitsProcessor or getattr(kind, STATELESS, False) is True


def _survives_drafts(req: Any, algorithm: Any) -> bool:
    """N-grams draft from tokens alone. But SGLang then counts penalties once a step, whatever was accepted, and counted again
    they would come to more."""
    params = req.sampling_params
    counted = params.frequency_penalty or params.presence_penalty or params.min_new_tokens
    plain = not counted and params.repetition_penalty == 1.0 and not req.return_hidden_states
    return bool(algorithm.is_none() or (algorithm.is_ngram() and plain))
