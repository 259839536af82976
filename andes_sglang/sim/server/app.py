"""The HTTP side: SGLang's endpoints over a :class:`~andes_sglang.sim.server.live.LiveReplica`."""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from andes_sglang import __version__, reception
from andes_sglang.request import RequestSpec
from andes_sglang.sim.replica import RefusedError
from andes_sglang.sim.server import bodies, embedding
from andes_sglang.sim.server.bodies import AnswerRequest, BadRequestError, Limits
from andes_sglang.sim.server.choice import Choice, plan
from andes_sglang.sim.server.dialect import WEIGHT_VERSION, Chat, Completion, Dialect, Generate, dumps
from andes_sglang.sim.server.generation import Generation
from andes_sglang.sim.server.live import DrainingError, LiveReplica, QueueFullError
from andes_sglang.sim.server.metrics import Exposition
from andes_sglang.sim.server.typed_dialects import Messages, Responses

__all__ = ["ServerInfo", "build_app"]

_EVENTS = "text/event-stream"
_FULL = "The request queue is full."
_STOPPING = "The server is shutting down."
_AT_ONCE = {
    "/v1/embeddings": embedding.embeddings,
    "/v1/score": embedding.score,
    "/v1/rerank": embedding.rerank,
    "/v1/tokenize": embedding.tokenize,
    "/v1/detokenize": embedding.detokenize,
    "/v1/messages/count_tokens": embedding.count_tokens,
}
_VERSION = f"andes {__version__}, simulated"


@dataclass(frozen=True, slots=True)
class ServerInfo:
    """What the server says of itself. model: the name it serves; arguments: shown by ``/server_info``; policy: its name and
    options, likewise."""

    model: str
    limits: Limits
    cache_report: bool
    arguments: Mapping[str, Any]
    policy: Mapping[str, Any]


class _EventStream:
    """A response that sends what has been generated as it comes. Like SGLang's it begins with the first token."""

    def __init__(self, live: LiveReplica, generation: Generation, dialect: Dialect) -> None:
        self._live, self._generation, self._dialect = live, generation, dialect

    async def __call__(self, _scope: Scope, receive: Receive, send: Send) -> None:
        generation, dialect, answers = self._generation, self._dialect, self._generation.answers
        sent = [0] * len(answers)
        ended = [False] * len(answers)
        headers = [(b"content-type", f"{_EVENTS}; charset=utf-8".encode())]
        start = {"type": "http.response.start", "status": 200, "headers": headers}
        with self._live.attended(generation, receive):
            if head := dialect.head():
                await send(start)
                await send({"type": "http.response.body", "body": head, "more_body": True})
            await generation.news()
            if not head:
                await send(start)
            while True:
                events = b""
                for k, answer in enumerate(answers):
                    if answer.tokens > sent[k] or (answer.done and not ended[k]):
                        events += dialect.piece(k, answer, sent[k])
                        sent[k], ended[k] = answer.tokens, answer.done
                if all(ended):
                    break
                await send({"type": "http.response.body", "body": events, "more_body": True})
                await generation.news()
            cut = self._live.stopping and any(answer.aborted for answer in answers)
            tail = dialect.cut(_STOPPING) if cut else dialect.tail(answers)
            await send({"type": "http.response.body", "body": events + tail + dialect.end})


