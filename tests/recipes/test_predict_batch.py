"""Inputs that are answered together get the answers that they get one by one; files of every kind of recipe."""

import csv
import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from anyformer import recipe as recipes
from anyformer import recipe_loading
from anyformer.predict_file import predict_file
from data_kit import SMALL_DATA, refuses

QUICK = {
    "test_every_recipe_answers_a_file": {
        "language",
        "translation",
        "vision",
        "classify",
        "forecast",
        "spans",
        "msa",
        "grpo",
        "music",
        "control",
        "speech",
    },
}  # with which parameters a test runs each time; with all others it is slow (conftest.py)

BATCHED = [
    name
    for name in recipe_loading.list_recipes()
    if isinstance(recipe_loading.load_recipe(name), recipes.SupportsBatchPredict)
]
TEXTS = ["a", "the spring song", "and so", "bright song friends and", "no"]
PAIRS, PROMPTS = (
    ("translation", "mask_predict", "seq2seq", "rnnsearch"),
    ("chat", "preference", "grpo", "language", "recall", "mlp"),
)
INPUTS: dict[str, list[Any]] = {
    "classify": TEXTS,
    "tagging": TEXTS,
    "masked": ["to [MASK]e", "[MASK]", "the [MASK]at s[MASK]t on the mat", "what is it, my lor[MASK]?"],
    "music": ["M:6/8\nK:G\n", "M:6/8\nK:G\nGBB BAG|", "M:9/8", "M:3/4", "M:C|\nK:Ador\nABc"],
    "diffusion": ["to ___ or", "___ a", "the ___ sat ___", "no___"],
    "spans": ["to ___ or", "___ a", "the ___ sat ___", "no___"],
    "text2image": ["1", "a 3", "8", "7", "the 0"],
    "tts": ["one", "three", "eight", "seven", "zero"],
    **{name: ["1", "12345", "98765432", "00", "31415926"] for name in PAIRS},
    **{name: TEXTS for name in PROMPTS},
    "msa": ["A" * 24, "ACDE-" * 4 + "WWWW", "-" * 26],
}
SETTINGS = {name: {"tokens": 6} for name in (*PROMPTS, "music")}


def build(name: str) -> tuple[recipes.Recipe, Any, Any]:
    recipe = recipe_loading.load_recipe(name)
    config = recipe.PRESETS["tiny"]
    config = dataclasses.replace(config, data=str(SMALL_DATA.get(name, config.data)))
    torch.manual_seed(0)
    return recipe, recipe.build(config).eval(), config


def write_images(folder: Path, size: tuple[int, ...]) -> list[str]:
    image = pytest.importorskip("PIL.Image")
    rng = np.random.default_rng(0)
    for i in range(5):
        image.fromarray(rng.integers(0, 256, (12 + i, 10), np.uint8)).save(folder / f"{i}.png")
    return [str(folder / f"{i}.png") for i in range(5)]


def write_sounds(folder: Path) -> list[str]:
    """Write sounds of different length, one of them longer than a window."""
    from anyformer.data.audio.datasets import load_tones

    soundfile = pytest.importorskip("soundfile")
    clips = [load_tones().read_clip(i) for i in range(7)]
    sounds = [clips[0], np.concatenate(clips[1:3]), clips[3][:3000], np.concatenate(clips)]
    for i, sound in enumerate(sounds):
        soundfile.write(folder / f"{i}.wav", sound, 16000)
    return [str(folder / f"{i}.wav") for i in range(len(sounds))]


def make_episodes(model: Any) -> list[dict[str, Any]]:
    """Make episodes of different length, the longest longer than the context."""
    rng, sizes = np.random.default_rng(0), model.normalizer
    shape = () if sizes.discrete else (sizes.actions,)
    episodes = []
    for n in (1, model.context, 3, model.context + 2):
        actions = rng.integers(0, sizes.actions, n - 1) if sizes.discrete else rng.normal(size=(n - 1, *shape))
        states = rng.normal(size=(n, sizes.states))
        episodes.append({"states": states.tolist(), "actions": actions.tolist(), "returns": [1.0] * n, "start": n % 3})
    return episodes


def make_inputs(name: str, model: Any, folder: Path) -> list[Any]:
    if name == "speech":
        return write_sounds(folder)
    if name == "control":
        return make_episodes(model)
    if name in ("vision", "contrastive"):
        return write_images(folder, model.size)
    if name == "multimodal":
        recipe, _, config = build(name)
        rows = recipe.examples(config).request["input"]
        return [*rows, {key: value for key, value in rows[0].items() if key != model.schema.fields[0].name}]
    return INPUTS[name]


