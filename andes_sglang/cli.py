"""The ``andes`` command."""

from __future__ import annotations

import argparse
import sys

from andes_sglang import __version__, profiling
from andes_sglang.adapter import launch
from andes_sglang.bench import cli as bench
from andes_sglang.sim import cli as sim
from andes_sglang.sim import plan_cli

__all__ = ["main"]


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="andes", description="QoE-aware serving of text streams on SGLang.")
    parser.add_argument("--version", action="version", version=f"andes {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    serve = commands.add_parser(
        "serve",
        help="start SGLang under a QoE policy",
        description="Start SGLang's server under a policy. Every flag not listed here is passed to SGLang unchanged.",
        allow_abbrev=False,
    )
    launch.add_arguments(serve)
    serve.set_defaults(run=launch.serve)
    bench.add_parsers(commands)
    sim.add_parsers(commands)
    plan_cli.add_parser(commands)
    profiling.add_parser(commands)
    return parser


def main(argv: list[str] | None = None) -> int:
    args, passed = build_parser().parse_known_args(argv)
    try:
        return int(args.run(args, passed))
    except (launch.UsageError, *bench.BenchError, *sim.SimulationError, *profiling.ProfilingError) as error:
        print(f"andes {args.command}: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    raise SystemExit(main())
