"""Questions with examples before them (few-shot, 2005.14165): accuracy over the number of examples.

Of several choices, the model takes the one that is likeliest behind the prompt; normalized, the one that is likeliest
for each of its characters, so that a short choice has no advantage. Without choices it writes an answer, greedily.
"""

import re
import string
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ..errors import InputError
from ..events import report_progress
from ..inference.likelihood import encode_pair, score_pairs
from ..parsing import check_range
from ..recipe import SupportsCompletion
from ..recipe_loading import recipes_with
from ..trained_model import Model
from .questions import TEMPLATE, Prompts, Question, Template, read_questions

N_RESAMPLES = 10_000  # of the bootstrap
BATCH_ANSWERS = 32  # written at once


@dataclass(frozen=True, kw_only=True)
class FewShotOptions:
    """How questions are asked. Raises InputError on values that make no sense."""

    shots: tuple[int, ...] = (0,)
    """Numbers of examples before a question."""
    examples: Path | None = None
    """A file that examples are drawn from; None: the other questions."""
    template: str = TEMPLATE
    """How a question and its answer are written."""
    limit: int | None = None
    """So many questions of the file, drawn at random; None: all."""
    tokens: int = 64
    """The most tokens of a written answer."""
    seed: int = 0
    """Of the examples, and of the questions that `limit` takes."""

    def __post_init__(self) -> None:
        if not self.shots or not all(0 <= shots <= 10_000 for shots in self.shots):
            raise InputError(f"shots are {list(self.shots)}; they must be from 0 to 10,000")
        check_range(self, "limit", at_least=1, at_most=10**9)
        check_range(self, "tokens", at_least=1, at_most=100_000)
        check_range(self, "seed", at_least=0, at_most=1 << 40)


class Answer(NamedTuple):
    """What a model chose or wrote, and whether it is right: as it is, and normalized."""

    answer: str
    is_right: bool
    is_right_normalized: bool
    details: dict[str, Any]


def find_decoder(model: Model) -> Any:
    """Return the `Decoder` of a model, with its tokenizer. Raises InputError if the model continues no texts."""
    if not isinstance(model.recipe, SupportsCompletion):
        names = recipes_with(SupportsCompletion)
        raise InputError(f"{model.path} is a run of '{model.name}', not of {names}: it continues no texts")
    return model.recipe.decoder(model.module)


def ask_questions(model: Model, file: Path, has_choices: bool, options: FewShotOptions | None = None) -> dict[str, Any]:
    """Ask a model the questions of a file.

    Returns {"questions", "chance", "curve": [{"shots", "accuracy", "low", "high", "normalized_accuracy", ...}, ...],
    "items": [{"shots", "question", "answer", "right", ...}, ...]} with 95 % bootstrap intervals. Raises InputError.
    """
    decoder, options = find_decoder(model), options or FewShotOptions()
    questions = read_questions(file, has_choices)
    if options.limit is not None and options.limit < len(questions):
        kept = np.random.default_rng(options.seed).choice(len(questions), options.limit, replace=False)
        questions = [questions[i] for i in sorted(kept.tolist())]
    pool = None if options.examples is None else read_questions(options.examples, has_choices)
    prompts = Prompts(questions, Template(options.template), pool, options.seed)
    prompts.check_shots(max(options.shots))
    curve: list[dict[str, Any]] = []
    items: list[dict[str, Any]] = []
    for shots in options.shots:
        texts = [prompts.write(i, shots) for i in range(len(questions))]
        answers = (
            choose_answers(decoder, texts, questions) if has_choices else write_answers(model, texts, prompts, options)
        )
        n_cut = count_cut(decoder, texts)
        curve.append({"shots": shots, **summarize(answers, options.seed), "cut_prompts": n_cut})
        items += [
            {"shots": shots, "question": question.text, "right_answers": question.answers, **describe(answer)}
            for question, answer in zip(questions, answers, strict=True)
        ]
    chances = [1 / len(question.choices) if question.choices else 0.0 for question in questions]
    return {"questions": len(questions), "chance": float(np.mean(chances)), "curve": curve, "items": items}


