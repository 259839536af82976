"""What is measured on a GPU, and the same at a size that a CPU rehearses in minutes."""

from __future__ import annotations

from dataclasses import dataclass

from andes_sglang.arms import Arm
from andes_sglang.workload import Workload, draw_shape

__all__ = ["ARMS", "GPU", "LOAD", "REHEARSAL", "Setting", "Shape", "surge"]

LOAD, INTENSITY, WIDTH = 0.96, 2.0, 0.35
"""Average load as a share of what stock sustains; the burst's peak over the average, and its share of the time."""
TDS, TTFT_S = 4.5, 1.0
"""Readers: tokens/s, and seconds to the first token."""
_MIXED = "--enable-mixed-chunk"
ARMS = {
    "stock mixed": Arm("stock", (_MIXED,)),
    "andes mixed": Arm("andes", (_MIXED,)),
    "andes mixed + offload": Arm("andes", (_MIXED, "--preemption-mode", "offload")),
}


@dataclass(frozen=True, slots=True)
class Shape:
    """Of a Llama with grouped queries. value_bytes: of one number of the KV cache."""

    vocabulary: int
    hidden: int
    intermediate: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    value_bytes: int
    dtype: str

    @property
    def kv_token_bytes(self) -> int:
        return 2 * self.layers * self.kv_heads * self.head_dim * self.value_bytes


@dataclass(frozen=True, slots=True)
class Setting:
    """flags: of every engine. small, large: models of the smoke and of everything else. pool_tokens, chunk_tokens,
    max_running: of the large one's engines. host_gib: for copies of KV. resume_tokens: contexts that return. link_bytes: of a
    copy that measures the link to host memory."""

    hardware: str
    flags: tuple[str, ...]
    small: Shape
    large: Shape
    pool_tokens: int
    chunk_tokens: int
    max_running: int
    host_gib: float
    prompt: str
    output: str
    surge_s: float
    flood_requests: int
    profile_s: float
    resume_tokens: tuple[int, ...]
    link_bytes: int
    start_timeout_s: float

    @property
    def sizes(self) -> tuple[str, ...]:
        """As flags of an engine; of a simulated one, too."""
        return (
            "--max-total-tokens", str(self.pool_tokens), "--max-running-requests", str(self.max_running),
            "--chunked-prefill-size", str(self.chunk_tokens),
        )  # fmt: skip


_TINY_GPU = Shape(1024, 512, 1024, 4, 4, 2, 128, 2, "bfloat16")
_LLAMA_8B = Shape(128_256, 4096, 14_336, 32, 32, 8, 128, 2, "bfloat16")
_TINY_CPU = Shape(1024, 64, 128, 2, 2, 2, 32, 4, "float32")
_LESS_TINY_CPU = Shape(2048, 64, 128, 4, 2, 2, 32, 4, "float32")

GPU = Setting(
    hardware="one GPU",
    # Three engines share the GPU: each takes what its pool needs, not a share of what is free. The kernels are those that
    # need no compiler on the machine; Hopper's default would be FA3.
    flags=(
        "--attention-backend", "triton", "--sampling-backend", "pytorch", "--grammar-backend", "none",
        "--mm-feature-transport", "cpu", "--cuda-graph-backend-prefill", "disabled", "--cuda-graph-max-bs-decode", "128",
        "--mem-fraction-static", "0.9", "--context-length", "40000", "--skip-server-warmup", "--sleep-on-idle",
    ),
    small=_TINY_GPU, large=_LLAMA_8B,
    pool_tokens=36_000, chunk_tokens=2048, max_running=128, host_gib=16.0,
    prompt="500-2500", output="150-250", surge_s=30.0, flood_requests=90, profile_s=30.0,
    resume_tokens=(1024, 8192, 32_768), link_bytes=1 << 30, start_timeout_s=150.0,
)  # fmt: skip

REHEARSAL = Setting(
    hardware="a CPU, in place of a GPU",
    flags=("--sleep-on-idle", "--grammar-backend", "none"),
    small=_TINY_CPU, large=_LESS_TINY_CPU,
    pool_tokens=4096, chunk_tokens=256, max_running=32, host_gib=0.1,
    prompt="100-300", output="40-60", surge_s=10.0, flood_requests=40, profile_s=10.0,
    resume_tokens=(128, 512, 2048), link_bytes=1 << 24, start_timeout_s=400.0,
)  # fmt: skip


def surge(setting: Setting, rate_rps: float, seed: int) -> Workload:
    drawn = draw_shape("burst", rate_rps=rate_rps, duration_s=setting.surge_s, prompt=setting.prompt, output=setting.output,
                       seed=seed, intensity=INTENSITY, width=WIDTH)  # fmt: skip
    return drawn.with_readers(seed, ttft_s=TTFT_S, tds=TDS, population="reading")
