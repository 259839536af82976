"""What the client of one connection has acknowledged. Linux says it (``SIOCOUTQ``); elsewhere only what this process holds
back is known."""

from __future__ import annotations

import asyncio
import sys
from typing import Any

__all__ = ["ACKNOWLEDGED_IS_KNOWN", "CONNECTION", "Connection"]

if sys.platform == "linux":
    import fcntl
    import termios

    _UNACKNOWLEDGED = termios.TIOCOUTQ  # SIOCOUTQ, of a socket: bytes sent and not acknowledged, or not sent yet

CONNECTION = "andes.connection"
"""Where ASGI's scope has the transport of a request."""
ACKNOWLEDGED_IS_KNOWN = sys.platform == "linux"


class Connection:
    """transport: uvicorn's, of one client; None where there is none to ask."""

    def __init__(self, transport: asyncio.Transport | None) -> None:
        self._transport = transport
        sock: Any = transport.get_extra_info("socket") if transport is not None else None
        self._socket = sock
        self._count = bytearray(4)

    def unacknowledged_bytes(self) -> int:
        """Of what was written, those that the client's kernel has not acknowledged."""
        transport = self._transport
        if transport is None or transport.is_closing():
            return 0
        held = transport.get_write_buffer_size()
        if not ACKNOWLEDGED_IS_KNOWN or self._socket is None:
            return held
        try:
            fcntl.ioctl(self._socket.fileno(), _UNACKNOWLEDGED, self._count)
        except OSError:  # no TCP socket, or gone
            return held
        return held + int.from_bytes(self._count, sys.byteorder)
