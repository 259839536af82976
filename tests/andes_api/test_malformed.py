"""Requests that are wrong in every way that a generator thinks of, against an engine whose answers are odd too."""

from __future__ import annotations

import asyncio
import json

import pytest

from andes_api.reply import identity_of
from andes_api.upstream_answer import as_openai_error, error_of_event
from benchmarks.malformed import fault_of, run
from benchmarks.odd_requests import odd_request

pytestmark = pytest.mark.server

REQUESTS = 1500
POST = b"POST / HTTP/1.1\r\n\r\n"
REFUSED = b"HTTP/1.1 400 Bad Request\r\nx-andes-reason: invalid\r\n\r\n"


def test_no_500_and_nothing_leaked() -> None:
    """`make bench-malformed` does the same a hundred thousand times."""
    outcome = asyncio.run(run(REQUESTS, seed=7))
    assert outcome.faults == []
    assert sum(outcome.statuses.values()) == REQUESTS
    assert outcome.statuses[200] > REQUESTS / 10, "most of them reach no engine"
    assert outcome.statuses[400] > REQUESTS / 10
    assert {404, 405, 415, 502} <= outcome.statuses.keys()


def test_what_counts_as_a_fault() -> None:
    assert fault_of(b"HTTP/1.1 500 Internal Server Error\r\n\r\nInternal Server Error", POST)
    assert fault_of(b"HTTP/1.1 504 Gateway Timeout\r\n\r\n", POST)
    assert fault_of(REFUSED + b"plain text", POST)
    assert fault_of(REFUSED + b'{"error": {"message": ""}}', POST)
    assert not fault_of(REFUSED + b'{"error": {"message": "why"}}', POST)
    assert not fault_of(REFUSED, b"HEAD / HTTP/1.1\r\n\r\n")
    assert not fault_of(b"HTTP/1.1 200 OK\r\n\r\n", POST)


def test_a_seed_gives_the_same_requests() -> None:
    requests = [odd_request(3, k) for k in range(200)]
    assert requests == [odd_request(3, k) for k in range(200)]
    assert len(set(requests)) > 190


@pytest.mark.parametrize(
    "content", [b'{"error": {}}', b'{"error": {"message": null, "code": 7}}', b'{"error": {"message": ""}}']
)
def test_an_engine_that_says_nothing_is_quoted_so(content: bytes) -> None:
    assert as_openai_error(429, content)["error"]["message"] == "the engine has answered 429 without a word"
    event = error_of_event(json.loads(content)["error"], b"")
    assert event.answer is not None
    assert "without a word" in json.loads(event.answer[2])["error"]["message"]


@pytest.mark.parametrize("first", [b"id: 1\n\n", b"data: nonsense\n\n", b"", b"event: x\n\n"])
def test_a_report_after_a_first_event_of_another_shape(first: bytes) -> None:
    assert identity_of(first) == {}
