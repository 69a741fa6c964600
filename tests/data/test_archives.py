"""Archives and compressed files: read by their first bytes, unpacked once and within bounds, or refused in one line."""

import bz2
import gzip
import io
import lzma
import random
import tarfile
import zipfile
from pathlib import Path

import pytest

from anyformer.data.images.read import open_images
from anyformer.data.io import archives
from anyformer.data.io.resolve import resolve
from anyformer.data.tables.datasets import open_table
from anyformer.data.tables.stream import RowReader
from anyformer.data.text.pairs import read_pairs
from data_kit import read_documents, refuses, write

TEXT = b"the cat sat on the mat\n" * 20


def write_zip(path: Path, files: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return path


def write_tar(path: Path, files: dict[str, bytes], mode: str = "w:xz") -> Path:
    with tarfile.open(path, mode) as archive:  # ty: ignore[no-matching-overload]
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
        link = tarfile.TarInfo("link.txt")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(link)
    return path


@pytest.mark.parametrize("name", ["a.txt.gz", "a.txt.xz", "a.txt.bz2", "a.txt", "a.xz"])
def test_compressed_texts_are_read_whatever_they_are_called(name: str, tmp_path: Path):
    compress = {".gz": gzip.compress, ".bz2": bz2.compress}.get(Path(name).suffix, lzma.compress)
    path = write(tmp_path / name, compress(TEXT))
    assert read_documents(*resolve(str(path))) == [TEXT]


def test_a_compressed_table_is_read(tmp_path: Path):
    content = lzma.compress(b"a;b\n1,5;x\n")
    assert [row for _, row in open_table(str(write(tmp_path / "a.csv.xz", content))).rows()] == [{"a": "1.5", "b": "x"}]


@pytest.mark.parametrize("name", ["a.zip", "a.tar", "a.tar.gz", "a.tar.xz", "a.tar.bz2"])
def test_archives_are_unpacked_once(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    files = {"docs/one.txt": TEXT, "docs/deep/two.md": b"two\n", "docs/.hidden.txt": b"no", "__MACOSX/x.txt": b"no"}
    mode = "w:" + Path(name).suffix.removeprefix(".").replace("tar", "")
    path = write_zip(tmp_path / name, files) if name == "a.zip" else write_tar(tmp_path / name, files, mode)
    paths = resolve(str(path))
    assert [p.name for p in paths] == ["two.md", "one.txt"] and read_documents(*paths) == [b"two\n", TEXT]
    assert not list(paths[0].parents[1].rglob("link.txt")), "links are left out"
    monkeypatch.setattr(archives, "write_members", lambda *_: pytest.fail("unpacked again"))
    assert resolve(str(path)) == paths


def test_archives_of_pairs_tables_and_images(tmp_path: Path):
    pairs = "".join(f"a {i}\tb {i}\n" for i in range(20)).encode()
    assert len(read_pairs(str(write_zip(tmp_path / "p.zip", {"pairs.tsv": pairs}))).split("all")) == 20
    table = open_table(str(write_tar(tmp_path / "t.tar.xz", {"x/t.csv": b"a,b\n1,2\n"})))
    assert [row for _, row in table.rows()] == [{"a": "1", "b": "2"}]
    images = {f"photos/{name}/{i}.png": b"x" for name in ("cat", "dog") for i in range(3)}
    assert open_images(str(write_zip(tmp_path / "i.zip", images))).classes == ("cat", "dog")


def test_archives_stay_within_bounds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    for name in ("../evil.txt", "/evil.txt", "a/../../evil.txt", "C:\\evil.txt"):
        with refuses("a.zip", "outside its folder"):
            resolve(str(write_zip(tmp_path / "a.zip", {"ok.txt": TEXT, name: b"x"})))
        (tmp_path / "a.zip").unlink()
    assert not list(tmp_path.rglob("evil.txt"))
    monkeypatch.setattr(archives, "MAX_BYTES", 100)
    with refuses("b.tar.xz", "unpacks to more than"):
        resolve(str(write_tar(tmp_path / "b.tar.xz", {"a.txt": TEXT})))
    monkeypatch.setattr(archives, "MAX_BYTES", 1 << 20)
    monkeypatch.setattr(archives, "MAX_FILES", 1)
    with refuses("c.zip", "1 files"):
        resolve(str(write_zip(tmp_path / "c.zip", {"a.txt": TEXT, "b.txt": TEXT})))
    with refuses("d.zip", "holds no files"):
        resolve(str(write_zip(tmp_path / "d.zip", {})))


@pytest.mark.parametrize(
    ("content", "parts"),
    [
        (b"7z\xbc\xaf\x27\x1c\0\4", ["a 7z archive: unpack it"]),
        (b"%PDF-1.7\n\xe2\xe3", ["a PDF", "pdftotext"]),
        (b"PK\x03\x04 cut off", ["cannot be unpacked"]),
        (lzma.compress(TEXT)[:60], ["damaged .xz file"]),
    ],
)
def test_what_cannot_be_read_is_one_line(content: bytes, parts: list[str], tmp_path: Path):
    with refuses("a.dat", *parts):
        read_documents(*resolve(str(write(tmp_path / "a.dat", content))))


def test_zst_is_read_or_says_what_it_needs(tmp_path: Path):
    path = write(tmp_path / "a.txt.zst", b"\x28\xb5\x2f\xfd")
    try:
        import zstandard  # ty: ignore[unresolved-import]
    except ImportError:
        with refuses("a.txt.zst", "needs zstandard", "pip install zstandard", "zstd -d 'a.txt.zst'"):
            read_documents(*resolve(str(path)))
    else:
        path.write_bytes(zstandard.compress(TEXT))
        assert read_documents(*resolve(str(path))) == [TEXT]


def test_rows_of_a_zst_are_read_one_after_the_other(tmp_path: Path):
    zstandard = pytest.importorskip("zstandard")
    path = write(tmp_path / "a.csv.zst", zstandard.compress(b"a,b\n" + b"1,2\n" * 9000))
    reader = RowReader(path, ("a",))
    assert [row for _, row in reader.rows()] == [{"a": "1", "b": "2"}] * 9000 and reader.done == 36_004


def test_a_zst_of_several_frames_is_read_and_a_damaged_one_refused(tmp_path: Path):
    zstandard = pytest.importorskip("zstandard")
    content = random.Random(0).randbytes(9000).hex().encode()
    packed = zstandard.compress(content[:5000]) + zstandard.compress(content[5000:])
    assert read_documents(*resolve(str(write(tmp_path / "a.txt.zst", packed)))) == [content]
    with refuses("b.txt.zst", "damaged .zst file", "ends in the middle"):
        read_documents(*resolve(str(write(tmp_path / "b.txt.zst", packed[:-500]))))
    with refuses("c.txt.zst", "damaged .zst file"):
        read_documents(*resolve(str(write(tmp_path / "c.txt.zst", packed[:4] + b"junk" * 9))))


def test_an_office_document_is_not_an_archive_of_texts(tmp_path: Path):
    with refuses("a.xlsx is an Office document", ".csv"):
        resolve(str(write_zip(tmp_path / "a.xlsx", {"[Content_Types].xml": b"<x/>"})))


def test_a_folder_of_source_code_is_read_as_texts(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    names = ["src/a.py", "src/b.rs", "README.md", "node_modules/x.js", ".git/c.py"]
    for name in names:
        write(tmp_path / "code" / name, "x = 1\n")
    assert [path.name for path in resolve(str(tmp_path / "code"))] == ["README.md", "a.py", "b.rs"]
    assert "source code: 2 files of code and 1 texts are read" in capsys.readouterr().err
    write(tmp_path / "texts" / "a.txt", "x")
    write(tmp_path / "texts" / "fetch.py", "x")
    assert [path.name for path in resolve(str(tmp_path / "texts"))] == ["a.txt"]
