"""Flags of SGLang's own scheduling that a policy leaves without effect: refused at start, or said there."""

from __future__ import annotations

from typing import Any

__all__ = ["contradiction", "note"]


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


def note(server_args: Any) -> str | None:
    """What is left of a flag that has less effect than its name says; None: there is nothing to say."""
    if not server_args.enable_priority_scheduling:
        return None
    return (
        "--enable-priority-scheduling: with a policy, a request's priority decides only whom a full queue turns away "
        "(--max-queued-requests); what counts for the policy is custom_params.qoe.weight"
    )
