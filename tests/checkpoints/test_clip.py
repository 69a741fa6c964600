"""CLIP and SigLIP: vectors and logits equal those of transformers, in both directions, with pixels and texts."""

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
from anyformer.data.tokenizers.base import ids_json
from anyformer.data.tokenizers.build import load_tokenizer
from anyformer.data.tokenizers.masked_tokenizer import MaskedTokenizer
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
from data_kit import refuses

TEXT: dict[str, Any] = {
    "vocab_size": 53,
    "hidden_size": 24,
    "intermediate_size": 37,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "max_position_embeddings": 19,
    "bos_token_id": 51,
    "eos_token_id": 52,
    "pad_token_id": 1,
}
VISION: dict[str, Any] = {
    "hidden_size": 20,
    "intermediate_size": 31,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "image_size": 15,
    "patch_size": 5,
}
SIGLIP_TEXT = TEXT | {"projection_size": 20}
CASES: dict[str, tuple[str, dict[str, Any], dict[str, Any], dict[str, Any]]] = {
    "clip": ("CLIP", TEXT, VISION, {"projection_dim": 14}),
    "clip, legacy end, other activations": (
        "CLIP",
        TEXT | {"eos_token_id": 2, "hidden_act": "gelu"},
        VISION | {"hidden_act": "gelu", "num_channels": 1, "num_hidden_layers": 2, "layer_norm_eps": 1e-3},
        {"projection_dim": 33},
    ),
    "siglip": ("Siglip", SIGLIP_TEXT, VISION, {}),
    "siglip, other padding": (
        "Siglip",
        SIGLIP_TEXT | {"pad_token_id": 0, "num_hidden_layers": 1, "hidden_act": "gelu"},
        VISION | {"num_attention_heads": 4, "num_hidden_layers": 2},
        {},
    ),
}
PROCESSOR = {
    "do_resize": True,
    "size": {"shortest_edge": 15},
    "do_center_crop": True,
    "crop_size": {"height": 15, "width": 15},
    "resample": 3,
    "do_rescale": True,
    "rescale_factor": 1 / 255,
    "do_normalize": True,
    "image_mean": [0.1, 0.2, 0.3],
    "image_std": [0.4, 0.5, 0.6],
    "image_processor_type": "CLIPImageProcessor",
}
SIGLIP_PROCESSOR = {name: value for name, value in PROCESSOR.items() if "crop" not in name} | {
    "size": {"height": 15, "width": 15},
    "image_processor_type": "SiglipImageProcessor",
}


def build(case: str) -> Any:
    name, text, vision, fields = CASES[case]
    config = getattr(transformers, f"{name}Config")(text_config=text, vision_config=vision, **fields)
    return build_reference(f"{name}Model", config)


@pytest.fixture(scope="module", params=CASES)
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Exchange:
    return Exchange(build(request.param), tmp_path_factory.mktemp("case"))


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Exchange:
    return Exchange(build("clip"), tmp_path_factory.mktemp("clip"))


