"""An answer that is cut and asked for again goes on as it would have."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from andes_sglang.qoe import QoETarget
from andes_sglang.resume import continued
from andes_sglang.sim.server.bodies import Limits, read_chat, read_completion
from andes_sglang.sim.server.choice import Choice, plan
from andes_sglang.sim.server.text import passage

LIMITS = Limits(1 << 20, 1 << 20, 256.0, QoETarget(1.0, 4.8))


def answer(body: dict[str, Any]) -> Choice:
    asked = read_chat(body, LIMITS) if "messages" in body else read_completion(body, LIMITS)
    return plan(asked, asked.prompts[0], 0, LIMITS)


def text_of(choice: Choice) -> str:
    return choice.text(0, choice.tokens)


def ask(prompt: str, chat: bool, **more: Any) -> dict[str, Any]:
    asked: dict[str, Any] = {"messages": [{"role": "user", "content": prompt}]} if chat else {"prompt": prompt}
    return {"temperature": 0, **asked, **more}


@pytest.mark.parametrize("chat", [True, False], ids=["chat", "completion"])
@given(
    prompt=st.one_of(st.text(min_size=1), st.integers(0, 1 << 14).map(lambda at: "Say: " + passage(at, 0, 20))),
    cut=st.integers(1, 400),
    seed=st.integers(0, 1 << 20),
)
def test_a_cut_answer_is_continued_to_the_letter(chat: bool, prompt: str, cut: int, seed: int) -> None:
    body = ask(prompt, chat, max_tokens=400, seed=seed, ignore_eos=True)
    whole = text_of(answer(body))
    begun = answer(body).text(0, cut)
    rest = continued(body, chat, begun, cut)
    assert begun + (text_of(answer(rest)) if rest else "") == whole


def test_it_ends_where_it_would_have_ended() -> None:
    body = ask("Tell me more.", True)
    whole = answer(body)
    assert (whole.finish, whole.matched) == ("stop", 2)
    for cut in (1, 7, 8, 9, whole.tokens - 1):
        rest = answer(continued(body, True, whole.text(0, cut), cut) or {})
        assert (rest.tokens, rest.finish, rest.matched) == (whole.tokens - cut, "stop", 2)
        assert whole.ids(cut) + rest.ids(rest.tokens) == whole.ids(whole.tokens)


def test_it_is_continued_across_the_end_of_the_page() -> None:
    for k in range(4000):  # the page has 16,384 tokens; an answer of 256 begins so near its end once in 64
        body = ask(f"prompt {k}", False, max_tokens=300, ignore_eos=True)
        whole = answer(body)
        if whole.seed % (1 << 14) > (1 << 14) - 100:
            begun = whole.text(0, 200)
            assert begun + text_of(answer(continued(body, False, begun, 200) or {})) == text_of(whole)
            return
    raise AssertionError("no answer crosses the end of the page")


def test_what_is_no_answer_is_a_prompt_like_any_other() -> None:
    user, said = {"role": "user", "content": "Tell me more."}, {"role": "assistant", "content": "Well, "}
    whole = text_of(answer({"messages": [user], "max_tokens": 30}))
    assert text_of(answer({"messages": [user, said], "continue_final_message": True, "max_tokens": 30})) != whole
    turn = {"role": "assistant", "content": whole}
    assert text_of(answer({"messages": [user, turn], "max_tokens": 30})) != whole, "a turn that is over is no beginning"
    again = {"messages": [user, turn, user], "continue_final_message": True, "max_tokens": 30}
    assert answer(again).said == 0
    assert answer({"prompt": [5, 6, 7, 8], "max_tokens": 5}).said == 0
