"""QoE-aware, token-granularity scheduling of text streams inside SGLang.

The core (``qoe``, ``state``, ``latency``, ``policy``) is pure: it reads no clock, no random source, no
environment and no file. Only ``adapter`` imports SGLang and torch.
"""

__version__ = "0.1.0"
