"""Every release of SGLang that andes says it runs on: the wheel unpacked beside the installed one, stock and preempting engine
started at once, the same words from both."""

from __future__ import annotations

import contextlib
import json
import os
import time
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from sglang_releases import UnreachableError, unpacked

from andes_sglang.adapter.seams import RELEASES
from andes_sglang.bench.engine import Engine, read_metrics

pytestmark = [pytest.mark.engine, pytest.mark.timeout(600)]

POLICIES = Path(__file__).parents[2] / "fixtures" / "policies"
FLAGS = ("--max-total-tokens", "4096", "--max-running-requests", "8", "--chunked-prefill-size", "32")
PREEMPTING = ("--enable-mixed-chunk", "--enable-metrics", "--policy-option", "every_tokens=3")
PATIENCE_S = 60.0
ENDLESS_TOKENS = 3000
*_OLDER, NEWEST = RELEASES


@pytest.fixture(scope="module", params=[*(pytest.param(r, marks=pytest.mark.releases) for r in _OLDER), NEWEST])
def engines(
    request: pytest.FixtureRequest, tiny_model: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Engine, Engine]]:
    """Stock SGLang of this release, and one that parks and releases every stream every three tokens, in mixed iterations."""
    try:
        release = unpacked(request.param)
    except UnreachableError as unreachable:
        pytest.skip(f"NOT TESTED on sglang {request.param}: {unreachable}")
    logs = tmp_path_factory.mktemp("releases")
    with pytest.MonkeyPatch.context() as patch, contextlib.ExitStack() as stack:
        path = [str(release), str(POLICIES), *filter(None, [os.environ.get("PYTHONPATH")])]
        patch.setenv("PYTHONPATH", os.pathsep.join(path))
        stock = Engine(tiny_model, "stock", FLAGS, log=logs / "stock.log")
        ours = Engine(tiny_model, "either_way:EitherWay", (*FLAGS, *PREEMPTING), log=logs / "andes.log")
        with ThreadPoolExecutor(2) as pool:
            yield tuple(pool.map(stack.enter_context, (stock, ours)))  # type: ignore[misc]


def words(engine: Engine) -> list[list[int]]:
    """Its answers to twelve prompts sent at once."""

    def one(k: int) -> list[int]:
        sampling = {"max_new_tokens": 30 + k, "ignore_eos": True, "temperature": 0}
        prompt = [7 + (31 * k + 13 * j) % 900 for j in range(20 + 11 * k)]
        answer: Any = engine.post("/generate", {"input_ids": prompt, "sampling_params": sampling})
        return list(answer["output_ids"])

    with ThreadPoolExecutor(12) as pool:
        return list(pool.map(one, range(12)))


def preemptions(engine: Engine, mode: str) -> float:
    return read_metrics(engine.url).get(f'andes_preemptions_total{{mode="{mode}",reason="forced"}}', 0.0)


def wait_until_idle(engine: Engine) -> None:
    """A flush is granted to an idle engine only, and what is idle checks its pools: a leak ends the process."""
    deadline_s = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline_s:
        assert engine.alive(), engine.tail()
        request = urllib.request.Request(engine.url + "/flush_cache", b"{}", {"content-type": "application/json"})
        with contextlib.suppress(OSError), urllib.request.urlopen(request, timeout=10) as answer:
            if b"flushed" in answer.read():
                return
    raise AssertionError(f"the engine never became idle:\n{engine.tail()}")


def test_the_release_is_the_one_that_was_asked_for(
    engines: tuple[Engine, Engine], request: pytest.FixtureRequest
) -> None:
    release = request.node.callspec.params["engines"]
    for engine in engines:
        assert json.loads(engine.get("/server_info"))["version"] == release


def test_parked_and_released_streams_say_what_stock_says(engines: tuple[Engine, Engine]) -> None:
    stock, ours = engines
    assert words(ours) == words(stock)
    assert min(preemptions(ours, "park"), preemptions(ours, "release")) > 30
    figures = read_metrics(ours.url)
    assert figures['andes_policy_info{policy="either_way"}'] == 1
    assert figures["andes_recomputed_tokens_total"] < 100, "what was released came back from the radix tree"


def test_an_abort_leaves_nothing(engines: tuple[Engine, Engine]) -> None:
    _, ours = engines
    before = preemptions(ours, "park")
    body = {"sampling_params": {"max_new_tokens": ENDLESS_TOKENS, "ignore_eos": True, "temperature": 0}}
    with ThreadPoolExecutor(10) as pool:
        endless = [pool.submit(ours.post, "/generate", {"input_ids": [5 + k] * 20, **body}) for k in range(10)]
        while preemptions(ours, "park") < before + 40:
            assert ours.alive(), ours.tail()
        ours.post("/abort_request", {"abort_all": True})
        for future in endless:
            assert future.result()["meta_info"]["finish_reason"]["type"] == "abort"  # type: ignore[index]
    wait_until_idle(ours)
    for state in ("running", "parked", "released", "waiting"):
        assert read_metrics(ours.url)[f'andes_requests{{state="{state}"}}'] == 0
    assert "leak" not in ours.log.read_text(errors="replace").lower()
