"""A gateway under a thousand streams that come and go, before engines that die and stop: memory, sockets and tasks stay flat,
and every answer that is read to its end is, to the letter, what an undisturbed engine says.

    python benchmarks/gateway_soak.py [--streams 1000] [--minutes 60] [--engines 3] [--trouble-every 45] [--speed 0.02]

Engines are simulated ones in processes of their own, a fiftieth as fast as real ones so that one CPU core suffices. Ends with
status 1 where something grows, is left behind or reads wrong. Prints the table of docs/benchmarks/soak.md.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp

from andes_sglang.bench.engine import Engine, read_metrics
from andes_sglang.bench.ports import free_port
from andes_sglang.qoe import QoETarget
from andes_sglang.sim.server.bodies import Limits, read_chat
from andes_sglang.sim.server.choice import plan
from benchmarks.markdown import header, row
from benchmarks.processes import cpu_s, rss_mb

__all__ = ["Soak", "main"]

MIN_TOKENS, MAX_TOKENS = 10, 40
LEAVES, WHOLE, WRONG = 0.10, 0.05, 0.05
"""Shares of clients that leave in the middle, that do not stream, and whose request is refused."""
SAMPLE_S = 5.0
METRICS_TIMEOUT_S = 30.0
STOPPED_S = 20.0
"""Seconds for which an engine is stopped; the gateway moves its streams after five to ten."""
IDLE_S = 10.0
"""Seconds after which a gateway without requests holds only the connections of its probes: it closes others after four."""
PROBE_CONNECTIONS = 4
"""Per engine: probes once a second use in turn, and so keep, what was opened in the last four seconds."""
GROWTH = 1.10
"""Ratio of the last quarter's mean to that of the second above which a figure has grown: samples differ by a few percent."""
LIMITS = Limits(1 << 20, 1 << 20, 256.0, QoETarget(1.0, 4.8))


