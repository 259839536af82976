"""Readers on slow, far, lossy and halting links: whether their scores are true, and what they cost the others.

    python benchmarks/slow_links.py scores [--links lossy,breaks] [--each 4]
    python benchmarks/slow_links.py others [--seeds 2]

Real time, real sockets, real TCP: a gateway before a simulated engine, and clients on the links of :mod:`benchmarks.links`.
A client scores itself by when its program has each token. ``scores`` compares that with what the gateway reports. ``others``
plays the burst of 1.25 C of :mod:`benchmarks.slow_readers`, in which every tenth reader is on one of those links or, in turn,
reads like the others; figures are of the other readers, by their own clocks.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import re
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from andes_sglang.arms import Arm
from andes_sglang.bench.engine import Engine
from andes_sglang.qoe import QoETarget, ReaderStream
from andes_sglang.request import RequestSpec
from benchmarks.arguments import listed
from benchmarks.gateways import running_gateway
from benchmarks.links import SERVER, Network, in_a_namespace
from benchmarks.markdown import Lines, header, row
from benchmarks.runs import Case, SimulatedRuns
from benchmarks.settings import SETTINGS
from benchmarks.slow_readers import EVENT_BYTES, EVERY, LOAD, SLOW_TDS, STALL_FROM_S, STALL_S

SETTING = SETTINGS["cpu"]
WORD = "ask "
"""A token of a prompt, as the simulated engine counts."""


@dataclass(frozen=True)
class Kind:
    """Of a link. of: what both its directions are. stall: what happens to packets for a while, from STALL_FROM_S on."""

    title: str
    of: Mapping[str, float] = field(default_factory=dict)
    stall: Literal["", "wait", "are lost"] = ""


LINKS = {
    "slow": Kind("1 token/s", {"rate": 1.25 * EVENT_BYTES * SLOW_TDS}),
    "far": Kind("200 ms each way", {"delay_s": 0.2}),
    "lossy": Kind("1 % lost, 40 ms each way", {"loss": 0.01, "delay_s": 0.04}),
    "far-lossy": Kind("5 % lost, 200 ms each way", {"loss": 0.05, "delay_s": 0.2}),
    "holds": Kind("stands still, packets wait", {"delay_s": 0.02}, "wait"),
    "breaks": Kind("stands still, packets are lost", {"delay_s": 0.02}, "are lost"),
}
PERFECT = Kind("as the others", {"queue": 100_000})


@dataclass
class Reader:
    """One answer, asked for over link ``number`` of the network. got: what has come of it. report: what the gateway says.
    own: as this reader had it. stall_s: for how long its link stands still, if it does."""

    kind: Kind
    network: Network
    number: int
    target: QoETarget
    tokens: int
    prompt: str = WORD
    stall_s: float = STALL_S
    got: bytes = b""
    report: dict[str, Any] = field(default_factory=dict)
    own: ReaderStream = field(init=False)

    def __post_init__(self) -> None:
        self.own = ReaderStream(0.0, self.target)
        self.links = self.network.to[self.number], self.network.back[self.number]
        for link in self.links:
            for name, value in self.kind.of.items():
                setattr(link, name, value)

    async def ask(self, port: int) -> None:
        reader, writer = await asyncio.open_connection(SERVER, port, local_addr=(self.network.address(self.number), 0))
        self.own = ReaderStream(time.monotonic(), self.target)
        writer.write(self._request())
        stalling = asyncio.create_task(self._stall()) if self.kind.stall else None
        while b"[DONE]" not in self.got and (data := await reader.read(65536)):
            self.got += data
            tokens = len(re.findall(rb'"text":"[^"]', self.got.rpartition(b"\n\n")[0]))
            self.own.deliver(time.monotonic(), tokens - self.own.delivered)
        if stalling is not None:
            await stalling
        writer.close()
        said = re.findall(rb"data: (\{.*\})\n\n", re.sub(rb"\r\n[0-9a-f]+\r\n", b"\r\n", self.got))
        self.report = json.loads(said[-1])["usage"]["andes"]

    def _request(self) -> bytes:
        asked = {"model": "simulated", "prompt": self.prompt, "max_tokens": self.tokens, "stream": True}
        body = json.dumps({**asked, "ignore_eos": True})
        lines = [
            "POST /v1/completions HTTP/1.1", "host: x", "content-type: application/json", "x-andes-report: usage",
            f"x-andes-ttft-ms: {1000 * self.target.ttft_s:g}", f"x-andes-tds: {self.target.tds:g}",
            f"content-length: {len(body)}", "", body,
        ]  # fmt: skip
        return "\r\n".join(lines).encode()

    async def _stall(self) -> None:
        await asyncio.sleep(STALL_FROM_S)
        for link in self.links:
            if self.kind.stall == "wait":
                link.stall(time.monotonic() + self.stall_s)
            else:
                link.loss = 1.0
        await asyncio.sleep(self.stall_s)
        for link in self.links:
            link.loss = self.kind.of.get("loss", 0.0)

    @property
    def qoe(self) -> float:
        return self.own.final_qoe()

    @property
    def difference(self) -> float:
        """Of the gateway's score and its own."""
        return abs(self.qoe - float(self.report["qoe"]))

    @property
    def packets(self) -> tuple[int, int]:
        """Lost, and all."""
        lost, carried = (sum(getattr(link, name) for link in self.links) for name in ("lost", "carried"))
        return lost, lost + carried


@contextmanager
def served(*flags: str) -> Iterator[int]:
    """The port of a gateway on the network, before a simulated engine."""
    with tempfile.TemporaryDirectory() as folder:
        engine = Engine("simulated", "andes", ("--engine", "sim", *flags), log=Path(folder) / "engine.log")
        with engine, running_gateway(engine.url, host=SERVER) as url:
            yield int(url.rpartition(":")[2])


