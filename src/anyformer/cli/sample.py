"""anyformer sample RUN: continue a prompt with a trained language model, or draw it."""

import json
import math
import shlex
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from ..data.io.checks import read_json, read_text
from ..errors import InputError
from ..parsing import check_range
from .flags import (
    REPEATABLE,
    CacheFlag,
    DeviceFlag,
    DraftFlag,
    JsonFlag,
    RecipeFlag,
    RunArgument,
    StoreFlag,
    WeightsFlag,
)
from .terminal import print_status, read_stdin

REQUEST_FIELDS = (
    "tokens", "samples", "temperature", "top_k", "top_p", "min_p", "repetition_penalty", "stop", "keep", "seed",
    "notes",
)  # fmt: skip
MEDIA_FIELDS = ("samples", "temperature", "top_k", "top_p", "seed", "guidance")  # of a request for pictures or sounds
MEDIA_FLAGS = ("run", "prompt", "out", "request", "recipe", "device", "weights", "cache_dtype", "json")


@dataclass(frozen=True)
class Command:
    """Continue a prompt with a trained language model; without one, start a new line.

    A model of pictures draws the prompt instead, and one of speech says it:

        anyformer sample RUN --prompt "a dark bag" --samples 16 --out bags.png
        anyformer sample RUN --prompt seven --out seven.wav"""

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
    best_of: Annotated[int | None, "Draw so many for each sample, and keep the best by --reward."] = None
    reward: str | None = None
    """Of --best-of: regex:PATTERN, classifier:RUN:LABEL, or FILE.py:FUNCTION of yours, which is called with the prompt,
    the answer and {}, and returns a number. Default: the mean log-probability of the tokens."""
    guidance: Annotated[float | None, "Of media: how much they follow the prompt; 1 as it was learned."] = None
    request: Annotated[dict | None, 'More of a request for media, as JSON: \'{"image": "a.png"}\'.'] = None
    out: Path | None = None
    """A file for what is written, where the recipe has a format with this ending: of a model of pictures one .png with
    all samples, of speech one .wav; of others, several samples get numbers: tune.wav, tune-2.wav."""
    store: StoreFlag = None
    draft: DraftFlag = None
    recipe: RecipeFlag = None
    device: DeviceFlag = "auto"
    weights: WeightsFlag = "float32"
    cache_dtype: CacheFlag = "float32"
    json: JsonFlag = False

    def __post_init__(self) -> None:
        check_range(self, "tokens", at_least=1, at_most=10_000_000)
        if self.reward is not None and self.best_of is None:
            raise InputError("--reward says which of several samples is the best: give their number, --best-of 16")


def run(options: Command) -> None:
    request = build_request(options)
    from .. import api
    from ..recipe import SupportsDrawing, SupportsSpeaking, SupportsStream

    settings: dict[str, Any] = {
        "weights": options.weights,
        "cache_dtype": options.cache_dtype,
        "recipe": options.recipe,
        "store": options.store,
        "draft": options.draft,
    }
    model = api.load(options.run, options.device, **settings)
    if isinstance(model.recipe, SupportsDrawing):
        return write_media(options, model, model.recipe.draw_sheet, "picture.png")
    if isinstance(model.recipe, SupportsSpeaking):
        return write_media(options, model, model.recipe.record, "sound.wav")
    if options.guidance is not None or options.request is not None:
        flags = "--guidance and --request"
        raise InputError(f"{flags} are for models of pictures or sounds; {options.run} is a run of '{model.name}'")
    if not isinstance(model.recipe, SupportsStream):
        hint = model.task_hint or f"use anyformer predict {shlex.quote(str(options.run))}"
        raise InputError(f"{options.run} is a run of the recipe '{model.name}', which generates no text: {hint}")
    if options.out is not None:
        check_format(model, options.out)
    if options.json or options.best_of is not None:
        answer = model.generate(**request)
        if options.json:
            print(json.dumps(answer | {"run": str(options.run), "step": model.step, "seed": options.seed}))
        else:
            print_best(answer)
        texts = [sample["prompt"] + sample["text"] for sample in answer["samples"]]
    else:
        completions = print_samples(model.recipe.stream(model.module, request), bool(read_structure(options)))
        texts = [completion.prompt + completion.text for completion in completions]
    if options.out is not None:
        write_samples(model, texts, options.out)


