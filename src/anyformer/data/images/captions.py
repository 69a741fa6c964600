"""Captions as rows of word numbers, all of one length: the words of a caption in their order, then blanks."""

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from ...errors import InputError, suggest
from ...parsing import check_range, parse_dataclass
from ..io.archives import unpack_archive
from ..io.checks import load_json

TABLE_NAMES = ("captions.csv", "captions.tsv", "captions.jsonl", "captions.json")  # in a folder of images
ARTICLES = ("a", "an", "the")  # are left out, of captions and of prompts
BLANK = 0  # the number that is no word
MAX_WORDS, MAX_VOCABULARY = 256, 100_000  # of a caption, and of all captions
MAX_FILE_BYTES = 16 << 20


@dataclass(frozen=True)
class CaptionVocabulary:
    """The words of captions."""

    words: tuple[str, ...]
    """The word at index i has the number i + 1."""
    length: int
    """Words of the longest caption."""
    examples: tuple[str, ...] = ()
    """Captions to show a model with."""

    def __post_init__(self) -> None:
        check_range(self, "length", at_least=1, at_most=MAX_WORDS)
        if len(self.words) > MAX_VOCABULARY:
            raise InputError(f"the captions have {len(self.words):,} different words: the limit is {MAX_VOCABULARY:,}")

    @property
    def size(self) -> int:
        """How many numbers there are, the blank among them."""
        return len(self.words) + 1

    @cached_property
    def numbers(self) -> dict[str, int]:
        return {word: number for number, word in enumerate(self.words, 1)}

    def encode(self, caption: str) -> np.ndarray:
        """Return the numbers of a caption's words, then blanks: (length,) int64. Raises InputError."""
        numbers, words = self.numbers, split_words(caption)
        if unknown := [word for word in words if word not in numbers]:
            raise InputError(f"no caption of the training has the word '{unknown[0]}': {suggest(unknown[0], numbers)}")
        if len(words) > self.length:
            text = caption if len(caption) <= 60 else f"{caption[:60]}..."
            raise InputError(f"{text!r} has {len(words)} words, the longest caption of the training {self.length}")
        return np.array([numbers[word] for word in words] + [BLANK] * (self.length - len(words)), np.int64)

    def to_json(self) -> str:
        return json.dumps({"words": self.words, "length": self.length, "examples": self.examples}, ensure_ascii=False)


def split_words(caption: str) -> list[str]:
    """Return the words of a caption in lower case, without articles and punctuation."""
    words = re.findall(r"[^\s,.;:!?\"()]+", caption.lower())
    return [word for word in words if word not in ARTICLES]


def fit_vocabulary(captions: Iterable[str], examples: Iterable[str] = ()) -> CaptionVocabulary:
    """Return the words of all captions. Raises InputError for a caption that is too long, or if there are no words."""
    longest, words = 1, set[str]()
    for caption in captions:
        parts = split_words(caption)
        if len(parts) > MAX_WORDS:
            raise InputError(f"the caption {caption[:60]!r}... has {len(parts)} words: the limit is {MAX_WORDS}")
        longest = max(longest, len(parts))
        words.update(parts)
    if not words:
        raise InputError("the captions have no words: bring images with a caption each")
    return CaptionVocabulary(tuple(sorted(words)), longest, tuple(examples))


def load_vocabulary(text: str) -> CaptionVocabulary:
    """Load a words.json: its path, or its content. Raises InputError."""
    return parse_dataclass(CaptionVocabulary, load_json(text, "words", MAX_FILE_BYTES), "words")


def find_caption_table(data: str) -> str:
    """Return the path of the table of captions in a folder of images, or in an archive; anything else as it is."""
    folder = unpack_archive(Path(data).expanduser()) if data else Path()
    tables = [folder / name for name in TABLE_NAMES] if data else []
    return next((str(path) for path in tables if path.is_file()), data)
