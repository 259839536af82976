"""The process that predicts: the operator's loop goes on, and what hangs or dies is replaced."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from test_prediction import NOW_S, SPEC, observed

from andes_operator.prediction import Inquiry
from andes_operator.predictor import PredictionError, Predictor

INQUIRY = Inquiry(SPEC, observed(10.0, 60.0), NOW_S - 60, 75.0)


@contextmanager
def predictor(timeout_s: float, queue_timeout_s: float = 60.0) -> Iterator[Predictor]:
    made = Predictor(timeout_s, queue_timeout_s)
    try:
        yield made
    finally:
        made.close()


@pytest.mark.timeout(300)
def test_the_loop_goes_on_while_it_predicts_and_a_dead_process_is_replaced() -> None:
    async def scenario(ask: Predictor) -> None:
        running = asyncio.ensure_future(ask(INQUIRY))
        turns = 0
        while not running.done():
            await asyncio.sleep(0.01)
            turns += 1
        assert running.result()[1].fewest is not None
        assert turns > 10, "the loop had no turn while it predicted"
        (worker,) = ask._pool._processes.values()  # type: ignore[union-attr]
        doomed = asyncio.ensure_future(ask(INQUIRY))
        await asyncio.sleep(0)
        os.kill(worker.pid, signal.SIGKILL)
        with pytest.raises(PredictionError, match="process has died"):
            await doomed
        assert (await ask(INQUIRY))[1].fewest is not None

    with predictor(120.0) as ask:
        asyncio.run(scenario(ask))


@pytest.mark.timeout(300)
def test_a_prediction_that_takes_too_long_is_ended() -> None:
    async def scenario(ask: Predictor) -> None:
        with pytest.raises(PredictionError, match=r"more than 0\.05 s"):
            await ask(INQUIRY)

    with predictor(0.05) as ask:
        asyncio.run(scenario(ask))


@pytest.mark.timeout(300)
def test_a_prediction_does_not_wait_endlessly_behind_others() -> None:
    """A reconcile that waits in a queue must not count as hanging, for which the liveness probe restarts the operator."""

    async def scenario(ask: Predictor) -> None:
        first = asyncio.ensure_future(ask(INQUIRY))
        await asyncio.sleep(0)
        with pytest.raises(PredictionError, match="waited 0 s for the what-ifs of other targets"):
            await ask(INQUIRY)
        first.cancel()

    with predictor(120.0, queue_timeout_s=0.0) as ask:
        asyncio.run(scenario(ask))


def test_a_policy_of_ones_own_that_fails_is_a_prediction_that_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(inquiry: Any) -> Any:
        raise ZeroDivisionError("division by zero")

    async def ask() -> None:
        made = Predictor(5.0)
        monkeypatch.setattr(made, "_running_pool", lambda: None)  # the loop's threads
        with pytest.raises(PredictionError, match="failed: division by zero; where, is in the operator's log"):
            await made(None)  # type: ignore[arg-type]

    monkeypatch.setattr("andes_operator.predictor.predict", fail)
    asyncio.run(ask())
