"""Rows that cannot be used: few are left out and counted, many are an error, as the user wishes."""

import dataclasses
import wave
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from anyformer.data.audio.datasets import list_entries
from anyformer.data.images.read import open_images
from anyformer.data.text.labeled import read_labeled
from anyformer.data.text.pairs import read_pairs
from anyformer.data.text.prepare import prepare_corpus
from anyformer.data.text.read import RowOptions
from anyformer.data.unusable import check_unusable
from anyformer.parsing import parse_dataclass, to_json
from anyformer.recipes import classify, masked, speech, translation
from anyformer.training.config import TrainConfig
from data_kit import refuses, write


@pytest.mark.parametrize(
    ("n", "policy", "is_refused", "action"),
    [
        (1, "few", False, "left out"),
        (2, "few", True, ""),
        (1, "error", True, ""),
        (99, "skip", False, "left out"),
        (99, "cut", False, "cut"),
        (0, "error", False, ""),
    ],
)
def test_policies(n: int, policy: str, is_refused: bool, action: str, capsys: pytest.CaptureFixture[str]):
    arguments: Any = (n, 100, policy, "--empty", f"texts are empty (the first: {policy}.csv, line 3)", "a hint")
    if is_refused:
        with refuses(f"{n} of 100 texts are empty", "line 3): a hint"):
            check_unusable(*arguments)
    else:
        check_unusable(*arguments)
    notice = f"{n} of 100 texts are empty (the first: {policy}.csv, line 3): {action} (--empty error refuses them)\n"
    assert capsys.readouterr().err == (notice if n and not is_refused else "")


def make_pairs(folder: Path, *others: str) -> str:
    lines = [f"a {i} b\tc {i} d" for i in range(200)]
    return str(write(folder / "a.tsv", "\n".join([*lines[:99], *others, *lines[99:]])))


