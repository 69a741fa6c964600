"""Defaults that fit the data: size and color of images, a preset for sentences, limits of a translation."""

import dataclasses
import random
from pathlib import Path

import pytest

from anyformer import resolve_job as jobs
from anyformer.inference.translation import TranslationRequest, default_ngram, limit_tokens
from anyformer.recipes import translation, vision
from cli_kit import SHORT, assert_refused, call
from data_kit import write


def write_images(folder: Path, mode: str, size: tuple[int, int]) -> Path:
    image = pytest.importorskip("PIL.Image", reason="images are decoded by Pillow: pip install 'anyformer[vision]'")
    for i in range(12):
        path = folder / ("ant", "bee")[i % 2] / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        image.new(mode, size, i * 20 if mode == "L" else (i * 20, i if mode == "RGB" else i * 20, i * 20)).save(path)
    return folder


@pytest.mark.parametrize(
    ("mode", "size", "expected"),
    [
        ("RGB", (200, 150), (48, 64, 3, 8, 49)),
        ("L", (28, 28), (28, 28, 1, 4, 50)),
        ("RGB", (32, 32), (32, 32, 3, 4, 65)),
        ("L", (8, 8), (8, 8, 1, 2, 17)),
        ("L", (400, 10), (8, 64, 1, 8, 9)),
    ],
)
def test_size_and_color_are_those_of_the_images(
    mode: str, size: tuple[int, int], expected: tuple[int, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    data = str(write_images(tmp_path / "images", mode, size))
    config = jobs.resolve_job("vision", overrides={"data": data}).config
    assert (config.height, config.width, config.channels, config.patch, config.model.context) == expected
    vision.check_sizes(config)
    color = "gray, " if mode == "L" else "in color, "
    line = f"data '{data}': images {color}the median of {size[0]} x {size[1]} pixels: read with"
    assert capsys.readouterr().err.startswith(line)


def test_color_images_that_are_gray_are_read_as_gray(tmp_path: Path):
    image = pytest.importorskip("PIL.Image", reason="images are decoded by Pillow: pip install 'anyformer[vision]'")
    for i, name in enumerate(("ant", "bee")):
        (tmp_path / name).mkdir()
        image.new("RGB", (16, 16), (i * 20,) * 3).save(tmp_path / name / "0.png")
    write(tmp_path / "bee" / "1.png", b"damaged")
    assert jobs.resolve_job("vision", overrides={"data": str(tmp_path)}).config.channels == 1


def test_what_the_user_chose_stays(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    data = str(write_images(tmp_path / "images", "RGB", (64, 64)))
    config = jobs.resolve_job("vision", overrides={"data": data, "height": 28, "width": 28}).config
    assert (config.height, config.channels, config.patch, config.model.context) == (28, 3, 4, 50)
    config = jobs.resolve_job("vision", overrides={"data": data, "channels": 1}).config
    assert (config.height, config.channels, config.patch) == (64, 1, 8)
    capsys.readouterr()
    config = jobs.resolve_job("vision", "small", overrides={"data": data}).config
    assert (config.height, config.channels) == (28, 1) and capsys.readouterr().err == ""
    assert jobs.resolve_job("vision").config.height == 28, "the recipe's own set keeps its figures"


def test_photos_train_and_predict_in_color(tmp_path: Path):
    data = write_images(tmp_path / "images", "RGB", (40, 30))
    small = ("--model.dim", 16, "--model.n-layer", 1, "--local-layers", 0, "--train.batch", 4, "--device", "cpu")
    result = call("train", "vision", "--data", data, "--out", tmp_path / "run", *SHORT, *small).ok()
    assert "in color, the median of 40 x 30 pixels: read with 3 channels, 40 x 32 pixels in patches of 8" in result.err
    answer = call("predict", tmp_path / "run", data / "ant" / "0.png", "--json", "--device", "cpu").ok().json
    assert answer["results"][0]["label"] in ("ant", "bee")


def write_sentences(path: Path) -> str:
    rng = random.Random(0)
    words = [("the", "le"), ("cat", "chat"), ("dog", "chien"), ("sees", "voit"), ("house", "maison"), ("red", "rouge")]
    rows = [rng.choices(words, k=8) for _ in range(60)]
    return str(write(path, "".join("\t".join(" ".join(side) for side in zip(*row)) + "\n" for row in rows)))


def test_pairs_of_sentences_take_a_preset_for_sentences(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    job = jobs.resolve_job("translation", overrides={"data": write_sentences(tmp_path / "a.tsv"), "vocab_size": 300})
    assert job.preset == "sentences" and job.config.vocab_size == 300 and job.config.decoder.context == 64
    assert "a.tsv': pairs of sentences: --preset sentences" in capsys.readouterr().err
    next(translation.batches(job.config, "train"))
    words = write(tmp_path / "b.tsv", "".join(f"abc{i}\t{i}cba\n" for i in range(60)))
    assert jobs.resolve_job("translation", overrides={"data": str(words)}).preset == "reverse"
    assert jobs.resolve_job("translation", overrides={"data": "reverse"}).preset == "reverse"
    assert jobs.resolve_job("translation", "reverse", {"data": write_sentences(tmp_path / "a.tsv")}).preset == "reverse"
    assert_refused(call("train", "translation", "--data", tmp_path / "none.tsv"), "none.tsv", "no such file")


def test_a_translation_is_limited_by_its_source():
    config = translation.PRESETS["tiny"]
    model = translation.build(config)
    limit = {ratio: TranslationRequest(input="", max_length_ratio=ratio) for ratio in (0.0, 0.5, 3.0)}
    assert [limit_tokens(model, request, 4) for request in limit.values()] == [24, 22, 24]
    assert limit_tokens(model, dataclasses.replace(limit[0.5], tokens=5), 4) == 5
    assert default_ngram(model, limit[0.0]) == 0, "characters may repeat"
