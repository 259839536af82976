"""Routing and its forecast as arithmetic: one conformance suite over all policies, then what each is for."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import pytest

from andes_sglang.latency import LatencyModel
from andes_sglang.qoe import QoETarget, Readers, ReaderStream
from andes_sglang.routing import (
    ENTRY_POINT_GROUP,
    ROUTING_POLICIES,
    LeastLoad,
    LeastTokens,
    PrefixAffinity,
    PrefixTracker,
    QoE,
    RoundRobinRouting,
    RoutingPolicy,
    Value,
    make_routing_policy,
    worth,
)  # fmt: skip
from andes_sglang.sim.engine import Costs
from andes_sglang.stream_forecast import IncomingStream, OpenStreams, ReplicaView, forecast_stream

READER = QoETarget(1.0, 4.8)
HORIZON_S = 60.0


@functools.cache
def engine(token_s: float = 0.0, fixed_s: float = 0.01, prefill_token_s: float = 1e-4) -> LatencyModel:
    """An engine that takes ``fixed_s + token_s * batch`` a step and so much for each prompt token."""
    model = LatencyModel()
    for batch in (1, 8, 64, 128):
        for _ in range(50):
            model.observe_decode(batch, 1000 * batch, fixed_s + token_s * batch)
            model.observe_prefill(100 * batch, 0, 0.01 + prefill_token_s * 100 * batch)
    return model


def readers(n: int, buffered_s: float = 1.0, started: bool = True) -> Readers:
    """``n`` readers at time 100 with so many seconds of text unread."""
    streams = []
    for _ in range(n):
        stream = ReaderStream(90.0, READER)
        if started:
            stream.deliver(91.0, round((9.0 + buffered_s) * READER.tds))
        streams.append(stream)
    return Readers.of(streams)


def view(name: str, streams: int = 0, *, model: LatencyModel | None = None, buffered_s: float = 1.0, **more: Any) -> ReplicaView:  # fmt: skip
    return ReplicaView(
        name,
        model or engine(),
        streams,
        OpenStreams.of(readers(streams, buffered_s)),
        context_tokens=1000.0 * streams,
        **more,
    )


def incoming(tokens: float = 200.0, **more: Any) -> IncomingStream:
    return IncomingStream(tokens, READER, **more)


def first(policy: str, views: list[ReplicaView], new: IncomingStream | None = None) -> str:
    return make_routing_policy(policy).order(new or incoming(), views, 100.0)[0].name


@pytest.mark.parametrize("name", ROUTING_POLICIES)
class TestEveryPolicy:
    def test_orders_all_and_changes_none(self, name: str) -> None:
        views = [view("a", 3), view("b"), view("c", 40)]
        before = list(views)
        policy = make_routing_policy(name)
        for key in range(20):
            ordered = policy.order(incoming(prefix_key=key), views, 100.0)
            assert sorted(v.name for v in ordered) == ["a", "b", "c"]
        assert views == before

    def test_is_at_ease_with_one_and_with_none(self, name: str) -> None:
        assert first(name, [view("only", 5)]) == "only"
        assert make_routing_policy(name).order(incoming(), [], 100.0) == []

    def test_spreads_different_prompts_over_equals(self, name: str) -> None:
        policy = make_routing_policy(name)
        firsts = [
            policy.order(incoming(prefix_key=k * 7919), [view("a"), view("b")], 100.0)[0].name for k in range(200)
        ]
        assert 60 <= firsts.count("a") <= 140

    def test_is_repeatable(self, name: str) -> None:
        views = [view(n, k) for k, n in enumerate("abcd")]
        runs = []
        for _ in range(2):
            policy = make_routing_policy(name)
            runs.append([policy.order(incoming(prefix_key=k), views, 100.0)[0].name for k in range(30)])
        assert runs[0] == runs[1]


def test_least_load_goes_where_least_is() -> None:
    assert first("least_load", [view("a", 3), view("b", 2), view("c", 2, pending_tokens=900.0)]) == "b"
    assert first("least_load", [view("a", 1, others=9), view("b", 2)]) == "b"


def test_prefix_affinity_holds_until_the_bound() -> None:
    policy = make_routing_policy("prefix")
    free = [view(n, 10) for n in "abcd"]
    home, second = (v.name for v in policy.order(incoming(prefix_key=5), free, 100.0)[:2])
    assert policy.order(incoming(prefix_key=5), free[::-1], 100.0)[0].name == home
    crowded = [view(n, 30 if n == home else 10) for n in "abcd"]
    assert policy.order(incoming(prefix_key=5), crowded, 100.0)[0].name == second
    gone = [v for v in free if v.name != home]  # others keep their home when one leaves
    moved = sum(
        policy.order(incoming(prefix_key=k), free, 100.0)[0].name
        != policy.order(incoming(prefix_key=k), gone, 100.0)[0].name
        for k in range(400)
    )
    assert 60 <= moved <= 140


def test_qoe_goes_where_the_fleet_loses_least() -> None:
    tight, loose = engine(token_s=0.008), engine(token_s=0.0005)
    assert first("qoe", [view("tight", 20, model=tight), view("loose", 25, model=loose)]) == "loose"
    # Equal engines, equal numbers: readers with much unread text lose nothing by one more.
    slow = engine(token_s=0.01)
    assert (
        first("qoe", [view("dry", 22, model=slow, buffered_s=0.0), view("full", 22, model=slow, buffered_s=60.0)])
        == "full"
    )
    # A long prompt goes where its beginning is in the cache.
    slow_prefill = engine(prefill_token_s=1e-3)
    cached = [view("cold", model=slow_prefill), view("warm", model=slow_prefill, hit_tokens=5000.0)]
    assert first("qoe", cached, incoming(6000.0)) == "warm"
    # Behind a queue of prompts the first token comes late.
    queued = [view("queue", 2, model=slow_prefill, pending_tokens=8000.0), view("calm", 12, model=slow_prefill)]
    assert first("qoe", queued) == "calm"
    # Full slots share; streams that are not ours count.
    assert first("qoe", [view("full", 0, others=64, slots=16), view("half", 8, slots=16)]) == "half"


def test_a_forecast_by_hand() -> None:
    model = engine(token_s=0.001, fixed_s=0.01, prefill_token_s=1e-4)
    alone = forecast_stream(incoming(1000.0), view("a", model=model), 100.0, HORIZON_S)
    assert alone.interval_s == pytest.approx(0.011, rel=0.1)
    assert alone.ttft_s == pytest.approx(0.11 + 0.011, rel=0.1)
    assert (alone.qoe, alone.loss) == (pytest.approx(1.0), 0.0)
    queued = forecast_stream(
        incoming(1000.0), view("a", model=model, pending_tokens=20_000.0, late_ratio=2.0), 100.0, HORIZON_S
    )
    assert queued.ttft_s == pytest.approx(2 * (2.01 + 0.11), rel=0.1)
    assert queued.qoe < 1.0
    shared = forecast_stream(incoming(1000.0), view("a", 63, model=model, slots=16), 100.0, HORIZON_S)
    assert shared.interval_s == pytest.approx(4 * 0.026, rel=0.15)


def test_one_more_never_helps_the_others() -> None:
    model = engine(token_s=0.01)
    losses = [
        forecast_stream(incoming(), view("a", n, model=model, buffered_s=0.0), 100.0, HORIZON_S).loss
        for n in range(1, 80, 6)
    ]
    assert all(loss >= 0.0 for loss in losses)
    assert losses[-1] > losses[0]


# What each policy is for, rule by rule


def loaded(name: str, load: int = 0, **more: Any) -> ReplicaView:
    return ReplicaView(name, Costs(0.01, 0.001, 0.0, 0.02, 1e-4), streams=load, **more)


def order(policy: RoutingPolicy, views: list[ReplicaView], new: IncomingStream | None = None) -> str:
    return "".join(v.name for v in policy.order(new or incoming(), views, 100.0))


def test_round_robin_takes_turns_and_retries_at_the_next() -> None:
    policy = RoundRobinRouting()
    views = [loaded(n) for n in "abc"]
    assert [order(policy, views) for _ in range(4)] == ["abc", "bca", "cab", "abc"]


def test_least_load_breaks_ties_by_prompts_that_wait_then_in_turn() -> None:
    policy = LeastLoad()
    assert order(policy, [loaded("a", 2), loaded("b", 1, pending_tokens=9.0), loaded("c", 1)]) == "cba"
    equals = [loaded(n, 1) for n in "abc"]
    assert [order(policy, equals)[0] for _ in range(3)] == ["b", "c", "a"]
    assert order(policy, [loaded("a", 1, others=2), loaded("b", 2)]) == "ba"


def test_least_tokens_counts_prompts_of_all_open_streams_then_streams() -> None:
    policy = LeastTokens()
    assert order(policy, [loaded("a", 1, prompt_tokens=900.0), loaded("b", 3, prompt_tokens=600.0)]) == "ba"
    assert order(policy, [loaded("a", 3, prompt_tokens=600.0), loaded("b", 1, prompt_tokens=600.0)]) == "ba"
    equals = [loaded(n, 1) for n in "abc"]
    assert [order(policy, equals)[0] for _ in range(3)] == ["c", "a", "b"]


def test_prefix_bound_is_a_ratio_to_the_mean_load_with_the_new_stream() -> None:
    views = [loaded(n, 4) for n in "abcd"]
    home = order(PrefixAffinity(), views)[0]

    def home_at(load: int, bound: float) -> bool:
        return order(PrefixAffinity(bound), [loaded(v.name, load if v.name == home else 4) for v in views])[0] == home

    # Loads 4, 4, 4 and n: the bound is ceil(bound * (13 + n) / 4).
    assert [home_at(n, 1.25) for n in (4, 5, 6)] == [True, True, False]
    assert [home_at(n, 2.0) for n in (10, 12, 13)] == [True, True, False]


def test_prefix_orders_what_is_full_last_and_by_the_prompts_own_order() -> None:
    views = [loaded(n, 1) for n in "abcd"]
    free = order(PrefixAffinity(), views)
    full = order(PrefixAffinity(), [loaded(v.name, 9 if v.name in free[:2] else 1) for v in views])
    assert full == free[2:] + free[:2]


def test_qoe_weighs_the_new_stream_against_those_that_are_there() -> None:
    """On one replica the new stream is late, on the other it makes readers wait: its weight decides."""
    dry = ReaderStream(97.0, READER)
    dry.deliver(98.0, 10)
    there = OpenStreams.of(Readers.of([dry] * 4))
    views = [loaded("late", pending_tokens=60_000.0), loaded("others", 4, open_streams=there)]
    new = [IncomingStream(15_000.0, READER, weight) for weight in (0.01, 100.0)]
    assert [order(QoE(), views, stream)[0] for stream in new] == ["l", "o"]


def test_qoe_ties_go_to_the_sooner_first_token_then_to_the_lesser_load_then_in_turn() -> None:
    assert order(QoE(), [loaded("a", 1), loaded("b", 1, hit_tokens=200.0), loaded("c", 1)], incoming(400.0))[0] == "b"
    same = Costs(0.01, 0.0, 0.0, 0.02, 1e-4)
    views = [ReplicaView(name, same, streams=load) for name, load in (("a", 3), ("b", 1), ("c", 2))]
    assert order(QoE(), views) == "bca"
    equals = [ReplicaView(name, same) for name in "abc"]
    policy = QoE()
    assert [order(policy, equals)[0] for _ in range(3)] == ["a", "b", "c"]


def test_qoe_takes_less_than_a_thousandth_for_a_tie() -> None:
    """Of two first tokens that differ by a tenth of a millisecond, the load decides."""
    sooner, idle = loaded("sooner", 2, hit_tokens=1.0), loaded("idle", 0)
    same = Costs(0.01, 0.0, 0.0, 0.02, 1e-5)
    sooner, idle = (ReplicaView(v.name, same, streams=v.streams, hit_tokens=v.hit_tokens) for v in (sooner, idle))
    assert order(QoE(), [sooner, idle]).startswith("idle")


def test_qoe_looks_no_further_than_its_horizon() -> None:
    """A replica that is slower than reading loses more the longer the horizon; a late first token loses less."""
    slow = ReplicaView("slow", Costs(0.25, 0.0, 0.0, 0.02, 1e-4))
    late = loaded("late", pending_tokens=25_000.0)
    assert order(QoE(horizon_s=5.0), [slow, late]).startswith("slow")
    assert order(QoE(horizon_s=600.0), [slow, late]).startswith("late")
    assert order(QoE(), [slow, late]) == order(QoE(horizon_s=60.0), [slow, late])


def test_value_takes_the_weaker_model_only_where_the_better_one_would_come_too_late() -> None:
    """Half of 60 s without a token costs more than a tenth of the answer's quality."""
    strong, weak = loaded("strong", pending_tokens=300_000.0), loaded("weak", quality=0.9)
    assert order(Value(), [weak, strong]) == "weakstrong"
    assert order(Value(), [weak, loaded("strong")]) == "strongweak", "in time, the better answer is worth more"
    useless = loaded("weak", quality=0.1)
    assert order(Value(), [useless, strong]) == "strongweak", "late, it is still worth more than this"


