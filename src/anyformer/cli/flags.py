"""Flags from frozen dataclasses: their names, their values, and the help text.

Every verb has a dataclass `Command`; a field is a flag `--field-name VALUE`, a nested dataclass a group of flags
`--model.n-layer VALUE`. Its help is a text in `Annotated`, or the docstring below the field. Values are checked by
`anyformer.parsing`.
"""

import contextlib
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
from pathlib import Path
from typing import Annotated, Any, Literal

from ..errors import InputError, suggest
from ..parsing import LIMITS, RENAMED_FIELDS, check_types, describe_type, read_field_docs, show_value

REQUIRED = dataclasses.MISSING
UNIONS = (types.UnionType, typing.Union)
HELP = {"-h", "--help", "--help-all"}

# --- how fields become flags ---

POSITIONAL = "<positional>"  # `Annotated[Path, POSITIONAL]`: given by its place; a tuple takes all words that are left
REPEATABLE = "<repeatable>"  # `Annotated[tuple[str, ...], REPEATABLE]`: may be given several times, one value each
JsonFlag = Annotated[bool, "Print one JSON object on stdout, and nothing else."]
DeviceFlag = Annotated[str, "auto, cpu, cuda, cuda:1 or mps."]
RunArgument = Annotated[
    Path,
    POSITIONAL,
    "A run directory (its best checkpoint), a checkpoint, a public checkpoint, or owner/name on the hub.",
]
RecipeFlag = Annotated[
    str | None, "The recipe, if it is not one of anyformer's own: a file (./my_recipe.py) or a Python path."
]
StoreFlag = Annotated[Path | None, "A store of a text, from `anyformer index`, which the model looks things up in."]
DraftFlag = Annotated[
    str | None,
    "What proposes tokens that the model checks several at a time, for a single sample, which stays the same: prompt "
    "(what came before), counts (of the text of its training), a text file, or a run of a smaller model.",
]
WeightFormat = Literal["float32", "bfloat16", "int8", "int4"]
WeightsFlag = Annotated[
    WeightFormat, "Number format of the linear layers: fewer bits are faster; int4 costs quality (see eval)."
]
CacheFormat = Literal["float32", "bfloat16", "int8"]
CacheFlag = Annotated[
    CacheFormat, "Number format of keys and values while text is written: fewer bits take less memory."
]


@dataclasses.dataclass(frozen=True)
class Flag:
    """A flag or a positional argument."""

    name: str  # as it is typed: "--model.n-layer"; "run" for a positional argument
    path: tuple[str, ...]  # names of the fields down to the value: ("model", "n_layer")
    hint: Any  # the type of one word of the value
    default: Any
    help: str
    count: Literal["one", "many", "repeated"]  # words of its value; repeated: one word each time
    is_positional: bool
    aliases: tuple[str, ...] = ()  # other names: of a config field that was renamed, short ones

    @property
    def is_switch(self) -> bool:
        return self.hint is bool and self.count == "one"

    @property
    def metavar(self) -> str:
        name = self.name.upper() if self.is_positional else describe_value(self.hint)
        return f"{name} ..." if self.count == "many" else name

    @property
    def usage(self) -> str:
        """As it stands in the help: "--seed INT", "RUN", "WORDS ..."."""
        if self.is_positional:
            return self.metavar
        return self.name if self.is_switch else f"{self.name} {self.metavar}"


def list_flags(
    kind: Any, values: Any = None, path: tuple[str, ...] = (), taken: Collection[str] = ()
) -> Iterator[Flag]:
    """Yield the flags of a dataclass and of the dataclasses in it; a field whose name is taken is `--config.NAME`.

    The defaults are those of the instance `values`, or of the class. `path` is its place in another dataclass.
    """
    hints, docs = typing.get_type_hints(kind, include_extras=True), read_field_docs(kind)
    for field in dataclasses.fields(kind):
        hint, marks, field_path = hints[field.name], (), (*path, field.name)
        if typing.get_origin(hint) is Annotated:
            hint, *marks = typing.get_args(hint)
        default = field.default if values is None else getattr(values, field.name)
        if dataclasses.is_dataclass(hint):
            yield from list_flags(hint, None if default is REQUIRED else default, field_path)
            continue
        name = field.name if POSITIONAL in marks else flag_name(field_path)
        name = f"--config.{name[2:]}" if name in taken else name
        text = next((mark for mark in marks if mark not in (POSITIONAL, REPEATABLE)), docs.get(field.name, ""))
        old_names = tuple(flag_name((*path, old)) for old, new in RENAMED_FIELDS.items() if new == field.name)
        count = "one"
        if typing.get_origin(hint) in (tuple, list, Sequence):
            hint, count = typing.get_args(hint)[0], "repeated" if REPEATABLE in marks else "many"
        yield Flag(name, field_path, hint, default, text, count, POSITIONAL in marks, old_names)


