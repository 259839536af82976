"""Lengths of prompts and answers in tokens, by quantiles as ``andes simulate --prompt --output`` reads them."""

from __future__ import annotations

__all__ = ["CHAT", "LONG_ANSWERS", "MULTI_ROUND", "SHORT_CHAT", "Lengths"]

Lengths = tuple[str, str]
"""Of prompts and of answers."""

CHAT: Lengths = ("p50=634,p90=1510,p99=3095", "p50=200,p90=399,p99=610")
LONG_ANSWERS: Lengths = ("p50=208,p90=1200,p99=4000", "p50=764,p90=3416,p99=8000")
MULTI_ROUND: Lengths = ("p50=700,p90=8000,p99=20000", "p50=380,p90=600,p99=900")
SHORT_CHAT: Lengths = ("p50=250,p90=600,p99=1500", "p50=200,p90=399,p99=610")
