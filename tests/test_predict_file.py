"""Files in, files out: rows are streamed, batched, written whole or not at all, and a bad one is named."""

import csv
import gzip
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from anyformer.data.tables.stream import RowReader
from anyformer.errors import InputError
from anyformer.events import listen
from anyformer.predict_file import predict_file
from anyformer.recipe import FileInput
from cli_kit import nothing_changes
from data_kit import refuses


def answer(text: Any) -> dict[str, Any]:
    """Predict the length of a text; one with "bad" in it cannot be answered."""
    if "bad" in text:
        raise InputError(f"{text!r} is bad")
    return {"input": text, "label": "long" if len(text) > 3 else "short", "probability": 0.5, "list": [len(text)]}


class Recipe:
    """Answers texts in batches, and counts them."""

    def __init__(self, columns: tuple[str, ...] = ("text",), **options: Any):
        self.columns, self.options, self.batches = columns, options, []

    def file_input(self, model: Any, config: Any) -> FileInput:
        return FileInput(self.columns, **self.options)

    def predict_batch(self, model: Any, inputs: list[str], settings: dict[str, Any]) -> list[dict[str, Any]]:
        self.batches.append(inputs)
        return [answer(text) | settings for text in inputs]


def write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def predict(file: Path, out: str = "out.csv", recipe: Any = None, **options: Any) -> dict[str, Any]:
    return predict_file(recipe or Recipe(), None, None, file, file.parent / out, **options)


def read_csv(path: Path, delimiter: str = ",") -> list[dict[str, str]]:
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file, delimiter=delimiter))


TABLES = {
    "a.csv": 'id,text\n1,"a, b"\n2,"two\nlines"\n3,"ä ""q"""\n',
    "a.tsv": 'id\ttext\n1\ta, b\n2\t"two\nlines"\n3\t"ä ""q"""\n',
    "a.jsonl": '{"id": 1, "text": "a, b"}\n\n{"id": 2, "text": "two\\nlines"}\n{"id": 3, "text": "ä \\"q\\""}\n',
}


@pytest.mark.parametrize("out", ["out.csv", "out.tsv", "out.jsonl"])
@pytest.mark.parametrize("name", [*TABLES, "a.csv.gz", "a.parquet"])
def test_every_format_to_every_format(name: str, out: str, tmp_path: Path):
    texts, path = ["a, b", "two\nlines", 'ä "q"'], tmp_path / name
    if name == "a.parquet":
        pa = pytest.importorskip("pyarrow")
        parquet = pytest.importorskip("pyarrow.parquet")
        parquet.write_table(pa.table({"id": [1, 2, 3], "text": texts}), path)
    elif name.endswith(".gz"):
        path.write_bytes(gzip.compress(("\ufeff" + TABLES["a.csv"]).encode()))
    else:
        write(path, TABLES[name])
    assert predict(path, out) == {"rows": 3, "skipped": 0}
    if out == "out.jsonl":
        rows = [json.loads(line) for line in (tmp_path / out).read_text(encoding="utf-8").splitlines()]
        assert [row["list"] for row in rows] == [[4], [9], [5]], "the full answer"
    else:
        rows = read_csv(tmp_path / out, "\t" if out.endswith("tsv") else ",")
    assert [row["text"] for row in rows] == texts and [int(row["id"]) for row in rows] == [1, 2, 3]
    assert [row["label"] for row in rows] == ["long"] * 3 and float(rows[0]["probability"]) == 0.5
    assert list(rows[0])[:4] == ["id", "text", "label", "probability"] and "input" not in rows[0]


def test_a_text_file_has_an_input_per_line(tmp_path: Path):
    assert predict(write(tmp_path / "a.txt", "one\nthree")) == {"rows": 2, "skipped": 0}
    assert (tmp_path / "out.csv").read_text() == "text,label,probability\none,short,0.5\nthree,long,0.5\n"
    with pytest.raises(InputError, match=r"a\.txt: a csv, tsv, jsonl or parquet file is expected, with columns a, b"):
        predict(tmp_path / "a.txt", recipe=Recipe(("a", "b")))


