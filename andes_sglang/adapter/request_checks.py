"""What a request asks of SGLang, checked in the HTTP process: what would end, freeze or confuse its scheduler is refused
there with a 400 that names field and value.

Every endpoint goes through ``TokenizerManager.generate_request`` (:func:`check_fields`: types, before SGLang splits a batch)
and, one prompt at a time, through ``_validate_one_request`` (:func:`check_values`: against model and vocabulary).
"""

from __future__ import annotations

import math
from array import array
from collections.abc import Container, Iterable, Mapping
from functools import cache
from typing import Any, get_type_hints

import msgspec
from sglang.srt.managers.io_struct import SessionParams
from sglang.srt.sampling.custom_logit_processor import CustomLogitProcessor
from sglang.srt.sampling.sampling_params import SamplingParams

from andes_sglang import expectations, protocol
from andes_sglang.adapter import stop_regex

__all__ = ["RequestRefusedError", "check_fields", "check_values"]


_A_PROMPT = (
    "rid", "sampling_params", "return_logprob", "logprob_start_len", "top_logprobs_num", "lora_path",
    "custom_logit_processor", "bootstrap_host", "bootstrap_port", "bootstrap_room",
)  # fmt: skip
"""Fields that are one value, or a list with one for each prompt."""
_RANGES = {
    "max_new_tokens": (0, protocol.INT64[-1]),
    "n": (1, protocol.MAX_CHOICES),
    "top_k": (-1, (1 << 31) - 1),
    "stream_interval": (1, protocol.INT64[-1]),
    "repetition_penalty": (protocol.MIN_REPETITION_PENALTY, 2.0),
}
"""Of sampling parameters, where SGLang checks none, or none that its tensors can hold (32 bits)."""
_MAX_BIAS = 1e9
"""Of a logit, either way: far from the largest float32 at every temperature (our choice; OpenAI allows 100)."""
_MAX_DEPTH = 32
"""Of objects and arrays in ``custom_params``, which Python's pickle descends into."""
_SET_BY_SGLANG = ("is_normalized", "stop_strs", "stop_regex_strs", "stop_str_max_len", "stop_regex_max_len")


class RequestRefusedError(ValueError):
    """What a client got wrong; most of SGLang's endpoints answer a ``ValueError`` with 400, for the others
    :mod:`andes_sglang.adapter.http_workers` does."""


def check_fields(obj: Any, request: Any = None) -> None:
    """``obj``: SGLang's ``GenerateReqInput`` or ``EmbeddingReqInput`` as it came; ``request``: the HTTP request, if any.
    Raises :class:`RequestRefusedError`."""
    _carry_custom_params(obj, request)
    _check_lengths(obj)
    for params in _listed(obj.sampling_params):
        _check_types("sampling_params", params, _sampling_types())
        _check_ranges(params)
        if _is_deeper(params.get("custom_params"), _MAX_DEPTH):
            raise RequestRefusedError(f"custom_params: nested deeper than {_MAX_DEPTH} levels")
    if isinstance(getattr(obj, "positional_embed_overrides", None), dict | list | str | int | float):
        raise RequestRefusedError("positional_embed_overrides cannot be given in JSON")
    if getattr(obj, "session_params", None):
        types = get_type_hints(SessionParams)
        _check_types("session_params", obj.session_params, types)
        _check_names("session_params", obj.session_params, types)


def _carry_custom_params(obj: Any, request: Any) -> None:
    """``custom_params`` at the top of a body of which SGLang's endpoint does not know the field. A thought that the body asks
    for as a part of the text is shown."""
    body = getattr(request, "_json", None)
    if not isinstance(body, dict):
        return
    shown = body.get("separate_reasoning") is False
    if body.get("custom_params") is None and not shown:
        return
    if obj.sampling_params is None:
        obj.sampling_params = {}
    for params in _listed(obj.sampling_params):
        if isinstance(params, dict) and params.get("custom_params") is None:
            params["custom_params"] = body.get("custom_params")
        if shown and isinstance(params, dict):
            params["custom_params"] = expectations.with_reasoning_shown(params["custom_params"])


def _check_lengths(obj: Any) -> None:
    prompts = next((given for given in (obj.text, obj.input_ids, obj.input_embeds) if given is not None), None)
    first = prompts[0] if isinstance(prompts, list) and prompts else None
    if prompts is obj.input_embeds and first:
        first = first[0]
    size = len(prompts) if isinstance(prompts, list) and isinstance(first, str | list) else None
    for name in _A_PROMPT:
        value = getattr(obj, name, None)
        if isinstance(value, list) and len(value) != size:
            said = "a single prompt" if size is None else f"{size} prompts"
            raise RequestRefusedError(f"{name}: a list of {len(value)} for {said}")


@cache
def _sampling_types() -> Mapping[str, Any]:
    """As SGLang declares them; custom parameters may be nested deeper."""
    declared = get_type_hints(SamplingParams)
    return {name: declared[name] for name in declared if name not in _SET_BY_SGLANG} | {"custom_params": dict | None}


def _check_types(where: str, given: Any, types: Mapping[str, Any]) -> None:
    """``given``: an object with values of ``types``, or null, by name."""
    if not isinstance(given, dict):
        raise RequestRefusedError(f"{where} must be an object, got {_shown(given)}")
    for name, value in given.items():
        if value is None or name not in types:
            continue
        try:
            msgspec.convert(value, types[name])
        except msgspec.ValidationError as error:
            wrong = str(error).replace("`", "").replace("Expected", "expected", 1)
            raise RequestRefusedError(f"{where}.{name}: {wrong} (value {_shown(value)})") from None
        if isinstance(value, int) and value not in protocol.INT64:
            raise RequestRefusedError(f"{where}.{name} must fit into 64 bits, got {_shown(value)}")
        if isinstance(value, float) and not math.isfinite(value):
            raise RequestRefusedError(f"{where}.{name} must be finite, got {value}")


