"""Series of tables: what the columns are, times, gaps, seasons, windows."""

from pathlib import Path

import numpy as np
import pytest

from anyformer.data.series import batches, datasets
from anyformer.data.series.datasets import find_period, infer_season, load_series
from anyformer.data.series.prepare import measure_facts
from anyformer.data.series.read import Columns, Gaps, SeriesTable
from anyformer.data.series.times import Frequency, format_time, format_times, infer_frequency, parse_time
from data_kit import refuses, write


def load(path: Path, text: str, gaps: Gaps = "error", **columns: str) -> SeriesTable:
    names = {name: tuple(value.split(",")) for name, value in columns.items()}
    return load_series(str(write(path / "series.csv", text)), Columns(**names), gaps).table


def to_seconds(*dates: str) -> np.ndarray:
    return np.array(dates, "datetime64[s]").astype(np.int64)


# --- times ---


@pytest.mark.parametrize(
    ("text", "date"),
    [
        ("2024-01-31", "2024-01-31"), ("2024/01/31 12:30", "2024-01-31T12:30"), ("20240131", "2024-01-31"),
        ("2024Q3", "2024-07-01"), ("1974", "1974-01-01"), ("202402", "2024-02-01"), ("Jan 1 2000", "2000-01-01"),
        ("Jan-1-1995", "1995-01-01"), ("31.12.1999", "1999-12-31"), ("2024-02", "2024-02-01"),
        ("1706659200", "2024-01-31"), ("2024-W03", "2024-01-15"), ("2024W03", "2024-01-15"), ("2024M03", "2024-03-01"),
        ("Q2 2024", "2024-04-01"), ("2024-Q2", "2024-04-01"), ("2024-01-31T12:00:00+02:00", "2024-01-31T12:00"),
    ],
)  # fmt: skip
def test_times(text: str, date: str):
    parsed = parse_time(text)
    assert parsed is not None and parsed[0] == to_seconds(date)[0]
    assert parsed[1] == ("+02:00" if "+02:00" in text else "")


def test_times_of_one_answer_have_one_form():
    times = to_seconds("2024-01-01", "2024-01-02")
    assert format_times(times) == ["2024-01-01", "2024-01-02"]
    assert format_times(times - [0, 3600]) == ["2024-01-01T00:00:00", "2024-01-01T23:00:00"]
    assert format_times(times[:1], "+02:00") == ["2024-01-01T00:00:00+02:00"]


@pytest.mark.parametrize("text", ["a", "12", "2024-13-01", "", "3.5", "2024-W54", "2024Q5", "2024M13"])
def test_what_is_no_time(text: str):
    assert parse_time(text) is None


@pytest.mark.parametrize(
    ("dates", "frequency", "following"),
    [
        (("2024-01-31", "2024-02-29", "2024-03-31"), Frequency(months=1, shift=86400), "2024-04-30"),
        (("2024-01-15", "2024-02-15", "2024-03-15"), Frequency(months=1), "2024-04-15"),
        (("2024-01-01", "2024-04-01", "2024-07-01"), Frequency(months=3), "2024-10-01"),
        (("1999-01-01", "2000-01-01", "2001-01-01"), Frequency(months=12), "2002-01-01"),
        (("2024-02-27", "2024-02-28", "2024-02-29"), Frequency(seconds=86400), "2024-03-01"),
        (("2024-01-01T22", "2024-01-01T23", "2024-01-02T00"), Frequency(seconds=3600), "2024-01-02T01:00:00"),
    ],
)
def test_frequency_and_the_times_that_follow(dates: tuple[str, ...], frequency: Frequency, following: str):
    times = to_seconds(*dates)
    assert infer_frequency(times) == frequency
    assert frequency.position(times, int(times[0])).tolist() == [0, 1, 2]
    assert frequency.time(int(times[0]), np.arange(3)).tolist() == times.tolist()
    assert format_time(int(frequency.time(int(times[0]), np.array([3]))[0])) == following


# --- what the columns are ---


