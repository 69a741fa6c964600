"""What the terminal shows while data are prepared."""

import sys
import time
from collections.abc import Generator
from contextlib import contextmanager

from ..events import listen

MIN_SECONDS = 1.0  # shorter work shows nothing


@contextmanager
def show_progress() -> Generator[None]:
    """Show the progress of preparing data on stderr: a bar on a terminal, a line now and then elsewhere."""
    started_at, drawn_at, last_done, is_drawn = 0.0, 0.0, 0, False

    def show(task: str, done: int, total: int) -> None:
        nonlocal started_at, drawn_at, last_done, is_drawn
        now, is_terminal = time.monotonic(), sys.stderr.isatty()
        started_at = now if done <= last_done else started_at or now  # less than before: a new task
        last_done = done
        if now - started_at < MIN_SECONDS or now - drawn_at < (0.2 if is_terminal else 5):
            return
        drawn_at, is_drawn = now, True
        fraction = min(1.0, done / max(1, total))
        text = f"{task} {'━' * round(24 * fraction):┈<24} {fraction:.0%}" if is_terminal else f"{task} {fraction:.0%}"
        sys.stderr.write(f"\r{text:<60}" if is_terminal else text + "\n")
        sys.stderr.flush()

    with listen(show):
        yield
    if is_drawn and sys.stderr.isatty():
        sys.stderr.write("\r" + " " * 60 + "\r")
