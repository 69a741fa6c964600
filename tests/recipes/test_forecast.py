"""Forecasts: what the model may know, what its answers mean, and the way from a csv file to bands."""

import csv
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import anyformer
from anyformer.data.series.batches import list_windows, score_seasonal_naive
from anyformer.errors import InputError
from anyformer.inference.forecasting import NORMAL_QUANTILES, QUANTILES, sample_paths
from anyformer.model.config import TransformerConfig
from anyformer.predict_file import predict_file
from anyformer.recipes import forecast
from anyformer.report.figures import draw_figure
from anyformer.training.config import TrainConfig
from cli_kit import assert_refused, call

SHAPE = TransformerConfig(dim=32, n_layer=2, n_head=2, context=6, position="rotary")
TRAIN = TrainConfig(steps=60, batch=16, lr=3e-3, warmup=5, eval_every=30, save_every=30, device="cpu", dtype="float32")
CONFIG = forecast.Config(horizon=6, patch=4, model=SHAPE, train=TRAIN)


@pytest.fixture
def week(tmp_path: Path) -> Path:
    """A daily series whose weeks grow, with noise: the seasonal naive forecast is always behind."""
    rng, days = np.random.default_rng(0), np.arange(300)
    values = 100 + days + 20 * np.sin(2 * np.pi * days / 7) + rng.normal(0, 1, 300)
    dates = np.datetime64("2024-01-01") + days
    path = tmp_path / "week.csv"
    path.write_text("date,x\n" + "".join(f"{date},{value:.3f}\n" for date, value in zip(dates, values)))
    return path


def build(config: forecast.Config, seed: int = 0) -> forecast.Forecaster:
    torch.manual_seed(seed)
    return forecast.build(config).eval()


def evaluate(model: forecast.Forecaster, config: forecast.Config) -> dict[str, float]:
    return forecast.evaluate(model, (batch for batch, _ in forecast.batches(config, "val")))


def read_batch(config: forecast.Config, split: str = "train") -> dict[str, torch.Tensor]:
    return next(forecast.batches(config, split))[0]


# --- what the model may know ---


@torch.no_grad()
def test_the_future_does_not_reach_the_past_and_the_past_reaches_the_future():
    config = forecast.PRESETS["tiny"]
    model, batch = build(config), read_batch(config)
    torch.nn.init.normal_(model.head.weight)  # it starts at 0
    node, before = 3, forecast.call_model(model, batch)
    for name, ends in (("values", 28), ("past_covariates", 28), ("calendar", 4), ("future_covariates", 34)):
        changes = dict(batch)
        changes[name] = batch[name].clone()
        changes[name][:, ends:] += torch.randn_like(changes[name][:, ends:])
        after = forecast.call_model(model, changes)
        assert torch.equal(after[:, : node + 1], before[:, : node + 1]), name
        assert not torch.equal(after[:, node + 1 :], before[:, node + 1 :]), name
        changes[name] = batch[name].clone()
        changes[name][:, 0] += 1
        assert not torch.allclose(forecast.call_model(model, changes)[:, node], before[:, node]), name


@torch.no_grad()
def test_the_median_starts_as_a_linear_forecast_and_without_rows_as_the_seasonal_naive_one(week: Path):
    config = replace(CONFIG, data=str(week))
    model = build(config)
    shape, dataset = model.shape, forecast.load_dataset(config)
    naive = score_seasonal_naive(dataset, shape)["mase"]
    assert shape.season == 7
    assert evaluate(model, config)["mase"] < 0.3 * naive, "the trend is linear"
    short = week.with_name("short.csv")
    short.write_text("\n".join(week.read_text().splitlines()[:35]))
    config = replace(config, data=str(short), season="7")
    model = build(config)
    expected = score_seasonal_naive(forecast.load_dataset(config), model.shape)["mase"]
    assert abs(model.start[:, 4]).max() < 1e-6 and evaluate(model, config)["mase"] == pytest.approx(expected, rel=1e-4)


