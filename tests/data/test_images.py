"""Images from wherever they lie, and what augmentation may do to them."""

import gzip
import io
import zipfile
from pathlib import Path

import numpy as np
import pytest
from anyformer.data.images.cache import album, stamp

from anyformer.data.images import cache as albums
from anyformer.data.images import decode as picture
from anyformer.data.images import read as images
from data_kit import needs_data, refuses

Image = pytest.importorskip("PIL.Image", reason="decoding images needs Pillow")
RNG = np.random.default_rng(0)
PIXELS = RNG.integers(0, 256, (12, 6, 8, 3)).astype(np.uint8)
LABELS = np.arange(12) % 3
NAMES = ("ant", "bee", "cow")


def png(path: Path, pixels: np.ndarray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
    return path


def class_folders(root: Path, split: bool = False) -> Path:
    for i, (pixels, label) in enumerate(zip(PIXELS, LABELS, strict=True)):
        part = ("val" if i >= 9 else "train") if split else ""
        png(root / part / NAMES[label] / f"{i:02}.png", pixels)
    return root


def table(root: Path) -> Path:
    lines = ["path,label,split"]
    for i, (pixels, label) in enumerate(zip(PIXELS, LABELS, strict=True)):
        png(root / "files" / f"{i}.png", pixels)
        lines.append(f"files/{i}.png,{NAMES[label]},{'test' if i >= 9 else 'train'}")
    (root / "list.csv").write_text("\n".join(lines))
    return root / "list.csv"


def idx(path: Path, array: np.ndarray) -> Path:
    head = bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">u4").tobytes()
    path.write_bytes(gzip.compress(head + array.astype(np.uint8).tobytes()))
    return path


def idx_folder(root: Path) -> Path:
    grey = PIXELS[..., 0]
    for name, part in (("train", slice(0, 9)), ("t10k", slice(9, 12))):
        idx(root / f"{name}-images-idx3-ubyte.gz", grey[part])
        idx(root / f"{name}-labels-idx1-ubyte.gz", LABELS[part])
    return root


def encoded(path: Path) -> Path:
    raw = []
    for pixels in PIXELS:
        buffer = io.BytesIO()
        Image.fromarray(pixels).save(buffer, "PNG")
        raw.append(buffer.getvalue())
    offsets = np.cumsum([0, *map(len, raw)])
    data = np.frombuffer(b"".join(raw), np.uint8)
    np.savez(path, data=data, offsets=offsets, labels=LABELS, is_test=np.arange(12) >= 9, classes=np.array(NAMES))
    return path


def by_class(found: images.Source) -> dict[str, list[bytes]]:
    """The images of each class, whatever their order."""
    rows: dict[str, list[bytes]] = {}
    for i, label in enumerate(found.labels):
        rows.setdefault(found.classes[label], []).append(found.read(i).tobytes())
    return {name: sorted(row) for name, row in sorted(rows.items())}


WANTED = {NAMES[c]: sorted(p.tobytes() for p, y in zip(PIXELS, LABELS, strict=True) if y == c) for c in range(3)}


def test_every_form_gives_the_same_images(tmp_path):
    np.savez(tmp_path / "a.npz", images=PIXELS, labels=np.array(NAMES)[LABELS])
    np.savez(tmp_path / "b.npz", x=PIXELS, y=LABELS, classes=np.array(NAMES))
    parts = {"x_train": PIXELS[:9], "y_train": LABELS[:9, None], "x_test": PIXELS[9:], "y_test": LABELS[9:, None]}
    np.savez(tmp_path / "c.npz", classes=np.array(NAMES), **parts)
    forms = [
        class_folders(tmp_path / "folders"),
        class_folders(tmp_path / "split", split=True),
        table(tmp_path),
        tmp_path / "a.npz",
        tmp_path / "b.npz",
        tmp_path / "c.npz",
        encoded(tmp_path / "d.npz"),
    ]
    found = [images.find(str(form)) for form in forms]
    assert [by_class(source) for source in found] == [WANTED] * len(forms)
    held = [None if source.held_out is None else int(source.held_out.sum()) for source in found]
    assert held == [None, 3, 3, None, None, 3, 3]


def test_idx_pairs_and_their_test_part(tmp_path):
    found = images.find(str(idx_folder(tmp_path)))
    assert found.classes == ("0", "1", "2") and found.labels.tolist() == LABELS.tolist()
    assert found.held_out.tolist() == [False] * 9 + [True] * 3
    assert np.array_equal(found.read(10), PIXELS[10, ..., 0])
    one = images.find(str(tmp_path / "t10k-images-idx3-ubyte.gz"))
    assert len(one) == 3 and one.held_out is None


