"""Classify: where labelled texts come from, how they are split, that padding changes nothing, and what may go wrong."""

import json
import math
from collections import Counter
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from anyformer.data.text.labelled import read

from anyformer import api
from anyformer import recipe as recipes
from anyformer.errors import InputError
from cli_kit import call, refused
from data_kit import needs_data, refuses, write

CLASSIFY = recipes.load("classify")
TINY: Any = CLASSIFY.PRESETS["tiny"]
GOOD = [f"a good film, number {i}" for i in range(40)]
BAD = [f"what a bad film it was, {i}" for i in range(60)]
ROWS = [(text, "pos") for text in GOOD] + [(text, "neg") for text in BAD]


def lines(texts: list[str]) -> str:
    return "".join(f"{text}\n" for text in texts)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A file a class."""
    write(tmp_path / "data" / "pos.txt", lines(GOOD))
    write(tmp_path / "data" / "neg.txt", lines(BAD))
    return tmp_path / "data"


def config(data: Path | str, **more: Any) -> Any:
    return replace(TINY, data=str(data)) if not more else replace(TINY, data=str(data), **more)


def as_csv(path: Path) -> Path:
    quoted = "".join(f'"{text}",{label}\n' for text, label in ROWS)
    return write(path, "text,label\n" + quoted)


# --- where texts come from ---


def test_every_form_gives_the_same_texts(tmp_path: Path, folder: Path):
    forms = [
        folder,
        f"{folder}/pos.txt,{folder}/neg.txt",
        as_csv(tmp_path / "a.csv"),
        write(tmp_path / "a.tsv", "label\ttext\n" + lines([f"{label}\t{text}" for text, label in ROWS])),
        write(tmp_path / "a.jsonl", lines([json.dumps({"text": t, "label": c, "id": 1}) for t, c in ROWS])),
    ]
    write(tmp_path / "two" / "texts.txt", lines([text for text, _ in ROWS]))
    write(tmp_path / "two" / "labels.txt", lines([label for _, label in ROWS]))
    write(tmp_path / "deep" / "pos" / "1.txt", lines(GOOD))
    write(tmp_path / "deep" / "neg" / "1.txt", lines(BAD))
    for form in [*forms, tmp_path / "two", tmp_path / "deep"]:
        found = read(str(form))
        assert found.names == ["neg", "pos"], form
        assert Counter(zip(found.texts, found.classes.tolist())) == Counter((t, int(c == "pos")) for t, c in ROWS)


def test_columns_may_have_other_names_and_repeats_are_kept_once(tmp_path: Path):
    path = write(tmp_path / "a.csv", 'sentence,mood\n"a, b",x\n"a, b",x\nc,y\n"a, b",y\n')
    assert read(str(path), ("sentence", "mood")).texts == ["a, b", "c", "a, b"]


def test_the_parts_are_disjoint_cover_all_and_hold_every_class(folder: Path):
    found = read(str(folder))
    parts = {name: found.part(name).tolist() for name in ("train", "val", "test")}
    assert sorted(i for part in parts.values() for i in part) == found.part("all").tolist() == list(range(100))
    for name, share in {"train": 0.8, "val": 0.1, "test": 0.1}.items():
        assert Counter(found.classes[parts[name]].tolist()) == {0: round(60 * share), 1: round(40 * share)}
    assert found.part("val").tolist() == parts["val"] != found.part("val", seed=1).tolist()


def test_an_epoch_reads_every_text_once(folder: Path):
    made = config(folder, train=replace(TINY.train, batch=7))
    epoch = [batch for batch, _ in islice(CLASSIFY.batches(made, "train"), 12)]
    model = CLASSIFY.build(made)
    texts = Counter(
        model.wrapped.tokenizer.decode(row[:n]) for b in epoch for row, n in zip(b["ids"], b["lengths"].tolist())
    )
    found = read(str(folder))
    assert texts == Counter(found.texts[i] for i in found.part("train"))


@needs_data
def test_the_film_reviews_are_there():
    found = read("sentence-polarity")
    assert found.names == ["neg", "pos"] and 10_600 < len(found.texts) <= 10_662


# --- the model ---


@pytest.mark.parametrize("pool", ["mean", "first"])
def test_padding_changes_nothing(folder: Path, pool: Any):
    torch.manual_seed(0)
    model = CLASSIFY.build(config(folder, pool=pool)).eval()
    texts = [GOOD[0], BAD[0], "a"]
    rows = [model.wrapped.encode(text) for text in texts]
    ids, lengths = torch.full((3, 32), 5), torch.tensor([len(row) for row in rows])
    for i, row in enumerate(rows):
        ids[i, : len(row)] = torch.tensor(row)
    with torch.no_grad():
        together = model(ids, lengths)
        for i, row in enumerate(rows):
            torch.testing.assert_close(together[i : i + 1], model(torch.tensor([row])), atol=1e-5, rtol=1e-5)
        asked = CLASSIFY.predict(model, {"input": texts})["results"]
    for result, logits in zip(asked, together):
        assert list(result["probabilities"].values()) == pytest.approx(sorted(logits.softmax(-1).tolist())[::-1])
        assert result["label"] == model.names[int(logits.argmax())] and result["input"] in texts


def test_scores_are_scikit_learns(folder: Path):
    metrics = pytest.importorskip("sklearn.metrics")
    made = config(folder)
    torch.manual_seed(3)
    model = CLASSIFY.build(made).eval()
    batches = [batch for batch, _ in CLASSIFY.batches(made, "all")]
    with torch.no_grad():
        found = CLASSIFY.evaluate(model, iter(batches))
        logits = torch.cat([model(b["ids"], b["lengths"]) for b in batches])
    truth = torch.cat([b["class"] for b in batches])
    answer = logits.argmax(-1)
    assert found["accuracy"] == pytest.approx(metrics.accuracy_score(truth, answer))
    assert found["macro_f1"] == pytest.approx(metrics.f1_score(truth, answer, average="macro"))
    table = metrics.confusion_matrix(truth, answer)
    assert [[found[f"{a} as {b}"] for b in ("neg", "pos")] for a in ("neg", "pos")] == table.tolist()
    assert found["loss"] == pytest.approx(torch.nn.functional.cross_entropy(logits, truth).item(), rel=1e-4)
    assert found["texts"] == 100 and math.isfinite(found["loss"])


def trained(data: Path, out: Path, **more: Any) -> api.Model:
    few = {"steps": 40, "eval_every": 20, "save_every": 20, "device": "cpu", "lr": 0.01, "warmup": 2}
    return api.train("classify", "tiny", data=str(data), out=out, train=few, **more)


def test_it_learns_and_keeps_its_classes(folder: Path, tmp_path: Path):
    model = trained(folder, tmp_path / "run")
    assert model.evaluate()["accuracy"] == 1.0
    assert json.loads((model.path / "labels.json").read_text()) == ["neg", "pos"]
    for path in folder.iterdir():
        path.unlink()
    result = api.load(tmp_path / "run", "cpu").predict(input="a good film, number 99")["results"][0]
    assert result["label"] == "pos" and sum(result["probabilities"].values()) == pytest.approx(1)
    assert np.linalg.norm(model.predict(embed=["a film"])["vectors"][0]) == pytest.approx(1, abs=1e-5)


def test_it_begins_from_a_masked_model(folder: Path, tmp_path: Path):
    few = {"steps": 4, "eval_every": 2, "save_every": 2, "device": "cpu"}
    first = api.train("masked", "tiny", data=str(folder), out=tmp_path / "masked", train=few)
    model = trained(folder, tmp_path / "run", init=tmp_path / "masked")
    assert model.config.model == first.config.model and model.evaluate()["accuracy"] > 0.5
    (tmp_path / "masked").rename(tmp_path / "gone")
    assert api.load(tmp_path / "run", "cpu").predict(input="a bad film")["results"][0]["label"] in ("neg", "pos")


# --- what may go wrong ---


@pytest.mark.parametrize(
    ("files", "says"),
    [
        ({"a.csv": "txet,label\nx,y\n"}, ("no column 'text'", "did you mean 'txet'")),
        ({"a.csv": "text,label\nx,y\nz\n"}, ("a.csv, line 3: 1 fields, the header has 2",)),
        ({"a.csv": "text,label\nx,y\nz,\n"}, ("line 3: the label is empty",)),
        ({"a.csv": "text,label\nx,y\n  ,y\n"}, ("line 3: the text is empty",)),
        ({"a.csv": "text,label\nx,y\nz,y\n"}, ("one class only, ['y']",)),
        ({"a.jsonl": '{"text": "x", "lable": "y"}\n'}, ("line 1 has no column 'label'", "'lable'")),
        ({"a.jsonl": '{"text": 1, "label": "y"}\n'}, ("line 1: text must be a text",)),
        ({"a.txt": "x\n"}, ("a.txt' has no labels", ".csv")),
        ({"d/pos.txt": "x\n", "d/neg.txt": "\n"}, ("neg.txt: the class 'neg' is empty",)),
        ({"d/texts.txt": "x\ny\n", "d/labels.txt": "a\n"}, ("texts.txt has 2 lines", "labels.txt has 1")),
    ],
)
def test_data_that_cannot_be_used(files: dict[str, str], says: tuple[str, ...], tmp_path: Path):
    for name, content in files.items():
        write(tmp_path / name, content)
    with refuses(*says):
        read(str(tmp_path / next(iter(files)).split("/")[0]))


def test_a_label_unseen_in_training(folder: Path, tmp_path: Path):
    trained(folder, tmp_path / "run")
    other = write(tmp_path / "other.csv", "text,label\na good film,poss\na bad film,neg\n")
    refused(call("eval", tmp_path / "run", "--data", other), "line 2", "'poss' was not seen", "did you mean 'pos'?")


def test_texts_longer_than_the_context_are_counted(folder: Path):
    write(folder / "pos.txt", lines([*GOOD, "x" * 33, "y" * 99]))
    with refuses("2 of 102 texts are longer than the context of 32", "pos.txt, line 41", "--cut"):
        next(CLASSIFY.batches(config(folder, cut=False), "train"))
    next(CLASSIFY.batches(config(folder), "train"))


def test_requests_that_cannot_be_answered(folder: Path):
    model = CLASSIFY.build(config(folder))
    for request in ({"inputs": "a"}, {"input": ""}, {"input": 3}, {"input": "a" * 33}, {"input": "Ω"}):
        with pytest.raises(InputError):
            CLASSIFY.predict(model, request)
