"""`anyformer predict RUN --file FILE --out OUT`: a table goes in, the same table with predictions comes out."""

import csv
import json
from pathlib import Path

import pytest

import anyformer
from cli_kit import assert_refused, call, nothing_changes

MOODS = Path(__file__).parent.parent / "data_files" / "moods.csv"


@pytest.fixture(scope="module")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("classifier") / "run"
    flags = ("--data", MOODS, "--steps", 60, "--train.lr", 0.01, "--device", "cpu", "--train.eval-every", 60)
    call("train", "classify", "--preset", "tiny", "--model.context", 128, *flags, "--out", run).ok()
    return run


def read_csv(path: Path) -> list[dict[str, str]]:
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_a_table_gets_the_predictions_of_its_rows(classifier: Path, tmp_path: Path):
    command = ("predict", classifier, "--device", "cpu", "--file", MOODS, "--out")
    result = call(*command, tmp_path / "scored.csv").ok()
    rows, data = read_csv(tmp_path / "scored.csv"), read_csv(MOODS)
    assert result.out == "" and f"scored.csv: {len(data)} rows, " in result.err
    assert [{name: row[name] for name in ("text", "label")} for row in rows] == data
    assert sum(row["predicted_label"] == row["label"] for row in rows) > 0.5 * len(rows), "a third by chance"
    model = anyformer.load(classifier, "cpu")
    for row in rows[:5]:
        [single] = model.predict(row["text"])["results"]
        assert row["predicted_label"] == single["label"]
        assert float(row["probability"]) == pytest.approx(single["probability"], abs=1e-5)
    facts = call(*command, tmp_path / "scored.jsonl", "--batch", 7, "--json").ok().json
    assert (facts["rows"], facts["skipped"]) == (len(data), 0) and facts["seconds"] > 0
    first = json.loads((tmp_path / "scored.jsonl").read_text(encoding="utf-8").splitlines()[0])
    assert set(first["probabilities"]) == {row["label"] for row in data}


def test_bad_rows_stop_or_are_counted(classifier: Path, tmp_path: Path):
    file, out = tmp_path / "new.csv", tmp_path / "scored.csv"
    file.write_text(f"text\nand song warm\n{'song ' * 99}\n\nsong 1\nwarm\n", encoding="utf-8")
    command = ("predict", classifier, "--device", "cpu", "--file", file, "--out", out)
    without_cuts = (*command, "--request", '{"cut": false}')
    with nothing_changes(tmp_path):
        assert_refused(call(*without_cuts), "new.csv, line 3: 'song song ", "shorten it")
        assert_refused(call(*command), "new.csv, line 5: the vocabulary of ")
    result = call(*without_cuts, "--skip-broken").ok()
    assert f"{out}: 2 rows, " in result.err and "; 2 left out, the first: " in result.err
    assert [row["text"] for row in read_csv(out)] == ["and song warm", "warm"]
    call(*command, "--skip-broken").ok()
    assert len(read_csv(out)) == 3, "a text is cut as in training"


def test_flags_that_make_no_sense(classifier: Path, tmp_path: Path):
    file, command = tmp_path / "new.csv", ("predict", classifier, "--device", "cpu")
    file.write_text("text\nsong\n", encoding="utf-8")
    with nothing_changes(tmp_path):
        assert_refused(call(*command, "--out", tmp_path / "a.csv"), "--out writes the predictions for --file FILE")
        assert_refused(call(*command, "a text", "--file", file, "--out", tmp_path / "a.csv"), "no other inputs")
        assert_refused(call(*command, "--file", file, "--out", file), "which is never overwritten")
        assert_refused(call(*command, "--file", file, "--out", tmp_path / "a.xlsx"), "to a .csv, .tsv, .jsonl file")


def test_from_python(run: Path, tmp_path: Path):
    (tmp_path / "prompts.txt").write_text("the cat\nthe dog sat\n", encoding="utf-8")
    model = anyformer.load(run, "cpu")
    result = model.predict_file(tmp_path / "prompts.txt", tmp_path / "out.csv", tokens=5, temperature=0)
    texts = [
        model.generate(prompt, tokens=5, temperature=0)["samples"][0]["text"] for prompt in ("the cat", "the dog sat")
    ]
    assert result == {"rows": 2, "skipped": 0}
    assert [row["predicted_text"] for row in read_csv(tmp_path / "out.csv")] == texts
