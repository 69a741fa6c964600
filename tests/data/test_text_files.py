"""Files to documents: every ending, cut anywhere, and every bad file refused in one line."""

import gzip
import sys
from io import BytesIO
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from anyformer.data.text.prepare import prepare
from anyformer.data.text.read import Piece, pieces
from hypothesis import given
from hypothesis import strategies as st

from anyformer.data.text import read as text
from data_kit import ANY_TEXT, DATA, SAMPLE, documents, gpt2, needs_data, refuses, write


@pytest.mark.parametrize("pack", [lambda b: b, gzip.compress])
def test_every_ending(tmp_path, pack):
    table = BytesIO()
    pyarrow.parquet.write_table(pyarrow.table({"n": [1, 2], "text": ["Été", "b"]}), table)
    lines = '\ufeff{"text": "Été", "n": 1}\n\n{"text": "b"}'
    for name, content in {"d.jsonl": lines.encode(), "d.parquet": table.getvalue()}.items():
        path = write(tmp_path / (name if pack(b"") == b"" else f"{name}.gz"), pack(content))
        assert documents(path) == ["Été".encode(), b"b"]
    for name in ("a.txt", "a.md", "a.csv", "a"):
        path = write(tmp_path / (name if pack(b"") == b"" else f"{name}.gz"), pack(b"\xef\xbb\xbfa\r\nb"))
        assert documents(path) == [b"a\r\nb"], "a BOM goes, line ends stay"


@given(st.binary(max_size=200), st.integers(1, 40))
def test_pieces_are_small_and_whole(tmp_path_factory, content, size):
    path = write(tmp_path_factory.mktemp("raw") / "a.txt", b"x" + content)
    found = list(pieces([path], size))
    assert b"".join(p.data for p in found) == b"x" + content
    assert all(0 < len(p.data) <= max(size, 4) for p in found)
    assert [p.last for p in found] == [False] * (len(found) - 1) + [True]
    assert [p.start for p in found] == np.cumsum([0, *(len(p.data) for p in found)])[:-1].tolist()


@given(ANY_TEXT, st.integers(4, 20))
def test_no_character_is_cut(tmp_path_factory, words, size):
    path = write(tmp_path_factory.mktemp("raw") / "a.txt", "x" + words)
    assert "".join(text.decode(p) for p in pieces([path], size)) == "x" + words


@needs_data
def test_pieces_give_the_same_tokens_as_the_whole(tmp_path):
    whole = "".join(
        (Path(DATA or "") / name).read_text("utf-8")[at : at + 60_000]
        for name, at in [("shakespeare.txt", 0), ("wikitext-2/test.txt", 9_000), ("fra-eng/fra.txt", 0)]
    )
    whole = (whole + SAMPLE + "\n \n\n\t\n x\n\u3000\nなつ。\n").replace("\nAll:", "\r\nAll:")
    path, own = write(tmp_path / "a.txt", whole), gpt2()
    for size in (333, 1000, 30_011):
        parts = [text.decode(p) for p in pieces([path], size)]
        assert len(parts) >= len(whole) / size
        assert np.concatenate(own.encode_batch(parts)).tolist() == own.encode(whole).tolist(), size


def test_cuts():
    def cut(data):
        return text._cut(data + b"_", len(data))

    assert cut(b"ab\ncd, \nef") == 2 and cut(b"ab\r\ncd") == 2, "before the line break, and all of it"
    assert cut(b"ab\r\nc.\r\ndd") == 2, "rather after a letter: a newer tokenizer may keep b'.\\n' together"
    assert cut(b"a, \n b.\ncd") == 7 and cut("夏\n冬".encode()) == 3
    assert cut("a\u3000\ncde".encode()) == 8, "a line break after a wide space continues the space"
    assert cut(b"ab cd ef") == 5 and cut(b"ab, .. ,") == 8
    assert text._cut("ab夏".encode(), 4) == 2


@pytest.mark.parametrize(
    ("name", "content", "parts"),
    [
        ("a.txt", b"", ["a.txt: empty"]),
        ("a.txt", b"\xef\xbb\xbf", ["a.txt: empty"]),
        ("a.jsonl", b"\n\n", ["a.jsonl: empty"]),
        ("a.jsonl", b'{"text": "a"}\n{"txt": 1}\n', ["a.jsonl, line 2: no field 'text'", "has 'txt'"]),
        ("a.jsonl", b"[1]", ["a.jsonl, line 1: no field 'text'", "no object"]),
        ("a.jsonl", b"\n{oops}", ["a.jsonl, line 2: not JSON", "column 2"]),
        ("a.jsonl", b'{"text": null}', ["line 1: 'text' is NoneType"]),
        ("a.jsonl", b'{"text": "\xff"}', ["line 1: byte 0xFF at offset 10"]),
        ("a.jsonl", b'{"text": "\\ud800"}', ["line 1", "surrogate"]),
        ("a.jsonl", b"[" * 100_000, ["line 1"]),
        ("a.txt.gz", b"plain", ["a.txt.gz: damaged gzip"]),
        ("a.txt.gz", gzip.compress(SAMPLE.encode())[:-30], ["a.txt.gz: damaged gzip"]),
        ("a.parquet", b"PAR1 no", ["a.parquet: damaged parquet"]),
    ],
)
def test_bad_file(tmp_path, name, content, parts):
    with refuses(*parts):
        documents(write(tmp_path / name, content))


def test_bad_parquet(tmp_path, monkeypatch):
    path = tmp_path / "a.parquet"
    pyarrow.parquet.write_table(pyarrow.table({"body": ["a"]}), path)
    with refuses("a.parquet: no column 'text'", "has body"):
        documents(path)
    pyarrow.parquet.write_table(pyarrow.table({"text": ["a", None]}), path)
    with refuses("a.parquet, row 1: 'text' is NoneType"):
        documents(path)
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with refuses("a.parquet", 'pip install "anyformer[parquet]"'):
        documents(path)


def test_long_line(tmp_path, monkeypatch):
    monkeypatch.setattr(text, "LONGEST_LINE", 20)
    with refuses("a.jsonl, line 1: longer than"):
        documents(write(tmp_path / "a.jsonl", '{"text": "aaaaaaaaaaaaaaaaaaaaaaaaa"}'))


def test_not_utf8(tmp_path, monkeypatch):
    monkeypatch.setenv("ANYFORMER_CACHE", str(tmp_path / "cache"))
    path = write(tmp_path / "a.txt", b"one\ntwo\n" + "Été".encode("latin-1"))
    with refuses("a.txt: byte 0xC9 at offset 8 (line 3) is not UTF-8", "--tokenizer byte"):
        prepare(str(path))
    with refuses("a.txt: byte 0xC9 at offset 108 is not UTF-8"):
        text.decode(Piece(b"one\ntwo\n\xc9t\xe9", True, "a.txt", 100))
    assert prepare(str(path), "byte").tokens.tolist() == list(path.read_bytes())
