"""``andes batch FILE --url URL``: upload, follow, fetch the answers. What was begun before is followed, not run again."""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import json
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from andes_sglang.batch.client import BatchClient, BatchError, UnavailableError
from andes_sglang.flags import UsageError

__all__ = ["USER_ERRORS", "add_arguments"]

USER_ERRORS: tuple[type[Exception], ...] = (UsageError, BatchError)
KEY_VARIABLE = "OPENAI_API_KEY"
DIGEST = "andes-file-sha256"
"""Metadata of a batch: which file it is of, so that the next run finds it."""
POLL_S, MAX_POLL_S = 1.0, 10.0
"""Seconds between looks at a batch; more and more."""
WINDOW = "24h"
"""Default of ``--window``."""
_ENDED = ("completed", "expired", "cancelled", "failed")
_LOST = ("expired", "cancelled", "failed")
"""Ends after which the same file is a new batch."""
INTERRUPTED = 130
"""Exit status after Ctrl-C: 128 and the signal's number."""


def add_arguments(parser: argparse.ArgumentParser, command: str) -> None:  # noqa: ARG001
    parser.description = (
        "Send a file of requests (a JSON line each, as OpenAI's batch API has them) to be answered without a reader, and "
        "fetch the answers. Run again with the same file, it goes on with the batch that was begun. Exit status: 0 all "
        "answered, 1 some were not, 2 it could not be done, 130 interrupted: the batch goes on."
    )
    parser.add_argument("file", type=Path, metavar="FILE", help="requests, a JSON line each")
    parser.add_argument("--url", required=True, help=f"of the gateway; its key comes from ${KEY_VARIABLE}")
    parser.add_argument("--out", type=Path, metavar="FILE", help="answers; default: FILE with .out.jsonl")
    parser.add_argument("--errors", type=Path, metavar="FILE", help="what failed; default: FILE with .errors.jsonl")
    parser.add_argument(
        "--window", help=f"deadline of a new batch: 24h, 90m, 2d, 2026-12-01T06:00:00Z; default: {WINDOW}"
    )
    parser.add_argument("--endpoint", help="default: the url of the first line")
    begun = parser.add_mutually_exclusive_group()
    begun.add_argument("--resume", metavar="ID", help="follow this batch")
    begun.add_argument("--new", action="store_true", help="run it again, also where it was run before")
    parser.add_argument("--cancel", action="store_true", help="cancel the batch that was begun, and fetch what is done")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace, rest: Sequence[str] = ()) -> int:
    """The exit status. Raises :class:`UsageError` or :class:`BatchError`."""
    if rest:
        raise UsageError(f"unknown argument {rest[0]!r}")
    if "://" not in args.url:
        raise UsageError(f"--url: expected http://HOST:PORT, got {args.url!r}")
    if not args.file.is_file():
        raise UsageError(f"{args.file}: {'a directory, not a file' if args.file.is_dir() else 'no such file'}")
    _check_together(args)
    begun: list[str] = []
    try:
        return asyncio.run(_run(args, begun))
    except KeyboardInterrupt:
        goes_on = "the batch goes on; the same command follows it, with --cancel it ends"
        print(f"\n{goes_on if begun else 'interrupted before the batch began'}", file=sys.stderr)
        return INTERRUPTED
    except OSError as error:
        raise UsageError(f"{error.filename or args.file}: {error.strerror}") from None


def _check_together(args: argparse.Namespace) -> None:
    """Raise for flags of which one leaves the other without effect."""
    for flag, given in (("--window", args.window), ("--endpoint", args.endpoint)):
        if args.resume and given is not None:
            raise UsageError(f"{flag} {given}: not with --resume, which follows a batch as it is")
    if args.cancel and args.new:
        raise UsageError("--cancel: not with --new: only a batch that was begun can be cancelled")
    if args.cancel and args.window is not None:
        raise UsageError(f"--window {args.window}: not with --cancel; it is the deadline of a new batch")


