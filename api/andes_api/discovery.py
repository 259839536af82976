"""The addresses behind a name: as this machine looks names up, or asked of one DNS server."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable
from urllib.parse import urlsplit

import dns.asyncresolver
import dns.exception
import dns.resolver

__all__ = ["Resolver", "make_resolver"]

Resolver = Callable[[str], Awaitable[set[str] | None]]
TIMEOUT_S = 5.0
"""Seconds; the resolver's own default (resolv.conf)."""
_NOTHING = (socket.EAI_NONAME, getattr(socket, "EAI_NODATA", socket.EAI_NONAME))


def make_resolver(server: str | None) -> Resolver:
    """A function from a name to its addresses: empty where the name does not exist or has no address, None where no
    server answered. ``server``: ``IP:PORT`` of the DNS server to ask; None: the system's resolver."""
    if server is None:
        return _resolve_by_system
    where = urlsplit(f"dns://{server}")
    resolver = dns.asyncresolver.Resolver(configure=False)
    resolver.nameservers, resolver.port, resolver.lifetime = [str(where.hostname)], where.port or 53, TIMEOUT_S

    async def resolve_by_server(name: str) -> set[str] | None:
        try:
            return set((await resolver.resolve_name(name)).addresses())
        except (dns.resolver.NXDOMAIN, dns.resolver.NoAnswer):
            return set()
        except (dns.exception.DNSException, OSError):
            return None

    return resolve_by_server


async def _resolve_by_system(name: str) -> set[str] | None:
    try:
        answers = await asyncio.get_running_loop().getaddrinfo(name, None, type=socket.SOCK_STREAM)
    except UnicodeError:  # not a name
        return set()
    except socket.gaierror as error:
        return set() if error.errno in _NOTHING else None
    return {str(answer[4][0]) for answer in answers}
