"""A small instruct model in this process, as the second device of a race: a function of messages that yields text."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

__all__ = ["SmallModel"]

HALF_A_CHARACTER = "\ufffd"


class SmallModel:
    """The Hugging Face model in ``folder``, greedy, on one core. It goes on with a last message of the assistant."""

    def __init__(self, folder: Path) -> None:
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer
        from transformers.utils.logging import disable_progress_bar

        disable_progress_bar()
        torch.set_num_threads(1)
        self._tokenizer = AutoTokenizer.from_pretrained(folder)
        self._model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)
        self.__name__ = folder.name

    def __call__(self, messages: Sequence[Mapping[str, Any]]) -> Iterator[str]:
        import torch

        goes_on = messages[-1]["role"] == "assistant"
        asked = self._tokenizer.apply_chat_template(
            list(messages), add_generation_prompt=not goes_on, continue_final_message=goes_on,
            return_tensors="pt", return_dict=True,
        )  # fmt: skip
        ids, past = asked["input_ids"], None
        written: list[int] = []
        said = ""
        while True:
            with torch.inference_mode():
                out = self._model(ids, past_key_values=past, use_cache=True)
            past, ids = out.past_key_values, out.logits[:, -1:].argmax(-1)
            if int(ids) in (self._tokenizer.eos_token_id, self._model.generation_config.eos_token_id):
                return
            written.append(int(ids))
            text = self._tokenizer.decode(written)
            if not text.endswith(HALF_A_CHARACTER):
                yield text[len(said) :]
                said = text
