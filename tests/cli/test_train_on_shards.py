"""anyformer shard, and training on what it wrote: from a folder or a URL, as from any data."""

import errno
import json
import os
import signal
from collections.abc import Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path

import pytest
import torch

from anyformer import api
from anyformer.data.text import shards
from anyformer.errors import Stopped
from anyformer.recipe import init_stream
from anyformer.recipes import language
from anyformer.recipes._shared import scaling
from cli_kit import assert_refused, call, nothing_changes
from hub_kit import Hub, serve_hub
from shard_kit import serve_folder

TINY_MODEL = ("--preset", "tiny", "--device", "cpu", "--dtype", "float32")


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ANYFORMER_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(shards, "WAITS", ())


@pytest.fixture
def folder(text: Path, tmp_path: Path) -> Path:
    """2,880 characters in shards of 150."""
    call(
        "shard", text, "--to", tmp_path / "corpus", "--tokenizer", "char", "--shard-tokens", 150, "--val-fraction", 0.2
    ).ok()
    return tmp_path / "corpus"


@pytest.fixture
def url(folder: Path) -> Iterator[str]:
    with serve_hub(Hub()) as hub:
        yield serve_folder(hub, folder)


def read_losses(run: Path) -> list[dict]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def test_shards_are_written_and_described(text: Path, tmp_path: Path):
    result = call("shard", text, "--to", tmp_path / "a", "--tokenizer", "char", "--shard-tokens", 1000, "--json").ok()
    assert (result.json["n_tokens"], result.json["n_train"], result.json["n_shards"]) == (2880, 2851, 3)
    result = call("shard", text, "--to", tmp_path / "b", "--tokenizer", "byte").ok()
    assert "2,880 tokens of 1 documents in 1 shards · 257 ids · 29 for validation" in result.err
    with nothing_changes(tmp_path / "b"):
        assert_refused(call("shard", text, "--to", tmp_path / "b"), "holds an index.json already")
    assert_refused(call("shard", text, "--to", tmp_path / "c", "--shard-tokens", 0), "--shard-tokens is 0")
    assert_refused(call("shard", tmp_path / "none.txt", "--to", tmp_path / "c"), "no such file")


@pytest.mark.slow
def test_a_folder_and_its_url_train_alike(folder: Path, url: str, tmp_path: Path):
    detected = call("detect", folder, "--json").ok().json
    assert detected["recipe"] == "language" and detected["why"] == "2,880 tokens in 20 shards"
    for data, name in ((folder, "here"), (url, "there")):
        call("train", data, *TINY_MODEL, "--steps", 4, "--train.eval-every", 2, "--out", tmp_path / name).ok()
    assert read_losses(tmp_path / "here") == read_losses(tmp_path / "there")
    metrics = [call("eval", tmp_path / name, "--json").ok().json for name in ("here", "there")]
    assert metrics[0]["loss"] == metrics[1]["loss"] and metrics[1]["data"] == url
    assert call("sample", tmp_path / "there", "--tokens", 3).code == 0


def test_sizes_are_chosen_by_the_first_tokens(folder: Path, monkeypatch: pytest.MonkeyPatch):
    """Pieces spread over all shards would fetch all of them."""
    monkeypatch.setattr(scaling, "COUNT_TOKENS", 100)
    monkeypatch.setattr(scaling, "TEST_TOKENS", 100)
    config = replace(language.PRESETS["tiny"], data=str(folder))
    numbers, read = set(), shards.ShardReader.read
    monkeypatch.setattr(shards.ShardReader, "read", lambda self, n, *a: (numbers.add(n), read(self, n, *a))[1])
    text = scaling.measure_text(config)
    assert 0 < text.difficulty < 5 and text.unique_tokens == 2304 and numbers == {0, 1, 2, 15, 16, 17, 18}