class Endpoints:
    """A method for every path."""

    def __init__(self, live: LiveReplica, info: ServerInfo, exposition: Exposition) -> None:
        self._live = live
        self._info = info
        self._exposition = exposition
        self._started_s = int(time.time())

    def routes(self) -> list[Route]:
        return [
            Route("/v1/completions", self.completions, methods=["POST"]),
            Route("/v1/chat/completions", self.chat, methods=["POST"]),
            Route("/v1/responses", self.responses, methods=["POST"]),
            Route("/v1/messages", self.messages, methods=["POST"]),
            *(Route(path, self._at_once(answer), methods=["POST"]) for path, answer in _AT_ONCE.items()),
            Route("/generate", self.generate, methods=["POST", "PUT"]),
            Route("/abort_request", self.abort, methods=["POST"]),
            Route(reception.PATH, self.readers, methods=["POST"]),
            Route("/v1/models", self.models),
            Route("/v1/models/{model:path}", self.one_model),
            Route("/v1/loads", self.loads),
            Route("/health", self.health),
            Route("/health_generate", self.health),
            Route("/model_info", self.model_info),
            Route("/get_model_info", self.model_info),
            Route("/server_info", self.server_info),
            Route("/get_server_info", self.server_info),
            Route("/metrics", self.metrics),
            Route("/metrics/", self.metrics),
        ]

    async def completions(self, request: Request) -> Response | _EventStream:
        return await self._answer(request, bodies.read_completion, Completion)

    async def chat(self, request: Request) -> Response | _EventStream:
        return await self._answer(request, bodies.read_chat, Chat)

    async def responses(self, request: Request) -> Response | _EventStream:
        return await self._answer(request, bodies.read_responses, Responses)

    async def messages(self, request: Request) -> Response | _EventStream:
        return await self._answer(request, bodies.read_messages, Messages)

    def _at_once(self, answer: Callable[[Mapping[str, Any], Limits], Any]) -> Callable[[Request], Awaitable[Response]]:
        """The endpoint that ``answer`` answers."""

        async def endpoint(request: Request) -> Response:
            try:
                return JSONResponse(answer(await _body(request), self._info.limits))
            except BadRequestError as refused:
                return _refused(str(refused), 400, request.url.path)

        return endpoint

    async def generate(self, request: Request) -> Response | _EventStream:
        return await self._answer(request, bodies.read_generate, Generate)

    async def _answer(
        self, request: Request, parse: Callable[[Mapping[str, Any], Limits], AnswerRequest], speak: type[Dialect]
    ) -> Response | _EventStream:
        limits = self._info.limits
        try:
            asked = parse(await _body(request), limits)
            choices = [plan(asked, prompt, k, limits) for prompt in asked.prompts for k in range(asked.n)]
            dialect = speak(asked.rid or uuid.uuid4().hex, asked, choices, self._info.cache_report)
            generation = self._live.submit(
                dialect.rid, lambda now_s: [_spec(choice, asked, now_s) for choice in choices], stream=asked.stream
            )
            self._live.spans.began(generation, request.headers)
        except (BadRequestError, RefusedError) as refused:
            return _refused(str(refused), 400, request.url.path)
        except DrainingError:
            return _refused(_STOPPING, 503, request.url.path)
        except QueueFullError:
            if asked.stream:
                return Response(dialect.shed(_FULL) + dialect.end, media_type=_EVENTS)
            return _refused(_FULL, 503, request.url.path)
        if asked.stream:
            return _EventStream(self._live, generation, dialect)
        with self._live.attended(generation, request.receive):
            while not generation.done:
                await generation.news()
        return Response(dumps(dialect.whole(generation.answers)), media_type="application/json")

    async def abort(self, request: Request) -> Response:
        try:
            body = await _body(request)
            rid, abort_all = body.get("rid"), body.get("abort_all", False)
            if not isinstance(abort_all, bool):
                raise BadRequestError(f"abort_all must be true or false, got {abort_all!r}")
            if not abort_all and not (isinstance(rid, str) and rid):
                raise BadRequestError(f"rid must be the id of a request, got {rid!r}")
        except BadRequestError as refused:
            return _error(str(refused), "BadRequestError", 400)
        self._live.abort_matching("" if abort_all else str(rid))
        return Response()

    async def readers(self, request: Request) -> Response:
        """What readers have received (:mod:`andes_sglang.reception`)."""
        try:
            self._live.hear(reception.parse(await _body(request)))
        except ValueError as refused:
            return _error(str(refused), "BadRequestError", 400)
        return Response(status_code=204)

    async def health(self, _request: Request) -> Response:
        return Response(status_code=503 if self._live.draining else 200)

    async def models(self, _request: Request) -> Response:
        return JSONResponse({"object": "list", "data": [self._card(), *map(self._adapter, self._info.limits.adapters)]})

    async def one_model(self, request: Request) -> Response:
        name = request.path_params["model"]
        if name == self._info.model:
            return JSONResponse(self._card())
        message = f"The model '{name}' does not exist"
        told = {"message": message, "type": "invalid_request_error", "param": "model", "code": "model_not_found"}
        return JSONResponse({"error": told}, 404)

    def _card(self) -> dict[str, Any]:
        return {
            "id": self._info.model,
            "object": "model",
            "created": self._started_s,
            "owned_by": "sglang",
            "root": self._info.model,
            "parent": None,
            "max_model_len": self._info.limits.context_tokens,
        }

    def _adapter(self, name: str) -> dict[str, Any]:
        return {**self._card(), "id": name, "root": name, "parent": self._info.model, "max_model_len": None}

    async def model_info(self, _request: Request) -> Response:
        info = {
            "model_path": self._info.model,
            "tokenizer_path": self._info.model,
            "is_generation": True,
            "preferred_sampling_params": None,
            "weight_version": WEIGHT_VERSION,
            "has_image_understanding": False,
            "has_audio_understanding": False,
            "model_type": "simulated",
            "architectures": ["Simulated"],
        }
        return JSONResponse(info)

    async def server_info(self, _request: Request) -> Response:
        state = {**self._exposition.load(), "andes": self._info.policy}
        info = {**self._info.arguments, "version": _VERSION, "internal_states": [state]}
        return JSONResponse(info)

    async def loads(self, _request: Request) -> Response:
        said = {
            "timestamp": datetime.now(UTC).isoformat(),
            "version": _VERSION,
            "accelerator": self._info.arguments["hardware"],
            "num_accelerators": 1,
            "loads": [self._exposition.load()],
        }
        return JSONResponse(said)

    async def metrics(self, _request: Request) -> Response:
        page, media_type = self._exposition.page()
        return Response(page, media_type=media_type)


