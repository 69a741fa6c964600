"""Rewards: a number for each answer, by which the best of several samples is chosen, or a model is trained.

    exact                      1 for the answer of the row, or one of them, else 0
    regex:PATTERN              1 where the pattern occurs in the answer, else 0
    classifier:RUN:LABEL       the probability of a label by a run of ours, such as one of `classify`
    FILE.py:FUNCTION           function(prompt, completion, row), a finite number

A function is code of the person who names it: on the command line, or as an object in Python. That a run has stored its
name is not enough (`load_reward`), and a server takes no rewards.
"""

import math
import os.path
import re
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from .data.io.cache import cache_by_files
from .data.io.checks import read_json
from .errors import InputError, suggest
from .parsing import show_value
from .recipe import SupportsBatchPredict
from .recipe_loading import bind_checkpoint_files, import_file, load_stored_recipe, parse_config
from .training.checkpoints import find_best, load_weights
from .training.checksums import verify_files

Reward = Callable[[str, str, Mapping[str, Any]], float]
"""Maps a prompt, an answer to it and the row of the prompt to a number; the higher, the better."""
EXPECTED = "exact, regex:PATTERN, classifier:RUN:LABEL, or FILE.py:FUNCTION"
MAX_SAMPLES = 10_000  # of all prompts, of which the best are chosen
FUNCTIONS: dict[str, Reward] = {}
"""Functions that were named in this process (`admit_reward`)."""


class Sample(NamedTuple):
    """An answer to be scored."""

    prompt: str
    """The text of the last message before the answer."""
    completion: str
    row: Mapping[str, Any]
    """Of the prompt: its fields in the file."""
    where: str
    """For messages: the file and the line of the prompt."""


Score = Callable[[Sequence[Sample]], list[float]]
"""Returns the rewards of samples. Raises InputError."""


def admit_reward(reward: Any) -> str:
    """Return the name of a reward that a person names, by which `load_reward` then finds it in this process. Paths
    become absolute, a function gets a name. Raises InputError."""
    if callable(reward):
        name = name_function(reward)
        FUNCTIONS[name] = reward
        return name
    if not isinstance(reward, str):
        raise InputError(f"reward is {show_value(reward)}; expected a function, or a text: {EXPECTED}")
    kind, _, argument = reward.partition(":")
    path, _, function_name = reward.rpartition(":")
    if kind == "classifier":
        run, _, label = argument.rpartition(":")
        reward = f"classifier:{os.path.abspath(run)}:{label}"
    elif kind not in ("exact", "regex", "function") and path.endswith(".py"):
        reward = f"{os.path.abspath(path)}:{function_name}"
        FUNCTIONS[reward] = import_function(Path(path), function_name)
    load_reward(reward)
    return reward


def name_function(function: Any) -> str:
    """Return the name of a function: where it was defined; functions within others, and lambdas, are numbered."""
    place = getattr(function, "__qualname__", type(function).__qualname__)
    name = f"function:{getattr(function, '__module__', '')}.{place}"
    number, unique = 1, name
    while "<" in name and FUNCTIONS.get(unique, function) is not function:
        number += 1
        unique = f"{name}#{number}"
    return unique


def import_function(path: Path, name: str) -> Reward:
    function = vars(import_file(path, "reward")).get(name)
    if not callable(function):
        raise InputError(f"reward: {path} has no function '{name}(prompt, completion, row)'")
    return function


def load_reward(name: str) -> Score:
    """Return the reward of a name. Raises InputError if there is none, or it is a function that nobody has named in
    this process."""
    kind, _, argument = name.partition(":")
    if name in FUNCTIONS:
        return partial(score_each, FUNCTIONS[name], name)
    if name == "exact":
        return partial(score_each, match_answer, name)
    if kind == "regex":
        return partial(score_each, match_pattern(argument), name)
    if kind == "classifier":
        return score_by_classifier(*argument.rpartition(":")[::2])
    if kind == "function" or ".py:" in name:
        raise InputError(f"the reward {name} is code, which a run only names: name it again, as --reward or reward=")
    raise InputError(f"there is no reward '{name}': expected {EXPECTED}")


# --- built in ---


def score_each(function: Reward, name: str, samples: Sequence[Sample]) -> list[float]:
    return [score_sample(function, name, sample) for sample in samples]


def score_sample(function: Reward, name: str, sample: Sample) -> float:
    try:
        value = function(sample.prompt, sample.completion, sample.row)
    except InputError as error:
        raise InputError(f"{sample.where}: {error}") from None
    except Exception as error:
        problem = f"{type(error).__name__}: {error}".partition("\n")[0]
        answer = show_value(sample.completion)
        raise InputError(f"{sample.where}: the reward {name} fails for the answer {answer}: {problem}") from error
    try:
        number = math.nan if isinstance(value, str) else float(value)
    except (TypeError, ValueError, RuntimeError, OverflowError):
        number = math.nan
    if not math.isfinite(number):
        answer = show_value(sample.completion)
        raise InputError(
            f"{sample.where}: the reward {name} returns {show_value(value)} for the answer {answer}; "
            "expected a finite number"
        )
    return number


