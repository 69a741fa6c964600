"""What a model answers: to the examples that it is shown with, and as text for a person."""

import json
from collections.abc import Mapping
from typing import Any

from .errors import InputError
from .recipe import Examples, Recipe, SupportsExamples

MAX_INPUT_CHARS = 200  # of an input, as text for a person


def find_examples(recipe: Recipe, config: Any) -> Examples:
    """Return examples of the validation split; none where the recipe has its own."""
    return recipe.examples(config) if isinstance(recipe, SupportsExamples) else Examples()


def predict_examples(recipe: Recipe, model: Any, examples: Examples) -> dict[str, Any]:
    """Answer examples, with the truth beside each result; the recipe's own where they cannot be answered, because a
    file is gone."""
    try:
        answer = recipe.predict(model, examples.request)
    except InputError:
        return recipe.predict(model, {})
    for result, truth in zip(answer.get("results", ()), examples.truths):
        result["truth"] = truth
    return answer


def format_prediction(answer: Mapping[str, Any]) -> list[str]:
    """Format an answer of `predict` for a person: samples as they are, results one per line."""
    if answer.get("samples"):
        return [sample["text"] for sample in answer["samples"]]
    if answer.get("results") == []:  # there was nothing to ask
        return []
    return ["\n".join(_format_result(result) for result in answer.get("results") or [answer])]


def _format_result(result: Any) -> str:
    """Format a result: "input → label, probability 0.93 (truth: label)"; of several targets each by its name; anything
    else as JSON."""
    if not isinstance(result, dict) or not result:
        return json.dumps(result, ensure_ascii=False)
    answer = result.get("text", result.get("label", result.get("value")))
    if isinstance(answer, str | int | float):
        text = answer if isinstance(answer, str) else f"{answer:.4g}"
        text += f", probability {result['probability']:.2f}" if "probability" in result else ""
        text += f" (truth: {result['truth']})" if "truth" in result else ""
        return f"{_shorten(result['input'])} → {text}" if isinstance(result.get("input"), str) else text
    if all(isinstance(value, dict) for value in result.values()):
        return "; ".join(f"{name}: {_format_result(value)}" for name, value in result.items())
    return json.dumps(result, ensure_ascii=False)


def _shorten(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= MAX_INPUT_CHARS else f"{text[:MAX_INPUT_CHARS]}…"
