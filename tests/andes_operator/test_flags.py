"""The what-if plays the engine that runs: every flag that changes the simulator changes what is asked.

The way of a flag: ``andes serve --engine sim`` takes it and tells it at ``/server_info``, a gateway passes it on in
``/fleet/replicas``, the operator reads it there and simulates an engine that has it.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from typing import Any

import pytest
from cases import SPEC

from andes_api.settings import GatewaySettings
from andes_api.upstream import Upstream
from andes_operator.demand import expected_demand
from andes_operator.gateway_report import GatewayReport
from andes_operator.observe import Observation, PodCounts, merge
from andes_operator.prediction import Inquiry, predict, simulated_engine, simulated_policy
from andes_sglang.cli import main
from andes_sglang.engine_flags import EngineFlags
from andes_sglang.sim import overrides, profile
from andes_sglang.sim.engine import EngineModel, Overlap
from andes_sglang.sim.server import run as server

NOW_S = 1_000_000.0
PROFILE = "l4-llama-3.1-8b"
FLAGS: dict[str, list[str]] = {
    "--max-running-requests": ["--max-running-requests", "7"],
    "--max-total-tokens": ["--max-total-tokens", "30000"],
    "--chunked-prefill-size": ["--chunked-prefill-size", "512"],
    "--enable-mixed-chunk": ["--enable-mixed-chunk"],
    "--disable-overlap-schedule": ["--disable-overlap-schedule"],
    "--enable-hierarchical-cache": ["--enable-hierarchical-cache"],
    "--preemption-mode": ["--preemption-mode", "offload"],
}


def served(monkeypatch: pytest.MonkeyPatch, *flags: str) -> tuple[EngineModel, dict[str, Any]]:
    """The engine that ``andes serve --engine sim`` runs with these flags, and what it says at ``/server_info``."""
    kept: list[tuple[EngineModel, dict[str, Any]]] = []

    def keep(bound: Any, info: Any, engine: EngineModel, *_: Any, **__: Any) -> None:
        bound.close()
        kept.append((engine, {**info.arguments, "internal_states": [{"andes": info.policy}]}))

    monkeypatch.setattr(server, "run", keep)
    assert main(["serve", "--engine", "sim", "--profile", PROFILE, "--port", "0", *flags]) == 0
    return kept[0]


def observed(info: dict[str, Any]) -> Observation:
    """What an operator sees of such an engine, by way of a gateway."""
    upstream = Upstream("http://10.0.0.1:30000", GatewaySettings(upstreams=["http://10.0.0.1:30000"]))
    upstream.healthy, upstream.flags = True, EngineFlags.from_server_info(info)
    told = info["internal_states"][0]["andes"]
    upstream.policy = {"name": told["policy"], "options": told["policy_options"]}
    replicas = json.loads(json.dumps({"replicas": [upstream.describe(0.0)]}))
    sketches = {"now_s": NOW_S, "classes": {}, "running": {}}
    report = GatewayReport.parse(
        "g", {"now_s": NOW_S, "records": []}, sketches, replicas, since_s=NOW_S - 600, received_s=NOW_S
    )
    return merge([report], PodCounts(1, 1, 1), NOW_S, 120.0)


def test_each_flag_of_the_simulator_has_a_case() -> None:
    parser = argparse.ArgumentParser(add_help=False)
    overrides.add_arguments(parser)
    assert {action.option_strings[0] for action in parser._actions} == FLAGS.keys()


@pytest.mark.parametrize("flag", FLAGS)
def test_the_engine_that_runs_is_the_one_that_is_simulated(flag: str, monkeypatch: pytest.MonkeyPatch) -> None:
    bare, _ = simulated_engine(profile.load(PROFILE), observed(served(monkeypatch)[1]).flags)
    runs, info = served(monkeypatch, *FLAGS[flag])
    played, unplayed = simulated_engine(profile.load(PROFILE), observed(info).flags)
    assert (played, unplayed) == (runs, [])
    assert played != bare, "the flag changes nothing"


def test_without_flags_too(monkeypatch: pytest.MonkeyPatch) -> None:
    runs, info = served(monkeypatch)
    assert simulated_engine(profile.load(PROFILE), observed(info).flags) == (runs, [])
    assert runs.host_capacity_tokens == 0, "the packaged profile has room in host memory, this engine uses none"


def test_policy_and_options_are_what_the_engines_report(monkeypatch: pytest.MonkeyPatch) -> None:
    _, info = served(monkeypatch, "--policy", "andes", "--policy-option", "stall_bound_s=7")
    name, options = simulated_policy(replace(SPEC, policy=""), observed(info))
    assert (name, dict(options)["stall_bound_s"]) == ("andes", 7)
    _, info = served(monkeypatch, "--policy", "stock")
    assert simulated_policy(replace(SPEC, policy=""), observed(info)) == ("stock", ())


@pytest.mark.parametrize(
    "field", [{"weight": 4.0}, {"yield": True}, {"expected_tokens": 99}, {"tds": 3.0, "ttft_target_s": 2.0}]
)
def test_what_a_request_says_of_its_reader_is_simulated(field: dict[str, Any]) -> None:
    def asked(**more: Any) -> Any:
        records = [
            {"arrival_s": NOW_S - 60 + i, "class": "reading", "prompt_tokens": 100, "output_tokens": 50, "outcome": "done", **more}
            for i in range(30)
        ]  # fmt: skip
        sketches = {"now_s": NOW_S, "classes": {}, "running": {}}
        report = GatewayReport.parse(
            "g", {"now_s": NOW_S, "records": records}, sketches, {"replicas": []}, since_s=0.0, received_s=NOW_S
        )
        return expected_demand(SPEC, merge([report], PodCounts(1, 1, 1), NOW_S, 120.0), 0.5, {}).requests[0]

    assert asked(**field) != asked()


def test_tensor_parallel_ranks_are_those_of_the_engines() -> None:
    whole, measured = profile.load("h100x4-llama-3.1-70b"), replace(profile.load(PROFILE), roofline=None)
    eight, unplayed = simulated_engine(whole, EngineFlags(tp_size=8))
    assert (eight.devices, unplayed) == (8, [])
    assert eight.kv_capacity_tokens > 2 * whole.engine.kv_capacity_tokens
    assert eight.costs.decode_context_s < whole.engine.costs.decode_context_s
    same, unplayed = simulated_engine(measured, EngineFlags(tp_size=2))
    assert (same, unplayed) == (measured.engine, ["2 devices: the profile is of 1"])
    assert simulated_engine(whole, EngineFlags(tp_size=1))[1] == ["1 devices: the profile is of 4"], (
        "it does not fit on one"
    )


def test_data_parallel_ranks_are_as_many_engines() -> None:
    """Each has the pool and the batch that the engine reports. Twice the work takes as long, and as much of it fits."""
    bare = profile.load(PROFILE)
    flags = EngineFlags(max_running_requests=48, max_total_tokens=20_000, dp_size=2)
    one, two = (simulated_engine(bare, replace(flags, dp_size=ranks))[0] for ranks in (None, 2))
    assert (two.max_running, two.kv_capacity_tokens, two.devices) == (96, 40_000, 2 * one.devices)
    assert two.costs.decode_s(64, 30_000) == pytest.approx(one.costs.decode_s(32, 15_000))
    assert two.costs.prefill_s(2048, 512, 9e6, 2) == pytest.approx(one.costs.prefill_s(1024, 256, 4.5e6, 1))
    assert simulated_engine(bare, flags)[1] == ["how unevenly its 2 data-parallel ranks share requests"]
    assert simulated_engine(bare, replace(flags, dp_size=1)) == (one, [])


def test_what_cannot_be_simulated_is_said() -> None:
    bare = profile.load(PROFILE)
    without = replace(bare, engine=replace(bare.engine, host_capacity_tokens=0, host_tokens_per_s=0.0))
    engine, unplayed = simulated_engine(without, EngineFlags(preemption_mode="offload", host_tokens=5000))
    assert (engine.host_capacity_tokens, engine.write_through) == (0, False)
    assert unplayed == ["its host memory: the profile has no host_tokens_per_s"]
    drafts = EngineFlags.from_server_info({"speculative_algorithm": "NGRAM"})
    assert simulated_engine(bare, drafts)[1] == ["its speculative decoding (NGRAM)"]
    assert EngineFlags.from_dict({"speculative_algorithm": 7}) == EngineFlags()


def test_an_engine_that_says_nothing_is_the_profiles() -> None:
    bare = profile.load(PROFILE)
    assert simulated_engine(bare, None) == (bare.engine, [])
    assert simulated_engine(bare, EngineFlags()) == (bare.engine, [])


def test_flags_of_sglangs_own() -> None:
    """As SGLang 0.5 answers, without the plugin."""
    info = {
        "max_running_requests": None, "chunked_prefill_size": -1, "enable_mixed_chunk": True, "tp_size": 4,
        "disable_overlap_schedule": False, "enable_hierarchical_cache": True, "hicache_ratio": 2.0, "hicache_size": 0,
        "max_total_num_tokens": 1000, "internal_states": [{"effective_max_running_requests_per_dp": 48}],
    }  # fmt: skip
    assert EngineFlags.from_server_info(info) == EngineFlags(48, 1000, -1, True, False, True, "release", 2000, 4)
    engine, _ = overrides.play(
        replace(profile.load(PROFILE).engine, overlap=Overlap.NONE), EngineFlags.from_server_info(info)
    )
    assert (engine.chunk_tokens, engine.overlap, engine.host_capacity_tokens) == (1000, Overlap.ASYNC, 2000)
    given_in_gb = EngineFlags.from_server_info({**info, "hicache_size": 30})
    assert given_in_gb.host_tokens is None, "bytes of a token are not told: the profile's room"


@pytest.mark.parametrize(
    "said", [{"tp_size": "4"}, {"tp_size": 0}, {"tp_size": True}, {"enable_mixed_chunk": 1}, {"preemption_mode": "x"}]
)
def test_a_value_that_is_none_is_not_known(said: dict[str, Any]) -> None:
    assert EngineFlags.from_dict(said) == EngineFlags()
    assert EngineFlags.from_dict(EngineFlags(1, tp_size=2).to_dict()) == EngineFlags(1, tp_size=2)


def test_the_flags_change_the_answer() -> None:
    """A batch limit of eight streams holds a fleet of larger ones no more."""

    def fewest(flags: EngineFlags | None) -> int | None:
        times = [NOW_S - 120 + 0.5 * i for i in range(240)]
        records = [
            {"arrival_s": at, "class": "reading", "prompt_tokens": 200, "output_tokens": 200, "outcome": "done"}
            for at in times
        ]
        sketches = {"now_s": NOW_S, "classes": {}, "running": {}}
        report = GatewayReport.parse(
            "g", {"now_s": NOW_S, "records": records}, sketches, {"replicas": []}, since_s=NOW_S - 120, received_s=NOW_S
        )
        seen = replace(merge([report], PodCounts(2, 2, 2), NOW_S, 120.0), flags=flags)
        return predict(Inquiry(replace(SPEC, profile=PROFILE, policy="stock"), seen, NOW_S - 120, 75.0))[1].fewest

    few, many = fewest(EngineFlags(max_running_requests=4)), fewest(None)
    assert few is not None
    assert many is not None
    assert few > many


def test_ranks_of_data_parallel_attention_are_one_engine() -> None:
    """They share the weights: what each has is added up."""
    info = {"tp_size": 8, "dp_size": 4, "enable_dp_attention": True, "max_total_num_tokens": 1000}
    info["internal_states"] = [{"effective_max_running_requests_per_dp": 16}]
    assert EngineFlags.from_server_info(info) == EngineFlags(64, 4000, preemption_mode="release", tp_size=8)
    info |= {"enable_dp_attention": False, "tp_size": 2}
    assert EngineFlags.from_server_info(info) == EngineFlags(16, 1000, preemption_mode="release", tp_size=2, dp_size=4)
