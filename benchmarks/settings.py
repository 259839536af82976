"""The simulated settings (engines with lengths of prompts and answers) and arms of :mod:`benchmarks.simulated`."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from andes_sglang.arms import Arm
from andes_sglang.sim import profile as profiles
from benchmarks.lengths import CHAT, LONG_ANSWERS, MULTI_ROUND, SHORT_CHAT

__all__ = [
    "ARMS",
    "FINAL",
    "HEADLINE",
    "HOST",
    "MIXED",
    "ORACLES",
    "OURS",
    "RIVALS",
    "SETTINGS",
    "STOCK",
    "Setting",
    "arms_for",
    "best_arm",
]

MIXED, HOST = "--enable-mixed-chunk", "--enable-hierarchical-cache"


class Setting(NamedTuple):
    """Engine and requests. trace: of a file in ``--traces`` instead of by quantiles. loads: bursts of the table
    ``intensity``, in C; x: of the others. without: an arm that takes minutes a run. max_prompt: recorded prompts are
    clamped to it, in tokens."""

    profile: str
    prompt: str = ""
    output: str = ""
    burst_s: float = 120.0
    trace: str = ""
    loads: tuple[float, ...] = (1.0, 1.5, 2.0)
    x: float = 1.5
    without: str = ""
    max_prompt: int = 100_000

    @property
    def key(self) -> str:
        """All that a run depends on beside its case."""
        return repr((self.profile, self.prompt, self.output, self.trace, self.max_prompt))


SETTINGS = {
    "h100-chat": Setting("h100-llama-3.1-8b", *CHAT),
    "h100-chat-30s": Setting("h100-llama-3.1-8b", *CHAT, 30.0),
    "h100-long": Setting("h100-llama-3.1-8b", *LONG_ANSWERS, loads=(1.5, 3.0, 5.0), x=3.0, without="lqsf"),
    "a100-phi": Setting("a100-40gb-phi-3-mini", *CHAT, 420.0, loads=(1.0, 1.25, 1.5), x=1.25),
    "a100-13b": Setting("a100-40gb-llama-2-13b", *SHORT_CHAT, 420.0, loads=(1.0, 1.25, 1.5), x=1.25),
    "32b-chat": Setting("h100-qwen2.5-32b", *CHAT),
    "70b-chat": Setting("h100x4-llama-3.1-70b", *CHAT, 420.0, loads=(1.0, 1.25, 1.5), x=1.25),
    "l4-chat": Setting("l4-llama-3.1-8b", *CHAT, 420.0, loads=(1.0, 1.25, 1.5), x=1.25),
    "paper": Setting("a100-40gb-phi-3-mini", *MULTI_ROUND, 420.0),
    "cpu": Setting("cpu-tiny-llama", "200-400", "150-250"),
    "h100-mooncake": Setting("h100-llama-3.1-8b", burst_s=420.0, trace="mooncake_conv", loads=(1.0, 1.25, 1.5), x=1.25),
    "h100-reasoning": Setting("h100-llama-3.1-8b", trace="servegen_r1_surge_rt"),
}


def _thinking(profile: str, burst_s: float, loads: tuple[float, ...]) -> Setting:
    """Lengths of a recorded reasoning service; the pool of a 32B on one H100 holds no longer prompts."""
    return Setting(profile, burst_s=burst_s, trace="servegen_r1_surge_rt", loads=loads, x=loads[-1], max_prompt=8_000)


SETTINGS |= {
    "h100-thoughts": _thinking("h100-llama-3.1-8b", 120.0, (1.0, 1.2, 1.5)),
    "l4-thoughts": _thinking("l4-llama-3.1-8b", 120.0, (0.8, 1.0, 1.2)),
    "32b-thoughts": _thinking("h100-qwen2.5-32b", 120.0, (0.8, 1.0, 1.5)),
}
STOCK = {"stock": Arm("stock"), "stock, mixed": Arm("stock", (MIXED,))}
OURS = {
    "andes": Arm("andes"),
    "andes, mixed": Arm("andes", (MIXED,)),
    "andes, mixed, host": Arm("andes", (MIXED, HOST)),
}
FINAL = {"andes, fairness -1": Arm("andes", (MIXED, HOST, "--policy-option", "fairness=-1"))}
"""Ranked by final QoE."""
RIVALS = {
    "tokenflow": Arm("tokenflow", (MIXED, HOST)),
    "lqsf": Arm("lqsf", (MIXED, HOST)),
    "andes-v2": Arm("andes-v2", (MIXED, HOST)),
    "andes-v1": Arm("andes-v1", (MIXED, HOST)),
    "lifo": Arm("lifo", (MIXED, HOST)),
}
ORACLES = {
    "srpt, lengths known": Arm("srpt", (MIXED, HOST)),
    "clairvoyant": Arm("clairvoyant", (MIXED, HOST)),
    "clairvoyant, prefill first": Arm("clairvoyant", (HOST,)),
}
ARMS = STOCK | OURS | FINAL | RIVALS | ORACLES
HEADLINE = ["andes, mixed", "andes, mixed, host", "clairvoyant"]


def arms_for(name: str, arms: Iterable[str]) -> list[str]:
    """Without those that differ by host memory only, where the engine has none, and that which the setting is without."""
    host = profiles.load(SETTINGS[name].profile).engine.host_capacity_tokens
    return [arm for arm in arms if arm != SETTINGS[name].without and (host or not arm.endswith(", host"))]


def best_arm(name: str) -> str:
    """The one configuration of ours that the bars are measured with: mixed chunks, and host memory where there is any."""
    return arms_for(name, ["andes, mixed", "andes, mixed, host"])[-1]
