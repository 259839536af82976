"""The batch API with the official client: real gateways on one directory, a simulated engine, and one of them killed."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from andes_operator.offline import OfflineWork
from andes_sglang.bench.engine import Engine, read_metrics
from andes_sglang.bench.ports import free_port
from andes_sglang.cli import main
from benchmarks.processes import hear_ctrl_c
from benchmarks.waiting import until

pytestmark = pytest.mark.server

CHAT = "/v1/chat/completions"
LIMIT_S = 120.0
"""Seconds for what takes about one, however slow the machine is."""
KEYS = {"acme": "sk-acme", "other": "sk-other", "small": "sk-small", "crowd": "sk-crowd"}


def line(number: int, **more: Any) -> dict[str, Any]:
    body = {
        "model": "simulated",
        "messages": [{"role": "user", "content": f"Question {number % 3}: {number}"}],
        "max_tokens": 8,
    }
    return {"custom_id": f"q{number}", "method": "POST", "url": CHAT, "body": {**body, **more}}


def lines(*content: Any) -> bytes:
    return b"".join((c if isinstance(c, bytes) else json.dumps(c).encode()) + b"\n" for c in content)


class Gateway:
    """A process of its own, which can be killed."""

    def __init__(self, url: str, directory: Path, log: Path, tenants: list[dict[str, Any]]) -> None:
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        command = [sys.executable, "-m", "andes_sglang.cli", "gateway", "--upstream", url, "--port", str(self.port)]
        command += [
            "--batches",
            json.dumps({"directory": str(directory)}),
            "--tenants",
            json.dumps(tenants),
        ]
        with log.open("ab") as file:
            self.process = subprocess.Popen(command, stdout=file, stderr=file)
        until(self._answers, f"gateway; see {log}")

    def _answers(self) -> bool:
        assert self.process.poll() is None
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", self.port)) == 0

    def sdk(self, tenant: str = "acme") -> openai.OpenAI:
        return openai.OpenAI(base_url=self.url + "/v1", api_key=KEYS[tenant], max_retries=0)

    def kill(self) -> None:
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()

    def stop(self) -> None:
        if self.process.poll() is None:
            self.process.terminate()
            self.process.wait(60)


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    log = tmp_path_factory.mktemp("engine") / "engine.log"
    with Engine("simulated", "andes", ("--engine", "sim", "--max-running-requests", "4"), log=log) as engine:
        yield engine


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("batches")


Start = Callable[..., Gateway]


@pytest.fixture(scope="module")
def start(engine: Engine, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Start]:
    tenants = [
        {"name": name, "key_sha256": hashlib.sha256(key.encode()).hexdigest()}
        | ({"batches": {"files": 2, "requests": 3}} if name in ("small", "crowd") else {})
        for name, key in KEYS.items()
    ]
    log = tmp_path_factory.mktemp("gateways") / "gateway.log"
    with ExitStack() as stack:

        def start(directory: Path, url: str = engine.url) -> Gateway:
            gateway = Gateway(url, directory, log, tenants)
            stack.callback(gateway.stop)
            return gateway

        yield start


@pytest.fixture(scope="module")
def gateway(start: Start, directory: Path) -> Gateway:
    return start(directory)


def submit(sdk: openai.OpenAI, content: bytes, endpoint: Any = CHAT, window: Any = "24h", **more: Any) -> Any:
    file = sdk.files.create(file=("in.jsonl", content), purpose="batch")
    return sdk.batches.create(input_file_id=file.id, endpoint=endpoint, completion_window=window, **more)


def ended(sdk: openai.OpenAI, batch: Any) -> Any:
    def look() -> Any:
        now = sdk.batches.retrieve(batch.id)
        return now if now.status in ("completed", "failed", "expired", "cancelled") else None

    return until(look, "end of the batch")


def read(sdk: openai.OpenAI, file_id: str | None) -> dict[Any, dict[str, Any]]:
    """Lines by custom_id; each comes once."""
    if file_id is None:
        return {}
    found = [json.loads(text) for text in sdk.files.content(file_id).text.splitlines()]
    assert len({each["id"] for each in found}) == len(found)
    return {each["custom_id"]: each for each in found}


def test_the_official_client_runs_a_batch(gateway: Gateway, engine: Engine) -> None:
    sdk = gateway.sdk()
    bad = (
        b"{no json",
        {**line(21), "method": "GET"},
        line(1),
        line(22, model="unknown"),
        line(23, stream=True),
        line(24, n=0),
        line(25, lora_path="sql"),
    )
    batch = submit(sdk, lines(*(line(n) for n in range(8)), *bad), metadata={"job": "nightly"})
    assert (batch.status, batch.endpoint, batch.completion_window) == ("validating", CHAT, "24h")
    assert batch.expires_at == batch.created_at + 86_400
    done = ended(sdk, batch)
    assert done.status == "completed"
    assert done.metadata == {"job": "nightly"}
    assert (done.request_counts.total, done.request_counts.completed, done.request_counts.failed) == (15, 8, 7)
    outputs, errors = read(sdk, done.output_file_id), read(sdk, done.error_file_id)
    assert set(outputs) == {f"q{n}" for n in range(8)}
    answer = outputs["q3"]
    assert answer["error"] is None
    assert answer["response"]["status_code"] == 200
    assert answer["response"]["request_id"]
    assert answer["response"]["body"]["choices"][0]["message"]["content"]
    assert done.usage.output_tokens == 64
    assert done.usage.total_tokens == done.usage.input_tokens + 64
    faults = {fault.line: (fault.code, fault.param) for fault in done.errors.data}
    assert faults == {
        9: ("invalid_json_line", None), 10: ("invalid_request", "method"), 11: ("duplicate_custom_id", "custom_id"),
        12: ("model_not_found", "model"), 13: ("invalid_request", "body.stream"), 14: ("invalid_request", "n"),
        15: ("invalid_request", "lora_path"),
    }  # fmt: skip
    assert {fault.message.split(":")[0] for fault in done.errors.data} == {f"line {number}" for number in faults}
    assert errors["q22"]["error"]["line"] == 12
    assert errors["q22"]["response"] is None
    assert "unknown" in errors["q22"]["error"]["message"]
    assert all(getattr(done, f"{state}_at") for state in ("in_progress", "finalizing", "completed"))
    assert sum(v for k, v in read_metrics(engine.url).items() if k.startswith("andes_preemptions_total")) == 0


def test_files_and_batches_are_listed_page_by_page_and_are_their_tenants_own(gateway: Gateway) -> None:
    sdk, other = gateway.sdk(), gateway.sdk("other")
    file = sdk.files.create(
        file=("two.jsonl", lines(line(0))), purpose="batch", expires_after={"anchor": "created_at", "seconds": 7200}
    )
    assert (file.filename, file.purpose, file.bytes) == ("two.jsonl", "batch", len(lines(line(0))))
    assert file.expires_at == file.created_at + 7200
    assert sdk.files.retrieve(file.id) == file
    assert sdk.files.content(file.id).content == lines(line(0))
    batch = submit(sdk, lines(line(0)))
    assert batch.id in [b.id for b in sdk.batches.list(limit=1)], "the pages after the first come by themselves"
    assert file.id in [f.id for f in sdk.files.list(purpose="batch", limit=2, order="asc")]
    assert (list(other.files.list()), list(other.batches.list())) == ([], [])
    for call in (other.files.retrieve, other.files.content, other.files.delete):
        with pytest.raises(openai.NotFoundError):
            call(file.id)
    for call in (other.batches.retrieve, other.batches.cancel):
        with pytest.raises(openai.NotFoundError):
            call(batch.id)
    with pytest.raises(openai.BadRequestError, match="input_file_id: no file"):
        other.batches.create(input_file_id=file.id, endpoint=CHAT, completion_window="24h")
    assert sdk.files.delete(file.id).deleted
    with pytest.raises(openai.NotFoundError):
        sdk.files.retrieve(file.id)
    ended(sdk, batch)
    with pytest.raises(openai.BadRequestError, match="cannot be cancelled: it is completed"):
        sdk.batches.cancel(batch.id)


@pytest.mark.parametrize(
    ("endpoint", "body"),
    [
        ("/v1/completions", {"prompt": "Once", "max_tokens": 4}),
        ("/v1/embeddings", {"input": "Once"}),
        ("/v1/responses", {"input": "Once", "max_output_tokens": 4}),
    ],
)
def test_the_other_endpoints(endpoint: str, body: dict[str, Any], gateway: Gateway) -> None:
    sdk = gateway.sdk("other")
    one = {"custom_id": "a", "method": "POST", "url": endpoint, "body": {"model": "simulated", **body}}
    done = ended(sdk, submit(sdk, lines(one, {**one, "custom_id": "b", "url": "/v1/score"}), endpoint))
    assert (done.status, done.request_counts.completed, done.request_counts.failed) == ("completed", 1, 1)
    assert [(fault.line, fault.param) for fault in done.errors.data] == [(2, "url")]
    assert read(sdk, done.output_file_id)["a"]["response"]["status_code"] == 200


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"completion_window": "2020-01-01T00:00:00Z"}, "completion_window: expected a time in the future"),
        ({"completion_window": "0h"}, "completion_window: expected a time in the future"),
        ({"completion_window": "soon"}, "completion_window: expected a time such as '24h'"),
        ({"completion_window": "2099-01-01T00:00:00Z"}, "completion_window: expected at most 90d"),
        ({"endpoint": "/v1/score"}, "endpoint: expected one of: /v1/chat/completions"),
        ({"input_file_id": "file-none"}, "input_file_id: no file 'file-none'"),
        ({"metadata": {"a": "x" * 600}}, "metadata: expected at most 16 texts"),
        ({"output_expires_after": {"anchor": "created_at", "seconds": 5}}, "output_expires_after.seconds: expected"),
    ],
)
def test_a_batch_that_is_none(given: dict[str, Any], said: str, gateway: Gateway) -> None:
    asked = {"input_file_id": "file-none", "endpoint": CHAT, "completion_window": "24h", **given}
    with pytest.raises(openai.BadRequestError) as caught:
        gateway.sdk().batches.create(**asked)
    assert said in caught.value.message


def test_files_that_are_none(gateway: Gateway) -> None:
    sdk = gateway.sdk()
    with pytest.raises(openai.BadRequestError, match="purpose: expected batch"):
        sdk.files.create(file=("a", b"x"), purpose="vision")
    headers = {"authorization": f"Bearer {KEYS['acme']}"}
    assert httpx.post(gateway.url + "/v1/files", content=b"x", headers=headers).status_code == 415
    cut = {**headers, "content-type": "multipart/form-data; boundary=b"}
    assert httpx.post(gateway.url + "/v1/files", content=b"--b\r\nnonsense", headers=cut).status_code == 400
    wide = {**headers, "content-type": f"multipart/form-data; boundary={400 * 'b'}"}
    assert httpx.post(gateway.url + "/v1/files", content=b"x", headers=wide).status_code == 400
    assert (
        httpx.post(
            gateway.url + "/v1/files", data={"purpose": "batch"}, files={"other": b""}, headers=headers
        ).status_code
        == 400
    )
    empty = ended(sdk, submit(sdk, b"\n"))
    assert (empty.status, empty.errors.data[0].code) == ("failed", "empty_file")
    worse = ended(sdk, submit(sdk, lines(b"{", b"[]")))
    assert (worse.status, [fault.line for fault in worse.errors.data]) == ("failed", [1, 2])
    assert worse.failed_at


def test_only_the_file_of_a_form_may_be_long(gateway: Gateway) -> None:
    """It goes to the disk, all else to memory."""
    form = {"purpose": "batch" + 1_000_000 * " "}
    with httpx.Client(base_url=gateway.url, headers={"authorization": "Bearer sk-acme"}) as http:
        refused = http.post("/v1/files", data=form, files={"file": ("a", lines(line(0)))})
        taken = http.post(
            "/v1/files", data={"purpose": "batch"}, files={"file": ("a", lines(line(0)) + 1_000_000 * b" ")}
        )
    assert (refused.status_code, taken.status_code) == (413, 200)
    assert "beside its file the form is longer than 65536 bytes" in refused.json()["error"]["message"]


def test_a_batch_that_cannot_be_read_keeps_no_other_from_being_run(gateway: Gateway, directory: Path) -> None:
    sdk, batches = gateway.sdk("other"), directory / "batches"
    sound = ended(sdk, submit(sdk, lines(line(0))))
    torn = batches / f"batch_{32 * '0'}"
    torn.mkdir()
    (torn / "output.jsonl").write_bytes(b"\0\n")
    said = json.loads((batches / sound.id / "batch.json").read_bytes())
    said |= {"id": torn.name, "status": "in_progress", "expires_at": said["expires_at"] - 3600}  # it comes first
    (torn / "batch.json").write_text(json.dumps(said))
    assert ended(sdk, submit(sdk, lines(line(0)))).status == "completed"
    failed = ended(sdk, sdk.batches.retrieve(torn.name))
    assert (failed.status, failed.errors.data[0].code) == ("failed", "corrupt_journal")
    (torn / "batch.json").write_bytes(b"\0")
    assert ended(sdk, submit(sdk, lines(line(0)))).status == "completed"
    shutil.rmtree(torn)


def test_a_tenant_has_so_much(gateway: Gateway) -> None:
    sdk = gateway.sdk("small")
    with pytest.raises(openai.RateLimitError, match="these are 4 more; 3 are allowed") as caught:
        submit(sdk, lines(*(line(n) for n in range(4))))
    assert caught.value.response.headers["x-should-retry"] == "false"
    sdk.files.create(file=("a", b"{}"), purpose="batch")
    with pytest.raises(openai.BadRequestError, match="3 files, 2 are allowed"):
        sdk.files.create(file=("a", b"{}"), purpose="batch")
    with pytest.raises(openai.AuthenticationError):
        openai.OpenAI(base_url=gateway.url + "/v1", api_key="sk-none", max_retries=0).batches.list()


def test_a_tenant_has_no_more_by_asking_many_times_at_once(gateway: Gateway) -> None:
    def upload(_: int) -> int:
        form, file = {"purpose": "batch"}, {"file": ("a", lines(line(0)))}
        headers = {"authorization": f"Bearer {KEYS['crowd']}"}
        return httpx.post(gateway.url + "/v1/files", data=form, files=file, headers=headers, timeout=120).status_code

    with ThreadPoolExecutor(12) as pool:
        assert Counter(pool.map(upload, range(12))) == {200: 2, 400: 10}


def test_cancelling_and_a_window_that_ends(gateway: Gateway) -> None:
    sdk = gateway.sdk()
    short = [line(n, max_tokens=2, messages=[{"role": "user", "content": f"A: {n}"}]) for n in range(4)]  # sorted first
    endless = [line(n, max_tokens=30_000, ignore_eos=True) for n in range(4, 12)]
    batch = submit(sdk, lines(*short, *endless))
    until(lambda: sdk.batches.retrieve(batch.id).request_counts.completed == 4, "answer")
    with pytest.raises(openai.BadRequestError, match="which has not ended: cancel it first"):
        sdk.files.delete(batch.input_file_id)
    assert sdk.batches.cancel(batch.id).status == "cancelling"
    done = ended(sdk, batch)
    assert (done.status, done.request_counts.completed, done.request_counts.failed) == ("cancelled", 4, 8)
    assert done.cancelled_at >= done.cancelling_at
    assert set(read(sdk, done.output_file_id)) == {"q0", "q1", "q2", "q3"}
    assert {e["error"]["code"] for e in read(sdk, done.error_file_id).values()} == {"batch_cancelled"}
    late = ended(sdk, submit(sdk, lines(*short, *endless), window="3s"))
    assert (late.status, late.request_counts.failed >= 8) == ("expired", True)
    assert {e["error"]["code"] for e in read(sdk, late.error_file_id).values()} == {"batch_expired"}
    assert len(read(sdk, late.output_file_id)) == late.request_counts.completed


def test_a_gateway_that_is_killed_loses_nothing(faulty: Any, start: Start, tmp_path: Path) -> None:
    """The other one takes over what it ran, and no answer that was written down is asked for again."""
    upstream = faulty()
    upstream.answer_after, upstream.held_word = threading.Event(), "slow"
    both = [start(tmp_path, upstream.url), start(tmp_path, upstream.url)]
    slow = [line(n, model="m", prompt=f"slow {n}") for n in range(8, 20)]
    work = [line(n, model="m", prompt=f"quick {n}") for n in range(8)] + slow
    batch = submit(both[0].sdk(), lines(*({**each, "url": "/v1/completions"} for each in work)), "/v1/completions")
    written = tmp_path / "batches" / batch.id / "output.jsonl"
    until(lambda: written.exists() and len(written.read_bytes().splitlines()) == 8, "answer")
    until(lambda: len(upstream.bodies) == 20, "request")
    assert [gateway.sdk().batches.retrieve(batch.id).status for gateway in both] == ["in_progress"] * 2
    told = [httpx.get(gateway.url + "/fleet/batches").json() for gateway in both]
    (owner,) = (k for k, said in enumerate(told) if said["batches"])
    about = told[owner]["batches"][0]
    assert (about["models"], about["deadline_s"], about["requests"]) == (["m"], batch.expires_at, 12)
    both[owner].kill()
    until(lambda: len(upstream.bodies) == 20 + 12, "request by the other gateway")
    upstream.answer_after.set()
    sdk = both[1 - owner].sdk()
    done = ended(sdk, batch)
    assert (done.status, done.request_counts.completed, done.usage.output_tokens) == ("completed", 20, 20)
    assert set(read(sdk, done.output_file_id)) == {f"q{n}" for n in range(20)}
    asked = Counter(body["prompt"] for body in upstream.bodies)
    assert asked == {f"quick {n}": 1 for n in range(8)} | {f"slow {n}": 2 for n in range(8, 20)}


def test_readers_do_not_notice_batches(gateway: Gateway, start: Start, directory: Path) -> None:
    """They are no demand, take no reader's place at either gateway, and hold no gateway that ends."""
    second = start(directory)
    sdk = second.sdk()
    batch = submit(sdk, lines(*(line(n, max_tokens=30_000, ignore_eos=True) for n in range(20))))
    until(lambda: _at_engine(gateway) + _at_engine(second) in (4, 5), "requests: what it runs at a time, and one ahead")
    until(
        lambda: all(_replica(g)["requests"] and _replica(g)["others"] == 0 for g in (gateway, second)), "look of each"
    )
    assert [(_replica(g)["streams"], _replica(g)["waiting"]) for g in (gateway, second)] == [(0, 0)] * 2
    told = [b for g in (gateway, second) for b in httpx.get(g.url + "/fleet/batches").json()["batches"]]
    assert [(b["id"], b["requests"]) for b in told] == [(batch.id, 20)]
    assert told[0]["tokens"] >= 20 * 30_000
    assert httpx.get(second.url + "/fleet/batches?model=none").json()["batches"] == []
    parts = [OfflineWork.parse(httpx.get(g.url + "/fleet/batches").json()) for g in (gateway, second)]
    assert (OfflineWork.merged(parts).requests, OfflineWork.merged(parts).earliest_s) == (20, batch.expires_at)
    answer = sdk.chat.completions.create(
        model="simulated", messages=[{"role": "user", "content": "Hello"}], max_tokens=4
    )
    assert answer.usage is not None
    records = httpx.get(second.url + "/fleet/demand").json()["records"]
    assert [(r["class"], r["outcome"]) for r in records] == [("reading", "done")]
    second.process.terminate()
    assert second.process.wait(LIMIT_S) == 0, "at once: what it had is queued again"
    until(lambda: 4 <= _at_engine(gateway) <= 5, "request at the gateway that is left")
    gateway.sdk().batches.cancel(batch.id)
    assert ended(gateway.sdk(), batch).status == "cancelled"


