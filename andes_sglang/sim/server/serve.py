"""``andes serve --engine sim``: its flags and their checks; the server itself is imported once they hold."""

from __future__ import annotations

import argparse
import importlib.util
import math
from collections.abc import Callable, Sequence

from andes_sglang import flags
from andes_sglang.flags import UsageError
from andes_sglang.policy import PolicyError, effective_options
from andes_sglang.sim import overrides, profile
from andes_sglang.sim.engine import EngineModel, Overlap
from andes_sglang.sim.server.bodies import Limits
from andes_sglang.sim.server.text import MIN_ANSWER_TOKENS

__all__ = ["add_arguments", "serve"]

DEFAULT_PROFILE = "h100-llama-3.1-8b"
_NEEDED = ("prometheus_client", "starlette", "uvicorn", "uvloop")
_MIN_REQUEST_TOKENS = 2
"""Tokens: a prompt and an answer of one each."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--profile", default=DEFAULT_PROFILE, metavar="NAME|FILE",
        help=f"hardware and model: a .toml file or one of {', '.join(profile.names())}; default: {DEFAULT_PROFILE}",
    )  # fmt: skip
    flags.add_serve_arguments(parser)
    parser.add_argument(
        "--served-model-name", "--model", "--model-path", dest="model", metavar="NAME",
        help="what /v1/models says; default: the profile's name",
    )  # fmt: skip
    parser.add_argument(
        "--answer-tokens", type=_above(MIN_ANSWER_TOKENS), default=256.0, metavar="N",
        help="mean length of an answer that no limit cuts; default: 256",
    )  # fmt: skip
    parser.add_argument(
        "--thought-tokens", type=_above(MIN_ANSWER_TOKENS), default=None, metavar="N",
        help="a model that thinks first: mean length of its thought, told apart from the answer as with SGLang's "
        "--reasoning-parser; default: it does not think",
    )  # fmt: skip
    parser.add_argument(
        "--speed", type=_above(0), default=1.0, metavar="X", help="simulated seconds in a second; default: 1"
    )
    same = parser.add_argument_group("as SGLang's, instead of what the profile says")
    overrides.add_arguments(same)
    same.add_argument(
        "--context-length", type=overrides.whole, metavar="N", help="prompt and answer; default: the KV pool"
    )
    same.add_argument(
        "--max-queued-requests",
        type=overrides.whole,
        metavar="N",
        help="refuse a request that finds N others waiting; default: no limit",
    )
    same.add_argument(
        "--lora-paths", nargs="+", default=[], metavar="NAME=PATH", help="LoRA adapters that it has, by name; no cost"
    )
    same.add_argument("--enable-cache-report", action="store_true", help="show cached tokens in the usage")
    same.add_argument("--enable-trace", action="store_true", help="a span for every request, with its preemptions")
    same.add_argument(
        "--otlp-traces-endpoint", metavar="URL", help="where spans go, OTLP over HTTP: http://HOST:4318/v1/traces"
    )
    same.add_argument("--enable-metrics", action="store_true", help="/metrics is there with and without")


def _above(low: float) -> Callable[[str], float]:
    def number(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not low < value < math.inf:
            raise argparse.ArgumentTypeError(f"must be a number > {low:g}, got {text!r}")
        return value

    return number


def serve(args: argparse.Namespace, passed: list[str]) -> int:
    """Run the server until it is told to stop; the exit status. Raises :class:`~andes_sglang.flags.UsageError`."""
    if passed:
        raise UsageError(f"{passed[0]}: the simulated engine has no such flag; see andes serve --engine sim --help")
    traces_url = _traces_url(args)
    _check_installed(_NEEDED if traces_url is None else (*_NEEDED, "opentelemetry"))
    from andes_sglang.sim.server.app import ServerInfo
    from andes_sglang.sim.server.run import run

    flags.check_preemption_mode(args.policy, args.preemption_mode)
    policy = flags.policy_of(args)
    target = flags.target_of(args)
    try:
        chosen = profile.load(args.profile)
    except profile.ProfileError as error:
        raise UsageError(f"--profile: {error}") from None
    engine = _engine(chosen.engine, args)
    limits = Limits(
        args.context_length or engine.kv_capacity_tokens, engine.max_request_tokens, args.answer_tokens, target,
        tuple(path.partition("=")[0] for path in args.lora_paths), args.thought_tokens or 0.0,
    )  # fmt: skip
    info = ServerInfo(
        args.model or chosen.name,
        limits,
        args.enable_cache_report,
        {
            "served_model_name": args.model or chosen.name,
            "engine": "sim",
            "profile": chosen.name,
            "hardware": chosen.hardware,
            "model": chosen.model,
            "source": chosen.source,
            "policy": args.policy,
            "speed": args.speed,
            "max_running_requests": engine.max_running,
            "max_total_num_tokens": engine.kv_capacity_tokens,
            "chunked_prefill_size": engine.chunk_tokens,
            "enable_mixed_chunk": engine.mixed,
            "disable_overlap_schedule": engine.overlap is Overlap.NONE,
            "enable_hierarchical_cache": args.enable_hierarchical_cache,
            "tp_size": engine.devices,
            "dp_size": 1,
            "context_length": limits.context_tokens,
            "max_queued_requests": args.max_queued_requests,
        },
        {
            "policy": args.policy,
            "policy_options": {} if policy is None else effective_options(policy, flags.options_of(args)),
            "preemption_mode": args.preemption_mode,
            "host_tokens": engine.host_capacity_tokens,
        },
    )
    bound = flags.bind(args.host, args.port)
    shown = f"[{args.host}]" if ":" in args.host else args.host
    greeting = (
        f"andes: simulated engine ({chosen.model} on {chosen.hardware}, policy {args.policy}) "
        f"listens on http://{shown}:{bound.getsockname()[1]}"
    )
    try:
        run(
            bound, info, engine, policy, greeting=greeting, traces_url=traces_url, speed=args.speed,
            max_queued=args.max_queued_requests,
        )  # fmt: skip
    except PolicyError as error:
        raise UsageError(f"the engine ends: {error}") from error
    return 0


def _traces_url(args: argparse.Namespace) -> str | None:
    url = args.otlp_traces_endpoint
    if not args.enable_trace and url is not None:
        raise UsageError(f"--otlp-traces-endpoint {url}: goes with --enable-trace")
    if not args.enable_trace:
        return None
    if not str(url).startswith(("http://", "https://")):
        raise UsageError(f"--otlp-traces-endpoint: expected http://HOST:4318/v1/traces, got {url!r}")
    return str(url)


def _check_installed(modules: Sequence[str]) -> None:
    missing = [name for name in modules if importlib.util.find_spec(name) is None]
    if missing:
        raise UsageError(f"{', '.join(missing)} not installed: install andes-sglang[sim]")


def _engine(engine: EngineModel, args: argparse.Namespace) -> EngineModel:
    """The profile's engine with the flags that change it; it can serve a prompt of one token."""
    try:
        engine = overrides.apply(engine, args)
    except ValueError as error:
        raise UsageError(str(error)) from None
    if engine.max_request_tokens < _MIN_REQUEST_TOKENS:
        least = engine.kv_capacity_tokens - engine.max_request_tokens + _MIN_REQUEST_TOKENS
        raise UsageError(f"--max-total-tokens {engine.kv_capacity_tokens}: must be at least {least}")
    return engine
