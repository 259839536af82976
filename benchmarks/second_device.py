"""A second device beside a server in a surge: time to the first token, gaps at hand-overs, tokens that the fleet is spared.

``python benchmarks/second_device.py`` asks simulated engines over real sockets: a server (an L4 with few slots, stock or
andes) that gets ``--load`` times what it sustains, and engines of a telephone's speed for the readers' own devices. Every
request is asked by ``andes_client``: of the server alone, or raced with ``race`` (``--arms``: ``race`` is without hand-over,
``local`` and ``remote`` hand the rest over). ``--outage`` kills the server when half of the requests have come.
``--model FOLDER`` has a small model in this process as the device instead.

Times are simulated seconds, ``--speed`` of them in one real second; with ``--model`` they are real ones.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import os
import re
import signal
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import openai

from andes_client import AsyncAndesClient, Experience, InterruptedAnswerError, Race, race
from andes_client.experience import count_tokens
from andes_client.race_history import LOCAL, REMOTE
from andes_sglang.bench.engine import Engine, read_metrics
from andes_sglang.report.charts import COLOURS, Series, plot
from andes_sglang.sim import profile as profiles
from benchmarks.arguments import listed
from benchmarks.markdown import header, row
from benchmarks.on_device import SmallModel

TDS, FIRST_TOKEN_S = 4.8, 1.0
"""Of every reader: tokens/s, where ``--tds`` says no other, and seconds."""
PROFILE = "l4-llama-3.1-8b"
PHONE = """
hardware = "a telephone"
model = "a small instruct model"
source = "assumed: 600 tokens/s of prompt, 15 tokens/s of answer"
[engine]
kv_capacity_tokens = 65536
max_running = 16
chunk_tokens = 4096
[costs]
decode_fixed_s = 0.0667
decode_request_s = 0.0
decode_context_s = 0.0
prefill_fixed_s = 0.01
prefill_request_s = 0.0
prefill_token_s = 0.00167
prefill_pair_s = 0.0
"""
PHONES = 6
"""Processes that stand for all readers' devices: several readers of one do not slow each other's decoding."""
SIMULATED_TOKEN = 4
"""Characters."""
ARMS = ("alone", "race", LOCAL, REMOTE)
QUESTIONS = (
    "What is a queue, and where do people stand in one?", "Explain why the sky is blue.", "How does a bicycle stay upright?",
    "Write a short story about a lighthouse.", "What should I cook with rice and eggs?", "Why do leaves turn red in autumn?",
    "How do I learn to play the guitar?", "What is the difference between weather and climate?",
)  # fmt: skip


@dataclass(frozen=True)
class Question:
    """at_s: after the first. tokens: of the answer at most."""

    at_s: float
    text: str
    tokens: int


@dataclass
class Got:
    """What one reader got. gaps_s, rescued_s: without text at each hand-over, and at each rescue. writers: of the parts."""

    ttft_s: float | None
    qoe: float
    failed: str = ""
    writers: list[str] = field(default_factory=list)
    gaps_s: list[float] = field(default_factory=list)
    rescued_s: list[float] = field(default_factory=list)
    shown: int = 0
    local: int = 0
    remote: int = 0


def questions(count: int, load: float, slots: int, seed: int, *, answer: int, real: bool) -> list[Question]:
    """Poisson arrivals at ``load`` times what ``slots`` streams at a time are served of."""
    rng = np.random.default_rng(seed)
    prompts = np.clip(rng.lognormal(math.log(150), 0.9, count), 10, 1500).astype(int)
    answers = np.clip(rng.lognormal(math.log(answer), 0.6, count), 20, 80 if real else 400).astype(int)
    costs = profiles.load(PROFILE).engine.costs
    context = slots * float(prompts.mean() + answers.mean() / 2)
    service_s = float(answers.mean()) * costs.decode_s(slots, context) + slots * costs.prefill_s(
        float(prompts.mean()), 0
    )
    gaps_s = rng.exponential(service_s / slots / load, count)
    texts = [QUESTIONS[k % len(QUESTIONS)] if real else f"{k} {'ask ' * n}" for k, n in enumerate(prompts)]
    return [Question(*each) for each in zip(np.cumsum(gaps_s).tolist(), texts, answers.tolist(), strict=True)]


@dataclass
class Run:
    """One arm. speed: simulated seconds in a real one. tds: of readers, tokens/s."""

    server: Engine
    devices: Sequence[Any]
    arm: str
    speed: float
    tds: float
    races: list[Race] = field(default_factory=list)
    lag_s: float = 0.0

    async def play(self, asked: Sequence[Question], outage: bool) -> list[Got]:
        client = openai.AsyncOpenAI(base_url=self.server.url + "/v1", api_key="any", max_retries=0)
        remote = AsyncAndesClient(client, max_retries=0)
        local = [_source(device) for device in self.devices]
        self.races = self.races or [
            race(source, remote, local_model="phone", remote_model="simulated", allow_other_model=True, max_wait_s=0,
                 finish_by=self.arm if self.arm in (LOCAL, REMOTE) else None)
            for source in local
        ]  # fmt: skip
        for other in self.races:
            other.history = self.races[0].history
        watching = asyncio.create_task(self._watch())
        began_s, tasks = time.monotonic(), []
        for k, question in enumerate(asked):
            await asyncio.sleep(max(0.0, began_s + question.at_s / self.speed - time.monotonic()))
            if outage and k == len(asked) // 2:
                os.killpg(self.server._process.pid, signal.SIGKILL)  # type: ignore[union-attr]
            tasks.append(asyncio.create_task(self._ask(question, remote, self.races[k % len(self.races)])))
        got = await asyncio.gather(*tasks)
        watching.cancel()
        for used in (client, *(source for source in local if isinstance(source, openai.AsyncOpenAI))):
            await used.close()
        return got

    async def _watch(self) -> None:
        """How far the server's process is behind its simulated clock, or this one behind the real one: with a lag, times
        are not the profile's."""
        while True:
            due_s = time.monotonic() + 1.0
            await asyncio.sleep(1.0)
            late_s = [(time.monotonic() - due_s) * self.speed]
            found = await asyncio.to_thread(read_metrics, self.server.url)
            late_s += [value for name, value in found.items() if name.startswith("andes_sim_lag")]
            self.lag_s = max(self.lag_s, *late_s)

    async def _ask(self, question: Question, remote: AsyncAndesClient, raced: Race) -> Got:
        reader: dict[str, Any] = {"reading_speed": self.tds * self.speed, "first_token_s": FIRST_TOKEN_S / self.speed}
        options: dict[str, Any] = {
            "max_tokens": question.tokens,
            "extra_body": {"ignore_eos": True, "custom_params": {"qoe": {"ttft": FIRST_TOKEN_S, "tds": self.tds}}},
            "stream_options": {"include_usage": True, "continuous_usage_stats": True},
        }
        try:
            if self.arm == "alone":
                async with await remote.stream(question.text, model="simulated", **reader, **options) as single:
                    async for _ in single:
                        pass
                made = single.experience.tokens
                return self._scored(single.experience, writers=[REMOTE], shown=made, remote=made)
            dry_s: dict[str, list[float]] = {"hand-over": [], "rescue": []}
            until_s, writer = -math.inf, ""
            async with raced.stream(question.text, **reader, **options) as answer:
                async for text in answer:
                    now_s, by = time.monotonic(), answer.parts[-1].writer
                    if writer and by != writer:
                        dry_s[answer.parts[-1].why].append(max(0.0, now_s - until_s) * self.speed)
                    tokens = self._count(text, by)
                    until_s, writer = max(now_s, until_s) + tokens / (self.tds * self.speed), by
            cost = answer.cost
            return self._scored(
                answer.experience, writers=[part.writer for part in answer.parts],
                gaps_s=dry_s["hand-over"], rescued_s=dry_s["rescue"],
                shown=answer.experience.tokens, local=cost.local, remote=cost.remote,
            )  # fmt: skip
        except (openai.APIError, InterruptedAnswerError) as error:
            return Got(None, 0.0, failed=str(error))

    def _count(self, text: str, by: str) -> int:
        simulated = by == REMOTE or isinstance(self.devices[0], Engine)
        return max(1, round(len(text) / SIMULATED_TOKEN)) if simulated else count_tokens(text)

    def _scored(self, experience: Experience, **rest: Any) -> Got:
        ttft_s = None if experience.ttft_s is None else experience.ttft_s * self.speed
        return Got(ttft_s, experience.qoe, **rest)


