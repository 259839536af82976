"""Flags of SGLang that do less under a policy than their names say, or leave less to it: said at start. What does not go with
a policy at all is in :data:`~andes_sglang.adapter.seams.REFUSED`."""

from __future__ import annotations

from typing import Any

__all__ = ["notes"]


def notes(server_args: Any) -> list[str]:
    """What is left of a policy, or of a flag that has less effect under one than its name says: a sentence each."""
    said = []
    drafts = server_args.speculative_algorithm
    if drafts is not None and drafts.upper() != "NGRAM":
        said.append(
            f"--speculative-algorithm {drafts}: no stream is preempted, since its drafts keep more than tokens; the policy "
            "decides only which of those that wait is admitted first. With NGRAM streams are preempted (docs/requests.md)"
        )
    if server_args.enable_priority_scheduling:
        said.append(
            "--enable-priority-scheduling: with a policy, a request's priority decides only whom a full queue turns away "
            "(--max-queued-requests); what counts for the policy is custom_params.qoe.weight"
        )
    return said
