"""Several sources of text: how they are written, which row is of which source, one tokenizer, validation rows."""

import json
import os
from collections import Counter
from decimal import Decimal
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from anyformer.data.io.sources import (
    SourceName,
    combine_sources,
    describe_data,
    join_sources,
    make_absolute,
    shorten_names,
    split_sources,
)
from anyformer.data.text import mixtures
from anyformer.data.text.batches import IGNORE_INDEX, train_windows
from anyformer.data.text.mixtures import ROW_BLOCK, Mixture, Source, find_place, mix_texts, prepare_mixture
from anyformer.data.text.prepare import Corpus, prepare_corpus
from anyformer.data.text.read import RowOptions
from anyformer.data.tokenizers.base import Bytes
from data_kit import ANY_TEXT, refuses, write

URL = "https://example.org/a.csv"


def name_sources(*pairs: tuple[str, Any]) -> list[SourceName]:
    return [SourceName(str(name), Decimal(str(weight))) for name, weight in pairs]


def make_source(start: int, size: int, weight: int, n_val: int = 20) -> Source:
    """Return a source whose tokens are numbers from `start` on."""
    tokens: Any = np.arange(start, start + size + n_val)
    meta = {"sha256": str(start), "n_documents": 1}
    return Source(Corpus(tokens, Bytes(), size, "", meta), weight, f"from_{start}")


# --- how sources are written ---


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a.txt:3 b.txt", [("a.txt", "3"), ("b.txt", "1")]),
        ("a.txt:.5 'b c.txt':1e-2", [("a.txt", "0.5"), ("b c.txt", "0.01")]),
        ("plays shakespeare:2", [("plays", "1"), ("shakespeare", "2")]),
        (f"owner/name@v1.0/folder:3 {URL}", [("owner/name@v1.0/folder", "3"), (URL, "1")]),
        ("a.txt", [("a.txt", "1")]),
        ("train.en,train.de", [("train.en,train.de", "1")]),
        ("no file at all", [("no file at all", "1")]),
        ("it's", [("it's", "1")]),
        ("", [("", "1")]),
    ],
)  # fmt: skip
def test_a_mixture_is_written_as_in_a_shell(text: str, expected: list[tuple[str, str]]):
    assert split_sources(text) == name_sources(*expected)
    assert split_sources(join_sources(split_sources(text))) == split_sources(text)


@given(st.lists(st.tuples(ANY_TEXT.filter(len), st.decimals("0.000001", 1000)), min_size=2))
def test_what_is_joined_is_read_back(pairs: list[tuple[str, Decimal]]):
    sources = [SourceName(name, weight) for name, weight in pairs]
    assert split_sources(join_sources(sources)) == sources


def test_a_path_that_exists_is_one_source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    for name in ("a:3", "a.txt b.txt:2", "a", "b", "a,b c:2"):
        write(tmp_path / name, "x")
        assert split_sources(name) == name_sources((name, 1))
    for name in ("my", "my data/a.en", "my data/a.de"):
        write(tmp_path / name, "x")
    assert split_sources("my data/a.en,my data/a.de") == name_sources(("my data/a.en,my data/a.de", 1))
    assert combine_sources(["a:3"]) == "a:3" and combine_sources(["a:3", "b:2"]) == "a:3:1 b:2"
    absolute = make_absolute("a:3 b:2")
    assert absolute == f"{tmp_path}/a:3:1 {tmp_path}/b:2" == make_absolute(absolute)
    assert split_sources(absolute) == name_sources((tmp_path / "a:3", 1), (tmp_path / "b", 2))
    assert describe_data(absolute) == "a:3:1 b:2"
    with refuses("data './b' is named twice: give it once, with the weight 5"):
        make_absolute("b:2 ./b:3")


@pytest.mark.parametrize("weight", ["0", "-1", "nan", "inf", "-inf", "1e99", "0.0000001", "+0.0"])
def test_a_weight_is_a_number_above_zero(weight: str):
    with refuses(f"data 'a.txt' has the weight {weight}; it must be a number from 0.000001 to 1,000,000"):
        split_sources(f"a.txt:{weight} b.txt")


