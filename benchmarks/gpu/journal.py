"""What a run has found so far, in files after every step: one that is cut short still tells.

``results.json`` (figures), ``table.md`` (the same to read) and ``logs.tar.gz`` in the folder that is handed back.
"""

from __future__ import annotations

import json
import sys
import tarfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

__all__ = ["Journal"]


class Journal:
    """out: the folder. logs: what is packed beside the figures. limit_s: seconds from now that all steps together have."""

    def __init__(self, out: Path, logs: Path, limit_s: float, about: dict[str, Any]) -> None:
        self.out, self.logs = out, logs
        self._end_s = time.monotonic() + limit_s
        self._began_s = time.monotonic()
        self.results: dict[str, Any] = {**about, "limit_s": limit_s, "steps": []}
        out.mkdir(parents=True, exist_ok=True)
        self.save()

    def left_s(self) -> float:
        return self._end_s - time.monotonic()

    def say(self, text: str) -> None:
        print(f"[{time.monotonic() - self._began_s:5.1f} s] {text}", file=sys.stderr, flush=True)

    def step(self, name: str, needs_s: float, work: Callable[[dict[str, Any]], None]) -> bool:
        """Let ``work`` fill in the figures of the step ``name``, unless fewer than ``needs_s`` seconds are left; whether it
        came to its end. What fails is said with the figures, and the next step has its turn."""
        entry: dict[str, Any] = {"step": name, "state": "running"}
        self.results["steps"].append(entry)
        if self.left_s() < needs_s:
            entry["state"] = f"left out: {self.left_s():.0f} s were left, and it needs {needs_s:.0f}"
            self.say(f"{name}: {entry['state']}")
            self.save()
            return False
        self.say(name)
        began_s = time.monotonic()
        try:
            work(entry)
            entry["state"] = "done"
        except Exception as error:
            entry["state"] = f"failed: {type(error).__name__}: {error}"
            traceback.print_exc()
        entry["seconds"] = round(time.monotonic() - began_s, 1)
        self.say(f"{name}: {entry['state'].splitlines()[0]}, {entry['seconds']} s")
        self.save()
        return bool(entry["state"] == "done")

    def save(self) -> None:
        """Write all files; each is whole at every moment."""
        self.results["seconds"] = round(time.monotonic() - self._began_s, 1)
        self._replace("results.json", json.dumps(self.results, indent=1) + "\n")
        self._replace("table.md", "\n".join(_lines(self.results)) + "\n")
        packed = self.out / "logs.tar.gz.new"
        with tarfile.open(packed, "w:gz") as tar:
            for log in sorted(self.logs.glob("*.log")):
                tar.add(log, log.name)
        packed.replace(self.out / "logs.tar.gz")

    def _replace(self, name: str, text: str) -> None:
        new = self.out / f"{name}.new"
        new.write_text(text)
        new.replace(self.out / name)


def _lines(results: dict[str, Any]) -> list[str]:
    """A line for each step and each of its rows."""
    lines = [f"{results['hardware']}, {results['seconds']:.0f} of {results['limit_s']:.0f} s", ""]
    for entry in results["steps"]:
        lines.append(f"- {entry['step']}: {entry['state'].splitlines()[0]}")
        lines += [
            "    " + ", ".join(f"{key} {_told(value)}" for key, value in row.items()) for row in entry.get("rows", ())
        ]
    return lines


def _told(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
