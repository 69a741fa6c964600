"""Pairs of texts in every format, and batches of pairs of similar length."""

import gzip
import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from anyformer.data.text import pair_batches, pairs
from anyformer.data.text.batches import IGNORE_INDEX
from data_kit import needs_data, refuses, write

PAIRS = [("go", "va"), ("a cat", "un chat"), ("the dog", "le chien"), ("a cat", "une chatte"), ("stop", "assez")] * 8


def write_table(path: Path, rows: list[tuple[str, ...]] = PAIRS) -> str:
    return str(write(path, "".join("\t".join(row) + "\n" for row in rows)))


def test_the_same_pairs_from_every_format(tmp_path: Path):
    write_table(tmp_path / "a.tsv", [(*pair, "further", "columns") for pair in PAIRS])
    write(tmp_path / "b.txt.gz", gzip.compress(Path(write_table(tmp_path / "c.txt")).read_bytes()))
    write(tmp_path / "d.jsonl", "".join(json.dumps({"source": a, "target": b, "id": 1}) + "\n\n" for a, b in PAIRS))
    write(tmp_path / "e.jsonl", "".join(json.dumps({"en": a, "fr": b}) + "\n" for a, b in PAIRS))
    write(tmp_path / "f.en", "\ufeff" + "\r\n".join(a for a, _ in PAIRS))
    write(tmp_path / "f.fr", "\n".join(f" {b} " for _, b in PAIRS) + "\n")
    names = ("a.tsv", "b.txt.gz", "c.txt", "d.jsonl", "e.jsonl")
    specs = [*(str(tmp_path / name) for name in names), f"{tmp_path / 'f.en'}, {tmp_path / 'f.fr'}"]
    results = [pairs.read_pairs(spec, 0.3) for spec in specs]
    first = results[0]
    assert all(result.splits == first.splits and result.sha256 == first.sha256 for result in results)
    assert sorted(first.split("train") + first.split("val")) == sorted(first.split("all")) == sorted(PAIRS)
    sources = [{source for source, _ in first.split(name)} for name in ("train", "val")]
    assert all(sources) and not sources[0] & sources[1], "a sentence is in one split only"
    backwards = pairs.read_pairs(specs[0], 0.3, True)
    assert backwards.split("val") == [(b, a) for a, b in first.split("val")] and backwards.sha256 != first.sha256
    assert pairs.read_pairs(specs[-1], 0.3) is results[-1], "read once"
    write(tmp_path / "f.fr", "\n".join(b.upper() for _, b in PAIRS))
    assert pairs.read_pairs(specs[-1], 0.3).sha256 != first.sha256, "a file that has changed is read again"


def test_a_folder_with_its_own_splits(tmp_path: Path):
    for name, text in {"train.de": "a\nb", "train.en": "c\nd", "dev.de": "e", "dev.en": "f", "test.en": "x"}.items():
        write(tmp_path / name, text)
    assert pairs.read_pairs(str(tmp_path)).splits == {"train": [("a", "c"), ("b", "d")], "val": [("e", "f")]}


def test_sides_are_found_in_names(tmp_path: Path):
    for stem, words in {"train": "ab", "val": "c"}.items():
        (tmp_path / f"tgt-{stem}.txt").write_text("".join(f"{word.upper()}\n" for word in words))
        (tmp_path / f"src-{stem}.txt").write_text("".join(f"{word}\n" for word in words))
    assert pairs.read_pairs(str(tmp_path)).splits == {"train": [("a", "A"), ("b", "B")], "val": [("c", "C")]}
    names = ["train.en", "test_2016.de.gz", "src.valid", "wiki-target-2.txt", "train.clean"]
    sides = [("train", "en"), ("test_2016", "de"), ("valid", "src"), ("wiki-2", "target"), ("train", "clean")]
    assert [pairs.split_side(name) for name in names] == sides


def test_quotation_marks_of_texts_in_any_line(tmp_path: Path):
    lines = [f"{i}\tword {i}\t{i}\tWort {i}\n" for i in range(300)] + [
        '300\t"open\t300\toffen\n',
        "301\tno\t301\tnein\n",
    ]
    (tmp_path / "links.tsv").write_text("".join(lines))
    read = pairs.read_pairs(str(tmp_path / "links.tsv"), columns="2,4").split("all")
    assert len(read) == 302 and ('"open', "offen") in read and ("no", "nein") in read


@needs_data
def test_the_public_sets():
    multi30k = pairs.read_pairs("multi30k")
    assert [len(multi30k.split("train")), len(multi30k.split("val"))] == [29_000, 1_014]
    assert multi30k.split("train")[0][1] == "Deux jeunes hommes blancs sont dehors près de buissons."
    assert len(pairs.read_pairs("multi30k/test_2016_flickr").split("all")) == 1_000
    assert len(pairs.read_pairs("fra-eng").split("all")) == 76_037
    with refuses("'multi30k/test_2016'", "no two files test_2016.*", "did you mean 'test_2016_flickr'"):
        pairs.read_pairs("multi30k/test_2016")


def test_reversed_strings():
    data = pairs.read_pairs("reverse")
    assert [len(data.split("train")), len(data.split("val"))] == [50_000, 1_000]
    every = data.split("all")
    assert all(a == b[::-1] for a, b in every) and len(set(every)) == len(every)
    assert {len(a) for a, _ in every} == set(range(5, 21)) and set("".join(a for a, _ in every)) == set("0123456789")