def compared(found: Sequence[Reader]) -> tuple[str, ...]:
    """Cells of a table: whose links were like this."""
    lost, packets = (sum(column) for column in zip(*(reader.packets for reader in found)))
    own, told, written = (
        np.mean([value(reader) for reader in found])
        for value in (lambda r: r.qoe, lambda r: float(r.report["qoe"]), lambda r: float(r.report["served_qoe"]))
    )
    worst = max(reader.difference for reader in found)
    return (str(len(found)), f"{lost} of {packets}", f"{own:.3f}", f"{told:.3f}", f"{worst:.3f}", f"{written:.3f}")


COMPARED = (
    "streams",
    "packets lost",
    "QoE by the client",
    "by the gateway",
    "largest difference",
    "if written were read",
)


def scores(args: argparse.Namespace) -> Lines:
    """The table."""
    kinds = [LINKS[name] for name in args.links]
    target = QoETarget(args.ttft_s, args.tds)
    with Network(args.each * len(kinds)) as network, served("--speed", f"{args.speed:g}") as port:
        readers = [
            # a slow link takes twice as long for half as much
            Reader(kind, network, k, target, args.tokens // (2 if "rate" in kind.of else 1), stall_s=args.stall_s)
            for k, kind in enumerate(kinds * args.each)
        ]

        async def ask() -> None:
            await asyncio.gather(*(reader.ask(port) for reader in readers))

        network.run(lambda: asyncio.run(ask()))
    yield from header("link", *COMPARED)
    for kind in kinds:
        yield row(kind.title, *compared([reader for reader in readers if reader.kind is kind]))


def play(requests: Sequence[RequestSpec], slow: bool) -> list[Reader]:
    """The readers of ``requests``, in their order. slow: every tenth one is on a link of ``LINKS``, each in its turn."""
    kinds = list(LINKS.values())
    with (
        Network(len(requests) // EVERY + 2) as network,
        served("--profile", SETTING.profile, "--enable-mixed-chunk") as port,
    ):
        readers = []
        for k, spec in enumerate(requests):
            is_slow = slow and k % EVERY == 0
            kind = kinds[k // EVERY % len(kinds)] if is_slow else PERFECT
            number = k // EVERY + 1 if is_slow else 0  # the others share one link, which holds no reader up
            prompt = f"{k} " + WORD * (spec.prompt_tokens - 1)
            readers.append(Reader(kind, network, number, spec.target, spec.output_tokens, prompt))

        async def ask() -> None:
            began_s, tasks = time.monotonic(), []
            for spec, reader in zip(requests, readers):
                await asyncio.sleep(max(0.0, began_s + spec.arrival_s - time.monotonic()))
                tasks.append(asyncio.create_task(reader.ask(port)))
            await asyncio.gather(*tasks)

        network.run(lambda: asyncio.run(ask()))
    return readers


def others(args: argparse.Namespace) -> Lines:
    """A row for each run, then the scores of the slow readers of all runs."""
    runs, slow_ones = SimulatedRuns(args.out, None, args.seeds), []
    yield from header("seed", "every tenth reader", "others", "mean QoE", "p5", "TTFT p90, s")
    for seed in range(args.seeds):
        case = Case("cpu", "burst", LOAD, SETTING.burst_s, seed, Arm("andes", ("--enable-mixed-chunk",)))
        requests, since_s, until_s = runs.requests(case)
        requests = [spec for spec in requests if spec.arrival_s < until_s]
        order = (False, True) if seed % 2 else (True, False)
        for slow in order:
            readers = play(requests, slow)
            found = [r for k, (r, spec) in enumerate(zip(readers, requests)) if k % EVERY and spec.arrival_s >= since_s]
            qoe = np.array([reader.qoe for reader in found])
            ttft_s = np.quantile([float(reader.report["ttft_s"]) for reader in found], 0.9)
            how = "is on one of these links" if slow else "reads like the others"
            yield row(seed, how, len(found), f"{qoe.mean():.3f}", f"{np.quantile(qoe, 0.05):.3f}", f"{ttft_s:.1f}")
            slow_ones += [reader for reader in readers if reader.kind is not PERFECT]
    yield ""
    yield from header("link", *COMPARED)
    for kind in LINKS.values():
        yield row(kind.title, *compared([reader for reader in slow_ones if reader.kind is kind]))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=str(__doc__).partition("\n")[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("what", choices=("scores", "others"))
    parser.add_argument("--links", type=listed(LINKS), default=list(LINKS), help="of `scores`")
    parser.add_argument("--each", type=int, default=4, help="readers of `scores` on every kind of link")
    parser.add_argument("--tokens", type=int, default=120, help="of an answer of `scores`")
    parser.add_argument("--ttft-s", type=float, default=0.2, help="that readers of `scores` expect")
    parser.add_argument("--tds", type=float, default=4.8, help="of readers of `scores`")
    parser.add_argument("--stall-s", type=float, default=STALL_S, help="for which links of `scores` stand still")
    parser.add_argument(
        "--speed", type=float, default=0.1, help="of the engine of `scores`: 12 tokens/s a stream at 0.1"
    )
    parser.add_argument("--seeds", type=int, default=2, help="draws of arrivals and lengths of `others`")
    parser.add_argument("--out", type=Path, default=Path("out/simulated"), help="where `others` keeps capacities")
    args = parser.parse_args()
    in_a_namespace()
    for line in (scores if args.what == "scores" else others)(args):
        print(line, flush=True)


if __name__ == "__main__":
    main()
