"""The client's own arithmetic: what a reader got, when text is shown, when a question is asked again."""

from __future__ import annotations

import ast
import json
import math
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from hypothesis import given
from hypothesis import strategies as st
from openai.types import CompletionUsage
from openai.types.chat import ChatCompletionChunk

import andes_client
from andes_client import AndesClient, Experience, Pacer, Reader, Timeline
from andes_client.answer import _Reception
from andes_client.experience import count_tokens
from andes_client.reports import Reports
from andes_client.retries import Retries
from andes_sglang.qoe import QoETarget, ReaderStream

RULES = json.loads((Path(__file__).parents[1] / "fixtures" / "reader.json").read_text())
"""What the Python and the JavaScript client both keep."""
PACKAGE = Path(__file__).parents[2] / "clients" / "python" / "andes_client"


def test_it_imports_openai_and_jiter_and_nothing_else() -> None:
    found = set()
    for file in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Import):
                found |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                found.add((node.module or "").split(".")[0])
    assert found - set(sys.stdlib_module_names) <= {"andes_client", "openai", "jiter"}


@given(
    st.floats(0, 1e6),
    st.lists(st.tuples(st.floats(0, 30), st.integers(1, 9)), min_size=1, max_size=30),
    st.floats(0, 20),
    st.floats(0.1, 100),
)
def test_the_score_is_the_server_s(
    asked_s: float, gaps: list[tuple[float, int]], first_token_s: float, reading_speed: float
) -> None:
    """Of the same deliveries, as ``andes_sglang.qoe`` scores them."""
    ours, theirs = Timeline(asked_s), ReaderStream(asked_s, QoETarget(first_token_s, reading_speed))
    now_s = asked_s
    for gap_s, tokens in gaps:
        now_s += gap_s
        ours.show(now_s, tokens)
        theirs.deliver(now_s, tokens)
    got = ours.experience(first_token_s=first_token_s, reading_speed=reading_speed)
    assert got.qoe == pytest.approx(theirs.final_qoe(), abs=1e-6)
    assert got.tokens == theirs.delivered
    assert got.stalls == theirs.stalls
    assert got.longest_stall_s == pytest.approx(theirs.longest_stall_s, abs=1e-5)


def test_the_server_s_count_of_tokens_is_spread_over_the_pieces() -> None:
    timeline = Timeline(0.0)
    for k in range(10):
        timeline.show(1.0 + k, 1)
    exact = timeline.experience(first_token_s=1.0, reading_speed=2.0, tokens=20)
    assert (exact.tokens, exact.qoe, exact.stalls) == (20, 1.0, 0)
    assert timeline.experience(first_token_s=1.0, reading_speed=2.0).stalls == 9
    fewer = timeline.experience(first_token_s=1.0, reading_speed=2.0, tokens=5)
    assert fewer.tokens == 5


@pytest.mark.parametrize("row", RULES["experience"], ids=lambda row: row["case"])
def test_the_same_score_in_core_and_clients(row: dict[str, Any]) -> None:
    ours = Timeline(row["asked_s"])
    core = ReaderStream(row["asked_s"], QoETarget(row["first_token_s"], row["reading_speed"]))
    last_s = row["asked_s"]
    for at_s, tokens in row["shown"]:
        ours.show(at_s, tokens)
        last_s = max(last_s, at_s)
        core.deliver(last_s, tokens)
    got = ours.experience(
        first_token_s=row["first_token_s"], reading_speed=row["reading_speed"], tokens=row["counted_by_server"]
    )
    assert {name: getattr(got, name) for name in row["experience"]} == pytest.approx(row["experience"], abs=1e-6)
    assert str(got) == row["said"]
    if row["counted_by_server"] is None:
        there = (core.final_qoe(), core.delivered, core.stalls, core.stall_s, core.longest_stall_s)
        names = ("qoe", "tokens", "stalls", "stall_s", "longest_stall_s")
        assert dict(zip(names, there)) == pytest.approx({name: row["experience"][name] for name in names}, abs=1e-6)


def test_pieces_are_counted_and_shown_as_in_the_other_client() -> None:
    for text, tokens in RULES["count_tokens"]:
        assert count_tokens(text) == tokens, text
    for row in RULES["pacing"]:
        pacer = Pacer(row["reading_speed"])
        assert [pacer.show_at(at_s, tokens) for at_s, tokens in row["came"]] == pytest.approx(row["show_at_s"])


def test_headers_and_retries_are_those_of_the_other_client() -> None:
    for row in RULES["headers"]:
        assert Reader(**row["reader"]).headers() == row["headers"]
    for field, value in RULES["refused"]:
        with pytest.raises(ValueError, match=field):
            Reader(**{field: value})
    for row in RULES["told"]:
        told = Reader(**row["reader"]).told(row["headers"])
        assert {"reading_speed": told.reading_speed, "first_token_s": told.first_token_s} == row["holds"]
    for row in RULES["retries"]:
        retries = Retries(row["max_wait_s"], row["attempts"])
        for tried in row["tries"]:
            wait = retries.after(refusal(**tried) if "status" in tried else LOST)
            assert (wait and wait.seconds) == tried["wait_s"], tried


