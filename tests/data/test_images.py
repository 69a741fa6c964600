"""Images: every file form gives the same pixels, the cache, splits, bad files, augmentation, order of an epoch."""

import gzip
import io
import zipfile
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

from anyformer.data.images import augment, cache, read
from anyformer.data.images.augment import Augment, augment_batch
from anyformer.data.images.cache import load_images
from anyformer.data.images.read import ImageSource, open_images, read_image, resize_image
from anyformer.data.io import arrays
from anyformer.data.registry import list_data_sets
from anyformer.data.sampling import Dataset, epoch_permutation, sample_indices, stratify
from data_kit import needs_data, refuses

Image = pytest.importorskip("PIL.Image", reason="decoding images needs Pillow")
PIXELS = np.random.default_rng(0).integers(0, 256, (12, 6, 8, 3)).astype(np.uint8)
LABELS = np.arange(12) % 3
NAMES = ("ant", "bee", "cow")


def write_png(path: Path, pixels: np.ndarray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
    return path


def write_class_folders(root: Path, split: bool = False) -> Path:
    for i, (pixels, label) in enumerate(zip(PIXELS, LABELS, strict=True)):
        write_png(root / (("val" if i >= 9 else "train") if split else "") / NAMES[label] / f"{i:02}.png", pixels)
    return root


def write_table(root: Path) -> Path:
    lines = ["path,label,split"]
    for i, (pixels, label) in enumerate(zip(PIXELS, LABELS, strict=True)):
        write_png(root / "files" / f"{i}.png", pixels)
        lines.append(f"files/{i}.png,{NAMES[label]},{'test' if i >= 9 else 'train'}")
    (root / "list.csv").write_text("\n".join(lines))
    return root / "list.csv"


def write_encoded(path: Path) -> Path:
    raw = []
    for pixels in PIXELS:
        buffer = io.BytesIO()
        Image.fromarray(pixels).save(buffer, "PNG")
        raw.append(buffer.getvalue())
    offsets, data = np.cumsum([0, *map(len, raw)]), np.frombuffer(b"".join(raw), np.uint8)
    np.savez(path, data=data, offsets=offsets, labels=LABELS, is_test=np.arange(12) >= 9, classes=np.array(NAMES))
    return path


def write_idx(path: Path, array: np.ndarray) -> Path:
    header = bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">u4").tobytes()
    path.write_bytes(gzip.compress(header + array.astype(np.uint8).tobytes()))
    return path


def images_by_class(source: ImageSource) -> dict[str, list[bytes]]:
    images: dict[str, list[bytes]] = {}
    for i, label in enumerate(source.labels):
        images.setdefault(source.classes[label], []).append(source.read(i).tobytes())
    return {name: sorted(pixels) for name, pixels in sorted(images.items())}


def test_every_form_gives_the_same_images(tmp_path: Path):
    np.savez(tmp_path / "a.npz", images=PIXELS, labels=np.array(NAMES)[LABELS])
    np.savez(tmp_path / "b.npz", x=PIXELS, y=LABELS, classes=np.array(NAMES))
    splits = {"x_train": PIXELS[:9], "y_train": LABELS[:9, None], "x_test": PIXELS[9:], "y_test": LABELS[9:, None]}
    np.savez(tmp_path / "c.npz", classes=np.array(NAMES), **splits)
    forms = [
        (write_class_folders(tmp_path / "folders"), None),
        (write_class_folders(tmp_path / "split", split=True), 3),
        (write_table(tmp_path), 3),
        (tmp_path / "a.npz", None),
        (tmp_path / "b.npz", None),
        (tmp_path / "c.npz", 3),
        (write_encoded(tmp_path / "d.npz"), 3),
    ]
    pairs = list(zip(PIXELS, LABELS, strict=True))
    expected = {NAMES[c]: sorted(pixels.tobytes() for pixels, label in pairs if label == c) for c in range(3)}
    for path, n_val in forms:
        source = open_images(str(path))
        assert images_by_class(source) == expected, path
        assert (None if source.is_val is None else source.is_val.sum()) == n_val, path


def test_idx_pairs_and_their_test_split(tmp_path: Path):
    for name, rows in (("train", slice(0, 9)), ("t10k", slice(9, 12))):
        write_idx(tmp_path / f"{name}-images-idx3-ubyte.gz", PIXELS[rows, ..., 0])
        write_idx(tmp_path / f"{name}-labels-idx1-ubyte.gz", LABELS[rows])
    source = open_images(str(tmp_path))
    assert source.classes == ("0", "1", "2") and source.labels.tolist() == LABELS.tolist()
    assert source.is_val is not None and source.is_val.tolist() == [False] * 9 + [True] * 3
    assert np.array_equal(source.read(10), PIXELS[10, ..., 0])
    single = open_images(str(tmp_path / "t10k-images-idx3-ubyte.gz"))
    assert len(single) == 3 and single.is_val is None


