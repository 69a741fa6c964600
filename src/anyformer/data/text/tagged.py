"""Read sentences whose words have a tag each.

    train.conll     a word and its tag on a line, whatever stands between them; an empty line ends a sentence
    train.conllu    Universal Dependencies: the word is the second column, its part of speech the fourth
    train.jsonl     {"tokens": ["Ada", "sleeps"], "tags": ["B-PER", "O"]}, a sentence a line
                    also .json and .parquet
    folder          train.*, and dev.* or test.* for validation; also eng.train, en-ud-dev.conllu
    errands         a named set, generated

Files may be compressed. If there is no validation split, a tenth of the sentences is separated by their hash.
"""

import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ...errors import InputError, suggest
from ..io.archives import unpack_archive
from ..io.files import is_documentation, read_lines, suffix
from ..io.manifest import read_rows
from ..sampling import select_split

ERRANDS = "errands"
NAMED_EXTENSIONS = (".conll", ".conllu", ".iob", ".iob2", ".bio")
VALIDATION_NAMES = ("dev", "val", "valid", "validation", "test", "testa")
CONLL_EXTENSIONS = (*NAMED_EXTENSIONS, ".txt", ".tsv", ".train", *(f".{name}" for name in VALIDATION_NAMES), ".testb")
OBJECT_EXTENSIONS = (".jsonl", ".ndjson", ".json", ".parquet")
SAMPLE_LINES, MIN_TAGGED_WORDS = 2000, 10
MAX_TAG_SHARE = 0.3  # of the lines: so many different tags at most
WORD_NAMES, TAG_NAMES = ("tokens", "words"), ("tags", "ner_tags", "pos_tags", "labels", "upos")
EXPECTED = "a word and its tag on each line (.conll), .conllu, .jsonl with tokens and tags, or a folder with train.*"

Sentence = tuple[tuple[str, ...], tuple[str, ...], str]  # words, their tags, place


@dataclass(frozen=True)
class TaggedTexts:
    """Sentences of the splits "train" and "val", the names of all tags, and a hash of the content."""

    splits: dict[str, list[Sentence]]
    names: list[str]
    sha256: str

    def split(self, name: str) -> list[Sentence]:
        every = [sentence for sentences in self.splits.values() for sentence in sentences]
        return select_split(name, {**self.splits, "all": every})


def read_tagged(data: str, names: list[str] | None = None) -> TaggedTexts:
    """Read the sentences of a path or of a named set. Raises InputError with the place.

    Args:
        names: the tags, if they are fixed; others are refused.
    """
    splits = {name: list(sentences) for name, sentences in _find_splits(data).items()}
    if "val" not in splits:
        splits = _separate_validation(splits["train"])
    if empty := [name for name, sentences in splits.items() if not sentences]:
        raise InputError(f"data '{data}' has no sentences for {empty[0]}: bring more of them")
    every = [sentence for sentences in splits.values() for sentence in sentences]
    own = sorted({tag for _, tags, _ in every for tag in tags})
    if len(own) < 2 and names is None:
        raise InputError(f"data '{data}' has one tag only, {own}: there is nothing to tell apart")
    for _, tags, where in every if names is not None else ():
        if unknown := set(tags) - set(names or ()):
            raise InputError(
                f"{where}: the tag '{min(unknown)}' was not seen in training: {suggest(min(unknown), own)}"
            )
    content = [[name, [sentence[:2] for sentence in sentences]] for name, sentences in splits.items()]
    digest = hashlib.sha256(json.dumps(content).encode()).hexdigest()
    return TaggedTexts(splits, own if names is None else names, digest)


def _find_splits(data: str) -> dict[str, Iterable[Sentence]]:
    path = unpack_archive(Path(data).expanduser())
    if data and path.is_dir():
        files = find_split_files(sorted(path.iterdir()))
        val = next((files[name] for name in VALIDATION_NAMES if name in files), None)
        if "train" not in files:
            raise InputError(f"data '{data}' has no file train.*: expected {EXPECTED}")
        return {"train": _read_file(files["train"])} | ({} if val is None else {"val": _read_file(val)})
    if data and path.is_file():
        return {"train": _read_file(path)}
    if data == ERRANDS:
        return {"train": _generate_errands()}
    raise InputError(f"data '{data}': no such file, folder or set (looked in {Path.cwd()}): expected {EXPECTED}")


def find_split_files(paths: Iterable[Path]) -> dict[str, Path]:
    """Return the files whose names have train, dev, ... as one of their parts: eng.train, en-ud-dev.conllu."""
    files: dict[str, Path] = {}
    for path in paths:
        parts = re.split(r"[._-]", path.name.lower())
        name = next((part for part in parts if part in ("train", *VALIDATION_NAMES)), "")
        is_data = suffix(path) in (*CONLL_EXTENSIONS, *OBJECT_EXTENSIONS) and path.is_file()
        if name and is_data and not is_documentation(path):
            files.setdefault(name, path)
    return files


