"""Options: declared once, checked by type and range, old names with a warning."""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping
from dataclasses import FrozenInstanceError, dataclass
from typing import Any, ClassVar

import pytest

from andes_sglang.policy import CLAIRVOYANT, POLICIES, effective_options, make, make_policy
from andes_sglang.policy.andes import Andes, AndesOptions
from andes_sglang.policy.options import PolicyOptions, _warn_renamed, option
from andes_sglang.state import Decision, SchedulerState


@dataclass(frozen=True, kw_only=True)
class ToyOptions(PolicyOptions):
    policy: ClassVar[str] = "toy"
    renamed: ClassVar[Mapping[str, str]] = {"old_wait_s": "wait_s"}

    wait_s: float = option(2.0, "seconds", above=0, high=10, doc="a wait", source="assumed")
    count: int = option(3, "", low=1, doc="a count", source="assumed")
    fast: bool = option(True, "", doc="a flag", source="assumed")
    cap: float | None = option(None, "tokens", low=0, doc="a cap", source="assumed")
    shift_s: float = option(0.0, "seconds", doc="any number", source="assumed")
    mode: str = option("slow", "", choices=("slow", "quick"), doc="a choice", source="assumed")


@pytest.mark.parametrize(
    ("name", "value", "kept"),
    [
        ("wait_s", 3, 3.0),
        ("wait_s", 10, 10.0),
        ("wait_s", 0.001, 0.001),
        ("count", 1, 1),
        ("count", 4.0, 4),
        ("fast", False, False),
        ("cap", None, None),
        ("cap", 0, 0.0),
        ("shift_s", -5, -5.0),
        ("mode", "quick", "quick"),
    ],
)
def test_a_value_of_type_and_range_is_kept_as_that_type(name: str, value: Any, kept: Any) -> None:
    options = ToyOptions.from_mapping({name: value})
    assert getattr(options, name) == kept
    assert type(getattr(options, name)) is type(kept)
    assert options == ToyOptions(**{name: value})


@pytest.mark.parametrize(
    ("name", "value", "allowed"),
    [
        ("wait_s", 0, "> 0 and <= 10 seconds"),
        ("wait_s", 10.1, "> 0 and <= 10 seconds"),
        ("wait_s", True, "> 0 and <= 10 seconds"),
        ("wait_s", "3", "> 0 and <= 10 seconds"),
        ("wait_s", None, "> 0 and <= 10 seconds"),
        ("wait_s", float("nan"), "> 0 and <= 10 seconds"),
        ("count", 0, "an integer >= 1"),
        ("count", 2.5, "an integer >= 1"),
        ("count", True, "an integer >= 1"),
        ("fast", 1, "true or false"),
        ("fast", "yes", "true or false"),
        ("cap", -1, ">= 0 tokens or null"),
        ("cap", [], ">= 0 tokens or null"),
        ("shift_s", float("inf"), "a number of seconds"),
        ("shift_s", 10**400, "a number of seconds"),
        ("count", 10**400, "an integer >= 1"),
        ("mode", "fast", "one of slow, quick"),
        ("mode", 3, "one of slow, quick"),
    ],
)
def test_any_other_value_is_refused_with_policy_option_value_and_what_is_allowed(
    name: str, value: Any, allowed: str
) -> None:
    for construct in (lambda: ToyOptions.from_mapping({name: value}), lambda: ToyOptions(**{name: value})):
        with pytest.raises(ValueError) as refused:  # noqa: PT011 (the whole message is compared)
            construct()
        assert str(refused.value) == f"policy toy: {name} must be {allowed}, got {value!r}"


def test_an_unknown_option_is_refused_with_those_there_are() -> None:
    with pytest.raises(
        ValueError, match=r"policy toy: unknown option 'weight_s' \(value 3\); its options are wait_s, count,"
    ):
        ToyOptions.from_mapping({"weight_s": 3})


