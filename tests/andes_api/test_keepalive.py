"""A stream that has nothing to say is not silent: comments on the wire, behind nginx, and what clients make of them."""

from __future__ import annotations

import functools
import hashlib
import importlib
import json
import os
import shutil
import subprocess
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from andes_sglang.bench.ports import free_port
from benchmarks.waiting import until

pytestmark = pytest.mark.server

COMMENT = ": keep-alive\n\n"
BODY: dict[str, Any] = {"model": "m", "prompt": "x", "max_tokens": 3, "stream": True, "temperature": 0}
CHAT: dict[str, Any] = {"model": "m", "messages": [{"role": "user", "content": "x"}], "max_tokens": 3, "stream": True}
WHOLE = ["w0 x", "w1 x", "w2 x"]


class Read(threading.Thread):
    """A stream, read in the background; ``comments`` has a permit for each comment that came."""

    def __init__(self, url: str, body: dict[str, Any] = BODY, **headers: str) -> None:
        super().__init__(daemon=True)
        self._url, self._body, self._headers = url + "/v1/completions", body, headers
        self.comments = threading.Semaphore(0)
        self.text, self.status = "", 0
        self.start()

    def run(self) -> None:
        with httpx.stream("POST", self._url, json=self._body, headers=self._headers, timeout=120) as answer:
            self.status = answer.status_code
            for part in answer.iter_text():
                self.text += part
                if part.count(COMMENT):
                    self.comments.release(part.count(COMMENT))

    def whole(self) -> str:
        self.join(120)
        assert not self.is_alive()
        return self.text

    @property
    def words(self) -> list[str]:
        events = [e for e in self.text.split("\n\n") if e.startswith("data: {")]
        return [c["text"] for e in events for c in json.loads(e[6:]).get("choices", ())]


def wait_for(comments: threading.Semaphore, count: int) -> None:
    for _ in range(count):
        assert comments.acquire(timeout=60)


def test_while_it_waits_for_its_first_token(faulty: Any, gateway: Any) -> None:
    upstream = faulty()
    upstream.fault = "stall"
    read = Read(gateway(upstream.url, keepalive_s=0.1).url)
    wait_for(read.comments, 3)
    upstream.release.set()
    assert read.whole().startswith(COMMENT)
    assert read.text.endswith("data: [DONE]\n\n")
    assert (read.status, read.words) == (200, WHOLE)


def test_while_it_is_paced(faulty: Any, gateway: Any) -> None:
    server = gateway(faulty().url, keepalive_s=0.1, client_idle_s=0.5)
    read = Read(
        server.url, {**BODY, "stream_options": {"include_usage": True}}, **{"x-andes-pace": "on", "x-andes-tds": "1"}
    )
    first, *rest = read.whole().partition("w1 x")[0].split(COMMENT)
    assert "w0 x" in first
    assert len(rest) >= 2
    assert read.words == WHOLE
    assert read.text.endswith("[DONE]\n\n")


def test_while_it_is_held_and_then_refused(gateway: Any) -> None:
    server = gateway(f"http://127.0.0.1:{free_port()}", keepalive_s=0.1, hold_s=1)
    read = Read(server.url)
    last = read.whole().split("\n\n")[-2]
    assert (read.status, COMMENT in read.text, "[DONE]" in read.text) == (200, True, False)
    assert json.loads(last.removeprefix("data: "))["error"]["code"] == "service_unavailable"
    whole = httpx.post(server.url + "/v1/completions", json={**BODY, "stream": False})
    assert whole.status_code == 503  # an answer in one piece can still say it


def test_an_engine_that_dies_or_refuses_after_the_first_comment(faulty: Any, gateway: Any) -> None:
    dying, sound = faulty(), faulty()
    dying.strike = threading.Event()
    dying.fault = "die"
    server = gateway(dying.url, sound.url, policy="round_robin", keepalive_s=0.1, resume=False)
    reads = [Read(server.url) for _ in range(2)]
    deadline_s, late = time.monotonic() + 60, None
    while late is None and time.monotonic() < deadline_s:  # either of the two may have found the one that dies
        late = next((read for read in reads if read.comments.acquire(timeout=0.05)), None)
    assert late is not None
    dying.strike.set()
    late.whole()
    assert (late.status, late.words, "error" in late.text) == (200, WHOLE, False)  # not begun: moved as a whole
    assert late.text.endswith("[DONE]\n\n")