def test_a_forecast_follows_shift_and_scale():
    model = build(replace(CONFIG, season="7"))
    values = (50 + np.random.default_rng(0).normal(size=60).cumsum()).tolist()
    first, second = forecast.predict(model, {"input": [values, [1e6 - 3e3 * x for x in values]]})["results"]
    scaled = [1e6 - 3e3 * x for x in first["median"]]
    third = forecast.predict(model, {"input": [1e6 + 3e3 * x for x in values]})["results"][0]
    assert third["median"] == pytest.approx([1e6 + 3e3 * x for x in first["median"]], rel=1e-5)
    assert second["median"] != pytest.approx(scaled, rel=1e-9), "a mirrored series is another one"


# --- what the answers mean ---


def test_metrics_equal_their_definitions(week: Path):
    config = replace(CONFIG, data=str(week))
    model, dataset = build(config), forecast.load_dataset(config)
    model.set_facts(replace(model.facts, calibration=[[1.0] * 6] * 3))
    values, (cut,) = dataset.table.series[0].values, dataset.cuts(6)
    unit = np.abs(values[7:cut] - values[: cut - 7]).mean()
    windows, rows = iter(list_windows(dataset, "val", model.shape)), []
    for batch, _ in forecast.batches(config, "val"):
        arrays = {name: tensor.numpy() for name, tensor in batch.items()}
        for quantiles, level in zip(model.predict_quantiles(arrays), arrays["level"], strict=True):
            origin = next(windows).limit - 6
            for step in range(6):
                truth, predicted = values[origin + step], level + unit * quantiles[step]
                pairs = list(zip(QUANTILES, predicted, strict=True))
                loss = np.mean([2 * max(q * (truth - x), (q - 1) * (truth - x)) for q, x in pairs])
                is_inside = predicted[0] <= truth <= predicted[8]
                rows.append((loss / unit, abs(truth - predicted[4]) / unit, loss, abs(truth), is_inside))
    loss, mase, weighted, size, coverage = np.mean(rows, axis=0)
    metrics = forecast.evaluate(model, (batch for batch, _ in forecast.batches(config, "val")))
    expected = {"loss": loss, "mase": mase, "weighted_quantile_loss": weighted / size, "coverage_80": coverage}
    assert metrics == pytest.approx(expected, rel=1e-4) and next(windows, None) is None


def test_paths_have_the_values_of_their_ranks():
    quantiles = np.sort(np.random.default_rng(0).normal(size=(9, 5, 9)), -1)
    paths = sample_paths(quantiles, np.array(NORMAL_QUANTILES))
    assert paths == pytest.approx(np.stack([quantiles[i, :, i] for i in range(9)]))
    normal = np.broadcast_to(3 + 2 * np.array(NORMAL_QUANTILES), (2, 5, 9))
    assert sample_paths(normal, np.array([-3.0, 2.5])) == pytest.approx(np.repeat([[-3.0], [8.0]], 5, 1))


def test_quantiles_are_in_order_and_a_longer_forecast_begins_with_the_shorter():
    model = build(forecast.PRESETS["tiny"])
    short, long = (forecast.predict(model, {"horizon": horizon})["results"][0] for horizon in (4, 20))
    assert all(values == long["quantiles"][level][:4] for level, values in short["quantiles"].items())
    columns = np.array(list(long["quantiles"].values()))
    assert columns.shape == (9, 20) and (np.diff(columns, axis=0) >= 0).all()
    assert list(long["quantiles"]) == [str(level) for level in QUANTILES]
    assert forecast.predict(model, {"horizon": 20})["results"][0] == long
    other = forecast.predict(model, {"horizon": 20, "seed": 1})["results"][0]
    assert other["median"][:6] == long["median"][:6] and other["median"][6:] != long["median"][6:]


