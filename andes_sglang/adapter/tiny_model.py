"""A tiny Llama with random weights and a real tokenizer: enough to test a serving engine; its text means nothing.

``python -m andes_sglang.adapter.tiny_model OUT`` writes it in seconds, the same files for the same arguments.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

__all__ = ["main", "make_tiny_model"]

_SYLLABLES = (
    "an",
    "be",
    "cor",
    "da",
    "el",
    "fi",
    "gra",
    "ho",
    "in",
    "jo",
    "ka",
    "lu",
    "mi",
    "no",
    "or",
    "pe",
    "qui",
    "ra",
)
_CHAT_TEMPLATE = (
    "{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def make_tiny_model(out: Path, layers: int = 2, hidden: int = 64, vocabulary: int = 1024, seed: int = 0) -> Path:
    """Write a Hugging Face model directory and return it. Weights are float32, random, seeded."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import LlamaConfig, LlamaForCausalLM

    out.mkdir(parents=True, exist_ok=True)
    words = [a + b + c for a in _SYLLABLES for b in _SYLLABLES for c in ("", *_SYLLABLES[:6])]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator(
        [" ".join(words[k::7]) for k in range(7)],
        trainers.BpeTrainer(
            vocab_size=vocabulary,
            special_tokens=["<s>", "</s>"],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        ),
    )
    tokenizer.save(str(out / "tokenizer.json"))
    (out / "tokenizer_config.json").write_text(
        json.dumps(
            {
                "tokenizer_class": "PreTrainedTokenizerFast",
                "bos_token": "<s>",
                "eos_token": "</s>",
                "model_max_length": 32768,
                "chat_template": _CHAT_TEMPLATE,
            }
        )
    )
    torch.manual_seed(seed)
    heads = max(1, hidden // 32)
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=hidden,
        intermediate_size=2 * hidden,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=heads,
        max_position_embeddings=32768,
        initializer_range=0.2,
        bos_token_id=0,
        eos_token_id=1,
        tie_word_embeddings=False,
        torch_dtype="float32",
    )
    LlamaForCausalLM(config).save_pretrained(out, safe_serialization=True)
    return out


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m andes_sglang.adapter.tiny_model", description=__doc__)
    parser.add_argument("out", type=Path, help="directory to write")
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--hidden", type=int, default=64)
    parser.add_argument("--vocabulary", type=int, default=1024)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(argv)
    if args.hidden % 32:
        parser.error(f"--hidden must be a multiple of 32, got {args.hidden}")
    make_tiny_model(args.out, args.layers, args.hidden, args.vocabulary, args.seed)
    print(f"wrote {args.out}: {args.layers} layers, hidden {args.hidden}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
