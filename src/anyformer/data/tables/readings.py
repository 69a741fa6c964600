"""Readings of a table: what its columns can be data for, by rules from the most special to the most general."""

import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

from ..images.read import PIXEL_COLUMNS
from ..text.pairs import LANGUAGES
from ..text.tagged import TAG_NAMES, WORD_NAMES
from ..trajectories.read import find_columns, find_states, is_trajectory
from .columns import (
    LABEL_NAMES,
    NO_TARGETS,
    SOURCE_NAMES,
    SPLIT_NAMES,
    TABLE_TARGETS,
    TARGET_ENDINGS,
    TARGET_NAMES,
    TEXT_NAMES,
    TIME_NAMES,
    TRANSCRIPT_NAMES,
    Rows,
    is_whole,
    plain_name,
)
from .dates import find_format, parse_date

CHAT_INPUTS: dict[tuple[str, ...], tuple[str, ...]] = {
    ("messages",): (),
    ("conversations",): (),
    ("prompt", "completion"): (),
    ("instruction", "output"): ("input",),
    ("instruction", "response"): ("context",),
}  # fields of conversations -> fields that may be between them
CHAT_KEYS = tuple(CHAT_INPUTS)
PREFERENCE_KEYS = ("chosen", "rejected")
MAX_CLASSES = 20  # of a number with more values, it is a measurement
MIN_TEXT_WORDS = 8  # of a text whose class may be the point of a table of several columns
MIN_TURN_WORDS = 3  # in the mean of a list of sentences
MIN_PIXEL_SIDE = 8  # of images in columns
MIN_STEPS = 20  # of a series without times
MAX_WORDS_RATIO = 4  # of the mean lengths of two columns of texts that are taken for pairs


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
    "preferences": "pairs of answers, of which one was preferred",
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
        read_preferences,
        read_conversations,
        read_trajectories,
        read_tagged,
        read_media,
        read_pixels,
        read_molecules,
        read_pairs,
        read_labeled_text,
        read_series,
        read_documents,
        read_table,
    ):
        yield from rule(rows)


def read_preferences(rows: Rows) -> Iterator[Reading]:
    if rows.has_header and set(PREFERENCE_KEYS) <= {plain_name(name) for name in rows.columns}:
        yield Reading("preferences", 0.97, f"the fields {', '.join(PREFERENCE_KEYS)}")


def read_conversations(rows: Rows) -> Iterator[Reading]:
    names = {plain_name(name) for name in rows.columns}
    for keys in CHAT_KEYS:
        if set(keys) <= names and rows.has_header:
            columns = ",".join(name for name in rows.columns if plain_name(name) in {*keys, *CHAT_INPUTS[keys]})
            yield Reading("conversations", 0.95, f"the fields {', '.join(keys)}", {"text": columns})
            return
    for name, column in rows.columns.items():
        if holds_dialogues(column.values):
            yield Reading("documents", 0.9, f"lists of sentences in {name}", {"text": name})
            return


def holds_dialogues(values: list[Any]) -> bool:
    """Whether values are lists of sentences, such as the turns of a conversation."""
    turns = [turn for value in values if isinstance(value, list) for turn in value]
    if not turns or not all(isinstance(value, list) for value in values) or not all(isinstance(t, str) for t in turns):
        return False
    return sum(len(turn.split()) for turn in turns) >= MIN_TURN_WORDS * len(turns)


def read_trajectories(rows: Rows) -> Iterator[Reading]:
    if rows.has_header and is_trajectory(rows.columns):
        others = [name for role in ("actions", "rewards") for name in find_columns(rows.columns, role)[:1]]
        columns = [*find_states(rows.columns)[:1], *others]
        yield Reading("trajectories", 0.95, f"the columns {', '.join(columns)}")


def read_tagged(rows: Rows) -> Iterator[Reading]:
    words, tags = (next((name for name in names if name in rows.columns), None) for names in (WORD_NAMES, TAG_NAMES))
    if not words or not tags or words == tags:
        return
    both = [rows.columns[name].values for name in (words, tags)]
    if len(both[0]) == len(both[1]) and all(are_tags(*lists) for lists in zip(*both)):
        yield Reading("tagged text", 0.95, f"lists of words in {words} and their tags in {tags}")


