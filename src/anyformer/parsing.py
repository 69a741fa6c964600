"""One typed parser for configs and requests: frozen dataclasses from plain JSON values, and back.

Every value is checked against the type hint of its field. An error is one line that says which field, what was given
and what would be right.
"""

import ast
import dataclasses
import errno
import functools
import inspect
import itertools
import json
import math
import numbers
import operator
import os
import sys
import textwrap
import types
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from contextvars import ContextVar
from pathlib import Path
from typing import Any, Literal, ParamSpec, TypeVar

from .confinement import ConfinedError, check_confined
from .errors import InputError, suggest

RENAMED_FIELDS = {
    "wanted": "target_return",  # control
    "foresee": "aux_loss_weight",
    "longest": "max_episode_steps",
    "scale": "return_scale",
    "best": "best_fraction",
    "hidden": "mask_rate",  # masked; rnnsearch and seq2seq have a field `hidden`, which stays
    "kinds": "token_types",  # masked, classify
    "normed": "embedding_norm",
    "joined": "max_clips",  # speech
    "whole": "pad_to_context",
    "looks": "preprocessing",  # vision
    "local": "local_layers",
    "absent": "field_dropout",  # multimodal
    "turn": "max_rotation",
}
"""Old name -> new name of config fields. A config of an old run may use the old name, if the dataclass has a field of
the new name and none of the old; only new names are written."""

RENAMED_SWITCHES = {
    "skip_missing": ("empty", ("error", "skip")),  # pairs
    "cut_long": ("too_long", ("error", "cut")),
    "cut": ("too_long", ("error", "cut")),  # classify
}
"""Old name of a switch -> the field that replaced it, and its values for False and True; read as RENAMED_FIELDS is."""


def path_field(default: str = "", suffixes: Sequence[str] = ()) -> Any:
    """Declare a config field that may name a file or a folder, as well as something else (a data set by name).

    Runs store such a path as an absolute one. If `suffixes` are given, a value without a folder names a file only if it
    ends in one of them.
    """
    return dataclasses.field(default=default, metadata={"path": True, "suffixes": tuple(suffixes)})


def to_json(config: Any) -> dict[str, Any]:
    """Convert a dataclass to plain JSON values."""
    return json.loads(json.dumps(dataclasses.asdict(config)))


