"""The counters of penalties and of ``min_tokens``, made again from what a request has said.

They are rows of tensors that belong to a batch, and a batch that is formed again begins at zero: a request that comes back to
one, from the parked or through a prefill, would be told that it has said nothing yet.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch

__all__ = ["restore_penalties"]


def restore_penalties(batch: Any, rows: Iterable[int], *, before_decode: bool, overlap: bool) -> None:
    """Set the counters of the requests in ``rows`` of ``batch`` as an engine has them that has never stopped these.

    before_decode: a decode step follows, for which SGLang counts the last output token by itself; else a prefill, for which
    it counts nothing. overlap: whether the engine overlaps scheduling with computing: SGLang then counts each token
    a step late, and the prompt's last one first.
    """
    penalizers = batch.sampling_info.penalizer_orchestrator
    if not penalizers.is_required:
        return
    for row in rows:
        req = batch.reqs[row]
        said = list(req.output_ids)
        if not said:
            continue
        counted = [req.origin_input_ids[-1], *said[:-1]] if overlap else said
        counts = torch.bincount(torch.tensor(counted), minlength=penalizers.vocab_size).to(torch.float32)
        if before_decode:
            counts[said[-1]] -= 1
        counts = counts.to(penalizers.device)
        for penalizer in penalizers.penalizers.values():
            if penalizer.is_prepared():
                _set(penalizer, row, counts, len(said) - before_decode)


def _set(penalizer: Any, row: int, counts: torch.Tensor, tokens: int) -> None:
    """Of one request: how often each token of the vocabulary was counted, shape (V,), and how many ``tokens`` were."""
    if hasattr(penalizer, "cumulated_frequency_penalties"):
        penalizer.cumulated_frequency_penalties[row] = penalizer.frequency_penalties[row] * counts
    elif hasattr(penalizer, "cumulated_presence_penalties"):
        penalizer.cumulated_presence_penalties[row] = penalizer.presence_penalties[row] * (counts > 0)
    elif hasattr(penalizer, "cumulated_repetition_penalties"):
        ones = torch.ones_like(counts)
        penalizer.cumulated_repetition_penalties[row] = torch.where(
            counts > 0, penalizer.repetition_penalties[row], ones
        )
    else:
        penalizer.len_output_tokens[row] = tokens