async def _run(args: argparse.Namespace, begun: list[str]) -> int:
    """begun: gets the id of the batch once there is one."""
    async with BatchClient(args.url, os.environ.get(KEY_VARIABLE)) as client:
        batch = await _batch(client, args)
        begun.append(batch["id"])
        if args.cancel and batch["status"] not in _ENDED:
            batch = await client.cancel(batch["id"])
        batch = await _follow(client, batch)
        await _fetch(client, batch, args)
    return 0 if batch["status"] == "completed" and not batch["request_counts"]["failed"] else 1


async def _batch(client: BatchClient, args: argparse.Namespace) -> dict[str, Any]:
    """The batch to follow: the one named, one of this file, or a new one."""
    if args.resume:
        return await client.get(args.resume)
    digest, endpoint = _digest(args.file), args.endpoint or _endpoint(args.file)
    if not args.new:
        async for batch in client.batches():
            same = (batch.get("metadata") or {}).get(DIGEST) == digest and batch["endpoint"] == endpoint
            if same and (args.cancel or batch["status"] not in _LOST):
                stays = "" if args.window is None else "; its deadline stays (--new begins another)"
                print(f"{batch['id']}: found, {batch['status']}{stays}", file=sys.stderr)
                return batch
    if args.cancel:
        raise BatchError(f"{client.url} has no batch of {args.file}")
    file_id = await _upload(client, args.file, digest)
    batch = await client.create(
        input_file_id=file_id, endpoint=endpoint, completion_window=args.window or WINDOW, metadata={DIGEST: digest}
    )
    print(f"{batch['id']}: begun", file=sys.stderr)
    return batch


async def _upload(client: BatchClient, path: Path, digest: str) -> str:
    """The id of the file there; one that was uploaded before is not uploaded again."""
    name, size = f"{path.stem}-{digest[:16]}.jsonl", path.stat().st_size
    async for file in client.files():
        if (file["filename"], file["bytes"]) == (name, size):
            return str(file["id"])
    return str((await client.upload(path, name))["id"])


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _endpoint(path: Path) -> str:
    """What the first line that can be read asks for. Raises :class:`UsageError`."""
    with path.open("rb") as file:
        for line in file:
            try:
                url = json.loads(line)["url"]
            except (ValueError, KeyError, TypeError):
                continue
            return str(url)
    raise UsageError(f"{path}: no line has a url; expected lines of JSON with custom_id, method, url and body")


async def _follow(client: BatchClient, batch: dict[str, Any]) -> dict[str, Any]:
    """Until it has ended, through restarts of the gateway."""
    wait_s, said = POLL_S, ""
    while batch["status"] not in _ENDED:
        line = progress(batch)
        if line != said:
            _say(line, ended=False)
            said, wait_s = line, POLL_S
        await asyncio.sleep(wait_s)
        wait_s = min(MAX_POLL_S, 1.5 * wait_s)
        try:
            batch = await client.get(batch["id"])
        except UnavailableError as error:
            _say(f"{error}; it is asked again", ended=True)
    _say(progress(batch), ended=True)
    return batch


def progress(batch: Mapping[str, Any]) -> str:
    """One line: state, how many of how many are done, failures."""
    counts = batch.get("request_counts") or {}
    total, failed = counts.get("total", 0), counts.get("failed", 0)
    done = counts.get("completed", 0) + failed
    share = f" ({100 * done // total} %)" if total else ""
    return f"{batch['id']}: {batch['status']}, {done} of {total} done{share}" + (f", {failed} failed" if failed else "")


def _say(line: str, *, ended: bool) -> None:
    """On a terminal each line takes the place of the one before."""
    if sys.stderr.isatty():
        print(f"\r\x1b[K{line}", end="\n" if ended else "", file=sys.stderr, flush=True)
    else:
        print(line, file=sys.stderr, flush=True)


async def _fetch(client: BatchClient, batch: Mapping[str, Any], args: argparse.Namespace) -> None:
    """Write the answers and the errors down, and say what is wrong with the file."""
    for fault in ((batch.get("errors") or {}).get("data") or [])[:20]:
        print(f"{args.file}: {fault['message']}", file=sys.stderr)
    for kind, path in (("output", args.out), ("error", args.errors)):
        suffix = ".out.jsonl" if kind == "output" else ".errors.jsonl"
        file_id, target = batch.get(f"{kind}_file_id"), path or args.file.with_suffix(suffix)
        if file_id:
            await client.download(file_id, target)
            print(target)
