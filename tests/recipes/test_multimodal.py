"""Multimodal: a missing field has no node, padding, order and positions of fields, the terms of the loss, requests."""

import contextlib
import dataclasses
import io
import json
import math
import sys
from itertools import islice
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from anyformer import api, recipe_loading
from anyformer.cli.train import confirm_schema
from anyformer.data.tables.batches import build_batch, node_slices, value_key
from anyformer.data.tables.cache import TableDataset, encode_table
from anyformer.data.tables.datasets import SPOKEN_DIGITS, WATCH, open_sensors, open_table
from anyformer.data.tables.schema import Schema, load_schema
from anyformer.errors import InputError
from anyformer.training import loop
from cli_kit import assert_refused, call
from data_kit import needs_data, refuses, write

multimodal: Any = recipe_loading.load_recipe("multimodal")
TINY = multimodal.PRESETS["tiny"]
N_FIELDS = 7


def build_model(schema: Schema | None = None) -> Any:
    """Build the tiny model with weights that are large enough to matter."""
    torch.manual_seed(0)
    model = multimodal.MultimodalTransformer(TINY, schema or multimodal.fit_schema(TINY))
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return model.eval()


def complete_rows(n: int = 6) -> dict[str, torch.Tensor]:
    """A batch of rows that have every field."""
    data = multimodal.load_rows(TINY)
    slices = node_slices(data.schema)
    rows = [i for i in range(len(data)) if all(data.present[i, nodes].any() for nodes in slices)]
    return multimodal.to_tensors(build_batch(data, np.array(rows[:n])))


@torch.inference_mode()
def predict(model: Any, batch: dict[str, torch.Tensor]) -> list[torch.Tensor]:
    return model.predict_batch(batch)


def assert_close(a: list[torch.Tensor], b: list[torch.Tensor]) -> None:
    for x, y in zip(a, b, strict=True):
        torch.testing.assert_close(x, y, rtol=1e-4, atol=1e-4)


def sensor_rows(n: int) -> list[dict[str, Any]]:
    """Rows of the sensors, without their targets; some lack fields."""
    rows = [row for _, row in zip(range(n), (row for _, row in open_sensors().rows()))]
    return [{name: value for name, value in row.items() if name not in ("state", "load")} for row in rows]


# --- fields ---


@pytest.mark.parametrize("i", range(N_FIELDS))
def test_a_missing_field_is_a_missing_node(i: int):
    """A model without the field has the same outputs for a row that lacks it."""
    model, batch = build_model(), complete_rows()
    fields, nodes = model.schema.fields, node_slices(model.schema)[i]
    batch["present"][:, nodes] = False
    batch[value_key(fields[i])] = batch[value_key(fields[i])] * 0 + 1  # not read
    small = build_model(dataclasses.replace(model.schema, fields=fields[:i] + fields[i + 1 :]))
    kept = [k for k in range(N_FIELDS) if k != i]
    with torch.no_grad():
        for new, old in zip(small.nodes.parts, (model.nodes.parts[k] for k in kept), strict=True):
            new.load_state_dict(old.state_dict())
        small.nodes.kind.weight.copy_(model.nodes.kind.weight[kept])
        small.nodes.cls_token.copy_(model.nodes.cls_token)
    small.body.load_state_dict(model.body.state_dict())
    small.heads.load_state_dict(model.heads.state_dict())
    present = torch.cat([batch["present"][:, : nodes.start], batch["present"][:, nodes.stop :]], 1)
    assert_close(predict(model, batch), predict(small, batch | {"present": present}))


def test_every_field_is_read():
    model, batch = build_model(), complete_rows()
    before = predict(model, batch)[0]
    for field, nodes in zip(model.schema.fields, node_slices(model.schema), strict=True):
        present = batch["present"].clone()
        present[:, nodes] = False
        assert (predict(model, batch | {"present": present})[0] - before).abs().max() > 1e-3, field.name


def test_a_field_that_a_request_lacks_is_missing():
    model, (row,) = build_model(), sensor_rows(4)[3:]
    complete = multimodal.predict(model, {"input": row})["results"]
    for name in row:
        absent = multimodal.predict(model, {"input": {key: value for key, value in row.items() if key != name}})
        null = multimodal.predict(model, {"input": row | {name: None}})
        assert absent["results"] == null["results"] != complete


