"""Files to documents: every format, pieces cut anywhere, and one line for every bad file."""

import gzip
import sys
from io import BytesIO
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import given
from hypothesis import strategies as st

from anyformer.data.text import read as text
from anyformer.data.text.prepare import prepare_corpus
from anyformer.data.text.read import Piece, read_pieces
from data_kit import ANY_TEXT, DATA, SAMPLE, load_gpt2, needs_data, read_documents, refuses, write


@pytest.mark.parametrize("extension", ["", ".gz"])
def test_every_format(tmp_path, extension):
    pack = gzip.compress if extension else bytes
    table = BytesIO()
    pyarrow.parquet.write_table(pyarrow.table({"n": [1, 2], "text": ["Été", "b"]}), table)
    lines = '\ufeff{"text": "Été", "n": 1}\n\n{"text": "b"}'
    for name, content in {"d.jsonl": lines.encode(), "d.parquet": table.getvalue()}.items():
        path = write(tmp_path / f"{name}{extension}", pack(content))
        assert read_documents(path) == ["Été".encode(), b"b"]
    for name in ("a.txt", "a.md", "a.log", "a"):
        path = write(tmp_path / f"{name}{extension}", pack(b"\xef\xbb\xbfa\r\nb"))
        assert read_documents(path) == [b"a\r\nb"], "a BOM is removed, line ends stay"


@given(st.one_of(st.binary(max_size=200), ANY_TEXT), st.integers(1, 40))
def test_pieces_are_bounded_complete_and_cut_no_character(tmp_path_factory, content, size):
    content = "x" + content if isinstance(content, str) else b"\xff" + content
    path = write(tmp_path_factory.mktemp("raw") / "a.txt", content)
    pieces = list(read_pieces([path], size))
    assert b"".join(p.data for p in pieces) == path.read_bytes()
    assert all(0 < len(p.data) <= max(size, 4) for p in pieces)
    assert [p.last for p in pieces] == [False] * (len(pieces) - 1) + [True]
    assert [p.start for p in pieces] == np.cumsum([0, *(len(p.data) for p in pieces)])[:-1].tolist()
    if isinstance(content, str):
        assert "".join(text.decode_piece(p) for p in pieces) == content


@needs_data
def test_pieces_give_the_same_tokens_as_the_document(tmp_path):
    document = "".join(
        (Path(DATA or "") / name).read_text("utf-8")[start : start + 20_000]
        for name, start in [("shakespeare.txt", 0), ("wikitext-2/test.txt", 9_000), ("fra-eng/fra.txt", 0)]
    )
    document = (document + SAMPLE + "\n \n\n\t\n x\n\u3000\nなつ。\n").replace("\nAll:", "\r\nAll:")
    path, tokenizer = write(tmp_path / "a.txt", document), load_gpt2()
    expected = tokenizer.encode(document).tolist()
    for size in (333, 1000, 30_011):
        parts = [text.decode_piece(p) for p in read_pieces([path], size)]
        assert len(parts) >= len(document) / size
        assert np.concatenate(tokenizer.encode_batch(parts)).tolist() == expected, size


def test_where_pieces_end():
    def cut(data):
        return text._find_cut(data + b"_", len(data))

    assert cut(b"ab\ncd, \nef") == 2 and cut(b"ab\r\ncd") == 2, "before the line break, and all of it"
    assert cut(b"ab\r\nc.\r\ndd") == 2, "rather after a letter: a newer tokenizer may keep b'.\\n' together"
    assert cut(b"a, \n b.\ncd") == 7 and cut("夏\n冬".encode()) == 3
    assert cut("a\u3000\ncde".encode()) == 8, "a line break after a wide space continues the space"
    assert cut(b"ab cd ef") == 5 and cut(b"ab, .. ,") == 8
    assert text._find_cut("ab夏".encode(), 4) == 2


@pytest.mark.parametrize(
    ("name", "content", "parts"),
    [
        ("a.txt", b"\xef\xbb\xbf", ["a.txt: empty"]),
        ("a.jsonl", b"\n\n", ["a.jsonl: empty"]),
        ("a.jsonl", b'{"text": "a"}\n{"txt": 1}\n', ["a.jsonl, line 2: no field 'text'", "has 'txt'"]),
        ("a.jsonl", b"[1]", ["a.jsonl, line 1: should hold a JSON object, found list", "each line"]),
        ("a.jsonl", b"\n{oops}", ["a.jsonl, line 2: not JSON", "column 2"]),
        ("a.jsonl", b'{"text": null}', ["a.jsonl: empty"]),
        ("a.jsonl", b'{"text": 3}', ["line 1: 'text' is int"]),
        ("a.jsonl", b'{"text": "\xff"}', ["line 1: byte 0xFF is not UTF-8 (offset 10)"]),
        ("a.jsonl", b'{"text": "\\ud800"}', ["line 1", "surrogate"]),
        ("a.jsonl", b"[" * 100_000, ["line 1"]),
        ("a.jsonl", b'{"text": "%s"}' % (b"a" * 200_000), ["a.jsonl, line 1: longer than"]),
        ("a.txt.gz", b"plain", ["a.txt.gz: damaged gzip"]),
        ("a.txt.gz", gzip.compress(SAMPLE.encode())[:-30], ["a.txt.gz: damaged gzip"]),
        ("a.parquet", b"PAR1 no", ["a.parquet: damaged parquet"]),
    ],
)
def test_bad_file(tmp_path, monkeypatch, name, content, parts):
    monkeypatch.setattr(text, "MAX_LINE_BYTES", 150_000)
    with refuses(*parts):
        read_documents(write(tmp_path / name, content))


def test_bad_parquet(tmp_path, monkeypatch):
    path = tmp_path / "a.parquet"
    pyarrow.parquet.write_table(pyarrow.table({"body": ["a"]}), path)
    with refuses("a.parquet: no column 'text'", "has body"):
        read_documents(path)
    pyarrow.parquet.write_table(pyarrow.table({"text": ["a", None]}), path)
    assert read_documents(path) == [b"a"]
    pyarrow.parquet.write_table(pyarrow.table({"text": [3]}), path)
    with refuses("a.parquet, row 0: 'text' is int"):
        read_documents(path)
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with refuses("a.parquet", 'pip install "anyformer[parquet]"'):
        read_documents(path)


def test_not_utf8(tmp_path, monkeypatch):
    monkeypatch.setenv("ANYFORMER_CACHE", str(tmp_path / "cache"))
    path = write(tmp_path / "a.txt", b"one\ntwo\n" + "Été".encode("latin-1"))
    with refuses("a.txt: byte 0xC9 at offset 8 (line 3) is not UTF-8", "--tokenizer byte"):
        prepare_corpus(str(path))
    with refuses("a.txt: byte 0xC9 at offset 108 is not UTF-8"):
        text.decode_piece(Piece(b"one\ntwo\n\xc9t\xe9", True, "a.txt", 100))
    assert prepare_corpus(str(path), "byte").tokens.tolist() == list(path.read_bytes())
