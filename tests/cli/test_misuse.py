"""Mistakes of a person: one line that says what, where and what would be right, and nothing is left behind."""

import itertools
import math
import urllib.error
import urllib.request
from pathlib import Path

import pytest
import torch

from anyformer.recipes import language
from cli_kit import TINY, assert_refused, call, nothing_changes, train, write


def assert_not_trained(folder: Path, *flags: object, says: tuple[str, ...]) -> None:
    """Check that `anyformer train ... FLAGS` is refused with these words, and the folder stays as it is."""
    with nothing_changes(folder):
        assert_refused(call(*TINY, "--out", folder / "new", *flags), *says)


# --- data ---


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("missing.txt", None, ("data '", "missing.txt': no such file or folder (looked in ")),
        ("empty.txt", b"", ("empty.txt: empty, there is no text to read",)),
        ("short.txt", b"too short", ("train split has 8 tokens", "context 32 needs 33", "(--model.context 4)")),
        ("latin.txt", b"caf\xe9 " * 99, ("latin.txt: byte 0xE9 at offset 3", "not UTF-8", "--tokenizer byte")),
        ("bad.jsonl", b'{"text": "a"}\n{"body": "b"}\n', ("bad.jsonl, line 2", "no field 'text'", '{"text": "..."}')),
        ("bad.txt.gz", b"no gzip at all", ("bad.txt.gz: damaged gzip file",)),
        ("folder", "folder", ("folder': no readable file in this folder", ".txt")),
    ],
)
def test_data_that_cannot_be_used(tmp_path: Path, name: str, content: bytes | str | None, says: tuple[str, ...]):
    if content == "folder":
        (tmp_path / name).mkdir()
    elif isinstance(content, bytes):
        write(tmp_path / name, content)
    assert_not_trained(tmp_path, "--data", tmp_path / name, says=says)


def test_bytes_that_are_not_utf8_train_as_bytes(tmp_path: Path):
    train(write(tmp_path / "latin.txt", b"caf\xe9 " * 99), tmp_path / "run", "--tokenizer", "byte")


