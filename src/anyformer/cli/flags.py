"""Flags from frozen dataclasses: their names, their values, and the help text.

Every verb has a dataclass `Command`; a field is a flag `--field-name VALUE`, a nested dataclass a group of flags
`--model.n-layer VALUE`, and the docstring below a field its help. Values are checked by `anyformer.parsing`.
"""

import ast
import dataclasses
import difflib
import functools
import inspect
import itertools
import json
import os
import re
import shutil
import sys
import textwrap
import types
import typing
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Annotated, Any, Literal

from ..errors import InputError, suggest
from ..parsing import RENAMED_FIELDS

REQUIRED = dataclasses.MISSING
HELP = {"-h", "--help", "--help-all"}


# --- how fields become flags ---


POSITIONAL = "<positional>"
"""`run: Annotated[Path, POSITIONAL]` is given by its place, without a flag; a tuple takes all words that are left."""
REPEATABLE = "<repeatable>"
"""`stop: Annotated[tuple[str, ...], REPEATABLE]` is a flag that may be given several times, one value each."""
JsonFlag = Annotated[bool, "Print one JSON object on stdout, and nothing else."]
DeviceFlag = Annotated[str, "auto, cpu, cuda, cuda:1 or mps."]
RecipeFlag = Annotated[
    str | None, "The recipe, if it is not one of anyformer's own: a file (./forecast.py) or a Python path."
]


@dataclasses.dataclass(frozen=True)
class Flag:
    """A flag or a positional argument."""

    name: str
    """As it is typed: "--model.n-layer"; "run" for a positional argument."""
    path: tuple[str, ...]
    """Names of the fields down to the value: ("model", "n_layer")."""
    hint: Any
    default: Any
    help: str
    marks: tuple[Any, ...]
    """What the type is annotated with."""

    @property
    def is_switch(self) -> bool:
        return self.hint is bool

    @property
    def item_hint(self) -> Any:
        """The type of one word of the value."""
        return typing.get_args(self.hint)[0] if self.is_sequence else self.hint

    @property
    def is_sequence(self) -> bool:
        return typing.get_origin(self.hint) in (tuple, list, Sequence)

    @property
    def metavar(self) -> str:
        return describe_value(self.item_hint) + (" ..." if self.is_sequence and not self.is_repeatable else "")

    @property
    def is_positional(self) -> bool:
        return POSITIONAL in self.marks

    @property
    def is_repeatable(self) -> bool:
        return REPEATABLE in self.marks


def list_flags(
    kind: Any, values: Any = None, path: tuple[str, ...] = (), taken: Collection[str] = ()
) -> Iterator[Flag]:
    """Yield the flags of a dataclass and of the dataclasses in it.

    Args:
        kind: The dataclass.
        values: An instance with the default values; None: those of the class.
        path: Where the dataclass stands in another.
        taken: Names of flags that exist already; a field of this name becomes `--config.NAME`.
    """
    hints, helps = typing.get_type_hints(kind, include_extras=True), read_field_docs(kind)
    for field in dataclasses.fields(kind):
        hint, marks = hints[field.name], getattr(hints[field.name], "__metadata__", ())
        hint = hint.__origin__ if marks else hint
        default = field.default if field.default_factory is REQUIRED else field.default_factory()
        default = default if values is None else getattr(values, field.name)
        if dataclasses.is_dataclass(hint):
            yield from list_flags(hint, default, (*path, field.name), taken)
            continue
        name = field.name if POSITIONAL in marks else flag_name((*path, field.name))
        name = f"--config.{name[2:]}" if name in taken else name
        text = next((mark for mark in marks if mark not in (POSITIONAL, REPEATABLE)), helps.get(field.name, ""))
        yield Flag(name, (*path, field.name), hint, default, text, marks)


def flag_name(path: Sequence[str]) -> str:
    """("model", "n_layer") -> "--model.n-layer"."""
    return "--" + ".".join(path).replace("_", "-")


@functools.cache
def read_field_docs(kind: type) -> dict[str, str]:
    """The docstrings below the fields of a dataclass."""
    docs: dict[str, str] = {}
    for base in reversed(kind.__mro__):
        try:
            tree = ast.parse(textwrap.dedent(inspect.getsource(base)))
        except (OSError, TypeError, SyntaxError):  # built-in, or written in a console
            continue
        body = typing.cast(ast.ClassDef, tree.body[0]).body
        for field, below in itertools.pairwise(body):
            if isinstance(field, ast.AnnAssign) and isinstance(below, ast.Expr):
                text = getattr(below.value, "value", None)
                if isinstance(text, str):
                    docs[ast.unparse(field.target)] = " ".join(text.split())
    return docs


# --- values from words ---


def parse_arguments(kind: Any, arguments: Sequence[str], prog: str) -> Any:
    """Return an instance of the dataclass; --help prints and exits. Raises InputError."""
    flags = list(list_flags(kind))
    if HELP & set(arguments):
        print(format_help(prog, inspect.getdoc(kind) or "", flags))
        sys.exit(0)
    values = read_flags(flags, arguments, prog)
    for flag in flags:
        if flag.default is REQUIRED and flag.name not in values:
            raise InputError(f"{prog} needs {flag.name} {flag.metavar}: see {prog} --help")
    return kind(**{flag.path[0]: values[flag.name] for flag in flags if flag.name in values})


