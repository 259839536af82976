"""``andes serve``: SGLang's own server with our plugin in it.

Flags that are not listed in ``andes serve --help`` are passed to SGLang unchanged. On a machine without an accelerator the
flags that SGLang needs there are added, as far as the user has not given them.
"""

from __future__ import annotations

import argparse
import importlib.util
import math
import os
import sys
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from andes_sglang.adapter import seams
from andes_sglang.adapter.contradictions import notes
from andes_sglang.adapter.forced import Forced, make_engine_policy
from andes_sglang.adapter.memory import free_bytes
from andes_sglang.adapter.options import ENVIRONMENT, OFFLOAD_PARTS, PluginOptions
from andes_sglang.flags import (
    UsageError,
    add_serve_arguments,
    bind,
    check_model,
    check_preemption_mode,
    options_of,
    policy_of,
    target_of,
)
from andes_sglang.policy import effective_options

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
_OFFLOAD_SWITCHES = ("--enable-hierarchical-cache",)
HUB_TIMEOUT_S = 5.0
"""For the hub to say whether it has a model; a slow one is left to SGLang."""
_OFFLOAD_DEFAULTS = {"--hicache-size": "1"}
"""So that SGLang does not look for a size itself; the one that it gets is ours (--host-kv-gib)."""
_OFFLOAD_ON_CPU = {"--hicache-io-backend": "direct", "--hicache-mem-layout": "layer_first"}
_CPU_SWITCHES = ("--sleep-on-idle", "--disable-cuda-graph", "--skip-server-warmup")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", "--model-path", dest="model", required=True, help="model directory or name")
    add_serve_arguments(parser)
    parser.add_argument(
        "--preemption-mode", choices=("release", "offload"), default="release",
        help="what happens to the KV of a stream that has to make room: release (default) leaves it to be evicted and "
        "computed again; offload keeps a copy in host memory",
    )  # fmt: skip
    parser.add_argument(
        "--host-kv-gib", type=float, metavar="GIB",
        help="offload: host memory for copies; default: a quarter of what is free, at most 16 times the KV pool",
    )  # fmt: skip
    parser.add_argument(
        "--offload-without", choices=OFFLOAD_PARTS,
        help="offload without a part of it, to measure what the part is worth: without write-through, copies are made at a "
        "preemption while the engine waits; without overlap, the engine waits for every copy; without increments, a load "
        "gives the host copy up and the next preemption copies everything again",
    )  # fmt: skip


def check_arguments(args: argparse.Namespace) -> PluginOptions:
    """The options for the plugin. Raises :class:`UsageError` for what could only fail later, inside the server."""
    policy = None if args.policy == "stock" else args.policy
    policy_options = _check_policy(args)
    default = target_of(args)
    offload = (args.preemption_mode, args.host_kv_gib, args.offload_without)
    options = PluginOptions(policy, policy_options, default.ttft_s, default.tds, *offload)
    _check_offload(options)
    check_model(args.model)
    check_hub(args.model)
    bind(args.host, args.port).close()
    return options


def check_hub(model: str) -> None:
    """Raise for a name that neither the local cache nor the hub knows: SGLang would look for it for a minute."""
    if Path(model).exists() or "://" in model or "SGLANG_USE_MODELSCOPE" in os.environ:
        return
    from huggingface_hub import HfApi, try_to_load_from_cache
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, RepositoryNotFoundError

    try:
        if try_to_load_from_cache(model, "config.json") is None:
            HfApi(endpoint=os.environ.get("HF_ENDPOINT")).model_info(model, timeout=HUB_TIMEOUT_S)
    except (RepositoryNotFoundError, HFValidationError):
        raise UsageError(
            f"--model {model}: no such directory, and the hub has no such model, or none that HF_TOKEN may see"
        ) from None
    except HfHubHTTPError:
        return  # a gated model, a hub in trouble: SGLang says what is to be said
    except Exception as error:  # of the HTTP library that the hub's package uses by now
        if "Connect" in type(error).__name__ or isinstance(error, ConnectionError):
            raise UsageError(
                f"--model {model}: no such directory, not in the local cache, and the hub cannot be reached ({error})"
            ) from None


def _check_policy(args: argparse.Namespace) -> dict[str, Any]:
    """Make the policy and ask it once: what it would raise at the first request, ending the engine, it raises now. Its
    options by their current names, so that the engine's process does not warn of old ones again."""
    if args.policy != Forced.name:
        policy = policy_of(args)
    else:
        try:
            policy = make_engine_policy(args.policy, options_of(args))
        except ValueError as error:
            raise UsageError(f"--policy-option: {error}") from None
    return {} if policy is None else effective_options(policy, options_of(args))