def test_batched_equals_single():
    model, rows = build_model(), sensor_rows(12)
    together = multimodal.predict(model, {"input": rows})["results"]
    for row, result in zip(rows, together, strict=True):
        (alone,) = multimodal.predict(model, {"input": row})["results"]
        assert alone["load"]["value"] == pytest.approx(result["load"]["value"], abs=1e-4)
        assert alone["state"]["probabilities"] == pytest.approx(result["state"]["probabilities"], abs=1e-4)


def test_a_missing_value_is_not_read_even_if_it_is_nan():
    model, batch = build_model(), complete_rows()
    batch["present"][:, node_slices(model.schema)[3]] = False
    before = predict(model, batch)
    batch["value of motion"] = torch.full_like(batch["value of motion"], torch.nan)
    assert_close(before, predict(model, batch))


def test_the_order_of_fields_does_not_matter():
    """Fields are a set: positions are those of nodes within a field."""
    model, batch, order = build_model(), complete_rows(), [4, 0, 6, 2, 5, 1, 3]
    other = build_model(dataclasses.replace(model.schema, fields=tuple(model.schema.fields[i] for i in order)))
    state = model.state_dict()
    moved = {name: value for name, value in state.items() if not name.startswith("nodes.parts.")}
    for new, old in enumerate(order):
        prefix = f"nodes.parts.{old}."
        moved |= {f"nodes.parts.{new}.{n.removeprefix(prefix)}": v for n, v in state.items() if n.startswith(prefix)}
    moved["nodes.kind.weight"] = state["nodes.kind.weight"][order]
    other.load_state_dict(moved)
    slices = node_slices(model.schema)
    present = torch.cat([batch["present"][:, slices[i]] for i in order], 1)
    assert_close(predict(model, batch), predict(other, batch | {"present": present}))


@pytest.mark.parametrize(("position", "matters"), [("none", False), ("learned", True), ("fixed", True)])
def test_the_order_within_a_field_matters_where_it_has_positions(position: str, matters: bool):
    schema = multimodal.fit_schema(TINY)
    fields = [dataclasses.replace(f, position=position) if f.kind == "series" else f for f in schema.fields]
    model, batch = build_model(dataclasses.replace(schema, fields=tuple(fields))), complete_rows()
    swapped = batch["value of motion"].view(6, 4, 5, 2)[:, [2, 0, 3, 1]].reshape(6, 20, 2)
    difference = predict(model, batch)[0] - predict(model, batch | {"value of motion": swapped})[0]
    assert (difference.abs().max() > 1e-3) == matters


# --- loss and scores ---


@pytest.mark.slow
def test_it_learns_both_targets():
    config = dataclasses.replace(TINY, train=dataclasses.replace(TINY.train, steps=60, batch=16, lr=8e-3))
    state = loop.init_state(multimodal, config)
    for _ in loop.train(multimodal, config, state):
        pass
    metrics = loop.evaluate(multimodal, state.model, (batch for batch, _ in multimodal.batches(config, "val")))
    assert metrics["state_accuracy"] > 0.9 and metrics["load_r2"] > 0.6


def test_metrics_by_hand():
    model = build_model()
    batch = multimodal.to_tensors(build_batch(multimodal.load_rows(TINY), np.arange(60)))
    metrics = loop.evaluate(multimodal, model, iter([batch]))
    state, load = predict(model, batch)
    target = model.schema.targets[1]
    predictions = load[:, 0] * target.std[0] + target.mean[0]
    accuracy = (state.argmax(1) == batch["labels/state"]).float().mean().item()
    assert metrics["state_accuracy"] == pytest.approx(accuracy)
    rmse = (predictions - batch["labels/load"]).square().mean().sqrt().item()
    assert metrics["load_rmse"] == pytest.approx(rmse, rel=1e-4)
    assert multimodal.loss(model, batch).item() == pytest.approx(metrics["loss"], rel=1e-4)