def test_an_error_of_the_request_after_the_first_comment(faulty: Any, gateway: Any) -> None:
    upstream = faulty()
    upstream.answer_after = threading.Event()
    read = Read(gateway(upstream.url, keepalive_s=0.1).url, {**BODY, "max_tokens": 5000})
    wait_for(read.comments, 1)
    upstream.answer_after.set()
    last = read.whole().split("\n\n")[-2]
    assert json.loads(last.removeprefix("data: "))["error"]["message"] == "no sound request"
    assert "[DONE]" not in read.text


def test_none_when_it_is_off_or_the_answer_is_in_one_piece(faulty: Any, gateway: Any) -> None:
    upstream = faulty()
    upstream.fault = "stall"
    off = Read(gateway(upstream.url, keepalive_s=0).url)
    on = gateway(upstream.url, keepalive_s=0.05)
    whole = httpx.post(on.url + "/v1/completions", json={**BODY, "stream": False})
    assert whole.json()["choices"]
    read = Read(on.url)
    wait_for(read.comments, 5)
    upstream.release.set()
    assert COMMENT not in off.whole()


# Behind nginx as it is installed, which gives up an answer that is silent for five seconds


@pytest.fixture
def nginx(tmp_path: Path) -> Iterator[Any]:
    """Starts nginx before gateways, one port each."""
    found = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin:/sbin")
    if found is None:
        pytest.skip("NO NGINX: install nginx to test the gateway behind it")
    processes = []

    def start(*urls: str) -> list[str]:
        ports = [free_port() for _ in urls]
        servers = "".join(
            f"server {{ listen 127.0.0.1:{port}; location / {{ proxy_pass {url}; proxy_read_timeout 5s; }} }}\n"
            for port, url in zip(ports, urls, strict=True)
        )
        paths = "".join(
            f"{kind}_temp_path {tmp_path / kind};\n" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
        )
        config = tmp_path / "nginx.conf"
        config.write_text(
            f"daemon off; master_process off; pid {tmp_path / 'nginx.pid'}; error_log {tmp_path / 'error.log'};\n"
            f"events {{}}\nhttp {{ access_log off;\n{paths}{servers}}}\n"
        )
        processes.append(subprocess.Popen([found, "-p", str(tmp_path), "-c", str(config)]))
        for port in ports:
            until(lambda port=port: answers(port))
        return [f"http://127.0.0.1:{port}" for port in ports]

    yield start
    for process in processes:
        process.terminate()
        process.wait(60)


def answers(port: int) -> bool:
    try:
        return httpx.get(f"http://127.0.0.1:{port}/livez").status_code == 200
    except httpx.TransportError:
        return False


OPENAI_JS = """
import OpenAI from "openai";
const client = new OpenAI({baseURL: process.argv[2] + "/v1", apiKey: "sk-any", maxRetries: 0});
const stream = await client.chat.completions.create(JSON.parse(process.argv[3]));
const words = [];
for await (const chunk of stream) if (chunk.choices[0]?.delta?.content) words.push(chunk.choices[0].delta.content);
console.log(JSON.stringify(words));
"""
VERCEL_JS = """
import {createOpenAICompatible} from "@ai-sdk/openai-compatible";
import {streamText} from "ai";
const provider = createOpenAICompatible({name: "andes", baseURL: process.argv[2] + "/v1", apiKey: "sk-any"});
const {messages, max_tokens} = JSON.parse(process.argv[3]);
const {textStream} = streamText({model: provider("m"), messages, maxOutputTokens: max_tokens, maxRetries: 0});
const words = [];
for await (const part of textStream) words.push(part);
console.log(JSON.stringify(words));
"""


def by_openai(url: str) -> list[str]:
    sdk = openai.OpenAI(base_url=url + "/v1", api_key="sk-any", max_retries=0)
    chunks = list(sdk.chat.completions.create(**CHAT))
    return [c.choices[0].delta.content for c in chunks if c.choices and c.choices[0].delta.content]


def by_langchain(url: str) -> list[str]:
    from langchain_openai import ChatOpenAI  # seconds to import

    model = ChatOpenAI(base_url=url + "/v1", api_key="sk-any", model="m", max_tokens=3, max_retries=0)  # type: ignore[arg-type]
    return [str(chunk.content) for chunk in model.stream("x") if chunk.content]


