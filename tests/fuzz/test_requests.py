"""Every field of every config, request and command with values that no one should give: success, or one line that says
why."""

import dataclasses
import importlib
import inspect
import itertools
import os
import random
import sys
import types
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest

import anyformer
from anyformer import api, cli
from anyformer.cli.flags import Flag, list_flags, parse_arguments
from anyformer.cli.sweep import SweepCommand
from anyformer.cli.train import TrainCommand
from anyformer.errors import InputError
from anyformer.parsing import read_hints, show_value, to_json
from anyformer.recipe_loading import list_recipes, load_recipe, parse_config
from anyformer.resolve_job import merge_overrides
from anyformer.training.config import LoRAConfig
from cli_kit import call
from fuzz_kit import IS_FULL, Tally, count_attacks, run_limited

NOT_NUMBERS: tuple[Any, ...] = (
    "a", "", None, [], {}, [[1]], {"a": 1}, True, "\0", "\ud800", "x" * 70_000, "9" * 5001, "~nobody", "http://[", "-",
    "a\nb", "../a", "a,b", "/dev/zero", ".", "a:b", "%s", "ß" * 200, "a@b",
)  # fmt: skip
EXTREMES: tuple[Any, ...] = (
    -1, 0, 10**7, 2**31, 2**63, 10**20, 10**400, -(10**20), 0.5, 1e-320, 1e300, float("nan"), float("inf"),
    -float("inf"),
)  # fmt: skip
SENSIBLE: tuple[Any, ...] = (1, 2, 3, 7, 64, 0.1, 0.999, 1e-6)
UNCHECKED = ("sample", "chat")
"""Verbs that hand their values on to a request, where they are checked."""
CONTAINERS: tuple[Any, ...] = (
    {1: 2}, {None: 1}, {"a": {"b": {}}}, {"input": {"input": "a"}}, (1, 2), {1, 2}, b"a", object(), 1j, range(3), print,
    Path("a"), Path("/dev/zero"), "plays", "char", ",",
    [None], [1, "a"], [[], {}], [{"a": 1}, 2], ["a"] * 3, [float("nan")], {"role": "user"},
    [{"role": "user", "content": 1}], [{"role": [], "content": "a"}], {"env": 1}, {"states": "a"}, {"states": [[1]]},
)  # fmt: skip
NEVER_SENSIBLE = ("nan", "inf", "-inf", str(10**20), str(10**400), str(-(10**20)))  # of any number
TINY = ("--preset", "tiny", "--train.steps", "1", "--train.eval-batches", "1", "--train.final-every", "1000000")
MORE_WORK = (
    "--train.steps", "--train.accumulate", "--train.batch", "--train.eval-batches", "--tokens", "--shuffles", "--seeds",
    "--folds", "--minutes", "--processes", "--passes",
)  # fmt: skip
"""Flags of which a large value is right, and takes its time."""
VERBS = {
    "sample": ["RUN", "--tokens", "3"], "predict": ["RUN", "0"], "embed": ["RUN", "a"], "eval": ["RUN"],
    "rollout": ["Line-v0"], "worth": ["RUN"], "export": ["RUN", "exported", "--to", "hf"], "import": ["RUN"],
    "runs": ["RUN"], "compare": ["RUN", "RUN"], "detect": ["a"], "list": [],
    "lens": ["RUN", "--input", "a", "--passes", "3"],
}  # fmt: skip


# --- ranges ---


def list_configs(config: Any) -> Iterator[Any]:
    """Yield a config and the configs in it."""
    yield config
    for field in dataclasses.fields(config):
        if dataclasses.is_dataclass(value := getattr(config, field.name)):
            yield from list_configs(value)


def find_requests() -> list[type]:
    """Return all dataclasses of requests."""
    for recipe in list_recipes():
        load_recipe(recipe)
    modules = [module for name, module in list(sys.modules.items()) if name.startswith("anyformer.")]
    kinds = {kind for module in modules for kind in vars(module).values() if isinstance(kind, type)}
    requests = [kind for kind in kinds if kind.__name__.endswith("Request") and dataclasses.is_dataclass(kind)]
    return sorted(requests, key=lambda kind: (kind.__module__, kind.__name__))


