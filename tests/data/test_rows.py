"""Rows from Python as data: stored once as JSON lines, and what are no rows."""

import json
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import anyformer
from anyformer.data.io.cache import cache_dir
from anyformer.data.io.remote import fetch_data
from anyformer.data.io.rows import store_rows
from data_kit import refuses, write

TRAIN: dict[str, Any] = {"progress": False, "device": "cpu", "dtype": "float32", "train": {"eval_every": 4, "batch": 2}}
TEXTS = [f"the cat sat on mat number {i}\n" for i in range(60)]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ANYFORMER_CACHE", str(tmp_path / "cache"))


class Table:
    """Has rows as `datasets.Dataset` has them: they are read by iterating, again and again."""

    def __init__(self, rows: list[dict[str, Any]]):
        self.rows, self.n_passes = rows, 0

    def __len__(self) -> int:
        return len(self.rows)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        self.n_passes += 1
        return iter(self.rows)


def test_rows_are_stored_under_the_hash_of_their_content():
    rows = [{"text": text} for text in TEXTS]
    table = Table(rows)
    path = store_rows(table)
    assert [json.loads(line) for line in path.read_text().splitlines()] == rows and table.n_passes == 1
    assert {store_rows(iter(rows)), store_rows(TEXTS), store_rows(np.array(TEXTS))} == {path}
    assert store_rows(rows[:-1]) != path
    assert [p.name for p in path.parent.parent.glob("*")] and not list(path.parent.parent.glob(".new-*"))
    path.write_text("{}\n")
    assert store_rows(rows).read_text().count("\n") == len(rows), "a damaged file is made again"


def test_what_json_cannot_hold_is_left_out_and_named(capsys: pytest.CaptureFixture[str]):
    row = {"text": "夏 \ud800", "n": 1, "tags": ["a"], "nothing": None, "image": object(), "nan": float("nan"), 3: "x"}
    (line,) = store_rows([row]).read_text().splitlines()
    assert json.loads(line) == {"text": "夏 \ud800", "n": 1, "tags": ["a"], "nothing": None, "3": "x"}
    assert "left out: image, nan" in capsys.readouterr().err


def test_memory_does_not_grow_with_the_rows():
    tracemalloc.start()
    path = store_rows({"text": f"{i} " * 1000} for i in range(4000))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert path.stat().st_size > 5 * peak


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ({"train": TEXTS, "test": TEXTS}, "data is a dict of train, test: pass one of them, data=...['train']"),
        (3, "data is 3; expected a path, a name, or rows"),
        (b"abc", "data is b'abc'; expected a path, a name, or rows"),
        (iter([]), "data holds no rows: expected texts, or objects"),
        (iter([{"text": "a"}, 7]), "row 2 of the data is 7: expected texts"),
        ([], "data holds no rows"),
        (["plays", 4], "data is 4; expected a path, a name, or rows"),
        (TEXTS, "data is a list in which nothing names a file or a set ('the cat sat on mat number 0"),
        ([("a.txt", 0)], "data 'a.txt' has the weight 0"),
        ([(iter(TEXTS), float("nan"))], "has the weight nan"),
    ],
)
def test_what_are_no_rows(rows: Any, message: str):
    with refuses(message):
        fetch_data(rows)
    assert not list(cache_dir().glob("rows/*"))


def test_a_table_of_pandas_is_no_rows():
    table = type("DataFrame", (), {"to_dict": None, "iloc": None, "__iter__": lambda self: iter(["text"])})()
    with refuses("pass its rows, data=table.to_dict('records')"):
        fetch_data(table)


def test_a_list_is_a_mixture(tmp_path: Path):
    file, rows = write(tmp_path / "a.txt", "x"), store_rows(TEXTS)
    assert (
        fetch_data([file, (Table([{"text": text} for text in TEXTS]), 2.5), "plays:3"])
        == f"{file}:1 {rows}:2.5 plays:3"
    )
    assert fetch_data([str(file)]) == str(file) == fetch_data(file) == fetch_data([(file, 3)])


def test_training_on_rows_resumes_with_the_cache_or_the_same_rows(tmp_path: Path):
    rows, run = Table([{"content": text} for text in TEXTS]), tmp_path / "run"
    model = anyformer.train("language", "tiny", data=rows, columns="content", steps=4, out=run, **TRAIN)
    assert rows.n_passes == 1 and Path(model.config.data) == store_rows(iter(rows))
    n_tokens = model.evaluate(rows)["tokens"]
    Path(model.config.data).unlink()
    for attempt in (lambda: anyformer.load(run).evaluate(), lambda: anyformer.train("language", out=run, resume=True)):
        with refuses("rows that came from Python and are no longer in the cache: pass the same rows again as data"):
            attempt()
    resumed = anyformer.train("language", "tiny", data=rows, columns="content", out=run, resume=True, steps=6, **TRAIN)
    assert resumed.evaluate()["tokens"] == n_tokens
    with refuses("a run cannot change it"):
        anyformer.train("language", "tiny", data=iter(TEXTS[1:]), out=run, resume=True, steps=10, **TRAIN)


def test_a_data_set_of_the_library(tmp_path: Path):
    datasets = pytest.importorskip("datasets", reason="the library `datasets` is not installed")
    table = datasets.Dataset.from_dict({"text": TEXTS, "n": list(range(len(TEXTS)))})
    expected = [{"text": text, "n": n} for n, text in enumerate(TEXTS)]
    assert [json.loads(line) for line in store_rows(table).read_text().splitlines()] == expected
    file = write(tmp_path / "a.jsonl", store_rows(table).read_text())
    stream = datasets.load_dataset("json", data_files=str(file), split="train", streaming=True, cache_dir=str(tmp_path))
    assert store_rows(stream) == store_rows(table)
    with refuses("data is a DatasetDict of train, test: pass one of them"):
        fetch_data(datasets.DatasetDict(train=table, test=table))
    model = anyformer.train(
        "masked", "tiny", data=[(table, 2), (stream.take(30), 1)], steps=2, out=tmp_path / "r", **TRAIN
    )
    assert {"loss", "rows_loss", "rows_2_loss"} <= model.evaluate().keys()
