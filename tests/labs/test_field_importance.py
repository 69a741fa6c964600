"""Field importance: an uninformative field is worth nothing, an informative one much."""

import json
from pathlib import Path

import numpy as np
import pytest

from anyformer import api
from anyformer.labs import field_importance
from cli_kit import SHORT, TINY, assert_refused, call

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on a table where one column determines the class, one is correlated with it, and one is noise."""
    folder = tmp_path_factory.mktemp("worth")
    rng, lines = np.random.default_rng(0), ["strong,weak,noise,kind"]
    for i in range(300):
        lines.append(f"{rng.normal(2 * (i % 2), 0.3):.3f},{rng.normal(i % 2, 1):.3f},{rng.normal():.3f},{'ab'[i % 2]}")
    (folder / "t.csv").write_text("\n".join(lines) + "\n")
    train = ("--steps", 150, "--train.batch", 32, "--train.lr", 0.003, "--field-dropout", 0.3, "--device", "cpu")
    data = ("--data", folder / "t.csv", "--target", "kind", "--out", folder / "run")
    call("train", "multimodal", "--preset", "tiny", *data, *train).ok()
    return folder / "run"


def test_the_worth_of_a_field_is_its_information(run: Path):
    model = api.load(run, "cpu")
    facts = field_importance.measure(model)
    fields = facts["fields"]
    assert facts["score"] == "accuracy" and facts["rows"] == 60 and facts["all"] > 0.95
    assert abs(fields["noise"]["worth"]) < 0.05 < 0.3 < fields["strong"]["worth"]
    assert fields["strong"]["only"] > 0.95 and fields["strong"]["without"] < 0.85
    assert abs(fields["noise"]["only"] - facts["none"]) < 0.2 and fields["noise"]["without"] > 0.95
    assert facts["none"] == pytest.approx(0.5, abs=0.01), "without any field, the class is a guess"
    first, second, other = (
        {name: field["shuffled"] for name, field in field_importance.measure(model, None, 1, seed)["fields"].items()}
        for seed in (0, 0, 1)
    )
    assert first == second != other, "the seed decides how values are shuffled"


def test_the_command_prints_and_draws(run: Path):
    output = call("worth", run, "--device", "cpu").ok()
    assert output.out.splitlines()[0] == "accuracy over 60 rows" and "worth.svg" in output.err
    order = [line.split()[0] for line in output.out.splitlines() if line.startswith(("strong", "weak", "noise"))]
    assert order[0] == "strong"
    facts = call("worth", run, "--device", "cpu", "--json").ok().json
    assert json.loads((run / "worth.json").read_text()) == {k: v for k, v in facts.items() if k not in ("run", "step")}
    svg = (run / "worth.svg").read_text()
    assert svg.startswith("<svg") and svg.count("<rect") == 3 * 3 + 3 and "all fields" in svg
    report = (run / "report.html").read_text()
    assert "What each field is worth" in report, "the report of the run is updated"
    lines = (run.parent / "t.csv").read_text().splitlines()
    (run.parent / "other.csv").write_text("\n".join(lines[:101]) + "\n")
    other = call("worth", run, "--data", run.parent / "other.csv", "--device", "cpu", "--json", "--shuffles", 1).ok()
    assert other.json["rows"] == 100, "all rows of other data are used"


def test_mistakes_are_one_line(run: Path, text: Path, tmp_path: Path):
    call(*TINY, "--data", text, "--out", tmp_path / "words", *SHORT).ok()
    words = call("worth", tmp_path / "words", "--device", "cpu")
    assert_refused(words, "'language' is no recipe with fields", "multimodal")
    assert_refused(call("worth", run, "--shuffles", 0), "--shuffles is 0")
    assert_refused(call("worth", tmp_path / "nowhere"), "there is no run at")
