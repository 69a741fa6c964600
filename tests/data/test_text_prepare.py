"""Documents to tokens, prepared once; tokens to batches; documents kept apart."""

import json
import multiprocessing
import os
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from anyformer.data.io import cache as io_cache
from anyformer.data.text import prepare as module
from anyformer.data.text.batches import IGNORE_INDEX, eval_windows, segment, train_windows
from anyformer.data.text.prepare import prepare_corpus
from anyformer.data.tokenizers import build as tok
from anyformer.data.tokenizers.masked_tokenizer import MaskedTokenizer
from anyformer.events import listen
from data_kit import SAMPLE, needs_data, refuses, write


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Give every test its own cache."""
    folder = tmp_path / "cache"
    monkeypatch.setenv("ANYFORMER_CACHE", str(folder))
    return folder


@pytest.fixture
def sample(tmp_path: Path) -> str:
    return str(write(tmp_path / "sample.txt", SAMPLE))


def record_builds(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Return a list to which every folder that is built from now on is added."""
    folders, build = [], module._build
    monkeypatch.setattr(module, "_build", lambda f, t, new, sha: (folders.append(new), build(f, t, new, sha)))
    return folders


@needs_data
def test_tiny_shakespeare_as_nanogpt_splits_it():
    corpus = prepare_corpus("shakespeare")
    assert [len(corpus.split(part)) for part in ("train", "val", "all")] == [1003854, 111540, 1115394]
    assert corpus.tokenizer.vocab_size == 66 and corpus.meta["n_bytes"] == 1115394 and corpus.meta["n_documents"] == 1
    text = (Path(os.environ["ANYFORMER_DATA"]) / "shakespeare.txt").read_text("utf-8")
    ids = {c: i for i, c in enumerate(sorted(set(text)))}
    assert corpus.tokens.tolist() == [ids[c] for c in text] and corpus.tokenizer.decode(corpus.tokens) == text


@pytest.mark.parametrize("spec", ["char", "byte", "bpe"])
def test_data_are_prepared_once(sample, spec, monkeypatch, cache):
    folders, reports = record_builds(monkeypatch), []
    with listen(lambda *report: reports.append(report)):
        first = prepare_corpus(sample, spec, 300)
    second = prepare_corpus(sample, spec, 300)
    assert len(folders) == 1 and first.hash == second.hash and type(second.tokenizer) is type(first.tokenizer)
    assert np.array_equal(first.tokens, second.tokens) and first.tokenizer.decode(second.tokens) == SAMPLE
    assert first.meta["n_bytes"] == len(SAMPLE.encode()) == first.tokenizer.count_bytes(first.tokens)
    assert {what for what, _, _ in reports} == {"checking", "encoding"} | ({"reading"} if spec != "byte" else set())
    assert all(0 < done <= total == len(SAMPLE.encode()) for _, done, total in reports)
    assert [p.name for p in (cache / "tokens").iterdir()] == [first.hash], "no temporary folder may stay"


def test_the_hash_depends_on_exactly_what_the_tokens_depend_on(tmp_path, sample):
    folder = tmp_path / "d"
    write(folder / "a.txt", "ab")
    write(folder / "b.txt", "c")
    runs = [prepare_corpus(sample, s, v) for s, v in [("char", 0), ("byte", 0), ("bpe", 300), ("bpe", 301)]]
    runs.append(prepare_corpus(str(folder), "byte"))
    write(folder / "a.txt", "a")
    write(folder / "b.txt", "bc")
    runs.append(prepare_corpus(str(folder), "byte"))
    runs.append(prepare_corpus(str(write(tmp_path / "x.txt", '{"text": "a"}\n')), "byte"))
    runs.append(prepare_corpus(str(write(tmp_path / "x.jsonl", '{"text": "a"}\n')), "byte"))
    assert len({run.hash for run in runs}) == len(runs)
    assert len({run.meta["sha256"] for run in runs}) == len(runs) - 3, "that is of the data alone"
    assert prepare_corpus(sample, "byte", 7, 0.5).hash == runs[1].hash, "not on the split or an unused size"
    assert prepare_corpus(str(write(tmp_path / "other.txt", SAMPLE)), "byte").hash == runs[1].hash, "not on the name"


@pytest.mark.parametrize("spec", ["char", "byte", "bpe"])
def test_documents_are_separated(tmp_path, spec):
    path = write(tmp_path / "a.jsonl", "\n".join(json.dumps({"text": t}) for t in ["ab", "", "夏", "ba"]))
    corpus = prepare_corpus(str(path), spec, 257)
    encode, separator = corpus.tokenizer.encode, corpus.separator
    assert corpus.tokens.tolist() == [*encode("ab"), separator, *encode("夏"), separator, *encode("ba")]
    assert corpus.n_documents == 3 and corpus.tokenizer.count_bytes(corpus.tokens) == corpus.meta["n_bytes"] == 7