def test_value_counts_what_readers_there_lose_by_the_quality_that_they_lose() -> None:
    slow = engine(token_s=0.01)
    crowd = view("a", 22, model=slow, buffered_s=0.0)
    new = incoming()
    forecast = forecast_stream(new, crowd, 100.0, HORIZON_S)
    assert forecast.loss > 0
    assert worth(new, crowd, forecast) == pytest.approx(forecast.qoe - forecast.loss)
    weaker = view("a", 22, model=slow, buffered_s=0.0, quality=0.5)
    assert worth(new, weaker, forecast) == pytest.approx(0.5 * (forecast.qoe - forecast.loss))
    heavy = incoming(weight=4.0)
    assert worth(heavy, weaker, forecast) == pytest.approx(0.5 * (4 * forecast.qoe - forecast.loss))


def test_value_prices_a_wait_for_kv_where_a_prompt_waits_and_every_slot_is_taken() -> None:
    def first_of(slots: int, pending: float, **options: float) -> str:
        strong = loaded("strong", 40, slots=slots, pending_tokens=pending)
        return order(Value(**options), [strong, loaded("weak", quality=0.9)])

    assert first_of(slots=40, pending=5000.0).startswith("weak")
    assert first_of(slots=41, pending=5000.0).startswith("strong"), "a slot is free: it waits for the prefill alone"
    assert first_of(slots=40, pending=0.0).startswith("strong"), "nothing waits"
    assert first_of(slots=40, pending=5000.0, min_late_ratio=1.0).startswith("strong")


