"""The examples that a model is shown with: rows of its validation split."""

from typing import Any

from .errors import InputError
from .recipe import Examples, Recipe, SupportsExamples


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
    for result, truth in zip(answer.get("results") or answer.get("samples", ()), examples.truths):
        result["truth"] = truth
    return answer