def test_a_data_set_that_cannot_be_reached(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def offline(url: str, timeout: float) -> None:
        raise urllib.error.URLError("no route to host")

    monkeypatch.delenv("ANYFORMER_DATA", raising=False)
    monkeypatch.setenv("ANYFORMER_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(urllib.request, "urlopen", offline)
    says = ("'shakespeare' is not here: tried the cache", "input.txt (no route to host)", "To get it: bring https://")
    assert_refused(call(*TINY, "--data", "shakespeare", "--out", tmp_path / "new"), *says)
    assert not (tmp_path / "new").exists()


# --- names ---


@pytest.mark.parametrize(
    ("command", "says"),
    [
        (("trian", "language"), ("no verb 'trian'", "'train'?")),
        (("train", "langage"), ("no recipe 'langage'", "'language'?")),
        (("train", "language", "--preset", "tinny"), ("no preset 'tinny'", "'tiny'?")),
        ((*TINY, "--stepz", 3), ("no flag --stepz", "--steps?")),
        ((*TINY, "--n-head", 3), ("no flag --n-head", "--model.n-head?")),
        ((*TINY, "--train.learning-rate", 3), ("no flag --train.learning-rate",)),
        ((*TINY, "--data", "shakespear"), ("data 'shakespear'", "'shakespeare'?")),
        ((*TINY, "--tokenizer", "bite"), ("tokenizer 'bite'", "'byte'?")),
        ((*TINY, "--model.position", "rotery"), ("--model.position is 'rotery'", "'rotary'?")),
        ((*TINY, "--dtype", "float23"), ("--dtype is 'float23'", "'float32'?")),
        (("sample", ".", "--promt", "x"), ("no flag --promt", "--prompt?")),
        (("eval", ".", "--jsn"), ("no flag --jsn", "--json?")),
        (("list", "--jsno"), ("no flag --jsno", "--json?")),
        (("doctor", "--jsno"), ("no flag --jsno", "--json?")),
        ((*TINY, "stray"), ("does not know what to do with 'stray'", "--help")),
        (("train", "--data", "x"), ("needs data or a recipe first: ", "language")),
        ((*TINY, "--resume"), ("--resume needs --out RUN", "there is none below runs/")),
    ],
)
def test_a_typo_is_answered_with_the_nearest_name(command: tuple, says: tuple[str, ...], tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with nothing_changes(tmp_path):
        assert_refused(call(*command), *says)


# --- values ---


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (("--model.n-head", 5), ("--model.n-head 5 does not divide dim 32", "1, 2, 4, 8, 16, 32")),
        (("--model.n-head", "two"), ("--model.n-head", "'two' is not a whole number")),
        (("--train.lr", "much"), ("--train.lr", "'much' is not a number")),
        (("--train.lr", -1), ("--train.lr is -1.0", "above 0")),
        (("--train.lr", "nan"), ("--train.lr is nan", "a finite number")),
        (("--train.optimizer", "sgd"), ("--train.optimizer is 'sgd'", "adamw, muon")),
        (("--steps", 0), ("--steps is 0", "at least 1")),
        (("--steps",), ("--steps needs a value",)),
        (("--seed", -1), ("--seed is -1", "at least 0")),
        (("--minutes", 0), ("--minutes is 0", "above 0")),
        (("--minutes", -1), ("--minutes is -1", "above 0")),
        (("--minutes", "inf"), ("--minutes is inf", "finite")),
        (("--minutes", "soon"), ("--minutes", "'soon' is not a number")),
        (("--steps", "few"), ("--steps", "'few' is not a whole number")),
        (("--minutes", 1, "--steps", 1), ("--steps and --minutes both say how long",)),
        (("--val-fraction", 2), ("--val-fraction is 2.0", "below 1")),
        (("--tokenizer", "bpe", "--vocab-size", 9), ("BPE vocabulary of 9 is too small", "at least 257")),
        (("--tokenizer", "none.json"), ("none.json': no such file",)),
        (("--device", "gpu"), ("--device gpu is not available on this machine", "auto, cpu")),
        (("--resume", "--out", "elsewhere", "--preset", "tiny", "--model.n-head", 3), ("--model.n-head 3",)),
    ],
)
def test_a_value_that_makes_no_sense(text: Path, flags: tuple, says: tuple[str, ...]):
    assert_not_trained(text.parent, "--data", text, *flags, says=says)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here, so asking for one is no mistake")
def test_a_gpu_that_is_not_there(text: Path, run: Path):
    says = ("--device cuda is not available on this machine", "auto, cpu")
    assert_not_trained(text.parent, "--data", text, "--device", "cuda", says=says)
    with nothing_changes(run):
        assert_refused(call("eval", run, "--device", "cuda"), *says)
        assert_refused(call("train", "language", "--out", run, "--resume", "--steps", 9, "--device", "cuda"), *says)


def test_more_than_the_memory_holds(text: Path, tmp_path: Path):
    """Petabytes, which no machine begins to fill."""
    flags = ("--model.dim", 1 << 20)
    for folder in (tmp_path / "new", tmp_path / "project"):
        (tmp_path / "project" / ".git").mkdir(parents=True, exist_ok=True)  # what was there before us stays there
        with nothing_changes(tmp_path):
            assert_refused(call(*TINY, "--data", text, "--out", folder, *flags), "out of memory: lower --train.batch")


def test_memory_that_ends_in_the_first_step(text: Path, tmp_path: Path, monkeypatch):
    """As on a GPU."""

    def refuse(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 GiB.\nmore lines")

    monkeypatch.setattr("anyformer.recipes.language.loss", refuse)
    with nothing_changes(tmp_path):
        result = call(*TINY, "--data", text, "--out", tmp_path / "new", "--json")
    assert result.code == 2 and result.out == "" and "Traceback" not in result.err
    assert result.err.splitlines()[-1].startswith("anyformer: out of memory: lower --train.batch")


def test_a_loss_that_is_not_finite(text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    loss, factors = language.loss, itertools.chain([1.0], itertools.repeat(math.inf))
    monkeypatch.setattr(language, "loss", lambda model, batch: loss(model, batch) * next(factors))
    result = call(*TINY, "--data", text, "--out", tmp_path / "run")
    last = result.err.splitlines()[-1]
    assert result.code == 1 and result.out == "" and "Traceback" not in result.err
    assert last.startswith("anyformer: the loss is ") and "at step 2 with learning rate " in last
    assert "try --train.lr" in last and not list(tmp_path.glob("run/checkpoints/*"))


# --- prompts ---


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (("--prompt", "Où"), ("vocabulary of 15 characters has no 'O', 'ù'", "byte or bpe")),
        (("--prompt-file", "none.txt"), ("none.txt: there is no such file",)),
        (("--prompt", "a", "--tokens", -1), ("tokens is -1", "at least 0")),
        (("--prompt", "a", "--temperature", -1), ("temperature is -1.0",)),
        (("--prompt", "a", "--top-p", 2), ("top_p is 2.0",)),
        (("--prompt", "a", "--top-k", "many"), ("--top-k", "many")),
    ],
)
def test_a_request_that_cannot_be_answered(run: Path, flags: tuple, says: tuple[str, ...]):
    assert_refused(call("sample", run, *flags), *says)
