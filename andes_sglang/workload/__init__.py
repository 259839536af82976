"""What is replayed: who arrives when, with how long a prompt and answer, and how fast each of them reads.

    load_trace(Path("conv.csv"))                      a recorded trace, in any format of ``traces``
    load_dataset(Path("sharegpt.json"))               lengths without arrivals, for a shape
    load_measured(Path("results.json"), QoETarget())  what another benchmark has measured
    draw_shape("burst", rate_rps=2.0, ...)            a drawn one: Poisson, Gamma or one burst
    SyntheticWorkload("day", rates, ...)              drawn while it is read, for millions of requests
    add_arguments(parser); from_arguments(args, 1)    any of these, as the command line describes it

Everything random comes from one seed: the same seed gives the same requests.
"""

from andes_sglang.request import RequestSpec
from andes_sglang.workload.arguments import add_arguments, drawn_lengths, from_arguments
from andes_sglang.workload.base import BLOCK_TOKENS, Workload, WorkloadError
from andes_sglang.workload.datasets import Dataset, load_dataset
from andes_sglang.workload.lengths import mean_length, parse_lengths
from andes_sglang.workload.measured import Measured, load_measured
from andes_sglang.workload.readers import LISTENING, READING, readers_of
from andes_sglang.workload.shapes import burst, draw_shape, gamma, poisson
from andes_sglang.workload.synthetic import Rates, SyntheticWorkload
from andes_sglang.workload.traces import FORMATS, load_trace
from andes_sglang.workload.traces.rates import load_rates

__all__ = [
    "BLOCK_TOKENS",
    "FORMATS",
    "LISTENING",
    "READING",
    "Dataset",
    "Measured",
    "Rates",
    "RequestSpec",
    "SyntheticWorkload",
    "Workload",
    "WorkloadError",
    "add_arguments",
    "burst",
    "draw_shape",
    "drawn_lengths",
    "from_arguments",
    "gamma",
    "load_dataset",
    "load_measured",
    "load_rates",
    "load_trace",
    "mean_length",
    "parse_lengths",
    "poisson",
    "readers_of",
]
