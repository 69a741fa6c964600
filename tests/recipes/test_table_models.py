"""Tables: the place of numbers among quantiles, the linear path, calibration, folds, gradient boosting beside."""

import dataclasses
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from anyformer import api, recipe_loading
from anyformer.cli.train_several import describe_fold_comparison
from anyformer.data.tables.schema import load_schema
from anyformer.model.embeddings import Normalized
from anyformer.model.tabular import PiecewiseLinear
from anyformer.recipes._shared.trivial_baselines import fit_classes
from anyformer.training import loop
from cli_kit import assert_refused, call
from data_kit import refuses, write

multimodal: Any = recipe_loading.load_recipe("multimodal")
FEW = ("--preset", "tiny", "--steps", "30", "--train.lr", "0.003", "--device", "cpu")


@pytest.fixture(scope="module")
def houses(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A table whose target is a number: a curve of the size, and the place."""
    rng, lines = np.random.default_rng(0), ["size,place,price"]
    for _ in range(200):
        size, place = rng.uniform(20, 120), rng.integers(3)
        shown = "" if rng.random() < 0.1 else f"{size:.1f}"
        lines.append(f"{shown},{'abc'[place]},{abs(size - 70) + 20 * place + rng.normal(0, 2):.2f}")
    return write(tmp_path_factory.mktemp("houses") / "houses.csv", "\n".join(lines) + "\n")


@pytest.fixture(scope="module")
def house_run(houses: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("run") / "run"
    call("train", "multimodal", "--data", houses, "--target", "price", "--linear-path", *FEW, "--out", out).ok()
    return out


def make_config(data: Path, target: str, **fields: Any) -> Any:
    return dataclasses.replace(multimodal.PRESETS["tiny"], data=str(data), target=target, **fields)


# --- quantiles and the linear path ---


def test_quantiles_are_of_the_training_rows_and_stored(houses: Path, house_run: Path):
    config = make_config(houses, "price")
    size = multimodal.fit_schema(config).fields[0]
    data = multimodal.load_rows(config)
    rows = data.split("train", config.fold)
    values = np.asarray(data.values[0])[rows[data.present[rows, 0]], 0]
    assert size.quantiles[0] == values.min() and size.quantiles[-1] == values.max() and len(size.quantiles) == 17
    assert size.quantiles[8] == pytest.approx(np.median(values), rel=1e-5)
    stored = load_schema(str(api.load(house_run, "cpu").path / "schema.json"))
    assert stored.fields[0].quantiles == size.quantiles


def test_a_schema_of_earlier_versions_keeps_its_model(houses: Path):
    """Runs that know no quantiles read numbers as they did."""
    schema = multimodal.fit_schema(make_config(houses, "price"))
    old = dataclasses.replace(schema, fields=(dataclasses.replace(schema.fields[0], quantiles=()), *schema.fields[1:]))
    config = multimodal.PRESETS["tiny"]
    parts = [multimodal.MultimodalTransformer(config, table).nodes.parts[0] for table in (old, schema)]
    assert isinstance(parts[0], Normalized) and isinstance(parts[1][0], PiecewiseLinear)
    assert "linear.bias" not in multimodal.MultimodalTransformer(config, old).state_dict()


@pytest.mark.parametrize("quantiles", [[1.0, 1.0], [2.0, 1.0]])
def test_quantiles_must_increase(houses: Path, quantiles: list[float]):
    values = json.loads(multimodal.fit_schema(make_config(houses, "price")).to_json())
    values["fields"]["size"]["quantiles"] = quantiles
    with refuses("size", "quantiles must increase"):
        load_schema(json.dumps(values))


def test_the_linear_path_adds_to_each_target():
    config = dataclasses.replace(multimodal.PRESETS["tiny"], linear_path=True)
    model = multimodal.build(config).eval()
    batch, _ = next(multimodal.batches(config, "val"))
    plain = multimodal.build(multimodal.PRESETS["tiny"])
    plain.load_state_dict({k: v for k, v in model.state_dict().items() if not k.startswith("linear.")})
    with torch.no_grad():
        before = plain.eval().predict_batch(batch)
        for output, expected in zip(model.predict_batch(batch), before, strict=True):
            torch.testing.assert_close(output, expected)  # the path starts at zero
        model.linear.bias.copy_(torch.tensor([0.1, 0.2, 0.3, 0.4]))
        state, load = model.predict_batch(batch)
    torch.testing.assert_close(state, before[0] + torch.tensor([1.0, 2.0, 3.0]))
    torch.testing.assert_close(load, before[1] + 4.0)


# --- how sure it is ---


def test_predicted_numbers_have_intervals(house_run: Path):
    model = api.load(house_run, "cpu")
    (result,) = model.predict([{"size": 40.0, "place": "b"}])["results"]
    errors = json.loads((model.path / "schema.json").read_text())["targets"]["price"]["errors"]
    assert 0 < errors[0] <= errors[1]
    for error, (low, high) in zip(errors, result["interval"].values(), strict=True):
        assert (low, high) == pytest.approx((result["value"] - error, result["value"] + error))
    sensors = multimodal.build(multimodal.PRESETS["tiny"]).eval()
    row = multimodal.examples(multimodal.PRESETS["tiny"]).request["input"][0]
    before = multimodal.predict(sensors, {"input": row})["results"][0]
    sensors.set_schema(sensors.schema.with_measurements({"load": {"errors": [2.0, 3.0]}}))
    after = multimodal.predict(sensors, {"input": row})["results"][0]
    assert after["state"] == before["state"] and "interval" not in before["load"]
    value = after["load"]["value"]
    assert after["load"]["interval"] == {"80%": [value - 2, value + 2], "90%": [value - 3, value + 3]}


def test_the_intervals_are_of_the_validation_split(house_run: Path):
    model = api.load(house_run, "cpu")
    batches = [batch for batch, _ in multimodal.batches(model.config, "val")]
    with torch.no_grad():
        values = torch.cat([model.module.predict_batch(batch)[0][:, 0] for batch in batches])
    target = model.module.schema.targets[0]
    errors = values * target.std[0] + target.mean[0] - torch.cat([batch["labels/price"] for batch in batches])
    share = (errors.abs() <= target.errors[0] * (1 + 1e-6)).float().mean()
    assert 0.8 <= share < 0.87


def test_a_target_without_labels_has_no_scores(tmp_path: Path):
    rows = [f"{i % 7},{i / 8},{i % 7 + i / 8}" for i in range(40)]
    old = write(tmp_path / "old.csv", "\n".join(["a,y,z", *rows]))
    new = write(tmp_path / "new.csv", "\n".join(["a,y,z", *(row.rpartition(",")[0] + "," for row in rows)]))
    settings = {"target": "y,z", "train": {"steps": 1, "device": "cpu"}}
    model = api.train("multimodal", "table", data=str(old), out=tmp_path / "run", yes=True, **settings)
    assert "z_rmse" in model.evaluate(data=str(old))
    metrics = model.evaluate(data=str(new))
    assert "y_rmse" in metrics and "z_rmse" not in metrics


@pytest.mark.parametrize("errors", [[-1.0, 1.0], [1.0], 3, [float("nan"), 1.0]])
def test_damaged_errors_are_refused(house_run: Path, errors: Any):
    values = json.loads(api.load(house_run, "cpu").module.schema.to_json())
    values["targets"]["price"]["errors"] = errors
    with refuses("price", "errors"):
        load_schema(json.dumps(values))


@pytest.mark.slow
def test_rows_that_lack_fields_are_answered_less_surely(tmp_path: Path):
    """With one of four fields, and with none: without field dropout the losses are 0.88 and 0.87."""
    rng, lines = np.random.default_rng(0), ["a,b,c,d,kind"]
    for _ in range(400):
        x = rng.normal(size=4)
        kind = "no" if x.sum() + rng.normal(0, 0.5) < 0 else "yes"
        lines.append(",".join(f"{value:.2f}" for value in x) + "," + kind)
    data = write(tmp_path / "t.csv", "\n".join(lines) + "\n")
    config = dataclasses.replace(multimodal.PRESETS["table"], data=str(data), target="kind", fold="1/2")
    train = dataclasses.replace(config.train, steps=100, eval_every=1000, device="cpu")
    config = dataclasses.replace(config, train=train)
    state = loop.init_state(multimodal, config)
    for _ in loop.train(multimodal, config, state):
        pass
    losses = [
        loop.evaluate(multimodal, state.model, multimodal.ablate_fields(config, "val", fields))["loss"]
        for fields in ("abcd", "c", "")
    ]
    assert losses[0] < 0.25 and max(losses[1:]) < 0.8


# --- folds ---


def test_folds_are_trainings_whose_scores_are_averaged(houses: Path, tmp_path: Path):
    command = ("train", "multimodal", "--data", houses, "--target", "price", *FEW, "--steps", 2, "--folds", 3)
    result = call(*command, "--out", tmp_path / "a", "--json").ok().json
    stored = json.loads((tmp_path / "a" / "result.json").read_text())
    assert stored == {"folds": 3} | result and result["runs"] == [str(tmp_path / f"a-fold-{i}") for i in (1, 2, 3)]
    values, rows = [], 0
    for i in (1, 2, 3):
        run = tmp_path / f"a-fold-{i}"
        assert json.loads((run / "config.json").read_text())["config"]["fold"] == f"{i}/3"
        metrics = json.loads((run / "result.json").read_text())
        values.append(metrics["val_rmse"])
        rows += metrics["val_rows"]
    sample = result["metrics"]["rmse"]
    assert sample["values"] == values and sample["mean"] == pytest.approx(np.mean(values)) and rows == 200
    assert sample["std"] == pytest.approx(np.std(values, ddof=1))
    lines = call(*command, "--out", tmp_path / "a", "--resume").ok()
    assert "fold 2 of 3: finished already" in lines.err
    names = [line.split("  ")[0] for line in lines.out.splitlines()]
    assert names == ["fold", "1", "2", "3", "mean", "std", "the mean", "a linear model"]
    linear = [
        json.loads((tmp_path / f"a-fold-{i}" / "result.json").read_text())["baselines"]["rmse"] for i in (1, 2, 3)
    ]
    mean = np.mean([values["a linear model"] for values in linear])
    assert result["baselines"]["rmse"]["a linear model"] == pytest.approx(mean)


def test_folds_that_make_no_sense(houses: Path, tmp_path: Path, text: Path):
    out = ("--device", "cpu", "--out", tmp_path / "a")
    table = ("train", "multimodal", "--preset", "tiny", "--data", houses, "--target", "price", *out)
    assert_refused(call(*table, "--folds", 1), "--folds is 1; it must be at least 2 and at most 100")
    assert_refused(call(*table, "--folds", 2, "--seeds", 2), "give one of them")
    language = ("train", "language", "--preset", "tiny", "--data", text, *out)
    assert_refused(call(*language, "--folds", 2), "--folds is for the recipes", "multimodal")
    rows = "".join(f"{i},{i % 2},{'val' if i % 5 == 0 else 'train'}\n" for i in range(60))
    data = write(tmp_path / "s.csv", "x,y,part\n" + rows)
    schema = 'split = "part"\n[fields.x]\nkind = "scalar"\n[targets.y]\nkind = "class"\n'
    split = ("train", "multimodal", "--preset", "tiny", "--data", data, "--schema", schema, *out)
    assert_refused(call(*split, "--folds", 2), "the data say which rows are for validation")
    assert not (tmp_path / "a").exists()


# --- gradient boosting beside ---


@pytest.mark.slow
def test_gradient_boosting_is_trained_beside(houses: Path, tmp_path: Path):
    ensemble = pytest.importorskip("sklearn.ensemble")
    command = ("train", "multimodal", "--data", houses, "--target", "price", *FEW, "--steps", 2, "--compare")
    result = call(*command, "--out", tmp_path / "a", "--json").ok().json
    config = make_config(houses, "price")
    data = multimodal.load_rows(config)
    train, val = (data.split(split, config.fold) for split in ("train", "val"))
    x = np.concatenate(data.values, 1).astype(float)
    x[~data.present] = np.nan
    peer = ensemble.HistGradientBoostingRegressor(random_state=1, categorical_features=[False, True])
    errors = peer.fit(x[train], data.targets[train, 0]).predict(x[val]) - data.targets[val, 0]
    facts = result["comparison"]
    assert facts["peer_value"] == pytest.approx(np.sqrt(np.mean(errors**2)))
    assert facts == facts | {"metric": "rmse", "value": result["val_rmse"], "winner": "gradient boosting"}
    assert result["baselines"]["rmse"]["gradient boosting"] == facts["peer_value"]
    lines = call(*command, "--out", tmp_path / "b").ok().err
    assert "gradient boosting was better: use it for these data (rmse " in lines


@pytest.mark.slow
def test_folds_say_how_many_of_them_are_won(houses: Path, tmp_path: Path):
    pytest.importorskip("sklearn.ensemble")
    command = ("train", "multimodal", "--data", houses, "--target", "price", *FEW, "--steps", 2, "--folds", 3)
    lines = call(*command, "--compare", "--out", tmp_path / "a").ok().err
    result = json.loads((tmp_path / "a" / "result.json").read_text())
    runs = [json.loads((Path(run) / "result.json").read_text()) for run in result["runs"]]
    facts = result["comparison"]
    assert facts["folds"] == {"this model": 0, "neither": 0, "peer": 3}
    assert facts["value"] == pytest.approx(result["metrics"]["rmse"]["mean"])
    assert facts["peer_value"] == pytest.approx(np.mean([run["comparison"]["peer_value"] for run in runs]))
    assert "Of 3 folds this model was better on 0, gradient boosting on 3 (mean rmse" in lines
    assert "In the mean: No better than" in lines and "gradient boosting" in lines.split("In the mean")[1]


def test_equal_folds_are_counted():
    folds = {"this model": 2, "neither": 1, "peer": 0}
    facts = {"metric": "accuracy", "peer": "trees", "value": 0.95, "peer_value": 0.9, "folds": folds}
    (line,) = describe_fold_comparison(facts)
    means = "(mean accuracy 0.95 of this model, 0.9 of trees)"
    assert line == f"Of 3 folds this model was better on 2, trees on 0, equal on 1 {means}"
    assert describe_fold_comparison(None) == []


@pytest.mark.slow
def test_the_minutes_are_those_of_each_fold(houses: Path, tmp_path: Path):
    command = ("train", "multimodal", "--preset", "tiny", "--data", houses, "--target", "price", "--yes")
    lines = call(*command, "--minutes", 0.01, "--folds", 2, "--out", tmp_path / "a").ok().err
    assert "--minutes 0.01 is the time of each fold: about 0.02 minutes for all 2" in lines


@pytest.mark.parametrize(("metric", "value", "winner"), [
    ("accuracy", 0.9, "this model"), ("accuracy", 0.8, "neither"), ("rmse", 0.9, "gradient boosting"),
])  # fmt: skip
def test_the_better_one_is_named(metric: str, value: float, winner: str):
    peers = {metric: {"gradient boosting": 0.8}}
    assert api.judge_peers({f"val_{metric}": value}, peers)["winner"] == winner


def test_comparisons_that_cannot_be_made(houses: Path, tmp_path: Path, text: Path, monkeypatch: pytest.MonkeyPatch):
    out = ("--device", "cpu", "--out", tmp_path / "a", "--compare")
    language = ("train", "language", "--preset", "tiny", "--data", text, *out)
    assert_refused(call(*language), "--compare is for the recipes", "multimodal")
    monkeypatch.setitem(sys.modules, "sklearn.ensemble", None)
    monkeypatch.setattr(multimodal, "infer_schema", lambda config: None)  # its text would be shown before
    table = ("train", "multimodal", "--preset", "tiny", "--data", houses, "--target", "price", *out)
    assert_refused(call(*table), "needs scikit-learn", "anyformer[compare]")
    assert not (tmp_path / "a").exists()


# --- defaults that fit the table ---


def test_a_table_takes_the_preset_for_tables(houses: Path, tmp_path: Path):
    """With more steps for more rows, and a larger model for rows that are more than numbers and categories."""
    defaults = multimodal.data_defaults({"data": str(houses), "target": "price"})
    preset = multimodal.PRESETS["table"].train
    assert defaults.preset == "table" and defaults.overrides["train"]["steps"] == preset.steps
    assert "model" not in defaults.overrides and "200 rows" in defaults.reason
    assert "steps" not in defaults.reason, "--minutes may do more, or fewer"
    rows = "".join(f"{i},{i % 3}\n" for i in range(3000))
    large = {"data": str(write(tmp_path / "large.csv", "x,y\n" + rows)), "target": "y"}
    steps = multimodal.data_defaults(large).overrides["train"]["steps"]
    assert steps == 40 * 2200 // preset.batch > preset.steps
    lines = "".join(f'{{"note": "a text of {i} and {i * 7} words", "y": {i % 2}}}\n' for i in range(60))
    texts = {"data": str(write(tmp_path / "texts.jsonl", lines)), "target": "y"}
    assert multimodal.data_defaults(texts).overrides["model"] == {"dim": 64}
    assert multimodal.data_defaults({"data": "watch"}) is None
    described = call("train", houses, "--target", "price", "--print-config", "--yes").ok()
    assert json.loads(described.out)["preset"] == "table"


def test_the_linear_model_of_classes_finds_the_one_in_the_middle():
    """Least squares on the classes never predicts it."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(900, 4))
    y = np.digitize(x @ [1.0, 2.0, -1.0, 0.5], [-1, 1])
    assert (fit_classes(x[:700], y[:700], x[700:]) == y[700:]).mean() > 0.95
