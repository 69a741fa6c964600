"""anyformer from Python: what is exported, short names of settings, requests of every form, what a model shows."""

import io
import json
import sys
from pathlib import Path
from types import ModuleType

import pytest

import anyformer
from anyformer import api
from anyformer.errors import InputError
from anyformer.recipes import language
from anyformer.report import progress
from cli_kit import call, read_folder

FEW = {"steps": 2, "eval_every": 2, "device": "cpu", "dtype": "float32"}


def test_the_public_names_are_shown():
    names = {"InputError", "Model", "Stopped", "TrainingError", "Transformer", "TransformerConfig", "causal", "load"}
    assert set(dir(anyformer)) >= names | {"train", "full", "same", "window", "__version__"}
    assert all(getattr(anyformer, name) is not None for name in anyformer.__all__)
    with pytest.raises(AttributeError, match="no attribute 'trian'"):
        anyformer.trian  # noqa: B018


def test_settings_of_training_may_stand_alone(text: Path, tmp_path: Path):
    model = anyformer.train("language", "tiny", data=str(text), out=tmp_path / "run", **FEW, train={"batch": 2})
    assert (model.config.train.steps, model.config.train.batch, model.step) == (2, 2, 2)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"n_layer": 3}, r"unknown field 'n_layer': write model=\{'n_layer': 3\}"),
        ({"stpes": 3}, r"unknown field 'stpes': did you mean 'steps'\?"),
        ({"learning_rate": 1e-3}, r"unknown field 'learning_rate': did you mean 'lr'\? valid: .* and \d+ more"),
        ({"train": {"stpes": 3}}, r"train: unknown field 'stpes': did you mean 'steps'\?"),
        ({"steps": "3"}, r"train.steps is '3'; it must be a whole number"),
        ({"model": {"position": "rope"}}, r"model.position is 'rope': valid: none, learned, sinusoidal, rotary"),
        ({"optimizer": "sgd"}, r"train.optimizer is 'sgd': valid: adamw, muon"),
        ({"seed": 1.5}, r"train.seed is 1.5; it must be a whole number"),
        ({"lora": {"rank": 8}}, r"--lora.rank trains adapters on an existing model"),
        ({"minutes": float("nan")}, r"minutes is nan; it must be a finite number"),
    ],
)
def test_a_wrong_setting_is_one_line(overrides: dict, message: str):
    with pytest.raises(InputError, match=message):
        anyformer.train("language", "tiny", **overrides)


def test_requests_of_every_form(run: Path):
    model = anyformer.load(run, "cpu")
    request = {"prompt": "the ", "tokens": 9, "seed": 3}
    answer = model.predict(request)
    assert model.predict(**request) == model.generate("the ", tokens=9, seed=3) == answer
    assert "".join(model.stream("the ", tokens=9, seed=3)) == answer["samples"][0]["text"]
    for wrong in ({"tokens": "5"}, {"seed": 1.5}, {"prompt": 3}, {"promt": "a"}):
        with pytest.raises(InputError, match="request: "):
            model.predict(wrong)
    assert model.predict("the ", tokens=9, seed=3) == answer, "a request that is no dict is its input"
    with pytest.raises(InputError, match="stream yields one sample"):
        next(model.stream("the ", samples=2))


def test_rows_of_a_table_and_files_of_them(tmp_path: Path):
    table = tmp_path / "x.csv"
    rows = [{"size": i % 7, "color": ("red", "blue")[i % 2], "label": ("yes", "no")[i % 2]} for i in range(40)]
    table.write_text("\n".join(["size,color,label", *(",".join(map(str, row.values())) for row in rows)]))
    model = anyformer.train("multimodal", "tiny", data=str(table), target="label", out=tmp_path / "run", **FEW)
    questions = [{name: row[name] for name in ("size", "color")} for row in rows]
    answers = model.predict(questions)["results"]
    assert len(answers) == 40 and model.predict({"input": questions})["results"] == answers
    assert len(model.predict(str(table))["results"]) == 40
    assert model.evaluate()["rows"] > 0


def test_a_model_shows_what_it_is(run: Path):
    model = anyformer.load(run, "cpu")
    loss = json.loads((run / "result.json").read_text())["val_loss"]
    text = repr(model)
    assert f"{model.n_parameters:,} parameters" in text and "language" in text and "step 4" in text
    assert f"{loss:.4f}" in text and model.config.data in text
    page = model._repr_html_()
    assert f"{loss:.4f}" in page and f'href="{run / "report.html"}"' in page


