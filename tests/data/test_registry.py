"""Names and paths to files: where they are looked for, and that wrong content is never accepted."""

import importlib
import os
import tarfile
import urllib.error
import urllib.request
from hashlib import sha256
from io import BytesIO
from pathlib import Path
from typing import ClassVar

import pytest

from anyformer.data.io import resolve as sets
from anyformer.data.registry import GENERATED, list_data_sets
from data_kit import needs_data, refuses, write

KINDS = {
    "text",
    "pairs",
    "labeled text",
    "tagged text",
    "chats",
    "preferences",
    "alignment",
    "protein",
    "tunes",
    "molecules",
    "images",
    "audio",
    "tables",
    "series",
    "trajectories",
    "tasks",
}


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Give every test its own cache."""
    folder = tmp_path / "cache"
    monkeypatch.setenv("ANYFORMER_CACHE", str(folder))
    return folder


def test_folder(tmp_path):
    for name in ("b.txt", "a/z.md.gz", "a/b.jsonl", ".git/c.txt", ".d.txt", "e.png"):
        write(tmp_path / "d" / name, "x")
    files = [p.relative_to(tmp_path / "d").as_posix() for p in sets.resolve(str(tmp_path / "d"))]
    assert files == ["a/b.jsonl", "a/z.md.gz", "b.txt"]


def test_bad_names(tmp_path):
    write(tmp_path / "d" / "e.png", b"\x89PNG\0")
    with refuses("no readable file", ".txt, .md, .rst"):
        sets.resolve(str(tmp_path / "d"))
    for path in (str(tmp_path / "none"), "none.txt"):
        with refuses(path, "no such file or folder"):
            sets.resolve(path)
    with refuses("'shakespear'", "did you mean 'shakespeare'?"):
        sets.resolve("shakespear")
    with refuses("no data given"):
        sets.resolve("")
    with refuses("neither a file nor a folder"):
        sets.resolve(os.devnull)


@needs_data
def test_sets_in_the_data_folder(tmp_path, monkeypatch):
    assert [p.name for p in sets.resolve("shakespeare")] == ["shakespeare.txt"]
    assert [p.name for p in sets.resolve("wikitext-2")] == ["test.txt", "valid.txt"]
    assert sets.locate("shakespeare").startswith("$ANYFORMER_DATA: ")
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "shakespeare", "mine")
    assert sets.resolve("shakespeare") == [Path("shakespeare")], "an existing path wins"


def sha(content: bytes) -> str:
    return sha256(content).hexdigest()


def make_set(monkeypatch, content: bytes, **fields) -> sets.DataSet:
    monkeypatch.delenv("ANYFORMER_DATA", raising=False)
    fields = {"url": "https://example.org/a.txt", "sha256": sha(content), "file": "a.txt", "is_direct": True} | fields
    dataset = sets.DataSet(name="toy", kind="text", about="a toy", license="CC0", **fields)
    monkeypatch.setitem(sets.SETS, "toy", dataset)
    return dataset


class Response(BytesIO):
    url = "https://example.org/"
    headers: ClassVar = {}


def test_download_once(monkeypatch, cache):
    make_set(monkeypatch, b"hello")
    urls = []
    monkeypatch.setattr(urllib.request, "urlopen", lambda url, timeout: urls.append(url) or Response(b"hello"))
    assert sets.locate("toy") == "download: https://example.org/a.txt" and not urls
    for _ in range(2):
        assert sets.resolve("toy") == [cache / "sets" / "toy" / "a.txt"]
    assert urls == ["https://example.org/a.txt"] and sets.locate("toy").startswith("cache: ")
    write(cache / "sets" / "toy" / "a.txt", "damaged")
    assert sets.resolve("toy")[0].read_bytes() == b"hello" and len(urls) == 2


def test_bad_download(monkeypatch, cache):
    make_set(monkeypatch, b"hello")

    def answer(response):
        monkeypatch.setattr(urllib.request, "urlopen", lambda url, timeout: response)

    answer(Response(b"other"))
    with refuses("https://example.org/a.txt", sha(b"other"), sha(b"hello")):
        sets.resolve("toy")
    Response.url, before = "http://example.org/", Response.url
    answer(Response(b"hello"))
    with refuses("not https"):
        sets.resolve("toy")
    Response.url = before
    monkeypatch.setattr(sets, "MAX_BYTES", 3)
    answer(Response(b"hello"))
    with refuses("'toy' is not here: tried the cache", "$ANYFORMER_DATA (not set)", "more than", "To get it: bring"):
        sets.resolve("toy")
    assert list((cache / "sets").iterdir()) == [], "no partial download may stay"


def test_no_network(monkeypatch):
    make_set(monkeypatch, b"hello")

    def fail(url, timeout):
        raise urllib.error.URLError("no route")

    monkeypatch.setattr(urllib.request, "urlopen", fail)
    with refuses("tried the cache", "https://example.org/a.txt (no route)", "To get it: bring"):
        sets.resolve("toy")


def test_package(monkeypatch, tmp_path):
    """A package is found without running its code, and only in the right version."""
    make_set(monkeypatch, b"onetwo", package="toyplays==1.0", files=("plays/*.md",), is_direct=False, file=None)
    with refuses("toyplays==1.0 (not installed", "pip install --no-deps toyplays==1.0"):
        sets.resolve("toy")
    write(tmp_path / "site/toyplays/__init__.py", "raise RuntimeError('this code was run')")
    write(tmp_path / "site/toyplays/plays/b.md", "two")
    write(tmp_path / "site/toyplays/plays/a.md", "one")
    about = write(
        tmp_path / "site/toyplays-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: toyplays\nVersion: 1.0\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    assert [p.name for p in sets.resolve("toy")] == ["a.md", "b.md"]
    assert sets.locate("toy").startswith("package toyplays==1.0: ")
    about.parent.rename(tmp_path / "site/toyplays-2.0.dist-info")
    write(tmp_path / "site/toyplays-2.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: toyplays\nVersion: 2.0\n")
    importlib.invalidate_caches()
    assert sets.locate("toy").startswith("not here: pip install")


def test_archive(monkeypatch, tmp_path, cache):
    packed = BytesIO()
    with tarfile.open(fileobj=packed, mode="w:xz") as tar:
        for name, content in {"d/b.txt": b"two", "d/a.txt": b"one", "d/run.py": b"no", "d/link.txt": None}.items():
            member = tarfile.TarInfo(name)
            member.size = len(content or b"")
            member.type = tarfile.REGTYPE if content else tarfile.SYMTYPE
            tar.addfile(member, BytesIO(content or b""))
    archive = write(tmp_path / "data" / "toy.tar.xz", packed.getvalue())
    dataset = make_set(
        monkeypatch, packed.getvalue(), file="toy.tar.xz", files=("**/*.txt",), unpacked=sha(b"onetwo"), is_direct=False
    )
    with refuses("'toy' is not here", "bring toy.tar.xz (project: https://example.org/a.txt) to $ANYFORMER_DATA"):
        sets.resolve("toy")
    monkeypatch.setenv("ANYFORMER_DATA", str(archive.parent))
    for _ in range(2):
        files = sets.resolve("toy")
        assert [p.relative_to(cache / "sets" / "toy").as_posix() for p in files] == ["d/a.txt", "d/b.txt"]
    archive.write_bytes(packed.getvalue()[:-8])
    assert sets.locate(dataset.name).startswith("cache: "), "the archive is no longer needed"
    monkeypatch.setattr(sets, "MAX_BYTES", 3)
    archive.write_bytes(packed.getvalue())
    with refuses("holds more than"):
        sets.unpack(archive, tmp_path / "elsewhere")
    monkeypatch.setattr(sets, "MAX_BYTES", 1000)
    with refuses("toy.tar.xz: cannot be unpacked"):
        sets.unpack(write(archive, packed.getvalue()[:100]), tmp_path / "elsewhere")
    assert not (tmp_path / "elsewhere").exists()


def test_archive_cannot_leave_its_folder(tmp_path):
    with tarfile.open(tmp_path / "bad.tar", "w") as tar:
        tar.addfile(tarfile.TarInfo("../outside.txt"))
    with refuses("cannot be unpacked"):
        sets.unpack(tmp_path / "bad.tar", tmp_path / "in" / "here")
    assert not list(tmp_path.rglob("outside.txt"))


def test_every_entry_has_what_it_needs():
    names = [dataset.name for dataset in list_data_sets()]
    assert len(set(names)) == len(names) and {dataset.kind for dataset in list_data_sets()} == KINDS
    for name, dataset in sets.SETS.items():
        assert dataset.name == name and len(dataset.sha256) == 64 and dataset.url.startswith("https://")
        assert dataset.license and (dataset.package or dataset.file), f"{name} must be somewhere"


@pytest.mark.parametrize("kind", ["audio", "tables", "series", "trajectories"])
def test_the_catalogue_lists_every_named_set_of_a_room(kind: str):
    """Generated sets too: cartpole, pendulum, line, tones, spoken-digits, sensors."""
    module = importlib.import_module(f"anyformer.data.{kind}.datasets")
    assert {dataset.name for dataset in list_data_sets(kind)} == set(module.NAMED_SETS)
    assert all(sets.locate(dataset.name) == "generated" for dataset in GENERATED.values())


def test_reverse_is_a_set_of_pairs():
    assert "reverse" in {dataset.name for dataset in list_data_sets("pairs")}
