"""Streams beside the engine: order, waits and errors are those of a GPU."""

from __future__ import annotations

import threading

import pytest

torch = pytest.importorskip("torch")

from andes_sglang.adapter import streams  # noqa: E402


def test_a_stream_copies_beside_the_engine_and_in_order() -> None:
    pool, host, back = torch.arange(12.0).reshape(6, 2), torch.zeros(6, 2), torch.zeros(6, 2)
    gate, copies, copied = threading.Event(), streams.Stream(), streams.Event(enable_timing=True)
    copies.submit(lambda: None if gate.wait(30) else pytest.fail("the gate stayed shut"))
    with streams.stream(copies):
        streams.transfer_kv_direct([pool], [host], torch.tensor([1, 3]), torch.tensor([4, 0]), 1)
        streams.transfer_kv_direct([host], [back], torch.tensor([4]), torch.tensor([5]), 1)
        copied.record()
    assert not copied.query()
    assert not host.any()
    gate.set()
    before_s = streams.waited_s()
    streams.current_stream().wait_event(copied)
    assert copied.query()
    assert host[4].tolist() == back[5].tolist() == [2.0, 3.0]
    assert host[0].tolist() == [6.0, 7.0]
    assert copies.busy_s > 0
    assert streams.waited_s() >= before_s


def test_a_stream_waits_for_another() -> None:
    first, second, gate = streams.Stream(), streams.Stream(), threading.Event()
    done, after = streams.Event(), streams.Event()
    first.submit(gate.wait)
    with streams.stream(first):
        done.record()
    done.wait(second)
    with streams.stream(second):
        after.record()
    assert not after.query()
    gate.set()
    after.synchronize()
    assert done.query()


def test_a_failed_copy_is_told_to_whoever_waits() -> None:
    copies, copied = streams.Stream(), streams.Event()
    with streams.stream(copies):
        streams.transfer_kv_direct([torch.zeros(2, 1)], [torch.zeros(2, 1)], torch.tensor([7]), torch.tensor([0]), 1)
        copied.record()
    with pytest.raises(RuntimeError, match="copy between the KV pool and host memory failed"):
        copied.synchronize()


def test_outside_a_stream_a_copy_is_done_at_once() -> None:
    target, event = torch.zeros(2, 1), streams.Event()
    streams.transfer_kv_direct([torch.ones(2, 1)], [target], torch.tensor([1]), torch.tensor([0]), 1)
    event.record()
    assert event.query()
    assert target.tolist() == [[1.0], [0.0]]
