"""Real engines under forced and real preemptions, for as long as one likes: each answer beside that of an engine left alone.

``python benchmarks/soak.py OUT --seconds 200`` draws one small engine after the other (policy, mode, KV pool, pages, chunk,
batch, with and without overlap, one or two ranks), keeps it full of requests, aborts some, and appends what it counted to
``OUT/engines.jsonl``: a later call goes on with the next engine, also after Ctrl-C or SIGTERM. ``--total`` adds up. An engine
that ends, hangs, leaks, or says a wrong token keeps its log there. Another release of SGLang than the one in .venv: its
folder in PYTHONPATH (``tools/sglang_releases.py``).
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import importlib.metadata
import json
import os
import random
import signal
import sys
import threading
import time
import urllib.error
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from andes_sglang.adapter.tiny_model import make_tiny_model
from andes_sglang.bench.engine import Engine, EngineError, read_metrics
from benchmarks.soak_answers import Answers, generate

__all__ = ["Drawn", "draw", "main", "wait_until_idle"]

ABORTED_SHARE = 0.05
PAGE_TOKENS = 16
"""Of some engines; SGLang takes no chunk then that is no whole number of pages."""
STREAM_TOKENS = 160
"""KV of a stream and what a policy wants free beside it, about."""
WAVE_S = 45.0
"""After which the engine has to become idle."""
PATIENCE_S = 600.0
"""For an answer, and for an engine to become idle: where 32 streams have three tokens a second each (a busy machine, at idle
priority) an answer takes two minutes."""
POLICIES = ("andes", "andes-v1", "lqsf", "tokenflow", "round_robin", "fcfs")
KINDS = ("park", "release", "park", "offload", "park", "alternate", "policy")
"""Of the engines, in turn: the mode of those that are forced."""
RANKS_EVERY = 5
"""Every so many engines have two tensor-parallel ranks: of every kind in turn."""


@dataclass(frozen=True, slots=True)
class Drawn:
    """One engine. room_tokens: of its KV pool; streams: requests that are always under way."""

    policy: str
    flags: tuple[str, ...]
    room_tokens: int
    streams: int


def draw(index: int, seed: int) -> Drawn:
    """The engine ``index``: one of :data:`KINDS`, and everything else at random."""
    rng = random.Random(f"{seed} {index}")
    kind = KINDS[index % len(KINDS)]
    forced = kind != "policy"
    mode = kind if forced else rng.choice(("release", "release", "offload"))
    ranks = index % RANKS_EVERY == RANKS_EVERY - 1 and can_have_ranks(mode)
    streams = rng.choice((32, 96, 128))
    room = rng.choice((0.7, 1.2, 1.8)) if forced else rng.choice((0.3, 0.5))
    room_tokens = int(room * streams * STREAM_TOKENS)
    running = rng.choice((streams // 2, streams, streams))
    flags = ["--max-total-tokens", str(room_tokens), "--max-running-requests", str(running)]
    chunk_tokens = rng.choice((32, 64, 96, 8192))
    flags += ["--chunked-prefill-size", str(chunk_tokens), "--log-level", "warning"]
    flags += ["--enable-mixed-chunk"] if rng.random() < 0.5 else []
    flags += ["--page-size", str(PAGE_TOKENS)] if rng.random() < 0.25 else []
    flags += ["--disable-overlap-schedule"] if rng.random() < 0.4 else []
    flags += ["--tp", "2"] if ranks else []
    if mode == "offload":
        flags += ["--preemption-mode", "offload", "--host-kv-gib", rng.choice(("0.001", "0.01"))]
    if forced:
        options = {"mode": mode, "every_tokens": rng.choice((0, 0, 1)), "share": rng.choice((0.7, 1.0, 1.0))}
        flags += [word for name, value in options.items() for word in ("--policy-option", f"{name}={value}")]
    return Drawn("forced" if forced else rng.choice(POLICIES), tuple(flags), room_tokens, streams)


def can_have_ranks(mode: str) -> bool:
    """On 0.5.17 no offload over several ranks."""
    return mode != "offload" or importlib.metadata.version("sglang") != "0.5.17"


def checks_of(index: int, drawn: Drawn) -> dict[str, str]:
    """SGLang's own checks in every iteration of an engine: that no memory is lost; that no page has two owners, or is free
    and owned (0.5.23; every other engine, as it takes a tenth of the time); that two ranks agree (0.5.17 has none)."""
    return {
        "SGLANG_ENABLE_STRICT_MEM_CHECK_DURING_BUSY": "1",
        "SGLANG_CHECK_KV_PAGE_INVARIANTS": str(index % 2),
        "SGLANG_ENABLE_RANK_CONSENSUS_CHECKER": str(drawn.flags.count("--tp")),
    }


@dataclass
class Counts:
    """Of one engine. seconds: of load; faults: one line each."""

    seconds: float = 0.0
    answers: int = 0
    aborted: int = 0
    tokens: int = 0
    preemptions: dict[str, int] = field(default_factory=dict)
    faults: list[str] = field(default_factory=list)


class Load:
    """Requests to ``engine``, each answer beside the one of ``answers``."""

    def __init__(self, engine: Engine, answers: Answers, drawn: Drawn, counts: Counts) -> None:
        self._engine, self._answers, self._drawn, self._counts = engine, answers, drawn, counts
        self._ended = threading.Event()

    def wave(self, seconds: float, rng: random.Random) -> None:
        """So many streams as were drawn, one after the other, and an engine that is idle then. ``KeyboardInterrupt``: those
        under way are aborted."""
        end_s = time.monotonic() + seconds
        with ThreadPoolExecutor(self._drawn.streams) as pool:
            try:
                seeds = [rng.random() for _ in range(self._drawn.streams)]
                for done in [pool.submit(self._stream, random.Random(seed), end_s) for seed in seeds]:
                    done.result()
            except KeyboardInterrupt:
                self._ended.set()
                with contextlib.suppress(OSError):  # the engine has ended
                    self._engine.post("/abort_request", {"abort_all": True}, PATIENCE_S)
                raise
        wait_until_idle(self._engine)

    def _stream(self, rng: random.Random, end_s: float) -> None:
        while time.monotonic() < end_s and not self._ended.is_set() and not self._counts.faults:
            self._one(rng)

    def _one(self, rng: random.Random) -> None:
        """A request; some are aborted."""
        prompt, expected = self._answers.draw(rng, 0.9 * self._drawn.room_tokens)
        tokens = rng.randrange(1, len(expected) + 1)
        rid = f"soak-{rng.getrandbits(64):x}"
        aborted = rng.random() < ABORTED_SHARE
        timer = threading.Timer(rng.random(), self._abort, [rid])
        if aborted:
            timer.start()
        try:
            told = generate(self._engine, prompt, tokens, PATIENCE_S, rid=rid)["output_ids"]
        except urllib.error.HTTPError as error:
            told = []
            if not aborted and not self._ended.is_set():
                self._counts.faults.append(f"status {error.code} for prompt {prompt}")
        except (OSError, http.client.HTTPException) as error:
            self._counts.faults.append(f"{type(error).__name__} for prompt {prompt}: {error}")
            return
        finally:
            timer.cancel()
        self._check(prompt, told, expected[:tokens], may_be_short=aborted or self._ended.is_set())

    def _check(self, prompt: list[int], told: list[int], expected: list[int], *, may_be_short: bool) -> None:
        self._counts.answers += 1
        self._counts.aborted += len(told) < len(expected)
        self._counts.tokens += len(told)
        if told != expected[: len(told)] or (len(told) < len(expected) and not may_be_short):
            self._counts.faults.append(f"wrong tokens for prompt {prompt}: {told} in the place of {expected}")

    def _abort(self, rid: str) -> None:
        with contextlib.suppress(OSError):  # the engine has ended, which the answer tells
            self._engine.post("/abort_request", {"rid": rid}, PATIENCE_S)


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


def run(drawn: Drawn, model: Path, log: Path, answers: Answers, counts: Counts, *, seconds: float, seed: str) -> None:
    """Waves of requests to one engine for ``seconds``. ``KeyboardInterrupt`` leaves what was counted until then."""
    rng = random.Random(seed)
    try:
        with Engine(model, drawn.policy, (*drawn.flags, "--enable-metrics"), log=log) as engine:
            load, started_s = Load(engine, answers, drawn, counts), time.monotonic()
            try:
                while counts.seconds < seconds and not counts.faults:
                    load.wave(min(WAVE_S, seconds), rng)
                    counts.seconds = time.monotonic() - started_s
            finally:
                counts.seconds = time.monotonic() - started_s
                count_preemptions(engine, counts)
    except EngineError as error:
        counts.faults.append(str(error).splitlines()[0])
    finally:
        if "leak" in log.read_text(errors="replace").lower():
            counts.faults.append("the log speaks of a leak")
        if not counts.faults:
            log.unlink()


def count_preemptions(engine: Engine, counts: Counts) -> None:
    for name, value in read_metrics(engine.url).items():
        if name.startswith(("andes_preemptions_total", "andes_retractions_total")):
            kind = name.split('mode="')[1].split('"')[0] if "mode" in name else "retraction"
            counts.preemptions[kind] = counts.preemptions.get(kind, 0) + int(value)


def ranks_of(engine: dict[str, Any]) -> str:
    return "two ranks" if "--tp" in engine["flags"] else "one rank"


def total(done: list[dict[str, Any]]) -> str:
    preemptions: Counter[str] = Counter()
    for engine in done:
        preemptions.update({f"{kind} on {ranks_of(engine)}": n for kind, n in engine["preemptions"].items()})
    faults = [f"engine {engine['index']}: {fault}" for engine in done for fault in engine["faults"]]
    answers, aborted, tokens = (sum(engine[key] for engine in done) for key in ("answers", "aborted", "tokens"))
    said = f"{len(done)} engines, {answers} answers ({aborted} aborted), {tokens} tokens; "
    said += f"{sum(preemptions.values())} times off the engine: "
    said += ", ".join(f"{n} {kind}" for kind, n in sorted(preemptions.items()))
    return "\n".join([said, f"{len(faults)} faults", *faults])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "out", type=Path, help="directory for counts, expected answers and logs; a later call goes on there"
    )
    parser.add_argument("--seconds", type=float, default=200.0, help="of this call, about; default 200")
    parser.add_argument("--each-s", type=float, default=20.0, help="of load for each engine; default 20")
    parser.add_argument("--seed", type=int, default=0, help="of the engines drawn and their requests; default 0")
    parser.add_argument("--total", action="store_true", help="only add up what has been counted")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    file = args.out / "engines.jsonl"
    done = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
    if not args.total:
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        with contextlib.suppress(KeyboardInterrupt):
            soak(args, done, file)
    print(total(done))
    return int(any(engine["faults"] for engine in done))


def soak(args: argparse.Namespace, done: list[dict[str, Any]], file: Path) -> None:
    """Engine after engine for the time of ``args``; what each counts is appended to ``done`` and to ``file``."""
    end_s = time.monotonic() + args.seconds
    model = args.out / "model"
    if not model.exists():
        make_tiny_model(model, layers=1)
    answers = Answers.of(model, args.out)
    while time.monotonic() < end_s:
        index = len(done)
        drawn, counts = draw(index, args.seed), Counts()
        os.environ |= checks_of(index, drawn)
        release = importlib.metadata.version("sglang")
        about = {
            "index": index,
            "sglang": release,
            "policy": drawn.policy,
            "flags": drawn.flags,
            "streams": drawn.streams,
        }
        seconds = min(args.each_s, max(1.0, end_s - time.monotonic()))
        try:
            run(drawn, model, args.out / f"{index}.log", answers, counts, seconds=seconds, seed=f"{args.seed} {index}")
        finally:
            done.append(about | asdict(counts))
            with file.open("a") as out:
                out.write(json.dumps(done[-1]) + "\n")
            print(index, drawn.policy, *drawn.flags, counts.preemptions, *counts.faults, flush=True)


if __name__ == "__main__":
    sys.exit(main())
