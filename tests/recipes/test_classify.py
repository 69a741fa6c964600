"""Classify: where labeled texts come from, how they are split, padding, scores, requests and damaged data."""

import dataclasses
import json
import math
from collections import Counter
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from anyformer import api, recipe_loading
from anyformer.data.text.labeled import read_labeled, split_class
from cli_kit import assert_refused, call
from data_kit import needs_data, refuses, write

classify: Any = recipe_loading.load_recipe("classify")
TINY: Any = classify.PRESETS["tiny"]
GOOD = [f"a good film, number {i}" for i in range(40)]
BAD = [f"what a bad film it was, {i}" for i in range(60)]
ROWS = [(text, "pos") for text in GOOD] + [(text, "neg") for text in BAD]


def lines(texts: list[str]) -> str:
    return "".join(f"{text}\n" for text in texts)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file for each class."""
    path = tmp_path_factory.mktemp("reviews")
    write(path / "pos.txt", lines(GOOD))
    write(path / "neg.txt", lines(BAD))
    return path


def make_config(data: Path | str, **changes: Any) -> Any:
    return dataclasses.replace(TINY, data=str(data), **changes)


def train_tiny(data: Path, out: Path, **changes: Any) -> api.Model:
    few = {"steps": 40, "eval_every": 20, "save_every": 20, "device": "cpu", "lr": 0.01, "warmup": 2}
    return api.train("classify", "tiny", data=str(data), out=out, train=few, **changes)


@pytest.fixture(scope="module")
def run(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> api.Model:
    return train_tiny(folder, tmp_path_factory.mktemp("classify") / "run")


# --- data ---


def test_every_form_gives_the_same_texts(tmp_path: Path, folder: Path):
    quoted = "".join(f'"{text}",{label}\n' for text, label in ROWS)
    forms = [
        folder,
        f"{folder}/pos.txt,{folder}/neg.txt",
        write(tmp_path / "a.csv", "text,label\n" + quoted),
        write(tmp_path / "a.tsv", "label\ttext\n" + lines([f"{label}\t{text}" for text, label in ROWS])),
        write(tmp_path / "a.jsonl", lines([json.dumps({"text": t, "label": c, "id": 1}) for t, c in ROWS])),
    ]
    write(tmp_path / "two" / "texts.txt", lines([text for text, _ in ROWS]))
    write(tmp_path / "two" / "labels.txt", lines([label for _, label in ROWS]))
    write(tmp_path / "deep" / "pos" / "1.txt", lines(GOOD))
    write(tmp_path / "deep" / "neg" / "1.txt", lines(BAD))
    for form in [*forms, tmp_path / "two", tmp_path / "deep"]:
        data = read_labeled(str(form))
        assert data.names == ["neg", "pos"], form
        assert Counter(zip(data.texts, data.classes.tolist())) == Counter((t, int(c == "pos")) for t, c in ROWS)


def test_columns_may_have_other_names_and_repeats_are_kept_once(tmp_path: Path):
    path = write(tmp_path / "a.csv", 'sentence,mood\n"a, b",x\n"a, b",x\nc,y\n"a, b",y\n')
    assert read_labeled(str(path), ("sentence", "mood")).texts == ["a, b", "c", "a, b"]


def test_the_splits_are_disjoint_and_hold_every_class(folder: Path):
    data = read_labeled(str(folder))
    splits = {name: data.split(name).tolist() for name in ("train", "val", "test")}
    assert sorted(i for split in splits.values() for i in split) == data.split("all").tolist() == list(range(100))
    for name, share in {"train": 0.8, "val": 0.1, "test": 0.1}.items():
        assert Counter(data.classes[splits[name]].tolist()) == {0: round(60 * share), 1: round(40 * share)}


def test_an_epoch_reads_every_text_once(folder: Path):
    config = make_config(folder, train=dataclasses.replace(TINY.train, batch=7))
    tokenizer = classify.build(config).masked_tokenizer.tokenizer
    epoch = [batch for batch, _ in islice(classify.batches(config, "train"), 12)]
    texts = Counter(tokenizer.decode(row[:n]) for b in epoch for row, n in zip(b["ids"], b["lengths"].tolist()))
    data = read_labeled(str(folder))
    assert texts == Counter(data.texts[i] for i in data.split("train"))


@needs_data
def test_the_film_reviews_are_complete():
    data = read_labeled("sentence-polarity")
    assert data.names == ["neg", "pos"] and 10_600 < len(data.texts) <= 10_662


# --- the model ---


@pytest.mark.parametrize("pool", ["mean", "first"])
def test_padding_changes_nothing_and_predictions_need_no_autograd(folder: Path, pool: Any):
    torch.manual_seed(0)
    model, outputs = classify.build(make_config(folder, pool=pool)).eval(), []
    texts = [GOOD[0], BAD[0], "a"]
    rows = [model.masked_tokenizer.encode(text) for text in texts]
    ids, lengths = torch.full((3, 32), 5), torch.tensor([len(row) for row in rows])
    for i, row in enumerate(rows):
        ids[i, : len(row)] = torch.tensor(row)
    with torch.no_grad():
        together = model(ids, lengths)
        for i, row in enumerate(rows):
            torch.testing.assert_close(together[i : i + 1], model(torch.tensor([row])), atol=1e-5, rtol=1e-5)
    model.register_forward_hook(lambda module, inputs, output: outputs.append(output))
    results = classify.predict(model, {"input": texts})["results"]
    assert len(outputs) == 1 and not outputs[0].requires_grad, "one batch"
    for result, logits in zip(results, together):
        assert list(result["probabilities"].values()) == pytest.approx(sorted(logits.softmax(-1).tolist())[::-1])
        assert result["label"] == model.names[int(logits.argmax())] and result["input"] in texts


@pytest.mark.slow
def test_scores_equal_those_of_scikit_learn(folder: Path):
    metrics = pytest.importorskip("sklearn.metrics")
    config = make_config(folder)
    torch.manual_seed(3)
    model = classify.build(config).eval()
    batches = [batch for batch, _ in classify.batches(config, "all")]
    with torch.no_grad():
        scores = classify.evaluate(model, iter(batches))
        logits = torch.cat([model(batch["ids"], batch["lengths"]) for batch in batches])
    labels, predictions = torch.cat([batch["labels"] for batch in batches]), logits.argmax(-1)
    assert scores["accuracy"] == pytest.approx(metrics.accuracy_score(labels, predictions))
    assert scores["macro_f1"] == pytest.approx(metrics.f1_score(labels, predictions, average="macro"))
    table = metrics.confusion_matrix(labels, predictions)
    assert [[scores[f"{a} as {b}"] for b in ("neg", "pos")] for a in ("neg", "pos")] == table.tolist()
    assert scores["loss"] == pytest.approx(torch.nn.functional.cross_entropy(logits, labels).item(), rel=1e-4)
    assert scores["texts"] == 100 and math.isfinite(scores["loss"])


def test_it_learns_and_a_run_needs_no_data(run: api.Model, monkeypatch: pytest.MonkeyPatch):
    assert run.evaluate()["accuracy"] == 1.0
    assert json.loads((run.path / "labels.json").read_text()) == ["neg", "pos"]
    monkeypatch.delattr(classify, "read_labeled")
    result = api.load(run.path, "cpu").predict("a good film, number 99")["results"][0]
    assert result["label"] == "pos" and sum(result["probabilities"].values()) == pytest.approx(1)
    assert np.linalg.norm(run.predict(embed=["a film"])["vectors"][0]) == pytest.approx(1, abs=1e-5)


def test_it_starts_from_a_masked_model(folder: Path, tmp_path: Path):
    few = {"steps": 2, "eval_every": 2, "save_every": 2, "device": "cpu"}
    first = api.train("masked", "tiny", data=str(folder), out=tmp_path / "masked", train=few)
    model = train_tiny(folder, tmp_path / "run", init=tmp_path / "masked")
    assert model.config.model == first.config.model and model.evaluate()["accuracy"] > 0.5
    (tmp_path / "masked").rename(tmp_path / "gone")
    assert api.load(tmp_path / "run", "cpu").predict(input="a bad film")["results"][0]["label"] in ("neg", "pos")


# --- mistakes ---


@pytest.mark.parametrize(
    ("files", "parts"),
    [
        ({"a.csv": "txet,label\nx,y\n"}, ("no column 'text'", "did you mean 'txet'")),
        (
            {"a.csv": "text,label\nx,y\nz\n"},
            ("1 of 2 rows are empty, 0 without a text, 1 without a label", "a.csv, line 3", "--empty"),
        ),
        ({"a.csv": "text,label\nx,y\nz,\n"}, ("1 without a label", "line 3")),
        ({"a.csv": "text,label\nx,y\n  ,y\n"}, ("1 without a text", "line 3")),
        ({"a.csv": "text,label\nx,y\nz,y\n"}, ("one class only, ['y']",)),
        ({"a.jsonl": '{"text": "x", "lable": "y"}\n'}, ("line 1: there is no column 'label'", "'lable'")),
        ({"a.jsonl": '{"text": 1, "label": "y"}\n'}, ("line 1: text must be a text",)),
        ({"a.txt": "x\n"}, ("a.txt' has no labels", ".csv")),
        ({"d/pos.txt": "x\n", "d/neg.txt": "\n"}, ("neg.txt: the class 'neg' is empty",)),
        ({"d/texts.txt": "x\ny\n", "d/labels.txt": "a\n"}, ("texts.txt has 2 lines", "labels.txt has 1")),
    ],
)
def test_data_that_cannot_be_used(files: dict[str, str], parts: tuple[str, ...], tmp_path: Path):
    for name, content in files.items():
        write(tmp_path / name, content)
    with refuses(*parts):
        read_labeled(str(tmp_path / next(iter(files)).split("/")[0]))


def test_a_label_unseen_in_training(run: api.Model, tmp_path: Path):
    other = write(tmp_path / "other.csv", "text,label\na good film,poss\na bad film,neg\n")
    assert_refused(call("eval", run.path, "--data", other), "line 2", "'poss' was not seen", "did you mean 'pos'?")


def test_texts_longer_than_the_context_are_counted(tmp_path: Path):
    write(tmp_path / "pos.txt", lines([*GOOD, "x" * 33, "y" * 99]))
    write(tmp_path / "neg.txt", lines(BAD))
    with refuses("2 of 102 texts are longer than the context of 32", "pos.txt, line 41", "--too-long"):
        next(classify.batches(make_config(tmp_path, too_long="few"), "train"))
    next(classify.batches(make_config(tmp_path), "train"))


@pytest.mark.parametrize(
    ("request_", "parts"),
    [
        ({"inputs": "a"}, ("'inputs'", "did you mean 'input'")),
        ({"input": ""}, ("empty text",)),
        ({"input": 3}, ("input is 3; it must be a text",)),
        ({"input": "a" * 33}, ("33 tokens, the context holds 32",)),
        ({"input": "Ω"}, ("'Ω'",)),
    ],
)
def test_requests_that_cannot_be_answered(run: api.Model, request_: dict, parts: tuple[str, ...]):
    with refuses(*parts):
        run.predict(request_)


@pytest.mark.parametrize(
    ("changes", "parts"),
    [
        ({"pool": "frist"}, ("pool is 'frist'", "did you mean 'first'")),
        ({"columns": "text"}, ("columns is 'text'", "two, such as text,label")),
        ({"token_types": -1}, ("token_types is -1",)),
        ({"labels": "none.json"}, ("none.json", "there is no such file")),
    ],
)
def test_configs_that_make_no_sense(changes: dict, parts: tuple[str, ...]):
    with refuses(*parts):
        classify.build(dataclasses.replace(TINY, **changes))


@pytest.mark.parametrize("n", range(3, 12))
def test_few_texts_of_a_class_leave_one_for_validation(n: int):
    splits = split_class(np.arange(n))
    assert len(splits["val"]) >= 1 and len(splits["train"]) >= n // 2
    parts = [splits[name] for name in ("train", "val", "test")]
    assert np.concatenate(parts).tolist() == splits["all"].tolist() == list(range(n))
