"""Notes over HTTP: they are beside the text in every format, and equal to those of a model alone."""

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from anyformer.data.tokenizers.build import Characters
from anyformer.recipe_loading import load_recipe
from anyformer.recipes._shared.language import LanguageModel
from anyformer.trained_model import Model
from serve_kit import RunningServer, add_noise, assert_error, serve

PROMPT = "[a = b]b" + "a" * 60 + "[a = ab]b[b = b]" + "b" * 50
NOTES = ["a = ab", "b = b"]


@pytest.fixture(scope="module")
def model() -> Model:
    recipe = load_recipe("language")
    config: Any = dataclasses.replace(recipe.PRESETS["tiny"], note_start="[", note_end="]", note_tokens=8)
    return Model(recipe, config, add_noise(LanguageModel(config, Characters("ab =[]"))), {"step": 0}, Path())


@pytest.fixture(scope="module")
def server(model: Model) -> Iterator[RunningServer]:
    with serve({"notes": model}) as running:
        yield running


def test_notes_are_beside_the_text(server: RunningServer, model: Model):
    settings: dict[str, Any] = {"temperature": 0, "seed": 1, "logit_bias": {"4": -100.0, "5": -100.0}}
    alone, body = model.generate(PROMPT, tokens=3, **settings), {"prompt": PROMPT, **settings}
    choice = server.post("/v1/completions", body | {"max_tokens": 3}).json()["choices"][0]
    sample = server.post("/v1/predict", body | {"tokens": 3}).json()["samples"][0]
    assert choice["notes"] == sample["notes"] == alone["samples"][0]["notes"] == NOTES
    assert choice["text"] == sample["text"] == alone["samples"][0]["text"]


def test_a_text_to_be_read_in_pieces_is_refused(server: RunningServer):
    response = server.post("/v1/predict", {"prompt": PROMPT, "notes": True})
    assert_error(response, 400, "notes: a batch reads no text in pieces: use anyformer sample --notes")
