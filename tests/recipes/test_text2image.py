"""Text to image: what a node may read, guidance, painting a part anew, one's own folder, and mistakes."""

import base64
import io
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from anyformer import api, recipe_loading
from anyformer.data.images.patches import cut_patches
from anyformer.inference.drawing import DrawingRequest, draw, paint_cells, select_part
from cli_kit import assert_refused, call
from data_kit import refuses

Image = pytest.importorskip("PIL.Image")
text2image: Any = recipe_loading.load_recipe("text2image")
TINY = text2image.PRESETS["tiny"]
COLORS = {"red": (220, 30, 30), "blue": (30, 30, 220)}


@pytest.fixture(scope="module")
def model() -> Any:
    torch.manual_seed(0)
    model = text2image.build(TINY).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def read_ids(model: Any, caption: str, codes: torch.Tensor) -> torch.Tensor:
    words = torch.from_numpy(model.vocabulary.encode(caption))[None] + model.codes
    return torch.cat([words, codes[None]], dim=1)


# --- nodes, edges, guidance ---


@torch.no_grad()
def test_a_patch_knows_its_cell_and_the_next_one_but_not_what_comes_later(model: Any):
    codes, order = torch.randint(model.codes, (15,)), torch.randperm(16)
    nodes = model.hidden(read_ids(model, "3", codes), order=order)
    changed = codes.clone()
    changed[9] = (codes[9] + 1) % model.codes
    other = model.hidden(read_ids(model, "3", changed), order=order)
    assert torch.equal(nodes[:, :10], other[:, :10]) and not torch.allclose(nodes[:, 10:], other[:, 10:])
    swapped = order.clone()
    swapped[[11, 12]] = order[[12, 11]]
    moved = model.hidden(read_ids(model, "3", codes), order=swapped)
    assert torch.equal(nodes[:, :11], moved[:, :11]), "the cell of a patch is known one node before it"
    assert not torch.allclose(nodes[:, 11], moved[:, 11])


@torch.no_grad()
def test_cached_and_guided_drawing_equals_reading_all_again(model: Any):
    """Two rows a step: logits move away from those without the caption."""
    for guidance in (1.0, 3.0):
        codes = torch.zeros(0, dtype=torch.long)
        while len(codes) < 16:
            conditional, blank = (model(read_ids(model, text, codes))[0, -1] for text in ("7", ""))
            codes = torch.cat([codes, (blank + guidance * (conditional - blank)).argmax()[None]])
        request = DrawingRequest(input=["7", "2"], guidance=guidance, temperature=0.0)
        assert np.array_equal(draw(model, request)[0], model.decode(codes[None])[0].numpy())


def test_guidance_of_0_ignores_the_caption_and_a_seed_decides(model: Any):
    first, second = draw(model, DrawingRequest(input=["7", "2"], guidance=0.0))
    assert np.array_equal(first, second)
    samples = draw(model, DrawingRequest(input="7", samples=3, seed=5))
    again = draw(model, DrawingRequest(input=["2", "7"], samples=2, seed=5))
    assert np.array_equal(samples[:2], again[2:]) and not np.array_equal(samples[0], samples[1])


def test_a_part_is_painted_anew_and_the_others_stay(model: Any):
    image = text2image.load_data(TINY).images.pixels[5]
    is_hidden = select_part(model.grid, "right")
    assert is_hidden.sum() == 8 and is_hidden[:, 2:].all()
    (picture,) = paint_cells(model, ["7"], [0], np.asarray(image), is_hidden, DrawingRequest())
    assert np.array_equal(picture[:, :4], image[:, :4]) and not np.array_equal(picture[:, 4:], image[:, 4:])
    painted = cut_patches(picture[None], 2)[0][is_hidden.reshape(-1)]
    codebook = model.codebook.round().clamp(0, 255).to(torch.uint8).numpy().tolist()
    assert all(patch in codebook for patch in painted.tolist())


def test_the_patches_around_decide_what_is_painted(model: Any):
    is_hidden = np.zeros(model.grid, bool)
    is_hidden[0, 0] = True  # everything after it in the rows is known
    image = np.asarray(text2image.load_data(TINY).images.pixels[5]).copy()
    settings = DrawingRequest(temperature=0.0, guidance=1.0)
    codes = model.encode(torch.from_numpy(image[None]))[0]
    with torch.no_grad():
        order = torch.tensor([*range(1, 16), 0])
        logits = model.head(model.hidden(read_ids(model, "7", codes[1:]), order=order))[0, -1]
    (picture,) = paint_cells(model, ["7"], [0], image, is_hidden, settings)
    expected = model.decode(logits.argmax().expand(1, 16))[0, :2, :2].numpy()
    assert np.array_equal(picture[:2, :2], expected)


