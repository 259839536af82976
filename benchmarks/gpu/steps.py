"""The steps of a run on a GPU: each fills in the figures of one entry of the journal."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

from andes_sglang.bench.client import prompt_ids
from andes_sglang.bench.compare import FLUSH_TIMEOUT_S, sustained_tokens_per_s, warm_up
from andes_sglang.bench.engine import Engine, EngineError, read_metrics
from andes_sglang.bench.measure import ReplayOptions, measure
from andes_sglang.request import RequestSpec
from andes_sglang.sim import profile as profiles
from andes_sglang.workload import draw_shape, mean_length
from benchmarks.gpu.setting import LOAD, Setting, surge

__all__ = [
    "calibrate", "copy_rates", "engine_of", "resumes", "smoke", "start_together", "stop_together", "surge_on", "take_profile",
    "with_host_tier",
]  # fmt: skip

Entry = dict[str, Any]
VOCABULARY = (10, 1000)
FIRST_ID = VOCABULARY[0]
SMOKE_PROMPT_TOKENS, SMOKE_TOKENS = 200, 128
FLOOD_RPS = 1e3
WRITTEN_ANSWER_TOKENS = 100
"""Of a request that is to have a copy in host memory: a running stream is copied after its first 64."""
FILLER_SHARE = 0.6
"""Of the pool: two prompts of that size leave nothing of what was there before."""
PATIENCE_S = 60.0
COPIES = 5
"""Of a block each way, after one that is not counted."""
KEPT = ("requests", "failed", "interrupted", "tokens_per_s", "effective_tokens_per_s", "preemptions_per_request",
        "recomputed_tokens", "backlog_requests")  # fmt: skip
"""Figures of a run that are kept beside those of QoE, first tokens and stalls."""


def engine_of(setting: Setting, model: Path, policy: str, flags: tuple[str, ...], log: Path) -> Engine:
    """Not started yet."""
    common = ("--load-format", "dummy", "--enable-metrics", *setting.flags)
    return Engine(model, policy, (*common, *flags), log=log, start_timeout_s=setting.start_timeout_s)


def smoke(engine: Engine, entry: Entry) -> None:
    """One answer of an engine that has been warmed up: every token of it comes."""
    first_s, whole_s, tokens = _stream(engine, _prompt(SMOKE_PROMPT_TOKENS, 1), SMOKE_TOKENS)
    entry["rows"] = [{"ttft_ms": 1e3 * first_s, "tokens_per_s": (tokens - 1) / (whole_s - first_s)}]
    if tokens != SMOKE_TOKENS:
        raise EngineError(f"{tokens} tokens came, {SMOKE_TOKENS} were asked for")


def start_together(engines: Mapping[str, Engine], entry: Entry) -> None:
    """At the same time, each warmed up, its policy in charge. Raises :class:`EngineError` naming those that did not start;
    the others run."""

    def start(engine: Engine) -> tuple[float, str]:
        began_s = time.monotonic()
        try:
            engine.__enter__()
            warm_up(engine, FIRST_ID)
            engine.check_policy()
        except (EngineError, OSError) as error:
            return time.monotonic() - began_s, str(error)
        return time.monotonic() - began_s, ""

    with ThreadPoolExecutor(len(engines)) as pool:
        started = dict(zip(engines, pool.map(start, engines.values()), strict=True))
    entry["rows"] = [{"what": name, "seconds": seconds} for name, (seconds, _) in started.items()]
    if faults := [f"{name}: {fault}" for name, (_, fault) in started.items() if fault]:
        raise EngineError("; ".join(faults))


def stop_together(engines: Mapping[str, Engine]) -> None:
    with ThreadPoolExecutor(len(engines)) as pool:
        list(pool.map(Engine.stop, engines.values()))


def take_profile(engine: Engine, seconds: float, hardware: str, *, out: Path, timeout_s: float, entry: Entry) -> None:
    """``andes profile`` of a running engine, loaded for about ``seconds``."""
    command = [sys.executable, "-m", "andes_sglang.cli", "profile", "--url", engine.url, "--out", str(out)]
    command += ["--seconds", str(seconds), "--hardware", hardware, "--model", "shape of Llama-3.1-8B, dummy weights"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=timeout_s, check=False)
    if done.returncode != 0:
        raise RuntimeError(done.stderr[-1500:])
    profile = profiles.load(str(out))
    entry["source"] = profile.source
    costs = profile.engine.costs
    entry["rows"] = [
        {"what": "decode step", "fixed_ms": 1e3 * costs.decode_fixed_s, "per_request_us": 1e6 * costs.decode_request_s,
         "per_1k_context_us": 1e9 * costs.decode_context_s},
        {"what": "prefill", "fixed_ms": 1e3 * costs.prefill_fixed_s, "per_1k_tokens_ms": 1e6 * costs.prefill_token_s},
    ]  # fmt: skip


def calibrate(engine: Engine, setting: Setting, cut_s: float, entry: Entry) -> None:
    """``rate_rps``: the load of the surges, from what stock makes of a flood that ends after ``cut_s`` at the latest."""
    flood = draw_shape("poisson", rate_rps=FLOOD_RPS, duration_s=setting.flood_requests / FLOOD_RPS, prompt=setting.prompt,
                       output=setting.output, seed=1)  # fmt: skip
    with _cut_after(cut_s):
        run = measure({"flood": engine.url}, flood, ReplayOptions(1, VOCABULARY))["flood"]
    entry["sustained_tokens_per_s"] = sustained_tokens_per_s(run.records)
    entry["rate_rps"] = LOAD * entry["sustained_tokens_per_s"] / mean_length(setting.output)
    entry["rows"] = [{"sustained_tokens_per_s": entry["sustained_tokens_per_s"], "rate_rps": entry["rate_rps"]}]
    _flush(engine)


def surge_on(engine: Engine, setting: Setting, rate_rps: float, *, seed: int, cut_s: float, entry: Entry) -> None:
    """One surge on one engine while the others stand still. Cut after ``cut_s``: what had been measured counts."""
    with _cut_after(cut_s):
        run = measure({"surge": engine.url}, surge(setting, rate_rps, seed), ReplayOptions(seed, VOCABULARY))["surge"]
    figures = run.figures
    entry["figures"] = {name: figures.get(name) for name in (*KEPT, "qoe", "ttft_s", "itl_s", "stall_s")}
    entry["rows"] = [{
        "mean_qoe": figures["qoe"]["mean"], "p5": figures["qoe"]["p5"], "ttft_p90_s": figures["ttft_s"]["p90"],
        "longest_stall_p90_s": figures["stall_s"]["longest_p90"], **{name: figures.get(name) for name in KEPT},
    }]  # fmt: skip
    if not engine.alive():
        raise EngineError(f"the engine ended during the run:\n{engine.tail()}")
    _flush(engine)


def copy_rates(setting: Setting, entry: Entry) -> None:
    """Pinned host memory to the device and back, by torch alone: what no copy of KV can surpass."""
    import torch

    cuda = torch.cuda.is_available()
    host = torch.zeros(setting.link_bytes, dtype=torch.uint8, pin_memory=cuda)
    device = torch.zeros_like(host, device="cuda" if cuda else "cpu")
    entry["rows"] = []
    for what, source, target in (("write", device, host), ("load", host, device)):
        for copies in (1, COPIES):
            began_s = time.perf_counter()
            for _ in range(copies):
                target.copy_(source, non_blocking=True)
            if cuda:
                torch.cuda.synchronize()
            seconds = time.perf_counter() - began_s
        entry["rows"].append({"direction": what, "gb_per_s": COPIES * setting.link_bytes / seconds / 1e9})
    del host, device
    if cuda:
        torch.cuda.empty_cache()


def resumes(engine: Engine, setting: Setting, entry: Entry) -> None:
    """Seconds to the next token of contexts that return: computed again, loaded from host memory, and still on the device."""
    entry["rows"] = rows = []
    for number, tokens in enumerate(setting.resume_tokens):
        prompt = _prompt(tokens, 100 + number)
        _flush(engine)
        row: Entry = {"context_tokens": tokens}
        rows.append(row)
        written = _metric(engine, "andes_host_copied_bytes_total", 'direction="write"')
        row["computed_ms"] = 1e3 * _stream(engine, prompt, WRITTEN_ANSWER_TOKENS)[0]
        _wait_for_copy(engine, written + tokens * setting.large.kv_token_bytes)
        for filler in (200, 300):
            _stream(engine, _prompt(int(FILLER_SHARE * setting.pool_tokens), filler + number), 1)
        before = _host(engine)
        row["loaded_ms"] = 1e3 * _stream(engine, prompt, 1)[0]
        _settle(engine)
        after = _host(engine)
        row["loaded_tokens"] = after["hits"] - before["hits"]
        if after["load_s"] > before["load_s"]:
            row["load_gb_per_s"] = (after["bytes"] - before["bytes"]) / (after["load_s"] - before["load_s"]) / 1e9
        row["on_device_ms"] = 1e3 * _stream(engine, prompt, 1)[0]
    _flush(engine)


def with_host_tier(profile: Path, setting: Setting, link_gb_per_s: float) -> None:
    """Add to ``profile`` what copies to host memory take: the slower direction of the link."""
    measured = profiles.load(str(profile))
    token_bytes = setting.large.kv_token_bytes
    engine = replace(
        measured.engine, host_tokens_per_s=link_gb_per_s * 1e9 / token_bytes,
        host_capacity_tokens=int(setting.host_gib * (1 << 30) / token_bytes),
    )  # fmt: skip
    profile.write_text(profiles.dump(replace(measured, engine=engine)))


def _prompt(tokens: int, seed: int) -> list[int]:
    return prompt_ids(RequestSpec(0.0, tokens, 1), 0, seed, VOCABULARY)


def _stream(engine: Engine, prompt: list[int], tokens: int) -> tuple[float, float, int]:
    """Seconds to the first token and to the end, and how many tokens came."""
    connection = http.client.HTTPConnection("127.0.0.1", engine.port, timeout=PATIENCE_S)
    body = {"input_ids": prompt, "stream": True,
            "sampling_params": {"max_new_tokens": tokens, "ignore_eos": True, "temperature": 0}}  # fmt: skip
    began_s = time.perf_counter()
    first_s, said = 0.0, {}
    with contextlib.closing(connection):
        connection.request("POST", "/generate", json.dumps(body), {"content-type": "application/json"})
        for line in connection.getresponse():
            if not line.startswith(b"data:") or line.strip().endswith(b"[DONE]"):
                continue
            first_s = first_s or time.perf_counter() - began_s
            said = json.loads(line[5:])
    if "meta_info" not in said:
        raise EngineError(f"no answer: {str(said)[:300]}")
    return first_s, time.perf_counter() - began_s, int(said["meta_info"]["completion_tokens"])


def _flush(engine: Engine) -> None:
    engine.post(f"/flush_cache?timeout={FLUSH_TIMEOUT_S}", {})


def _metric(engine: Engine, name: str, label: str = "") -> float:
    return sum(value for key, value in read_metrics(engine.url).items() if key.startswith(name) and label in key)


def _host(engine: Engine) -> dict[str, float]:
    load = 'direction="load"'
    return {
        "hits": _metric(engine, "andes_host_hit_tokens_total"),
        "bytes": _metric(engine, "andes_host_copied_bytes_total", load),
        "load_s": _metric(engine, "andes_host_copy_seconds_total", load),
    }


def _wait_for_copy(engine: Engine, bytes_written: float) -> None:
    end_s = time.monotonic() + PATIENCE_S / 6
    while _metric(engine, "andes_host_copied_bytes_total", 'direction="write"') < bytes_written:
        if time.monotonic() > end_s:
            return  # the tokens that were loaded, beside the figure, say what it is worth
        time.sleep(0.05)


def _settle(engine: Engine) -> None:
    """A short answer: reports of copies go out with the iterations."""
    _stream(engine, _prompt(16, 1), 4)


@contextlib.contextmanager
def _cut_after(seconds: float) -> Iterator[None]:
    """As Ctrl-C after ``seconds``, with which a replay ends and keeps what it has measured."""
    timer = threading.Timer(seconds, os.kill, (os.getpid(), signal.SIGINT))
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
