"""What a container would give a pod's process, worked out for a process of this machine: its command line, its paths, and
when a probe is due. Pure, but for :meth:`Probe.ask`."""

from __future__ import annotations

import re
import socket
import sys
import time
import urllib.request
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

__all__ = ["Probe", "Sandbox"]

Object = Mapping[str, Any]


@dataclass(frozen=True)
class Sandbox:
    """Where a pod's files and its address are on this machine.

    mounts: the absolute paths that the pod mounts; each is a folder below ``folder``.
    """

    folder: Path
    address: str
    mounts: tuple[str, ...]

    def translate(self, text: str) -> str:
        """``text`` of the pod's specification with mounted paths and 0.0.0.0 replaced by this machine's. Not to be applied to
        what the node itself adds, nor twice: the pod's folder may itself lie below a path that is mounted (/tmp)."""
        if self.mounts:
            paths = "|".join(map(re.escape, sorted(self.mounts, key=len, reverse=True)))
            text = re.sub(rf"(?<![\w./-])({paths})(?![\w.-])", lambda m: f"{self.folder}{m[1]}", text)
        return text.replace("0.0.0.0", self.address)  # noqa: S104

    def command(self, container: Object, entrypoint: Sequence[str], variables: Mapping[str, str]) -> list[str]:
        """The command line of ``container``. entrypoint: its image's, a command of this machine, not translated. variables:
        of the container's environment, already translated; ``$(NAME)`` stands for one."""

        def expanded(argument: str) -> str:
            return re.sub(r"\$\((\w+)\)", lambda m: variables.get(m[1], m[0]), self.translate(argument))

        own = [sys.executable if part == "python" else expanded(part) for part in container.get("command", ())]
        return [*(own or entrypoint), *map(expanded, container.get("args", ()))]


class Probe:
    """When it is due, and what its results mean together."""

    def __init__(self, spec: Object, container: Object, address: str) -> None:
        asked = spec.get("httpGet") or spec["tcpSocket"]
        ports = {port.get("name"): port["containerPort"] for port in container.get("ports", [])}
        self.address = address, int(ports.get(asked["port"], asked["port"]))
        self.path: str | None = asked.get("path")
        self.period_s, self.timeout_s = spec.get("periodSeconds", 10), spec.get("timeoutSeconds", 1)
        self.failures_allowed = spec.get("failureThreshold", 3)
        self.failures = 0
        self.due_s = time.monotonic() + spec.get("initialDelaySeconds", 0)

    def ask(self) -> bool:
        self.due_s = time.monotonic() + self.period_s
        try:
            good = self._connects() if self.path is None else self._answers()
        except OSError:
            good = False
        self.failures = 0 if good else self.failures + 1
        return good

    def _connects(self) -> bool:
        with socket.create_connection(self.address, self.timeout_s):
            return True

    def _answers(self) -> bool:
        host, port = self.address
        with urllib.request.urlopen(f"http://{host}:{port}{self.path}", timeout=self.timeout_s) as answer:
            return bool(200 <= answer.status < 400)

    @property
    def failed(self) -> bool:
        return bool(self.failures >= self.failures_allowed)
