"""A thread of its own for each model that answers one request at a time, and answers that are given up."""

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import torch
from torch import nn

from ..events import listen
from .errors import refuse_busy


class GivenUp(Exception):  # noqa: N818 (nobody waits for the answer any more)
    """Nobody waits for this answer any more."""


class Worker:
    """Calls a model, one request after the other.

    Python cannot stop a thread. A request whose client is gone, or that takes too long, ends at the next call of any
    module of the model, or at the next report of its progress.
    """

    def __init__(self, name: str, max_queue: int, module: nn.Module | None = None):
        self.name, self.max_queue = name, max_queue
        n_threads = torch.get_num_threads()  # a new thread would take as many as there are cores
        self.executor = ThreadPoolExecutor(1, initializer=torch.set_num_threads, initargs=(n_threads,))
        self.lock = threading.Lock()
        self.pending = 0
        """Requests that wait or are answered."""
        self.given_up: threading.Event | None = None
        """Set when the request that is answered should end."""
        for part in module.modules() if module is not None else ():
            part.register_forward_pre_hook(self.check)

    async def call(self, function: Callable[[], Any]) -> Any:
        """Return the result of a function that the thread calls; if this coroutine is cancelled, so is the call."""
        with self.lock:
            if self.pending > self.max_queue:
                raise refuse_busy(f"the model '{self.name}' has {self.max_queue} requests waiting: try again later")
            self.pending += 1
        given_up = threading.Event()
        future = self.executor.submit(self.run, function, given_up)
        future.add_done_callback(self.leave)
        try:
            return await asyncio.wrap_future(future)
        finally:
            given_up.set()

    def run(self, function: Callable[[], Any], given_up: threading.Event) -> Any:
        self.given_up = given_up
        try:
            with listen(self.check):
                self.check()
                return function()
        finally:
            self.given_up = None

    def check(self, *_: Any) -> None:
        if self.given_up is not None and self.given_up.is_set():
            raise GivenUp

    def leave(self, _: Future) -> None:
        with self.lock:
            self.pending -= 1

    def close(self) -> None:
        self.executor.shutdown(wait=False, cancel_futures=True)
