"""Figures that recipes draw of their models: they agree with the evaluation and with the attention weights."""

import base64
import dataclasses
import io
import json
import sys
from typing import Any

import numpy as np
import pytest
import torch

from anyformer import recipe_loading
from anyformer.data.audio.datasets import DIGIT_WORDS
from anyformer.data.images import read as images
from anyformer.inference.translation import select_sharpest_layer
from anyformer.model.config import TransformerConfig
from anyformer.model.edges import full, neighbors
from anyformer.model.inspection import attention_weights
from anyformer.model.transformer import Transformer
from anyformer.recipes.vision import attention_heat
from anyformer.training import loop
from data_kit import SMALL_DATA

control: Any = recipe_loading.load_recipe("control")
speech: Any = recipe_loading.load_recipe("speech")
vision: Any = recipe_loading.load_recipe("vision")


def build_tiny(recipe: Any, **changes: Any) -> tuple[Any, Any]:
    """The tiny preset, and a model of it with weights that are large enough to matter."""
    config = dataclasses.replace(recipe.PRESETS["tiny"], **changes)
    torch.manual_seed(0)
    model = recipe.build(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return config, model


@torch.no_grad()
@pytest.mark.parametrize("edges", [full, neighbors(4, 4, 1)], ids=str)
@pytest.mark.parametrize("fields", [{}, {"position": "rotary"}, {"n_kv_head": 2, "qk_norm": True}], ids=str)
def test_attention_weights_give_the_output_of_each_layer(edges: Any, fields: dict):
    torch.manual_seed(0)
    body = Transformer(TransformerConfig(dim=32, n_layer=2, n_head=4, **fields)).eval()
    x, outputs = torch.randn(3, 16, 32), []
    weights = attention_weights(body, lambda: body(x, edges))
    assert weights.shape == (2, 3, 4, 16, 16) and not weights[:, :, :, ~edges.build_mask(1, 16, 16)[0, 0]].any()
    attention = body.blocks[0].attn
    attention.register_forward_hook(lambda module, args, output: outputs.append((args[0], output)))
    body(x, edges)
    ((nodes, output),) = outputs
    values = attention.value(nodes).unflatten(-1, (-1, 8)).transpose(1, 2)  # (B, H, T, D)
    values = values.repeat_interleave(4 // values.shape[1], 1)
    torch.testing.assert_close(attention.output((weights[0] @ values).transpose(1, 2).flatten(2)), output)


# --- vision ---


def test_the_confusion_matrix_and_the_mistakes_agree_with_the_evaluation():
    pytest.importorskip("PIL", reason="images are drawn by Pillow")
    config, model = build_tiny(vision)
    matrix, mistakes, attention = vision.figures(model, config)
    data = vision.load_images(config)
    val = data.split("val")
    right = (np.diag(matrix["values"]) * np.bincount(data.labels[val], minlength=10)).sum()
    accuracy = loop.evaluate(vision, model, (batch for batch, _ in vision.batches(config, "val")))["accuracy"]
    assert right == pytest.approx(accuracy * len(val), abs=0.1) and matrix["rows"] == list(model.classes)
    assert all(sum(row) == pytest.approx(1, abs=0.01) for row in matrix["values"])
    probabilities = []
    for image in mistakes["images"]:
        truth, prediction = image["caption"].split(", predicted ")
        probabilities.append(float(prediction.split()[1]))
        assert truth != prediction.split()[0]
        pixels = images.decode_image(base64.b64decode(image["png"]), "a figure")[::12, ::12]
        assert any(np.array_equal(pixels, data.pixels[i, :, :, 0]) for i in val if str(data.labels[i]) == truth)
    assert probabilities == sorted(probabilities, reverse=True) and len(attention["images"]) == 6


@pytest.mark.parametrize(
    ("pool", "context", "title"), [("first", 17, "Attention of the class node"), ("mean", 16, "Attention to patches")]
)
def test_the_heat_is_the_attention_of_the_last_layer(pool: str, context: int, title: str):
    pytest.importorskip("PIL", reason="images are drawn by Pillow")
    shape = dataclasses.replace(vision.PRESETS["tiny"].model, context=context)
    config, model = build_tiny(vision, pool=pool, patch=2, model=shape)
    assert vision.figures(model, config)[-1]["title"] == title
    pixels = vision.load_images(config).pixels[:3]
    heat = attention_heat(model, pixels)
    weights = attention_weights(model.body, lambda: model(torch.from_numpy(pixels.transpose(0, 3, 1, 2).copy())))
    last = weights[-1].mean(1)
    expected = last[:, 0, 1:] if pool == "first" else last.mean(1)
    assert np.allclose(heat.reshape(3, 16), expected, atol=1e-6)


def test_heat_is_drawn_over_its_patch():
    pytest.importorskip("PIL", reason="images are drawn by Pillow")
    heat = np.zeros((4, 4))
    heat[1, 2] = 0.3
    both = images.overlay_heatmap(np.zeros((8, 8, 1), np.uint8), heat)
    red = both[:, 9:, 0].astype(int)
    assert both.shape == (8, 17, 3) and not both[:, :8].any()
    assert np.unravel_index(red.argmax(), red.shape) in [(2, 4), (2, 5), (3, 4), (3, 5)]


@pytest.mark.parametrize(("side", "channels", "expected"), [(8, 1, 96), (28, 1, 84), (300, 3, 96)])
def test_an_image_is_enlarged_by_a_whole_number_or_shrunk(side: int, channels: int, expected: int):
    image = pytest.importorskip("PIL.Image", reason="images are drawn by Pillow")
    pixels = np.random.default_rng(0).integers(0, 256, (side, side, channels)).astype(np.uint8)
    assert image.open(io.BytesIO(base64.b64decode(images.encode_png(pixels)))).size == (expected, expected)


def test_without_pillow_only_the_matrix_is_drawn(monkeypatch: pytest.MonkeyPatch):
    config, model = build_tiny(vision)
    vision.load_images(config)
    monkeypatch.setitem(sys.modules, "PIL.Image", None)
    assert [figure["kind"] for figure in vision.figures(model, config)] == ["matrix"]


# --- speech ---


@pytest.mark.parametrize("max_clips", [1, 3])
def test_the_attention_of_a_transcript_is_drawn(max_clips: int):
    tiny = speech.PRESETS["tiny"]
    stacks = {"encoder": dataclasses.replace(tiny.encoder, context=120)}
    stacks["decoder"] = dataclasses.replace(tiny.decoder, context=32)
    config, model = build_tiny(speech, max_clips=max_clips, **stacks)
    (figure,) = speech.figures(model, config)
    assert json.loads(json.dumps(figure)) == figure
    batch, _ = next(speech.batches(config, "val"))
    nodes, tokens = int(batch["lengths"][0]), int((batch["labels"][0] >= 0).sum())
    assert figure["title"].split()[0] in DIGIT_WORDS and len(figure["title"].split()) <= max_clips
    assert "".join(figure["rows"]) == figure["title"] + "·" and len(figure["rows"]) == tokens
    width = -(-nodes // 48)  # nodes of a column
    assert len(figure["columns"]) == -(-nodes // width) and figure["columns"][0] == "0.0"
    weights = model.alignment(batch["mel"][:1, :, : 2 * nodes], batch["ids"][:1, :tokens])[:, :, 0]
    for row, expected in zip(figure["values"], select_sharpest_layer(weights), strict=True):
        assert sum(row) == pytest.approx(1, abs=0.01)
        assert row[0] == pytest.approx(expected[:width].sum().item(), abs=1e-3)


# --- control ---


def test_the_returns_of_an_agent_are_drawn():
    config, model = build_tiny(control)
    (figure,) = control.figures(model, config)
    achieved, diagonal, mean = figure["lines"]
    assert diagonal["x"] == diagonal["y"] == [achieved["x"][0], achieved["x"][-1]]
    scores = control.score(model, config, target_return=achieved["x"], episodes=8)
    assert achieved["y"] == [pytest.approx(scores[f"for {goal:g}"], abs=0.01) for goal in achieved["x"]]
    assert all(scores[f"for {goal:g} from"] <= scores[f"for {goal:g} to"] for goal in achieved["x"])
    assert mean["y"][0] == pytest.approx(control.load_episodes(config).returns.mean(), abs=0.01)
    assert len(set(achieved["y"])) > 1
    (flat,) = control.figures(*build_tiny(control, conditioned=False)[::-1])
    assert len(set(flat["lines"][0]["y"])) == 1, "a clone does not read the return"


def test_an_agent_without_its_environment_is_not_drawn(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "gymnasium", None)
    config, model = build_tiny(control, env="CartPole-v1")
    assert control.figures(model, config) == []


@pytest.mark.parametrize("name", ["classify", "multimodal"])
def test_counted_predictions_have_the_precision_of_the_evaluation(name: str):
    """In another precision a row at the border of two classes made the report contradict itself."""
    recipe: Any = recipe_loading.load_recipe(name)
    tiny = recipe.PRESETS["tiny"]
    data, train = str(SMALL_DATA.get(name, tiny.data)), dataclasses.replace(tiny.train, dtype="bfloat16")
    config, model = build_tiny(recipe, data=data, train=train)
    precisions: list[bool] = []
    model.register_forward_hook(lambda *_: precisions.append(torch.is_autocast_enabled("cpu")))
    assert recipe.figures(model, config) and all(precisions) and precisions
