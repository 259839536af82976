"""The parts of the batch API without sockets: the order of lines, what survives a crash, deadlines, how much an engine gets."""

from __future__ import annotations

import errno
import fcntl
import itertools
import json
import os
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from andes_api.batches import disk
from andes_api.batches.disk import Journal, lock, read_json, read_lines, unlock, write_json
from andes_api.batches.dispatch import room
from andes_api.batches.files import FileStore
from andes_api.batches.lines import Line, deadline_s, read_input
from andes_api.batches.order import MAX_BACKOFF_S, PrefixOrder
from andes_api.batches.peers import STALE_S, Peers
from andes_api.batches.rate import WINDOW_S, OfflineRate
from andes_api.batches.store import BatchStore
from andes_api.batches.upload import MIN_BYTES_PER_S, until_s
from andes_api.batches.work import BatchWork
from andes_api.classes import BatchLimits
from andes_api.demand import DemandRecord
from andes_api.directories import directory_fault
from andes_api.endpoints import CHAT, at_path
from andes_api.errors import ApiError
from andes_api.expectations import of_batch
from andes_api.prompts import Prompt
from andes_api.settings import GatewaySettings, GatewaySettingsError, load
from andes_api.stream import Stream
from andes_api.upstream import Upstream

SETTINGS = GatewaySettings(upstreams=("http://engine:1",))


def one(number: int, key: str) -> Line:
    return Line(number, f"q{number}", 0, 1, "m", key, 10)


def served(order: PrefixOrder, engines: list[str]) -> dict[str, list[str]]:
    """The keys that each engine gets where all take turns."""
    got: dict[str, list[str]] = {engine: [] for engine in engines}
    while order:
        for engine in engines:
            if (line := order.take(engine, 0.0)) is not None:
                got[engine].append(line.key)
    return got


@given(keys=st.lists(st.text("ab", max_size=4), max_size=40), engines=st.integers(1, 4))
def test_every_line_goes_to_one_engine(keys: list[str], engines: int) -> None:
    got = served(PrefixOrder(one(n, key) for n, key in enumerate(keys)), [f"e{k}" for k in range(engines)])
    assert sorted(key for some in got.values() for key in some) == sorted(keys)


def test_prompts_that_begin_alike_go_to_one_engine_behind_each_other() -> None:
    keys = [f"{shared}:{n}" for n in range(16) for shared in ("a", "b", "c", "d")]
    got = served(PrefixOrder(one(n, key) for n, key in enumerate(keys)), ["x", "y"])
    assert {len(some) for some in got.values()} == {32}, "both work to the end"
    for some in got.values():
        switches = sum(a[0] != b[0] for a, b in itertools.pairwise(some))
        assert switches <= 3, some


def test_what_failed_is_tried_again_later_and_later_and_what_was_stopped_at_once() -> None:
    order, line = PrefixOrder([one(1, "a")]), one(1, "a")
    assert order.take("x", 0.0) == line
    order.put_back(line, 0.0, failed=False)
    assert order.take("y", 0.0) == line
    waited, now_s = [], 0.0
    for _ in range(9):
        order.put_back(line, now_s)
        assert order.take("x", now_s + 0.99) is None
        began_s = now_s
        while order.take("x", now_s) is None:
            now_s += 0.5
        waited.append(now_s - began_s)
    assert waited[:4] == [1.0, 2.0, 4.0, 8.0]
    assert waited[-1] == MAX_BACKOFF_S
    order.put_back(line, now_s)
    assert order.drain() == [line]
    assert not order


@pytest.mark.parametrize(
    ("window", "seconds"),
    [("24h", 86_400), ("90m", 5_400), ("2d", 172_800), ("30s", 30), ("1970-01-02T00:00:00+00:00", 86_400 - 1000)],
)
def test_deadlines(window: str, seconds: float) -> None:
    assert deadline_s(window, 1000.0) == 1000.0 + seconds


@pytest.mark.parametrize(
    "window", [None, 24, "", "-1h", "0s", "1h ", "99999999d", "1970-01-01T00:00:01Z", "2030-01-01"]
)
def test_deadlines_that_are_none(window: Any) -> None:
    with pytest.raises(ApiError) as caught:
        deadline_s(window, 1000.0)
    assert caught.value.param == "completion_window"