def test_progress_from_python_is_on_stderr(text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys):
    settings = {"data": str(text), **FEW}
    anyformer.train("language", "tiny", out=tmp_path / "quiet", **settings)
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("", "")
    anyformer.train("language", "tiny", out=tmp_path / "bar", progress=True, **settings)
    captured = capsys.readouterr()
    assert captured.out == "" and "step 2/2" in captured.err and "language · tiny" in captured.err
    terminal = io.StringIO()
    monkeypatch.setattr(terminal, "isatty", lambda: True)
    monkeypatch.setattr(sys, "stderr", terminal)
    anyformer.train("language", "tiny", out=tmp_path / "terminal", **settings)
    assert "step 2/2" in terminal.getvalue()


def test_jupyter_counts_as_interactive(monkeypatch: pytest.MonkeyPatch):
    assert not api.is_interactive() and not progress.has_live_output()
    monkeypatch.setitem(sys.modules, "ipykernel", ModuleType("ipykernel"))
    assert api.is_interactive()
    for has_widgets in (False, True):  # without widgets rich cannot draw there: lines are printed
        monkeypatch.setattr(progress.importlib.util, "find_spec", lambda name, has=has_widgets: has or None)
        with progress.Progress(2, stream=io.StringIO()) as view:
            assert (view.bar is not None) == has_widgets


# --- one job, resolved once ---


def test_python_and_the_command_line_resolve_the_same_job(text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    jobs: list = []

    def keep(job: object, *_: object) -> None:
        jobs.append(job)
        raise InputError("enough")

    monkeypatch.setattr("anyformer.api.run_job", keep)
    with pytest.raises(InputError, match="enough"):
        anyformer.train("language", "tiny", data=str(text), out=tmp_path / "run", model={"n_layer": 3}, **FEW)
    flags = ("--steps", 2, "--train.eval-every", 2, "--device", "cpu", "--dtype", "float32", "--model.n-layer", 3)
    call("train", "language", "--preset", "tiny", "--data", text, "--out", tmp_path / "run", *flags)
    first, second = jobs
    assert first.config == second.config and first.run == second.run and first.preset == second.preset == "tiny"
    assert first.recipe is second.recipe is language


def test_a_model_to_start_from_is_loaded_once(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    loads: list[str] = []
    real = anyformer.load

    def count(path: Path, *args: object, **kwargs: object) -> anyformer.Model:
        loads.append(str(path))
        return real(path, *args, **kwargs)

    for module in ("trained_model", "api"):
        monkeypatch.setattr(f"anyformer.{module}.load", count)
    for number, settings in enumerate(({}, {"lora": {"rank": 2}})):
        loads.clear()
        anyformer.train("language", init=run, out=tmp_path / f"tuned-{number}", **FEW, **settings)
        assert loads == [str(run)]


def test_a_run_is_resumed_from_another_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Paths in configs were resolved by a list of names that lacked `labels`."""
    here, there = tmp_path / "here", tmp_path / "there"
    here.mkdir()
    there.mkdir()
    monkeypatch.chdir(here)
    (here / "my_labels.json").write_text(json.dumps([str(9 - i) for i in range(10)]))
    call(*vision("--labels", "my_labels.json", "--steps", 2, "--out", "run")).ok()
    monkeypatch.chdir(there)
    before = read_folder(there)
    call("train", "vision", "--out", here / "run", "--resume", "--steps", 3).ok()
    assert read_folder(there) == before
    assert json.loads((here / "run" / "checkpoints" / "step-3" / "labels.json").read_text())[0] == "9"


def vision(*flags: object) -> tuple[object, ...]:
    return ("train", "vision", "--preset", "tiny", "--device", "cpu", "--train.batch", 2, *flags)


# --- mistakes of loading and importing ---


def test_a_file_that_is_no_model(run: Path):
    for verb in ("sample", "predict", "eval"):
        result = call(verb, run / "report.html")
        assert result.code == 2 and "report.html is not a model: expected a run directory" in result.err


def test_importing_over_a_run(run: Path, tmp_path: Path):
    result = call("import", tmp_path / "somewhere", "--out", run)
    assert result.code == 2 and "is a run already: name another directory with --out" in result.err
    assert "--resume" not in result.err
    result = call("import", run, "--out", tmp_path / "copy")
    assert result.code == 2 and "is a run of anyformer already" in result.err and not (tmp_path / "copy").exists()


def test_weights_in_fewer_bits_are_as_many_parameters(run: Path):
    assert api.load(run, "cpu", weights="int8").n_parameters == api.load(run, "cpu").n_parameters > 0
