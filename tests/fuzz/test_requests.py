"""Every field of every config and request with values that no one should give: success, or one line that says why."""

import dataclasses
import random
import sys
import typing
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import pytest

import anyformer
from anyformer import cli
from anyformer.errors import InputError
from anyformer.recipe import list_recipes, load_recipe
from cli_kit import call
from fuzz_kit import Tally, count_attacks, run_limited

NOT_NUMBERS: tuple[Any, ...] = ("a", "", None, [], {}, [[1]], {"a": 1}, True, "\0", "\ud800", "x" * 70_000, "9" * 5001)
EXTREMES: tuple[Any, ...] = (
    -1, 0, 10**7, 2**31, 2**63, 10**20, 10**400, -(10**20), 0.5, 1e-320, 1e300, float("nan"), float("inf"),
    -float("inf"),
)  # fmt: skip
SHORT = ("--train.steps", "1", "--train.eval_batches", "1", "--train.final_every", "1000000")
NEVER_SENSIBLE = ("nan", "inf", "-inf", str(10**20), str(10**400), str(-(10**20)))  # of any number


def list_fields(kind: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the dotted names and the type hints of the fields of a config."""
    hints = typing.get_type_hints(kind)
    for field in dataclasses.fields(kind):
        hint = hints[field.name]
        if dataclasses.is_dataclass(hint):
            yield from list_fields(hint, f"{prefix}{field.name}.")
        else:
            yield f"{prefix}{field.name}", hint


def find_requests() -> dict[str, Any]:
    """Return the fields of all dataclasses of requests, and their type hints."""
    for recipe in list_recipes():
        load_recipe(recipe)
    fields: dict[str, Any] = {}
    for name, module in list(sys.modules.items()):
        for kind in vars(module).values() if name.startswith("anyformer.") else ():
            if isinstance(kind, type) and kind.__name__.endswith("Request") and dataclasses.is_dataclass(kind):
                fields |= typing.get_type_hints(kind)
    return fields


def test_every_flag_of_every_recipe(tmp_path: Path):
    tally = Tally("flags", codes=(1, 2))  # 1: a learning rate of 1e300 fails while training
    fields = {recipe: dict(list_fields(type(load_recipe(recipe).PRESETS["tiny"]))) for recipe in list_recipes()}
    for seed in count_attacks(60):
        chance = random.Random(seed)
        recipe = chance.choice(sorted(fields))
        name, value = chance.choice(sorted(fields[recipe])), str(chance.choice((*EXTREMES, *EXTREMES, *NOT_NUMBERS)))
        words = ["train", recipe, "--preset", "tiny", *SHORT, "--out", str(tmp_path / f"{seed}"), f"--{name}", value]
        outcome = run_limited(partial(cli.run, words), cpu_seconds=40)
        attack = f"seed {seed}: train {recipe} --{name} {value[:40]!r}"
        tally.add(attack, outcome)
        if outcome.code == 0 and value in NEVER_SENSIBLE and fields[recipe][name] in (int, float):
            tally.broken.append(f"{attack} is accepted")
    tally.close()


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Any]:
    folder = tmp_path_factory.mktemp("models")
    for recipe in list_recipes():
        call("train", recipe, "--preset", "tiny", "--out", folder / recipe, *SHORT).ok()
    return {recipe: anyformer.load(folder / recipe) for recipe in list_recipes()}


def ask(model: Any, request: Any) -> int:
    try:
        model.predict(request)
    except InputError as error:
        print(f"anyformer: {error}", file=sys.stderr)
        return 2
    return 0


def test_every_field_of_every_request(models: Mapping[str, Any]):
    tally, fields = Tally("requests"), find_requests()
    for seed in count_attacks(60):
        chance = random.Random(seed)
        recipe, request = chance.choice(sorted(models)), {}
        for _ in range(chance.choice((1, 1, 2))):
            value = chance.choice((*EXTREMES, *NOT_NUMBERS))
            value = [value] if chance.random() < 0.2 else {"input": value} if chance.random() < 0.05 else value
            request[chance.choice(sorted(fields))] = value
        tally.add(
            f"seed {seed}: {recipe} {str(request)[:90]}",
            run_limited(partial(ask, models[recipe], request), cpu_seconds=20),
        )
    tally.close()
