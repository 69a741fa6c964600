"""Runs and models in a notebook: they draw themselves, and their plots are figures of matplotlib."""

import base64
import dataclasses
import json
import re
import shutil
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest
import torch

import anyformer
from anyformer import recipe_loading
from anyformer.errors import InputError
from anyformer.report.figures import KINDS as DRAWN
from anyformer.report.plots import KINDS, plot_figure

NEEDS_MATPLOTLIB = "matplotlib is not installed: pip install 'anyformer[plot]'"
PNG = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="


def read_records(run: Path, metric: str) -> tuple[list[float], list[float]]:
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    pairs = [(record["step"], record[metric]) for record in records if metric in record]
    return [x for x, _ in pairs], [y for _, y in pairs]


def test_a_run_shows_what_it_is_without_matplotlib(run_once: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "matplotlib.pyplot", None)
    run = anyformer.open_run(run_once)
    result = json.loads((run_once / "result.json").read_text())
    text, page = repr(run), run._repr_html_()
    for shown in (text, page):
        assert "language · tiny" in shown and "finished" in shown and f"{result['val_loss']:.4f}" in shown
    svg = base64.b64decode(re.search(r"base64,([\w+/=]+)", page)[1]).decode()
    tree = ElementTree.fromstring(svg)
    assert tree.tag.endswith("svg") and "validation" in svg, "a file of its own, whose style stays in it"
    assert run.history()["val_loss"] == read_records(run_once, "val_loss")
    with pytest.raises(InputError, match=r"plots need matplotlib: pip install 'anyformer\[plot\]'"):
        run.plot()


def test_text_of_a_run_is_escaped(run_once: Path, tmp_path: Path):
    shutil.copytree(run_once, tmp_path / "run")
    setup = json.loads((tmp_path / "run" / "config.json").read_text())
    (tmp_path / "run" / "config.json").write_text(json.dumps(setup | {"preset": "<script>"}))
    page = anyformer.open_run(tmp_path / "run")._repr_html_()
    assert "<script>" not in page and "&lt;script&gt;" in page


def test_a_run_without_logs_shows_a_table(run_once: Path, tmp_path: Path):
    (tmp_path / "run").mkdir()
    shutil.copy(run_once / "config.json", tmp_path / "run")
    run = anyformer.open_run(tmp_path / "run")
    assert "<img" not in run._repr_html_() and run.history() == {}


def test_what_is_no_run_is_refused(run_once: Path, tmp_path: Path):
    with pytest.raises(InputError, match="there is no run at"):
        anyformer.open_run(tmp_path)
    with pytest.raises(InputError, match=r"has no metric 'val_los': did you mean 'val_loss'\?"):
        anyformer.open_run(run_once).plot("val_los")


def test_a_model_draws_its_run(run_once: Path):
    model = anyformer.load(run_once, "cpu")
    assert model.run.path == run_once and "data:image/svg+xml;base64," in model._repr_html_()


def test_curves_are_lines_of_a_figure(run_once: Path):
    pytest.importorskip("matplotlib", reason=NEEDS_MATPLOTLIB)
    from matplotlib import pyplot
    from matplotlib.figure import Figure

    run = anyformer.open_run(run_once)
    figure = run.plot()
    assert isinstance(figure, Figure) and pyplot.get_fignums() == [], "shown once"
    lines = {line.get_label(): line for line in figure.axes[0].get_lines()}
    for metric in ("loss", "val_loss"):
        assert tuple(map(list, lines[metric].get_data())) == read_records(run_once, metric)
    _, axes = pyplot.subplots()
    assert run.plot("grad_norm", axes=axes) is axes.figure and len(axes.get_lines()) == 1
    assert anyformer.load(run_once, "cpu").plot_history("lr").axes[0].get_lines()[0].get_label() == "lr"
    pyplot.close("all")