def test_more_requests_than_a_batch_may_have() -> None:
    content = json.dumps({"custom_id": "a", "method": "POST", "url": CHAT.path, "body": {"messages": []}}).encode()
    with pytest.raises(ApiError, match="more than 2 requests"):
        read_input(((0, content.replace(b'"a"', b'"%d"' % n)) for n in range(3)), CHAT, lambda _: None, 2)


def test_token_ids_are_counted_and_embeddings_have_no_answer() -> None:
    def tokens(path: str, **body: Any) -> int:
        content = json.dumps({"custom_id": "a", "method": "POST", "url": path, "body": body}).encode()
        (good,), _ = read_input([(0, content)], at_path(path), lambda _: None, 9)
        return good.tokens

    assert tokens("/v1/completions", prompt=[5] * 700, max_tokens=9) == 709
    assert tokens("/v1/completions", prompt="x" * 400) == 100 + 300, "what usual answers have"
    assert tokens("/v1/embeddings", input="x" * 400) == 100


def test_a_line_that_was_half_written_is_cut_off(tmp_path: Path) -> None:
    path = tmp_path / "lines"
    path.write_bytes(b'{"a":1}\n{"b":')
    journal = Journal(path)
    journal.append({"c": 2})
    journal.close()
    assert [content for _, content in read_lines(path)] == [b'{"a":1}\n', b'{"c":2}\n']


def test_a_file_system_without_locks_is_said_at_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    held = lock(tmp_path / "lock")
    assert held is not None
    assert directory_fault(tmp_path) == ""
    monkeypatch.setattr(fcntl, "flock", _no_locks)
    assert "has no locks (flock): No locks available" in directory_fault(tmp_path)
    with pytest.raises(OSError, match="No locks available"):
        lock(tmp_path / "lock")
    unlock(held)


def _no_locks(file: int, how: int) -> None:
    raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))


def test_one_holds_a_lock_until_it_lets_go(tmp_path: Path) -> None:
    held = lock(tmp_path / "lock")
    assert held is not None
    assert lock(tmp_path / "lock") is None
    unlock(held)
    again = lock(tmp_path / "lock")
    assert again is not None
    unlock(again)


class Directory:
    """A directory with one batch of ``count`` lines that work goes on at again and again, as after deaths of its gateway."""

    def __init__(self, path: Path, count: int) -> None:
        self.files, self.store = FileStore(path / "files", 30.0), BatchStore(path / "batches")
        content = path / "in"
        rows = (
            {"custom_id": f"q{n}", "method": "POST", "url": CHAT.path, "body": {"messages": []}} for n in range(count)
        )
        content.write_text("".join(json.dumps(row) + "\n" for row in rows))
        file = self.files.add(content, "in", tenant=None, purpose="batch")
        expires_at = int(time.time()) + 60
        self.id = self.store.create(None, input_file_id=file["id"], endpoint=CHAT.path, expires_at=expires_at)["id"]

    def work(self) -> BatchWork:
        held, batch = self.store.lock(self.id), self.store.read_own(self.id)
        assert held is not None
        assert batch is not None
        work = BatchWork(self.store, self.files, batch, held)
        if batch["status"] != "finalizing":
            work.load(lambda _: None, 100)
        return work

    def lines(self, kind: str) -> list[dict[str, Any]]:
        batch = self.store.get(self.id, None)
        return [json.loads(text) for text in self.files.path(batch[f"{kind}_file_id"]).read_text().splitlines()]


def settle(work: BatchWork, status: int = 200) -> None:
    line = work.orders[None].take("e", 0.0)
    assert line is not None
    work.settle(line, status, "r", {"usage": {"prompt_tokens": 3, "completion_tokens": 4}})


def test_what_is_done_stays_done_and_the_rest_is_done_after_a_death(tmp_path: Path) -> None:
    directory = Directory(tmp_path, 4)
    first = directory.work()
    settle(first)
    settle(first, 400)
    first.release()  # and nothing else: it has died
    second = directory.work()
    assert (second.left, second.tokens_left) == (2, 600)
    settle(second)
    settle(second)
    assert second.is_done
    second.finish("completed")
    batch = directory.store.get(directory.id, None)
    assert batch["request_counts"] == {"total": 4, "completed": 3, "failed": 1}
    assert batch["usage"]["total_tokens"] == 21
    assert [row["custom_id"] for row in directory.lines("output")] == ["q0", "q2", "q3"]
    assert [row["response"]["status_code"] for row in directory.lines("error")] == [400]


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="NO /proc: open files are not seen")
def test_a_batch_that_is_let_go_keeps_no_file_open(tmp_path: Path) -> None:
    def opened() -> list[str]:
        links = (file for file in Path("/proc/self/fd").iterdir() if file.is_symlink())
        return [target for file in links if (target := os.path.realpath(file)).startswith(str(tmp_path))]

    directory = Directory(tmp_path, 2)
    for _ in range(3):
        directory.work().release()
    last = directory.work()
    assert len(opened()) == 4, "input, lock, answers, errors"
    last.finish("expired")
    last.release()
    assert opened() == []