# --- one's own pictures ---


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of red and blue squares, on the left or on the right, with a caption each."""
    folder, lines = tmp_path_factory.mktemp("squares"), ["file,caption"]
    for i in range(40):
        color, side = list(COLORS)[i % 2], ("left", "right")[i // 2 % 2]
        pixels = np.zeros((16, 16, 3), np.uint8)
        pixels[4:12, (0 if side == "left" else 8) :][:, :8] = COLORS[color]
        Image.fromarray(pixels).save(folder / f"{i}.png")
        lines.append(f'{i}.png,"A {color} square, {side}"')
    (folder / "captions.csv").write_text("\n".join(lines))
    return folder


@pytest.fixture(scope="module")
def run(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "run"
    sizes = ("--codes", 8, "--model.dim", 32, "--model.n-layer", 2, "--model.n-head", 2)
    steps = ("--steps", 120, "--train.batch", 16, "--train.eval-every", 120, "--train.warmup", 5, "--train.lr", 0.01)
    result = call(
        "train", "text2image", "--data", folder, *sizes, *steps, "--device", "cpu", "--out", out, "--json"
    ).ok()
    assert result.json["val_loss"] < 0.05 < result.json["baselines"]["loss"]["codes by their cell"], result.json
    return out


def decode_png(text: str) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(text))))


def test_own_pictures_are_drawn_as_captioned(run: Path, folder: Path):
    model = api.load(run, "cpu")
    for color, side in (("red", "right"), ("blue", "left"), ("red", "left")):
        (result,) = model.predict(f"the {color} square, {side}", temperature=0)["results"]
        picture = decode_png(result["png"]).astype(int)
        half = picture[4:12, 8:] if side == "right" else picture[4:12, :8]
        assert picture.shape == (16, 16, 3) and np.abs(half - COLORS[color]).max() < 40
        assert picture.sum() < 1.1 * half.sum()
    path = str(folder / "0.png")  # red, left
    (result,) = model.predict({"image": path, "part": "bottom", "input": "red square, left"}, temperature=0)["results"]
    assert np.abs(decode_png(result["png"]).astype(int) - np.asarray(Image.open(path))).max() < 40
    config = json.loads((model.path / "config.json").read_text())["config"]
    assert (config["channels"], config["patch"], config["compose"]) == (3, 4, False)


def test_a_run_is_loaded_without_its_data_with_its_codebook_in_the_weights(run: Path, tmp_path: Path):
    model = api.load(run, "cpu")
    config = replace(model.config, data="gone", words=str(model.path / "words.json"))
    assert torch.equal(text2image.build(config).codebook, model.module.codebook) and model.module.codebook.any()
    with refuses("model.safetensors has no codebook of 9 patches"):
        text2image.build(replace(config, codes=9))


def test_a_sheet_of_samples(run: Path, tmp_path: Path):
    sheet = tmp_path / "sheet.png"
    prompts = ("--prompt", "red square, left", "--prompt", "blue square, left")
    call("sample", run, *prompts, "--samples", 3, "--out", sheet, "--guidance", 3, "--request", '{"top_k": 5}').ok()
    pixels = np.asarray(Image.open(sheet))
    assert pixels.shape == (7 * 33, 7 * 50, 3)
    assert pixels[:112, :, 0].sum() > 2 * pixels[120:, :, 0].sum(), "a row for each caption"
    assert call("sample", run, "--out", sheet, "--json").ok().json["out"] == str(sheet)
    figures = json.loads((run / "figures.json").read_text())
    assert [figure["title"] for figure in figures] == ["Drawn from captions", "Painted anew", "The codebook"]


def test_mistakes_are_one_line(run: Path, folder: Path, tmp_path: Path):
    assert_refused(call("sample", run, "--prompt", "rde", "--out", "a.png"), "has the word 'rde'", "'red'?")
    assert_refused(call("sample", run, "--prompt", "red"), "--out picture.png")
    assert_refused(call("sample", run, "--tokens", 3, "--out", "a.png"), "--tokens is for texts")
    assert_refused(call("predict", run, "red", "--part", "middle"), "part", "'middle'")
    assert_refused(call("predict", run, "red", "--image", "none.png"), "none.png")
    assert_refused(call("predict", run, "red", "--samples", 5000), "samples is 5000")
    train = ("train", "text2image", "--out", tmp_path / "run", "--data")
    with refuses("patches of 3 pixels do not cut 8 x 8 pixels"):
        replace(TINY, patch=3)
    assert_refused(
        call(*train, folder, "--model.context", 4), "3 words and 16 patches make 18 nodes", "--model.context 18"
    )
    assert_refused(call(*train, folder / "captions.csv", "--columns", "file,text"), "text")
    (tmp_path / "captions.csv").write_text("file,caption\nnone.png,red\nnone2.png,blue\n")
    assert_refused(call(*train, tmp_path), "there is no file", "none.png")