def flag_name(path: Sequence[str]) -> str:
    """("model", "n_layer") -> "--model.n-layer"."""
    return "--" + ".".join(path).replace("_", "-")


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
            raise InputError(f"{prog} needs {flag.usage}: see {prog} --help")
    return make_options(kind, {flag.path[0]: values[flag.name] for flag in flags if flag.name in values})


def make_options(kind: Any, values: Mapping[str, Any]) -> Any:
    """Return an instance of the dataclass. Raises InputError that names the flag: "top_k is 0" -> "--top-k is 0"."""
    try:
        options = kind(**values)
        check_types(options)
        return options
    except InputError as error:
        name, space, text = str(error).partition(" ")
        raise InputError(f"{flag_name([name])}{space}{text}") from None


def read_flags(flags: Sequence[Flag], arguments: Sequence[str], prog: str) -> dict[str, Any]:
    """Return the values that the words of a command line give, by the name of the flag. Raises InputError."""
    by_name = {alias: flag for flag in flags for alias in flag.aliases}
    by_name |= {flag.name: flag for flag in flags if not flag.is_positional}
    words, free, values = list(arguments), [], {}
    while words:
        word = words.pop(0)
        if word == "--":
            free, words = free + words, []
        elif not word.startswith("--"):
            free.append(word)
        else:
            name, has_value, text = word.partition("=")
            name = name.replace("_", "-")
            flag, is_negated = find_flag(name, by_name, prog)
            texts = [text] if has_value else ["True"] if flag.is_switch else take_values(flag, name, words)
            value = read_value(flag, name, texts, values)
            values[flag.name] = not value if is_negated else value
    for flag in flags:
        if flag.is_positional and free:
            count = len(free) if flag.count == "many" else 1
            values[flag.name] = read_value(flag, flag.name, free[:count], values)
            free = free[count:]
    if free:
        raise InputError(f"{prog} does not know what to do with '{free[0]}': see {prog} --help")
    return values


def find_flag(name: str, by_name: Mapping[str, Flag], prog: str) -> tuple[Flag, bool]:
    """Return the flag of this name, and whether it is negated (--train.no-compile). Raises InputError."""
    if name in by_name:
        return by_name[name], False
    positive = re.sub(r"^(--(?:.*\.)?)no-", r"\1", name)
    if positive in by_name and by_name[positive].is_switch:
        return by_name[positive], True
    raise InputError(f"{prog} has no flag {name}: {suggest_flag(name, list(by_name))}")


def take_values(flag: Flag, name: str, words: list[str]) -> list[str]:
    """Remove the words from the front that belong to a flag. Raises InputError if there is none."""
    limit = None if flag.count == "many" else 1
    texts = list(itertools.takewhile(lambda word: not word.startswith("--"), words[:limit]))
    if not texts:
        raise InputError(f"{name} needs a value: {flag.metavar}")
    del words[: len(texts)]
    return texts


def read_value(flag: Flag, name: str, texts: list[str], values: Mapping[str, Any]) -> Any:
    items = tuple(convert(flag.hint, text, name) for text in texts)
    if flag.count == "one":
        return items[0]
    return (*values.get(flag.name, ()), *items) if flag.count == "repeated" else items


def convert(hint: Any, text: str, name: str) -> Any:
    """A word as a value of this type; of a union, as the first type that takes it. Raises InputError."""
    options = typing.get_args(hint)
    if typing.get_origin(hint) in UNIONS:
        if text == "None" and types.NoneType in options:
            return None
        *options, last = [option for option in options if option is not types.NoneType]
        for option in options:
            with contextlib.suppress(InputError):
                return convert(option, text, name)
        return convert(last, text, name)
    if hint is bool:
        text, options = text.capitalize(), (True, False)
    if hint is bool or typing.get_origin(hint) is Literal:
        by_text = {str(option): option for option in options}
        if text not in by_text:
            raise InputError(f"{name} is {show_value(text)}: {suggest(text[:80], by_text)}")
        return by_text[text]
    if isinstance(hint, type) and issubclass(hint, str | os.PathLike):
        return hint(text)
    kind = {int: "a whole number", float: "a number"}.get(hint, "JSON")
    try:
        value = json.loads(text) if kind == "JSON" else hint(text)
    except (ValueError, RecursionError):
        raise InputError(f"{name}: {show_value(text)} is not {kind}") from None
    if hint in LIMITS and not abs(value) <= LIMITS[hint]:
        raise InputError(f"{name} is {show_value(value)}; it must be {describe_type(hint)}")
    return value