def test_columns_without_names_are_numbered(tmp_path: Path):
    file = write(tmp_path / "a.csv", "7,7,one\n8,7,three\n")
    assert predict(file, recipe=Recipe(("3", "2"))) == {"rows": 2, "skipped": 0}
    rows = read_csv(tmp_path / "out.csv")
    assert [(row["1"], row["3"], row["label"]) for row in rows] == [("7", "one", "short"), ("8", "three", "long")]


def test_a_csv_has_the_delimiter_and_the_decimal_commas_of_its_input(tmp_path: Path):
    file = write(tmp_path / "a.csv", "text;price;note\none;1.234,5;a.b\nthree;2,5;\nfour;k.A.;3.5\n" + "x;1,5;y\n" * 4)
    predict(file)
    lines = (tmp_path / "out.csv").read_text().splitlines()
    assert lines[:3] == [
        "text;price;note;label;probability", "one;1234,5;a.b;short;0,5", "three;2,5;;long;0,5",
    ]  # fmt: skip
    assert lines[3] == "four;k.A.;3.5;long;0,5"
    predict(file, "out.tsv")
    assert (tmp_path / "out.tsv").read_text().splitlines()[1] == "one\t1234.5\ta.b\tshort\t0.5"
    predict(write(tmp_path / "b.csv", "text|n\none|1\ntwo|2\n"))
    assert (tmp_path / "out.csv").read_text() == "text|n|label|probability\none|1|short|0.5\ntwo|2|short|0.5\n"


def test_quotes_of_a_tsv_may_be_part_of_a_text(tmp_path: Path):
    file = write(tmp_path / "a.tsv", 'text\n"never closed\nplain\n')
    assert predict(file, recipe=Recipe(tsv_quotes=False))["rows"] == 2
    assert [row["text"] for row in read_csv(tmp_path / "out.csv")] == ['"never closed', "plain"]


def test_rows_keep_their_order_in_batches_of_similar_length(tmp_path: Path):
    texts = ["x" * (1 + 7 * i % 11) for i in range(100)]
    recipe = Recipe()
    predict(write(tmp_path / "a.txt", "\n".join(texts)), recipe=recipe, batch=4)
    assert [row["text"] for row in read_csv(tmp_path / "out.csv")] == texts
    assert max(map(len, recipe.batches)) == 4 and sum(map(len, recipe.batches)) == 100
    assert {len(text) for text in recipe.batches[0]} == {1}, "the shortest of the first window"


def test_memory_does_not_grow_with_the_file(tmp_path: Path):
    file = write(tmp_path / "a.csv", "text\n" + "word\n" * 200_000)
    reader = RowReader(file, ["text"])
    next(reader.rows())
    assert 0 < reader.done < 100 and reader.total == file.stat().st_size, "a row is read when it is asked for"
    reported: list[tuple[int, int]] = []
    recipe = Recipe()
    with listen(lambda task, done, total: reported.append((done, total))):
        predict(write(tmp_path / "b.csv", "text\n" + "word\n" * 1000), recipe=recipe, batch=2)
    assert [done for done, _ in reported] == sorted(done for done, _ in reported)
    assert reported[0][0] < 0.2 * reported[0][1] and reported[-1] == (5005, 5005), "progress in bytes"


def test_a_name_that_is_taken(tmp_path: Path):
    predict(write(tmp_path / "a.csv", "text,label\nabc,no\n"))
    assert read_csv(tmp_path / "out.csv") == [
        {"text": "abc", "label": "no", "predicted_label": "short", "probability": "0.5"}
    ]


