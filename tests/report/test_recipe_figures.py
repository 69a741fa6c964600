"""What is drawn of models that see, hear and act: true to the model, and for eyes."""

import base64
import dataclasses
import io
import json
import sys
from typing import Any

import numpy as np
import pytest
import torch
from anyformer.data.audio.read import WORDS

from anyformer import recipe as recipes
from anyformer.data.images import decode as picture
from anyformer.inference.translation import sharpest
from anyformer.model.block import Transformer
from anyformer.model.config import TransformerConfig
from anyformer.model.edges import Edges, full, neighbours
from anyformer.model.positions import rotate
from anyformer.model.weights import attention_weights
from anyformer.recipes.vision.drawing import heat
from anyformer.report.figures import drawn
from anyformer.training import loop

control: Any = recipes.load("control")
speech: Any = recipes.load("speech")
vision: Any = recipes.load("vision")


def tiny(name: str, **changes: Any) -> tuple[Any, Any]:
    """The tiny preset, and a model of it with weights that say something."""
    config = dataclasses.replace(recipes.load(name).PRESETS["tiny"], **changes)
    torch.manual_seed(0)
    model = recipes.load(name).build(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return config, model


# --- the weights of attention ---


@pytest.mark.parametrize("edges", [full, neighbours(4, 4, 1)], ids=str)
@pytest.mark.parametrize("more", [{}, {"position": "rotary"}, {"n_kv_head": 2, "qk_norm": True}], ids=str)
def test_weights_are_the_softmax_of_the_scores(edges: Edges, more: dict):
    torch.manual_seed(0)
    body = Transformer(TransformerConfig(dim=32, n_layer=2, n_head=4, **more)).eval()
    x = torch.randn(3, 16, 32)
    found = attention_weights(body, lambda: body(x, edges))
    assert found.shape == (2, 3, 4, 16, 16)
    block, wires = body.blocks[0], body.wire(x, edges)[0]
    attention, y = block.attn, block.attn_norm(x)
    q, k = attention.heads(attention.query(y)), attention.heads(attention.key(y))
    q, k = (
        attention.query_norm(q),
        attention.key_norm(k).repeat_interleave(4 // attention.heads(attention.key(y)).shape[1], 1),
    )
    if wires.turn is not None:
        q, k = rotate(q, wires.turn), rotate(k, wires.turn)
    scores = (q @ k.transpose(-1, -2) / 8**0.5).masked_fill(~edges.dense(1, 16, 16), -torch.inf)
    torch.testing.assert_close(found[0], scores.softmax(-1))


# --- vision ---


def pixels_of(image: dict) -> np.ndarray:
    return picture.from_bytes(base64.b64decode(image["png"]), "a figure")


def test_the_confusion_matrix_and_the_mistakes_are_those_of_the_evaluation():
    pytest.importorskip("PIL", reason="images are drawn by Pillow")
    config, model = tiny("vision")
    matrix, wrong, looks = vision.figures(model, config)
    found = vision.pictures(config)
    val = found.split("val")
    counts = np.bincount(found.labels[val], minlength=10)
    right = (np.diag(matrix["values"]) * counts).sum()
    accuracy = loop.evaluate(vision, model, (batch for batch, _ in vision.batches(config, "val")))["accuracy"]
    assert right == pytest.approx(accuracy * len(val), abs=0.1) and matrix["rows"] == list(model.classes)
    assert all(sum(row) == pytest.approx(1, abs=0.01) for row in matrix["values"])
    shares = []
    for image in wrong["images"]:
        truth, said = image["caption"].split(", said ")
        shares.append(float(said.split()[1]))
        assert truth != said.split()[0]
        small = pixels_of(image)[::12, ::12]
        assert any(np.array_equal(small, found.pixels[i, :, :, 0]) for i in val if str(found.labels[i]) == truth)
    assert shares == sorted(shares, reverse=True) and len(looks["images"]) == 6


@pytest.mark.parametrize(
    ("pool", "context", "title"), [("first", 17, "Where the class node"), ("mean", 16, "Which pa")]
)
def test_heat_lies_where_the_model_reads(pool: str, context: int, title: str):
    pytest.importorskip("PIL", reason="images are drawn by Pillow")
    shape = dataclasses.replace(vision.PRESETS["tiny"].model, context=context)
    config, model = tiny("vision", pool=pool, patch=2, model=shape)
    assert vision.figures(model, config)[-1]["title"].startswith(title)
    images = vision.pictures(config).pixels[:3]
    heats = heat(model, images)
    assert heats.shape == (3, 4, 4)
    if pool == "mean":
        assert np.allclose(heats.sum((1, 2)), 1, atol=1e-5)
        return
    weights = attention_weights(model.body, lambda: model(torch.from_numpy(images.transpose(0, 3, 1, 2).copy())))
    assert np.allclose(heats.reshape(3, 16), weights[-1].mean(1)[:, 0, 1:], atol=1e-6)
    one = np.zeros((4, 4))
    one[1, 2] = 0.3
    both = picture.beside_heat(np.zeros((8, 8, 1), np.uint8), one)
    red = both[:, 9:, 0].astype(int)
    assert (
        both.shape == (8, 17, 3)
        and not both[:, :8].any()
        and np.unravel_index(red.argmax(), red.shape) in [(2, 4), (2, 5), (3, 4), (3, 5)]
    )


def test_an_image_is_drawn_in_whole_squares_and_a_large_one_is_shrunk():
    image = pytest.importorskip("PIL.Image", reason="images are drawn by Pillow")
    rng = np.random.default_rng(0)
    for side, channels, want in ((8, 1, 96), (28, 1, 84), (300, 3, 96)):
        pixels = rng.integers(0, 256, (side, side, channels)).astype(np.uint8)
        shown = image.open(io.BytesIO(base64.b64decode(picture.png(pixels))))
        assert shown.size == (want, want)


def test_without_pillow_only_the_matrix_is_drawn(monkeypatch: pytest.MonkeyPatch):
    config, model = tiny("vision")
    vision.pictures(config)
    monkeypatch.setitem(sys.modules, "PIL", None)
    assert [figure["kind"] for figure in vision.figures(model, config)] == ["matrix"]


# --- speech ---


@pytest.mark.parametrize("joined", [1, 3])
def test_a_listener_is_drawn_where_it_listens(joined: int):
    decoder = dataclasses.replace(recipes.load("speech").PRESETS["tiny"].decoder, context=32)
    encoder = dataclasses.replace(recipes.load("speech").PRESETS["tiny"].encoder, context=120)
    config, model = tiny("speech", joined=joined, encoder=encoder, decoder=decoder)
    (figure,) = speech.figures(model, config)
    batch, _ = next(speech.batches(config, "val"))
    nodes, tokens = int(batch["lengths"][0]), int((batch["next"][0] >= 0).sum())
    assert figure["title"].split()[0] in WORDS and len(figure["title"].split()) <= joined
    assert "".join(figure["rows"]) == figure["title"] + "·" and len(figure["rows"]) == tokens
    assert len(figure["columns"]) == -(-nodes // -(-nodes // 48)) and figure["columns"][0] == "0.0"
    weights = model.alignment(batch["mel"][:1, :, : 2 * nodes], batch["ids"][:1, :tokens])[:, :, 0]
    assert len(figure["values"]) == tokens
    sharp = sharpest(weights)
    for row, want in zip(figure["values"], sharp, strict=True):
        assert sum(row) == pytest.approx(1, abs=0.01) and row[0] == pytest.approx(
            want[: -(-nodes // 48)].sum().item(), abs=1e-3
        )
    assert drawn(json.loads(json.dumps(figure))) is not None


# --- control ---


def test_an_agent_is_drawn_as_it_plays(monkeypatch: pytest.MonkeyPatch):
    config, model = tiny("control")
    (figure,) = control.figures(model, config)
    achieved, diagonal, mean = figure["lines"]
    assert diagonal["x"] == diagonal["y"] == [achieved["x"][0], achieved["x"][-1]]
    played = control.judge(model, config, wanted=achieved["x"], episodes=8)
    assert achieved["y"] == [pytest.approx(played[f"for {goal:g}"], abs=0.01) for goal in achieved["x"]]
    assert all(played[f"for {goal:g} from"] <= played[f"for {goal:g} to"] for goal in achieved["x"])
    assert mean["y"][0] == pytest.approx(control.episodes(config).returns.mean(), abs=0.01)
    assert len(set(achieved["y"])) > 1
    (flat,) = control.figures(*tiny("control", conditioned=False)[::-1])
    assert len(set(flat["lines"][0]["y"])) == 1, "a clone hears nothing of what is wanted"


def test_an_agent_whose_environment_is_not_here_is_not_drawn(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "gymnasium", None)
    config, model = tiny("control", env="CartPole-v1")
    assert control.figures(model, config) == []