def choose_answers(decoder: Any, prompts: Sequence[str], questions: Sequence[Question]) -> list[Answer]:
    """Take the likeliest of each question's choices."""
    pairs = [
        encode_pair(prompt, choice, decoder.tokenizer)
        for prompt, question in zip(prompts, questions, strict=True)
        for choice in question.choices
    ]
    scores = iter(score_pairs(decoder, pairs))
    answers = []
    for question in questions:
        logprobs = [next(scores).logprob for _ in question.choices]
        rates = [logprob / len(choice) for logprob, choice in zip(logprobs, question.choices)]
        chosen, normalized = (question.choices[int(np.argmax(values))] for values in (logprobs, rates))
        right = question.answers[0]
        answers.append(Answer(chosen, chosen == right, normalized == right, {"logprobs": logprobs}))
    return answers


def write_answers(model: Model, texts: Sequence[str], prompts: Prompts, options: FewShotOptions) -> list[Answer]:
    """Let the model write up to what follows an answer in the template."""
    end = prompts.template.end
    stop = end.partition("\n")[0] or end[:1] or "\n"
    answers = []
    for start in range(0, len(texts), BATCH_ANSWERS):
        batch = [text.rstrip(" ") for text in texts[start : start + BATCH_ANSWERS]]  # words begin with their space
        samples = model.generate(batch, tokens=options.tokens, temperature=0, stop=[stop])["samples"]
        for sample, question in zip(samples, prompts.questions[start:], strict=False):
            text = sample["text"].strip()
            is_right = text in [answer.strip() for answer in question.answers]
            is_near = normalize(text) in map(normalize, question.answers)
            answers.append(Answer(text, is_right, is_near, {"finish_reason": sample["finish_reason"]}))
        report_progress("answering", len(answers), len(texts))
    return answers


def normalize(text: str) -> str:
    """Return a text without case, punctuation, articles and repeated spaces, as SQuAD compares answers (1606.05250)."""
    text = text.casefold().translate(str.maketrans("", "", string.punctuation))
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", text).split())


def count_cut(decoder: Any, texts: Sequence[str]) -> int:
    """Return how many prompts exceed the context, so that their beginning is not read."""
    context = decoder.body.config.context
    return sum(len(decoder.tokenizer.encode_prompt(text)) > context for text in texts if len(text) > context)


def summarize(answers: Sequence[Answer], seed: int) -> dict[str, float]:
    """Return the accuracies with bootstrap intervals: a resample of n right or wrong answers is a binomial draw."""
    rng, values = np.random.default_rng(seed), {}
    for prefix, column in (("", "is_right"), ("normalized_", "is_right_normalized")):
        accuracy = float(np.mean([getattr(answer, column) for answer in answers]))
        draws = rng.binomial(len(answers), accuracy, N_RESAMPLES) / len(answers)
        low, high = np.quantile(draws, [0.025, 0.975]).tolist()
        values |= {f"{prefix}accuracy": accuracy, f"{prefix}low": low, f"{prefix}high": high}
    return values


def describe(answer: Answer) -> dict[str, Any]:
    return {
        "answer": answer.answer,
        "right": answer.is_right,
        "normalized_right": answer.is_right_normalized,
        **answer.details,
    }


def draw_curve(result: dict[str, Any]) -> dict[str, Any]:
    """Return the figure of accuracy over the number of examples."""
    curve = result["curve"]
    lines: list[dict[str, Any]] = []
    for color, (prefix, name) in enumerate((("", "accuracy"), ("normalized_", "normalized accuracy"))):
        x = [point["shots"] for point in curve]
        band = {key: [point[prefix + key] for point in curve] for key in ("low", "high")}
        lines.append({"name": f"{name}: 95 % interval", "x": x, **band, "color": color})
        lines.append({"name": name, "x": x, "y": [point[f"{prefix}accuracy"] for point in curve], "color": color})
    if result["chance"]:
        lines.append({"name": "chance", "x": [x[0], x[-1]], "y": [result["chance"]] * 2, "color": 2})
    title = "Accuracy over the number of examples"
    return {"kind": "lines", "title": title, "x_label": "examples before the question", "zero": True, "lines": lines}
