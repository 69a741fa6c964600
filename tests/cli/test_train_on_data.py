"""`anyformer detect PATH`, and `anyformer train PATH` without a recipe."""

import json
from pathlib import Path

import pytest

from anyformer import api
from anyformer.detection import detect_recipe
from cli_kit import assert_refused, call
from data_kit import write


@pytest.fixture
def table(tmp_path: Path) -> Path:
    path = tmp_path / "flowers.csv"
    rows = [f"{i % 7}.5,{i % 5}.25,{'abc'[i % 3]}" for i in range(60)]
    path.write_text("\n".join(["length,width,species", *rows]) + "\n")
    return path


def test_detect_says_what_data_are(table: Path):
    answer = call("detect", table, "--json").ok().json
    assert (answer["recipe"], answer["target"], answer["alternatives"]) == ("multimodal", "species", [])
    assert "species to predict" in answer["why"]
    assert "so the recipe is multimodal" in call("detect", table).ok().out
    assert_refused(call("detect", table.parent / "absent.csv"), "there is no file or folder")


def test_data_are_trained_on_without_a_recipe(table: Path, tmp_path: Path):
    out = tmp_path / "run"
    result = call("train", table, "--preset", "tiny", "--steps", 2, "--out", out, "--yes").ok()
    config = json.loads((out / "config.json").read_text())
    assert config["recipe"] == "multimodal" and config["config"]["target"] == "species"
    assert "so the recipe is multimodal" in result.err


def test_flags_go_before_what_was_recognized(table: Path):
    words = ("--preset", "tiny", "--target", "length", "--print-config")
    described = json.loads(call("train", table, *words).ok().out)
    assert (described["recipe"], described["preset"], described["config"]["target"]) == ("multimodal", "tiny", "length")
    lines = call("train", table, *words).ok().err
    assert "length to predict" in lines and "species to predict" not in lines


def test_another_recipe_can_be_chosen(tmp_path: Path):
    path = tmp_path / "reviews.tsv"
    path.write_text("text\tlabel\n" + "".join(f"a good text number {i} of many\t{i % 2}\n" for i in range(50)))
    described = json.loads(call("train", path, "--print-config").ok().out)
    assert described["recipe"] == "classify" and described["config"]["data"] == str(path)
    described = json.loads(
        call("train", path, "--recipe", "multimodal", "--target", "label", "--print-config").ok().out
    )
    assert described["recipe"] == "multimodal"
    assert_refused(call("train", path, "--recipe", "vision"), "no recipe")
    assert_refused(call("train", path, "--recipe"), "--recipe needs a value")


def test_what_can_be_read_in_two_ways_is_refused_without_a_terminal(tmp_path: Path):
    (tmp_path / "table.csv").write_text("a,b,c\n" + "".join(f"{i % 4}.5,{i % 3},{i}\n" for i in range(40)))
    for name in ("one.txt", "two.md"):
        (tmp_path / name).write_text("some words in a line\n" * 9)
    refusal = "choose with --recipe multimodal or language"
    result = call("train", tmp_path, "--print-config")
    assert result.code == 2 and refusal in result.err.splitlines()[-1]
    described = json.loads(call("train", tmp_path, "--yes", "--print-config").ok().out)
    assert described["config"]["data"] == str(tmp_path / "table.csv")


def test_the_columns_that_were_recognized_are_kept_by_the_run(tmp_path: Path):
    """So that it is resumed and evaluated, and other files of the same form are read."""
    rows = [f"{i},wonderful film number {i % 40},{'good' if i % 2 else 'bad'}" for i in range(60)]
    path, out = tmp_path / "films.csv", tmp_path / "run"
    path.write_text("\n".join(["id,remark,verdict", *rows]) + "\n")
    steps = ("--train.save-every", 2, "--train.eval-every", 2)
    result = call("train", path, "--preset", "tiny", "--steps", 2, *steps, "--out", out).ok()
    assert "20 of 60 rows repeat another one: left out" in result.err
    config = json.loads((out / "config.json").read_text())["config"]
    assert (config["columns"], config["too_long"]) == ("remark,verdict", "cut")
    call("train", "classify", "--out", out, "--resume", "--steps", 4, *steps).ok()
    assert call("eval", out, "--data", path, "--json").ok().json["texts"] > 0
    call("predict", out, "--file", path, "--out", tmp_path / "scored.csv").ok()
    assert (tmp_path / "scored.csv").read_text().startswith("id,remark,verdict,label,probability\n")
    described = json.loads(call("train", path, "--columns", "id,verdict", "--print-config").ok().out)
    assert described["config"]["columns"] == "id,verdict"


def test_a_target_that_is_no_number_is_predicted_from_a_table(tmp_path: Path):
    rows = [f"2024-{i // 28 + 1:02}-{i % 28 + 1:02},{i % 7}.5,{('rain', 'sun')[i % 2]}" for i in range(90)]
    path = write(tmp_path / "weather.csv", "date,wind,weather\n" + "\n".join(rows) + "\n")
    assert detect_recipe(path).recipe == "forecast" and detect_recipe(path, target="wind").recipe == "forecast"
    assert detect_recipe(path, target="weather").recipe == "multimodal"
    line = call("train", path, "--target", "weather", "--dry-run").ok().err
    assert "so the recipe is multimodal" in line


def test_data_are_trained_on_from_python(table: Path, tmp_path: Path):
    model = api.train(str(table), out=tmp_path / "run", train={"steps": 2, "eval_every": 2})
    assert model.recipe.__name__.endswith(detect_recipe(table).recipe) and model.step > 0
