"""The set `instructions`: short requests about a word, each with the one right answer."""

from collections.abc import Callable, Iterator, Sequence

import numpy as np

INSTRUCTIONS = "instructions"
VOWELS, LETTERS = "aeiou", "abcdefghijklmnopqrstuvwxyz"
CONSONANTS = "bcdfghjklmnprstvwz"
N_WORDS, N_VAL_WORDS = 2000, 100
TASKS: dict[str, Callable[[str, str, str], str]] = {
    "Reverse the word {word}.": lambda word, old, new: word[::-1],
    "Write {word} in capitals.": lambda word, old, new: word.upper(),
    "How many letters has {word}?": lambda word, old, new: str(len(word)),
    "Repeat {word} twice.": lambda word, old, new: f"{word} {word}",
    "What is the first letter of {word}?": lambda word, old, new: word[0],
    "What is the last letter of {word}?": lambda word, old, new: word[-1],
    "Sort the letters of {word}.": lambda word, old, new: "".join(sorted(word)),
    "Replace {old} by {new} in {word}.": lambda word, old, new: word.replace(old, new),
    "Remove the vowels from {word}.": lambda word, old, new: "".join(c for c in word if c not in VOWELS) or "nothing",
    "Double each letter of {word}.": lambda word, old, new: "".join(2 * c for c in word),
    "Spell {word}.": lambda word, old, new: "-".join(word),
    "Swap the first and the last letter of {word}.": lambda word, old, new: word[-1] + word[1:-1] + word[0],
}
"""Request about a word, and a letter of it that another one may replace -> what makes the answer."""


def generate_instructions(words: Sequence[str], seed: int = 0) -> Iterator[tuple[str, str]]:
    """Yield every request about each word, with its answer. The letters that are replaced depend on the seed."""
    rng = np.random.Philox(key=seed)
    for word in words:
        for request, solve in TASKS.items():
            old, new = (letters[int(rng.random_raw() % len(letters))] for letters in (word, LETTERS))
            yield request.format(word=word, old=old, new=new), solve(word, old, new)


def generate_words(count: int, seed: int = 0) -> list[str]:
    """Return different words of 3 to 8 letters that no language has, in which consonants and vowels alternate."""
    rng, words = np.random.Philox(key=seed), dict[str, None]()
    while len(words) < count:
        first, size, *draws = rng.random_raw(10).tolist()
        kinds = [(CONSONANTS, VOWELS)[(first + i) % 2] for i in range(3 + size % 6)]
        words["".join(letters[draw % len(letters)] for letters, draw in zip(kinds, draws))] = None
    return list(words)


def load_instructions() -> dict[str, list[tuple[str, str]]]:
    """Return requests and answers of the splits "train" and "val", whose words differ; always the same ones."""
    words = generate_words(N_WORDS)
    parts = {"train": words[N_VAL_WORDS:], "val": words[:N_VAL_WORDS]}
    return {name: list(generate_instructions(part)) for name, part in parts.items()}
