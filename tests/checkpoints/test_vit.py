"""ViT: the library's logits, there and back, with the names of the classes and the treatment of pixels."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from anyformer import api
from anyformer import recipe as recipes
from anyformer.checkpoints import hf_folder as directory
from anyformer.errors import InputError
from anyformer.loading import Model
from anyformer.recipe import to_json
from checkpoint_kit import close, opened, same_tensors, saved, shaken, transformers

VIT: dict[str, Any] = {
    "hidden_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "intermediate_size": 37,
    "image_size": 12,
    "patch_size": 4,
    "num_labels": 5,
}
CASES: dict[str, dict[str, Any]] = {
    "square": {},
    "wide": {"image_size": [8, 20]},
    "high, no biases of query, key and value": {"image_size": [20, 8], "qkv_bias": False},
    "one layer, one head": {"num_hidden_layers": 1, "num_attention_heads": 1, "num_labels": 3},
    "grey": {"num_channels": 1, "patch_size": 3, "image_size": [9, 12]},
    "another activation": {"hidden_act": "gelu_new", "layer_norm_eps": 1e-3, "num_labels": 7},
    "no biases, one layer": {"num_hidden_layers": 1, "qkv_bias": False, "patch_size": [2, 2]},
}
PROCESSOR = {
    "do_resize": True,
    "size": {"height": 12, "width": 12},
    "resample": 3,
    "do_rescale": True,
    "rescale_factor": 1 / 255,
    "do_normalize": True,
    "image_mean": [0.1, 0.2, 0.3],
    "image_std": [0.4, 0.5, 0.6],
    "image_processor_type": "ViTImageProcessor",
}


def library(case: str, seed: int = 0) -> Any:
    torch.manual_seed(seed)
    return shaken(transformers.ViTForImageClassification(transformers.ViTConfig(**VIT | CASES[case])), seed)


def numbers(theirs: Any, seed: int = 0, batch: int = 3) -> torch.Tensor:
    """What an image processor would have made of images."""
    c = theirs.config
    size = c.image_size if isinstance(c.image_size, list | tuple) else (c.image_size, c.image_size)
    return torch.randn(batch, c.num_channels, *size, generator=torch.Generator().manual_seed(seed))


def logits(ours: Model, x: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return ours.module.head(ours.module.hidden(x))


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("case", CASES)
def test_logits_are_the_librarys(case: str, seed: int, tmp_path: Path):
    theirs = library(case, seed)
    ours, x = api.load(saved(theirs, tmp_path), "cpu"), numbers(theirs, seed)
    with torch.no_grad():
        close(logits(ours, x), theirs(x).logits)
    assert ours.fresh == []


@pytest.mark.parametrize("case", CASES)
def test_what_goes_out_opens_there_and_comes_back_bit_for_bit(case: str, tmp_path: Path):
    library_has = library(case, 1)
    ours = api.load(saved(library_has, tmp_path / "theirs"), "cpu")
    directory.export(tmp_path / "ours", ours.name, to_json(ours.config), ours.module)
    theirs = opened(transformers.ViTForImageClassification, tmp_path / "ours")
    x = numbers(library_has)
    with torch.no_grad():
        close(logits(ours, x), theirs(x).logits)
        assert torch.equal(theirs(x).logits, library_has(x).logits)
    again = api.load(tmp_path / "ours", "cpu")
    same_tensors(ours.module, again.module)
    assert again.module.files == ours.module.files


def test_pixels_are_treated_as_the_image_processor_says(tmp_path: Path):
    image = pytest.importorskip("PIL.Image")
    theirs = library("square")
    saved(theirs, tmp_path)
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(PROCESSOR))
    picture = np.random.default_rng(0).integers(0, 256, (31, 17, 3)).astype(np.uint8)
    image.fromarray(picture).save(tmp_path / "picture.png")
    processor = transformers.AutoImageProcessor.from_pretrained(tmp_path, use_fast=False)
    x = processor(image.open(tmp_path / "picture.png"), return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        want = theirs(x).logits.softmax(-1)[0]
    ours = api.load(tmp_path, "cpu")
    answer = ours.predict({"input": str(tmp_path / "picture.png")})["results"][0]
    got = torch.tensor([answer["probabilities"][f"LABEL_{i}"] for i in range(5)])
    close(got, want)
    directory.export(tmp_path / "ours", ours.name, to_json(ours.config), ours.module)
    kept = json.loads((tmp_path / "ours" / "preprocessor_config.json").read_text())
    assert {name: kept[name] for name in PROCESSOR} == PROCESSOR


def test_classes_keep_their_names(tmp_path: Path):
    names = {0: "ant", 1: "bee", 2: "crane", 3: "crane", 4: "deer"}
    theirs = library("square")
    theirs.config.id2label = names
    ours = api.load(saved(theirs, tmp_path / "theirs"), "cpu")
    assert json.loads(ours.module.files["labels.json"]) == list(names.values())
    assert ours.predict({})["results"][0]["probabilities"].keys() == {"ant", "bee", "crane (2)", "crane (3)", "deer"}
    directory.export(tmp_path / "ours", ours.name, to_json(ours.config), ours.module)
    assert opened(transformers.ViTForImageClassification, tmp_path / "ours").config.id2label == names


def test_a_body_without_a_classifier_comes_with_a_fresh_head(tmp_path: Path):
    theirs = shaken(transformers.ViTModel(transformers.ViTConfig(**VIT)), 0)
    ours, x = api.load(saved(theirs, tmp_path), "cpu"), numbers(theirs)
    assert sorted(ours.fresh) == ["head.project.bias", "head.project.weight"]
    with torch.no_grad():
        close(ours.module.hidden(x), theirs(x).last_hidden_state)


def test_an_imported_model_is_a_run(tmp_path: Path):
    ours = api.load(saved(library("wide"), tmp_path / "theirs"), "cpu")
    run = api.bring_in(tmp_path / "theirs", tmp_path / "run")
    loaded = api.load(tmp_path / "run", "cpu")
    same_tensors(ours.module, run.module)
    same_tensors(ours.module, loaded.module)
    assert loaded.predict({}) == ours.predict({}) and loaded.module.files == ours.module.files


def built(preset: str, **changes: Any) -> Model:
    import dataclasses

    module = recipes.load("vision")
    config = dataclasses.replace(module.PRESETS[preset], **changes)
    return Model("vision", config, module.build(config), {"step": 0}, Path("x"))


def test_ours_goes_out(tmp_path: Path):
    ours = built("tiny")
    directory.export(tmp_path, ours.name, to_json(ours.config), ours.module)
    theirs = opened(transformers.ViTForImageClassification, tmp_path)
    x = torch.randn(2, 1, 8, 8)
    with torch.no_grad():
        close(logits(ours, x), theirs(x).logits)
    assert theirs.config.id2label == {i: str(i) for i in range(10)}


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"pool": "mean", "context": 4}, "reads the mean node"),
        ({"local": 1}, "the first 1 layers are local"),
        ({"position": "sinusoidal"}, "position is sinusoidal, not learned"),
        ({"norm": "rmsnorm"}, "norm is rmsnorm, not layernorm"),
        ({"n_kv_head": 1}, "heads of keys are fewer"),
        ({"activation": "swiglu"}, "activation is swiglu"),
    ],
)
def test_what_the_family_cannot_say_is_refused(changes: dict[str, Any], reason: str, tmp_path: Path):
    import dataclasses

    tiny = recipes.load("vision").PRESETS["tiny"]
    outer = {name: changes[name] for name in ("pool", "local") if name in changes}
    model = dataclasses.replace(tiny.model, **{k: v for k, v in changes.items() if k not in outer})
    ours = built("tiny", **outer, model=model)
    with pytest.raises(InputError, match=re.escape(reason) + ".*--preset .*vit-base"):
        directory.export(tmp_path / "out", ours.name, to_json(ours.config), ours.module)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"patch_size": [4, 6]}, "patches of 4 x 6"),
        ({"image_size": 13}, "patches of 4 x 4 on 13 x 13"),
        ({"image_size": "big"}, "image_size is 'big'"),
        ({"num_channels": 2}, "num_channels is 2"),
        ({"hidden_act": "silu"}, "hidden_act is 'silu'"),
        ({"id2label": {"0": "a", "2": "b"}}, "id2label must name"),
        ({"id2label": {"0": "a", "1": "b"}}, "classifier.weight has shape [5, 24], its config.json makes that [2, 24]"),
        ({"use_mask_token": True}, "does not know use_mask_token"),
    ],
)
def test_a_config_that_does_not_fit_is_refused(change: dict[str, Any], complaint: str, tmp_path: Path):
    described = saved(library("square"), tmp_path) / "config.json"
    described.write_text(json.dumps(json.loads(described.read_text()) | change))
    with pytest.raises(InputError, match=re.escape(complaint)):
        api.load(tmp_path, "cpu")


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"size": {"height": 24, "width": 12}}, "size is 24 x 12, but the model takes 12 x 12"),
        ({"size": {"shortest_edge": 12}}, "size is {'shortest_edge': 12}"),
        ({"image_std": [0.1, 0.0, 0.1]}, "must be above 0"),
        ({"image_mean": [0.1]}, "mean is [0.1]; it must be 3 numbers"),
        ({"do_center_crop": True}, "do_center_crop is True"),
        ({"resample": 9}, "resample is 9"),
    ],
)
def test_an_image_processor_that_does_not_fit_is_refused(change: dict[str, Any], complaint: str, tmp_path: Path):
    saved(library("square"), tmp_path)
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(PROCESSOR | change))
    with pytest.raises(InputError, match=re.escape(complaint)):
        api.load(tmp_path, "cpu")
