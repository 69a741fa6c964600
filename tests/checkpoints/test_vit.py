"""ViT: logits equal those of transformers, in both directions, with class names and pixel preprocessing."""

import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import anyformer
from anyformer import recipe_loading
from anyformer.conversion import import_checkpoint
from anyformer.errors import InputError
from anyformer.trained_model import Model
from checkpoint_kit import (
    Exchange,
    assert_close,
    assert_same_tensors,
    build_reference,
    edit_config,
    export,
    open_reference,
    save,
    transformers,
)

SIZES: dict[str, Any] = {
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
    "wide": {"image_size": [8, 20], "num_hidden_layers": 1, "num_attention_heads": 1},
    "tall, no biases of query, key and value": {"image_size": [20, 8], "qkv_bias": False},
    "gray, another activation": {
        "num_channels": 1, "patch_size": 3, "image_size": [9, 12], "hidden_act": "gelu_new", "layer_norm_eps": 1e-3
    },
}  # fmt: skip
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
CLASSIFIER = transformers.ViTForImageClassification


def build(case: str, **fields: Any) -> Any:
    return build_reference("ViTForImageClassification", transformers.ViTConfig(**SIZES | CASES[case] | fields))


@pytest.fixture(scope="module", params=CASES)
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Exchange:
    return Exchange(build(request.param), tmp_path_factory.mktemp("case"))


@pytest.fixture(scope="module")
def square(tmp_path_factory: pytest.TempPathFactory) -> Exchange:
    return Exchange(build("square"), tmp_path_factory.mktemp("square"))


def random_pixels(config: Any) -> torch.Tensor:
    """Return preprocessed pixels of three images."""
    size = config.image_size if isinstance(config.image_size, list | tuple) else (config.image_size,) * 2
    return torch.randn(3, config.num_channels, *size, generator=torch.Generator().manual_seed(0))