def train_until(data: object, out: Path, stop: int | None = None) -> None:
    """Train a tiny run, or go on with it, until Ctrl-C at a step."""

    def interrupt(record: dict) -> None:
        if record["step"] == stop:
            os.kill(os.getpid(), signal.SIGINT)

    settings = {"steps": 12, "eval_every": 6, "save_every": 4, "accumulate": 2, "device": "cpu", "dtype": "float32"}
    api.train("language", "tiny", out=out, resume=True, on_record=interrupt, data=str(data), train=settings)


@pytest.mark.slow
def test_a_stopped_run_equals_an_uninterrupted_one(folder: Path, url: str, tmp_path: Path):
    """Stopped at several steps; the shards are once in a folder and once behind a URL, with a cache that holds few."""
    train_until(folder, tmp_path / "here")
    for stop in (1, 5, 9):
        with pytest.raises(Stopped):
            train_until(url, tmp_path / "there", stop)
    train_until(url, tmp_path / "there")
    assert read_losses(tmp_path / "here") == read_losses(tmp_path / "there")
    weights = [tmp_path / name / "checkpoints" / "step-12" / "model.safetensors" for name in ("here", "there")]
    assert weights[0].read_bytes() == weights[1].read_bytes()


def test_processes_share_out_the_batches_of_one(folder: Path):
    """Rank r of N takes batches r, r + N, ...: together they are those of one process."""
    preset = language.PRESETS["tiny"]
    config = replace(preset, data=str(folder), train=replace(preset.train, accumulate=4))
    stream = [batch["ids"] for batch, _ in islice(language.batches(config, "train"), 24)]
    for n_ranks in (2, 4):
        for rank in range(n_ranks):
            state = init_stream(None, "", language.load_corpus(config).hash, step=rank, stride=n_ranks)
            for i in range(rank, 24, n_ranks):
                batch, state = next(language.batches(config, "train", state))
                assert torch.equal(batch["ids"], stream[i])


def test_bad_shards_are_one_line(folder: Path, tmp_path: Path, text: Path):
    def refuse(*parts: str) -> None:
        assert_refused(call("train", "language", "--data", folder, *TINY_MODEL, "--out", tmp_path / "run"), *parts)
        assert not (tmp_path / "run").exists()

    for path in folder.glob("*.bin"):
        path.write_bytes(path.read_bytes()[::-1])
    refuse("shard-0000", "is damaged, or of another corpus")
    (folder / "index.json").write_text("{")
    refuse("index.json: not JSON")
    assert_refused(call("train", "s3://none/corpus"), "s3://none/corpus", "pip install 'anyformer[s3]'")
    assert_refused(call("train", "language", "--data", "http://example.org/corpus"), "not https")


def test_a_full_disk_is_one_line(url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", refuse)
    result = call("train", "language", "--data", url, *TINY_MODEL, "--out", tmp_path / "run")
    assert_refused(result, "the disk refuses", "No space left", "$ANYFORMER_CACHE")


def test_a_model_is_not_tuned_on_shards_of_another_tokenizer(folder: Path, run: Path, text: Path, tmp_path: Path):
    flags = ("--init", run, "--out", tmp_path / "tuned", "--steps", 2, "--device", "cpu")
    call("train", "language", "--data", folder, *flags).ok()
    call("shard", text, "--to", tmp_path / "bytes", "--tokenizer", "byte").ok()
    result = call("train", "language", "--data", tmp_path / "bytes", *flags[:3], tmp_path / "b", *flags[4:])
    assert_refused(result, "the shards were written with another tokenizer (byte, 257 ids)", "--tokenizer")


@pytest.mark.parametrize("recipe", ["masked", "spans", "recall"])
def test_recipes_of_a_token_stream_train_on_shards(recipe: str, folder: Path, tmp_path: Path):
    out = tmp_path / "run"
    result = call("train", recipe, "--data", folder, *TINY_MODEL, "--steps", 2, "--out", out, "--json").ok()
    assert result.json["val_loss"] > 0
