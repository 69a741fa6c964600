"""Documents to tokens, once and for all, and tokens to batches."""

import json
import multiprocessing
import os
import time
from pathlib import Path

import numpy as np
import pytest
from anyformer.data.text.batches import NOTHING, sweep, windows
from anyformer.data.text.prepare import encode_data, prepare
from hypothesis import given
from hypothesis import strategies as st

from anyformer.data.text import prepare as module
from anyformer.data.tokenizers import build as tok
from data_kit import SAMPLE, needs_data, refuses, write


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Every test has a cache of its own."""
    folder = tmp_path / "cache"
    monkeypatch.setenv("ANYFORMER_CACHE", str(folder))
    return folder


@pytest.fixture
def sample(tmp_path: Path) -> str:
    """A file of text."""
    return str(write(tmp_path / "sample.txt", SAMPLE))


def built(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The folders that are built from now on."""
    folders, build = [], module._build
    monkeypatch.setattr(module, "_build", lambda f, t, new, sha: (folders.append(new), build(f, t, new, sha)))
    return folders


@needs_data
def test_tiny_shakespeare_as_nanogpt_splits_it():
    corpus = prepare("shakespeare")
    assert [len(corpus.split(part)) for part in ("train", "val", "all")] == [1003854, 111540, 1115394]
    assert corpus.tokenizer.vocab_size == 66 and corpus.meta["n_bytes"] == 1115394 and corpus.meta["n_documents"] == 1
    words = (Path(os.environ["ANYFORMER_DATA"]) / "shakespeare.txt").read_text("utf-8")
    ids = {c: i for i, c in enumerate(sorted(set(words)))}
    assert corpus.tokens.tolist() == [ids[c] for c in words] and corpus.tokenizer.decode(corpus.tokens) == words


@pytest.mark.parametrize("spec", ["char", "byte", "bpe"])
def test_prepared_once(sample, spec, monkeypatch, cache):
    folders = built(monkeypatch)
    told = []
    first = prepare(sample, spec, 300, progress=lambda *what: told.append(what))
    again = prepare(sample, spec, 300)
    assert len(folders) == 1 and first.hash == again.hash and type(again.tokenizer) is type(first.tokenizer)
    assert np.array_equal(first.tokens, again.tokens) and first.tokenizer.decode(again.tokens) == SAMPLE
    assert first.meta["n_bytes"] == len(SAMPLE.encode()) == first.tokenizer.n_bytes(first.tokens)
    assert {what for what, _, _ in told} == {"checking", "encoding"} | ({"reading"} if spec != "byte" else set())
    assert all(0 < done <= total == len(SAMPLE.encode()) for _, done, total in told)
    assert [p.name for p in (cache / "tokens").iterdir()] == [first.hash], "no temporary folder may stay"


def test_every_cause_has_its_own_hash(tmp_path, sample):
    folder = tmp_path / "d"
    write(folder / "a.txt", "ab")
    write(folder / "b.txt", "c")
    runs = [prepare(sample, s, v) for s, v in [("char", 0), ("byte", 0), ("bpe", 300), ("bpe", 301)]]
    runs.append(prepare(str(folder), "byte"))
    write(folder / "a.txt", "a")
    write(folder / "b.txt", "bc")
    runs.append(prepare(str(folder), "byte"))
    runs.append(prepare(str(write(tmp_path / "x.txt", '{"text": "a"}\n')), "byte"))
    runs.append(prepare(str(write(tmp_path / "x.jsonl", '{"text": "a"}\n')), "byte"))
    assert len({r.hash for r in runs}) == len(runs)
    assert len({r.meta["sha256"] for r in runs}) == len(runs) - 3, "that is of the data alone"
    assert prepare(sample, "byte", 7, 0.5).hash == runs[1].hash, "neither the split nor an unused size is a cause"
    assert prepare(str(write(tmp_path / "other.txt", SAMPLE)), "byte").hash == runs[1].hash, "nor is the name"