def test_images_are_decoded_once_and_again_when_a_file_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    root = write_class_folders(tmp_path / "d")
    first = load_images(str(root), 6, 8, 3, val_fraction=0.25)
    assert isinstance(first, Dataset) and first.pixels.shape == (12, 6, 8, 3)
    assert len(first.split("val")) == 3 and sorted([*first.split("train"), *first.split("val")]) == list(range(12))
    assert load_images(str(root), 6, 8, 3, val_fraction=0.25) is first
    with monkeypatch.context() as patch:
        patch.setattr(cache, "decode_images", lambda *_: pytest.fail("decoded again"))
        assert np.array_equal(load_images(str(root), 6, 8, 3).pixels, first.pixels)
    write_png(root / "ant" / "00.png", 255 - PIXELS[0])
    second = load_images(str(root), 6, 8, 3, val_fraction=0.25)
    assert second.sha256 != first.sha256 and not np.array_equal(second.pixels, first.pixels)
    with refuses("split 'test'", "valid: train, val, all"):
        second.split("test")


def test_the_first_validation_images_are_of_all_classes(tmp_path: Path):
    """An evaluation during training reads only a few batches, and folders come class by class."""
    labels = np.repeat(np.arange(3), 40)
    for split in ({}, {"is_test": np.arange(120) % 2 == 1}):
        np.savez(tmp_path / "a.npz", images=np.zeros((120, 4, 4), np.uint8), labels=labels, **split)
        dataset = load_images(str(tmp_path / "a.npz"), 4, 4, 1, val_fraction=0.5)
        val = dataset.split("val")
        assert len(val) == 60 and sorted([*val, *dataset.split("train")]) == list(range(120))
        assert set(dataset.labels[val[:12]]) == {0, 1, 2}


def test_images_are_resized_and_converted():
    assert np.array_equal(resize_image(PIXELS[0], 6, 8, 3), PIXELS[0])
    assert resize_image(PIXELS[0], 3, 5, 1).shape == (3, 5, 1)
    from_gray = resize_image(PIXELS[0, ..., 0], 6, 8, 3)
    assert np.array_equal(from_gray, np.repeat(PIXELS[0, ..., :1], 3, axis=2))
    expected = np.asarray(Image.fromarray(PIXELS[0]).resize((5, 9), Image.Resampling.BICUBIC))
    assert np.array_equal(resize_image(PIXELS[0], 9, 5, 3, "bicubic"), expected)


def test_a_photograph_is_rotated_as_its_exif_orientation_says(tmp_path: Path):
    exif = Image.Exif()
    exif[0x0112] = 6  # rotate by 90 degrees
    Image.fromarray(PIXELS[0]).save(tmp_path / "a.png", exif=exif)
    assert np.array_equal(read_image(tmp_path / "a.png"), np.rot90(PIXELS[0], -1))


# --- what is refused ---


