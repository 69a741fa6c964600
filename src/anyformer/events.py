"""Progress of long work (downloads, tokenizing, decoding), reported without knowing who shows it, and notices."""

import sys
from collections.abc import Callable, Generator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import lru_cache

from .processes import is_first

CLEAR_LINE = f"\r{'':<61}\r"
ProgressCallback = Callable[[str, int, int], None]

_listener: ContextVar[ProgressCallback] = ContextVar("listener", default=lambda task, done, total: None)


def report_progress(task: str, done: int, total: int) -> None:
    """Report that `done` of `total` units (bytes, tokens, images) of a task are finished."""
    _listener.get()(task, done, total)


@contextmanager
def listen(listener: ProgressCallback) -> Generator[None]:
    """Call the listener with all progress while the block runs."""
    token = _listener.set(listener)
    try:
        yield
    finally:
        _listener.reset(token)


@lru_cache(maxsize=1024)
def report_notice(text: str) -> None:
    """Tell the person one line on stderr, once: what was recognized, chosen or left out. Of several processes the
    first does."""
    if is_first():
        # on a terminal the line may hold a bar that is not at its end
        print((CLEAR_LINE if sys.stderr.isatty() else "") + text, file=sys.stderr, flush=True)