def make_inputs(config: Any) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return preprocessed pixels of three images, and four texts as transformers reads them, and their lengths."""
    generator, c = torch.Generator().manual_seed(0), config.text_config
    side = config.vision_config.image_size
    pixels = torch.randn(3, config.vision_config.num_channels, side, side, generator=generator)
    ids, lengths = torch.randint(3, 51, (4, 19), generator=generator), torch.tensor([19, 2, 7, 12])
    is_clip = config.model_type == "clip"
    for row, n in zip(ids, lengths.tolist()):
        row[n:] = 52 if is_clip else c.pad_token_id
        row[n - 1] = 52
    return pixels, ids, lengths if is_clip else torch.full((4,), 19)


@torch.no_grad()
def compute(module: Any, config: Any) -> list[torch.Tensor]:
    """Return vectors of images and texts, and logits."""
    pixels, ids, lengths = make_inputs(config)
    tower = module.vision
    nodes = module.image_projection(tower.reduce_nodes(tower.hidden(pixels)))
    images = torch.nn.functional.normalize(nodes, dim=-1)
    texts = module.embed_texts(ids, lengths)
    return [images, texts, module.compute_logits(images, texts)]


@torch.no_grad()
def compute_reference(reference: Any) -> list[torch.Tensor]:
    pixels, ids, _ = make_inputs(reference.config)
    output = reference(input_ids=ids, pixel_values=pixels)
    return [output.image_embeds, output.text_embeds, output.logits_per_image]


def assert_same(actual: list[torch.Tensor], expected: list[torch.Tensor]) -> None:
    for pair in zip(actual, expected, strict=True):
        assert_close(*pair)


def test_vectors_and_logits_equal_those_of_transformers(case: Exchange):
    assert_same(compute(case.module, case.reference.config), compute_reference(case.reference))
    assert case.model.missing_keys == []


def test_an_exported_folder_opens_in_transformers_and_comes_back_bit_for_bit(case: Exchange):
    again = case.open_exported()
    assert_same(compute_reference(again), compute_reference(case.reference))
    for name, tensor in case.reference.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor), name
    case.load_exported()


def test_a_text_is_closed_and_filled_up_as_the_family_expects(case: Exchange):
    row, c = case.module.encode(["7 9"])[0], case.reference.config
    if c.model_type == "clip":
        assert row == [7, 9, 52]
    else:
        assert row == [7, 9, *[c.text_config.pad_token_id] * 17]
    assert case.model.predict({})["results"][0]["label"] in case.module.captions


@pytest.mark.parametrize(("kind", "processor"), [("clip", PROCESSOR), ("siglip", SIGLIP_PROCESSOR)])
@pytest.mark.parametrize("size", [(31, 17), (16, 40)])
def test_pixels_are_preprocessed_as_the_image_processor_describes(
    kind: str, processor: dict[str, Any], size: tuple[int, int], tmp_path: Path
):
    image = pytest.importorskip("PIL.Image")
    reference = build(kind)
    save(reference, tmp_path)
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(processor))
    pixels = np.random.default_rng(0).integers(0, 256, (*size, 3)).astype(np.uint8)
    image.fromarray(pixels).save(tmp_path / "picture.png")
    inputs = transformers.AutoImageProcessor.from_pretrained(tmp_path, use_fast=False)(
        image.open(tmp_path / "picture.png"), return_tensors="pt"
    )["pixel_values"]
    with torch.no_grad():
        expected = reference(input_ids=torch.tensor([[7, 52] + [1] * 17]), pixel_values=inputs).image_embeds
    model = anyformer.load(tmp_path, "cpu")
    vectors = model.predict({"embed_images": str(tmp_path / "picture.png")})["vectors"]
    assert_close(torch.tensor(vectors), expected)
    written = json.loads((export(model, tmp_path / "out") / "preprocessor_config.json").read_text())
    assert {name: written[name] for name in processor} == processor


def test_an_imported_model_is_a_run(clip: Exchange, tmp_path: Path):
    run = import_checkpoint(clip.source, tmp_path / "run")
    loaded = anyformer.load(tmp_path / "run", "cpu")
    assert_same_tensors(clip.module, run.module)
    assert_same_tensors(clip.module, loaded.module)
    assert loaded.predict({}) == clip.model.predict({}) and loaded.module.files == clip.module.files


# --- tokenizers ---

SAMPLES = ["A photo of  a CAT!", "it's 12 cats<|endoftext|>", "\u00e9t\u00e9\n caf\u0065\u0301", "hat a-hat", ""]


def make_clip_vocabulary() -> tuple[dict[str, int], list[tuple[str, str]]]:
    from anyformer.data.tokenizers.base import byte_alphabet

    letters = sorted(byte_alphabet())
    merges = [("a", "t</w>"), ("h", "at</w>"), ("c", "at</w>"), ("p", "h"), ("o", "t"), ("ph", "ot"), ("phot", "o</w>")]
    tokens = [*letters, *[f"{c}</w>" for c in letters], *map("".join, merges), "<|startoftext|>", "<|endoftext|>"]
    return {token: i for i, token in enumerate(tokens)}, merges


@pytest.mark.skipif(transformers.__version__ < "5", reason="names of version 5 of transformers")
def test_tokens_are_those_of_transformers_from_either_form_of_the_vocabulary(tmp_path: Path):
    vocab, merges = make_clip_vocabulary()
    reference = transformers.CLIPTokenizer(vocab=vocab, merges=merges)
    reference.save_pretrained(tmp_path / "new")
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "vocab.json").write_text(json.dumps(vocab))
    lines = ["#version: 0.2", *map(" ".join, merges)]
    (tmp_path / "old" / "merges.txt").write_text("\n".join(lines) + "\n")
    start, end = vocab["<|startoftext|>"], vocab["<|endoftext|>"]
    for folder in ("new", "old"):
        masked = MaskedTokenizer.from_tokenizer(load_tokenizer(tmp_path / folder), len(vocab))
        assert (masked.prefix_ids, masked.suffix_ids) == ((start,), (end,))
        expected = reference([text.replace("<|endoftext|>", "") for text in SAMPLES])["input_ids"]
        assert masked.encode_batch([text.replace("<|endoftext|>", "") for text in SAMPLES]) == expected
        assert end not in masked.encode(SAMPLES[1])[:-1], "raw text never becomes a special token"
    del vocab["<|startoftext|>"]
    (tmp_path / "old" / "vocab.json").write_text(json.dumps(vocab))
    with refuses("vocab.json", "needs <|startoftext|>"):
        load_tokenizer(tmp_path / "old")


def test_the_tokenizer_of_siglip_says_what_fills_a_text_up(tmp_path: Path):
    folder, config = save(build("siglip"), tmp_path), tmp_path / "tokenizer_config.json"
    (folder / "tokenizer.json").write_text(ids_json(53))
    for value in ("7", {"content": "7"}):
        config.write_text(json.dumps({"pad_token": value}))
        assert anyformer.load(folder, "cpu").module.encode(["9"])[0] == [9, *[7] * 18]
    config.write_text(json.dumps({"tokenizer_class": "GemmaTokenizerFast"}))
    with refuses("tokenizer_config.json", "SigLIP 2", "not supported"):
        anyformer.load(folder, "cpu")


# --- models of anyformer's own presets ---


def build_tiny(**fields: Any) -> Model:
    recipe = recipe_loading.load_recipe("contrastive")
    config = dataclasses.replace(recipe.PRESETS["tiny"], **fields)
    return Model(recipe, config, recipe.build(config), {"step": 0}, Path("unsaved"))


@pytest.mark.parametrize("kind", ["CLIP", "Siglip"])
def test_a_model_of_our_own_is_exported(kind: str, tmp_path: Path):
    fields: dict[str, Any] = {}
    if kind == "Siglip":
        recipe: Any = recipe_loading.load_recipe("contrastive")
        vision = dataclasses.replace(recipe.PRESETS["tiny"].vision, context=4)
        fields = {"image_norm": False, "patch_bias": True, "text_edges": "full", "pad_id": 10, "vision": vision}
        fields |= recipe.SIGLIP
    model = build_tiny(**fields)
    folder = export(model, tmp_path / "out")
    reference = open_reference(getattr(transformers, f"{kind}Model"), folder)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    options = {"padding": True} if kind == "CLIP" else {"padding": "max_length", "max_length": 8}
    ids = tokenizer(["3", "1 4"[:1]], return_tensors="pt", **options)["input_ids"]
    pixels = torch.randint(0, 256, (2, 1, 8, 8))
    with torch.no_grad():
        output = reference(input_ids=ids, pixel_values=model.module.vision.normalize(pixels))
        assert_close(model.module.embed_images(pixels), output.image_embeds)
    assert_close(torch.tensor(model.embed(["3", "1"])), output.text_embeds)


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"text_edges": "full"}, "text_edges is full, not causal"),
        ({"loss": "sigmoid"}, "loss is sigmoid, not softmax"),
        ({"text_pool": "mean"}, "text_pool is mean, not last"),
        ({"patch_bias": True}, "patch_bias is True, not False"),
        ({"height": 8, "width": 16}, "height is 8 and width 16"),
    ],
)
def test_what_the_families_cannot_express_is_refused(fields: dict[str, Any], reason: str, tmp_path: Path):
    if "width" in fields:
        fields["vision"] = dataclasses.replace(build_tiny().config.vision, context=9)
    with pytest.raises(InputError, match=re.escape(reason) + ".*--preset .*clip-base or siglip-base"):
        export(build_tiny(**fields), tmp_path / "out")
    assert not (tmp_path / "out").exists()


# --- files ---


def edit_part(folder: Path, part: str, fields: dict[str, Any]) -> None:
    values = json.loads((folder / "config.json").read_text())
    edit_config(folder, **({part: values[part] | fields} if part else fields))


@pytest.mark.parametrize(
    ("kind", "part", "fields", "message"),
    [
        ("clip", "", {"projection_dim": 15}, "visual_projection.weight has shape [14, 20], its config.json makes that"),
        ("clip", "", {"use_rotary": True}, "use_rotary = True is unknown"),
        ("clip", "text_config", {"hidden_act": "tanh"}, "text_config: hidden_act is 'tanh'"),
        ("clip", "text_config", {"eos_token_id": 53}, "eos_token_id is 53; it must be an id from 0 to 52"),
        ("clip", "text_config", {"window": 3}, "text_config: the field window = 3 is unknown"),
        ("clip", "text_config", {"vocab_size": 99}, "vocab_size is 99, but no tensor is longer than 53"),
        ("clip", "text_config", {"num_hidden_layers": 3}, "lacks text_model.encoder.layers.2"),
        ("clip", "vision_config", {"patch_size": 4}, "patches of 4 x 4 on 15 x 15"),
        ("clip", "vision_config", {"num_channels": 2}, "num_channels is 2"),
        ("clip", "", {"text_config_dict": {"hidden_size": 8}}, "text_config_dict"),
        ("siglip", "vision_config", {"vision_use_head": False}, "vision_use_head is False"),
        ("siglip", "text_config", {"projection_size": 24}, "projection_size is 24; it must be that of the images, 20"),
        ("siglip", "text_config", {"pad_token_id": 53}, "pad_token_id is 53; it must be an id from 0 to 52"),
    ],
)
def test_a_config_that_does_not_fit_is_refused(kind: str, part: str, fields: dict, message: str, tmp_path: Path):
    edit_part(save(build(kind), tmp_path), part, fields)
    with pytest.raises(InputError, match=re.escape(message)) as error:
        anyformer.load(tmp_path, "cpu")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"size": {"shortest_edge": 20}}, "size is {'shortest_edge': 20}, but the model takes 15 x 15"),
        ({"crop_size": 16}, "crop_size is 16, but the model takes 15 x 15"),
        ({"do_center_crop": False}, "such cropping is not supported"),
        ({"image_std": [0.1, 0.0, 0.1]}, "must be above 0"),
        ({"do_pad": True}, "do_pad is True"),
    ],
)
def test_an_image_processor_that_does_not_fit_is_refused(fields: dict, message: str, clip: Exchange, tmp_path: Path):
    save(clip.reference, tmp_path)
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(PROCESSOR | fields))
    with pytest.raises(InputError, match=re.escape(message)):
        anyformer.load(tmp_path, "cpu")
