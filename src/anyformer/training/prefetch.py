"""Batches ahead of time: a thread prepares the next ones while a GPU computes.

A stream draws from (seed, step) alone, so that its batches stay the same; each comes with the state after it, so that a
checkpoint continues with the first batch that was not used, however many were prepared.
"""

import contextvars
import threading
from collections.abc import Callable
from queue import Empty, Full, Queue
from typing import Any

import torch

from ..recipe import BatchStream

AHEAD = 2  # batches that are prepared and not used yet
PATIENCE = 0.1  # seconds after which the thread looks whether it is still needed


def prefetch(stream: BatchStream, device: torch.device) -> BatchStream:
    """Return the stream; for a GPU, one whose batches a thread prepares in pinned memory, from which `move_batch`
    copies without waiting. On a CPU the thread would take the time of a core from the model."""
    if device.type != "cuda":
        return stream
    return run_ahead(stream, pin_batch, lambda: torch.cuda.set_device(device))


def pin_batch(batch: dict[str, Any]) -> dict[str, Any]:
    return {name: value.pin_memory() for name, value in batch.items()}


def run_ahead(
    stream: BatchStream,
    prepare: Callable[[dict[str, Any]], dict[str, Any]],
    start: Callable[[], None] = lambda: None,
    ahead: int = AHEAD,
) -> BatchStream:
    """Yield what a stream yields, drawn and prepared by a thread. Its errors are raised where their batch is due.

    Args:
        start: called once in the thread.
        ahead: how many batches are prepared and not used yet, at most.
    """
    items: Queue[Any] = Queue(ahead)
    is_over = threading.Event()

    def put(item: Any) -> None:
        while not is_over.is_set():
            try:
                return items.put(item, timeout=PATIENCE)
            except Full:
                continue

    def fill() -> None:
        try:
            start()
            for batch, state in stream:
                put(((prepare(batch), state), None))
                if is_over.is_set():
                    return
            put((None, None))
        except BaseException as error:
            put((None, error))

    context = contextvars.copy_context()  # who is told of the progress
    thread = threading.Thread(target=context.run, args=(fill,), name="batches", daemon=True)
    thread.start()
    try:
        while (item := wait_for(items, thread)) != (None, None):
            if item[1] is not None:
                raise item[1]
            yield item[0]
    finally:
        is_over.set()
        thread.join()


def wait_for(items: Queue[Any], thread: threading.Thread) -> Any:
    """Return the next item; the end of the stream if the thread has ended without one."""
    while True:
        try:
            return items.get(timeout=PATIENCE)
        except Empty:
            if not thread.is_alive() and items.empty():
                return None, None
