"""A server that runs until it is asked to end, and then ends its answers first."""

import asyncio
import errno
import socket
from collections.abc import Sequence
from typing import Any

import uvicorn
from starlette.middleware.cors import CORSMiddleware
from uvicorn.protocols.http.h11_impl import H11Protocol

from ..errors import InputError
from .gate import Gate, log
from .options import ServerOptions

DRAIN_SECONDS = 0.05  # between two looks
HEADER_SECONDS = 30  # for the headers of the first request of a connection
CLOSE_SECONDS = 2  # for connections, after the last answer


def bind_socket(host: str, port: int) -> socket.socket:
    """Return a listening socket. Raises InputError where the port cannot be had."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, kind, protocol)
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(address)
            listener.listen(2048)
        except BaseException:
            listener.close()
            raise
    except OSError as error:
        reasons = {errno.EADDRINUSE: "another program uses it", errno.EACCES: "only the administrator may use it"}
        reason = reasons.get(error.errno or 0, error.strerror or str(error))
        raise InputError(f"cannot listen on {host} port {port}: {reason}; name another with --port") from None
    except UnicodeError:
        raise InputError(f"--host {host[:60]!r} is no name of a machine") from None
    return listener


class Protocol(H11Protocol):
    """A connection; it is closed if the headers of its first request do not come in time."""

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self.header_timer = self.loop.call_later(HEADER_SECONDS, transport.close)

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self.cycle is not None:
            self.header_timer.cancel()

    def connection_lost(self, exc: Exception | None) -> None:
        self.header_timer.cancel()
        super().connection_lost(exc)


class Server(uvicorn.Server):
    """At the first signal requests that come get 503 while those that are open are answered; at the second it ends."""

    def __init__(self, gate: Gate, options: ServerOptions, url: str = "", names: Sequence[str] = ()):
        settings: dict[str, Any] = {"lifespan": "off", "log_config": None, "log_level": "critical", "ws": "none"}
        settings |= {"server_header": False, "timeout_graceful_shutdown": CLOSE_SECONDS, "access_log": False}
        app: Any = gate
        if options.cors_origin:
            app = CORSMiddleware(gate, allow_origins=options.cors_origin, allow_methods=["*"], allow_headers=["*"])
        super().__init__(uvicorn.Config(app, http=Protocol, **settings))
        self.gate, self.options, self.url, self.names = gate, options, url, list(names)
        self.draining: asyncio.Task[None] | None = None

    def handle_exit(self, sig: int, frame: Any) -> None:
        if self.gate.is_draining:
            self.should_exit = self.force_exit = True
        else:
            self.begin_drain()

    def begin_drain(self) -> None:
        """Refuse new requests, and end after the answers to those that are open. From any thread."""
        self.gate.is_draining = True
        self.loop.call_soon_threadsafe(self.start_drain)

    def start_drain(self) -> None:
        self.draining = self.loop.create_task(self.drain())

    async def drain(self) -> None:
        log("stop", open_requests=self.gate.n_open)
        deadline = self.loop.time() + self.options.timeout
        while self.gate.n_open and self.loop.time() < deadline:
            await asyncio.sleep(DRAIN_SECONDS)
        self.should_exit = True

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        self.loop = asyncio.get_running_loop()
        await super().startup(sockets)
        log("start", url=self.url, models=self.names)
