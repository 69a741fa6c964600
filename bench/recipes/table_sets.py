"""Ten tables that ship within Python packages, for `bench.recipes.tables`; nothing is downloaded, no package is run.

scikit-learn      breast-cancer, wine, diabetes
statsmodels       anes96
palmerpenguins    penguins
vega_datasets     cars
pydataset         chile, housing, diamonds (2,000 rows), mortgages: sets of R
"""

import csv
import gzip
import importlib.util
import io
import json
import random
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

Row = dict[str, Any]


class TableSet(NamedTuple):
    """A table by name: its target, whether that is a class, and its rows. An empty text is a missing value."""

    target: str
    is_class: bool
    package: str
    read: Callable[[], list[Row]]


def find_package(name: str) -> Path:
    """Return the folder of a package without importing it. Raises ModuleNotFoundError."""
    spec = importlib.util.find_spec(name)
    if spec is None or not spec.submodule_search_locations:
        raise ModuleNotFoundError(f"the package {name} is not installed: pip install {name}")
    return Path(next(iter(spec.submodule_search_locations)))


def read_csv(text: str, *unused: str, delimiter: str = ",") -> list[Row]:
    """Return the rows of a csv without some columns; NA becomes an empty text."""
    rows = csv.DictReader(io.StringIO(text), delimiter=delimiter)
    return [{k.strip("'"): "" if v == "NA" else v for k, v in row.items() if k not in unused} for row in rows]


def read_sklearn(file: str, names: tuple[str, ...], classes: tuple[str, ...]) -> list[Row]:
    """Return the rows of a csv of scikit-learn, the last column of which is the number of the class."""
    lines = (find_package("sklearn") / "datasets" / "data" / file).read_text("utf-8").splitlines()[1:]
    rows = []
    for *values, number in (line.split(",") for line in lines):
        rows.append(dict(zip(names, values, strict=True)) | {"class": classes[int(number)]})
    return rows


def read_breast_cancer() -> list[Row]:
    names = tuple(f"{kind} {i}" for kind in ("mean", "error", "worst") for i in range(10))
    return read_sklearn("breast_cancer.csv", names, ("malignant", "benign"))


def read_wine() -> list[Row]:
    return read_sklearn("wine_data.csv", tuple(f"x{i}" for i in range(13)), ("a", "b", "c"))


def read_diabetes() -> list[Row]:
    folder = find_package("sklearn") / "datasets" / "data"
    x, y = (gzip.decompress((folder / f"diabetes_{name}.csv.gz").read_bytes()).decode().split("\n")
            for name in ("data_raw", "target"))  # fmt: skip
    names = ("age", "sex", "bmi", "bp", "s1", "s2", "s3", "s4", "s5", "s6")
    return [dict(zip(names, line.split(), strict=True)) | {"progression": value} for line, value in zip(x, y) if line]


def read_penguins() -> list[Row]:
    path = find_package("palmerpenguins") / "data" / "penguins.csv"
    return [row for row in read_csv(path.read_text("utf-8"), "year") if row["sex"]]


def read_cars() -> list[Row]:
    rows = json.loads((find_package("vega_datasets") / "_data" / "cars.json").read_text("utf-8"))
    rows = [row | {"Year": row["Year"][:4]} for row in rows if row["Miles_per_Gallon"] is not None]
    return [{k: "" if v is None else str(v) for k, v in row.items() if k != "Name"} for row in rows]


def read_anes96() -> list[Row]:
    path = find_package("statsmodels") / "datasets" / "anes96" / "anes96.csv"
    votes = ("Clinton", "Dole")
    return [row | {"vote": votes[int(float(row["vote"]))]} for row in read_csv(path.read_text("utf-8"), delimiter="\t")]


def read_r_set(name: str) -> list[Row]:
    """Return the rows of an R set by package and name ("ggplot2/diamonds")."""
    with tarfile.open(find_package("pydataset") / "resources.tar.gz") as archive:
        members = (member for member in archive if member.name.endswith(f"/{name}.csv"))
        file = archive.extractfile(next(members))
        assert file is not None
        return read_csv(file.read().decode("utf-8"), "")


def read_chile() -> list[Row]:
    return [row for row in read_r_set("car/Chile") if row["vote"]]


def read_diamonds() -> list[Row]:
    return random.Random(0).sample(read_r_set("ggplot2/diamonds"), 2000)


def read_mortgages() -> list[Row]:
    return [row for row in read_r_set("Ecdat/Hdma") if row["deny"]]


SETS = {
    "breast-cancer": TableSet("class", True, "scikit-learn", read_breast_cancer),
    "diabetes": TableSet("progression", False, "scikit-learn", read_diabetes),
    "penguins": TableSet("sex", True, "palmerpenguins", read_penguins),
    "chile": TableSet("vote", True, "pydataset", read_chile),
    "housing": TableSet("price", False, "pydataset", lambda: read_r_set("Ecdat/Housing")),
    "wine": TableSet("class", True, "scikit-learn", read_wine),
    "cars": TableSet("Miles_per_Gallon", False, "vega_datasets", read_cars),
    "diamonds": TableSet("price", False, "pydataset", read_diamonds),
    "mortgages": TableSet("deny", True, "pydataset", read_mortgages),
    "anes96": TableSet("vote", True, "statsmodels", read_anes96),
}
TUNED = ("breast-cancer", "diabetes", "penguins", "chile", "housing")  # the defaults were chosen on these


def list_columns(rows: list[Row], target: str) -> Iterator[tuple[str, bool]]:
    """Yield the columns besides the target, and whether each holds numbers."""
    for name in rows[0]:
        if name != target:
            yield name, all(is_number(row[name]) for row in rows if row[name])


def is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
