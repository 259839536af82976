"""What is kept of each stream beside SGLang's request, and the rows that a policy sees of it."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import pytest

from andes_sglang import protocol
from andes_sglang.adapter.ledger import Ledger
from andes_sglang.adapter.records import StreamRecord, StreamRecords, expectation_of
from andes_sglang.expectations import ReaderExpectation
from andes_sglang.lengths import Asked, EngineLengths, SimilarPrompts
from andes_sglang.metrics import EngineMetrics
from andes_sglang.qoe import QoETarget
from andes_sglang.state import Phase, RequestTable

EXPECTATION = ReaderExpectation(QoETarget(1.0, 5.0), weight=3.0, yields=True, expected_tokens=70)


def request(rid: str = "a", prompt: int = 10, output: int = 0, most: int = 100, thought: int = 0) -> Any:
    """The attributes of SGLang's ``Req`` that a record reads."""
    return SimpleNamespace(
        rid=rid,
        origin_input_ids=[0] * prompt,
        output_ids=[0] * output,
        sampling_params=SimpleNamespace(max_new_tokens=most),
        to_finish=None,
        reasoning_tokens=thought,
        kv=None,
    )


class Finished(EngineMetrics):
    """Keeps the QoE of streams that have ended."""

    def __init__(self) -> None:
        self.qoe: list[float] = []

    def finished(self, qoe: float) -> None:
        self.qoe.append(qoe)


def record(req: Any, arrival_s: float = 0.0, expectation: ReaderExpectation = EXPECTATION) -> StreamRecord:
    return StreamRecord(req, arrival_s, arrival_s + 0.5, expectation, True)


def test_a_view_tells_what_the_request_said_of_its_reader() -> None:
    view = record(request()).view(Phase.WAITING)
    assert (view.weight, view.yields, view.expected_tokens) == (3.0, True, 70.0)
    assert (view.reader.start_s, view.reader.tds) == (1.0, 5.0)
    assert view.phase_since_s == 0.5
    assert math.isnan(record(request(), expectation=ReaderExpectation()).view(Phase.WAITING).expected_tokens)


def test_what_is_held_for_drafts_counts() -> None:
    req = request(prompt=10, output=4)
    assert record(req).view(Phase.RUNNING).kv_tokens == 14
    req.kv = SimpleNamespace(kv_allocated_len=20)
    assert record(req).view(Phase.PARKED).kv_tokens == 20
    assert record(req).view(Phase.WAITING).kv_tokens == 0
    req.kv = SimpleNamespace(kv_allocated_len=13)  # the last token has none yet
    assert record(req).view(Phase.RUNNING).kv_tokens == 14


def test_a_request_whose_expectation_is_malformed_ends_and_not_the_engine() -> None:
    """Not every front end of SGLang checks it before (``SGLANG_RUST_SERVER``)."""
    said: list[str] = []
    req, default = request(), QoETarget(2.0, 3.0)
    req.set_finish_with_abort = said.append
    req.sampling_params.custom_params = {"qoe": {"tds": 9}}
    assert expectation_of(req, default) == ReaderExpectation(QoETarget(2.0, 9))
    assert said == []
    for malformed in ({"qoe": 3}, {"qoe": {"tds": "9"}}, {"qoe": {"weight": 10**400}}):
        req.sampling_params.custom_params = malformed
        assert expectation_of(req, default) == ReaderExpectation(default)
    assert [text.split()[0] for text in said] == [
        "custom_params.qoe",
        "custom_params.qoe.tds",
        "custom_params.qoe.weight",
    ]


def test_a_waiting_request_holds_no_kv_and_may_find_a_prefix() -> None:
    stream = record(request(prompt=10, output=5))
    stream.cached_tokens, stream.host_tokens = 99, 4
    view = stream.view(Phase.WAITING, kept_tokens=15)
    assert (view.kv_tokens, view.cached_tokens, view.host_tokens) == (0, 14, 4)
    assert view.remaining_tokens == 95


@pytest.mark.parametrize("phase", [Phase.RUNNING, Phase.PARKED])
def test_a_request_on_the_engine_holds_its_kv(phase: Phase) -> None:
    stream = record(request(prompt=10, output=5))
    stream.cached_tokens, stream.host_tokens = 99, 4
    view = stream.view(phase, kept_tokens=15)
    assert (view.kv_tokens, view.cached_tokens, view.host_tokens) == (15, 0, 15)


