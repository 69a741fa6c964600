"""Slow: shards in a bucket of S3, served on this machine by moto: pip install moto[server] s3fs."""

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from anyformer.data.text import shards as module
from anyformer.data.text.prepare import prepare_corpus, write_shards
from cli_kit import TINY, assert_refused, call
from data_kit import SAMPLE, refuses, write
from shard_kit import open_tokens, write_numbers

pytestmark = pytest.mark.slow


@pytest.fixture
def bucket(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The URL of an empty bucket."""
    s3fs, server = pytest.importorskip("s3fs"), pytest.importorskip("moto.server")
    values = {"ACCESS_KEY_ID": "key", "SECRET_ACCESS_KEY": "secret", "DEFAULT_REGION": "us-east-1"}
    for name, value in values.items():
        monkeypatch.setenv(f"AWS_{name}", value)
    monkeypatch.setenv("ANYFORMER_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(module, "WAITS", ())
    thread = server.ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    thread.start()
    host, port = thread.get_host_and_port()
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
    s3fs.S3FileSystem.clear_instance_cache()
    s3fs.S3FileSystem().mkdir(f"bucket-{port}")
    yield f"s3://bucket-{port}/corpora/one"
    thread.stop()
    s3fs.S3FileSystem.clear_instance_cache()


def test_a_bucket_holds_shards(bucket: str, tmp_path: Path):
    data = str(write(tmp_path / "text.txt", SAMPLE * 20))
    write_shards(data, bucket, "bpe", 300, shard_tokens=1000)
    corpus, expected = prepare_corpus(bucket), prepare_corpus(data, "bpe", 300)
    assert np.array_equal(corpus.tokens, expected.tokens) and corpus.n_train == expected.n_train
    assert corpus.tokenizer.to_json() == expected.tokenizer.to_json()
    with refuses(bucket, "holds an index.json already"):
        write_shards(data, bucket)
    result = call(*TINY, "--data", bucket, "--steps", 4, "--out", tmp_path / "run", "--json").ok()
    assert result.json["val_loss"] > 0
    assert call("detect", bucket, "--json").ok().json["recipe"] == "language"


def test_what_a_bucket_refuses_is_one_line(bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    import s3fs

    for url in ("s3://none/corpus", f"{bucket}/none"):
        assert_refused(call("train", url), url, "there is no such file, folder or bucket")
    with refuses("s3://none/corpus", "there is no such file, folder or bucket"):
        write_numbers("s3://none/corpus", 10, 5)
    write_numbers(bucket, 100, 50)
    tokens = open_tokens(bucket)
    filesystem = s3fs.S3FileSystem()
    filesystem.pipe_file(f"{bucket}/shard-000000.bin", bytes(7))
    with refuses("shard-000000.bin", "bytes instead of 100"):
        tokens.reader.read(0)
    filesystem.rm(f"{bucket}/shard-000001.bin")
    with refuses("shard-000001.bin", "there is no such file"):
        tokens.reader.read(1)
    for name in [name for name in os.environ if name.startswith("AWS_") and "KEY" in name]:
        monkeypatch.delenv(name)
    s3fs.S3FileSystem.clear_instance_cache()
    with refuses(bucket, "no right to read or write it", "check the credentials"):
        open_tokens(bucket)
