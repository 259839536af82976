"""What a request says its reader expects: see :mod:`andes_sglang.expectations`."""

from andes_sglang.expectations import KEY, parse

__all__ = ["KEY", "parse"]
