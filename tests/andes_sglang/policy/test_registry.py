"""Policies of other packages: by entry point, and as package.module:Class, from everywhere that makes policies."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from andes_sglang.arms import Arm, parse_arms
from andes_sglang.flags import UsageError, check_arms, policy_of
from andes_sglang.latency import LatencyModel
from andes_sglang.policy import check_policy, find_policy, make_policy
from andes_sglang.state import RequestTable, SchedulerState

SOURCE = """
from dataclasses import dataclass
from typing import ClassVar

from andes_sglang.lengths import EngineLengths
from andes_sglang.policy import PolicyOptions, option, pack


@dataclass(frozen=True, kw_only=True)
class LongestOptions(PolicyOptions):
    policy: ClassVar[str] = "longest"
    bonus: float = option(1.0, "", low=0, doc="nothing", source="assumed")


class Longest:
    name = "longest"
    options_type = LongestOptions

    def __init__(self, options):
        self.options = options

    def decide(self, state):
        return pack(state, state.requests.prompt_tokens)


class Plain:
    name = "plain"

    def __init__(self, patience_s=1.0):
        self.patience_s = patience_s

    def decide(self, state):
        return pack(state, state.requests.prompt_tokens)


class Nameless:
    def decide(self, state): ...


class Idle:
    name = "idle"


class Needy(Plain):
    name = "needy"

    def __init__(self, depth):
        self.depth = depth + 1


class Failing(Plain):
    def __init__(self, patience_s=0.0):
        super().__init__(1 / patience_s)


class Odd(Plain):
    options_type = dict


class Made(Plain):
    answer_lengths = EngineLengths()


class Guessing(Plain):
    answer_lengths = dict


number = 3
"""


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A package ``acme`` of another distribution, on sys.path, with an entry point for two of its policies."""
    (tmp_path / "acme").mkdir()
    (tmp_path / "acme" / "__init__.py").touch()
    (tmp_path / "acme" / "policies.py").write_text(SOURCE)
    (tmp_path / "acme" / "broken.py").write_text("import no_such_module\n")
    (tmp_path / "acme" / "typo.py").write_text("def f(:\n")
    info = tmp_path / "acme_policies-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: acme-policies\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(
        "[andes_sglang.policies]\nlongest = acme.policies:Longest\nalias = acme.policies:Longest\n"
        "gone = acme.policies:Gone\nandes = acme.policies:Plain\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    yield tmp_path
    for name in [name for name in sys.modules if name.partition(".")[0] == "acme"]:
        del sys.modules[name]


def test_by_entry_point(package: Path) -> None:
    policy = make_policy("longest", {"bonus": 2})
    assert policy.name == "longest"
    assert policy.options.bonus == 2.0  # type: ignore[attr-defined]
    state = SchedulerState(0.0, RequestTable.of([]), 100, 1, LatencyModel())
    assert policy.decide(state).admit == ()


def test_by_module_and_class_with_options_of_either_kind(package: Path) -> None:
    assert make_policy("acme.policies:Longest").options.bonus == 1.0  # type: ignore[attr-defined]
    assert make_policy("acme.policies:Plain", {"patience_s": 3}).patience_s == 3  # type: ignore[attr-defined]
    assert find_policy("acme.policies:Plain").name == "plain"