def test_one_whose_client_has_gone_is_not_stopped_before_its_end() -> None:
    """Parked, it would keep its KV while readers come first; no client aborts it a second time."""
    req = request(output=5)
    stream = record(req)
    assert stream.view(Phase.RUNNING).preemptible
    req.to_finish = "abort"
    assert not stream.view(Phase.RUNNING).preemptible
    assert stream.preemptible, "of its own it could be: a figure of the engine"


def test_a_slice_begins_when_a_stream_starts() -> None:
    stream = record(request(output=7))
    stream.start(2.0)
    stream.req.output_ids += [0] * 3
    view = stream.view(Phase.RUNNING)
    assert (view.slice_tokens, view.phase_since_s, view.preemptions) == (3, 2.0, 0)
    stream.prefilled_tokens, stream.loaded_ahead = 9, True
    stream.stop("release", 3.0)
    assert (stream.stopped, stream.preemptions, stream.since_s) == ("release", 1, 3.0)
    assert (stream.prefilled_tokens, stream.loaded_ahead) == (0, False)
    stream.start(4.0)
    assert stream.stopped is None
    assert stream.view(Phase.RUNNING).slice_tokens == 0


def test_each_token_is_delivered_once() -> None:
    stream = record(request(output=2))
    stream.deliver(1.5)
    stream.deliver(1.6)
    assert stream.reader.delivered == 2
    stream.req.output_ids.append(0)
    stream.deliver(1.7)
    assert stream.reader.delivered == 3
    assert stream.dry_at_s == pytest.approx(1.5 + 3 / 5)


def test_a_thought_is_not_delivered_and_moves_the_clock() -> None:
    """SGLang's count grows with the output until the thought is over, and then stands."""
    stream = record(request())
    seen = []
    for thought, shown in ((3, 0), (50, 0), (50, 4), (50, 9)):
        stream.req.output_ids, stream.req.reasoning_tokens = [0] * (thought + shown), thought
        stream.deliver(1.5)
        view = stream.view(Phase.RUNNING)
        seen.append((view.reader.delivered, view.output_tokens, round(view.reader.start_s, 9)))
    assert seen == [(0, 3, 1.12), (0, 50, 3.0), (4, 54, 3.0), (9, 59, 3.0)]
    assert stream.has_begun


def test_a_thought_that_is_shown_is_delivered() -> None:
    shown = record(request(output=7, thought=7), expectation=ReaderExpectation(reasoning="shown"))
    shown.deliver(1.5)
    assert (shown.reader.delivered, shown.reader.start_s) == (7, 1.0)


def test_a_stream_has_begun_with_its_first_token_or_preemption() -> None:
    records, fresh, told, stopped = StreamRecords(), request("fresh"), request("told", output=1), request("stopped")
    for req in (fresh, told, stopped):
        records.add(record(req))
    records["told"].deliver(1.0)
    records["stopped"].stop("retracted", 1.0)
    assert [records.has_begun(req) for req in (fresh, told, stopped, request("unknown"))] == [False, True, True, False]


def test_a_record_belongs_to_the_request_and_not_to_its_name() -> None:
    records, first, second = StreamRecords(), request(), request()
    records.add(record(first))
    assert records.find(first) is records["a"]
    assert records.find(second) is None
    records.forget("a")
    assert "a" not in records
    assert records.find(first) is None


def rows(table: RequestTable) -> list[tuple[str, int, float, float]]:
    return [
        (rid, int(phase), kv, cached)
        for rid, phase, kv, cached in zip(table.rids, table.phase, table.kv_tokens, table.cached_tokens, strict=True)
    ]


def test_rows_follow_the_records() -> None:
    records, a, b, c = StreamRecords(), request("a", 10), request("b", 20, 3), request("c", 30)
    for req in (a, b, c):
        records.add(record(req))
    records.set_prefix_hit(c, 12, 5)
    assert records.refresh(b, Phase.RUNNING, kept_tokens=0) == 23
    assert rows(records.table([b, c, a])) == [("b", 1, 23.0, 0.0), ("c", 0, 0.0, 12.0), ("a", 0, 0.0, 0.0)]
    assert records.table([c]).host_tokens.tolist() == [5.0]
    assert records.table([c]).weight.tolist() == [3.0]
    freed = {records["a"].slot, records["c"].slot}
    records.forget_all_but({"b"})
    assert [stream.req.rid for stream in records] == ["b"]
    assert len(records) == 1
    records.add(record(request("d")))
    assert records["d"].slot in freed