def test_names_are_short_and_unique():
    names = ["/x/a.jsonl.gz", "/y/a.txt", "b c.txt", "/z/a_2.txt", "/", "夏.txt", "x" * 99]
    expected = ["a", "a_2", "b_c", "a_2_2", "source", "source_2", "x" * 24]
    assert shorten_names(name_sources(*((name, 1) for name in names))) == expected


# --- which row is of which source ---


@pytest.mark.parametrize("weights", [[3, 1], [1, 1, 1], [1, 10**9], [5], [999_999, 1, 2 * 10**6]])
def test_shares_are_exact_and_every_window_is_visited(weights: list[int]):
    places = [find_place(weights, row, seed=7) for row in range(3 * ROW_BLOCK)]
    counts = Counter(number for number, _ in places)
    for number, weight in enumerate(weights):
        assert sorted(index for owner, index in places if owner == number) == list(range(counts[number]))
        assert abs(counts[number] - len(places) * weight / sum(weights)) < len(weights)
    text = Mixture(tuple(make_source(100 * i, 50, weight) for i, weight in enumerate(weights)))
    for n in (0, 1, 777, ROW_BLOCK, 2 * ROW_BLOCK + 5):
        assert text.count_rows(n, seed=7) == [sum(owner == i for owner, _ in places[:n]) for i in range(len(weights))]


def test_each_row_is_drawn_by_the_weights():
    """The source of any one row is random: over many seeds each has its share of it."""
    for row in (0, 31, ROW_BLOCK + 1):
        counts = Counter(find_place([3, 1], row, seed)[0] for seed in range(400))
        assert abs(counts[0] - 300) < 5 * (400 * 3 / 16) ** 0.5
    batches = [[find_place([3, 1], row, seed=1)[0] for row in range(32 * step, 32 * step + 32)] for step in range(64)]
    assert len({sum(batch) for batch in batches}) > 5, "batches differ in how many rows they have of a source"


