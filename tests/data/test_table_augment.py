"""Batches of rows and their augmentation: fields dropped, noise, time stretched, vectors rotated."""

from typing import Any

import numpy as np
import pytest

from anyformer.data.tables.augment import add_noise, drop_fields, rotate_vectors, stretch_time
from anyformer.data.tables.batches import build_batch, node_slices, value_key
from anyformer.data.tables.cache import TableDataset, encode_table
from anyformer.data.tables.datasets import SENSORS, open_sensors
from anyformer.data.tables.prepare import measure_schema
from anyformer.data.tables.schema import load_schema, parse_schema
from data_kit import make_table


@pytest.fixture(scope="module")
def sensors() -> TableDataset:
    return encode_table(open_sensors(), load_schema(SENSORS))


def series_dataset(channels: dict[str, int], seconds: float, rows: list[dict[str, Any]]) -> TableDataset:
    fields = {
        name: {"kind": "series", "channels": count, "rate": 10.0, "seconds": seconds}
        for name, count in channels.items()
    }
    table = make_table([row | {"y": "ab"[i % 2]} for i, row in enumerate(rows)])
    return encode_table(table, parse_schema({"fields": fields, "targets": {"y": {"kind": "class"}}}, "here"))


def test_labels_have_a_key_for_each_target():
    schema = {
        "fields": {"x": {"kind": "scalar"}},
        "targets": {"kind": {"kind": "class"}, "size": {"kind": "number"}},
    }
    rows = [{"x": 1, "kind": "b", "size": None}, {"x": 2, "kind": None, "size": 0.5}, {"x": 3, "kind": "a", "size": 2}]
    dataset = encode_table(make_table(rows), parse_schema(schema, "here"))
    batch = build_batch(dataset, np.array([2, 1, 0]))
    assert batch["value of x"][:, 0].tolist() == [3, 2, 1] and batch["present"].all()
    assert batch["labels/kind"].dtype == np.int64 and batch["labels/kind"].tolist() == [0, -100, 1]
    assert batch["labels/size"].dtype == np.float32
    np.testing.assert_array_equal(batch["labels/size"], np.array([2, 0.5, np.nan], np.float32))


def test_field_dropout_leaves_no_row_empty_and_has_its_probability(sensors: TableDataset):
    batch = build_batch(sensors, np.arange(240))
    slices = node_slices(sensors.schema)
    for probability in (0.0, 0.3, 0.99):
        present = drop_fields(sensors.schema, batch, probability, np.random.default_rng(0))["present"]
        assert present.any(1).all() and not (present & ~batch["present"]).any()
        had = [batch["present"][:, nodes].any(1) for nodes in slices]
        lost = [(present[:, nodes].any(1) != before)[before].mean() for nodes, before in zip(slices, had)]
        assert probability == 0.99 or np.mean(lost) == pytest.approx(probability, abs=0.05)


def test_noise_is_in_units_of_the_standard_deviation(sensors: TableDataset):
    schema = measure_schema(sensors, np.arange(240))
    batch = build_batch(sensors, np.arange(240))
    noisy = add_noise(schema, batch, 0.5, np.random.default_rng(0))
    for field in schema.fields:
        difference = noisy[value_key(field)].astype(np.float64) - batch[value_key(field)]
        expected = 0.5 * np.mean(field.std) if field.kind in ("scalar", "vector", "series") else 0.0
        assert np.nanstd(difference) == pytest.approx(expected, rel=0.2)


def test_the_series_of_a_row_are_stretched_by_one_factor():
    line = [[float(t), -2.0 * t] for t in range(20)]
    dataset = series_dataset({"a": 2, "b": 2}, 2.0, [{"a": line, "b": line}] * 200)
    batch = build_batch(dataset, np.arange(200))
    same = stretch_time(dataset.schema, batch, 0.0, np.random.default_rng(0))
    assert all(np.array_equal(same[name], batch[name]) for name in batch)
    stretched = stretch_time(dataset.schema, batch, 0.5, np.random.default_rng(0))
    a = stretched["value of a"]
    np.testing.assert_array_equal(a, stretched["value of b"])
    step = np.diff(a[..., 0], axis=1)
    assert np.nanmax(step) < 1.5 < 2 * np.nanmin(step) * 1.6, "a straight line, from 2/3 to 3/2 of its slope"
    np.testing.assert_allclose(step[np.isfinite(step)], (0 * step + step[:, :1])[np.isfinite(step)], rtol=1e-3)
    np.testing.assert_allclose(a[..., 1], -2 * a[..., 0], rtol=1e-4, atol=1e-4)
    has_readings = np.isfinite(a).reshape(200, 4, -1).any(2)
    np.testing.assert_array_equal(stretched["present"], np.concatenate([has_readings, has_readings], 1))
    assert 0.2 < has_readings[:, 3].mean() < 1 and np.nanmin(a[..., 0]) >= 0 and np.nanmax(a[..., 0]) <= 19


def test_the_vectors_of_a_row_are_rotated_as_one():
    rng = np.random.default_rng(1)
    rows = [
        {"a": rng.normal(size=(10, 3)).tolist(), "b": rng.normal(size=(10, 3)).tolist(), "c": np.ones((10, 2)).tolist()}
        for _ in range(50)
    ]
    dataset = series_dataset({"a": 3, "b": 3, "c": 2}, 1.0, rows)
    batch = build_batch(dataset, np.arange(50))
    rotated = rotate_vectors(dataset.schema, batch, 30.0, np.random.default_rng(0))
    a, b, old_a, old_b = rotated["value of a"], rotated["value of b"], batch["value of a"], batch["value of b"]
    np.testing.assert_array_equal(rotated["value of c"], batch["value of c"])
    np.testing.assert_allclose((a * b).sum(-1), (old_a * old_b).sum(-1), atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(a, axis=-1), np.linalg.norm(old_a, axis=-1), rtol=1e-5)
    cosine = (a * old_a).sum(-1) / np.linalg.norm(a, axis=-1) / np.linalg.norm(old_a, axis=-1)
    assert 10 < np.rad2deg(np.arccos(cosine.clip(-1, 1))).max() <= 30.1
    volume = np.linalg.det(np.stack([a[:, 0], a[:, 1], b[:, 0]], 1))  # a reflection would change its sign
    np.testing.assert_allclose(volume, np.linalg.det(np.stack([old_a[:, 0], old_a[:, 1], old_b[:, 0]], 1)), atol=1e-4)