def test_a_ledger_grows_and_uses_a_row_again() -> None:
    ledger = Ledger(capacity=2)
    slots = [ledger.add(record(request(f"r{k}", prompt=k)).view(Phase.WAITING)) for k in range(5)]
    assert len(set(slots)) == 5
    assert ledger.table(slots).prompt_tokens.tolist() == [0, 1, 2, 3, 4]
    ledger.remove(slots[1])
    again = ledger.add(record(request("new", prompt=9)).view(Phase.WAITING))
    assert again == slots[1]
    assert ledger.table([slots[0], again]).rids == ("r0", "new")
    assert ledger.table([]).prompt_tokens.tolist() == []


@pytest.mark.parametrize(
    ("reason", "ignore_eos", "expected"),
    [("stop", False, 30.0), ("length", True, 30.0), ("length", False, None), ("abort", False, 256.0)],
)
def test_records_learn_how_long_answers_are(reason: str, ignore_eos: bool, expected: float | None) -> None:
    """An answer that was cut at its limit (None: longer than that) is told from one that ended, or was aborted."""
    records = StreamRecords()
    ended = request("x", prompt=10, output=30)
    ended.finished_reason = SimpleNamespace(to_json=lambda: {"type": reason})
    ended.sampling_params.ignore_eos = ignore_eos
    for _ in range(40):
        records.learn_length(ended)
    records.add(record(request("b"), expectation=ReaderExpectation()))
    if expected is None:
        assert records["b"].expected_tokens > 60
    else:
        assert records["b"].expected_tokens == pytest.approx(expected, rel=0.15)


@pytest.mark.parametrize("yields", [True, False])
def test_what_has_no_reader_teaches_no_length(yields: bool) -> None:
    records, told = StreamRecords(), Finished()
    for k in range(40):
        ended = request(f"x{k}", prompt=10, output=30)
        ended.finished_reason = SimpleNamespace(to_json=lambda: {"type": "stop"})
        records.add(record(ended, expectation=ReaderExpectation(yields=yields)))
        records.end(ended, told)
    records.add(record(request("next"), expectation=ReaderExpectation()))
    assert (records["next"].expected_tokens < 100) is not yields


@pytest.mark.parametrize(("rid", "answers"), [("a", 1), (f"{protocol.HEALTH_CHECK_RID_PREFIX}_a", 0)])
def test_a_health_check_is_no_answer(rid: str, answers: int) -> None:
    """An idle engine gets one every few seconds: what was learned from answers would be forgotten overnight."""
    records, told = StreamRecords(), Finished()
    ended = request(rid, prompt=10, output=30)
    ended.finished_reason = SimpleNamespace(to_json=lambda: {"type": "stop"})
    records.add(record(ended, expectation=ReaderExpectation()))
    records[rid].deliver(1.0)
    records.end(ended, told)
    assert len(told.qoe) == answers
    assert len(records) == 0
    records.add(record(request("next"), expectation=ReaderExpectation()))
    assert (records["next"].expected_tokens < 250) == bool(answers)


def test_what_a_request_says_of_its_length_overrules_what_was_learned() -> None:
    records = StreamRecords()
    records.add(record(request("told")))
    assert records["told"].view(Phase.WAITING).expected_tokens == 70


def test_a_policys_own_foresight_is_asked_whatever_it_holds() -> None:
    class Foreseen(EngineLengths):
        def __len__(self) -> int:
            return 0

        def expected_tokens(self, asked: Asked) -> float:
            return 77.0

    records = StreamRecords(Foreseen())
    records.add(record(request("one"), expectation=ReaderExpectation()))
    assert records["one"].expected_tokens == 77


def test_prompts_that_begin_alike_have_answers_alike_where_the_policy_looks_at_them() -> None:
    """Of two applications whose prompts are as long and differ in their first tokens."""

    def asking(rid: str, application: int, output: int = 0) -> Any:
        req = request(rid, prompt=40, output=output)
        req.origin_input_ids = [application] * 32 + list(range(8))
        req.finished_reason = SimpleNamespace(to_json=lambda: {"type": "stop"})
        return req

    for lengths, told in ((SimilarPrompts(), True), (None, False)):
        records = StreamRecords(lengths)
        for k in range(60):
            records.learn_length(asking(f"e{k}", k % 2, 20 + 400 * (k % 2)))
        for application in (0, 1):
            records.add(record(asking(f"n{application}", application), expectation=ReaderExpectation()))
        apart = records["n1"].expected_tokens > 3 * records["n0"].expected_tokens
        assert apart is told
