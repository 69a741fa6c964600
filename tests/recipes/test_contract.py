"""What every recipe promises, tried on its tiny preset. A recipe that is added to recipes/ is tried too, as it is."""

import dataclasses
import json
import math
from collections.abc import Iterator
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch

from anyformer import api
from anyformer import recipe as recipes
from anyformer.errors import InputError
from anyformer.report.figures import drawn
from anyformer.training import checkpoints as checkpoint
from anyformer.training import loop
from anyformer.training.config import TrainConfig
from anyformer.training.run_directory import describe_run
from cli_kit import call

STEPS, SOME = 4, 3
pytestmark = pytest.mark.parametrize("name", recipes.list_recipes())


@lru_cache
def tiny(name: str) -> tuple[recipes.Recipe, Any]:
    """The recipe, and its tiny preset with a few small steps on a CPU."""
    recipe = recipes.load_recipe(name)
    config = recipe.PRESETS["tiny"]
    few = {"steps": STEPS, "batch": 4, "eval_every": 2, "eval_batches": 2, "device": "cpu", "dtype": "float32"}
    return recipe, dataclasses.replace(config, train=dataclasses.replace(config.train, **few))


def batches(name: str, split: str, state: recipes.StreamState | None = None) -> Iterator[tuple[dict, recipes.StreamState]]:
    recipe, config = tiny(name)
    return recipe.batches(config, split, state)


def some(name: str, split: str = "val") -> Iterator[dict]:
    return (batch for batch, _ in islice(batches(name, split), SOME))


def built(name: str, seed: int = 0) -> torch.nn.Module:
    recipe, config = tiny(name)
    torch.manual_seed(seed)
    return recipe.build(config)


def trained(name: str) -> tuple[loop.TrainState, list[dict]]:
    recipe, config = tiny(name)
    state = loop.init_state(recipe, config)
    return state, list(loop.train(recipe, config, state))


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def test_its_flags_do_not_clash(name: str, tmp_path: Path):
    """`anyformer train NAME` knows each field by its name, and some of all recipes' by short ones (--steps)."""
    few = ("--steps", 1, "--device", "cpu", "--train.batch", 2, "--train.eval-batches", 1)
    call("train", name, "--preset", "tiny", *few, "--out", tmp_path / "run").well()


def test_it_has_the_six_names_and_says_what_it_is(name: str):
    recipe, _ = tiny(name)
    for function in ("build", "batches", "loss", "evaluate", "predict"):
        assert callable(getattr(recipe, function)), function
    about = (recipe.__doc__ or "").splitlines()[0]
    assert about.endswith(".") and len(about) <= 120, "the first line says what it does"
    assert f"anyformer train {name}" in (recipe.__doc__ or ""), "the docstring names the command"


def test_presets_are_frozen_and_come_back_from_json(name: str):
    recipe, _ = tiny(name)
    assert next(iter(recipe.PRESETS)) == "tiny"
    for preset, config in recipe.PRESETS.items():
        assert isinstance(config.train, TrainConfig), preset
        with pytest.raises(dataclasses.FrozenInstanceError):
            config.train = None
        stored = json.loads(json.dumps(recipes.to_json(config)))
        assert recipes.parse_dataclass(type(config), stored, preset) == config


def test_a_config_with_an_unknown_name_is_refused(name: str):
    _, config = tiny(name)
    with pytest.raises(InputError, match="unknown field 'trian': did you mean 'train'"):
        recipes.parse_dataclass(type(config), {"trian": {}}, "here")


def test_the_same_seed_builds_the_same_model(name: str):
    first, again, other = built(name).state_dict(), built(name).state_dict(), built(name, seed=1).state_dict()
    assert same(first, again) and not same(first, other)


@pytest.mark.parametrize("stop", [0, 2])
def test_training_batches_go_on_from_any_place(name: str, stop: int):
    straight = list(islice(batches(name, "train"), stop + 4))
    place = json.loads(json.dumps(straight[stop][1]))
    assert isinstance(place["tokens"], int) and isinstance(place["data"], str)
    for (batch, at), (resumed, there) in zip(straight[stop + 1 :], batches(name, "train", place)):
        assert same(batch, resumed) and json.loads(json.dumps(at)) == json.loads(json.dumps(there))
    assert not same(straight[0][0], straight[1][0]), "a stream that stands still"


