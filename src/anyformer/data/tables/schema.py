"""What a table holds: which columns are fields, of what kind, and which are to be told from them.

    group = "subject"               rows of one group stay on one side of the split
    split = "split"                 or a column says the side: train, val

    [fields.motion]
    kind = "series"                 category, scalar, vector, series, text, image, audio
    channels = 3
    rate = 50.0                     readings a second
    seconds = 2.0

    [targets.exercise]
    kind = "class"                  or number

As TOML to be written by hand; as JSON, with what was measured on the training rows, to be kept beside the weights.
"""

import json
import math
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...errors import InputError, nearest

LARGEST = 64 << 20  # bytes of such a file
MOST = 1 << 16  # of anything that a field counts
LINE = {"position": "learned"}
KINDS: dict[str, dict[str, Any]] = {  # what may be said of each kind, and what goes without saying; None: must be said
    "category": {},
    "scalar": {},
    "vector": {"size": None},
    "series": {"channels": None, "rate": None, "seconds": None, "patch": 5, "cut": False} | LINE,
    "text": {"tokens": 64, "tokenizer": "bpe", "cut": False} | LINE,
    "image": {"height": 28, "width": 28, "channels": 1, "patch": 4} | LINE,
    "audio": {"seconds": None, "mels": 40, "cut": False} | LINE,
}
SCALED = ("scalar", "vector", "series", "image")  # by the mean and deviation of the training rows
POSITIONS = ("learned", "fixed", "none")
MEASURED = ("values", "mean", "std", "words")


