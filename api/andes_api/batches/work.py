"""One batch while this gateway runs it: what is left of it, what is done, how it ends."""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections import defaultdict
from collections.abc import Callable, Mapping
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import orjson

from andes_api.batches.disk import Journal, new_id, read_lines, unlock
from andes_api.batches.files import PREFIX, FileStore
from andes_api.batches.lines import Fault, Line, read_input
from andes_api.batches.order import PrefixOrder
from andes_api.batches.store import BatchStore
from andes_api.endpoints import Endpoint, at_path
from andes_api.errors import ApiError

__all__ = ["BatchWork"]

_log = logging.getLogger("andes")
MAX_LISTED = 1_000
"""Faults that ``errors.data`` lists; the file of errors has all."""
MIN_ANSWERED = 10
"""Answers after which it is known how long they are."""
_WHY = {
    "expired": ("batch_expired", "its batch's completion window ended before it was answered"),
    "cancelled": ("batch_cancelled", "its batch was cancelled before it was answered"),
}


class _CorruptError(Exception):
    """What an earlier run has written of a batch cannot be read."""


class BatchWork:
    """``load``, then line by line of ``orders`` ``settle`` or ``put_back``, then ``finish``, then ``release``. What reads or
    writes much is for a thread: ``load``, ``finish``, ``save``."""

    def __init__(self, store: BatchStore, files: FileStore, batch: dict[str, Any], lock: int) -> None:
        self._store, self._files, self._lock = store, files, lock
        self.batch = batch
        self.endpoint: Endpoint = at_path(batch["endpoint"])
        self.running: dict[Line, asyncio.Task[bool]] = {}
        self.ending = False
        self.orders: dict[Any, PrefixOrder] = {}  # by the model asked for
        self.good = 0  # lines that can be run, done or not
        self._estimated_left = self._estimated_done = 0  # tokens
        self._input: int | None = None
        self._usage = {"input": 0, "output": 0, "cached": 0, "reasoning": 0}
        self._counts = batch["request_counts"]
        self._saved = dict(self._counts)
        folder = store.folder(batch["id"])
        with ExitStack() as opened:
            self._outputs, self._errors = (
                opened.enter_context(closing(Journal(folder / f"{name}.jsonl"))) for name in ("output", "error")
            )
            self._opened = opened.pop_all()

    @property
    def id(self) -> str:
        return str(self.batch["id"])

    @property
    def expires_at_s(self) -> float:
        return float(self.batch["expires_at"])

    @property
    def is_done(self) -> bool:
        return not self.running and not any(self.orders.values())

    def load(self, check: Callable[[Mapping[str, Any]], None], max_requests: int) -> None:
        """Read the input, and what an earlier run has done of it. check: raises the ApiError of a body that no engine
        should be asked for."""
        path = self._files.path(self.batch["input_file_id"])
        first = self.batch["status"] == "validating"
        try:
            lines, faults = read_input(read_lines(path), self.endpoint, check if first else _accept, max_requests)
            self._input = os.open(path, os.O_RDONLY)
            self._opened.callback(os.close, self._input)
        except (ApiError, OSError) as error:
            self.fail(getattr(error, "code", None) or "invalid_file", str(getattr(error, "message", error)))
            return
        try:
            done = self._read_done()
        except _CorruptError as error:
            _log.error("batch %s: %s; it ends as failed", self.id, error)
            self.fail("corrupt_journal", f"{error}: what was answered is in the output; send the rest as a new batch")
            return
        self.good = len(lines)
        for fault in faults:
            if fault.number not in done:
                self._errors.append(_failed(self.id, fault.number, fault.custom_id, fault.to_dict()))
                done.add(fault.number)
                self._counts["failed"] += 1
        self._counts["total"] = len(lines) + len(faults)
        by_model: dict[Any, list[Line]] = defaultdict(list)
        for line in lines:
            if line.number not in done:
                by_model[line.model].append(line)
                self._estimated_left += line.tokens
            else:
                self._estimated_done += line.tokens
        self.orders = {model: PrefixOrder(some) for model, some in by_model.items()}
        if first:
            self._begin(lines, faults)

    def fail(self, code: str, message: str) -> None:
        """It cannot be run at all."""
        fault = {"code": code, "line": None, "message": message, "param": None}
        self.batch["errors"] = {"object": "list", "data": [fault]}

    @property
    def left(self) -> int:
        """Requests that are not done."""
        return len(self.running) + sum(map(len, self.orders.values()))

    def _begin(self, lines: list[Line], faults: list[Fault]) -> None:
        models = {line.model for line in lines}
        self.batch["model"] = models.pop() if len(models) == 1 else None
        if faults:
            listed = [fault.to_dict() for fault in faults[:MAX_LISTED]]
            self.batch["errors"] = {"object": "list", "data": listed}
        if lines:
            self.batch |= {"status": "in_progress", "in_progress_at": int(time.time())}
        self.save()

    def _read_done(self) -> set[int]:
        """Numbers of the lines that are done; counts them."""
        numbers: set[int] = set()
        self._counts |= {"completed": 0, "failed": 0}
        folder = self._store.folder(self.id)
        for name, kind in (("output.jsonl", "completed"), ("error.jsonl", "failed")):
            for at, (_, content) in enumerate(read_lines(folder / name), 1):
                try:
                    line = orjson.loads(content)
                    number = int(line["id"].rpartition("_")[2])
                    body = line["response"]["body"] if kind == "completed" else None
                except (ValueError, LookupError, TypeError, AttributeError) as error:
                    raise _CorruptError(f"line {at} of its {name} cannot be read ({error})") from None
                if number not in numbers:
                    numbers.add(number)
                    self._counts[kind] += 1
                    self._count_usage(body)
        return numbers

    @property
    def tokens_left(self) -> int:
        """Of prompts and answers, estimated: answers are about as much shorter than they may be as those that are done."""
        answered, took = self._counts["completed"], self._usage["input"] + self._usage["output"]
        ratio = took / self._estimated_done if answered >= MIN_ANSWERED and self._estimated_done else 1.0
        return round(ratio * self._estimated_left)

    def body_of(self, line: Line) -> dict[str, Any]:
        assert self._input is not None, "it has been loaded"  # noqa: S101
        body: dict[str, Any] = orjson.loads(os.pread(self._input, line.size, line.at))["body"]
        return body

    def put_back(self, line: Line, now_s: float, *, failed: bool = True) -> None:
        self.running.pop(line, None)
        self.orders[line.model].put_back(line, now_s, failed=failed)

    def settle(self, line: Line, status: int, request_id: str, body: Any) -> int:
        """It is answered for good; the tokens of prompt and answer."""
        self.running.pop(line, None)
        self._estimated_left -= line.tokens
        self._estimated_done += line.tokens
        response = {"status_code": status, "request_id": request_id, "body": body}
        said = {
            "id": _request_id(self.id, line.number),
            "custom_id": line.custom_id,
            "response": response,
            "error": None,
        }
        if status == 200:
            self._outputs.append(said)
            self._counts["completed"] += 1
            return self._count_usage(body)
        self._errors.append(said)
        self._counts["failed"] += 1
        return 0

    def _count_usage(self, body: Any) -> int:
        """Add up the tokens of an answer; their number."""
        usage = body.get("usage") if isinstance(body, dict) else None
        usage = usage if isinstance(usage, dict) else {}
        given = _count(usage, "prompt_tokens") or _count(usage, "input_tokens")
        made = _count(usage, "completion_tokens") or _count(usage, "output_tokens")
        read = usage.get("prompt_tokens_details") or usage.get("input_tokens_details")
        thought = usage.get("completion_tokens_details") or usage.get("output_tokens_details")
        self._usage["input"] += given
        self._usage["output"] += made
        self._usage["cached"] += _count(read, "cached_tokens")
        self._usage["reasoning"] += _count(thought, "reasoning_tokens") or _count(usage, "reasoning_tokens")
        return given + made

    def sync(self) -> None:
        self._outputs.sync()
        self._errors.sync()

    def save(self) -> None:
        """What the API shows of it while it runs."""
        self.sync()
        usage = self._usage
        self.batch["usage"] = {
            "input_tokens": usage["input"],
            "input_tokens_details": {"cached_tokens": usage["cached"]},
            "output_tokens": usage["output"],
            "output_tokens_details": {"reasoning_tokens": usage["reasoning"]},
            "total_tokens": usage["input"] + usage["output"],
        }
        self._store.write(self.batch)
        self._saved = dict(self._counts)

    def save_counts(self) -> None:
        """The same where counts have changed."""
        if self._saved != self._counts:
            self.save()

    def finish(self, status: str) -> None:
        """End as ``completed``, ``expired``, ``cancelled`` or ``failed``: what is left is an error each, and the files are
        there. One that died within this is finished by the next."""
        if self.batch["status"] != "finalizing":
            self._conclude(status)
        for name, journal in (("output", self._outputs), ("error", self._errors)):
            journal.close()
            self._publish(name)
        status, cancelled_at_s = self.batch.pop("ends_as"), self._store.cancelled_at_s(self.id)
        self.batch |= {"status": status, f"{status}_at": int(time.time())}
        self.batch["cancelling_at"] = None if cancelled_at_s is None else int(cancelled_at_s)
        self._store.write(self.batch)

    def _conclude(self, status: str) -> None:
        """Nothing is to be answered any more."""
        why = _WHY.get(status)
        for order in self.orders.values():
            for line in order.drain():
                code, message = why if why is not None else ("batch_failed", "its batch failed")
                error = {"code": code, "message": message, "line": line.number, "param": None}
                self._errors.append(_failed(self.id, line.number, line.custom_id, error))
                self._counts["failed"] += 1
        self._estimated_left = 0
        self.batch |= {"output_file_id": new_id(PREFIX), "error_file_id": new_id(PREFIX)}
        self.batch |= {"status": "finalizing", "finalizing_at": int(time.time()), "ends_as": status}
        self.save()

    def _publish(self, name: str) -> None:
        """Make a file of what has been written; none where nothing was."""
        written, file_id = self._store.folder(self.id) / f"{name}.jsonl", self.batch[f"{name}_file_id"]
        moved = self._files.path(file_id).exists()
        if not moved and _unique(written):
            moved = True
        else:
            written.unlink(missing_ok=True)
        if not moved:
            self.batch[f"{name}_file_id"] = None
            return
        self._files.add(
            written, f"{self.id}_{name}.jsonl", tenant=self.batch["tenant"], purpose="batch_output", file_id=file_id,
            seconds=self.batch.get("output_kept_s"),
        )  # fmt: skip

    def release(self) -> None:
        """Let another gateway have it, even where the disk takes nothing more."""
        try:
            self._opened.close()
        finally:
            unlock(self._lock)


def _accept(_: Mapping[str, Any]) -> None:
    """A line that was good once stays so: a model that is not there now comes back."""


def _request_id(batch_id: str, number: int) -> str:
    return f"batch_req_{batch_id.removeprefix('batch_')}_{number}"


def _failed(batch_id: str, number: int, custom_id: str | None, error: dict[str, Any]) -> dict[str, Any]:
    return {"id": _request_id(batch_id, number), "custom_id": custom_id, "response": None, "error": error}


def _count(of: Any, name: str) -> int:
    value = of.get(name) if isinstance(of, dict) else None
    return value if isinstance(value, int) else 0


def _unique(path: Path) -> bool:
    """Whether ``path`` has a line. One that comes twice (by a gateway that had lost its lock and did not know) goes."""
    seen: set[bytes] = set()
    again = False
    for _, content in read_lines(path):
        key = content[:100].partition(b",")[0]
        again |= key in seen
        seen.add(key)
    if again:
        kept: dict[bytes, bytes] = {}
        for _, content in read_lines(path):
            kept.setdefault(content[:100].partition(b",")[0], content)
        new = path.with_suffix(".unique")
        new.write_bytes(b"".join(kept.values()))
        new.replace(path)
    return bool(seen)
