"""Caches by files, JSON readers, hashes and directories that appear whole."""

import gzip
import hashlib
import os
from pathlib import Path

import pytest

from anyformer.data.io import cache
from anyformer.data.io.checks import is_finite_number, read_json, sha256_file
from anyformer.data.io.files import read_lines, suffix
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

    def is_complete(path: Path) -> bool:
        return (path / "meta").is_file()

    write(target / "damaged", "")
    with cache.build_directory(target, is_complete) as folder:
        write(folder / "meta", "1")
    assert [path.name for path in target.iterdir()] == ["meta"]
    with cache.build_directory(target, is_complete) as folder:  # slower than another process
        write(folder / "meta", "2")
    assert (target / "meta").read_text() == "1" and [path.name for path in target.parent.iterdir()] == ["x"]


@pytest.mark.parametrize(
    ("content", "parts"),
    [
        ("[1]", ["a.json: should hold a JSON object, found list"]),
        ("{\n", ["a.json: not JSON", "column"]),
        ("[" * 100_000, ["a.json: not JSON"]),
        (b"\xff", ["a.json: cannot be read as text", "utf-8"]),
        ('{"long": "....................."}', ["a.json: holds more than"]),
        (None, ["a.json: cannot be read as text"]),
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