def _replica(gateway: Gateway) -> dict[str, Any]:
    (replica,) = httpx.get(gateway.url + "/fleet/replicas").json()["replicas"]
    return dict(replica)


def _at_engine(gateway: Gateway) -> int:
    return int(_replica(gateway)["offline"])


def test_the_command_line(gateway: Gateway, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: Any) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEYS["acme"])
    file = tmp_path / "in.jsonl"
    file.write_bytes(lines(*(line(n) for n in range(3)), b"{"))
    command = ["batch", str(file), "--url", gateway.url + "/v1"]
    assert main(command) == 1, "one line is wrong"
    said = capfd.readouterr()
    assert said.out.split() == [str(tmp_path / "in.out.jsonl"), str(tmp_path / "in.errors.jsonl")]
    assert f"{file}: line 4: the line is no JSON" in said.err
    assert "completed, 4 of 4 done (100 %), 1 failed" in said.err
    answers = [json.loads(text) for text in (tmp_path / "in.out.jsonl").read_text().splitlines()]
    assert {answer["custom_id"] for answer in answers} == {"q0", "q1", "q2"}
    assert main([*command, "--out", str(tmp_path / "again"), "--window", "2h"]) == 1
    again = capfd.readouterr().err
    assert ": found, completed; its deadline stays (--new begins another)" in again, "the same file is the same batch"
    assert sorted((tmp_path / "again").read_text().splitlines()) == sorted(
        (tmp_path / "in.out.jsonl").read_text().splitlines()
    )
    assert main([*command, "--new"]) == 1
    assert ": begun" in capfd.readouterr().err
    mine = [f for f in gateway.sdk().files.list(purpose="batch") if f.filename.startswith("in-")]
    assert len(mine) == 1, "it was uploaded once"
    assert main([*command, "--resume", said.err.split(":")[0]]) == 1


