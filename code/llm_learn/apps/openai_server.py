"""An HTTP server with OpenAI's chat API, in front of an engine of `llm_learn.apps.serving_engine`.

It needs Starlette, which comes with the extra `serving`, so nothing else in the package imports it.
"""

import asyncio
import codecs
import json
import queue
import threading
import time
import uuid
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import Request as HTTPRequest
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from llm_learn.apps.serving_engine import LOGGER, Engine, Request
from llm_learn.argument_checks import expect


class RequestError(Exception):
    """A request that is answered with an error.

    Args:
        status: of HTTP.
        message: for users; names the field, what it got and what it accepts.
        param: the field.
    """

    def __init__(self, status: int, message: str, param: str | None = None):
        super().__init__(message)
        self.status, self.param = status, param


@dataclass(frozen=True, kw_only=True)
class ServedModel:
    """What a server knows of the model that its engine runs."""

    name: str  # under which clients ask for it
    # From messages, each with a role and a content, to the token IDs of the prompt; raises
    # ValueError for what it cannot read. Called in several threads.
    prompt_ids: Callable[[list[dict]], list[int]]
    token_bytes: Sequence[bytes]  # of each token ID

    def __post_init__(self):
        expect("len(name) >= 1, len(token_bytes) >= 1", **vars(self))

    @cached_property
    def longest_token(self) -> int:
        """Bytes of one token, at most."""
        return max(map(len, self.token_bytes))


class Service:
    """An engine in a thread, with a mailbox.

    Args:
        engine: nothing else may change it from then on.
        model: what it runs.
        max_waiting: requests that can wait, at least 1; more are refused.
    """

    def __init__(self, engine: Engine, model: ServedModel, max_waiting: int = 64):
        expect("max_waiting >= 1", max_waiting=max_waiting)
        self.engine, self.model, self.max_waiting = engine, model, max_waiting
        self.inbox: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self.closed = self.stopped = False
        # The check of `closed` and the mail are one atomic step.
        self.lock = threading.Lock()
        self.thread = threading.Thread(target=self.run_loop, daemon=True, name="engine")
        self.thread.start()

    def run_loop(self) -> None:
        """Reads the mail, then runs a step of the engine, until it is stopped."""
        while not self.stopped:
            idle = not self.engine.waiting and not self.engine.running
            try:
                with suppress(queue.Empty):
                    while not self.stopped:
                        self.inbox.get(block=idle)()
                        idle = False
                if not self.stopped:
                    _ = self.engine.step()
            except Exception:
                LOGGER.exception("a step failed")
                self.abort_all("failed")

    def abort_all(self, finish_reason: str) -> None:
        """Ends every request; in the engine's thread."""
        for request in [*self.engine.running, *self.engine.waiting]:
            self.engine.abort(request, finish_reason)

    def stop(self) -> None:
        """Ends the thread; unfinished requests are cancelled, and new ones refused."""

        def last() -> None:
            self.stopped = True
            self.abort_all("cancelled")

        with self.lock:
            self.closed = True
            self.inbox.put(last)
        self.thread.join()

    def add_request(self, request: Request) -> None:
        """Puts a request into the mailbox, which the engine reads between two steps.

        Raises:
            ValueError: the engine could never finish it; its own thread would find out too late.
            RequestError: too many wait, or the service is closed.
        """
        self.engine.check(request)
        with self.lock:
            if self.closed:
                raise RequestError(503, "the server is closing")
            # What is in the mailbox waits too; a cancellation in it counts as one more.
            if len(self.engine.waiting) + self.inbox.qsize() >= self.max_waiting:
                raise RequestError(
                    503, f"{self.max_waiting} requests are waiting: try again later"
                )
            self.inbox.put(lambda: self.engine.add_request(request))

    def abort(self, request: Request) -> None:
        """The client no longer wants the answer."""
        self.inbox.put(lambda: self.engine.abort(request, "cancelled"))


SUPPORTED_FIELDS = {
    *("model", "messages", "max_tokens", "max_completion_tokens", "temperature", "top_p"),
    *("seed", "stream", "stream_options", "n", "user", "store", "metadata"),
}
# Some clients send fields that they do not use.
NEUTRAL_DEFAULTS = {
    **{"frequency_penalty": 0, "presence_penalty": 0, "logprobs": False, "top_logprobs": 0},
    **{"stop": [], "tools": [], "logit_bias": {}, "response_format": {"type": "text"}},
}
MAX_BODY_BYTES = 1_000_000  # of a body


