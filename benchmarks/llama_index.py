"""LlamaIndex as a client of the gateway, behind an nginx that gives up after five seconds without a byte.

    python benchmarks/llama_index.py [--python INTERPRETER]

Too large for the tests' environment, so this installs it into one of its own and throws that away; ``--python`` names an
interpreter that has it. The source of ``benchmarks/gateway.py`` says a word every seven seconds: without the gateway's
comments nginx cuts the stream, with them LlamaIndex reads all of it.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path

from andes_sglang.bench.ports import free_port
from benchmarks.gateway import answers

PACKAGE = "llama-index-llms-openai-like"
PAUSE_US, WORDS = 7_000_000, 3
START_TIMEOUT_S, CLIENT_TIMEOUT_S = 60.0, 180.0
CLIENT = """
import json, sys
from importlib.metadata import version
from llama_index.core.base.llms.types import ChatMessage
from llama_index.llms.openai_like import OpenAILike
url, pause, words = sys.argv[1:]
options = {"api_base": url + "/v1", "api_key": "sk-any", "max_tokens": int(words), "max_retries": 0}
model = OpenAILike(model="m", is_chat_model=True, **options)
said = [part.delta for part in model.stream_chat([ChatMessage(role="user", content=pause)]) if part.delta]
print(json.dumps([version("llama-index-llms-openai-like"), version("llama-index-core"), len(said)]))
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--python", help=f"an interpreter that has {PACKAGE}; default: a new one for the moment")
    args = parser.parse_args()
    nginx = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin:/sbin")
    if nginx is None:
        raise SystemExit("nginx is not installed: nothing to stand behind")
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        python = args.python or install(folder)
        source, quiet, beating = free_port(), free_port(), free_port()
        run(stack, [sys.executable, "-m", "benchmarks.gateway", "--source", "--source-port", str(source)], source)
        for port, keepalive_s in ((quiet, 0), (beating, 1)):
            gateway = ["gateway", "--upstream", f"http://127.0.0.1:{source}", "--port", str(port)]
            run(stack, [sys.executable, "-m", "andes_sglang.cli", *gateway, "--keepalive-s", str(keepalive_s)], port)
        for name, port in (("without comments", quiet), ("with comments", beating)):
            front = free_port()
            config = folder / f"{front}.conf"
            config.write_text(nginx_config(folder, front, port))
            run(stack, [nginx, "-p", str(folder), "-c", str(config)], front)
            print(f"{name}: {read(python, f'http://127.0.0.1:{front}')}")


def install(folder: Path) -> str:
    """A new environment with LlamaIndex; its interpreter."""
    subprocess.run([sys.executable, "-m", "venv", str(folder / "venv")], check=True)
    python = str(folder / "venv" / "bin" / "python")
    subprocess.run([python, "-m", "pip", "install", "--quiet", PACKAGE], check=True)
    return python


def run(stack: ExitStack, command: list[str], port: int) -> None:
    """Start a process, and wait until it answers on ``port``."""
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    stack.callback(process.wait)
    stack.callback(process.terminate)
    until_s = time.monotonic() + START_TIMEOUT_S
    while not answers(f"http://127.0.0.1:{port}/v1/models"):
        if process.poll() is not None or time.monotonic() > until_s:
            raise SystemExit(f"{' '.join(command)} did not start")
        time.sleep(0.1)


def nginx_config(folder: Path, port: int, gateway: int) -> str:
    """nginx as it is installed but for the port, and five seconds instead of sixty."""
    kinds = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    paths = " ".join(f"{kind}_temp_path {folder}/{port}{kind};" for kind in kinds)
    server = f"listen 127.0.0.1:{port}; location / {{ proxy_pass http://127.0.0.1:{gateway}; proxy_read_timeout 5s; }}"
    return (
        f"daemon off; master_process off; pid {folder}/{port}.pid; error_log {folder}/{port}.log;\n"
        f"events {{}}\nhttp {{ access_log off; {paths} server {{ {server} }} }}\n"
    )


def read(python: str, url: str) -> str:
    """What LlamaIndex makes of a stream with pauses of seven seconds."""
    command = [python, "-c", CLIENT, url, str(PAUSE_US), str(WORDS)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=CLIENT_TIMEOUT_S, check=False)
    if done.returncode:
        return f"cut off: {done.stderr.strip().splitlines()[-1]}"
    like, core, words = json.loads(done.stdout)
    return f"{words} of {WORDS} words, {PACKAGE} {like}, llama-index-core {core}"


if __name__ == "__main__":
    main()
