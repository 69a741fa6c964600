"""Targets that cannot be learned or are given away, rows that are left out, and which rows are for validation."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from anyformer.data.tables.datasets import open_table
from anyformer.data.tables.infer_schema import infer_schema
from anyformer.data.tables.prepare import TableSource, fit_table, load_table, select_examples
from anyformer.data.tables.schema import Schema
from data_kit import make_table, refuses, write

N = 60
RNG = np.random.default_rng(0)
NOISE = RNG.normal(size=N).round(3)


def infer(y: Any, *targets: str, rows: int = N, **columns: Any) -> Schema:
    """Infer the schema of a target y and other columns, functions of the row, beside one of numbers."""
    functions = {"y": y, "other": lambda i: i % 7} | columns
    table = [{name: function(i) for name, function in functions.items()} for i in range(rows)]
    return infer_schema(make_table(table), targets or ["y"])


def write_table(path: Path, rows: list[dict[str, Any]]) -> str:
    lines = [",".join(rows[0]), *(",".join(map(str, row.values())) for row in rows)]
    return str(write(path, "\n".join(lines) + "\n"))


# --- targets ---


@pytest.mark.parametrize(
    ("y", "parts"),
    [
        (lambda i: 5, ("the target 'y' has one value (5) in every row", "choose another")),
        (lambda i: None, ("the target 'y' is missing in all 60 rows",)),
        (lambda i: f"name{i}", ("the target 'y' has 60 classes in 60 rows", "too many to learn")),
        (lambda i: "a" if i > 3 else f"b{i}", ("4 of them with a single row (b0, b1, b2, ...)", "missing = [")),
        (lambda i: [1, 2], ("the target 'y' holds lists",)),
    ],
)
def test_targets_that_cannot_be_learned(y: Any, parts: tuple[str, ...]):
    with refuses(*parts):
        infer(y)


def test_few_classes_of_a_single_row_are_left_out_and_said(capsys: pytest.CaptureFixture[str]):
    schema = infer(lambda i: "rare" if i == 7 else "ab"[i % 2], rows=200)
    assert schema.targets[0].missing == ("rare",)
    assert "y: classes with a single row are left out (rare): 1 of 3" in capsys.readouterr().err


def test_a_target_of_numbers_may_hold_words_and_signs(tmp_path: Path):
    rows = [{"x": i % 7, "y": "unknown" if i == 5 else f"$ {i * i}.50"} for i in range(N)]
    dataset = load_table(TableSource(write_table(tmp_path / "t.csv", rows), target="y"))
    assert len(dataset) == N - 1 and dataset.targets[5, 0] == 36.5


def test_few_integers_are_classes_only_with_several_rows_of_each():
    assert infer(lambda i: i % 6).targets[0].kind == "class"
    assert infer(lambda i: i % 6 if i > 0 else 99).targets[0].kind == "number"
    assert infer(lambda i: (i * i) % 9, rows=12).targets[0].kind == "number"


@pytest.mark.parametrize(
    ("y", "x", "why"),
    [
        (lambda i: NOISE[i], lambda i: NOISE[i], "an exact copy of the target y"),
        (lambda i: "ab"[i // 3 % 2], lambda i: "ab"[i // 3 % 2], "an exact copy of the target y"),
        (lambda i: "abc"[i // 3 % 3], lambda i: ("one", "two", "three")[i // 3 % 3], "the target y under other names"),
        (lambda i: "ab"[i // 3 % 2], lambda i: i // 3 % 2, "the target y under other names"),
        (lambda i: NOISE[i], lambda i: round(1.8 * NOISE[i] + 32, 6), "the target y in another unit"),
        (lambda i: NOISE[i], lambda i: np.exp(NOISE[i]), "a function of the target y"),
        (lambda i: NOISE[i], lambda i: -(NOISE[i] ** 3), "a function of the target y"),
        (lambda i: NOISE[i], lambda i: NOISE[i] + 0.01 * NOISE[i - 1], ""),
        (lambda i: "ab"[i // 3 % 2], lambda i: "ab"[i // 3 % 2 if i else 1], ""),
        (lambda i: 1.1**i, lambda i: 1950.5 + i, ""),  # both grow down the table
        (lambda i: "ab"[i // 3 % 2], lambda i: i * 0.5 + i // 3 % 2 * 100, ""),  # separates the classes
    ],
)
def test_columns_that_give_the_target_away_are_left_out(y: Any, x: Any, why: str):
    assert infer(y, x=x).left_out.get("x", "") == why


def test_each_of_several_targets_is_looked_at():
    schema = infer(lambda i: NOISE[i], "y", "z", z=lambda i: "ab"[i // 3 % 2], copy=lambda i: "ab"[i // 3 % 2])
    assert [target.kind for target in schema.targets] == ["number", "class"]
    assert schema.left_out == {"copy": "an exact copy of the target z"}
    with refuses("the target 'z' has one value"):
        infer(lambda i: NOISE[i], "y", "z", z=lambda i: 1)


# --- rows ---


def test_rows_without_a_target_are_left_out_and_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    rows = [{"x": i % 7, "y": "" if i % 10 == 3 else "ab"[i % 2]} for i in range(N)]
    source = TableSource(write_table(tmp_path / "t.csv", rows), target="y")
    dataset = fit_table(source, "1/5")
    assert len(dataset) == 54 and not np.isnan(dataset.targets).any()
    assert dataset.values[0][:, 0].tolist() == [row["x"] for row in rows if row["y"]]
    examples = select_examples(open_table(source.data), dataset, dataset.split("val", "1/5"))
    assert examples and all(row["y"] for row in examples)
    for example in examples:
        assert {"x": int(example["x"]), "y": example["y"]} in rows
    notice = capsys.readouterr().err
    assert "6 of 60 rows have no target (the first:" in notice and "line 5): left out" in notice
    with refuses("6 of 60 rows have no target", "line 5)", "--empty skip"):
        load_table(dataclasses.replace(source, empty="error"))
    with refuses("the target y is missing in all 60 rows"):
        load_table(TableSource(write_table(tmp_path / "u.csv", [row | {"y": ""} for row in rows]), SCHEMA))


SCHEMA = '[fields]\nx = { kind = "scalar" }\n[targets]\ny = { kind = "number" }\n'


def test_a_target_of_numbers_that_is_constant_in_training_is_refused(tmp_path: Path):
    rows = [{"x": i % 7, "y": 3} for i in range(N)]
    with refuses("the target 'y' has one value (3) in all 54 training rows"):
        fit_table(TableSource(write_table(tmp_path / "t.csv", rows), SCHEMA), "1/10")


def test_repeated_rows_are_counted_and_skipped_on_request(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    rows = [{"x": i // 2 * 1.5, "y": i // 2 % 7 * 10} for i in range(N)]
    source = TableSource(write_table(tmp_path / "t.csv", rows), SCHEMA)
    assert len(load_table(source).split("all")) == N
    assert "30 of 60 rows repeat another one: kept (--duplicates skip leaves them out)" in capsys.readouterr().err
    dataset = load_table(dataclasses.replace(source, duplicates="skip"))
    assert dataset.split("all").tolist() == list(range(0, N, 2))
    assert len(dataset.split("train")) + len(dataset.split("val")) == 30


# --- splits ---


@pytest.fixture
def visits(tmp_path: Path) -> TableSource:
    """Visits of persons, in no order; of three on each day."""
    order = np.random.default_rng(1).permutation(N)
    rows = [
        {"person": f"p{i % 12}", "day": f"{i // 3 + 1:02d}.01.2024", "x": NOISE[i], "y": "ab"[i // 5 % 2]}
        for i in order
    ]
    return TableSource(write_table(tmp_path / "visits.csv", rows), target="y")


def read_column(source: TableSource, name: str, rows: np.ndarray) -> list[str]:
    lines = [line.split(",") for line in Path(source.data).read_text().splitlines()]
    return [lines[1 + i][lines[0].index(name)] for i in rows]


def test_groups_stay_whole_and_are_no_field(visits: TableSource):
    dataset = load_table(dataclasses.replace(visits, group="person"))
    assert dataset.schema.left_out["person"] == "the group" and dataset.schema.group == "person"
    train, val = (set(read_column(visits, "person", dataset.split(name, "1/4"))) for name in ("train", "val"))
    assert len(val) == 3 and len(train) == 9 and not train & val


def test_the_latest_rows_are_for_validation(visits: TableSource):
    dataset = load_table(dataclasses.replace(visits, order="day"))
    days = {name: [*map(int, (d[:2] for d in read_column(visits, "day", dataset.split(name, "1/4"))))] for name in
            ("train", "val")}  # fmt: skip
    assert sorted(days["val"]) == sorted([*range(16, 21)] * 3) and max(days["train"]) == 15
    earlier = {name: read_column(visits, "day", dataset.split(name, "2/4")) for name in ("train", "val")}
    assert {d[:2] for d in earlier["val"]} == {"11", "12", "13", "14", "15"} and max(earlier["train"]) < "11"
    assert [field.kind for field in dataset.schema.fields if field.name == "day"] == ["date"]


def test_the_latest_groups_are_for_validation(visits: TableSource):
    dataset = load_table(dataclasses.replace(visits, order="day", group="person"))
    train, val = (read_column(visits, "person", dataset.split(name, "1/4")) for name in ("train", "val"))
    assert not set(train) & set(val) and set(val) == {"p9", "p10", "p11"}, "who came on the last day"


def test_rows_are_ordered_by_numbers_too(tmp_path: Path):
    rows = [{"x": NOISE[i], "year": 1950 + i * 7 % N, "y": "ab"[i // 5 % 2]} for i in range(N)]
    source = TableSource(write_table(tmp_path / "t.csv", rows), target="y", order="year")
    dataset = fit_table(source, "1/10")
    assert sorted(read_column(source, "year", dataset.split("val"))) == [str(year) for year in range(2004, 2010)]
    rows[3]["year"] = ""
    with refuses("t.csv, line 5: year is ''", "a date or a number is needed in every row"):
        load_table(dataclasses.replace(source, data=write_table(tmp_path / "t.csv", rows)))


def test_columns_to_split_by_must_be_there(visits: TableSource):
    with refuses("no column 'persn' to group by", "did you mean 'person'?"):
        load_table(dataclasses.replace(visits, group="persn"))
    with refuses("no column 'date' to order by"):
        load_table(dataclasses.replace(visits, order="date"))


def test_a_column_that_says_the_split_is_used(tmp_path: Path):
    rows = [{"x": NOISE[i], "y": "ab"[i // 5 % 2], "split": "test" if i % 4 == 1 else "train"} for i in range(N)]
    source = TableSource(write_table(tmp_path / "t.csv", rows), target="y")
    dataset = load_table(source)
    assert dataset.split("val").tolist() == list(range(1, N, 4)) and dataset.schema.left_out == {"split": "the split"}