def test_a_document_in_many_pieces_has_no_separator(sample, monkeypatch):
    monkeypatch.setattr(module, "BLOCK", 50)
    corpus = prepare_corpus(sample, "byte")
    assert corpus.tokens.tolist() == list(SAMPLE.encode()) and corpus.n_documents == 1


def test_large_ids(tmp_path, sample):
    tokenizer = tok.Characters([*(chr(i) for i in range(0x10000, 0x20000)), *sorted(set(SAMPLE))])
    tokenizer.save(tmp_path / "t.json")
    corpus = prepare_corpus(sample, str(tmp_path / "t.json"))
    assert corpus.meta["dtype"] == "<u4" and tokenizer.decode(corpus.tokens) == SAMPLE


@given(n=st.integers(1, 200), percent=st.integers(0, 99))
def test_split(tmp_path_factory, n, percent):
    path = write(tmp_path_factory.getbasetemp() / f"{n}.txt", bytes(range(n)))
    corpus = prepare_corpus(str(path), "byte", val_fraction=percent / 100)
    assert len(corpus.split("train")) == n * (100 - percent) // 100
    assert np.array_equal(np.concatenate([corpus.split("train"), corpus.split("val")]), corpus.split("all"))


def test_an_existing_tokenizer(tmp_path, sample):
    first = prepare_corpus(sample, "bpe", 300)
    first.tokenizer.save(tmp_path / "t.json")
    other = str(write(tmp_path / "b.txt", "winter"))
    corpus = prepare_corpus(other, str(tmp_path / "t.json"))
    assert corpus.tokens.tolist() == first.tokenizer.encode("winter").tolist()
    tok.Characters("winer").save(tmp_path / "t.json")
    with refuses("b.txt, byte 0: the vocabulary of", "'t'"):
        prepare_corpus(other, str(tmp_path / "t.json"))


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
    good = prepare_corpus(sample)
    damage(cache / "tokens" / good.hash, how)
    folders = record_builds(monkeypatch)
    assert prepare_corpus(sample).tokens.tolist() == good.tokenizer.encode(SAMPLE).tolist() and len(folders) == 1
    assert [p.name for p in (cache / "tokens").iterdir()] == [good.hash]


def test_a_killed_process_leaves_nothing_that_is_used(sample, cache, monkeypatch):
    def kill(files, tokenizer, folder, sha256):
        write(folder / "tokens.bin", b"half")
        os._exit(9)

    with monkeypatch.context() as patch:
        patch.setattr(module, "_build", kill)
        child = multiprocessing.get_context("fork").Process(target=prepare_corpus, args=(sample,))
        child.start()
        child.join()
    (left,) = (cache / "tokens").iterdir()
    assert child.exitcode == 9 and left.name.startswith(".new-")
    assert len(prepare_corpus(sample).tokens) == len(SAMPLE) and left.exists(), "its process may still be at work"
    for path in (left / "tokens.bin", left):
        os.utime(path, (0, time.time() - 2 * io_cache.STALE_SECONDS))
    prepare_corpus(sample, "byte")
    assert not left.exists()


def test_two_processes_that_prepare_the_same_data(sample, cache, monkeypatch):
    """The slower one uses the result of the faster one."""
    build, faster = module._build, []

    def build_slowly(files, tokenizer, folder, sha256):
        monkeypatch.setattr(module, "_build", build)
        faster.append(prepare_corpus(sample))
        build(files, tokenizer, folder, sha256)

    monkeypatch.setattr(module, "_build", build_slowly)
    assert np.array_equal(prepare_corpus(sample).tokens, faster[0].tokens)
    assert [p.name for p in (cache / "tokens").iterdir()] == [faster[0].hash]


def test_data_that_change_while_they_are_read(sample, cache, monkeypatch):
    build = module._build
    monkeypatch.setattr(module, "_build", lambda *args: (write(Path(sample), SAMPLE + "!"), build(*args)))
    with refuses("sample.txt' changed while it was read"):
        prepare_corpus(sample, "byte")
    assert list((cache / "tokens").iterdir()) == []


def test_bad_arguments(sample):
    with refuses("vocabulary of 9 is too small", "257"):
        prepare_corpus(sample, "bpe", 9)
    with refuses("tokenizer 'chars'", "did you mean 'char'?"):
        prepare_corpus(sample, "chars")
    with refuses("split 'vall'", "did you mean 'val'?"):
        prepare_corpus(sample).split("vall")


# ---- batches ----


def test_train_windows_depend_on_seed_and_step_alone():
    tokens = np.arange(60_000, dtype=np.uint16)
    ids, labels = train_windows(tokens, 8, 5, seed=3, step=7)
    assert ids.shape == labels.shape == (5, 8) and ids.dtype == labels.dtype == np.int64
    assert np.array_equal(labels, ids + 1) and (np.diff(ids) == 1).all()
    train_windows(tokens, 8, 5, seed=3, step=6)
    assert np.array_equal(train_windows(tokens, 8, 5, seed=3, step=7)[0], ids)
    firsts = {tuple(train_windows(tokens, 8, 5, seed=s, step=t)[0][:, 0]) for s in range(10) for t in range(10)}
    assert len(firsts) == 100, "another seed or step gives another batch"
    assert ids[:, 0].tolist() == [11461, 48533, 25613, 2693, 39765], "what a seed means must never change"


