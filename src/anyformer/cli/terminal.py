"""What the terminal shows while something takes its time."""

import sys
import time
from collections.abc import Generator
from contextlib import contextmanager

from ..events import listening


@contextmanager
def busy() -> Generator[None]:
    """Show the progress of preparing data on stderr, once it has taken a second: small data passes unseen."""
    began, last, seen, shown = 0.0, 0.0, 0, False

    def show(what: str, done: int, total: int) -> None:
        nonlocal began, last, seen, shown
        now = time.monotonic()
        began, seen = (now if done <= seen else began or now), done  # less than before: a new pass
        if now - began < 1 or now - last < (0.2 if sys.stderr.isatty() else 5):
            return
        last, shown = now, True
        share = min(1.0, done / max(1, total))  # of bytes, images, episodes
        text = f"{what} {'━' * round(24 * share):┈<24} {share:.0%}" if sys.stderr.isatty() else f"{what} {share:.0%}"
        sys.stderr.write(f"\r{text:<60}" if sys.stderr.isatty() else text + "\n")
        sys.stderr.flush()

    with listening(show):
        yield
    if shown and sys.stderr.isatty():
        sys.stderr.write("\r" + " " * 60 + "\r")
