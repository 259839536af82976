"""The simulated engine beside the real one: the same questions, answers of the same form."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from andes_sglang.bench.engine import Engine

pytestmark = [pytest.mark.engine, pytest.mark.timeout(600)]
LIMITS = ("--max-running-requests", "2", "--max-queued-requests", "2", "--max-total-tokens", "40960")
QUIET = {"temperature": 0, "ignore_eos": True}
ASK: Any = [{"role": "user", "content": "an be cor"}]


@pytest.fixture(scope="module")
def urls(
    tiny_model: Path, simulated: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[list[str]]:
    """The real engine's address and the simulated one's."""
    log = tmp_path_factory.mktemp("real") / "log"
    with Engine(tiny_model, "fcfs", (*LIMITS, "--enable-metrics"), log=log) as real:
        yield [real.url, simulated("--policy", "fcfs", *LIMITS).url]


def form(value: Any) -> Any:
    """Keys and types; of a list, those of its elements."""
    if isinstance(value, dict):
        return {key: form(inner) for key, inner in sorted(value.items())}
    if isinstance(value, list):
        return sorted({json.dumps(form(inner)) for inner in value})
    return "number" if type(value) in (int, float) else type(value).__name__


def ask(url: str, path: str, body: Any) -> Any:
    """Status, type, and the form of the answer, or of each kind of event in order of appearance."""
    answer = httpx.post(url + path, json=body, timeout=120)
    kind = answer.headers["content-type"].split(";")[0]
    if kind != "text/event-stream":
        return answer.status_code, kind, form(answer.json())
    events = [line.removeprefix("data: ") for line in answer.text.split("\n") if line]
    forms = [event if event == "[DONE]" else json.dumps(form(json.loads(event))) for event in events]
    return answer.status_code, kind, list(dict.fromkeys(forms))


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/completions", {"prompt": "an be cor", "max_tokens": 6, **QUIET}),
        ("/v1/completions", {"prompt": ["an be", "cor"], "max_tokens": 6, "ignore_eos": True}),
        ("/v1/completions", {"prompt": "an be cor", "max_tokens": 6, "n": 2, "ignore_eos": True}),
        ("/v1/completions", {"prompt": [5, 6, 7], "max_tokens": 6, "echo": True, **QUIET}),
        ("/v1/completions", {"prompt": [5, 6, 7], "max_tokens": 6, "stream": True, **QUIET}),
        (
            "/v1/completions",
            {"prompt": [5], "max_tokens": 6, "stream": True, "stream_options": {"include_usage": True}, **QUIET},
        ),
        (
            "/v1/completions",
            {
                "prompt": [5],
                "max_tokens": 6,
                "stream": True,
                "stream_options": {"continuous_usage_stats": True},
                **QUIET,
            },
        ),
        ("/v1/chat/completions", {"messages": ASK, "max_tokens": 6, **QUIET}),
        ("/v1/chat/completions", {"messages": ASK, "max_tokens": 6, "stream": True, **QUIET}),
        (
            "/v1/chat/completions",
            {"messages": ASK, "max_tokens": 6, "stream": True, "stream_options": {"include_usage": True}, **QUIET},
        ),
        ("/v1/completions", {"prompt": "an", "custom_params": {"qoe": {"tds": -4}}}),
        ("/v1/chat/completions", {"messages": ASK, "stream": True, "custom_params": {"qoe": {"ttft": "1"}}}),
        ("/generate", {"text": "an", "sampling_params": {"custom_params": {"qoe": 3}}}),
        ("/v1/completions", {"prompt": "an", "max_tokens": 0}),
        ("/v1/completions", {"prompt": ""}),
        ("/v1/completions", {"prompt": "an", "max_tokens": 10**6}),
        ("/v1/completions", {"prompt": "an", "temperature": -1}),
        ("/v1/chat/completions", {"messages": []}),
        ("/v1/nothing", {}),
        ("/health", {}),
    ],
    ids=lambda x: str(x)[:70],
)
def test_answers_have_the_same_form(urls: list[str], path: str, body: Any) -> None:
    real, ours = (ask(url, path, body) for url in urls)
    assert ours == real


def test_generate_tells_part_of_what_sglang_tells(urls: list[str]) -> None:
    body = {"text": "an be", "sampling_params": {"max_new_tokens": 6, **QUIET}}
    real, ours = (httpx.post(url + "/generate", json=body, timeout=120).json() for url in urls)
    assert set(ours) <= set(real)
    told = {key: form(value) for key, value in real["meta_info"].items()}
    assert form(ours["meta_info"]).items() <= told.items()
    assert (form(ours["text"]), form(ours["output_ids"])) == (form(real["text"]), form(real["output_ids"]))


@pytest.mark.parametrize("path", ["/health", "/health_generate", "/v1/models", "/model_info", "/get_model_info"])
def test_what_they_say_of_themselves_has_the_same_form(urls: list[str], path: str) -> None:
    real, ours = (httpx.get(url + path, timeout=120) for url in urls)
    assert ours.status_code == real.status_code == 200
    if real.text and path.endswith("model_info"):  # the real one has a plan for embeddings as well
        assert form(ours.json()).items() <= form(real.json()).items()
    elif real.text:
        assert form(ours.json()) == form(real.json())


def test_loads_are_part_of_the_real_ones(urls: list[str]) -> None:
    real, ours = (httpx.get(url + "/v1/loads?include=core", timeout=120).json() for url in urls)
    assert set(ours) == set(real)
    assert form(ours["loads"][0]).items() <= form(real["loads"][0]).items()


def test_every_metric_is_one_of_the_real_engines(urls: list[str]) -> None:
    """With the same type and labels; the real one shows a counter only once it has counted."""
    real, ours = (
        {
            (family.name, family.type): {frozenset(sample.labels) - {"le"} for sample in family.samples}
            for family in text_string_to_metric_families(httpx.get(url + "/metrics", timeout=120).text)
        }
        for url in urls
    )
    uncounted = {"andes_preemptions", "andes_resumes", "sglang:num_retracted_requests", "sglang:num_aborted_requests"}
    assert {name for name, _ in ours.keys() - real.keys()} <= uncounted | {"andes_sim_lag_seconds"}
    assert {family for family in real if family[0].startswith("andes_")} <= ours.keys()
    assert {family: labels for family, labels in ours.items() if not labels <= real.get(family, labels)} == {}


@contextmanager
def crowd(url: str) -> Iterator[list[Any]]:
    """Two streams run and two wait, for far longer than the questions take: the engine is full. Afterwards they are aborted; how that looks is in the list."""
    aborted: list[Any] = []

    def load(running: int, waiting: int) -> None:
        deadline = time.monotonic() + 250
        while True:
            load = httpx.get(url + "/v1/loads?include=core", timeout=120).json()["loads"][0]
            if (load["num_running_reqs"], load["num_waiting_reqs"]) == (running, waiting):
                return
            assert time.monotonic() < deadline, load

    with ThreadPoolExecutor(4) as pool:
        body = {"prompt": [5, 6, 7], "max_tokens": 19000, "stream": True, **QUIET}
        ends = [pool.submit(ask, url, "/v1/completions", body) for _ in range(2)]
        load(2, 0)
        ends += [pool.submit(ask, url, "/v1/completions", body) for _ in range(2)]
        load(2, 2)
        yield aborted
        httpx.post(url + "/abort_request", json={"abort_all": True}, timeout=120)
        aborted += sorted(end.result() for end in ends)


def test_a_full_queue_is_told_in_the_same_form(urls: list[str]) -> None:
    answers = []
    for url in urls:
        with crowd(url) as aborted:
            answers.append(
                [
                    ask(url, "/v1/completions", {"prompt": "an"}),
                    ask(url, "/v1/completions", {"prompt": "an", "stream": True}),
                    ask(url, "/v1/chat/completions", {"messages": ASK, "stream": True}),
                    httpx.post(url + "/v1/completions", json={"prompt": "an"}, timeout=120).text,
                    httpx.post(url + "/v1/completions", json={"prompt": "an", "stream": True}, timeout=120)
                    .text.replace('": ', '":')
                    .replace(', "', ',"'),
                ]
            )
        answers[-1] += aborted
    assert answers[1] == answers[0]
