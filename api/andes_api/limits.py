"""What a tenant has used of its limits: open streams, requests and tokens a minute. Pure; time is an argument."""

from __future__ import annotations

from dataclasses import replace

from andes_api import admission
from andes_api.admission import TokenBucket
from andes_api.board import Board
from andes_api.settings import TenantSettings
from andes_api.stream import Stream

__all__ = ["TenantLimits"]

_UNSERVED = ("shed", "error")
"""Outcomes that cost nothing where no token has come."""


class _Budget:
    """Tokens a minute of one kind; a whole minute's in a burst. It may be overdrawn: then nothing new until it is not."""

    def __init__(self, kind: str, per_minute: int, bucket: TokenBucket, *, prompt: bool, output: bool) -> None:
        self.kind, self.per_minute, self.bucket = kind, per_minute, bucket
        self._prompt, self._output = prompt, output

    def cost(self, prompt: int, output: int) -> int:
        return self._prompt * prompt + self._output * output


class TenantLimits:
    """One tenant's, all workers together. Its prompts are charged when they come, by estimate until an engine has counted
    them, and answers as they come. now_s: clock seconds. index: of the tenant on the ``board``."""

    def __init__(self, tenant: TenantSettings, board: Board | None = None, index: int = 0) -> None:
        board = Board(tenants=1) if board is None else board
        self._tenant, self._board, self._held = tenant, board, board.held(index)
        rate = tenant.requests_per_minute
        self._requests = None if rate is None else TokenBucket(rate, cell=board.bucket(index, 0))
        wanted = (
            ("tokens", tenant.tokens_per_minute, True, True),
            ("input-tokens", tenant.input_tokens_per_minute, True, False),
            ("output-tokens", tenant.output_tokens_per_minute, False, True),
        )
        self._budgets = [
            _Budget(kind, n, TokenBucket(n, burst=n, cell=board.bucket(index, k)), prompt=i, output=o)
            for k, (kind, n, i, o) in enumerate(wanted, 1)
            if n is not None
        ]
        self._charged: dict[Stream, tuple[int, int]] = {}

    def admit(self, stream: Stream, now_s: float, stream_s: float) -> None:
        """Count ``stream`` in, until :meth:`ended`. stream_s: how long a stream usually lasts. Raises the 429 that refuses
        it."""
        with self._board.lock():
            self._admit(stream, now_s, stream_s)
            self._held.set(len(self._charged))

    def _admit(self, stream: Stream, now_s: float, stream_s: float) -> None:
        tenant, held = self._tenant, len(self._charged) + int(self._held.others)
        if tenant.max_streams is not None and held >= tenant.max_streams:
            raise admission.tenant_streams(tenant.name, tenant.max_streams, max(1.0, stream_s / held))
        self._settle(now_s)
        prompt = stream.record.prompt_tokens
        for budget in self._budgets:
            need = max(1, budget.cost(prompt, 0))
            if wait_s := budget.bucket.wait_s(now_s, need):
                never = need > budget.per_minute
                refused = admission.too_many_tokens(
                    tenant.name, budget.kind, budget.per_minute, None if never else wait_s
                )
                raise replace(refused, limits=self._headers(now_s))
        if self._requests is not None and (wait_s := self._requests.take(now_s)):
            refused = admission.too_fast(tenant.name, tenant.requests_per_minute or 0.0, wait_s)
            raise replace(refused, limits=self._headers(now_s))
        self._charged[stream] = (0, 0)
        self._charge(stream, (prompt, 0), now_s)

    def ended(self, stream: Stream, now_s: float) -> None:
        """``stream`` is over; what was refused costs nothing."""
        if stream in self._charged:
            unserved = stream.record.outcome in _UNSERVED and not stream.tokens
            with self._board.lock():
                self._charge(stream, (0, 0) if unserved else (stream.read_tokens, stream.tokens), now_s)
                del self._charged[stream]
                self._held.set(len(self._charged))

    def charge_late(self, output_tokens: int, now_s: float) -> None:
        """A stream that is over has had that many tokens more."""
        with self._board.lock():
            for budget in self._budgets:
                budget.bucket.charge(now_s, budget.cost(0, output_tokens))

    def headers(self, now_s: float) -> dict[str, str]:
        """What is left, as OpenAI says it: ``x-ratelimit-limit-*``, ``-remaining-*``, ``-reset-*``."""
        with self._board.lock():
            return self._headers(now_s)

    def settle(self, now_s: float) -> None:
        """Charge what open streams have had by now, so that other workers know of it."""
        with self._board.lock():
            self._settle(now_s)

    def _headers(self, now_s: float) -> dict[str, str]:
        self._settle(now_s)
        told = [(budget.kind, float(budget.per_minute), budget.bucket) for budget in self._budgets]
        if self._requests is not None:
            told.append(("requests", float(self._tenant.requests_per_minute or 0.0), self._requests))
        said = {}
        for kind, per_minute, bucket in told:
            said[f"x-ratelimit-limit-{kind}"] = f"{per_minute:g}" if per_minute < 1 else str(int(per_minute))
            said[f"x-ratelimit-remaining-{kind}"] = str(max(0, int(bucket.left(now_s))))
            said[f"x-ratelimit-reset-{kind}"] = f"{bucket.full_in_s(now_s):.3f}s"
        return said

    def _settle(self, now_s: float) -> None:
        if self._budgets:
            for stream in self._charged:
                self._charge(stream, (stream.read_tokens, stream.tokens), now_s)

    def _charge(self, stream: Stream, used: tuple[int, int], now_s: float) -> None:
        before = self._charged[stream]
        if used != before:
            for budget in self._budgets:
                budget.bucket.charge(now_s, budget.cost(*used) - budget.cost(*before))
            self._charged[stream] = used
