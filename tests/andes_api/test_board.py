"""What several workers share: numbers on a board, answers of siblings, and how these are merged."""

from __future__ import annotations

import asyncio
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from andes_api import board as board_module
from andes_api.admission import TokenBucket
from andes_api.board import Board, Worker
from andes_api.capacity import Capacity
from andes_api.demand import DemandLog, DemandRecord
from andes_api.endpoints import COMPLETION
from andes_api.errors import ApiError
from andes_api.expectations import resolve
from andes_api.fatal import FatalRequests
from andes_api.limits import TenantLimits
from andes_api.merged import merged_batches, merged_demand, merged_replicas
from andes_api.metrics import Levels
from andes_api.models import ModelRoute
from andes_api.prompts import Prompt
from andes_api.settings import GatewaySettings, TenantSettings
from andes_api.siblings import Siblings
from andes_api.stream import Stream
from andes_api.upstream import Upstream

URL = "http://engine:1"
SETTINGS = GatewaySettings(
    upstreams=(URL,), max_streams_per_replica=4, models={"m": {"max_streams": 2}, "n": {}}, max_streams=3
)
PROMPT = Prompt({"prompt": "x" * 4000}, ("prompt",))


@pytest.fixture
def boards(tmp_path: Path) -> list[Board]:
    """Of three workers."""
    return [Board(Worker(tmp_path, 3, number), tenants=2, models=2) for number in range(3)]


def stream(text: str = "x" * 400, tokens: int = 0, tds: float = 5.0) -> Stream:
    body = {"prompt": text, "stream": True, "custom_params": {"qoe": {"tds": tds}}}
    expectation, prompt = resolve({}, body, None, SETTINGS), Prompt(body, ("prompt",))
    record = DemandRecord(0.0, "reading", True, 100, expectation.reader)
    made = Stream(COMPLETION, body, expectation, None, {}, 100.0, prompt, prompt.tokens(4.0), record)
    made.tokens = tokens
    return made


def test_what_one_worker_writes_the_others_see(boards: list[Board]) -> None:
    for k, board in enumerate(boards):
        board.open.set(k + 1.0)
        board.held(1).set(10.0 * (k + 1))
        board.of_model(1).set(100.0 * (k + 1))
    assert [board.open.others for board in boards] == [5.0, 4.0, 3.0]
    assert [board.held(1).others for board in boards] == [50.0, 40.0, 30.0]
    assert [board.of_model(1).others for board in boards] == [500.0, 400.0, 300.0]
    assert boards[0].held(0).others == boards[0].of_model(0).others == boards[0].waiting.others == 0.0
    boards[0].clear(2)
    assert (boards[0].open.others, boards[1].open.others) == (2.0, 1.0), "nothing of the dead is left"
    alone = Board(tenants=1)
    alone.open.set(3.0)
    assert alone.open.others == 0.0


def test_a_replica_has_one_place_until_no_worker_lists_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(board_module, "MAX_REPLICAS", 4)
    boards = [Board(Worker(tmp_path, 3, number)) for number in range(3)]
    first, second, third = (board.replica(URL) for board in boards)
    other = boards[1].replica("http://engine:2")
    first.streams.set(2.0)
    second.pending_tokens.set(70.0)
    assert (second.streams.others, third.pending_tokens.others, other.streams.others) == (2.0, 70.0, 0.0)
    for numbers in (first, second, third):
        numbers.forget()
    assert boards[0].replica("http://engine:3").streams.others == 0.0
    for k in (4, 5):
        boards[2].replica(f"http://engine:{k}")
    beyond = [board.replica("http://engine:9999") for board in boards[:2]]
    beyond[0].streams.set(1.0)
    assert beyond[1].streams.others == 0.0, "no place is left: each knows its own"
    assert boards[0].replica("http://engine:2").streams.others == 0.0
    other.streams.set(5.0)
    assert boards[0].replica("http://engine:2").streams.others == 5.0, "it kept its place"


def test_a_bucket_is_one_for_all(boards: list[Board]) -> None:
    buckets = [TokenBucket(60.0, cell=board.bucket(1, 0)) for board in boards]
    assert [buckets[k % 3].take(5.0) for k in range(7)] == [0.0] * 6 + [pytest.approx(1.0)]
    assert buckets[2].take(6.0) == 0.0
    assert buckets[0].take(5.9) == pytest.approx(1.0), "a clock read a moment earlier gives nothing back"


