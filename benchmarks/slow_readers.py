"""Readers who cannot follow: what they cost the others, and whether their scores are true.

    python benchmarks/slow_readers.py others [--settings cpu,a100-13b] [--seeds 2]
    python benchmarks/slow_readers.py scores [--slow 12]

``others`` is simulated: a burst of 1.25 C of which every tenth request has a slow reader. Half of those take one token a
second, the links of the others stand still for ten seconds, once, from the third second of their answer on. What a link
takes goes through the gateway's own :class:`andes_api.receipt.Receipt`, sampled twice a second, and the engine is told what
it says. Figures are of the other readers alone; a row is the mean of the seeds.

``scores`` is real time over real sockets: simulated engine, gateway, and clients whose links are shaped by ``tc`` (htb, a
class a client) in a network namespace of its own: one token a second, or nothing for ten seconds. A client scores itself by
when its kernel had each token. Linux, with ``unshare`` and ``tc``.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from andes_api.receipt import SAMPLE_INTERVAL_S, Receipt
from andes_api.server import Server
from andes_api.settings import load
from andes_sglang.arms import Arm
from andes_sglang.bench.engine import Engine
from andes_sglang.qoe import QoETarget, ReaderStream
from andes_sglang.request import RequestRecord, RequestSpec
from andes_sglang.sim import profile as profiles
from andes_sglang.sim.configure import configure
from andes_sglang.sim.engine import EngineModel
from andes_sglang.sim.job import Job
from andes_sglang.sim.replica import Replica
from benchmarks.markdown import Lines, header, row
from benchmarks.runs import Case, SimulatedRuns
from benchmarks.settings import SETTINGS

EVENT_BYTES = 300
"""Of one token, as SGLang writes it."""
SLOW_TDS = 1.0
STALL_FROM_S, STALL_S = 3.0, 10.0
LOAD = 1.25
EVERY = 10
"""One request in so many has a slow reader."""
BURST_S = {"cpu": 120.0}
"""Of the settings that have another one than their table."""


@dataclass
class SlowLink:
    """Of one request: how much of what was generated has got through by the last look. rate: tokens/s; None: it stalls."""

    job: Job
    rate: float | None
    receipt: Receipt
    through: float = 0.0
    begun_s: float = -1.0

    def look(self, generated: int, now_s: float) -> None:
        receipt = self.receipt
        if (new := generated - receipt.written.delivered) > 0:
            self.begun_s = now_s if self.begun_s < 0 else self.begun_s
            receipt.wrote(new * EVENT_BYTES)
            receipt.delivered(now_s, new)
        stalls = self.rate is None and 0.0 <= now_s - self.begun_s - STALL_FROM_S < STALL_S
        if self.rate is not None:
            self.through = min(generated, self.through + self.rate * SAMPLE_INTERVAL_S)
        elif not stalls:
            self.through = generated
        owed = (generated - int(self.through)) / max(1, generated)
        receipt.sample(now_s, round(owed * receipt.written_bytes))


Links = Callable[[int], float | bool | None]
"""Of a request by number: False, or the rate of its reader's link, None where it stalls."""


def play(requests: list[RequestSpec], arm: Arm, engine: EngineModel, slow: Links, *, told: bool) -> list[RequestRecord]:
    """The records of ``requests``. told: whether the engine hears of slow readers."""
    engine, factory = configure(engine, arm)
    records: list[RequestRecord] = []
    replica = Replica(engine, factory(), sink=records.append, decision_interval_s=0.1)
    links: dict[str, SlowLink] = {}
    next_look_s, arrivals = 0.0, iter(enumerate(requests))
    coming = next(arrivals, None)
    while coming is not None or replica.open_requests:
        until_s = min(next_look_s, coming[1].arrival_s if coming is not None else next_look_s)
        replica.advance(until_s)
        if coming is not None and coming[1].arrival_s <= until_s:
            number, spec = coming
            job = replica.submit(spec, index=number)
            if (rate := slow(number)) is not False:
                assert not isinstance(rate, bool)
                links[job.rid] = SlowLink(job, rate, Receipt(spec.arrival_s, spec.target))
            coming = next(arrivals, None)
            continue
        next_look_s += SAMPLE_INTERVAL_S
        for rid, link in list(links.items()):
            if rid not in replica.by_rid:
                del links[rid]
                continue
            before = link.receipt.told_tokens
            link.look(replica.generated(link.job), until_s)
            if told and (link.receipt.told_tokens is not None or before is not None):
                replica.hear(link.job, link.receipt.told_tokens)
    return records