def test_what_is_left_is_as_long_as_what_is_done(tmp_path: Path) -> None:
    work = Directory(tmp_path, 12).work()
    assert work.tokens_left == 12 * 300, "what an answer usually has"
    for _ in range(10):
        settle(work)
    assert work.tokens_left == 2 * 7
    settle(work, 400)
    assert work.tokens_left == pytest.approx(7, abs=1)


@pytest.mark.parametrize("moved", [False, True])
def test_a_death_at_the_end_is_made_up_for(moved: bool, tmp_path: Path) -> None:
    directory = Directory(tmp_path, 2)
    first = directory.work()
    settle(first)
    first._conclude("expired")
    if moved:  # the first of two files was there already
        first._publish("output")
    first.release()
    second = directory.work()
    assert second.is_done
    second.finish("completed")
    batch = directory.store.get(directory.id, None)
    assert (batch["status"], batch["expired_at"] is not None, batch["completed_at"]) == ("expired", True, None)
    assert batch["request_counts"] == {"total": 2, "completed": 1, "failed": 1}
    assert [row["custom_id"] for row in directory.lines("output")] == ["q0"]
    assert [row["error"]["code"] for row in directory.lines("error")] == ["batch_expired"]


def test_an_answer_that_two_wrote_comes_once(tmp_path: Path) -> None:
    directory = Directory(tmp_path, 2)
    work = directory.work()
    settle(work)
    twice = (directory.store.folder(directory.id) / "output.jsonl").read_bytes()
    settle(work)
    with (directory.store.folder(directory.id) / "output.jsonl").open("ab") as file:
        file.write(twice.replace(b'"r"', b'"late"'))
    work.finish("completed")
    assert [(row["custom_id"], row["response"]["request_id"]) for row in directory.lines("output")] == [
        ("q0", "r"),
        ("q1", "r"),
    ]


def test_files_go_when_their_time_is_over_unless_a_batch_reads_them(tmp_path: Path) -> None:
    files = FileStore(tmp_path, 30.0)
    kept = []
    for seconds in (-1.0, -1.0, 60.0):
        (tmp_path / "x").write_bytes(b"12345")
        kept.append(files.add(tmp_path / "x", "x", tenant="a", purpose="batch", seconds=seconds)["id"])
    files.remove_expired({kept[1]})
    assert {said["id"] for said in files.of("a")} == {kept[1], kept[2]}
    assert not files.path(kept[0]).exists()
    with pytest.raises(ApiError, match="21 bytes of files, 20 are allowed"):
        files.check_room("a", BatchLimits(files=9, bytes=20), 11)
    files.check_room("b", BatchLimits(files=9, bytes=20), 11)


