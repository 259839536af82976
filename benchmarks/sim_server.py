"""Start-up, memory and 500 concurrent streams of ``andes serve --engine sim``, held to one core.

    python benchmarks/sim_server.py [--streams 500] [--tokens 400] [--core 0] [FLAGS OF THE ENGINE]

Every stream is asked for at once and read to its end by bare sockets in this process, which keeps to the other cores.
CPU times are the engine's own and hardly depend on what else runs; the lag does.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import subprocess
import sys
import time
import urllib.request
from functools import partial
from typing import Any

import numpy as np

from benchmarks.processes import cpu_s, rss_mb


def start(core: int, flags: list[str]) -> tuple[subprocess.Popen[str], str, float]:
    """The engine's process, which may run on ``core`` only, its address, and the seconds until it answered."""
    began = time.perf_counter()
    command = [sys.executable, "-m", "andes_sglang.cli", "serve", "--engine", "sim", "--port", "0", *flags]
    pinned = ["taskset", "-c", str(core), *command]
    process = subprocess.Popen(pinned, stdout=subprocess.PIPE, text=True)
    greeting = process.stdout.readline() if process.stdout else ""
    if "http://" not in greeting:
        raise SystemExit("the engine did not start")
    url = greeting.split()[-1]
    urllib.request.urlopen(url + "/health").close()
    return process, url, time.perf_counter() - began


def figures(url: str) -> dict[str, float]:
    with urllib.request.urlopen(url + "/metrics") as answer:
        rows = (row.rsplit(" ", 1) for row in answer.read().decode().splitlines() if not row.startswith("#"))
        return {name.split("{")[0]: float(value) for name, value in rows}


class Reader(asyncio.Protocol):
    """One stream: how many events came."""

    def __init__(self, request: bytes) -> None:
        self.request = request
        self.events = 0
        self.ended = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: Any) -> None:
        transport.write(self.request)

    def data_received(self, data: bytes) -> None:
        self.events += data.count(b"data: {")

    def connection_lost(self, exc: Exception | None) -> None:
        self.ended.set_result(exc)


async def load(url: str, streams: int, tokens: int, pid: int) -> dict[str, float]:
    host, port = url.removeprefix("http://").split(":")
    loop = asyncio.get_running_loop()
    readers, peak_mb, lag_s = [], 0.0, 0.0
    began, cpu = time.perf_counter(), cpu_s(pid)
    for k in range(streams):
        asked = {"prompt": f"stream {k} " * 20, "max_tokens": tokens, "ignore_eos": True, "stream": True}
        body = json.dumps(asked).encode()
        head = f"POST /v1/completions HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\ncontent-length: {len(body)}\r\n"
        request = f"{head}content-type: application/json\r\n\r\n".encode() + body
        _, reader = await loop.create_connection(partial(Reader, request), host, int(port))
        readers.append(reader)
    waiting = asyncio.gather(*(reader.ended for reader in readers))
    while not waiting.done():
        await asyncio.wait([waiting], timeout=1.0)
        peak_mb = max(peak_mb, rss_mb(pid))
        lag_s = max(lag_s, (await asyncio.to_thread(figures, url))["andes_sim_lag_seconds"])
    wall_s, used_s = time.perf_counter() - began, cpu_s(pid) - cpu
    events = sum(reader.events for reader in readers)
    return {
        "streams": streams,
        "seconds": wall_s,
        "tokens/s": streams * tokens / wall_s,
        "events per token": events / (streams * tokens),
        "CPU, share of the core": used_s / wall_s,
        "CPU per event, us": 1e6 * used_s / events,
        "largest RSS, MB": peak_mb,
        "largest lag, s": lag_s,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--streams", type=int, default=500, help="streams at once; default: %(default)s")
    parser.add_argument("--tokens", type=int, default=400, help="of each stream; default: %(default)s")
    parser.add_argument("--core", type=int, default=0, help="that the engine is held to; default: %(default)s")
    args, flags = parser.parse_known_args()
    if others := os.sched_getaffinity(0) - {args.core}:
        os.sched_setaffinity(0, others)
    starts = []
    for _ in range(5):
        process, _, seconds = start(args.core, flags)
        starts.append((seconds, cpu_s(process.pid), rss_mb(process.pid)))
        process.terminate()
        process.wait()
    seconds, used_s, idle_mb = np.median(starts, axis=0)
    print(f"start-up: {seconds:.2f} s, {used_s:.2f} s of CPU, {idle_mb:.0f} MB (medians of 5)")
    process, url, _ = start(args.core, flags)
    try:
        for name, value in asyncio.run(load(url, args.streams, args.tokens, process.pid)).items():
            print(f"{name:24} {value:.2f}")
    finally:
        process.terminate()
        process.wait()


if __name__ == "__main__":
    main()