def test_an_album_is_made_once_and_made_again_when_the_data_change(tmp_path, monkeypatch):
    root = class_folders(tmp_path / "d")
    first = album(str(root), 6, 8, 3, val_fraction=0.25)
    assert first.pixels.shape == (12, 6, 8, 3) and len(first.split("val")) == 3 and len(first.split("train")) == 9
    assert set(first.split("val")).isdisjoint(first.split("train"))
    monkeypatch.setattr(albums, "decode", lambda *_: pytest.fail("decoded again"))
    assert np.array_equal(album(str(root), 6, 8, 3).pixels, first.pixels)
    monkeypatch.undo()
    before = stamp(str(root))
    png(root / "ant" / "00.png", 255 - PIXELS[0])
    again = album(str(root), 6, 8, 3)
    assert stamp(str(root)) != before
    assert again.sha256 != first.sha256 and not np.array_equal(again.pixels, first.pixels)


def test_sizes_and_colours_are_made_to_fit():
    assert np.array_equal(picture.fitted(PIXELS[0], 6, 8, 3), PIXELS[0])
    small = picture.fitted(PIXELS[0], 3, 5, 1)
    assert small.shape == (3, 5, 1)
    grey = picture.fitted(PIXELS[0, ..., 0], 6, 8, 3)
    assert np.array_equal(grey, np.repeat(PIXELS[0, ..., :1], 3, axis=2))
    want = np.asarray(Image.fromarray(PIXELS[0]).resize((5, 9), Image.Resampling.BICUBIC))
    assert np.array_equal(picture.fitted(PIXELS[0], 9, 5, 3, "bicubic"), want)


def test_a_photograph_is_turned_as_its_camera_was(tmp_path):
    image = Image.fromarray(PIXELS[0])
    exif = Image.Exif()
    exif[0x0112] = 6  # to be seen turned by 90 degrees
    image.save(tmp_path / "a.png", exif=exif)
    assert np.array_equal(picture.from_file(tmp_path / "a.png"), np.rot90(PIXELS[0], -1))


def test_bad_images(tmp_path, monkeypatch):
    whole = png(tmp_path / "whole.png", PIXELS[0]).read_bytes()
    (tmp_path / "cut.png").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "text.png").write_text("not an image")
    (tmp_path / "run.png").write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n")
    Image.fromarray(np.zeros((4, 4), np.uint16)).save(tmp_path / "deep.png")
    for name, complaint in (
        ("cut", "damaged or cut off"),
        ("text", "no image"),
        ("run", "no image"),
        ("deep", "8 bits"),
    ):
        with refuses(f"{name}.png", complaint):
            picture.from_file(tmp_path / f"{name}.png")
    with refuses("none.png", "No such file"):
        picture.from_file(tmp_path / "none.png")
    monkeypatch.setattr(picture, "MOST_PIXELS", 40)
    with refuses("whole.png has 8 x 6 pixels", "more than 40"):
        picture.from_file(tmp_path / "whole.png")
    monkeypatch.setattr(picture, "MOST_BYTES", 40)
    with refuses("whole.png has", "bytes"):
        picture.from_file(tmp_path / "whole.png")


def test_an_unreadable_image_is_named_and_left_out_only_when_asked(tmp_path):
    root = class_folders(tmp_path)
    (root / "bee" / "04.png").write_bytes(b"nothing")
    with refuses("04.png", "no image", "--skip-unreadable"):
        album(str(root), 6, 8, 3)
    found = album(str(root), 6, 8, 3, skip_unreadable=True)
    assert found.skipped == 1 and len(found.split("val")) == 1 and len(found.split("all")) == 11
    assert all(found.pixels[i].any() for i in found.split("all")), "what could not be read is in no part"


def test_bad_data(tmp_path, monkeypatch):
    root = class_folders(tmp_path / "d")
    (root / "empty").mkdir()
    with refuses("class folder", "empty", "holds no image"):
        images.find(str(root))
    (tmp_path / "bare").mkdir()
    with refuses("bare", "no class folders"):
        images.find(str(tmp_path / "bare"))
    png(tmp_path / "one" / "ant" / "a.png", PIXELS[0])
    with refuses("one class (ant)"):
        images.find(str(tmp_path / "one"))
    for text, complaint in (
        ("file,label\n", "lacks the column path"),
        ("path,label\nx.png,a\n", "line 2: there is no file"),
        ("path,label\n,a\n", "line 2: the path is empty"),
        ("path,label\nx.png,\n", "line 2: the label is empty"),
    ):
        (tmp_path / "l.csv").write_text(text)
        with refuses("l.csv", complaint):
            images.find(str(tmp_path / "l.csv"))
    with refuses("data 'plays' are no images"):
        monkeypatch.setattr(images.sets, "resolve", lambda _: [])
        images.find("plays")