def read_flags(
    flags: Sequence[Flag], arguments: Sequence[str], prog: str, aliases: Mapping[str, Flag] | None = None
) -> dict[str, Any]:
    """Return the values that the arguments give, by the name of the flag. Raises InputError.

    Args:
        flags: The flags there are.
        arguments: The words of the command line.
        prog: The command, for messages.
        aliases: Other names of some flags.
    """
    by_name = {old: flag for flag in flags for old in old_names(flag)} | dict(aliases or {})
    by_name |= {flag.name: flag for flag in flags if not flag.is_positional}
    words, values, free = list(arguments), {}, []
    while words:
        word = words.pop(0)
        if word == "--":
            free, words = free + words, []
        elif not word.startswith("--"):
            free.append(word)
        else:
            name, has_value, value = word.partition("=")
            name = name.replace("_", "-")
            flag, is_negated = find_flag(name, by_name, prog)
            if flag.is_switch and not has_value:
                values[flag.name] = not is_negated
            else:
                texts = [value] if has_value else take_values(flag, name, words)
                values[flag.name] = read_value(flag, name, texts, values)
    return values | assign_positionals([flag for flag in flags if flag.is_positional], free, prog)


def find_flag(name: str, by_name: Mapping[str, Flag], prog: str) -> tuple[Flag, bool]:
    """Return the flag of this name, and whether it is negated (--train.no-compile). Raises InputError."""
    if name in by_name:
        return by_name[name], False
    positive = re.sub(r"^(--(?:.*\.)?)no-", r"\1", name)
    if positive in by_name and by_name[positive].is_switch:
        return by_name[positive], True
    raise InputError(f"{prog} has no flag {name}: {suggest_flag(name, list(by_name))}")


def old_names(flag: Flag) -> list[str]:
    """The names that a flag had before its config field was renamed."""
    return [flag_name([*flag.path[:-1], old]) for old, new in RENAMED_FIELDS.items() if new == flag.path[-1]]


def take_values(flag: Flag, name: str, words: list[str]) -> list[str]:
    """Remove the words from the front that belong to a flag. Raises InputError if there is none."""
    texts: list[str] = []
    while words and not words[0].startswith("--") and (not texts or (flag.is_sequence and not flag.is_repeatable)):
        texts.append(words.pop(0))
    if not texts:
        raise InputError(f"{name} needs a value: {flag.metavar}")
    return texts


def read_value(flag: Flag, name: str, texts: list[str], values: Mapping[str, Any]) -> Any:
    if flag.is_sequence:
        items = tuple(convert(flag.item_hint, text, name) for text in texts)
        return (*values.get(flag.name, ()), *items) if flag.is_repeatable else items
    return convert(flag.hint, texts[0], name)


def assign_positionals(flags: Sequence[Flag], words: list[str], prog: str) -> dict[str, Any]:
    """Share out the words without a flag. Raises InputError if there are too few or too many."""
    values: dict[str, Any] = {}
    for flag in flags:
        if flag.is_sequence:
            values[flag.name], words = tuple(convert(flag.item_hint, word, flag.name) for word in words), []
        elif words:
            values[flag.name] = convert(flag.hint, words.pop(0), flag.name)
        elif flag.default is REQUIRED:
            raise InputError(f"{prog} needs {flag.name.upper()}: see {prog} --help")
    if words:
        raise InputError(f"{prog} does not know what to do with '{words[0]}': see {prog} --help")
    return values


def convert(hint: Any, text: str, name: str) -> Any:
    """A word as a value of this type. Raises InputError."""
    options = typing.get_args(hint)
    if typing.get_origin(hint) in (types.UnionType, typing.Union):
        return convert_union(options, text, name)
    if hint is bool:
        text, options = text.capitalize(), (True, False)
    if hint is bool or typing.get_origin(hint) is Literal:
        by_text = {str(option): option for option in options}
        if text not in by_text:
            raise InputError(f"{name} is '{text}': {suggest(text, by_text)}")
        return by_text[text]
    if isinstance(hint, type) and issubclass(hint, str | os.PathLike):
        return hint(text)
    kind = {int: "a whole number", float: "a number"}.get(hint, "JSON")
    try:
        return json.loads(text) if kind == "JSON" else hint(text)
    except ValueError:
        raise InputError(f"{name}: '{text}' is not {kind}") from None


def convert_union(options: Sequence[Any], text: str, name: str) -> Any:
    """A word as the first of several types that takes it. Raises InputError."""
    if text == "None" and types.NoneType in options:
        return None
    *options, last = [option for option in options if option is not types.NoneType]
    for option in options:
        try:
            return convert(option, text, name)
        except InputError:
            continue
    return convert(last, text, name)