def test_several_series_are_forecast_as_each_alone():
    model = build(replace(CONFIG, season="7"))
    lists = [np.random.default_rng(i).normal(size=20 + 9 * i).cumsum().tolist() for i in range(3)]
    together = forecast.predict(model, {"input": lists, "horizon": 9})["results"]
    for values, result in zip(lists, together, strict=True):
        (alone,) = forecast.predict(model, {"input": values, "horizon": 9})["results"]
        assert alone["steps"] == result["steps"] == list(range(len(values), len(values) + 9))
        assert alone["median"] == pytest.approx(result["median"], rel=1e-4, abs=1e-4)


# --- from a file to bands ---


def test_from_a_csv_to_bands(week: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    flags = ("--horizon", 6, "--patch", 4, "--model.context", 6, "--model.dim", 32, "--model.n-head", 2)
    settings = (
        "--steps",
        60,
        "--train.lr",
        3e-3,
        "--train.eval-every",
        30,
        "--train.save-every",
        30,
        "--device",
        "cpu",
    )
    result = call("train", "forecast", "--data", week, *flags, *settings, "--out", "run", "--json").ok().json
    naive = result["baselines"]["mase"]["seasonal naive (season 7)"]
    assert result["val_mase"] < 0.75 * naive and result["val_loss"] < naive, "a week later, the trend has gone on"
    metrics = call("eval", "run", "--json").ok().json
    assert metrics["mase"] == pytest.approx(result["val_mase"]) and 0 <= metrics["coverage_80"] <= 1
    assert "Forecast of x" in (tmp_path / "run" / "report.html").read_text(encoding="utf-8")

    request = ("--request", '{"horizon": 15}', "--device", "cpu", "--json")
    (answer,) = call("predict", "run", "week.csv", *request).ok().json["results"]
    first = np.datetime64("2024-01-01") + 300
    assert answer["times"] == [str(first + i) for i in range(15)] and answer["series"] == "x"
    truth = 100 + np.arange(300, 315) + 20 * np.sin(2 * np.pi * np.arange(300, 315) / 7)
    assert np.abs(np.array(answer["median"]) - truth)[:6].mean() < 7, "a week before, it was 7 less"
    week.unlink()  # a trained model has its season.json
    example = anyformer.load("run", "cpu").predict()["results"][0]
    assert len(example["truth"]) == len(example["median"]) == 6


@pytest.mark.slow
def test_what_is_known_ahead_and_the_past_of_other_columns_help(tmp_path: Path):
    """The noise of a series is known ahead, or was seen before; without these columns it cannot be predicted."""
    rng, path = np.random.default_rng(0), tmp_path / "a.csv"
    event, noise = rng.normal(size=330), rng.normal(size=330)
    with open(path, "w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["x", "event", "sign"])
        writer.writerows([round(10 * event[i] + 10 * noise[i], 3), event[i], noise[i + 2]] for i in range(300))
    train = replace(TRAIN, steps=80)
    config = replace(CONFIG, data=str(path), target="x", horizon=2, patch=2, season="1", train=train)
    scores, none = {}, {"future_covariates": "", "past_covariates": ""}
    for name, fields in {
        "alone": {},
        "future_covariates": {"future_covariates": "event"},
        "past_covariates": {"past_covariates": "sign"},
    }.items():
        settings = {key: getattr(config, key) for key in ("data", "target", "horizon", "patch", "season", "model")}
        out = tmp_path / name
        model = anyformer.train("forecast", "tiny", **settings | none | fields, train=train, out=out)
        scores[name] = model.evaluate()["mase"]
    assert scores["future_covariates"] < 0.85 * scores["alone"] and scores["past_covariates"] < 0.85 * scores["alone"]


def test_columns_and_rows_are_tables(week: Path):
    model = build(replace(CONFIG, data=str(week), gaps="fill"))
    rows = [dict(zip(("date", "x"), line.split(","))) for line in week.read_text().splitlines()[1:]]
    columns = {name: [row[name] for row in rows] for name in ("date", "x")}
    (expected,) = forecast.predict(model, {"input": str(week), "horizon": 9})["results"]
    numbers = [float(x) for x in columns["x"]]
    for request in (columns, {"input": columns}, {"input": rows}, columns | {"x": np.array(numbers)}):
        (result,) = forecast.predict(model, request | {"horizon": 9})["results"]
        assert {"input": str(week)} | result == expected
    (result,) = forecast.predict(model, {"input": np.array(numbers)})["results"]
    assert result["median"] == pytest.approx(expected["median"][:6], rel=1e-2)


@pytest.mark.parametrize(
    ("request_", "says"),
    [
        ({"date": "2024-01-01", "x": 3}, "the columns of a table are lists of values"),
        ({"date": ["2024-01-01"], "x": [3, 4]}, "the columns differ in their number of values: date 1, x 2"),
        ({"horizn": 3}, "unknown field 'horizn': did you mean 'horizon'"),
        ({"input": [1, "a"]}, r"request: input should be numbers, rows .* or its path, found \"\[1, 'a'\]"),
        ({"date": ["2024-01-01", "2024-01-02", "soon"], "x": [3, 4, 5]}, "input, row 2: date is 'soon'"),
    ],
)
def test_what_is_no_table(week: Path, request_: dict[str, Any], says: str):
    model = build(replace(CONFIG, data=str(week), season="7"))
    with pytest.raises(InputError, match=says):
        forecast.predict(model, request_)


def test_what_a_request_lacks(tmp_path: Path):
    model = build(forecast.PRESETS["tiny"])
    with pytest.raises(InputError, match="reads the columns visitors, promotion too: give it a table"):
        forecast.predict(model, {"input": [1.0, 2.0]})
    path = tmp_path / "new.csv"
    rows = [f"2024-01-{day:02d},a,{day},5,0" for day in range(1, 20)]
    path.write_text("\n".join(["date,shop,sales,visitors,promotion", *rows, "2024-01-20,a,,,1"]))
    with pytest.raises(InputError, match=r"6 steps ahead need as many rows .* and there are 1"):
        forecast.predict(model, {"input": str(path)})
    assert len(forecast.predict(model, {"input": [str(path)], "horizon": 1})["results"][0]["median"]) == 1
    with pytest.raises(InputError, match="has 2 values; at least 4, a patch, are needed"):
        forecast.predict(build(replace(CONFIG, season="2")), {"input": [1, 2]})
    with pytest.raises(InputError, match="horizon is 0"):
        forecast.predict(model, {"horizon": 0})


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (
            ("--horizon", 400),
            ("'x': a history of 300 values is too short for a horizon of 400", "--horizon 75 would do"),
        ),
        (("--season", 500), ("season is '500'", "up to 192")),
        (("--season", "week"), ("season is 'week'", "auto or a number")),
        (("--target", "y"), ("no column 'y'", "date, x")),
        (("--data", "none.csv"), ("none.csv", "no such table")),
        (("--data", "shop"), ("'shop'", "did you mean 'shops'")),
        (("--columns", "x"), ("no flag --columns: --target names the columns to predict",)),
        (("--gaps", "fil"), ("--gaps is 'fil'", "'fill'")),
    ],
)
def test_bad_flags_are_one_line(week: Path, tmp_path: Path, flags: tuple[object, ...], says: tuple[str, ...]):
    data = () if "--data" in flags else ("--data", week)
    arguments = ("train", "forecast", *data, "--out", tmp_path / "run", "--device", "cpu")
    assert_refused(call(*arguments, *flags), *says)
    assert not (tmp_path / "run").exists()