@dataclass
class Soak:
    """One run. ended: clients by how it went for them; wrong: what was read that should not have been."""

    url: str
    pid: int
    streams: int
    until_s: float
    ended: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    samples: list[dict[str, float]] = field(default_factory=list)
    troubles: int = 0

    async def client(self, session: aiohttp.ClientSession, number: int) -> None:
        """One after the other, each with a prompt of its own."""
        rng = random.Random(number)
        turn = 0
        while time.monotonic() < self.until_s:
            turn += 1
            kind = rng.choices(
                ["read", "left", "whole", "refused"], [1 - LEAVES - WHOLE - WRONG, LEAVES, WHOLE, WRONG]
            )[0]
            body: dict[str, Any] = {
                "model": "simulated", "messages": [{"role": "user", "content": f"Tell {number} of {turn}."}],
                "max_tokens": rng.randint(MIN_TOKENS, MAX_TOKENS), "temperature": 0, "ignore_eos": True,
                "stream": kind in ("read", "left"),
            }  # fmt: skip
            if kind == "refused":
                body["messages"] = "none"
            async with session.post(self.url + "/v1/chat/completions", json=body) as answer:
                if kind == "left":
                    await answer.content.readany()
                    self.ended[kind] += 1
                    answer.close()
                    continue
                content = await answer.read()
            expected = 400 if kind == "refused" else 200
            if answer.status != expected:
                self.ended[f"status {answer.status}"] += 1
                self.wrong.append(f"{kind}: {answer.status} {content[:200]!r}")
            elif kind in ("read", "whole") and text_of(content) != said_undisturbed(body):
                self.ended["wrong text"] += 1
                self.wrong.append(f"{body['messages'][0]['content']}: {content[-200:]!r}")
            else:
                self.ended[kind] += 1

    async def sample(self) -> None:
        """Memory, sockets, tasks and open streams of the gateway, until it is over."""
        began_s = time.monotonic()
        while time.monotonic() < self.until_s:
            await asyncio.sleep(SAMPLE_S)
            figures = await asyncio.to_thread(read_metrics, self.url, METRICS_TIMEOUT_S)
            if not figures:  # not in time, on a crowded machine
                continue
            self.samples.append({
                "at_s": time.monotonic() - began_s,
                "memory, MiB": rss_mb(self.pid),
                "file descriptors": len(os.listdir(f"/proc/{self.pid}/fd")),
                "tasks": figures["andes_gateway_tasks"],
                "open streams": sum(v for k, v in figures.items() if k.startswith("andes_gateway_streams{")),
                "CPU, s": cpu_s(self.pid),
            })  # fmt: skip
            print(
                " ".join(f"{name}: {value:.0f}" for name, value in self.samples[-1].items()),
                file=sys.stderr,
                flush=True,
            )

    async def trouble(self, engines: list[Engine], every_s: float) -> None:
        """Kill and stop engines in turn, one at a time."""
        while time.monotonic() + every_s < self.until_s:
            await asyncio.sleep(every_s)
            engine = engines[self.troubles % len(engines)]
            self.troubles += 1
            assert engine._process is not None
            if self.troubles % 2:
                os.killpg(engine._process.pid, signal.SIGKILL)
                await asyncio.to_thread(engine.stop)
                await asyncio.to_thread(engine.__enter__)
            else:
                os.killpg(engine._process.pid, signal.SIGSTOP)
                await asyncio.sleep(STOPPED_S)
                os.killpg(engine._process.pid, signal.SIGCONT)

    async def run(self, engines: list[Engine], every_s: float) -> None:
        connector = aiohttp.TCPConnector(limit=0, force_close=True)
        async with aiohttp.ClientSession(connector=connector, timeout=aiohttp.ClientTimeout(total=600)) as session:
            watch = [asyncio.create_task(self.sample()), asyncio.create_task(self.trouble(engines, every_s))]
            await asyncio.gather(*(self.client(session, number) for number in range(self.streams)))
            await asyncio.gather(*watch)

    def quarter(self, name: str, which: int) -> float:
        """The mean of a figure over one of four parts of the run."""
        size = max(1, len(self.samples) // 4)
        values = [sample[name] for sample in self.samples[which * size : (which + 1) * size or None]]
        return sum(values) / len(values)

    def grown(self) -> list[str]:
        """What the last quarter has more of than the second, sockets and tasks for each open stream."""
        found = []
        for name in ("memory, MiB", "file descriptors", "tasks"):
            first, last = (
                self.quarter(name, k) / (1.0 if name == "memory, MiB" else max(1.0, self.quarter("open streams", k)))
                for k in (1, 3)
            )
            if last > GROWTH * first:
                found.append(f"{name} grew from {first:.1f} to {last:.1f}")
        return found


def text_of(content: bytes) -> str:
    """What was said, in a stream or in one piece."""
    if not content.startswith(b"data:") and not content.startswith(b":"):
        return str(json.loads(content)["choices"][0]["message"]["content"])
    events = [json.loads(line[6:]) for line in content.split(b"\n\n") if line.startswith(b"data: {")]
    return "".join(c["delta"].get("content") or "" for event in events for c in event.get("choices", ()))


def said_undisturbed(body: dict[str, Any]) -> str:
    asked = read_chat(body, LIMITS)
    choice = plan(asked, asked.prompts[0], 0, LIMITS)
    return choice.text(0, choice.tokens)


def table(soak: Soak) -> str:
    """Quarter by quarter."""
    names = ("memory, MiB", "file descriptors", "tasks", "open streams")
    lines = [*header("mean over", *names)]
    for k, quarter in enumerate(("first quarter", "second", "third", "last")):
        lines.append(row(quarter, *(f"{soak.quarter(name, k):.0f}" for name in names)))
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--streams", type=int, default=1000, metavar="N", help="open at a time")
    parser.add_argument("--minutes", type=float, default=60.0, metavar="M")
    parser.add_argument("--engines", type=int, default=3, metavar="N")
    parser.add_argument(
        "--trouble-every", type=float, default=45.0, metavar="S", help="seconds between deaths of an engine"
    )
    parser.add_argument(
        "--speed", type=float, default=0.02, metavar="X",
        help="simulated seconds a second: at 0.02, 1,000 streams get about as many tokens/s; default: %(default)s",
    )  # fmt: skip
    args = parser.parse_args()
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        flags = ("--engine", "sim", "--speed", str(args.speed))
        engines = [
            stack.enter_context(Engine("simulated", "andes", flags, log=folder / f"engine{k}.log"))
            for k in range(args.engines)
        ]
        port = free_port()
        command = [sys.executable, "-m", "andes_sglang.cli", "gateway", "--port", str(port), "--admission", "false"]
        command += ["--demand-records", "500"]  # full early: it is bounded, and grows until then
        for engine in engines:
            command += ["--upstream", engine.url]
        log = stack.enter_context((folder / "gateway.log").open("w"))
        gateway = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=log)
        stack.callback(gateway.kill)
        url = f"http://127.0.0.1:{port}"
        while not read_metrics(url):
            time.sleep(0.1)
        time.sleep(IDLE_S)
        idle = (len(os.listdir(f"/proc/{gateway.pid}/fd")), read_metrics(url)["andes_gateway_tasks"])
        soak = Soak(url, gateway.pid, args.streams, time.monotonic() + 60 * args.minutes)
        asyncio.run(soak.run(engines, args.trouble_every))
        time.sleep(IDLE_S)
        left = (len(os.listdir(f"/proc/{gateway.pid}/fd")), read_metrics(url)["andes_gateway_tasks"])
        figures = read_metrics(url)
        faults = [*soak.grown(), *soak.wrong]
        if left[0] > idle[0] + PROBE_CONNECTIONS * args.engines or left[1] > idle[1]:
            faults.append(
                f"left behind: {left[0]} file descriptors and {left[1]:.0f} tasks; before {idle[0]} and {idle[1]:.0f}"
            )
        with suppress(OSError):
            faults += [line for line in (folder / "gateway.log").read_text().splitlines() if "ERROR" in line]
    print(table(soak))
    print(f"clients: {dict(soak.ended)}; engines killed or stopped: {soak.troubles}")
    moves = {name: figures.get(f"andes_gateway_{name}_total", 0) for name in ("resumes", "retries")}
    print(f"moved: {moves['resumes']:.0f}, tried again: {moves['retries']:.0f}")
    print(f"CPU of the gateway: {soak.samples[-1]['CPU, s'] / soak.samples[-1]['at_s']:.2f} cores")
    print(f"file descriptors and tasks idle: {idle[0]}, {idle[1]:.0f}; in the end: {left[0]}, {left[1]:.0f}")
    for fault in faults[:50]:
        print(fault)
    raise SystemExit(1 if faults else 0)


if __name__ == "__main__":
    main()