def number(
    body: dict, name: str, kind: tuple, low: float, high: float, default: float | None
) -> Any:
    """A field that is a number of that kind, within the bounds; the default where it is missing."""
    value = body.get(name)
    if value is None:
        return default
    if isinstance(value, bool) or not isinstance(value, kind) or not low <= value <= high:
        what = "an integer" if kind == (int,) else "a number"
        raise RequestError(
            400, f"{name} is {value!r}: expected {what} from {low} to {high}", name
        )
    return value


def message_text(content: object) -> str:
    """The text of a message, which may come in parts."""
    parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
    if not isinstance(parts, list) or not all(
        isinstance(p, dict) and p.get("type") == "text" and isinstance(p.get("text"), str)
        for p in parts
    ):
        raise RequestError(
            400, "messages holds a content that is no text: only text is read", "messages"
        )
    return "".join(part["text"] for part in parts)


def normalize_role(role: object) -> object:
    """OpenAI's newer name of the role "system" is "developer"."""
    return "system" if role == "developer" else role


def parse_request(body: object, engine: Engine, model: ServedModel) -> Request:
    """The request that a client's body describes.

    Args:
        body: the parsed JSON.
        engine: only its settings are read.
        model: what the engine runs.

    Raises:
        RequestError: the body asks for what is not supported, or has another format.
    """
    if not isinstance(body, dict):
        raise RequestError(400, f"the body is a {type(body).__name__}: expected an object")
    for name, value in body.items():
        unused = value is None or (
            name in NEUTRAL_DEFAULTS and value == NEUTRAL_DEFAULTS[name]
        )
        if name not in SUPPORTED_FIELDS and not unused:
            raise RequestError(
                400, f"{name!a} is not supported: leave it out", ascii(name)[1:-1]
            )
    if body.get("model") != model.name:
        raise RequestError(
            404, f"model is {body.get('model')!r}: there is {model.name!r}", "model"
        )
    if not isinstance(body.get("stream"), bool | None):
        raise RequestError(
            400, f"stream is {body['stream']!r}: expected true or false", "stream"
        )
    if not isinstance(body.get("stream_options"), dict | None):
        raise RequestError(400, "stream_options is no object", "stream_options")
    n = body.get("n")
    if n is not None and (type(n) is not int or n != 1):
        raise RequestError(400, f"n is {n!r}: one answer is written", "n")
    temperature = number(body, "temperature", (int, float), 0, 2, 1.0)
    if body.get("top_p") == 0:  # the most likely token only
        temperature = 0
    seed = number(body, "seed", (int,), -(1 << 63), (1 << 63) - 1, None)
    options = {
        # A division by nearly zero gives no finite number.
        "temperature": temperature if temperature >= 0.01 else 0,
        "top_p": number(body, "top_p", (int, float), 0, 1, None) or None,
        "generator": None if seed is None else torch.Generator().manual_seed(seed),
    }
    limit = number(body, "max_tokens", (int,), 1, 1 << 20, None)
    limit = number(body, "max_completion_tokens", (int,), 1, 1 << 20, limit)
    messages = body.get("messages")
    try:
        if not isinstance(messages, list) or not all(isinstance(m, dict) for m in messages):
            raise ValueError("messages is no list of objects with role and content")
        plain = [
            {
                "role": normalize_role(m.get("role")),
                "content": message_text(m.get("content")),
            }
            for m in messages
        ]
        # Before the text is cut into tokens, which takes time.
        size = sum(len(m["content"].encode(errors="replace")) for m in plain)
        most = model.longest_token * engine.max_output_tokens(1)
        if size > most:
            raise ValueError(
                f"messages holds {size:,} bytes of text: no prompt of more than {most:,} fits"
            )
        prompt = model.prompt_ids(plain)
        usual = max(1, min(256, engine.max_output_tokens(len(prompt))))
        request = Request(prompt, limit or usual, options=options)
        engine.check(request)
    except ValueError as error:
        raise RequestError(400, str(error), "messages") from error
    return request


async def stream_text(
    http: HTTPRequest, service: Service, request: Request
) -> AsyncGenerator[tuple[str, str]]:
    """Pieces of text with an empty reason, then an empty piece with the reason; stops if the client disconnects."""
    loop, events = asyncio.get_running_loop(), asyncio.Queue()

    def tell(*event: object) -> None:
        with suppress(RuntimeError):  # the loop is closed: the client has gone
            loop.call_soon_threadsafe(events.put_nowait, event)

    request.on_token = lambda i: tell(service.model.token_bytes[i], "")
    request.on_finish = lambda finish_reason: tell(b"", finish_reason)
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    try:
        service.add_request(request)
        finish_reason = ""
        while not finish_reason:
            try:
                piece, finish_reason = await asyncio.wait_for(events.get(), 0.1)
            except TimeoutError:
                piece = b""
            if await http.is_disconnected():
                return
            if (text := decoder.decode(piece, final=bool(finish_reason))) or finish_reason:
                yield text, finish_reason
    finally:
        service.abort(request)


