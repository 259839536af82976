"""Flags that several commands share: of every engine to serve, of every comparison."""

from __future__ import annotations

import argparse
import socket
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from andes_sglang.arms import Arm, parse_arms, policy_options
from andes_sglang.policy import PolicyError, SchedulingPolicy, make_policy, try_out
from andes_sglang.qoe import QoETarget
from andes_sglang.usage import UsageError

__all__ = [
    "UsageError", "add_arm_arguments", "add_run_arguments", "add_serve_arguments", "arms_of", "base_url", "bind",
    "check_arms", "check_model", "check_preemption_mode", "check_run", "options_of", "policy_of", "target_of",
]  # fmt: skip


MAX_LOAD = 5.0
"""Times what an engine sustains: beyond, a run takes hours to work off its backlog."""


def add_serve_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--policy", default="andes", metavar="NAME|MODULE:CLASS",
        help="stock (SGLang untouched) or a policy: a name, or package.module:Class; default: andes",
    )  # fmt: skip
    parser.add_argument(
        "--policy-option", action="append", default=[], metavar="NAME=VALUE", help="an option of the policy; repeatable"
    )
    parser.add_argument("--default-ttft", type=float, default=1.0, metavar="S", help="expected seconds to first token")
    parser.add_argument("--default-tds", type=float, default=4.8, metavar="T", help="expected reading speed, tokens/s")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on; default: 127.0.0.1")
    parser.add_argument("--port", type=int, default=30000, help="port to listen on; default: 30000")


def options_of(args: argparse.Namespace) -> dict[str, Any]:
    """The options of the policy, not yet checked against it."""
    try:
        return policy_options(args.policy_option)
    except ValueError as error:
        raise UsageError(str(error)) from None


def policy_of(args: argparse.Namespace) -> SchedulingPolicy | None:
    """The policy, which has answered once; None for ``stock``."""
    options = options_of(args)
    if args.policy == "stock":
        if options:
            raise UsageError(f"--policy-option {args.policy_option[0]!r}: policy stock has no options")
        return None
    try:
        policy = make_policy(args.policy, options)
    except ValueError as error:
        raise UsageError(f"--policy {args.policy}: {error}; stock leaves SGLang untouched") from None
    try:
        try_out(policy)
    except PolicyError as error:
        raise UsageError(f"--policy {args.policy}, options {options}: {error}") from error
    return policy


def check_preemption_mode(policy: str | None, mode: str) -> None:
    """Raise where a mode of preemption is asked for under stock, None or by name."""
    if mode == "offload" and policy in (None, "stock"):
        raise UsageError(
            "--preemption-mode offload: policy stock preempts no request; choose a policy or leave the flag out"
        )


def base_url(text: str) -> str:
    """Of a server, from its ``--url``: without ``/v1``."""
    if "://" not in text:
        raise UsageError(f"--url {text}: say http:// or https:// first, as in http://{text}")
    return text.rstrip("/").removesuffix("/v1")


def check_model(text: str) -> None:
    """Raise unless ``text`` is a model directory, or could be the name of a model on a hub."""
    model = Path(text)
    if model.exists() and not (model / "config.json").is_file():
        raise UsageError(f"--model {text}: no model directory (it has no config.json)")
    if not model.exists() and (text.startswith((".", "/", "~")) or "/" not in text):
        raise UsageError(f"--model {text}: no such directory")


def target_of(args: argparse.Namespace) -> QoETarget:
    """What the reader of a request expects that says nothing of it."""
    try:
        return QoETarget(args.default_ttft, args.default_tds)
    except ValueError as error:
        raise UsageError(f"--default-ttft / --default-tds: {error}") from None


def bind(host: str, port: int) -> socket.socket:
    """A socket bound there."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    bound = socket.socket(family)
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        bound.bind((host, port))
    except (OSError, OverflowError) as error:
        bound.close()
        raise UsageError(
            f"--host {host} --port {port}: cannot listen there ({getattr(error, 'strerror', error)})"
        ) from None
    return bound


def add_arm_arguments(parser: argparse.ArgumentParser, *, policies: str) -> None:
    """The policies to compare: of every command that runs several."""
    parser.add_argument("--policies", default=policies, help="comma-separated; default: %(default)s")
    parser.add_argument(
        "--arm", action="append", default=[], metavar="NAME=POLICY[:FLAGS]",
        help="one more arm: a policy with engine flags of its own, --policy-option NAME=VALUE among them; repeatable",
    )  # fmt: skip


def add_run_arguments(parser: argparse.ArgumentParser, *, sustained: str) -> None:
    """Load and repeats. sustained: whose capacity a load is a share of."""
    parser.add_argument(
        "--load", type=float, metavar="FRACTION", help=f"shape: set --rate to this fraction of what {sustained}"
    )
    parser.add_argument("--repeats", type=int, default=1, help="runs of each policy, each with the next seed")


def arms_of(args: argparse.Namespace) -> dict[str, Arm]:
    try:
        return parse_arms(args.policies, args.arm)
    except ValueError as error:
        raise UsageError(str(error)) from None


def check_arms(arms: dict[str, Arm], passed: Sequence[str]) -> None:
    """Raise for an unknown policy or option before any engine starts. passed: flags of all engines."""
    parser = argparse.ArgumentParser(allow_abbrev=False, add_help=False)
    parser.add_argument("--policy-option", action="append", default=[])
    for arm in arms.values():
        given, _ = parser.parse_known_args([*passed, *arm.flags])
        if arm.policy != "forced":  # the engine's own diagnostic
            policy_of(argparse.Namespace(policy=arm.policy, policy_option=given.policy_option))


def check_run(args: argparse.Namespace) -> None:
    if args.repeats < 1:
        raise UsageError(f"--repeats must be >= 1, got {args.repeats}")
    if args.load is not None and (args.trace is not None or not args.load > 0):
        raise UsageError(f"--load {args.load!r}: must be > 0, and goes with a --shape")
    if args.load is not None and args.load > MAX_LOAD:
        raise UsageError(
            f"--load {args.load:g}: a fraction, at most {MAX_LOAD:g}; {args.load:g} % would be {args.load / 100:g}"
        )
    if args.load is not None and args.rate is not None:
        raise UsageError(f"--rate {args.rate:g}: not with --load {args.load:g}, which sets it")