def _source(device: Any) -> Any:
    if not isinstance(device, Engine):
        return device
    return openai.AsyncOpenAI(base_url=device.url + "/v1", api_key="any", max_retries=0)


COLUMNS = (
    "server", "arm", "answers", "failed", "TTFT mean, s", "p50", "p99", "p99 less than alone", "mean QoE", "device first",
    "hand-overs", "with a gap above 1/tds", "longest gap, s", "rescues", "longest, s", "tokens by the fleet", "spared",
    "lag, s",
)  # fmt: skip


def cells(
    policy: str, arm: str, got: Sequence[Got], alone_p99_s: float | None, *, lag_s: float, tds: float
) -> tuple[object, ...]:
    ttft_s = np.array([each.ttft_s for each in got if each.ttft_s is not None] or [math.nan])
    p99_s, shown = float(np.percentile(ttft_s, 99)), sum(each.shown for each in got)
    gaps_s, rescued_s = [gap_s for each in got for gap_s in each.gaps_s], [s for each in got for s in each.rescued_s]
    fleet = sum(each.remote for each in got)
    return (
        policy, arm, len(got), sum(bool(each.failed) for each in got), f"{ttft_s.mean():.2f}", f"{np.median(ttft_s):.2f}",
        f"{p99_s:.2f}", f"{1 - p99_s / alone_p99_s:.0%}" if alone_p99_s and arm != "alone" else "",
        f"{np.mean([each.qoe for each in got]):.3f}", f"{np.mean([each.writers[:1] == [LOCAL] for each in got]):.0%}",
        len(gaps_s), sum(gap_s > 1 / tds for gap_s in gaps_s), f"{max(gaps_s):.2f}" if gaps_s else "",
        len(rescued_s), f"{max(rescued_s):.2f}" if rescued_s else "",
        fleet, f"{1 - fleet / max(1, shown):.0%}", f"{lag_s:.1f}",
    )  # fmt: skip