@pytest.mark.parametrize("spec", ["char", "byte", "bpe"])
def test_documents_are_separated(tmp_path, spec):
    path = write(tmp_path / "a.jsonl", "\n".join(json.dumps({"text": t}) for t in ["ab", "", "夏", "ba"]))
    corpus = prepare(str(path), spec, 257)
    own = corpus.tokenizer
    expected = [*own.encode("ab"), own.end, *own.encode("夏"), own.end, *own.encode("ba")]
    assert corpus.tokens.tolist() == expected and corpus.meta["n_documents"] == 3
    assert own.n_bytes(corpus.tokens) == corpus.meta["n_bytes"] == 7


def test_a_document_in_many_pieces_is_one(sample, monkeypatch):
    monkeypatch.setattr(module, "BLOCK", 50)
    assert prepare(sample, "byte").tokens.tolist() == list(SAMPLE.encode())
    assert tok.END not in prepare(sample, "char").tokenizer.decode(prepare(sample, "char").tokens)


def test_large_ids(tmp_path, sample):
    own = tok.Characters([*(chr(i) for i in range(0x10000, 0x20000)), *sorted(set(SAMPLE))])
    corpus = encode_data(sample, own)
    assert corpus.meta["dtype"] == "<u4" and own.decode(corpus.tokens) == SAMPLE


@given(n=st.integers(1, 200), percent=st.integers(0, 99))
def test_split(tmp_path_factory, n, percent):
    path = write(tmp_path_factory.getbasetemp() / f"{n}.txt", bytes(range(n)))
    corpus = prepare(str(path), "byte", val_fraction=percent / 100)
    assert len(corpus.split("train")) == n * (100 - percent) // 100
    assert np.array_equal(np.concatenate([corpus.split("train"), corpus.split("val")]), corpus.split("all"))


def test_an_existing_tokenizer(tmp_path, sample):
    first = prepare(sample, "bpe", 300)
    first.tokenizer.save(tmp_path / "t.json")
    other = str(write(tmp_path / "b.txt", "winter"))
    by_path, by_object = prepare(other, str(tmp_path / "t.json")), encode_data(other, first.tokenizer)
    assert by_path.hash == by_object.hash and by_path.tokens.tolist() == first.tokenizer.encode("winter").tolist()
    with refuses("b.txt, byte 0: the vocabulary of", "'t'"):
        encode_data(other, tok.Characters("winer"))


def damage(folder: Path, how: str) -> None:
    meta = json.loads((folder / "meta.json").read_text())
    match how:
        case "short":
            os.truncate(folder / "tokens.bin", meta["n_tokens"])
        case "odd":
            os.truncate(folder / "tokens.bin", 2 * meta["n_tokens"] - 1)
        case "vocabulary":
            tok.Bytes().save(folder / "tokenizer.json")
        case "no object":
            (folder / "meta.json").write_text("[]")
        case name:
            (folder / name).write_bytes(b"")


FILES = ["tokens.bin", "meta.json", "tokenizer.json"]


@pytest.mark.parametrize("how", ["short", "odd", "vocabulary", "no object", *FILES])
def test_damage_is_repaired(sample, how, cache, monkeypatch):
    good = prepare(sample)
    damage(cache / "tokens" / good.hash, how)
    folders = built(monkeypatch)
    assert prepare(sample).tokens.tolist() == good.tokenizer.encode(SAMPLE).tolist() and len(folders) == 1
    assert [p.name for p in (cache / "tokens").iterdir()] == [good.hash]


def test_killed_midway(sample, cache, monkeypatch):
    """Nothing half done is trusted, and what is long dead is removed."""

    def kill(files, tokenizer, folder, sha256):
        write(folder / "tokens.bin", b"half")
        os._exit(9)

    with monkeypatch.context() as patch:
        patch.setattr(module, "_build", kill)
        child = multiprocessing.get_context("fork").Process(target=prepare, args=(sample,))
        child.start()
        child.join()
    (left,) = (cache / "tokens").iterdir()
    assert child.exitcode == 9 and left.name.startswith(".new-")
    assert len(prepare(sample).tokens) == len(SAMPLE) and left.exists(), "it may still be at work"
    for path in (left / "tokens.bin", left):
        os.utime(path, (0, time.time() - 2 * module.STALE))
    prepare(sample, "byte")
    assert not left.exists()


