"""Schemas and tables: read, inferred, written out; and every way in which a table can be wrong."""

import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from anyformer.data.tables import datasets as known
from anyformer.data.tables import prepare as tables
from anyformer.data.tables import schema
from anyformer.data.tables.cache import Rows, rows
from anyformer.data.tables.infer_schema import infer
from anyformer.data.tables.read import of_file
from anyformer.data.tables.schema import KINDS, MEASURED
from anyformer.data.tables.statistics import measured
from anyformer.errors import InputError
from anyformer.events import listening
from data_kit import of_list, refuses, write

MOTION = {"kind": "series", "channels": 2, "rate": 10.0, "seconds": 1.0}


def one(kind: str, **options: Any) -> dict[str, Any]:
    """A schema with one field x and a class y."""
    return {"fields": {"x": {"kind": kind} | options}, "targets": {"y": {"kind": "class"}}}


def read(given: dict[str, Any], values: list[Any], lenient: bool = False) -> Rows:
    """Rows of these values, of two classes in turn."""
    table = of_list([{"x": value, "y": "ab"[i % 2]} for i, value in enumerate(values)])
    return rows(table, schema.of(given, "my.toml"), lenient)


@pytest.mark.parametrize("text", [known.SENSORS, known.WATCH, known.DIGITS])
def test_toml_goes_out_and_comes_back(text: str):
    found = schema.read(text)
    assert schema.read(found.toml()) == found
    assert schema.read(found.json()) == found
    assert schema.read(found.toml()).toml() == found.toml()


def test_names_of_every_kind_survive():
    names = ["mean radius", "a.b", 'the "best"', "größe", "type", "forward", "[x]", "=", "tab\there", "back\\slash"]
    values = {"fields": {name: {"kind": "scalar"} for name in names}, "targets": {"y": {"kind": "number"}}}
    found = schema.of(values, "here")
    assert schema.read(found.toml()) == found and [field.name for field in found.fields] == names


def test_what_was_measured_is_kept_beside_the_weights():
    table = known.sensors()
    found = rows(table, schema.read(table.schema))
    full = measured(found, found.part("train"))
    assert full.measured and not schema.read(full.toml()).measured
    assert schema.read(full.json()) == full
    assert rows(table, full).sha256 == found.sha256 and rows(table, full).schema.learned


def test_means_are_of_the_training_rows():
    found = read(one("vector", size=2), [[i, 3.0] for i in range(50)])
    part = found.part("train")
    full = measured(found, part)
    want = np.asarray(found.values[0])[part]
    np.testing.assert_allclose(full.fields[0].mean, want.mean(0))
    np.testing.assert_allclose(full.fields[0].std, [want[:, 0].std(), 1.0])  # what never changes is not blown up


def test_every_kind_is_inferred(tmp_path: Path):
    made = [
        {
            "number": i,
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
            "label": "ab"[i % 2],
        }
        for i in range(60)
    ]
    write(tmp_path / "t.jsonl", "\n".join(map(json.dumps, made)))
    found = infer(of_file(tmp_path / "t.jsonl"), ["size", "grade", "label"])
    kinds = {field.name: field.kind for field in found.fields}
    assert kinds == {
        "number": "scalar",
        "text": "text",
        "kind": "category",
        "list": "vector",
        "series": "series",
        "ragged": "series",
        "photo": "image",
        "sound": "audio",
    }
    assert [target.kind for target in found.targets] == ["number", "class", "class"]
    assert schema.read(found.toml()) == found
    series = found.fields[4]
    assert (series.channels, series.length) == (2, 4)


