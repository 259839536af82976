"""What readers have received (:mod:`andes_sglang.reception`) on its way from the HTTP process to the scheduler, in SGLang's
message of settings: numbers by name, which reach every rank in the same order as requests do."""

from __future__ import annotations

from collections.abc import Mapping

__all__ = ["read_readers", "write_readers"]

_PREFIX = "andes.reader."
_KEEPS_UP = -1


def write_readers(readers: Mapping[str, int | None]) -> dict[str, int]:
    """As settings. readers: tokens by request id, None where a reader keeps up."""
    return {_PREFIX + rid: _KEEPS_UP if tokens is None else tokens for rid, tokens in readers.items()}


def read_readers(settings: Mapping[str, float]) -> dict[str, int | None] | None:
    """What :func:`write_readers` has written; None where these are settings of SGLang's own."""
    if not settings or not all(name.startswith(_PREFIX) for name in settings):
        return None
    return {name[len(_PREFIX) :]: None if said == _KEEPS_UP else int(said) for name, said in settings.items()}