def test_an_old_name_works_with_one_warning() -> None:
    _warn_renamed.cache_clear()
    with pytest.warns(FutureWarning, match=r"policy toy: option 'old_wait_s' is now called 'wait_s'"):
        assert ToyOptions.from_mapping({"old_wait_s": 5}).wait_s == 5.0
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert ToyOptions.from_mapping({"old_wait_s": 6}).wait_s == 6.0
    with pytest.raises(ValueError, match="'old_wait_s' is the old name of 'wait_s'; give one of them"):
        ToyOptions.from_mapping({"old_wait_s": 5, "wait_s": 5})
    with pytest.raises(ValueError, match="'old_wait_s' is the old name of 'wait_s'; give one of them"):
        ToyOptions.from_mapping({"wait_s": 5, "old_wait_s": 5})


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_the_old_names_of_andes_still_work() -> None:
    options = AndesOptions.from_mapping({"slice_worth": 2, "wait_worth": 0.5})
    assert (options.min_runtime_ratio, options.min_wait_ratio) == (2.0, 0.5)


def test_as_dict_is_what_another_process_reads() -> None:
    options = ToyOptions(wait_s=5, cap=1)
    everything = options.as_dict()
    assert everything == {"wait_s": 5.0, "count": 3, "fast": True, "cap": 1.0, "shift_s": 0.0, "mode": "slow"}
    assert ToyOptions.from_mapping(json.loads(json.dumps(everything))) == options


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_an_engine_tells_the_options_it_was_given_by_their_current_names() -> None:
    given = {"slice_worth": 2, "batch_candidates": 4.0}
    assert effective_options(make_policy("andes", given), given) == {"min_runtime_ratio": 2.0, "batch_candidates": 4}
    assert effective_options(make_policy("andes"), {}) == {}

    class Plain:
        name = "plain"

        def decide(self, state: SchedulerState) -> Decision:
            return Decision()

    assert effective_options(Plain(), {"a": 1}) == {"a": 1}

    class Mixed(Plain):
        options = ToyOptions(count=5)

    assert effective_options(Mixed(), {"own": 1, "count": 5.0}) == {"own": 1, "count": 5}


def test_options_do_not_change() -> None:
    with pytest.raises(FrozenInstanceError):
        ToyOptions().wait_s = 3.0  # type: ignore[misc]


def test_describe_tells_what_documentation_needs() -> None:
    assert ToyOptions.describe()[0] == ("wait_s", "> 0 and <= 10 seconds", 2.0, "a wait", "assumed")
    assert ToyOptions.describe()[3] == ("cap", ">= 0 tokens or null", None, "a cap", "assumed")


@pytest.mark.parametrize("name", [*POLICIES, *CLAIRVOYANT])
def test_every_policy_declares_its_options(name: str) -> None:
    """By its own name, each with a meaning and a source, with defaults that it accepts itself."""
    told = {"output_tokens": {}} if name in CLAIRVOYANT else {}
    policy: Any = make_policy(name, **told)
    options = policy.options
    assert type(options).policy == name
    assert type(options).from_mapping(options.as_dict()) == options
    for option_name, allowed, _, doc, source in type(options).describe():
        assert allowed, option_name
        assert doc, option_name
        assert source, option_name
    with pytest.raises(ValueError, match=f"policy {name}: growth_tokens must be >= 0 tokens, got -1"):
        make_policy(name, {"growth_tokens": -1}, **told)


@pytest.mark.parametrize(
    ("option_name", "wrong"),
    [
        ("horizon_s", 0), ("stall_bound_s", 0), ("first_bound_s", 0), ("overdue_share", -0.1), ("late_share", -0.1),
        ("min_slice_tokens", -1), ("resumed_slice_tokens", -1), ("min_runtime_ratio", -1), ("min_wait_ratio", -1),
        ("trigger_buffer_s", "x"),
        ("running_bonus", -0.1), ("length_guard", 0), ("batch_candidates", 0), ("preemption", 1), ("refine", "no"),
        ("max_preemptions", -1), ("growth_tokens", -1), ("fairness", 1.1), ("delay_s", 0), ("work_exponent", -0.1),
        ("prefill_fairness", 1.1),
    ],
)  # fmt: skip
def test_every_option_of_andes_is_checked(option_name: str, wrong: Any) -> None:
    with pytest.raises(ValueError, match=f"policy andes: {option_name} must be "):
        make_policy("andes", {option_name: wrong})


def test_all_options_of_andes_are_in_that_list() -> None:
    assert len(AndesOptions.describe()) == 21


def test_make_takes_the_options_as_arguments() -> None:
    policy = make("andes", horizon_s=30)
    assert isinstance(policy, Andes)
    assert policy.options == AndesOptions(horizon_s=30.0)