def test_nothing_that_came_and_clocks_that_jump_back() -> None:
    assert Timeline(5.0).experience(first_token_s=1, reading_speed=5) == Experience(0.0, 0, None, 0, 0.0, 0.0)
    timeline = Timeline(5.0)
    for at_s in (6.0, 2.0, 7.0):
        timeline.show(at_s, 3)
    got = timeline.experience(first_token_s=1, reading_speed=5)
    assert 0.9 < got.qoe <= 1.0
    assert got.ttft_s == 1.0
    assert "QoE" in str(got)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("reading_speed", 0), ("reading_speed", math.nan), ("reading_speed", "9"), ("reading_speed", True),
        ("first_token_s", -1), ("first_token_s", math.inf), ("expected_tokens", 0), ("expected_tokens", 1.5), ("klass", ""),
        ("klass", 5),
    ],
)  # fmt: skip
def test_a_reader_that_makes_no_sense_is_named(field: str, value: Any) -> None:
    with pytest.raises(ValueError, match=field) as caught:
        Reader(**{field: value})
    assert repr(value) in str(caught.value)


def test_arguments_that_make_no_sense_are_named_before_anything_is_sent() -> None:
    client = AndesClient(base_url="http://127.0.0.1:1/v1", api_key="x")
    for arguments, says in (
        ({"n": 2}, "n cannot"),
        ({"stream": False}, "stream cannot"),
        ({"reading_speed": -1}, "reading_speed"),
    ):
        with pytest.raises(ValueError, match=says):
            client.stream("x", model="m", **arguments)
    for messages in (None, 5, ["x"], {"role": "user"}):
        with pytest.raises(ValueError, match="messages must be text or a list of messages, got "):
            client.stream(messages, model="m")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="max_wait_s"):
        AndesClient(base_url="http://x", api_key="x", max_wait_s=-1)


REQUEST = httpx.Request("POST", "http://x")
LOST = openai.APIConnectionError(request=REQUEST)


def refusal(status: int, headers: dict[str, str] | None = None, **_: object) -> openai.APIStatusError:
    return openai.APIStatusError("full", response=httpx.Response(status, headers=headers, request=REQUEST), body=None)


def test_a_connection_that_fails_is_tried_again_a_few_times() -> None:
    retries, lost = (
        Retries(max_wait_s=60, attempts=2),
        openai.APIConnectionError(request=httpx.Request("POST", "http://x")),
    )
    waits = [retries.after(lost) for _ in range(3)]
    assert [wait and wait.seconds for wait in waits] == [0.5, 1.0, None]


def test_a_thought_is_not_read_and_the_reader_has_patience_for_it() -> None:
    """100 tokens at 25 a second are 4 s more for the first of the answer."""
    now_s = iter((5.0, 5.2))
    seen = _Reception(Reader(5.0, 1.0), {}, asked_s=0.0, pace=False, clock=lambda: next(now_s))
    deltas = ({"reasoning_content": "x" * 400}, {"content": "so"}, {"content": "it"})
    for delta in deltas:
        choice = {"index": 0, "delta": delta, "finish_reason": None}
        told = {"id": "a", "created": 1, "model": "m", "object": "chat.completion.chunk", "choices": [choice]}
        for piece in seen.take(ChatCompletionChunk.model_validate(told)):
            seen.show(piece)
    assert (seen.text, seen.experience.tokens, seen.experience.ttft_s) == ("soit", 2, 5.0)
    assert seen.experience.qoe == pytest.approx(1.0)
    usage = {"prompt_tokens": 1, "completion_tokens": 52, "total_tokens": 53, "reasoning_tokens": 50}
    ended = {"index": 0, "delta": {}, "finish_reason": "stop"}
    last = {
        "id": "a",
        "created": 1,
        "model": "m",
        "object": "chat.completion.chunk",
        "choices": [ended],
        "usage": usage,
    }
    seen.take(ChatCompletionChunk.model_validate(last))
    assert seen.experience.tokens == 2
    assert seen.experience.qoe < 0.7, "the server's count: patience for 50"
    with pytest.raises(ValueError, match=r"thinking_speed must be tokens/s from 0\.001 to 1e9, or infinite, got 0"):
        Reader(thinking_speed=0)
    seen.usage = CompletionUsage(prompt_tokens=1, completion_tokens=52, total_tokens=53)
    assert seen.experience.tokens == 2, "a count that does not tell thought and answer apart is none of the answer"


def test_what_holds_of_thoughts_goes_out_and_comes_back() -> None:
    header = "x-andes-think-tds"
    holds = {said: Reader().told({header: said}).thinking_speed for said in ("50", "none", "")}
    assert holds == {"50": 50.0, "none": math.inf, "": 25.0}
    assert Reader(thinking_speed=7).told({header: "none"}).thinking_speed == 7
    assert Reader(thinking_speed=math.inf).headers()[header] == "none"


def test_reports_of_an_answer_that_is_never_read_take_no_thread() -> None:
    before = threading.active_count()
    reports = Reports(openai.OpenAI(base_url="http://127.0.0.1:9", api_key="x"), "0" * 32, 1.0, dict)
    assert threading.active_count() == before
    reports.end()


def test_every_name_is_there_and_a_tool_program_imports_no_client() -> None:
    assert all(getattr(andes_client, name) is not None for name in andes_client.__all__)
    assert {*andes_client._HOMES} == {*andes_client.__all__}
    with pytest.raises(AttributeError, match="'AndesClinet'"):
        andes_client.AndesClinet  # noqa: B018
    program = "import sys; from andes_client import serve; sys.exit('openai' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


def test_a_wait_says_why() -> None:
    wait = Retries(max_wait_s=10, attempts=2).after(refusal(429, {"retry-after": "7"}))
    assert wait is not None
    assert (wait.seconds, wait.reason) == (7.0, "full")
    assert Retries(max_wait_s=10, attempts=2).after(openai.OpenAIError("x")) is None
