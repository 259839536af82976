"""A serving engine as a subprocess of its own session: started, proven ready, and ended with all its children, also where the
process that started it is killed (:mod:`andes_sglang.tied`).

with Engine(model, "andes", log=Path("engine.log")) as engine:
    engine.post("/v1/completions", {...})
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

from prometheus_client.parser import text_string_to_metric_families

from andes_sglang.bench.ports import HeldPort
from andes_sglang.policy import find_policy

__all__ = ["Engine", "EngineError", "read_metrics"]


class EngineError(RuntimeError):
    """The engine did not start, or is not what was asked for."""


START_TIMEOUT_S = 240.0
"""SGLang needs half a minute on a CPU; weights from a slow disk take minutes."""
POLL_EVERY_S = 0.2
TERMINATE_AFTER_S, KILL_AFTER_S = 8.0, 10.0
"""Given to the process group after SIGTERM, then after SIGKILL."""


def read_metrics(url: str, timeout_s: float = 5.0) -> dict[str, float]:
    """Samples of ``url``/metrics by name with labels, as written there; empty when the endpoint has none."""
    try:
        with urllib.request.urlopen(f"{url}/metrics", timeout=timeout_s) as answer:
            families = list(text_string_to_metric_families(answer.read().decode()))
    except (OSError, ValueError, http.client.HTTPException):
        return {}
    return {_key(s.name, s.labels): float(s.value) for family in families for s in family.samples}


def _key(name: str, labels: dict[str, str]) -> str:
    inside = ",".join(f'{label}="{value}"' for label, value in labels.items())
    return f"{name}{{{inside}}}" if inside else name


class Engine:
    """``andes serve`` with ``policy`` on a free port, as a context manager.

    Its output goes to ``log``; cores: the only CPU cores it runs on. Raises :class:`EngineError` where it does not become
    ready within ``start_timeout_s``.
    """

    def __init__(
        self,
        model: Path | str,
        policy: str,
        flags: Sequence[str] = (),
        *,
        log: Path,
        start_timeout_s: float = START_TIMEOUT_S,
        cores: Sequence[int] = (),
    ) -> None:
        self.model = str(model)
        self.policy = policy
        self.flags = tuple(flags)
        self.log = log
        self.start_timeout_s = start_timeout_s
        self.cores = tuple(cores)
        self._held = HeldPort()
        self.port = self._held.number
        self.url = f"http://127.0.0.1:{self.port}"
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Engine:
        command = [sys.executable, "-m", "andes_sglang.tied", "serve", "--model", self.model, "--policy", self.policy]
        command += ["--port", str(self.port), *self.flags]
        self.log.parent.mkdir(parents=True, exist_ok=True)
        with self.log.open("wb") as log:
            self._process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
            )
        try:
            if self.cores:
                os.sched_setaffinity(self._process.pid, self.cores)
            self._wait_until_ready()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def get(self, path: str, timeout_s: float = 10.0) -> bytes:
        """The body at ``path``. Raises ``OSError``."""
        with urllib.request.urlopen(self.url + path, timeout=timeout_s) as answer:
            return bytes(answer.read())

    def post(self, path: str, body: object, timeout_s: float = 120.0) -> dict[str, object]:
        """The JSON answer to a JSON ``body``; ``{"text": ...}`` where the answer is not JSON. Raises ``OSError``."""
        request = urllib.request.Request(
            self.url + path, json.dumps(body).encode(), {"content-type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=timeout_s) as answer:
            text = answer.read()
        try:
            return dict(json.loads(text))
        except ValueError:
            return {"text": text.decode()}

    @property
    def process(self) -> subprocess.Popen[bytes]:
        """Its first process, which listens. Raises :class:`EngineError` before the start and after the stop."""
        if self._process is None:
            raise EngineError("the engine does not run")
        return self._process

    def alive(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def _wait_until_ready(self) -> None:
        deadline_s = time.monotonic() + self.start_timeout_s
        while time.monotonic() < deadline_s:
            if not self.alive():
                raise EngineError(f"the engine ended while starting; the end of {self.log}:\n{self.tail()}")
            with contextlib.suppress(OSError):
                self.get("/health")
                return
            time.sleep(POLL_EVERY_S)
        raise EngineError(
            f"the engine was not ready after {self.start_timeout_s:g} s; the end of {self.log}:\n{self.tail()}"
        )

    def tail(self, lines: int = 15) -> str:
        """The last ``lines`` lines of its output that are not empty."""
        text = self.log.read_text(errors="replace").replace("\0", "") if self.log.exists() else ""
        return "\n".join([line for line in text.splitlines() if line.strip()][-lines:])

    def check_policy(self) -> None:
        """Fail unless the policy that was asked for has made a decision (after at least one request)."""
        if self.policy == "stock":
            return
        name = find_policy(self.policy).name if ":" in self.policy else self.policy
        if read_metrics(self.url).get(f'andes_policy_info{{policy="{name}"}}') != 1.0:
            raise EngineError(f"{self.url} serves without policy {self.policy} in charge; see {self.log}")

    def stop(self) -> None:
        """End the whole process group: by SIGTERM, then by SIGKILL. Its port is given back."""
        self._held.release()
        if self._process is None:
            return
        for sign, timeout_s in ((signal.SIGTERM, TERMINATE_AFTER_S), (signal.SIGKILL, KILL_AFTER_S)):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, sign)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(timeout_s)
                if sign is signal.SIGTERM:
                    with contextlib.suppress(ProcessLookupError):
                        os.killpg(self._process.pid, signal.SIGKILL)
                break
        if self._process.stdin is not None:
            self._process.stdin.close()
        self._process = None
