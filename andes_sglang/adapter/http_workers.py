"""The HTTP processes: what they answer to a refused request. Those of their own (``--tokenizer-worker-num`` above 1) load no
plugins by themselves."""

from __future__ import annotations

from typing import Any

from sglang.srt.plugins import load_plugins
from sglang.srt.server_args import ServerArgs

__all__ = ["WorkerArgs", "refuse_with_400"]


def refuse_with_400() -> None:
    """Also at endpoints that do not catch what ``generate_request`` raises."""
    from sglang.srt.entrypoints.http_server import app
    from starlette.responses import JSONResponse

    from andes_sglang.adapter.request_checks import RequestRefusedError

    def answer(_request: Any, refused: Exception) -> JSONResponse:
        return JSONResponse({"error": {"message": str(refused)}}, 400)

    app.add_exception_handler(RequestRefusedError, answer)
    app.middleware_stack = None  # made of the handlers there are, at the next request; in a worker it was made before


class WorkerArgs(ServerArgs):  # type: ignore[misc]
    """What a worker is given, and asks for the class of its tokenizer manager before it makes one."""

    def get_tokenizer_worker_class(self) -> Any:
        load_plugins()
        refuse_with_400()
        return super().get_tokenizer_worker_class()