def make_example(kind: type) -> Any:
    """Return an instance with any text for what has no default."""
    fields = [field for field in dataclasses.fields(kind) if field.init]
    missing = dataclasses.MISSING
    return kind(**{f.name: "a" for f in fields if f.default is missing and f.default_factory is missing})


def load_command(verb: str) -> Any:
    return importlib.import_module(f"anyformer.cli.{cli.verb_module(verb)}").Command


def list_ranged() -> list[Any]:
    """Return an instance of each dataclass that a person gives values for."""
    presets = [preset for recipe in list_recipes() for preset in load_recipe(recipe).PRESETS.values()]
    examples = {type(config): config for preset in presets for config in list_configs(preset)}
    others = [LoRAConfig, *find_requests(), *(load_command(verb) for verb in cli.VERBS if verb != "train")]
    return [*examples.values(), *(make_example(kind) for kind in others if kind not in examples)]


def list_types(hint: Any) -> set[Any]:
    """Return the types of a hint, without those in it: of int | None int and NoneType."""
    is_union = typing.get_origin(hint) in (typing.Union, types.UnionType)
    return set(typing.get_args(hint)) if is_union else {hint}


def is_refused(config: Any, name: str, value: Any) -> bool:
    try:
        dataclasses.replace(config, **{name: value})
    except ValueError:
        return True
    return False


def test_every_number_has_a_type_and_a_range():
    """Each is checked where its dataclass is built, in Python too."""
    accepted = []
    for config in list_ranged():
        for field in dataclasses.fields(config):
            options = list_types(read_hints(type(config))[field.name])
            values = [-(10**18), 10**18, 10**30, float("nan"), float("inf"), True, "a", {}]
            values += [None] if type(None) not in options else []
            values += [0.5] if float not in options else []
            values = values if options & {int, float} else []
            place = f"{type(config).__module__}.{type(config).__name__}.{field.name}"
            accepted += [
                f"{place} = {show_value(value)}" for value in values if not is_refused(config, field.name, value)
            ]
    assert [line for line in accepted if line.split(".")[2] not in UNCHECKED] == []


# --- flags ---


def find_error(function: Callable[[], Any]) -> tuple[str, bool]:
    """Call a function. Returns what is wrong with the error that it raises, if anything, and whether it is done."""
    try:
        function()
    except InputError as error:
        text = str(error)
        return "" if len(text) < 2000 and "\n" not in text else f"no short line: {text[:200]!r}", False
    except Exception as error:
        return f"{type(error).__name__}: {str(error)[:200]}", False
    return "", True


def parse_flag(command: TrainCommand, name: str, text: str) -> None:
    """Parse a flag of train or sweep, and the config that it makes of the preset. Raises InputError."""
    command.words = [f"{name}={text}"]
    _, overrides = command.read()
    parse_config(command.recipe, merge_overrides(to_json(command.recipe.PRESETS["tiny"]), overrides), "")


def list_parsers() -> Iterator[tuple[str, Flag, Callable[[str, str], Any]]]:
    """Yield all flags of all verbs, each with a verb and a function that parses its name and value."""
    for recipe in list_recipes():
        for kind in (TrainCommand, SweepCommand):
            command = kind(load_recipe(recipe), ["--preset", "tiny"], "prog")
            for flag in (*command.options, *command.fields):
                yield f"{kind.__name__} {recipe}", flag, partial(parse_flag, command)
    for verb in cli.VERBS:
        if verb not in ("train", "sweep"):
            kind = load_command(verb)
            free = ["a"] * sum(flag.is_positional for flag in list_flags(kind))
            for flag in list_flags(kind):
                words = free + (["--to", "hf"] if verb == "export" else [])
                yield (
                    verb,
                    flag,
                    lambda name, text, kind=kind, words=words: parse_arguments(
                        kind, [*words, f"{name}={text}"] if name.startswith("--") else [*words[1:], text], "prog"
                    ),
                )


