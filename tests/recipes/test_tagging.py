"""Tagging: every form of the data, words and their tokens, whole spans, and a small task that is learned."""

import gzip
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from anyformer import api
from anyformer.data.text.batches import IGNORE_INDEX
from anyformer.data.text.tagged import is_tagged, read_tagged
from anyformer.metrics import find_spans, score_spans
from anyformer.parsing import parse_dataclass, to_json
from anyformer.recipes import tagging
from anyformer.recipes._shared.trivial_baselines import score_usual_tags
from anyformer.resolve_job import merge_overrides
from cli_kit import call
from data_kit import refuses, write

PLACES = [("Ada", "Rome"), ("Bo", "New York"), ("Cy", "Oslo"), ("Di", "San José")] * 6
SENTENCES = [
    (f"{name} sleeps in {place} .".split(), f"B-PER O O B-LOC{' I-LOC' * place.count(' ')} O".split())
    for name, place in PLACES
]
CONLL = "".join("".join(f"{w} XX {t}\n" for w, t in zip(words, tags)) + "\n" for words, tags in SENTENCES)


def make_config(**changes: Any) -> tagging.Config:
    return parse_dataclass(tagging.Config, merge_overrides(to_json(tagging.PRESETS["tiny"]), changes), "config.json")


def test_every_form_is_read_as_the_same_sentences(tmp_path: Path):
    lines = (enumerate(zip(words, tags), 1) for words, tags in SENTENCES)
    blocks = ("".join(f"{i}\t{word}\t_\t{tag}\n" for i, (word, tag) in block) for block in lines)
    conllu = "".join(f"# text\n1-2\tAt\t_\t_\n{block}\n" for block in blocks)
    rows = [json.dumps({"tokens": words, "ner_tags": tags}) for words, tags in SENTENCES]
    (tmp_path / "c.conll.gz").write_bytes(gzip.compress(("-DOCSTART- -X- O\n\n" + CONLL).encode()))
    files = [write(tmp_path / "a.conll", CONLL), write(tmp_path / "b.conllu", conllu), tmp_path / "c.conll.gz",
             write(tmp_path / "d.jsonl", "\n".join(rows))]  # fmt: skip
    first, *others = (read_tagged(str(path)) for path in files)
    assert sorted(words for words, _, _ in first.split("all")) == sorted(tuple(words) for words, _ in SENTENCES)
    assert first.names == ["B-LOC", "B-PER", "I-LOC", "O"] and all(other.sha256 == first.sha256 for other in others)
    val = {words for words, _, _ in first.split("val")}
    assert val and not val & {words for words, _, _ in first.split("train")}, "no sentence is in both splits"


def test_a_folder_has_its_own_validation(tmp_path: Path):
    write(tmp_path / "train.conll", CONLL), write(tmp_path / "dev.conll", "Eve B-PER\nsleeps O\n\n")
    data = read_tagged(str(tmp_path))
    assert len(data.split("train")) == len(SENTENCES)
    assert [words for words, _, _ in data.split("val")] == [("Eve", "sleeps")]


def test_splits_are_parts_of_the_names_of_files(tmp_path: Path):
    write(tmp_path / "eng.train", CONLL), write(tmp_path / "eng.testa", "Eve B-PER\nsleeps O\n\n")
    write(tmp_path / "train-README.txt", "about them")
    assert [words for words, _, _ in read_tagged(str(tmp_path)).split("val")] == [("Eve", "sleeps")]


def test_what_looks_like_words_with_tags():
    assert is_tagged(CONLL) and is_tagged("-DOCSTART- -X- O\n\n" + CONLL)
    assert not is_tagged(CONLL.replace("\n\n", "\n")), "a table has no empty lines"
    assert not is_tagged("roses red\nviolets blue\n\n" * 9 + "sugar sweet\n"), "as many endings as words"
    assert not is_tagged("".join(f"{i} {i % 3}\n" + "\n" * (i % 4 == 0) for i in range(99))), "numbers"


@pytest.mark.parametrize(
    ("name", "content", "parts"),
    [
        ("a.conll", "Ada B-PER\nsleeps\n\n", ("a.conll, line 2", "'sleeps' has no tag")),
        ("a.conll", "Ada O\n\nBo O\n\n", ("one tag only", "nothing to tell apart")),
        ("a.conll", "\n\n", ("no sentences for train",)),
        ("a.jsonl", '{"tokens": ["a", "b"], "tags": ["O"]}\n', ("a.jsonl, line 1", "same length")),
        ("a.jsonl", '{"tokens": ["a", ""], "tags": ["O", "O"]}\n', ("line 1", "no word")),
        ("a.csv", "a,b\n", ("cannot be read as words with tags", ".conll")),
    ],
)
def test_what_cannot_be_read_says_where(name: str, content: str, parts: tuple[str, ...], tmp_path: Path):
    with refuses(*parts):
        read_tagged(str(write(tmp_path / name, content)))


