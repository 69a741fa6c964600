"""Speech: what a row holds, that padding changes nothing, what is heard in files, and what is said of bad ones."""

import dataclasses
import json
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from anyformer.data.audio.batches import Draw, Shape, collate, example

from anyformer import api
from anyformer.data.audio import features as audio
from anyformer.data.audio import read as clips
from anyformer.errors import InputError
from anyformer.recipes import speech
from anyformer.training import loop

soundfile = pytest.importorskip("soundfile", reason="sound files are read through it: pip install 'anyformer[audio]'")
TINY = speech.PRESETS["tiny"]


def model(**changes: Any) -> speech.Listener:
    torch.manual_seed(0)
    made = speech.build(dataclasses.replace(TINY, **changes)).eval()
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return made


def rows(config: speech.Config, split: str, n: int = 1) -> list[dict]:
    return [batch for batch, _ in islice(speech.batches(config, split), n)]


def test_padding_changes_nothing():
    """Each sound by itself gives the logits that it has among longer ones."""
    listener = model(joined=2, decoder=dataclasses.replace(TINY.decoder, context=24))
    (batch,) = rows(listener.config, "train")
    assert len(set(batch["lengths"].tolist())) > 2
    with torch.no_grad():
        together = listener(batch["mel"], batch["ids"], listener.seen(batch["lengths"]))
        for i, length in enumerate(batch["lengths"].tolist()):
            alone = listener(batch["mel"][i : i + 1, :, : 2 * length], batch["ids"][i : i + 1])
            assert torch.allclose(together[i], alone[0], atol=1e-5)


def test_what_is_written_down_is_the_likeliest_token_after_each():
    listener = model()
    (batch,) = rows(TINY, "val")
    listener.end = None  # write on to the end of the context
    said = listener.transcribe(batch["mel"], batch["lengths"])
    room = TINY.decoder.context - len(listener.prompt) + 1
    assert {len(row) for row in said} == {room}
    ids = torch.tensor([listener.prompt + row[:-1] for row in said])
    with torch.no_grad():
        logits = listener(batch["mel"], ids, listener.seen(batch["lengths"]))
    assert logits.argmax(-1)[:, len(listener.prompt) - 1 :].tolist() == said


def test_a_batch_says_what_follows_and_nothing_of_the_prompt():
    shape = Shape(mels=5, nodes=10, tokens=9, prompt=(7, 8), end=9)
    mels = [np.ones((5, 4), np.float32), np.ones((5, 6), np.float32)]
    made = collate(shape, [(mels[0], np.array([1, 2, 3])), (mels[1], np.array([4]))])
    assert made["ids"].tolist() == [[7, 8, 1, 2, 3], [7, 8, 4, 0, 0]]
    assert made["next"].tolist() == [[-100, 1, 2, 3, 9], [-100, 4, 9, -100, -100]]
    assert made["lengths"].tolist() == [2, 3] and made["mel"][0, :, 4:].sum() == 0


def test_rows_of_several_clips_are_those_of_their_draw():
    found, tokenizer = clips.tones(), speech.tokenizer_of(dataclasses.replace(TINY, joined=3))
    shape = Shape(mels=20, nodes=400, tokens=64, fewest=2, most=3, gaps=True, prompt=(0,))
    part = found.part("train")

    def drawn(key: int) -> tuple[np.ndarray, str]:
        mel, ids = example(shape, found, part, tokenizer, Draw(np.random.Philox(key=key)))
        return mel, tokenizer.decode(ids)

    texts = {drawn(key)[1] for key in range(20)}
    assert len(texts) > 15 and {len(text.split()) for text in texts} == {2, 3}
    assert all(word in clips.WORDS for text in texts for word in text.split())
    (mel, text), (again, same) = drawn(3), drawn(3)
    assert np.array_equal(mel, again) and text == same
    short = dataclasses.replace(shape, nodes=20)
    assert all(example(short, found, part, tokenizer, Draw(np.random.Philox(key=k)))[0].shape[1] <= 40 for k in (0, 5))


def test_validation_hears_every_clip_once_whatever_the_batch():
    for config in (TINY, dataclasses.replace(TINY, joined=2, decoder=dataclasses.replace(TINY.decoder, context=24))):
        wide = dataclasses.replace(config, train=dataclasses.replace(config.train, batch=40))
        small = [row for batch in rows(config, "val", 99) for row in batch["next"].tolist()]
        large = [row for batch in rows(wide, "val", 99) for row in batch["next"].tolist()]
        said = [[[i for i in row if i >= 0] for row in some] for some in (small, large)]
        assert said[0] == said[1] and len(said[0]) == 40


def test_a_minute_of_training_hears_the_keys():
    config = dataclasses.replace(
        TINY, train=dataclasses.replace(TINY.train, steps=150, batch=16, lr=4e-3, warmup=10, eval_every=150)
    )
    state = loop.start(speech, config)
    *_, last = loop.train(speech, config, state)
    assert last["val_loss"] < 0.5 < np.log(16)
    if "val_wer" in last:
        assert last["val_wer"] < 0.5


# --- files ---


def written(path: Path, seconds: float) -> Path:
    rng = np.random.default_rng(0)
    soundfile.write(path, 0.1 * rng.standard_normal(int(seconds * 16_000)), 16_000)
    return path


