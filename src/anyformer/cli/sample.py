"""anyformer sample RUN: continue a prompt with a trained language model."""

import json
import shlex
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from ..errors import InputError
from .flags import REPEATABLE, DeviceFlag, JsonFlag, RecipeFlag, RunArgument
from .terminal import print_status, read_stdin, read_text

REQUEST_FIELDS = (
    "tokens", "samples", "temperature", "top_k", "top_p", "min_p", "repetition_penalty", "stop", "keep", "seed"
)  # fmt: skip


@dataclass(frozen=True)
class Command:
    """Continue a prompt with a trained language model; without one, start a new line."""

    run: RunArgument
    prompt: Annotated[tuple[str, ...], REPEATABLE] = ()
    """The text to continue; - reads stdin. May be repeated: all prompts are continued in one batch."""
    prompt_file: Annotated[tuple[Path, ...], REPEATABLE] = ()
    """A file to continue. May be repeated."""
    chat: str | None = None
    """A message to a chat model; its own chat template is applied."""
    tokens: int = 500
    """Most new tokens of each sample."""
    samples: int = 1
    """Samples of each prompt."""
    temperature: float = 0.8
    """0 always takes the most probable token; above 1 flattens the distribution."""
    top_k: int | None = None
    """Keep only the k most probable tokens."""
    top_p: float | None = None
    """Keep only the most probable tokens that together reach probability p."""
    min_p: float | None = None
    """Keep only tokens at least this fraction as probable as the most probable one."""
    repetition_penalty: float = 1.0
    """Above 1, tokens that occurred already become less probable."""
    stop: Annotated[tuple[str, ...], REPEATABLE] = ()
    """A text that ends a sample. May be repeated."""
    keep: int | None = None
    """Tokens that stay when the context is full and the oldest are dropped. Default: half the context."""
    seed: int = 0
    """Seed of the random draws."""
    recipe: RecipeFlag = None
    device: DeviceFlag = "auto"
    weights: Literal["float32", "bfloat16", "int8"] = "float32"
    """Number format of the linear layers: fewer bits are faster and nearly as exact."""
    json: JsonFlag = False


def run(options: Command) -> None:
    request = build_request(options)
    from .. import api
    from ..recipe import SupportsStream

    model = api.load(options.run, options.device, weights=options.weights, recipe=options.recipe)
    if not isinstance(model.recipe, SupportsStream):
        hint = f"use anyformer predict {shlex.quote(str(options.run))}"
        raise InputError(f"{options.run} is a run of the recipe '{model.name}', which generates no text: {hint}")
    if options.json:
        answer = model.predict(request)
        print(json.dumps(answer | {"run": str(options.run), "step": model.step, "seed": options.seed}))
        return
    print_samples(model.recipe.stream(model.module, request))


def build_request(options: Command) -> dict[str, Any]:
    """Build the recipe's request. Raises InputError."""
    prompts = [read_stdin() if prompt == "-" else prompt for prompt in options.prompt]
    prompts += [read_text(path) for path in options.prompt_file]
    if prompts and options.chat is not None:
        raise InputError("--chat and --prompt exclude each other: a message, or a text to continue")
    request: dict[str, Any] = {"prompt": prompts} if prompts else {}
    if options.chat is not None:
        request["messages"] = [{"role": "user", "content": options.chat}]
    return request | {name: getattr(options, name) for name in REQUEST_FIELDS}


def print_samples(rounds: Iterator[list[Any]]) -> None:
    """Print the first sample as it grows, and the others after it, each behind its prompt."""
    completions: list[Any] = []
    for i, completions in enumerate(rounds):
        if i == 0:
            sys.stdout.write(completions[0].prompt)
        sys.stdout.write(completions[0].new_text())
        sys.stdout.flush()
    for completion in completions[1:]:
        sys.stdout.write(f"\n{'-' * 20}\n{completion.prompt}{completion.text}")
    sys.stdout.write("\n")
    sys.stdout.flush()
    reasons = {"stop": "the text ended", "length": "the limit of --tokens"}
    print_status(", ".join(f"{len(c.tokens)} tokens ({reasons[c.finish_reason]})" for c in completions))
