"""What every request passes, whatever it asks: who may ask, how much at a time, how long; and what is logged of it."""

import asyncio
import hmac
import json
import os
import secrets
import sys
import time
import traceback
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from ..errors import InputError
from .errors import ApiError, ClientGone, refuse_busy, refuse_input, refuse_late
from .metrics import Metrics
from .options import ServerOptions
from .streaming import Json

JSON_BYTES, FORM_BYTES = 16 << 20, 64 << 20  # of a body
OPEN_BYTES = 512 << 20  # of all bodies together whose requests are open
BODY_SECONDS = 30.0  # between two parts of a body
GRACE_SECONDS = 10.0  # for a stream to say that its time is over
GONE_STATUS = 499  # in logs, of an answer that nobody waited for
LOOPBACK_HOSTS = ("localhost", "127.0.0.1", "::1")
OPEN_ROUTES = ("/health", "/", "/page")
DETAILS = {404: "there is no such route", 405: "this route takes another method"}


@dataclass
class RequestRecord:
    """What is counted and logged of a request: no texts, no files, no keys."""

    id: str
    method: str
    started_at: float
    deadline: float
    route: str = "other"
    model: str = ""
    status: int = 0
    stream: bool = False
    prompt_tokens: int = 0
    completion_tokens: int = 0
    first_at: float | None = None
    error: str = ""
    timeout: Any = field(default=None, repr=False)

    def add_usage(self, prompt_tokens: int, completion_tokens: int) -> None:
        self.prompt_tokens, self.completion_tokens = prompt_tokens, completion_tokens
        if self.first_at is None:
            self.first_at = time.monotonic()

    def begin_stream(self) -> None:
        """A stream ends itself at the deadline; its client gets a little longer to read."""
        self.stream = True
        self.timeout.reschedule(self.deadline + GRACE_SECONDS)


def log(event: str, **values: Any) -> None:
    """Write a JSON line to stderr."""
    facts = {name: value for name, value in values.items() if value not in (None, "", 0)}
    print(json.dumps({"time": round(time.time(), 3), "event": event} | facts), file=sys.stderr, flush=True)


class Gate:
    """An ASGI application around another, which raises ApiError for what it cannot answer."""

    def __init__(self, app: Any, options: ServerOptions, n_models: int):
        self.app, self.options, self.metrics = app, options, Metrics()
        self.max_open = n_models * (options.max_concurrent + options.max_queue)
        self.n_open, self.open_bytes, self.is_draining = 0, 0, False
        self.hosts = (*LOOPBACK_HOSTS, options.host) if options.host in LOOPBACK_HOSTS else ()

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            return
        now = asyncio.get_running_loop().time()
        record = RequestRecord(secrets.token_hex(8), scope["method"], time.monotonic(), now + self.options.timeout)
        scope["record"] = record
        body = BoundedReceiver(receive, Headers(scope=scope), self)
        self.n_open += 1
        try:
            await self.answer(scope, body, RecordingSender(send, record), record)
        except (ClientDisconnect, ClientGone, asyncio.CancelledError):
            record.status = GONE_STATUS
        finally:
            self.n_open -= 1
            self.open_bytes -= body.size
            self.finish(record)

    async def answer(self, scope: Any, receive: Any, send: "RecordingSender", record: RequestRecord) -> None:
        """Answer a request, with an error where it cannot be."""
        try:
            async with asyncio.timeout_at(record.deadline) as record.timeout:
                self.check(scope, Headers(scope=scope))
                await self.app(scope, receive, send)
            return
        except Exception as error:
            if isinstance(error, ClientDisconnect | ClientGone):
                raise
            problem = self.describe(error, record)
        if record.status:  # it has begun: end the connection, so that the client sees that it is incomplete
            raise ClientGone
        record.error = problem.code or ""
        await Json(problem.body(), problem.status, problem.headers)(scope, receive, send)

    def describe(self, error: Exception, record: RequestRecord) -> ApiError:
        """Return what a client is told of an error."""
        if isinstance(error, ApiError):
            return error
        if isinstance(error, InputError):
            return refuse_input(error)
        if isinstance(error, TimeoutError):
            return refuse_late(self.options.timeout)
        if isinstance(error, HTTPException):
            return ApiError(error.status_code, DETAILS.get(error.status_code, error.detail), "no_such_route")
        if isinstance(error, MemoryError) or "allocate memory" in str(error):
            return ApiError(503, "there is not enough memory for this request: ask for less", "out_of_memory")
        frames = [f"{f.filename}:{f.lineno} {f.name}" for f in traceback.extract_tb(error.__traceback__)]
        is_shown = bool(os.environ.get("ANYFORMER_TRACEBACK"))  # a message may hold what the client has sent
        log("error", id=record.id, kind=type(error).__name__, message=str(error) if is_shown else None, frames=frames)
        return ApiError(
            500, f"the server has failed at this request: its log has more, with the id {record.id}", "failed"
        )

    def check(self, scope: Any, headers: Headers) -> None:
        """Raise ApiError unless the request may be answered now."""
        self.check_page(scope["method"], headers)
        if self.options.api_key is not None and not is_open(scope["path"]):
            self.check_key(self.options.api_key, headers.get("authorization", ""))
        if scope["method"] == "POST" and self.is_draining:
            end = {"retry-after": "10", "connection": "close"}
            raise ApiError(503, "the server is shutting down", "shutting_down", headers=end)
        if scope["method"] == "POST" and self.n_open > self.max_open:
            raise refuse_busy(f"{self.max_open} requests are open already: try again later")

    def check_page(self, method: str, headers: Headers) -> None:
        """Raise ApiError for a request that a page of another site has made a browser send, under the name of this
        machine or under its own (DNS rebinding)."""
        host, origin = headers.get("host", ""), headers.get("origin")
        if self.hosts and host and find_host(f"//{host}") not in self.hosts:
            message = f"this server answers on {self.options.host} only, and the Host header names another"
            raise ApiError(403, message, "wrong_host")
        is_same = origin is None or origin.partition("://")[2] == host or origin in self.options.cors_origin
        if method != "GET" and not is_same:
            raise ApiError(403, "other pages may not use this server (--cors-origin)", "wrong_origin")

    def check_key(self, expected: str, authorization: str) -> None:
        scheme, _, key = authorization.partition(" ")
        if scheme.lower() != "bearer" or not hmac.compare_digest(key.strip().encode(), expected.encode()):
            message = "the key is wrong" if key else "a key is needed: Authorization: Bearer KEY"
            raise ApiError(401, message, "invalid_api_key", headers={"www-authenticate": "Bearer"})

    def finish(self, record: RequestRecord) -> None:
        """Count and log a request that is over."""
        seconds = time.monotonic() - record.started_at
        first_seconds = None if record.first_at is None else record.first_at - record.started_at
        self.metrics.add_request(record.route, record.model, record.status, seconds, first_seconds)
        if record.prompt_tokens:
            self.metrics.add_tokens(record.model, record.prompt_tokens, record.completion_tokens)
        names = ("id", "method", "route", "model", "status", "error", "prompt_tokens", "completion_tokens")
        facts = {name: getattr(record, name) for name in names} | {"stream": record.stream or None}
        rounded = {"seconds": round(seconds, 4), "first_seconds": first_seconds and round(first_seconds, 4)}
        if record.route != "/health":
            log("request", **facts, **rounded)


