"""The replay against a real HTTP server that streams, groups, refuses and breaks off."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest
from aiohttp import web

from andes_sglang import report, summary
from andes_sglang.bench.client import EndpointError, replay
from andes_sglang.qoe import QoETarget
from andes_sglang.request import RequestRecord, RequestSpec, read_records, write_records
from andes_sglang.workload import Workload

REFUSED, CUT, GROUPED, BROKEN = 13, 17, 20, 23
TARGET = QoETarget(20.0, 50.0)  # so late that no pause of a busy machine is too long


async def chat(request: web.Request) -> web.StreamResponse:
    """A server of chat only."""
    body = await request.json()
    (message,) = body["messages"]
    answer = web.StreamResponse(headers={"content-type": "text/event-stream"})
    await answer.prepare(request)
    await answer.write(b'data: {"choices": [{"delta": {"role": "assistant", "content": ""}}]}\n\n')
    for word in message["content"].split():
        await answer.write(f"data: {json.dumps({'choices': [{'delta': {'content': word}}]})}\n\n".encode())
    await answer.write(b'data: {"choices": [{"delta": {}, "finish_reason": "stop"}]}\n\ndata: [DONE]\n\n')
    return answer


async def completions(request: web.Request) -> web.StreamResponse:
    body = await request.json()
    length = len(body["prompt"])
    if body["model"] == "other":
        return web.json_response({"error": {"message": "of the other model"}}, status=400)
    assert body["custom_params"] == {"qoe": {"ttft": 20.0, "tds": 50.0}}
    if length == REFUSED:
        return web.json_response({"error": {"message": "full"}}, status=429)
    answer = web.StreamResponse(headers={"content-type": "text/event-stream"})
    await answer.prepare(request)
    step = 4 if length == GROUPED else 1
    for count in range(step, body["max_tokens"] + 1, step):
        last = count + step > body["max_tokens"]
        chunk = {
            "choices": [{"text": "x" * step, "finish_reason": "length" if last else None}],
            "usage": {"completion_tokens": count},
        }
        if length == CUT and count > 3:
            return answer
        if length == BROKEN and count > 3:
            chunk = {"error": {"message": "engine gone"}}
        await answer.write(f"data: {json.dumps(chunk)}\n\n".encode())
        await asyncio.sleep(0.005)
    await answer.write(b"data: [DONE]\n\n")
    return answer


async def models(request: web.Request) -> web.Response:
    if request.headers.get("authorization") == "Bearer none":
        return web.json_response({}, status=401)
    return web.Response(text='{"data": [{"id": "tiny"}, {"id": "other"}]}')  # text/plain, as some servers say


def run(workload: Workload, *, over_chat: bool = False, chat_only: bool = False, **more: str) -> list[RequestRecord]:
    async def main() -> list[RequestRecord]:
        app = web.Application()
        app.router.add_post("/v1/chat/completions", chat)
        if not chat_only:
            app.router.add_post("/v1/completions", completions)
        app.router.add_get("/v1/models", models)
        runner = web.AppRunner(app)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        port = runner.addresses[0][1]
        try:
            return await replay(f"http://127.0.0.1:{port}", workload, chat=over_chat, **more)  # type: ignore[arg-type]
        finally:
            await runner.cleanup()

    return asyncio.run(main())


def workload() -> Workload:
    prompts = (10, 11, REFUSED, CUT, GROUPED, BROKEN)
    return Workload("t", tuple(RequestSpec(0.02 * k, p, 12, TARGET) for k, p in enumerate(prompts)))


def test_tokens_are_counted_and_failures_score_zero(tmp_path: Path) -> None:
    records = run(workload())
    fine, also_fine, refused, cut, grouped, broken = records
    assert [n for _, n in fine.deliveries] == [1] * 12
    assert [n for _, n in grouped.deliveries] == [4, 4, 4]
    assert fine.qoe == also_fine.qoe == grouped.qoe == pytest.approx(1.0, abs=0.02)
    assert (refused.qoe, cut.qoe, broken.qoe) == (0.0, 0.0, 0.0)
    assert "HTTP 429" in str(refused.error)
    assert "without a finish reason" in str(cut.error)
    assert "engine gone" in str(broken.error)
    figures = summary.summarise(records, {}, {})
    assert (figures["requests"], figures["failed"]) == (6, 3)
    assert figures["qoe"]["mean"] == pytest.approx(0.5, abs=0.02)
    assert figures["preemptions_per_request"] is None

    write_records(tmp_path / "r.jsonl.gz", records)
    again = read_records(tmp_path / "r.jsonl.gz")
    assert [r.qoe for r in again] == pytest.approx([r.qoe for r in records], abs=0.01)
    result = {
        "workload": {"name": "<t>", "requests": 6},
        "engine": {"what": "a test"},
        "policies": {"stock": summary.combine([figures, figures]), "andes": summary.combine([figures])},
    }
    page = report.render(result, {"stock": records, "andes": again}, {"stock": [], "andes": []})
    assert "&lt;t&gt;" in page
    assert page.count("<svg") >= 4
    assert "http" not in page.replace("HTTP", "")
    assert "±" in summary.table(result["policies"])


def test_a_server_of_chat_only_is_measured_over_chat() -> None:
    """A prompt of 10 token ids becomes 10 words, which this server says again one by one."""
    records = run(workload(), over_chat=True, chat_only=True)
    assert [r.error for r in records] == [None] * 6
    assert [len(r.deliveries) for r in records] == [10, 11, REFUSED, CUT, GROUPED, BROKEN]
    reasons = summary.summarise(run(workload(), chat_only=True))["failures"]
    assert sum(reasons.values()) == 6
    assert all(reason.startswith("HTTP 404") for reason in reasons)


def test_why_requests_failed_is_told_and_refusals_apart() -> None:
    figures = summary.combine([summary.summarise(run(workload()))] * 2)
    assert sum(figures["failures"].values()) == figures["failed"] == 6
    told = summary.remarks({"stock": figures}).splitlines()
    assert 'stock: 2 refused: HTTP 429: {"error": {"message": "full"}}' in told
    assert "stock: 2 failed: the stream ended without a finish reason" in told
    assert summary.remarks({"a": {"interrupted": 3}, "b": {}}) == "a: 3 interrupted, in no figure"


def test_one_of_several_models_is_measured() -> None:
    assert {str(r.error) for r in run(workload(), model="other")} == {
        'HTTP 400: {"error": {"message": "of the other model"}}'
    }
    with pytest.raises(
        EndpointError, match=r"--model small: not served at http://127.0.0.1:\d+; there are: tiny, other"
    ):
        run(workload(), model="small")
    with pytest.raises(EndpointError, match=r"/v1/models answers 401: it takes a valid --api-key"):
        run(workload(), api_key="none")


def test_nothing_at_the_address() -> None:
    with pytest.raises(EndpointError, match=r"--url http://127.0.0.1:9: nothing answers"):
        asyncio.run(replay("http://127.0.0.1:9", workload()))


def test_effective_tokens() -> None:
    on_time = RequestRecord(0, 0.0, 0.0, 1, 20, 0.0, 10.0, [(0.1 * k, 1) for k in range(20)])
    at_once = RequestRecord(0, 0.0, 0.0, 1, 20, 0.0, 10.0, [(0.0, 20)])
    assert on_time.score().effective_tokens == pytest.approx(20.0, abs=0.6)
    assert at_once.score().effective_tokens == pytest.approx(3.5, abs=0.6)
