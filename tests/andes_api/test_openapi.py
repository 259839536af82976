"""Fuzzing against the OpenAPI document: whatever fits it or breaks it, no answer is a 5xx."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis.errors import Unsatisfiable

schemathesis = pytest.importorskip("schemathesis")

pytestmark = pytest.mark.server

OPERATIONS = {
    "POST /v1/chat/completions", "POST /v1/completions", "GET /v1/models", "GET /v1/models/{name}", "GET /fleet/demand",
    "GET /fleet/qoe", "GET /fleet/replicas", "GET /fleet/summary",
    "POST /fleet/replicas/{replica}/drain", "GET /livez", "GET /readyz",
    "GET /metrics", "POST /v1/responses", "GET /v1/responses/{response_id}",
    "POST /v1/responses/{response_id}/cancel", "POST /v1/messages", "POST /v1/messages/count_tokens", "POST /v1/embeddings",
    "POST /v1/classify", "POST /v1/score", "POST /v1/rerank", "POST /v1/tokenize", "POST /v1/detokenize",
    "POST /v1/audio/transcriptions", "GET /fleet/batches", "POST /v1/files", "GET /v1/files", "GET /v1/files/{file_id}",
    "GET /v1/files/{file_id}/content", "DELETE /v1/files/{file_id}", "POST /v1/batches", "GET /v1/batches",
    "GET /v1/batches/{batch_id}", "POST /v1/batches/{batch_id}/cancel", "POST /v1/streams/{stream_id}/reader",
}  # fmt: skip


@pytest.mark.timeout(300)
def test_nothing_is_a_server_error(faulty: Any, gateway: Any, tmp_path: Path) -> None:
    server = gateway(faulty().url, batches={"directory": tmp_path})
    schema = schemathesis.openapi.from_url(server.url + "/openapi.json")
    operations = {operation.label: operation for operation in (found.ok() for found in schema.get_all_operations())}
    assert set(operations) == OPERATIONS
    answered: dict[int, int] = {}
    for operation in operations.values():
        for mode in (schemathesis.GenerationMode.POSITIVE, schemathesis.GenerationMode.NEGATIVE):

            @given(case=operation.as_strategy(generation_mode=mode))
            @settings(max_examples=30, deadline=None, suppress_health_check=list(HealthCheck), database=None)
            def check(case: Any) -> None:
                answer = case.call(timeout=20)
                answered[answer.status_code] = answered.get(answer.status_code, 0) + 1
                assert answer.status_code < 500, (case.as_curl_command(), answer.text)

            with suppress(Unsatisfiable):  # where nothing could be wrong
                check()
    assert answered[200] > 50
    assert answered[400] > 50
    assert httpx.get(server.url + "/readyz").status_code == 200
