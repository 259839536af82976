"""What the gateway adds: latency per token and to the first token, and tokens/s a core, against the engine direct.

    python benchmarks/gateway.py [--streams 1,100,1000] [--seconds 10] [--rounds 5] [--rivals nginx,litellm]

A source process streams chat chunks with ``continuous_usage_stats`` as SGLang does, each with the clock of its sending in it;
a client process notes the clock of its arrival. Both see the same monotonic clock, so the difference is the way through.
Every round takes the paths (direct, gateway, and the rivals that are installed: nginx unbuffered, litellm's proxy with one
worker) in a new order; figures are of all rounds together. tokens/s per core: tokens relayed in lockstep (see ``lockstep``)
over the CPU seconds of the proxy's process and its children.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections import defaultdict
from collections.abc import AsyncIterator
from contextlib import ExitStack, asynccontextmanager, suppress
from pathlib import Path
from typing import Any, ClassVar

import aiohttp
import numpy as np

from benchmarks.markdown import header
from benchmarks.markdown import row as line
from benchmarks.processes import cpu_s

HEAD = (
    b'data: {"id":"chatcmpl-1","object":"chat.completion.chunk","created":1,"model":"m","choices":[{"index":0,"delta":'
)
AUTHORIZATION = "Bearer sk-1"
"""litellm's proxy asks for a key; the others ignore it."""
STREAM_TDS = 10.0
"""Tokens/s of a stream: twice what people read (Andes, version 2, section 2: 3.8 to 5.1)."""
LOCKSTEP_STREAMS = 100
OPENINGS, OPENING_CLIENTS = 2000, 20
START_TIMEOUT_S, STOP_TIMEOUT_S, REQUEST_TIMEOUT_S = 120.0, 20.0, 600.0
BEGIN = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\ntransfer-encoding: chunked\r\n\r\n"
END = b"e\r\ndata: [DONE]\n\n\r\n0\r\n\r\n"
JSON = b"HTTP/1.1 %b\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%b"


def chunk(k: int, usage: bool) -> bytes:
    """Chunk ``k`` as SGLang writes it, the clock of its sending as its text."""
    text = HEAD + b'{"content":"%d "},"logprobs":null,"finish_reason":null}]' % time.monotonic_ns()
    figures = b',"usage":{"prompt_tokens":9,"total_tokens":%d,"completion_tokens":%d,"prompt_tokens_details":null}'
    return text + (figures % (9 + k, k) if usage else b"") + b"}\n\n"


class Source(asyncio.Protocol):
    """An engine reduced to its streams: ``max_tokens`` chunks. The message says when: "N" one every N microseconds, "#k" one
    for every line "k" that comes on a connection that begins with "#"."""

    credits: ClassVar[defaultdict[bytes, asyncio.Semaphore]] = defaultdict(lambda: asyncio.Semaphore(0))

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
        if self._received.startswith(b"#"):
            *lines, self._received = self._received[1:].split(b"\n")
            self._received = b"#" + self._received
            for line in lines:
                self.credits[line].release()
            return
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
        how = asked["messages"][0]["content"]
        stream = self._lockstep if how[0] == "#" else self._stream
        task = asyncio.create_task(stream(asked["max_tokens"], how, usage))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _lockstep(self, tokens: int, how: str, usage: bool) -> None:
        self._out.write(BEGIN)
        credit = self.credits[how[1:].encode()]
        for k in range(1, tokens + 1):
            event = chunk(k, usage)
            self._out.write(b"%x\r\n%b\r\n" % (len(event), event))
            await credit.acquire()
        self._out.write(END)

    async def _stream(self, tokens: int, how: str, usage: bool) -> None:
        write, gap_s = self._out.write, int(how) / 1e6
        write(BEGIN)
        next_s = time.monotonic()
        for k in range(1, tokens + 1):
            event = chunk(k, usage)
            write(b"%x\r\n%b\r\n" % (len(event), event))
            next_s += gap_s
            await asyncio.sleep(next_s - time.monotonic())
            await self._room.wait()
        write(END)


async def serve_source(port: int) -> None:
    server = await asyncio.get_running_loop().create_server(Source, "127.0.0.1", port, backlog=4096)
    print("ready", flush=True)
    await server.serve_forever()


def ask(how: str, tokens: int) -> dict[str, Any]:
    return {"model": "m", "messages": [{"role": "user", "content": how}], "max_tokens": tokens, "stream": True}