def test_several_targets_are_columns_with_their_names(tmp_path: Path):
    results = {"age": {"value": 3.5, "truth": 3}, "kind": {"label": "cat", "probability": 0.9, "probabilities": {}}}
    recipe = SimpleNamespace(predict=lambda model, request: {"results": [results]})
    predict(write(tmp_path / "a.csv", "input,kind\nx,dog\n"), recipe=recipe)
    [row] = read_csv(tmp_path / "out.csv")
    assert row == {"input": "x", "kind": "dog", "age_value": "3.5", "kind_label": "cat", "kind_probability": "0.9"}
    predict(tmp_path / "a.csv", "out.jsonl", recipe)
    row = json.loads((tmp_path / "out.jsonl").read_text())
    assert row == {"input": "x", "kind": "dog", "age": results["age"], "predicted_kind": results["kind"]}


def test_an_answer_of_lists_only_is_json_in_a_csv(tmp_path: Path):
    recipe = SimpleNamespace(predict=lambda model, request: {"results": [{"forecast": [1.5, 2.0]}]})
    predict(write(tmp_path / "a.csv", "input\nx\n"), recipe=recipe)
    assert read_csv(tmp_path / "out.csv") == [{"input": "x", "forecast": "[1.5, 2.0]"}]


@pytest.mark.parametrize("key", ["results", "samples"])
def test_a_recipe_that_answers_one_by_one(key: str, tmp_path: Path):
    def answer_one(model: Any, request: dict[str, Any]) -> dict[str, Any]:
        return {key: [answer(request["input"]) | {"extra": request["extra"]}]}

    file, recipe = write(tmp_path / "a.csv", "input\nabc\nabcd\n"), SimpleNamespace(predict=answer_one)
    assert predict(file, recipe=recipe, settings={"extra": 7})["rows"] == 2
    assert [(row["label"], row["extra"]) for row in read_csv(tmp_path / "out.csv")] == [("short", "7"), ("long", "7")]


def test_paths_are_relative_to_the_file(tmp_path: Path):
    recipe = Recipe(("path",), is_path=True)
    inside = str(write(tmp_path / "b.png", ""))
    (tmp_path / "x").mkdir()
    write(tmp_path / "x" / "a.png", "")
    predict(write(tmp_path / "a.csv", f"path\nx/a.png\n{inside}\n"), recipe=recipe)
    assert sorted(recipe.batches[0]) == sorted([str(tmp_path / "x" / "a.png"), inside])
    assert [row["path"] for row in read_csv(tmp_path / "out.csv")] == ["x/a.png", inside]
    outside = write(tmp_path.parent / f"{tmp_path.name}.png", "")
    with refuses(f"a.csv, line 2: '{outside}' is outside", "ANYFORMER_FILES"):
        predict(write(tmp_path / "a.csv", f"path\n{outside}\n"), recipe=recipe)


# --- bad rows ---


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", "text\ngood\nbad\nbad\n", "a.csv, line 3: 'bad' is bad"),
        ("a.csv", 'text\n"two\nlines"\nbad\n', "a.csv, line 4: 'bad' is bad"),
        ("a.csv", "text,x\ngood,1\nx,1,2\nx,1\n", "a.csv, line 3: has more columns than the header"),
        ("a.csv", "x,text\n1,good\n2\n", "a.csv, line 3: text is empty"),
        ("a.txt", "good\n\nx\n", "a.txt, line 2: text is empty"),
        ("a.jsonl", '{"text": "good"}\n{"text": \n{"text": "x"}\n', "a.jsonl, line 2: not JSON"),
        (
            "a.jsonl",
            '{"text": "good"}\n[1]\n',
            'a.jsonl, line 2: should hold a JSON object, found list: .*{"text": ...}',
        ),
        ("a.jsonl", '{"text": "good"}\n{"txt": "x"}\n', "a.jsonl, line 2: there is no 'text': did you mean 'txt'?"),
        ("a.jsonl", '{"text": "good"}\n{"text": null}\n', "a.jsonl, line 2: text is empty"),
    ],
)
def test_a_bad_row_is_named_and_nothing_is_written(name: str, content: str, message: str, tmp_path: Path):
    file = write(tmp_path / name, content)
    with nothing_changes(tmp_path), pytest.raises(InputError, match=message):
        predict(file)
    result = predict(file, skip_broken=True)
    assert result["skipped"] == content.count("bad") or result["skipped"] == 1
    assert message.split(":")[0] in result["first_skipped"]
    assert len(read_csv(tmp_path / "out.csv")) == result["rows"] >= 1