def are_tags(words: Any, tags: Any) -> bool:
    return isinstance(words, list) and isinstance(tags, list) and len(words) == len(tags)


def read_media(rows: Rows) -> Iterator[Reading]:
    images, sounds = rows["image"], rows["sound"]
    if not images and not sounds:
        return
    file, label = (images + sounds)[0], rows.label(exclude=images + sounds) or rows.only_number(images + sounds)
    named, what = rows.pick(TRANSCRIPT_NAMES, rows["text"] + rows["category"]), "images" if images else "sounds"
    text = named or (rows["text"] or [None])[-1]
    has_more = has_features(rows, {file, label, text}, label) or bool(images and label and rows["text"])
    is_combined = len(images + sounds) > 1 or (has_more and not (sounds and named))
    if is_combined:
        target = rows.pick(TABLE_TARGETS, [name for name in rows.columns if name not in images + sounds]) or label
        names = ", ".join([*images, *sounds, *(name for name in rows.columns if name not in images + sounds)][:5])
        yield Reading("table", 0.9, f"rows that combine files and values: {names}", {"target": target or last(rows)})
    if sounds and text:
        why = f"sounds in {file}, their texts in {text}"
        yield Reading("transcribed sounds", 0.9 if named else 0.75, why, {"path": file, "text": text})
    if label:
        score = 0.5 if sounds and text else 0.7 if is_combined else 0.85
        why = f"{what} in {file}, {rows.columns[label].distinct} classes in {label}"
        yield Reading(f"labeled {what}", score, why, {"path": file, "label": label})
    elif images and rows["text"]:
        yield Reading("captioned images", 0.8, f"images in {file}, a text each in {rows['text'][0]}")


def repeats(rows: Rows, name: str, label: str | None) -> bool:
    """Whether a column says the same as that of the classes, such as their numbers."""
    pair = [rows.columns[column].texts for column in (name, label) if column]
    return len({len(set(texts)) for texts in (*pair, list(zip(*pair)))}) == 1 and len(pair) == 2 and pair[0] != []


def has_features(rows: Rows, interpreted: set[str | None], label: str | None = None) -> bool:
    """Whether there are numbers that are measurements, besides the columns that are interpreted."""
    names = [name for name in rows["number"] if name not in interpreted and plain_name(name) not in SPLIT_NAMES]
    names = [name for name in names if not is_identifier(rows, name) and not repeats(rows, name, label)]
    numbers = [rows.columns[name] for name in names if not plain_name(name).endswith(("label", "class"))]
    return len(numbers) > 1 or any(column.distinct > MAX_CLASSES for column in numbers)


def last(rows: Rows) -> str | None:
    """The last column that can be predicted."""
    return next((name for name in reversed(rows.columns) if rows.columns[name].kind in ("category", "number")), None)


def read_pixels(rows: Rows) -> Iterator[Reading]:
    """A class in one column, and in each other one a pixel of a square gray image, as in MNIST's csv files."""
    label = rows.label()
    pixels = [column for name, column in rows.columns.items() if name != label]
    side = math.isqrt(len(pixels))
    is_square = side >= MIN_PIXEL_SIDE and side * side == len(pixels)
    if label and is_square and all(column.share(is_pixel) == 1 for column in pixels):
        why = f"{side} x {side} pixels in columns, classes in {label}"
        yield Reading("labeled images", 0.95, why, {"path": PIXEL_COLUMNS, "label": label})


def is_pixel(text: str) -> bool:
    return text.isdecimal() and len(text) < 4 and int(text) < 256


def read_molecules(rows: Rows) -> Iterator[Reading]:
    if not rows["smiles"]:
        return
    others = [name for name in rows.columns if name not in rows["smiles"] and rows.columns[name].kind != "id"]
    targets = [name for name in others if plain_name(name) not in SPLIT_NAMES]
    if targets:
        target = pick_target(rows, targets)
        yield Reading("table", 0.8, f"molecules in {rows['smiles'][0]}", {"target": target})
    options = {"text": rows["smiles"][0]}
    yield Reading("molecules", 0.6 if targets else 0.9, f"SMILES in {rows['smiles'][0]}", options)