def check_format(model: Any, out: Path) -> None:
    """Raise InputError unless the recipe writes files with this ending, into this folder."""
    from ..recipe import SupportsSampleFiles

    formats = model.recipe.SAMPLE_FORMATS if isinstance(model.recipe, SupportsSampleFiles) else ()
    if out.suffix not in formats:
        hint = f"expected {', '.join(formats)}" if formats else f"the recipe '{model.name}' writes text alone: use >"
        raise InputError(f"--out {out}: {hint}")
    if not out.parent.is_dir():
        raise InputError(f"--out {out}: there is no folder {out.parent}")


def write_samples(model: Any, texts: list[str], out: Path) -> None:
    for number, text in enumerate(texts, 1):
        path = out if number == 1 else out.with_stem(f"{out.stem}-{number}")
        model.recipe.write_sample(model.module, text, path)
        print_status(f"written to {path}")


def write_media(options: Command, model: Any, make: Callable[[Any, dict[str, Any]], bytes], example: str) -> None:
    """Write one file with the pictures or sounds of the prompts, which `make` returns; it ends as the example does.
    Raises InputError for flags that are for texts."""
    from ..training.run_directory import report_write_errors

    defaults, (kind, ending) = Command(options.run), example.split(".")
    changes = {name: value for name, value in vars(options).items() if value != getattr(defaults, name)}
    request = (options.request or {}) | {name: changes[name] for name in MEDIA_FIELDS if name in changes}
    others = changes.keys() - {*MEDIA_FIELDS, *MEDIA_FLAGS}
    if others:
        raise InputError(f"--{min(others).replace('_', '-')} is for texts; {options.run} makes {kind}s")
    if options.out is None or options.out.suffix.lower() != f".{ending}":
        raise InputError(f"a model of {kind}s writes one: name it with --out {example}")
    prompts = [read_stdin() if prompt == "-" else prompt for prompt in options.prompt]
    content = make(model.module, request | ({"input": prompts} if prompts else {}))
    with report_write_errors(str(options.out)):
        options.out.write_bytes(content)
    if options.json:
        print(json.dumps({"out": str(options.out), "run": str(options.run), "step": model.step}))
    print_status(f"{options.out}: {options.samples} of each of {len(prompts) or 'the'} prompts")


def build_request(options: Command) -> dict[str, Any]:
    """Build the recipe's request. Raises InputError."""
    prompts = [read_stdin() if prompt == "-" else prompt for prompt in options.prompt]
    prompts += [read_text(path) for path in options.prompt_file]
    if prompts and options.chat is not None:
        raise InputError("--chat and --prompt exclude each other: a message, or a text to continue")
    request: dict[str, Any] = {"prompt": prompts} if prompts else {}
    if options.chat is not None:
        request["messages"] = [{"role": "user", "content": options.chat}]
    best = {name: value for name in ("best_of", "reward") if (value := getattr(options, name)) is not None}
    return request | {name: getattr(options, name) for name in REQUEST_FIELDS} | read_structure(options) | best


def read_structure(options: Command) -> dict[str, Any]:
    """Return the fields of the request that say what a sample may be. Raises InputError."""
    fields: dict[str, Any] = {}
    if options.json_schema is not None:
        fields["json_schema"] = read_json(options.json_schema)
    if options.grammar is not None:
        fields["grammar"] = read_text(options.grammar)
    fields |= {} if options.regex is None else {"regex": options.regex}
    return fields | {name: value for name in ("choices", "exact") if (value := getattr(options, name))}


def print_samples(rounds: Iterator[list[Any]], has_structure: bool = False) -> list[Any]:
    """Print the first sample as it grows, and the others after it, each behind its prompt; return all of them."""
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
    return completions


def print_best(answer: dict[str, Any]) -> None:
    """Print the best samples, their rewards, and how far from the model they may be."""
    print(f"\n{'-' * 20}\n".join(sample["prompt"] + sample["text"] for sample in answer["samples"]))
    rewards = ", ".join(f"{sample['reward']:.4g}" for sample in answer["samples"])
    bound = f"at most {answer['kl_at_most']:.2f} nats from the model's own distribution"
    print_status(f"reward {rewards}, the best of {answer['best_of']}; {bound}")


def print_masses(completions: list[Any]) -> None:
    """Say what a structure has changed."""
    masses = ", ".join(f"{math.exp(c.matcher.log_kept_mass):.2g}" for c in completions)
    print_status(f"kept mass: {masses} (over all tokens, how likely it was that a token could follow)")
    if any(c.finish_reason == "length" for c in completions):
        print_status("a sample at the limit of --tokens is cut, and its structure is not complete: allow more tokens")
