"""A model directory without weights: SGLang makes them up (``--load-format dummy``)."""

from __future__ import annotations

import json
from pathlib import Path

from benchmarks.gpu.setting import Shape

__all__ = ["write_model"]

MAX_POSITIONS = 131_072
SPECIAL = ("<unk>", "<s>", "</s>")


def write_model(out: Path, shape: Shape) -> Path:
    """Configuration of a Llama of ``shape`` and a tokenizer with a word for each token id; the directory."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    out.mkdir(parents=True, exist_ok=True)
    words = {f"t{k}": k for k in range(shape.vocabulary - len(SPECIAL))}
    words |= {name: len(words) + k for k, name in enumerate(SPECIAL)}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token=SPECIAL[0]))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.save(str(out / "tokenizer.json"))
    _, begin, end = SPECIAL
    told = {"tokenizer_class": "PreTrainedTokenizerFast", "unk_token": SPECIAL[0], "bos_token": begin, "eos_token": end}
    (out / "tokenizer_config.json").write_text(json.dumps({**told, "model_max_length": MAX_POSITIONS}))
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": shape.vocabulary,
        "hidden_size": shape.hidden,
        "intermediate_size": shape.intermediate,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv_heads,
        "head_dim": shape.head_dim,
        "hidden_act": "silu",
        "rms_norm_eps": 1e-5,
        "rope_theta": 500_000.0,
        "max_position_embeddings": MAX_POSITIONS,
        "tie_word_embeddings": False,
        "attention_bias": False,
        "mlp_bias": False,
        "bos_token_id": words[begin],
        "eos_token_id": words[end],
        "torch_dtype": shape.dtype,
    }
    (out / "config.json").write_text(json.dumps(config, indent=1))
    return out