def test_labels_stand_at_the_first_token_of_each_word(tmp_path: Path):
    config = make_config(data=str(write(tmp_path / "a.conll", CONLL)), model={"context": 20})
    batch, _ = next(tagging.batches(config, "all"))
    names, tokenizer = tagging.load_sentences(config).names, tagging.load_text_tokenizer(config)
    for ids, length, labels in zip(batch["ids"], batch["lengths"].tolist(), batch["labels"]):
        text = tokenizer.decode(ids[:length].tolist())
        words, tags = next(s for s in SENTENCES if " ".join(s[0]).startswith(text))
        starts = [i for i, label in enumerate(labels.tolist()) if label != IGNORE_INDEX]
        assert starts == [len(" ".join(words[:k])) for k in range(len(starts))]
        assert [names[labels[i]] for i in starts] == tags[: len(starts)]
        assert len(starts) == len(words) or len(" ".join(words[: len(starts) + 1])) > 20, "cut between words"
    with refuses("of 24 sentences are longer than the context of 20 tokens", "a.conll, line ", "--too-long cut"):
        next(tagging.batches(make_config(data=config.data, too_long="error", model={"context": 20}), "val"))


def test_spans_are_whole():
    assert find_spans(["O", "B-A", "I-A", "I-B", "B-B", "O", "I-A"]) == [
        (1, 3, "A"),
        (3, 4, "B"),
        (4, 5, "B"),
        (6, 7, "A"),
    ]
    labels = [["B-A", "I-A", "O", "B-B"]]
    assert score_spans(labels, labels) == {"span_f1": 1.0}
    assert score_spans(labels, [["B-A", "O", "O", "B-B"]]) == {"span_f1": 0.5}, "half a name is no name"
    assert score_spans([["NOUN", "O"]], [["NOUN", "O"]]) == {}


def test_words_have_their_usual_tags():
    train = [(("a", "b"), ("O", "X")), (("a", "b"), ("O", "X")), (("b", "a"), ("O", "O"))]
    scores = score_usual_tags(train, [(("a", "b", "b", "c"), ("O", "X", "O", "X"))])
    assert scores == {"the most frequent tag": 0.5, "the usual tag of each word": 0.5}


@pytest.mark.slow
def test_names_are_found_that_training_never_showed(tmp_path: Path):
    train = {"steps": 150, "batch": 32, "lr": 1e-2, "eval_every": 150, "warmup": 10}
    fields = {"tokenizer": "bpe", "vocab_size": 512, "model": {"dim": 48}, "train": train}
    model = api.train("tagging", "tiny", out=tmp_path / "run", **fields)
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert result["val_accuracy"] > result["baselines"]["accuracy"]["the usual tag of each word"]
    answer = model.predict({"input": ["remind Zarvi Kamo to call Belsa on monday", ""]})["results"]
    assert {"text": "monday", "tag": "DAY"} in answer[0]["spans"] and answer[1] == {
        "input": "",
        "text": "",
        "words": [],
        "spans": [],
    }
    assert [word["word"] for word in answer[0]["words"]] == [
        "remind",
        "Zarvi",
        "Kamo",
        "to",
        "call",
        "Belsa",
        "on",
        "monday",
    ]
    with torch.inference_mode():
        alone = model.predict({"input": "fly to Rome, please"})["results"][0]
        together = model.predict({"input": ["a", "fly to Rome, please"]})["results"][1]
    assert [w["tag"] for w in alone["words"]] == [w["tag"] for w in together["words"]]
    shown = call("predict", tmp_path / "run", "call Kamo on friday").ok()
    assert "friday" in shown.out


def test_tags_that_training_never_showed_are_refused(tmp_path: Path):
    write(tmp_path / "labels.json", '["O", "B-PER"]')
    with refuses("a.conll, line ", "the tag 'B-LOC' was not seen in training"):
        tagging.load_sentences(
            make_config(data=str(write(tmp_path / "a.conll", CONLL)), labels=str(tmp_path / "labels.json"))
        )
