"""Devices, FIFOs, loops of links, impossible names, claimed sizes and paths outside a table's folder are refused."""

import os
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from anyformer.data.audio.read import read_audio
from anyformer.data.images.read import open_images, read_image
from anyformer.data.io.arrays import read_npy, read_npz
from anyformer.data.io.checks import read_json, sha256_file
from anyformer.data.io.files import read_start
from anyformer.data.io.gguf_file import GGUFFile
from anyformer.data.io.parquet import count_parquet_rows
from anyformer.data.io.regular_file import join_inside, open_regular, read_regular
from anyformer.data.tables.read import read_table
from data_kit import refuses, write

READERS: list[Callable[[Path], Any]] = [
    open_regular, read_image, read_audio, read_npy, read_npz, read_json, sha256_file, read_start, GGUFFile,
    count_parquet_rows,
]  # fmt: skip


@pytest.fixture(scope="module")
def special(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, str]]:
    """Paths that are no regular files, and what is said of each."""
    folder = tmp_path_factory.mktemp("special")
    os.mkfifo(folder / "fifo")
    (folder / "zeros").symlink_to("/dev/zero")
    (folder / "loop").symlink_to(folder / "loop")
    return {
        "fifo": (folder / "fifo", "is a FIFO"),
        "device": (folder / "zeros", "is a device"),
        "folder": (folder, "is a folder"),
        "loop": (folder / "loop", "cannot be read"),
        "long": (folder / ("x" * 5000), "File name too long"),
        "zero byte": (folder / "a\0b", "no file can have this name"),
        "surrogate": (folder / "a\ud800b", "no file can have this name"),
    }


@pytest.mark.parametrize("read", READERS)
@pytest.mark.parametrize("kind", ["fifo", "device", "folder", "loop", "long", "zero byte", "surrogate"])
def test_what_is_no_regular_file_is_refused(special: dict[str, tuple[Path, str]], read: Callable, kind: str):
    path, message = special[kind]
    with refuses(message):
        read(path)


def test_the_limit_holds_whatever_the_size_of_a_file_is_said_to_be():
    """Files below /proc say that they are empty."""
    path = Path("/proc/self/maps")
    if not path.exists():
        pytest.skip("this system has no /proc")
    assert path.stat().st_size == 0
    with refuses("holds more than 100 bytes"):
        read_regular(path, 100)


def test_an_array_that_claims_more_than_its_file_holds(tmp_path: Path):
    header = b"{'descr': '<f8', 'fortran_order': False, 'shape': (125000000000,), }"
    claim = b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header
    with refuses("a.npy cannot be read as .npy", "1,000,000,000,000 bytes"):
        read_npy(write(tmp_path / "a.npy", claim))
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as file:
        file.writestr("states.npy", claim)
    with refuses("a.npz cannot be read as .npz", "1,000,000,000,000 bytes"):
        read_npz(tmp_path / "a.npz")
    np.save(tmp_path / "objects.npy", np.array([{}], object))
    with refuses("objects.npy", "Python objects"):
        read_npy(tmp_path / "objects.npy")
    np.save(tmp_path / "fortran.npy", array := np.asfortranarray(np.arange(6.0).reshape(2, 3)))
    np.testing.assert_array_equal(read_npy(tmp_path / "fortran.npy"), array)


def test_a_table_names_files_in_its_folder_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    table, secret = tmp_path / "table", write(tmp_path / "secret" / "key.npy", "")
    (table / "deep").mkdir(parents=True)
    assert join_inside(table, "deep/../x.png") == table / "deep/../x.png"
    (table / "link.npy").symlink_to(secret)
    assert join_inside(table, "link.npy") == table / "link.npy"
    for name in ("../secret/key.npy", str(secret), "deep/../../secret/key.npy", "../table2/x.npy"):
        with refuses("is outside", "ANYFORMER_FILES"):
            join_inside(table, name)
    monkeypatch.setenv("ANYFORMER_FILES", f"/nowhere{os.pathsep}{secret.parent}")
    assert join_inside(table, str(secret)) == secret


def test_every_reader_of_a_table_with_paths_holds_to_its_folder(tmp_path: Path):
    outside = write(tmp_path / "secret" / "x.png", "")
    write(tmp_path / "table" / "a.png", "")
    path = write(tmp_path / "table" / "t.csv", f"path,label\na.png,1\n{outside},2\n")
    with refuses("x.png", "is outside"):
        open_images(str(path))
    with refuses("x.png", "is outside"):
        list(read_table(path).rows())


def test_a_fifo_in_a_folder_of_images_is_named(tmp_path: Path):
    pillow = pytest.importorskip("PIL.Image")
    for name in ("a/1.png", "a/2.png", "b/1.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        pillow.new("L", (8, 8)).save(tmp_path / name)
    os.mkfifo(tmp_path / "b" / "2.png")
    with refuses("b/2.png is a FIFO"):
        open_images(str(tmp_path)).sha256()


def test_a_header_that_is_cut_off_in_the_middle(tmp_path: Path):
    header = b"{'descr': '<f8', 'shape': (3,"
    claim = b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header
    with refuses("a.npy cannot be read as .npy"):
        read_npy(write(tmp_path / "a.npy", claim))