def test_the_command_line_is_interrupted(
    gateway: Gateway, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: Any
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEYS["acme"])
    file = tmp_path / "long.jsonl"
    file.write_bytes(lines(line(0), line(1, max_tokens=30_000, ignore_eos=True)))
    command = ["batch", str(file), "--url", gateway.url]
    with (tmp_path / "said").open("wb") as said:
        process = subprocess.Popen(
            [sys.executable, "-m", "andes_sglang.cli", *command],
            stderr=said,
            preexec_fn=hear_ctrl_c,
        )
    until(lambda: "1 of 2 done" in (tmp_path / "said").read_text(), "progress")
    process.send_signal(signal.SIGINT)
    assert process.wait(LIMIT_S) == 130
    assert "the batch goes on" in (tmp_path / "said").read_text()
    assert main([*command, "--cancel"]) == 1
    assert "cancelled, 2 of 2 done (100 %), 1 failed" in capfd.readouterr().err
    assert json.loads((tmp_path / "long.out.jsonl").read_text())["custom_id"] == "q0"


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--url", "gateway:80"], "--url: expected http://HOST:PORT, got 'gateway:80'"),
        (["--url", "http://127.0.0.1:9"], "http://127.0.0.1:9 does not answer"),
        (["--window", "0h"], "completion_window: expected a time in the future"),
        (["--resume", "batch_none"], "no batch 'batch_none'"),
        (["--endpoint", "/v1/score"], "endpoint: expected one of"),
        (["--cancel"], "has no batch of"),
        (["--cancel", "--new"], "--cancel: not with --new: only a batch that was begun can be cancelled"),
        (["--cancel", "--window", "2h"], "--window 2h: not with --cancel; it is the deadline of a new batch"),
        (["--resume", "b", "--window", "2h"], "--window 2h: not with --resume, which follows a batch as it is"),
        (["--resume", "b", "--endpoint", "/v1/embeddings"], "--endpoint /v1/embeddings: not with --resume"),
        (["--retry"], "unknown argument '--retry'"),
    ],
)
def test_the_command_line_says_what_is_wrong(
    more: list[str], said: str, gateway: Gateway, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEYS["acme"])
    file = tmp_path / "in.jsonl"
    file.write_bytes(lines(line(77)))
    assert main(["batch", str(file), "--url", gateway.url, *more]) == 2
    assert said in capsys.readouterr().err