def test_a_batch_depends_on_seed_and_step_alone():
    text = Mixture((make_source(0, 800, 3), make_source(10_000, 500, 1)))
    batches = [text.train_windows(8, 16, seed=3, step=step) for step in range(40)]
    for ids, labels in batches:
        assert ids.dtype == labels.dtype == np.int64 and (ids[:, 1:] == labels[:, :-1]).all()
        assert not ((ids >= 800) & (ids < 10_000)).any() and ids.max() < 10_500, "no token of a validation split"
    assert np.array_equal(text.train_windows(8, 16, seed=3, step=23)[0], batches[23][0])
    assert not np.array_equal(text.train_windows(8, 16, seed=4, step=23)[0], batches[23][0])
    starts = Counter((ids[:, 0] // 8).tolist()[i] for ids, _ in batches for i in range(16) if ids[i, 0] < 10_000)
    assert len(starts) >= 99, "an epoch of the first source visits all of its windows"


def test_a_single_source_is_read_as_ever():
    source = make_source(0, 800, 1)
    single, tokens = Mixture((Source(source.corpus),)), source.corpus.split("train")
    for step in range(3):
        assert all(map(np.array_equal, single.train_windows(8, 4, 5, step), train_windows(tokens, 8, 4, 5, step)))
    assert single.sha256 == "0" and single.stream_values == {}
    mixed = [Mixture((source, make_source(9, 9, weight))) for weight in (1, 2)]
    assert len({single.sha256, *(text.sha256 for text in mixed)}) == 3, "weights are part of what a run belongs to"


def test_validation_reads_every_token_once_and_all_sources_in_any_part():
    text = Mixture((make_source(0, 10, 1, 300), make_source(1000, 10, 9, 100), make_source(2000, 10, 1, 9)))
    for batch in (2, 6, 64):
        passes = list(text.eval_windows("val", 8, batch))
        labels = np.concatenate([labels[labels != IGNORE_INDEX] for _, _, labels in passes])
        assert sorted(labels) == [*range(11, 310), *range(1011, 1110), *range(2011, 2019)]
        for owners, ids, _ in passes:
            assert (np.diff(owners) >= 0).all() and (ids[:, 0] // 1000 == owners).all() and len(owners) <= batch
    for part in (slice(0, 6), slice(0, 12, 2), slice(1, 12, 2)):
        owners = [owners for owners, _, _ in islice(text.eval_windows("val", 8, 2), part.start, part.stop, part.step)]
        assert {0, 1} <= set(np.concatenate(owners).tolist())


def test_a_source_that_is_too_short_is_named_at_once():
    text = Mixture((make_source(0, 10**4, 10**6), make_source(1000, 20, 1, 1)))
    with refuses("source 'from_1000': the train split has 20 tokens but a window of context 32 needs 33"):
        text.train_windows(32, 1, 0, 0)
    with refuses("source 'from_1000': the val split has 1 tokens"):
        next(text.eval_windows("val", 8, 1))


# --- one tokenizer ---


def test_texts_are_mixed_by_their_weights():
    texts = {"a": ["a" * 10] * 300, "b": ["b" * 10] * 30}
    make_texts = [lambda name=name: iter(texts[name]) for name in texts]
    for weights, limit, expected in [
        ([1, 1], 10**6, (1650, 1650)),
        ([3, 1], 10**6, (2475, 825)),
        ([1, 1], 100, (50, 50)),
    ]:
        counts = Counter("".join(mix_texts(make_texts, weights, limit)))
        assert np.allclose((counts["a"], counts["b"]), expected, atol=10)


@pytest.mark.parametrize("kind", ["char", "bpe", "byte"])
def test_one_tokenizer_is_learned_from_all_sources(tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("ANYFORMER_CACHE", str(tmp_path / "cache"))
    a = write(tmp_path / "a.jsonl", "".join(json.dumps({"text": f"lower {i}"}) + "\n" for i in range(50)))
    b = write(tmp_path / "b.txt", "déjà-vu " * 50)
    options = (kind, 300, 0.1, RowOptions())
    text = prepare_mixture(name_sources((a, 3), (b, 1)), *options)
    assert [source.name for source in text.sources] == ["a", "b"] and text.weights == [3, 1]
    for source, path in zip(text.sources, (a, b)):
        alone = prepare_corpus(str(path), str(write(tmp_path / "t.json", text.tokenizer.to_json())))
        assert np.array_equal(source.corpus.split("all"), alone.split("all"))
        assert source.corpus.tokenizer.to_json() == text.tokenizer.to_json()
    assert text.tokenizer.decode(text.sources[1].corpus.split("all")) == "déjà-vu " * 50
    before = {path: os.stat(path).st_mtime_ns for path in (tmp_path / "cache").rglob("*.*")}
    again = prepare_mixture(name_sources((a, "0.75"), (b, "0.25")), *options)
    assert again.sha256 == text.sha256, "0.75 and 0.25 are 3 and 1"
    assert before == {path: os.stat(path).st_mtime_ns for path in (tmp_path / "cache").rglob("*.*")}, "built once"


def test_the_weights_decide_what_a_bpe_learns(tmp_path: Path):
    a, b = write(tmp_path / "a.txt", "abab " * 400), write(tmp_path / "b.txt", "cdcd " * 400)
    learned = []
    for weights in ((9, 1), (1, 9)):
        text = prepare_mixture(name_sources((a, weights[0]), (b, weights[1])), "bpe", 259, 0.1, RowOptions())
        learned.append([text.tokenizer.token_to_id(pair) is not None for pair in ("ab", "cd")])
    assert learned == [[True, False], [False, True]]


def test_each_source_may_have_its_own_columns(tmp_path: Path):
    a = write(tmp_path / "a.jsonl", json.dumps({"text": "ab" * 20}) + "\n")
    b = write(tmp_path / "b.jsonl", json.dumps({"content": "ba" * 20}) + "\n")
    sources = name_sources((a, 1), (b, 1))
    text = prepare_mixture(sources, "byte", 0, 0.1, RowOptions("text content"))
    assert [bytes(source.corpus.split("all").tolist()) for source in text.sources] == [b"ab" * 20, b"ba" * 20]
    with refuses("no field 'text'"):
        prepare_mixture(sources, "byte", 0, 0.1, RowOptions("text"))
    assert mixtures.divide_columns("it's", 2) == ["it's", "it's"]
