"""Ports that are kept for a server until it listens."""

from __future__ import annotations

import socket
import sys
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from andes_sglang.bench.engine import Engine
from andes_sglang.bench.ports import HeldPort, free_port

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="ports are held on Linux only")


def may_be_given_away(port: int) -> bool:
    """To a program that asks for any port, or to a connection."""
    with socket.socket() as other:
        try:
            other.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def test_a_held_port_is_its_servers_alone() -> None:
    held = HeldPort()
    assert not may_be_given_away(held.number)
    with HTTPServer(("127.0.0.1", held.number), BaseHTTPRequestHandler), pytest.raises(OSError, match="in use"):
        HTTPServer(("127.0.0.1", held.number), BaseHTTPRequestHandler)
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", held.number))
    held.release()
    assert may_be_given_away(held.number)


def test_a_free_port_stays_so() -> None:
    assert not any(may_be_given_away(port) for port in [free_port() for _ in range(20)])


def test_an_engine_keeps_its_port_from_before_its_start_to_its_end(tmp_path: Path) -> None:
    engine = Engine("model", "stock", log=tmp_path / "log")
    assert not may_be_given_away(engine.port)
    engine.stop()
    assert may_be_given_away(engine.port)