@dataclass(frozen=True)
class Field:
    """A column that is read, and how it becomes nodes."""

    name: str
    kind: str
    position: str = "none"
    """Of its nodes among themselves: learned, fixed (sinusoidal), none."""
    size: int = 0
    channels: int = 0
    rate: float = 0.0
    """Readings a second."""
    seconds: float = 0.0
    """The longest there may be."""
    patch: int = 0
    """Readings of a series, or the side of a square of pixels, that make a node."""
    cut: bool = False
    """What is longer is cut, instead of refused."""
    tokens: int = 0
    tokenizer: str = ""
    height: int = 0
    width: int = 0
    mels: int = 0
    values: tuple[str, ...] = ()
    """Measured: what a category can be."""
    mean: tuple[float, ...] = ()
    """Measured on the training rows: of each number, channel or colour."""
    std: tuple[float, ...] = ()
    words: str = ""
    """Measured: the tokenizer.json of a text."""

    @property
    def length(self) -> int:
        """Readings of the longest series."""
        return max(1, round(self.rate * self.seconds))

    @property
    def nodes(self) -> int:
        """How many nodes it makes at most."""
        if self.kind == "series":
            return -(-self.length // self.patch)
        if self.kind == "image":
            return (self.height // self.patch) * (self.width // self.patch)
        if self.kind == "audio":
            return max(1, math.ceil(50 * self.seconds))  # two mel frames of 10 ms each
        return self.tokens if self.kind == "text" else 1

    @property
    def shape(self) -> tuple[int, ...]:
        """Of what is kept of a row."""
        return {
            "category": (1,),
            "scalar": (1,),
            "vector": (self.size,),
            "series": (self.nodes * self.patch, self.channels),
            "text": (self.tokens,),
            "image": (self.height, self.width, self.channels),
            "audio": (self.mels, 2 * self.nodes),
        }[self.kind]

    @property
    def dtype(self) -> str:
        kept = {"category": "int64", "text": "int32", "image": "uint8", "audio": "float16"}
        return kept.get(self.kind, "float32")


@dataclass(frozen=True)
class Target:
    """A column that is to be told: one of `values`, or a number of this mean and deviation."""

    name: str
    kind: str
    values: tuple[str, ...] = ()
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()


@dataclass(frozen=True)
class Schema:
    fields: tuple[Field, ...]
    targets: tuple[Target, ...]
    group: str = ""
    split: str = ""
    examples: tuple[dict[str, Any], ...] = ()
    """A few rows to show what a model does."""

    @property
    def nodes(self) -> int:
        """The most nodes of a row, without a class node."""
        return sum(field.nodes for field in self.fields)

    @property
    def learned(self) -> bool:
        """Whether it knows the vocabularies of what it names."""
        texts = all(field.words for field in self.fields if field.kind == "text")
        named = [one.values for one in (*self.fields, *self.targets) if one.kind in ("category", "class")]
        return texts and all(named)

    @property
    def measured(self) -> bool:
        """Whether it knows the means and deviations too: all that a model needs."""
        scaled = [field for field in self.fields if field.kind in SCALED]
        numbers = [target for target in self.targets if target.kind == "number"]
        return self.learned and all(one.mean for one in (*scaled, *numbers))

    def plain(self, measured: tuple[str, ...] = ()) -> dict[str, Any]:
        """As a TOML holds it: what a person says, and of what was measured these."""
        found: dict[str, Any] = {name: getattr(self, name) for name in ("group", "split") if getattr(self, name)}
        for what in ("fields", "targets"):
            found[what] = {one.name: said(one, measured) for one in getattr(self, what)}
        return found

    def json(self) -> str:
        return json.dumps(self.plain(MEASURED) | {"examples": self.examples}, ensure_ascii=False)

    def toml(self) -> str:
        found, lines = self.plain(), []
        for name in ("group", "split"):
            lines += [f"{name} = {written(found[name])}"] if name in found else []
        for what in ("fields", "targets"):
            for name, options in found[what].items():
                lines += ["", f"[{what}.{key(name)}]"] + [f"{k} = {written(v)}" for k, v in options.items()]
        return "\n".join(lines).strip() + "\n"


def said(one: Field | Target, measured: tuple[str, ...]) -> dict[str, Any]:
    known = KINDS[one.kind] if isinstance(one, Field) else {}
    found = {"kind": one.kind} | {name: getattr(one, name) for name in known}
    found |= {name: value for name in measured if (value := getattr(one, name, ()))}
    return {name: list(value) if isinstance(value, tuple) else value for name, value in found.items()}


def written(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)  # text, numbers and truth look alike in TOML


def key(name: str) -> str:
    return name if name.isascii() and name.replace("_", "").replace("-", "").isalnum() else written(name)


# --- reading ---


def read(given: str) -> Schema:
    """A schema.toml or schema.json: its path, or what it holds. Raises InputError."""
    inline = "\n" in given or given.lstrip().startswith("{")
    where, text = ("schema", given) if inline else (given, "")
    try:
        if not inline:
            if Path(given).stat().st_size > LARGEST:
                raise InputError(f"{given} is larger than {LARGEST >> 20} MiB, which no schema is")
            text = Path(given).read_text(encoding="utf-8")
        values = json.loads(text) if text.lstrip().startswith("{") else tomllib.loads(text)
    except OSError as error:
        raise InputError(f"schema '{given}' cannot be read: {error.strerror or error}") from None
    except (ValueError, RecursionError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{where} is no TOML (and no JSON): {error}") from None
    return of(values, where)


def of(values: Mapping[str, Any], where: str) -> Schema:
    """The schema of what a file holds. Raises InputError that names the place."""
    known = ("fields", "targets", "group", "split", "examples")
    if strange := [name for name in values if name not in known]:
        raise InputError(f"{where}: unknown '{strange[0]}': {nearest(strange[0], known)}")
    for name in ("fields", "targets"):
        table = values.get(name)
        if not isinstance(table, dict) or not table or not all(isinstance(one, dict) for one in table.values()):
            raise InputError(f"{where} has no [{name}.NAME]: at least one is needed")
    for name in ("group", "split"):
        if not isinstance(values.get(name, ""), str):
            raise InputError(f"{where}: {name} is {values[name]!r}; it must be the name of a column")
    fields = tuple(field(name, one, f"{where}, fields.{name}") for name, one in values["fields"].items())
    targets = tuple(target(name, one, f"{where}, targets.{name}") for name, one in values["targets"].items())
    if both := [one.name for one in fields if one.name in values["targets"]]:
        raise InputError(f"{where}: '{both[0]}' is a field and a target: it can be one of them")
    examples = values.get("examples", [])
    if not isinstance(examples, list) or not all(isinstance(one, dict) for one in examples):
        raise InputError(f"{where}: examples must be a list of rows")
    return Schema(fields, targets, values.get("group", ""), values.get("split", ""), tuple(examples))


def field(name: str, values: Mapping[str, Any], where: str) -> Field:
    kind = kind_of(values, tuple(KINDS), where)
    known = KINDS[kind]
    told = {option: value for option, value in values.items() if option != "kind"}
    if strange := [option for option in told if option not in known and option not in MEASURED]:
        raise InputError(f"{where}: a {kind} has no '{strange[0]}': {nearest(strange[0], known or ['kind'])}")
    if missing := [option for option, default in known.items() if default is None and option not in told]:
        raise InputError(f"{where}: a {kind} needs {missing[0]}")
    made = Field(name, kind, **known | {option: checked(option, value, where) for option, value in told.items()})
    if kind == "image" and (made.height % made.patch or made.width % made.patch):
        raise InputError(f"{where}: patches of {made.patch} pixels do not cut {made.height} x {made.width}")
    if kind == "image" and made.channels not in (1, 3):
        raise InputError(f"{where}: channels is {made.channels}; it must be 1 (grey) or 3 (colour)")
    if made.mean and not len(made.mean) == len(made.std) == made.shape[-1]:
        raise InputError(f"{where}: {len(made.mean)} means and {len(made.std)} deviations for {made.shape[-1]} numbers")
    if made.nodes > MOST or math.prod(made.shape) > 1 << 28:
        raise InputError(f"{where}: makes {made.nodes:,} nodes of a row: fewer seconds, or larger patches")
    return made


def target(name: str, values: Mapping[str, Any], where: str) -> Target:
    kind = kind_of(values, ("class", "number"), where)
    told = {option: value for option, value in values.items() if option != "kind"}
    if strange := [option for option in told if option not in ("values", "mean", "std")]:
        raise InputError(f"{where}: a target has a kind alone, not '{strange[0]}'")
    made = Target(name, kind, **{option: checked(option, value, where) for option, value in told.items()})
    if made.mean and not len(made.mean) == len(made.std) == 1:
        raise InputError(f"{where}: a number has one mean and one deviation")
    if kind == "class" and made.values and len(made.values) < 2:
        raise InputError(f"{where} has one class ({made.values[0]!r}): there is nothing to tell apart")
    return made


def kind_of(values: Mapping[str, Any], known: tuple[str, ...], where: str) -> str:
    kind = values.get("kind")
    if not isinstance(kind, str) or kind not in known:
        raise InputError(f"{where}: kind is {kind!r}: {nearest(str(kind), known)}")
    return kind


def checked(option: str, value: Any, where: str) -> Any:
    """A value of this option, as the field keeps it. Raises InputError."""
    if option in ("rate", "seconds"):
        if not number(value) or not value > 0:
            what = "a rate of {} readings a second" if option == "rate" else "{} seconds"
            raise InputError(f"{where}: {what.format(repr(value))}: it must be a number above 0")
        return float(value)
    if option in ("mean", "std", "values"):
        good = isinstance(value, list) and all(number(x) if option != "values" else isinstance(x, str) for x in value)
        if not good or (option == "std" and min(value, default=1) <= 0):
            raise InputError(f"{where}: {option} is not as it was measured: {str(value)[:60]}")
        return tuple(value)
    options = {"position": POSITIONS, "tokenizer": ("bpe", "char", "byte"), "cut": (True, False)}
    if option in options or option == "words":
        known = options.get(option, (value,))
        if not isinstance(value, bool if option == "cut" else str) or value not in known:
            raise InputError(f"{where}: {option} is {value!r}: {nearest(str(value), map(str, known))}")
        return value
    if not isinstance(value, int) or isinstance(value, bool) or not 0 < value <= MOST:
        raise InputError(f"{where}: {option} is {value!r}; it must be a whole number from 1 to {MOST:,}")
    return value


def number(x: Any) -> bool:
    return isinstance(x, int | float) and not isinstance(x, bool) and math.isfinite(x)
