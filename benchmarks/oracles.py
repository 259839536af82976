"""Policies that are told the length of every answer: what scheduling could gain if lengths were known."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from andes_sglang.policy import SchedulingPolicy, make
from andes_sglang.request import RequestSpec

__all__ = ["make_oracle"]


def make_oracle(name: str, requests: Sequence[RequestSpec], **options: Any) -> SchedulingPolicy:
    """A policy of ``CLAIRVOYANT`` for these requests, which a simulated replica calls r0, r1, ... in order of arrival."""
    return make(name, output_tokens={f"r{k}": r.output_tokens for k, r in enumerate(requests)}, **options)
