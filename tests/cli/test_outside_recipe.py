"""A recipe from outside the package, exactly the one in the documentation: trained, killed, resumed, used, exported."""

import importlib.metadata
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import anyformer
from anyformer import recipe_loading
from anyformer.errors import InputError
from cli_kit import assert_refused, call, nothing_changes

EXAMPLE = Path(__file__).parents[2] / "docs" / "examples" / "next_number.py"
TINY = ("train", "./next_number.py", "--preset", "tiny", "--device", "cpu")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with the recipe and a series."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "next_number.py").write_text(EXAMPLE.read_text(encoding="utf-8"), encoding="utf-8")
    series = 50 + 10 * np.sin(np.arange(1500) / 5)
    (tmp_path / "series.txt").write_text("\n".join(map(str, series)))
    return tmp_path


def read_weights(run: Path) -> bytes:
    return (run / "checkpoints" / "step-20" / "model.safetensors").read_bytes()


@pytest.mark.slow
def test_from_training_to_export(folder: Path):
    call(*TINY, "--data", "series.txt", "--out", "whole").ok()
    kill = "lambda record: record['step'] == 14 and os.kill(os.getpid(), signal.SIGKILL)"
    settings = "'./next_number.py', 'tiny', data='series.txt', out='part', device='cpu', save_every=5"
    code = f"import anyformer, os, signal; anyformer.train({settings}, on_record={kill})"
    assert subprocess.run([sys.executable, "-c", code], env=os.environ).returncode == -signal.SIGKILL
    resumed = call("train", "./next_number.py", "--out", "part", "--resume", "--json").ok()
    assert "from step 10" in resumed.err and read_weights(folder / "part") == read_weights(folder / "whole")
    assert json.loads((folder / "part" / "config.json").read_text())["recipe"] == "next_number"

    flags = ("--recipe", "./next_number.py", "--device", "cpu", "--json")
    assert call("eval", "part", *flags).ok().json["loss"] == resumed.json["val_loss"]
    answer = call("predict", "part", "series.txt", *flags, "--request", '{"steps": 3}').ok().json
    model = anyformer.load("part", "cpu", recipe="./next_number.py")
    values = [float(line) for line in (folder / "series.txt").read_text().split()]
    for request in ("series.txt", ["series.txt"], values):
        assert model.predict(request, steps=3)["results"] == answer["results"]
    assert len(answer["results"][0]["forecast"]) == 3

    (folder / "series.txt").unlink()  # a trained model brings what it needs: its scale.json
    assert (
        anyformer.load("part", "cpu", recipe="./next_number.py").predict(values, steps=3)["results"]
        == answer["results"]
    )

    runtime = pytest.importorskip("onnxruntime", reason="pip install 'anyformer[onnx]'")
    pytest.importorskip("onnxscript", reason="pip install 'anyformer[onnx]'")
    call("export", "part", "onnx", "--to", "onnx", "--recipe", "./next_number.py").ok()
    session = runtime.InferenceSession(str(folder / "onnx" / "model.onnx"))
    after = session.run(None, {"values": np.array([values[-64:]], np.float32)})[0][0, -1]
    assert after == pytest.approx(answer["results"][0]["forecast"][0], rel=1e-4)


def test_a_run_does_not_name_code(folder: Path):
    call(*TINY, "--steps", 2, "--out", "run").ok()
    says = (
        "run was trained with the recipe 'next_number', which is not part of anyformer",
        "--recipe ./next_number.py",
    )
    with nothing_changes(folder):
        for verb in ("predict", "eval", "sample"):
            assert_refused(call(verb, "run"), *says)
        assert_refused(call("export", "run", "out", "--to", "onnx"), *says)
        assert_refused(call("predict", "run", "--recipe", "language"), "the recipe 'next_number', not 'language'")
        assert_refused(call("train", "language", "--out", "run", "--resume"), "a run of recipe 'next_number'")