def test_a_tenants_limits_hold_over_workers(boards: list[Board]) -> None:
    acme = TenantSettings(name="acme", key_sha256="0" * 64, max_streams=2, tokens_per_minute=600)
    one, two, _ = (TenantLimits(acme, board, 1) for board in boards)
    first, second = stream(), stream()
    one.admit(first, 100.0, 5.0)
    two.admit(second, 100.0, 5.0)
    for limits in (one, two):
        with pytest.raises(ApiError, match="acme has 2 streams open"):
            limits.admit(stream(), 100.0, 5.0)
    assert two.headers(100.0)["x-ratelimit-remaining-tokens"] == "400"
    first.tokens = 150
    one.settle(100.0)
    assert two.headers(100.0)["x-ratelimit-remaining-tokens"] == "250", "what it streams there is known here"
    one.ended(first, 100.0)
    two.admit(stream(), 100.0, 5.0)


def test_the_gateways_and_a_models_limits_hold_over_workers(boards: list[Board]) -> None:
    open_here: dict[Stream, None] = {}
    here, there = Capacity(SETTINGS, boards[0], open_here), Capacity(SETTINGS, boards[1], {stream(): None})
    mine = stream()
    mine.routed(ModelRoute("m"))
    open_here[mine] = None
    here.count()
    there.count()
    assert here.open_streams == there.open_streams == 2
    there.check_model(stream(), ModelRoute("m"), [])
    boards[2].of_model(0).set(1.0)
    boards[2].open.set(1.0)
    with pytest.raises(ApiError, match="m has 2 streams open, its limit"):
        there.check_model(stream(), ModelRoute("m"), [])
    there.check_model(stream(), ModelRoute("n"), [])
    with pytest.raises(ApiError, match="no more streams"):
        there.admit(stream(), [])


def test_a_replica_is_seen_with_the_streams_of_all(boards: list[Board]) -> None:
    here, there = (Upstream(URL, SETTINGS, 100.0, numbers=board.replica(URL)) for board in boards[:2])
    mine, theirs = stream(tokens=3, tds=9.0), [stream("x" * 800), stream("x" * 1200)]
    here.opened(mine)
    for opened in theirs:
        there.opened(opened)
    here.set_load([{"num_running_reqs": 4, "num_waiting_reqs": 1, "num_used_tokens": 9, "max_running_requests": 8,
                    "max_total_num_tokens": 0}], 3)  # fmt: skip
    assert here.others == 2, "the other worker's are no stranger's"
    view = here.view(101.0, PROMPT, 1000.0)
    assert (view.streams, view.others, view.load) == (1, 4, 5)
    assert (view.prompt_tokens, view.pending_tokens) == (600.0, 500.0)
    np.testing.assert_allclose(view.open_streams.weights, [3.0], err_msg="its reader stands for all three")
    assert not here.finds_no_queue(stream())
    there.first_token(theirs[0], 0.5, 101.0, expected=None, alone=False)
    assert here.view(101.0, PROMPT, 1000.0).pending_tokens == 300.0
    assert here.accepts(101.0)
    there.opened(stream())
    assert (here.open_streams, here.accepts(101.0)) == (4, False), "four of all workers are the most"
    for opened in list(there.streams):
        there.closed(opened, 100.0, 102.0, started=False)
    after = here.view(102.0, PROMPT, 1000.0)
    assert (after.load, after.pending_tokens, after.prompt_tokens) == (3, 0.0, 100.0)
    assert here.finds_no_queue(stream())


def test_the_fatal_request_of_one_worker_is_refused_by_all() -> None:
    there = FatalRequests()
    here = FatalRequests(there.learn)
    here.add({"prompt": "a", "stream": True}, 10.0)
    assert there.left_s({"prompt": "a"}, 30.0) == pytest.approx(40.0)
    assert there.left_s({"prompt": "b"}, 30.0) == 0.0


