"""``andes serve``: SGLang's own server with our plugin in it.

Everything this module does not know is passed to SGLang unchanged. On a machine without an accelerator it chooses what
SGLang needs there, wherever the user has not chosen.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import sys
from pathlib import Path

from andes_sglang.adapter.options import ENVIRONMENT, Options
from andes_sglang.flags import UsageError, add_serve_arguments, bind, options_of, policy_of, target_of

__all__ = ["STANDINS", "add_arguments", "prepare_environment", "serve"]

STANDINS = Path(__file__).parent / "standins"
_STOOD_IN = ("triton", "torchvision")
_CPU_DEFAULTS = {
    "--device": "cpu",
    "--dtype": "float32",
    "--attention-backend": "torch_native",
    "--sampling-backend": "pytorch",
    "--grammar-backend": "llguidance",
    "--mem-fraction-static": "0.3",
    "--max-total-tokens": "65536",
    "--chunked-prefill-size": "8192",
    "--max-running-requests": "64",
}
_CPU_SWITCHES = ("--sleep-on-idle", "--disable-cuda-graph", "--skip-server-warmup")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", "--model-path", dest="model", required=True, help="model directory or name")
    add_serve_arguments(parser)


def check_arguments(args: argparse.Namespace) -> Options:
    """The options for the plugin. Raises :class:`UsageError` for what could only fail later, inside the server."""
    policy = None if args.policy == "stock" else args.policy
    if policy != "forced":
        policy_of(args)
    default = target_of(args)
    options = Options(policy, options_of(args), default.ttft_s, default.tds)
    model = Path(args.model)
    if model.exists() and not (model / "config.json").is_file():
        raise UsageError(f"--model {args.model}: no model directory (it has no config.json)")
    if not model.exists() and (args.model.startswith((".", "/", "~")) or "/" not in args.model):
        raise UsageError(f"--model {args.model}: no such directory")
    bind(args.host, args.port).close()
    return options


def prepare_environment(options: Options) -> bool:
    """Set what SGLang's processes inherit; True on a machine without an accelerator."""
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    if options.policy is None:
        os.environ.pop(ENVIRONMENT, None)
    else:
        os.environ[ENVIRONMENT] = options.to_env()
    import torch

    if torch.cuda.is_available():
        return False
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ.setdefault(name, "1")
    os.environ.setdefault("TORCHDYNAMO_DISABLE", "1")
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    if any(importlib.util.find_spec(name) is None for name in _STOOD_IN):
        inherited = os.environ.get("PYTHONPATH")
        os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, (inherited, str(STANDINS))))
        sys.path.append(str(STANDINS))
    return True


def server_arguments(args: argparse.Namespace, passed: list[str], cpu: bool) -> list[str]:
    """SGLang's command line: what the user passed, plus defaults for a CPU where he chose nothing."""
    given = {flag.split("=", 1)[0] for flag in passed if flag.startswith("--")}
    line = ["--model-path", args.model, "--host", args.host, "--port", str(args.port), *passed]
    if cpu:
        for flag, value in _CPU_DEFAULTS.items():
            if flag not in given:
                line += [flag, value]
        line += [flag for flag in _CPU_SWITCHES if flag not in given]
    return line


def serve(args: argparse.Namespace, passed: list[str]) -> int:
    """Run the server until it is told to stop; the exit status."""
    if importlib.util.find_spec("sglang") is None:
        raise UsageError("SGLang is not installed: install andes-sglang[sglang], or a closure of requirements/")
    options = check_arguments(args)
    cpu = prepare_environment(options)
    if Path(args.model).exists():
        os.environ.setdefault("HF_HUB_OFFLINE", "1")

    from sglang.launch_server import run_server
    from sglang.srt.plugins import load_plugins
    from sglang.srt.server_args import prepare_server_args
    from sglang.srt.utils import kill_process_tree

    load_plugins()
    server_args = prepare_server_args(server_arguments(args, passed, cpu))
    try:
        run_server(server_args)
    finally:
        kill_process_tree(os.getpid(), include_parent=False)
    return 0