def test_csv_and_parquet_and_jsonl_hold_the_same(tmp_path: Path):
    pyarrow = pytest.importorskip("pyarrow", reason="parquet needs pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    made = [{"x": [i, -1.5], "z": None if i % 4 else 2.5, "y": "ab"[i % 2]} for i in range(20)]
    write(tmp_path / "t.jsonl", "\n".join(map(json.dumps, made)))
    cells = "".join(f'"{one["x"]}",{"" if one["z"] is None else one["z"]},{one["y"]}\n' for one in made)
    write(tmp_path / "t.csv", "x,z,y\n" + cells)
    parquet.write_table(pyarrow.Table.from_pylist(made), tmp_path / "t.parquet")
    found = [tables.rows_of(str(tmp_path / f"t.{kind}"), "own", "y", False) for kind in ("jsonl", "csv", "parquet")]
    for other in found[1:]:
        assert other.schema == found[0].schema
        np.testing.assert_array_equal(other.present, found[0].present)
        np.testing.assert_array_equal(other.targets, found[0].targets)
        for a, b in zip(other.values, found[0].values, strict=True):
            np.testing.assert_array_equal(a, b)


def test_groups_and_splits_are_kept():
    made = [{"x": i, "y": "ab"[i % 2], "who": i // 4} for i in range(40)]
    given = schema.of(one("scalar") | {"group": "who"}, "here")
    found = rows(of_list(made), given)
    for fold in range(5):
        train, val = (found.part(split, f"{fold + 1}/5") for split in ("train", "val"))
        assert len(train) + len(val) == 40 and not set(train // 4) & set(val // 4) and len(val) == 8
    made = [one | {"split": "val" if i < 3 else "train"} for i, one in enumerate(made)]
    found = rows(of_list(made), schema.of(one("scalar") | {"split": "split"}, "here"))
    assert found.part("val").tolist() == [0, 1, 2] and len(found.part("train")) == 37
    folds = np.concatenate([read(one("scalar"), list(range(40))).part("val", f"{fold + 1}/10") for fold in range(10)])
    assert sorted(folds) == list(range(40)), "each row once"


def test_all_is_decoded_once_and_its_progress_told():
    heard: list[tuple[str, int, int]] = []
    values = [np.full((10, 2), i).tolist() for i in range(70)]
    with listening(lambda *said: heard.append(said)):
        first = read(one(**MOTION), values)
        assert heard[-1] == ("decoding rows", 70, 70)
        heard.clear()
        again = read(one(**MOTION), values)
    assert heard == [] and isinstance(again.values[0], np.memmap), "from the cache, as it is needed"
    np.testing.assert_array_equal(first.values[0], again.values[0])
    assert read(one(**MOTION), [*values[:-1], values[0]]).sha256 != first.sha256


# --- what is wrong is one line that says where ---


@pytest.mark.parametrize(
    ("given", "parts"),
    [
        (one("series", channels=1, rate=0, seconds=2), ("my.toml, fields.x", "a rate of 0", "above 0")),
        (one("series", channels=1, rate=-5.0, seconds=2), ("a rate of -5.0",)),
        (one("series", channels=1, seconds=2), ("fields.x", "a series needs rate")),
        (one("serie"), ("kind is 'serie'", "did you mean 'series'?")),
        (one("scalar", chanels=1), ("fields.x", "a scalar has no 'chanels'")),
        (one("image", patch=5), ("patches of 5 pixels do not cut 28 x 28",)),
        (one("image", position="top"), ("position is 'top'", "learned")),
        (one("text", tokens=0), ("tokens is 0", "1 to")),
        (one("vector", size="three"), ("size is 'three'",)),
        (one("audio", seconds=1e9), ("nodes of a row",)),
        (one("scalar") | {"groups": "who"}, ("unknown 'groups'", "did you mean 'group'?")),
        ({"fields": {"x": {"kind": "scalar"}}}, ("no [targets.NAME]",)),
        ({"fields": {"y": {"kind": "scalar"}}, "targets": {"y": {"kind": "class"}}}, ("'y' is a field and a target",)),
        ({"fields": {"x": {"kind": "scalar"}}, "targets": {"y": {"kind": "clas"}}}, ("did you mean 'class'?",)),
    ],
)
def test_a_schema_that_is_wrong(given: dict[str, Any], parts: tuple[str, ...]):
    with refuses(*parts):
        schema.of(given, "my.toml")


def test_a_schema_that_cannot_be_read(tmp_path: Path):
    with refuses("nowhere.toml", "cannot be read"):
        schema.read(str(tmp_path / "nowhere.toml"))
    with refuses("bad.toml", "no TOML"):
        schema.read(str(write(tmp_path / "bad.toml", "[fields.x\nkind")))


SERIES = one(**MOTION)


@pytest.mark.parametrize(
    ("given", "value", "parts"),
    [
        (one("scalar"), "nan", ("row 3, x", "not finite", "--lenient")),
        (one("scalar"), "four", ("row 3, x", "'four' is no number")),
        (one("vector", size=2), [1, 2, 3], ("row 3, x", "(3,)", "2")),
        (SERIES, [[1.0, float("nan")]] * 10, ("row 3, x", "10 of 20 numbers are not finite", "--lenient")),
        (SERIES, [[1.0, 2.0]] * 11, ("row 3, x", "11 readings", "cut = true")),
        (SERIES, [[1.0, 2.0, 3.0]], ("row 3, x", "2 channels")),
        (one("text", tokens=4, tokenizer="byte"), "too long", ("row 3, x", "8 tokens, and 4 fit", "cut = true")),
        (one("image"), "none.png", ("row 3, x", "none.png", "--lenient")),
        (one("image"), [[0, 256]], ("row 3, x", "from 0 to 255")),
        (one("audio", seconds=1.0), "none.wav", ("row 3, x", "none.wav", "--lenient")),
        (one("audio", seconds=0.01), [0.0] * 8000, ("row 3, x", "0.50 s long", "0.01")),
    ],
)
def test_a_value_that_is_wrong(given: dict[str, Any], value: Any, parts: tuple[str, ...]):
    good: dict[str, Any] = {
        "scalar": 1,
        "vector": [1, 2],
        "series": [[1.0, 2.0]] * 10,
        "text": "ab",
        "image": np.zeros((28, 28), np.uint8).tolist(),
        "audio": [0.0] * 160,
    }
    values = [good[given["fields"]["x"]["kind"]]] * 6
    values[3] = value
    with refuses(*parts):
        read(given, values)


def test_damage_is_left_out_on_request_and_counted(tmp_path: Path):
    values: list[Any] = [[[1.0, 2.0]] * 10 for _ in range(6)]
    values[2] = [[float("nan"), 2.0]] * 5 + [[float("nan")] * 2] * 5
    found = read(SERIES, values, lenient=True)
    assert found.present[2].tolist() == [True, False] and found.present[1].all(), "a slice of nothing is no node"
    assert np.isnan(found.values[0][2][0]).tolist() == [True, False], "a reading that is masked"
    found = read(one("scalar"), [1, 2, "inf", 4], lenient=True)
    assert found.skipped == 1 and found.present[:, 0].tolist() == [True, True, False, True]
    found = read(one("image"), [np.zeros((28, 28), np.uint8).tolist(), str(tmp_path / "none.png")], lenient=True)
    assert found.skipped == 1 and found.present.any(1).tolist() == [True, False]


def test_damaged_files_are_named(tmp_path: Path):
    pillow = pytest.importorskip("PIL.Image", reason="images need pillow")
    pixels = np.random.default_rng(0).integers(0, 255, (28, 28), dtype=np.uint8)
    pillow.fromarray(pixels).save(tmp_path / "good.png")
    whole = (tmp_path / "good.png").read_bytes()
    write(tmp_path / "cut.png", whole[: len(whole) // 2])
    write(tmp_path / "t.csv", "x,y\ngood.png,a\ncut.png,b\n")
    given = write(tmp_path / "my.toml", '[fields.x]\nkind = "image"\n[targets.y]\nkind = "class"\n')
    with refuses("t.csv, line 3, x", "cut.png", "damaged or cut off", "--lenient"):
        tables.rows_of(str(tmp_path / "t.csv"), str(given), "", False)
    found = tables.rows_of(str(tmp_path / "t.csv"), str(given), "", True)
    assert found.skipped == 1 and np.array_equal(found.values[0][0][..., 0], pixels)


def test_a_sound_of_rate_zero_is_named(tmp_path: Path):
    pytest.importorskip("soundfile", reason="sounds need soundfile")
    samples = np.zeros(800, "<i2").tobytes()
    for name, rate in (("good.wav", 8000), ("zero.wav", 0)):
        head = struct.pack(
            "<4sI8sIHHIIHH4sI", b"RIFF", 36 + len(samples), b"WAVEfmt ", 16, 1, 1, rate, 0, 2, 16, b"data", len(samples)
        )
        write(tmp_path / name, head + samples)
    write(tmp_path / "t.csv", "x,y\ngood.wav,a\nzero.wav,b\n")
    given = '[fields.x]\nkind = "audio"\nseconds = 0.2\n[targets.y]\nkind = "class"\n'
    with refuses("t.csv, line 3, x", "zero.wav"):
        tables.rows_of(str(tmp_path / "t.csv"), given, "", False)


def test_a_table_that_is_wrong(tmp_path: Path):
    path = write(tmp_path / "t.csv", "age,kind\n1,a\n2,a\n3,\n")
    with refuses("the target 'kind' has one class (a)"):
        tables.rows_of(str(path), "own", "kind", False)
    with refuses("no column 'knd'", "did you mean 'kind'?"):
        tables.rows_of(str(path), "own", "knd", False)
    with refuses("--target NAME", "age, kind"):
        tables.rows_of(str(path), "own", "", False)
    given = '[fields.agee]\nkind = "scalar"\n[targets.kind]\nkind = "class"\n'
    with refuses("'agee'", "no such column", "did you mean 'age'?"):
        tables.rows_of(str(path), given, "", False)
    path = write(tmp_path / "u.csv", "age,kind\n1,a\n2,b\n3,\n")
    with refuses("u.csv, line 4", "kind is empty"):
        tables.rows_of(str(path), "own", "kind", False)
    with refuses("v.csv", "holds no rows"):
        tables.rows_of(str(write(tmp_path / "v.csv", "age,kind\n")), "own", "kind", False)
    with refuses("w.xlsx", "no table"):
        tables.rows_of(str(write(tmp_path / "w.xlsx", "age")), "own", "kind", False)


def test_the_json_beside_weights_is_not_believed():
    found = rows(known.sensors(), schema.read(known.SENSORS))
    values = json.loads(measured(found, found.part("train")).json())
    for what, bad in {"mean": [1.0], "std": [0.0, 1.0, 1.0], "values": [1], "words": 3}.items():
        assert what in MEASURED
        broken = json.loads(json.dumps(values))
        broken["fields"]["axes"][what] = bad
        with pytest.raises(InputError):
            schema.of(broken, "schema.json")
    assert set(KINDS) == {"category", "scalar", "vector", "series", "text", "image", "audio"}
