"""Simulated engines in processes of their own."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest


class Served:
    """``andes serve --engine sim`` on a free port."""

    def __init__(self, *flags: str) -> None:
        command = [sys.executable, "-m", "andes_sglang.cli", "serve", "--engine", "sim", "--port", "0", *flags]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert self.process.stdout is not None
        greeting = self.process.stdout.readline()
        found = re.search(r"http://\S+", greeting)
        assert found, greeting
        self.url = found[0]

    def __enter__(self) -> Served:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.communicate()

    def get(self, path: str) -> Any:
        with urllib.request.urlopen(self.url + path, timeout=120) as answer:
            return json.loads(answer.read())

    def post(self, path: str, body: Any) -> tuple[int, Any]:
        """Status and JSON of the answer."""
        request = urllib.request.Request(self.url + path, headers={"content-type": "application/json"})
        request.data = body if isinstance(body, bytes) else json.dumps(body).encode()
        try:
            with urllib.request.urlopen(request, timeout=120) as answer:
                status, text = answer.status, answer.read()
        except urllib.error.HTTPError as error:
            status, text = error.code, error.read()
        return status, json.loads(text) if text else None

    def figures(self) -> dict[str, float]:
        """``/metrics``: value by name with labels."""
        with urllib.request.urlopen(self.url + "/metrics", timeout=120) as answer:
            lines = answer.read().decode().splitlines()
        return {name: float(value) for name, value in (x.rsplit(" ", 1) for x in lines if not x.startswith("#"))}

    def figure(self, name: str) -> float:
        """The sum of the series ``name`` over its labels."""
        return sum(value for label, value in self.figures().items() if label.split("{")[0] == name)


@pytest.fixture(scope="module")
def simulated() -> Iterator[Callable[..., Served]]:
    """Starts an engine that lives until the module's last test."""
    with ExitStack() as stack:
        yield lambda *flags: stack.enter_context(Served(*flags))
