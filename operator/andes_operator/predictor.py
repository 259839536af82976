"""Predictions and tables in processes of their own, so that neither simulator nor forecast holds up the operator's loop.

``Predictor(30.0)(inquiry)`` awaits :func:`andes_operator.prediction.predict` there; ``start`` and ``close`` the process.
``Tabulator()`` does so with :func:`andes_operator.prediction.tabulated`.
"""

from __future__ import annotations

import asyncio
import logging
import multiprocessing
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Generic, TypeVar

from andes_operator.explain import explain
from andes_operator.forecast import DemandForecast
from andes_operator.prediction import Inquiry, predict, tabulated
from andes_operator.table import Table
from andes_operator.whatif import Prediction
from andes_sglang.orphans import exit_with_parent
from andes_sglang.sim.replica import RefusedError

__all__ = ["PredictionError", "Predictor", "Tabulator"]

log = logging.getLogger(__name__)

Answer = TypeVar("Answer")
TABLE_S, TABLE_QUEUE_S = 300.0, 3600.0
"""Seconds for one table, which takes 3 to 40 s of CPU, and that it waits for those of other targets: nothing waits for it."""
QUEUE_TIMEOUT_S = 60.0
"""Seconds that a prediction waits for earlier ones."""


class PredictionError(RuntimeError):
    """There is no prediction; the message says why."""


class Worker(Generic[Answer]):
    """One worker process, which answers one inquiry at a time, in order of asking.

    timeout_s: for one prediction; a large fleet takes 2 to 4 s of CPU
    (docs/decisions/2026-11-21-what-if-and-forecast.md). queue_timeout_s: how long one waits for earlier ones: with more
    targets than one process can simulate, each goes without a prediction now and then. answer: to an inquiry; pure."""

    def __init__(
        self, answer: Callable[[Inquiry], Answer], timeout_s: float, queue_timeout_s: float = QUEUE_TIMEOUT_S
    ) -> None:
        self.timeout_s, self.queue_timeout_s, self._answer = timeout_s, queue_timeout_s, answer
        self._turn = asyncio.Lock()
        self._pool: ProcessPoolExecutor | None = None

    def start(self) -> None:
        """Start the process now, so that the first prediction does not wait for it."""
        self._running_pool().submit(_import_statsmodels)

    async def __call__(self, inquiry: Inquiry) -> Answer:
        """Raises :class:`PredictionError`."""
        try:
            async with asyncio.timeout(self.queue_timeout_s):
                await self._turn.acquire()
        except TimeoutError:
            waited = f"waited {self.queue_timeout_s:g} s for the what-ifs of other targets"
            raise PredictionError(f"{waited}: use fewer targets or larger tickSeconds") from None
        try:
            return await self._ask(inquiry)
        finally:
            self._turn.release()

    async def _ask(self, inquiry: Inquiry) -> Answer:
        try:
            running = asyncio.get_running_loop().run_in_executor(self._running_pool(), self._answer, inquiry)
            return await asyncio.wait_for(running, self.timeout_s)
        except TimeoutError:
            self.close()
            raise PredictionError(f"the what-if took more than {self.timeout_s:g} s") from None
        except BrokenProcessPool:
            self.close()
            raise PredictionError("the what-if's process has died") from None
        except (ValueError, RefusedError) as error:
            raise PredictionError(str(error)) from None
        except Exception as error:  # of a policy, which need not be this product's
            log.exception("the what-if failed")
            raise PredictionError(f"the what-if failed: {explain(error)}; where, is in the operator's log") from None

    def _running_pool(self) -> ProcessPoolExecutor:
        if self._pool is None:
            self._pool = ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), exit_with_parent)
        return self._pool

    def close(self) -> None:
        """End the process, also in the middle of a simulation; the next prediction starts another."""
        pool, self._pool = self._pool, None
        if pool is not None:
            for process in list((pool._processes or {}).values()):
                process.terminate()
            pool.shutdown(wait=False, cancel_futures=True)


class Predictor(Worker[tuple[DemandForecast, Prediction]]):
    """Answers with forecast and what-if."""

    def __init__(self, timeout_s: float, queue_timeout_s: float = QUEUE_TIMEOUT_S) -> None:
        super().__init__(predict, timeout_s, queue_timeout_s)


class Tabulator(Worker[Table]):
    """Answers with a table of the fluid model."""

    def __init__(self, timeout_s: float = TABLE_S, queue_timeout_s: float = TABLE_QUEUE_S) -> None:
        super().__init__(tabulated, timeout_s, queue_timeout_s)


def _import_statsmodels() -> None:
    """In the worker: what a first seasonal forecast would import."""
    import statsmodels.tsa.forecasting.theta  # noqa: F401
