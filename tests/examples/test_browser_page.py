"""The page with the JavaScript client: served, and in a real browser before a gateway with a simulated engine."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from e2e.browser import Browser

from benchmarks.processes import hear_ctrl_c

EXAMPLES = Path(__file__).parents[2] / "examples"

WATCH = """
    pieces = 0; new MutationObserver(all => { pieces += all.length; }).observe(answer, {childList: true});
    asked = []; const real = fetch;
    fetch = async (url, options) => {
      const response = await real(url, options);
      asked.push({url, ...JSON.parse(options.body)});
      return response;
    };
"""
"""Count what is shown, and keep what was asked once it has been answered."""

pytestmark = [pytest.mark.server, pytest.mark.timeout(300)]


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    directory = tmp_path_factory.mktemp("page")
    with subprocess.Popen(
        [sys.executable, str(EXAMPLES / "serve_a_page.py")], cwd=directory, stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL, text=True,
        preexec_fn=hear_ctrl_c,
    ) as process:  # fmt: skip
        try:
            assert process.stdout is not None
            said = process.stdout.readline().strip()
            assert said, f"serve_a_page.py ended with {process.wait()}"
            yield said
            process.send_signal(signal.SIGINT)
            assert process.wait(60) == 0
        finally:
            process.kill()


def test_page_and_modules_are_served(address: str) -> None:
    page = httpx.get(address)
    assert page.headers["content-type"] == "text/html"
    for name in ("andes-client.mjs", "reader.mjs"):
        module = httpx.get(httpx.URL(address).join(f"/client/{name}"))
        assert (module.status_code, module.headers["content-type"]) == (200, "text/javascript")
    assert httpx.get(httpx.URL(address).join("/client/../../pyproject.toml")).status_code == 404


def test_a_hidden_page_shows_nothing_and_then_all_at_the_speed_of_reading(
    address: str, chromium: str, tmp_path: Path
) -> None:
    with Browser(chromium, address, tmp_path / "profile") as browser:
        browser.wait_for("typeof document.getElementById('form')?.onsubmit === 'function'")
        browser.evaluate(WATCH)
        other = browser.call("Target.createTarget", url="about:blank")
        browser.wait_for("document.hidden")
        browser.evaluate("form.requestSubmit()")
        browser.wait_for("asked.some(({url}) => url.endsWith('/chat/completions'))")
        browser.wait_for("asked.some(({url, visible}) => url.endsWith('/reader') && visible === false)")
        browser.evaluate("new Promise(resolve => setTimeout(resolve, 300))")
        assert browser.text("answer") == ""
        browser.call("Page.bringToFront")
        browser.wait_for("document.getElementById('status').textContent.startsWith('QoE ')")
        assert "60 tokens" in browser.text("status")
        assert browser.evaluate("pieces") > 20, "it came all at once"
        browser.call("Target.closeTarget", **other)
