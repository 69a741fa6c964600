"""Server-sent events, and answers that end when their client has gone."""

import asyncio
import json
from collections.abc import AsyncGenerator, Callable, Coroutine, Mapping
from contextlib import suppress
from typing import Any, TypeVar

from starlette.responses import Response

from .errors import ApiError, ClientGone

T = TypeVar("T")
EVENT_HEADERS = {"cache-control": "no-cache", "x-accel-buffering": "no"}


class Json(Response):
    """A JSON response; a text that UTF-8 cannot hold is escaped."""

    media_type = "application/json"

    def render(self, content: Any) -> bytes:
        return dump_json(content)


def dump_json(content: Any) -> bytes:
    try:
        return json.dumps(content, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode()
    except UnicodeEncodeError:  # half of a surrogate pair
        return json.dumps(content, allow_nan=False, separators=(",", ":")).encode()


async def await_unless_gone(receive: Any, work: Coroutine[Any, Any, T]) -> T:
    """Return the result of the work; cancel it if the client closes its connection. The body has been read.

    Raises ClientGone.
    """
    task, watcher = asyncio.ensure_future(work), asyncio.ensure_future(wait_until_gone(receive))
    try:
        await asyncio.wait({task, watcher}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ClientGone
        return task.result()
    finally:
        for pending in (task, watcher):
            await cancel(pending)


async def cancel(task: asyncio.Future[Any]) -> None:
    """Cancel a task and wait for its end."""
    task.cancel()
    with suppress(asyncio.CancelledError, Exception):
        await task


async def wait_until_gone(receive: Any) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


class EventStream(Response):
    """Events of JSON, each sent as soon as it is there, and at the end `[DONE]`.

    An error among them is an event {"error": ...}, at which OpenAI's clients raise it.
    """

    def __init__(
        self, events: AsyncGenerator[Any], headers: Mapping[str, str], deadline: float, on_close: Callable[[], Any]
    ):
        self.events, self.deadline, self.on_close = events, deadline, on_close
        super().__init__(headers={**EVENT_HEADERS, **headers}, media_type="text/event-stream")
        del self.headers["content-length"]

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        await await_unless_gone(receive, self.send_events(send))

    async def send_events(self, send: Any) -> None:
        try:
            await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
            try:
                while True:
                    async with asyncio.timeout_at(self.deadline):
                        event = await anext(self.events)
                    await send_event(send, dump_json(event))
            except StopAsyncIteration:
                pass
            except ApiError as error:
                await send_event(send, dump_json(error.body()))
            except TimeoutError:
                await send_event(
                    send, dump_json(ApiError(504, "the answer takes too long (--timeout)", "timeout").body())
                )
            await send_event(send, b"[DONE]")
            await send({"type": "http.response.body", "body": b"", "more_body": False})
        finally:
            self.on_close()
            await self.events.aclose()


async def send_event(send: Any, data: bytes) -> None:
    await send({"type": "http.response.body", "body": b"data: " + data + b"\n\n", "more_body": True})
