"""The built-in page in a real browser."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from typing import Any

import httpx
import pytest
from e2e.browser import Browser

pytestmark = pytest.mark.server

BODY: dict[str, Any] = {"model": "m", "prompt": "x", "max_tokens": 3, "stream": True}


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
    server = gateway(up.url, down.url, policy="round_robin", name="door", max_streams=1)
    for name in ("reading", "code"):
        for _ in range(2):
            post(server, name)
    path = "/fleet/replicas/" + down.url.removeprefix("http://") + "/drain"
    assert httpx.post(server.url + path).status_code == 200
    up.fault, up.after = "die", 0
    post(server, "code")
    up.fault, up.after = "stall", 1
    with httpx.stream("POST", server.url + "/v1/completions", json=BODY):
        assert up.stalled.wait(60)
        assert post(server, "code").status_code == 429
        text = rendered(chromium, server.url + "/", tmp_path, "streams open on 2 engines, routed by round_robin")
    cells = re.sub(r"\|+", "|", text)
    assert "|door|" in cells
    assert "|1|streams open|" in cells
    assert "|1|refused, 5 min|" in cells
    assert "|1 of 2|engines up|" in cells
    # model, class, open and QoE now, served, mean QoE, p5, below 0.95, refused, failed, left early, retries, moved
    assert re.search(r"\|m\|code\|0\|–\|2\|1\.000\|1\.000\|0\|1\|1\|0\|0\|0\|", cells), cells
    assert re.search(r"\|m\|reading\|1\|[01]\.\d{3}\|2\|1\.000\|1\.000\|0\|0\|0\|0\|0\|0\|", cells), cells
    assert re.search(r"\|m\|code\|2\|1\.000\|1\.000\|0\|1\|1\|0\|0\|0\|", cells), "the last hour"
    assert re.search(rf"\|{up.url.removeprefix('http://')}\|[^|]*\|up\|1\|", cells), cells
    assert re.search(rf"\|{down.url.removeprefix('http://')}\|[^|]*\|draining[^|]*\|0\|", cells), cells


def post(server: Any, name: str) -> httpx.Response:
    return httpx.post(server.url + "/v1/completions", json=BODY, headers={"x-andes-class": name})


@pytest.mark.timeout(180)
def test_typing_into_the_page_to_try(chromium: str, faulty: Any, gateway: Any, tmp_path: Path) -> None:
    upstream = faulty()
    server = gateway(upstream.url)
    with Browser(chromium, server.url + "/try", tmp_path / "profile") as browser:
        browser.wait_for("document.getElementById('model')?.value === 'm'")
        assert browser.evaluate("document.getElementById('class').value") == "reading"
        browser.evaluate(
            "tds.value = 5; max.value = 5; window.seen = []; key = document.getElementById('prompt'); key.focus();"
            "new MutationObserver(() => seen.push(answer.textContent)).observe(answer, {childList: true}); 1"
        )
        browser.call("Input.insertText", text="Say something")
        for kind in ("keyDown", "keyUp"):
            browser.call("Input.dispatchKeyEvent", type=kind, key="Enter", code="Enter", modifiers=2)
        browser.wait_for("figures.textContent.startsWith('QoE ')")
        assert browser.text("answer") == "w0 xw1 xw2 xw3 xw4 x"
        assert len(browser.evaluate("seen")) >= 3, "it came all at once"
        assert ", 5 tokens in " in browser.text("figures")
        assert "reader of 5 tokens/s" in browser.text("figures")
        body, headers = upstream.bodies[-1], upstream.headers[-1]
        assert (body["messages"][0]["content"], body["max_tokens"]) == ("Say something", 5)
        assert "x-andes-pace" not in headers
        upstream.fault, upstream.after = "error", 1
        browser.evaluate("form.requestSubmit()")
        browser.wait_for("figures.className === 'wrong'")
        assert browser.text("answer") == "w0 x"


@pytest.mark.timeout(180)
def test_no_page_is_wider_than_its_screen(chromium: str, faulty: Any, gateway: Any, tmp_path: Path) -> None:
    server = gateway(faulty().url, faulty().url)
    post(server, "reading")
    for path, shown in (("/", "document.querySelectorAll('#replicas tbody tr').length == 2"), ("/try", "model.value")):
        with Browser(chromium, server.url + path, tmp_path / path.strip("/")) as browser:
            for width in (320, 740, 800, 900, 1000, 1280):
                browser.call(
                    "Emulation.setDeviceMetricsOverride", width=width, height=700, deviceScaleFactor=1, mobile=True
                )
                browser.wait_for(shown)
                assert browser.evaluate("document.documentElement.scrollWidth") <= width, (path, width)


def test_who_sees_the_page_to_try(faulty: Any, gateway: Any) -> None:
    upstream = faulty()
    forwarded = {"x-forwarded-for": "203.0.113.9"}  # a proxy on this machine says whom it speaks for
    by_default = gateway(upstream.url)
    assert httpx.get(by_default.url + "/try").status_code == 200
    refused = httpx.get(by_default.url + "/try", headers=forwarded)
    assert (refused.status_code, refused.headers["x-andes-reason"]) == (403, "loopback")
    assert httpx.get(gateway(upstream.url, try_page=True).url + "/try", headers=forwarded).status_code == 200
    assert httpx.get(gateway(upstream.url, try_page=False).url + "/try").status_code == 404


def test_the_page_is_not_shown_where_it_should_not(faulty: Any, gateway: Any) -> None:
    assert httpx.get(gateway(faulty().url, page=False).url + "/").status_code == 404
