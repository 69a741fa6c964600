"""Music: what is asked for is what the tune begins with, and what is written can be read, heard and measured."""

import dataclasses
import json
import math
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import anyformer
from anyformer.recipes import music
from cli_kit import assert_refused, call
from data_kit import SMALL_DATA, refuses

TUNE = "M:6/8\nK:G\nGBB BAG|FAA AGF|GBB BAG|AGF E3|]"


def make_config(**fields: Any) -> music.Config:
    return dataclasses.replace(music.PRESETS["tiny"], data=str(SMALL_DATA["music"]), **fields)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("music") / "run"
    flags = ("--preset", "tiny", "--steps", 2, "--device", "cpu", "--train.batch", 4, "--train.eval-batches", 1)
    call("train", "music", *flags, "--data", SMALL_DATA["music"], "--out", out).ok()
    return out


def write(monkeypatch: pytest.MonkeyPatch, tune: str) -> Any:
    """Let the recipe write this tune, whatever it is asked for."""

    def stream(model: Any, request: dict[str, Any]) -> Iterator[list[Any]]:
        beginnings = [prompt for prompt in music.parse_request(request).prompts if tune.startswith(prompt)]
        results = [{"prompt": text, "text": tune[len(text) :], "finish_reason": "stop"} for text in beginnings]
        yield [SimpleNamespace(result=lambda result=result: result) for result in results]

    monkeypatch.setattr(music, "stream", stream)


def test_rows_hold_tunes_apart():
    config = make_config(model=dataclasses.replace(music.PRESETS["tiny"].model, context=160))
    tunes, text = music.load_tunes(config), music.load_text(config, "train")
    corpus, val = text.sources[0].corpus, tunes.split("val")
    assert corpus.tokenizer.decode(corpus.split("val")) == "".join(val)  # the ends of tunes have no text
    assert corpus.n_documents == len(tunes.texts)
    assert music.load_text(config, "all").n_documents == len(tunes.texts)
    batch, state = next(music.batches(config, "train"))
    starts = batch["ids"][:, 0]
    assert set(map(int, starts)) == set(corpus.tokenizer.encode("M").tolist()), "each row begins with a tune"
    assert state["tokens"] == batch["ids"].numel() and "document" in batch
    rows = [batch for batch, _ in music.batches(config, "val")]
    assert sum(len(batch["ids"]) for batch in rows) == len(val)


def test_counts_are_worth_more_than_frequencies_and_see_no_validation():
    losses = music.baselines(make_config())["loss"]
    assert (
        losses["counts of 9 characters"]
        < losses["letter frequencies"]
        < math.log(music.load_text(make_config(), "val").tokenizer.vocab_size)
    )


def test_a_tune_is_answered_with_its_notes(monkeypatch: pytest.MonkeyPatch):
    write(monkeypatch, TUNE)
    (result,) = music.predict(None, {"metre": "6/8", "key": "Gmaj"})["samples"]
    assert result["prompt"] + result["text"] == TUNE and result["finish_reason"] == "stop"
    assert result["tune"] == "X:1\nT:Tune 1\nM:6/8\nL:1/8\nK:G\n" + TUNE.split("\n")[2] + "\n"
    assert (result["bars"], result["complete"]) == (2, 2) and result["sounds"][:2] == [
        [0, 0.1667, 67],
        [0.1667, 0.1667, 71],
    ]
    facts = music.compare_tunes(None, [TUNE] * 2, [TUNE.replace("E3", "D3")], {})
    assert facts == {
        "tunes": 2, "readable": 1.0, "end": 1.0, "complete": 1.0, "own_complete": 1.0,
        "median_copy": 28.0, "longest_copy": 28, "own_median_copy": 28.0, "own_longest_copy": 28,
    }  # fmt: skip
    seeds = []
    monkeypatch.setattr(
        music, "predict", lambda model, request: seeds.append(request["seed"]) or {"samples": [request["prompt"]]}
    )
    assert music.write_tunes(None, ["a", "b", "a", "a"], {"seed": 5}) == [["a", "b"], ["a"], ["a"]] and seeds == [
        5,
        6,
        7,
    ]


