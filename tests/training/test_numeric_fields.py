"""Every numeric field of every recipe's config: a bad value is refused in one line, or training makes sense.

Fields are found by inspecting the dataclasses, so that a new field is covered without being listed here.
"""

import dataclasses
import math
import re
import types
import typing
from collections.abc import Iterator
from itertools import islice, product
from typing import Any

import pytest

from anyformer.errors import TrainingError
from anyformer.parsing import parse_dataclass, to_json
from anyformer.recipe_loading import list_recipes, load_recipe
from anyformer.training import loop
from anyformer.training.config import LoRAConfig, TrainConfig
from data_kit import SMALL_DATA

QUICK = {
    "test_numeric_fields": {"language", "translation", "forecast", "multimodal"},
}  # with which parameters a test runs each time; with all others it is slow (conftest.py)


VALUES = (-1, 0, math.nan, math.inf, 1e30, "text")
READ_BY_RECIPES = ("batch", "seed")  # what else a TrainConfig has only the loop reads: it is trained for one recipe
MACHINE = {"device": "cpu", "dtype": "float32", "eval_every": 1_000_000}


def is_numeric(hint: Any) -> bool:
    if typing.get_origin(hint) in (types.UnionType, typing.Union):
        return any(is_numeric(option) for option in typing.get_args(hint))
    return hint in (int, float)


def numeric_fields(config: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """Yield the path of every numeric field of nested dataclasses."""
    hints = typing.get_type_hints(type(config))
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            yield from numeric_fields(value, (*path, field.name))
        elif is_numeric(hints[field.name]):
            yield (*path, field.name)


def replace_at(config: Any, path: tuple[str, ...], value: Any) -> Any:
    name, *inner = path
    return dataclasses.replace(config, **{name: replace_at(getattr(config, name), inner, value) if inner else value})


def judge_message(error: ValueError, path: tuple[str, ...]) -> str:
    """Return what is wrong with the message of an error; nothing if it is one line that names the field."""
    message, name = str(error), path[-1]
    is_named = name in message or name.replace("_", "-") in message
    return "" if "\n" not in message and len(message) < 500 and is_named else f"unclear message: {message}"


def judge_training(name: str, config: Any, path: tuple[str, ...]) -> str:
    """Build and take two steps. Return what is wrong: nothing if losses are finite, or a line names the field."""
    try:
        for record in islice(loop.train(load_recipe(name), config), 2):
            if not (math.isfinite(record["loss"]) and math.isfinite(record["grad_norm"])):
                return f"loss {record['loss']}, gradient {record['grad_norm']}"
    except TrainingError:  # in one line, with what to try
        return ""
    except ValueError as error:
        return judge_message(error, path)
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return ""


@pytest.mark.parametrize("name", list_recipes())
def test_numeric_fields(name: str):
    tiny = load_recipe(name).PRESETS["tiny"]
    tiny = dataclasses.replace(tiny, data=str(SMALL_DATA.get(name, tiny.data)))
    tiny = dataclasses.replace(tiny, train=dataclasses.replace(tiny.train, batch=2, **MACHINE))
    assert len(list(numeric_fields(tiny))) > 15
    failures, accepted = {}, 0
    for path, value in product(numeric_fields(tiny), VALUES):
        try:
            config = replace_at(tiny, path, value)
        except ValueError as error:
            failure = judge_message(error, path)
        except Exception as error:
            failure = f"{type(error).__name__}: {error}"
        else:
            accepted += 1
            if isinstance(value, str) or not math.isfinite(value):
                failure = "accepted"
            elif parse_dataclass(type(tiny), to_json(config), "") != config:
                failure = "stored and read again, it differs"
            elif name == "language" or path[0] != "train" or path[1] in READ_BY_RECIPES:
                failure = judge_training(name, config, path)
            else:
                failure = ""
        if failure:
            failures[f"{'.'.join(path)}={value}"] = failure
    assert failures == {}
    assert accepted > 5, "everything is refused"


def test_numeric_fields_of_adapters():
    for path in numeric_fields(LoRAConfig()):
        for value in (-1, math.nan, math.inf, "text"):
            with pytest.raises(ValueError, match=path[-1]):
                replace_at(LoRAConfig(), path, value)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"optimizer": "sgd"}, "optimizer is 'sgd': valid: adamw, muon"),
        ({"schedule": "cosin"}, "schedule is 'cosin': did you mean 'cosine'? valid: cosine, trapezoid"),
        ({"dtype": "bfloat"}, "dtype is 'bfloat': did you mean 'bfloat16'? valid: auto, float32, bfloat16, float16"),
        ({"steps": True}, "steps is True; it must be a whole number"),
        ({"compile": 1}, "compile is 1; it must be true or false"),
        ({"lr": 10.0, "weight_decay": 1.0}, "weight_decay is 1.0 and lr 10.0; their product must be at most 1"),
    ],
)
def test_other_settings_of_training(values: dict, message: str):
    with pytest.raises(ValueError, match=re.escape(message)):
        TrainConfig(**values)