def test_value_takes_a_token_for_as_many_decode_steps_as_its_margin_says() -> None:
    """Readers of 4.8 tokens/s lose where a token takes more than 0.208 s: here, at 0.15 s, only with a margin."""
    views = [ReplicaView("strong", Costs(0.15, 0.0, 0.0, 0.02, 1e-4)), loaded("weak", quality=0.9)]
    assert order(Value(pace_margin=1.0), views).startswith("strong")
    assert order(Value(), views).startswith("weak")


def test_value_among_equals_of_one_model_is_qoe() -> None:
    views = [view("a", 12), view("b", 3), view("c", 40, model=engine(token_s=0.01), buffered_s=0.0)]
    assert order(Value(pace_margin=1.0), views) == order(QoE(), views)


def test_a_policy_is_made_by_its_name_and_options() -> None:
    for name, factory in ROUTING_POLICIES.items():
        assert type(make_routing_policy(name)) is factory
        assert make_routing_policy(name).name == name
    assert order(make_routing_policy("prefix", bound=1.0), [loaded("a")]) == "a"


@pytest.mark.parametrize(
    ("name", "options", "text"),
    [
        ("nearest", {}, "unknown routing policy 'nearest'; choose one of least_load, least_tokens, prefix, qoe, round_robin, value"),
        ("least_load", {"bound": 2}, "routing policy 'least_load': .*bound"),
        ("prefix", {"bound": 0.5}, "bound must be a ratio >= 1, got 0.5"),
        ("prefix", {"bound": "2"}, "bound must be a ratio >= 1, got '2'"),
        ("prefix", {"bound": float("inf")}, "bound must be a ratio >= 1, got inf"),
        ("qoe", {"horizon_s": 0}, "horizon_s must be a number of seconds > 0, got 0"),
        ("qoe", {"horizon_s": "60"}, "horizon_s must be a number of seconds > 0, got '60'"),
        ("qoe", {"sacrifice_share": 1}, "sacrifice_share must be a share >= 0 and < 1, got 1"),
        ("qoe", {"sacrifice_share": "0.1"}, "sacrifice_share must be a share >= 0 and < 1, got '0.1'"),
        ("value", {"horizon_s": 0}, "horizon_s must be a number of seconds > 0, got 0"),
        ("value", {"min_late_ratio": 0.5}, "min_late_ratio must be a ratio >= 1, got 0.5"),
        ("value", {"pace_margin": "2"}, "pace_margin must be a ratio >= 1, got '2'"),
        ("qoe", {"horizon_s": float("inf")}, "horizon_s must be a number of seconds > 0, got inf"),
        ("qoe", {"horizon": 60}, "routing policy 'qoe': unknown option 'horizon'; its options are horizon_s, sacrifice_share"),
        ("round_robin", {"slice": 1}, "routing policy 'round_robin': unknown option 'slice'; it has none"),
        ("andes_sglang.routing.learned:Learned", {}, "Learned' needs the option 'weights': weights among its options"),
        ("andes_sglang.routing.learned:Learned", {"weights": 5}, "weights: expected qualities, and layers of matrix and bias"),
        ("no_such_module:Nearest", {}, "routing policy 'no_such_module:Nearest' cannot be loaded: ModuleNotFoundError"),
        ("andes_sglang.qoe:Nearest", {}, "cannot be loaded: AttributeError"),
        ("andes_sglang.qoe:QoETarget", {}, "it needs a name and order"),
        ("andes_sglang.qoe:np", {}, "it needs a name and order"),
    ],
)  # fmt: skip
def test_what_cannot_be_made_is_named(name: str, options: dict[str, Any], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        make_routing_policy(name, **options)


def test_an_old_name_still_works_and_says_so() -> None:
    with pytest.warns(FutureWarning, match="'least_requests' is now called 'least_load'"):
        assert isinstance(make_routing_policy("least_requests"), LeastLoad)


def test_a_policy_of_your_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_routing.py").write_text(
        "class Last:\n"
        "    name = 'last'\n"
        "    def __init__(self, skip=0):\n"
        "        self.skip = skip\n"
        "    def order(self, new, views, now_s):\n"
        "        return list(views)[::-1][self.skip:]\n"
    )
    (tmp_path / "my_routing-1.dist-info").mkdir()
    (tmp_path / "my_routing-1.dist-info" / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: my-routing\nVersion: 1\n"
    )
    (tmp_path / "my_routing-1.dist-info" / "entry_points.txt").write_text(
        f"[{ENTRY_POINT_GROUP}]\nlast = my_routing:Last\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    views = [loaded(n) for n in "abc"]
    assert order(make_routing_policy("my_routing:Last", skip=1), views) == "ba"
    assert order(make_routing_policy("last"), views) == "cba"
    with pytest.raises(ValueError, match=r"choose one of last, least_load, .*, or give package.module:Class"):
        make_routing_policy("first")


def test_the_tracker_knows_what_a_replica_was_sent_last() -> None:
    tracker = PrefixTracker(max_blocks=3)
    tracker.add([1, 2, 3])
    assert [tracker.matched(blocks) for blocks in ([1, 2, 3, 4], [1, 9, 3], [2, 1], [9])] == [3, 1, 2, 0]
    tracker.add([1])  # used again: 2 is the oldest now
    tracker.add([4])
    assert [tracker.matched([block]) for block in (1, 2, 3, 4)] == [1, 0, 1, 1]
