"""Caches by files, JSON readers, hashes and directories that appear whole."""

import gzip
import hashlib
import os
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from anyformer.data.images import cache as image_cache
from anyformer.data.io import cache, seal
from anyformer.data.io.archives import unpack_archive
from anyformer.data.io.checks import is_finite_number, read_json, sha256_file
from anyformer.data.io.files import read_lines, suffix
from anyformer.data.tables.cache import encode_table
from anyformer.data.tables.read import read_table
from anyformer.data.tables.schema import parse_schema
from anyformer.data.text.prepare import prepare_corpus
from anyformer.data.trajectories.datasets import load_trajectories
from anyformer.errors import InputError
from data_kit import refuses, write


def test_a_function_runs_again_only_when_its_arguments_or_files_change(tmp_path: Path):
    calls: list[tuple[str, int]] = []

    @cache.cache_by_files(lambda data, **_: cache.data_files(data), maxsize=8)
    def load(data: str, size: int = 1) -> list[str]:
        calls.append((data, size))
        return [str(path) for path in cache.data_files(data)]

    file, folder = write(tmp_path / "a.txt", "a"), tmp_path / "d"
    write(folder / "deep" / "b.txt", "b")
    data = f"{file}, {folder}"
    assert load(data) is load(data) and load(data) == [str(file), str(folder)] and len(calls) == 1
    load(data, size=2)
    assert calls == [(data, 1), (data, 2)]
    write(folder / "deep" / "b.txt", "bb")  # another size
    load(data)
    os.utime(file, ns=(0, 7))  # another time
    load(data)
    write(folder / "c.txt", "c")  # another file
    load(data)
    assert len(calls) == 5
    assert cache.data_files("9" * 5001) == cache.data_files("a\0b") == []
    assert load("a name") is load("a name") and load("") == [] and len(calls) == 7


def test_a_failure_is_not_kept(tmp_path: Path):
    attempts = []

    @cache.cache_by_files(lambda: [tmp_path / "none"])
    def fail() -> None:
        attempts.append(1)
        raise InputError("no such file")

    for _ in range(2):
        with refuses("no such file"):
            fail()
    assert len(attempts) == 2


def test_a_directory_appears_whole_or_not_at_all(tmp_path: Path):
    target = tmp_path / "cache" / "x"

    def fail() -> None:
        with cache.build_directory(target) as folder:
            write(folder / "half", "")
            raise InputError("disk full")

    with refuses("disk full"):
        fail()
    assert list(target.parent.iterdir()) == []

    write(target / "damaged", "")
    with cache.build_directory(target) as folder:
        write(folder / "meta", "1")
    assert sorted(path.name for path in target.iterdir()) == [".seal.json", "meta"]
    with cache.build_directory(target) as folder:  # slower than another process
        write(folder / "meta", "2")
    assert (target / "meta").read_text() == "1" and [path.name for path in target.parent.iterdir()] == ["x"]


ROWS_SCHEMA = {"fields": {"x": {"kind": "scalar"}}, "targets": {"y": {"kind": "class"}}}


def build_texts(path: Path) -> Any:
    return prepare_corpus(str(write(path / "t.txt", "one two three " * 400))).tokens


def build_pictures(path: Path) -> Any:
    np.savez(path / "p.npz", images=np.arange(512, dtype=np.uint8).reshape(8, 8, 8), labels=np.arange(8) % 2)
    return image_cache.load_images.__wrapped__(str(path / "p.npz"), 8, 8, 1).pixels


def build_rows(path: Path) -> Any:
    table = read_table(write(path / "t.csv", "x,y\n" + "1,a\n2,b\n" * 50))
    return encode_table(table, parse_schema(ROWS_SCHEMA, "here")).values[0]


def build_steps(_: Path) -> Any:
    return load_trajectories.__wrapped__("line").states


def build_unpacked(path: Path) -> Any:
    if not (path / "z.zip").exists():
        with zipfile.ZipFile(path / "z.zip", "w") as file:
            file.writestr("a.txt", "one two three " * 400)
    return np.frombuffer(unpack_archive(path / "z.zip").read_bytes(), np.uint8)