def read_pairs(rows: Rows) -> Iterator[Reading]:
    nested = [name for name, column in rows.columns.items() if column.kind == "list" and is_translation(column.values)]
    if nested:
        languages = ", ".join(rows.columns[nested[0]].values[0])
        yield Reading("pairs", 0.95, f"the texts of {nested[0]}: {languages}")
        return
    if len(texts := rows["text"]) < 2 or rows["image"] or rows["sound"]:
        return
    source, target = rows.pick(SOURCE_NAMES, texts), rows.pick(TARGET_NAMES, texts)
    languages = [name for name in texts if plain_name(name).split("_")[0] in LANGUAGES]
    if len(languages) >= 2:
        source, target = languages[:2]
    values = [name for name in rows["number"] + rows["category"] if not is_identifier(rows, name)]
    others, has_ids = [name for name in values if name not in texts], bool(rows["number"])
    if source and target and source != target:
        score = 0.95 if not others else 0.9
    elif len(texts) == 2 and not others and is_similar(rows, *texts):
        (source, target), score = texts, 0.9 if has_ids else 0.8
    else:
        return
    yield Reading("pairs", score, f"two columns of texts, {source} and {target}", {"source": source, "target": target})


def is_identifier(rows: Rows, name: str) -> bool:
    """Whether numbers only name things: whole ones in a column that is called so, or all different ones without a
    name."""
    column = rows.columns[name]
    is_named = bool({"id", "index", "file"} & set(plain_name(name).split("_")))
    is_distinct = not rows.has_header and column.distinct == len(column.texts)
    return (is_named or is_distinct) and column.share(is_whole) == 1


def is_translation(values: list[Any]) -> bool:
    """Whether values are objects of two texts."""
    return all(isinstance(v, dict) and len(v) == 2 and all(isinstance(t, str) for t in v.values()) for v in values)


def is_similar(rows: Rows, first: str, second: str) -> bool:
    """Whether the texts of two columns are of similar length: a title and its text are not."""
    words = sorted(max(rows.columns[name].words, 1.0) for name in (first, second))
    return words[1] <= MAX_WORDS_RATIO * words[0]


def read_labeled_text(rows: Rows) -> Iterator[Reading]:
    texts, label = rows["text"], rows.label()
    if not texts or not label or rows["image"] or rows["sound"]:
        return
    text = select_text(rows)
    others = [name for name in rows["number"] if name != label]
    is_about_text = is_named_text(rows, text, label) and not any(is_measurement(rows, name) for name in others)
    score = 0.85 if (len(others) <= 1 or is_about_text) and len(rows["category"]) <= 2 else 0.5
    why = f"texts in {text}, {rows.columns[label].distinct} classes in {label}"
    yield Reading("labeled text", score, why, {"text": text, "label": label})


def is_named_text(rows: Rows, text: str, label: str) -> bool:
    """Whether two columns are called as texts and their classes are, and the texts are long ones."""
    named = plain_name(text) in TEXT_NAMES and plain_name(label) in LABEL_NAMES
    return named and rows.columns[text].words >= MIN_TEXT_WORDS


def is_measurement(rows: Rows, name: str) -> bool:
    """Whether numbers are more than a few whole ones, such as counts of votes."""
    return rows.columns[name].distinct > MAX_CLASSES or rows.columns[name].share(is_whole) < 1