def by_litellm(url: str) -> list[str]:
    os.environ.setdefault("LITELLM_LOCAL_MODEL_COST_MAP", "True")  # no look-up on the internet
    import litellm  # seconds to import

    messages = [{"role": "user", "content": "x"}]
    options = {"api_base": url + "/v1", "api_key": "sk-any", "max_tokens": 3, "num_retries": 0}
    stream = litellm.completion("openai/m", messages, stream=True, **options)
    return [c.choices[0].delta.content for c in stream if c.choices[0].delta.content]


def javascript(script: str, folder: Path, *arguments: str) -> Any:
    """What a script prints, as JSON."""
    file = folder / f"{hashlib.sha256(script.encode()).hexdigest()[:9]}.mjs"
    file.write_text(script)
    done = subprocess.run(["node", str(file), *arguments], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def behind_nginx(clients: list[Any], faulty: Any, gateway: Any, nginx: Any) -> list[list[str]]:
    """What clients read while the engine says nothing for longer than nginx waits; one without comments is cut off."""
    upstream = faulty()
    upstream.fault = "stall"  # chat: after the role
    beating, silent = nginx(gateway(upstream.url, keepalive_s=1).url, gateway(upstream.url, keepalive_s=0).url)
    with ThreadPoolExecutor() as pool:
        reads = [pool.submit(client, beating) for client in clients]
        try:
            cut = Read(silent)
            assert cut.whole() == "" or "504" in cut.text  # its five seconds are over
            assert [read.result(0) for read in reads if read.done()] == []
        finally:
            upstream.release.set()
        return [read.result(120) for read in reads]


@pytest.mark.filterwarnings("ignore")
def test_python_behind_nginx(faulty: Any, gateway: Any, nginx: Any) -> None:
    for module in ("langchain_openai", "litellm"):  # seconds each, and not by two threads at once
        importlib.import_module(module)
    clients = [by_openai, by_langchain, by_litellm]
    assert behind_nginx(clients, faulty, gateway, nginx) == [WHOLE] * 3


def test_javascript_behind_nginx(faulty: Any, gateway: Any, nginx: Any, javascript_clients: Path) -> None:
    clients = [
        functools.partial(by_javascript, script=script, folder=javascript_clients) for script in (OPENAI_JS, VERCEL_JS)
    ]
    assert behind_nginx(clients, faulty, gateway, nginx) == [WHOLE] * 2


def by_javascript(url: str, *, script: str, folder: Path) -> Any:
    return javascript(script, folder, url, json.dumps(CHAT))


ERRORS_JS = """
import OpenAI from "openai";
const said = [];
for (const [body, headers] of JSON.parse(process.argv[3])) {
  const client = new OpenAI({baseURL: process.argv[2] + "/v1", apiKey: "sk-any", maxRetries: 0, defaultHeaders: headers});
  try {
    for await (const _ of await client.chat.completions.create(body));
    said.push("no error");
  } catch (error) {
    said.push(`${error.constructor.name} ${error.message}`);
  }
}
console.log(JSON.stringify(said));
"""


def test_the_javascript_client_understands_refusals(faulty: Any, gateway: Any, javascript_clients: Path) -> None:
    upstream = faulty()
    server = gateway(upstream.url, max_body_bytes=4096, keepalive_s=0.1, hold_s=0.5, page=False)
    long = {**CHAT, "messages": [{"role": "user", "content": "x" * 5000}]}
    asked = [({**CHAT, "n": 1e9}, {}), (long, {}), (CHAT, {"x-andes-tsd": "5"}), ({**CHAT, "max_tokens": 5000}, {})]
    told = javascript(ERRORS_JS, javascript_clients, server.url, json.dumps(asked))
    assert told[0].startswith("BadRequestError 400 n: expected a whole number from 1 to 128")
    assert "413 the body is longer than 4096 bytes" in told[1]
    assert "did you mean x-andes-tds" in told[2]
    assert "no sound request" in told[3]
    none = gateway(f"http://127.0.0.1:{free_port()}", keepalive_s=0.1, hold_s=0.5)
    (late,) = javascript(ERRORS_JS, javascript_clients, none.url, json.dumps([(CHAT, {})]))
    assert "no engine is available" in late  # in the stream, after the first comment