def table(rows: Sequence[Sequence[object]]) -> str:
    """Without columns that say nothing of these runs."""
    told = [k for k, name in enumerate(COLUMNS) if name == "failed" or any(cells[k] not in ("", 0) for cells in rows)]
    lines = [*header(*(COLUMNS[k] for k in told)), *(row(*(cells[k] for k in told)) for cells in rows)]
    return "\n".join(lines)


def picture(kept: Mapping[str, Sequence[Got]]) -> str:
    """Shares of readers who had their first word by then."""
    series: list[Series] = []
    for k, (name, got) in enumerate(kept.items()):
        ttft_s = sorted(each.ttft_s for each in got if each.ttft_s is not None)
        shares = [(k + 1) / len(got) for k in range(len(ttft_s))]
        series.append((name, COLOURS[k % len(COLOURS)], [0.0, *ttft_s], [0.0, *shares]))
    key = "".join(
        f'<text x="250" y="{150 + 14 * k}" fill="{colour}">{name}</text>'
        for k, (name, colour, _, _) in enumerate(series)
    )
    drawn = plot(series, "seconds to the first word", "share of readers", y_max=1.0)
    return re.sub(
        "<svg ", '<svg xmlns="http://www.w3.org/2000/svg" font-family="sans-serif" font-size="11" ', drawn, count=1
    ).replace("</svg>", key + "</svg>")


