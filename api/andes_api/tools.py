"""Tools that this gateway runs: what its settings hold, and which of them a request may have run."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from importlib.util import find_spec
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from andes_api.classes import Count, Seconds, Strict
from andes_api.errors import ApiError

__all__ = ["HEADER", "ToolSettings", "asked_tools", "tool_faults"]

HEADER = "x-andes-tools"


class ToolSettings(Strict):
    """command: the program and its arguments (docs/tools.md says what it reads and writes). argument, statements: the
    argument whose statements, `python` or `sql`, it is fed one by one; without, every closed value. timeout_s: from the end
    of the arguments to the result. memory_bytes, output_bytes: limits of the process and of its result. lazy: it
    starts when its arguments are complete. user: whom it runs
    as, where the gateway is root. environment: all that it sees besides PATH and LANG.
    """

    command: Annotated[tuple[str, ...], Field(min_length=1)]
    argument: str | None = None
    statements: Literal["python", "sql"] | None = None
    timeout_s: Seconds = 30.0
    memory_bytes: Count | None = None
    output_bytes: Count = 64 << 10
    lazy: bool = False
    user: Annotated[str, Field(min_length=1)] | None = None
    environment: dict[str, str] = Field({})

    @model_validator(mode="after")
    def _together(self) -> ToolSettings:
        if (self.argument is None) != (self.statements is None):
            raise ValueError(f"argument and statements go together, got {self.argument!r} and {self.statements!r}")
        return self


def tool_faults(tools: Mapping[str, ToolSettings]) -> list[str]:
    """What keeps this process from running ``tools``, one sentence each."""
    faults = [
        f"tools: {name!r} is no name of a function" for name in tools if not name.replace("-", "_").isidentifier()
    ]
    if tools and find_spec("andes_client") is None:
        return [*faults, "tools: they need the package andes-client: install andes-sglang[tools]"]
    for name, tool in tools.items():
        if tool.user is not None and (why := _not_as(tool.user)) is not None:
            faults.append(
                f"tools.{name}.user: {why}: name one that there is, and run the gateway as root, with the capabilities "
                "SETUID and SETGID, or leave 'user' out"
            )
    return faults


def _not_as(user: str) -> str | None:
    """Why no tool can run as ``user``, by having andes-client start one as it does; None: it can."""
    nothing = [sys.executable, "-m", "andes_client.limited", "", user, "true"]
    said = subprocess.run(nothing, capture_output=True, text=True, check=False).stdout
    return str(json.loads(said)["error"]).removeprefix("it cannot be started: ") if said else None


def asked_tools(
    headers: Mapping[str, str],
    body: Mapping[str, Any],
    tools: Mapping[str, ToolSettings],
    allowed: tuple[str, ...],
    *,
    chat: bool,
) -> dict[str, ToolSettings]:
    """Those of ``tools`` that a request asks this gateway to run; none where it does not. allowed: those of its tenant;
    empty: all. chat: the request is one of a chat. Raises a 400 that names header or field and value."""
    said = headers.get(HEADER)
    if said is None:
        return {}
    if said != "run":
        raise _bad(HEADER, f"{HEADER}: expected run; got {said[:100]!r}")
    known = {name: tool for name, tool in tools.items() if not allowed or name in allowed}
    if not known:
        raise _bad(HEADER, f"{HEADER}: no tools run here: leave it out and run the calls of the answer yourself")
    if not chat:
        raise _bad(HEADER, f"{HEADER}: only /v1/chat/completions has a place for it")
    _check_single(body)
    names = _names(body.get("tools"))
    unknown = next((name for name in names if name not in known), None)
    if unknown is not None or not names:
        what = f"{HEADER} needs the functions that may be called" if not names else f"no tool {unknown!r} runs here"
        raise _bad("tools", f"tools: {what}; there are {', '.join(known)}")
    return {name: known[name] for name in names}


def _check_single(body: Mapping[str, Any]) -> None:
    if body.get("stream") is not True:
        raise _bad("stream", f"stream: {HEADER} needs a streamed answer: send stream: true")
    if body.get("n") not in (None, 1):
        raise _bad("n", f"n: {HEADER} needs a single answer, n: 1; got {body['n']}")
    if not isinstance(body.get("messages"), list):
        raise _bad("messages", f"messages: {HEADER} needs a conversation, a list of messages")


def _names(tools: Any) -> list[str]:
    functions = [tool.get("function") for tool in tools if isinstance(tool, dict)] if isinstance(tools, list) else []
    return [str(function.get("name"))[:100] for function in functions if isinstance(function, dict)]


def _bad(param: str, message: str) -> ApiError:
    return ApiError(400, message, param=param, reason="tools", retry=False)
