"""A headless Chromium with one page, driven over its DevTools protocol."""

from __future__ import annotations

import json
import shutil
import subprocess
import time
from pathlib import Path
from types import TracebackType
from typing import Any

import httpx
import websocket

__all__ = ["Browser", "find_chromium"]

MAX_WAIT_S = 60.0


def find_chromium() -> str | None:
    """The program's path; None: there is none here."""
    names = ("chromium", "chromium-browser", "google-chrome")
    return next((found for name in names if (found := shutil.which(name))), None)


class Browser:
    """profile: a directory of its own."""

    def __init__(self, chromium: str, url: str, profile: Path) -> None:
        command = [
            chromium, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={profile}",
            "--remote-debugging-port=0", url,
        ]  # fmt: skip
        self._process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        assert self._process.stderr is not None
        said = next(line for line in self._process.stderr if "DevTools listening" in line)
        self._host = said.split("ws://")[1].partition("/")[0]
        pages = [page for page in httpx.get(f"http://{self._host}/json/list").json() if page["type"] == "page"]
        self._socket = websocket.create_connection(
            pages[0]["webSocketDebuggerUrl"], suppress_origin=True, timeout=MAX_WAIT_S
        )
        self._calls = 0

    def __enter__(self) -> Browser:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._socket.close()
        self._process.terminate()
        self._process.wait(MAX_WAIT_S)

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        self._calls += 1
        self._socket.send(json.dumps({"id": self._calls, "method": method, "params": parameters}))
        while (answer := json.loads(self._socket.recv())).get("id") != self._calls:
            pass
        assert "error" not in answer, answer
        return dict(answer["result"])

    def evaluate(self, expression: str) -> Any:
        """Its value; of a promise, once it is kept."""
        result = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in result, result
        return result["result"].get("value")

    def wait_for(self, expression: str) -> Any:
        """Until it is true: its value. A page that is still being read may lack what the expression names."""
        deadline_s = time.monotonic() + MAX_WAIT_S
        patient = f"(async () => {{ try {{ return await ({expression}) }} catch {{ return null }} }})()"
        while not (value := self.evaluate(patient)) and time.monotonic() < deadline_s:
            time.sleep(0.02)
        assert value, (expression, self.evaluate("document.body.innerText"))
        return value

    def text(self, name: str) -> str:
        """Of the element with this id."""
        return str(self.evaluate(f"document.getElementById({name!r}).textContent"))
