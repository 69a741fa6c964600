"""Several sources of data in one text, each with a weight: a mixture, as the field `data` of a config holds it.

    a.jsonl:3 b.parquet        as in a shell: spaces between, quotes around a name that holds some
    'my texts.txt':0.5 plays   a weight is a positive number; without one it is 1

A text that names an existing file or folder is that, whatever it looks like. A text with spaces is a mixture only if
one of its words has a weight, or names a file or a set; `join_sources` writes all weights, so that it is always read
back.
"""

import os
import re
import shlex
from collections.abc import Sequence
from decimal import Decimal
from pathlib import Path
from typing import NamedTuple

from ...errors import InputError
from ..registry import GENERATED, SETS

NUMBER = r"[-+]?(?:(?:\d+\.?\d*|\.\d+)(?:e[-+]?\d+)?|nan|inf)"
WEIGHT = re.compile(rf"(?P<name>.+):(?P<weight>{NUMBER})", re.IGNORECASE | re.DOTALL)
MIN_WEIGHT, MAX_WEIGHT = Decimal("0.000001"), Decimal(1_000_000)
MAX_NAME = 24  # characters of a short name


class SourceName(NamedTuple):
    """A source of a mixture: a file, a folder, a named set or what else `data` may be, and its weight."""

    name: str
    weight: Decimal


def parse_source(word: str) -> SourceName:
    """Read a source with its weight, which is 1 if there is none. Raises InputError for a weight that is no number
    above 0."""
    match = None if is_here(word) else WEIGHT.fullmatch(word)
    return SourceName(word, Decimal(1)) if match is None else SourceName(match["name"], parse_weight(*match.groups()))


def parse_weight(name: str, text: str) -> Decimal:
    weight = Decimal(text)
    if not (weight.is_finite() and MIN_WEIGHT <= weight <= MAX_WEIGHT):
        hint = "or leave the source out" if weight == 0 else "such as 3 or 0.5"
        bounds = f"a number from {MIN_WEIGHT} to {MAX_WEIGHT:,}"
        raise InputError(f"data '{name}' has the weight {text}; it must be {bounds}, {hint}")
    return weight


def split_sources(data: str) -> list[SourceName]:
    """Return the sources of a text: of a mixture all of them, otherwise one. Raises InputError for a wrong weight."""
    if is_here(data) or all(map(is_here, data.split(","))):  # also two files of pairs
        return [SourceName(data, Decimal(1))]
    try:
        words = shlex.split(data)
    except ValueError:  # an apostrophe: not written by `join_sources`
        words = []
    if len(words) > 1 and any(map(is_source, words)):
        return [parse_source(word) for word in words]
    source = parse_source(data)
    return [source] if is_named(source.name) or "/" in source.name else [SourceName(data, Decimal(1))]


def is_here(name: str) -> bool:
    """Whether a name is that of a file or a folder."""
    return os.path.exists(os.path.expanduser(name))


def is_named(name: str) -> bool:
    """Whether a name is that of a file, a folder or a set."""
    return name in (*SETS, *GENERATED) or is_here(name)


def is_source(word: str) -> bool:
    """Whether a word of a text shows that the text is a mixture."""
    return bool(WEIGHT.fullmatch(word)) or is_named(word)


def join_sources(sources: Sequence[SourceName]) -> str:
    """Return the sources as one text that `split_sources` reads; a single one as it is."""
    if len(sources) == 1:
        return sources[0].name
    return shlex.join(f"{source.name}:{format_weight(source.weight)}" for source in sources)


def format_weight(weight: Decimal) -> str:
    """Return a weight with all of its digits and no zeros at the end: "3", "0.5"."""
    text = f"{weight:f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def combine_sources(words: Sequence[str]) -> str:
    """Return words that each name a source, "a.jsonl:3", as one text; a single one as it is."""
    return words[0] if len(words) == 1 else join_sources([parse_source(word) for word in words])


def make_absolute(data: str) -> str:
    """Return a mixture with the absolute paths of its files. Raises InputError if it names a file or set twice."""
    if len(sources := split_sources(data)) == 1:
        return data
    names = [os.path.realpath(os.path.expanduser(name)) if is_here(name) else name for name, _ in sources]
    for i, (name, source) in enumerate(zip(names, sources)):
        if name in names[:i]:
            total = source.weight + sources[names.index(name)].weight
            raise InputError(
                f"data '{source.name}' is named twice: give it once, with the weight {format_weight(total)}"
            )
    return join_sources([SourceName(name, source.weight) for name, source in zip(names, sources)])


def shorten_names(sources: Sequence[SourceName]) -> list[str]:
    """Return short and distinct names of sources, of letters, digits, "-" and "_": "a" for "/data/a.jsonl.gz"."""
    names: list[str] = []
    for source in sources:
        stem = Path(source.name).name.split(".")[0] or Path(source.name).name
        name = stem = re.sub(r"[^\w-]+", "_", stem, flags=re.ASCII).strip("_")[:MAX_NAME] or "source"
        number = 1
        while name in names:
            number += 1
            name = f"{stem}_{number}"
        names.append(name)
    return names


def describe_data(data: str) -> str:
    """Return what a config's `data` names without folders: "a.jsonl:3 b.parquet:1"."""
    try:
        return join_sources([SourceName(Path(name).name, weight) for name, weight in split_sources(data)])
    except InputError:  # of a run that somebody has edited
        return data
