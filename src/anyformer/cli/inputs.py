"""Texts and files that a verb reads: from arguments, from a file, from stdin."""

import shutil
import sys
from pathlib import Path

from ..errors import InputError

MEDIA_PREFIXES = (b"fLaC", b"OggS", b"\x89PNG\r\n", b"\xff\xd8\xff")
MEDIA_TYPES = (b"WAVE", b"WEBP")  # bytes 8 to 12 of a RIFF file


def read_text(path: Path) -> str:
    """Return the content of a UTF-8 file. Raises InputError."""
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not UTF-8 at byte {error.start}: text is expected") from None
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or error}") from None


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
        if word != "-":
            inputs.append(word)
        elif media is None:
            inputs += read_stdin().splitlines()
        else:
            inputs += read_piped(media)
    return inputs + ([] if file is None else read_text(file).splitlines())


def read_piped(media: Path) -> list[str]:
    """Return the lines of stdin, or the path of the image or sound that came through it."""
    head = sys.stdin.buffer.read(16)
    if head[8:12] not in MEDIA_TYPES and not head.startswith(MEDIA_PREFIXES):
        return read_stdin(head).splitlines()
    with open(media, "wb") as file:
        file.write(head)
        shutil.copyfileobj(sys.stdin.buffer, file)
    return [str(media)]