def test_pairs_with_a_missing_side(tmp_path: Path):
    path = write_table(tmp_path / "a.tsv", [*PAIRS, ("alone",), ("fine", "bien"), ("", "seul"), ("blank", "  ")])
    with refuses("3 of 44 pairs have an empty side", "the first", "a.tsv, line 41", "--empty skip"):
        pairs.read_pairs(path)
    data = pairs.read_pairs(path, empty="skip")
    assert data.skipped == 3 and len(data.split("all")) == 41
    line = write(
        tmp_path / "b.jsonl", '{"source": "a", "target": "b"}\n{"source": "a", "target": null}\n{"target": "b"}\n'
    )
    with refuses("2 of 3 pairs have an empty side", "line 2"):
        pairs.read_pairs(str(line))


def test_files_of_unequal_length(tmp_path: Path):
    en, fr = write(tmp_path / "x.en", "a\nb\nc\n"), write(tmp_path / "x.fr", "a\nb\n")
    with refuses("x.en has 3 lines", "x.fr has 2"):
        pairs.read_pairs(f"{en},{fr}")
    with refuses("names 3 files"):
        pairs.read_pairs(f"{en},{fr},{fr}")
    with refuses("there is no file", "none.fr"):
        pairs.read_pairs(f"{en},{tmp_path / 'none.fr'}")


@pytest.mark.parametrize(
    ("name", "content", "parts"),
    [
        ("a.tsv", b"a\tb\nc\t\xff\n", ["a.tsv, line 2", "0xFF is not UTF-8"]),
        ("a.tsv", b"", ["no pair is left for train"]),
        ("a.tsv", b"a\tb\n", ["no pair is left for"]),
        ("a.tsv", b"a\t" + b"b" * (1 << 20) + b"\n", ["a.tsv, line 1", "longer than 1 MiB"]),
        ("a.tsv.gz", b"no gzip", ["a.tsv.gz", "damaged gzip"]),
        ("a.doc", b"a,b", ["a.doc", "cannot be read as pairs", ".tsv"]),
        ("a.csv", b"a,b", ["no pair is left for train"]),
        ("a.jsonl", b'{"source": 1, "target": "b"}\n', ["line 1", "has 'source', 'target'"]),
        ("a.jsonl", b'{"a": "1", "b": "2", "c": "3"}\n', ["line 1", "has 'a', 'b', 'c'", '"target"']),
        ("a.jsonl", b"[1]\n", ["line 1", "list"]),
        ("a.jsonl", b"{\n", ["line 1", "not JSON"]),
    ],
)
def test_files_that_hold_no_pairs(name: str, content: bytes, parts: list[str], tmp_path: Path):
    with refuses(*parts):
        pairs.read_pairs(str(write(tmp_path / name, content)))


def test_missing_data(tmp_path: Path):
    with refuses("'revers'", "did you mean 'reverse'"):
        pairs.read_pairs("revers")
    with refuses("none.tsv", "no such file"):
        pairs.read_pairs("none.tsv")
    write(tmp_path / "notes.md", "x")
    with refuses("no two files train.*"):
        pairs.read_pairs(str(tmp_path))


# --- batches ---


def random_pairs(n: int, seed: int = 0) -> pair_batches.EncodedPairs:
    rng = np.random.default_rng(seed)
    rows = [[rng.integers(1, 9, rng.integers(1, 40)).astype(np.uint16) for _ in range(n)] for _ in range(2)]
    return pair_batches.EncodedPairs(*rows)


@pytest.mark.slow
@given(max_cost=st.integers(1, 1000), seed=st.integers(0, 3))
def test_an_epoch_visits_every_pair_once_at_a_bounded_cost(max_cost: int, seed: int):
    encoded = random_pairs(40)
    n_batches = len(list(pair_batches.eval_indices(encoded, max_cost)))
    epochs = []
    for epoch in range(2):
        steps = range(epoch * n_batches, (epoch + 1) * n_batches)
        batches = [pair_batches.sample_indices(encoded, max_cost, seed, step) for step in steps]
        assert all(len(rows) * encoded.widths[rows].max() <= max_cost or len(rows) == 1 for rows in batches)
        epochs.append(np.concatenate(batches).tolist())
    everything = list(range(len(encoded)))
    assert sorted(epochs[0]) == sorted(epochs[1]) == everything and (epochs[0] != epochs[1] or n_batches == 1)
    assert sorted(np.concatenate(list(pair_batches.eval_indices(encoded, max_cost)))) == everything


def test_there_is_little_padding():
    encoded = random_pairs(2000)
    real = cost = 0
    for step in range(50):
        batch = pair_batches.collate(
            encoded, pair_batches.sample_indices(encoded, 2000, 0, step), 1, 2, lambda ids: [*ids, 2]
        )
        cost += len(batch["source"]) * max(batch["source"].shape[1], batch["target"].shape[1])
        real += int(np.maximum(batch["lengths"], (batch["labels"] != IGNORE_INDEX).sum(1)).sum())
    assert real / cost > 0.95


def test_a_batch_has_start_and_end_tokens():
    rows = [np.array([5, 6, 7], np.uint16), np.array([8], np.uint16)]
    encoded = pair_batches.EncodedPairs(rows, rows[::-1])
    batch = pair_batches.collate(encoded, np.array([0, 1]), 1, 2, lambda ids: [*ids, 2])
    assert batch["source"].tolist() == [[5, 6, 7, 2], [8, 2, 0, 0]] and batch["lengths"].tolist() == [4, 2]
    assert batch["target"].tolist() == [[1, 8, 0, 0], [1, 5, 6, 7]]
    assert batch["labels"].tolist() == [[8, 2, IGNORE_INDEX, IGNORE_INDEX], [5, 6, 7, 2]]
