"""Rules and figures that the engine adapter and the simulator's replica share, so that both schedule alike.

Three groups: figures and rules of SGLang itself under their own names (:data:`SGLANG_RELEASE`; a test compares them with the
installed package), what we set differently while a policy is in charge, and the protocol between an engine and a policy: when
it is asked, what of its decision is applied, what happens when KV runs out. Plain values in and out; no SGLang import.
Lengths in tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Container, Iterable
from typing import Any, TypeVar

__all__ = [
    "ADMISSION_RESERVE_TOKENS", "HEALTH_CHECK_RID_PREFIX", "INIT_NEW_TOKEN_RATIO", "INT64", "KV_PRESSURE_STEPS",
    "MAX_CHOICES", "MAX_STOPS", "MIN_NEW_TOKEN_RATIO", "MIN_REPETITION_PENALTY", "PAGE_TOKENS",
    "PREFIX_LOOKUPS_PER_DECISION", "SGLANG_CLIP_MAX_NEW_TOKENS_ESTIMATION", "SGLANG_INIT_NEW_TOKEN_RATIO",
    "SGLANG_MIN_NEW_TOKEN_RATIO_FACTOR", "SGLANG_NEW_TOKEN_RATIO_DECAY_STEPS", "SGLANG_RELEASE",
    "SGLANG_RETRACT_DECODE_STEPS", "admissible", "admission_tokens", "asks_policy", "decayed_new_token_ratio",
    "is_health_check", "is_kv_pressure", "max_prefix_hit_tokens", "new_token_ratio_after_retraction", "off_device_mode",
    "parked_to_resume", "prefill_room_tokens", "prefix_lookup_rows", "prompt_makes_way", "recomputed_tokens",
    "retraction_victim", "running_bound", "steps_to_kv_pressure", "stock_retraction_rank",
]  # fmt: skip

T = TypeVar("T")

SGLANG_RELEASE = "0.5.23"
"""The release of SGLang that the figures and rules of this module are copied from."""

# SGLang's defaults: `sglang.srt.environ.envs`

SGLANG_CLIP_MAX_NEW_TOKENS_ESTIMATION = 4096
"""Tokens: at most this much of what a request may still generate is reserved when it is admitted."""
SGLANG_INIT_NEW_TOKEN_RATIO = 0.7
"""Share, without unit: how much of that reserve counts for a running request, at start and after idling."""
SGLANG_MIN_NEW_TOKEN_RATIO_FACTOR = 0.14
"""Factor, without unit: the smallest share is this times the first one."""
SGLANG_NEW_TOKEN_RATIO_DECAY_STEPS = 600
"""Decode steps without a retraction in which the share falls from the first to the smallest."""
SGLANG_RETRACT_DECODE_STEPS = 20
"""Decode steps that a retraction makes room for, for every request that stays."""

INIT_NEW_TOKEN_RATIO = SGLANG_INIT_NEW_TOKEN_RATIO
MIN_NEW_TOKEN_RATIO = SGLANG_INIT_NEW_TOKEN_RATIO * SGLANG_MIN_NEW_TOKEN_RATIO_FACTOR
PAGE_TOKENS = 1
"""Tokens: ``--page-size`` where the attention backend asks for no other; ``PrefillAdder`` reserves one page a request."""
HEALTH_CHECK_RID_PREFIX = "HEALTH_CHECK"
"""Request ids of the one-token requests that ``/health`` makes of an idle engine (``sglang.srt.constants``)."""

MAX_CHOICES = 128
"""Answers to one prompt (``n``), SGLang's bound of its OpenAI endpoints."""
INT64 = range(-(1 << 63), 1 << 63)
"""What tensors and messages between SGLang's processes can hold."""
MAX_STOPS = 64
"""``stop`` strings of a request, which are looked for after every token (our choice; OpenAI allows 4)."""
MIN_REPETITION_PENALTY = 0.01
"""Logits are divided by it; far smaller ones make infinite numbers of them, which end SGLang (our choice)."""

# What is different with a policy in charge

ADMISSION_RESERVE_TOKENS = 16
"""Tokens, in the place of :data:`SGLANG_CLIP_MAX_NEW_TOKENS_ESTIMATION`: a policy that can preempt needs no reserve for whole
answers, only room until it is asked again (twice :data:`KV_PRESSURE_STEPS`)."""
KV_PRESSURE_STEPS = 8
"""Decode steps: with free KV for fewer, a policy is asked although no request waits, so that it chooses who leaves before
KV runs out. Enough for the step in flight and the prefill that may follow it (our choice, not measured)."""
PREFIX_LOOKUPS_PER_DECISION = 1
"""Waiting requests whose prefix hit is refreshed at a decision: a look-up walks the radix tree, and a decision is made every
iteration."""


# SGLang's rules


def admission_tokens(uncached_tokens: int, remaining_tokens: int, clip_tokens: int) -> int:
    """KV tokens that must be free to admit a request (``PrefillAdder.add_one_req``): what it has to compute or load, at most
    ``clip_tokens`` of what it may still generate, and a page."""
    return uncached_tokens + min(max(remaining_tokens, 0), clip_tokens) + PAGE_TOKENS


def decayed_new_token_ratio(ratio: float, steps: int) -> float:
    """The share after ``steps`` decode steps without a retraction (``NewTokenRatioTracker.decay_step``)."""
    fall = steps * (INIT_NEW_TOKEN_RATIO - MIN_NEW_TOKEN_RATIO) / SGLANG_NEW_TOKEN_RATIO_DECAY_STEPS
    return max(MIN_NEW_TOKEN_RATIO, ratio - fall)