def test_the_seed_decides_the_batches(name: str):
    recipe, config = tiny(name)
    other = dataclasses.replace(config, train=dataclasses.replace(config.train, seed=config.train.seed + 1))
    first, _ = next(batches(name, "train"))
    assert same(first, next(batches(name, "train"))[0]) and not same(first, next(recipe.batches(other, "train"))[0])


def test_validation_ends_and_is_the_same_each_time(name: str):
    count = 0
    for (batch, _), (again, _) in zip(batches(name, "val"), batches(name, "val"), strict=True):
        assert same(batch, again)
        count += 1
    assert count > 0


def test_the_loss_is_finite_and_reaches_every_weight(name: str):
    recipe, _ = tiny(name)
    model = built(name)
    loss = recipe.loss(model, next(batches(name, "train"))[0])
    assert loss.shape == () and math.isfinite(loss.item())
    loss.backward()
    gradients = {key: p.grad for key, p in model.named_parameters() if p.requires_grad}
    assert {key for key, g in gradients.items() if g is None or not g.isfinite().all()} == set()
    assert any(g.abs().sum() > 0 for g in gradients.values())


def test_training_on_one_batch_learns_it(name: str):
    recipe, config = tiny(name)
    state, (batch, _) = loop.init_state(recipe, config), next(batches(name, "train"))
    losses = []
    for _ in range(20):
        loss = recipe.loss(state.model, batch)
        loss.backward()
        state.optimizer.step(config.train.lr)
        losses.append(loss.item())
    assert losses[-1] < losses[0]


def test_training_is_the_same_for_the_same_seed(name: str):
    (a, records), (b, again) = trained(name), trained(name)
    assert same(a.model.state_dict(), b.model.state_dict()) and records == again
    assert [record["step"] for record in records] == [1, 2, 3, 4]
    assert all(math.isfinite(record["loss"]) for record in records)
    assert {record["step"] for record in records if "val_loss" in record} == {2, 4}
    assert not same(a.model.state_dict(), loop.init_state(*tiny(name)).model.state_dict()), "nothing was learned"


def test_evaluation_is_the_same_each_time(name: str):
    recipe, _ = tiny(name)
    model = built(name).train()
    found = loop.evaluate(recipe, model, some(name))
    assert math.isfinite(found["loss"]) and all(type(value) in (int, float) for value in found.values())
    assert loop.evaluate(recipe, model, some(name)) == found and model.training


def test_prediction_takes_nothing_and_gives_plain_values(name: str):
    recipe, _ = tiny(name)
    model = built(name).eval()
    with torch.inference_mode():
        answer = recipe.predict(model, {})
        assert json.loads(json.dumps(answer)) == answer and recipe.predict(model, {}) == answer
        with pytest.raises(InputError):
            recipe.predict(model, {"no such thing": 1})


def test_its_figures_can_be_drawn(name: str):
    """`figures` is a name that a recipe may leave out."""
    recipe, config = tiny(name)
    for figure in getattr(recipe, "figures", lambda model, config: [])(built(name).eval(), config):
        assert drawn(json.loads(json.dumps(figure))) is not None, figure["title"]


def test_saved_and_loaded_is_the_same_model(name: str, tmp_path: Path):
    recipe, config = tiny(name)
    state, _ = trained(name)
    folder = checkpoint.save_checkpoint(tmp_path, state, describe_run(name, "tiny", config, ""))
    for file, text in getattr(state.model, "files", {}).items():
        assert (folder / file).read_text(encoding="utf-8") == text
    loaded = api.load(folder, "cpu")
    assert same(state.model.state_dict(), loaded.module.state_dict())
    found = loop.evaluate(recipe, state.model, some(name))
    assert loop.evaluate(recipe, loaded.module, some(name)) == found
    with torch.inference_mode():
        assert loaded.predict({}) == recipe.predict(state.model.eval(), {})
