"""Flags of SGLang's own scheduling that a policy leaves without effect: refused at start, or said there."""

from __future__ import annotations

from typing import Any

__all__ = ["contradiction", "notes"]


def contradiction(server_args: Any) -> str | None:
    """A sentence on a flag that asks for what a policy decides instead; None: there is none."""
    for flag, given, usual, decides in (
        ("--schedule-policy", server_args.schedule_policy, "fcfs", "in which order requests are served"),
        ("--retraction-policy", server_args.retraction_policy, "length", "who makes room when KV runs out"),
    ):
        if given != usual:
            return f"{flag} {given}: a policy decides {decides}; leave the flag out, or start with --policy stock"
    for flag, given in (
        ("--enable-prefill-delayer", server_args.enable_prefill_delayer),
        ("--min-free-slots-delay", server_args.min_free_slots_delay),
    ):
        if given:
            return (
                f"{flag}: a policy decides when a prompt is computed; leave the flag out, or start with --policy stock"
            )
    return None


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
