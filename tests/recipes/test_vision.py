"""Vision: edges of nearby patches, batches, predictions for files, runs on other data, and mistakes."""

import dataclasses
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from anyformer import api, recipe_loading
from anyformer.data.images.preprocessing import MAX_EXAMPLES, uniform_preprocessor
from anyformer.model.edges import full, hops
from cli_kit import call
from data_kit import refuses, write

vision: Any = recipe_loading.load_recipe("vision")
TINY = vision.PRESETS["tiny"]
LAYER = dataclasses.replace(TINY, patch=2, local_layers=1, model=dataclasses.replace(TINY.model, context=17))


# --- nodes and edges ---


@torch.no_grad()
def test_without_position_the_class_node_reads_a_set():
    models = [
        vision.build(dataclasses.replace(TINY, model=dataclasses.replace(TINY.model, position=position))).eval()
        for position in ("none", "learned")
    ]
    image = torch.randint(256, (1, 1, 8, 8), dtype=torch.uint8)
    swapped = torch.cat([image[:, :, 4:], image[:, :, :4]], dim=2)  # the patches in another order
    torch.testing.assert_close(models[0](image), models[0](swapped))
    assert not torch.allclose(models[1](image), models[1](swapped))


def test_local_layers_read_nearby_patches_and_the_class_node_all():
    local, last = vision.build_layer_edges(LAYER)
    assert last is full
    mask = local.build_mask(1, 17, 17)[0, 0]
    assert mask[0].all() and mask[:, 0].all()
    for q in range(16):
        for k in range(16):
            assert mask[q + 1, k + 1] == (abs(q // 4 - k // 4) <= 1 and abs(q % 4 - k % 4) <= 1)
    assert hops([local, last], 17).max() == 1
    without = vision.build_layer_edges(dataclasses.replace(LAYER, pool="mean"))[0]
    assert torch.equal(without.build_mask(1, 16, 16)[0, 0], mask[1:, 1:]) and without.left_span == 5


@pytest.mark.parametrize("preset", list(vision.PRESETS))
def test_every_preset_fits_together(preset: str):
    config = vision.PRESETS[preset]
    preprocessing = uniform_preprocessor(0.5, config.channels).to_json()
    config = dataclasses.replace(config, labels='["a", "b"]', preprocessing=preprocessing, data="")
    with torch.device("meta"):
        model = vision.build(config)
        assert model(torch.zeros(2, config.channels, config.height, config.width)).shape == (2, 2)


def test_the_loss_of_a_mixed_image_is_that_of_its_shares():
    model = vision.build(TINY).eval()
    image = torch.randint(256, (2, 1, 8, 8), dtype=torch.uint8)
    labels, mixed_labels, share = torch.tensor([1, 2]), torch.tensor([3, 4]), torch.tensor([0.25, 0.5])
    batch = {"pixels": image, "labels": labels, "mixed_labels": mixed_labels, "mix_share": share}
    losses = [
        share[i] * vision.loss(model, {"pixels": image[i : i + 1], "labels": labels[i : i + 1]})
        + (1 - share[i]) * vision.loss(model, {"pixels": image[i : i + 1], "labels": mixed_labels[i : i + 1]})
        for i in range(2)
    ]
    torch.testing.assert_close(vision.loss(model, batch), torch.stack(losses).mean())


def test_measured_preprocessing_standardizes_the_training_images():
    model, data = vision.build(TINY), vision.load_images(TINY)
    x = torch.from_numpy(data.pixels[data.split("train")].transpose(0, 3, 1, 2).copy()).float()
    x = (x * model.preprocessor.scale - model.mean) / model.std
    assert abs(x.mean()) < 1e-3 and abs(x.std() - 1) < 1e-3


# --- runs and predictions ---


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> api.Model:
    folder = tmp_path_factory.mktemp("vision") / "run"
    return api.train("vision", "tiny", out=folder, train={"steps": 4, "eval_every": 2, "device": "cpu"})


def test_predictions_for_files(run: api.Model, tmp_path: Path):
    image = pytest.importorskip("PIL.Image")
    data, paths = vision.load_images(TINY), [str(tmp_path / f"{i}.png") for i in range(3)]
    for i, path in enumerate(paths):
        image.fromarray(data.pixels[i, :, :, 0]).save(path)
    answer = run.predict(paths)["results"]
    assert json.loads(json.dumps(answer)) == answer and [result["input"] for result in answer] == paths
    with torch.no_grad():
        expected = run.module(torch.from_numpy(data.pixels[:3].transpose(0, 3, 1, 2).copy())).softmax(-1)
    for result, row in zip(answer, expected, strict=True):
        assert result["label"] == str(row.argmax().item())
        assert [result["probabilities"][str(c)] for c in range(10)] == pytest.approx(row.tolist(), abs=1e-6)
    assert len(run.predict({"input": paths[0], "top": 2})["results"][0]["probabilities"]) == 2


def test_the_examples_are_validation_images_of_many_classes(run: api.Model):
    answer = run.predict({})["results"]
    assert len({result["truth"] for result in answer}) == len(answer) == MAX_EXAMPLES


def test_other_data_are_matched_by_the_names_of_their_classes(run: api.Model, tmp_path: Path):
    data = vision.load_images(TINY)
    rows = np.isin(data.labels, [3, 7])
    np.savez(tmp_path / "some.npz", images=data.pixels[rows], labels=data.labels[rows])
    config = dataclasses.replace(run.config, data=str(tmp_path / "some.npz"))
    labels = torch.cat([batch["labels"] for batch, _ in vision.batches(config, "all")])
    assert labels.tolist() == data.labels[rows].tolist()
    assert 0 <= run.evaluate(str(tmp_path / "some.npz"))["accuracy"] <= 1
    np.savez(tmp_path / "more.npz", images=data.pixels[:20], labels=np.array(["3", "x"] * 10))
    with refuses("the class 'x' is none of the model's"):
        run.evaluate(str(tmp_path / "more.npz"))


def test_a_run_does_not_go_on_with_other_data():
    _, state = next(vision.batches(TINY, "train"))
    with refuses("has changed since this run began"):
        next(vision.batches(TINY, "train", state | {"data": "other"}))


def test_fine_tuning_starts_from_another_run(run: api.Model, tmp_path: Path):
    data = vision.load_images(TINY)
    np.savez(tmp_path / "two.npz", images=data.pixels[data.labels < 2], labels=data.labels[data.labels < 2])
    train = {"steps": 2, "eval_every": 2, "batch": 4, "device": "cpu"}
    model = api.train("vision", init=run.path, data=str(tmp_path / "two.npz"), out=tmp_path / "run", train=train)
    assert model.module.classes == ("0", "1") and model.module.preprocessor.mean == run.module.preprocessor.mean


def test_a_run_with_files_is_resumed_from_another_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "names.json", json.dumps([str(i) for i in range(10)]))
    write(tmp_path / "half.json", uniform_preprocessor(0.5, 1).to_json())
    few = ("--steps", 2, "--train.eval-every", 2, "--train.save-every", 1, "--device", "cpu")
    files = ("--labels", "names.json", "--preprocessing", "half.json")
    call("train", "vision", "--preset", "tiny", *files, *few, "--out", "run").ok()
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    stored = json.loads((tmp_path / "run" / "config.json").read_text())["config"]
    assert [os.path.isabs(stored[name]) for name in ("labels", "preprocessing")] == [True, True]
    call("train", "vision", "--out", tmp_path / "run", "--resume", "--steps", 3).ok()


@pytest.mark.slow
def test_98_in_100_held_out_digits_are_right():
    from anyformer.training import loop

    records = list(loop.train(vision, vision.PRESETS["digits"], None))
    assert max(record.get("val_accuracy", 0) for record in records) >= 0.98


# --- mistakes ---


@pytest.mark.parametrize(
    ("changes", "parts"),
    [
        ({"patch": 3}, ("patches of 3 pixels do not cut a height of 8: --height 9 would do",)),
        ({"patch": 2}, ("makes 17 nodes, and the context is 5: --model.context 17",)),
        ({"pool": "mean"}, ("makes 4 nodes, and the context is 5",)),
        ({"pool": "frist"}, ("pool is 'frist'", "did you mean 'first'")),
        ({"width": 0}, ("width is 0; it must be at least 1",)),
        ({"smoothing": 1.0}, ("smoothing is 1.0",)),
        ({"val_fraction": 1.0}, ("val_fraction is 1.0",)),
        ({"preprocessing": '{"mean": [0.5]}'}, ("mean and std must be 1 numbers each",)),
        ({"preprocessing": '{"mean": [0.5], "std": [1], "size": 3}'}, ("unknown field 'size'",)),
        ({"labels": "[1, 2]"}, ("expected a list of names",)),
        ({"labels": "none.json"}, ("labels: none.json: there is no such file",)),
    ],
)
def test_configs_that_make_no_sense(changes: dict[str, Any], parts: tuple[str, ...]):
    with refuses(*parts):
        vision.build(dataclasses.replace(TINY, **changes))


@pytest.mark.parametrize(
    ("request_", "parts"),
    [
        ({"inputs": "a.png"}, ("'inputs'", "did you mean 'input'")),
        ({"input": 3}, ("input is 3; it must be a text",)),
        ({"input": "x.png", "top": 0}, ("top is 0",)),
        ({"input": "x.png", "top": "2"}, ("top is '2'",)),
        ({"input": "none.png"}, ("none.png: there is no such file",)),
    ],
)
def test_requests_that_cannot_be_answered(run: api.Model, request_: dict[str, Any], parts: tuple[str, ...]):
    with refuses(*parts):
        run.predict(request_)