def kind_of(number: int) -> float | bool | None:
    if number % EVERY:
        return False
    return SLOW_TDS if number // EVERY % 2 else None


def others(settings: list[str], seeds: int, out: Path) -> Lines:
    """The table."""
    runs = SimulatedRuns(out, None, seeds)
    arm = Arm("andes", ("--enable-mixed-chunk",))
    yield from header("setting", "every tenth reader", "mean QoE of the others", "p5", "TTFT p90, s")
    for name in settings:
        setting = SETTINGS[name]
        engine = profiles.load(setting.profile).engine
        rows: dict[str, list[list[RequestRecord]]] = {}
        for seed in range(seeds):
            case = Case(name, "burst", LOAD, BURST_S.get(name, setting.burst_s), seed, arm)
            requests, since_s, until_s = runs.requests(case)
            without = [spec for number, spec in enumerate(requests) if number % EVERY]
            for title, asked, slow, told in (
                ("is not there", without, lambda _: False, False),
                ("reads like the others", list(requests), lambda _: False, False),
                ("is slow, engine told", list(requests), kind_of, True),
                ("is slow, engine not told", list(requests), kind_of, False),
            ):
                found = play(asked, arm, engine, slow, told=told)
                kept = [r for r in found if since_s <= r.arrival_s < until_s and (asked is without or r.index % EVERY)]
                rows.setdefault(title, []).append(kept)
        for title, drawn in rows.items():
            qoe = [np.array([record.qoe for record in kept]) for kept in drawn]
            ttft = [np.quantile([record.ttft_s for record in kept], 0.9) for kept in drawn]
            means = [float(q.mean()) for q in qoe]
            spread = f"{np.mean(means):.3f} ({min(means):.3f} to {max(means):.3f})"
            yield row(
                name, title, spread, f"{np.mean([np.quantile(q, 0.05) for q in qoe]):.3f}", f"{np.mean(ttft):.1f}"
            )


# Real links


def shape(clients: int) -> None:
    """A class of htb for each client's address, 127.1.0.K; all else is not limited."""
    run("ip", "link", "set", "lo", "mtu", "1500", "up")
    run("tc", "qdisc", "add", "dev", "lo", "root", "handle", "1:", "htb", "default", "1")
    run("tc", "class", "add", "dev", "lo", "parent", "1:", "classid", "1:1", "htb", "rate", "1gbit")
    for k in range(clients):
        at = f"1:{k + 16:x}"
        run("tc", "class", "add", "dev", "lo", "parent", "1:", "classid", at, "htb", "rate", "1gbit")
        run("tc", "filter", "add", "dev", "lo", "parent", "1:", "protocol", "ip", "prio", "1", "u32",
            "match", "ip", "dst", f"127.1.0.{k + 1}/32", "flowid", at)  # fmt: skip


def limit(k: int, bits_per_s: int | None) -> None:
    """Of client ``k``; None: as fast as this machine is."""
    at, rate = f"1:{k + 16:x}", "1gbit" if bits_per_s is None else f"{bits_per_s}bit"
    run("tc", "class", "change", "dev", "lo", "parent", "1:", "classid", at, "htb", "rate", rate, "burst", "1600",
        "cburst", "1600")  # fmt: skip


def run(*words: str) -> None:
    subprocess.run(words, check=True, capture_output=True)


