"""Figures of recipes in the report: they agree with the model, and no content of the file becomes markup."""

import base64
import json
from pathlib import Path

import pytest
import torch

from anyformer import api
from anyformer.inference.translation import align_translation
from anyformer.report.figures import PNG_SIGNATURE, read_figures
from anyformer.report.html import write_report
from cli_kit import call


@pytest.fixture(scope="module", params=("classify", "multimodal"))
def run(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp(request.param) / "run"
    data = []
    if request.param == "classify":
        table = out.parent / "texts.tsv"
        rows = [f"{word} {i}\t{label}" for i in range(40) for word, label in (("good", "yes"), ("bad", "no"))]
        table.write_text("text\tlabel\n" + "\n".join(rows))
        data = ["--data", table]
    if request.param == "multimodal":
        table = out.parent / "rows.csv"
        table.write_text("x,kind\n" + "\n".join(f"{i % 7},{'ab'[i % 2]}" for i in range(60)))
        data = ["--data", table, "--target", "kind"]
    few = ("--preset", "tiny", "--steps", 3, "--device", "cpu", "--dtype", "float32")
    call("train", request.param, *few, *data, "--out", out).ok()
    return out


def test_a_finished_run_has_figures(run: Path):
    figures = json.loads((run / "figures.json").read_text())
    assert figures and len(read_figures(run)) == len(figures)
    for figure in figures:
        values = figure["values"]
        assert len(values) == len(figure["rows"]) and {len(row) for row in values} == {len(figure["columns"])}
        for row in values:
            assert sum(row) == pytest.approx(1, abs=0.01), "attention weights, or shares of a class"
    page = (run / "report.html").read_text()
    assert page.count("<svg") >= len(figures) + 1 and "Figures" in page
    if "multimodal" in str(run):
        verdicts = ("Better than", "Equal to", "No better than")
        assert "Confusion matrix of kind" in page and any(verdict in page for verdict in verdicts)


def test_figures_agree_with_the_model(run: Path):
    model = api.load(run, "cpu")
    figures = json.loads((run / "figures.json").read_text())
    assert figures == json.loads(json.dumps(model.recipe.figures(model.module, model.config)))
    if model.name == "translation":
        alignment = align_translation(model.module, figures[0]["note"], figures[0]["title"])
        assert alignment["weights"] == figures[0]["values"]
    elif model.name == "classify":
        metrics = model.evaluate()
        for i, name in enumerate(figures[0]["rows"]):
            counts = torch.tensor([metrics[f"{name} as {other}"] for other in figures[0]["columns"]])
            torch.testing.assert_close(torch.tensor(figures[0]["values"][i]), counts / counts.sum(), atol=1e-4, rtol=0)
    else:
        metrics = model.evaluate()
        right = round(metrics["accuracy"] * metrics["rows"])
        assert f"{right} of {metrics['rows']} rows of the validation split are right" in figures[0]["note"]


@pytest.mark.slow
def test_a_resumed_run_has_new_figures(run: Path):
    config = json.loads((run / "config.json").read_text())
    few = ("--resume", "--out", run, "--steps", 4, "--dtype", "float32", "--device", "cpu")
    (run / "figures.json").write_text("[]")
    call("train", config["recipe"], *few).ok()
    assert json.loads((run / "figures.json").read_text())


MALFORMED = [
    3,
    {"kind": "matrix"},
    {"kind": "matrix", "values": [[1, 2], [1]]},
    {"kind": "matrix", "values": [["x"]]},
    {"kind": "other", "values": [[1]]},
    {"kind": "lines", "lines": [{"name": "a", "x": [1], "y": []}]},
    {"kind": "lines", "lines": []},
    {"kind": "drafts", "drafts": 3},
    {"kind": "images", "images": [{"png": "javascript:alert(1)"}]},
    {"kind": "images", "images": [{"png": base64.b64encode(b"<svg onload=alert(1)>").decode()}]},
]
VALID = [
    {"kind": "matrix", "title": "<b>t", "values": [[1, float("nan")]], "rows": ["<i>"], "columns": ["a", "b"]},
    {"kind": "lines", "title": "l", "x_label": "<u>", "lines": [{"name": "<s>", "x": [0, 1], "y": [1, 2]}]},
    {"kind": "images", "images": [{"png": base64.b64encode(PNG_SIGNATURE + b"x").decode(), "caption": "<script>"}]},
    {"kind": "drafts", "drafts": ["<s>__", "<s>a_", "<s>ab", "<s>abc"]},
]


def test_malformed_figures_are_left_out_and_text_is_escaped(tmp_path: Path):
    (tmp_path / "figures.json").write_text(json.dumps([*MALFORMED, *VALID]))
    assert len(read_figures(tmp_path)) == len(VALID)
    page = write_report(tmp_path).read_text()
    for tag in ("<b>", "<i>", "<u>", "<s>", "alert(1)"):
        assert tag not in page
    assert page.count("data:image/png;base64,") == 1 and "&lt;script&gt;" in page
    assert page.count("<mark>") == 2 and "&lt;s&gt;a<mark>b</mark></pre>" in page  # what a pass has written
    for text in ("", "{", "{}", "[" * 100_000):
        (tmp_path / "figures.json").write_text(text)
        assert read_figures(tmp_path) == []