def test_a_builtin_name_is_the_builtin(package: Path) -> None:
    assert type(make_policy("andes")).__module__ == "andes_sglang.policy.andes"


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("longest", {"bonus": -1}, "policy longest: bonus must be >= 0, got -1"),
        ("longest", {"bonsu": 1}, "policy longest: unknown option 'bonsu'"),
        ("acme.policies:Plain", {"patience": 1}, "unknown option 'patience'; its options are patience_s"),
        (
            "acme.policies:Needy",
            {},
            "policy 'acme.policies:Needy' needs the option 'depth': --policy-option depth=VALUE",
        ),
        (
            "acme.policies:Failing",
            {},
            "policy 'acme.policies:Failing' cannot be made: ZeroDivisionError: float division by zero",
        ),
        ("acme.policies:Needy", {"depth": "x"}, "cannot be made with depth='x': TypeError"),
        ("alias", {}, "policy 'alias': its class has the name 'longest'; entry point and class need the same"),
        ("gone", {}, "policy 'gone' cannot be loaded: AttributeError: module 'acme.policies' has no attribute 'Gone'"),
        ("nowhere", {}, r"unknown policy 'nowhere'; choose one of .*andes.*longest.*, or give package.module:Class"),
        ("acme.absent:Longest", {}, "cannot be loaded: ModuleNotFoundError: No module named 'acme.absent'"),
        ("acme.broken:Longest", {}, "cannot be loaded: ModuleNotFoundError: No module named 'no_such_module'"),
        ("acme.typo:Longest", {}, "cannot be loaded: SyntaxError"),
        ("acme.policies:Shortest", {}, "has no attribute 'Shortest'"),
        ("acme.policies:", {}, "policy 'acme.policies:' cannot be loaded"),
        (":Longest", {}, "policy ':Longest' cannot be loaded"),
        ("acme.policies:Nameless", {}, "is no policy: it needs a class with a name and decide"),
        ("acme.policies:Idle", {}, "is no policy: it needs a class with a name and decide"),
        ("acme.policies:number", {}, "is no policy: it needs a class with a name and decide"),
        ("acme.policies:Odd", {}, "options_type <class 'dict'> is not derived from PolicyOptions"),
        (
            "acme.policies:Made",
            {},
            "answer_lengths <.*EngineLengths object .*> is no class with expected_tokens and learn",
        ),
        ("acme.policies:Guessing", {}, "answer_lengths <class 'dict'> is no class with expected_tokens and learn"),
        ("srpt", {}, "policy 'srpt' must be given the final lengths of answers"),
    ],
)
def test_what_is_wrong_is_named(package: Path, name: str, options: dict[str, float], message: str) -> None:
    for call in (make_policy, check_policy):
        with pytest.raises(ValueError, match=message):
            call(name, options)


def test_lengths_are_for_those_that_are_told_them() -> None:
    assert make_policy("srpt", output_tokens={"a": 3}).output_tokens == {"a": 3}  # type: ignore[attr-defined]
    with pytest.raises(ValueError, match="policy 'andes' takes no output_tokens; these do: srpt, clairvoyant"):
        make_policy("andes", output_tokens={})


# On the command line


def test_the_policy_flag_takes_a_class_and_checks_its_options(package: Path) -> None:
    def given(policy: str, *options: str) -> argparse.Namespace:
        return argparse.Namespace(policy=policy, policy_option=list(options))

    chosen = policy_of(given("acme.policies:Longest", "bonus=3"))
    assert chosen is not None
    assert chosen.options.bonus == 3.0  # type: ignore[attr-defined]
    assert policy_of(given("stock")) is None
    with pytest.raises(
        UsageError, match=r"--policy andes: policy andes: batch_candidates must be an integer >= 1, got 0"
    ):
        policy_of(given("andes", "batch_candidates=0"))
    with pytest.raises(UsageError, match="--policy andes: policy andes: preemption must be true or false, got 'maybe'"):
        policy_of(given("andes", "preemption=maybe"))
    with pytest.raises(UsageError, match="policy stock has no options"):
        policy_of(given("stock", "a=1"))
    with pytest.raises(UsageError, match="expected NAME=VALUE"):
        policy_of(given("andes", "horizon_s"))


def test_arms_name_policies_as_classes_too(package: Path) -> None:
    arms = parse_arms(
        "stock,acme.policies:Longest", ["mine=acme.policies:Plain:--policy-option patience_s=2", "f=fcfs:"]
    )
    assert arms == {
        "stock": Arm("stock"),
        "acme.policies:Longest": Arm("acme.policies:Longest"),
        "mine": Arm("acme.policies:Plain", ("--policy-option", "patience_s=2")),
        "f": Arm("fcfs"),
    }
    check_arms(arms, [])
    with pytest.raises(UsageError, match="patience"):
        check_arms(parse_arms("", ["mine=acme.policies:Plain:--policy-option patience=2"]), [])


@pytest.mark.parametrize("text", ["x", "=andes", "x=", "x=:--flag", ""])
def test_an_arm_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="expected NAME=POLICY or NAME=POLICY:FLAGS"):
        parse_arms("andes", [text])