def test_files_are_heard_in_their_order_and_long_ones_in_windows(tmp_path: Path):
    listener = model()
    paths = [str(written(tmp_path / f"{s}.wav", s)) for s in (0.3, 3.7, 0.5)]  # the model hears one second at a time
    answer = speech.predict(listener, {"input": paths})
    assert [found["input"] for found in answer["results"]] == paths
    assert [found["seconds"] for found in answer["results"]] == [0.3, 3.7, 0.5]
    assert json.loads(json.dumps(answer)) == answer
    alone = speech.predict(listener, {"input": paths[2]})["results"][0]
    assert alone == answer["results"][2]
    heard = [len(piece) for piece in audio.windows(audio.blocks(Path(paths[1])), 16_000)]
    assert len(heard) >= 4 and sum(heard) == 3.7 * 16_000


def test_a_bad_request_is_one_line(tmp_path: Path):
    with pytest.raises(InputError, match="no 'inputs': did you mean 'input'"):
        speech.predict(model(), {"inputs": "a.wav"})
    with pytest.raises(InputError, match="expected the path of a sound file"):
        speech.predict(model(), {"input": 3})
    with pytest.raises(InputError, match=r"a\.wav: there is no such sound file"):
        speech.predict(model(), {"input": str(tmp_path / "a.wav")})


def table(folder: Path, text: str, seconds: float = 0.2, n: int = 12) -> str:
    lines = ["path,text,split"]
    for i in range(n):
        written(folder / f"{i}.wav", seconds)
        lines.append(f"{i}.wav,{text},{'val' if i < 3 else 'train'}")
    (folder / "clips.csv").write_text("\n".join(lines), encoding="utf-8")
    return str(folder / "clips.csv")


def test_it_trains_on_a_table_and_is_loaded_without_it(tmp_path: Path):
    data = table(tmp_path, "one two")
    trained = api.train("speech", "tiny", data=data, out=tmp_path / "run", train={"steps": 2, "device": "cpu"})
    Path(data).unlink()
    again = api.load(tmp_path / "run", "cpu")
    asked = {"input": str(tmp_path / "0.wav")}
    assert again.predict(asked) == trained.predict(asked)


@pytest.mark.parametrize(
    ("text", "seconds", "changes", "message"),
    [
        ("one two three four", 0.2, {}, "a text of 18 tokens: shorten it, or raise --decoder.context to 19"),
        ("one", 1.5, {}, "1.5 s long, and the model hears 1 s: cut it, or raise --encoder.context to 75"),
        ("one", 0.2, {"prompt": "1 x"}, "the prompt is '1 x'"),
        ("one", 0.2, {"prompt": "99"}, "do not fit a vocabulary"),
        ("one", 0.2, {"data": "toness"}, "did you mean 'tones'"),
    ],
)
def test_what_does_not_fit_is_one_line(text: str, seconds: float, changes: dict, message: str, tmp_path: Path):
    config = dataclasses.replace(TINY, **{"data": table(tmp_path, text, seconds)} | changes)
    with pytest.raises(InputError, match=message) as error:
        next(speech.batches(config, "train"))
    assert "\n" not in str(error.value)


def test_letters_outside_the_vocabulary_are_named_with_their_line(tmp_path: Path):
    tokenizer = tmp_path / "tokenizer.json"
    tokenizer.write_text(model().files["tokenizer.json"], encoding="utf-8")
    config = dataclasses.replace(TINY, data=table(tmp_path, "queue"), tokenizer=str(tokenizer))
    with pytest.raises(InputError, match=r"clips\.csv, line \d+: the vocabulary of 15 characters has no 'q'"):
        next(speech.batches(config, "train"))


def test_the_spoken_digits_are_the_official_split(real_data: Path):
    found = clips.read("fsdd")
    assert len(found.part("train")) == 2700 and len(found.part("val")) == 300
    assert sorted(set(found.texts)) == sorted(clips.WORDS)
    assert all(int(Path(found.wheres[i]).stem.split("_")[2]) < 5 for i in found.part("val"))


@pytest.mark.slow
def test_spoken_digits_are_heard_with_at_most_two_errors_in_a_hundred(real_data: Path, tmp_path: Path):
    pytest.importorskip("jiwer", reason="counts wrong words: pip install 'anyformer[scores]'")
    assert api.train("speech", "digits", out=tmp_path / "run").evaluate()["wer"] <= 0.02


def test_it_writes_in_subwords_that_it_learned_from_the_table(tmp_path: Path):
    data = table(tmp_path, "the cat sat on the mat")
    more = {"tokenizer": "bpe", "vocab_size": 280, "train": {"steps": 2, "device": "cpu"}}
    trained = api.train("speech", "tiny", data=data, out=tmp_path / "run", **more)
    assert 256 < trained.module.tokenizer.vocab_size <= 280
    assert len(trained.module.tokenizer.encode("the cat sat on the mat")) < 16
    assert (
        trained.evaluate()["loss"] > 0 and trained.predict({"input": str(tmp_path / "0.wav")})["results"][0]["seconds"]
    )


def test_the_first_batch_of_the_validation_part_says_all_sorts(tmp_path: Path):
    """A validation during training looks at a few batches only, and tables come speaker by speaker, word by word."""
    written(tmp_path / "a.wav", 0.2)
    words = [("one", "val")] * 20 + [("two", "val")] * 20 + [("one", "train"), ("two", "train")]
    lines = ["path,text,split", *(f"a.wav,{word},{side}" for word, side in words)]
    (tmp_path / "clips.csv").write_text("\n".join(lines), encoding="utf-8")
    (batch,) = rows(dataclasses.replace(TINY, data=str(tmp_path / "clips.csv")), "val")
    assert len({tuple(row) for row in batch["next"].tolist()}) == 2