def test_bad_image_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    good = write_png(tmp_path / "good.png", PIXELS[0]).read_bytes()
    (tmp_path / "cut.png").write_bytes(good[: len(good) // 2])
    (tmp_path / "program.png").write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n")
    Image.fromarray(np.zeros((4, 4), np.uint16)).save(tmp_path / "deep.png")
    for name, message in (
        ("cut", "damaged or cut off"),
        ("program", "not an image of a known format"),
        ("deep", "8 bits"),
        ("none", "there is no such file"),
    ):
        with refuses(f"{name}.png", message):
            read_image(tmp_path / f"{name}.png")
    monkeypatch.setattr(read, "MAX_PIXELS", 40)
    with refuses("good.png has 8 x 6 pixels", "40"):
        read_image(tmp_path / "good.png")
    monkeypatch.setattr(read, "MAX_FILE_BYTES", 40)
    with refuses("good.png: holds more than 40 bytes"):
        read_image(tmp_path / "good.png")


def test_unreadable_images_are_left_out_on_request(tmp_path: Path):
    root = write_class_folders(tmp_path)
    (root / "bee" / "04.png").write_bytes(b"nothing")
    with refuses("04.png", "not an image", "--skip-unreadable"):
        load_images(str(root), 6, 8, 3)
    dataset = load_images(str(root), 6, 8, 3, skip_unreadable=True)
    assert dataset.skipped == 1 and len(dataset.split("val")) == 2 and len(dataset.split("all")) == 11
    assert all(dataset.pixels[i].any() for i in dataset.split("all")), "an unreadable image is in no split"


def test_bad_lists_of_images(tmp_path: Path):
    root = write_class_folders(tmp_path / "d")
    (root / "empty").mkdir()
    with refuses("class folder", "empty", "holds no image"):
        open_images(str(root))
    (tmp_path / "bare").mkdir()
    with refuses("bare", "no class folders"):
        open_images(str(tmp_path / "bare"))
    write_png(tmp_path / "one" / "ant" / "a.png", PIXELS[0])
    with refuses("one class (ant)"):
        open_images(str(tmp_path / "one"))
    for name in ("plays", "no-such-set"):
        with refuses(f"data '{name}' are no images", "valid: digits, fashion-mnist, mnist-t10k, cifar10"):
            open_images(name)
    for text, message in (
        ("file,label\nx.png,a\n", "no column 'path'"),
        ("path,label\nx.png,a\n", "line 2: there is no file"),
        ("path,label\nx.png,\n", "line 2): fill them in"),
        ("path,label,split\nd/ant/00.png,a,trian\n", "line 2: split is 'trian': did you mean 'train'"),
    ):
        (tmp_path / "l.csv").write_text(text)
        with refuses("l.csv", message):
            open_images(str(tmp_path / "l.csv"))


def test_bad_arrays(tmp_path: Path):
    path = tmp_path / "a.npz"
    cases = (
        ({"images": PIXELS.astype(np.float32), "labels": LABELS}, "float32 of shape"),
        ({"images": PIXELS, "labels": LABELS[:5]}, "12 images but 5 labels"),
        ({"pictures": PIXELS}, "holds pictures; expected images and labels"),
        ({"images": PIXELS, "labels": LABELS, "classes": np.array(["a", "b"])}, "integers from 0 to 1"),
        ({"images": PIXELS, "labels": np.array([{}] * 12)}, "cannot be read as .npz"),
        ({"data": PIXELS.ravel(), "offsets": np.arange(13) * 9**9, "labels": LABELS}, "offsets do not divide"),
    )
    for stored, message in cases:
        np.savez(path, **stored)
        with refuses("a.npz", message):
            open_images(str(path))
    path.write_bytes(b"PK nothing")
    with refuses("a.npz", "cannot be read"):
        open_images(str(path))
    header = bytes([0, 0, 8, 3]) + np.array([1 << 31, 1 << 31, 1 << 31], ">u4").tobytes()
    (tmp_path / "t-images-idx3-ubyte.gz").write_bytes(gzip.compress(header + b"12"))
    write_idx(tmp_path / "t-labels-idx1-ubyte.gz", LABELS)
    with refuses("t-images-idx3-ubyte.gz", "not a complete idx file"):
        open_images(str(tmp_path / "t-images-idx3-ubyte.gz"))


def test_claimed_sizes_are_checked_before_memory_is_allocated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    for module in (arrays, read):
        monkeypatch.setattr(module, "MAX_ARRAY_BYTES", 1000)
    with zipfile.ZipFile(tmp_path / "bomb.npz", "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("images.npy", bytes(100_000))
    with refuses("bomb.npz", "unpacks to 100,000 bytes"):
        open_images(str(tmp_path / "bomb.npz"))
    (tmp_path / "b-images-idx3-ubyte.gz").write_bytes(gzip.compress(bytes(100_000)))
    (tmp_path / "b-labels-idx1-ubyte.gz").write_bytes(gzip.compress(bytes(10)))
    with refuses("b-images-idx3-ubyte.gz", "holds more than"):
        open_images(str(tmp_path / "b-images-idx3-ubyte.gz"))


# --- named sets ---


@needs_data
@pytest.mark.parametrize(
    ("name", "n", "n_val", "first"), [("fashion-mnist", 70_000, 10_000, 9), ("cifar10", 60_000, 10_000, 0)]
)
def test_named_sets(name: str, n: int, n_val: int, first: int):
    source = open_images(name)
    assert source.is_val is not None
    assert len(source) == n and source.is_val.sum() == n_val and len(source.classes) == 10
    assert source.labels[0] == first and source.read(0).dtype == np.uint8


def test_the_registry_lists_the_named_sets():
    assert {dataset.name for dataset in list_data_sets("images")} == set(read.NAMED_SETS)


@pytest.mark.skipif(find_spec("sklearn") is None, reason="the digits are a file of scikit-learn's package")
def test_digits():
    source = open_images("digits")
    assert len(source) == 1797 and source.labels[:10].tolist() == list(range(10)) and source.is_val is None
    row = [0, 0, 5, 13, 9, 1, 0, 0]  # of 16, the top of the first digit
    assert source.read(0).shape == (8, 8) and source.read(0)[0].tolist() == [round(x * 255 / 16) for x in row]


# --- batches of training ---


def test_an_epoch_visits_every_image_once():
    indices = np.arange(100, 123)
    rows = np.concatenate([sample_indices(indices, 5, seed=3, step=s) for s in range(10)])
    assert sorted(rows[:23]) == indices.tolist() and sorted(rows[23:46]) == indices.tolist()
    assert rows[:23].tolist() != rows[23:46].tolist()
    assert not np.array_equal(epoch_permutation(50, 1, 0), epoch_permutation(50, 2, 0))


@pytest.mark.parametrize("config", [Augment(flip=True, crop=2, distort=2), Augment(crop=1, mix=0.8)])
def test_augmentation_depends_on_seed_and_step_alone(config: Augment):
    before = PIXELS.copy()
    for step in (4, 5):  # mixup, then cutmix
        first, again = (augment_batch(config, PIXELS, LABELS, 7, step) for _ in range(2))
        assert all(np.array_equal(first[name], again[name]) for name in first)
        assert first["images"].dtype == np.uint8 and first["images"].shape == PIXELS.shape
        assert not np.array_equal(first["images"], augment_batch(config, PIXELS, LABELS, 8, step)["images"])
    assert np.array_equal(PIXELS, before), "the dataset itself must not change"


def test_flip_and_crop_only_move_pixels():
    image = PIXELS[0]
    flip = Augment(flip=True)
    flips = {augment.augment_image(flip, image, np.random.default_rng(seed)).tobytes() for seed in range(20)}
    assert flips == {image.tobytes(), image[:, ::-1].tobytes()}
    padded = np.pad(image, ((1, 1), (1, 1), (0, 0)))
    crops = {padded[y : y + 6, x : x + 8].tobytes() for y in range(3) for x in range(3)}
    assert all(augment.random_crop(image, np.random.default_rng(s), 1).tobytes() in crops for s in range(10))
    far = np.pad(image, ((20, 20), (20, 20), (0, 0)))
    for seed in range(20):
        top, left = np.random.default_rng(seed).integers(0, 41, 2)
        crop = augment.random_crop(image, np.random.default_rng(seed), 20)
        assert np.array_equal(crop, far[top : top + 6, left : left + 8])


@pytest.mark.parametrize("distortion", augment.DISTORTIONS)
def test_a_distortion_keeps_the_shape_and_changes_the_image(distortion: str):
    dark = (PIXELS[0] // 3).astype(np.uint8)
    for image in (PIXELS[0], PIXELS[0][:, :, :1], dark, np.full((8, 8, 1), 90, np.uint8)):
        results = [augment.DISTORTIONS[distortion](image, np.random.default_rng(seed)) for seed in range(8)]
        assert all(result.shape == image.shape and result.dtype == np.uint8 for result in results)
        if image is dark and distortion != "solarize":
            assert any(not np.array_equal(result, dark) for result in results)


def test_mixed_images_are_of_their_shares():
    for step, mix in ((0, augment.mixup), (1, augment.cutmix)):
        batch = augment_batch(Augment(mix=0.8), PIXELS, LABELS, 7, step)
        assert np.array_equal(batch["labels"], LABELS) and np.array_equal(batch["mixed_labels"], np.roll(LABELS, 1))
        for i, share in enumerate(batch["mix_share"]):
            image, own, other = batch["images"][i], PIXELS[i].astype(float), PIXELS[i - 1].astype(float)
            if mix is augment.mixup:
                assert np.abs(image - (share * own + (1 - share) * other)).max() <= 0.51
            else:
                is_own = (image == own).all(-1)
                assert (is_own | (image == other).all(-1)).all() and abs(is_own.mean() - share) < 1e-6


def test_few_images_for_validation_are_of_all_classes(tmp_path: Path):
    """Of five classes with six images each, one of each; the only image of a class is for training."""
    images = np.arange(31, dtype=np.uint8)[:, None, None].repeat(64, 1).reshape(31, 8, 8)
    np.savez(tmp_path / "set.npz", images=images, labels=[i % 5 for i in range(30)] + [5], classes=[*"abcdef"])
    dataset = load_images(str(tmp_path / "set.npz"), 8, 8, 1)
    val, train = (dataset.labels[dataset.split(name)].tolist() for name in ("val", "train"))
    assert {*val} == {0, 1, 2, 3, 4} and {*train} == {0, 1, 2, 3, 4, 5}
    assert not {*dataset.split("val")} & {*dataset.split("train")} and len(val) + len(train) == 31
    assert stratify(np.array([0] * 20 + [1] * 10), 3).nonzero()[0].tolist() == [0, 1, 20], "in proportion"
