"""Rows of many kinds: what is missing is no node, padding and company change nothing, positions are asked for."""

import contextlib
import dataclasses
import io
import json
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from anyformer import api
from anyformer.cli import train as verb
from anyformer.data.tables import datasets as known
from anyformer.data.tables import schema
from anyformer.data.tables.augment import batch, key, nodes_in
from anyformer.data.tables.cache import rows
from anyformer.errors import InputError
from anyformer.recipes import multimodal
from anyformer.training import loop
from cli_kit import call, refused
from data_kit import needs_data

TINY = multimodal.PRESETS["tiny"]


def built(seed: int = 0, given: schema.Schema | None = None) -> multimodal.MultimodalTransformer:
    """The tiny model with weights large enough to matter."""
    torch.manual_seed(seed)
    model = multimodal.MultimodalTransformer(TINY, given or multimodal.fitted(TINY))
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return model.eval()


def some(n: int = 6) -> dict[str, torch.Tensor]:
    """Rows that have every field."""
    found = multimodal.rows(TINY)
    whole = [i for i in range(len(found)) if all(found.present[i, nodes].any() for nodes in nodes_in(found.schema))]
    return multimodal.tensors(batch(found, np.array(whole[:n])))


def asked(model: Any, made: dict[str, torch.Tensor]) -> list[torch.Tensor]:
    with torch.inference_mode():
        return model.answers(made)


