"""Sums with and without shown working: a model that writes down each digit and what it carries, tested on longer sums.

Each digit has a letter for its place ("index hints", 2402.09371), and the letters of a short sum begin anywhere in the
alphabet, so that those of a long one are known. The working (a scratchpad, 2112.00114) goes from the last digit to the
first: what is added, the digit of the sum, what is carried.

    47+5=         plain, without working: 52
    a7b4+A5=      with letters: a7A5 0=2 1;b4 1=5 0;. and the answer, 52, read from the working
"""

import random
from collections.abc import Sequence
from string import ascii_lowercase

LETTERS = ascii_lowercase
END = "."


def write_sum(a: int, b: int, first: int) -> tuple[str, str]:
    """Return a sum with the letters from the number `first` on, and its working."""
    digits = [[int(digit) for digit in reversed(str(number))] for number in (a, b)]
    names = LETTERS[first:]
    question = "+".join(
        "".join(f"{name}{digit}" for name, digit in zip(names if i == 0 else names.upper(), row))
        for i, row in enumerate(digits)
    )
    working, carry = [], 0
    for i in range(max(map(len, digits))):
        parts = [f"{name}{row[i]}" for name, row in zip((names[i], names[i].upper()), digits) if i < len(row)]
        total = sum(row[i] for row in digits if i < len(row)) + carry
        working.append(f"{''.join(parts)} {carry}={total % 10} {total // 10};")
        carry = total // 10
    return f"{question}=", "".join(working) + END


def read_answer(working: str) -> str:
    """Return the sum that a working ends with; "" if it is none."""
    steps = [step.partition("=")[2].split(" ") for step in working.partition(END)[0].split(";")[:-1]]
    if not steps or any(len(step) != 2 or len(step[0]) != 1 for step in steps):
        return ""
    carry = steps[-1][1]
    return (carry if carry != "0" else "") + "".join(digit for digit, _ in reversed(steps))


def draw_sum(rng: random.Random, n_digits: int) -> tuple[int, int]:
    """Return two numbers of so many digits."""
    low = 10 ** (n_digits - 1) if n_digits > 1 else 0
    return rng.randrange(low, 10**n_digits), rng.randrange(low, 10**n_digits)


def write_example(rng: random.Random, n_digits: int, has_working: bool) -> tuple[str, str, str]:
    """Return a question, what the model should write, and the sum."""
    a, b = draw_sum(rng, n_digits)
    if not has_working:
        return f"{a}+{b}=", f"{a + b}{END}", str(a + b)
    question, working = write_sum(a, b, rng.randrange(len(LETTERS) - n_digits + 1))
    return question, working, str(a + b)


def write_examples(seed: int, n: int, lengths: Sequence[int], has_working: bool) -> list[tuple[str, str, str]]:
    """Return examples of sums whose numbers have these lengths in turn."""
    rng = random.Random(seed)
    return [write_example(rng, lengths[i % len(lengths)], has_working) for i in range(n)]