def test_train_windows_reach_both_ends():
    starts = train_windows(np.arange(12), 4, 400, seed=0, step=0)[0][:, 0]
    assert set(starts) == set(range(8))
    assert train_windows(np.arange(5), 4, 3, seed=0, step=0)[1].tolist() == [[1, 2, 3, 4]] * 3


@given(n=st.integers(20, 400), context=st.integers(1, 9), seed=st.integers(0, 5))
def test_an_epoch_visits_every_window_once(n, context, seed):
    epoch = max(1, (n - context) // context)
    starts = np.concatenate([train_windows(np.arange(n), context, 1, seed, step)[0][:, 0] for step in range(epoch)])
    assert len(set(starts.tolist())) == epoch
    assert (np.diff(np.sort(starts)) == context).all()


@given(n=st.integers(2, 60), context=st.integers(1, 9), batch=st.integers(1, 4))
def test_evaluation_predicts_every_token_once(n, context, batch):
    tokens, predicted = np.arange(100, 100 + n, dtype=np.uint16), []
    for ids, labels in eval_windows(tokens, context, batch):
        assert ids.shape == labels.shape and ids.shape[1] == context and 0 < len(ids) <= batch
        assert ids.dtype == labels.dtype == np.int64
        is_label = labels != IGNORE_INDEX
        assert np.array_equal(ids[is_label] + 1, labels[is_label]) and (ids[~is_label] == 0).all()
        predicted += labels[is_label].tolist()
    assert predicted == tokens[1:].tolist()


def test_too_little_text():
    with refuses("the val split has 40 tokens", "context 64 needs 65", "--model.context 32", "larger --val-fraction"):
        train_windows(np.arange(40), 64, 2, 0, 0, split="val")
    with refuses("the train split has 33 tokens", "--model.context 32", "smaller --val-fraction"):
        train_windows(np.arange(33), 64, 2, 0, 0)
    for n in (0, 1):
        with refuses(f"the val split has {n} tokens", "use more text or a larger --val-fraction"):
            next(eval_windows(np.arange(n), 8, 2))
    with refuses("context of 0"):
        train_windows(np.arange(9), 0, 2, 0, 0)


# ---- documents kept apart ----


@given(st.lists(st.lists(st.integers(0, 3), min_size=1, max_size=9), min_size=1, max_size=3), st.integers(0, 3))
def test_segments_restart_at_every_separator(rows, separator):
    width = max(map(len, rows))
    ids = np.array([row + [0] * (width - len(row)) for row in rows])
    document, positions = segment(ids, separator)
    for row, documents, places in zip(ids, document, positions):
        number = position = 0
        for i, token in enumerate(row):
            is_start = i > 0 and token == separator
            number, position = number + is_start, 0 if is_start else position + (i > 0)
            assert (documents[i], places[i]) == (number, position)
    everything, index = segment(ids, None)
    assert not everything.any() and (index == np.arange(width)).all()


def test_segments_of_a_prepared_corpus(tmp_path):
    """A separator starts the document that follows it, so that each label is predicted from its own document."""
    texts = ["ab", "c", "abc"]
    corpus = prepare_corpus(str(write(tmp_path / "a.jsonl", "\n".join(json.dumps({"text": t}) for t in texts))))
    ((ids, labels),) = eval_windows(corpus.tokens, 8, 1)
    document, positions = segment(ids, corpus.separator)
    assert ids.tolist() == [[0, 1, 3, 2, 3, 0, 1, 0]] and labels.tolist() == [[1, 3, 2, 3, 0, 1, 2, IGNORE_INDEX]]
    assert document.tolist() == [[0, 0, 1, 1, 2, 2, 2, 2]] and positions.tolist() == [[0, 1, 0, 1, 0, 1, 2, 3]]


def test_segments_of_rows_with_special_tokens():
    """[CLS] belongs to the first document, [SEP] to the last, padding to none that is read."""
    tokenizer = MaskedTokenizer(tok.Characters("abc"), prefix_ids=(7,), suffix_ids=(8, 9))
    windows, lengths = np.array([[0, 3, 1, 3, 2], [3, 1, 0, 0, 0]]), np.array([5, 2])
    ids, _, _ = tokenizer.wrap_rows(windows, lengths)
    document, positions = tokenizer.segment_rows(windows, lengths)
    assert ids.tolist() == [[7, 0, 3, 1, 3, 2, 8, 9], [7, 3, 1, 8, 9, 0, 0, 0]]
    assert document.tolist() == [[0, 0, 1, 1, 2, 2, 2, 2], [0] * 8]
    assert positions.tolist() == [[0, 1, 0, 1, 0, 1, 2, 3], list(range(8))]
