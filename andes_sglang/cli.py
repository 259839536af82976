"""The ``andes`` command."""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import signal
import sys
import threading
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from types import ModuleType

from andes_sglang import __version__
from andes_sglang.usage import Help, Output, UsageError

__all__ = ["main"]

ENGINES = {
    "sglang": (
        "andes_sglang.adapter.launch",
        "Start SGLang's server under a policy. Every flag not listed here is passed to SGLang unchanged.",
    ),
    "sim": (
        "andes_sglang.sim.server.serve",
        "Start a simulated engine under a policy: it speaks as SGLang does, in real time, without a GPU or a model.",
    ),
}
"""By ``--engine``: the module that serves, and what it says of itself."""

COMMANDS = {
    "batch": ("andes_sglang.batch.cli", "send a file of requests that no reader waits for"),
    "bench": ("andes_sglang.bench.cli", "replay a workload against an endpoint"),
    "compare": ("andes_sglang.bench.cli", "replay one workload under several policies"),
    "score": ("andes_sglang.bench.cli", "score what another benchmark has measured"),
    "report": ("andes_sglang.bench.cli", "make the report of a finished run again"),
    "simulate": ("andes_sglang.sim.cli", "simulate one workload under several policies"),
    "sweep": ("andes_sglang.sweep", "simulate over a range of loads, or of any option, in parallel"),
    "diff": ("andes_sglang.diff", "what changed from one run to another"),
    "export": ("andes_sglang.export", "the requests and figures of a run as CSV or Parquet"),
    "plan": ("andes_sglang.sim.plan_cli", "the fewest replicas, or the cheapest mix of them, that hold an objective"),
    "train-router": ("andes_sglang.train_router", "learn to choose between models of a ladder, in simulated fleets"),
    "profile": ("andes_sglang.profiling", "measure an engine and write its profile"),
}
"""By name: the module with the command's ``add_arguments`` and ``USER_ERRORS``, and what it does."""
EXTRAS = {"plan": "plan"}
"""By command: the extra that it needs, if not ``bench``."""


def build_parser(argv: Sequence[str]) -> tuple[argparse.ArgumentParser, tuple[type[Exception], ...]]:
    """The parser for ``argv``, and the errors that its command reports as one line. Raises :class:`UsageError` where the
    command's extra is not installed.

    Only the module of the command in ``argv`` is imported: each command needs its own extra alone, and the simulated engine
    starts in less time than the other commands' imports take.
    """
    command = argv[0] if argv else ""
    parser = argparse.ArgumentParser(prog="andes", description="QoE-aware serving of text streams on SGLang.")
    _add_version(parser)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    _add_serve(commands, argv)
    operator = commands.add_parser("operator", help="scale GPU pods on the QoE that readers get", add_help=False)
    _add_version(operator)
    operator.set_defaults(run=_operator)
    completion = commands.add_parser("completion", help="completion of this command for bash, zsh or tcsh")
    completion.add_argument("shell", choices=("bash", "zsh", "tcsh"))
    completion.set_defaults(run=_completion)
    user_errors: tuple[type[Exception], ...] = (UsageError, *_add_gateway(commands, argv))
    for name, (module_name, text) in COMMANDS.items():
        chosen = commands.add_parser(
            name, help=text, formatter_class=Help, allow_abbrev=False, add_help=name == command
        )
        if name == command:
            extra = EXTRAS.get(command, "bench")
            module = _import(module_name, f"{command} needs {{}}: install andes-sglang[{extra}]")
            module.add_arguments(chosen, command)
            user_errors += module.USER_ERRORS
    return parser, user_errors


