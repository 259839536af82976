"""The reader's side of Andes: expectations that go out with a request, text at the speed of reading, and what the reader got.

``AndesClient`` and ``AsyncAndesClient`` wrap the official ``openai`` package and work with every server that it works with.
Modules are imported when they are first used: a tool's process, which needs :func:`serve` alone, starts in hundredths of a
second.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from andes_client.ahead import Ahead, NextCalls
    from andes_client.answer import Answer, AsyncAnswer, InterruptedAnswerError
    from andes_client.client import AndesClient, AsyncAndesClient
    from andes_client.experience import Experience, Timeline
    from andes_client.pacer import Pacer
    from andes_client.process import Tool, ToolResult
    from andes_client.race import Cost, Part, Race, RacedAnswer, race
    from andes_client.reader import Reader
    from andes_client.tool import StreamedTool, serve
    from andes_client.tools import ToolRunner
    from andes_client.toolstream import ToolStream

__all__ = [
    "Ahead", "AndesClient", "Answer", "AsyncAndesClient", "AsyncAnswer", "Cost", "Experience",
    "InterruptedAnswerError", "NextCalls", "Pacer", "Part", "Race", "RacedAnswer", "Reader", "StreamedTool",
    "Timeline", "Tool", "ToolResult", "ToolRunner", "ToolStream", "race", "serve",
]  # fmt: skip
_MODULES = {
    "ahead": ("Ahead", "NextCalls"),
    "answer": ("Answer", "AsyncAnswer", "InterruptedAnswerError"),
    "client": ("AndesClient", "AsyncAndesClient"),
    "experience": ("Experience", "Timeline"),
    "pacer": ("Pacer",),
    "process": ("Tool", "ToolResult"),
    "race": ("Cost", "Part", "Race", "RacedAnswer", "race"),
    "reader": ("Reader",),
    "tool": ("StreamedTool", "serve"),
    "tools": ("ToolRunner",),
    "toolstream": ("ToolStream",),
}
_HOMES = {name: module for module, names in _MODULES.items() for name in names}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = import_module(f"{__name__}.{_HOMES[name]}")
    globals().update({one: getattr(module, one) for one in _MODULES[_HOMES[name]]})  # over a module of the same name
    return globals()[name]
