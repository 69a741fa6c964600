"""Columns as they come: dates, identifiers, rare categories, numbers as people write them; what is left out and why."""

import json
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from anyformer.data.tables import summary
from anyformer.data.tables.dates import encode_moment, find_format, parse_date
from anyformer.data.tables.encode import encode_value, parse_array
from anyformer.data.tables.infer_schema import infer_schema
from anyformer.data.tables.number_formats import read_number
from anyformer.data.tables.prepare import TableSource, fit_table, load_table
from anyformer.data.tables.read import read_table
from anyformer.data.tables.schema import Field, Schema, load_schema
from anyformer.data.tables.stream import RowReader
from anyformer.errors import InputError
from data_kit import make_table, refuses, write

N = 60
LABELS = ["ab"[i // 3 % 2] for i in range(N)]


def infer(rows: int = N, **columns: Any) -> Schema:
    """Infer the schema of these columns, a function of the row each, beside a class y."""
    table = [{name: value(i) for name, value in columns.items()} | {"y": LABELS[i % N]} for i in range(rows)]
    return infer_schema(make_table(table), ["y"])


def infer_one(value: Any, name: str = "x", rows: int = N) -> Field | str:
    """Return the field of a column, or why it is left out."""
    schema = infer(rows, **{name: value, "other": lambda i: i % 7})
    return next((field for field in schema.fields if field.name == name), "") or schema.left_out[name]


# --- numbers ---


@pytest.mark.parametrize(
    ("text", "point", "comma"),
    [
        ("1,234.5", 1234.5, 1234.5),
        ("1.234,5", 1234.5, 1234.5),
        ("1,234", 1234.0, 1.234),
        ("1.234", 1.234, 1234.0),
        ("1'234'567", 1234567.0, 1234567.0),
        ("12,34,567", 1234567.0, 1234567.0),
        ("45 %", 45.0, 45.0),
        ("$ -3", -3.0, -3.0),
        ("(3.20)", -3.2, -3.2),
        ("1.234,50 €", 1234.5, 1234.5),
        ("−4", -4.0, -4.0),
        ("< 0.5", 0.5, 0.5),
        ("1.5e3", 1500.0, 1500.0),
        ("0,123", 0.123, 0.123),
        ("5 kg", None, None),
        ("12-13", None, None),
        ("1_000", None, None),
        ("-", None, None),
    ],
)
def test_numbers_as_people_write_them(text: str, point: float | None, comma: float | None):
    assert (read_number(text), read_number(text, ",")) == (point, comma)


def test_the_decimal_separator_is_that_of_the_column():
    field = infer_one(lambda i: f"{i + 1}.{100 + i},5" if i % 2 else f"{i + 2}.{200 + i}")
    assert isinstance(field, Field) and (field.kind, field.decimal) == ("scalar", ",")
    assert encode_value(field, "2.202", "row")[0].tolist() == [2202.0]
    field = infer_one(lambda i: f"${i + 1},{100 + i}.5")
    assert isinstance(field, Field) and field.decimal == "."
    assert encode_value(field, "$2,202", "row")[0].tolist() == [2202.0]


def test_a_few_words_among_numbers_are_missing_and_said(capsys: pytest.CaptureFixture[str]):
    field = infer_one(lambda i: "unknown" if i % 30 == 7 else i * 1.5)
    assert isinstance(field, Field) and field.missing == ("unknown",)
    assert "x: 2 of 60 values are no number ('unknown'): read as missing" in capsys.readouterr().err
    assert not encode_value(field, "unknown", "row")[1].any()
    with refuses("row, x: 'unknwon' is not a number"):
        encode_value(field, "unknwon", "row")


@pytest.mark.parametrize("value", [lambda i: "01234"[i % 5 :], lambda i: ("0", "1", "2", "3+")[i % 4]])
def test_codes_are_categories(value: Any):
    field = infer_one(value)
    assert isinstance(field, Field) and field.kind == "category"


# --- dates ---


@pytest.mark.parametrize(
    ("texts", "pattern", "first"),
    [
        (["2024-01-31", "2024-02-01"], "", "2024-01-31"),
        (["2010/01/01 00:00"], "", "2010-01-01"),
        (["25/11/63", "5/12/63"], "%d/%m/%y", "2063-11-25"),
        (["5/11/1963", "5/13/1963"], "%m/%d/%Y", "1963-05-11"),
        (["31.12.2020 12:30"], "%d.%m.%Y %H:%M", "2020-12-31T12:30"),
        (["Jan 1 2000"], "", "2000-01-01"),
        (["January 5, 2021"], "%B %d, %Y", "2021-01-05"),
        (["20240131"], "", "2024-01-31"),
        (["12:30", "2:59"], "%H:%M", "1970-01-01T12:30"),
    ],
)
def test_formats_of_dates(texts: list[str], pattern: str, first: str):
    assert find_format(texts) == pattern
    assert parse_date(texts[0], pattern) == np.datetime64(first, "s").astype(int)


@pytest.mark.parametrize("texts", [["3/4", "5/6"], ["86-1B"], ["555-1234"], ["Ain", "Aisne"], ["100% Bran"]])
def test_what_is_no_date(texts: list[str]):
    assert find_format(texts) is None


def test_a_date_becomes_its_position_and_the_parts_that_vary():
    days = np.datetime64("2024-01-01") + np.arange(N)
    field = infer_one(lambda i: str(days[i]))
    assert isinstance(field, Field) and (field.kind, field.parts, field.shape) == ("date", ("month", "weekday"), (20,))
    numbers = encode_value(field, "2024-02-03", "row")[0]
    assert numbers[0] == pytest.approx(54.09, abs=0.01) and np.flatnonzero(numbers[1:]).tolist() == [1, 12 + 2]
    np.testing.assert_array_equal(numbers, encode_value(field, date(2024, 2, 3), "row")[0])
    field = infer_one(lambda i: f"20{i:02d}-01-01 0{i % 6}:30")
    assert isinstance(field, Field) and field.parts == ("year", "hour"), "the first of a month says no weekday"
    assert load_schema(infer(d=lambda i: str(days[i])).to_toml()).fields[0].parts == ("month", "weekday")
    with refuses("row, x: 'soon' is not a date"):
        encode_value(field, "soon", "row")


def test_midnight_is_close_to_the_minute_before_it():
    times = [encode_moment(parse_date(f"2024-01-02 {t}") or 0, ("hour",))[1:] for t in ("00:00", "23:59", "12:00")]
    assert np.abs(times[0] - times[1]).max() < 0.01 < np.abs(times[0] - times[2]).max()


def test_days_and_months_that_could_be_swapped_are_said(capsys: pytest.CaptureFixture[str]):
    field = infer_one(lambda i: f"{i % 12 + 1}/{i % 11 + 1}/2024", "when")
    assert isinstance(field, Field) and field.format == "%m/%d/%Y"
    assert "when: 1/1/2024 is read as month, day, year" in capsys.readouterr().err


# --- identifiers and categories ---


@pytest.mark.parametrize(
    ("name", "value", "why"),
    [
        ("x", lambda i: i + 1, "a different value in every row"),  # counts the rows
        ("customer_id", lambda i: 7 * i % 61 + 1000, "a different value in every row"),
        ("PassengerId", lambda i: i * i, "a different value in every row"),
        ("x", lambda i: f"{i * 7919:08x}-{i}", "a different value in every row"),
        ("name", lambda i: f"person{min(i, 57)}", "a different value in almost every row"),
        ("person_id", lambda i: 5 * (i // 2), "30 values in 60 rows, too few rows of each"),
        ("x", lambda i: "same", "constant"),
        ("x", lambda i: None, "empty"),
    ],
)
def test_columns_of_which_nothing_can_be_learned_are_left_out(name: str, value: Any, why: str):
    assert infer_one(value, name) == why


def test_what_is_left_out_is_said_in_one_line(capsys: pytest.CaptureFixture[str]):
    infer(id=lambda i: i, country=lambda i: "x", planet=lambda i: "earth", size=lambda i: i % 7)
    line = "left out: id (a different value in every row), country, planet (constant); a schema can name them"
    assert line in capsys.readouterr().err


def test_rows_that_are_counted_are_read_where_there_is_nothing_else():
    (field,) = infer(step=lambda i: i).fields
    assert (field.name, field.kind) == ("step", "scalar")


def test_numbers_that_name_something_are_categories(capsys: pytest.CaptureFixture[str]):
    for name in ("zip_code", "shop_id"):
        field = infer_one(lambda i: 10_000 + 7 * (i % 10), name)
        assert isinstance(field, Field) and field.kind == "category"
    assert "--group shop_id keeps them together" in capsys.readouterr().err


def is_alike(i: int) -> int:
    """A number without an order, of which several rows have the same."""
    return i * 7 % 11


@pytest.mark.parametrize(
    ("columns", "hint"),
    [
        ({"customer_id": lambda i: 7 * (i * 13 % 20)}, "--group customer_id"),
        ({"chick": lambda i: i // 5}, "--group chick"),  # counted, in blocks
        ({"country": lambda i: f"land{i // 5 * 7 % 12}"}, "--group country"),  # words, in blocks
        ({"state": lambda i: 3 + i % 12 * 5, "year": lambda i: 1990 + i // 12 * 3 % 5}, "--group state"),
        ({"sold": lambda i: date(2024, 1, 1 + i // 3).isoformat()}, "--order sold"),
        ({"paid": lambda i: date(2024, 1, 31 - i // 2).isoformat()}, "--order paid"),  # the latest first
        ({"Year": lambda i: 1960 + i}, "--order Year"),
        ({"no": lambda i: i * 13 % 20}, ""),  # nitric oxide
        ({"ward_id": lambda i: i % 20 + 0.5}, ""),
        ({"age": lambda i: 20 + i // 3}, ""),  # sorted by a number
        ({"kind": lambda i: "abc"[i // 20]}, ""),  # sorted by a class
        ({"city": lambda i: f"city{i * 7 % 12}"}, ""),
        ({"born": lambda i: date(1990, 1, 1 + i * 7 % 30).isoformat()}, ""),  # in no order
        ({"month": lambda i: 1 + i // 30}, ""),  # too few
    ],
)
def test_what_the_columns_suggest_for_validation_is_said(columns: Any, hint: str, capsys: pytest.CaptureFixture[str]):
    schema = infer(other=is_alike, **columns)
    lines = [line for line in capsys.readouterr().err.splitlines() if "--group" in line or "--order" in line]
    assert [hint + " " in line for line in lines] == [True] * bool(hint)
    assert (schema.group, schema.order) == ("", ""), "the split does not change"


def test_groups_beyond_the_values_that_are_told_apart(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(summary, "MAX_DISTINCT", 500)
    assert infer_one(lambda i: i // 2, "chick", rows=1200)


def test_nothing_is_suggested_where_the_split_is_known(capsys: pytest.CaptureFixture[str]):
    rows = [{"day": i // 2, "user_id": 7 * (i % 9), "y": LABELS[i]} for i in range(N)]
    splits = [row | {"split": "val" if i % 5 else "train"} for i, row in enumerate(rows)]
    for table, options in ((rows, {"group": "user_id"}), (rows, {"order": "day"}), (splits, {}), (rows, {})):
        infer_schema(make_table(table), ["y"], **options)
        has_split = table is splits or bool(options)
        assert ({"--group", "--order"} & set(capsys.readouterr().err.split()) == set()) == has_split


def test_names_are_texts_where_their_words_are_repeated():
    field = infer_one(lambda i: f"{['Mr.', 'Mrs.', 'Miss'][i % 3]} Number{i}", "name", rows=300)
    assert isinstance(field, Field) and field.kind == "text"
    assert infer_one(lambda i: f"First{i} Last{i}", "name", rows=300) == "a different value in every row"


def test_rare_categories_become_one_and_so_do_new_ones(tmp_path: Path):
    cities = [f"city{i % 40 if i % 4 else 40 + i}" for i in range(400)]  # 30 of 10 rows, 100 of 1 row
    rows = "".join(f"{city},{i % 9},{'ab'[i // 3 % 2]}\n" for i, city in enumerate(cities))
    source = TableSource(str(write(tmp_path / "t.csv", f"city,size,y\n{rows}")), target="y")
    dataset = fit_table(source, "1/10")
    city = dataset.schema.fields[0]
    train = dataset.split("train")
    names, counts = np.unique(np.array(cities)[train], return_counts=True)
    assert city.min_count == 5 and set(city.values) == set(names[counts >= 5])
    assert city.rare == counts[counts < 5].sum() and dataset.values[0].max() == len(city.values)
    for i in (0, 1, 399):
        expected = city.index.get(cities[i], len(city.values))
        assert dataset.values[0][i] == expected == encode_value(city, cities[i], "row")[0]
    assert encode_value(city, "never seen", "row")[0].tolist() == [len(city.values)]
    stored = TableSource(source.data, dataset.schema.to_json())
    np.testing.assert_array_equal(load_table(stored).values[0], dataset.values[0])
    closed = dataset.schema.with_measurements({"city": {"rare": 0}})
    dataset = load_table(TableSource(source.data, closed.to_json()))
    assert dataset.present[:, 0].tolist() == [name in city.index for name in cities], "no other: missing"


def test_a_category_of_validation_only_is_missing(tmp_path: Path):
    rows = [{"color": "red" if i % 2 else "blue", "y": "ab"[i % 2], "split": "train"} for i in range(20)]
    rows += [{"color": color, "y": "a", "split": "val"} for color in ("red", "green")]
    path = write(tmp_path / "t.jsonl", "\n".join(map(json.dumps, rows)))
    schema = '[fields]\ncolor = { kind = "category" }\n[targets]\ny = { kind = "class" }\n'
    dataset = fit_table(TableSource(str(path), f'split = "split"\n{schema}'), "1/10")
    assert dataset.schema.fields[0].values == ("blue", "red") and dataset.present[:, 0].tolist() == [True] * 21 + [
        False
    ]


# --- decimal commas of whole files ---


def test_files_are_read_for_prediction_as_for_training(tmp_path: Path):
    """A column of numbers with some word in it, another with points of thousands, a third of texts."""
    path = write(tmp_path / "t.csv", "a;b;note\n1,5;1.234,5;x 1,5\nNA;2.000;b\n-0,25;7;1,5\n3;8,0;\n2,5;1;c\n")
    expected = [["1.5", "1234.5", "x 1,5"], ["NA", "2000", "b"], ["-0.25", "7", "1,5"], ["3", "8.0", ""]]
    for rows in (read_table(path).rows(), RowReader(path, ["a"]).rows()):
        cells = [[*row.values()] for _, row in rows if isinstance(row, dict)]
        assert cells[:4] == expected


@pytest.mark.parametrize("value", [[1, 10**400], [[10**5000]], "[1, 1" + "0" * 400 + "]", [1, "a"], {"a": 1}])
def test_lists_that_hold_no_numbers(value: object):
    with pytest.raises(InputError, match="is not a list of numbers"):
        parse_array(value, Path())
