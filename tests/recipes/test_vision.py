"""Vision: positions on the grid, edges of neighbours, batches, augmentation, answers on files."""

import dataclasses
import json
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from anyformer.data.images.augment import Augment
from anyformer.data.images.cache import drawn, order

from anyformer import api
from anyformer import recipe as recipes
from anyformer.data.images import augment
from anyformer.data.images import preprocessing as looks
from anyformer.errors import InputError
from anyformer.model.edges import full, hops
from anyformer.model.positions import Grid, Sinusoidal
from data_kit import refuses

vision: Any = recipes.load("vision")
TINY = vision.PRESETS["tiny"]
RNG = np.random.default_rng(0)
IMAGES = RNG.integers(0, 256, (6, 8, 10, 3)).astype(np.uint8)
LABELS = np.array([0, 1, 2, 3, 4, 5])
LABELS.flags.writeable = False


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def changed(config: Any, context: int | None = None, **changes: Any) -> Any:
    if context is not None:
        changes["model"] = dataclasses.replace(config.model, context=context)
    return dataclasses.replace(config, **changes)


# --- nodes and edges ---


def test_a_place_on_the_grid_is_its_row_and_its_column():
    got = Grid(12)(torch.arange(3), torch.arange(5)).view(3, 5, 12)
    wave = Sinusoidal(6)(torch.arange(5))
    for row in range(3):
        for column in range(5):
            assert torch.equal(got[row, column], torch.cat([wave[row], wave[column]]))


def test_without_position_the_class_node_sees_a_set():
    model = vision.build(changed(TINY, model=dataclasses.replace(TINY.model, position="none"))).eval()
    told = vision.build(TINY).eval()
    image = torch.randint(256, (1, 1, 8, 8), dtype=torch.uint8)
    swapped = torch.cat([image[:, :, 4:], image[:, :, :4]], dim=2)  # the patches in another order
    with torch.no_grad():
        torch.testing.assert_close(model(image), model(swapped))
        assert not torch.allclose(told(image), told(swapped))


