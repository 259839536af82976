"""How an engine ends: its streams at once after a crash, with exit status 0 after a drain."""

from __future__ import annotations

import http.client
import json
import signal
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import psutil
import pytest

from andes_sglang.bench.engine import Engine

pytestmark = [pytest.mark.engine, pytest.mark.timeout(600)]

HELD_S = "3000"
"""Longer than a test may take: how long SGLang waits for core dumps before it ends."""


@pytest.fixture(scope="module")
def engines(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Engine]]:
    """Three, as each ends once; with core dumps on, as on a GPU whose operator wants them."""
    logs = tmp_path_factory.mktemp("endings")
    flags = ("--max-total-tokens", "32768", "--max-running-requests", "4")
    made = [
        Engine(tiny_model, policy, flags, log=logs / str(k)) for k, policy in enumerate(("andes", "stock", "andes"))
    ]
    with pytest.MonkeyPatch.context() as patch, ExitStack() as stack:
        patch.setenv("SGLANG_CUDA_COREDUMP_BEFORE_CRASH", "1")
        patch.setenv("SGLANG_CUDA_COREDUMP_BEFORE_CRASH_WAIT_SECS", HELD_S)
        yield [stack.enter_context(engine) for engine in made]


def begin(engine: Engine, tokens: int) -> Any:
    """A stream of which the first event has come."""
    sampling = {"max_new_tokens": tokens, "ignore_eos": True}
    body = json.dumps({"input_ids": [5, 6, 7], "sampling_params": sampling, "stream": True}).encode()
    request = urllib.request.Request(engine.url + "/generate", body, {"content-type": "application/json"})
    answer = urllib.request.urlopen(request, timeout=300)
    assert answer.readline().startswith(b"data: ")
    return answer


def kill(engine: Engine, title: str) -> None:
    (found,) = [
        p for p in psutil.Process(engine.process.pid).children(recursive=True) if p.cmdline()[0].startswith(title)
    ]
    found.kill()


@pytest.mark.parametrize(("which", "title"), [(0, "sglang::detokenizer"), (1, "sglang::scheduler")])
def test_streams_end_at_once_when_a_process_is_gone(engines: list[Engine], which: int, title: str) -> None:
    """After the detokenizer, the scheduler lives and SGLang waits for its core dump: the streams do not."""
    engine = engines[which]
    with begin(engine, 30_000) as answer:
        kill(engine, title)
        with pytest.raises((http.client.IncompleteRead, ConnectionResetError)):
            answer.read()
    with pytest.raises((urllib.error.URLError, ConnectionError)):
        engine.get("/health")
    if title == "sglang::scheduler":
        assert engine.process.wait(120) == 1


def test_a_drain_lets_streams_finish_and_is_no_failure(engines: list[Engine]) -> None:
    engine = engines[2]
    with begin(engine, 300) as answer:
        engine.process.send_signal(signal.SIGTERM)
        assert answer.read().endswith(b"data: [DONE]\n\n")
    assert engine.process.wait(120) == 0
