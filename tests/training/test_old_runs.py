"""Runs written by the first edition (tests/data_files/old_runs.tar.gz) load, answer and continue as they did then.

The archive holds tiny runs of four steps, with the old names of tensors, config fields, files and keys of state.json,
and `expected.json`: the answers and the records of two more steps, as the first edition computed them.
"""

import json
import tarfile
from pathlib import Path
from typing import Any

import pytest

from anyformer import api
from anyformer.training.checkpoints import read_state

QUICK = {
    "test_old_run_answers_and_continues": {"speech", "control", "multimodal", "vision", "masked", "language", "mlp"},
}  # with which parameters a test runs each time; with all others it is slow (conftest.py)


ARCHIVE = Path(__file__).parent.parent / "data_files" / "old_runs.tar.gz"
NAMES = ("language", "mlp", "control", "masked", "rnnsearch", "speech", "vision", "multimodal")


@pytest.fixture
def old_runs(tmp_path: Path, text: Path) -> Path:
    """The unpacked runs; the text that some were trained on is named in their configs."""
    with tarfile.open(ARCHIVE) as archive:
        archive.extractall(tmp_path / "old", filter="data")
    for path in (tmp_path / "old").rglob("config.json"):
        path.write_text(path.read_text().replace("@DATA@", str(text)))
    return tmp_path / "old"


def assert_close(actual: Any, expected: Any) -> None:
    """Compare nested plain values, floats to five digits: other machines round differently."""
    if isinstance(expected, dict):
        assert actual.keys() == expected.keys()
        for key, value in expected.items():
            assert_close(actual[key], value)
    elif isinstance(expected, list):
        assert len(actual) == len(expected)
        for value, expected_value in zip(actual, expected):
            assert_close(value, expected_value)
    elif isinstance(expected, float):
        assert actual == pytest.approx(expected, rel=1e-5, abs=1e-5)
    else:
        assert actual == expected


def make_request(name: str, run: Path, answer: dict[str, Any]) -> dict[str, Any]:
    """What was asked: an example of each recipe, which most still have."""
    if name in ("language", "mlp"):
        return {"prompt": "the ", "tokens": 10, "temperature": 0}
    if name == "rnnsearch":
        return {"input": [result["input"] for result in answer["results"]]}
    if name == "control":  # it was stored with the model
        return {"input": json.loads(next(run.rglob("space.json")).read_text())["example"]}
    if name == "multimodal":
        return {"input": json.loads(next(run.rglob("schema.json")).read_text())["examples"]}
    return {}


@pytest.mark.parametrize("name", NAMES)
def test_old_run_answers_and_continues(name: str, old_runs: Path):
    expected, run = json.loads((old_runs / "expected.json").read_text())[name], old_runs / name
    request = make_request(name, run, expected["predict"])
    assert_close(api.load(run, "cpu").predict(request), expected["predict"])

    records: list[dict] = []
    model = api.train(name, out=run, resume=True, steps=6, progress=False, on_record=records.append)
    logged = [{key: record[key] for key in line} for record, line in zip(records, expected["records"], strict=True)]
    assert_close(logged, expected["records"])

    stored = (run / "checkpoints" / "step-6" / "state.json").read_text()
    assert '"stream_state"' in stored and '"place"' not in stored, "today's names are written"
    assert read_state(run / "checkpoints" / "step-6")["step"] == 6
    assert_close(api.load(run, "cpu").predict(request), model.predict(request))