def client() -> aiohttp.ClientSession:
    """As many connections as there are streams."""
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0),
        timeout=aiohttp.ClientTimeout(total=REQUEST_TIMEOUT_S),
        headers={"authorization": AUTHORIZATION},
    )


@asynccontextmanager
async def chat(session: aiohttp.ClientSession, url: str, body: dict[str, Any]) -> AsyncIterator[aiohttp.ClientResponse]:
    """The streaming answer; ends the benchmark where there is none."""
    async with session.post(url + "/v1/chat/completions", json=body) as answer:
        if answer.status != 200:
            raise SystemExit(f"{url} answered {answer.status}: {await answer.text()}")
        yield answer


async def load(url: str, streams: int, tokens: int, gap_s: float) -> dict[str, Any]:
    """Open ``streams`` streams at once; seconds from sending to arrival of every token, and until all had ended."""
    per_token: list[float] = []
    ttft: list[float] = []
    came = 0
    body = ask(str(int(gap_s * 1e6)), tokens)

    async def one(session: aiohttp.ClientSession, delay_s: float) -> None:
        nonlocal came
        await asyncio.sleep(delay_s)
        begun = time.monotonic()
        first = True
        async with chat(session, url, body) as answer:
            async for data in answer.content.iter_any():
                now_ns = time.monotonic_ns()
                if first:
                    ttft.append(now_ns / 1e9 - begun)
                    first = False
                came += data.count(b'"content":"')
                parts = data.split(b'"content":"')[1:]
                per_token.extend((now_ns - int(part[: part.index(b" ")])) / 1e9 for part in parts if b" " in part[:24])

    async with client() as session:
        begun = time.monotonic()
        await asyncio.gather(*(one(session, gap_s * k / streams) for k in range(streams)))
        lasted_s = time.monotonic() - begun
    assert came >= 0.99 * streams * tokens, f"{came} tokens came of {streams * tokens}"  # reads may cut a mark in two
    return {"per_token_s": per_token, "ttft_s": ttft, "tokens": streams * tokens, "lasted_s": lasted_s}


async def lockstep(url: str, pid: int, *, source_port: int, streams: int, tokens: int) -> dict[str, float]:
    """As ``load``, but a stream's next token leaves the source when the one before has arrived here: none can travel
    together with another of its stream, so each is read and written on its own, as fast as that goes. Measured from when
    all streams have begun."""
    begun: list[float] = []
    all_here = asyncio.Barrier(streams)
    _, credit = await asyncio.open_connection("127.0.0.1", source_port)
    credit.write(b"#")

    async def one(session: aiohttp.ClientSession, k: int) -> None:
        line = b"%d\n" % k
        async with chat(session, url, ask(f"#{k}", tokens)) as answer:
            data = await answer.content.readany()
            if await all_here.wait() == 0:
                begun.extend((time.monotonic(), cpu_s(pid)))
            credit.write(line * data.count(b'"content":"'))
            async for data in answer.content.iter_any():
                credit.write(line * data.count(b'"content":"'))

    async with client() as session:
        await asyncio.gather(*(one(session, k) for k in range(streams)))
        lasted_s, used_s = time.monotonic() - begun[0], cpu_s(pid) - begun[1]
    credit.close()
    count = streams * (tokens - 1)
    return {"tokens_per_s": count / lasted_s, "per_core": count / max(0.01, used_s)}


