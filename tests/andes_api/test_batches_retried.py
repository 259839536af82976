"""What becomes of a line of a batch that an engine does not answer."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import openai
import pytest

from andes_api.batches import order
from andes_api.batches.dispatch import MAX_ENGINE_ERRORS

pytestmark = pytest.mark.server

LINE = {
    "custom_id": "a",
    "method": "POST",
    "url": "/v1/completions",
    "body": {"model": "m", "prompt": "x", "max_tokens": 3},
}
LIMIT_S = 120.0


def until(found: Callable[[], Any], what: str) -> Any:
    until_s = time.monotonic() + LIMIT_S
    while time.monotonic() < until_s:
        if value := found():
            return value
        time.sleep(0.02)
    raise AssertionError(f"no {what} in {LIMIT_S:g} s")


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


def test_without_a_directory_it_is_said_how_to_turn_it_on(faulty: Any, gateway: Any) -> None:
    sdk = openai.OpenAI(base_url=gateway(faulty().url).url + "/v1", api_key="any", max_retries=0)
    for call in (sdk.batches.list, sdk.files.list):
        with pytest.raises(openai.NotFoundError, match=r"batches\.directory") as caught:
            call()
        assert caught.value.code == "batches_off"