@pytest.mark.slow
def test_every_value_of_every_flag_is_parsed():
    """In this process, and nothing is done with it."""
    tally, chance = Tally("flags parsed"), random.Random(0)
    attacks = [(*parser, str(value)) for parser in list_parsers() for value in (*EXTREMES, *NOT_NUMBERS)]
    for verb, flag, parse, text in attacks if IS_FULL else chance.sample(attacks, 300):
        fault, is_done = find_error(partial(parse, flag.name, text))
        if is_done and flag.hint in (int, float) and text in NEVER_SENSIBLE and verb not in UNCHECKED:
            fault = "is accepted"
        tally.count(f"{verb} {flag.name} {text[:40]!r}", fault, is_done)
    tally.close()


def choose_text(flag: Flag, chance: random.Random) -> str:
    values = (*SENSIBLE, *EXTREMES) if list_types(flag.hint) & {int, float} else (*NOT_NUMBERS, *CONTAINERS)
    return str(chance.choice(values if chance.random() < 0.9 else (*NOT_NUMBERS, *SENSIBLE)))


def is_more_work(name: str, text: str) -> bool:
    most = 8 if name in ("--seeds", "--folds") else 64  # trainings, one after the other
    return name in MORE_WORK and text.isdecimal() and int(text[:9]) > most


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Any]:
    folder = tmp_path_factory.mktemp("models")
    recipes = list_recipes() if IS_FULL else ["language", "multimodal"]
    for recipe in recipes:
        call("train", recipe, *TINY, "--out", folder / recipe, *find_short(recipe)).ok()
    return {recipe: anyformer.load(folder / recipe) for recipe in recipes}


@pytest.mark.slow
def test_every_flag_of_every_recipe(models: Mapping[str, Any], tmp_path: Path):
    tally = Tally("flags", codes=(1, 2), is_small=False)  # 1: a learning rate of 1000 fails while training
    parsers = [(*parser, parser[0].removeprefix("TrainCommand ")) for parser in list_parsers()]
    parsers = [parser for parser in parsers if parser[3] in models]
    for seed in count_attacks(10):
        chance = random.Random(seed)
        for _ in range(chance.choice((2, 20))):  # rarely one that is refused before anything is done
            _, flag, parse, recipe = chance.choice(parsers)
            text = choose_text(flag, chance)
            if not is_more_work(flag.name, text) and find_error(partial(parse, flag.name, text))[1]:
                break
        words = ["train", recipe, *TINY, *find_short(recipe), "--out", f"{seed}", f"{flag.name}={text}"]
        outcome = run_limited(partial(run_in, tmp_path, words), cpu_seconds=40)
        tally.add(f"seed {seed}: train {recipe} {flag.name} {text[:40]!r}", outcome)
    tally.close()


def find_short(recipe: str) -> tuple[str, ...]:
    """Return the flag that makes the validation split of a long text small."""
    config = load_recipe(recipe).PRESETS["tiny"]
    return ("--val-fraction", "0.01") if config.data == "plays" and "val_fraction" in vars(config) else ()


def run_in(folder: Path, words: list[str]) -> int:
    os.chdir(folder)
    try:
        return cli.run(words)
    except SystemExit as error:  # --help
        return int(error.code or 0)


@pytest.mark.slow
def test_every_flag_of_every_verb(models: Mapping[str, Any], tmp_path: Path):
    tally = Tally("verbs", codes=(1, 2))
    for seed in count_attacks(10):
        chance = random.Random(seed)
        verb, run = chance.choice(sorted(VERBS)), str(chance.choice(list(models.values())).run_path)
        words = [run if word == "RUN" else word for word in VERBS[verb]]
        for flag in chance.choices(list(list_flags(load_command(verb))), k=chance.choice((1, 1, 2))):
            text = choose_text(flag, chance)
            if flag.is_positional:
                words[:1] = [text]
            elif not is_more_work(flag.name, text):
                words.append(f"{flag.name}={text}")
        outcome = run_limited(partial(run_in, tmp_path, [verb, *words]), cpu_seconds=40)
        tally.add(f"seed {seed}: {verb} {str(words)[:200]}", outcome)
    tally.close()


