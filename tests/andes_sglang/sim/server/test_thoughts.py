"""A simulated model that thinks first: what its answers look like, in events and whole."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any

import pytest

from andes_sglang.qoe import QoETarget
from andes_sglang.sim.server import bodies
from andes_sglang.sim.server.choice import Choice, plan
from andes_sglang.sim.server.dialect import Chat
from andes_sglang.sim.server.typed_dialects import Messages, Responses

LIMITS = bodies.Limits(4096, 4096, 40.0, QoETarget(), mean_thought_tokens=60.0)
ASK = {"messages": [{"role": "user", "content": "Why?"}], "max_tokens": 200}
BUDGET = {"custom_params": {"thinking_budget": 9}}


def planned(**more: Any) -> tuple[bodies.AnswerRequest, Choice]:
    asked = bodies.read_chat({**ASK, **more}, LIMITS)
    return asked, plan(asked, asked.prompts[0], 0, LIMITS)


def answer(tokens: int, choice: Choice) -> Any:
    """What the dialects read of an answer that has ``tokens``."""
    return SimpleNamespace(tokens=tokens, done=tokens >= choice.tokens, aborted=False, cached_tokens=0)


def test_a_thought_comes_first_within_its_budget_and_is_as_long_each_time() -> None:
    asked, free = planned()
    assert free.thought == plan(asked, asked.prompts[0], 0, LIMITS).thought > 9
    assert planned(**BUDGET)[1].thought == 9
    assert planned(chat_template_kwargs={"enable_thinking": False})[1].thought == 0
    _, cut = planned(max_tokens=5)
    assert (cut.thought, cut.tokens, cut.finish, cut.text(0, 5)) == (5, 5, "length", "")
    with pytest.raises(bodies.BadRequestError, match="chat_template_kwargs must be an object, got 'off'"):
        planned(chat_template_kwargs="off")


def test_the_answer_is_the_same_with_and_without_the_thought() -> None:
    _, thoughtful = planned(**BUDGET)
    _, plain = planned(chat_template_kwargs={"enable_thinking": False})
    assert thoughtful.text(0, thoughtful.tokens) == plain.text(0, plain.tokens)
    text, stop = plain.text(0, plain.tokens), plain.text(5, 7)
    _, stopped = planned(**BUDGET, stop=stop)
    assert (stopped.text(0, stopped.tokens), stopped.finish) == (text[: text.find(stop)], "stop")
    assert stopped.tokens == 9 + text.find(stop) // 4 + 2


def test_a_thought_that_is_not_separated_is_a_part_of_the_text() -> None:
    _, apart = planned(**BUDGET)
    _, one = planned(**BUDGET, separate_reasoning=False)
    assert one.text(0, one.tokens) == apart.reasoning(0, apart.tokens) + apart.text(0, apart.tokens)
    assert (one.hidden, one.reasoning(0, one.tokens)) == (0, "")


def read(events: bytes) -> list[dict[str, Any]]:
    lines = [line[6:] for line in events.split(b"\n") if line.startswith(b"data: ")]
    return [json.loads(line) for line in lines]


def of_chat(events: list[dict[str, Any]]) -> tuple[str, str]:
    deltas = [event["choices"][0]["delta"] for event in events if event["choices"]]
    return "".join(d["reasoning_content"] or "" for d in deltas), "".join(d.get("content", "") for d in deltas)


def of_responses(events: list[dict[str, Any]]) -> tuple[str, str]:
    thought = [e["delta"] for e in events if e["type"] == "response.reasoning_text.delta"]
    return "".join(thought), "".join(e["delta"] for e in events if e["type"] == "response.output_text.delta")


def of_messages(events: list[dict[str, Any]]) -> tuple[str, str]:
    deltas = [event["delta"] for event in events if event["type"] == "content_block_delta"]
    return "".join(d.get("thinking", "") for d in deltas), "".join(d.get("text", "") for d in deltas)


@pytest.mark.parametrize(
    ("dialect", "parts"),
    [(Chat, of_chat), (Responses, of_responses), (Messages, of_messages)],
    ids=lambda p: p.__name__,
)
@pytest.mark.parametrize("step", [1, 5, 1000])
def test_events_tell_thought_and_answer_apart_however_many_tokens_they_bring(
    dialect: Any, parts: Any, step: int
) -> None:
    asked, choice = planned(**BUDGET)
    speaks = dialect("r", asked, [choice], False)
    events, had = b"", 0
    while had < choice.tokens:
        now = min(choice.tokens, had + step)
        events += speaks.piece(0, answer(now, choice), had)
        had = now
    whole = answer(choice.tokens, choice)
    told = read(events + speaks.tail([whole]))
    assert parts(told) == (choice.reasoning(0, 9), choice.text(0, choice.tokens))
    if dialect is not Chat:
        opened = [e for e in told if e["type"] in ("response.output_item.added", "content_block_start")]
        closed = [e for e in told if e["type"] in ("response.output_item.done", "content_block_stop")]
        assert [e.get("index", e.get("output_index")) for e in opened] == [0, 1]
        assert [e.get("index", e.get("output_index")) for e in closed] == [0, 1]
    assert speaks.usage([whole])["reasoning_tokens"] == 9
    assert choice.reasoning(0, 9) in json.dumps(speaks.whole([whole]))