def assert_close(a: Any, b: Any) -> None:
    """Equal, but numbers within what the order of a sum changes."""
    assert type(a) is type(b)
    if isinstance(a, dict):
        assert list(a) == list(b) or sorted(a) == sorted(b)
        for key in a:
            assert_close(a[key], b[key])
    elif isinstance(a, list):
        assert len(a) == len(b)
        for x, y in zip(a, b):
            assert_close(x, y)
    elif isinstance(a, float):
        assert a == pytest.approx(b, rel=1e-4, abs=1e-5)
    else:
        assert a == b


@pytest.mark.parametrize("name", BATCHED)
def test_batched_answers_equal_single_ones(name: str, tmp_path: Path):
    recipe, model, _ = build(name)
    settings, inputs = SETTINGS.get(name, {}), make_inputs(name, model, tmp_path)
    with torch.no_grad():
        batched = recipe.predict_batch(model, inputs, settings)
        reversed_batch = recipe.predict_batch(model, inputs[::-1], settings)[::-1]
        answers = [recipe.predict(model, settings | {"input": value}) for value in inputs]
    singles = [(answer.get("results") or answer["samples"])[0] for answer in answers]
    assert len({json.dumps(answer) for answer in singles}) > 1, "the inputs are told apart"
    assert_close(batched, singles)
    assert_close(reversed_batch, singles)


def test_every_recipe_answers_in_batches():
    assert set(BATCHED) == set(recipe_loading.list_recipes()) - {"forecast", "generalist"}, "a whole file, its tasks"


def write_inputs(name: str, recipe: Any, model: Any, config: Any, folder: Path) -> Path:
    """Write a jsonl table with a few inputs of a recipe."""
    columns = recipe.file_input(model, config).columns
    rows = make_inputs(name, model, folder)
    if not isinstance(rows[0], dict):
        is_path = name in ("vision", "contrastive", "speech")
        rows = [{columns[0]: Path(value).name if is_path else value} for value in rows]
    file = folder / "in.jsonl"
    file.write_text("".join(json.dumps(row | {"row": i}) + "\n" for i, row in enumerate(rows)), encoding="utf-8")
    return file


@pytest.mark.parametrize("name", BATCHED)
def test_every_recipe_answers_a_file(name: str, tmp_path: Path):
    recipe, model, config = build(name)
    assert isinstance(recipe, recipes.SupportsFileInput)
    file = write_inputs(name, recipe, model, config, tmp_path)
    settings = SETTINGS.get(name, {})
    with torch.no_grad():
        for batch, out in ((64, "a.csv"), (1, "b.csv"), (64, "c.jsonl")):
            result = predict_file(recipe, model, config, file, tmp_path / out, batch, settings=settings)
            assert result["rows"] >= 2 and result["skipped"] == 0
    with open(tmp_path / "a.csv", newline="") as first, open(tmp_path / "b.csv", newline="") as second:
        batched, singles = list(csv.DictReader(first)), list(csv.DictReader(second))
    full = [json.loads(line) for line in (tmp_path / "c.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [int(row["row"]) for row in batched] == [row["row"] for row in full] == list(range(result["rows"]))
    for row, single in zip(batched, singles, strict=True):
        assert_close(*[{key: parse(value) for key, value in values.items()} for values in (row, single)])
    assert any(name.endswith(("label", "value", "text", "action", "png")) for name in batched[0]), list(batched[0])
    assert not {"tokens", "masks", "gaps", "probabilities", "input", "prompt"} & batched[0].keys()


def parse(value: str) -> Any:
    try:
        return float(value)
    except ValueError:
        return value


@pytest.mark.parametrize("name", ["classify", "translation"])
def test_texts_of_a_file_are_cut_where_training_cut_them(name: str, tmp_path: Path):
    recipe, model, config = build(name)
    column = recipe.file_input(model, config).columns[0]
    long = "1" * 500 if name == "translation" else "the spring song " * 99
    (tmp_path / "a.csv").write_text(f"{column}\n{long}\n")

    def predict(too_long: str, **settings: Any) -> dict[str, Any]:
        changed = dataclasses.replace(config, too_long=too_long)
        return predict_file(recipe, model, changed, tmp_path / "a.csv", tmp_path / "b.jsonl", settings=settings)

    assert predict("cut")["rows"] == 1
    with refuses("a.csv, line 2", "let it be cut"):
        predict("few")
    assert predict("few", cut=True)["rows"] == 1, "the person decides otherwise"
    with refuses("let it be cut"):
        predict("cut", cut=False)
