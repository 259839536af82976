"""A file as it is uploaded: a form that goes to the disk while it comes, never into memory as a whole."""

from __future__ import annotations

import asyncio
import os
import shutil
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

from fastapi import Request
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import File, FormParser, create_form_parser, parse_options_header
from starlette.requests import ClientDisconnect

from andes_api.errors import ApiError
from andes_api.settings import GatewaySettings

__all__ = ["Upload", "receive_upload", "until_s"]

MAX_FORM_BYTES = 64 << 10
"""Bytes of a form beside its file, and of a file before it goes to the disk."""
MIN_BYTES_PER_S = 8 << 10
"""Bytes/s of an upload after its first ``body_timeout_s``: less is no link but a client that keeps us waiting."""
MAX_MEMORY_BYTES = 3 * MAX_FORM_BYTES
"""Bytes of a form that are not on the disk: both, and what is on its way there."""


@dataclass
class Upload:
    """folder: of its own, removed by :meth:`discard`. path: of the file; None: there was none. fields: the others."""

    folder: Path
    path: Path | None = None
    name: str = ""
    fields: dict[str, str] = field(default_factory=dict)

    def discard(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)

    def in_memory(self, came: int) -> int:
        """Of ``came`` bytes, those that are not on the disk."""
        return came - sum(entry.stat().st_size for entry in os.scandir(self.folder))

    def take(self, file: File) -> None:
        if file.field_name == b"file":
            if file.in_memory:
                file.flush_to_disk()
            file.close()
            self.path = Path((file.actual_file_name or b"").decode())
            self.name = (file.file_name or b"file").decode(errors="replace")[:255]


async def receive_upload(request: Request, incoming: Path, settings: GatewaySettings) -> Upload:
    """Raises 400, 408, 413, 415 or 499; then nothing of it is left."""
    media_type, parameters = parse_options_header(request.headers.get("content-type"))
    if media_type != b"multipart/form-data" or not parameters.get(b"boundary"):
        raise ApiError(
            415, "content-type: expected multipart/form-data with a boundary", reason="media_type", retry=False
        )
    if request.headers.get("content-encoding", "identity").lower() != "identity":
        raise ApiError(415, "content-encoding: files come as they are", reason="media_type", retry=False)
    upload = Upload(Path(tempfile.mkdtemp(dir=incoming)))
    try:
        await _receive(request, upload, settings)
    except BaseException:
        upload.discard()
        raise
    return upload


async def _receive(request: Request, upload: Upload, settings: GatewaySettings) -> None:
    most = settings.batches.max_file_bytes
    announced = request.headers.get("content-length", "")
    if announced.isdecimal() and int(announced[:20]) > most + MAX_FORM_BYTES:
        raise _too_long(most)
    came = 0
    try:
        parser = _parser(request, upload)
    except FormParserError as error:  # its boundary
        raise _no_form(error) from None
    try:
        loop = asyncio.get_running_loop()
        began_s = loop.time()
        async with asyncio.timeout(settings.body_timeout_s) as timeout:
            async for part in request.stream():
                came += len(part)
                timeout.reschedule(until_s(began_s, loop.time(), came, settings.body_timeout_s))
                if came > most + MAX_FORM_BYTES:
                    raise _too_long(most)
                await asyncio.to_thread(parser.write, part)
                if upload.in_memory(came) > MAX_MEMORY_BYTES:
                    raise ApiError(
                        413,
                        f"beside its file the form is longer than {MAX_FORM_BYTES} bytes",
                        reason="body",
                        retry=False,
                    )
            await asyncio.to_thread(parser.finalize)
    except TimeoutError:
        raise ApiError(408, "the file did not arrive in time", reason="body") from None
    except ClientDisconnect:
        raise ApiError(499, "the client left before its file had come", reason="client_left") from None
    except OSError as error:
        raise ApiError(
            507, f"the file cannot be kept: {error.strerror}", "server_error", reason="disk", retry=False
        ) from None
    except FormParserError as error:
        raise _no_form(error) from None
    finally:
        parser.close()
    if upload.path is not None and upload.path.stat().st_size > most:
        raise _too_long(most)


def until_s(began_s: float, now_s: float, came: int, timeout_s: float) -> float:
    """When an upload is given up that began at ``began_s`` and has brought ``came`` bytes, if nothing more comes: after
    ``timeout_s`` of silence, and where it is slower than :data:`MIN_BYTES_PER_S`. Seconds of one clock."""
    return min(now_s + timeout_s, began_s + timeout_s + came / MIN_BYTES_PER_S)


def _parser(request: Request, upload: Upload) -> FormParser:
    headers = {"Content-Type": request.headers["content-type"].encode()}
    config = {"UPLOAD_DIR": str(upload.folder), "UPLOAD_DELETE_TMP": False, "MAX_MEMORY_FILE_SIZE": MAX_FORM_BYTES}

    def on_field(given: object) -> None:
        name, value = getattr(given, "field_name", None), getattr(given, "value", None)
        upload.fields[(name or b"").decode(errors="replace")] = (value or b"").decode(errors="replace")

    return create_form_parser(headers, on_field, upload.take, config=config)


def _no_form(error: FormParserError) -> ApiError:
    return ApiError(400, f"the body is no form: {error}", reason="body", retry=False)


def _too_long(most: int) -> ApiError:
    return ApiError(413, f"the file is longer than {most} bytes", param="file", reason="body", retry=False)
