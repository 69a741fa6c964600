"""What recipes draw for the report: true to the model, and harmless whatever stands in the file."""

import base64
import json
from pathlib import Path

import pytest
import torch

from anyformer import api
from anyformer.inference.translation import align_translation
from anyformer.report.figures import PNG, read_figures
from anyformer.report.html import write_report
from cli_kit import call

DRAWN = ("translation", "classify")


@pytest.fixture(scope="module", params=DRAWN)
def run(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp(request.param) / "run"
    data = []
    if request.param == "classify":
        table = out.parent / "texts.tsv"
        rows = [f"{word} {i}\t{label}" for i in range(40) for word, label in (("good", "yes"), ("bad", "no"))]
        table.write_text("text\tlabel\n" + "\n".join(rows))
        data = ["--data", table]
    few = ("--preset", "tiny", "--steps", 3, "--device", "cpu", "--dtype", "float32")
    call("train", request.param, *few, *data, "--out", out).ok()
    return out


def test_a_run_that_ends_is_drawn(run: Path):
    figures = json.loads((run / "figures.json").read_text())
    assert figures and len(read_figures(run / "figures.json")) == len(figures)
    for one in figures:
        assert len(one["values"]) == len(one["rows"]) and {len(row) for row in one["values"]} == {len(one["columns"])}
        for row in one["values"]:
            assert sum(row) == pytest.approx(1, abs=0.01), "shares of a whole: of what is read, or of a class"
    page = (run / "report.html").read_text()
    assert page.count("<svg") >= len(figures) + 1 and "What it looks like" in page


def test_what_is_drawn_is_what_the_model_does(run: Path):
    model = api.load(run, "cpu")
    figures = json.loads((run / "figures.json").read_text())
    assert figures == json.loads(json.dumps(model.recipe.figures(model.module, model.config)))
    if model.name == "translation":
        again = align_translation(model.module, figures[0]["note"], figures[0]["title"])
        assert again["weights"] == figures[0]["values"]
    else:
        found = model.evaluate()
        for i, name in enumerate(figures[0]["rows"]):
            taken = [found[f"{name} as {other}"] for other in figures[0]["columns"]]
            torch.testing.assert_close(torch.tensor(figures[0]["values"][i]), torch.tensor(taken) / sum(taken))


def test_a_run_that_goes_on_shows_no_picture_of_before(run: Path):
    config = json.loads((run / "config.json").read_text())
    few = ("--resume", "--out", run, "--steps", 4, "--dtype", "float32", "--device", "cpu")
    (run / "figures.json").write_text("[]")
    call("train", config["recipe"], *few).ok()
    assert json.loads((run / "figures.json").read_text())


ODD = [
    3,
    {"kind": "matrix"},
    {"kind": "matrix", "values": [[1, 2], [1]]},
    {"kind": "matrix", "values": [["x"]]},
    {"kind": "film", "values": [[1]]},
    {"kind": "lines", "lines": [{"name": "a", "x": [1], "y": []}]},
    {"kind": "lines", "lines": []},
    {"kind": "images", "images": [{"png": "javascript:alert(1)"}]},
    {"kind": "images", "images": [{"png": base64.b64encode(b"<svg onload=alert(1)>").decode()}]},
]
GOOD = [
    {"kind": "matrix", "title": "<b>t", "values": [[1, float("nan")]], "rows": ["<i>"], "columns": ["a", "b"]},
    {"kind": "lines", "title": "l", "x_label": "<u>", "lines": [{"name": "<s>", "x": [0, 1], "y": [1, 2]}]},
    {"kind": "images", "images": [{"png": base64.b64encode(PNG + b"x").decode(), "caption": "<script>"}]},
]


def test_what_cannot_be_drawn_is_left_out_and_nothing_passes_as_markup(tmp_path: Path):
    (tmp_path / "figures.json").write_text(json.dumps([*ODD, *GOOD]))
    assert len(read_figures(tmp_path / "figures.json")) == len(GOOD)
    page = write_report(tmp_path).read_text()
    for tag in ("<b>", "<i>", "<u>", "<s>", "alert(1)"):
        assert tag not in page
    assert page.count("data:image/png;base64,") == 1 and "&lt;script&gt;" in page
    for text in ("", "{", "{}", "[" * 100_000):
        (tmp_path / "figures.json").write_text(text)
        assert read_figures(tmp_path / "figures.json") == []