def suggest_flag(word: str, names: list[str]) -> str:
    """Name the nearest flag; also by its last part, since --n-head means --model.n-head, or the one of its meaning."""
    if word == "--columns" and "--target" in names:
        return "--target names the columns to predict"
    by_tail = {name.lstrip("-").split(".")[-1]: name for name in reversed(names)}
    matches = difflib.get_close_matches(word, names, n=1, cutoff=0.75)
    tails = difflib.get_close_matches(word.lstrip("-").split(".")[-1], by_tail, n=1, cutoff=0.6)
    matches += [by_tail[tail] for tail in tails]
    return f"did you mean {matches[0]}?" if matches else "see --help"


# --- help ---

COLUMN = 26  # where the text of a flag starts
fill = functools.partial(textwrap.fill, break_on_hyphens=False)


def format_help(prog: str, about: str, flags: Sequence[Flag], footer: str = "") -> str:
    """The help of a verb, as wide as the terminal (from 60 to 100 columns)."""
    width = min(100, max(60, shutil.get_terminal_size().columns))
    places = [flag for flag in flags if flag.is_positional]
    others = [flag for flag in flags if not flag.is_positional]
    usage = [flag.usage if flag.default is REQUIRED else f"[{flag.usage}]" for flag in places]
    usage += [flag.usage for flag in others if flag.default is REQUIRED]
    groups = ["\n".join(format_flag(flag, width) for flag in group) for group in (places, others)]
    parts = [" ".join(["usage:", prog, *usage, "[flags]"]), wrap_docstring(about, width), *groups, footer]
    return "\n\n".join(part for part in parts if part)


def format_flag(flag: Flag, width: int) -> str:
    """A flag and its text: in two columns, or on two lines where the flag is long."""
    head, indent = flag.usage, " " * COLUMN
    if flag.default is True:
        head = f"{flag.name}, {flag_name([*flag.path[:-1], 'no_' + flag.path[-1]])}"
    text = fill(flag.help + format_default(flag), width, initial_indent=indent, subsequent_indent=indent)
    return (
        f"  {break_choices(head, width)}\n{text}"
        if len(head) > COLUMN - 4
        else f"  {head:<{COLUMN - 2}}{text[COLUMN:]}".rstrip()
    )


def break_choices(head: str, width: int) -> str:
    """A flag, with its choices on two lines if one is too short for them."""
    cut = head.rfind(",", 0, width - 2) + 1
    return head if len(head) <= width - 2 or not cut else f"{head[:cut]}\n    {head[cut:]}"


def format_default(flag: Flag) -> str:
    """ " (default: 5)"; nothing if there is none, or if the help names it."""
    default = flag.default
    if flag.is_positional or default in (None, "", (), [], REQUIRED) or default is False or "Default: " in flag.help:
        return ""
    text = " ".join(map(str, default)) if isinstance(default, tuple | list) else "on" if default is True else default
    return f" (default: {text})"


def wrap_docstring(text: str, width: int) -> str:
    """Wrap a docstring: paragraphs are filled, but lines of a table ("nodes  tokens") and of code stay lines."""
    lines: list[str] = []
    for line in text.splitlines():
        previous = lines[-1] if lines else ""
        hang, indent = len(table_head(previous)), len(line) - len(line.lstrip())
        if line.strip() and previous[:1].strip() and indent == hang and not table_head(line):
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
    code = re.fullmatch(r"( +)(\S.*?)\s{2,}(\S.*)", line)
    if code and len(line) > width:
        indent = code[1] * 2
        return f"{code[1]}{code[2]}\n{fill(code[3], width, initial_indent=indent, subsequent_indent=indent)}"
    hang = len(table_head(line)) or len(line) - len(line.lstrip())
    return fill(line, width, subsequent_indent=" " * hang)


def describe_value(hint: Any) -> str:
    """A type as the placeholder of a value: INT, TEXT, {cosine,trapezoid}."""
    options = [option for option in typing.get_args(hint) if option is not types.NoneType]
    if typing.get_origin(hint) in UNIONS:
        return "|".join(dict.fromkeys(map(describe_value, options)))
    if typing.get_origin(hint) is Literal:
        return "{" + ",".join(map(str, options)) + "}"
    if isinstance(hint, type) and issubclass(hint, os.PathLike):
        return "PATH"
    return {int: "INT", float: "FLOAT", str: "TEXT"}.get(hint, "JSON")
