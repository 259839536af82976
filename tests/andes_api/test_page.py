"""The built-in page in a real browser."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import httpx
import pytest

pytestmark = pytest.mark.server

BODY: dict[str, Any] = {"model": "m", "prompt": "x", "max_tokens": 3, "stream": True}


@pytest.fixture(scope="session")
def chromium() -> str:
    for name in ("chromium", "chromium-browser", "google-chrome"):
        if found := shutil.which(name):
            return found
    pytest.skip("NO BROWSER: install chromium to test the built-in page")


def rendered(chromium: str, url: str, tmp_path: Path, until: str) -> str:
    """The page's document after its first refresh, as text of its cells."""
    command = [
        chromium, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}",
        "--virtual-time-budget=900", "--dump-dom", url,
    ]  # fmt: skip
    dom = subprocess.run(command, capture_output=True, text=True, timeout=100, check=True).stdout
    assert until in dom, dom[-3000:]
    return re.sub(r"\s*<[^>]+>\s*", "|", dom.partition("<body>")[2].partition("<script>")[0])


@pytest.mark.timeout(180)
def test_the_page_shows_the_fleet(chromium: str, faulty: Any, gateway: Any, tmp_path: Path) -> None:
    up, down = faulty(), faulty()
    server = gateway(up.url, down.url, policy="round_robin", name="door")
    for name in ("reading", "code"):
        for _ in range(2):
            httpx.post(server.url + "/v1/completions", json=BODY, headers={"x-andes-class": name})
    path = "/fleet/replicas/" + down.url.removeprefix("http://") + "/drain"
    assert httpx.post(server.url + path).status_code == 200
    up.fault, up.after = "stall", 1
    with httpx.stream("POST", server.url + "/v1/completions", json=BODY):
        assert up.stalled.wait(60)
        text = rendered(chromium, server.url + "/", tmp_path, "streams open on 2 engines, routed by round_robin")
    cells = re.sub(r"\|+", "|", text)
    assert "|door|" in cells
    assert "|1 streams open on 2 engines" in cells
    assert re.search(r"\|code\|2\|1\.000\|", cells)
    assert re.search(r"\|reading\|2\|1\.000\|.*?\|1\|", cells)
    assert re.search(rf"\|{up.url.removeprefix('http://')}\|up\|1\|", cells)
    assert re.search(rf"\|{down.url.removeprefix('http://')}\|draining\|0\|", cells)


def test_the_page_is_not_shown_where_it_should_not(faulty: Any, gateway: Any) -> None:
    assert httpx.get(gateway(faulty().url, page=False).url + "/").status_code == 404
