"""The lab recall: what a store adds to a model on a text that it has not seen, beside n-gram counts."""

import json
from pathlib import Path

import pytest

from anyformer import api
from cli_kit import assert_refused, call

OLD = "the cat sat on the mat. the dog sat on the log. the rat ate the malt.\n" * 40
NEW = "zebras graze at dusk; foxes doze in the oak, and owls quote verse.\n" * 60


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("recall-lab")
    (folder / "old.txt").write_text(OLD)
    (folder / "new.txt").write_text(NEW)
    fields = {"data": str(folder / "old.txt"), "tokenizer": "byte", "steps": 20, "progress": False}
    api.train("language", "tiny", out=folder / "run", **fields)
    return folder


def test_the_lab_compares_predictors_and_measures_the_search(folder: Path):
    out = folder / "lab"
    flags = ("--data", folder / "new.txt", "--megabytes", 0.003, "--out", out, "--json")
    result = call("lab", "recall", "--run", folder / "run", *flags).ok()
    bits = result.json["bits_per_byte"]
    assert bits["the model and the store"] < 0.2 * bits["the model alone"]
    assert bits["the model and counts"] <= min(bits["the model alone"], bits["n-gram counts alone"]) + 0.01
    assert {name: round(value, 2) for name, value in bits.items()}["n-gram counts alone"] < 0.5
    assert result.json["searches"][-1]["found"] == 1.0
    facts = json.loads((out / "lab.json").read_text())
    assert facts["settings"]["megabytes"] == 0.003 and facts["tokens"] == result.json["tokens"]
    assert facts["tokens"] + facts["tuning_tokens"] == 0.9 * 3000 - 1, "of the beginning of the text"
    page = (out / "report.html").read_text()
    assert "n-gram counts alone" in page and "A text that the model was not trained on" in page


def test_what_makes_no_sense_is_refused(folder: Path, tmp_path: Path):
    flags = ("--data", folder / "new.txt", "--out", tmp_path / "lab")
    assert_refused(call("lab", "recall", "--run", tmp_path, *flags), "has no checkpoint")
    assert_refused(call("lab", "recall", "--megabytes", 0), "--megabytes is 0")