def test_long_and_wide_are_the_same_series(tmp_path: Path):
    wide = load(tmp_path, "date,a,b\n2024-01-01,1,10\n2024-01-02,2,20\n2024-01-03,3,30\n")
    rows = [f"2024-01-0{day},{name},{day * size}" for day in (3, 1, 2) for name, size in (("b", 10), ("a", 1))]
    long = load(tmp_path, "\n".join(["when,shop,sales", *rows]))
    assert wide.frequency == long.frequency == Frequency(seconds=86400)
    for table in (wide, long):
        by_name = {series.name: series for series in table.series}
        assert by_name["a"].values.tolist() == [1, 2, 3] and by_name["b"].values.tolist() == [10, 20, 30]
        assert by_name["b"].start == to_seconds("2024-01-01")[0]


def test_days_and_hours_in_columns_of_their_own(tmp_path: Path):
    days = load(tmp_path, "year,month,date_of_month,x\n" + "".join(f"2020,2,{i + 20},{i}\n" for i in range(10)))
    assert days.series[0].start == parse_time("2020-02-20")[0] and days.frequency.seconds == 86400
    text = "".join(f"2020,2,{1 + i // 24},{i % 24},{i}\n" for i in range(50))
    assert load(tmp_path, "year,month,day,hour,x\n" + text).frequency.seconds == 3600
    text = "".join(f"{p},2020,2,1,{i % 9},{i},2020-02-01T{i:02}:00\n" for p in ("EWR", "JFK") for i in range(20))
    hours = load(tmp_path, "origin,year,month,day,hour,x,time_hour\n" + text)  # the whole times are there too
    assert [series.name for series in hours.series] == ["EWR", "JFK"] and hours.frequency.seconds == 3600


def test_years_and_quarters_in_two_columns(tmp_path: Path):
    table = load(tmp_path, "year,quarter,x\n" + "".join(f"{1990 + i // 4},{i % 4 + 1},{i}\n" for i in range(9)))
    assert table.frequency == Frequency(months=3) and [s.name for s in table.series] == ["x"]


