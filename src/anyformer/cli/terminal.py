"""What the verbs read from files and stdin, and what they show on stderr."""

import shutil
import sys
import time
from collections.abc import Collection, Generator, Sequence
from contextlib import contextmanager
from itertools import groupby
from operator import itemgetter
from pathlib import Path

from ..data.io.checks import read_text
from ..errors import InputError
from ..events import CLEAR_LINE, listen

MEDIA_PREFIXES = (b"fLaC", b"OggS", b"\x89PNG\r\n", b"\xff\xd8\xff")
MEDIA_TYPES = (b"WAVE", b"WEBP")  # bytes 8 to 12 of a RIFF file
MAX_TEXT_BYTES = 1 << 30  # of a file of inputs, held in memory
MIN_SECONDS = 1.0  # shorter work shows no progress


def read_stdin(head: bytes = b"") -> str:
    """Return stdin as text; `head` is what was read of it already. Raises InputError."""
    try:
        return (head + sys.stdin.buffer.read()).decode("utf-8")
    except UnicodeDecodeError as error:
        raise InputError(f"stdin is not UTF-8 at byte {error.start}: text is expected") from None


def read_inputs(words: tuple[str, ...], file: Path | None, media: Path | None = None) -> list[str]:
    """Return all inputs of a verb.

    Args:
        words: Inputs from the command line; "-" stands for the lines of stdin.
        file: A file with one input per line.
        media: Where an image or a sound that comes through stdin is stored; its path is then the input.
    """
    inputs: list[str] = []
    for word in words:
        head = sys.stdin.buffer.read(16) if word == "-" else b""
        if word != "-":
            inputs.append(word)
        elif media and (head.startswith(MEDIA_PREFIXES) or head[8:12] in MEDIA_TYPES):
            with open(media, "wb") as stream:
                stream.write(head)
                shutil.copyfileobj(sys.stdin.buffer, stream)
            inputs.append(str(media))
        else:
            inputs += read_stdin(head).splitlines()
    return inputs + ([] if file is None else read_text(file, MAX_TEXT_BYTES).splitlines())


def format_columns(rows: Sequence[Sequence[str]], right: Collection[int] = ()) -> str:
    """Format rows of cells as columns of equal width, those whose index is in `right` aligned to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for row in rows:
        cells = [
            f"{cell:>{width}}" if i in right else f"{cell:<{width}}" for i, (cell, width) in enumerate(zip(row, widths))
        ]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)


def print_masked(examples: Sequence[Sequence[tuple[str, bool]]]) -> None:
    """Print the tokens of examples, the trained ones in color; where there is no color, between ⟦ and ⟧."""
    from rich.console import Console
    from rich.text import Text

    console = Console(highlight=False, soft_wrap=True)
    for tokens in examples:
        text = Text()
        for is_trained, group in groupby(tokens, key=itemgetter(1)):
            part = "".join(token for token, _ in group)
            is_marked = is_trained and not console.is_terminal
            text.append(f"⟦{part}⟧" if is_marked else part, "black on green" if is_trained else "dim")
        n_trained = sum(is_trained for _, is_trained in tokens)
        console.print(text)
        console.print(f"({n_trained:,} of {len(tokens):,} tokens are trained)\n")


def print_status(text: str) -> None:
    """Print a line for the person on stderr; stdout is for answers."""
    print(text, file=sys.stderr, flush=True)


@contextmanager
def show_progress() -> Generator[None]:
    """Show the progress of preparing data on stderr: a bar on a terminal, a line now and then elsewhere."""
    started_at, drawn_at, last_done = 0.0, 0.0, 0

    def show(task: str, done: int, total: int) -> None:
        nonlocal started_at, drawn_at, last_done
        now, is_terminal = time.monotonic(), sys.stderr.isatty()
        started_at = now if done <= last_done else started_at or now  # less than before: a new task
        last_done = done
        if now - started_at < MIN_SECONDS or now - drawn_at < (0.2 if is_terminal else 5):
            return
        drawn_at, fraction = now, min(1.0, done / max(1, total))
        bar = f"\r{task} {'━' * round(24 * fraction):┈<24} {fraction:.0%}"
        text = f"{bar:<61}" if is_terminal else f"{task} {fraction:.0%}\n"
        print(text, end="", file=sys.stderr, flush=True)

    with listen(show):
        yield
    if drawn_at and sys.stderr.isatty():
        sys.stderr.write(CLEAR_LINE)