def test_unknown_labels_do_not_count(tmp_path: Path):
    """The terms of the loss are means over the known labels, and their weights count these."""
    rows = [
        {"x": i} | ({"kind": "ab"[i % 2]} if i % 4 else {}) | ({"size": 2 * i} if i % 4 != 1 else {}) for i in range(40)
    ]
    path = write(tmp_path / "t.jsonl", "".join(f"{json.dumps(row)}\n" for row in rows))
    config = dataclasses.replace(TINY, data=str(path), target="kind,size")
    batches = [batch for batch, _ in multimodal.batches(config, "all")]
    model = multimodal.build(config)
    for batch in batches:
        is_known = ~batch["labels/size"].isnan(), batch["labels/kind"] >= 0
        assert multimodal.loss_weight(batch).tolist() == [int(is_known[1].sum()), int(is_known[0].sum())]
        kind, size = predict(model, batch)
        target = model.schema.targets[1]
        nats = torch.nn.functional.cross_entropy(kind[is_known[1]], batch["labels/kind"][is_known[1]])
        error = (size[:, 0] - (batch["labels/size"] - target.mean[0]) / target.std[0])[is_known[0]].square().mean()
        torch.testing.assert_close(multimodal.loss_terms(model, batch), torch.stack([nats, error]) / 2)
        torch.testing.assert_close(multimodal.loss(model, batch), (nats + error) / 2)
    assert any(batch["labels/kind"].min() < 0 for batch in batches)


# --- from the command line ---