@pytest.mark.parametrize("harm", ["flip", "flip back in time", "cut", "remove", "add"])
@pytest.mark.parametrize("build", [build_texts, build_pictures, build_rows, build_steps, build_unpacked])
def test_a_damaged_cache_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture, build: Callable, harm: str
):
    monkeypatch.setenv("ANYFORMER_CACHE", str(tmp_path / "cache"))
    expected = np.array(build(tmp_path))
    (path,) = [
        p for p in (tmp_path / "cache").rglob("*") if p.suffix in (".bin", ".npz", ".txt") and p.name != "present.bin"
    ]
    content, status = bytearray(path.read_bytes()), path.stat()
    content[len(content) // 2] ^= 1
    match harm:
        case "flip" | "flip back in time":
            path.write_bytes(content)
        case "cut":
            path.write_bytes(content[:-1])
        case "remove":
            path.unlink()
        case "add":
            write(path.with_name("new.txt"), "")
    if harm == "flip back in time":
        os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    capsys.readouterr()
    np.testing.assert_array_equal(build(tmp_path), expected)
    assert "damaged, so it is made again" in capsys.readouterr().err
    np.testing.assert_array_equal(build(tmp_path), expected)
    assert capsys.readouterr().err == ""


def test_a_cache_of_an_earlier_version_is_made_again_without_a_word(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
):
    monkeypatch.setenv("ANYFORMER_CACHE", str(tmp_path / "cache"))
    expected = np.array(build_pictures(tmp_path))
    (path,) = (tmp_path / "cache").rglob(seal.SEAL_NAME)
    path.unlink()
    capsys.readouterr()
    np.testing.assert_array_equal(build_pictures(tmp_path), expected)
    assert path.is_file() and "damaged" not in capsys.readouterr().err


def test_a_large_sealed_folder_is_read_only_when_its_time_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(seal, "QUICK_BYTES", 10)
    path, synced = write(tmp_path / "x.bin", bytes(100)), []
    monkeypatch.setattr(os, "fsync", synced.append)
    seal.write_seal(tmp_path)
    assert len(synced) == 1, "a power cut could leave zeros"
    time = path.stat().st_mtime_ns
    write(path, bytes(99) + b"1")
    os.utime(path, ns=(time, time))
    assert seal.find_damage(tmp_path) == "" and seal.find_damage(tmp_path, is_deep=True) == "x.bin has changed"
    write(path, bytes(100))
    os.utime(path, ns=(time + 1, time + 1))  # a copy
    assert seal.find_damage(tmp_path) == "" and path.stat().st_mtime_ns == time


@pytest.mark.parametrize(
    ("content", "parts"),
    [
        ("[1]", ["a.json: should hold a JSON object, found list"]),
        ("{\n", ["a.json: not JSON", "column"]),
        ("[" * 100_000, ["a.json: not JSON"]),
        (b"\xff", ["a.json: cannot be read as text", "not UTF-8"]),
        ('{"long": "....................."}', ["a.json: holds more than"]),
        (None, ["a.json: there is no such file"]),
    ],
)
def test_bad_json(tmp_path: Path, content: str | bytes | None, parts: list[str]):
    path = tmp_path / "a.json"
    if content is not None:
        write(path, content)
    with refuses(*parts):
        read_json(path, limit=200_000 if content and content[0] == "[" else 30)


def test_json_hashes_numbers_and_lines(tmp_path: Path):
    path = write(tmp_path / "a.json", '["é"]')
    assert read_json(path, kind=list) == ["é"] and read_json(write(tmp_path / "b.json", "{}")) == {}
    assert sha256_file(path, path) == hashlib.sha256('["é"]'.encode() * 2).hexdigest()
    assert is_finite_number(1) and is_finite_number(-1.5)
    assert not any(map(is_finite_number, (True, float("nan"), float("inf"), 10**400, "1", None)))
    lines = write(tmp_path / "a.JSONL.gz", gzip.compress("\ufeffé\r\n\nb".encode()))
    assert list(read_lines(lines)) == [(f"{lines}, line {i}", text) for i, text in enumerate(["é", "", "b"], 1)]
    assert (suffix(lines), suffix(Path("a.tar.gz")), suffix(Path("b"))) == (".jsonl", ".tar", "")
    with refuses("a.txt, line 2: byte 0xFF is not UTF-8"):
        list(read_lines(write(tmp_path / "a.txt", b"a\n\xff")))
    with refuses("a.txt, line 1: longer than"):
        list(read_lines(tmp_path / "a.txt", max_line_bytes=1))