async def openings(url: str, pid: int) -> dict[str, float]:
    """CPU milliseconds of the process and its children per request of one token: what a stream costs beside its tokens."""
    begun_s = cpu_s(pid)

    async def one(session: aiohttp.ClientSession) -> None:
        for _ in range(OPENINGS // OPENING_CLIENTS):
            async with chat(session, url, ask("100", 1)) as answer:
                await answer.read()

    async with client() as session:
        await asyncio.gather(*(one(session) for _ in range(OPENING_CLIENTS)))
    return {"opening_ms": 1e3 * (cpu_s(pid) - begun_s) / OPENINGS}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument(
        "--streams", default="1,100,1000", help="streams at once, comma-separated; default: %(default)s"
    )
    parser.add_argument("--seconds", type=float, default=10.0, help="of streaming in each measurement")
    parser.add_argument("--rounds", type=int, default=5, help="default: %(default)s")
    parser.add_argument("--lockstep", type=int, default=200, metavar="N", help="tokens of each of 100 streams; 0: none")
    parser.add_argument(
        "--workers", default="1", help="processes of the gateway, comma-separated; default: %(default)s"
    )
    parser.add_argument("--rivals", default="nginx,litellm", help="those not installed are left out")
    parser.add_argument("--source-port", type=int, default=18_001, help="and the ports after it; default: %(default)s")
    parser.add_argument("--out", type=Path, help="write the figures there as JSON")
    parser.add_argument("--source", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.source:
        asyncio.run(serve_source(args.source_port))
        return
    with ExitStack() as stack:
        workers = [int(count) for count in args.workers.split(",")]
        paths = start(args.source_port, args.rivals.split(",") if args.rivals else [], workers, stack)
        figures = measure(args, paths)
    show(figures)
    if args.out:
        args.out.write_text(json.dumps(figures, indent=1))


def start(source_port: int, rivals: list[str], workers: list[int], stack: ExitStack) -> dict[str, tuple[str, int]]:
    """Address and process of every path to the source, by name."""
    directory = Path(stack.enter_context(tempfile.TemporaryDirectory()))
    commands: dict[str, list[str]] = {
        "direct": [sys.executable, __file__, "--source", "--source-port", str(source_port)],
    }
    for count in workers:
        commands["gateway" if count == 1 else f"gateway, {count} workers"] = [
            sys.executable, "-m", "andes_sglang.cli", "gateway", "--upstream", f"http://127.0.0.1:{source_port}",
            "--port", str(source_port + len(commands)), "--workers", str(count),
        ]  # fmt: skip
    for name in rivals:
        if shutil.which(name):
            commands[name] = {"nginx": nginx, "litellm": litellm}[name](
                source_port, source_port + len(commands), directory
            )
        else:
            print(f"{name} is not installed: left out", file=sys.stderr)
    settings = {"ADMISSION": "false", "ACCESS_LOG": "false", "MAX_STREAMS_PER_REPLICA": "4096"}
    environment = {**os.environ, "LITELLM_LOCAL_MODEL_COST_MAP": "True", "LITELLM_LOG": "ERROR"} | {
        "LITELLM_DANGEROUSLY_PERMIT_WEAK_OR_UNSET_MASTER_KEY": "true"  # else it checks keys, which the others do not
    }
    environment |= {f"ANDES_GATEWAY_{name}": value for name, value in settings.items()}
    paths: dict[str, tuple[str, int]] = {}
    for k, (name, command) in enumerate(commands.items()):
        log = (directory / f"{name}.log").open("w+")
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=subprocess.STDOUT)
        stack.callback(process.wait, STOP_TIMEOUT_S)
        stack.callback(process.terminate)
        url, deadline_s = f"http://127.0.0.1:{source_port + k}", time.monotonic() + START_TIMEOUT_S
        while not answers(url + ("/health/liveliness" if name == "litellm" else "/v1/models")):
            if process.poll() is not None or time.monotonic() > deadline_s:
                raise SystemExit(f"{name} did not start: {(directory / f'{name}.log').read_text()[-2000:]}")
            time.sleep(0.1)
        paths[name] = (url, process.pid)
    return paths


def answers(url: str) -> bool:
    with suppress(OSError), urllib.request.urlopen(url, timeout=5) as answer:
        return bool(answer.status == 200)
    return False


def nginx(source_port: int, port: int, directory: Path) -> list[str]:
    """A plain reverse proxy that buffers nothing."""
    places = " ".join(
        f"{kind}_temp_path {directory}/{kind};" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    config = directory / "nginx.conf"
    config.write_text(f"""
worker_processes 1; daemon off; pid {directory}/nginx.pid; error_log stderr warn;
events {{ worker_connections 8192; }}
http {{
  access_log off; {places}
  upstream source {{ server 127.0.0.1:{source_port}; keepalive 1024; }}
  server {{
    listen 127.0.0.1:{port} backlog=4096;
    location / {{ proxy_pass http://source; proxy_http_version 1.1; proxy_set_header Connection ""; proxy_buffering off; }}
  }}
}}
""")
    return ["nginx", "-c", str(config), "-p", str(directory)]


def litellm(source_port: int, port: int, directory: Path) -> list[str]:
    """litellm's proxy with one worker."""
    config = directory / "litellm.yaml"
    config.write_text(f"""
model_list:
  - model_name: m
    litellm_params: {{model: openai/m, api_base: "http://127.0.0.1:{source_port}/v1", api_key: sk-1}}
""")
    return ["litellm", "--config", str(config), "--host", "127.0.0.1", "--port", str(port), "--num_workers", "1"]


def measure(args: argparse.Namespace, paths: dict[str, tuple[str, int]]) -> list[dict[str, Any]]:
    shuffle = random.Random(1)
    gap_s = 1.0 / STREAM_TDS
    rows: dict[tuple[str, int], dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for url, _ in paths.values():
        asyncio.run(load(url, 10, 10, 0.02))  # warm
    for _ in range(args.rounds):
        for streams in map(int, args.streams.split(",")):
            for name in shuffle.sample(list(paths), len(paths)):
                url, pid = paths[name]
                before_s = cpu_s(pid)
                found = asyncio.run(load(url, streams, int(args.seconds / gap_s), gap_s))
                row = rows[name, streams]
                row["per_token_s"] += found["per_token_s"]
                row["ttft_s"] += found["ttft_s"]
                row["cpu_us"].append(1e6 * (cpu_s(pid) - before_s) / found["tokens"])
        for name in shuffle.sample(list(paths), len(paths)) if args.lockstep else ():
            url, pid = paths[name]
            for figure, value in asyncio.run(
                lockstep(url, pid, source_port=args.source_port, streams=LOCKSTEP_STREAMS, tokens=args.lockstep)
            ).items():
                rows[name, 0][figure].append(value)
        for name in (
            shuffle.sample([path for path in paths if path != "direct"], len(paths) - 1) if args.lockstep else ()
        ):
            for figure, value in asyncio.run(openings(*paths[name])).items():
                rows[name, 0][figure].append(value)
    return [{"path": name, "streams": streams, **_figures(row)} for (name, streams), row in rows.items()]


def _figures(row: dict[str, list[float]]) -> dict[str, float]:
    found: dict[str, float] = {}
    for name in ("per_token_s", "ttft_s"):
        if row[name]:
            p50, p99 = np.percentile(row[name], (50, 99))
            found |= {f"{name[:-2]}_p50_ms": 1e3 * float(p50), f"{name[:-2]}_p99_ms": 1e3 * float(p99)}
    for name in ("cpu_us", "tokens_per_s", "per_core", "opening_ms"):
        if row[name]:
            found |= {name: float(np.median(row[name])), f"{name}_min": min(row[name]), f"{name}_max": max(row[name])}
    return found


def show(figures: list[dict[str, Any]]) -> None:
    """The two tables of docs/benchmarks/gateway.md."""
    direct = {row["streams"]: row for row in figures if row["path"] == "direct"}
    lines = list(header("path", "streams", "token p50, ms", "p99", "added p50", "added p99", "TTFT p50, ms", "p99",
                        "added p50", "CPU us/token"))  # fmt: skip
    for row in sorted((r for r in figures if r["streams"]), key=lambda r: (r["streams"], r["path"])):
        base = direct[row["streams"]]
        cells = [row["path"], row["streams"]]
        cells += [f"{row[f'per_token_{p}_ms']:.2f}" for p in ("p50", "p99")]
        cells += [f"{row[f'per_token_{p}_ms'] - base[f'per_token_{p}_ms']:+.2f}" for p in ("p50", "p99")]
        cells += [f"{row[f'ttft_{p}_ms']:.2f}" for p in ("p50", "p99")]
        cells += [f"{row['ttft_p50_ms'] - base['ttft_p50_ms']:+.2f}", f"{row['cpu_us']:.0f}"]
        lines.append(line(*cells))
    lines += ["", *header("path", "tokens/s in lockstep", "tokens/s per core (min to max)", "CPU ms per opening")]
    for row in (r for r in figures if not r["streams"]):
        core = f"{row['per_core']:,.0f} ({row['per_core_min']:,.0f} to {row['per_core_max']:,.0f})"
        spread = "{opening_ms:.2f} ({opening_ms_min:.2f} to {opening_ms_max:.2f})"
        opening = spread.format(**row) if "opening_ms" in row else ""
        lines.append(line(row["path"], f"{row['tokens_per_s']:,.0f}", core, opening))
    print("\n".join(lines))


if __name__ == "__main__":
    main()
