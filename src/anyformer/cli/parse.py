"""Flags from frozen dataclasses, by tyro; its complaints in one line."""

import contextlib
import dataclasses
import io
import re
import sys
import typing
from collections.abc import Iterator, Sequence
from typing import Any

import tyro

from ..errors import InputError, nearest


def parse(kind: Any, arguments: Sequence[str], prog: str, default: Any = None) -> Any:
    """A value of the dataclass from command-line arguments. Raises InputError in one line; --help prints and exits."""
    if any(a in ("-h", "--help") for a in arguments):
        more = {} if default is None else {"default": default}
        tyro.cli(kind, args=list(arguments), prog=prog, **more)
    heard = io.StringIO()
    try:
        with contextlib.redirect_stderr(heard), contextlib.redirect_stdout(heard):
            more = {} if default is None else {"default": default}
            value, unknown = tyro.cli(kind, args=list(arguments), prog=prog, return_unknown_args=True, **more)
    except SystemExit:
        raise InputError(one_line(heard.getvalue())) from None
    if unknown:
        word = unknown[0].split("=")[0]
        if word.startswith("-"):
            raise InputError(f"{prog} has no flag {word}: {closest(word, list(flags(kind)))}")
        raise InputError(f"{prog} does not know what to do with '{word}': see {prog} --help")
    return value


def one_line(box: str) -> str:
    """What a framed complaint says, without its frame."""
    text = re.sub(r"[╭╮╰╯│─]+", " ", re.sub(r"\x1b\[[0-9;]*m", "", box))
    text = re.sub(r"For full helptext, (?:see|run) .*", "", " ".join(text.split()))
    return re.sub(r"^(?:Parsing|Value) error\s*:?\s*", "", text).strip()


def closest(word: str, valid: list[str]) -> str:
    """The nearest flag; also by its last part, since --n-head means --model.n-head."""
    tail = word.replace("_", "-").lstrip("-")
    ends = [flag for flag in valid if flag.endswith((f".{tail}", f"--{tail}"))]
    found = re.match(r"did you mean '([^']+)'", nearest(word.replace("_", "-"), valid))
    if not ends and not found:
        return "see --help"
    return f"did you mean {ends[0] if ends else found and found[1]}?"


def flags(kind: Any, prefix: str = "") -> Iterator[str]:
    """Every flag of a dataclass and of those inside it."""
    hints = typing.get_type_hints(kind, include_extras=False)
    for field in dataclasses.fields(kind):
        name = field.name.replace("_", "-")
        if dataclasses.is_dataclass(hints[field.name]):
            yield from flags(hints[field.name], prefix if name == "config" else f"{prefix}{name}.")
        else:
            yield f"--{prefix}{name}"


def say(text: str = "") -> None:
    """To the person, never into the answer."""
    print(text, file=sys.stderr, flush=True)