def test_two_at_once(sample, cache, monkeypatch):
    """The slower one takes what the faster one made."""
    build, inner = module._build, []

    def overtaken(files, tokenizer, folder, sha256):
        monkeypatch.setattr(module, "_build", build)
        inner.append(prepare(sample))
        build(files, tokenizer, folder, sha256)

    monkeypatch.setattr(module, "_build", overtaken)
    assert np.array_equal(prepare(sample).tokens, inner[0].tokens)
    assert [p.name for p in (cache / "tokens").iterdir()] == [inner[0].hash]


def test_data_that_changes_while_read(sample, cache, monkeypatch):
    build = module._build
    late = Path(sample)
    monkeypatch.setattr(module, "_build", lambda *args: (write(late, SAMPLE + "!"), build(*args)))
    with refuses("sample.txt' changed while it was read"):
        prepare(sample, "byte")
    assert list((cache / "tokens").iterdir()) == []


def test_bad_wishes(sample):
    for fraction in (-0.1, 1, 1.5):
        with refuses(f"fraction of {fraction}", "0 <= fraction < 1"):
            prepare(sample, val_fraction=fraction)
    with refuses("vocabulary of 9 is too small", "257"):
        prepare(sample, "bpe", 9)
    with refuses("tokenizer 'chars'", "did you mean 'char'?"):
        prepare(sample, "chars")
    with refuses("split 'vall'", "did you mean 'val'?"):
        prepare(sample).split("vall")


# ---- batches ----


def test_windows_depend_on_seed_and_step_alone():
    tokens = np.arange(60_000, dtype=np.uint16)
    x, y = windows(tokens, 8, 5, seed=3, step=7)
    assert x.shape == y.shape == (5, 8) and x.dtype == y.dtype == np.int64
    assert np.array_equal(y, x + 1) and (np.diff(x) == 1).all()
    windows(tokens, 8, 5, seed=3, step=6)
    assert np.array_equal(windows(tokens, 8, 5, seed=3, step=7)[0], x)
    firsts = {tuple(windows(tokens, 8, 5, seed=s, step=t)[0][:, 0]) for s in range(10) for t in range(10)}
    assert len(firsts) == 100, "another seed or step gives another batch"
    assert x[:, 0].tolist() == [11461, 48533, 25613, 2693, 39765], "what a seed means must never change"


def test_windows_reach_both_ends():
    starts = windows(np.arange(12), 4, 400, seed=0, step=0)[0][:, 0]
    assert set(starts) == set(range(8))
    assert windows(np.arange(5), 4, 3, seed=0, step=0)[1].tolist() == [[1, 2, 3, 4]] * 3


@given(n=st.integers(2, 60), context=st.integers(1, 9), batch=st.integers(1, 4))
def test_sweep_predicts_every_token_once(n, context, batch):
    tokens = np.arange(100, 100 + n, dtype=np.uint16)
    seen = []
    for x, y in sweep(tokens, context, batch):
        assert x.shape == y.shape and x.shape[1] == context and 0 < len(x) <= batch and x.dtype == y.dtype == np.int64
        real = y != NOTHING
        assert np.array_equal(x[real] + 1, y[real]) and (x[~real] == 0).all()
        seen += y[real].tolist()
    assert seen == tokens[1:].tolist()


def test_too_little_text():
    with refuses("the val split has 40 tokens", "context 64 needs 65", "--model.context 32", "larger --val-fraction"):
        windows(np.arange(40), 64, 2, 0, 0, split="val")
    with refuses("the train split has 33 tokens", "--model.context 32", "smaller --val-fraction"):
        windows(np.arange(33), 64, 2, 0, 0)
    for n in (0, 1):
        with refuses(f"the val split has {n} tokens", "use more text or a larger --val-fraction"):
            next(sweep(np.arange(n), 8, 2))
    with refuses("context of 0"):
        windows(np.arange(9), 0, 2, 0, 0)


@given(n=st.integers(20, 400), context=st.integers(1, 9), seed=st.integers(0, 5))
def test_an_epoch_reads_every_window_once(n, context, seed):
    """Nothing is read twice before everything was read once."""
    epoch = max(1, (n - context) // context)
    starts = np.concatenate([windows(np.arange(n), context, 1, seed, step)[0][:, 0] for step in range(epoch)])
    assert len(set(starts.tolist())) == epoch
    assert (np.diff(np.sort(starts)) == context).all()
