"""Files of questions, and the prompts that are made of them: examples with their answers, then a question without.

choices.jsonl      {"question": "The sky is", "choices": ["blue", "green"], "answer": 0}    or "answer": "blue"
questions.jsonl    {"question": "2 + 3 =", "answer": "5"}    or several that are right: ["5", "five"]
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..data.io.checks import parse_json
from ..data.io.files import read_lines
from ..errors import InputError

TEMPLATE = "Question: {question}\nAnswer: {answer}\n\n"
MAX_CHOICES = 1000  # of a question


@dataclass(frozen=True)
class Question:
    """A question and what is right."""

    text: str
    answers: list[str]
    """All that are right; the first is shown in examples."""
    choices: list[str]
    """What can be chosen; empty: the answer is written freely."""


@dataclass(frozen=True)
class Template:
    """How a question and its answer are written. Raises InputError unless the text names both, the question first."""

    text: str = TEMPLATE

    def __post_init__(self) -> None:
        counts = [self.text.count(name) for name in ("{question}", "{answer}")]
        if counts != [1, 1] or self.text.index("{question}") > self.text.index("{answer}"):
            raise InputError(
                f"the template is {self.text[:80]!r}; it must hold {{question}} and then {{answer}}, once each"
            )

    def begin(self, question: str) -> str:
        """Return a question up to its answer."""
        return self.text.partition("{answer}")[0].replace("{question}", question)

    @property
    def end(self) -> str:
        """What follows an answer."""
        return self.text.partition("{answer}")[2]

    def write(self, question: Question) -> str:
        """Return a question with its answer."""
        return self.begin(question.text) + question.answers[0] + self.end


def read_questions(path: Path, has_choices: bool) -> list[Question]:
    """Read a jsonl file. Raises InputError for the first line that is no question with an answer."""
    questions = []
    for place, line in read_lines(path):
        if line.strip():
            row = parse_json(line, place)
            questions.append(parse_choices(row, place) if has_choices else parse_question(row, place))
    if not questions:
        raise InputError(f"{path} holds no questions: expected a JSON object in each line")
    return questions


def parse_question(row: dict[str, Any], place: str) -> Question:
    answer = row.get("answer")
    answers: list[Any] = answer if isinstance(answer, list) else [answer]
    if not answers or not all(isinstance(text, str) and text.strip() for text in answers):
        raise InputError(f'{place} has no "answer": expected a text, or a list of those that are right')
    return Question(parse_text(row, place), answers, [])


def parse_choices(row: dict[str, Any], place: str) -> Question:
    choices, answer = row.get("choices"), row.get("answer")
    if not isinstance(choices, list) or not all(isinstance(text, str) and text for text in choices):
        raise InputError(f'{place} has no "choices": expected a list of texts')
    if not 2 <= len(choices) <= MAX_CHOICES or len(set(choices)) < len(choices):
        raise InputError(f'{place}: "choices" must be 2 to {MAX_CHOICES:,} different texts, not {len(choices)}')
    is_index = isinstance(answer, int) and not isinstance(answer, bool)
    if is_index and 0 <= answer < len(choices):
        answer = choices[answer]
    if not isinstance(answer, str) or answer not in choices:
        raise InputError(f'{place} has no "answer": expected one of its choices, or 0 to {len(choices) - 1}')
    return Question(parse_text(row, place), [answer], choices)


def parse_text(row: dict[str, Any], place: str) -> str:
    if not isinstance(row.get("question"), str) or not row["question"]:
        raise InputError(f'{place} has no "question": expected a text')
    return row["question"]


@dataclass(frozen=True)
class Prompts:
    """The prompts of questions, with examples drawn from others.

    Args:
        pool: Where examples come from; None: the other questions.
    """

    questions: Sequence[Question]
    template: Template
    pool: Sequence[Question] | None
    seed: int

    def check_shots(self, shots: int) -> None:
        """Raise InputError if there are not as many examples."""
        n = len(self.questions) - 1 if self.pool is None else len(self.pool)
        if shots > n:
            raise InputError(f"{shots} examples are asked for, and there are {n}")

    def write(self, index: int, shots: int) -> str:
        """Return the prompt of a question after so many examples. With more examples, the first stay the same."""
        pool = self.questions if self.pool is None else self.pool
        order = np.random.default_rng([self.seed, index]).permutation(len(pool)).tolist() if shots else []
        examples = [pool[i] for i in order if self.pool is not None or i != index][:shots]
        text = "".join(map(self.template.write, reversed(examples)))
        return text + self.template.begin(self.questions[index].text)
