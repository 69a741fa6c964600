"""The schema of a table: which columns are fields, of what kind, and which are targets.

    group = "subject"               rows of one group stay in one split
    order = "date"                  the latest rows are for validation
    split = "split"                 or a column names the split: train, val

    [fields.motion]
    kind = "series"                 category, scalar, date, vector, series, text, image, audio
    channels = 3
    rate = 50.0                     readings per second
    seconds = 2.0

    [fields.age]
    kind = "scalar"
    missing = ["unknown"]           read as a missing value, of any category, scalar, date or target

    [targets.exercise]
    kind = "class"                  or number

It is written by hand as TOML. As JSON, with what was measured on the training rows, it is stored beside the weights.
"""

import json
import math
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

from ...errors import InputError, suggest
from ...parsing import check_range, parse_dataclass
from ..io.checks import read_text
from .dates import Part, count_numbers
from .number_formats import Decimal

COVERAGES = {"80%": 0.8, "90%": 0.9}  # of the intervals around predicted numbers
MAX_COUNT = 1 << 16  # of every option that is an integer
POSITION = {"position": "learned"}
FIELD_OPTIONS: dict[str, dict[str, Any]] = {  # the options of each kind with their defaults; None: required
    "category": {"min_count": 1, "missing": ()},
    "scalar": {"decimal": ".", "missing": ()},
    "date": {"parts": ("year", "month", "weekday", "hour"), "format": "", "missing": ()},
    "vector": {"size": None},
    "series": {"channels": None, "rate": None, "seconds": None, "patch": 5, "cut": False} | POSITION,
    "text": {"tokens": 64, "tokenizer": "bpe", "cut": False} | POSITION,
    "image": {"height": 28, "width": 28, "channels": 1, "patch": 4} | POSITION,
    "audio": {"seconds": None, "mels": 40, "cut": False} | POSITION,
}
TARGET_OPTIONS: dict[str, dict[str, Any]] = {"class": {"missing": ()}, "number": {"decimal": ".", "missing": ()}}
RARE_OPTIONS = ("min_count", "decimal", "format", "missing")  # not written where they have their defaults
NORMALIZED_KINDS = ("scalar", "date", "vector", "series", "image")
COUNTS = ("size", "channels", "rate", "seconds", "patch", "tokens", "height", "width", "mels", "min_count")
MEASURED_OPTIONS = ("values", "rare", "mean", "std", "quantiles", "words", "errors")


