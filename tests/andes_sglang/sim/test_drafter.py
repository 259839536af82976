"""A replica that decodes speculatively."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from andes_sglang.arms import Arm
from andes_sglang.cli import main
from andes_sglang.flags import UsageError
from andes_sglang.policy import SchedulingPolicy, make_policy
from andes_sglang.qoe import QoETarget, ReaderStream
from andes_sglang.request import RequestRecord, RequestSpec
from andes_sglang.sim import profile
from andes_sglang.sim.configure import configure
from andes_sglang.sim.engine import Costs, EngineModel, Overlap
from andes_sglang.sim.replica import Replica
from andes_sglang.speculation import Speculation, tokens_per_step
from andes_sglang.state import Decision, Phase, SchedulerState

SPECULATION = Speculation(acceptance=0.7, draft_fixed_s=0.001, draft_token_s=0.0, verify_token_s=0.0005, spread=0.2)
PLAIN = EngineModel(Costs(0.02, 0.0005, 1e-6, 0.02, 1e-4), 6000, chunk_tokens=1000, speculation=SPECULATION)
FIXED = replace(PLAIN, draft_tokens=3)
BY_READER = replace(PLAIN, drafts_by_reader=True)


def requests(count: int = 40, tds: float = 5.0, gap_s: float = 0.3) -> list[RequestSpec]:
    return [RequestSpec(gap_s * k, 100 + 7 * k, 40 + k, QoETarget(1.0, tds)) for k in range(count)]


def serve(
    engine: EngineModel, policy: SchedulingPolicy | None, specs: list[RequestSpec]
) -> tuple[list[RequestRecord], Replica]:
    records: list[RequestRecord] = []
    replica = Replica(engine, policy, sink=records.append, decision_interval_s=0.1)
    for spec in specs:
        replica.advance(spec.arrival_s)
        replica.submit(spec)
    replica.advance()
    return sorted(records, key=lambda r: r.index), replica


@pytest.mark.parametrize("overlap", [Overlap.NONE, Overlap.ASYNC])
@pytest.mark.parametrize("policy", [None, "andes", "lqsf"])
@pytest.mark.parametrize("engine", [FIXED, BY_READER])
def test_every_answer_is_whole_and_in_order_and_the_pool_is_empty_at_the_end(
    engine: EngineModel, policy: str | None, overlap: Overlap
) -> None:
    """KV for a third of them, so that they are preempted or retracted in between."""
    if policy is None and engine.drafts_by_reader:
        engine = replace(FIXED, draft_tokens=1)
    specs = [replace(spec, max_tokens=4 * spec.output_tokens) for spec in requests(gap_s=0.02, tds=20.0)]
    records, replica = serve(
        replace(engine, overlap=overlap, kv_capacity_tokens=3000), make_policy(policy) if policy else None, specs
    )
    assert [r.index for r in records] == list(range(len(specs)))
    for record, spec in zip(records, specs, strict=True):
        assert len(record.token_times_s) == spec.output_tokens
        assert (np.diff(record.token_times_s) >= 0).all()
        assert record.token_times_s[0] > spec.arrival_s
    assert not replica.open_requests
    assert (replica.kv_used_tokens, replica.kv_uncached_tokens) == (0, 0)


def test_drafts_yield_what_their_acceptance_says() -> None:
    """One request alone, drafts of three: tokens come in fewer steps, by the factor of the formula."""
    long = [RequestSpec(0.0, 100, 3000)]
    one = replace(FIXED, speculation=replace(SPECULATION, spread=0.0))
    (plain,), _ = serve(PLAIN, None, long)
    (drafted,), replica = serve(one, None, long)
    steps = replica.iterations - 1
    assert 3000 / steps == pytest.approx(float(tokens_per_step(np.array(0.7), np.array(3.0))), rel=0.05)
    step_s = 0.0205 + 0.001 * 3 + 0.0005 * 3
    context_s = 1e-6 * (100 + 1500) * steps
    assert drafted.end_s == pytest.approx(plain.token_times_s[0] + step_s * steps + context_s, rel=0.02)
    assert drafted.end_s < 0.7 * plain.end_s


def test_without_drafts_nothing_changes() -> None:
    assert [r.end_s for r in serve(PLAIN, None, requests())[0]] == [
        r.end_s for r in serve(replace(PLAIN, speculation=None), None, requests())[0]
    ]


class Watching:
    """Andes, which remembers what it was shown of readers, and what was drafted."""

    name = "watching"

    def __init__(self) -> None:
        self.andes = make_policy("andes")
        self.seen: list[tuple[float, str, float, float]] = []

    def decide(self, state: SchedulerState) -> Decision:
        t = state.requests
        for row in np.flatnonzero(t.phase == Phase.RUNNING):
            self.seen.append((state.now_s, t.rids[row], float(t.readers.delivered[row]), float(t.readers.end_s[row])))
        return self.andes.decide(state)


@pytest.mark.parametrize("reason_tokens", [0, 25])
def test_the_policy_is_shown_readers_as_the_tokens_reached_them(reason_tokens: int) -> None:
    policy = Watching()
    specs = [replace(spec, reason_tokens=reason_tokens) for spec in requests(gap_s=0.1, tds=30.0)]
    whole: dict[str, list[float]] = {}
    original = Replica._finish

    def finish(self: Replica, job) -> None:  # type: ignore[no-untyped-def]
        original(self, job)
        whole[job.rid] = np.concatenate(job.times_s).tolist()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Replica, "_finish", finish)
        serve(replace(BY_READER, kv_capacity_tokens=4000), policy, specs)
    assert len(policy.seen) > 300
    for now_s, rid, delivered, end_s in policy.seen:
        times_s = [at for at in whole[rid] if at <= now_s]
        shown = times_s[reason_tokens:]
        assert delivered == len(shown)
        if shown:
            spec = specs[int(rid[1:])]
            stream = ReaderStream(spec.arrival_s, spec.target)
            stream.think(reason_tokens)
            for at in shown:
                stream.deliver(at)
            assert end_s == pytest.approx(stream.end_s, abs=1e-6)


def test_readers_ahead_of_their_pace_cost_no_drafts_where_these_are_dear() -> None:
    dear = replace(BY_READER, speculation=replace(SPECULATION, verify_token_s=0.05))
    specs = requests(12, tds=5.0, gap_s=2.0)
    _, replica = serve(dear, make_policy("andes"), specs)
    assert replica._drafter is not None
    assert replica._drafter.drafted == 0, "a step a token is ten times what they read"
    _, fixed = serve(replace(dear, drafts_by_reader=False, draft_tokens=3), make_policy("andes"), specs)
    assert fixed.busy_s > 1.5 * replica.busy_s


def test_agents_who_take_more_than_a_token_a_step_get_what_they_need() -> None:
    agents = [RequestSpec(5.0 * k, 100, 400, QoETarget(0.2, 70.0)) for k in range(6)]
    without, _ = serve(PLAIN, make_policy("andes"), agents)
    drafted, _ = serve(BY_READER, make_policy("andes"), agents)
    assert np.mean([r.qoe for r in drafted]) > np.mean([r.qoe for r in without]) + 0.05


# Flags and profiles


def test_the_flag_names_a_length_or_the_readers() -> None:
    engine = profile.load("h100x4-llama-3.1-70b").engine
    assert configure(engine, Arm("andes", ("--drafts", "readers")))[0].drafts_by_reader
    assert configure(engine, Arm("stock", ("--drafts", "4")))[0].draft_tokens == 4
    assert not configure(engine, Arm("andes"))[0].drafts
    for arm, text in (
        (Arm("andes", ("--drafts", "0")), "--drafts"),
        (Arm("stock", ("--drafts", "readers")), "--drafts readers: is a policy's decision"),
    ):
        with pytest.raises(UsageError, match=text):
            configure(engine, arm)
    with pytest.raises(UsageError, match="the profile has no table"):
        configure(profile.load("cpu-tiny-llama").engine, Arm("andes", ("--drafts", "2")))
    with pytest.raises(ValueError, match="not modelled with overlap sync"):
        replace(FIXED, overlap=Overlap.SYNC)


def test_a_measured_profile_with_speculation_is_read_back(tmp_path: Path) -> None:
    mine = replace(profile.load("cpu-tiny-llama"), engine=replace(PLAIN, speculation=SPECULATION))
    (tmp_path / "mine.toml").write_text(profile.dump(mine))
    assert profile.load(str(tmp_path / "mine.toml")).engine.speculation == SPECULATION
    (tmp_path / "mine.toml").write_text(profile.dump(mine).replace("acceptance = 0.7", "acceptance = 7"))
    with pytest.raises(profile.ProfileError, match=r"speculation\.acceptance must be in \(0, 1\), got 7"):
        profile.load(str(tmp_path / "mine.toml"))


def test_arms_with_drafts_are_simulated(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = (
        "--profile",
        "h100x4-llama-3.1-70b",
        "--rate",
        "1",
        "--duration",
        "10",
        "--tds",
        "60",
        "--policies",
        "andes",
    )
    assert main(["simulate", *flags, "--arm", "drafted=andes:--drafts readers", "--out", str(tmp_path)]) == 0
    assert "drafted" in capsys.readouterr().out


@pytest.mark.parametrize("passed", [("--drafts", "readers"), ("--drafts=readers", "--policy-option", "horizon_s=30")])
def test_what_only_policies_take_is_asked_of_every_policy_where_stock_is_none_of_them(
    passed: tuple[str, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = ("--profile", "h100-llama-3.1-8b", "--duration", "3", "--load", "0.1", *passed, "--out", str(tmp_path))
    assert main(["simulate", "--policies", "andes", *asked]) == 0
    assert main(["simulate", "--policies", "andes,stock", "--force", *asked]) == 2
    assert "policy stock has no" in capsys.readouterr().err