@pytest.fixture(scope="module")
def table_run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A table and a run on it."""
    folder = tmp_path_factory.mktemp("table")
    rng, lines = np.random.default_rng(0), ["length,soil,species"]
    for i in range(120):
        length = "" if i % 10 == 9 else f"{rng.normal(4 + 2 * (i % 3), 0.4):.2f}"
        lines.append(f"{length},{('clay', 'sand')[i // 3 % 2]},{('setosa', 'versicolor', 'virginica')[i % 3]}")
    table = write(folder / "flowers.csv", "\n".join(lines) + "\n")
    few = ("--steps", 60, "--train.batch", 32, "--train.lr", 0.003, "--train.eval-every", 30, "--device", "cpu")
    data = ("--data", table, "--target", "species")
    result = call("train", "multimodal", "--preset", "tiny", *data, *few, "--out", folder / "run", "--json").ok()
    assert result.json["val_accuracy"] > 0.8
    assert '[fields.length]\nkind = "scalar"' in result.err and "--print-schema > my.toml" in result.err
    return table, folder / "run"


def test_a_run_predicts_without_its_data(table_run: tuple[Path, Path], tmp_path: Path):
    table, run = table_run
    run, table = run.rename(tmp_path / "elsewhere"), table.rename(tmp_path / "gone.csv")
    try:
        model = api.load(run, "cpu")
        (result,) = model.predict([{"length": 8.1}])["results"]
        assert result["label"] == "virginica" and sum(result["probabilities"].values()) == pytest.approx(1)
        assert len(model.predict(str(table))["results"]) == 120
        inputs = ('{"length": 3.9, "soil": "clay"}', table)
        lines = call("predict", run, *inputs, "--device", "cpu").ok().out.splitlines()
        results = [json.loads(line) for line in lines]
        assert len(results) == 121 and results[0]["label"] == "setosa" and results[2]["truth"] == "versicolor"
        rows = call("eval", run, "--data", table, "--json").ok().json["rows"]
        assert rows == 24, "the same data in another place: its validation split"
    finally:
        run.rename(table_run[1])
        table.rename(table_run[0])


def test_a_schema_is_printed_and_used(table_run: tuple[Path, Path], tmp_path: Path):
    command = ("train", "multimodal", "--preset", "tiny", "--data", table_run[0], "--device", "cpu")
    text = call(*command, "--target", "species", "--print-schema").ok().out
    wrong = write(tmp_path / "wrong.toml", text.replace("[fields.soil]", "[fields.length2]"))
    assert_refused(call(*command, "--schema", wrong, "--out", tmp_path / "run"), "'length2'", "no such column")
    schema = write(tmp_path / "my.toml", text)
    result = call(*command, "--schema", schema, "--steps", 1, "--out", tmp_path / "run").ok()
    assert "inferred" not in result.err, "a given schema is not asked about"


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(("answer", "goes_on"), [("n\n", False), ("\n", True), ("Yes\n", True)])
def test_a_person_at_a_terminal_is_asked(
    table_run: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch, answer: str, goes_on: bool
):
    config = dataclasses.replace(TINY, data=str(table_run[0]), target="species")
    job: Any = SimpleNamespace(recipe=multimodal, config=config)
    monkeypatch.setattr(sys, "stdin", Terminal(answer))
    monkeypatch.setattr(sys, "stderr", Terminal())
    with contextlib.nullcontext() if goes_on else pytest.raises(InputError, match="not trained"):
        assert confirm_schema(job, yes=False) > 0, "the seconds that do not count as training"
    assert "[Y/n]" in sys.stderr.getvalue() and "[targets.species]" in sys.stderr.getvalue()
    monkeypatch.setattr(sys, "stdin", Terminal("n\n"))
    assert confirm_schema(job, yes=True) == 0
    job.config = TINY
    assert confirm_schema(job, yes=False) == 0, "the set's own schema needs no approval"


@pytest.mark.parametrize(
    ("row", "parts"),
    [
        ('{"lenght": 4}', ("'lenght'", "did you mean 'length'?")),
        ('{"length": "long"}', ("input 0, length: 'long' is not a number",)),
        ('{"length": NaN}', ("not finite",)),
        ("{length", ("not JSON",)),
        ("nowhere.csv", ("nowhere.csv", "no such table")),
        (3, ("input 0 is int; a row is expected",)),
    ],
)
def test_requests_that_cannot_be_answered(table_run: tuple[Path, Path], row: Any, parts: tuple[str, ...]):
    with refuses(*parts):
        api.load(table_run[1], "cpu").predict(input=row)


def test_a_category_that_was_not_seen_is_missing_and_said(
    table_run: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
):
    results = api.load(table_run[1], "cpu").predict([{"length": 8.1, "soil": "clays"}, {"length": 8.1}])["results"]
    assert results[0] == results[1]
    notice = "soil: values that were not seen in training are read as missing; seen: clay, sand"
    assert capsys.readouterr().err.count(notice) == 1


@pytest.mark.slow
@needs_data
def test_the_real_sets_are_complete():
    """Every row is read, and one in fifty encoded."""

    def encode_some(name: str, schema: str) -> tuple[list[dict], TableDataset]:
        table = open_table(name)
        some = dataclasses.replace(table, rows=lambda: islice(table.rows(), 0, None, 50))
        return [row for _, row in table.rows()], encode_table(some, load_schema(schema))

    rows, watch = encode_some("watch", WATCH)
    assert len(rows) > 4000 and len(watch) == math.ceil(len(rows) / 50)
    assert len({row["subject"] for row in rows}) == 10 and len({row["exercise"] for row in rows}) == 7
    groups = [watch.groups[watch.split(split, "3/10")] for split in ("train", "val")]
    assert len(np.unique(groups[1])) == 1 and not set(groups[0]) & set(groups[1]), "a person is in one split"
    rows, digits = encode_some("spoken-digits", SPOKEN_DIGITS)
    assert [sum(row["split"] == split for row in rows) for split in ("train", "val")] == [8100, 300]
    assert all((rows[50 * i]["split"] == "val") == (i in digits.split("val")) for i in range(len(digits)))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": dataclasses.replace(TINY.model, context=8)}, "--model.context 29"),
        ({"model": dataclasses.replace(TINY.model, position="rotary")}, "positions belong to the fields"),
        ({"field_dropout": 1.0}, "field_dropout is 1.0; it must be at least 0 and below 1"),
        ({"noise": -1.0}, "noise is -1.0"),
        ({"max_rotation": 1e30}, "max_rotation is 1e+30; it must be at least 0 and at most 180"),
        ({"fold": "7/5"}, "fold is '7/5'"),
        ({"target": "load"}, "a schema of its own"),
        ({"data": "wacth"}, "did you mean 'watch'?"),
        ({"data": "nowhere.csv"}, "nowhere.csv"),
    ],
)
def test_configs_that_make_no_sense(changes: dict[str, Any], message: str):
    with refuses(message):
        config = dataclasses.replace(TINY, **changes)
        multimodal.build(config)
        next(multimodal.batches(config, "train"))
