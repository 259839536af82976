"""Lengths of answers: what is learned, how it is shrunk, what remains."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from andes_sglang.lengths import LengthEstimate, LengthEstimator, length_keys, mean_remaining_tokens

WIDE, NARROW = ("class", "chat"), ("tenant", "acme", "chat")


def taught(*answers: tuple[tuple[object, ...], int], **options: float) -> LengthEstimator:
    lengths = LengthEstimator(**options)  # type: ignore[arg-type]
    for keys, tokens in answers:
        lengths.learn(keys, tokens)  # type: ignore[arg-type]
    return lengths


def test_without_any_answer_the_estimate_is_the_prior() -> None:
    guess = LengthEstimator().estimate([WIDE])
    assert guess.median_tokens == pytest.approx(256)
    assert guess.sigma == pytest.approx(1.0)


def test_a_key_comes_to_say_what_its_answers_say() -> None:
    rng = np.random.default_rng(1)
    lengths = LengthEstimator()
    for tokens in np.exp(rng.normal(math.log(90), 0.4, 400)):
        lengths.learn([WIDE, NARROW], round(tokens))
    guess = lengths.estimate([WIDE, NARROW])
    assert guess.median_tokens == pytest.approx(90, rel=0.1)
    assert guess.sigma == pytest.approx(0.4, rel=0.25)


def test_a_new_key_starts_from_the_wider_one_and_moves_away_with_its_own_answers() -> None:
    lengths = taught(*[((WIDE,), 100)] * 100)
    medians = [lengths.estimate([WIDE, NARROW]).median_tokens]
    for _ in range(30):
        lengths.learn([NARROW], 1000)
        medians.append(lengths.estimate([WIDE, NARROW]).median_tokens)
    assert medians[0] == pytest.approx(100, rel=0.05)
    assert all(a < b for a, b in itertools.pairwise(medians))
    assert math.log(medians[8] / medians[0]) == pytest.approx(
        0.5 * math.log(10), rel=0.15
    )  # 8 answers: half of the way
    assert medians[-1] > 400


def test_while_own_and_wider_answers_disagree_the_spread_covers_both() -> None:
    lengths = taught(*[((WIDE,), 100)] * 100)
    calm = lengths.estimate([WIDE]).sigma
    for _ in range(8):
        lengths.learn([NARROW], 1000)
    assert lengths.estimate([WIDE, NARROW]).sigma > 3 * calm


def test_old_answers_are_forgotten() -> None:
    lengths = taught(*[((WIDE,), 100)] * 200, memory_answers=20)
    for _ in range(100):
        lengths.learn([WIDE], 800)
    assert lengths.estimate([WIDE]).median_tokens == pytest.approx(800, rel=0.1)


def test_an_answer_cut_at_its_limit_is_a_lower_bound() -> None:
    """Half of the answers are cut at the median: taken for finished, the estimate would sink below half of the truth."""
    rng = np.random.default_rng(2)
    bounded, naive = LengthEstimator(memory_answers=2000), LengthEstimator(memory_answers=2000)
    for tokens in np.exp(rng.normal(math.log(400), 0.8, 3000)):
        cut = min(round(tokens), 400)
        bounded.learn([WIDE], cut, finished=tokens <= 400)
        naive.learn([WIDE], cut)
    assert bounded.estimate([WIDE]).median_tokens == pytest.approx(400, rel=0.1)
    assert bounded.estimate([WIDE]).sigma == pytest.approx(0.8, rel=0.15)
    assert naive.estimate([WIDE]).median_tokens < 300


@pytest.mark.parametrize(("mu", "sigma"), [(math.log(300), 0.7), (math.log(40), 1.4)])
@pytest.mark.parametrize("had", [0.0, 10.0, 300.0, 2000.0])
def test_what_remains_is_the_mean_beyond_what_is_there(mu: float, sigma: float, had: float) -> None:
    lengths = np.exp(mu + sigma * np.random.default_rng(3).standard_normal(4_000_000))
    longer = lengths[lengths > had]
    if len(longer) > 2000:
        assert float(mean_remaining_tokens(mu, sigma, had)) == pytest.approx(float((longer - had).mean()), rel=0.05)


def test_what_remains_falls_then_grows_and_takes_arrays() -> None:
    left = mean_remaining_tokens(np.full(4, math.log(200)), np.full(4, 0.8), np.array([0.0, 100.0, 1000.0, 10_000.0]))
    assert left[0] > left[1]
    assert left[1] < left[2] < left[3]
    assert np.isfinite(mean_remaining_tokens(math.log(2), 0.05, 1e7))


def test_quantiles_bracket_the_median() -> None:
    guess = LengthEstimate(math.log(100), 0.5)
    assert guess.quantile(0.5) == pytest.approx(100)
    assert guess.quantile(0.9) == pytest.approx(100 * math.exp(0.5 * 1.2816), rel=1e-3)
    assert guess.mean_tokens == pytest.approx(100 * math.exp(0.125))
    for share in (0.0, 1.0, math.nan):
        with pytest.raises(ValueError, match="share must be between 0 and 1"):
            guess.quantile(share)


def test_the_least_recently_used_keys_are_forgotten() -> None:
    lengths = LengthEstimator(max_keys=3)
    for name in "abc":
        lengths.learn([(name,)], 5000)
    lengths.learn([("a",)], 5000)
    lengths.learn([("d",)], 5000)
    assert len(lengths) == 3
    assert lengths.estimate([("a",)]).median_tokens > lengths.estimate([("b",)]).median_tokens


def test_no_text_of_a_prompt_is_kept() -> None:
    lengths = LengthEstimator()
    head = b"the secret instructions"
    keys = length_keys(tenant="acme", class_name="chat", prompt_tokens=10, prompt_head=head)
    lengths.learn(keys, 10)
    assert "secret" not in repr(vars(lengths))
    others = length_keys(tenant="acme", class_name="chat", prompt_tokens=10, prompt_head=head, salt=b"other")
    assert not set(keys) & set(others)


def test_keys_go_from_wide_to_narrow() -> None:
    def keys(
        tenant: str | None = "t", name: str = "c", tokens: int = 1024, head: bytes | None = b"h"
    ) -> tuple[bytes, ...]:
        return length_keys(tenant=tenant, class_name=name, prompt_tokens=tokens, prompt_head=head)

    def same(other: tuple[bytes, ...]) -> list[bool]:
        return [a == b for a, b in zip(keys(), other, strict=True)]

    assert len(set(keys())) == 5
    assert same(keys(name="d")) == [False] * 5
    assert same(keys(tenant="u")) == [True, True, False, False, False]
    assert same(keys(tokens=4096)) == [True, False, True, False, True]
    assert same(keys(tokens=1400)) == [True] * 5  # within half a doubling
    assert same(keys(head=b"i")) == [True, True, True, True, False]
    assert keys(tenant=None, head=None) == keys()[:2]
    assert len(keys(tokens=0)) == 5


@pytest.mark.parametrize("tokens", [-1, 10_000_001])
def test_a_length_that_makes_no_sense_is_refused(tokens: int) -> None:
    with pytest.raises(ValueError, match=f"output_tokens must be from 0 to 10000000, got {tokens}"):
        LengthEstimator().learn([WIDE], tokens)


@pytest.mark.parametrize("option", ["memory_answers", "max_keys"])
def test_an_option_that_makes_no_sense_is_refused(option: str) -> None:
    with pytest.raises(ValueError, match=f"{option} must be >= 1, got 0"):
        LengthEstimator(**{option: 0})  # type: ignore[arg-type]