@dataclass(frozen=True)
class Field:
    """A column that the model reads, and how it becomes nodes. The last five are measured."""

    name: str
    kind: str
    position: Literal["learned", "fixed", "none"] = "none"  # of its nodes; fixed: sinusoidal
    size: int = 0
    channels: int = 0
    rate: float = 0.0  # readings per second
    seconds: float = 0.0  # the longest duration
    patch: int = 0  # readings of a series, or side of a square of pixels, per node
    cut: bool = False  # longer values are cut instead of refused
    tokens: int = 0
    tokenizer: Literal["bpe", "char", "byte"] = "bpe"
    height: int = 0
    width: int = 0
    mels: int = 0
    min_count: int = 0  # categories of fewer training rows become one, "other"
    decimal: Decimal = "."  # of numbers that are texts; the other of . and , separates thousands
    parts: tuple[Part, ...] = ()  # of a date, beside its position in time
    format: str = ""  # of dates, for strptime; "": ISO 8601 and all that `series.times` reads
    missing: tuple[str, ...] = ()  # texts that say that there is no value
    values: tuple[str, ...] = ()  # the categories
    rare: int = 0  # training rows of other categories
    mean: tuple[float, ...] = ()  # on the training rows: of each number, channel or color
    std: tuple[float, ...] = ()
    quantiles: tuple[float, ...] = ()  # of a scalar, increasing; none in schemas of earlier versions
    words: str = ""  # the tokenizer.json of a text

    def __post_init__(self) -> None:
        options = [name for name in FIELD_OPTIONS[self.kind] if name in COUNTS]
        check_range(self, *options, above=0)
        check_range(self, "rare", at_least=0)
        check_range(self, *(name for name in options if name not in ("rate", "seconds")), at_most=MAX_COUNT)
        if self.kind == "image" and (self.height % self.patch or self.width % self.patch):
            raise InputError(f"patches of {self.patch} pixels do not divide {self.height} x {self.width}")
        if self.kind == "image" and self.channels not in (1, 3):
            raise InputError(f"channels is {self.channels}; it must be 1 (gray) or 3 (color)")
        if self.nodes > MAX_COUNT or math.prod(self.shape) > 1 << 28:
            raise InputError(f"makes {self.nodes:,} nodes per row: fewer seconds, or larger patches")
        check_statistics(self.mean, self.std, self.shape[-1])
        if any(low >= high for low, high in pairwise(self.quantiles)):
            raise InputError("quantiles must increase")

    @property
    def length(self) -> int:
        """Readings of the longest series."""
        return max(1, round(self.rate * self.seconds))

    @property
    def nodes(self) -> int:
        """The largest number of nodes of a value."""
        if self.kind == "series":
            return -(-self.length // self.patch)
        if self.kind == "image":
            return (self.height // self.patch) * (self.width // self.patch)
        if self.kind == "audio":
            return max(1, math.ceil(50 * self.seconds))  # two mel frames of 10 ms each
        return self.tokens if self.kind == "text" else 1

    @cached_property
    def index(self) -> dict[str, int]:
        """The index of each category."""
        return {value: i for i, value in enumerate(self.values)}

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of an encoded value."""
        return {
            "category": (1,),
            "scalar": (1,),
            "date": (count_numbers(self.parts),),
            "vector": (self.size,),
            "series": (self.nodes * self.patch, self.channels),
            "text": (self.tokens,),
            "image": (self.height, self.width, self.channels),
            "audio": (self.mels, 2 * self.nodes),
        }[self.kind]

    @property
    def dtype(self) -> str:
        return {"category": "int64", "text": "int32", "image": "uint8", "audio": "float16"}.get(self.kind, "float32")


@dataclass(frozen=True)
class Target:
    """A column that the model predicts: one of `values`, or a number with this mean and deviation."""

    name: str
    kind: Literal["class", "number"]
    decimal: Decimal = "."
    missing: tuple[str, ...] = ()  # texts that say that there is no value; rows without any target are left out
    values: tuple[str, ...] = ()
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    errors: tuple[float, ...] = ()  # of a number, on validation rows: those that `COVERAGES` of them do not exceed

    def __post_init__(self) -> None:
        if self.errors and (len(self.errors) != len(COVERAGES) or not all(0 <= x < math.inf for x in self.errors)):
            raise InputError(f"errors is {list(self.errors)}; it must be {len(COVERAGES)} numbers of at least 0")
        if self.kind == "class" and len(self.values) == 1:
            raise InputError(f"one class ({self.values[0]!r}): two or more are needed")
        check_statistics(self.mean, self.std, 1)


def check_statistics(mean: tuple[float, ...], std: tuple[float, ...], size: int) -> None:
    if mean and not len(mean) == len(std) == size:
        raise InputError(f"{len(mean)} means and {len(std)} deviations for {size} numbers")
    if min(std, default=1) <= 0:
        raise InputError(f"std is {min(std)}; it must be above 0")


@dataclass(frozen=True)
class Schema:
    """The fields and targets of a table."""

    fields: tuple[Field, ...]
    targets: tuple[Target, ...]
    group: str = ""
    order: str = ""
    split: str = ""
    left_out: dict[str, str] = field(default_factory=dict)  # columns that the inferred schema does not use, and why

    @property
    def columns(self) -> tuple[Field | Target, ...]:
        return (*self.fields, *self.targets)

    @property
    def nodes(self) -> int:
        """The largest number of nodes of a row, without a class node."""
        return sum(field.nodes for field in self.fields)

    @property
    def has_vocabularies(self) -> bool:
        """Whether the categories, classes and tokenizers are known."""
        texts = all(field.words for field in self.fields if field.kind == "text")
        return texts and all(column.values for column in self.columns if column.kind in ("category", "class"))

    @property
    def is_measured(self) -> bool:
        """Whether vocabularies, means and deviations are known: everything that a model needs."""
        return self.has_vocabularies and all(c.mean for c in self.columns if c.kind in (*NORMALIZED_KINDS, "number"))

    def with_measurements(self, measurements: Mapping[str, Mapping[str, Any]]) -> "Schema":
        """Return the schema with these options of columns, by name of the column, replaced; lists become tuples."""

        def update(column: Any) -> Any:
            options = measurements.get(column.name, {})
            return replace(column, **{k: tuple(v) if isinstance(v, list) else v for k, v in options.items()})

        return replace(self, fields=tuple(map(update, self.fields)), targets=tuple(map(update, self.targets)))

    def to_dict(self, measured: tuple[str, ...] = ()) -> dict[str, Any]:
        """Return what a hand-written TOML holds, and these of the measured options."""
        settings = {name: getattr(self, name) for name in ("group", "order", "split")}
        values: dict[str, Any] = {name: column for name, column in settings.items() if column}
        for table, columns in (("fields", self.fields), ("targets", self.targets)):
            values[table] = {}
            for column in columns:
                defaults = (FIELD_OPTIONS | TARGET_OPTIONS)[column.kind]
                options = {"kind": column.kind} | {name: getattr(column, name) for name in defaults}
                options = {k: v for k, v in options.items() if k not in RARE_OPTIONS or v != defaults[k]}
                options |= {name: value for name in measured if (value := getattr(column, name, ()))}
                values[table][column.name] = {k: list(v) if isinstance(v, tuple) else v for k, v in options.items()}
        return values

    def to_json(self) -> str:
        return json.dumps(self.to_dict(MEASURED_OPTIONS) | {"left_out": self.left_out}, ensure_ascii=False)

    def to_toml(self) -> str:
        values, lines = self.to_dict(), []
        for table in ("fields", "targets"):
            for name, options in values.pop(table).items():
                is_bare = name.isascii() and name.replace("_", "").replace("-", "").isalnum()
                lines += ["", f"[{table}.{name if is_bare else quote(name)}]"]
                lines += [f"{option} = {quote(value)}" for option, value in options.items()]
        return "\n".join([*(f"{name} = {quote(value)}" for name, value in values.items()), *lines]).strip() + "\n"


def quote(value: Any) -> str:
    """Write a string, number or boolean as TOML does: as JSON, but for DEL, which TOML wants escaped."""
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")


# --- reading ---


def is_content(path_or_text: str) -> bool:
    """Whether a text is the content of a schema, and not the path of one."""
    return "\n" in path_or_text or path_or_text.lstrip().startswith("{")


def load_schema(path_or_text: str) -> Schema:
    """Load a schema.toml or schema.json: its path, or its content. Raises InputError."""
    is_text = is_content(path_or_text)
    text, place = (path_or_text, "schema") if is_text else (read_text(Path(path_or_text)), path_or_text)
    try:
        values = json.loads(text) if text.lstrip().startswith("{") else tomllib.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{place} is not TOML (nor JSON): {error}") from None
    return parse_schema(values, place)


def parse_schema(values: Mapping[str, Any], place: str) -> Schema:
    """Build the schema of the content of a file. Raises InputError that names the place."""
    columns: dict[str, tuple[Any, ...]] = {}
    for table, kind, options in (("fields", Field, FIELD_OPTIONS), ("targets", Target, TARGET_OPTIONS)):
        items = values.get(table)
        if not isinstance(items, dict) or not items or not all(isinstance(item, dict) for item in items.values()):
            raise InputError(f"{place} has no [{table}.NAME]: at least one is needed")
        columns[table] = tuple(
            parse_column(kind, options, name, item, f"{place}, {table}.{name}") for name, item in items.items()
        )
    if both := [name for name in values["fields"] if name in values["targets"]]:
        raise InputError(f"{place}: '{both[0]}' is a field and a target: choose one")
    settings = {name: value for name, value in values.items() if name != "examples"}  # of older versions
    return parse_dataclass(Schema, {**settings, **columns}, place)


def parse_column(
    column_type: type, kinds: Mapping[str, dict[str, Any]], name: str, values: Mapping[str, Any], place: str
) -> Any:
    kind = values.get("kind")
    if not isinstance(kind, str) or kind not in kinds:
        raise InputError(f"{place}: kind is {kind!r}: {suggest(str(kind), kinds)}")
    defaults = kinds[kind]
    if unknown := [option for option in values if option not in ("kind", *defaults, *MEASURED_OPTIONS)]:
        raise InputError(f"{place}: a {kind} has no '{unknown[0]}': {suggest(unknown[0], defaults or ['kind'])}")
    if missing := [option for option, default in defaults.items() if default is None and option not in values]:
        raise InputError(f"{place}: a {kind} needs {missing[0]}")
    return parse_dataclass(column_type, {"name": name, **defaults, **values}, place)