def test_bars_of_any_model_last_as_long_as_the_metre_says(run: Path):
    """A model of two steps knows nothing of bars."""
    model = anyformer.load(run)
    request = {"metre": "3/4", "key": "D", "samples": 4, "tokens": 250, "temperature": 1.5, "seed": 1}
    kept = music.predict(model.module, request)["samples"]
    assert sum(sample["bars"] for sample in kept) > 1
    assert all(sample["bars"] == sample["complete"] and sample["log_kept_mass"] < 0 for sample in kept)
    free = music.predict(model.module, request | {"keep_metre": False})["samples"]
    assert [sample["text"] for sample in free] != [sample["text"] for sample in kept]
    (other,) = music.predict(model.module, {"prompt": "M:3/4\nK:D\n", "choices": ["G|", "A2|"]})["samples"]
    assert other["text"] in ("G|", "A2|"), "a structure is met instead"


def test_what_cannot_be_read_is_answered_without_notes(monkeypatch: pytest.MonkeyPatch):
    write(monkeypatch, "B|A")
    (broken,) = music.predict(None, {})["samples"]
    assert broken["tune"] == "" and broken["sounds"] == []


def test_what_is_no_beginning_of_a_tune_is_refused():
    for request, parts in (
        ({"key": "H", "metre": "3/4"}, ("K:H", "such as G")),
        ({"metre": "6/7"}, ("M:6/7",)),
        ({"prompt": "GAB|"}, ("need a key",)),
        ({"tokens": 5000}, ("tokens is 5000",)),
    ):
        with refuses(*parts):
            music.parse_request(request)


def test_samples_become_sound_midi_and_notation(run: Path, tmp_path: Path):
    flags = ("sample", run, "--prompt", r"M:6/8\nK:G\nGBB BAG|FAA AGF|", "--tokens", 5, "--samples", 2)
    call(*flags, "--out", tmp_path / "a.abc").ok()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a-2.abc", "a.abc"]
    assert (tmp_path / "a.abc").read_text().startswith("X:1\nT:Tune 1\nM:6/8\nL:1/8\nK:G\nGBB BAG|FAA AGF|")
    answer = json.loads(call(*flags, "--json", "--out", tmp_path / "a.wav").ok().out)
    assert len(answer["samples"]) == 2 and (tmp_path / "a-2.wav").read_bytes()[:4] == b"RIFF"
    pytest.importorskip("mido", reason="pip install 'anyformer[music]'")
    call(*flags, "--out", tmp_path / "a.mid").ok()
    assert (tmp_path / "a.mid").read_bytes()[:4] == b"MThd"


def test_files_that_cannot_be_written_are_refused(run: Path, tmp_path: Path):
    assert_refused(call("sample", run, "--out", "a.mp3"), "--out a.mp3: expected .abc, .wav, .mid")
    assert_refused(call("sample", run, "--out", tmp_path / "no" / "a.abc"), "there is no folder")
    out = tmp_path / "plays"
    call("train", "language", "--preset", "tiny", "--steps", 1, "--data", SMALL_DATA["music"], "--out", out).ok()
    assert_refused(call("sample", out, "--out", "a.wav"), "the recipe 'language' writes text alone")


def test_another_collection_is_evaluated_as_a_whole(run: Path, tmp_path: Path):
    (tmp_path / "b.abc").write_text(f"X:1\n{TUNE}\n\nX:2\n{TUNE.replace('GBB', 'BGG')}\n")
    model = anyformer.load(run, "cpu")
    config = dataclasses.replace(model.config, data=str(tmp_path / "b.abc"))
    rows = [batch for batch, _ in islice(music.batches(config, "all"), 9)]
    assert sum(len(batch["ids"]) for batch in rows) == 2
    assert model.evaluate(str(tmp_path / "b.abc"))["loss"] > 0
