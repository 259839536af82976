"""What becomes of engines and results where the command that started the engines is told to end, or killed."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from andes_sglang.bench.compare import WARM_UP_REQUESTS
from andes_sglang.bench.engine import Engine, read_metrics
from andes_sglang.request import read_records

pytestmark = [pytest.mark.server, pytest.mark.timeout(300)]

SIMULATED = ["--engine", "sim", "--profile", "h100-llama-3.1-8b"]
SLOW = [*SIMULATED, "--speed", "0.1"]
"""What is replayed does not end by itself within the time of a test."""
PATIENCE_S = 120.0
PARENT = """
import sys
from pathlib import Path
from andes_sglang.bench.engine import Engine

with Engine("m", "fcfs", sys.argv[2:], log=Path(sys.argv[1])) as engine:
    print(engine.url, flush=True)
    sys.stdin.read()
"""


def wait_until_gone(url: str) -> None:
    deadline_s = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline_s:
        try:
            urllib.request.urlopen(f"{url}/health", timeout=10).close()
        except urllib.error.URLError as error:
            if isinstance(error.reason, ConnectionRefusedError):
                return
        except OSError:
            continue
        time.sleep(0.05)
    raise AssertionError(f"an engine still listens on {url}")


@pytest.mark.parametrize("sign", [signal.SIGKILL, signal.SIGSEGV])
def test_an_engine_ends_with_a_parent_that_cannot_end_it(sign: signal.Signals, tmp_path: Path) -> None:
    command = [sys.executable, "-c", PARENT, str(tmp_path / "log"), *SIMULATED]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        url = parent.stdout.readline().strip()
        urllib.request.urlopen(f"{url}/health", timeout=60).close()
        parent.send_signal(sign)
        assert parent.wait(PATIENCE_S) == -sign
    wait_until_gone(url)


@pytest.fixture
def comparison(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """``andes compare`` on simulated engines with the flags of ``request.param``, in ``tmp_path``/out."""
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    command = [sys.executable, "-m", "andes_sglang.cli", "compare", "--model", str(tmp_path / "model"), "--shape", "poisson",
               "--policies", "stock,fcfs", "--prompt", "20-40", "--output", "20-40", "--out", str(tmp_path / "out")]  # fmt: skip
    with subprocess.Popen([*command, *request.param], stderr=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


def said_until(process: subprocess.Popen[str], words: str) -> list[str]:
    """Its lines on standard error to the first with ``words``."""
    assert process.stderr is not None
    lines = []
    for line in process.stderr:
        lines.append(line)
        if words in line:
            return lines
    raise AssertionError("".join(lines))


def engines_of(out: Path) -> list[str]:
    """Addresses that the engines of a comparison have told in their logs."""
    logs = [log.read_text() for log in out.glob("engine-*.log")]
    return [word for text in logs for word in text.split() if word.startswith("http://127.0.0.1:")]


def wait_until_some_are_answered(out: Path, more_than: int = WARM_UP_REQUESTS) -> None:
    """Of the load: more than a warm-up asks for."""
    deadline_s = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline_s:
        figures = [figure for url in engines_of(out) for figure in read_metrics(url).items()]
        if sum(value for name, value in figures if name.startswith("sglang:num_requests_total")) > more_than:
            return
        time.sleep(0.05)
    raise AssertionError("no request was answered")


@pytest.mark.parametrize(
    "comparison", [["--load", "0.5", "--duration", "5", *SLOW], ["--rate", "20", "--duration", "600", *SLOW]],
    indirect=True, ids=["while it calibrates", "while it measures"],
)  # fmt: skip
def test_sigterm_ends_a_comparison(comparison: subprocess.Popen[str], tmp_path: Path) -> None:
    wait_until_some_are_answered(tmp_path / "out")
    comparison.send_signal(signal.SIGTERM)
    assert comparison.wait(PATIENCE_S) == 130
    assert comparison.stderr is not None
    said = comparison.stderr.read()
    assert said.count("starting an engine") == 1
    assert "Traceback" not in said
    for url in engines_of(tmp_path / "out"):
        wait_until_gone(url)


@pytest.mark.parametrize("comparison", [["--rate", "20", "--duration", "1", *SIMULATED]], indirect=True)
def test_sigterm_keeps_the_arms_that_have_been_measured(comparison: subprocess.Popen[str], tmp_path: Path) -> None:
    said_until(comparison, "fcfs, seed 1: starting")
    comparison.send_signal(signal.SIGTERM)
    assert comparison.wait(PATIENCE_S) == 130
    assert list(json.loads((tmp_path / "out" / "summary.json").read_text())["policies"]) == ["stock"]
    for url in engines_of(tmp_path / "out"):
        wait_until_gone(url)


def test_sigterm_keeps_the_records_of_a_profile(tmp_path: Path) -> None:
    with Engine("m", "stock", SIMULATED, log=tmp_path / "engine-1.log") as engine:
        command = [sys.executable, "-m", "andes_sglang.cli", "profile", "--url", engine.url, "--seconds", "600",
                   "--out", str(tmp_path / "p.toml")]  # fmt: skip
        with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
            wait_until_some_are_answered(tmp_path, more_than=0)
            process.send_signal(signal.SIGTERM)
            _, said = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 2, said
    assert "Traceback" not in said
    assert [record.error for record in read_records(tmp_path / "p-records.jsonl.gz")].count(None) > 0


def test_sigterm_before_an_endpoint_has_answered_is_one_line(tmp_path: Path) -> None:
    """It has the metrics of an engine, and is silent when it is asked for its models."""
    asked = threading.Event()

    class Silent(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if self.path == "/metrics":
                self.send_response(200)
                self.end_headers()
                return
            asked.set()
            ended.wait()

    ended = threading.Event()
    with ThreadingHTTPServer(("127.0.0.1", 0), Silent) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        command = [sys.executable, "-m", "andes_sglang.cli", "bench", "--url", f"http://127.0.0.1:{server.server_port}",
                   "--shape", "poisson", "--rate", "5", "--duration", "5", "--out", str(tmp_path / "out")]  # fmt: skip
        with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
            assert asked.wait(PATIENCE_S)
            process.send_signal(signal.SIGTERM)
            _, said = process.communicate(timeout=PATIENCE_S)
        ended.set()
        server.shutdown()
    assert process.returncode == 130, said
    assert said.splitlines() == ["", "andes bench: interrupted"]
