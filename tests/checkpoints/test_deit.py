"""DeiT: logits equal those of transformers, with its distillation token and a classifier for one or both nodes."""

from pathlib import Path
from typing import Any

import pytest
import torch

import anyformer
from anyformer.errors import InputError
from checkpoint_kit import Exchange, assert_close, build_reference, edit_config, save, transformers

SIZES: dict[str, Any] = {
    "hidden_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "intermediate_size": 37,
    "image_size": [8, 12],
    "patch_size": 4,
    "num_labels": 5,
}
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "one classifier": ("DeiTForImageClassification", {}),
    "a classifier for each": ("DeiTForImageClassificationWithTeacher", {"num_channels": 1, "qkv_bias": False}),
}


@pytest.fixture(scope="module", params=CASES)
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Exchange:
    name, fields = CASES[request.param]
    reference = build_reference(name, transformers.DeiTConfig(**SIZES | fields))
    return Exchange(reference, tmp_path_factory.mktemp("case"))


def random_pixels(config: Any) -> torch.Tensor:
    return torch.randn(3, config.num_channels, 8, 12, generator=torch.Generator().manual_seed(0))


def assert_same_logits(module: Any, reference: Any) -> None:
    pixels = random_pixels(reference.config)
    with torch.no_grad():
        assert_close(module.head(module.hidden(pixels)), reference(pixels).logits)


def test_logits_equal_those_of_transformers(case: Exchange):
    assert_same_logits(case.module, case.reference)
    assert (case.model.config.pool, case.model.missing_keys) == (
        "each" if "Teacher" in case.kind.__name__ else "first",
        [],
    )


def test_an_exported_folder_opens_in_transformers_and_comes_back_bit_for_bit(case: Exchange):
    reference = case.open_exported()
    assert_same_logits(case.module, reference)
    assert reference.config.architectures == [case.kind.__name__]
    assert case.load_exported().module.files == case.module.files


def test_it_answers_and_shows_what_each_node_reads(case: Exchange, tmp_path: Path):
    (result,) = case.model.predict({})["results"]
    assert len(result["probabilities"]) == 5
    view = case.model.recipe.lens(case.module, {})
    labels = view.stacks["body"].labels
    assert labels[:3] == ["class", "extra 1", "patch 1,1"] and len(labels) == 8


def test_it_trains_with_both_classifiers(tmp_path: Path):
    """From nothing, on few images: all heads get a gradient."""
    fields = {"pool": "each", "extra_tokens": 1, "model": {"context": 6}}
    module = anyformer.train(
        "vision", "tiny", out=tmp_path / "run", train={"steps": 2, "device": "cpu"}, **fields
    ).module
    assert all(project.weight.abs().sum() > 0 for project in module.head.projects)
    assert module.nodes.extra_tokens.abs().sum() > 0


def test_settings_that_do_not_fit_are_refused(case: Exchange, tmp_path: Path):
    edit_config(save(case.reference, tmp_path), num_hidden_layers=3)
    with pytest.raises(InputError, match=r"lacks deit\.encoder\.layer\.2"):
        anyformer.load(tmp_path, "cpu")
    for fields in ({"pool": "mean"}, {"local_layers": 1}):
        with pytest.raises(InputError, match="extra_tokens is 1; with local_layers or pool mean it must be 0"):
            anyformer.train("vision", "tiny", out=tmp_path / "run", extra_tokens=1, **fields)