def compute_logits(module: Any, pixels: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return module.head(module.hidden(pixels))


def test_logits_equal_those_of_transformers(case: Exchange):
    pixels = random_pixels(case.reference.config)
    with torch.no_grad():
        assert_close(compute_logits(case.module, pixels), case.reference(pixels).logits)
    assert case.model.missing_keys == []


def test_an_exported_folder_opens_in_transformers_and_comes_back_bit_for_bit(case: Exchange):
    pixels, reference = random_pixels(case.reference.config), case.open_exported()
    with torch.no_grad():
        assert_close(compute_logits(case.module, pixels), reference(pixels).logits)
        assert torch.equal(reference(pixels).logits, case.reference(pixels).logits)
    assert case.load_exported().module.files == case.module.files


def test_pixels_are_preprocessed_as_the_image_processor_describes(square: Exchange, tmp_path: Path):
    image = pytest.importorskip("PIL.Image")
    save(square.reference, tmp_path)
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(PROCESSOR))
    pixels = np.random.default_rng(0).integers(0, 256, (31, 17, 3)).astype(np.uint8)
    image.fromarray(pixels).save(tmp_path / "picture.png")
    processor = transformers.AutoImageProcessor.from_pretrained(tmp_path, use_fast=False)
    inputs = processor(image.open(tmp_path / "picture.png"), return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        expected = square.reference(inputs).logits.softmax(-1)[0]
    model = anyformer.load(tmp_path, "cpu")
    probabilities = model.predict({"input": str(tmp_path / "picture.png")})["results"][0]["probabilities"]
    assert_close(torch.tensor([probabilities[f"LABEL_{i}"] for i in range(5)]), expected)
    written = json.loads((export(model, tmp_path / "out") / "preprocessor_config.json").read_text())
    assert {name: written[name] for name in PROCESSOR} == PROCESSOR


def test_class_names_are_kept(tmp_path: Path):
    names = {0: "ant", 1: "bee", 2: "crane", 3: "crane", 4: "deer"}
    reference = build("square")
    reference.config.id2label = names
    model = anyformer.load(save(reference, tmp_path / "reference"), "cpu")
    assert json.loads(model.module.files["labels.json"]) == list(names.values())
    assert model.predict({})["results"][0]["probabilities"].keys() == {"ant", "bee", "crane (2)", "crane (3)", "deer"}
    assert open_reference(CLASSIFIER, export(model, tmp_path / "out")).config.id2label == names


def test_a_body_without_a_classifier_has_missing_head_keys(tmp_path: Path):
    reference = build_reference("ViTModel", transformers.ViTConfig(**SIZES))
    model, pixels = anyformer.load(save(reference, tmp_path), "cpu"), random_pixels(reference.config)
    assert sorted(model.missing_keys) == ["head.project.bias", "head.project.weight"]
    with torch.no_grad():
        assert_close(model.module.hidden(pixels), reference(pixels).last_hidden_state)


def test_an_imported_model_is_a_run(square: Exchange, tmp_path: Path):
    run = import_checkpoint(square.source, tmp_path / "run")
    loaded = anyformer.load(tmp_path / "run", "cpu")
    assert_same_tensors(square.module, run.module)
    assert_same_tensors(square.module, loaded.module)
    assert loaded.predict({}) == square.model.predict({}) and loaded.module.files == square.module.files


# --- models of anyformer's own presets ---


def build_tiny(**fields: Any) -> Model:
    """Build the preset tiny with other fields; those of its TransformerConfig stand among them."""
    recipe = recipe_loading.load_recipe("vision")
    tiny = recipe.PRESETS["tiny"]
    outer = {name: value for name, value in fields.items() if hasattr(tiny, name)}
    inner = {name: value for name, value in fields.items() if name not in outer}
    config = dataclasses.replace(tiny, **outer, model=dataclasses.replace(tiny.model, **inner))
    return Model(recipe, config, recipe.build(config), {"step": 0}, Path("unsaved"))


def test_a_model_of_our_own_is_exported(tmp_path: Path):
    model, pixels = build_tiny(), torch.randn(2, 1, 8, 8)
    reference = open_reference(CLASSIFIER, export(model, tmp_path / "out"))
    with torch.no_grad():
        assert_close(compute_logits(model.module, pixels), reference(pixels).logits)
    assert reference.config.id2label == {i: str(i) for i in range(10)}


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"pool": "mean", "context": 4}, "pool is mean, not first"),
        ({"local_layers": 1}, "local_layers is 1, not 0"),
        ({"position": "sinusoidal"}, "position is sinusoidal, not learned"),
        ({"n_kv_head": 1}, "n_kv_head is 1, not None or 2"),
        ({"activation": "swiglu"}, "activation is swiglu, not gelu or"),
    ],
)
def test_what_the_family_cannot_express_is_refused(fields: dict[str, Any], reason: str, tmp_path: Path):
    with pytest.raises(InputError, match=re.escape(reason) + ".*--preset .*vit-base"):
        export(build_tiny(**fields), tmp_path / "out")
    assert not (tmp_path / "out").exists()


# --- files ---


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"patch_size": [4, 6]}, "patches of 4 x 6"),
        ({"image_size": 13}, "patches of 4 x 4 on 13 x 13"),
        ({"image_size": "big"}, "image_size is 'big'"),
        ({"num_channels": 2}, "num_channels is 2"),
        ({"hidden_act": "silu"}, "hidden_act is 'silu'"),
        ({"id2label": {"0": "a", "2": "b"}}, "id2label must name"),
        ({"id2label": {"0": "a", "1": "b"}}, "classifier.weight has shape [5, 24], its config.json makes that [2, 24]"),
        ({"use_mask_token": True}, "use_mask_token = True is unknown"),
    ],
)
def test_a_config_that_does_not_fit_is_refused(fields: dict[str, Any], message: str, square: Exchange, tmp_path: Path):
    edit_config(save(square.reference, tmp_path), **fields)
    with pytest.raises(InputError, match=re.escape(message)):
        anyformer.load(tmp_path, "cpu")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"size": {"height": 24, "width": 12}}, "size is 24 x 12, but the model takes 12 x 12"),
        ({"size": {"shortest_edge": 12}}, "size is {'shortest_edge': 12}"),
        ({"image_std": [0.1, 0.0, 0.1]}, "must be above 0"),
        ({"image_mean": [0.1]}, "mean and std must be 3 numbers each"),
        ({"do_center_crop": True}, "do_center_crop is True"),
        ({"resample": 9}, "resample is 9"),
    ],
)
def test_an_image_processor_that_does_not_fit_is_refused(
    fields: dict[str, Any], message: str, square: Exchange, tmp_path: Path
):
    save(square.reference, tmp_path)
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(PROCESSOR | fields))
    with pytest.raises(InputError, match=re.escape(message)):
        anyformer.load(tmp_path, "cpu")
