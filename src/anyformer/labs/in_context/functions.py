"""Functions on words, and texts of examples of them: "bead>abde\nfig>fgi\n..."

A function first rearranges the letters of a word (SHAPES) and then replaces each of them by its image: none, another
letter, or nothing. Which letters change, and how, is drawn anew for every text (CHANGES). Some images and some pairs of
a shape and a change are held out: no text of the training uses them.
"""

import random
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ...data.text.ngrams import count_ngrams

ALPHABET = "abcdefghij"
SEPARATOR, END = ">", "\n"
SYMBOLS = ALPHABET + SEPARATOR + END
MIN_LETTERS, MAX_LETTERS = 4, 6  # of a word
NGRAM_ORDER = 3  # letters before the one that is counted

SHAPES: dict[str, Callable[[str], str]] = {
    "copy": lambda word: word,
    "reverse": lambda word: word[::-1],
    "sort": lambda word: "".join(sorted(word)),
    "double": lambda word: "".join(2 * letter for letter in word),
    "rotate": lambda word: word[1:] + word[:1],
    "drop": lambda word: word[1:],
}
CHANGES = ("none", "cipher", "shift", "remove", "replace")
WEIGHTS = (2, 4, 1, 1, 1)  # of the changes, in the training
HELD_OUT_PAIRS = {
    ("reverse", "cipher"), ("drop", "cipher"), ("sort", "remove"), ("double", "replace"), ("rotate", "shift"),
}  # fmt: skip
HELD_OUT_SHIFTS = (3, 7)
HELD_OUT_SYMBOLS = "ch"  # that are removed


@dataclass(frozen=True)
class Function:
    """word -> word"""

    shape: str
    change: str
    images: tuple[str, ...]
    """Of each letter of the alphabet."""

    def __call__(self, word: str) -> str:
        return SHAPES[self.shape](word).translate(str.maketrans(dict(zip(ALPHABET, self.images))))


class Example(NamedTuple):
    word: str
    answer: str


class Prompt(NamedTuple):
    """Examples of a function, and a word whose letters occur in them, with its answer."""

    examples: list[Example]
    question: Example


def draw_images(rng: random.Random, change: str) -> tuple[str, ...]:
    letters = list(ALPHABET)
    if change == "cipher":
        rng.shuffle(letters)
    elif change == "shift":
        first = rng.randrange(1, len(letters))
        letters = letters[first:] + letters[:first]
    elif change == "remove":
        letters[rng.randrange(len(letters))] = ""
    elif change == "replace":
        before, after = rng.sample(range(len(letters)), 2)
        letters[before] = ALPHABET[after]
    return tuple(letters)


def is_held_out(change: str, images: Sequence[str]) -> bool:
    """Whether no text of the training may use these images: two shifts, the removal of two letters, a tenth of the
    ciphers and of the replacements."""
    if change == "shift":
        return ALPHABET.index(images[0]) in HELD_OUT_SHIFTS
    if change == "remove":
        return ALPHABET[images.index("")] in HELD_OUT_SYMBOLS
    return change != "none" and zlib.crc32(",".join(images).encode()) % 10 == 0


def draw_function(rng: random.Random, shape: str, change: str, held_out: bool = False) -> Function:
    """Draw a function whose images are held out of the training, or are not."""
    while is_held_out(change, images := draw_images(rng, change)) != held_out:
        pass
    return Function(shape, change, images)


def draw_training_function(rng: random.Random) -> Function:
    while True:
        shape, change = rng.choice(list(SHAPES)), rng.choices(CHANGES, WEIGHTS)[0]
        if (shape, change) not in HELD_OUT_PAIRS:
            return draw_function(rng, shape, change)


def draw_word(rng: random.Random, letters: str = ALPHABET, low: int = MIN_LETTERS, high: int = MAX_LETTERS) -> str:
    return "".join(rng.choices(letters, k=rng.randint(low, high)))


def draw_prompt(rng: random.Random, function: Function, n_examples: int) -> Prompt:
    words = [draw_word(rng) for _ in range(n_examples)]
    seen = "".join(sorted(set("".join(words)))) or ALPHABET
    question = draw_word(rng, seen)
    examples = [Example(word, function(word)) for word in words]
    return Prompt(examples, Example(question, function(question)))


# --- texts ---


def write_text(examples: Sequence[Example]) -> str:
    return END + "".join(f"{word}{SEPARATOR}{answer}{END}" for word, answer in examples)


def encode_text(text: str) -> tuple[np.ndarray, np.ndarray]:
    """Return the ids, and whether each is part of an answer, with its end: (T,) each."""
    table = np.zeros(128, np.int64)
    table[[ord(symbol) for symbol in SYMBOLS]] = np.arange(len(SYMBOLS))
    ids = table[np.frombuffer(text.encode("ascii"), np.uint8)]
    is_separator, is_end = ids == SYMBOLS.index(SEPARATOR), ids == SYMBOLS.index(END)
    is_answer = np.cumsum(is_separator) - is_separator == np.cumsum(is_end) - is_end
    is_answer[0] = False  # the end that every text begins with
    return ids, is_answer


def encode_batch(texts: Sequence[str]) -> tuple[Tensor, Tensor]:
    """Texts as rows, padded with the end of a line: ids and whether they are part of an answer, (B, T) each."""
    rows = [encode_text(text) for text in texts]
    length = max(len(ids) for ids, _ in rows)
    all_ids = torch.full((len(rows), length), SYMBOLS.index(END))
    is_answer = torch.zeros(len(rows), length, dtype=torch.bool)
    for row, (ids, mask) in enumerate(rows):
        all_ids[row, : len(ids)], is_answer[row, : len(ids)] = torch.from_numpy(ids), torch.from_numpy(mask)
    return all_ids, is_answer


# --- what needs no training: whether the question is answered right ---


def answer_by_counts(prompt: Prompt) -> bool:
    """Whether n-gram counts of the examples and the question, read letter by letter, write the answer."""
    if not prompt.examples:
        return False
    ids, is_answer = encode_text(write_text([*prompt.examples, prompt.question]))
    n_answer = len(prompt.question.answer) + len(END)
    assert is_answer[-n_answer:].all()
    before, answer = ids[:-n_answer], ids[-n_answer:]
    counts = count_ngrams(before, NGRAM_ORDER, len(SYMBOLS))
    return bool((counts.probabilities(ids[None, :-1])[0, -n_answer:].argmax(-1) == answer).all())


def answer_by_neighbor(prompt: Prompt) -> bool:
    """Whether the answer is that of the example whose word has the most letters in common, place by place."""
    word, answer = prompt.question
    overlaps = [sum(a == b for a, b in zip(example.word, word)) for example in prompt.examples]
    return bool(overlaps) and prompt.examples[overlaps.index(max(overlaps))].answer == answer


def answer_by_copying(prompt: Prompt) -> bool:
    return prompt.question.word == prompt.question.answer