async def _body(request: Request) -> Mapping[str, Any]:
    kind = request.headers.get("content-type", "").split(";", 1)[0].strip().lower()
    if kind != "application/json":
        raise BadRequestError(f"content-type: only application/json is allowed, got {kind!r}")
    data = await request.body()
    try:
        body = json.loads(data)
        if b"\\ud" in data.lower():
            json.dumps(body, ensure_ascii=False).encode()  # half a surrogate pair is no text
    except (ValueError, RecursionError) as broken:
        raise BadRequestError(f"the body is not JSON: {broken}") from None
    if not isinstance(body, dict):
        raise BadRequestError(f"the body must be an object, got {str(body)[:80]!r}")
    return body


def _spec(choice: Choice, asked: AnswerRequest, now_s: float) -> RequestSpec:
    prompt = choice.prompt
    return RequestSpec(
        arrival_s=now_s,
        prompt_tokens=prompt.tokens,
        output_tokens=choice.tokens,
        target=asked.expectation.target,
        blocks=prompt.blocks,
        max_tokens=choice.room_tokens,
        weight=asked.expectation.weight,
        yields=asked.expectation.yields,
        expected_tokens=asked.expectation.expected_tokens,
        reason_tokens=choice.hidden if asked.expectation.hides_reasoning else 0,
        reasoning=asked.expectation.reasoning,
        returns_s=asked.expectation.returns_s,
    )


def _error(message: str, kind: str, status: int) -> Response:
    """SGLang's error body."""
    return JSONResponse({"object": "error", "message": message, "type": kind, "param": None, "code": status}, status)


def _refused(message: str, status: int, path: str) -> Response:
    """SGLang's error body at ``path``."""
    kind = "BadRequestError" if status == 400 else str(status)
    if path == "/generate" and status == 400:
        return JSONResponse({"error": {"message": message}}, status)
    if path.startswith("/v1/messages"):
        kind = "invalid_request_error" if status == 400 else "overloaded_error"
        return JSONResponse({"type": "error", "error": {"type": kind, "message": message}}, status)
    if path.startswith("/v1/responses"):
        error = {"message": message, "type": "invalid_request_error", "param": None, "code": status}
        return JSONResponse({"error": error}, status)
    return _error(message, kind, status)


async def _http_error(_request: Request, failed: Exception) -> Response:
    """An unknown path or method, as FastAPI says it."""
    status, detail = (failed.status_code, failed.detail) if isinstance(failed, HTTPException) else (500, str(failed))
    return JSONResponse({"detail": detail}, status)


def build_app(live: LiveReplica, info: ServerInfo, exposition: Exposition) -> Starlette:
    """The application; its caller runs the clock of ``live`` (:meth:`~andes_sglang.sim.server.live.LiveReplica.run`)."""
    return Starlette(routes=Endpoints(live, info, exposition).routes(), exception_handlers={HTTPException: _http_error})