@pytest.mark.slow
def test_every_name_of_data(tmp_path: Path):
    """In place of a recipe or data."""
    tally = Tally("names of data", codes=(2,))
    commands = (["train", "--dry-run"], ["sweep", "--steps", "1"], ["detect"], ["import"], ["compare"], ["runs"])
    attacks = [(command, str(value)) for command in commands for value in (*NOT_NUMBERS, *CONTAINERS, *EXTREMES)]
    for (verb, *flags), text in attacks if IS_FULL else random.Random(0).sample(attacks, 10):
        outcome = run_limited(partial(run_in, tmp_path, [verb, text, *flags]), cpu_seconds=40)
        tally.add(f"{verb} {text[:40]!r}", outcome)
    tally.close()


# --- requests, and calls from Python ---


def ask(function: Callable[..., Any], arguments: Sequence[Any], settings: dict[str, Any]) -> int:
    try:
        answer = function(*arguments, **settings)
        list(itertools.islice(answer, 3) if isinstance(answer, Iterator) else ())
    except InputError as error:
        print(f"anyformer: {error}", file=sys.stderr)
        return 2
    return 0


def choose_value(chance: random.Random) -> Any:
    value = chance.choice((*EXTREMES, *NOT_NUMBERS, *CONTAINERS, *SENSIBLE))
    return [value] if chance.random() < 0.2 else {"input": value} if chance.random() < 0.05 else value


@pytest.mark.slow
def test_every_field_of_every_request(models: Mapping[str, Any]):
    tally = Tally("requests")
    names = sorted({field.name for kind in find_requests() for field in dataclasses.fields(kind)} - {"tokens"})
    for seed in count_attacks(40):
        chance = random.Random(seed)
        recipe, request = chance.choice(sorted(models)), {"tokens": 3} if chance.random() < 0.3 else {}
        for _ in range(chance.choice((1, 1, 2, 3))):
            name = chance.choice(names) if chance.random() < 0.95 else chance.choice((1, None, "", "\ud800", (1,)))
            request[name] = choose_value(chance)
        request = choose_value(chance) if chance.random() < 0.1 else request
        outcome = run_limited(partial(ask, models[recipe].predict, [request], {}), cpu_seconds=20)
        tally.add(f"seed {seed}: {recipe} {show_value(request)}", outcome)
    tally.close()


def list_calls(models: Mapping[str, Any]) -> dict[str, Callable[..., Any]]:
    """Return what a person calls from Python, by its name."""
    names = ("generate", "stream", "embed", "evaluate", "score", "attention", "plot_attention", "predict_file")
    calls = {f"{recipe} {name}": getattr(model, name) for recipe, model in models.items() for name in names}
    functions = (api.train, api.load, api.export_checkpoint, api.import_checkpoint)
    return calls | {function.__name__: function for function in functions for _ in range(len(models))}


@pytest.mark.slow
def test_every_argument_from_python(models: Mapping[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    tally, calls = Tally("calls"), list_calls(models)
    monkeypatch.chdir(tmp_path)
    for seed in count_attacks(20):
        chance = random.Random(seed)
        name = chance.choice(sorted(calls))
        parameters = inspect.signature(calls[name]).parameters.values()
        settings = {p.name: choose_value(chance) for p in parameters if p.kind != p.VAR_KEYWORD and is_set(p, chance)}
        outcome = run_limited(partial(ask, calls[name], [], settings), cpu_seconds=20)
        tally.add(f"seed {seed}: {name} {show_value(settings)}", outcome)
    tally.close()


def is_set(parameter: inspect.Parameter, chance: random.Random) -> bool:
    return parameter.default is parameter.empty or chance.random() < 0.25
