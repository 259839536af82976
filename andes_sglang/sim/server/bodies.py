"""Request bodies as SGLang 0.5.23 reads them: ``read_completion(body, limits)`` and its like give an :class:`AnswerRequest`.

What a simulated model cannot do is refused with the field and its value, never ignored.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from andes_sglang import expectations, protocol
from andes_sglang.expectations import ReaderExpectation
from andes_sglang.qoe import QoETarget
from andes_sglang.sim.server.text import SimulatedPrompt, answer_tokens, of_ids, of_text

__all__ = [
    "AnswerRequest", "BadRequestError", "Limits", "Thought", "chat_prompt", "prompts_of", "read_chat", "read_completion",
    "read_generate", "read_messages", "read_responses",
]  # fmt: skip


class BadRequestError(ValueError):
    """What a client got wrong; the text names field and value."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What the engine allows and assumes. Lengths in tokens. adapters: names of its LoRA adapters."""

    context_tokens: int
    kv_tokens: int
    mean_answer_tokens: float
    target: QoETarget
    adapters: tuple[str, ...] = ()
    mean_thought_tokens: float = 0.0


@dataclass(frozen=True, slots=True)
class Thought:
    """What comes before an answer. mean_tokens: 0, nothing; budget_tokens: no more than that; separate: it is kept out of the
    answer's text."""

    mean_tokens: float = 0.0
    budget_tokens: int | None = None
    separate: bool = True

    def tokens(self, seed: int) -> int:
        """Its length before the answer to ``seed``, end of the thought included; 0 without one."""
        if not self.mean_tokens:
            return 0
        drawn = answer_tokens(seed + 1, self.mean_tokens)
        return drawn if self.budget_tokens is None else min(drawn, max(1, self.budget_tokens))


@dataclass(frozen=True, slots=True)
class AnswerRequest:
    """A request for ``n`` answers to each of ``prompts``. max_tokens: None, no limit but the context's. adapter: LoRA adapter
    that answers; empty: none."""

    model: str
    prompts: tuple[SimulatedPrompt, ...]
    n: int
    max_tokens: int | None
    min_tokens: int
    stop: tuple[str, ...]
    ignore_eos: bool
    keep_stop: bool
    echo: bool
    seed: int
    stream: bool
    include_usage: bool
    continuous_usage: bool
    expectation: ReaderExpectation
    rid: str | None
    adapter: str = ""
    thought: Thought = Thought()


_TEXT_PARTS = ("text", "input_text", "output_text")
_UNSIMULATED = (
    "logprobs", "top_logprobs", "return_logprob", "response_format", "json_schema", "regex", "ebnf", "structural_tag",
    "stop_regex", "stop_token_ids", "logit_bias", "lora_path", "session_id", "session_params", "return_hidden_states",
    "return_routed_experts", "custom_logit_processor", "input_embeds", "image_data", "video_data", "audio_data", "suffix",
)  # fmt: skip
_RANGES = {
    "temperature": (0.0, math.inf, ">= 0"),
    "top_p": (0.0, 1.0, "in (0, 1]"),
    "min_p": (0.0, 1.0, "in [0, 1]"),
    "frequency_penalty": (-2.0, 2.0, "in [-2, 2]"),
    "presence_penalty": (-2.0, 2.0, "in [-2, 2]"),
    "repetition_penalty": (protocol.MIN_REPETITION_PENALTY, 2.0, f"in [{protocol.MIN_REPETITION_PENALTY}, 2]"),
}
"""Sampling has no effect on a simulated model, but a value that SGLang refuses is refused here."""


def read_completion(body: Mapping[str, Any], limits: Limits) -> AnswerRequest:
    """A body of ``/v1/completions``."""
    if "prompt" not in body:
        raise BadRequestError("prompt: field required")
    return _read(body, body, prompts_of(body["prompt"], "prompt"), _whole(body, "max_tokens", 16), limits)


def read_chat(body: Mapping[str, Any], limits: Limits) -> AnswerRequest:
    """A body of ``/v1/chat/completions``."""
    prompt = chat_prompt(body)
    limit = _whole(body, "max_completion_tokens", None)
    limit = limit if limit is not None else _whole(body, "max_tokens", None)
    return _thinking(body, limits, _read(body, body, (prompt,), limit, limits))


def read_messages(body: Mapping[str, Any], limits: Limits) -> AnswerRequest:
    """A body of ``/v1/messages``."""
    limit = _whole(body, "max_tokens", None)
    if limit is None:
        raise BadRequestError("max_tokens: field required")
    asked = {**body, "stop": body.get("stop_sequences")}
    return _thinking(body, limits, _read(asked, asked, (chat_prompt(body),), limit, limits))


def read_responses(body: Mapping[str, Any], limits: Limits) -> AnswerRequest:
    """A body of ``/v1/responses``."""
    given = body.get("input")
    messages = [{"role": "user", "content": given}] if isinstance(given, str) else given
    asked = {**body, "messages": messages, "system": body.get("instructions"), "rid": body.get("request_id")}
    limit = _whole(body, "max_output_tokens", None)
    return _thinking(body, limits, _read(asked, asked, (chat_prompt(asked),), limit, limits))


