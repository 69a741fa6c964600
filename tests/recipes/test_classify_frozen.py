"""Classify from an encoder that was trained before: a linear head on it, frozen; then fine-tuning."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch

from anyformer import api, recipe_loading
from data_kit import refuses, write

classify: Any = recipe_loading.load_recipe("classify")
MASKED: Any = recipe_loading.load_recipe("masked").PRESETS["tiny"]
FEW = {"steps": 30, "batch": 16, "eval_every": 15, "save_every": 15, "device": "cpu"}
GOOD = [f"a good film, number {i}" for i in range(40)]
BAD = [f"what a bad film it was, {i}" for i in range(60)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file for each class."""
    path = tmp_path_factory.mktemp("reviews")
    write(path / "pos.txt", "".join(f"{text}\n" for text in GOOD))
    write(path / "neg.txt", "".join(f"{text}\n" for text in BAD))
    return path


@pytest.fixture(scope="module")
def encoder(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An encoder of two steps, with dropout."""
    path = tmp_path_factory.mktemp("encoder") / "run"
    model, few = {"dropout": 0.3}, {"steps": 2, "device": "cpu"}
    api.train("masked", "tiny", data=str(folder), out=path, model=dataclasses.replace(MASKED.model, **model), train=few)
    return path


def train_frozen(encoder: Path, folder: Path, out: Path) -> api.Model:
    return api.train("classify", "frozen", data=str(folder), init=encoder, out=out, train=FEW)


def test_a_frozen_encoder_keeps_its_weights_and_reads_every_text_once(
    encoder: Path, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    rows: list[int] = []
    hidden = classify.ClassifyModel.hidden

    def count(self: Any, ids: torch.Tensor, *inputs: Any) -> torch.Tensor:
        if ids.shape[0] > 1:  # not the sample of a validation
            rows.append(ids.shape[0])
        return hidden(self, ids, *inputs)

    monkeypatch.setattr(classify.ClassifyModel, "hidden", count)
    model = train_frozen(encoder, folder, tmp_path / "run")
    assert sum(rows) == 80 + 10 + 6, "30 steps of 16 are six epochs of 80 texts; 10 are for validation, 6 are shown"
    before, after = api.load(encoder, "cpu").module.state_dict(), model.module.state_dict()
    shared = [name for name in before if not name.startswith("head")]
    assert shared and all(torch.equal(before[name], after[name]) for name in shared)
    assert model.evaluate()["accuracy"] == 1.0, "good and bad differ by their letters"
    texts = [GOOD[0], BAD[0]]
    answers = [result["label"] for result in api.load(tmp_path / "run", "cpu").predict(texts)["results"]]
    assert answers == ["pos", "neg"]


def test_a_frozen_training_resumes_bit_for_bit(encoder: Path, folder: Path, tmp_path: Path):
    class InterruptionError(Exception):
        pass

    def interrupt(record: dict[str, Any]) -> None:
        if record["step"] == 17:
            raise InterruptionError

    settings = {"data": str(folder), "init": encoder, "train": FEW}
    api.train("classify", "frozen", out=tmp_path / "complete", **settings)
    with pytest.raises(InterruptionError):
        api.train("classify", "frozen", out=tmp_path / "part", on_record=interrupt, **settings)
    api.train("classify", out=tmp_path / "part", resume=True)
    weights = [
        (tmp_path / name / "checkpoints/step-30/model.safetensors").read_bytes() for name in ("complete", "part")
    ]
    assert weights[0] == weights[1]


def test_fine_tuning_starts_from_a_frozen_run(encoder: Path, folder: Path, tmp_path: Path):
    frozen = train_frozen(encoder, folder, tmp_path / "frozen")
    tuned = api.train("classify", init=tmp_path / "frozen", data=str(folder), out=tmp_path / "tuned", steps=2)
    assert not tuned.config.frozen and frozen.config.frozen
    assert not torch.equal(tuned.module.nodes.token.weight.cpu(), frozen.module.nodes.token.weight)


def test_frozen_needs_an_encoder_and_nothing_else(encoder: Path, folder: Path):
    with refuses("frozen trains a head on an encoder", "--init RUN"):
        api.train("classify", "frozen", data=str(folder))
    with refuses("frozen trains the head alone", "--lora.rank"):
        api.train("classify", "frozen", data=str(folder), init=encoder, lora={"rank": 2})
