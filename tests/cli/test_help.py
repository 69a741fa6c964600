"""Help: readable at 80 columns, lines of docstrings stay lines, every flag can be found."""

import dataclasses
import importlib
import inspect
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import pytest

from anyformer.cli import VERBS, verb_module
from anyformer.cli.flags import POSITIONAL, REPEATABLE, format_help, list_flags, parse_arguments
from anyformer.errors import InputError
from anyformer.recipe_loading import list_recipes, load_recipe
from cli_kit import call


@pytest.fixture(autouse=True)
def columns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")


def check_layout(text: str) -> None:
    """Check that no line exceeds 80 columns, and no type of Python is shown."""
    assert [line for line in text.splitlines() if len(line) > 80] == []
    assert "{None}" not in text and "<positional>" not in text


@pytest.mark.parametrize("verb", [verb for verb in VERBS if verb != "train"])
def test_help_of_every_verb(verb: str):
    text = call(verb, "--help").ok().out
    check_layout(text)
    module = importlib.import_module(f"anyformer.cli.{verb_module(verb)}")
    flags = list(list_flags(module.Command))
    assert text.startswith(f"usage: anyformer {verb}") and all(flag.help for flag in flags)
    assert all(re.search(rf"^  {re.escape(flag.name)}\b", text, re.I | re.M) for flag in flags)


@pytest.mark.parametrize("recipe", list_recipes())
def test_help_of_every_recipe(recipe: str):
    text, full = (call("train", recipe, flag).ok().out for flag in ("--help", "--help-all"))
    for shown in (text, full):
        check_layout(shown)
    names = [flag.name for flag in list_flags(type(load_recipe(recipe).PRESETS["tiny"]))]
    assert all(name in text for name in names), "the short help names every flag"
    assert all(re.search(rf"^  {re.escape(name)}\b", full, re.M) for name in names), "the long one explains it"
    places = [text.index(name) for name in ("\n  --data", "\n  --preset", "\n  --seed INT", "\nmore flags")]
    assert places == sorted(places)
    for line in (load_recipe(recipe).__doc__ or "").splitlines():
        if re.match(r"(raw|nodes|edges|head|loss)  ", line):
            assert any(shown.startswith(line[:40]) for shown in text.splitlines()), f"a line of its own: {line}"


@dataclass(frozen=True)
class Model:
    n_layer: int = 2
    """Number of layers."""
    bias: bool = True
    """Add biases."""


@dataclass(frozen=True)
class Command:
    """First line.
    A paragraph is filled.

    nodes  a table whose second column is wrapped where it exceeds the width of the terminal, below itself
    loss   another line

        prog a-run        a remark on code that exceeds the width of the terminal goes below it
    """

    run: Annotated[Path, POSITIONAL]
    """Where it is."""
    words: Annotated[tuple[str, ...], POSITIONAL] = ()
    """What is left."""
    seed: int | None = None
    """Seed."""
    mode: Literal["fast", "slow"] = "fast"
    """How."""
    stop: Annotated[tuple[str, ...], REPEATABLE] = ()
    """Ends."""
    sizes: tuple[float, ...] = (0.5,)
    """Several."""
    verbose: bool = False
    """Say more."""


def test_the_layout_of_flags():
    flags = [*list_flags(Command), *list_flags(Model, Model(n_layer=4), ("model",))]
    assert format_help("prog", inspect.getdoc(Command) or "", flags) == (
        """usage: prog RUN [WORDS ...] [flags]

First line. A paragraph is filled.

nodes  a table whose second column is wrapped where it exceeds the width of the
       terminal, below itself
loss   another line

    prog a-run
        a remark on code that exceeds the width of the terminal goes below it

  RUN                     Where it is.
  WORDS ...               What is left.

  --seed INT              Seed.
  --mode {fast,slow}      How. (default: fast)
  --stop TEXT             Ends.
  --sizes FLOAT ...       Several. (default: 0.5)
  --verbose               Say more.
  --model.n-layer INT     Number of layers. (default: 4)
  --model.bias, --model.no-bias
                          Add biases. (default: on)"""
    )


@pytest.mark.parametrize(
    ("arguments", "values"),
    [
        (["r"], {}),
        (["r", "a", "b"], {"words": ("a", "b")}),
        (["a", "--seed", "3", "r"], {"run": Path("a"), "words": ("r",), "seed": 3}),
        (["r", "--seed=-3"], {"seed": -3}),
        (["r", "--seed", "-3"], {"seed": -3}),
        (["r", "--seed", "None"], {}),
        (["r", "--mode=slow", "--mode", "fast"], {}),
        (["r", "--stop", "x", "--stop", "y z"], {"stop": ("x", "y z")}),
        (["--sizes", "1", "-2.5e-3", "--verbose", "r"], {"sizes": (1.0, -2.5e-3), "verbose": True}),
        (["r", "--verbose", "--no-verbose"], {}),
        (["r", "--verbose=true"], {"verbose": True}),
        (["r", "--", "--verbose", "-"], {"words": ("--verbose", "-")}),
    ],
)
def test_words_become_values(arguments: list[str], values: dict):
    assert parse_arguments(Command, arguments, "prog") == dataclasses.replace(Command(Path("r")), **values)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "prog needs RUN: see prog --help"),
        (["r", "--seed"], "--seed needs a value: INT"),
        (["r", "--seed", "--verbose"], "--seed needs a value: INT"),
        (["r", "--seed", "1.5"], "--seed: '1.5' is not a whole number"),
        (["r", "--sizes", "x"], "--sizes: 'x' is not a number"),
        (["r", "--mode", "fats"], "--mode is 'fats': did you mean 'fast'? valid: fast, slow"),
        (["r", "--sead", "1"], "prog has no flag --sead: did you mean --seed?"),
        (["r", "--verbose=maybe"], "--verbose is 'Maybe': valid: True, False"),
    ],
)
def test_words_that_make_no_sense(arguments: list[str], message: str):
    with pytest.raises(InputError) as error:
        parse_arguments(Command, arguments, "prog")
    assert str(error.value) == message