def _add_version(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--version", action="version", version=f"andes {__version__}")


def _import(module: str, otherwise: str) -> ModuleType:
    """Import ``module``; ``otherwise`` says what to install where a package that it needs is missing."""
    try:
        return import_module(module)
    except ModuleNotFoundError as error:
        package = (error.name or "andes").partition(".")[0]
        if package.startswith("andes"):
            raise
        raise UsageError(otherwise.format(package)) from None


def _add_serve(commands: argparse._SubParsersAction[argparse.ArgumentParser], argv: Sequence[str]) -> None:
    text = "start SGLang, or a simulated engine, under a QoE policy"
    if argv[:1] != ["serve"]:
        commands.add_parser("serve", help=text, add_help=False)
        return
    chosen = argparse.ArgumentParser(prog="andes serve", add_help=False, allow_abbrev=False)
    chosen.add_argument(
        "--engine", choices=list(ENGINES), default="sglang", help="sglang (default) or sim; --help of each"
    )
    known = [word for word in argv if word not in ("-h", "--help")]
    name = chosen.parse_known_args(known)[0].engine
    module, description = ENGINES[name]
    engine = _import(module, f"serve --engine {name} needs {{}}: install andes-sglang[{name}]")
    serve = commands.add_parser("serve", help=text, description=description, parents=[chosen], formatter_class=Help,
                                allow_abbrev=False)  # fmt: skip
    engine.add_arguments(serve)
    serve.set_defaults(run=engine.serve)


def _add_gateway(
    commands: argparse._SubParsersAction[argparse.ArgumentParser], argv: Sequence[str]
) -> tuple[type[Exception], ...]:
    text = "an OpenAI-compatible gateway before one or many engines"
    if argv[:1] != ["gateway"]:
        commands.add_parser("gateway", help=text, add_help=False)
        return ()
    module = _import("andes_api.cli", "the gateway needs {}: install andes-sglang[gateway]")
    gateway = commands.add_parser("gateway", help=text, description=module.DESCRIPTION, allow_abbrev=False)
    _add_version(gateway)
    module.add_arguments(gateway)
    return tuple(module.USER_ERRORS)


def _operator(_args: argparse.Namespace, rest: Sequence[str]) -> int:
    if importlib.util.find_spec("kopf") is None or importlib.util.find_spec("kubernetes") is None:
        raise UsageError("the operator is not installed: install andes-sglang[operator]")
    from andes_operator import cli

    return cli.main(list(rest))


def _completion(args: argparse.Namespace, rest: Sequence[str]) -> int:
    """Print the script that completes ``andes`` in a shell: every command that is installed, with its flags."""
    if rest:
        raise UsageError(f"unknown argument {rest[0]!r}")
    if importlib.util.find_spec("shtab") is None:
        raise UsageError("completion needs shtab: install andes-sglang[completion]")
    import shtab

    whole = whole_parser()
    for parser in next(a.choices for a in whole._actions if isinstance(a, argparse._SubParsersAction)).values():
        for action in parser._actions:
            if action.type is Path:
                action.complete = shtab.FILE
    print(shtab.complete(whole, args.shell))
    return 0


def whole_parser() -> argparse.ArgumentParser:
    """Every command with its flags, as far as what it needs is installed: for completion and documentation, not to be run."""
    whole = argparse.ArgumentParser(prog="andes", description="QoE-aware serving of text streams on SGLang.")
    commands = whole.add_subparsers(dest="command", metavar="COMMAND")
    for name, text in _one_parser([])[1].items():
        ways = [["serve", "--engine", engine] for engine in ENGINES] if name == "serve" else [[name]]
        chosen = commands.add_parser(name, help=text, conflict_handler="resolve")
        for argv in ways:
            with contextlib.suppress(UsageError):
                _copy_arguments(_one_parser(argv)[0][name], chosen)
    return whole


def _one_parser(argv: Sequence[str]) -> tuple[dict[str, argparse.ArgumentParser], dict[str, str]]:
    """Of :func:`build_parser`: the parsers of the commands by name, and what each of them does."""
    parser, _ = build_parser(argv)
    commands = next(a for a in parser._actions if isinstance(a, argparse._SubParsersAction))
    texts = {action.dest: action.help or "" for action in commands._choices_actions}
    return dict(commands.choices), texts


def _copy_arguments(source: argparse.ArgumentParser, target: argparse.ArgumentParser) -> None:
    for action in source._actions:
        if "--help" not in action.option_strings:
            target._add_action(action)


def main(argv: Sequence[str] | None = None) -> int:
    """Run ``andes`` and return its exit status; without a command, or with ``help``, print the help."""
    argv = list(sys.argv[1:] if argv is None else argv) or ["help"]
    output = Output()
    try:
        with output:
            ended = _run(argv)
    except SystemExit as end:  # --help, and what argparse refuses
        if output.error is None or end.code:
            raise
        ended = 0
    if output.error is None:
        return ended
    print(f"andes {argv[0]}: standard output cannot be written: {output.error.strerror}", file=sys.stderr)
    return ended or 1


def _run(argv: list[str]) -> int:
    if argv[0] == "help":
        argv = [*argv[1:2], "--help"]
    user_errors: tuple[type[Exception], ...] = (UsageError,)
    try:
        parser, user_errors = build_parser(argv)
        if argv[0] in COMMANDS and threading.current_thread() is threading.main_thread():
            # it ends a command as Ctrl-C does, with what has been measured
            signal.signal(signal.SIGTERM, signal.default_int_handler)
        args, passed = parser.parse_known_args(argv)
        return int(args.run(args, passed))
    except user_errors as error:
        print(f"andes {argv[0]}: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"\nandes {argv[0]}: interrupted", file=sys.stderr)
        return 130


if __name__ == "__main__":
    raise SystemExit(main())
