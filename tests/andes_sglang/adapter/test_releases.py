"""Every release of SGLang that andes says it runs on, wheels of the others unpacked beside the installed one: stock, a preempting
engine, and a preempting engine of two tensor-parallel ranks say the same."""

from __future__ import annotations

import contextlib
import json
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from andes_sglang.adapter.seams import OFFLOAD_RELEASES, RELEASES
from andes_sglang.bench.engine import Engine, read_metrics

pytestmark = [pytest.mark.engine, pytest.mark.timeout(600)]

POLICIES = Path(__file__).parents[2] / "fixtures" / "policies"
BASE = ("--max-running-requests", "8", "--chunked-prefill-size", "32")
PREEMPTING = (*BASE, "--enable-mixed-chunk", "--enable-metrics", "--policy-option", "every_tokens=3")
ROOM = ("--max-total-tokens", "4096")
NO_ROOM = ("--max-total-tokens", "600")
"""KV tokens: for less than half of what :func:`words` asks for at once."""
NO_OFFLOAD_ON_RANKS = {"0.5.17", "0.5.21"}
"""Releases without offload on several ranks."""
PATIENCE_S = 400.0
ENDLESS_TOKENS = 3000


@pytest.fixture(scope="module", params=RELEASES)
def release(request: pytest.FixtureRequest, path_with: Callable[..., str]) -> Iterator[str]:
    """Its number; engines that start meanwhile are of this release."""
    path = path_with(request.param, POLICIES)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", path)
        patch.setenv("SGLANG_ENABLE_STRICT_MEM_CHECK_DURING_BUSY", "1")
        patch.setenv("SGLANG_ENABLE_RANK_CONSENSUS_CHECKER", "1")  # 0.5.17 has none
        yield request.param


@pytest.fixture(scope="module")
def engines(release: str, tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Engine]]:
    """``stock``; ``one rank``, with host memory where the release can, and ``two ranks``: they take every stream off every three
    tokens, in mixed iterations."""
    logs = tmp_path_factory.mktemp("releases")
    offload = (*NO_ROOM, "--preemption-mode", "offload") if release in OFFLOAD_RELEASES else ROOM
    wanted = {
        "stock": ("stock", (*BASE, *ROOM)),
        "one rank": ("by_rid:ByRid", (*PREEMPTING, *offload)),
        "two ranks": (
            "by_rid:ByRid",
            (*PREEMPTING, *(NO_ROOM if release in NO_OFFLOAD_ON_RANKS else offload), "--tp", "2"),
        ),
    }
    made = [Engine(tiny_model, policy, flags, log=logs / name) for name, (policy, flags) in wanted.items()]
    with ThreadPoolExecutor(len(made)) as pool:
        try:
            list(pool.map(Engine.__enter__, made))
            yield dict(zip(wanted, made))
        finally:
            list(pool.map(Engine.stop, made))


def words(engine: Engine, policy: str = "forced") -> list[list[int]]:
    """Its answers to twelve prompts sent at once."""

    def one(k: int) -> list[int]:
        sampling = {"max_new_tokens": 60 + 3 * k, "ignore_eos": True, "temperature": 0}
        prompt = [7 + (31 * k + 13 * j) % 900 for j in range(20 + 11 * k)]
        body = {"rid": f"{policy}-{k}", "input_ids": prompt, "sampling_params": sampling}
        answer: Any = engine.post("/generate", body)
        return list(answer["output_ids"])

    with ThreadPoolExecutor(12) as pool:
        return list(pool.map(one, range(12)))


@pytest.fixture(scope="module")
def expected(engines: dict[str, Engine]) -> list[list[int]]:
    return words(engines["stock"])


def preemptions(engine: Engine, mode: str) -> float:
    return read_metrics(engine.url).get(f'andes_preemptions_total{{mode="{mode}",reason="forced"}}', 0.0)


def departures(figures: dict[str, float]) -> float:
    """How often a stream was taken off the engine."""
    names = ("andes_preemptions_total", "andes_retractions_total")
    return sum(value for name, value in figures.items() if name.startswith(names))


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


def test_the_release_is_the_one_that_was_asked_for(engines: dict[str, Engine], release: str) -> None:
    for engine in engines.values():
        assert json.loads(engine.get("/server_info"))["version"] == release