def is_tagged(text: str) -> bool:
    """Whether the first lines of a text are words with a tag each: as many columns in every line, few different ones in
    the last, and an empty line after each sentence."""
    lines = text.strip().split("\n")[:SAMPLE_LINES]
    rows = [line.split() for line in lines if line.strip() and not line.startswith(("# ", "-DOCSTART-"))]
    has_ends = not all(map(str.strip, lines))
    if len(rows) < MIN_TAGGED_WORDS or len({len(row) for row in rows}) != 1 or len(rows[0]) < 2 or not has_ends:
        return False
    words, tags = ({row[place] for row in rows} for place in (0, -1))
    are_names = [bool(re.match(r"[^\W\d]", tag)) for tag in tags]
    return (
        2 <= len(tags) < len(words)
        and len(tags) <= MAX_TAG_SHARE * len(rows)
        and 2 * sum(are_names) >= len(tags)
        and 2 * sum(any(map(str.isalpha, word)) for word in words) > len(words)
    )


def _separate_validation(sentences: list[Sentence]) -> dict[str, list[Sentence]]:
    """Select a tenth by the hash of the words, so that no sentence is in both splits."""
    unique = {sentence[0] for sentence in sentences}
    ranked = sorted(unique, key=lambda words: hashlib.sha256("\0".join(words).encode()).digest())
    selected = set(ranked[: max(1, len(ranked) // 10)])
    return {name: [s for s in sentences if (s[0] in selected) == is_val] for name, is_val in (("train", 0), ("val", 1))}


def _read_file(path: Path) -> Iterator[Sentence]:
    extension = suffix(path)
    if extension not in (*CONLL_EXTENSIONS, *OBJECT_EXTENSIONS):
        raise InputError(f"data '{path}': cannot be read as words with tags: expected {EXPECTED}")
    return _read_objects(path) if extension in OBJECT_EXTENSIONS else _read_columns(path, extension == ".conllu")


def _read_objects(path: Path) -> Iterator[Sentence]:
    hint = ': expected {"tokens": ["Ada", "sleeps"], "tags": ["B-PER", "O"]}'
    for where, row in read_rows(path):
        words, tags = (next((row[name] for name in names if name in row), None) for names in (WORD_NAMES, TAG_NAMES))
        if not isinstance(words, list) or not isinstance(tags, list) or len(words) != len(tags):
            raise InputError(f"{where}: tokens and tags must be lists of the same length{hint}")
        if not all(isinstance(word, str) and word.strip() for word in words):
            raise InputError(f"{where}: a token is no word{hint}")
        if words:
            yield tuple(words), tuple(map(str, tags)), where


def _read_columns(path: Path, is_conllu: bool) -> Iterator[Sentence]:
    """Read lines of columns; in CoNLL-U the columns are separated by tabs, and words that others are parts of have a
    number such as 3-4."""
    words, tags, place = [], [], ""
    for where, line in read_lines(path):
        cells = line.split("\t") if is_conllu else line.split()
        if not line.strip():
            if words:
                yield tuple(words), tuple(tags), place
            words, tags = [], []
        elif cells[0] == "-DOCSTART-" or (is_conllu and (line.startswith("#") or not cells[0].isdigit())):
            continue
        elif len(cells) < (4 if is_conllu else 2):
            raise InputError(f"{where}: {line.strip()[:40]!r} has no tag: expected {EXPECTED}")
        else:
            place = place if words else where
            words.append(cells[1] if is_conllu else cells[0])
            tags.append(cells[3] if is_conllu else cells[-1])
    if words:
        yield tuple(words), tuple(tags), place


# --- the generated set ---

TEMPLATES = """book a table for NUMBER in PLACE on DAY
remind PERSON to call PERSON on DAY
send the report to PERSON in PLACE before DAY
what is the weather in PLACE on DAY
fly from PLACE to PLACE with PERSON
ask PERSON whether NUMBER tickets to PLACE are left
play something by PERSON
how far is PLACE from PLACE
wake PERSON and me on DAY
buy NUMBER presents for PERSON""".splitlines()
SYLLABLES = ["ka", "lo", "mi", "ren", "sa", "tor", "ul", "vi", "wen", "zar", "bel", "dor", "fen", "gal", "hil"]
DAYS = ["monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday"]
NUMBERS = ["two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"]
N_ERRANDS = 4000


def _generate_errands() -> Iterator[Sentence]:
    """Generate errands whose persons and places have names of the same syllables: their surroundings tell them apart.
    Always the same ones."""
    rng = np.random.Philox(key=0)

    def choose(options: Sequence[str]) -> str:
        return options[int(rng.random_raw() % len(options))]

    def name() -> list[str]:
        n_words = 1 + int(rng.random_raw() % 2)
        return ["".join(choose(SYLLABLES) for _ in range(2)).capitalize() for _ in range(n_words)]

    for i in range(N_ERRANDS):
        words, tags = [], []
        for part in choose(TEMPLATES).split():
            fill = {"NUMBER": [choose(NUMBERS)], "DAY": [choose(DAYS)]}.get(part) or (name() if part.isupper() else [])
            words += fill or [part]
            tags += [f"{'I' if k else 'B'}-{part}" for k in range(len(fill))] or ["O"]
        yield tuple(words), tuple(tags), f"errand {i + 1}"
