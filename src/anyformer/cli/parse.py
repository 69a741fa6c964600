"""Flags from frozen dataclasses, by tyro; its complaints in one line."""

import contextlib
import dataclasses
import difflib
import io
import re
import sys
import typing
from collections.abc import Iterator, Sequence
from typing import Any

import tyro

from ..errors import InputError, nearest

NUMBERS = {"FLOAT": "a number", "INT": "a whole number"}  # what tyro calls them, where there may be none


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
    except ValueError as error:  # numbers that are right one by one and wrong together
        raise InputError(str(error)) from None
    if unknown:
        word = unknown[0].split("=")[0]
        if word.startswith("-"):
            raise InputError(f"{prog} has no flag {word}: {closest(word, list(flags(kind)))}")
        raise InputError(f"{prog} does not know what to do with '{word}': see {prog} --help")
    return value


def one_line(box: str) -> str:
    """What a framed complaint says, without its frame."""
    text = re.sub(r"[╭╮╰╯│─]+|-{4,}", " ", re.sub(r"\x1b\[[0-9;]*m", "", box))
    text = re.sub(r"(For full helptext|Argument helptext|Got errors).*", "", " ".join(text.split()))
    if found := re.search(r"invalid choice '(.*?)' for argument '(.*?)'\. Expected one of \((.*?)\)", text):
        valid = [choice for choice in re.findall(r"'(.*?)'", found[3]) if choice != "None"]
        return f"{found[2]} is '{found[1]}': {nearest(found[1], valid)}"
    text = re.sub(r"invalid literal for int\(\) with base 10: ('.*')", r"\1 is not a whole number", text)
    text = re.sub(r"could not convert string to float: ('.*')", r"\1 is not a number", text)
    text = re.sub(r"Missing value for argument '(\S+)'\. Expected 1 values\.", r"\1 needs a value", text)
    text = re.sub(r"no type matching (\S+) could be instantiated from \['(.*?)'\]\.?", r"'\2' is not \1", text)
    text = re.sub(r"is not \{None\}\|(FLOAT|INT)\b", lambda found: f"is not {NUMBERS[found[1]]}", text)
    text = re.sub(r"^(Parsing error|Value error|Required options|Invalid choice|Missing argument)\b\s*:?\s*", "", text)
    return re.sub(r"^Error parsing (config\.)?", lambda found: "--" if found[1] else "", text).strip()


def closest(word: str, valid: list[str]) -> str:
    """The nearest flag; also by its last part, since --n-head means --model.n-head."""
    word = word.replace("_", "-")
    tails = {flag.lstrip("-").split(".")[-1]: flag for flag in reversed(valid)}
    whole = difflib.get_close_matches(word, valid, n=1, cutoff=0.75)
    tail = difflib.get_close_matches(word.lstrip("-").split(".")[-1], tails, n=1, cutoff=0.6)
    found = [*whole, *(tails[name] for name in tail)]
    return f"did you mean {found[0]}?" if found else "see --help"


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
