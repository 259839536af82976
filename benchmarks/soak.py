"""Real engines under forced and real preemptions, for as long as one likes: each answer beside that of an engine left alone.

``python benchmarks/soak.py OUT --seconds 200`` draws one small engine after the other (policy, mode, KV pool, pages, chunk,
batch, with and without overlap, one or two ranks), sends it waves of requests, aborts some, and appends what it counted to
``OUT/engines.jsonl``: a later call goes on with the next engine. ``--total`` adds up. An engine that ends, hangs, leaks, or
says a wrong token keeps its log there. Another release of SGLang than the one in .venv: its folder in PYTHONPATH
(``tools/sglang_releases.py``).
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.metadata
import json
import os
import random
import sys
import time
import urllib.error
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from andes_sglang.adapter.tiny_model import make_tiny_model
from andes_sglang.bench.engine import Engine, EngineError, read_metrics

__all__ = ["Drawn", "draw", "main"]

PROMPT_TOKENS = (5, 8, 13, 21, 34, 55, 89, 144, 233, 377, 610)
ANSWER_TOKENS = 160
WAVE_REQUESTS = 24
ABORTED_SHARE = 0.1
PAGE_TOKENS = 16
"""Of some engines; SGLang takes no chunk then that is no whole number of pages."""
RANKS_SHARE = 0.15
"""Of the engines that have two tensor-parallel ranks."""
PATIENCE_S = 90.0
"""For an answer, and for an engine to become idle: many times what either takes on a busy machine."""
POLICIES = ("andes", "andes-v1", "lqsf", "tokenflow", "round_robin", "fcfs")
MODES = ("park", "release", "offload", "alternate")


@dataclass(frozen=True, slots=True)
class Drawn:
    """One engine. room_tokens: of its KV pool."""

    policy: str
    flags: tuple[str, ...]
    room_tokens: int


def draw(index: int, seed: int) -> Drawn:
    """The engine ``index``: every other one is forced to preempt, in each mode in turn."""
    rng = random.Random(f"{seed} {index}")
    forced = index % 2 == 0
    mode = MODES[index // 2 % len(MODES)] if forced else rng.choice(("release", "release", "offload"))
    room_tokens = rng.choice((700, 900, 1200, 1500, 2400))
    flags = ["--max-total-tokens", str(room_tokens), "--max-running-requests", str(rng.choice((4, 8, 12, 16, 24)))]
    chunk_tokens = rng.choice((16, 24, 32, 48, 64, 8192))
    flags += ["--chunked-prefill-size", str(chunk_tokens)]
    flags += ["--enable-mixed-chunk"] if rng.random() < 0.7 else []
    flags += ["--page-size", str(PAGE_TOKENS)] if rng.random() < 0.3 and chunk_tokens % PAGE_TOKENS == 0 else []
    flags += ["--disable-overlap-schedule"] if rng.random() < 0.3 else []
    flags += ["--tp", "2"] if rng.random() < RANKS_SHARE and can_have_ranks(mode) else []
    if mode == "offload":
        flags += ["--preemption-mode", "offload", "--host-kv-gib", rng.choice(("0.001", "0.01"))]
    if forced:
        flags += ["--policy-option", f"mode={mode}", "--policy-option", f"every_tokens={rng.choice((2, 3, 5))}"]
    return Drawn("forced" if forced else rng.choice(POLICIES), tuple(flags), room_tokens)


def can_have_ranks(mode: str) -> bool:
    """On 0.5.17 no offload over several ranks."""
    return mode != "offload" or importlib.metadata.version("sglang") != "0.5.17"


def prompt_of(k: int) -> list[int]:
    return [7 + (31 * k + 13 * j + j * j // 7) % 900 for j in range(PROMPT_TOKENS[k % len(PROMPT_TOKENS)] + k % 5)]


def generate(engine: Engine, k: int, tokens: int, **more: Any) -> list[int]:
    body = {
        "input_ids": prompt_of(k),
        "sampling_params": {"max_new_tokens": tokens, "ignore_eos": True, "temperature": 0},
    }
    answer: Any = engine.post("/generate", body | more, PATIENCE_S)
    return list(answer["output_ids"])


def expected_answers(model: Path, out: Path) -> list[list[int]]:
    """What an engine says that is left alone with each prompt."""
    kept = out / "expected.json"
    if not kept.exists():
        with Engine(model, "stock", ("--max-total-tokens", "65536"), log=out / "stock.log") as engine:
            with ThreadPoolExecutor(4) as pool:
                answers = pool.map(lambda k: generate(engine, k, ANSWER_TOKENS), range(4 * len(PROMPT_TOKENS)))
            kept.write_text(json.dumps(list(answers)))
    answers_kept: list[list[int]] = json.loads(kept.read_text())
    return answers_kept


@dataclass
class Counts:
    """Of one engine. faults: one line each."""

    answers: int = 0
    aborted: int = 0
    tokens: int = 0
    preemptions: dict[str, int] = field(default_factory=dict)
    faults: list[str] = field(default_factory=list)


def one(engine: Engine, expected: list[list[int]], rng: random.Random, counts: Counts, room_tokens: int) -> None:
    """A request, and its answer beside the one that is expected; some are aborted."""
    k, tokens = rng.randrange(len(expected)), rng.randrange(1, ANSWER_TOKENS)
    while len(prompt_of(k)) + tokens > 0.9 * room_tokens:
        k = rng.randrange(len(expected))
    rid = f"soak-{rng.getrandbits(64):x}"
    aborted = rng.random() < ABORTED_SHARE
    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(generate, engine, k, tokens, rid=rid)
        if aborted:
            time.sleep(rng.random())
            engine.post("/abort_request", {"rid": rid}, PATIENCE_S)
        try:
            told = answer.result()
        except urllib.error.HTTPError as error:
            if not aborted:
                counts.faults.append(f"status {error.code} for prompt {k}")
            told = []
        except OSError as error:
            counts.faults.append(f"{type(error).__name__} for prompt {k}: {error}")
            return
    counts.answers += 1
    counts.aborted += len(told) < tokens
    counts.tokens += len(told)
    if told != expected[k][: len(told)] or (len(told) < tokens and not aborted):
        counts.faults.append(f"wrong tokens for prompt {k}: {len(told)} of {tokens}")


def wait_until_idle(engine: Engine) -> None:
    """SGLang looks for leaks whenever it is idle, and flushes only then. Raises :class:`EngineError`."""
    deadline_s = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline_s:
        with contextlib.suppress(OSError):
            if "flushed" in str(engine.post("/flush_cache", {}, PATIENCE_S)):
                return
        if not engine.alive():
            raise EngineError("the engine has ended")
        time.sleep(0.1)
    raise EngineError("the engine never became idle")


def run(drawn: Drawn, model: Path, log: Path, expected: list[list[int]], seconds: float, seed: str) -> Counts:
    """Waves of requests to one engine for ``seconds``."""
    counts = Counts()
    rng = random.Random(seed)
    try:
        with Engine(model, drawn.policy, (*drawn.flags, "--enable-metrics"), log=log) as engine:
            end_s = time.monotonic() + seconds
            while time.monotonic() < end_s and not counts.faults:
                with ThreadPoolExecutor(WAVE_REQUESTS) as pool:
                    for _ in range(WAVE_REQUESTS):
                        pool.submit(one, engine, expected, random.Random(rng.random()), counts, drawn.room_tokens)
                wait_until_idle(engine)
            for name, value in read_metrics(engine.url).items():
                if name.startswith(("andes_preemptions_total", "andes_retractions_total")):
                    kind = name.split('mode="')[1].split('"')[0] if "mode" in name else "retraction"
                    counts.preemptions[kind] = counts.preemptions.get(kind, 0) + int(value)
    except EngineError as error:
        counts.faults.append(str(error).splitlines()[0])
    if "leak" in log.read_text(errors="replace").lower():
        counts.faults.append("the log speaks of a leak")
    if not counts.faults:
        log.unlink()
    return counts


def total(done: list[dict[str, Any]]) -> str:
    preemptions: Counter[str] = Counter()
    for engine in done:
        preemptions.update(engine["preemptions"])
    faults = [f"engine {engine['index']}: {fault}" for engine in done for fault in engine["faults"]]
    answers, aborted, tokens = (sum(engine[name] for engine in done) for name in ("answers", "aborted", "tokens"))
    kinds = ", ".join(f"{count} {kind}" for kind, count in sorted(preemptions.items()))
    releases = ", ".join(sorted({engine["sglang"] for engine in done}))
    lines = [
        f"{len(done)} engines of SGLang {releases}",
        f"{answers} answers ({aborted} cut by an abort), {tokens} tokens, each compared",
        f"{sum(preemptions.values())} preemptions: {kinds}",
        f"{len(faults)} faults (wrong tokens, leaks, hung, ended)",
    ]
    return "\n".join(lines + faults)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, metavar="OUT", help="directory of the counts")
    parser.add_argument("--seconds", type=float, default=200.0, help="of this call, about; default 200")
    parser.add_argument("--each-s", type=float, default=20.0, help="of load for each engine; default 20")
    parser.add_argument("--seed", type=int, default=0, help="of the engines drawn and their requests; default 0")
    parser.add_argument("--total", action="store_true", help="only add up what has been counted")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    file = args.out / "engines.jsonl"
    done = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
    os.environ["SGLANG_ENABLE_STRICT_MEM_CHECK_DURING_BUSY"] = "1"
    os.environ["SGLANG_ENABLE_RANK_CONSENSUS_CHECKER"] = "1"  # 0.5.17 has none
    end_s = time.monotonic() + args.seconds
    if not args.total:
        model = args.out / "model"
        if not model.exists():
            make_tiny_model(model)
        expected = expected_answers(model, args.out)
        while time.monotonic() < end_s:
            index = len(done)
            drawn = draw(index, args.seed)
            counts = run(drawn, model, args.out / f"{index}.log", expected, args.each_s, f"{args.seed} {index}")
            release = importlib.metadata.version("sglang")
            about = {"index": index, "sglang": release, "policy": drawn.policy, "flags": drawn.flags}
            done.append(about | counts.__dict__)
            with file.open("a") as out:
                out.write(json.dumps(done[-1]) + "\n")
            print(index, drawn.policy, *drawn.flags, counts.preemptions, *counts.faults, flush=True)
    print(total(done))
    return int(any(engine["faults"] for engine in done))


if __name__ == "__main__":
    sys.exit(main())
