"""A table as people have it: trained on from the command line, and rows of a file predicted the same way."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest

from anyformer import api
from cli_kit import assert_refused, call
from data_kit import write

CITIES = ["Bonn", "Ulm", "Jena", *(f"Dorf{i}" for i in range(40))]


def german(number: float) -> str:
    return f"{number:,.2f}".translate(str.maketrans(".,", ",."))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on sales with German dates, numbers and currencies, of which the latest are for validation."""
    folder = tmp_path_factory.mktemp("sales")
    rng, lines = np.random.default_rng(0), ["Kunden_ID;Datum;Ort;Umsatz;Rabatt;Alter;Land;Preis"]
    for i in range(300):
        day, city, age = i * 7 % 300, CITIES[int(rng.integers(3)) if i % 5 else i // 5 % 43], int(rng.integers(18, 80))
        price = 1000 + 30 * age + (500 if city == "Bonn" else 0)
        cells = [f"K{i:04d}", f"{day % 28 + 1}.{day // 28 + 1}.2023", city, f"{german(day * 9.5)} €", f"{i % 9} %"]
        cells += [str(age) if i % 50 else "unbekannt", "DE", german(price) if i % 60 else ""]
        lines.append(";".join(cells))
    write(folder / "sales.csv", "\n".join(lines) + "\n")
    flags = ("--target", "Preis", "--order", "Datum", "--preset", "tiny", "--steps", 60, "--train.batch", 32)
    rates = ("--train.lr", 0.01, "--train.eval-every", 60, "--device", "cpu", "--out", folder / "run", "--json")
    result = call("train", "multimodal", "--data", folder / "sales.csv", *flags, *rates).ok()
    assert result.json["val_r2"] > 0.3
    for line in (
        "left out: Kunden_ID (a different value in every row), Land (constant)",
        "Alter: 6 of 300 values are no number ('unbekannt'): read as missing",
        "5 of 300 rows have no target (the first:",
    ):
        assert line in result.err
    return folder / "run"


def test_the_schema_of_a_table_as_people_have_it(run: Path):
    schema = api.load(run, "cpu").module.schema
    kinds = {field.name: field.kind for field in schema.fields}
    expected = {"Datum": "date", "Ort": "category", "Umsatz": "scalar", "Rabatt": "scalar", "Alter": "scalar"}
    assert kinds == expected and schema.order == "Datum" and schema.targets[0].kind == "number"
    assert schema.fields[0].format == "%d.%m.%Y" and schema.fields[1].rare > 0


def test_rows_of_a_file_are_read_as_for_training(run: Path, tmp_path: Path):
    """Prices with decimal commas, a city that was not seen, and columns that are left out."""
    header, *rows = (run.parent / "sales.csv").read_text().splitlines()
    names = header.split(";")
    new = [*rows[1:5], "X1;24.12.2024;Mars;1.000,00 €;5 %;44;DE;"]
    write(tmp_path / "new.csv", "\n".join([header, *new]) + "\n")
    call("predict", run, "--file", tmp_path / "new.csv", "--out", tmp_path / "scored.csv", "--device", "cpu").ok()
    scored = list(csv.DictReader((tmp_path / "scored.csv").read_text().splitlines(), delimiter=";"))
    model = api.load(run, "cpu")
    for line, row in zip(new, scored, strict=True):
        values = dict(zip(names, line.split(";"), strict=True))
        (single,) = model.predict([values])["results"]
        assert float(row["value"].replace(",", ".")) == pytest.approx(single["value"], rel=1e-4)
    assert model.predict([values | {"Ort": "Venus"}])["results"] == model.predict([values])["results"]
    assert json.loads((run / "config.json").read_text())["config"]["order"] == "Datum"


def test_targets_and_columns_are_refused_in_one_line(run: Path, tmp_path: Path):
    command = ("train", "multimodal", "--preset", "tiny", "--data", run.parent / "sales.csv", "--out", tmp_path / "run")
    assert_refused(call(*command, "--target", "Land"), "the target 'Land' has one value (DE) in every row")
    assert_refused(call(*command, "--target", "Kunden_ID"), "300 classes in 300 rows", "too many to learn")
    refusal = call(*command, "--target", "Preis", "--empty", "error")
    assert refusal.code == 2 and "5 of 300 rows have no target" in refusal.err.splitlines()[-1]
    assert_refused(call(*command, "--target", "Preis", "--group", "Datm"), "did you mean 'Datum'?")
