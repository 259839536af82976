"""Errors in words."""

from __future__ import annotations

import asyncio
import errno
import json
import re
import socket
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from andes_operator.explain import explain, shown
from andes_operator.gateways import Gateways

PYTHON = re.compile(r"Error\b|Exception|None|\bdict\b|object|https?://|<class|\bself\b|__")


def decode(text: str) -> BaseException:
    try:
        json.loads(text)
    except ValueError as error:
        return error
    raise AssertionError


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (TimeoutError(), "no answer in time"),
        (aiohttp.ServerTimeoutError(), "no answer in time"),
        (aiohttp.ServerDisconnectedError(), "it closed the connection"),
        (ConnectionResetError(errno.ECONNRESET, ""), "connection reset by peer"),
        (socket.gaierror(-2, "Name or service not known"), "its name is not known"),
        (decode("<html>"), "its answer is not JSON"),
        (KeyError("now_s"), "now_s is missing"),
        (TypeError("'NoneType' object is not iterable"), "it has another form than expected"),
        (OverflowError("cannot convert float infinity to integer"), "it has another form than expected"),
        (ValueError("bad answer of http://10.0.0.1:80/fleet/qoe"), "bad answer of its address"),
        (OSError(), "it failed without saying why"),
    ],
)
def test_an_error_in_words_names_nothing_of_python(error: BaseException, words: str) -> None:
    assert explain(error) == words
    assert not PYTHON.search(words)


def test_a_value_is_shown_as_the_resource_has_it() -> None:
    assert (shown(True), shown(None), shown("x"), shown([1])) == ("true", "null", '"x"', "[1]")


def test_what_real_connections_fail_with_is_said() -> None:
    """Refused, silent for longer than the time limit, cut, and not JSON."""

    async def silent(_: web.Request) -> web.Response:
        await asyncio.sleep(60)
        return web.Response()

    async def cut(request: web.Request) -> web.Response:
        assert request.transport is not None
        request.transport.abort()
        return web.Response()

    async def page(_: web.Request) -> web.Response:
        return web.Response(text="<html>")

    async def scenario() -> list[str]:
        said = []
        for handler in (silent, cut, page):
            app = web.Application()
            app.router.add_route("*", "/{path:.*}", handler)
            runner = web.AppRunner(app, shutdown_timeout=0.1)
            await runner.setup()
            await web.TCPSite(runner, "127.0.0.1", 0).start()
            said.append(await asked(f"127.0.0.1:{runner.addresses[0][1]}", 0.5 if handler is silent else 60.0))
            await runner.cleanup()
        return [*said, await asked("127.0.0.1:1"), await asked("no-such-name.invalid:80")]

    async def asked(address: str, timeout_s: float = 60.0) -> str:
        gateways = Gateways(timeout_s=timeout_s)
        try:
            found: Any = await gateways._report(address, 0.0, 120.0)
        finally:
            await gateways.close()
        return str(found).removeprefix(f"gateway {address}: ")

    silence, end, html, refused, unknown = asyncio.run(scenario())
    assert (silence, end, html) == ("no answer in time", "it closed the connection", "its answer is not JSON")
    assert (refused, unknown) == ("connection refused", "its name is not known")
