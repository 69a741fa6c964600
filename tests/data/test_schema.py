"""Schemas and tables: read, inferred, written, encoded; and the message for every way in which a table can be wrong."""

import dataclasses
import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from anyformer.data.sampling import Dataset
from anyformer.data.tables.cache import TableDataset, encode_table
from anyformer.data.tables.datasets import SENSORS, SPOKEN_DIGITS, WATCH, open_sensors
from anyformer.data.tables.infer_schema import infer_schema
from anyformer.data.tables.prepare import TableSource, load_table, measure_schema, select_examples
from anyformer.data.tables.read import read_table
from anyformer.data.tables.schema import MEASURED_OPTIONS, load_schema, parse_schema
from anyformer.errors import InputError
from anyformer.events import listen
from data_kit import make_table, refuses, write

SERIES = {"kind": "series", "channels": 2, "rate": 10.0, "seconds": 1.0}


def field_schema(kind: str, **options: Any) -> dict[str, Any]:
    """A schema with one field x and a class y."""
    return {"fields": {"x": {"kind": kind} | options}, "targets": {"y": {"kind": "class"}}}


def encode_values(schema: dict[str, Any], values: list[Any], lenient: bool = False) -> TableDataset:
    """Encode rows with these values of x, and two classes in turn."""
    table = make_table([{"x": value, "y": "ab"[i % 2]} for i, value in enumerate(values)])
    return encode_table(table, parse_schema(schema, "my.toml"), lenient)


@pytest.mark.parametrize("text", [SENSORS, WATCH, SPOKEN_DIGITS])
def test_a_schema_survives_toml_and_json(text: str):
    schema = load_schema(text)
    assert load_schema(schema.to_toml()) == load_schema(schema.to_json()) == schema


@pytest.mark.slow
@settings(max_examples=15)
@given(st.lists(st.text(st.characters(codec="utf-8")), min_size=1))
def test_any_column_name_survives_toml(names: list[str]):
    values = {"fields": {f"_{name}": {"kind": "scalar"} for name in names}, "targets": {"y": {"kind": "number"}}}
    schema = parse_schema(values, "here")
    assert load_schema(schema.to_toml()) == schema


def test_measurements_are_stored_as_json_and_kept():
    table = open_sensors()
    dataset = encode_table(table, load_schema(table.schema))
    measured = measure_schema(dataset, dataset.split("train"))
    assert measured.is_measured and not load_schema(measured.to_toml()).is_measured
    assert load_schema(measured.to_json()) == measured
    again = encode_table(table, measured)
    assert again.sha256 == dataset.sha256 and again.schema.has_vocabularies and isinstance(again, Dataset)


def test_means_are_of_the_training_rows():
    dataset = encode_values(field_schema("vector", size=2), [[i, 3.0] for i in range(50)])
    rows = dataset.split("train")
    (field,) = measure_schema(dataset, rows).fields
    values = np.asarray(dataset.values[0])[rows]
    np.testing.assert_allclose(field.mean, values.mean(0))
    np.testing.assert_allclose(field.std, [values[:, 0].std(), 1.0])  # a constant has a deviation of 1