def test_ended_batches_go_when_their_time_is_over(tmp_path: Path) -> None:
    directory = Directory(tmp_path, 1)
    store, now_s = directory.store, time.time()
    ended = directory.work()
    settle(ended)
    ended.finish("completed")
    ended.release()
    opened = store.create(None, input_file_id="file-1", endpoint=CHAT.path, expires_at=int(now_s) - 10**9)["id"]
    strange, fresh = (store.folder(f"batch_{digit * 32}") for digit in "01")
    for folder in (strange, fresh):
        folder.mkdir()
    os.utime(strange, (0, 0))
    (store.folder("else")).mkdir()
    os.utime(store.folder("else"), (0, 0))
    other = BatchStore(tmp_path / "batches")  # of another gateway, which knows it too
    assert other.get(directory.id, None)["status"] == "completed"
    store.remove_ended(now_s - 3600)
    assert {folder.name for folder in (tmp_path / "batches").iterdir()} == {directory.id, opened, fresh.name, "else"}
    store.remove_ended(now_s + 3600)
    other.remove_ended(now_s - 3600)
    for gateway in (store, other):
        assert [batch["id"] for batch in gateway.of(None)] == [opened]
        with pytest.raises(ApiError, match="no batch"):
            gateway.get(directory.id, None)


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("output", b"\0\0\n", "line 2 of its output"),
        ("output", b'{"id": "batch_req_1_1"}\n', "line 2 of its output"),
        ("error", b'["nothing"]\n', "line 1 of its error"),
        ("error", b'{"id": "none"}\n', "line 1 of its error"),
    ],
)
def test_a_batch_whose_journal_is_corrupt_ends_with_what_was_answered(
    name: str, text: bytes, said: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    directory = Directory(tmp_path, 3)
    first = directory.work()
    settle(first)
    first.release()
    with (directory.store.folder(directory.id) / f"{name}.jsonl").open("ab") as file:
        file.write(text)
    second = directory.work()
    assert (second.is_done, second.good) == (True, 0), "nothing of it is run"
    assert said in caplog.text
    second.finish("failed")
    second.release()
    batch = directory.store.get(directory.id, None)
    assert (batch["status"], batch["errors"]["data"][0]["code"]) == ("failed", "corrupt_journal")
    assert said in batch["errors"]["data"][0]["message"]
    written = directory.files.path(batch["output_file_id"]).read_bytes()
    assert json.loads(written.splitlines()[0])["custom_id"] == "q0"
    assert directory.store.open() == []


WRONG = dict.fromkeys([
    "id", "status", "tenant", "endpoint", "input_file_id", "created_at", "expires_at", "request_counts", "bytes", "filename",
    "purpose",
])  # fmt: skip
"""A record of both kinds by its names."""


@pytest.mark.parametrize(
    "text", [b"", b"\0" * 40, b"[]", b'{"id": "batch_1", "status": "in_progress"}', json.dumps(WRONG).encode()]
)
def test_a_record_that_is_none_is_set_aside_and_stops_nothing(
    text: bytes, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    directory = Directory(tmp_path, 1)
    torn = directory.store.create(None, input_file_id="x", endpoint=CHAT.path, expires_at=0)["id"]
    record = directory.store.folder(torn) / "batch.json"
    record.write_bytes(text)
    said = directory.files.path(f"file-{'0' * 32}.json")
    said.write_bytes(text)
    assert [batch["id"] for batch in directory.store.open()] == [directory.id]
    assert [file["filename"] for file in directory.files.of(None)] == ["in"]
    assert directory.store.of(None) == directory.store.open()
    for path in (record, said):
        assert not path.exists()
        assert path.with_name(path.name + ".corrupt").read_bytes() == text
        assert caplog.text.count(f"{path} cannot be read") == 1, "once"
    os.utime(said.with_name(said.name + ".corrupt"), (0, 0))
    directory.files.remove_expired(set())
    assert not said.with_name(said.name + ".corrupt").exists()


def test_a_record_that_was_written_again_meanwhile_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "batch.json"
    path.write_bytes(b"{")
    loads = disk.orjson.loads

    def late(text: bytes) -> Any:
        write_json(path, {"id": 1})
        return loads(text)

    monkeypatch.setattr(disk.orjson, "loads", late)
    assert read_json(path) is None
    monkeypatch.undo()
    assert read_json(path) == {"id": 1}


def test_an_upload_has_to_come_at_some_speed() -> None:
    assert until_s(100.0, 100.0, 0, 60.0) == 160.0
    assert until_s(100.0, 150.0, 1, 60.0) == pytest.approx(160.0, abs=0.01), "a byte buys no time"
    assert until_s(100.0, 150.0, 1_000 * MIN_BYTES_PER_S, 60.0) == 210.0, "silence ends what was fast as well"
    assert until_s(100.0, 150.0, 20 * MIN_BYTES_PER_S, 60.0) == 180.0


def stream() -> Stream:
    expectation = of_batch(SETTINGS)
    record = DemandRecord(0.0, "offline", False, 10, expectation.reader)
    return Stream(CHAT, {}, expectation, None, {}, 0.0, Prompt({}, ()), 10.0, record, batched=True)


def test_what_an_upload_left_whose_gateway_died_goes_after_a_day(tmp_path: Path) -> None:
    files = FileStore(tmp_path, 30.0)
    old, new = files.incoming / "old", files.incoming / "new"
    for folder in (old, new):
        folder.mkdir()
        (folder / "content").write_text("x")
    os.utime(old, (0, 0))
    files.remove_expired(set())
    assert [*files.incoming.iterdir()] == [new]


def test_a_full_disk_keeps_no_batch_locked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    directory = Directory(tmp_path, 1)
    work = directory.work()
    settle(work)
    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", full)
        with pytest.raises(OSError, match="full"):
            work.release()
    directory.work().release()


def full(_: int) -> None:
    raise OSError(28, "full")


def test_an_engine_gets_what_it_runs_at_a_time_and_a_few_more() -> None:
    engine = Upstream("http://engine:1", SETTINGS)
    engine.slots = 16
    assert room(engine, 256) == 0, "how much that is, it has not been asked yet"
    engine.asked_load = True
    assert room(engine, 256) == 18
    assert room(engine, 5) == 5
    engine.opened(stream())
    engine.others, engine.others_offline = 3, 4
    assert room(engine, 256) == 10
    assert room(engine, 1) == 0
    engine.others = 40
    assert room(engine, 256) == 0


def test_what_yields_is_no_reader_of_an_engine() -> None:
    settings = GatewaySettings(upstreams=("http://engine:1",), max_streams_per_replica=1)
    engine, offline = Upstream("http://engine:1", settings), [stream() for _ in range(5)]
    for each in offline:
        engine.opened(each)
    view = engine.view(0.0, Prompt({}, ()), 10.0)
    assert (view.streams, view.pending_tokens, engine.accepts(0.0)) == (0, 0.0, True)
    said = engine.describe(0.0)
    assert (said["streams"], said["waiting"], said["offline"]) == (0, 0, 5)
    load = {"num_running_reqs": 9, "num_waiting_reqs": 0, "num_used_tokens": 0, "max_running_requests": 8}
    engine.others_offline = 3
    engine.set_load([{**load, "max_total_num_tokens": 1000}], 5)
    assert engine.others == 1, "nine, less five of ours and three of another gateway's batches"
    engine.first_token(offline[0], 500.0, 500.0, expected=None, alone=True)
    engine.closed(offline[0], 0.0, 900.0, started=True)
    assert (engine.holds(offline[0]), engine.holds(offline[1]), engine.late_ratio(900.0)) == (False, True, 1.0)
    assert engine.stream_s == 5.0, "what waits for readers says nothing of how long streams last"


def test_gateways_tell_each_other_what_they_have(tmp_path: Path) -> None:
    ours, theirs = Upstream("http://e:1", SETTINGS), Upstream("http://e:1", SETTINGS)
    theirs.opened(stream())
    one, other = Peers(tmp_path, "gateway"), Peers(tmp_path, "gateway")
    other.exchange([theirs])
    one.exchange([ours])
    assert (ours.others_offline, theirs.others_offline) == (1, 0)
    (file,) = tmp_path.glob("*.json")
    os.utime(file, (time.time() - 2 * STALE_S,) * 2)
    one.exchange([ours])
    assert ours.others_offline == 0
    other.leave()
    assert not list(tmp_path.iterdir())


def test_the_rate_is_of_the_time_when_there_was_something_to_do() -> None:
    rate = OfflineRate()
    assert rate.measured(0.0) == (0.0, 0.0)
    for second in range(100):
        rate.add(1000.0 + second, tokens=50, active_s=0.5)
    assert rate.measured(1100.0) == (100.0, 50.0)
    rate.add(1100.0 + WINDOW_S, tokens=10, active_s=1.0)
    assert rate.measured(1100.0 + WINDOW_S) == (10.0, 1.0)
    assert rate.done == 5010


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"batches": {"directory": "/none/such"}}, "batches.directory: no directory '/none/such'"),
        ({"batches": {"directory": "."}, "classes": {"offline": None}, "service_tiers": {}}, "class 'offline'"),
        ({"batches": {"directory": "."}, "classes": {"offline": {"yields": False}}}, "has to be there and to yield"),
        ({"batches": {"per_engine": 0}}, "batches.per_engine"),
    ],
)
def test_settings_that_are_wrong(given: dict[str, Any], said: str) -> None:
    with pytest.raises(GatewaySettingsError) as caught:
        load(upstreams=("http://engine:1",), **given)
    assert said in str(caught.value)