def find_host(url: str) -> str:
    """Return the name of the machine in a URL, "" where it makes no sense."""
    try:
        return urlsplit(url).hostname or ""
    except ValueError:
        return ""


def is_open(path: str) -> bool:
    """Whether a path needs no key."""
    return path in OPEN_ROUTES or path.startswith("/page/")


class RecordingSender:
    """Sends an answer; notes its status, and adds the headers that every answer has."""

    def __init__(self, send: Any, record: RequestRecord):
        self.send, self.record = send, record

    async def __call__(self, message: Any) -> None:
        if message["type"] == "http.response.start":
            self.record.status = message["status"]
            headers = {"x-request-id": self.record.id, "x-content-type-options": "nosniff"}
            pairs = [(name.encode(), value.encode()) for name, value in headers.items()]
            message = message | {"headers": [*message["headers"], *pairs]}
        await self.send(message)


class BoundedReceiver:
    """Receives a body of bounded size, whose parts come within bounded time. Raises ApiError."""

    def __init__(self, receive: Any, headers: Headers, gate: Gate):
        self.receive, self.gate, self.size, self.is_complete = receive, gate, 0, False
        is_form = headers.get("content-type", "").lower().startswith("multipart/")
        self.limit = FORM_BYTES if is_form else JSON_BYTES
        length = headers.get("content-length", "")
        self.length = int(length) if length.isdecimal() and len(length) < 16 else 0

    async def __call__(self) -> Any:
        if self.is_complete:
            return await self.receive()
        if self.length > self.limit:
            raise self.refuse()
        try:
            async with asyncio.timeout(BODY_SECONDS):
                message = await self.receive()
        except TimeoutError:
            raise ApiError(408, f"no part of the body came for {BODY_SECONDS:g} seconds", "slow_body") from None
        self.size += (size := len(message.get("body", b"")))
        self.gate.open_bytes += size
        self.is_complete = not message.get("more_body", False)
        if self.size > self.limit:
            raise self.refuse()
        if self.gate.open_bytes > OPEN_BYTES:
            raise refuse_busy("too many large requests are open: try again later")
        return message

    def refuse(self) -> ApiError:
        message = f"the body has more than {self.limit >> 20} MiB, the most that is read of such a request"
        return ApiError(413, message, "body_too_large", headers={"connection": "close"})
