"""Addresses inside requests: the engine fetches images by URL, so where it may be sent is decided here."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Iterator, Mapping
from typing import Any
from urllib.parse import urlsplit

from andes_api.errors import ApiError

__all__ = ["check_media"]

_KINDS = ("image_url", "video_url", "audio_url", "input_audio", "file_url", "image", "video", "audio", "source")
_CALLS = ("tool_use", "server_tool_use", "function_call")
"""Parts whose fields are the model's own words."""
_INSIDE = (".local", ".internal", ".localhost", ".svc", ".cluster.local")


def check_media(body: Mapping[str, Any], allowed: tuple[str, ...], fields: Iterable[str] = ("messages",)) -> None:
    """Refuse, with a 400, media in ``fields`` that would make the engine read a file or call an address inside.

    ``allowed``: the hosts media may come from; when empty, any host that is neither a private address nor named like one
    (a public name that resolves to a private address is the network's to stop). ``data:`` URLs are always fine.
    """
    for url in (url for name in fields for url in _urls(body.get(name))):
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


def _urls(prompt: Any) -> Iterator[str]:
    """Where the media are to come from, of all dialects: ``{"image_url": {"url": URL}}``, ``{"image_url": URL}``,
    ``{"image": URL}``, ``{"source": {"type": "url", "url": URL}}``."""
    left = [prompt]
    while left:
        part = left.pop()
        if isinstance(part, list):
            left += part
        elif isinstance(part, dict) and part.get("type") not in _CALLS:
            for name, found in part.items():
                if name in _KINDS:
                    url = found.get("url") if isinstance(found, dict) else found
                    if isinstance(url, str) and not (name == "source" and url is found):  # else where a text is from
                        yield url
                elif isinstance(found, dict | list):
                    left.append(found)


def _inside(host: str) -> bool:
    host = host.rstrip(".").lower()
    try:
        return not ipaddress.ip_address(host).is_global
    except ValueError:
        # No dot: a name of the local network, or an address in a form that only resolvers understand (0x7f000001).
        return "." not in host or host.endswith(_INSIDE) or host.split(".")[-1].isdigit() or "0x" in host[:2]


def _refused(url: str, why: str) -> ApiError:
    return ApiError(400, f"{why}; got {url[:100]!r}", reason="media", retry=False)
