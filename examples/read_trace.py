"""Read a trace whose rows say what their readers expect, and simulate an engine that serves it.

docs/traces.md lists the formats and columns that are read.
"""

import json
import tempfile
from pathlib import Path

from andes_sglang import WorkloadError, load_profile, load_trace, make_policy, simulate, summarise

rows = [
    {"arrival_s": 0.1 * k, "prompt_tokens": 400 + 37 * k % 300, "output_tokens": 150, "tds": 10.0 if k % 3 else 3.0}
    for k in range(120)
]
rows[7] |= {"weight": 4.0}  # this reader counts for four
rows[8] |= {"yield": True}  # no reader waits for this one

with tempfile.TemporaryDirectory() as folder:
    path = Path(folder, "mine.jsonl")
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    trace = load_trace(path)

    path.write_text(json.dumps({**rows[0], "tds": "fast"}) + "\n")
    try:
        load_trace(path)
    except WorkloadError as error:
        print(f"refused: {error.args[0].removeprefix(folder)}")

print(trace.describe())
engine = load_profile("cpu-tiny-llama").engine
for name in ("fcfs", "andes"):
    figures = summarise(list(simulate(engine, make_policy(name), trace)))
    print(f"{name:5s}  mean QoE {figures['qoe']['mean']:.3f}, TTFT p90 {figures['ttft_s']['p90']:.2f} s")
