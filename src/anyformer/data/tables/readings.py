"""Readings of a table: what its columns can be data for, by rules from the most special to the most general."""

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

from .columns import (
    LANGUAGES,
    SOURCE_NAMES,
    SPLIT_NAMES,
    TABLE_TARGETS,
    TARGET_NAMES,
    TEXT_NAMES,
    TIME_NAMES,
    TRANSCRIPT_NAMES,
    Rows,
    plain_name,
)

CHAT_KEYS = ({"messages"}, {"conversations"}, {"prompt", "completion"}, {"instruction", "output"})
TRAJECTORY_KEYS = {"observations", "actions"}


@dataclass(frozen=True)
class Reading:
    """One way to read some data."""

    kind: str
    """One of KINDS."""
    score: float
    """How well the data fit, from 0 to 1."""
    why: str
    """What was seen."""
    options: dict[str, Any] = field(default_factory=dict)
    """What a reader needs to know: columns, the target."""


KINDS = {
    "text": "running text",
    "documents": "separate texts",
    "code": "source code",
    "labeled text": "texts with a class each",
    "tagged text": "sentences with a tag for each word",
    "pairs": "pairs of texts",
    "conversations": "conversations",
    "labeled images": "images with a class each",
    "images": "images without labels",
    "captioned images": "images with a text each",
    "transcribed sounds": "sounds with their transcripts",
    "labeled sounds": "sounds with a class each",
    "table": "rows of a table",
    "series": "time series",
    "trajectories": "episodes of states, actions and rewards",
    "sequences": "biological sequences",
    "alignment": "aligned sequences",
    "molecules": "molecules as SMILES",
    "tunes": "tunes in ABC notation",
}


def read_rows(rows: Rows) -> Iterator[Reading]:
    """Yield the readings of a table."""
    if not rows.columns or not rows.count:
        return
    for rule in (
        read_conversations,
        read_trajectories,
        read_media,
        read_molecules,
        read_pairs,
        read_labeled_text,
        read_series,
        read_documents,
        read_table,
    ):
        yield from rule(rows)


def read_conversations(rows: Rows) -> Iterator[Reading]:
    names = {plain_name(name) for name in rows.columns}
    for keys in CHAT_KEYS:
        if keys <= names and rows.has_header:
            yield Reading("conversations", 0.95, f"the fields {', '.join(sorted(keys))}")
            return


def read_trajectories(rows: Rows) -> Iterator[Reading]:
    if {plain_name(name) for name in rows.columns} >= TRAJECTORY_KEYS:
        yield Reading("trajectories", 0.95, "the fields observations and actions")


def read_media(rows: Rows) -> Iterator[Reading]:
    images, sounds = rows["image"], rows["sound"]
    if not images and not sounds:
        return
    file, label, text = (images + sounds)[0], rows.label(), rows.pick(TRANSCRIPT_NAMES, rows["text"] + rows["category"])
    interpreted = {file, label, text, *rows["constant"], *rows["empty"], *rows["id"]}
    others = [name for name in rows.columns if name not in interpreted and plain_name(name) not in SPLIT_NAMES]
    what = "images" if images else "sounds"
    if len(images + sounds) > 1 or (others and rows["number"]):
        target = rows.pick(TABLE_TARGETS, list(rows.columns)) or label
        names = ", ".join((images + sounds + others)[:5])
        yield Reading("table", 0.9, f"rows that combine files and values: {names}", {"target": target})
    if sounds and text:
        yield Reading(
            "transcribed sounds", 0.85, f"sounds in {file}, their texts in {text}", {"path": file, "text": text}
        )
    if label:
        score = 0.8 if not (sounds and text) else 0.5
        why = f"{what} in {file}, {rows.columns[label].distinct} classes in {label}"
        yield Reading(f"labeled {what}", score, why, {"path": file, "label": label})
    elif images and rows["text"]:
        yield Reading("captioned images", 0.8, f"images in {file}, a text each in {rows['text'][0]}")


