"""What training does to rows: fields left out, noise, time stretched."""

import numpy as np
import pytest

from anyformer.data.tables import datasets as known
from anyformer.data.tables import schema
from anyformer.data.tables.augment import batch, key, nodes_in, shaken, stretched, turned, without
from anyformer.data.tables.cache import rows
from anyformer.data.tables.statistics import measured
from data_kit import of_list

TABLE, SCHEMA = known.sensors(), schema.read(known.SENSORS)


def test_field_dropout_leaves_no_row_empty_and_is_as_often_as_asked():
    found = rows(TABLE, SCHEMA)
    made = batch(found, np.arange(240))
    for share in (0.0, 0.3, 0.99):
        kept = without(found.schema, made, share, np.random.default_rng(0))["present"]
        assert kept.any(1).all() and not (kept & ~made["present"]).any()
        there = [made["present"][:, nodes].any(1) for nodes in nodes_in(found.schema)]
        lost = [(kept[:, nodes].any(1) != t)[t].mean() for nodes, t in zip(nodes_in(found.schema), there)]
        assert share == 0.99 or np.mean(lost) == pytest.approx(share, abs=0.05)


def test_noise_is_in_the_units_of_the_data():
    full, found = measured(rows(TABLE, SCHEMA), np.arange(240)), rows(TABLE, SCHEMA)
    made = batch(found, np.arange(240))
    noisy = shaken(full, made, 0.5, np.random.default_rng(0))
    for one in full.fields:
        apart = noisy[key(one)].astype(np.float64) - made[key(one)]
        want = 0.5 * np.mean(one.std) if one.kind in ("scalar", "vector", "series") else 0.0
        assert np.nanstd(apart) == pytest.approx(want, rel=0.2)


def test_series_are_stretched_as_one():
    """Fields of a row keep time with each other; what is faster ends sooner, in missing nodes."""
    line = [[float(t), -2.0 * t] for t in range(20)]
    kind = {"kind": "series", "channels": 2, "rate": 10.0, "seconds": 2.0}
    given = {"fields": {"a": kind, "b": kind}, "targets": {"y": {"kind": "class"}}}
    table = of_list([{"a": line, "b": line, "y": "ab"[i % 2]} for i in range(200)])
    found = rows(table, schema.of(given, "here"))
    made = batch(found, np.arange(200))
    same = stretched(found.schema, made, 0.0, np.random.default_rng(0))
    assert all(np.array_equal(same[name], made[name]) for name in made)
    moved = stretched(found.schema, made, 0.5, np.random.default_rng(0))
    a, b = moved["value of a"], moved["value of b"]
    np.testing.assert_array_equal(a, b)
    step = np.diff(a[..., 0], axis=1)
    assert np.nanmax(step) < 1.5 < 2 * np.nanmin(step) * 1.6, "a steady line, from two thirds to half as fast again"
    np.testing.assert_allclose(step[np.isfinite(step)], (0 * step + step[:, :1])[np.isfinite(step)], rtol=1e-3)
    np.testing.assert_allclose(a[..., 1], -2 * a[..., 0], rtol=1e-4, atol=1e-4)
    seen = np.isfinite(a).reshape(200, 4, -1).any(2)
    np.testing.assert_array_equal(moved["present"], np.concatenate([seen, seen], 1))
    assert 0.2 < seen[:, 3].mean() < 1 and (np.nanmin(a[..., 0]) >= 0) and np.nanmax(a[..., 0]) <= 19


def test_vectors_in_space_are_turned_as_one():
    """Lengths and angles stay, nothing moves by more than was asked, what has not three channels is left alone."""
    kind = {"kind": "series", "channels": 3, "rate": 10.0, "seconds": 1.0}
    given = {"fields": {"a": kind, "b": kind, "c": kind | {"channels": 2}}, "targets": {"y": {"kind": "class"}}}
    rng = np.random.default_rng(1)
    some = [{"a": rng.normal(size=(10, 3)), "b": rng.normal(size=(10, 3)), "c": np.ones((10, 2))} for _ in range(50)]
    table = of_list([{k: v.tolist() for k, v in row.items()} | {"y": "ab"[i % 2]} for i, row in enumerate(some)])
    found = rows(table, schema.of(given, "here"))
    made = batch(found, np.arange(50))
    assert turned(found.schema, made, 0.0, np.random.default_rng(0)) is made
    moved = turned(found.schema, made, 30.0, np.random.default_rng(0))
    a, b, was, other = moved["value of a"], moved["value of b"], made["value of a"], made["value of b"]
    np.testing.assert_array_equal(moved["value of c"], made["value of c"])
    np.testing.assert_allclose((a * b).sum(-1), (was * other).sum(-1), atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(a, axis=-1), np.linalg.norm(was, axis=-1), rtol=1e-5)
    cosine = (a * was).sum(-1) / np.linalg.norm(a, axis=-1) / np.linalg.norm(was, axis=-1)
    apart = np.rad2deg(np.arccos(cosine.clip(-1, 1)))
    assert 10 < apart.max() <= 30.1
    volume = np.linalg.det(np.stack([a[:, 0], a[:, 1], b[:, 0]], 1))  # a mirror would change its sign
    np.testing.assert_allclose(volume, np.linalg.det(np.stack([was[:, 0], was[:, 1], other[:, 0]], 1)), atol=1e-4)
