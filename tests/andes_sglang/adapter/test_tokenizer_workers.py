"""Several tokenizer workers (``--tokenizer-worker-num``): who never runs, or is stopped and then ended, is told so by its own."""

from __future__ import annotations

import urllib.error
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from andes_sglang.bench.engine import Engine, read_metrics

pytestmark = [pytest.mark.engine, pytest.mark.timeout(600)]


def test_all_that_wait_are_answered(tiny_model: Path, tmp_path: Path) -> None:
    """Two places, all in turn, three in the queue: others are shed, and at the end all are aborted, most of them released."""
    flags = (
        "--tokenizer-worker-num", "2", "--max-running-requests", "2", "--max-queued-requests", "3", "--enable-metrics",
        "--max-total-tokens", "65536", "--policy-option", "slice_tokens=5",
    )  # fmt: skip

    def generate(k: int, **more: Any) -> tuple[str, int]:
        body = {
            "input_ids": list(range(20 + k)),
            "sampling_params": {"max_new_tokens": 6000, "ignore_eos": True, **more},
        }
        try:
            answer: Any = engine.post("/generate", body)
        except urllib.error.HTTPError as error:
            return str(error.code), 0
        return answer["meta_info"]["finish_reason"]["type"], answer["meta_info"]["completion_tokens"]

    with Engine(tiny_model, "round_robin", flags, log=tmp_path / "log") as engine, ThreadPoolExecutor(16) as pool:
        assert [generate(k, custom_params={"qoe": {"tds": -1}}) for k in range(4)] == [("400", 0)] * 4
        pending = [pool.submit(generate, k) for k in range(16)]
        while read_metrics(engine.url).get('andes_preemptions_total{mode="release",reason="displaced"}', 0.0) < 20:
            assert engine.alive()
        engine.post("/abort_request", {"abort_all": True})
        answers = [future.result() for future in pending]
        assert {kind for kind, _ in answers} == {"503", "abort"}
        assert [kind for kind, _ in answers].count("abort") > 2, "more than run at a time"
