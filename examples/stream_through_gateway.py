"""Stream through the gateway with the openai client, and read what the reader got.

Starts a simulated engine and a gateway on free ports; with real engines only the address changes.
"""

import json
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from openai import OpenAI


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def start(stack: ExitStack, *command: str) -> None:
    """Run an ``andes`` command until the end of ``stack``."""
    process = subprocess.Popen(
        [sys.executable, "-m", "andes_sglang.cli", *command], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    stack.callback(process.wait)
    stack.callback(process.terminate)


def wait_until_ready(url: str) -> None:
    for _ in range(600):
        try:
            with urllib.request.urlopen(url, timeout=1):
                return
        except (urllib.error.URLError, OSError):
            time.sleep(0.1)
    raise TimeoutError(f"{url} did not answer within a minute")


@contextmanager
def service(*flags: str) -> Iterator[str]:
    """The base URL of a gateway with a simulated engine behind it. flags: more of the gateway's."""
    with ExitStack() as stack:
        engine, gateway = f"http://127.0.0.1:{free_port()}", f"http://127.0.0.1:{free_port()}"
        start(stack, "serve", "--engine", "sim", "--profile", "cpu-tiny-llama", "--port", engine.rpartition(":")[2])
        start(stack, "gateway", "--upstream", engine, "--port", gateway.rpartition(":")[2], *flags)
        wait_until_ready(f"{engine}/health")
        wait_until_ready(f"{gateway}/readyz")
        yield f"{gateway}/v1"


def main() -> None:
    with service() as url:
        client = OpenAI(base_url=url, api_key="any")
        stream = client.chat.completions.create(
            model=client.models.list().data[0].id,
            messages=[{"role": "user", "content": "Tell me more."}],
            max_tokens=40,
            stream=True,
            extra_headers={"x-andes-class": "reading", "x-andes-tds": "20"},  # this reader is fast
        )
        pieces = sum(bool(chunk.choices and chunk.choices[0].delta.content) for chunk in stream)
        print(f"{pieces} pieces of text")

        with urllib.request.urlopen(f"{url.removesuffix('/v1')}/fleet/qoe", timeout=5) as answer:
            qoe = json.load(answer)["classes"]["reading"]
        print(f"QoE of the class reading: mean {qoe['mean']:.3f} over {qoe['count']} stream")


if __name__ == "__main__":
    main()