def test_bad_arrays(tmp_path):
    path = tmp_path / "a.npz"
    cases = (
        ({"images": PIXELS.astype(np.float32), "labels": LABELS}, "float32 of shape"),
        ({"images": PIXELS, "labels": LABELS[:5]}, "12 images but 5 labels"),
        ({"pictures": PIXELS}, "holds pictures; expected images and labels"),
        ({"images": PIXELS, "labels": LABELS, "classes": np.array(["a", "b"])}, "labels must be numbers from 0 to 1"),
        ({"images": PIXELS, "labels": np.array([{}] * 12)}, "cannot be read as .npz"),
        ({"data": PIXELS.ravel(), "offsets": np.arange(13) * 9**9, "labels": LABELS}, "offsets do not cut"),
    )
    for arrays, complaint in cases:
        np.savez(path, **arrays)
        with refuses("a.npz", complaint):
            images.find(str(path))
    path.write_bytes(b"PK nothing")
    with refuses("a.npz", "cannot be read"):
        images.find(str(path))
    head = bytes([0, 0, 8, 3]) + np.array([1 << 31, 1 << 31, 1 << 31], ">u4").tobytes()
    (tmp_path / "t-images-idx3-ubyte.gz").write_bytes(gzip.compress(head + b"12"))
    idx(tmp_path / "t-labels-idx1-ubyte.gz", LABELS)
    with refuses("t-images-idx3-ubyte.gz", "not a whole idx file"):
        images.find(str(tmp_path / "t-images-idx3-ubyte.gz"))


def test_what_a_file_claims_is_bounded_before_memory_is_taken(tmp_path, monkeypatch):
    monkeypatch.setattr(images, "LARGEST", 1000)
    with zipfile.ZipFile(tmp_path / "bomb.npz", "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("images.npy", bytes(100_000))
    with refuses("bomb.npz", "unpacks to 100,000 bytes"):
        images.find(str(tmp_path / "bomb.npz"))
    (tmp_path / "b-images-idx3-ubyte.gz").write_bytes(gzip.compress(bytes(100_000)))
    (tmp_path / "b-labels-idx1-ubyte.gz").write_bytes(gzip.compress(bytes(10)))
    with refuses("b-images-idx3-ubyte.gz", "holds more than"):
        images.find(str(tmp_path / "b-images-idx3-ubyte.gz"))


@needs_data
@pytest.mark.parametrize(
    ("name", "n", "n_val", "first"), [("fashion-mnist", 70_000, 10_000, 9), ("cifar10", 60_000, 10_000, 0)]
)
def test_named_sets(name, n, n_val, first):
    found = images.find(name)
    assert len(found) == n and found.held_out.sum() == n_val and len(found.classes) == 10
    assert found.labels[0] == first and found.read(0).dtype == np.uint8


def test_digits_need_nothing_but_their_package():
    pytest.importorskip("sklearn")
    from sklearn.datasets import load_digits

    found, theirs = images.find("digits"), load_digits()
    assert found.labels.tolist() == theirs.target.tolist()
    want = np.round(theirs.images * 255 / 16)
    assert all(np.array_equal(found.read(i), want[i]) for i in range(0, 1797, 100))


def test_the_first_images_of_the_validation_part_are_of_all_classes(tmp_path):
    """A validation during training looks at a few batches only, and folders come class by class."""
    labels = np.repeat(np.arange(3), 40)
    for more in ({}, {"is_test": np.arange(120) % 2 == 1}):
        np.savez(tmp_path / "a.npz", images=np.zeros((120, 4, 4), np.uint8), labels=labels, **more)
        found = album(str(tmp_path / "a.npz"), 4, 4, 1, val_fraction=0.5)
        val, train = found.split("val"), found.split("train")
        assert len(val) == 60 and sorted([*val, *train]) == list(range(120))
        assert set(found.labels[val[:12]]) == {0, 1, 2}
        assert np.array_equal(val, album(str(tmp_path / "a.npz"), 4, 4, 1, val_fraction=0.5).split("val"))
