"""Fuzzing against the OpenAPI document: whatever fits it or breaks it, no answer is a 5xx."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import HealthCheck, settings

pytestmark = pytest.mark.server

schemathesis = pytest.importorskip("schemathesis")


@pytest.fixture
def document(faulty: Any, gateway: Any) -> Any:
    server = gateway(faulty().url)
    return schemathesis.openapi.from_url(server.url + "/openapi.json")


@schemathesis.pytest.from_fixture("document").parametrize()
@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck), database=None)
@pytest.mark.timeout(240)
def test_nothing_is_a_server_error(case: Any) -> None:
    case.call_and_validate(checks=[schemathesis.checks.not_a_server_error], timeout=20)
