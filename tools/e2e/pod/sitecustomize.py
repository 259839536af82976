"""The cluster's DNS for a pod's processes: ``NAME.NAMESPACE.svc``, and a ``NAME`` of $NODE_NAMESPACE, are looked up in the
file $NODE_HOSTS, as in /etc/hosts."""

import contextlib
import os
import socket
from pathlib import Path
from typing import Any

_system = socket.getaddrinfo


def _addresses(host: Any) -> list[str] | None:
    """Of a Service's ready pods; None where ``host`` is none of a Service."""
    lines = [line.split() for line in Path(os.environ["NODE_HOSTS"]).read_text().splitlines()]
    wanted = (host, f"{host}.{os.environ['NODE_NAMESPACE']}.svc")
    found = [address for address, name in lines if name in wanted]
    return found or ([] if str(host).endswith(".svc") else None)


def getaddrinfo(host: Any, port: Any, family: int = 0, type: int = 0, proto: int = 0, flags: int = 0) -> Any:  # noqa: A002
    found = _addresses(host)
    if found is None:
        return _system(host, port, family, type, proto, flags)
    if not found:
        raise socket.gaierror(socket.EAI_NONAME, f"{host}: no pod is ready")
    return [
        (socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP, "", (address, int(port or 0))) for address in found
    ]


socket.getaddrinfo = getaddrinfo  # asyncio's own loop asks here too

with contextlib.suppress(ImportError):
    import uvloop

    _loop = uvloop.Loop.getaddrinfo

    async def _looked_up(self: Any, host: Any, port: Any, **more: Any) -> Any:
        return await _loop(self, host, port, **more) if _addresses(host) is None else getaddrinfo(host, port)

    uvloop.Loop.getaddrinfo = _looked_up  # type: ignore[method-assign]