@pytest.mark.parametrize(
    ("name", "first", "frequency"),
    [
        ("YEAR_WEEK", "{0}{1:02d}", Frequency(seconds=7 * 86400)),
        ("year week", "{0}-{1}", Frequency(seconds=7 * 86400)),
        ("when", "{0}-W{1:02d}", Frequency(seconds=7 * 86400)),
        ("when", "{0}{1:02d}", Frequency(months=1)),
        ("year,week", "{0},{1}", Frequency(seconds=7 * 86400)),
    ],
)
def test_weeks_and_months_of_an_unsorted_panel(tmp_path: Path, name: str, first: str, frequency: Frequency):
    per_year = 12 if frequency.months else 52
    rows = [(first.format(2019 + i // per_year, i % per_year + 1), s, i) for s in "ab" for i in range(60)]
    order = np.random.default_rng(0).permutation(len(rows))
    text = f"{name},shop,x\n" + "".join("{},{},{}\n".format(*rows[i]) for i in order)
    table = load(tmp_path, text)
    assert table.frequency == frequency and sorted(series.name for series in table.series) == ["a", "b"]
    assert all(series.values.tolist() == list(range(60)) for series in table.series)


def test_whole_numbers_name_series(tmp_path: Path):
    rows = [f"{s},{d},2024-01-{day:02d},{day + s + d}" for s in (1, 2) for d in (7, 9) for day in range(1, 20)]
    table = load(tmp_path, "Store,Dept,Date,Sales\n" + "\n".join(rows))
    assert [series.name for series in table.series] == ["1 7", "1 9", "2 7", "2 9"]
    assert table.series[3].values.tolist() == [day + 11 for day in range(1, 20)]


def test_without_times_rows_are_steps(tmp_path: Path):
    (series,) = load(tmp_path, "x\n1\n2\n4\n").series
    assert series.start is None and series.values.tolist() == [1, 2, 4]


def test_texts_that_name_no_series_are_left_out(tmp_path: Path):
    table = load(tmp_path, "date,weather,x\n2024-01-01,sun,1\n2024-01-02,rain,2\n2024-01-03,sun,3\n")
    assert [series.name for series in table.series] == ["x"]


def test_rows_at_the_end_say_what_is_known_ahead(tmp_path: Path):
    text = "date,x,seen,holiday\n" + "".join(f"2024-01-0{d},{d},{2 * d},{d % 2}\n" for d in range(1, 5))
    text += "2024-01-05,,,1\n2024-01-06,,,0\n"
    (series,) = load(tmp_path, text, target="x", past_covariates="seen", future_covariates="holiday").series
    assert series.values.tolist() == [1, 2, 3, 4] and series.past_covariates[:, 0].tolist() == [2, 4, 6, 8]
    assert series.future_covariates[:, 0].tolist() == [1, 0, 1, 0, 1, 0]


def test_parquet_with_dates(tmp_path: Path):
    pyarrow = pytest.importorskip("pyarrow", reason="pip install 'anyformer[parquet]'")
    from pyarrow import parquet

    times = np.array(["2024-01-01T00", "2024-01-01T01", "2024-01-01T02"], "datetime64[s]")
    parquet.write_table(pyarrow.table({"t": times, "x": [1.0, 2.0, 4.0]}), tmp_path / "a.parquet")
    table = load_series(str(tmp_path / "a.parquet"), Columns(), "error").table
    assert table.frequency == Frequency(seconds=3600) and table.series[0].values.tolist() == [1, 2, 4]


DAYS = "date,x\n2024-01-01,1\n2024-01-02,2\n2024-01-03,3\n"


@pytest.mark.parametrize(
    ("text", "columns", "says"),
    [
        (DAYS + "2024-01-02,4\n", {}, ("line 5", "the time 2024-01-02 is also that of", "line 3")),
        (DAYS + "2024-01-07,4\n2024-01-08,5\n", {}, ("3 values are missing", "'x' at 2024-01-04", "--gaps fill")),
        (DAYS + "2024-01-04,\n2024-01-05,5\n", {}, ("1 values are missing", "at 2024-01-04")),
        (DAYS + "2024-01-04,many\n", {}, ("line 5: x is 'many'; expected a number",)),
        (DAYS + "2024-01-04,inf\n", {}, ("line 5: x is 'inf'; expected a number",)),
        (DAYS + "2024-01-04T11:00,4\n", {}, ("line 5", "not even steps", "86400 seconds apart")),
        (DAYS + "2024-01-04T00:00+01:00,4\n", {}, ("line 5", "several zones", "'no zone' and '+01:00'")),
        (DAYS + "soon,4\n", {}, ("line 5: date is 'soon'; expected a time",)),
        (DAYS + "4024-01-02,4\n", {}, ("line 5", "leave most of 730,", "steps empty")),
        ("date,x\n2024-01-01,a\n2024-01-02,b\n", {}, ("no column holds numbers to forecast", "date, x")),
        ("date,x\n2024-01-01,\n2024-01-02,\n", {"target": "x"}, ("every value is missing",)),
        (DAYS, {"target": "y"}, ("no column 'y'", "valid: date, x")),
    ],
)
def test_what_cannot_be_read(tmp_path: Path, text: str, columns: dict[str, str], says: tuple[str, ...]):
    with refuses(*says):
        load(tmp_path, text, **columns)


def test_gaps_are_filled_on_request(tmp_path: Path):
    (series,) = load(tmp_path, DAYS + "2024-01-06,6\n2024-01-07,\n2024-01-08,8\n", "fill").series
    assert series.values.tolist() == [1, 2, 3, 3, 3, 6, 6, 8]


def test_constant_and_empty_series(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    dates = [f"2024-01-{day:02d}" for day in range(1, 31)]
    text = "date,x,y,z\n" + "".join(f"{date},{i % 5},7,\n" for i, date in enumerate(dates))
    path = str(write(tmp_path / "a.csv", text))
    dataset = load_series(path, Columns(), "error")
    assert [series.name for series in dataset.table.series] == ["x", "y"]
    assert "'z': every value is missing; left out" in capsys.readouterr().err
    measure_facts(dataset, "1", "none", 2, 4, 3)
    assert "constant: 'y'; --target names" in capsys.readouterr().err
    with refuses("the series 'y': every value is 7", "nothing to learn"):
        measure_facts(load_series(path, Columns(("y",)), "error"), "1", "none", 2, 4, 3)
    long = "date,id,value\n" + "".join(f"{date},a,{i}\n{date},b,\n" for i, date in enumerate(dates))
    table = load_series(str(write(tmp_path / "b.csv", long)), Columns(), "error").table
    assert [series.name for series in table.series] == ["a"]
    assert "'b': every value is missing; left out" in capsys.readouterr().err


def test_months_as_fractions_of_years_and_row_numbers(tmp_path: Path):
    rows = [f"{i + 1},{1949 + i / 12:.11f},{100 + i * i}" for i in range(30)]
    table = load(tmp_path, "\n".join(["rownames,time,passengers", *rows]))
    assert [series.name for series in table.series] == ["passengers"] and table.frequency == Frequency(months=1)
    assert parse_time("1949.2") is None


# --- seasons ---


def test_season_by_frequency_or_autocorrelation(tmp_path: Path):
    rng, steps = np.random.default_rng(0), np.arange(400)
    wave = 10 * np.sin(2 * np.pi * steps / 11) + rng.normal(0, 1, 400) + steps / 5
    walk = rng.normal(size=400).cumsum()
    assert find_period(wave, 100) == 11 and find_period(np.ones(50), 20) == 1
    days = np.datetime64("2024-01-01") + steps
    week = 10 * (steps % 7 == 0) + rng.normal(0, 1, 400)
    for values, dates, season in ((wave, None, 11), (walk, days, 1), (week, days, 7)):
        lines = [f"{i if dates is None else dates[i]},{value}" for i, value in enumerate(values)]
        header = "step,x" if dates is None else "date,x"
        path = write(tmp_path / f"{season}.csv", "\n".join([header, *lines]))
        assert infer_season(load_series(str(path), Columns(("x",)), "error"), 12, 100) == season


def test_seasonal_naive_and_its_error():
    values = np.array([1.0, 2, 3, 2, 4, 6])
    assert datasets.forecast_seasonal_naive(values, 3, 5).tolist() == [2, 4, 6, 2, 4]
    assert datasets.seasonal_error(values, 3) == 2 and datasets.seasonal_error(values, 1) == 1.4
    assert datasets.seasonal_error(np.ones(5), 1) == 1


# --- windows ---


def test_windows_hold_the_values_after_each_node_and_respect_the_held_out_end(tmp_path: Path):
    path = write(tmp_path / "a.csv", "x\n" + "\n".join(str(i * i) for i in range(60)))
    dataset = load_series(str(path), Columns(), "error")
    shape = batches.WindowShape(patch=4, nodes=5, horizon=6, season=2)
    values, (cut,) = dataset.table.series[0].values, dataset.cuts(6)
    assert cut == 48
    scale = batches.measure_features(dataset, 6)
    for split in ("train", "val", "all"):
        windows, units = batches.list_windows(dataset, split, shape), batches.measure_units(dataset, split, shape)
        batch = batches.build_batch(dataset.table, units, windows, shape, scale)
        for row, window in enumerate(windows):
            for node, step in np.argwhere(batch["is_label"][row]).tolist():
                place = window.start + 4 * (node + 1) + step
                assert place < cut if split == "train" else place >= (cut if split == "val" else 30)
                value = batch["level"][row] + batch["unit"][row] * batch["labels"][row, node, step]
                assert value == pytest.approx(values[place], rel=1e-5)
        assert batch["is_label"].any((1, 2)).all()
    origins = [window.limit - 6 for window in batches.list_windows(dataset, "val", shape)]
    assert origins == list(range(48, 55))


@pytest.mark.parametrize("text", ["9" * 12, "9" * 18, "9" * 40, "9" * 5001])
def test_seconds_that_no_calendar_has_are_no_time(text: str):
    assert parse_time(text) is None
