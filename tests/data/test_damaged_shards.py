"""Shards and buckets that cannot be read: each is one line, and leaves nothing behind."""

import errno
import json
import os
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from anyformer.data.text import shards as module
from anyformer.data.text.prepare import prepare_corpus, write_shards
from anyformer.data.text.shards import holds_shards
from cli_kit import call
from data_kit import SAMPLE, refuses, write
from hub_kit import Hub
from shard_kit import open_tokens, serve_folder, write_numbers


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Give every test its own cache, and no waiting."""
    monkeypatch.setenv("ANYFORMER_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(module, "WAITS", (0.0, 0.0))
    return tmp_path / "cache" / "shards"


def change_index(folder: str, **fields: object) -> None:
    path = Path(folder) / "index.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"format": "another"}, "not the index of shards"),
        ({"version": 2}, "version 2"),
        ({"dtype": "<f8"}, "dtype is '<f8'"),
        ({"dtype": 3}, "dtype is 3"),
        ({"shards": []}, "shards: each must have"),
        ({"shards": [[1 << 40, 0]], "n_tokens": 1 << 40}, "shards: each must have from 1 to 268,435,456"),
        ({"shards": [["a", 0]]}, "shards[0][0] is 'a'"),
        ({"n_tokens": 7}, "n_tokens is 7; the shards have 3,000"),
        ({"n_train": 4000}, "n_train is 4000"),
        ({"tokenizer": {"../secret": ""}}, "tokenizer: must name tokenizer.json"),
        ({"tokenizer": {"tokenizer.json": "0" * 64}}, "not the tokenizer that the shards were written with"),
        ({"vocab_size": 9}, "3,000 ids, the shards were written with 9"),
        ({"more": 1}, "unknown field 'more'"),
    ],
)
def test_an_index_that_cannot_be_is_refused(numbers: str, fields: dict[str, object], message: str):
    change_index(numbers, **fields)
    with refuses(numbers, message):
        open_tokens(numbers)


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"", "not JSON"), (b"[1]", "should hold a JSON object"), (b"{}", "not the index of shards"), (None, "no such")],
)
def test_a_damaged_index_is_refused(numbers: str, content: bytes | None, message: str):
    path = Path(numbers) / "index.json"
    path.unlink() if content is None else path.write_bytes(content)
    assert holds_shards(numbers)
    with refuses("index.json", message):
        prepare_corpus(numbers)


@pytest.mark.parametrize("is_remote", [False, True])
@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "there is no such file"),
        (bytes(7), "has 7 bytes instead of 400"),
        (bytes(400), "is damaged, or of another corpus"),
        (bytes(401), "bytes instead of 400"),
    ],
)
def test_a_shard_that_is_not_right_is_refused(
    mirror: tuple[Hub, str], numbers: str, cache: Path, content: bytes | None, message: str, is_remote: bool
):
    path = Path(numbers) / "shard-000001.bin"
    path.unlink() if content is None else path.write_bytes(content)
    if content is None:
        del mirror[0].files["/numbers/shard-000001.bin"]
    serve_folder(mirror[0], Path(numbers))
    with refuses("shard-000001.bin", message):
        open_tokens(mirror[1] if is_remote else numbers).reader.read(1)
    assert list(cache.glob("*/*[!0-9]")) == [], "nothing is left of it"


def test_ids_beyond_the_vocabulary_are_refused(tmp_path: Path):
    from anyformer.data.text.shard_writer import ShardWriter
    from anyformer.data.tokenizers.base import Bytes

    writer = ShardWriter(str(tmp_path / "ids"), Bytes, 10)
    writer.write(np.array([1, 300], "<u2").tobytes())
    writer.finish(2, 1)
    with refuses("holds the id 300", "257 ids"):
        open_tokens(tmp_path / "ids").reader.read(0)


def test_shards_of_another_tokenizer_are_refused(numbers: str, tmp_path: Path):
    own, other = tmp_path / "own", tmp_path / "other"
    write(own / "tokenizer.json", (Path(numbers) / "tokenizer.json").read_bytes())
    write_shards(str(write(tmp_path / "text.txt", SAMPLE)), str(other), "char")
    assert len(prepare_corpus(numbers, str(own / "tokenizer.json")).tokens) == 3000
    with refuses(numbers, "another tokenizer", "other/tokenizer.json"):
        prepare_corpus(numbers, str(other / "tokenizer.json"))


def test_shards_are_not_read_as_a_whole(numbers: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(module, "MAX_ARRAY_TOKENS", 1000)
    tokens = open_tokens(numbers)
    assert len(np.asarray(tokens[500:1500])) == 1000
    with refuses(numbers, "3,000 tokens in shards are not read into memory at once"):
        np.asarray(tokens, np.int64)


@pytest.mark.parametrize(("text", "message"), [("no", "must be a number"), ("-1", "'-1'"), ("1e-7", "raise it")])
def test_a_bound_that_cannot_be_is_refused(
    mirror: tuple[Hub, str], monkeypatch: pytest.MonkeyPatch, text: str, message: str
):
    monkeypatch.setenv("ANYFORMER_SHARD_CACHE", text)
    with refuses("$ANYFORMER_SHARD_CACHE", message):
        open_tokens(mirror[1]).reader.read(0)


def test_a_full_disk_leaves_nothing_behind(mirror: tuple[Hub, str], cache: Path, monkeypatch: pytest.MonkeyPatch):
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    tokens = open_tokens(mirror[1])
    for name in ("posix_fallocate", "replace"):  # before anything is fetched, and at the end
        with monkeypatch.context() as patch:
            patch.setattr(os, name, refuse)
            with pytest.raises(OSError, match="No space left"):
                tokens.reader.read(0)
        assert list(cache.glob("*/.new-*")) == list(cache.glob("*/[!.]*")) == []


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (FileNotFoundError("The specified bucket does not exist"), "there is no such file, folder or bucket (The"),
        (PermissionError("Forbidden"), "no right to read or write it (Forbidden): check the credentials"),
        (type("NoCredentialsError", (Exception,), {})("Unable"), "no right to read or write it (Unable)"),
        (OSError("Name or service not known"), "cannot be reached (Name"),
        (RuntimeError("what\never"), "cannot be reached (what)"),
    ],
)
def test_a_bucket_that_cannot_be_read_is_one_line(error: Exception, message: str, monkeypatch: pytest.MonkeyPatch):
    from fsspec.implementations.memory import MemoryFileSystem

    def refuse(*_: object, **__: object) -> None:
        raise error

    for name in ("open", "exists"):
        monkeypatch.setattr(MemoryFileSystem, name, refuse)
    with refuses("memory://bucket/corpus/index.json", message):
        prepare_corpus("memory://bucket/corpus")
    with refuses("memory://bucket/corpus/index.json", message):
        write_numbers("memory://bucket/corpus", 10, 5)


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("s3://bucket/corpus", "pip install 'anyformer[s3]'"),
        ("gs://bucket/corpus", "pip install 'anyformer[gs]'"),
        ("nowhere://bucket/corpus", "Protocol not known: nowhere"),
        ("simplecache::memory://bucket/corpus", "no such file"),
    ],
)
def test_a_missing_package_is_named(url: str, message: str, monkeypatch: pytest.MonkeyPatch):
    for module_name in ("s3fs", "gcsfs"):
        monkeypatch.setitem(sys.modules, module_name, None)
    with refuses(url, message):
        prepare_corpus(url)


def test_a_missing_fsspec_is_named(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "fsspec.core", None)
    with refuses("s3://bucket/corpus", "needs fsspec", "anyformer[s3]"):
        prepare_corpus("s3://bucket/corpus")


def test_nothing_is_written_over_http(mirror: tuple[Hub, str]):
    with refuses(mirror[1], "nothing can be written over http"):
        write_numbers(mirror[1], 10, 5)


def test_an_unfinished_folder_is_no_corpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    data, folder = write(tmp_path / "text.txt", SAMPLE), str(tmp_path / "corpus")
    monkeypatch.setattr("anyformer.data.text.prepare.file_stamps", lambda paths: time.perf_counter_ns())
    with refuses(str(data), "changed while it was read"):
        write_shards(str(data), folder, "char", shard_tokens=100)
    with refuses("index.json", "no such file", "written to the end"):
        prepare_corpus(folder)
    monkeypatch.undo()
    os.environ["ANYFORMER_CACHE"] = str(tmp_path / "cache")
    write_shards(str(data), folder, "char", shard_tokens=100)
    assert len(prepare_corpus(folder).tokens) == len(SAMPLE)


@pytest.mark.parametrize("url", ["http://[", "https://[/corpus?x", "s3://["])
def test_an_address_that_is_none(url: str):
    result = call("train", "language", "--data", url)
    assert result.code == 2 and result.err.startswith("anyformer: ") and result.err.count("\n") == 1
