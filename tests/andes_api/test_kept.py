"""Responses that engines keep: asked for by id, and those that go on in the background."""

from __future__ import annotations

import threading
import time
from hashlib import sha256
from typing import Any

import httpx
import openai
import pytest


def sdk(server: Any) -> openai.OpenAI:
    return openai.OpenAI(base_url=server.url + "/v1", api_key="k", max_retries=0)


def test_what_is_written_in_the_background_is_charged_once_it_is_done(faulty: Any, gateway: Any) -> None:
    upstream = faulty()
    upstream.background = "in_progress"
    tenant = {"name": "acme", "key_sha256": sha256(b"k").hexdigest(), "output_tokens_per_minute": 600}
    server = gateway(upstream.url, tenants=[tenant])
    response = sdk(server).responses.create(model="m", input="hi", background=True)
    assert response.status == "queued"
    missing = server.gateway.board.bucket(0, 3)
    assert missing[0] == 0.0
    upstream.background = "completed"
    deadline_s = time.monotonic() + 60
    while httpx.get(server.url + "/fleet/demand").json()["records"][0]["output_tokens"] != 40:
        assert time.monotonic() < deadline_s
    assert missing[0] == pytest.approx(40.0), "of the tenant's budget"


def test_engines_are_asked_for_a_response_at_once(faulty: Any, gateway: Any) -> None:
    """The one that knows it answers, though another never does."""
    hanging, knowing = faulty(), faulty()
    server = gateway(hanging.url, knowing.url)
    hanging.hold_kept = threading.Event()
    found = sdk(server).responses.retrieve(f"resp_{id(knowing)}", timeout=60)
    assert found.id == f"resp_{id(knowing)}"
    assert not hanging.hold_kept.is_set()
    hanging.hold_kept.set()
    with pytest.raises(openai.NotFoundError):
        sdk(server).responses.retrieve("resp_none")


@pytest.mark.parametrize(("more", "status"), [({}, 400), ({"instructions": "Be kind."}, 200)])
def test_a_response_to_nothing_is_refused_before_an_engine_fails_at_it(
    more: dict[str, str], status: int, faulty: Any, gateway: Any
) -> None:
    server = gateway(faulty().url)
    answer = httpx.post(server.url + "/v1/responses", json={"model": "m", "input": [], **more})
    assert answer.status_code == status
    if status == 400:
        assert answer.json()["error"]["param"] == "input"
