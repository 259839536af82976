"""Streams beside the engine: order, waits and errors are those of a GPU."""

from __future__ import annotations

import threading

import pytest

torch = pytest.importorskip("torch")

from andes_sglang.adapter import copy_streams  # noqa: E402


def test_a_stream_copies_beside_the_engine_and_in_order() -> None:
    pool, host, back = torch.arange(12.0).reshape(6, 2), torch.zeros(6, 2), torch.zeros(6, 2)
    gate, copies, copied = threading.Event(), copy_streams.CopyStream(), copy_streams.CopyEvent(enable_timing=True)
    copies.submit(lambda: None if gate.wait(30) else pytest.fail("the gate stayed shut"))
    with copy_streams.stream(copies):
        copy_streams.transfer_kv_direct([pool], [host], torch.tensor([1, 3]), torch.tensor([4, 0]), 1)
        copy_streams.transfer_kv_direct([host], [back], torch.tensor([4]), torch.tensor([5]), 1)
        copied.record()
    assert not copied.query()
    assert not host.any()
    gate.set()
    before_s = copy_streams.waited_s()
    copy_streams.current_stream().wait_event(copied)
    assert copied.query()
    assert host[4].tolist() == back[5].tolist() == [2.0, 3.0]
    assert host[0].tolist() == [6.0, 7.0]
    assert copies.busy_s > 0
    assert copy_streams.waited_s() >= before_s


def test_a_stream_waits_for_another() -> None:
    first, second, gate = copy_streams.CopyStream(), copy_streams.CopyStream(), threading.Event()
    done, after = copy_streams.CopyEvent(), copy_streams.CopyEvent()
    first.submit(gate.wait)
    with copy_streams.stream(first):
        done.record()
    done.wait(second)
    with copy_streams.stream(second):
        after.record()
    assert not after.query()
    gate.set()
    after.synchronize()
    assert done.query()


def test_a_failed_copy_is_raised_where_it_is_waited_for() -> None:
    copies, copied = copy_streams.CopyStream(), copy_streams.CopyEvent()
    with copy_streams.stream(copies):
        copy_streams.transfer_kv_direct(
            [torch.zeros(2, 1)], [torch.zeros(2, 1)], torch.tensor([7]), torch.tensor([0]), 1
        )
        copied.record()
    with pytest.raises(RuntimeError, match="copy between the KV pool and host memory failed"):
        copied.synchronize()


def test_outside_a_stream_a_copy_is_done_at_once() -> None:
    target, event = torch.zeros(2, 1), copy_streams.CopyEvent()
    copy_streams.transfer_kv_direct([torch.ones(2, 1)], [target], torch.tensor([1]), torch.tensor([0]), 1)
    event.record()
    assert event.query()
    assert target.tolist() == [[1.0], [0.0]]
