"""What the gateway uses of uvicorn beside its public names. It is looked for at the start: no stream finds it missing."""

from __future__ import annotations

import dis
import inspect

import uvicorn
from uvicorn.protocols.http.flow_control import FlowControl
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from andes_sglang.usage import UsageError

__all__ = ["check_uvicorn"]

_USED: dict[type, str] = {
    HttpToolsProtocol: "connection_lost connection_made cycle data_received headers loop on_header on_headers_complete "
    "on_message_begin on_message_complete on_url parser scope send_400_response transport url _unset_keepalive_if_required",
    RequestResponseCycle: "chunked_encoding disconnected expected_content_length flow keep_alive more_body "
    "response_complete scope send transport waiting_for_100_continue",
    FlowControl: "write_paused",
}
"""By class: methods, and what its own methods assign."""


def check_uvicorn() -> None:
    """Raises :class:`UsageError` where the installed uvicorn lacks something of it."""
    lacks = [
        f"{kind.__name__}.{name}" for kind, names in _USED.items() for name in names.split() if name not in _has(kind)
    ]
    if lacks:
        raise UsageError(
            f"uvicorn {uvicorn.__version__} is installed, and the gateway does not know how it writes: it has no "
            f"{', '.join(lacks)}; install the uvicorn of requirements/"
        )


def _has(kind: type) -> set[str]:
    functions = [member for member in vars(kind).values() if inspect.isfunction(member)]
    steps = [step for function in functions for step in dis.get_instructions(function)]
    return {*vars(kind), *(step.argval for step in steps if step.opname == "STORE_ATTR")}