def test_a_model_remembers_what_it_was_trained_on(week: Path):
    config = replace(CONFIG, data=str(week))
    facts = json.loads(build(config).files["season.json"])
    assert facts["season"] == 7 and len(facts["example"]["values"]) == 6 + 24 and facts["example"]["start"]


# --- the linear start and the bands ---


def test_runs_of_earlier_versions_keep_their_trained_linear_path_and_their_bands(tmp_path: Path):
    """Their season.json names only the season, the scale of the features and an example."""
    facts = json.loads(build(replace(CONFIG, season="7")).files["season.json"])
    (tmp_path / "season.json").write_text(json.dumps({name: facts[name] for name in ("season", "scale", "example")}))
    model = build(replace(CONFIG, season=str(tmp_path / "season.json")))
    assert model.facts.transform == "none" and not model.facts.calibration
    parameters = [name for name, _ in model.named_parameters()]
    assert parameters.index("linear.weight") + 1 == parameters.index("head.weight"), "as the optimizer stored them"
    assert model.linear.weight.shape == (6, 14) and not list(model.buffers()), "two seasons"
    quantiles = np.random.default_rng(0).normal(size=(2, 6, 9))
    assert model.widen(quantiles, np.zeros(2, int)) == pytest.approx(quantiles)


def test_what_was_trained_is_kept_as_far_as_it_helps(week: Path):
    config = replace(CONFIG, data=str(week))
    model = build(config)
    start = forecast.call_model(model, read_batch(config, "val"))
    torch.nn.init.normal_(model.head.weight, std=0.3)
    torch.nn.init.normal_(model.head.bias)
    forecast.finish_model(model, config)
    torch.testing.assert_close(forecast.call_model(model, read_batch(config, "val")), start)
    assert len(model.facts.calibration) == 3 and "calibration" in model.files["season.json"]


