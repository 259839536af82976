"""The short way of an answer's pieces past ASGI, and the uvicorn that it relies on."""

from __future__ import annotations

from typing import Any

import httpx
import pytest
from uvicorn.protocols.http.httptools_impl import RequestResponseCycle

from andes_api import uvicorn_internals
from andes_api.connection import Connection
from andes_api.uvicorn_internals import check_uvicorn
from andes_sglang.cli import main

BODY: dict[str, Any] = {"model": "m", "prompt": "a", "max_tokens": 3, "stream": True}


@pytest.fixture
def taken(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Whether each piece went the short way."""
    found: list[bool] = []
    write = Connection.write

    def noted(connection: Connection, piece: bytes) -> bool:
        found.append(write(connection, piece))
        return found[-1]

    monkeypatch.setattr(Connection, "write", noted)
    return found


@pytest.mark.server
@pytest.mark.parametrize("cors_origins", [(), ("https://a.example",)])
def test_pieces_of_an_answer_go_the_short_way(
    cors_origins: tuple[str, ...], taken: list[bool], faulty: Any, gateway: Any
) -> None:
    """Also under every layer of the application: none of them may hand on another scope than uvicorn's."""
    url = gateway(faulty().url, cors_origins=cors_origins).url
    answer = httpx.post(f"{url}/v1/completions", json=BODY, headers={"origin": "https://a.example"})
    assert answer.text.endswith("data: [DONE]\n\n")
    assert taken
    assert taken[0], "the client takes the first at once"


def test_another_uvicorn_is_refused_at_the_start(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    check_uvicorn()

    class Renamed(RequestResponseCycle):
        """Assigns nothing itself."""

    monkeypatch.setitem(uvicorn_internals._USED, Renamed, "chunked_encoding send")
    for workers in ("1", "2"):
        assert main(["gateway", "--upstream", "http://127.0.0.1:9", "--port", "0", "--workers", workers]) != 0
        said = capsys.readouterr().err
        assert "it has no Renamed.chunked_encoding, Renamed.send; install" in said
        assert "Traceback" not in said