def _check_offload(options: PluginOptions) -> None:
    check_preemption_mode(options.policy, options.preemption_mode)
    offload = options.preemption_mode == "offload"
    if offload and (fault := seams.offload_fault(options.offload_without)):
        raise UsageError(fault)
    if options.policy == "forced" and options.policy_options.get("mode") == "offload" and not offload:
        raise UsageError("--policy-option mode=offload: needs --preemption-mode offload")
    for flag, value in (("--host-kv-gib", options.host_kv_gib), ("--offload-without", options.offload_without)):
        if value is not None and not offload:
            raise UsageError(f"{flag} {value}: goes with --preemption-mode offload")
    if options.host_kv_gib is None:
        return
    free_gib = free_bytes() / 2**30
    if not (math.isfinite(options.host_kv_gib) and 0 < options.host_kv_gib <= 0.9 * free_gib):
        raise UsageError(
            f"--host-kv-gib {options.host_kv_gib:g}: must be > 0 and at most 90 % of the {free_gib:.1f} GiB that are free"
        )


def _check_passed(passed: Sequence[str]) -> None:
    """Raise for a flag that a plan may have been made with."""
    if any(flag.partition("=")[0] == "--host-kv-codec" for flag in passed):
        raise UsageError(
            "--host-kv-codec: only the simulator has it; an engine's host copies are exact and as they are on the device "
            "(docs/benchmarks/kv-codecs.md says what a codec would be worth, and why none is in the engine)"
        )


def prepare_environment(options: PluginOptions) -> bool:
    """Set what SGLang's processes inherit; True on a machine without an accelerator."""
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    os.environ[ENVIRONMENT] = options.to_env()
    dumps = os.environ.get("CUDA_ENABLE_USER_TRIGGERED_COREDUMP") == "1"
    for name in ("SGLANG_CUDA_COREDUMP_BEFORE_CRASH", "SGLANG_PYSPY_DUMP_BEFORE_CRASH"):
        os.environ.setdefault(name, str(int(dumps)))
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
    """SGLang's command line: what the user passed, plus defaults for a CPU where the user gave none."""
    given = {flag.split("=", 1)[0] for flag in passed if flag.startswith("--")}
    line = ["--model-path", args.model, "--host", args.host, "--port", str(args.port), *passed]
    defaults: dict[str, str] = {}
    switches: tuple[str, ...] = ()
    if args.preemption_mode == "offload":
        defaults |= _OFFLOAD_DEFAULTS | (_OFFLOAD_ON_CPU if cpu else {})
        switches += _OFFLOAD_SWITCHES
    if cpu:
        defaults |= _CPU_DEFAULTS
        switches += _CPU_SWITCHES
    for flag, value in defaults.items():
        if flag not in given:
            line += [flag, value]
    return line + [flag for flag in switches if flag not in given]


def bind_ranks(server_args: Any, cores: Collection[int]) -> None:
    """Tell SGLang which of ``cores`` each of several tensor-parallel ranks on a CPU runs on; left to itself it wants a NUMA
    node for each. With fewer cores than ranks, ranks share them, and so do data-parallel ranks and stages of a pipeline:
    SGLang wants as many entries as one of these has ranks."""
    ranks = server_args.tp_size
    if ranks > 1:
        order = sorted(cores)
        groups = [order[rank::ranks] or [order[rank % len(order)]] for rank in range(ranks)]
        os.environ.setdefault("SGLANG_CPU_OMP_THREADS_BIND", "|".join(",".join(map(str, group)) for group in groups))


def _check_in_place(server_args: Any, offload: bool) -> None:
    """Raise where SGLang would serve without the policy, or its scheduler would end because of a flag."""
    from sglang.srt.managers import scheduler

    from andes_sglang.adapter.compat import own_time_outs
    from andes_sglang.adapter.host_transfers import tier_of_release

    if scheduler.Scheduler.__name__ != "QoEScheduler":
        raise UsageError(
            "SGLang has not loaded our plugin: install this package (pip install .), and where SGLANG_PLUGINS "
            f"(now {os.environ.get('SGLANG_PLUGINS')!r}) or SGLANG_PLATFORM (now {os.environ.get('SGLANG_PLATFORM')!r}) "
            "choose among plugins, let them name andes and, without a GPU, andes_cpu"
        )
    one_rank = offload and not tier_of_release()[1].several_ranks
    if fault := seams.unsupported(server_args, one_rank, own_time_outs()):
        raise UsageError(fault)
    for said in notes(server_args):
        print(f"andes: {said}", file=sys.stderr, flush=True)


def serve(args: argparse.Namespace, passed: list[str]) -> int:
    """Run the server until it is told to stop; the exit status."""
    if importlib.util.find_spec("sglang") is None:
        raise UsageError("SGLang is not installed: install andes-sglang[sglang], or a closure of requirements/")
    _check_passed(passed)
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
    if options.policy is not None:
        _check_in_place(server_args, options.preemption_mode == "offload")
    from andes_sglang.adapter.http_workers import WorkerArgs, refuse_with_400, take_readers

    if server_args.tokenizer_worker_num > 1:
        server_args.__class__ = WorkerArgs
    refuse_with_400()
    if options.policy is not None:
        take_readers()
    if cpu:
        bind_ranks(server_args, os.sched_getaffinity(0))
    try:
        run_server(server_args)
    finally:
        kill_process_tree(os.getpid(), include_parent=False)
    return 0
