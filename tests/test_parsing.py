"""The typed parser of configs and requests: what is right comes back equal, what is wrong is one line."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from anyformer import parsing
from anyformer.errors import InputError
from anyformer.parsing import parse_dataclass, path_field, to_json
from anyformer.recipe_loading import bind_checkpoint_files, list_recipes, load_recipe, parse_config, resolve_paths


@dataclass(frozen=True)
class Inner:
    width: int = 8
    kind: Literal["wide", "deep"] = "wide"

    def __post_init__(self) -> None:
        if self.width < 1:
            raise ValueError(f"width is {self.width}; it must be at least 1")


@dataclass(frozen=True)
class Settings:
    steps: int = 1
    lr: float = 0.1
    sizes: tuple[int, ...] = ()
    pair: tuple[int, float] = (1, 2.0)
    mode: Literal["a", "b"] | None = None
    prompt: Sequence[str] | str = ""
    limit: float | None = None
    names: list[str] = field(default_factory=list)
    weights: dict[str, float] = field(default_factory=dict)
    is_on: bool = False
    inner: Inner = field(default_factory=Inner)
    maybe: Inner | None = None


finite = st.floats(allow_nan=False, allow_infinity=False)
integers = st.integers(-(2**63) + 1, 2**63 - 1)
settings = st.builds(
    Settings,
    steps=integers,
    lr=finite,
    sizes=st.lists(integers).map(tuple),
    pair=st.tuples(integers, finite),
    mode=st.sampled_from(["a", "b", None]),
    prompt=st.text() | st.lists(st.text()).map(tuple),
    limit=finite | st.none(),
    names=st.lists(st.text()),
    weights=st.dictionaries(st.text(), finite),
    is_on=st.booleans(),
    inner=st.builds(Inner, width=st.integers(1, 2**63 - 1), kind=st.sampled_from(["wide", "deep"])),
    maybe=st.none() | st.builds(Inner, width=st.integers(1, 2**63 - 1)),
)


@given(settings)
def test_json_and_back(config: Settings):
    assert parse_dataclass(Settings, to_json(config)) == config


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"steps": 10**5000}, "steps is too large a number (about 5,000 digits); it must be a whole number"),
        ({"steps": 2**63}, "steps is too large a number (about 19 digits); it must be a whole number"),
        ({"steps": ["x" * 99]}, "steps is ['" + "x" * 58 + " ...; it must be a whole number"),
        ({"steps": [10**5000]}, "steps is a list; it must be a whole number"),
        ({"steps": "5"}, "steps is '5'; it must be a whole number"),
        ({"steps": 5.0}, "steps is 5.0; it must be a whole number"),
        ({"steps": True}, "steps is True; it must be a whole number"),
        ({"steps": None}, "steps is None; it must be a whole number"),
        ({"lr": float("nan")}, "lr is nan; it must be a finite number"),
        ({"lr": float("inf")}, "lr is inf; it must be a finite number"),
        ({"lr": "much"}, "lr is 'much'; it must be a finite number"),
        ({"sizes": [1, "2"]}, "sizes[1] is '2'; it must be a whole number"),
        ({"sizes": 1}, "sizes is 1; it must be a list, each item a whole number"),
        ({"pair": [1]}, "pair has 1 values; it must be a list of 2 values"),
        ({"mode": "c"}, "mode is 'c': valid: a, b"),
        ({"prompt": 3}, "prompt is 3; it must be a list, each item a text or a text"),
        ({"limit": "x"}, "limit is 'x'; it must be a finite number or None"),
        ({"weights": {"a": "b"}}, "weights.a is 'b'; it must be a finite number"),
        ({"is_on": 1}, "is_on is 1; it must be true or false"),
        ({"inner": {"kind": "wid"}}, "inner.kind is 'wid': did you mean 'wide'? valid: wide, deep"),
        ({"inner": {"widht": 1}}, "inner: unknown field 'widht': did you mean 'width'? valid: width, kind"),
        ({"inner": {"width": 0}}, "inner.width is 0; it must be at least 1"),
        ({"inner": 3}, "inner: expected an object for Inner, found 3"),
        ({"maybe": {"width": 0}}, "maybe.width is 0; it must be at least 1"),
        ([], "expected an object for Settings, found []"),
    ],
)
def test_a_wrong_value_is_one_line(values: Any, message: str):
    with pytest.raises(InputError) as error:
        parse_dataclass(Settings, values, "here")
    assert str(error.value) == f"here: {message}"


def test_numbers_of_numpy_become_plain_numbers():
    config = parse_dataclass(Settings, {"steps": np.int64(3), "lr": np.float32(0.5), "limit": 2})
    assert (type(config.steps), type(config.lr), type(config.limit)) == (int, float, float)


# --- old spellings ---


@pytest.mark.parametrize("recipe", list_recipes())
def test_old_field_names_are_read_and_new_ones_written(recipe: str):
    module = load_recipe(recipe)
    for config in module.PRESETS.values():
        new = to_json(config)
        spellings = {name: old for old, name in parsing.RENAMED_FIELDS.items() if old not in new}
        old = {spellings.get(name, name): value for name, value in new.items()}
        assert to_json(parse_config(module, old, "old run")) == new


# --- paths ---


@dataclass(frozen=True)
class Paths:
    data: str = path_field("plays")
    tokenizer: str = path_field("bpe", [".json"])
    state: str = "s"
    config: str = "c"


def test_paths_become_absolute_and_names_stay_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    for name in ("a.txt", "b.txt", "tok.json", "bpe"):
        (tmp_path / name).touch()
    resolved = resolve_paths(Paths(data="a.txt,b.txt", tokenizer="tok.json"))
    assert resolved.data == f"{tmp_path / 'a.txt'},{tmp_path / 'b.txt'}"
    assert resolved.tokenizer == str(tmp_path / "tok.json")
    for names in (Paths(), Paths(data="missing.txt"), Paths(tokenizer="missing.json"), Paths(data="x" * 5000)):
        assert resolve_paths(names) == names


def test_a_checkpoint_binds_its_own_files_but_not_its_records(tmp_path: Path):
    """Fields named `state` and `config` were set to the paths of state.json and config.json."""
    for name in ("tokenizer.json", "state.json", "config.json"):
        (tmp_path / name).touch()
    bound = bind_checkpoint_files(Paths(), tmp_path)
    assert bound == dataclasses.replace(Paths(), tokenizer=str(tmp_path / "tokenizer.json"))
