"""Pairs of texts from anywhere, and batches of like length made of them."""

import gzip
import itertools
import json
from pathlib import Path

import numpy as np
import pytest
from anyformer.data.text.batches import NOTHING

from anyformer.data.text import pair_batches as buckets
from anyformer.data.text import pairs
from data_kit import needs_data, refuses, write

PAIRS = [("go", "va"), ("a cat", "un chat"), ("the dog", "le chien"), ("a cat", "une chatte"), ("stop", "assez")] * 8


def table(path: Path, rows: list[tuple[str, ...]] = PAIRS) -> str:
    return str(write(path, "".join("\t".join(row) + "\n" for row in rows)))


def test_the_same_pairs_from_every_format(tmp_path: Path):
    table(tmp_path / "a.tsv", [(*pair, "more", "columns") for pair in PAIRS])
    write(tmp_path / "b.txt.gz", gzip.compress(Path(table(tmp_path / "c.txt")).read_bytes()))
    write(tmp_path / "d.jsonl", "".join(json.dumps({"source": a, "target": b, "id": 1}) + "\n\n" for a, b in PAIRS))
    write(tmp_path / "e.jsonl", "".join(json.dumps({"en": a, "fr": b}) + "\n" for a, b in PAIRS))
    write(tmp_path / "f.en", "\ufeff" + "\r\n".join(a for a, _ in PAIRS))
    write(tmp_path / "f.fr", "\n".join(f" {b} " for _, b in PAIRS) + "\n")
    names = ("a.tsv", "b.txt.gz", "c.txt", "d.jsonl", "e.jsonl")
    specs = [*(str(tmp_path / name) for name in names), f"{tmp_path / 'f.en'}, {tmp_path / 'f.fr'}"]
    found = [pairs.read(spec, 0.3) for spec in specs]
    assert all(one.parts == found[0].parts and one.sha256 == found[0].sha256 for one in found)
    assert sorted(found[0].parts["train"] + found[0].parts["val"]) == sorted(PAIRS)
    sides = [{source for source, _ in found[0].parts[part]} for part in ("train", "val")]
    assert sides[0] and sides[1] and not sides[0] & sides[1], "a sentence stands on one side only"
    back = pairs.read(specs[0], 0.3, True)
    assert back.parts["val"] == [(b, a) for a, b in found[0].parts["val"]] and back.sha256 != found[0].sha256


def test_a_folder_with_its_own_parts(tmp_path: Path):
    for name, text in {"train.de": "a\nb", "train.en": "c\nd", "dev.de": "e", "dev.en": "f", "test.en": "x"}.items():
        write(tmp_path / name, text)
    assert pairs.read(str(tmp_path)).parts == {"train": [("a", "c"), ("b", "d")], "val": [("e", "f")]}


@needs_data
def test_the_public_sets():
    found = pairs.read("multi30k").parts
    assert [len(found["train"]), len(found["val"])] == [29_000, 1_014]
    assert found["train"][0][1] == "Deux jeunes hommes blancs sont dehors près de buissons."
    assert sum(map(len, pairs.read("multi30k/test_2016_flickr").parts.values())) == 1_000
    assert sum(map(len, pairs.read("fra-eng").parts.values())) == 76_037
    with refuses("'multi30k/test_2016'", "no two files test_2016.*", "did you mean 'test_2016_flickr'"):
        pairs.read("multi30k/test_2016")


def test_reversed_strings():
    found = pairs.read("reverse").parts
    assert [len(found["train"]), len(found["val"])] == [50_000, 1_000]
    every = found["train"] + found["val"]
    assert all(a == b[::-1] for a, b in every) and len(set(every)) == len(every)
    assert {len(a) for a, _ in every} == set(range(5, 21)) and set("".join(a for a, _ in every)) == set("0123456789")


def test_pairs_with_a_missing_side(tmp_path: Path):
    path = table(tmp_path / "a.tsv", [*PAIRS, ("alone",), ("fine", "bien"), ("", "seul"), ("blank", "  ")])
    with refuses("3 pairs have a missing side", "first at", "a.tsv, line 41", "skip_missing"):
        pairs.read(path)
    found = pairs.read(path, skip_missing=True)
    assert found.skipped == 3 and sum(map(len, found.parts.values())) == 41
    line = write(
        tmp_path / "b.jsonl", '{"source": "a", "target": "b"}\n{"source": "a", "target": null}\n{"target": "b"}\n'
    )
    with refuses("2 pairs have a missing side", "line 2"):
        pairs.read(str(line))