def test_bands_cover_what_they_claim_and_coverage_is_measured_on_other_origins(tmp_path: Path):
    """Heavy noise whose bands start too narrow: factors fitted to half of the origins widen them on the other half."""
    rng, path = np.random.default_rng(3), tmp_path / "noise.csv"
    path.write_text("x\n" + "".join(f"{100 + value:.4f}\n" for value in rng.standard_t(3, 900)))
    config = replace(CONFIG, data=str(path), season="1")
    model = build(config)
    model.start.mul_(0.4)
    with torch.no_grad():
        model.head.bias.copy_(model.start.flatten())
    assert "coverage_80" not in evaluate(model, config), "the bands are not those of the predictions yet"
    model.set_facts(replace(model.facts, calibration=[[1.0] * 6] * 3))
    narrow = evaluate(model, config)["coverage_80"]
    forecast.finish_model(model, config)
    assert narrow < 0.6 and 0.73 < evaluate(model, config)["coverage_80"] < 0.87
    everything, *folds = model.facts.calibration
    assert folds[0] != folds[1] and min(everything) > 1.5
    folds = torch.cat([batch["fold"] for batch, _ in forecast.batches(config, "val")])
    assert folds.tolist() == [1] * 32 + [2] * 32 and set(read_batch(config)["fold"].tolist()) == {0}


@pytest.mark.slow
def test_the_band_of_a_forecast_is_the_calibrated_one():
    model = build(replace(CONFIG, season="7"))
    values = (50 + np.random.default_rng(0).normal(size=60).cumsum()).tolist()
    before = forecast.predict(model, {"input": values})["results"][0]
    model.set_facts(replace(model.facts, calibration=[[2.0] * 6, [1.0] * 6, [1.0] * 6]))
    after = forecast.predict(model, {"input": values})["results"][0]
    for level in ("0.1", "0.9"):
        pairs = [np.subtract(result["quantiles"][level], result["median"]) for result in (before, after)]
        assert pairs[1] == pytest.approx(2 * pairs[0], rel=1e-4)
    assert after["median"] == before["median"]


def test_a_series_that_grows_by_shares_is_forecast_in_logarithms(tmp_path: Path):
    rng, steps = np.random.default_rng(0), np.arange(200)
    values = 10 * np.exp(0.02 * steps + 0.05 * rng.normal(size=200).cumsum())
    path = tmp_path / "growth.csv"
    path.write_text("x\n" + "".join(f"{value:.5f}\n" for value in values))
    config = replace(CONFIG, data=str(path), season="1", transform="auto")
    model = build(config)
    plain = build(replace(config, transform="none"))
    dataset = forecast.load_dataset(config)
    assert forecast.transform_dataset(dataset, model.facts, 6).table.series[0].is_log
    assert not forecast.transform_dataset(dataset, plain.facts, 6).table.series[0].is_log
    (result,) = forecast.predict(model, {"input": values.tolist(), "horizon": 20})["results"]
    assert min(result["quantiles"]["0.1"]) > 0 and values[-1] / 3 < result["median"][0] < values[-1] * 3


