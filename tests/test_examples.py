"""The answers that a training shows are to rows of its own validation split, with the truth beside them; only the run
directory holds these rows."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from anyformer import api, recipe_loading
from anyformer.answer_text import MAX_INPUT_CHARS, format_prediction
from anyformer.examples import find_examples, predict_examples
from anyformer.recipe import Examples
from anyformer.recipes import classify, masked
from anyformer.training.run_directory import RunDirectory
from cli_kit import call
from data_kit import write

QUICK = {
    "test_a_training_shows_rows_of_its_validation_split": {"spans-write_text", "speech-write_sounds"},
}  # with which parameters a test runs each time; with all others it is slow (conftest.py)

COLORS = ("red", "green", "blue", "gray", "pink")
LINES = [f"a {color} fox {i} x" for i in range(12) for color in COLORS]


def write_pairs(folder: Path) -> Path:
    return write(folder / "pairs.tsv", "".join(f"{line}\t{line.upper()}\n" for line in LINES))


def write_labeled(folder: Path) -> Path:
    return write(folder / "rows.csv", "text,label\n" + "".join(f"{line},{line.split()[1]}\n" for line in LINES))


def write_tagged(folder: Path) -> Path:
    sentences = ("".join(f"{word} {'COLOR' if word in COLORS else 'O'}\n" for word in line.split()) for line in LINES)
    return write(folder / "a.conll", "\n".join(sentences))


def write_text(folder: Path) -> Path:
    return write(folder / "a.txt", "\n".join(LINES))


def write_sounds(folder: Path) -> Path:
    soundfile = pytest.importorskip("soundfile", reason="sound files are read through it")
    rng = np.random.default_rng(0)
    for i in range(12):
        soundfile.write(folder / f"{i}.wav", 0.1 * rng.standard_normal(3000), 16000)
    return write(folder / "clips.csv", "path,text\n" + "".join(f"{i}.wav,{COLORS[i % 5]}\n" for i in range(12)))


OWN_DATA = {
    "translation": write_pairs,
    "rnnsearch": write_pairs,
    "classify": write_labeled,
    "tagging": write_tagged,
    "masked": write_text,
    "spans": write_text,
    "speech": write_sounds,
}


@pytest.mark.parametrize(("name", "write_data"), OWN_DATA.items())
def test_a_training_shows_rows_of_its_validation_split(name: str, write_data: Callable, tmp_path: Path):
    data, out = write_data(tmp_path), tmp_path / "run"
    settings: dict[str, Any] = {"data": str(data), "tokenizer": "char", "steps": 2, "device": "cpu"}
    model = api.train(name, "tiny", out=out, progress=False, **settings)
    examples = RunDirectory(out).read_examples()
    inputs, truths = examples.request["input"], examples.truths
    assert 1 <= len(inputs) == len(truths) <= 3
    for answers in (model.predict(), api.load(out).predict()):
        assert [result["input"] for result in answers["results"]] == inputs
        assert [result["truth"] for result in answers["results"]] == truths
    assert all(f"(truth: {truth})" in (out / "samples.txt").read_text() for truth in truths)
    assert not list(model.path.glob("examples*")) and not any(
        text in path.read_text() for path in model.path.glob("*.json") for text in inputs
    )
    printed = call("predict", out)
    assert [json.loads(line)["truth"] for line in printed.out.splitlines()] == truths


def test_rows_of_a_table_are_in_the_run_and_not_in_the_checkpoint(tmp_path: Path):
    rows = [f"{i},{'red' if i % 3 else 'blue'}" for i in range(60)]
    data = write(tmp_path / "rows.csv", "\n".join(["size,color", *rows]) + "\n")
    settings = {"data": str(data), "schema": "inferred", "target": "color", "steps": 2, "device": "cpu"}
    model = api.train("multimodal", "tiny", out=tmp_path / "run", progress=False, **settings)
    shown = RunDirectory(tmp_path / "run").read_examples().request["input"]
    assert shown and {f"{int(row['size'])},{row['color']}" for row in shown} <= {*rows}
    assert [result["truth"] for result in model.predict()["results"]] == [row["color"] for row in shown]
    assert "examples" not in json.loads((model.path / "schema.json").read_text())


def test_examples_are_of_the_validation_split(tmp_path: Path):
    config: Any = dataclasses.replace(classify.PRESETS["tiny"], data=str(write_labeled(tmp_path)))
    data, examples = classify.load_texts(config), find_examples(classify, config)
    assert {data.texts[i] for i in data.split("val")} >= set(examples.request["input"])
    config = dataclasses.replace(masked.PRESETS["tiny"], data=str(write_text(tmp_path)))
    corpus = masked.load_mixture(config).sources[0].corpus
    text = corpus.tokenizer.decode(corpus.split("val").tolist())
    for hidden, truth in zip(find_examples(masked, config).request["input"], find_examples(masked, config).truths):
        assert truth in text and len(hidden) == len(truth) + len("[MASK]") - 1, "one character is hidden"


def test_a_run_without_examples_answers_the_recipes_own(tmp_path: Path):
    recipe: Any = recipe_loading.load_recipe("classify")
    model = api.train(
        "classify", "tiny", data=str(write_labeled(tmp_path)), out=tmp_path / "run", steps=2, device="cpu"
    )
    own = recipe.predict(model.module, {})
    (tmp_path / "run" / "examples.json").unlink()
    assert model.predict() == own
    assert predict_examples(recipe, model.module, Examples({"input": 3}, ["red"])) == own, "no longer answerable"


def test_answers_as_text():
    results: list[dict[str, Any]] = [
        {"input": "a\nb", "text": "c", "truth": "d"},
        {"label": "cat", "probability": 0.934, "truth": "dog"},
        {"input": "x" * 500, "label": "cat"},
        {"value": 1.23456},
        {"color": {"label": "red"}, "price": {"value": 2.0}},
        {"action": [1, 2]},
    ]
    assert format_prediction({"results": results})[0].split("\n") == [
        "a b → c (truth: d)",
        "cat, probability 0.93 (truth: dog)",
        f"{'x' * MAX_INPUT_CHARS}… → cat",
        "1.235",
        "color: red; price: 2",
        '{"action": [1, 2]}',
    ]
    assert format_prediction({"samples": [{"text": "once"}, {"text": "upon"}]}) == ["once", "upon"]
    assert format_prediction({"results": []}) == []