def test_files_of_unequal_length(tmp_path: Path):
    one, two = write(tmp_path / "x.en", "a\nb\nc\n"), write(tmp_path / "x.fr", "a\nb\n")
    with refuses("x.en has 3 lines", "x.fr has 2"):
        pairs.read(f"{one},{two}")
    with refuses("names 3 files"):
        pairs.read(f"{one},{two},{two}")
    with refuses("there is no file", "none.fr"):
        pairs.read(f"{one},{tmp_path / 'none.fr'}")


@pytest.mark.parametrize(
    ("name", "content", "parts"),
    [
        ("a.tsv", b"a\tb\nc\t\xff\n", ["a.tsv, line 2", "0xFF is not UTF-8"]),
        ("a.tsv", b"", ["no pair is left for train"]),
        ("a.tsv", b"a\tb\n", ["no pair is left for"]),
        ("a.tsv", b"a\t" + b"b" * (1 << 20) + b"\n", ["a.tsv, line 1", "longer than 1 MiB"]),
        ("a.tsv.gz", b"no gzip", ["a.tsv.gz", "damaged gzip"]),
        ("a.csv", b"a,b", ["a.csv", "cannot be read as pairs", ".tsv"]),
        ("a.jsonl", b'{"source": 1, "target": "b"}\n', ["line 1", "has 'source', 'target'"]),
        ("a.jsonl", b'{"a": "1", "b": "2", "c": "3"}\n', ["line 1", "has 'a', 'b', 'c'", '"target"']),
        ("a.jsonl", b"[1]\n", ["line 1", "list"]),
        ("a.jsonl", b"{\n", ["line 1", "not JSON"]),
    ],
)
def test_files_that_are_no_pairs(name: str, content: bytes, parts: list[str], tmp_path: Path):
    with refuses(*parts):
        pairs.read(str(write(tmp_path / name, content)))


def test_data_that_are_not_there(tmp_path: Path):
    with refuses("'revers'", "did you mean 'reverse'"):
        pairs.read("revers")
    with refuses("none.tsv", "no such file"):
        pairs.read("none.tsv")
    write(tmp_path / "notes.md", "x")
    with refuses("no two files train.*"):
        pairs.read(str(tmp_path))


# --- batches ---


def known(n: int = 300, seed: int = 0) -> buckets.Coded:
    rng = np.random.default_rng(seed)
    rows = [[rng.integers(1, 9, rng.integers(1, 40)).astype(np.uint16) for _ in range(n)] for _ in range(2)]
    return buckets.Coded(buckets.Ragged.of(rows[0], 50), buckets.Ragged.of(rows[1], 50))


@pytest.mark.parametrize("room", [41, 100, 1000])
def test_an_epoch_reads_every_pair_once_and_no_batch_costs_more_than_its_room(room: int):
    coded = known()
    seen, steps = [], 0
    while len(seen) < len(coded):
        rows = buckets.drawn(coded, room, 7, steps)
        assert len(rows) * coded.widths[rows].max() <= room
        seen += rows.tolist()
        steps += 1
    assert sorted(seen) == list(range(len(coded)))
    again = [buckets.drawn(coded, room, 7, step).tolist() for step in range(steps, 2 * steps)]
    assert sorted(itertools.chain(*again)) == sorted(seen) and list(itertools.chain(*again)) != seen
    assert sorted(itertools.chain(*(rows.tolist() for rows in buckets.sweep(coded, room)))) == sorted(seen)


def test_little_is_padding():
    coded = known(2000)
    real = cost = 0
    for step in range(50):
        made = buckets.batch(coded, buckets.drawn(coded, 2000, 0, step), 1, 2, 2)
        longest = max(made["source"].shape[1], made["target"].shape[1])
        cost += made["source"].shape[0] * longest
        real += int(np.maximum(made["lengths"], (made["next"] != NOTHING).sum(1)).sum())
    assert real / cost > 0.95


def test_a_batch_begins_and_ends_each_side():
    rows = [np.array([5, 6, 7], np.uint16), np.array([8], np.uint16)]
    coded = buckets.Coded(buckets.Ragged.of(rows, 9), buckets.Ragged.of(rows[::-1], 9))
    made = buckets.batch(coded, np.array([0, 1]), 1, 2, 2)
    assert made["source"].tolist() == [[5, 6, 7, 2], [8, 2, 0, 0]] and made["lengths"].tolist() == [4, 2]
    assert made["target"].tolist() == [[1, 8, 0, 0], [1, 5, 6, 7]]
    assert made["next"].tolist() == [[8, 2, NOTHING, NOTHING], [5, 6, 7, 2]]