def _check_names(where: str, given: Mapping[str, Any], known: Container[str]) -> None:
    for name, value in given.items():
        if name not in known:
            raise RequestRefusedError(f"{where}.{name}: unknown field (value {_shown(value)})")


def _check_ranges(params: Mapping[str, Any]) -> None:
    for name, (low, high) in _RANGES.items():
        value = params.get(name)
        if value is not None and not low <= value <= high:
            raise RequestRefusedError(f"{name} must be in [{low}, {high}], got {value}")
    beams = params.get("beam_width")
    if beams is not None and beams != 1:
        raise RequestRefusedError(
            f"beam_width must be 1, got {beams}: SGLang ends where a batch has no room for its beams"
        )


def check_values(model: Any, obj: Any, input_ids: Any, *, loads_processors: bool) -> None:
    """``model``: SGLang's ``ModelConfig``; ``obj``: one request of a batch; ``input_ids``: its prompt, None where embeddings
    are given. loads_processors: whether the server runs the code in ``custom_logit_processor``. Raises
    :class:`RequestRefusedError`."""
    params = obj.sampling_params or {}
    _check_names("sampling_params", params, _sampling_types())  # a multimodal processor has taken its own by now
    _check_prompt(model, obj, input_ids)
    _check_ids("logit_bias", _keys(params.get("logit_bias") or {}), model.vocab_size)
    _check_stops(params, model.vocab_size)
    if loads_processors and getattr(obj, "custom_logit_processor", None):
        _check_processor(obj.custom_logit_processor)
    if getattr(obj, "return_logprob", False):
        _check_logprobs(obj, model.vocab_size, 0 if input_ids is None else len(input_ids))


def _check_prompt(model: Any, obj: Any, input_ids: Any) -> None:
    _check_ids("input_ids", obj.input_ids or (), model.vocab_size)
    if input_ids is not obj.input_ids and not obj.contains_mm_input():
        _check_ids("input_ids", input_ids or (), model.vocab_size)
    for row in getattr(obj, "input_embeds", None) or ():
        if not (isinstance(row, list) and len(row) == model.hidden_size):
            raise RequestRefusedError(f"input_embeds: rows must have {model.hidden_size} numbers, got {_shown(row)}")


def _check_stops(params: Mapping[str, Any], vocab_tokens: int) -> None:
    _check_ids("stop_token_ids", params.get("stop_token_ids") or (), vocab_tokens)
    for name in ("stop", "stop_regex"):
        if len(_listed(params.get(name))) > protocol.MAX_STOPS:
            given = len(_listed(params[name]))
            raise RequestRefusedError(f"{name} must have at most {protocol.MAX_STOPS} entries, got {given}")
    for pattern in _listed(params.get("stop_regex")):
        if fault := stop_regex.fault(pattern):
            raise RequestRefusedError(f"stop_regex {_shown(pattern)}: {fault}")


def _check_processor(code: str) -> None:
    try:
        CustomLogitProcessor.from_str(code)
    except Exception as error:  # whatever unpickling another's code raises
        fault = f"{type(error).__name__}: {error}"
        raise RequestRefusedError(f"custom_logit_processor {_shown(code)} cannot be loaded ({fault})") from None


def _check_logprobs(obj: Any, vocab_tokens: int, prompt_tokens: int) -> None:
    top = obj.top_logprobs_num or 0
    if not 0 <= top <= vocab_tokens:
        raise RequestRefusedError(f"top_logprobs_num must be in [0, {vocab_tokens}] (the vocabulary), got {top}")
    start = -1 if obj.logprob_start_len is None else obj.logprob_start_len
    if not -1 <= start <= prompt_tokens:
        raise RequestRefusedError(f"logprob_start_len must be in [-1, {prompt_tokens}] (the prompt), got {start}")
    _check_ids("token_ids_logprob", obj.token_ids_logprob or (), vocab_tokens)


def _check_ids(name: str, ids: Iterable[Any], vocab_tokens: int) -> None:
    """A flat list of token ids."""
    if isinstance(ids, list | array) and ids and isinstance(ids[0], int) and 0 <= min(ids) <= max(ids) < vocab_tokens:
        return
    for token in ids:
        whole = isinstance(token, int) and not isinstance(token, bool)
        if not (whole and 0 <= token < vocab_tokens):
            raise RequestRefusedError(
                f"{name}: token ids must be whole numbers in [0, {vocab_tokens - 1}] (the vocabulary), got {_shown(token)}"
            )


def _keys(biases: Mapping[str, float]) -> list[Any]:
    """The token ids of ``logit_bias``."""
    for token, bias in biases.items():
        if not -_MAX_BIAS <= bias <= _MAX_BIAS:
            raise RequestRefusedError(
                f"logit_bias of token {_shown(token)} must be in [{-_MAX_BIAS:g}, {_MAX_BIAS:g}], got {bias}"
            )
    return [int(token) if token.isascii() and token.isdigit() else token for token in biases]


def _is_deeper(value: Any, levels: int) -> bool:
    if not isinstance(value, dict | list):
        return False
    inner = value.values() if isinstance(value, dict) else value
    return levels == 0 or any(_is_deeper(one, levels - 1) for one in inner)


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [] if value is None else [value]


def _shown(value: Any) -> str:
    try:
        text = repr(value)
    except (RecursionError, ValueError):  # nested too deep, or a number of more digits than Python writes
        text = f"a {type(value).__name__} too large to show"
    return text if len(text) <= 80 else f"{text[:77]}..."
