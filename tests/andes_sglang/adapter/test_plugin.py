"""What the plugin puts in SGLang's way without an engine."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from andes_sglang.adapter.plugin import _to_its_worker


@pytest.mark.parametrize(
    ("output", "request_", "worker"),
    [
        ({"http_worker_ipc": None}, {"http_worker_ipc": "ipc://a"}, "ipc://a"),
        ({"http_worker_ipc": "ipc://b"}, {"http_worker_ipc": "ipc://a"}, "ipc://b"),
        ({"http_worker_ipc": None}, {"http_worker_ipc": None}, None),
        ({"http_worker_ipc": None}, {}, None),
        ({}, {"http_worker_ipc": "ipc://a"}, "none"),
    ],
    ids=["the one that sent it", "the one SGLang names", "there is one only", "no request", "of many requests"],
)
def test_the_end_of_a_request_goes_to_the_worker_that_sent_it(
    output: dict[str, Any], request_: dict[str, Any], worker: str | None
) -> None:
    told = SimpleNamespace(**output)
    _to_its_worker(None, told, SimpleNamespace(**request_))
    assert getattr(told, "http_worker_ipc", "none") == worker
