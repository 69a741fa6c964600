"""The contract: a recipe is a module with six names, and its file name is its name.

No base class, no decorator, no registry. Adding a field of data adds one file to recipes/.
"""

import dataclasses
import importlib
import json
import pkgutil
import types
import typing
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, Protocol

from .errors import InputError, nearest

Place = dict[str, Any]
"""Where a stream of batches stands, in JSON. Given back, the stream goes on exactly there. "tokens": nodes seen so
far; "data": a hash of the data's content."""


@dataclasses.dataclass(frozen=True)
class Input:
    """A tensor that a graph reads. axes: their names, or their sizes where they never change ("batch 3 224 224").
    below: it holds whole numbers from 0 on, below this; None: any numbers. counts: it holds how many are real."""

    axes: str
    below: int | None = None
    counts: bool = False


@dataclasses.dataclass(frozen=True)
class Graph:
    """A model as a function of tensors alone, for whoever runs it elsewhere. longest: of an axis, where it is bounded;
    `call` takes the inputs in their order and returns the outputs in theirs."""

    call: Callable[..., Any]
    inputs: Mapping[str, Input]
    outputs: tuple[str, ...]
    longest: Mapping[str, int] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Choice:
    """A config that could be trained. expects(tokens): between which validation losses so many nodes of training end,
    as (low, high)."""

    config: Any
    expects: Callable[[float], tuple[float, float]]


Figure = dict[str, Any]
"""A picture in plain values, for the report of a run: {"kind", "title", "note"} and, by its kind,
"matrix": "values" [[number]], "rows" and "columns" [text], "top", the value of full ink (None: the largest);
"lines": "x_label", "lines" [{"name", "x" [number], "y" [number]}], "zero", whether y begins there;
"images": "images" [{"png" (base64), "caption"}]."""


class Recipe(Protocol):
    """Six names. Batches map names to tensors. A model may carry `files`, texts by file name that belong beside its
    weights ("tokenizer.json"); the config field `tokenizer` then points to that file once the model is loaded. A
    seventh name, `graph(model) -> Graph`, lets the model out to other runtimes; an eighth, `figures(model, config) ->
    [Figure]`, draws what one would rather look at than read; a ninth, `judge(model, config, split)`, has the model
    answer, and scores its answers; a tenth, `sizes(config) -> [Choice]`, from small to large, is what
    `--minutes` chooses from."""

    PRESETS: Mapping[str, Any]  # name -> frozen config with a `train: TrainConfig`, "tiny" first, then the default

    def build(self, config: Any) -> Any: ...  # -> nn.Module, initialised

    def batches(self, config: Any, split: str, place: Place | None = None) -> Iterator[tuple[dict, Place]]: ...

    def loss(self, model: Any, batch: dict) -> Any: ...  # -> scalar tensor, the mean over what is predicted

    def evaluate(
        self, model: Any, batches: Iterator[dict]
    ) -> dict[str, float]: ...  # "loss" among them: lower is better

    def predict(self, model: Any, request: dict) -> dict: ...  # plain values in and out; {} asks for a show-piece


def begin(place: Place | None, data: str, sha256: str, **more: Any) -> Place:
    """Where a stream of batches begins, or goes on. Raises InputError where the data are no longer those of `place`."""
    found: Place = {"step": 0, "tokens": 0, "data": sha256} | more | (place or {})
    if found["data"] != sha256:
        raise InputError(f"the data '{data}' has changed since this run began: bring it back, or start a new run")
    return found


def names() -> list[str]:
    """The recipes there are."""
    return sorted(module.name for module in pkgutil.iter_modules([str(Path(__file__).with_name("recipes"))]))


def load(name: str) -> Recipe:
    """The recipe of this name. Raises InputError that names the nearest."""
    if name not in names():
        raise InputError(f"there is no recipe '{name}': {nearest(name, names())}")
    return typing.cast(Recipe, importlib.import_module(f"{__package__}.recipes.{name}"))


def default_preset(recipe: Recipe) -> str:
    return list(recipe.PRESETS)[min(1, len(recipe.PRESETS) - 1)]


def preset(recipe: Recipe, name: str) -> Any:
    if name not in recipe.PRESETS:
        raise InputError(f"there is no preset '{name}': {nearest(name, recipe.PRESETS)}")
    return recipe.PRESETS[name]


def spoken(answer: Mapping[str, Any]) -> list[str]:
    """What a recipe's `predict` gave, as texts for a person: samples as they are, results a line each."""
    if answer.get("samples"):
        return [sample["text"] for sample in answer["samples"]]
    return ["\n".join(_said(result) for result in answer.get("results") or [answer])]


def _said(result: Any) -> str:
    said = result.get("text", result.get("label")) if isinstance(result, dict) else None
    if isinstance(said, str) and isinstance(result.get("input"), str):
        return f"{result['input']} → {said}"
    return json.dumps(result, ensure_ascii=False)


# --- configs as JSON: plain values out, checked values in ---


def to_json(config: Any) -> dict:
    return json.loads(json.dumps(dataclasses.asdict(config)))


def from_json(kind: Any, values: Any, where: str) -> Any:
    """A frozen config from JSON. Raises InputError on unknown names and wrong types; missing ones keep defaults."""
    if not isinstance(values, dict):
        raise InputError(f"{where}: expected an object for {kind.__name__}, found {values!r}")
    hints, fields = typing.get_type_hints(kind), [field.name for field in dataclasses.fields(kind)]
    for name in values:
        if name not in fields:
            raise InputError(f"{where}: unknown field '{name}': {nearest(name, fields)}")
    try:
        return kind(**{name: _value(hints[name], value, f"{where}: {name}") for name, value in values.items()})
    except InputError:
        raise
    except ValueError as error:
        raise InputError(f"{where}: {error}") from None


def _value(hint: Any, value: Any, where: str) -> Any:
    if dataclasses.is_dataclass(hint):
        return from_json(typing.cast(type, hint), value, where)
    origin, options = typing.get_origin(hint), typing.get_args(hint)
    if origin is Literal:
        good = value in options
    elif origin in (types.UnionType, typing.Union):
        good = any(_is(option, value) for option in options)
    else:
        good = _is(hint, value)
    if not good:
        raise InputError(f"{where} is {value!r}; it must be {getattr(hint, '__name__', hint)}")
    return float(value) if hint is float else value


def _is(hint: Any, value: Any) -> bool:
    if hint is types.NoneType:
        return value is None
    if isinstance(value, bool):
        return hint is bool
    return isinstance(value, int | float) if hint is float else isinstance(value, hint)


def at_home(config: Any, folder: Path) -> Any:
    """Config fields for which the checkpoint keeps a file point to that file."""
    kept = {path.stem: str(path) for path in folder.glob("*.json")}
    names = [f.name for f in dataclasses.fields(config) if f.name in kept and isinstance(getattr(config, f.name), str)]
    return dataclasses.replace(config, **{name: kept[name] for name in names})