# --- files ---


def test_a_history_becomes_a_file_of_forecasts(week: Path, tmp_path: Path):
    config = replace(CONFIG, data=str(week))
    model = build(config)
    long = tmp_path / "long.csv"
    days = [line.split(",") for line in week.read_text().splitlines()[1:]]
    rows = [f"{date},{name},{value}" for name in ("a", "b") for date, value in days[:100]]
    long.write_text("date,id,value\n" + "\n".join([*rows, "2024-01-01,c,5"]))

    def answer(**options: Any) -> tuple[dict[str, Any], list[dict[str, str]]]:
        result = predict_file(forecast, model, config, long, tmp_path / "out.csv", 1, **options)
        with open(tmp_path / "out.csv", encoding="utf-8", newline="") as file:
            return result, list(csv.DictReader(file))

    with pytest.raises(InputError, match=r"long\.csv: the series 'c' has 1 values; at least 4"):
        answer()
    result, lines = answer(skip_broken=True, settings={"horizon": 9})
    assert result["rows"] == len(lines) == 18 and result["skipped"] == 1 and "'c'" in result["first_skipped"]
    assert list(lines[0]) == ["series", "time", "median", *map(str, QUANTILES)]
    assert [line["series"] for line in lines] == ["a"] * 9 + ["b"] * 9
    assert lines[0]["time"] == lines[9]["time"] == str(np.datetime64("2024-01-01") + 100)
    (direct, _) = forecast.predict(model, {"input": [[float(value) for _, value in days[:100]]] * 2})["results"]
    assert [float(line["median"]) for line in lines[:6]] == direct["median"]
    expected = forecast.predict(model, {"input": str(week), "horizon": 1})["results"][0]["quantiles"]
    long.write_text("\n".join(["date,id,value", *(f"{date},x,{value}" for date, value in days)]))
    _, (line,) = answer(settings={"horizon": 1})
    assert {level: [float(line[level])] for level in expected} == expected


def test_short_series_get_a_shorter_horizon(week: Path, tmp_path: Path):
    short = tmp_path / "short.csv"
    short.write_text("\n".join(week.read_text().splitlines()[:41]))
    defaults = forecast.data_defaults({"data": str(short)})
    assert defaults is not None and defaults.overrides == {"horizon": 5} and "40 values" in defaults.reason
    assert forecast.data_defaults({"data": str(short), "horizon": 3}) is forecast.data_defaults({"data": str(week)})


def test_the_report_draws_the_band(week: Path):
    config = replace(CONFIG, data=str(week))
    (figure,) = forecast.figures(build(config), config)
    band, truth, median = figure["lines"]
    assert (np.array(band["low"]) <= median["y"]).all() and len(truth["y"]) == 24
    assert 'class="band"' in draw_figure(figure)["svg"]


def test_the_end_of_training_names_the_calibrated_band_and_shows_the_first_values(week: Path, tmp_path: Path):
    flags = ("--horizon", 8, "--patch", 4, "--model.context", 6, "--steps", 10, "--train.eval-every", 5)
    shown = call("train", "forecast", "--data", week, *flags, "--device", "cpu", "--out", tmp_path / "run").ok()
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert f"\ncoverage of the 80 % band {result['val_coverage_80']:.4g}\n" in shown.err
    before = shown.err.partition("validation loss")[0]
    assert "coverage" not in before, "of bands that are not calibrated"
    title, names, *rows = shown.out.strip().split("\n")
    assert title == "series x, 8 values"
    assert names.split() == ["times", "median", "quantiles", "0.1", "quantiles", "0.9", "truth"]
    assert len(rows) == 7 and rows[0].startswith("2024-10-19") and rows[-1] == "... 2 more"
    report = (tmp_path / "run" / "report.html").read_text(encoding="utf-8")
    assert "validation coverage of the 80 % band" in report
