"""Contrastive: losses and recall against slow loops, what each tower reads, one's own folder, and mistakes."""

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from anyformer import api, recipe_loading
from anyformer.metrics import score_retrieval
from anyformer.recipes._shared.towers import compare_pairs
from cli_kit import assert_refused, call
from data_kit import refuses

Image = pytest.importorskip("PIL.Image")
contrastive: Any = recipe_loading.load_recipe("contrastive")
TINY = contrastive.PRESETS["tiny"]
SIGLIP = replace(TINY, **contrastive.SIGLIP | {"image_norm": False}, text_edges="full", pad_id=3,
                 vision=replace(TINY.vision, context=4))  # fmt: skip
COLORS = {"red": (220, 30, 30), "blue": (30, 30, 220)}


def build(config: Any) -> Any:
    torch.manual_seed(0)
    model = contrastive.build(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


# --- losses and metrics ---


def compare_slowly(logits: np.ndarray, captions: list[int], images: list[int], is_softmax: bool) -> float:
    """The loss of one group, by loops."""
    n, total = len(logits), 0.0
    for i in range(n):
        negatives = [j for j in range(n) if captions[j] != captions[i] and images[j] != images[i]]
        if is_softmax:
            for line in (logits[i], logits[:, i]):
                total -= (line[i] - math.log(sum(math.exp(line[j]) for j in [i, *negatives]))) / 2
        else:
            total -= math.log(1 / (1 + math.exp(-logits[i, i])))
            total -= sum(math.log(1 / (1 + math.exp(logits[i, j]))) for j in negatives)
    return total / n


@pytest.mark.parametrize("config", [TINY, SIGLIP], ids=["softmax", "sigmoid"])
@torch.no_grad()
def test_the_loss_is_that_of_the_paper_and_equal_pairs_are_no_negatives(config: Any):
    model = build(config)
    images, texts = (torch.nn.functional.normalize(torch.randn(2, 6, 24), dim=-1) for _ in range(2))
    batch = {
        "captions": torch.tensor([[0, 1, 2, 1, 3, 4], [0, 1, 2, 3, 4, 5]]),
        "images": torch.tensor([[7, 8, 9, 6, 5, 9], [1, 2, 3, 4, 5, 6]]),
    }
    scale, bias = model.logit_scale.exp().item(), 0.0 if model.logit_bias is None else model.logit_bias.item()
    logits = scale * torch.einsum("gne,gme->gnm", images, texts).double().numpy() + bias
    values = zip(logits, batch["captions"].tolist(), batch["images"].tolist())
    expected = [compare_slowly(*value, config.loss == "softmax") for value in values]
    torch.testing.assert_close(compare_pairs(model, batch, images, texts), torch.tensor(expected, dtype=torch.float32))


def test_recall_counts_different_images_and_captions_and_ties_are_no_luck():
    rng = np.random.default_rng(0)
    vectors, numbers = rng.normal(size=(2, 9, 4)).astype(np.float32), [0, 1, 2, 3, 3, 4, 5, 6, 7]
    captions = [0, 1, 1, 2, 3, 4, 4, 4, 5]
    vectors[0, 4] = vectors[0, 3]  # one image with two captions
    for caption in (1, 4):
        vectors[1, np.array(captions) == caption] = vectors[1, captions.index(caption)]
    images, texts = map(torch.from_numpy, vectors)

    def recall(query: int, candidate: int, top: int) -> float:
        names, right = (numbers, captions) if query == 0 else (captions, numbers), 0
        for name in set(names[0]):
            row = vectors[query, names[0].index(name)]
            rank = sorted(set(names[1]), key=lambda n: -row @ vectors[candidate, names[1].index(n)])
            pairs = {b for a, b in zip(*names) if a == name}
            right += any(number in pairs for number in rank[:top])
        return right / len(set(names[0]))

    tensors = torch.tensor(numbers), torch.tensor(captions)
    expected = [recall(0, 1, top) for top in (1, 5)], [recall(1, 0, top) for top in (1, 5)]
    assert score_retrieval(images, texts, *tensors) == pytest.approx(expected[0])
    assert score_retrieval(texts, images, *tensors[::-1]) == pytest.approx(expected[1])
    same = torch.ones(5, 2)
    assert score_retrieval(same, same, torch.arange(5), torch.arange(5)) == [0.0, 1.0]


# --- what each tower reads ---


@torch.no_grad()
def test_padding_is_read_only_where_the_model_says_so():
    for config, length in ((TINY, 2), (SIGLIP, 8)):
        model = build(config)
        (row,) = model.encode(["7"])
        assert len(row) == length and row[:2] == [7, 10], "the end token closes the text"
        assert row[2:] == [3] * (length - 2)
        ids = torch.tensor([[*row, 5, 5, 5]])
        expected = model.embed_texts(torch.tensor([row]), torch.tensor([length]))
        if config is TINY:
            torch.testing.assert_close(model.embed_texts(ids, torch.tensor([length])), expected)
        changed = torch.tensor([[*row[:-1], 9]])
        assert not torch.allclose(model.embed_texts(changed, torch.tensor([length])), expected, atol=1e-3)


@torch.no_grad()
def test_tokens_of_a_causal_text_read_what_is_before_them():
    model = build(TINY)
    nodes, others = (model.text.hidden(torch.tensor([row])) for row in ([1, 2, 3, 10], [1, 2, 9, 10]))
    torch.testing.assert_close(nodes[:, :2], others[:, :2])
    assert not torch.allclose(nodes[:, 2:], others[:, 2:], atol=1e-3)


@torch.no_grad()
def test_a_probe_reads_patches_as_a_set():
    model = build(SIGLIP)
    nodes = torch.randn(2, 4, 32)
    pool = model.vision.reduce_nodes
    torch.testing.assert_close(pool(nodes[:, [2, 0, 3, 1]]), pool(nodes))
    assert not torch.allclose(pool(nodes * torch.tensor([1, 1, 1, 0.0])[:, None]), pool(nodes), atol=1e-3)


def test_a_batch_names_equal_images_and_captions():
    rows = np.array([[0, 0, 1], [1, 2, 10]])
    data, ids = contrastive.load_data(TINY), contrastive.load_caption_ids(TINY)[0]
    batch = contrastive.make_batch(data, ids, rows, np.zeros((6, 2), np.int64))
    assert batch["pixels"].shape == (2, 3, 1, 8, 8) and batch["ids"].shape == (2, 3, 2)
    images, captions = batch["images"].flatten().tolist(), batch["captions"].flatten().tolist()
    assert images[0] == images[1] != images[2] == images[3] and len(set(images)) == 4
    assert captions[5] == captions[0] != captions[2], "rows 0 and 10 show the same digit"
    assert contrastive.loss_weight(batch) == 6


# --- one's own photographs ---


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of red and blue squares, on the left or on the right, with a caption each."""
    folder, lines = tmp_path_factory.mktemp("squares"), ["file,caption"]
    for i in range(60):
        color, side = list(COLORS)[i % 2], ("left", "right")[i // 2 % 2]
        pixels = np.random.default_rng(i).integers(0, 60, (16, 16, 3)).astype(np.uint8)
        pixels[4:12, (0 if side == "left" else 8) :][:, :8] = COLORS[color]
        Image.fromarray(pixels).save(folder / f"{i}.png")
        lines.append(f'{i}.png,"A {color} square, {side}"')
    (folder / "captions.csv").write_text("\n".join(lines))
    return folder


@pytest.fixture(scope="module")
def run(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "run"
    sizes = [f"--{stack}.{name}" for stack in ("vision", "text") for name in ("dim", "n-layer", "n-head")]
    flags = [flag for pair in zip(sizes, (32, 1, 2) * 2) for flag in pair]
    steps = ("--steps", 60, "--pairs", 16, "--train.eval-every", 60, "--train.warmup", 5, "--train.lr", 0.01)
    result = call("train", "contrastive", "--data", folder, *flags, *steps, "--device", "cpu", "--out", out, "--json")
    metrics = result.ok().json
    assert metrics["baselines"]["image_to_text_at_1"] == {"guessing": 0.25}, metrics
    return out


def test_own_photographs_are_recognized_found_and_embedded(run: Path, folder: Path):
    model = api.load(run, "cpu")
    assert set(model.module.captions) == {f"A {color} square, {side}" for color in COLORS for side in ("left", "right")}
    assert model.score()["zero_shot_accuracy"] == 1.0
    metrics = model.evaluate()
    assert (metrics["image_to_text_at_1"], metrics["text_to_image_at_1"]) == (1.0, 1.0)
    assert (metrics["images"], metrics["captions"]) == (6, 4)
    flags = ("--choices", "red square", "--choices", "blue square", "--template", "a {}", "--top", 1)
    answer = call("predict", run, folder / "1.png", *flags, "--json").ok().json["results"][0]
    assert answer["label"] == "blue square" and list(answer["probabilities"]) == ["blue square"]
    assert answer == model.predict(str(folder / "1.png"), choices="red square, blue square", template="a {}", top=1)[
        "results"
    ][0] | {"input": str(folder / "1.png")}
    (answer,) = model.predict({"search": "a blue square, right", "images": str(folder), "top": 3})["results"]
    numbers = [int(Path(image["path"]).stem) for image in answer["images"]]
    assert len(numbers) == 3 and all(n % 4 == 3 for n in numbers) and answer["path"] == answer["images"][0]["path"]
    paths = [str(folder / f"{n}.png") for n in range(4)]
    images = np.array(model.predict({"embed_images": paths})["vectors"])
    texts = np.array(model.embed(["a red square, left", "a blue square, right"]))
    assert np.allclose(np.linalg.norm(images, axis=1), 1, atol=1e-5)
    assert (images @ texts.T).argmax(0).tolist() == [0, 3]
    assert np.allclose(texts, model.predict({"embed": ["a red square, left", "a blue square, right"]})["vectors"])
    assert len(json.loads(call("embed", run, "a red square").ok().out)) == texts.shape[1]


def test_a_report_shows_images_captions_and_what_is_found(run: Path):
    figures = json.loads((run / "figures.json").read_text())
    assert [figure["title"] for figure in figures] == ["Images and captions", "The images", "Images found by captions"]
    values = np.array(figures[0]["values"])
    assert values.shape == (4, 4) and (values.argmax(1) == np.arange(4)).all()
    config = json.loads((api.load(run, "cpu").path / "config.json").read_text())["config"]
    assert (config["channels"], config["patch"], config["compose"], config["vision"]["context"]) == (3, 4, False, 16)


def test_long_captions_are_cut_and_counted(run: Path, folder: Path):
    config = replace(
        api.load(run, "cpu").config, tokenizer="byte", data=str(folder), text=replace(TINY.text, context=9)
    )
    _, state = next(contrastive.batches(config, "train"))
    assert state["cut"] == 60
    with refuses("the context holds", "cut"):
        api.load(run, "cpu").predict({"embed": "a red square " * 40})


def test_mistakes_are_one_line(run: Path, folder: Path):
    path = folder / "1.png"
    assert_refused(call("predict", run, path, "--choices", ","), "choices: expected at least one text")
    assert_refused(call("predict", run, path, "--template", "a photo"), "template is 'a photo'", "{}")
    assert_refused(call("predict", run, "--search", "red"), "search", "images", "both are needed")
    assert_refused(call("predict", run, path, "--embed", "red"), "has one")
    assert_refused(call("predict", run, "--search", "red", "--images", folder.parent / "none"), "none", "no such file")
    assert_refused(call("predict", run, "--search", "red", "--images", "~no-such-user/a"), "no such file")
    train = ("train", "contrastive", "--data", folder)
    assert_refused(call(*train, "--vision.context", 4), "makes 16 nodes", "--vision.context 16")
    with refuses("patches of 4 pixels do not cut 10 x 8 pixels"):
        replace(TINY, height=10)
    assert_refused(call(*train, "--pad-id", 9999), "pad_id is 9999")
    assert_refused(call(*train, "--columns", "file,text"), "text")
