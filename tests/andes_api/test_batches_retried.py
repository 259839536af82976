"""What becomes of a line of a batch that an engine does not answer."""

from __future__ import annotations

import contextlib
import json
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from andes_api.batches import order
from andes_api.batches.dispatch import MAX_ENGINE_ERRORS
from andes_api.batches.lines import Line
from andes_api.batches.work import BatchWork
from benchmarks.waiting import until

pytestmark = pytest.mark.server

LINE = {
    "custom_id": "a",
    "method": "POST",
    "url": "/v1/completions",
    "body": {"model": "m", "prompt": "x", "max_tokens": 3},
}
LIMIT_S = 120.0


@pytest.mark.parametrize(
    ("fault", "status"), [("503", None), ("hang up", None), ("429", None), ("400", 400), ("500", 500)]
)
def test_what_is_refused_is_tried_again_and_what_is_answered_is_not(
    fault: str, status: int | None, faulty: Any, gateway: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """status: that the line ends with; None: it is answered once the engine is well."""
    monkeypatch.setattr(order, "MAX_BACKOFF_S", 0.05)
    upstream = faulty()
    upstream.fault = fault
    server = gateway(upstream.url, batches={"directory": tmp_path}, retries=0, breaker_cooldown_s=0.1)
    sdk = openai.OpenAI(base_url=server.url + "/v1", api_key="any", max_retries=0)
    file = sdk.files.create(file=("a", json.dumps(LINE).encode()), purpose="batch")
    batch = sdk.batches.create(input_file_id=file.id, endpoint="/v1/completions", completion_window="24h")
    if status is None:
        until(lambda: len(upstream.bodies) >= 3, "further try")
        assert sdk.batches.retrieve(batch.id).status == "in_progress"
        upstream.fault = None
    until(lambda: sdk.batches.retrieve(batch.id).status == "completed", "end of the batch")
    done = sdk.batches.retrieve(batch.id)
    assert done.request_counts is not None
    assert (done.request_counts.completed, done.request_counts.failed) == ((1, 0) if status is None else (0, 1))
    if status is not None:
        assert done.error_file_id is not None
        line = json.loads(sdk.files.content(done.error_file_id).text)
        assert (line["custom_id"], line["response"]["status_code"], line["error"]) == ("a", status, None)
        assert len(upstream.bodies) == {400: 1, 500: MAX_ENGINE_ERRORS}[status]
    assert all(body["custom_params"]["qoe"]["yield"] for body in upstream.bodies)


def test_a_line_that_cannot_be_read_for_a_moment_is_not_lost(
    faulty: Any, gateway: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(order, "MAX_BACKOFF_S", 0.05)
    body_of, faults = BatchWork.body_of, [OSError(5, "the disk fails")]

    def read(work: BatchWork, line: Line) -> dict[str, Any]:
        if faults:
            raise faults.pop()
        return body_of(work, line)

    monkeypatch.setattr(BatchWork, "body_of", read)
    server = gateway(faulty().url, batches={"directory": tmp_path})
    sdk = openai.OpenAI(base_url=server.url + "/v1", api_key="any", max_retries=0)
    file = sdk.files.create(file=("a", json.dumps(LINE).encode()), purpose="batch")
    batch = sdk.batches.create(input_file_id=file.id, endpoint="/v1/completions", completion_window="24h")
    until(lambda: sdk.batches.retrieve(batch.id).status == "completed", "end of the batch")
    assert sdk.batches.retrieve(batch.id).output_file_id is not None
    assert not faults


def test_an_upload_that_trickles_ends(faulty: Any, gateway: Any, tmp_path: Path) -> None:
    """A byte every while is not silence, and no upload."""
    server = gateway(faulty().url, batches={"directory": tmp_path}, body_timeout_s=0.5)
    form = b'--b\r\ncontent-disposition: form-data; name="file"; filename="a"\r\n\r\n'
    head = b"POST /v1/files HTTP/1.1\r\nhost: x\r\ncontent-type: multipart/form-data; boundary=b\r\n"
    with socket.create_connection(("127.0.0.1", server.port)) as client:
        client.sendall(head + b"content-length: 100000\r\n\r\n" + form)
        client.settimeout(0.05)
        answer, until_s = b"", time.monotonic() + LIMIT_S
        while not answer and time.monotonic() < until_s:
            with contextlib.suppress(TimeoutError):
                client.sendall(b"x")
                answer = client.recv(1000)
    assert answer.startswith(b"HTTP/1.1 408")
    assert not any((tmp_path / "files" / "incoming").iterdir())


def test_without_a_directory_it_is_said_how_to_turn_it_on(faulty: Any, gateway: Any) -> None:
    sdk = openai.OpenAI(base_url=gateway(faulty().url).url + "/v1", api_key="any", max_retries=0)
    for call in (sdk.batches.list, sdk.files.list):
        with pytest.raises(openai.NotFoundError, match=r"batches\.directory") as caught:
            call()
        assert caught.value.code == "batches_off"


def test_batches_take_no_readers_place(faulty: Any, gateway: Any, tmp_path: Path) -> None:
    upstream = faulty()
    upstream.answer_after, upstream.held_word = threading.Event(), "slow"
    server = gateway(
        upstream.url,
        batches={"directory": tmp_path},
        max_streams=1,
        max_streams_per_replica=1,
        models={"m": {"max_streams": 1}},
    )
    sdk = openai.OpenAI(base_url=server.url + "/v1", api_key="any", max_retries=0)
    lines = (json.dumps({**LINE, "custom_id": str(n), "body": {"model": "m", "prompt": "slow"}}) for n in range(5))
    file = sdk.files.create(file=("a", "\n".join(lines).encode()), purpose="batch")
    batch = sdk.batches.create(input_file_id=file.id, endpoint="/v1/completions", completion_window="24h")
    until(lambda: len(upstream.bodies) == 2, "request: one that has room, and one ahead")
    assert sdk.completions.create(model="m", prompt="quick", max_tokens=2).choices[0].text
    upstream.answer_after.set()
    until(lambda: sdk.batches.retrieve(batch.id).status == "completed", "end of the batch")


@pytest.mark.parametrize("stream", [False, True])
def test_what_yields_waits_for_readers_without_bound(stream: bool, faulty: Any, gateway: Any) -> None:
    """It is still there when a reader's request, which came later, has been given up."""
    upstream = faulty()
    if stream:
        upstream.fault, upstream.after = "stall", 1
    else:
        upstream.answer_after = threading.Event()
    server = gateway(upstream.url, answer_timeout_s=0.3, stream_idle_s=0.3, retries=0)
    body = {"model": "m", "prompt": "x", "max_tokens": 3, "stream": stream}

    def ask(**more: Any) -> httpx.Response:
        return httpx.post(server.url + "/v1/completions", json={**body, **more}, timeout=LIMIT_S)

    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(ask, service_tier="flex")
        until(lambda: len(upstream.bodies) == 1, "request that yields")
        given_up = ask()
        assert "the engine failed (silent)" in given_up.text
        upstream.release.set()
        if upstream.answer_after is not None:
            upstream.answer_after.set()
        answer = waiting.result(LIMIT_S)
    assert answer.status_code == 200
    assert "error" not in answer.text
