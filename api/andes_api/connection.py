"""One client's connection, below ASGI: what it has acknowledged, how far away it is, and a short way for pieces of an answer.
Linux says what is acknowledged (``SIOCOUTQ``, ``TCP_INFO``); elsewhere only what this process holds back is known."""

from __future__ import annotations

import asyncio
import socket
import sys
from collections.abc import Mapping
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

__all__ = ["ACKNOWLEDGED_IS_KNOWN", "CONNECTION", "Connection"]

if sys.platform == "linux":
    import fcntl
    import termios

    _UNACKNOWLEDGED = termios.TIOCOUTQ  # SIOCOUTQ, of a socket: bytes sent and not acknowledged, or not sent yet

_MIN_RTT_AT, _TCP_INFO_BYTES = 148, 152
"""Of ``struct tcp_info``: ``tcpi_min_rtt``, microseconds, and what there is up to its end (Linux 4.6)."""

_UNKNOWN_US = 0xFFFFFFFF
"""Before the first acknowledgement."""

CONNECTION = "andes.connection"
"""Where ASGI's scope has uvicorn's protocol of the connection."""
ACKNOWLEDGED_IS_KNOWN = sys.platform == "linux"


class Connection:
    """transport: of one client; None where there is none to ask. cycle: uvicorn's request and answer; None where every piece
    goes through ASGI."""

    def __init__(self, transport: asyncio.Transport | None = None, cycle: RequestResponseCycle | None = None) -> None:
        self._transport, self._cycle = transport, cycle
        sock: Any = transport.get_extra_info("socket") if transport is not None else None
        self._socket = sock
        self._count = bytearray(4)

    @classmethod
    def of(cls, scope: Mapping[str, Any]) -> Connection:
        """That of a request, by its ASGI scope."""
        protocol: HttpToolsProtocol | None = scope.get(CONNECTION)
        if protocol is None:
            return cls()
        cycle = protocol.cycle  # the last request that was read
        return cls(protocol.transport, cycle if cycle.scope is scope else None)

    def write(self, piece: bytes) -> bool:
        """Write a piece of an answer whose head is out as uvicorn's ``send`` does, past every layer that passes it on:
        6 % of what a token costs. False where that cannot be, because the client does not take it now, say."""
        cycle = self._cycle
        if (
            cycle is None
            or not cycle.chunked_encoding
            or cycle.flow.write_paused
            or cycle.disconnected
            or cycle.response_complete
        ):
            return False
        cycle.transport.write(b"%x\r\n%b\r\n" % (len(piece), piece))
        return True

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

    def round_trip_s(self) -> float:
        """Seconds to the client and back, the least that acknowledgements took lately; 0 where it is not known."""
        transport = self._transport
        if transport is None or transport.is_closing() or not ACKNOWLEDGED_IS_KNOWN or self._socket is None:
            return 0.0
        try:
            said = self._socket.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _TCP_INFO_BYTES)
        except OSError:  # no TCP socket, or gone
            return 0.0
        round_trip_us = int.from_bytes(said[_MIN_RTT_AT:_TCP_INFO_BYTES], sys.byteorder)
        return 0.0 if round_trip_us == _UNKNOWN_US else round_trip_us / 1e6