def flatten_values(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the values of nested dicts by their dotted names."""
    for name, value in tree.items():
        if isinstance(value, dict):
            yield from flatten_values(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def parse_dataclass(kind: Any, values: Any, where: str = "") -> Any:
    """Build a dataclass from plain values; fields that are left out keep their defaults.

    Args:
        kind: The dataclass.
        values: A mapping from field names to plain values; nested dataclasses are mappings too.
        where: Where the values come from, for messages: a path, "request".

    Raises:
        InputError: If a field is unknown, or a value has the wrong type or makes no sense.
    """
    try:
        return _parse_fields(kind, values, "")
    except InputError as error:
        raise InputError(f"{where}: {error}" if where else str(error)) from None


# --- checks for `__post_init__`, so that a dataclass built in Python is as safe as a parsed one ---


def check_types(config: Any) -> None:
    """Check every field of a dataclass against its type hint; a number must be finite. Raises InputError."""
    hints = read_hints(type(config))
    for field in dataclasses.fields(config):
        _parse_value(hints[field.name], getattr(config, field.name), field.name)


def check_path(path: str | Path, name: str) -> None:
    """Raise InputError for a name that no file can have; `name` is the field or the flag."""
    check_confined(path)
    try:
        os.stat(Path(path).expanduser())
    except RuntimeError:
        raise InputError(f"{name} is {show_value(str(path))}; there is no such user of this machine") from None
    except ValueError:  # "\0", or half of a surrogate pair
        raise InputError(f"{name} is {show_value(str(path))}; no file can have this name") from None
    except OSError as error:
        if error.errno in (errno.ENAMETOOLONG, errno.ELOOP):
            raise InputError(f"{name} is {show_value(str(path))}: {error.strerror}") from None


_RANGES: ContextVar[dict[str, dict[str, float]] | None] = ContextVar("_RANGES", default=None)
COMPARISONS = {"at_least": operator.ge, "above": operator.gt, "at_most": operator.le, "below": operator.lt}


def check_range(config: Any, *names: str, **bounds: float) -> None:
    """Check that fields of a dataclass, or the items of lists, are numbers within bounds: at_least, above, at_most,
    below. A field that may be None passes as None. Raises InputError naming the field."""
    hints, ranges = read_hints(type(config)), _RANGES.get()
    for name in names:
        if ranges is not None:
            ranges.setdefault(name, bounds)
        value = _parse_value(hints[name], getattr(config, name), name)
        for number in value if isinstance(value, list | tuple) else [value]:
            if number is not None and not all(COMPARISONS[word](number, bound) for word, bound in bounds.items()):
                words = " and ".join(
                    f"{word.replace('_', ' ')} {format_bound(bound)}" for word, bound in bounds.items()
                )
                raise InputError(f"{name} is {show_value(number)}; it must be {words}")


@functools.cache
def read_ranges(kind: Any) -> dict[str, dict[str, float]]:
    """Return the bounds that a dataclass checks its fields against (`check_range`), by field. A field that is checked
    twice, because a second bound depends on the others, has the first."""
    missing = dataclasses.MISSING
    fields = [f for f in dataclasses.fields(kind) if f.default is missing and f.default_factory is missing]
    token = _RANGES.set(ranges := {})
    try:
        kind(**{field.name: "" for field in fields})
    finally:
        _RANGES.reset(token)
    return ranges


P = ParamSpec("P")
R = TypeVar("R")


def check_arguments(function: Callable[P, R]) -> Callable[P, R]:
    """Decorate a function: the arguments of each call are checked against their type hints, and converted: a str to a
    Path. The function raises InputError."""
    signature = inspect.signature(function)

    @functools.wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        hints, bound = read_hints(function), signature.bind(*args, **kwargs)
        for name, value in bound.arguments.items():
            if name in hints:
                bound.arguments[name] = _parse_value(hints[name], value, name)
        return function(*bound.args, **bound.kwargs)

    return call


def format_bound(bound: float) -> str:
    return f"{bound:.0f}" if float(bound).is_integer() and abs(bound) < 1e15 else f"{bound:g}"


def show_value(value: Any) -> str:
    """Return a value for a message: its first characters, on one line."""
    if isinstance(value, int) and abs(value) > LIMITS[int]:
        return f"too large a number (about {round(value.bit_length() * math.log10(2)):,} digits)"
    try:
        text = repr(value)
    except (ValueError, RecursionError):  # numbers of thousands of digits somewhere inside, or deeply nested
        return f"a {type(value).__name__}"
    return text if len(text) <= 80 else f"{text[:60]} ..."


# --- one value ---


def _parse_fields(kind: Any, values: Any, prefix: str) -> Any:
    """Build a dataclass; `prefix` is its place in another one: "model."."""
    subject = f"{prefix[:-1]}: " if prefix else ""
    if not isinstance(values, Mapping):
        raise InputError(f"{subject}expected an object for {kind.__name__}, found {show_value(values)}")
    hints, names = read_hints(kind), [field.name for field in dataclasses.fields(kind) if field.init]
    arguments = {}
    for name, value in values.items():
        name, value = _rename_field(name, value, names)
        if name not in names:
            raise InputError(f"{subject}unknown field '{name}': {suggest(str(name), names)}")
        arguments[name] = _parse_value(hints[name], value, f"{prefix}{name}")
    try:
        return kind(**arguments)
    except (ValueError, TypeError) as error:  # of `__post_init__`
        names_field = str(error).partition(" ")[0] in names
        raise InputError(f"{prefix if names_field else subject}{error}") from None


@functools.cache
def read_hints(kind: Any) -> dict[str, Any]:
    """Return the type hints of a dataclass; finding them takes longer than checking the values."""
    return typing.get_type_hints(kind)


@functools.cache
def read_field_docs(kind: type) -> dict[str, str]:
    """Return the docstrings below the fields of a dataclass."""
    docs: dict[str, str] = {}
    for base in reversed(kind.__mro__):
        with suppress(OSError, TypeError, SyntaxError):  # built-in, or written in a console
            tree: Any = ast.parse(textwrap.dedent(inspect.getsource(base)))
            for pair in itertools.pairwise(tree.body[0].body):
                match pair:
                    case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(value=ast.Constant(value=str(text))):
                        docs[name] = " ".join(text.split())
    return docs


def _rename_field(name: str, value: Any, names: Sequence[str]) -> tuple[str, Any]:
    """Return the name and value that a field of an old run has today."""
    if name not in names and RENAMED_FIELDS.get(name) in names:
        return RENAMED_FIELDS[name], value
    renamed, values = RENAMED_SWITCHES.get(name, ("", ()))
    is_switch = name not in names and renamed in names and isinstance(value, bool)
    return (renamed, values[value]) if is_switch else (name, value)


def _parse_value(hint: Any, value: Any, name: str) -> Any:
    """Convert a plain value to the type of a hint. Raises InputError."""
    origin, options = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Annotated:
        return _parse_value(options[0], value, name)
    if origin in (types.UnionType, typing.Union):
        return _parse_union(hint, value, name)
    if dataclasses.is_dataclass(hint) and not isinstance(value, typing.cast(type, hint)):
        return _parse_fields(hint, value, f"{name}.")
    if origin in SEQUENCES and isinstance(value, list | tuple):
        return _parse_sequence(hint, value, name)
    if origin in (dict, Mapping) and isinstance(value, Mapping):
        if options[0] is str and (bad := [key for key in value if not isinstance(key, str)]):
            raise InputError(f"{name} has the name {show_value(bad[0])}; it must be a text")
        return {key: _parse_value(options[1], item, f"{name}.{key}") for key, item in value.items()}
    if origin is Literal and isinstance(value, str) and value not in options:
        shown = show_value(value)
        raise InputError(f"{name} is {shown}: {suggest(value[:80], map(str, options))}")
    if not _is_scalar(hint, value):
        raise InputError(f"{name} is {show_value(value)}; it must be {describe_type(hint)}")
    if hint is Path:
        check_path(value, name)
    return SCALARS[hint][1](value) if hint in SCALARS else value


def _parse_union(hint: Any, value: Any, name: str) -> Any:
    """Return the value as the first option that takes it; of a single option besides None, the error is its own."""
    options = [option for option in typing.get_args(hint) if option is not types.NoneType]
    if value is None and len(options) < len(typing.get_args(hint)):
        return None
    if len(options) == 1 and options[0] is not bool and options[0] not in SCALARS:
        return _parse_value(options[0], value, name)
    if Path in options and isinstance(value, str | Path):
        check_path(value, name)
    for option in options:
        try:
            return _parse_value(option, value, name)
        except ConfinedError:
            raise
        except InputError:
            pass
    raise InputError(f"{name} is {show_value(value)}; it must be {describe_type(hint)}")


def _parse_sequence(hint: Any, value: Sequence[Any], name: str) -> Any:
    """A list, a tuple of any length (`tuple[int, ...]`) or a tuple of a fixed length (`tuple[int, int]`)."""
    origin, options = typing.get_origin(hint), typing.get_args(hint)
    if origin is not tuple or options[1:] == (Ellipsis,):
        options = options[:1] * len(value)
    elif len(value) != len(options):
        raise InputError(f"{name} has {len(value)} values; it must be {describe_type(hint)}")
    items = [_parse_value(option, item, f"{name}[{i}]") for i, (option, item) in enumerate(zip(options, value))]
    return items if origin is list else tuple(items)


def _is_scalar(hint: Any, value: Any) -> bool:
    """Whether a value is of a simple type; True is no number, and a number must be finite."""
    if hint is Any:
        return True
    if typing.get_origin(hint) is Literal:
        return any(value == option and type(value) is type(option) for option in typing.get_args(hint))
    if typing.get_origin(hint) is Callable:
        return callable(value)
    if isinstance(value, bool) or hint is bool:
        return isinstance(value, bool) and hint is bool
    if hint in SCALARS:
        return isinstance(value, SCALARS[hint][0]) and (hint not in (int, float) or abs(value) <= LIMITS[hint])
    return isinstance(hint, type) and isinstance(value, hint)


LIMITS = {int: 2**63 - 1, float: sys.float_info.max}  # NaN is within none
SEQUENCES = (list, tuple, Sequence)
SCALARS: dict[Any, tuple[Any, Callable[[Any], Any], str]] = {
    int: (numbers.Integral, int, "a whole number"),
    float: (numbers.Real, float, "a finite number"),
    str: (str, str, "a text"),
    Path: (str | Path, Path, "a path"),
}
TYPE_NAMES = {bool: "true or false", types.NoneType: "None", list: "a list", tuple: "a list", dict: "an object"}
TYPE_NAMES |= {hint: words for hint, (_, _, words) in SCALARS.items()}


def describe_type(hint: Any) -> str:
    """A type hint in words: "a whole number or None"."""
    origin, options = typing.get_origin(hint), typing.get_args(hint)
    if origin in (types.UnionType, typing.Union):
        return " or ".join(map(describe_type, options))
    if origin is Literal:
        return "one of " + ", ".join(map(repr, options))
    if origin is tuple and options[-1] is not Ellipsis:
        return f"a list of {len(options)} values"
    if origin in SEQUENCES:
        return f"a list, each item {describe_type(options[0])}"
    if origin in (dict, Mapping) or dataclasses.is_dataclass(hint):
        return "an object"
    return TYPE_NAMES.get(hint, getattr(hint, "__name__", str(hint)))