@pytest.mark.parametrize("which", ["one rank", "two ranks"])
def test_who_is_taken_off_again_and_again_says_what_stock_says(
    engines: dict[str, Engine], expected: list[list[int]], which: str
) -> None:
    ours = engines[which]
    assert words(ours) == expected
    off = "offload" if "offload" in ours.flags else "release"
    assert min(preemptions(ours, "park"), preemptions(ours, off)) > 30
    assert read_metrics(ours.url)['andes_policy_info{policy="by_rid"}'] == 1


def test_what_was_released_is_not_computed_again(
    engines: dict[str, Engine], expected: list[list[int]], release: str
) -> None:
    """It comes back from the radix tree, with too little KV from host memory."""
    ours = engines["one rank"]
    if release in OFFLOAD_RELEASES:
        assert words(ours, "lqsf") == expected
        assert words(ours, "andes") == expected
        figures = read_metrics(ours.url)
        assert figures["andes_host_hit_tokens_total"] > 500
        assert figures['andes_host_copied_bytes_total{direction="load"}'] > 0
    assert read_metrics(ours.url)["andes_recomputed_tokens_total"] < 100


@pytest.mark.parametrize("which", ["one rank", "two ranks"])
def test_who_is_released_at_every_decision_goes_on(
    engines: dict[str, Engine], expected: list[list[int]], which: str
) -> None:
    """The token that is on its way when a stream is released is kept; were it computed again, no answer would come to its end."""
    ours, most = engines[which], 2 * sum(map(len, expected))
    before = departures(read_metrics(ours.url))
    with ThreadPoolExecutor(1) as pool:
        told = pool.submit(words, ours, "at_once")
        while not told.done() and departures(read_metrics(ours.url)) < before + most:
            time.sleep(0.05)
        if not told.done():
            ours.post("/abort_request", {"abort_all": True})
        assert told.result() == expected
    assert departures(read_metrics(ours.url)) > before + most / 4


@pytest.mark.parametrize("policy", ["lqsf", "andes"])
def test_two_ranks_agree_with_too_little_kv(engines: dict[str, Engine], expected: list[list[int]], policy: str) -> None:
    """Decisions that follow from clocks, which differ from rank to rank."""
    before = read_metrics(engines["two ranks"].url)
    assert words(engines["two ranks"], policy) == expected
    wait_until_idle(engines["two ranks"])
    after = read_metrics(engines["two ranks"].url)
    assert departures(after) > departures(before), "there was something to agree on"
    assert after["andes_request_qoe_count"] == before["andes_request_qoe_count"] + len(expected), "counted on one rank"


@pytest.mark.parametrize("which", ["one rank", "two ranks"])
def test_an_abort_leaves_nothing(engines: dict[str, Engine], which: str) -> None:
    ours = engines[which]
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
    left = [f'andes_requests{{state="{state}"}}' for state in ("running", "parked", "released", "waiting")]
    left += ['andes_host_tokens{what="used"}'] if "offload" in ours.flags else []
    deadline_s = time.monotonic() + PATIENCE_S
    while any(map(read_metrics(ours.url).__getitem__, left)):  # they follow within a moment
        assert time.monotonic() < deadline_s
        time.sleep(0.1)
    assert "leak" not in ours.log.read_text(errors="replace").lower()


@pytest.mark.parametrize("which", ["stock", "one rank"])
def test_beams_are_refused(engines: dict[str, Engine], which: str) -> None:
    """Nine requests at once, three of them with three beams, ended SGLang 0.5.23 where its batch held eight."""
    body = {"input_ids": [5, 6, 7], "sampling_params": {"beam_width": 3, "max_new_tokens": 4}}
    with pytest.raises(urllib.error.HTTPError) as caught:
        engines[which].post("/generate", body)
    assert caught.value.code == 400
    assert "beam_width" in caught.value.read().decode()


def test_ranks_that_decide_apart_are_noticed(engines: dict[str, Engine], release: str) -> None:
    """What the other tests of two ranks rest on, once. The engine does not survive it: the last test."""
    if release != RELEASES[-1]:
        return
    ours = engines["two ranks"]
    with pytest.raises((OSError, KeyError)):
        words(ours, "apart")
    deadline_s = time.monotonic() + PATIENCE_S
    while ours.alive():
        assert time.monotonic() < deadline_s
        time.sleep(0.1)
