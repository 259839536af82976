"""Addresses inside requests: the engine fetches images by URL, so where it may be sent is decided here."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator, Mapping
from typing import Any
from urllib.parse import urlsplit

from andes_api.errors import ApiError

__all__ = ["check_media"]

_KINDS = ("image_url", "video_url", "audio_url", "input_audio")
_INSIDE = (".local", ".internal", ".localhost", ".svc", ".cluster.local")


def check_media(body: Mapping[str, Any], allowed: tuple[str, ...]) -> None:
    """Refuse, with a 400, media that would make the engine read a file or call an address inside.

    ``allowed``: the hosts media may come from; when empty, any host that is neither a private address nor named like one
    (a public name that resolves to a private address is the network's to stop). ``data:`` URLs are always fine.
    """
    for url in _urls(body.get("messages")):
        if url.startswith("data:"):
            continue
        try:
            parts = urlsplit(url)
            host = parts.hostname or ""
        except ValueError:
            parts, host = urlsplit(""), ""
        if parts.scheme not in ("http", "https") or not host:
            raise _refused(url, "media must be a data: or http(s) URL")
        if allowed:
            if host not in allowed:
                raise _refused(url, "media may not come from this host")
        elif _inside(host):
            raise _refused(url, "media may not come from an address inside")


def _urls(messages: Any) -> Iterator[str]:
    for message in messages if isinstance(messages, list) else ():
        content = message.get("content") if isinstance(message, dict) else None
        for part in content if isinstance(content, list) else ():
            for kind in _KINDS:
                found = part.get(kind) if isinstance(part, dict) else None
                url = found.get("url") if isinstance(found, dict) else found
                if isinstance(url, str):
                    yield url


def _inside(host: str) -> bool:
    host = host.rstrip(".").lower()
    try:
        return not ipaddress.ip_address(host).is_global
    except ValueError:
        # No dot: a name of the local network, or an address in a form that only resolvers understand (0x7f000001).
        return "." not in host or host.endswith(_INSIDE) or host.split(".")[-1].isdigit() or "0x" in host[:2]


def _refused(url: str, why: str) -> ApiError:
    return ApiError(400, f"{why}; got {url[:100]!r}", param="messages", reason="media", retry=False)
