"""Captions, codebooks and compositions of images: pure functions, whose results are known."""

from pathlib import Path

import numpy as np
import torch

from anyformer.data.codebook import find_nearest, fit_codebook
from anyformer.data.images import compose
from anyformer.data.images.captions import CaptionVocabulary, find_caption_table, fit_vocabulary, load_vocabulary
from anyformer.data.images.patches import cut_patches, draw_orders, join_patches
from anyformer.data.images.read import tile_images
from data_kit import refuses

RNG = np.random.default_rng(0)


def test_captions_are_numbered_words_without_articles():
    vocabulary = fit_vocabulary(["a red Square", "the blue circle, top left."], ["red square"])
    assert vocabulary.words == ("blue", "circle", "left", "red", "square", "top") and vocabulary.length == 4
    assert vocabulary.encode("A red, top circle").tolist() == [4, 6, 2, 0] and vocabulary.size == 7
    assert load_vocabulary(vocabulary.to_json()) == vocabulary
    with refuses("no caption of the training has the word 'squere'", "did you mean 'square'"):
        vocabulary.encode("red squere")
    with refuses("has 5 words, the longest caption of the training 4"):
        vocabulary.encode("red red red red red")
    for captions, message in ((["", "a"], "have no words"), (["word " * 300], "has 300 words: the limit is 256")):
        with refuses(message):
            fit_vocabulary(captions)
    with refuses("words: length is 0"):
        load_vocabulary('{"words": ["a"], "length": 0}')
    assert CaptionVocabulary(("a",), 1).encode("").tolist() == [0]


def test_a_folder_with_captions_is_its_table(tmp_path: Path):
    assert find_caption_table(str(tmp_path)) == str(tmp_path) and find_caption_table("digits") == "digits"
    (tmp_path / "captions.jsonl").write_text("")
    assert find_caption_table(str(tmp_path)) == str(tmp_path / "captions.jsonl")


def test_patches_are_cut_row_by_row_and_joined_again():
    images = RNG.integers(0, 256, (3, 6, 4, 3)).astype(np.uint8)
    patches = cut_patches(images, 2)
    assert patches.shape == (3, 6, 12)
    assert np.array_equal(patches[1, 3].reshape(2, 2, 3), images[1, 2:4, 2:4])
    assert np.array_equal(join_patches(patches, 6, 4, 2), images)
    assert torch.equal(cut_patches(torch.from_numpy(images), 2), torch.from_numpy(patches))


def test_k_means_finds_the_centers_and_repeats():
    centers = RNG.uniform(20, 230, (16, 4)).astype(np.float32).round()
    points = (centers[RNG.integers(0, 16, 4000)] + RNG.integers(-2, 3, (4000, 4))).astype(np.uint8)
    codebook = fit_codebook(points, 16)
    distances = ((centers[:, None] - codebook) ** 2).sum(-1)
    assert distances.min(1).max() < 0.5 and sorted(distances.argmin(1)) == list(range(16))
    assert np.array_equal(fit_codebook(points, 16), codebook)
    expected = ((points[:, None].astype(np.float32) - codebook) ** 2).sum(-1).argmin(1)
    assert np.array_equal(find_nearest(points, codebook, rows=1000), expected)
    few = fit_codebook(np.array([[1, 2], [3, 4], [1, 2]], np.uint8), 4)
    assert few.tolist() == [[1, 2], [3, 4], [3, 4], [3, 4]]


def test_orders_are_row_by_row_or_leave_a_rectangle_for_the_end():
    orders = draw_orders((3, 4), 400, 0.25, RNG)
    assert (np.sort(orders, axis=1) == np.arange(12)).all()
    changed = orders[(orders != np.arange(12)).any(1)]
    assert 40 < len(changed) < 120, "some rectangles reach to the end, and change nothing"
    for order in changed:
        descent = int(np.flatnonzero(np.diff(order) < 0)[0]) + 1
        rows, columns = np.divmod(order[descent:], 4)
        box = [(r, c) for r in range(rows.min(), rows.max() + 1) for c in range(columns.min(), columns.max() + 1)]
        assert set(zip(*np.divmod(np.arange(12), 4))) >= set(box) >= {*zip(rows.tolist(), columns.tolist())}
        assert (np.diff(order[:descent]) > 0).all() and (np.diff(order[descent:]) > 0).all()
    assert (draw_orders((3, 4), 50, 0.0, RNG) == np.arange(12)).all()


def test_compositions_hold_out_a_quarter_but_no_pair_of_two():
    labels = np.arange(10).repeat(2000)
    drawn = compose.draw_compositions(labels, RNG)
    assert not compose.find_held_out(labels, drawn).any()
    for column, size in ((0, 3), (1, 5)):
        assert len({*zip(labels.tolist(), drawn[:, column].tolist())}) == 10 * size
    every = np.array([(b, p) for b in (1, 2) for p in (1, 2, 3, 4)])
    n_held_out = [int(compose.find_held_out(np.full(8, label), every).sum()) for label in range(10)]
    assert n_held_out == [2] * 10
    assert (
        compose.compose_caption("bag", 1, 2) == "dark bag, top right" and compose.compose_caption("bag", 0, 0) == "bag"
    )


def test_a_composed_image_is_dark_and_in_its_corner():
    image = np.zeros((28, 28, 1), np.uint8)
    image[4:24, 4:24] = RNG.integers(60, 250, (20, 20, 1))
    means = [float(compose.change_brightness(image, i)[4:24, 4:24].mean()) for i in range(3)]
    assert abs(means[1] - 55) < 1 and means[0] == image[4:24, 4:24].mean() and abs(means[2] - 190) < 25
    corner = compose.compose_image(image, 0, compose.PLACES.index("bottom left"), 4)
    assert not corner[:8].any() and not corner[:, 20:].any()
    full = image[4:24, 4:24].mean() * (20 * 20) / (28 * 28)
    assert abs(corner[8:, :20].mean() - full) < 1, "shrunk by the mean of what a pixel covers"
    assert np.array_equal(compose.compose_image(image, 0, 0, 4), image)


def test_a_sheet_holds_images_in_rows():
    images = np.arange(3, dtype=np.uint8)[:, None, None, None].repeat(2, 1).repeat(2, 2)
    sheet = tile_images(images, factor=2)
    assert sheet.shape == (10, 10, 1) and (sheet[6:, :4] == 2).all() and (sheet[:4, 6:] == 1).all()
    assert (sheet[4:6] == 255).all() and (sheet[6:, 6:] == 255).all()
    assert tile_images(images, columns=3, gap=1).shape == (2, 8, 1)