def played(args: argparse.Namespace, out: Path) -> Iterator[tuple[str, str, list[Got], float]]:
    """Policy, arm, what the readers got, and the server's largest lag, arm by arm."""
    model = SmallModel(args.model) if args.model else None
    speed = 1.0 if model else args.speed
    phone = out / "phone.toml"
    phone.write_text(PHONE)
    asked = questions(args.requests, args.load, args.slots, args.seed, answer=args.answer, real=model is not None)
    for policy in args.policies:
        for arm in args.arms:
            print(
                f"{policy}, {arm}: {len(asked)} readers in {asked[-1].at_s / speed:.0f} s", file=sys.stderr, flush=True
            )
            with ExitStack() as stack:
                common = ("--engine", "sim", "--speed", str(speed))
                slots = ("--max-running-requests", str(args.slots))
                server = Engine("simulated", policy, (*common, "--profile", PROFILE, *slots), log=out / "server.log")
                stack.enter_context(server)
                logs = [] if model else [out / f"phone{k}.log" for k in range(PHONES)]
                flags = (*common, "--profile", str(phone))
                phones = [stack.enter_context(Engine("phone", "stock", flags, log=log)) for log in logs]
                devices: list[Any] = [model] if model else [*phones]
                run = Run(server, devices, arm, speed, args.tds)
                got = asyncio.run(run.play(asked, args.outage))
            yield policy, arm, got, run.lag_s


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n\n")[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--policies", type=listed(("stock", "andes")), default=["stock", "andes"], help="of the server")
    parser.add_argument("--arms", type=listed(ARMS), default=list(ARMS), help="how the answers are asked for")
    parser.add_argument("--requests", type=int, default=150, help="of each run")
    parser.add_argument("--load", type=float, default=1.25, help="of what the server sustains")
    parser.add_argument("--answer", type=int, default=120, help="tokens, the median of answers")
    parser.add_argument("--slots", type=int, default=6, help="streams that the server decodes at a time")
    parser.add_argument("--tds", type=float, default=TDS, help="reading speed, tokens/s")
    parser.add_argument("--speed", type=float, default=1.0, help="simulated seconds in one real second")
    parser.add_argument("--seed", type=int, default=1, help="of arrivals and lengths")
    parser.add_argument("--outage", action="store_true", help="kill the server when half of the requests have come")
    parser.add_argument(
        "--model", type=Path, help="folder of a small model (make small-model): the device, in this process"
    )
    parser.add_argument("--out", type=Path, default=Path("out/second-device"), help="folder for figures and picture")
    args = parser.parse_args()
    if args.model and not (args.model / "config.json").exists():
        parser.error(f"--model {args.model}: holds no model; `make small-model` makes one in out/smollm2")
    args.out.mkdir(parents=True, exist_ok=True)
    kept: dict[str, list[Got]] = {}
    alone_p99_s: dict[str, float] = {}
    rows: list[Sequence[object]] = []
    for policy, arm, got, lag_s in played(args, args.out):
        if arm == "alone":
            alone_p99_s[policy] = float(
                np.percentile([each.ttft_s for each in got if each.ttft_s is not None] or [math.nan], 99)
            )
        kept[f"{policy}, {arm}"] = got
        rows.append(cells(policy, arm, got, alone_p99_s.get(policy), lag_s=lag_s, tds=args.tds))
        figures = {name: [asdict(each) for each in those] for name, those in kept.items()}
        (args.out / "readers.json").write_text(json.dumps(figures))
        (args.out / "first-words.svg").write_text(picture(kept))
        (args.out / "table.md").write_text(table(rows) + "\n")
    print(table(rows))
    print(f"table, picture (first-words.svg) and every reader (readers.json) in {args.out}", file=sys.stderr)


if __name__ == "__main__":
    main()
