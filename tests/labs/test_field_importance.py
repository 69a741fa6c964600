"""What fields are worth: nothing where they tell nothing, much where they tell all."""

import json
from pathlib import Path

import numpy as np
import pytest

from anyformer import api
from anyformer.labs import field_importance as worth
from anyformer.report.bars import Bar, bars
from cli_kit import SHORT, TINY, call, assert_refused


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on a table where one column tells the class, one hints at it, and one tells nothing."""
    folder = tmp_path_factory.mktemp("worth")
    rng, lines = np.random.default_rng(0), ["tells,hints,noise,kind"]
    for i in range(300):
        lines.append(f"{rng.normal(2 * (i % 2), 0.3):.3f},{rng.normal(i % 2, 1):.3f},{rng.normal():.3f},{'ab'[i % 2]}")
    (folder / "t.csv").write_text("\n".join(lines) + "\n")
    few = ("--steps", 150, "--train.batch", 32, "--train.lr", 0.003, "--absent", 0.3, "--device", "cpu")
    asked = ("--data", folder / "t.csv", "--target", "kind", "--out", folder / "run")
    call("train", "multimodal", "--preset", "tiny", *asked, *few).ok()
    return folder / "run"


def test_a_field_that_tells_nothing_is_worth_nothing(run: Path):
    found = worth.measure(api.load(run, "cpu"))
    fields = found["fields"]
    assert found["score"] == "accuracy" and found["rows"] == 60 and found["all"] > 0.95
    assert abs(fields["noise"]["worth"]) < 0.05 < 0.3 < fields["tells"]["worth"]
    assert fields["tells"]["only"] > 0.95 and fields["tells"]["without"] < 0.85
    assert abs(fields["noise"]["only"] - found["none"]) < 0.2 and fields["noise"]["without"] > 0.95
    assert found["none"] == pytest.approx(0.5, abs=0.01), "without any field, the class is a guess"


def test_shuffling_is_the_same_for_the_same_seed(run: Path):
    model = api.load(run, "cpu")
    first, again, other = (worth.measure(model, shuffles=1, seed=seed) for seed in (0, 0, 1))
    assert first == again
    assert {n: f["shuffled"] for n, f in first["fields"].items()} != {
        n: f["shuffled"] for n, f in other["fields"].items()
    }


def test_the_command_tells_and_draws(run: Path):
    said = call("worth", run, "--device", "cpu").ok()
    assert said.out.splitlines()[0] == "accuracy over 60 rows" and "worth.svg" in said.err
    order = [line.split()[0] for line in said.out.splitlines() if line.startswith(("tells", "hints", "noise"))]
    assert order[0] == "tells"
    found = call("worth", run, "--device", "cpu", "--json").ok().json
    assert json.loads((run / "worth.json").read_text()) == {k: v for k, v in found.items() if k not in ("run", "step")}
    picture = (run / "worth.svg").read_text()
    assert picture.startswith("<svg") and picture.count("<rect") == 3 * 3 + 3 and "all fields" in picture


def test_other_data_are_taken_whole(run: Path, tmp_path: Path):
    lines = (run.parent / "t.csv").read_text().splitlines()
    (tmp_path / "other.csv").write_text("\n".join(lines[:101]) + "\n")
    assert call("worth", run, "--data", tmp_path / "other.csv", "--device", "cpu", "--json").ok().json["rows"] == 100


def test_what_has_no_fields_is_one_line(run: Path, text: Path, tmp_path: Path):
    call(*TINY, "--data", text, "--out", tmp_path / "words", *SHORT).ok()
    assert_refused(call("worth", tmp_path / "words", "--device", "cpu"), "'language' is no recipe with fields", "multimodal")
    assert_refused(call("worth", run, "--shuffles", 0), "--shuffles is 0")
    assert_refused(call("worth", tmp_path / "nowhere"), "there is no run at")


def test_bars_are_drawn_to_scale():
    drawn = bars([Bar("a <b>", [1.0, 0.5]), Bar("c", [0.25, -0.5])], ("x", "y"), title="t", marks={"m": 0.75})
    widths = [float(part.split('width="')[1].split('"')[0]) for part in drawn.split("<rect ")[3:]]
    assert widths[0] == pytest.approx(2 * widths[1], abs=0.1) == pytest.approx(4 * widths[2], abs=0.4)
    assert widths[3] == pytest.approx(widths[1], abs=0.1) and "a &lt;b&gt;" in drawn
    with pytest.raises(ValueError, match="each group needs 2 bars"):
        bars([Bar("a", [1.0])], ("x", "y"), title="t")
