"""anyformer compare: scores, differing fields and curves of several runs; intervals over seeds."""

import json
import re
import shutil
import statistics
from pathlib import Path

import pytest

from anyformer.report.compare import (
    compare_runs,
    render_comparison,
    strip_seed,
    student_t,
    summarize_scores,
    summarize_values,
)
from anyformer.training.run_directory import RunDirectory
from cli_kit import assert_refused, call


def copy_run(source: Path, path: Path, loss: float, **train: object) -> RunDirectory:
    """A copy of a run with other training settings and another final loss."""
    shutil.copytree(source, path)
    setup, result = (json.loads((path / name).read_text()) for name in ("config.json", "result.json"))
    setup["config"]["train"] |= train
    (path / "config.json").write_text(json.dumps(setup))
    (path / "result.json").write_text(json.dumps(result | {"val_loss": loss, "minutes": 0.5}))
    return RunDirectory(path)


@pytest.fixture
def folder(run_once: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Three runs that differ in the seed alone, and one with another learning rate."""
    folder = tmp_path / "runs"
    for seed, loss in ((1, 2.0), (2, 2.1), (3, 2.3)):
        copy_run(run_once, folder / f"a-seed-{seed}", loss, seed=seed)
    copy_run(run_once, folder / "b", 1.9, lr=0.5)
    monkeypatch.chdir(tmp_path)
    return folder


def test_scores_and_fields_side_by_side(folder: Path):
    result = call("compare", "a-seed-1", "b").ok()
    lines = result.out.splitlines()
    assert lines[0].split()[:2] == ["run", "loss"]
    assert re.match(r"a-seed-1 +2\.0000 ", lines[1]) and re.match(r"b +1\.9000\*", lines[2]), "the lower loss is marked"
    assert any(re.fullmatch(r"train\.lr +[\d.]+ +0\.5", line) for line in lines)
    assert "train.seed" not in result.out and "model" not in result.out, "fields that are the same are left out"
    facts = call("compare", "a-seed-1", "b", "--json").ok().json
    assert facts["differences"].keys() == {"train.lr"} and facts["differences"]["train.lr"]["b"] == 0.5
    assert "minutes" not in facts["runs"][1]["scores"], "what was asked for is no score"
    assert facts["runs"][1]["scores"]["loss"] == 1.9 and facts["warnings"] == []
    curve, log = facts["runs"][0]["curve"], (folder / "b" / "metrics.jsonl").read_text().splitlines()
    records = [record for record in map(json.loads, log) if "val_loss" in record]
    assert (curve["name"], curve["steps"]) == ("validation loss", [record["step"] for record in records])


def test_runs_that_differ_in_the_seed_get_an_interval(folder: Path):
    facts = compare_runs([RunDirectory(folder / name) for name in ("a-seed-1", "b", "a-seed-2", "a-seed-3")])
    group, other = facts["groups"]
    assert (group["name"], group["runs"], group["seeds"]) == ("a (3 seeds)", [0, 2, 3], [1, 2, 3])
    assert other["name"] == "b" and other["scores"]["loss"].interval is None
    sample, values = group["scores"]["loss"], [2.0, 2.1, 2.3]
    half = 4.3027 * statistics.stdev(values) / 3**0.5
    assert (sample.mean, sample.std) == (statistics.fmean(values), statistics.stdev(values))
    assert sample.interval == pytest.approx((sample.mean - half, sample.mean + half))
    out = call("compare", "a-seed-1", "a-seed-2", "a-seed-3", "b").ok().out
    assert f"a (3 seeds)  2.1333 ± 0.1528 [{2.13333 - half:.4f}, {2.13333 + half:.4f}]" in out


def test_student_t_is_that_of_the_tables():
    """Quantiles of the t distribution, 97.5 %, and the limit of many degrees of freedom."""
    expected = {1: 12.706, 2: 4.303, 10: 2.228, 11: 2.201, 20: 2.086, 30: 2.042, 100: 1.984, 10**6: 1.960}
    assert {freedom: round(student_t(freedom), 3) for freedom in expected} == expected
    assert str(summarize_values([1.0])) == "1.0000" and str(summarize_values([1.0, 3.0])) == "2.0000 ± 1.4142"


def test_the_interval_of_a_loss_ends_at_zero():
    """Unless one of the losses is below it."""
    rows = [{"loss": 0.1, "r2": 0.1, "policy_loss": -0.1}, {"loss": 1.0, "r2": 1.0, "policy_loss": 1.0}]
    intervals = {name: sample.interval or () for name, sample in summarize_scores(rows, list(rows[0])).items()}
    assert intervals["loss"] == (0.0, intervals["r2"][1]) and intervals["r2"][0] < 0 > intervals["policy_loss"][0]


def test_the_page_works_offline(folder: Path, tmp_path: Path):
    page = tmp_path / "page.html"
    result = call("compare", "a-seed-1", "a-seed-2", "b", "--out", page).ok()
    text = page.read_text()
    assert f"page  {page}" in result.err and "★ 1.9000" in text and "train.lr" in text
    assert not re.search(r"(src|href)=|https?://(?!www\.w3\.org)|@import|url\(", text), "nothing is fetched"
    chart = re.search(r"<svg.*?</svg>", text, re.S)[0]
    assert {"b", "a (2 seeds)"} == set(re.findall(r'data-name="([^"]+)"', chart)), "one line for each group"
    legend = re.search(r'<p class="legend">.*?</p>', text, re.S)[0]
    assert re.findall(r"var\(--c(\d)\)", legend) == ["0", "1"] and "a (2 seeds)" in legend
    assert chart.count('class="faint"') == 2, "and a pale one for each seed"
    assert "letter frequencies" in text and "95 %" in text
    assert_refused(call("compare", "a-seed-1", "b", "--out", tmp_path / "no" / "x.html"), "cannot write", "x.html")


def test_text_of_a_run_is_escaped(folder: Path):
    setup = json.loads((folder / "b" / "config.json").read_text())
    setup["preset"] = "<script>alert(1)</script>"
    (folder / "b" / "config.json").write_text(json.dumps(setup))
    page = render_comparison(compare_runs([RunDirectory(folder / name) for name in ("a-seed-1", "b")]))
    assert "<script>" not in page and "&lt;script&gt;" in page


def test_what_cannot_be_compared_is_said(folder: Path):
    path = folder / "b" / "config.json"
    setup = json.loads(path.read_text())
    setup["config"] |= {"data": "other.txt", "tokenizer": "byte"}
    path.write_text(json.dumps(setup))
    (folder / "b" / "result.json").unlink()
    warnings = call("compare", "a-seed-1", "b", "--json").ok().json["warnings"]
    for part in ("differ in data", "differ in tokenizer: a loss per token", "not finished, best validation so far: b"):
        assert any(part in warning for warning in warnings), (part, warnings)
    assert "differ in data" in call("compare", "a-seed-1", "b").ok().err


def test_misuse(folder: Path):
    assert_refused(call("compare", "b"), "two runs or more")
    assert_refused(call("compare", "b", "c"), "there is no run 'c'")
    assert_refused(call("compare", "b", "runs/b"), "named twice")
    assert strip_seed("a-seed-12") == "a" and strip_seed("a-seed-x") == "a-seed-x"