def read_series(rows: Rows) -> Iterator[Reading]:
    """A column of times in order (or one for each series), and numbers."""
    times, values = rows["date"] or rows["year"], rows["number"]
    if not times and len(values) == 1 and is_in_order(rows, values[0]) and rows.count >= MIN_STEPS:
        yield Reading("series", 0.85, f"a number in each row, in {values[0]}", {"target": values[0], "targets": values})
    parts = [name for name in rows.columns if plain_name(name) in TIME_NAMES]
    values = [name for name in values if name not in parts] or values
    if not times or not values:
        return
    time = rows.pick(TIME_NAMES, times) or times[0]
    steps = [a <= b for a, b in pairwise(read_moments(rows.columns[time].texts))] or [True]
    is_ordered = sum(steps) >= 0.9 * len(steps) or sum(steps) <= 0.1 * len(steps)
    is_first = {time, *parts} & {*list(rows.columns)[:2]}
    others = [name for name in rows["category"] + rows["text"] if plain_name(name) not in SPLIT_NAMES]
    is_regular = rows.columns[time].distinct > 0.5 * rows.count or len(others) == 1 or len(parts) > 1
    is_panel = len(others) == 1 and is_distinct(rows, time, others[0])
    if not (is_ordered or is_panel) or not is_regular:
        return
    why = f"numbers over time: {time}, then {', '.join(values[:4])}"
    score = 0.9 if is_panel or (is_first and len(others) <= 1) else 0.6
    target = values[-1] if len(values) < 8 else values[0]
    yield Reading("series", score, why, {"time": time, "target": target, "targets": values})


def is_distinct(rows: Rows, time: str, key: str) -> bool:
    """Whether each of several series, named by a key, has several times, and none of them twice."""
    times, keys = rows.columns[time].texts, rows.columns[key].texts
    is_repeated = 1 < rows.columns[key].distinct <= rows.count / 2 and rows.columns[time].distinct <= rows.count / 2
    return is_repeated and len({*zip(keys, times)}) == len(times) == len(keys)


def is_in_order(rows: Rows, value: str) -> bool:
    """Whether the columns beside the values only number the rows, and do not name what they are about."""
    others = [column for name, column in rows.columns.items() if name != value]
    return all(c.kind == "id" and (c.share(is_whole) == 1 or plain_name(c.name) in TIME_NAMES) for c in others)


def read_moments(texts: list[str]) -> list[float]:
    """Return the times that texts hold, in any format; none where it is not known."""
    pattern = find_format(texts, may_lack_days=True)
    moments = [parse_date(text, pattern) for text in texts] if pattern is not None else []
    return [moment for moment in moments if moment is not None]


def read_documents(rows: Rows) -> Iterator[Reading]:
    texts = rows["text"]
    if not texts:
        return
    text = select_text(rows)
    values = [*rows["number"], *rows["category"]]
    yield Reading("documents", 0.3 if values else 0.6, f"a text in each row, in {text}", {"text": text})


def select_text(rows: Rows) -> str:
    """The column of the longest texts, or one that is named as texts are and not much shorter."""
    words = {name: rows.columns[name].words for name in rows["text"]}
    longest = max(words, key=words.__getitem__)
    named = rows.pick(TEXT_NAMES, rows["text"])
    return named if named and MAX_WORDS_RATIO * words[named] >= words[longest] else longest


def read_table(rows: Rows) -> Iterator[Reading]:
    usable = [name for name in rows.columns if rows.columns[name].kind not in ("empty", "constant", "id")]
    if len(usable) < 2 or rows.count < 5:
        return
    candidates = [name for name in usable if rows.columns[name].kind in ("category", "number")]
    if not candidates:
        return
    target = pick_target(rows, candidates)
    kinds = Counter(rows.columns[name].kind for name in usable)
    why = f"{len(usable)} columns ({', '.join(f'{n} {kind}' for kind, n in kinds.most_common())})"
    yield Reading("table", 0.5 if rows["image"] or rows["sound"] else 0.7, why, {"target": target})


def pick_target(rows: Rows, candidates: list[str]) -> str:
    """The column to predict: one with the name of a target, or whose name ends so; else the last one that is no code,
    place or time by its name."""
    words = {name: plain_name(name).split("_") for name in candidates}
    ending = (name for name in reversed(candidates) if words[name][-1] in TARGET_ENDINGS)
    is_full = {name: 2 * len(rows.columns[name].values) >= rows.count for name in candidates}
    others = (n for n in reversed(candidates) if is_full[n] and not {words[n][0], words[n][-1]} & NO_TARGETS)
    return rows.pick(TABLE_TARGETS, candidates) or next(ending, None) or next(others, candidates[-1])