class Client:
    """One slow reader on a link of its own."""

    def __init__(self, number: int, port: int, tokens: int, target: QoETarget) -> None:
        self.number, self._port, self._tokens, self._target = number, port, tokens, target
        self.got = b""
        self.report: dict[str, Any] = {}
        self.own = ReaderStream(time.monotonic(), target)

    async def run(self, stalls: bool) -> None:
        body = json.dumps({"model": "simulated", "prompt": "Tell me more.", "max_tokens": self._tokens, "stream": True})
        head = (
            f"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\nx-andes-report: usage\r\n"
            f"x-andes-ttft-ms: {1000 * self._target.ttft_s:g}\r\nx-andes-tds: {self._target.tds:g}\r\n"
            f"content-length: {len(body)}\r\n\r\n"
        )
        if not stalls:
            limit(self.number, round(8 * 1.25 * EVENT_BYTES * SLOW_TDS))
        reader, writer = await asyncio.open_connection(
            "127.0.0.1", self._port, local_addr=(f"127.1.0.{self.number + 1}", 0)
        )
        self.own = ReaderStream(time.monotonic(), self._target)
        writer.write((head + body).encode())
        stalling = asyncio.create_task(self._stall()) if stalls else None
        while b"[DONE]" not in self.got and (data := await reader.read(65536)):
            self.got += data
            tokens = len(re.findall(rb'"text":"[^"]', self.got.rpartition(b"\n\n")[0]))
            self.own.deliver(time.monotonic(), tokens - self.own.delivered)
        if stalling is not None:
            await stalling
        writer.close()
        said = re.findall(rb"data: (\{.*\})\n\n", re.sub(rb"\r\n[0-9a-f]+\r\n", b"\r\n", self.got))
        self.report = json.loads(said[-1])["usage"]["andes"]

    async def _stall(self) -> None:
        await asyncio.sleep(STALL_FROM_S)
        limit(self.number, 64)
        await asyncio.sleep(STALL_S)
        limit(self.number, None)


async def ask(port: int, slow: int, tokens: int) -> list[tuple[bool, Client]]:
    target = QoETarget(1.0, 4.8)
    clients = [(k % 2 == 1, Client(k, port, tokens if k % 2 else tokens // 2, target)) for k in range(slow)]
    await asyncio.gather(*(client.run(stalls) for stalls, client in clients))
    return clients


def scores(slow: int, tokens: int) -> Lines:
    """The table."""
    shape(slow)
    with tempfile.TemporaryDirectory() as folder:
        flags = ("--engine", "sim", "--speed", "0.2")
        with Engine("simulated", "andes", flags, log=Path(folder) / "engine.log") as engine:
            server = Server(load(upstreams=(engine.url,), port=0, access_log=False))
            thread = threading.Thread(target=lambda: asyncio.run(server.serve()), daemon=True)
            thread.start()
            while not server.started:
                time.sleep(0.05)
            clients = asyncio.run(ask(server.port, slow, tokens))
            server.should_exit = True
            thread.join(30)
    yield from header(
        "link", "streams", "QoE by the client", "by the gateway", "largest difference", "if written were read"
    )
    for stalls in (False, True):
        found = [client for kind, client in clients if kind is stalls]
        own, told = ([c.own.final_qoe() for c in found], [float(c.report["qoe"]) for c in found])
        worst = max(abs(a - b) for a, b in zip(own, told, strict=True))
        yield row(
            "nothing for 10 s" if stalls else "1 token/s", len(found), f"{np.mean(own):.3f}", f"{np.mean(told):.3f}",
            f"{worst:.3f}", f"{np.mean([float(c.report['served_qoe']) for c in found]):.3f}",
        )  # fmt: skip


def in_a_namespace() -> None:
    """Start again as root of a user and network namespace of its own."""
    if os.environ.get("ANDES_NAMESPACE") == "1":
        return
    if not (shutil.which("unshare") and shutil.which("tc")):
        raise SystemExit("scores: needs unshare and tc (util-linux, iproute2)")
    os.environ["ANDES_NAMESPACE"] = "1"
    os.execvp("unshare", ["unshare", "-rn", sys.executable, *sys.argv])  # noqa: S606, S607


def main() -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    parser.add_argument("what", choices=("others", "scores"))
    parser.add_argument("--settings", default="cpu,a100-13b")
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--slow", type=int, default=12, help="slow clients of `scores`")
    parser.add_argument("--tokens", type=int, default=120, help="of an answer of `scores`")
    parser.add_argument("--out", type=Path, default=Path("out/simulated"), help="where capacities are kept")
    args = parser.parse_args()
    if args.what == "scores":
        in_a_namespace()
    lines: Iterator[str] = (
        scores(args.slow, args.tokens)
        if args.what == "scores"
        else others(args.settings.split(","), args.seeds, args.out)
    )
    for line in lines:
        print(line, flush=True)


if __name__ == "__main__":
    main()