def test_a_few_unusable_pairs_do_not_stop_a_training(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    data = make_pairs(tmp_path, "alone\t", f"x {'long ' * 9}\ty", "a 0 b\tc 0 d")
    config = dataclasses.replace(translation.PRESETS["tiny"], data=data)
    shown = sum(len(batch["source"]) for batch, _ in translation.batches(config, "all"))
    assert shown == 201 and next(translation.batches(config, "train"))[1]["skipped"] == 2
    empty, repeated, long = capsys.readouterr().err.splitlines()
    assert "1 of 203 pairs have an empty side (the first:" in empty and "a.tsv, line 100)" in empty
    assert "1 of 203 pairs repeat another one: kept" in repeated
    assert "1 of 202 pairs are longer" in long and "1 sources" in long and "a.tsv, line 101)" in long
    for field in ("empty", "too_long"):
        with refuses("1 of 20", f"--{field.replace('_', '-')}"):
            next(translation.batches(dataclasses.replace(config, **{field: "error"}), "train"))


def test_lengths_of_every_split_are_checked_before_training(tmp_path: Path):
    for name, text in {"train.en": "a b\n" * 9, "train.fr": "c d\n" * 9, "val.en": "a", "val.fr": "long " * 9}.items():
        write(tmp_path / name, text)
    config = dataclasses.replace(translation.PRESETS["tiny"], data=str(tmp_path))
    with refuses("1 of 10 pairs are longer", "1 targets", "val.en, line 1", "--decoder.context 45"):
        next(translation.batches(config, "train"))


def test_pairs_that_no_tokenizer_makes_short_are_refused_before_one_is_trained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("anyformer.data.text.pair_batches.build_tokenizer", lambda *_: pytest.fail("trained"))
    data = make_pairs(tmp_path, *["a\t" + "b " * 90] * 5)
    config = dataclasses.replace(translation.PRESETS["tiny"], data=data, tokenizer="bpe")
    with refuses("5 of 205 pairs are longer", "up to 90 words", "--too-long cut or skip"):
        translation.build(config)


def test_a_few_unusable_texts_do_not_stop_a_training(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    lines = [f"text {i}\t{i % 2}" for i in range(200)]
    data = write(tmp_path / "a.tsv", "\n".join(["text\tlabel", *lines, "\t1", f"{'long ' * 90}\t0", "text 0\t0"]))
    config = dataclasses.replace(classify.PRESETS["tiny"], data=str(data), too_long="few")
    assert sum(len(batch["labels"]) for batch, _ in classify.batches(config, "all")) == 200
    assert max(batch["lengths"].min() for batch, _ in classify.batches(config, "all")) > 0
    empty, repeated, long = capsys.readouterr().err.splitlines()
    assert "1 of 203 rows are empty, 1 without a text, 0 without a label" in empty and "a.tsv, line 202)" in empty
    assert "1 of 202 rows repeat another one: left out" in repeated
    assert "1 of 201 texts are longer than the context of 32 tokens" in long and "line 203" in long
    with refuses("1 of 201 texts are longer", "--too-long cut or skip"):
        next(classify.batches(dataclasses.replace(config, too_long="error"), "val"))
    with refuses("1 of 203 rows are empty", "--empty skip"):
        read_labeled(str(data), empty="error")


def write_clip(path: Path, seconds: float) -> None:
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(16_000)
        file.writeframes(np.zeros(round(16_000 * seconds), np.int16).tobytes())


def test_clips_that_are_too_long_are_refused_before_training_or_left_out(tmp_path: Path):
    pytest.importorskip("soundfile", reason="sound is read through it: pip install 'anyformer[audio]'")
    rows = [("0.wav", "one", 0.1), ("1.wav", "two", 2.0), ("2.wav", "three " * 9, 0.1)]
    rows += [(f"{i}.wav", "one", 0.1) for i in range(3, 20)]
    for name, _, seconds in rows:
        write_clip(tmp_path / name, seconds)
    table = write(tmp_path / "a.csv", "path,text\n" + "".join(f"{name},{text}\n" for name, text, _ in rows))
    config = dataclasses.replace(speech.PRESETS["tiny"], data=str(table), train=TrainConfig(batch=4, steps=1))
    with refuses("2 of 20 clips are longer", "1 s or 16 tokens; up to 2.0 s", "a.csv, line 3", "--too-long skip"):
        next(speech.batches(config, "train"))
    config = dataclasses.replace(config, too_long="skip")
    batches = list(speech.batches(config, "all"))
    assert sum(len(batch["lengths"]) for batch, _ in batches) == 18 and batches[0][1]["skipped"] == 2


def test_configs_of_old_runs_are_read(tmp_path: Path):
    old = to_json(translation.PRESETS["tiny"])
    for name in ("empty", "too_long"):
        del old[name]
    config = parse_dataclass(translation.Config, old | {"cut_long": True, "skip_missing": False}, "config.json")
    assert (config.too_long, config.empty) == ("cut", "error")
    old = {name: value for name, value in to_json(classify.PRESETS["tiny"]).items() if name != "too_long"}
    assert parse_dataclass(classify.Config, old | {"cut": False}, "config.json").too_long == "error"


def test_empty_texts_can_be_left_out_on_request(tmp_path: Path):
    data = make_pairs(tmp_path, *["\tx"] * 50)
    with refuses("50 of 250 pairs have an empty side", "line 100", "--empty skip"):
        read_pairs(data)
    assert len(read_pairs(data, empty="skip").split("all")) == 200


def test_documents_without_a_text_and_repeated_ones(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    lines = [f'{{"text": "document {i % 150}"}}' for i in range(200)] + ['{"text": null}']
    data = str(write(tmp_path / "a.jsonl", "\n".join(lines)))
    assert prepare_corpus(data).n_documents == 200
    empty, repeated = capsys.readouterr().err.splitlines()
    assert "1 of 201 documents are empty (the first:" in empty and "line 201)" in empty
    assert "50 of 201 documents repeat another one: kept (--duplicates skip" in repeated
    assert prepare_corpus(data, rows=RowOptions(duplicates="skip")).n_documents == 150
    assert "50 of 201 documents repeat another one: left out" in capsys.readouterr().err
    with refuses("1 of 201 documents are empty", "--empty skip"):
        prepare_corpus(data, rows=RowOptions(empty="error"))


def test_repeated_pairs_clips_and_images(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    data = make_pairs(tmp_path, "a 0 b\tc 0 d")
    assert [len(read_pairs(data, duplicates=policy).split("all")) for policy in ("keep", "skip")] == [201, 200]
    for name in ("a.wav", "b.wav", "a.png", "b.png"):
        write(tmp_path / name, "")
    clips = str(write(tmp_path / "a.csv", "path,text\na.wav,one\nb.wav,one\na.wav,one\n"))
    assert [len(list_entries(clips, duplicates=policy)) for policy in ("keep", "skip")] == [3, 2]
    table = write(tmp_path / "b.csv", "file,kind\na.png,x\nb.png,y\na.png,x\n")
    images = [len(open_images(str(table), "file,kind", duplicates=policy)) for policy in ("keep", "skip")]
    assert images == [3, 2]
    assert capsys.readouterr().err.count("repeat another one: kept (--duplicates skip leaves them out)") == 3


@pytest.mark.parametrize(("policy", "n_documents", "n_tokens"), [("cut", 3, 30), ("skip", 2, 12)])
def test_documents_longer_than_the_context_of_a_masked_model(
    policy: Any, n_documents: int, n_tokens: int, tmp_path: Path
):
    texts = ("a" * 6, "b" * 40, "c" * 4)
    data = str(write(tmp_path / "a.jsonl", "\n".join(f'{{"text": "{text}"}}' for text in texts)))
    config = dataclasses.replace(masked.PRESETS["tiny"], data=data, val_fraction=0.0)
    shorter = dataclasses.replace(config, too_long=policy, model=dataclasses.replace(config.model, context=20))
    corpus = masked.load_mixture(shorter).sources[0].corpus
    assert corpus.n_documents == n_documents and abs(len(corpus.tokens) - n_tokens) <= 2
    with refuses("1 of 3 documents are longer than the context of 20 tokens", "--too-long split, cut or skip"):
        masked.load_mixture(dataclasses.replace(shorter, too_long="error"))
