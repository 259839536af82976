"""The reader's side of Andes: expectations that go out with a request, text at the speed of reading, and what the reader got.

``AndesClient`` and ``AsyncAndesClient`` wrap the official ``openai`` package and work with every server that it works with.
"""

from __future__ import annotations

from andes_client.answer import Answer, AsyncAnswer, InterruptedAnswerError
from andes_client.client import AndesClient, AsyncAndesClient
from andes_client.experience import Experience, Timeline
from andes_client.pacer import Pacer
from andes_client.race import Cost, Part, Race, RacedAnswer, race
from andes_client.reader import Reader
from andes_client.tool import StreamedTool, serve
from andes_client.tools import Tool, ToolResult, ToolRunner
from andes_client.toolstream import ToolStream

__all__ = [
    "AndesClient", "Answer", "AsyncAndesClient", "AsyncAnswer", "Cost", "Experience", "InterruptedAnswerError", "Pacer",
    "Part", "Race", "RacedAnswer", "Reader", "StreamedTool", "Timeline", "Tool", "ToolResult", "ToolRunner", "ToolStream",
    "race", "serve",
]  # fmt: skip