def test_a_file_that_is_none_is_not_sent(
    gateway: Gateway, engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    assert main(["batch", str(tmp_path / "none"), "--url", gateway.url]) == 2
    assert "no such file" in capsys.readouterr().err
    assert main(["batch", str(tmp_path), "--url", gateway.url]) == 2
    assert "a directory, not a file" in capsys.readouterr().err
    monkeypatch.setenv("OPENAI_API_KEY", KEYS["acme"])
    (tmp_path / "odd").write_text("nonsense\n")
    assert main(["batch", str(tmp_path / "odd"), "--url", gateway.url]) == 2
    assert "no line has a url" in capsys.readouterr().err
    monkeypatch.setenv("OPENAI_API_KEY", "sk-none")
    (tmp_path / "odd").write_bytes(lines(line(0)))
    assert main(["batch", str(tmp_path / "odd"), "--url", gateway.url]) == 2
    assert "no valid API key" in capsys.readouterr().err
    assert main(["batch", str(tmp_path / "odd"), "--url", engine.url]) == 2
    assert f"{engine.url} has no batch API (404 at /v1/batches)" in capsys.readouterr().err


def test_the_example_of_the_docs(gateway: Gateway, capsys: Any) -> None:
    docs = (Path(__file__).parents[2] / "docs" / "offline.md").read_text()
    (example,) = (block for block in re.findall(r"```python\n(.*?)```", docs, re.S) if "batches.create" in block)
    for theirs, ours in (
        ("http://gateway:8080", gateway.url),
        ("KEY", KEYS["acme"]),
        ('"m"', '"simulated"'),
        ("sleep(5)", "sleep(0.1)"),
    ):
        assert theirs in example
        example = example.replace(theirs, ours)
    exec(example, {"reviews": ["Good.", "Bad."]})  # noqa: S102
    assert {text.split()[0] for text in capsys.readouterr().out.splitlines() if text.startswith("review-")} == {
        "review-0",
        "review-1",
    }
