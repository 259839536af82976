"""The HTTP processes: what they answer to a refused request, and what they are told of readers. Those of their own
(``--tokenizer-worker-num`` above 1) load no plugins by themselves."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields
from functools import partial
from typing import Any

from sglang.srt.plugins import load_plugins
from sglang.srt.server_args import ServerArgs

from andes_sglang import reception
from andes_sglang.adapter.options import PluginOptions
from andes_sglang.adapter.reader_reports import write_readers

__all__ = ["WorkerArgs", "refuse_with_400", "take_readers"]


def refuse_with_400() -> None:
    """Also at endpoints that do not catch what ``generate_request`` raises, and in our words where SGLang checks first."""
    from sglang.srt.entrypoints import http_server
    from starlette.responses import JSONResponse

    from andes_sglang.adapter.request_checks import RequestRefusedError

    def answer(_request: Any, refused: Exception) -> JSONResponse:
        return JSONResponse({"error": {"message": str(refused)}}, 400)

    app = http_server.app
    app.add_exception_handler(RequestRefusedError, answer)
    app.middleware_stack = None  # made of the handlers there are, at the next request; in a worker it was made before
    if hasattr(http_server, "generate_contract_error"):
        http_server.generate_contract_error = partial(_with_its_field, http_server.generate_contract_error)


def _with_its_field(theirs: Callable[[Any], str | None], body: Any) -> str | None:
    """What SGLang (since 0.5.23) finds wrong in a body of ``/generate``, often without the field: what we find there."""
    from sglang.srt.managers.io_struct import GenerateReqInput

    from andes_sglang.adapter.request_checks import check_fields

    fault = theirs(body)
    if fault is not None and isinstance(body, dict):
        known = {field.name for field in fields(GenerateReqInput)}
        check_fields(GenerateReqInput(**{name: value for name, value in body.items() if name in known}))
    return fault


def take_readers() -> None:
    """Take what a gateway says of readers, and tell the scheduler, which waits for nothing."""
    from sglang.srt.entrypoints import http_server
    from sglang.srt.managers.io_struct import SetInternalStateReq
    from starlette.requests import Request
    from starlette.responses import JSONResponse, Response

    async def readers(request: Request) -> Response:
        try:
            said = reception.parse(await request.json())
        except ValueError as refused:
            return JSONResponse({"error": {"message": str(refused)}}, 400)
        if said:
            manager = http_server._global_state.tokenizer_manager
            await manager.set_internal_state(SetInternalStateReq(server_args=write_readers(said)))
        return Response(status_code=204)

    http_server.app.add_route(reception.PATH, readers, methods=["POST"])


class WorkerArgs(ServerArgs):  # type: ignore[misc]
    """What a worker is given, and asks for the class of its tokenizer manager before it makes one."""

    def get_tokenizer_worker_class(self) -> Any:
        load_plugins()
        refuse_with_400()
        if PluginOptions.from_env().policy is not None:
            take_readers()
        return super().get_tokenizer_worker_class()