def test_bad_rows_do_not_spoil_their_batch(tmp_path: Path):
    texts = [f"text {i}{' bad' * (i % 9 == 4)}" for i in range(60)]
    result = predict(write(tmp_path / "a.txt", "\n".join(texts)), skip_broken=True, batch=16)
    good = [text for text in texts if "bad" not in text]
    assert result == {"first_skipped": f"{tmp_path / 'a.txt'}, line 5: 'text 4 bad' is bad", "rows": 53, "skipped": 7}
    assert [row["text"] for row in read_csv(tmp_path / "out.csv")] == good


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", "", "a.csv: is empty: expected a header with text, then rows"),
        ("a.csv", "txt,id\nx,1\n", r"a.csv, line 1: there is no column 'text': did you mean 'txt'\? valid: txt, id"),
        ("a.csv", "text,text\nx,1\n", "a.csv, line 1: two columns are called 'text'"),
        ("a.csv", "text\n", "a.csv: holds no rows"),
        ("a.csv", "text\nbad\nbad\n", "no row of .*a.csv can be used; the first: .*line 2: 'bad' is bad"),
        ("a.csv", "text\n" + "x" * 200_000, "a.csv, line 2: field larger than field limit"),
        ("a.txt", b"caf\xe9\n", "a.txt, line 1: byte 0xE9 is not UTF-8"),
        ("a.csv.gz", b"no gzip", "a.csv.gz: damaged gzip file"),
        ("a.parquet", b"no parquet", "a.parquet cannot be read as parquet"),
        ("missing.csv", None, "missing.csv: there is no such file"),
        ("a.jsonl", '{"text": "x"}\n{"text": "x", "y": 1}\n', "a.jsonl, line 2: 'y' is no column of the first row"),
    ],
)
def test_a_file_that_cannot_be_used(name: str, content: Any, message: str, tmp_path: Path):
    if content is not None:
        (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    write(tmp_path / "out.csv", "what was there before")
    with nothing_changes(tmp_path), pytest.raises(InputError, match=message):
        predict(tmp_path / name, skip_broken=True)


@pytest.mark.parametrize(
    ("out", "options", "message"),
    [
        ("a.csv", {}, "is the file of the inputs, which is never overwritten"),
        ("link.csv", {}, "is the file of the inputs, which is never overwritten"),
        ("out.xlsx", {}, "predictions go to a .csv, .tsv, .jsonl file, not .*out.xlsx"),
        ("out.csv.gz", {}, "predictions go to a .csv, .tsv, .jsonl file"),
        ("none/out.csv", {}, "there is no folder .*none"),
        ("folder.csv", {}, "predictions go to a .csv, .tsv, .jsonl file, not .*folder.csv"),
        ("out.csv", {"batch": 0}, "batch is 0; it must be at least 1"),
        ("out.csv", {"settings": {"input": "x"}}, "leave 'input' out"),
    ],
)
def test_arguments_that_make_no_sense(out: str, options: dict, message: str, tmp_path: Path):
    file = write(tmp_path / "a.csv", "text\nx\n")
    (tmp_path / "link.csv").symlink_to(file)
    (tmp_path / "folder.csv").mkdir()
    with nothing_changes(tmp_path), pytest.raises(InputError, match=message):
        predict(file, out, **options)


def test_an_interrupted_prediction_leaves_what_was_there(tmp_path: Path):
    class Interrupted(Recipe):
        def predict_batch(self, *arguments: Any) -> list[dict[str, Any]]:
            if len(self.batches) == 9:
                raise KeyboardInterrupt
            return super().predict_batch(*arguments)

    file = write(tmp_path / "a.txt", "x\n" * 100)
    write(tmp_path / "out.csv", "what was there before")
    with nothing_changes(tmp_path), pytest.raises(KeyboardInterrupt):
        predict(file, recipe=Interrupted(), batch=2)
