"""What the gateway adds: latency per token and to the first token, and tokens/s a core, against the engine direct.

    python benchmarks/gateway.py [--streams 1,100,1000] [--seconds 10] [--rounds 5] [--also NAME=URL ...]

A source process streams chat chunks with ``continuous_usage_stats`` as SGLang does, each with the clock of its sending in it;
a client process notes the clock of its arrival. Both see the same monotonic clock, so the difference is the way through.
Every round takes the paths (direct, gateway, and whatever ``--also`` names) in a new order; figures are of all rounds
together. tokens/s per core: tokens relayed flat out over the CPU seconds of the gateway's process. ``--also`` may name any
proxy that the caller has put in front of the source's address, which is fixed by ``--source-port``.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import socket
import subprocess
import sys
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import aiohttp
import numpy as np

HEAD = (
    b'data: {"id":"chatcmpl-1","object":"chat.completion.chunk","created":1,"model":"m","choices":[{"index":0,"delta":'
)
SPEED = 10.0  # tokens/s of a stream, twice what people read
JSON = b"HTTP/1.1 %b\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%b"


def chunk(k: int, usage: bool) -> bytes:
    """Chunk ``k`` as SGLang writes it, the clock of its sending as its text."""
    text = HEAD + b'{"content":"%d "},"logprobs":null,"finish_reason":null}]' % time.monotonic_ns()
    figures = b',"usage":{"prompt_tokens":9,"total_tokens":%d,"completion_tokens":%d,"prompt_tokens_details":null}'
    return text + (figures % (9 + k, k) if usage else b"") + b"}\n\n"


class Source(asyncio.Protocol):
    """An engine reduced to its streams: ``max_tokens`` chunks, one every ``seed`` microseconds (0: flat out)."""

    def __init__(self) -> None:
        self._received = b""
        self._room = asyncio.Event()
        self._room.set()
        self._tasks: set[asyncio.Task[None]] = set()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._out = transport
        sock = transport.get_extra_info("socket")
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def pause_writing(self) -> None:
        self._room.clear()

    def resume_writing(self) -> None:
        self._room.set()

    def data_received(self, data: bytes) -> None:
        self._received += data
        head, end, body = self._received.partition(b"\r\n\r\n")
        length = int((head.lower().partition(b"content-length:")[2].split() or [b"0"])[0])
        if not end or len(body) < length:
            return
        self._received = body[length:]
        if head.startswith(b"GET"):
            status = b"200 OK" if b" /health" in head or b" /v1/models" in head else b"404 Not Found"
            said = b'{"object":"list","data":[{"id":"m","object":"model"}]}'
            self._out.write(JSON % (status, len(said), said))
            return
        asked = json.loads(body[:length])
        usage = bool((asked.get("stream_options") or {}).get("continuous_usage_stats"))
        task = asyncio.create_task(self._stream(asked["max_tokens"], asked.get("seed", 0) / 1e6, usage))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _stream(self, tokens: int, gap_s: float, usage: bool) -> None:
        write = self._out.write
        write(
            b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\ntransfer-encoding: chunked\r\n\r\n"
        )
        next_s = time.monotonic()
        for k in range(1, tokens + 1):
            event = chunk(k, usage)
            write(b"%x\r\n%b\r\n" % (len(event), event))
            next_s += gap_s
            if gap_s:
                await asyncio.sleep(next_s - time.monotonic())
            elif not self._room.is_set() or k % 8 == 0:
                await asyncio.sleep(0)
                await self._room.wait()
        write(b"e\r\ndata: [DONE]\n\n\r\n0\r\n\r\n")


async def serve_source(port: int) -> None:
    server = await asyncio.get_running_loop().create_server(Source, "127.0.0.1", port, backlog=4096)
    print("ready", flush=True)
    await server.serve_forever()


async def load(url: str, streams: int, tokens: int, gap_s: float) -> dict[str, Any]:
    """Open ``streams`` streams at once; seconds from sending to arrival of every token, and until all had ended."""
    per_token: list[float] = []
    ttft: list[float] = []
    lines = 0
    body = {"model": "m", "messages": [{"role": "user", "content": "x"}], "max_tokens": tokens, "stream": True}
    body["seed"] = int(gap_s * 1e6)

    async def one(session: aiohttp.ClientSession, delay_s: float) -> None:
        nonlocal lines
        await asyncio.sleep(delay_s)
        begun = time.monotonic()
        first = True
        async with session.post(url + "/v1/chat/completions", json=body) as answer:
            if answer.status != 200:
                raise SystemExit(f"{url} answered {answer.status}: {await answer.text()}")
            async for data in answer.content.iter_any():
                now_ns = time.monotonic_ns()
                if first:
                    ttft.append(now_ns / 1e9 - begun)
                    first = False
                lines += data.count(b"\n")
                if gap_s:
                    parts = data.split(b'"content":"')[1:]
                    per_token.extend(
                        (now_ns - int(part[: part.index(b" ")])) / 1e9 for part in parts if b" " in part[:24]
                    )

    async with aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0),
        timeout=aiohttp.ClientTimeout(total=600),
        headers={"authorization": "Bearer sk-1"},
    ) as session:
        begun = time.monotonic()
        await asyncio.gather(*(one(session, gap_s * k / streams) for k in range(streams)))
        lasted_s = time.monotonic() - begun
    count = lines // 2 - streams  # two to an event, one of which ends each stream
    assert count >= streams * tokens, f"{count} tokens came of {streams * tokens}"
    return {"per_token_s": per_token, "ttft_s": ttft, "tokens": count, "lasted_s": lasted_s}


def cpu_s(pid: int) -> float:
    """CPU seconds of a process and its children."""
    total = 0.0
    for stat in [Path(f"/proc/{pid}/stat"), *(Path(f"/proc/{c}/stat") for c in children(pid))]:
        fields = stat.read_text().rpartition(")")[2].split()
        total += (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    return total


def children(pid: int) -> list[int]:
    return [int(c) for c in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--streams", default="1,100,1000")
    parser.add_argument("--seconds", type=float, default=10.0, help="of streaming in each measurement")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument(
        "--flat-out", type=int, default=20_000, metavar="N", help="tokens for tokens/s per core; 0: none"
    )
    parser.add_argument("--source-port", type=int, default=18_001)
    parser.add_argument("--also", action="append", default=[], metavar="NAME=URL[=PID]", help="another proxy")
    parser.add_argument("--out", type=Path, help="write the figures there as JSON")
    parser.add_argument("--source", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.source:
        asyncio.run(serve_source(args.source_port))
        return
    source_url, port = f"http://127.0.0.1:{args.source_port}", args.source_port + 1
    source = subprocess.Popen(
        [sys.executable, __file__, "--source", "--source-port", str(args.source_port)], stdout=subprocess.PIPE
    )
    command = [sys.executable, "-m", "andes_sglang.cli", "gateway", "--upstream", source_url, "--port", str(port)]
    environment = {**os.environ, "ANDES_GATEWAY_ADMISSION": "false", "ANDES_GATEWAY_ACCESS_LOG": "false"}
    environment |= {"ANDES_GATEWAY_MAX_STREAMS_PER_REPLICA": "4096"}
    gateway = subprocess.Popen(command, stderr=subprocess.PIPE, env=environment)
    try:
        assert source.stdout is not None
        assert gateway.stderr is not None
        source.stdout.readline()
        while b"listens" not in (line := gateway.stderr.readline()):
            if not line:
                raise SystemExit("the gateway did not start")
        paths: dict[str, tuple[str, int | None]] = {
            "direct": (source_url, source.pid), "gateway": (f"http://127.0.0.1:{port}", gateway.pid),
        }  # fmt: skip
        for given in args.also:
            name, url, *pid = given.split("=")
            paths[name] = (url, int(pid[0]) if pid else None)
        figures = measure(args, paths)
    finally:
        for process in (gateway, source):
            process.terminate()
            process.wait(20)
    show(figures)
    if args.out:
        args.out.write_text(json.dumps(figures, indent=1))


def measure(args: argparse.Namespace, paths: dict[str, tuple[str, int | None]]) -> list[dict[str, Any]]:
    shuffle = random.Random(1)
    gap_s = 1.0 / SPEED
    rows: dict[tuple[str, int], dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    asyncio.run(load(paths["gateway"][0], 10, 100, 0.0))
    for _ in range(args.rounds):
        for streams in map(int, args.streams.split(",")):
            for name in shuffle.sample(list(paths), len(paths)):
                url, pid = paths[name]
                before_s = cpu_s(pid) if pid else 0.0
                found = asyncio.run(load(url, streams, int(args.seconds / gap_s), gap_s))
                row = rows[name, streams]
                row["per_token_s"] += found["per_token_s"]
                row["ttft_s"] += found["ttft_s"]
                row["cpu_us"].append(1e6 * (cpu_s(pid) - before_s) / found["tokens"] if pid else float("nan"))
        for name in shuffle.sample(list(paths), len(paths)) if args.flat_out else ():
            url, pid = paths[name]
            before_s = cpu_s(pid) if pid else 0.0
            found = asyncio.run(load(url, 20, args.flat_out // 20, 0.0))
            row = rows[name, 0]
            row["tokens_per_s"].append(found["tokens"] / found["lasted_s"])
            if pid:
                row["per_core"].append(found["tokens"] / max(0.01, cpu_s(pid) - before_s))
    return [{"path": name, "streams": streams, **_figures(row)} for (name, streams), row in rows.items()]


def _figures(row: dict[str, list[float]]) -> dict[str, float]:
    found: dict[str, float] = {}
    for name in ("per_token_s", "ttft_s"):
        if row[name]:
            p50, p99 = np.percentile(row[name], (50, 99))
            found |= {f"{name[:-2]}_p50_ms": 1e3 * float(p50), f"{name[:-2]}_p99_ms": 1e3 * float(p99)}
    for name in ("cpu_us", "tokens_per_s", "per_core"):
        if row[name]:
            found |= {name: float(np.median(row[name])), f"{name}_min": min(row[name]), f"{name}_max": max(row[name])}
    return found


def show(figures: list[dict[str, Any]]) -> None:
    direct = {row["streams"]: row for row in figures if row["path"] == "direct"}
    print(
        "| path | streams | token p50, ms | p99 | added p50 | added p99 | TTFT p50, ms | p99 | added p50 | CPU us/token |"
    )
    print("|---|---|---|---|---|---|---|---|---|---|")
    for row in sorted((r for r in figures if r["streams"]), key=lambda r: (r["streams"], r["path"])):
        base = direct[row["streams"]]
        cells = [row["path"], row["streams"]]
        cells += [f"{row[f'per_token_{p}_ms']:.2f}" for p in ("p50", "p99")]
        cells += [f"{row[f'per_token_{p}_ms'] - base[f'per_token_{p}_ms']:+.2f}" for p in ("p50", "p99")]
        cells += [f"{row[f'ttft_{p}_ms']:.2f}" for p in ("p50", "p99")]
        cells += [f"{row['ttft_p50_ms'] - base['ttft_p50_ms']:+.2f}", f"{row['cpu_us']:.0f}"]
        print("| " + " | ".join(map(str, cells)) + " |")
    print("\n| path | tokens/s flat out | tokens/s per core (min to max) |\n|---|---|---|")
    for row in (r for r in figures if not r["streams"]):
        core = (
            f"{row['per_core']:,.0f} ({row['per_core_min']:,.0f} to {row['per_core_max']:,.0f})"
            if "per_core" in row
            else "-"
        )
        print(f"| {row['path']} | {row['tokens_per_s']:,.0f} | {core} |")


if __name__ == "__main__":
    main()