def test_early_layers_look_around_and_the_class_node_reads_all():
    config = changed(TINY, patch=2, context=17, local=1, radius=1)
    near, last = vision.layers(config)
    assert last is full
    table = near.dense(1, 17, 17)[0, 0]
    assert table[0].all() and table[:, 0].all()
    for q in range(16):
        for k in range(16):
            close = abs(q // 4 - k // 4) <= 1 and abs(q % 4 - k % 4) <= 1
            assert table[q + 1, k + 1] == close
    assert hops([near, last], 17).max() == 1
    without = vision.layers(changed(config, pool="mean", context=16))[0]
    assert torch.equal(without.dense(1, 16, 16)[0, 0], table[1:, 1:]) and without.back == 5


@pytest.mark.parametrize("preset", list(vision.PRESETS))
def test_every_preset_fits_together(preset: str):
    config = vision.PRESETS[preset]
    vision.check(config)
    small = changed(config, labels='["a", "b"]', looks=looks.flat(0.5, config.channels).json(), data="")
    with torch.device("meta"):
        model = vision.build(small)
        assert model(torch.zeros(2, config.channels, config.height, config.width)).shape == (2, 2)


@pytest.mark.parametrize(
    ("config", "complaint"),
    [
        (changed(TINY, patch=3), "patches of 3 pixels do not cut a height of 8: --height 9 would do"),
        (changed(TINY, patch=2), "makes 17 nodes, and the context is 5: --model.context 17"),
        (changed(TINY, pool="mean"), "makes 4 nodes, and the context is 5"),
        (changed(TINY, width=0), "must be at least 1"),
        (changed(TINY, val_fraction=1.0), "a validation fraction of 1.0"),
        (changed(TINY, looks='{"mean": [0.5]}'), "std is None; it must be 1 numbers"),
        (changed(TINY, looks='{"mean": [0.5], "std": [1], "size": 3}'), "unknown field 'size'"),
        (changed(TINY, labels="[1, 2]"), "expected a list of names"),
        (changed(TINY, labels="none.json"), "labels 'none.json' cannot be read"),
    ],
)
def test_what_does_not_fit_is_said(config: Any, complaint: str):
    with refuses(complaint):
        vision.build(config)


# --- batches ---


def test_an_epoch_shows_every_image_once():
    part = np.arange(100, 123)
    seen = np.concatenate([drawn(part, 5, seed=3, step=s) for s in range(10)])
    assert sorted(seen[:23]) == part.tolist() and sorted(seen[23:46]) == part.tolist()
    assert seen[:23].tolist() != seen[23:46].tolist()
    assert not np.array_equal(order(50, 1, 0), order(50, 2, 0))


@pytest.mark.parametrize("how", [Augment(flip=True, crop=2, distort=2), Augment(mix=0.8), Augment(crop=1, mix=0.8)])
def test_augmentation_depends_on_seed_and_step_alone(how: Augment):
    before = IMAGES.copy()
    for step in (4, 5):  # mixup, then cutmix
        one, again = (augment.batch(how, IMAGES, LABELS, 7, step) for _ in range(2))
        assert all(np.array_equal(one[name], again[name]) for name in one)
        assert one["images"].dtype == np.uint8 and one["images"].shape == IMAGES.shape
        other = augment.batch(how, IMAGES, LABELS, 8, step)
        assert not np.array_equal(one["images"], other["images"])
    assert np.array_equal(IMAGES, before), "the album itself must stay as it is"


def test_flip_and_crop_only_move_pixels():
    flips = [augment.flip(IMAGES[0], rng(seed)) for seed in range(20)]
    kinds = {flipped.tobytes() for flipped in flips}
    assert kinds == {IMAGES[0].tobytes(), IMAGES[0][:, ::-1].tobytes()}
    for seed in range(10):
        moved = augment.crop(IMAGES[0], rng(seed), 1)
        places = [
            np.pad(IMAGES[0], ((1, 1), (1, 1), (0, 0)))[y : y + 8, x : x + 10] for y in range(3) for x in range(3)
        ]
        assert any(np.array_equal(moved, place) for place in places)


@pytest.mark.parametrize("change", augment.DISTORTIONS, ids=lambda change: change.__name__)
def test_a_distortion_keeps_the_form_and_changes_the_image(change: Any):
    for image in (IMAGES[0], IMAGES[0][:, :, :1]):
        results = [change(image, rng(seed)) for seed in range(4)]
        assert all(result.shape == image.shape and result.dtype == np.uint8 for result in results)
    flat = np.full((8, 8, 1), 90, np.uint8)
    assert change(flat, rng()).shape == flat.shape
    narrow = (IMAGES[0] // 3).astype(np.uint8)
    assert any(not np.array_equal(change(narrow, rng(seed)), narrow) for seed in range(8)) or change is augment.solarize


def test_mixed_images_say_their_shares():
    faded = augment.mixup(IMAGES, LABELS, rng(), 0.8)
    for i, share in enumerate(faded.share):
        want = share * IMAGES[i].astype(float) + (1 - share) * IMAGES[i - 1]
        assert np.abs(faded.images[i] - want).max() <= 0.51
        assert (faded.label[i], faded.other[i]) == (LABELS[i], LABELS[i - 1])
    cut = augment.cutmix(IMAGES, LABELS, rng(), 0.8)
    for i, share in enumerate(cut.share):
        own, other = (cut.images[i] == IMAGES[i]).all(-1), (cut.images[i] == IMAGES[i - 1]).all(-1)
        assert (own | other).all() and abs(own.mean() - share) < 1e-6


def test_the_loss_of_a_mixed_image_is_that_of_its_shares():
    model = vision.build(TINY).eval()
    image = torch.randint(256, (2, 1, 8, 8), dtype=torch.uint8)
    one, other = torch.tensor([1, 2]), torch.tensor([3, 4])
    share = torch.tensor([0.25, 0.25])
    mixed = vision.loss(model, {"pixels": image, "label": one, "other": other, "share": share})
    apart = [vision.loss(model, {"pixels": image, "label": label}) for label in (one, other)]
    torch.testing.assert_close(mixed, 0.25 * apart[0] + 0.75 * apart[1])


def test_measured_looks_make_the_training_images_plain():
    model = vision.build(TINY)
    found = vision.pictures(TINY)
    x = torch.from_numpy(found.pixels[found.split("train")].transpose(0, 3, 1, 2).copy()).float()
    x = (x * model.looks.scale - model.mean) / model.std
    assert abs(x.mean()) < 1e-3 and abs(x.std() - 1) < 1e-3


# --- a run, and answers ---


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("vision") / "run"
    api.train("vision", "tiny", out=folder, train={"steps": 4, "eval_every": 2, "device": "cpu"})
    return folder


def test_answers_on_files(run: Path, tmp_path: Path):
    image = pytest.importorskip("PIL.Image")
    model = api.load(run, "cpu")
    found = vision.pictures(TINY)
    paths = []
    for i in range(3):
        image.fromarray(found.pixels[i, :, :, 0]).save(tmp_path / f"{i}.png")
        paths.append(str(tmp_path / f"{i}.png"))
    answer = model.predict({"input": paths})["results"]
    assert json.loads(json.dumps(answer)) == answer and [one["input"] for one in answer] == paths
    with torch.no_grad():
        want = model.module(torch.from_numpy(found.pixels[:3].transpose(0, 3, 1, 2).copy())).softmax(-1)
    for one, row in zip(answer, want, strict=True):
        assert one["label"] == str(row.argmax().item()) and abs(sum(one["probabilities"].values()) - 1) < 1e-5
        assert [one["probabilities"][str(c)] for c in range(10)] == pytest.approx(row.tolist(), abs=1e-6)
    assert model.predict({"input": paths[0], "top": 2})["results"][0]["probabilities"].keys() <= set("0123456789")
    assert len(model.predict({"input": paths[0], "top": 2})["results"][0]["probabilities"]) == 2


def test_the_show_piece_is_of_the_validation_part(run: Path):
    answer = api.load(run, "cpu").predict({})["results"]
    assert len(answer) == looks.SHOWN and all(one["truth"] in "0123456789" for one in answer)
    assert len({one["truth"] for one in answer}) == len(answer), "of as many classes as there is room for"


def test_bad_requests(run: Path, tmp_path: Path):
    model = api.load(run, "cpu")
    for request, complaint in (
        ({"inputs": "a.png"}, "a request has no 'inputs': did you mean 'input'"),
        ({"input": 3}, "input is 3; it must be the path of an image"),
        ({"input": "x.png", "top": 0}, "top is 0"),
        ({"input": str(tmp_path / "none.png")}, "none.png: No such file"),
    ):
        with refuses(complaint):
            model.predict(request)


def test_other_data_are_understood_by_the_names_of_their_classes(run: Path, tmp_path: Path):
    found = vision.pictures(TINY)
    chosen = np.isin(found.labels, [3, 7])
    np.savez(tmp_path / "some.npz", images=found.pixels[chosen], labels=found.labels[chosen])
    model = api.load(run, "cpu")
    config = changed(model.config, data=str(tmp_path / "some.npz"))
    labels = torch.cat([batch["label"] for batch, _ in vision.batches(config, "all")])
    assert labels.tolist() == found.labels[chosen].tolist()
    assert 0 <= model.evaluate(str(tmp_path / "some.npz"))["accuracy"] <= 1
    np.savez(tmp_path / "more.npz", images=found.pixels[:20], labels=np.array(["3", "x"] * 10))
    with refuses("the class 'x' is none of the model's"):
        model.evaluate(str(tmp_path / "more.npz"))


def test_a_run_does_not_go_on_with_other_data():
    _, place = next(vision.batches(TINY, "train"))
    with pytest.raises(InputError, match="has changed since this run began"):
        next(vision.batches(TINY, "train", place | {"data": "other"}))


def test_fine_tuning_begins_from_another_run(run: Path, tmp_path: Path):
    found = vision.pictures(TINY)
    np.savez(tmp_path / "two.npz", images=found.pixels[found.labels < 2], labels=found.labels[found.labels < 2])
    settings = {"steps": 2, "eval_every": 2, "batch": 4, "device": "cpu"}
    model = api.train("vision", init=run, data=str(tmp_path / "two.npz"), out=tmp_path / "run", train=settings)
    assert model.module.classes == ("0", "1") and model.module.looks.mean == api.load(run, "cpu").module.looks.mean


@pytest.mark.slow
def test_digits_are_read():
    """98 % on the fifth of scikit-learn's digits that is held out."""
    from anyformer.training import loop

    config = vision.PRESETS["digits"]
    records = list(loop.train(vision, config, None))
    assert max(record.get("val_accuracy", 0) for record in records) >= 0.98
    assert len(list(islice(vision.batches(config, "val"), 99))) > 0
