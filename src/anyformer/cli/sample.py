"""anyformer sample RUN: continue a prompt with a trained language model."""

import json
import math
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from ..data.io.checks import read_json, read_text
from ..errors import InputError
from ..parsing import check_range
from .flags import REPEATABLE, DeviceFlag, JsonFlag, RecipeFlag, RunArgument, StoreFlag, WeightsFlag
from .terminal import print_status, read_stdin

REQUEST_FIELDS = (
    "tokens", "samples", "temperature", "top_k", "top_p", "min_p", "repetition_penalty", "stop", "keep", "seed",
    "notes",
)  # fmt: skip


@dataclass(frozen=True)
class Command:
    """Continue a prompt with a trained language model; without one, start a new line."""

    run: RunArgument
    prompt: Annotated[tuple[str, ...], REPEATABLE] = ()
    """The text to continue; - reads stdin. May be repeated: all prompts are continued in one batch."""
    prompt_file: Annotated[tuple[Path, ...], REPEATABLE, "A file to continue. May be repeated."] = ()
    chat: Annotated[str | None, "A message to a chat model; its own chat template is applied."] = None
    tokens: Annotated[int, "Most new tokens of each sample."] = 500
    samples: Annotated[int, "Samples of each prompt."] = 1
    temperature: Annotated[float, "0 always takes the most probable token; above 1 flattens the distribution."] = 0.8
    top_k: Annotated[int | None, "Keep only the k most probable tokens."] = None
    top_p: Annotated[float | None, "Keep only the most probable tokens that together reach probability p."] = None
    min_p: Annotated[float | None, "Keep tokens at least this fraction as probable as the most probable one."] = None
    repetition_penalty: Annotated[float, "Above 1, tokens that occurred already become less probable."] = 1.0
    stop: Annotated[tuple[str, ...], REPEATABLE, "A text that ends a sample. May be repeated."] = ()
    keep: Annotated[int | None, "Tokens kept when a full context drops its oldest. Default: half the context."] = None
    seed: Annotated[int, "Seed of the random draws."] = 0
    json_schema: Annotated[Path | None, "A file with a JSON schema: samples are JSON that is valid under it."] = None
    regex: Annotated[str | None, "A regular expression that whole samples match."] = None
    grammar: Annotated[Path | None, "A file with a grammar, Lark or GBNF (EBNF), that samples are of."] = None
    choices: Annotated[tuple[str, ...], "Texts of which each sample is one."] = ()
    exact: Annotated[bool, "Draw samples of a structure from the model's own distribution; may take many tries."] = (
        False
    )
    notes: Annotated[bool, "Read prompts of any length in pieces, write notes on the way, and show them."] = False
    store: StoreFlag = None
    recipe: RecipeFlag = None
    device: DeviceFlag = "auto"
    weights: WeightsFlag = "float32"
    json: JsonFlag = False

    def __post_init__(self) -> None:
        check_range(self, "tokens", at_least=1, at_most=10_000_000)


def run(options: Command) -> None:
    request = build_request(options)
    from .. import api
    from ..recipe import SupportsStream

    model = api.load(options.run, options.device, weights=options.weights, recipe=options.recipe, store=options.store)
    if not isinstance(model.recipe, SupportsStream):
        hint = model.task_hint or f"use anyformer predict {shlex.quote(str(options.run))}"
        raise InputError(f"{options.run} is a run of the recipe '{model.name}', which generates no text: {hint}")
    if options.json:
        answer = model.predict(request)
        print(json.dumps(answer | {"run": str(options.run), "step": model.step, "seed": options.seed}))
        return
    print_samples(model.recipe.stream(model.module, request), bool(read_structure(options)))


def build_request(options: Command) -> dict[str, Any]:
    """Build the recipe's request. Raises InputError."""
    prompts = [read_stdin() if prompt == "-" else prompt for prompt in options.prompt]
    prompts += [read_text(path) for path in options.prompt_file]
    if prompts and options.chat is not None:
        raise InputError("--chat and --prompt exclude each other: a message, or a text to continue")
    request: dict[str, Any] = {"prompt": prompts} if prompts else {}
    if options.chat is not None:
        request["messages"] = [{"role": "user", "content": options.chat}]
    return request | {name: getattr(options, name) for name in REQUEST_FIELDS} | read_structure(options)


def read_structure(options: Command) -> dict[str, Any]:
    """Return the fields of the request that say what a sample may be. Raises InputError."""
    fields: dict[str, Any] = {}
    if options.json_schema is not None:
        fields["json_schema"] = read_json(options.json_schema)
    if options.grammar is not None:
        fields["grammar"] = read_text(options.grammar)
    fields |= {} if options.regex is None else {"regex": options.regex}
    return fields | {name: value for name in ("choices", "exact") if (value := getattr(options, name))}


def print_samples(rounds: Iterator[list[Any]], has_structure: bool = False) -> None:
    """Print the first sample as it grows, and the others after it, each behind its prompt."""
    completions: list[Any] = []
    for i, completions in enumerate(rounds):
        prompt = "" if i else completions[0].prompt
        print(prompt + completions[0].new_text(), end="", flush=True)
    for completion in completions[1:]:
        print(f"\n{'-' * 20}\n{completion.prompt}{completion.text}", end="")
    print(flush=True)
    for completion in completions:
        if notes := completion.list_notes():
            print_status("\n".join(["notes", *(f"  {text}" for text in notes)]))
    reasons = {"stop": "the text ended", "length": "the limit of --tokens"}
    print_status(", ".join(f"{len(c.tokens)} tokens ({reasons[c.finish_reason]})" for c in completions))
    if has_structure:
        print_masses(completions)


def print_masses(completions: list[Any]) -> None:
    """Say what a structure has changed."""
    masses = ", ".join(f"{math.exp(c.matcher.log_kept_mass):.2g}" for c in completions)
    print_status(f"kept mass: {masses} (over all tokens, how likely it was that a token could follow)")
    if any(c.finish_reason == "length" for c in completions):
        print_status("a sample at the limit of --tokens is cut, and its structure is not complete: allow more tokens")