def test_every_kind_is_inferred(tmp_path: Path):
    rows = [
        {
            "number": 7 * i % 60,
            "text": f"number {i} of a list that has many texts, {i * i}",
            "kind": ("red", "blue")[i % 2],
            "list": [i, 2.0, 3.0],
            "series": [[0.1 * i, 1.0]] * (3 + i % 2),
            "ragged": [1.0] * (2 + i % 3),
            "photo": f"{i}.png",
            "sound": f"{i}.wav",
            "always": "same",
            "nothing": None,
            "size": 0.5 * i,
            "grade": i % 3,
            "label": "ab"[i // 3 % 2],
        }
        for i in range(60)
    ]
    write(tmp_path / "t.jsonl", "\n".join(map(json.dumps, rows)))
    schema = infer_schema(read_table(tmp_path / "t.jsonl"), ["size", "grade", "label"])
    assert {field.name: field.kind for field in schema.fields} == {
        "number": "scalar",
        "text": "text",
        "kind": "category",
        "list": "vector",
        "series": "series",
        "ragged": "series",
        "photo": "image",
        "sound": "audio",
    }
    assert [target.kind for target in schema.targets] == ["number", "class", "class"]
    assert schema.left_out == {"always": "constant", "nothing": "empty"}
    assert load_schema(schema.to_toml()) == dataclasses.replace(schema, left_out={})
    assert load_schema(schema.to_json()) == schema
    assert (schema.fields[4].channels, schema.fields[4].length) == (2, 4)


def test_markers_of_missing_values_do_not_make_a_column_text(tmp_path: Path):
    path = tmp_path / "t.csv"
    path.write_text("mass,sex,label\n3750,male,a\nNA,n/a,b\n,?,a\n4100,female,b\nNaN,male,a\n")
    mass, sex = infer_schema(read_table(path), ["label"]).fields
    assert (mass.kind, sex.kind) == ("scalar", "category")
    assert encode_values(field_schema("scalar"), ["NA", 1.0]).present[:, 0].tolist() == [False, True]


def test_csv_parquet_and_jsonl_give_the_same_arrays(tmp_path: Path):
    pyarrow = pytest.importorskip("pyarrow", reason="parquet needs pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    rows = [{"x": [i, -1.5], "z": None if i % 4 else 2.5, "y": "ab"[i % 2]} for i in range(20)]
    write(tmp_path / "t.jsonl", "\n".join(map(json.dumps, rows)))
    cells = "".join(f'"{row["x"]}",{"" if row["z"] is None else row["z"]},{row["y"]}\n' for row in rows)
    write(tmp_path / "t.csv", "x,z,y\n" + cells)
    parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "t.parquet")
    first, *others = (
        load_table(TableSource(str(tmp_path / f"t.{kind}"), target="y")) for kind in ("jsonl", "csv", "parquet")
    )
    for other in others:
        assert other.schema == first.schema
        np.testing.assert_array_equal(other.present, first.present)
        np.testing.assert_array_equal(other.targets, first.targets)
        for a, b in zip(other.values, first.values, strict=True):
            np.testing.assert_array_equal(a, b)


def test_groups_and_splits_are_kept():
    rows = [{"x": i, "y": "ab"[i % 2], "who": i // 4} for i in range(40)]
    dataset = encode_table(make_table(rows), parse_schema(field_schema("scalar") | {"group": "who"}, "here"))
    for fold in range(5):
        train, val = (dataset.split(split, f"{fold + 1}/5") for split in ("train", "val"))
        assert len(train) + len(val) == 40 and not set(train // 4) & set(val // 4) and len(val) == 8
    rows = [row | {"split": "val" if i < 3 else "train"} for i, row in enumerate(rows)]
    dataset = encode_table(make_table(rows), parse_schema(field_schema("scalar") | {"split": "split"}, "here"))
    assert dataset.split("val").tolist() == [0, 1, 2] and len(dataset.split("train")) == 37
    dataset = encode_values(field_schema("scalar"), list(range(40)))
    folds = [dataset.split("val", f"{fold + 1}/10") for fold in range(10)]
    assert sorted(np.concatenate(folds)) == list(range(40)), "each row once"


def test_rows_are_encoded_once_and_progress_is_reported():
    events: list[tuple[str, int, int]] = []
    values = [np.full((10, 2), i).tolist() for i in range(70)]
    schema = field_schema(**SERIES)
    with listen(lambda *event: events.append(event)):
        first = encode_values(schema, values)
        assert events[-1] == ("decoding rows", 70, 70)
        events.clear()
        again = encode_values(schema, values)
    assert events == [] and isinstance(again.values[0], np.memmap), "from the cache"
    np.testing.assert_array_equal(first.values[0], again.values[0])
    assert encode_values(schema, [*values[:-1], values[0]]).sha256 != first.sha256


# --- what is refused, in one line that says where ---


@pytest.mark.parametrize(
    ("schema", "parts"),
    [
        (field_schema("series", channels=1, rate=0, seconds=2), ("my.toml, fields.x", "rate is 0", "above 0")),
        (field_schema("series", channels=1, seconds=2), ("fields.x", "a series needs rate")),
        (field_schema("serie"), ("kind is 'serie'", "did you mean 'series'?")),
        (field_schema("scalar", chanels=1), ("fields.x", "a scalar has no 'chanels'")),
        (field_schema("image", patch=5), ("patches of 5 pixels do not divide 28 x 28",)),
        (field_schema("image", position="top"), ("position is 'top'", "learned")),
        (field_schema("text", tokens=0), ("tokens is 0", "above 0")),
        (field_schema("vector", size="three"), ("size is 'three'",)),
        (field_schema("audio", seconds=1e9), ("nodes per row",)),
        (field_schema("scalar") | {"groups": "who"}, ("unknown field 'groups'", "did you mean 'group'?")),
        ({"fields": {"x": {"kind": "scalar"}}}, ("no [targets.NAME]",)),
        ({"fields": {"y": {"kind": "scalar"}}, "targets": {"y": {"kind": "class"}}}, ("'y' is a field and a target",)),
        ({"fields": {"x": {"kind": "scalar"}}, "targets": {"y": {"kind": "clas"}}}, ("did you mean 'class'?",)),
        (
            {"fields": {"x": {"kind": "scalar"}}, "targets": {"y": {"kind": "class", "name": "z"}}},
            ("a class has no 'name'",),
        ),
    ],
)
def test_bad_schemas(schema: dict[str, Any], parts: tuple[str, ...]):
    with refuses(*parts):
        parse_schema(schema, "my.toml")


def test_unreadable_schema_files(tmp_path: Path):
    with refuses("nowhere.toml", "there is no such file"):
        load_schema(str(tmp_path / "nowhere.toml"))
    with refuses("bad.toml", "not TOML"):
        load_schema(str(write(tmp_path / "bad.toml", "[fields.x\nkind")))


def test_measurements_in_a_stored_schema_are_checked():
    dataset = encode_table(open_sensors(), load_schema(SENSORS))
    values = json.loads(measure_schema(dataset, dataset.split("train")).to_json())
    wrong = {"mean": [1.0], "std": [0.0, 1.0, 1.0], "values": [1], "rare": -1, "words": 3}
    wrong |= {"quantiles": [2.0, 1.0], "errors": 3}
    assert set(wrong) == set(MEASURED_OPTIONS)
    for option, value in wrong.items():
        broken = json.loads(json.dumps(values))
        broken["fields"]["axes"][option] = value
        with pytest.raises(InputError):
            parse_schema(broken, "schema.json")


@pytest.mark.parametrize(
    ("schema", "good", "value", "parts"),
    [
        (field_schema("scalar"), 1, "inf", ("not finite", "--lenient")),
        (field_schema("scalar"), 1, "four", ("'four' is not a number",)),
        (field_schema("vector", size=2), [1, 2], [1, 2, 3], ("(3,)", "2")),
        (field_schema("vector", size=2), [1, 2], "[[1", ("not a list of numbers",)),
        (
            field_schema(**SERIES),
            [[1, 2]],
            [[1.0, float("inf")]] * 10,
            ("10 of 20 numbers", "--lenient"),
        ),
        (field_schema(**SERIES), [[1, 2]], [[1.0, 2.0]] * 11, ("11 readings", "cut = true")),
        (field_schema(**SERIES), [[1, 2]], [[1.0, 2.0, 3.0]], ("2 channels",)),
        (field_schema("text", tokens=4, tokenizer="byte"), "ab", "too long", ("8 tokens, and 4 fit", "cut = true")),
        (field_schema("image"), [[0, 9]], "none.png", ("none.png", "--lenient")),
        (field_schema("image"), [[0, 9]], [[0, 256]], ("from 0 to 255",)),
        (field_schema("audio", seconds=1.0), [0.0] * 160, "none.wav", ("none.wav", "--lenient")),
        (field_schema("audio", seconds=0.01), [0.0] * 160, [0.0] * 8000, ("0.50 s long", "0.01")),
    ],
)
def test_bad_values(schema: dict[str, Any], good: Any, value: Any, parts: tuple[str, ...]):
    with refuses("row 3, x", *parts):
        encode_values(schema, [good, good, good, value, good])


def test_damaged_values_are_left_out_on_request_and_counted(tmp_path: Path):
    values: list[Any] = [[[1.0, 2.0]] * 10 for _ in range(6)]
    values[2] = [[float("inf"), 2.0]] * 5 + [[float("inf")] * 2] * 5
    dataset = encode_values(field_schema(**SERIES), values, lenient=True)
    assert dataset.present[2].tolist() == [True, False] and dataset.present[1].all(), "no reading, no node"
    assert np.isnan(dataset.values[0][2][0]).tolist() == [True, False]
    dataset = encode_values(field_schema("scalar"), [1, 2, "inf", 4], lenient=True)
    assert dataset.skipped == 1 and dataset.present[:, 0].tolist() == [True, True, False, True]
    pixels = np.zeros((28, 28), np.uint8).tolist()
    dataset = encode_values(field_schema("image"), [pixels, str(tmp_path / "none.png")], lenient=True)
    assert dataset.skipped == 1 and dataset.present.any(1).tolist() == [True, False]


def test_damaged_files_are_named(tmp_path: Path):
    pillow = pytest.importorskip("PIL.Image", reason="images need Pillow")
    pytest.importorskip("soundfile", reason="sounds need soundfile")
    pixels = np.random.default_rng(0).integers(0, 255, (28, 28), dtype=np.uint8)
    pillow.fromarray(pixels).save(tmp_path / "good.png")
    content = (tmp_path / "good.png").read_bytes()
    write(tmp_path / "cut.png", content[: len(content) // 2])
    samples = np.zeros(800, "<i2").tobytes()
    for name, rate in (("good.wav", 8000), ("zero.wav", 0)):
        sizes = (36 + len(samples), b"WAVEfmt ", 16, 1, 1, rate, 0, 2, 16, b"data", len(samples))
        write(tmp_path / name, struct.pack("<4sI8sIHHIIHH4sI", b"RIFF", *sizes) + samples)
    target = '[targets.y]\nkind = "class"\n'
    image_schema = str(write(tmp_path / "my.toml", f'[fields.x]\nkind = "image"\n{target}'))
    audio_schema = f'[fields.x]\nkind = "audio"\nseconds = 0.2\n{target}'
    table = str(tmp_path / "t.csv")
    for good, bad, schema, message in (
        ("good.png", "cut.png", image_schema, "damaged or cut off"),
        ("good.wav", "zero.wav", audio_schema, ""),
    ):
        write(tmp_path / "t.csv", f"x,y\n{good},a\n{bad},b\n")
        with refuses("t.csv, line 3, x", bad, message, "--lenient"):
            load_table(TableSource(table, schema))
        dataset = load_table(TableSource(table, schema, lenient=True))
        assert dataset.skipped == 1 and dataset.present.any(1).tolist() == [True, False]


def test_bad_tables(tmp_path: Path):
    path = str(write(tmp_path / "t.csv", "age,kind\n1,a\n2,a\n3,\n"))
    schema = '[fields.agee]\nkind = "scalar"\n[targets.kind]\nkind = "class"\n'
    for arguments, parts in (
        (("own", "kind"), ("the target 'kind' has one value (a)",)),
        (("own", "knd"), ("no column 'knd'", "did you mean 'kind'?")),
        (("own", ""), ("--target NAME", "age, kind")),
        ((schema, ""), ("'agee'", "no such column", "did you mean 'age'?")),
    ):
        with refuses(*parts):
            load_table(TableSource(path, *arguments))
    for name, content, parts in (
        ("u.csv", "age,kind\n1,\n2,\n3,\n", ("the target 'kind' is missing in all 3 rows",)),
        ("v.csv", "age,kind\n", ("v.csv", "holds no rows")),
        ("w.xlsx", "age", ("w.xlsx", "not a table")),
    ):
        with refuses(*parts):
            load_table(TableSource(str(write(tmp_path / name, content)), target="kind"))


def test_a_changed_table_is_read_again(tmp_path: Path):
    path = write(tmp_path / "t.csv", "age,kind\n1,a\n2,b\n")
    first = load_table(TableSource(str(path), target="kind"))
    assert load_table(TableSource(str(path), target="kind")) is first
    write(path, "age,kind\n1,a\n2,b\n3,b\n")
    assert len(load_table(TableSource(str(path), target="kind"))) == 3


def write_pictures(folder: Path) -> Path:
    image = pytest.importorskip("PIL.Image")
    (folder / "pics").mkdir()
    for i in range(20):
        color = (200, 90, 90) if i % 2 else (60, 140, 150)
        image.fromarray(np.full((40, 60, 3), color, np.uint8)).save(folder / "pics" / f"{i}.png")
    rows = [f"pics/{i if i != 7 else 'missing'}{'.png' if i != 7 else ''},{i % 5},{'ab'[i % 2]}" for i in range(20)]
    return write(folder / "t.csv", "\n".join(["picture,x,y", *rows]) + "\n")


def test_images_of_a_table_keep_their_size_and_color_and_a_wrong_name_among_them_is_named(tmp_path: Path):
    """They had become 28 x 28 gray, and one name without an ending left the whole column out."""
    schema = infer_schema(read_table(write_pictures(tmp_path)), ("y",))
    picture = schema.fields[0]
    assert (picture.kind, picture.height, picture.width, picture.channels) == ("image", 40, 64, 3)
    with refuses("t.csv, line 9, picture: ", "pics/missing", "there is no such file"):
        encode_table(read_table(tmp_path / "t.csv"), schema)


def test_examples_of_numbers_are_from_the_lowest_to_the_highest():
    table = make_table([{"x": i % 7, "y": float(i)} for i in range(100)])
    schema = parse_schema({"fields": {"x": {"kind": "scalar"}}, "targets": {"y": {"kind": "number"}}}, "here")
    values = sorted(row["y"] for row in select_examples(table, encode_table(table, schema), np.arange(100)))
    assert values[0] == 0 and values[-1] == 99 and 40 < np.mean(values) < 60