def new_token_ratio_after_retraction(output_tokens: int, max_new_tokens: int, requests: int) -> float:
    """The share after a retraction (``NewTokenRatioTracker.estimate_new_token_ratio_after_retract``).

    output_tokens, max_new_tokens: sums over the ``requests`` that stay.
    """
    return min(1.0, (output_tokens + SGLANG_RETRACT_DECODE_STEPS * requests) / (max_new_tokens + 1))


def stock_retraction_rank(output_tokens: int, prompt_tokens: int) -> tuple[int, int]:
    """Without a policy the request of smallest rank is retracted first: the shortest answer, of these the longest prompt
    (``ScheduleBatch._get_decode_retraction_order``)."""
    return output_tokens, -prompt_tokens


def is_health_check(rid: str) -> bool:
    """Whether the request is SGLang's own and no stream (``is_health_check_generate_req``)."""
    return rid.startswith(HEALTH_CHECK_RID_PREFIX)


def max_prefix_hit_tokens(context_tokens: int) -> int:
    """The longest prefix hit of a request of ``context_tokens`` (prompt and output): at least one token is computed."""
    return context_tokens - 1


def recomputed_tokens(prefilled_tokens: int) -> int:
    """Of the tokens prefilled for a returning request those that had been computed before: all but the last."""
    return max(0, prefilled_tokens - 1)


# Between engine and policy


def is_kv_pressure(free_tokens: int, running: int) -> bool:
    """Whether ``free_tokens`` (free or evictable KV) last for fewer than :data:`KV_PRESSURE_STEPS` steps of ``running``."""
    return free_tokens < KV_PRESSURE_STEPS * running


def steps_to_kv_pressure(free_tokens: int, running: int) -> int:
    """Decode steps of ``running`` > 0 requests after which :func:`is_kv_pressure` first holds; <= 0: it holds now."""
    return free_tokens // running - KV_PRESSURE_STEPS + 1


def asks_policy(waiting: int, parked: int, running: int, free_tokens: int, behind: int = 0) -> bool:
    """Whether there is anything to decide before this iteration: a request to admit or to resume, KV pressure, or one that
    runs while readers are ``behind``. waiting, parked: without those whose reader cannot receive."""
    return waiting > 0 or parked > 0 or is_kv_pressure(free_tokens, running) or (behind > 0 and running > 0)


def prefix_lookup_rows(cursor: int, waiting: int) -> list[int]:
    """Rows of the waiting queue whose prefix hit is refreshed at this decision, in turn; the last is the next ``cursor``."""
    return [(cursor + turn) % waiting for turn in range(1, min(waiting, PREFIX_LOOKUPS_PER_DECISION) + 1)]


def admissible(chosen: Iterable[T], waiting: Container[T], released: Container[T]) -> list[T]:
    """Of the requests ``chosen`` for admission those that wait, each once, in order. What was ``released`` at this decision
    is not admitted at the same one: its last token is not in its KV yet and would be generated twice."""
    return [request for request in dict.fromkeys(chosen) if request in waiting and request not in released]


def running_bound(max_running: int, chunk_tokens: int, mixed: bool, page_tokens: int = PAGE_TOKENS) -> int:
    """How many requests a policy may let run. Where they decode beside prefills (``mixed``) each takes a token of the chunk,
    and a page of it is left to prompts: otherwise a prompt would never be complete."""
    return min(max_running, max(1, chunk_tokens - page_tokens)) if mixed else max_running


def prefill_room_tokens(
    chunk_tokens: int, free_tokens: int, beside: int = 0, growth_tokens: int = 0, page_tokens: int = PAGE_TOKENS
) -> int:
    """Most tokens of the next prefill. Below 1 there is none: also a prompt that has begun waits, and the batch decodes.

    SGLang gives a prompt that has begun a whole chunk, whether that fits or not (``PrefillAdder.add_chunked_req``), and has
    not looked at the KV of those that decode ``beside`` it: ``growth_tokens`` for their step. free_tokens: free or evictable.
    """
    return min(chunk_tokens - beside, free_tokens - growth_tokens - (page_tokens - 1))


def parked_to_resume(
    running: int, parked: Collection[T], preempted: int, can_receive: Callable[[T], bool], *, waits: bool
) -> list[T]:
    """What is parked and runs, asked or not: no request runs, none could be admitted, and none was preempted just now. The
    engine must not idle while it holds requests that a reader can receive. waits: whether one of those waits for a prefill:
    where it cannot be admitted, even what no reader can receive goes on, and makes room at its end."""
    if running or preempted:
        return []
    return list(filter(can_receive, parked)) or (list(parked) if waits else [])


def retraction_victim(
    parked: Collection[T],
    running: Collection[T],
    age: Callable[[T], Any],
    may_leave: Callable[[T], bool] = lambda _: True,
    prefilling: bool = False,
) -> T | None:
    """Which request gives up its KV when a decode step no longer fits: the youngest parked one, without any the youngest
    running one, but never the last that runs (None) unless a prompt is half computed and goes on in its place.

    age: larger is younger. may_leave: False for a request that would not survive a preemption; without it each would.
    """
    if not parked and len(running) <= (0 if prefilling else 1):
        return None
    return max(filter(may_leave, parked or running), key=age, default=None)


def prompt_makes_way(prompt_yields: bool, victim_yields: bool | None) -> bool:
    """Whether the half computed prompt gives up its chunks in the place of the retraction victim (None: there is none): also
    where only the prompt has no reader."""
    return victim_yields is None or (prompt_yields and not victim_yields)


def off_device_mode(mode: str, on_host: bool) -> str:
    """How a request whose KV was given up is counted: a ``release`` whose KV is all in host memory, or on its way, is an
    ``offload``."""
    return "offload" if mode == "release" and on_host else mode