def head(name: str) -> dict:
    """The fields that all parts of one answer have in common; `name` is the model's."""
    created = int(time.time())
    return {"id": f"chatcmpl-{uuid.uuid4().hex}", "created": created, "model": name}


def response_body(head: dict, kind: str, choice: dict | None, **more: object) -> dict:
    """An answer, or a part of one."""
    choices = [] if choice is None else [{"index": 0} | choice]
    return head | {"object": kind, "choices": choices} | more


def usage(request: Request) -> dict:
    """How many tokens were processed and generated."""
    prompt, total = len(request.prompt), len(request.ids)
    counts = {"prompt_tokens": prompt, "completion_tokens": total - prompt}
    return {"usage": counts | {"total_tokens": total}}


def app(service: Service) -> Starlette:
    """The server."""
    name, failed = service.model.name, "the answer could not be written"

    async def models(http: HTTPRequest) -> Response:
        row = {"id": name, "object": "model", "created": 0, "owned_by": "you"}
        return JSONResponse({"object": "list", "data": [row]})

    async def completions(http: HTTPRequest) -> Response:
        content = bytearray()
        async for part in http.stream():
            content += part
            if len(content) > MAX_BODY_BYTES:
                raise RequestError(413, f"the body is longer than {MAX_BODY_BYTES:,} bytes")
        try:
            body = json.loads(content)
        except (ValueError, RecursionError) as error:
            raise RequestError(400, f"the body is no JSON: {error}") from error
        # In another thread, because tokenization takes time: meanwhile others are answered.
        request = await run_in_threadpool(
            parse_request, body, service.engine, service.model
        )
        common, pieces = head(name), stream_text(http, service, request)
        if not body.get("stream"):
            found = [piece async for piece in pieces]
            if not found or found[-1][1] not in ("stop", "length"):
                raise RequestError(500, failed)
            message = {"role": "assistant", "content": "".join(text for text, _ in found)}
            choice = {"message": message, "finish_reason": found[-1][1]}
            return JSONResponse(
                response_body(common, "chat.completion", choice, **usage(request))
            )
        # What can be refused is refused before the first event, when the status has not been sent.
        first = await anext(pieces, None)
        if first is None or first[1] not in ("", "stop", "length"):
            raise RequestError(500, failed)

        async def events() -> AsyncIterator[dict]:
            kind = "chat.completion.chunk"
            delta = {"role": "assistant", "content": ""}
            yield response_body(common, kind, {"delta": delta, "finish_reason": None})
            item = first
            while item is not None:
                text, finish_reason = item
                if finish_reason not in ("", "stop", "length"):
                    yield {"error": {"message": failed, "type": "server_error"}}
                    return
                delta = {"content": text} if text else {}
                yield response_body(
                    common, kind, {"delta": delta, "finish_reason": finish_reason or None}
                )
                item = await anext(pieces, None)
            if (body.get("stream_options") or {}).get("include_usage"):
                yield response_body(common, kind, None, **usage(request))

        async def lines() -> AsyncIterator[str]:
            try:
                async for event in events():
                    yield f"data: {json.dumps(event)}\n\n"
                yield "data: [DONE]\n\n"
            finally:
                await pieces.aclose()

        return StreamingResponse(lines(), media_type="text/event-stream")

    async def error_response(http: HTTPRequest, error: RequestError) -> Response:
        kind = "invalid_request_error" if error.status < 500 else "server_error"
        said = {"message": str(error), "type": kind, "param": error.param, "code": None}
        return JSONResponse({"error": said}, error.status)

    async def unknown(http: HTTPRequest, error: HTTPException) -> Response:
        said = f"{http.url.path}: {error.detail}"
        return await error_response(http, RequestError(error.status_code, said))

    routes = [
        Route("/v1/models", models),
        Route("/v1/chat/completions", completions, methods=["POST"]),
    ]
    handlers: dict[Any, Any] = {RequestError: error_response, HTTPException: unknown}
    return Starlette(routes=routes, exception_handlers=handlers)
