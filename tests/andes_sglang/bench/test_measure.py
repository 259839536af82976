"""What is counted in a stream, read from metrics and made of cores; without a server where none is needed."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import threading
from collections.abc import AsyncIterator, Iterator, Sequence
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import cast

import aiohttp
import pytest

from andes_sglang.bench.client import _Endpoint, read_stream, run_replays
from andes_sglang.bench.compare import shares_of_cores, sustained_tokens_per_s
from andes_sglang.bench.engine import read_metrics
from andes_sglang.bench.measure import _figures, parse_vocabulary
from andes_sglang.flags import UsageError
from andes_sglang.qoe import QoETarget
from andes_sglang.request import RequestRecord, RequestSpec
from andes_sglang.summary import INTERRUPTED, combine, remarks


def record_of(*events: object, **how: bool) -> RequestRecord:
    """Of a stream; a line comes every second."""
    record, second = RequestRecord(0, 0.0, 0.0, 1, 1, 1.0, 4.8), iter(range(100))

    async def lines() -> AsyncIterator[bytes]:
        for event in events:
            yield event if isinstance(event, bytes) else f"data: {json.dumps(event)}\n".encode()

    record.error = asyncio.run(read_stream(lines(), lambda: float(next(second)), record, **how))
    return record


def read(*events: object) -> tuple[str | None, Sequence[tuple[float, int]]]:
    """The error and the deliveries of a stream."""
    record = record_of(*events)
    return record.error, record.deliveries


def piece(text: str, finish: str | None = None, **more: object) -> dict[str, object]:
    return {"choices": [{"text": text, "finish_reason": finish}], **more}


def test_without_usage_every_piece_is_a_token() -> None:
    assert read(piece("a"), piece(""), piece("b"), piece("", "stop"), b"data: [DONE]\n", piece("never")) == (
        None, [(0.0, 1), (2.0, 1)],
    )  # fmt: skip


def thinking(tokens: int, thought: int, finish: str | None = None, **delta: str) -> dict[str, object]:
    usage = {"completion_tokens": tokens, "reasoning_tokens": thought}
    return {"choices": [{"delta": delta, "finish_reason": finish}], "usage": usage}


def test_a_thought_is_no_delivery_unless_it_is_shown() -> None:
    events = (
        thinking(2, 2, reasoning_content="h"), thinking(5, 5, reasoning_content="m"), thinking(8, 6, content="s"),
        thinking(9, 6, "stop", content="o"),
    )  # fmt: skip
    hidden, shown = record_of(*events), record_of(*events, hides=False)
    assert (hidden.deliveries, hidden.reason_tokens) == ([(2.0, 2), (3.0, 1)], 6)
    assert hidden.ttft_s == 2.0
    assert (shown.deliveries, shown.reason_tokens) == ([(0.0, 2), (1.0, 3), (2.0, 3), (3.0, 1)], 0)
    cut = record_of(*events[:2], piece("", "length"))
    assert (cut.deliveries, cut.reason_tokens, cut.qoe) == ([], 5, 0.0)


def test_usage_counts_where_it_is_there() -> None:
    def usage(tokens: int) -> dict[str, object]:
        return {"usage": {"completion_tokens": tokens}}

    events = (
        piece("abc", **usage(3)),
        piece("", **usage(3)),
        piece("d", "length", **usage(5)),
        {"choices": [], **usage(5)},
    )
    assert read(*events) == (None, [(0.0, 3), (2.0, 2)])
    assert read(piece("a"), {"choices": [], **usage(2)}, piece("", "stop")) == (None, [(0.0, 1), (1.0, 1)])


def test_lines_that_are_no_events_are_not_counted() -> None:
    assert read(b": keep-alive\n", b"\n", piece("a", "stop")) == (None, [(0.0, 1)])


@pytest.mark.parametrize(
    ("events", "error"),
    [
        ((piece("a"),), "the stream ended without a finish reason"),
        ((piece("a", "abort"),), "finish reason abort"),
        (
            (piece("a"), {"error": {"message": "x" * 500}}, piece("b", "stop")),
            "in the stream: {'message': '" + "x" * 187,
        ),
        ((), "the stream ended without a finish reason"),
    ],
)
def test_a_stream_that_does_not_finish_says_why(events: tuple[object, ...], error: str) -> None:
    assert read(*events)[0] == error


def test_an_event_that_is_not_json_is_an_error() -> None:
    with pytest.raises(ValueError, match="Expecting"):
        read(b"data: oops\n")


def test_a_request_says_what_its_reader_expects_unless_told_not_to() -> None:
    spec = RequestSpec(0.0, 10, 20, QoETarget(2.0, 3.0), weight=4.0, yields=True, expected_tokens=20)

    def body(send_expectations: bool) -> dict[str, object]:
        return _Endpoint(cast("aiohttp.ClientSession", None), "u", "m", {}, send_expectations, False, 0.0).body(
            spec, [7, 8]
        )

    asked = body(True)
    assert asked["custom_params"] == {"qoe": {"ttft": 2.0, "tds": 3.0, "weight": 4.0, "yield": True, "tokens": 20}}
    assert (asked["prompt"], asked["max_tokens"], asked["stream"], asked["ignore_eos"]) == ([7, 8], 20, True, True)
    assert "custom_params" not in body(False)


def test_what_a_full_engine_sustains() -> None:
    """10 tokens a second, but for a slow start and a slow end."""
    times = [*range(10), *(10 + 0.1 * k for k in range(70)), *range(20, 40)]
    records = [RequestRecord(0, 0.0, 0.0, 1, 1, 1.0, 1.0, [(float(t), 1)]) for t in times]
    assert sustained_tokens_per_s(records) == pytest.approx(10.0)
    twice = [RequestRecord(0, 0.0, 0.0, 1, 1, 1.0, 1.0, [(float(t), 2)]) for t in times]
    assert sustained_tokens_per_s(twice) == pytest.approx(20.0, rel=0.01)


def test_what_was_interrupted_is_in_no_figure_but_counted() -> None:
    whole = RequestRecord(0, 0.0, 0.0, 5, 1, 1.0, 5.0, [(0.5, 1)], 0.5)
    cut = RequestRecord(1, 0.0, 0.0, 5, 9, 1.0, 5.0, [(3.0, 1)], 3.5, error=INTERRUPTED)
    refused = RequestRecord(2, 0.0, 0.0, 5, 9, 1.0, 5.0, [], 0.1, error="HTTP 429: full")
    got = _figures([whole, cut, refused], {}, {})
    assert (got["requests"], got["failed"], got["interrupted"]) == (2, 1, 1)
    assert got["qoe"]["mean"] == pytest.approx(0.5)
    said = remarks({"mine": combine([got, got])})
    assert said.splitlines() == ["mine: 2 refused: HTTP 429: full", "mine: 2 interrupted, in no figure"]
    with pytest.raises(KeyboardInterrupt):
        _figures([cut], {}, {})


def test_a_signal_ends_replays_and_finds_its_handler_again() -> None:
    """One that has begun keeps what it has, also where a second signal follows; nothing is left of one that has not."""

    async def replayed(*, begun: bool) -> list[RequestRecord]:
        asyncio.get_running_loop().call_soon(os.kill, os.getpid(), signal.SIGTERM)
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            if not begun:
                raise
            os.kill(os.getpid(), signal.SIGTERM)
            for _ in range(9):
                await asyncio.sleep(0)
        return []

    handler = signal.getsignal(signal.SIGTERM)
    assert run_replays([replayed(begun=True), replayed(begun=True)]) == ([[], []], True)
    with pytest.raises(KeyboardInterrupt):
        run_replays([replayed(begun=False)])
    assert signal.getsignal(signal.SIGTERM) is handler


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="no affinity on this system")
def test_engines_at_the_same_time_get_equally_many_cores_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _pid: {7, 3, 5, 1, 9})
    assert shares_of_cores(1) == [()]
    assert shares_of_cores(2) == [(1, 3), (5, 7)]
    assert shares_of_cores(6) == [()] * 6


def test_the_vocabulary_is_a_range_of_token_ids() -> None:
    assert parse_vocabulary("10-1000") == (10, 1000)
    for text in ("10", "10-10", "9-3", "-5-9", "a-b"):
        with pytest.raises(UsageError, match=rf"--vocabulary '{text}': expected LOW-HIGH token ids"):
            parse_vocabulary(text)


@pytest.fixture
def metrics() -> Iterator[tuple[str, list[bytes]]]:
    """An address whose /metrics answers with what is in the list."""
    body: list[bytes] = [b""]

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200 if self.path == "/metrics" else 404)
            self.end_headers()
            self.wfile.write(body[0])

        def log_message(self, *args: object) -> None: ...

    server = HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}", body
    server.shutdown()
    server.server_close()


def test_metrics_are_read_by_name_with_labels(metrics: tuple[str, list[bytes]]) -> None:
    url, body = metrics
    body[0] = b"""# HELP sglang:token_usage The token usage
# TYPE sglang:token_usage gauge
sglang:token_usage{model_name="a b",tp="0"} 0.25
# TYPE andes_preemptions_total counter
andes_preemptions_total{mode="park"} 5.0
# TYPE h histogram
h_bucket{le="+Inf"} 3
bare 1e3
"""
    assert read_metrics(url) == {
        'sglang:token_usage{model_name="a b",tp="0"}': 0.25,
        'andes_preemptions_total{mode="park"}': 5.0,
        'h_bucket{le="+Inf"}': 3.0,
        "bare": 1000.0,
    }
    body[0] = b"<html>no metrics</html>"
    assert read_metrics(url) == {}
    assert read_metrics(url + "/nowhere") == {}