def read_answers(row: Mapping[str, Any]) -> list[str]:
    """Return the right answers of a row. Raises InputError if it has none."""
    answer = row.get("answer")
    answers = answer if isinstance(answer, list | tuple) else [answer]
    texts = [str(a).strip() for a in answers if isinstance(a, str | int | float) and not isinstance(a, bool)]
    if not texts or len(texts) < len(answers) or "" in texts:
        raise InputError(
            'there is no "answer" (a text, or a list of those that are right), which the reward exact needs'
        )
    return texts


def match_answer(prompt: str, completion: str, row: Mapping[str, Any]) -> float:
    return float(completion.strip() in read_answers(row))


def match_pattern(text: str) -> Reward:
    """Return the reward for answers in which a regular expression occurs. Raises InputError."""
    try:
        pattern = re.compile(text)
    except re.error as error:
        raise InputError(f"the reward regex:{text} is no regular expression: {error}") from None
    return lambda prompt, completion, row: float(pattern.search(completion) is not None)


def score_by_classifier(run: str, label: str) -> Score:
    """Return the probability of a label by a run that classifies texts. Raises InputError."""
    recipe, model, names = load_classifier(Path(run))
    if label not in names:
        raise InputError(f"the reward classifier:{run}:{label}: {suggest(label, names)}")

    def score(samples: Sequence[Sample]) -> list[float]:
        texts = [sample.completion if sample.completion.strip() else " " for sample in samples]
        return [r["probabilities"][label] for r in recipe.predict_batch(model, texts, {"cut": True})]

    return score


@cache_by_files(lambda run: [run / "checkpoints", run / "model.safetensors"], maxsize=2)
def load_classifier(run: Path) -> tuple[SupportsBatchPredict, Any, list[str]]:
    """Return the recipe, the model and the labels of a run. Raises InputError."""
    folder = run if (run / "model.safetensors").is_file() else find_best(run / "checkpoints")
    if folder is None:
        raise InputError(f"the reward classifier: there is no run at {run}")
    stored = read_json(folder / "config.json")
    recipe: Any = load_stored_recipe(str(stored.get("recipe")), None, run)
    if not isinstance(recipe, SupportsBatchPredict) or stored.get("lora"):
        raise InputError(f"the reward classifier: {run} is no classifier of texts with weights of its own")
    verify_files(folder, but="optimizer.safetensors")
    config = bind_checkpoint_files(parse_config(recipe, stored.get("config"), str(folder)), folder)
    model = recipe.build(config).eval()
    load_weights(folder, model)
    results = recipe.predict(model, {}).get("results") or [{}]
    if not isinstance(names := results[0].get("probabilities"), dict):
        raise InputError(f"the reward classifier: {run} is a run of '{stored['recipe']}', which has no labels")
    return recipe, model, list(names)


# --- the best of several samples ---


def bound_divergence(n: int) -> float:
    """Return the most nats by which the best of n samples diverges from a single one (2401.01879)."""
    return math.log(n) - (n - 1) / n


def choose_best(model: Any, request: Mapping[str, Any]) -> dict[str, Any]:
    """Answer a request with the best of several samples.

    Args:
        model: has a method `predict`, as `Model`.
        request: of `predict`, with "best_of", how many samples each answer is the best of, and maybe "reward"; without,
            the sample with the highest mean log-probability of its tokens is the best, and of equal ones the first.

    Returns the answer with the "reward" of each sample, "best_of", and "kl_at_most", the bound on the divergence.
    Raises InputError.
    """
    fields = dict(request)
    n, reward, k = fields.pop("best_of"), fields.pop("reward", None), fields.get("samples", 1)
    if not all(isinstance(x, int) and not isinstance(x, bool) and x >= 1 for x in (n, k)) or n * k > MAX_SAMPLES:
        raise InputError(f"best_of is {show_value(n)} and samples {show_value(k)}; their product can be 1 to 10,000")
    if n > 1 and fields.get("temperature") == 0:
        raise InputError("best_of: at temperature 0 all samples are the same: give a temperature above 0")
    score = None if reward is None else load_reward(admit_reward(reward))
    hidden = {"logprobs": 0} if score is None and fields.get("logprobs") is None else {}
    answer = model.predict(fields | hidden | {"samples": n * k})
    results, messages = answer["samples"], fields.get("messages")
    samples = [
        Sample(messages[-1].get("content", "") if messages else result["prompt"], result["text"], {}, f"sample {i + 1}")
        for i, result in enumerate(results)
    ]
    values = [average_logprob(result) for result in results] if score is None else score(samples)
    chosen = []
    for start in range(0, len(results), n):
        index = max(range(start, start + n), key=lambda i: values[i])
        chosen.append({k: v for k, v in results[index].items() if k not in hidden} | {"reward": values[index]})
    return answer | {"samples": chosen, "best_of": n, "kl_at_most": bound_divergence(n)}


def average_logprob(result: Mapping[str, Any]) -> float:
    """Return the mean log-probability of the tokens of a sample; of one without any, the lowest."""
    values = [row["logprob"] for row in result["logprobs"]]
    return sum(values) / len(values) if values else -math.inf