def test_runs_side_by_side(run_once: Path, tmp_path: Path):
    pytest.importorskip("matplotlib", reason=NEEDS_MATPLOTLIB)
    shutil.copytree(run_once, tmp_path / "other")
    figure = anyformer.plot_runs([run_once, anyformer.open_run(tmp_path / "other")])
    assert [line.get_label() for line in figure.axes[0].get_lines()] == ["run", "other"]
    assert figure.axes[0].get_ylabel() == "val_loss"
    with pytest.raises(InputError, match="no metric 'accuracy'"):
        anyformer.plot_runs([run_once], "accuracy")
    with pytest.raises(InputError, match="no runs to plot"):
        anyformer.plot_runs([])


def test_figures_of_a_recipe_are_plotted(run_once: Path, tmp_path: Path):
    pytest.importorskip("matplotlib", reason=NEEDS_MATPLOTLIB)
    shutil.copytree(run_once, tmp_path / "run")
    line = {"name": "a", "x": [0, 1], "y": [2, 3]}
    figures = [
        {"kind": "matrix", "title": "m", "values": [[0.0, 1.0], [0.5, 0.5]], "rows": ["a", "b"], "columns": ["a", "b"]},
        {"kind": "lines", "title": "l", "x_label": "x", "lines": [line], "zero": True},
        {"kind": "images", "title": "i", "images": [{"png": PNG, "caption": "c"}]},
        {"kind": "matrix"},
        {"kind": "images", "images": [{"png": "no"}]},
    ]
    (tmp_path / "run" / "figures.json").write_text(json.dumps(figures))
    matrix, lines, images = anyformer.open_run(tmp_path / "run").plot_figures()
    assert matrix.axes[0].images[0].get_array().tolist() == figures[0]["values"]
    assert [text.get_text() for text in matrix.axes[0].get_yticklabels()] == ["a", "b"]
    assert lines.axes[0].get_lines()[0].get_ydata().tolist() == [2, 3] and lines.axes[0].get_ylim()[0] == 0
    assert len(images.axes) == 1 and images.axes[0].get_title() == "c"
    assert set(KINDS) == set(DRAWN) - {"worth"}, "every kind of the report"
    with pytest.raises(KeyError):
        plot_figure({"kind": "other"})


@pytest.mark.parametrize("position", ["learned", "rotary"])
def test_attention_is_that_of_the_request(text: Path, tmp_path: Path, position: str):
    """Rows sum to 1, nothing reads ahead, and another request has other weights."""
    few = {"steps": 2, "device": "cpu", "dtype": "float32"}
    model = anyformer.train(
        "language", "tiny", data=str(text), out=tmp_path / "run", model={"position": position}, **few
    )
    weights = model.attention("the cat", tokens=3)
    assert weights.shape == (2, 1, 2, 7, 7)
    torch.testing.assert_close(weights.sum(-1), torch.ones(2, 1, 2, 7))
    assert weights.triu(1).abs().max() < 1e-6 and not torch.equal(weights, model.attention("the dog"))
    assert model.generate("the cat", tokens=3, seed=1) == model.generate("the cat", tokens=3, seed=1)


def test_attention_is_a_heat_map(run_once: Path):
    pytest.importorskip("matplotlib", reason=NEEDS_MATPLOTLIB)
    model = anyformer.load(run_once, "cpu")
    figure = model.plot_attention("the cat", layer=0, head=1, labels=list("the cat"))
    shown = torch.tensor(figure.axes[0].images[0].get_array().tolist())
    torch.testing.assert_close(shown, model.attention("the cat")[0, 0, 1])
    assert [text.get_text() for text in figure.axes[0].get_xticklabels()] == list("the cat")


def test_other_recipes_have_attention_too():
    for name, data in (("multimodal", None), ("mlp", str(Path(__file__)))):
        recipe = recipe_loading.load_recipe(name)
        config = recipe.PRESETS["tiny"] if data is None else dataclasses.replace(recipe.PRESETS["tiny"], data=data)
        model = anyformer.Model(recipe, config, recipe.build(config), {"step": 0}, Path(name))
        if data is None:
            weights = model.attention(recipe.examples(config).request["input"])
            torch.testing.assert_close(weights.sum(-1), torch.ones(weights.shape[:-1]))
        else:
            with pytest.raises(InputError, match="has no Transformer"):
                model.attention()
