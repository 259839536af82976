"""A tool program of a Python class: ``serve(MyTool)`` in a file of its own, which :class:`andes_client.tools.Tool` names."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping
from typing import Any, Protocol

__all__ = ["StreamedTool", "serve"]


class StreamedTool(Protocol):
    """What :func:`serve` takes. Each is made for one call."""

    def process_new_data(self, text: str) -> None:
        """A unit of the arguments is complete: a statement, or ``{"name": value}`` as JSON text."""

    def finish(self, arguments: Mapping[str, Any]) -> str:
        """All arguments are there; the result."""


def serve(make: type[StreamedTool]) -> None:
    """Serve one call on stdin and stdout: ``make()`` at its start, so what is slow to load is loaded while the model writes.

    What the tool prints goes to stderr. An exception is the call's result, said to the model; an abort ends the process.
    """
    out = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    tool: StreamedTool | None = None
    try:
        for line in sys.stdin:
            said = json.loads(line)
            if "abort" in said:
                return
            if "start" in said:
                tool = make()
            elif "grow" in said and tool is not None:
                tool.process_new_data(said["grow"])
            elif "finish" in said and tool is not None:
                result = tool.finish(said["finish"])
                break
        else:
            return
    except Exception as error:  # whatever the tool raises is the model's to know
        result = f"{type(error).__name__}: {error}"
    print(json.dumps({"result": result}), file=out, flush=True)
