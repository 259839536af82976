"""HTTP processes of their own (``--tokenizer-worker-num`` above 1), in which SGLang loads no plugins."""

from __future__ import annotations

from typing import Any

from sglang.srt.plugins import load_plugins
from sglang.srt.server_args import ServerArgs

__all__ = ["WorkerArgs"]


class WorkerArgs(ServerArgs):  # type: ignore[misc]
    """What a worker is given, and asks for the class of its tokenizer manager before it makes one."""

    def get_tokenizer_worker_class(self) -> Any:
        load_plugins()
        return super().get_tokenizer_worker_class()
