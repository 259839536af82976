"""How well a gateway tells the wait for a first token: ``python benchmarks/waits.py``. Simulated, one replica, cold.

Poisson arrivals at multiples of C, what stock SGLang sustains, on one simulated engine seen through a gateway's eyes
(:mod:`andes_sglang.sim.gateway_view`, :mod:`andes_sglang.waits`): what is forecast when a stream is sent, and what comes of
it. The first 20 streams are not counted.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from andes_sglang.arms import Arm
from andes_sglang.request import RequestRecord
from andes_sglang.sim import profile as profiles
from andes_sglang.sim.configure import configure
from andes_sglang.sim.gateway_view import GatewayView, incoming_stream
from andes_sglang.sim.plan import sustained_tokens_per_s
from andes_sglang.sim.replica import Replica
from andes_sglang.stream_forecast import StreamForecast, forecast_stream
from andes_sglang.workload import Workload, draw_shape, mean_length
from benchmarks.markdown import header, row

HORIZON_S, SPAN_S, MAX_REQUESTS, UNCOUNTED = 60.0, 240.0, 1000, 20
MIXED = ("--enable-mixed-chunk",)


class Setting(NamedTuple):
    """max_running: instead of the profile's."""

    profile: str
    prompt: str
    output: str
    max_running: int | None = None


CHAT = ("p25=400,p50=1100,p75=2200,p90=4000", "p50=350,p90=800,p99=1500")
SETTINGS = {
    "h100-chat": Setting("h100-llama-3.1-8b", *CHAT),
    "h100-chat, 16 slots": Setting("h100-llama-3.1-8b", *CHAT, 16),
    "a100-13b": Setting("a100-40gb-llama-2-13b", "p50=400,p90=1200", "p50=300,p90=700,p99=1200"),
    "cpu": Setting("cpu-tiny-llama", "200-400", "150-250"),
}


def played(
    setting: Setting, policy: str, load: float, seed: int
) -> tuple[list[StreamForecast], list[float], list[RequestRecord]]:
    """Of each request: the forecast, seconds to its first token by the engine's costs alone, and what came of it."""
    engine = profiles.load(setting.profile).engine
    engine = replace(engine, max_running=setting.max_running or engine.max_running)
    stock, _ = configure(engine, Arm("stock", MIXED))
    rps = load * sustained_tokens_per_s(stock, setting.prompt, setting.output, seed=1) / mean_length(setting.output)
    engine, make = configure(engine, Arm(policy, MIXED))
    requests = workload(setting, rps, seed).requests
    records: dict[int, RequestRecord] = {}
    replica = Replica(engine, make(), sink=lambda r: records.update({r.index: r}), decision_interval_s=0.1)
    view, forecasts, by_cost_s = GatewayView(replica), [], []
    for number, spec in enumerate(requests):
        replica.advance(spec.arrival_s)
        seen, new = view.at(spec.arrival_s, spec), incoming_stream(spec, number)
        forecasts.append(forecast_stream(new, seen, spec.arrival_s, HORIZON_S))
        by_cost_s.append(forecasts[-1].ttft_s)
        view.sent(replica.submit(spec))
    replica.advance()
    return forecasts, by_cost_s, [records[k] for k in range(len(requests))]


def workload(setting: Setting, rps: float, seed: int) -> Workload:
    span_s = min(SPAN_S, MAX_REQUESTS / rps)
    drawn = draw_shape(
        "poisson", rate_rps=rps, duration_s=span_s, prompt=setting.prompt, output=setting.output, seed=seed
    )
    return drawn.with_readers(seed, ttft_s=1.0, tds=None, population="reading")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("settings", nargs="*", default=[*SETTINGS], help=f"of {', '.join(SETTINGS)}; default: all")
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    for name in args.settings:
        if name not in SETTINGS:
            parser.error(f"setting {name!r}: not known; choose of {', '.join(SETTINGS)}")
    for text in header("setting", "policy", "load, x C", "first token p50, s", "p90, s", "median error", "by costs alone",
                       "within 90 % bounds", "above"):  # fmt: skip
        print(text)
    for name in args.settings:
        for policy in ("stock", "andes"):
            for load in (1.0, 2.0, 4.0):
                print(row(name, policy, f"{load:g}", *figures(SETTINGS[name], policy, load, args.seed)), flush=True)


def figures(setting: Setting, policy: str, load: float, seed: int) -> list[str]:
    forecasts, by_cost_s, records = played(setting, policy, load, seed)
    counted = slice(UNCOUNTED, None)
    waited = np.array([r.ttft_s for r in records])[counted]
    told, low, high = np.array([f.wait[:3] for f in forecasts if f.wait is not None])[counted].T
    blind = np.array(by_cost_s)[counted]
    within = (waited >= low) & (waited <= high)
    return [
        f"{np.median(waited):.2f}", f"{np.percentile(waited, 90):.1f}", f"{np.median(np.abs(told / waited - 1)):.2f}",
        f"{np.median(np.abs(blind / waited - 1)):.2f}", f"{within.mean():.0%}", f"{(waited > high).mean():.0%}",
    ]  # fmt: skip


if __name__ == "__main__":
    main()