def near(a: list[torch.Tensor], b: list[torch.Tensor]) -> None:
    for one, other in zip(a, b, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


def row(i: int = 3) -> dict[str, Any]:
    """A row of the sensors, without what is to be told."""
    found = next(one for k, (_, one) in enumerate(known.sensors().rows()) if k == i)
    return {name: value for name, value in found.items() if name not in ("state", "load")}


@pytest.mark.parametrize("i", range(7))
def test_a_missing_field_is_a_missing_node(i: int):
    """A model that never had the field, but for its kind, says the same of a row that lacks it."""
    model, made = built(), some()
    full = model.schema
    made["present"][:, nodes_in(full)[i]] = False
    made[key(full.fields[i])] = made[key(full.fields[i])] * 0 + 1  # what stands there is not read
    small = built(given=dataclasses.replace(full, fields=full.fields[:i] + full.fields[i + 1 :]))
    kept = [k for k in range(7) if k != i]
    with torch.no_grad():
        for parts in zip((small.nodes.parts[k] for k in range(6)), (model.nodes.parts[k] for k in kept)):
            parts[0].load_state_dict(parts[1].state_dict())
        small.nodes.kind.weight.copy_(model.nodes.kind.weight[kept])
        small.nodes.first.copy_(model.nodes.first)
    small.body.load_state_dict(model.body.state_dict())
    small.heads.load_state_dict(model.heads.state_dict())
    at = nodes_in(full)[i]
    fewer = made | {"present": torch.cat([made["present"][:, : at.start], made["present"][:, at.stop :]], 1)}
    near(asked(model, made), asked(small, fewer))


def test_a_field_that_is_there_is_read():
    model, made = built(), some()
    for one, nodes in zip(model.schema.fields, nodes_in(model.schema), strict=True):
        gone = made["present"].clone()
        gone[:, nodes] = False
        assert (asked(model, made | {"present": gone})[0] - asked(model, made)[0]).abs().max() > 1e-3, one.name


def test_absent_in_a_request_is_dropped_in_training():
    """A row without a field, as a person asks it, is the row of which training left the field out."""
    model, given = built(), row()
    with_all = [multimodal.predict(model, {"input": given})["results"][0]]
    for name in list(given):
        lacks = {key: value for key, value in given.items() if key != name}
        null = multimodal.predict(model, {"input": given | {name: None}})["results"][0]
        assert multimodal.predict(model, {"input": lacks})["results"][0] == null != with_all[0]


def test_batched_is_single_and_padding_changes_nothing():
    model = built()
    given = [row(i) for i in range(12)]  # some lack fields: shorter rows beside longer ones
    together = multimodal.predict(model, {"input": given})["results"]
    for one, told in zip(given, together, strict=True):
        (alone,) = multimodal.predict(model, {"input": one})["results"]
        assert alone["load"]["value"] == pytest.approx(told["load"]["value"], abs=1e-4)
        assert alone["state"]["probabilities"] == pytest.approx(told["state"]["probabilities"], abs=1e-4)


def test_what_is_not_there_is_not_read_even_if_it_is_no_number():
    model, made = built(), some()
    made["present"][:, nodes_in(model.schema)[3]] = False
    before = asked(model, made)
    made["value of motion"] = torch.full_like(made["value of motion"], torch.nan)
    near(before, asked(model, made))


def test_the_order_of_fields_does_not_matter():
    """Fields are a set: positions are those of nodes within a field."""
    model, made = built(), some()
    full, turned = model.schema, [4, 0, 6, 2, 5, 1, 3]
    other = built(given=dataclasses.replace(full, fields=tuple(full.fields[i] for i in turned)))
    state = model.state_dict()
    moved = {name: value for name, value in state.items() if not name.startswith("nodes.parts.")}
    for new, old in enumerate(turned):
        start = f"nodes.parts.{old}."
        moved |= {f"nodes.parts.{new}.{n.removeprefix(start)}": v for n, v in state.items() if n.startswith(start)}
    moved["nodes.kind.weight"] = state["nodes.kind.weight"][turned]
    other.load_state_dict(moved)
    at = nodes_in(full)
    present = torch.cat([made["present"][:, at[i]] for i in turned], 1)
    near(asked(model, made), asked(other, made | {"present": present}))


@pytest.mark.parametrize(("position", "moves"), [("none", False), ("learned", True), ("fixed", True)])
def test_positions_are_asked_for(position: str, moves: bool):
    """Slices of a series in another order are the same set where they have no position."""
    full = multimodal.fitted(TINY)
    fields = [dataclasses.replace(one, position=position) if one.kind == "series" else one for one in full.fields]
    model, made = built(given=dataclasses.replace(full, fields=tuple(fields))), some()
    turned = made["value of motion"].view(6, 4, 5, 2)[:, [2, 0, 3, 1]].reshape(6, 20, 2)
    apart = (asked(model, made)[0] - asked(model, made | {"value of motion": turned})[0]).abs().max()
    assert (apart > 1e-3) == moves


def test_it_learns_what_there_is_to_learn():
    config = dataclasses.replace(TINY, train=dataclasses.replace(TINY.train, steps=120, batch=32, lr=3e-3))
    state = loop.start(multimodal, config)
    for _ in loop.train(multimodal, config, state):
        pass
    every = (made for made, _ in multimodal.batches(config, "val"))
    found = loop.evaluate(multimodal, state.model, every)
    assert found["state_accuracy"] > 0.9 and found["load_r2"] > 0.6


def test_scores_are_what_they_say():
    model = built()
    made = multimodal.tensors(batch(multimodal.rows(TINY), np.arange(60)))
    found = loop.evaluate(multimodal, model, iter([made]))
    state, load = asked(model, made)
    target = model.schema.targets[1]
    said = load[:, 0] * target.std[0] + target.mean[0]
    assert found["state_accuracy"] == pytest.approx((state.argmax(1) == made["targets"][:, 0]).float().mean().item())
    assert found["load_rmse"] == pytest.approx((said - made["targets"][:, 1]).square().mean().sqrt().item(), rel=1e-4)
    assert multimodal.loss(model, made).item() == pytest.approx(found["loss"], rel=1e-4)


def test_a_target_that_a_row_does_not_tell_is_not_asked(tmp_path: Path):
    path = tmp_path / "t.jsonl"
    lines = [{"x": i, "kind": "ab"[i % 2]} | ({"size": 2 * i} if i % 3 else {}) for i in range(40)]
    path.write_text("\n".join(map(json.dumps, lines)))
    config = dataclasses.replace(TINY, data=str(path), target="kind,size")
    made, _ = next(multimodal.batches(config, "all"))
    model = multimodal.build(config)
    assert made["targets"][:, 1].isnan().any() and multimodal.loss(model, made).isfinite()


# --- from the command line ---


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A table and a run on it."""
    folder = tmp_path_factory.mktemp("table")
    rng, lines = np.random.default_rng(0), ["length,soil,species"]
    for i in range(120):
        length = "" if i % 10 == 9 else f"{rng.normal(4 + 2 * (i % 3), 0.4):.2f}"
        lines.append(f"{length},{('clay', 'sand')[i // 3 % 2]},{('setosa', 'versicolor', 'virginica')[i % 3]}")
    (folder / "flowers.csv").write_text("\n".join(lines) + "\n")
    few = ("--steps", 60, "--train.batch", 32, "--train.lr", 0.003, "--train.eval-every", 30, "--device", "cpu")
    data = ("--data", folder / "flowers.csv", "--target", "species")
    said = call("train", "multimodal", "--preset", "tiny", *data, *few, "--out", folder / "run", "--json").well()
    assert said.json["val_accuracy"] > 0.8
    assert '[fields.length]\nkind = "scalar"' in said.err and "--print-schema > my.toml" in said.err
    return folder / "flowers.csv", folder / "run"


def test_a_run_answers_without_its_data(trained: tuple[Path, Path], tmp_path: Path):
    table, run = trained
    moved = tmp_path / "elsewhere"
    run.rename(moved)
    table.rename(tmp_path / "gone.csv")
    try:
        (told,) = api.load(moved, "cpu").predict({"input": {"length": 8.1}})["results"]
        assert told["label"] == "virginica" and sum(told["probabilities"].values()) == pytest.approx(1)
        said = call(
            "predict", moved, '{"length": 3.9, "soil": "clay"}', tmp_path / "gone.csv", "--device", "cpu"
        ).well()
        results = [json.loads(line) for line in said.out.splitlines()]
        assert len(results) == 121 and results[0]["label"] == "setosa" and results[2]["truth"] == "versicolor"
        found = call("eval", moved, "--data", tmp_path / "gone.csv", "--json").well().json
        assert found["rows"] == 24, "the same data elsewhere: its validation part"
    finally:
        moved.rename(run)
        (tmp_path / "gone.csv").rename(table)


def test_a_schema_is_written_out_and_given_back(trained: tuple[Path, Path], tmp_path: Path):
    table, _ = trained
    asked = ("train", "multimodal", "--preset", "tiny", "--data", table, "--device", "cpu")
    text = call(*asked, "--target", "species", "--print-schema").well().out
    (tmp_path / "my.toml").write_text(text.replace("[fields.soil]", "[fields.length2]"))
    refused(call(*asked, "--schema", tmp_path / "my.toml", "--out", tmp_path / "run"), "'length2'", "no such column")
    (tmp_path / "my.toml").write_text(text)
    said = call(*asked, "--schema", tmp_path / "my.toml", "--steps", 1, "--out", tmp_path / "run").well()
    assert "seem to hold" not in said.err, "what was given is not asked about"


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(("says", "goes_on"), [("n\n", False), ("\n", True), ("Yes\n", True)])
def test_whoever_sits_at_a_terminal_is_asked(
    trained: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch, says: str, goes_on: bool
):
    config = dataclasses.replace(TINY, data=str(trained[0]), target="species")
    monkeypatch.setattr(sys, "stdin", Terminal(says))
    monkeypatch.setattr(sys, "stderr", Terminal())
    with contextlib.nullcontext() if goes_on else pytest.raises(InputError, match="not trained"):
        assert verb.approve(multimodal, config, yes=False) > 0  # for so long nobody was training
    assert "[Y/n]" in sys.stderr.getvalue() and "[targets.species]" in sys.stderr.getvalue()
    monkeypatch.setattr(sys, "stdin", Terminal("n\n"))
    assert verb.approve(multimodal, config, yes=True) == 0
    assert verb.approve(multimodal, TINY, yes=False) == 0  # the set's own schema needs no approval


def test_what_cannot_be_asked_is_one_line(trained: tuple[Path, Path]):
    _, run = trained
    cases = {
        '{"lenght": 4}': ("'lenght'", "did you mean 'length'?"),
        '{"length": "long"}': ("input 0, length: 'long' is no number",),
        '{"length": NaN}': ("not finite",),
        '{"soil": "clays"}': ("'clays' was not seen in training", "clay"),
        "{length": ("not JSON",),
        "nowhere.csv": ("nowhere.csv", "no such table"),
    }
    for given, parts in cases.items():
        refused(call("predict", run, given, "--device", "cpu"), *parts)


@needs_data
def test_the_real_sets_are_what_they_say():
    found = rows(known.table("watch"), schema.read(known.WATCH))
    assert len(found) == 4695 or len(found) > 4000
    parts = [found.groups[found.part(split, "3/10")] for split in ("train", "val")]
    assert len(np.unique(parts[1])) == 1 and not set(parts[0]) & set(parts[1]), "a person is on one side"
    pairs = rows(known.table("spoken-digits"), schema.read(known.DIGITS))
    assert len(pairs.part("val")) == 300 and len(pairs.part("train")) == 8100


def started(config: multimodal.Config) -> None:
    multimodal.build(config)
    next(multimodal.batches(config, "train"))


def test_sizes_that_do_not_fit_are_one_line():
    cases: list[tuple[dict[str, Any], str]] = [
        ({"model": dataclasses.replace(TINY.model, context=8)}, "--model.context 29"),
        ({"model": dataclasses.replace(TINY.model, position="rotary")}, "positions belong to the fields"),
        ({"absent": 1.0}, "absent is 1.0"),
        ({"noise": -1.0}, "noise -1.0"),
        ({"fold": "7/5"}, "fold is '7/5'"),
        ({"target": "load"}, "a schema of its own"),
        ({"data": "wacth"}, "did you mean 'watch'?"),
        ({"data": "nowhere.csv"}, "nowhere.csv"),
    ]
    for more, said in cases:
        with pytest.raises(InputError, match=re.escape(said)):
            started(dataclasses.replace(TINY, **more))
