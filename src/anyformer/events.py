"""Progress of long work (downloads, tokenizing, decoding), reported without knowing who shows it."""

from collections.abc import Callable, Generator
from contextlib import contextmanager
from contextvars import ContextVar

ProgressCallback = Callable[[str, int, int], None]

_listener: ContextVar[ProgressCallback | None] = ContextVar("listener", default=None)


def report_progress(task: str, done: int, total: int) -> None:
    """Report that `done` of `total` units (bytes, tokens, images) of a task are finished."""
    listener = _listener.get()
    if listener is not None:
        listener(task, done, total)


@contextmanager
def listen(listener: ProgressCallback) -> Generator[None]:
    """Call the listener with all progress while the block runs."""
    token = _listener.set(listener)
    try:
        yield
    finally:
        _listener.reset(token)
