"""Speech: what an example holds, padding, greedy decoding, transcripts of files, and mistakes."""

import dataclasses
import json
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from anyformer import api, recipe_loading
from anyformer.data.audio.batches import ExampleSpec, build_example, collate
from anyformer.data.audio.datasets import DIGIT_WORDS, load_audio, load_tones
from anyformer.data.text.batches import IGNORE_INDEX
from anyformer.training import loop
from data_kit import needs_data, refuses, write

soundfile = pytest.importorskip("soundfile", reason="sound files are read through it: pip install 'anyformer[audio]'")
speech: Any = recipe_loading.load_recipe("speech")
TINY: Any = speech.PRESETS["tiny"]
JOINED = dataclasses.replace(TINY, max_clips=2, decoder=dataclasses.replace(TINY.decoder, context=24))


WIDE = dataclasses.replace(TINY.train, batch=40)


def build_model(config: Any = TINY) -> Any:
    torch.manual_seed(0)
    model = speech.build(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def take(config: Any, split: str, n: int = 1) -> list[dict]:
    return [batch for batch, _ in islice(speech.batches(config, split), n)]


# --- the model ---


@torch.no_grad()
def test_padding_changes_nothing():
    """Each sound alone has the logits that it has next to longer ones."""
    model, (batch,) = build_model(JOINED), take(JOINED, "train")
    lengths = batch["lengths"]
    assert len(set(lengths.tolist())) > 2
    together = model(batch["mel"], batch["ids"], model.sound_edges(lengths))
    for i, length in enumerate(lengths.tolist()):
        alone = model(batch["mel"][i : i + 1, :, : 2 * length], batch["ids"][i : i + 1])
        assert torch.allclose(together[i], alone[0], atol=1e-5)


def test_a_transcript_is_the_likeliest_token_after_each():
    model, (batch,) = build_model(), take(TINY, "val")
    model.end = None  # go on to the end of the context
    rows, n_prompt = model.transcribe(batch["mel"], batch["lengths"]), len(model.prompt)
    assert {len(row) for row in rows} == {TINY.decoder.context - n_prompt + 1}
    ids = torch.tensor([model.prompt + row[:-1] for row in rows])
    with torch.no_grad():
        logits = model(batch["mel"], ids, model.sound_edges(batch["lengths"]))
    assert logits.argmax(-1)[:, n_prompt - 1 :].tolist() == rows


@pytest.mark.slow
def test_it_learns_to_hear_tones():
    """A model that does not use the sound gets one digit in ten right."""
    few = {"steps": 60, "batch": 16, "lr": 8e-3, "warmup": 10, "eval_every": 60, "eval_batches": 1}
    config = dataclasses.replace(TINY, train=dataclasses.replace(TINY.train, **few))
    state = loop.init_state(speech, config)
    *_, last = loop.train(speech, config, state)
    model, (batch,) = state.model.eval(), take(dataclasses.replace(config, train=WIDE), "val")
    labels = [[i for i in row if i not in (IGNORE_INDEX, model.end)] for row in batch["labels"].tolist()]
    texts = model.transcribe(batch["mel"], batch["lengths"])
    assert last["val_loss"] < 1 and np.mean([a == b for a, b in zip(labels, texts, strict=True)]) > 0.3


# --- batches ---


def test_labels_are_the_next_tokens_after_the_prompt():
    spec = ExampleSpec(mels=5, max_nodes=10, max_tokens=9, prompt=(7, 8), end=9)
    mels = [np.ones((5, 4), np.float32), np.ones((5, 6), np.float32)]
    batch = collate(spec, [(mels[0], np.array([1, 2, 3])), (mels[1], np.array([4]))])
    assert batch["ids"].tolist() == [[7, 8, 1, 2, 3], [7, 8, 4, 0, 0]]
    assert batch["labels"].tolist() == [[-100, 1, 2, 3, 9], [-100, 4, 9, -100, -100]]
    assert batch["lengths"].tolist() == [2, 3] and batch["mel"][0, :, 4:].sum() == 0


def test_an_example_of_several_clips_depends_on_its_rng_alone():
    data, tokenizer = load_tones(), speech.load_text_tokenizer(dataclasses.replace(TINY, max_clips=3))
    spec = ExampleSpec(mels=20, max_nodes=400, max_tokens=64, min_clips=2, max_clips=3, with_gaps=True, prompt=(0,))

    def build(key: int, spec: ExampleSpec = spec) -> tuple[np.ndarray, str]:
        mel, ids = build_example(spec, data, data.split("train"), tokenizer, np.random.Philox(key=key))
        return mel, tokenizer.decode(ids)

    texts = {build(key)[1] for key in range(20)}
    assert len(texts) > 15 and {len(text.split()) for text in texts} == {2, 3}
    assert all(word in DIGIT_WORDS for text in texts for word in text.split())
    assert np.array_equal(build(3)[0], build(3)[0])
    short = dataclasses.replace(spec, max_nodes=20)
    assert all(build(key, short)[0].shape[1] <= 40 for key in (0, 5)), "fewer clips, where all are too long"


@pytest.mark.parametrize("config", [TINY, JOINED], ids=["single", "joined"])
def test_validation_has_every_clip_once_whatever_the_batch_size(config: Any):
    wide = dataclasses.replace(config, train=WIDE)
    labels = [[row for batch in take(c, "val", 99) for row in batch["labels"].tolist()] for c in (config, wide)]
    texts = [[[i for i in row if i >= 0] for row in rows] for rows in labels]
    assert texts[0] == texts[1] and len(texts[0]) == 40


def test_the_first_validation_batch_has_several_words(tmp_path: Path):
    """A validation during training takes a few batches only, and tables come speaker by speaker, word by word."""
    write_noise(tmp_path / "a.wav", 0.2)
    words = [("one", "val")] * 20 + [("two", "val")] * 20 + [("one", "train"), ("two", "train")]
    table = write(tmp_path / "clips.csv", "path,text,split\n" + "".join(f"a.wav,{w},{split}\n" for w, split in words))
    (batch,) = take(dataclasses.replace(TINY, data=str(table)), "val")
    assert len({tuple(row) for row in batch["labels"].tolist()}) == 2


# --- files ---


def write_noise(path: Path, seconds: float) -> str:
    soundfile.write(path, 0.1 * np.random.default_rng(0).standard_normal(int(seconds * 16_000)), 16_000)
    return str(path)


def write_table(folder: Path, text: str, seconds: float = 0.2, n: int = 12) -> str:
    for i in range(n):
        write_noise(folder / f"{i}.wav", seconds)
    rows = "".join(f"{i}.wav,{text},{'val' if i < 3 else 'train'}\n" for i in range(n))
    return str(write(folder / "clips.csv", "path,text,split\n" + rows))


def test_files_are_transcribed_in_their_order_and_long_ones_in_windows(tmp_path: Path):
    model = build_model()
    paths = [write_noise(tmp_path / f"{s}.wav", s) for s in (0.3, 3.7, 0.5)]  # the model takes one second at a time
    answer = speech.predict(model, {"input": paths})
    assert [result["input"] for result in answer["results"]] == paths
    assert [result["seconds"] for result in answer["results"]] == [0.3, 3.7, 0.5]
    assert json.loads(json.dumps(answer)) == answer
    assert speech.predict(model, {"input": Path(paths[2])})["results"] == answer["results"][2:]


def test_it_trains_on_a_table_in_subwords_and_is_loaded_without_it(tmp_path: Path):
    data = write_table(tmp_path, "the cat sat on the mat")
    changes = {"tokenizer": "bpe", "vocab_size": 280, "train": {"steps": 2, "device": "cpu"}}
    model = api.train("speech", "tiny", data=data, out=tmp_path / "run", **changes)
    tokenizer, sound = model.module.tokenizer, str(tmp_path / "0.wav")
    assert 256 < tokenizer.vocab_size <= 280 and len(tokenizer.encode("the cat sat on the mat")) < 16
    assert model.evaluate()["loss"] > 0
    Path(data).unlink()
    assert api.load(tmp_path / "run", "cpu").predict(sound) == model.predict(sound)


@pytest.mark.slow
@needs_data
def test_the_spoken_digits_have_the_official_split():
    data = load_audio("fsdd")
    assert len(data.split("train")) == 2700 and len(data.split("val")) == 300
    assert sorted(set(data.texts)) == sorted(DIGIT_WORDS)
    assert all(int(Path(data.places[i]).stem.split("_")[2]) < 5 for i in data.split("val"))


@pytest.mark.slow
def test_at_most_2_in_100_spoken_digits_are_wrong(real_data: Path, tmp_path: Path):
    pytest.importorskip("jiwer", reason="counts wrong words: pip install 'anyformer[scores]'")
    assert api.train("speech", "digits", out=tmp_path / "run").evaluate()["wer"] <= 0.02


# --- mistakes ---


@pytest.mark.parametrize(
    ("request_", "parts"),
    [
        ({"inputs": "a.wav"}, ("'inputs'", "did you mean 'input'")),
        ({"input": 3}, ("input is 3; it must be a text or a path",)),
        ({"input": "none.wav"}, ("none.wav", "there is no such file")),
    ],
)
def test_requests_that_cannot_be_answered(request_: dict, parts: tuple[str, ...]):
    with refuses(*parts):
        speech.predict(build_model(), request_)


@pytest.mark.parametrize(
    ("text", "seconds", "changes", "message"),
    [
        ("one two three four", 0.2, {}, "12 of 12 clips are longer than the context"),
        ("one", 1.5, {}, "--too-long skip, or --encoder.context 75"),
        ("one", 0.2, {"prompt": "1 x"}, "the prompt is '1 x'"),
        ("one", 0.2, {"prompt": "99"}, "do not fit a vocabulary"),
        ("one", 0.2, {"data": "toness"}, "did you mean 'tones'"),
        ("one", 0.2, {"mels": 0}, "mels is 0; it must be at least 1"),
        ("one", 0.2, {"max_clips": -1}, "max_clips is -1; it must be at least 1"),
    ],
)
def test_data_and_configs_that_do_not_fit(text: str, seconds: float, changes: dict, message: str, tmp_path: Path):
    with refuses(message):
        take(dataclasses.replace(TINY, **{"data": write_table(tmp_path, text, seconds)} | changes), "train")


def test_a_letter_outside_the_vocabulary_is_named_with_its_line(tmp_path: Path):
    tokenizer = write(tmp_path / "tokenizer.json", build_model().files["tokenizer.json"])
    config = dataclasses.replace(TINY, data=write_table(tmp_path, "queue"), tokenizer=str(tokenizer))
    with refuses("clips.csv, line ", "the vocabulary of 15 characters has no 'q'"):
        take(config, "train")
