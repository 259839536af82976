"""Ports of 127.0.0.1 for servers that take a while to listen."""

from __future__ import annotations

import socket
import sys

__all__ = ["HeldPort", "free_port"]


class HeldPort:
    """``number``: a TCP port that the system gives to nothing else that asks for any port, and to no connection, before
    :meth:`release`. A server of any process may listen on it, if it sets SO_REUSEADDR as servers do: nothing listens here.

    Only Linux lets a socket that does not listen share its port so; elsewhere the port was free a moment ago.
    """

    def __init__(self) -> None:
        self._socket = socket.socket()
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._socket.bind(("127.0.0.1", 0))
        self.number = int(self._socket.getsockname()[1])
        if sys.platform != "linux":
            self.release()

    def release(self) -> None:
        self._socket.close()


_held: list[HeldPort] = []


def free_port() -> int:
    """A port that stays held while this process lives."""
    _held.append(HeldPort())
    return _held[-1].number
