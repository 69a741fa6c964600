"""What `detect` recognizes is read under the columns it names, and trained on: one step for each form."""

import dataclasses
from pathlib import Path

import pytest
import torch

from anyformer.answer_text import format_prediction
from anyformer.detection import detect_recipe
from anyformer.recipe_loading import load_recipe
from data_kit import refuses
from forms_kit import FORMS

SMALL = {
    "language": {},
    "tagging": {"tokenizer": "byte"},
    "forecast": {"target": "", "past_covariates": "", "future_covariates": "", "patch": 4},
}


@pytest.mark.parametrize("name", FORMS)
def test_a_form_is_trained_on(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("ANYFORMER_CACHE", str(tmp_path / "cache"))
    (tmp_path / "data").mkdir()
    build, recipe_name, fields = FORMS[name]
    detection = detect_recipe(build(tmp_path / "data") or tmp_path / "data")
    assert (detection.recipe, detection.is_sure) == (recipe_name, True)
    assert detection.fields | fields == detection.fields
    recipe = load_recipe(recipe_name)
    values = {"schema": "inferred"} if recipe_name == "multimodal" else SMALL.get(recipe_name, {})
    values |= {"tokenizer": "residues"} if recipe_name == "masked" else {}
    config = dataclasses.replace(recipe.PRESETS["tiny"], **values | detection.fields)
    if recipe_name == "multimodal":
        config = dataclasses.replace(config, model=dataclasses.replace(config.model, context=256))
    model, batch = recipe.build(config), next(recipe.batches(config, "train"))[0]
    loss = recipe.loss(model, batch)
    loss.backward()
    assert torch.isfinite(loss)
    assert recipe.predict(model.eval(), {})


def test_a_sound_is_asked_and_shown_by_its_path(tmp_path: Path):
    """An answer to a row without its only field would be a guess."""
    build = FORMS["commands"][0]
    recipe, folder = load_recipe("multimodal"), build(tmp_path) or tmp_path
    detection = detect_recipe(folder)
    config = dataclasses.replace(recipe.PRESETS["tiny"], schema="inferred", **detection.fields)
    config = dataclasses.replace(config, model=dataclasses.replace(config.model, context=256))
    model = recipe.build(config).eval()
    assert all(Path(row["sound"]).is_file() for row in recipe.examples(config).request["input"])
    assert recipe.predict(model, {}) == {"results": []} and format_prediction({"results": []}) == []
    path = next(iter(sorted(Path(folder).rglob("*.wav"))))
    (result,) = recipe.predict(model, {"input": str(path)})["results"]
    assert result["label"] in model.schema.targets[0].values
    with refuses("nowhere.wav: there is no such file"):
        recipe.predict(model, {"input": "nowhere.wav"})