def test_siblings_answer_each_other_and_the_dead_are_left_out(tmp_path: Path) -> None:
    async def main() -> tuple[Any, Any, Any]:
        workers = [Siblings(Worker(tmp_path, 3, number)) for number in range(3)]
        told: list[int] = []
        heard = asyncio.Event()

        def note(k: int) -> None:
            told.append(k)
            heard.set()

        for number, worker in enumerate(workers[:2]):
            worker.answers("add", lambda a, b, number=number: {"sum": a + b, "by": number})
            await worker.start()
        workers[1].answers("note", note)
        first = await workers[0].all("add", 3, 4)
        workers[0].tell("note", 5)
        await heard.wait()
        for worker in workers[:2]:
            await worker.stop()
        alone = Siblings(Worker())
        alone.answers("add", lambda: 1)
        await alone.start()
        return first, told, await alone.all("add")

    first, told, alone = asyncio.run(asyncio.wait_for(main(), 60))
    assert first == [{"sum": 7, "by": 0}, {"sum": 7, "by": 1}]
    assert (told, alone) == ([5], [1])


def test_records_are_merged_in_order_and_complete_since_all_are() -> None:
    one = {"gateway": "g", "models": ["a", "b"], "held": 1, "held_by_model": {"a": 1, "b": 0}, "complete_since_s": None,
           "records": [{"arrival_s": 1.0}, {"arrival_s": 4.0}]}  # fmt: skip
    two = {
        **one,
        "models": ["a", "c"],
        "held_by_model": {"a": 2, "c": 3},
        "complete_since_s": 2.5,
        "records": [{"arrival_s": 3.0}],
    }
    assert merged_demand([one]) is one
    assert merged_demand([one, two]) == {
        "gateway": "g", "models": ["a", "b", "c"], "held": 2, "held_by_model": {"a": 3, "b": 0, "c": 3},
        "complete_since_s": 2.5, "records": [{"arrival_s": 1.0}, {"arrival_s": 3.0}, {"arrival_s": 4.0}],
    }  # fmt: skip
    log = DemandLog(3, begins_s=50.0)
    assert log.complete_since_s == 50.0, "another worker died, and its records with it"


def test_the_batches_of_all_are_listed_and_their_rates_added() -> None:
    one = {"batches": [{"id": "a"}], "done": {"m": {"tokens": 10, "tokens_per_s": 2.5, "measured_s": 4.0}}}
    two = {
        "batches": [{"id": "b"}],
        "done": {"m": {"tokens": 5, "tokens_per_s": 1.0, "measured_s": 6.0}, "n": one["done"]["m"]},
    }
    assert merged_batches([one]) == one
    assert merged_batches([one, two]) == {
        "batches": [{"id": "a"}, {"id": "b"}],
        "done": {"m": {"tokens": 15, "tokens_per_s": 3.5, "measured_s": 6.0}, "n": one["done"]["m"]},
    }


def test_a_replica_is_at_fault_once_one_worker_finds_it_so() -> None:
    fine = Upstream(URL, SETTINGS, 100.0).describe(100.0) | {
        "healthy": True,
        "streams": 2,
        "waiting": 1,
        "decode_s": 0.02,
    }
    fault = fine | {
        "healthy": False,
        "reason": "http_500",
        "breaker_open": True,
        "streams": 1,
        "others": 3,
        "decode_s": 0.04,
    }
    fault |= {"model": "m", "models": ["m"], "requests": 7}
    (merged,) = merged_replicas([[fine], [fault]])
    expected = fault | {"streams": 3, "waiting": 2, "decode_s": 0.03}
    assert merged == expected
    assert merged_replicas([[fine | {"name": "b"}], [fine | {"name": "a"}]])[0]["name"] == "b"
    assert merged_replicas([[fine]])[0] is fine


def test_levels_are_added_up() -> None:
    one = Levels(3, Counter({("chat", "m"): 2}), {"m": 1}, {"a": (False, 2), "b": (True, 0)})
    two = Levels(4, Counter({("chat", "m"): 1, ("work", "m"): 5}), {"m": 2, "": 1}, {"a": (False, 1), "b": (False, 4)})
    merged = Levels.merged([one, two])
    assert (merged.tasks, merged.held) == (7, {"m": 3, "": 1})
    assert merged.open == {("chat", "m"): 3, ("work", "m"): 5}
    assert merged.replicas == {"a": (False, 3), "b": (True, 4)}, "up where one worker may use it"
