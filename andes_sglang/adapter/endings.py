"""How the HTTP process ends: streams at once after a crash, and with exit status 0 after a drain.

SGLang's own crash handling holds all sockets open and silent while it waits for core dumps of GPUs, up to 65 s, and ends
itself with SIGKILL in every case.
"""

from __future__ import annotations

import contextlib
import os
import socket
from typing import Any

import psutil

__all__ = ["end_after_crash", "end_connections", "kill_children"]


def end_connections(port: int) -> None:
    """Shut down the sockets of this process at ``port``: clients see their streams cut, and can go elsewhere."""
    for connection in psutil.Process().net_connections("tcp"):
        if connection.laddr.port == port:
            with contextlib.suppress(OSError), socket.socket(fileno=os.dup(connection.fd)) as same:
                same.shutdown(socket.SHUT_RDWR)


def kill_children(kill_process_tree: Any, parent_pid: int, include_parent: bool = True, **more: Any) -> None:
    """``kill_process_tree``, less this process: what called it goes on to end it with a status of its own."""
    own = include_parent and parent_pid == os.getpid()
    kill_process_tree(parent_pid, include_parent=include_parent and not own, **more)


def end_after_crash(*_: Any, **__: Any) -> None:
    """After SGLang's handler of SIGQUIT, which a failed child process sends."""
    os._exit(1)