def _thinking(body: Mapping[str, Any], limits: Limits, asked: AnswerRequest) -> AnswerRequest:
    """``asked`` of a model that thinks before it answers, unless the chat template is told that it does not."""
    template = body.get("chat_template_kwargs") or {}
    if not isinstance(template, dict):
        raise BadRequestError(f"chat_template_kwargs must be an object, got {template!r}")
    if not limits.mean_thought_tokens or template.get("enable_thinking") is False:
        return asked
    budget = (body.get("custom_params") or {}).get("thinking_budget")
    whole = isinstance(budget, int) and not isinstance(budget, bool)
    separate = _flag(body, "separate_reasoning") if body.get("separate_reasoning") is not None else True
    return replace(asked, thought=Thought(limits.mean_thought_tokens, budget if whole else None, separate))


def chat_prompt(body: Mapping[str, Any]) -> SimulatedPrompt:
    """What the model reads of a conversation."""
    messages = body.get("messages")
    if not isinstance(messages, list):
        raise BadRequestError(f"messages must be a list, got {messages!r}")
    if not messages:
        raise BadRequestError("Messages cannot be empty.")
    if body.get("tool_choice", "auto") not in ("auto", "none", {"type": "auto"}, {"type": "none"}):
        raise BadRequestError(f"tool_choice {body['tool_choice']!r} is not simulated: the answer is always text")
    parts = [json.dumps(body["tools"], sort_keys=True)] if body.get("tools") else []
    if body.get("system"):
        parts.append(_message({"role": "system", "content": body["system"]}, "system"))
    parts += [_message(message, f"messages[{k}]") for k, message in enumerate(messages)]
    if not (_flag(body, "continue_final_message") and messages[-1]["role"] == "assistant"):
        parts.append("<|assistant|>")
    return of_text("".join(parts))


def read_generate(body: Mapping[str, Any], limits: Limits) -> AnswerRequest:
    """A body of SGLang's own ``/generate``."""
    given = [name for name in ("text", "input_ids") if body.get(name) is not None]
    if len(given) != 1:
        raise BadRequestError("Either text, input_ids or input_embeds should be provided.")
    sampling = body.get("sampling_params") or {}
    if not isinstance(sampling, dict):
        raise BadRequestError(f"sampling_params must be an object, got {sampling!r}")
    return _read(body, sampling, prompts_of(body[given[0]], given[0]), _whole(sampling, "max_new_tokens", 128), limits)


def _read(
    body: Mapping[str, Any],
    sampling: Mapping[str, Any],
    prompts: tuple[SimulatedPrompt, ...],
    max_tokens: int | None,
    limits: Limits,
) -> AnswerRequest:
    _check_simulated(body, sampling)
    _check_ranges(sampling)
    options = body.get("stream_options") or {}
    if not isinstance(options, dict):
        raise BadRequestError(f"stream_options must be an object, got {options!r}")
    for prompt in prompts:
        _check_length(prompt.tokens, max_tokens, limits)
    n = _whole(sampling, "n", 1) or 1
    if n > protocol.MAX_CHOICES:
        raise BadRequestError(f"n must be in [1, {protocol.MAX_CHOICES}], got {n}")
    min_tokens = _whole(sampling, "min_tokens" if sampling is body else "min_new_tokens", 0, low=0) or 0
    if max_tokens is not None and min_tokens > max_tokens:
        raise BadRequestError(f"min_tokens must be in [0, max_tokens ({max_tokens})], got {min_tokens}")
    rid, model = _text(body, "rid"), _text(body, "model")
    return AnswerRequest(
        model=model or "default",
        prompts=prompts,
        n=n,
        max_tokens=max_tokens,
        min_tokens=min_tokens,
        stop=_stop(sampling.get("stop")),
        ignore_eos=_flag(sampling, "ignore_eos"),
        keep_stop=_flag(sampling, "no_stop_trim"),
        echo=_flag(body, "echo"),
        seed=_whole(sampling, "seed" if sampling is body else "sampling_seed", 0, low=None) or 0,
        stream=_flag(body, "stream"),
        include_usage=_flag(options, "include_usage", "stream_options."),
        continuous_usage=_flag(options, "continuous_usage_stats", "stream_options."),
        expectation=_expectation(sampling.get("custom_params", body.get("custom_params")), limits.target),
        rid=rid,
        adapter=_adapter(model or "", limits),
    )


def _adapter(model: str, limits: Limits) -> str:
    """The adapter of ``MODEL:ADAPTER``. Like SGLang, which takes any other name for its model's own."""
    adapter = model.partition(":")[2].strip()
    if adapter and adapter not in limits.adapters:
        loaded = ", ".join(limits.adapters) or "none"
        raise BadRequestError(f"Got LoRA adapter that has never been loaded: {adapter}. All loaded adapters: {loaded}.")
    return adapter


def _check_simulated(body: Mapping[str, Any], sampling: Mapping[str, Any]) -> None:
    for name in _UNSIMULATED:
        if not (value := body.get(name) or sampling.get(name)):
            continue
        if name == "response_format" and value == {"type": "text"}:
            continue
        raise BadRequestError(f"{name} is not simulated (value {value!r}); leave it out")


