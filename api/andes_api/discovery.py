"""The addresses behind a name: as this machine looks names up, or asked of one DNS server."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable
from urllib.parse import urlsplit

import dns.asyncresolver
import dns.exception
import dns.resolver

__all__ = ["LookUp", "look_up"]

LookUp = Callable[[str], Awaitable[set[str] | None]]
PATIENCE_S = 5.0
_NOTHING = (socket.EAI_NONAME, getattr(socket, "EAI_NODATA", socket.EAI_NONAME))


def look_up(server: str | None) -> LookUp:
    """A function from a name to its addresses: none where there is no such name or nothing behind it, None where nobody
    could say. ``server``: ``IP:PORT`` of the DNS server to ask; None: whatever the system asks."""
    if server is None:
        return _of_the_system
    where = urlsplit(f"dns://{server}")
    resolver = dns.asyncresolver.Resolver(configure=False)
    resolver.nameservers, resolver.port, resolver.lifetime = [str(where.hostname)], where.port or 53, PATIENCE_S

    async def of_the_server(name: str) -> set[str] | None:
        try:
            return set((await resolver.resolve_name(name)).addresses())
        except (dns.resolver.NXDOMAIN, dns.resolver.NoAnswer):
            return set()
        except (dns.exception.DNSException, OSError):
            return None

    return of_the_server


async def _of_the_system(name: str) -> set[str] | None:
    try:
        answers = await asyncio.get_running_loop().getaddrinfo(name, None, type=socket.SOCK_STREAM)
    except UnicodeError:  # no name at all
        return set()
    except socket.gaierror as error:
        return set() if error.errno in _NOTHING else None
    return {str(answer[4][0]) for answer in answers}