def read_molecules(rows: Rows) -> Iterator[Reading]:
    if not rows["smiles"]:
        return
    others = [name for name in rows.columns if name not in rows["smiles"] and rows.columns[name].kind != "id"]
    targets = [name for name in others if plain_name(name) not in SPLIT_NAMES]
    if targets:
        target = rows.pick(TABLE_TARGETS, targets) or targets[-1]
        yield Reading("table", 0.8, f"molecules in {rows['smiles'][0]}, {target} to predict", {"target": target})
    yield Reading("molecules", 0.6 if targets else 0.9, f"SMILES in {rows['smiles'][0]}")


def read_pairs(rows: Rows) -> Iterator[Reading]:
    texts = rows["text"]
    if len(texts) < 2:
        return
    source, target = rows.pick(SOURCE_NAMES, texts), rows.pick(TARGET_NAMES, texts)
    languages = [name for name in texts if plain_name(name).split("_")[0] in LANGUAGES]
    if len(languages) >= 2:
        source, target = languages[:2]
    others = [name for name in rows.columns if name not in texts and rows.columns[name].kind in ("number", "category")]
    is_named = bool(source and target and source != target)
    if not is_named and (rows.has_header or others) and (len(texts) != 2 or others):
        return
    source, target = (source, target) if is_named else texts[:2]
    why = f"two columns of texts, {source} and {target}"
    yield Reading("pairs", 0.9 if is_named else 0.8, why, {"source": source, "target": target})


def read_labeled_text(rows: Rows) -> Iterator[Reading]:
    texts, label = rows["text"], rows.label()
    if not texts or not label:
        return
    text = rows.pick(TEXT_NAMES, texts) or max(texts, key=lambda name: rows.columns[name].words)
    others = [name for name in rows["number"] if name != label and rows.columns[name].kind != "id"]
    score = 0.85 if len(others) <= 1 and len(rows["category"]) <= 2 else 0.5
    why = f"texts in {text}, {rows.columns[label].distinct} classes in {label}"
    yield Reading("labeled text", score, why, {"text": text, "label": label})


def read_series(rows: Rows) -> Iterator[Reading]:
    """A column of times in order (or one for each series), and numbers."""
    numbers = rows["number"]
    times, values = rows["date"] or rows["year"], numbers
    if not times or not values:
        return
    time = rows.pick(TIME_NAMES, times) or times[0]
    texts = rows.columns[time].texts
    steps = [a <= b for a, b in pairwise(texts)] if rows.columns[time].share(_is_year_first) > 0.95 else [True]
    is_ordered = sum(steps) >= 0.9 * len(steps) or sum(steps) <= 0.1 * len(steps)
    is_first = list(rows.columns).index(time) <= 1
    others = [name for name in rows["category"] + rows["text"] if plain_name(name) not in SPLIT_NAMES]
    parts = [name for name in rows.columns if plain_name(name) in TIME_NAMES]
    is_regular = rows.columns[time].distinct > 0.5 * rows.count or len(others) == 1 or len(parts) > 1
    if not is_ordered or not is_regular:
        return
    why = f"numbers over time: {time}, then {', '.join(values[:4])}"
    score = 0.9 if is_first and len(others) <= 1 else 0.6
    yield Reading("series", score, why, {"time": time, "target": values[-1] if len(values) < 8 else values[0]})


def _is_year_first(text: str) -> bool:
    return bool(re.match(r"\d{4}", text))


def read_documents(rows: Rows) -> Iterator[Reading]:
    texts = rows["text"]
    if not texts:
        return
    text = rows.pick(TEXT_NAMES, texts) or max(texts, key=lambda name: rows.columns[name].words)
    values = [*rows["number"], *rows["category"]]
    yield Reading("documents", 0.3 if values else 0.6, f"a text in each row, in {text}", {"text": text})


def read_table(rows: Rows) -> Iterator[Reading]:
    usable = [name for name in rows.columns if rows.columns[name].kind not in ("empty", "constant", "id")]
    if len(usable) < 2 or rows.count < 5:
        return
    candidates = [name for name in usable if rows.columns[name].kind in ("category", "number")]
    if not candidates:
        return
    target = rows.pick(TABLE_TARGETS, candidates) or candidates[-1]
    kinds = Counter(rows.columns[name].kind for name in usable)
    why = f"{len(usable)} columns ({', '.join(f'{n} {kind}' for kind, n in kinds.most_common())}), {target} to predict"
    yield Reading("table", 0.7, why, {"target": target})