def suggest_flag(word: str, names: list[str]) -> str:
    """Name the nearest flag; also by its last part, since --n-head means --model.n-head."""
    by_tail = {name.lstrip("-").split(".")[-1]: name for name in reversed(names)}
    matches = difflib.get_close_matches(word, names, n=1, cutoff=0.75)
    tails = difflib.get_close_matches(word.lstrip("-").split(".")[-1], by_tail, n=1, cutoff=0.6)
    matches += [by_tail[tail] for tail in tails]
    return f"did you mean {matches[0]}?" if matches else "see --help"


# --- help ---

COLUMN = 26  # where the text of a flag starts


def format_help(prog: str, about: str, flags: Sequence[Flag], footer: str = "") -> str:
    """The help of a verb, as wide as the terminal (from 60 to 100 columns)."""
    width = min(100, max(60, shutil.get_terminal_size().columns))
    places = [flag for flag in flags if flag.is_positional]
    others = [flag for flag in flags if not flag.is_positional]
    required = [f"{flag.name} {flag.metavar}" for flag in others if flag.default is REQUIRED]
    usage = " ".join([prog, *map(format_positional, places), *required, "[flags]"])
    groups = ["\n".join(format_flag(flag, width) for flag in group) for group in (places, others)]
    return "\n\n".join(part for part in (f"usage: {usage}", wrap_docstring(about, width), *groups, footer) if part)


def format_positional(flag: Flag) -> str:
    name = flag.name.upper() + (" ..." if flag.is_sequence else "")
    return name if flag.default is REQUIRED else f"[{name}]"


def format_flag(flag: Flag, width: int) -> str:
    """A flag and its text: in two columns, or on two lines where the flag is long."""
    head = flag.name if flag.is_switch else f"{flag.name} {flag.metavar}"
    if flag.is_positional:
        head = format_positional(flag).strip("[]")
    elif flag.default is True:
        head = f"{flag.name}, {flag_name([*flag.path[:-1], 'no_' + flag.path[-1]])}"
    lines = textwrap.wrap(flag.help + format_default(flag), width - COLUMN, break_on_hyphens=False) or [""]
    first = f"  {head:<{COLUMN - 4}}  "
    if len(first) > COLUMN:
        return "\n".join([first.rstrip(), *(" " * COLUMN + line for line in lines)])
    return "\n".join([first + lines[0], *(" " * COLUMN + line for line in lines[1:])]).rstrip()


def format_default(flag: Flag) -> str:
    """ " (default: 5)"; nothing if there is none, or if the help names it."""
    default = flag.default
    if flag.is_positional or default in (None, "", (), [], REQUIRED) or default is False or "Default: " in flag.help:
        return ""
    if isinstance(default, tuple | list):
        default = " ".join(map(str, default))
    return f" (default: {'on' if default is True else default})"


def wrap_docstring(text: str, width: int) -> str:
    """Wrap a docstring: paragraphs are filled, but lines of a table ("nodes  tokens") and of code stay lines."""
    lines: list[str] = []
    for line in text.splitlines():
        previous = lines[-1] if lines else ""
        indent, hang = len(line) - len(line.lstrip()), len(table_head(previous))
        is_continuation = indent == hang if hang else not indent and not previous.startswith(" ")
        if line.strip() and previous and is_continuation and not table_head(line):
            lines[-1] += " " + line.strip()
        else:
            lines.append(line)
    return "\n".join(wrap_line(line, width) for line in lines)


def table_head(line: str) -> str:
    """The first column of a line of a table with the space behind it: "nodes  "."""
    match = re.match(r"\S+( \S+)*\s{2,}(?=\S)", line)
    return match[0] if match else ""


def wrap_line(line: str, width: int) -> str:
    """Wrap one line; what follows the first column of a table stays behind it, a remark on code goes below it."""
    indent = line[: len(line) - len(line.lstrip())]
    code, gap, remark = re.fullmatch(r"(.*?)(?:(\s{2,})(\S.*))?", line.rstrip()[len(indent) :]).groups()  # ty: ignore
    if indent and gap and len(line) > width:
        return (
            f"{indent}{code}\n{textwrap.fill(remark, width, initial_indent=indent * 2, subsequent_indent=indent * 2)}"
        )
    hang = indent + " " * len(table_head(line))
    return textwrap.fill(line, width, subsequent_indent=hang, break_on_hyphens=False)


def describe_value(hint: Any) -> str:
    """A type as the placeholder of a value: INT, TEXT, {cosine,trapezoid}."""
    options = [option for option in typing.get_args(hint) if option is not types.NoneType]
    if typing.get_origin(hint) in (types.UnionType, typing.Union):
        return "|".join(dict.fromkeys(describe_value(option) for option in options))
    if typing.get_origin(hint) is Literal:
        return "{" + ",".join(map(str, options)) + "}"
    if isinstance(hint, type) and issubclass(hint, os.PathLike):
        return "PATH"
    return {int: "INT", float: "FLOAT", str: "TEXT"}.get(hint, "JSON")


def print_status(text: str = "") -> None:
    """Print a line for the person on stderr; stdout is for answers."""
    print(text, file=sys.stderr, flush=True)