def test_every_way_to_name_a_recipe(folder: Path, monkeypatch: pytest.MonkeyPatch):
    (folder / "my_package").mkdir()
    (folder / "my_package" / "next_number.py").write_text(EXAMPLE.read_text(encoding="utf-8"), encoding="utf-8")
    module = recipe_loading.load_recipe("my_package.next_number")
    points = importlib.metadata.EntryPoints(
        [importlib.metadata.EntryPoint("prophet", "my_package.next_number", "anyformer.recipes")]
    )
    monkeypatch.setattr(importlib.metadata, "entry_points", lambda group: points.select(group=group))
    monkeypatch.syspath_prepend(folder)
    assert recipe_loading.load_recipe(module) is recipe_loading.load_recipe("prophet") is module
    assert (
        recipe_loading.load_recipe(Path("next_number.py"))
        is recipe_loading.load_recipe("./next_number.py")
        is not module
    )
    (folder / "prophecy").mkdir()  # a recipe that has grown into a folder
    (folder / "prophecy" / "parts.py").write_text(EXAMPLE.read_text(encoding="utf-8"), encoding="utf-8")
    names = ", ".join(recipe_loading.NAMES)
    (folder / "prophecy" / "__init__.py").write_text(f"from .parts import {names}")
    assert recipe_loading.recipe_name(recipe_loading.load_recipe("./prophecy")) == "prophecy"
    with pytest.raises(InputError, match="a recipe is a name, a file, a Python path or a module, not 3"):
        anyformer.train(3)
    model = anyformer.train(module, "tiny", steps=2, device="cpu", out="run")
    assert (model.name, model.recipe) == ("next_number", module)
    assert anyformer.load("run", recipe=module).predict() == model.predict()


@pytest.mark.parametrize(
    ("name", "change", "says"),
    [
        (
            "next_number.py",
            ("def loss(", "def lose("),
            ("./next_number.py is not a recipe: it has no `loss`", "evaluate"),
        ),
        ("next_number.py", ("def loss(", "def loss(:"), ("cannot import", "SyntaxError", "(line ")),
        ("next_number.py", ("import json", "import jsn"), ("cannot import", "No module named 'jsn'", "(line ")),
        ("next_number.py", ("    data: str", "    date: str"), ("the preset 'tiny' must be", "a field `data`")),
        ("language.py", ("", ""), ("anyformer has a recipe 'language' of its own", "rename yours")),
    ],
)
def test_a_file_that_is_no_recipe(folder: Path, name: str, change: tuple[str, str], says: tuple[str, ...]):
    (folder / name).write_text(EXAMPLE.read_text(encoding="utf-8").replace(*change, 1), encoding="utf-8")
    assert_refused(call("train", f"./{name}", "--preset", "tiny"), *says)


def test_a_recipe_that_does_not_exist(folder: Path):
    assert_refused(call("train", "./none.py"), "there is no recipe at none.py")
    assert_refused(call("train", "no_package.none"), "cannot import the recipe no_package.none", "No module named")
    assert_refused(
        call("train", "next_number"), "there is no recipe 'next_number': for the file here, write ./next_number.py"
    )


def test_config_fields_of_every_type_and_name(folder: Path):
    """Tuples, optional choices, and names that flags and checkpoint files have too, were lost or overwritten."""
    fields = """    scale: str = ""
    sizes: tuple[int, ...] = (1, 2)
    mode: Literal["fast", "slow"] | None = None
    state: str = "solid"
    config: str = "none"
    out: str = "outside"
    seed: float = 0.5
"""
    code = EXAMPLE.read_text(encoding="utf-8").replace('    scale: str = ""\n', fields)
    (folder / "next_number.py").write_text(
        "from __future__ import annotations\n\nfrom typing import Literal\n"
        + code.replace('"""Next number', 'D = """Next number', 1)
    )
    flags = ("--sizes", 3, 4, 5, "--mode", "slow", "--state", "liquid", "--config", "x", "--config.out", "y")
    call(*TINY, *flags, "--config.seed", 2, "--seed", 7, "--steps", 2, "--out", "run").ok()
    config = anyformer.load("run", recipe="./next_number.py").config
    assert (config.sizes, config.mode, config.state, config.config) == ((3, 4, 5), "slow", "liquid", "x")
    assert (config.out, config.seed, config.train.seed) == ("y", 2.0, 7)
    assert_refused(call(*TINY, "--mode", "fst"), "--mode is 'fst'", "'fast'?")
    assert_refused(call(*TINY, "--sizes", 1, "x"), "--sizes: 'x' is not a whole number")
    with pytest.raises(InputError, match=r"sizes\[0\] is '1'; it must be a whole number"):
        anyformer.train("./next_number.py", "tiny", sizes=["1"])