def _check_ranges(sampling: Mapping[str, Any]) -> None:
    for name, (low, high, says) in _RANGES.items():
        value = _number(sampling, name)
        open_low = "(" in says
        if value is not None and not (low < value <= high if open_low else low <= value <= high):
            raise BadRequestError(f"{name} must be {says}, got {value!r}")


def _expectation(custom_params: Any, default: QoETarget) -> ReaderExpectation:
    try:
        return expectations.parse(custom_params, default)
    except ValueError as error:
        raise BadRequestError(str(error)) from None


def _check_length(prompt_tokens: int, max_tokens: int | None, limits: Limits) -> None:
    if prompt_tokens >= limits.context_tokens:
        raise BadRequestError(
            f"The input ({prompt_tokens} tokens) is longer than the model's context length ({limits.context_tokens} tokens)."
        )
    if max_tokens is not None and prompt_tokens + max_tokens > limits.context_tokens:
        raise BadRequestError(
            f"Requested token count exceeds the model's maximum context length of {limits.context_tokens} tokens. You "
            f"requested a total of {prompt_tokens + max_tokens} tokens: {prompt_tokens} tokens from the input messages and "
            f"{max_tokens} tokens for the completion. Please reduce the number of tokens in the input messages or the "
            "completion to fit within the limit."
        )
    if prompt_tokens >= limits.kv_tokens:
        raise BadRequestError(
            f"Input length ({prompt_tokens} tokens) exceeds the maximum allowed length ({limits.kv_tokens - 1} tokens)."
        )


def prompts_of(value: Any, name: str) -> tuple[SimulatedPrompt, ...]:
    """One prompt or several, as text or as token ids."""
    several = value if isinstance(value, list) and value and not _is_id(value[0]) else [value]
    if not value or not all(several):
        raise BadRequestError("Prompt cannot be empty")
    prompts = []
    for prompt in several:
        if isinstance(prompt, str):
            prompts.append(of_text(prompt))
        elif isinstance(prompt, list) and all(_is_id(k) and 0 <= k < 1 << 31 for k in prompt):
            prompts.append(of_ids(prompt))
        else:
            raise BadRequestError(f"{name} must be text, token ids, or a list of either, got {str(prompt)[:80]!r}")
    return tuple(prompts)


def _message(message: Any, where: str) -> str:
    """One message as the model reads it."""
    if not isinstance(message, dict) or not isinstance(message.get("role"), str):
        raise BadRequestError(
            f"{where}.role must be a string, got {message.get('role') if isinstance(message, dict) else message!r}"
        )
    content = message.get("content")
    if isinstance(content, list):
        texts = []
        for k, part in enumerate(content):
            if (
                not isinstance(part, dict)
                or part.get("type") not in _TEXT_PARTS
                or not isinstance(part.get("text"), str)
            ):
                kind = part.get("type") if isinstance(part, dict) else part
                raise BadRequestError(f"{where}.content[{k}]: only text is simulated, got {kind!r}")
            texts.append(part["text"])
        content = "".join(texts)
    elif content is None and message.get("tool_calls"):
        content = json.dumps(message["tool_calls"], sort_keys=True)
    if content is None:
        content = ""
    if not isinstance(content, str):
        raise BadRequestError(f"{where}.content must be text, got {content!r}")
    return f"<|{message['role']}|>{content}"


def _stop(value: Any) -> tuple[str, ...]:
    stops = [value] if isinstance(value, str) else value or []
    if not isinstance(stops, list) or not all(isinstance(stop, str) for stop in stops):
        raise BadRequestError(f"stop must be a string or a list of strings, got {value!r}")
    if len(stops) > protocol.MAX_STOPS:
        raise BadRequestError(f"stop must have at most {protocol.MAX_STOPS} entries, got {len(stops)}")
    return tuple(stop for stop in stops if stop)


def _is_id(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _whole(body: Mapping[str, Any], name: str, default: int | None, low: int | None = 1) -> int | None:
    value = body.get(name)
    if value is None:
        return default
    if not _is_id(value) or (low is not None and value < low):
        raise BadRequestError(f"{name} must be a whole number{f' >= {low}' if low is not None else ''}, got {value!r}")
    if value not in protocol.INT64:
        raise BadRequestError(f"{name} must fit into 64 bits, got {value}")
    return int(value)


def _number(body: Mapping[str, Any], name: str) -> float | None:
    value = body.get(name)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise BadRequestError(f"{name} must be a number, got {value!r}")
    return float(value)


def _text(body: Mapping[str, Any], name: str) -> str | None:
    value = body.get(name)
    if value is not None and not isinstance(value, str):
        raise BadRequestError(f"{name} must be a string, got {value!r}")
    return value


def _flag(body: Mapping[str, Any], name: str, where: str = "") -> bool:
    value = body.get(name)
    if value is None:
        return False
    if not isinstance(value, bool):
        raise BadRequestError(f"{where}{name} must be true or false, got {value!r}")
    return value
