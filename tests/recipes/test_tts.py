"""Text to speech: frames and phases, what a node may read, guidance, one's own recordings, voices, and mistakes."""

import base64
import io
import json
import wave
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from anyformer import api, recipe_loading
from anyformer.data.audio.datasets import list_entries
from anyformer.data.audio.features import SAMPLE_RATE
from anyformer.data.audio.read import read_audio
from anyformer.data.audio.utterances import GAP_FRAMES, PromptIds, Voices
from anyformer.data.audio.vocoder import FLOOR, PEAK, compute_frames, encode_wav, invert_frames
from anyformer.data.tokenizers.build import Characters
from anyformer.inference.speaking import SpeakingRequest, continue_codes, generate_frames
from cli_kit import assert_refused, call
from data_kit import refuses

pytest.importorskip("soundfile", reason="pip install 'anyformer[audio]'")
tts: Any = recipe_loading.load_recipe("tts")
TINY = tts.PRESETS["tiny"]
WORDS, SPEAKERS = {"low": 500, "higher": 1000}, {"ann": 2000, "bob": 3000}  # the tones of each, in Hz
MELS = 40


def make_sound(word: str, speaker: str, seconds: float = 0.1, loudness: float = 0.1) -> np.ndarray:
    """Return the tones of a word and of a speaker, which fade, so that it can be heard when they end."""
    t = np.arange(round(SAMPLE_RATE * seconds)) / SAMPLE_RATE
    tones = [np.sin(2 * np.pi * hertz * t) for hertz in (WORDS[word], SPEAKERS[speaker])]
    return loudness * np.exp(-5 * t / seconds) * sum(tones)


def read_sound(result: dict[str, Any]) -> tuple[str, str]:
    """Return the word and the speaker that a sound has the tones of."""
    with wave.open(io.BytesIO(base64.b64decode(result["wav"]))) as file:
        assert file.getframerate() == SAMPLE_RATE and file.getnframes() == round(result["seconds"] * SAMPLE_RATE)
        samples = np.frombuffer(file.readframes(file.getnframes()), "<i2").astype(float)
    return name_tones(samples)


def name_tones(samples: np.ndarray) -> tuple[str, str]:
    power = np.abs(np.fft.rfft(samples, SAMPLE_RATE)) ** 2  # a bin for each Hz
    loudest = lambda tones: max(tones, key=lambda name: power[tones[name] - 150 : tones[name] + 150].sum())  # noqa: E731
    return loudest(WORDS), loudest(SPEAKERS)


# --- frames and phases ---


@pytest.mark.parametrize("mels", [40, 80])
def test_frames_become_a_sound_of_these_frames(mels: int):
    sound = make_sound("low", "bob", 0.3)
    frames = compute_frames(sound, mels)
    assert frames.shape == (30, mels) and frames.max() == 0 and frames.min() == FLOOR
    assert np.allclose(compute_frames(0.01 * sound, mels), frames, atol=0.05), "whatever its loudness"
    voiced = invert_frames(frames)
    assert voiced.shape == (4800,) and np.abs(voiced).max() == pytest.approx(PEAK)
    assert name_tones(voiced) == ("low", "bob")
    errors = (compute_frames(voiced, mels) - frames)[frames > -2]
    assert np.abs(errors - np.median(errors)).mean() < 0.15, "but for their loudness, the loud bands are as they were"


def test_silence_is_silent():
    frames = np.full((20, MELS), FLOOR, np.float32)
    frames[:10] = compute_frames(make_sound("low", "ann", 0.1), MELS)
    voiced = invert_frames(frames)
    assert np.abs(voiced[2400:]).max() < 1e-3 * np.abs(voiced[:1600]).max()
    assert not invert_frames(np.full((4, MELS), FLOOR, np.float32)).any()


def test_a_wav_file_is_cut_at_full_scale():
    with wave.open(io.BytesIO(encode_wav(np.array([0.0, 0.5, -2.0])))) as file:
        assert np.frombuffer(file.readframes(3), "<i2").tolist() == [0, 16383, -32767]


# --- nodes, edges, guidance ---


@pytest.fixture(scope="module")
def model() -> Any:
    torch.manual_seed(0)
    model = tts.build(TINY).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


@torch.no_grad()
def test_cached_and_guided_speech_equals_reading_all_again(model: Any):
    """Texts of unequal length share a batch; logits move away from those without the text."""
    for guidance in (1.0, 3.0):
        request = SpeakingRequest(input=["six", "three"], guidance=guidance, temperature=0.0)
        for text, frames in zip(request.texts, generate_frames(model, request), strict=True):
            prompts = [model.ids.encode(text), model.ids.encode(text, is_hidden=True)]
            assert model.drop_text(torch.tensor(prompts[0])).tolist() == prompts[1]
            codes: list[int] = []
            while len(prompts[0]) + len(codes) <= 40:
                conditional, blank = (model(torch.tensor([[*prompt, *codes]]))[0, -1] for prompt in prompts)
                code = int((blank + guidance * (conditional - blank)).argmax())
                if code == model.ids.end:
                    break
                codes.append(code)
            assert np.array_equal(frames, model.codebook[codes or [0]].numpy())


def test_guidance_of_0_ignores_the_text_and_a_seed_decides(model: Any):
    say = lambda **request: tts.predict(model, request)["results"]  # noqa: E731
    first, second = say(input=["six", "two"], guidance=0.0)
    assert first["wav"] == second["wav"] and (first["input"], second["input"]) == ("six", "two")
    samples, again = say(input="two", samples=2, seed=5), say(input=["six", "two"], samples=2, seed=5)
    assert samples == again[2:] and samples[0]["wav"] != samples[1]["wav"]


def test_what_is_predicted_are_frames_and_their_end(model: Any):
    batch, state = next(tts.batches(TINY, "val"))
    ids: PromptIds = model.ids
    for row, is_sound, frames in zip(batch["ids"], batch["is_sound"], batch["frames"], strict=True):
        n_prompt, n_sound = int(is_sound.int().argmax()), int(is_sound.sum())
        assert int(row[n_prompt - 1]) == ids.start and int(row[n_prompt + n_sound - 1]) == ids.end
        assert (row[n_prompt + n_sound :] == ids.blank).all() and (row[1 : n_prompt - 1] >= ids.first_token).all()
        assert not frames[~is_sound].any() and frames[is_sound].any()
    assert int(tts.loss_weight(batch)) == int(batch["is_sound"].sum()) and state["tokens"] == 0
    other = {name: value.clone() for name, value in batch.items()}
    other["frames"][:, -1] = 1.0  # of padding
    other["frames"][other["is_sound"].logical_not()] = -3.0
    assert torch.equal(tts.loss(model, batch), tts.loss(model, other))


# --- one's own recordings ---


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A table of two words of two speakers."""
    folder, lines = tmp_path_factory.mktemp("clips"), ["path,text,speaker,split"]
    for i in range(40):
        word, speaker = list(WORDS)[i % 2], list(SPEAKERS)[i // 2 % 2]
        (folder / f"{i}.wav").write_bytes(encode_wav(make_sound(word, speaker)))
        lines.append(f"{i}.wav,{word},{speaker},{'val' if i >= 32 else 'train'}")
    (folder / "clips.csv").write_text("\n".join(lines))
    return folder


@pytest.fixture(scope="module")
def run(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "run"
    sizes = ("--mels", MELS, "--codes", 24, "--model.dim", 32, "--model.n-layer", 2, "--model.n-head", 2)
    steps = ("--steps", 50, "--train.batch", 8, "--train.eval-every", 50, "--train.warmup", 5, "--train.lr", 0.02)
    flags = (*sizes, *steps, "--model.context", 32, "--device", "cpu", "--out", out, "--json")
    result = call("train", "tts", "--data", folder / "clips.csv", *flags).ok()
    assert result.json["val_loss"] < result.json["baselines"]["loss"]["pairs of tokens"], result.json
    return out


@pytest.mark.slow
def test_words_are_said_in_the_voice_that_is_asked_for(run: Path):
    model = api.load(run, "cpu")
    for word, speaker in (("low", "ann"), ("higher", "ann"), ("low", "bob"), ("higher", "bob")):
        (result,) = model.predict(word, speaker=speaker, temperature=0)["results"]
        assert read_sound(result) == (word, speaker) and 0.06 <= result["seconds"] <= 0.16


@pytest.mark.slow
def test_a_recording_is_continued_behind_its_text(run: Path, folder: Path):
    module, voice = api.load(run, "cpu").module, str(folder / "32.wav")
    frames = torch.from_numpy(compute_frames(read_audio(Path(voice)), MELS))
    pause = torch.full((GAP_FRAMES[0], MELS), FLOOR)
    request = SpeakingRequest(input="low", voice=voice, voice_text="low", temperature=0.0, guidance=1.0)
    module.ids = replace(module.ids, tokenizer=Characters("eghilorw "))  # as of clips that are joined
    prompt = [*module.ids.encode("low low"), *module.encode(torch.cat([frames, pause])).tolist()]
    (expected,) = continue_codes(module, [prompt], [0], request)
    assert np.array_equal(generate_frames(module, request)[0], module.codebook[expected or [0]].numpy())
    with refuses("voice and voice_text", "or neither"):
        SpeakingRequest(input="low", voice="a.wav")


@pytest.mark.slow
def test_clips_of_a_speaker_are_joined_as_far_as_they_fit(run: Path):
    config = replace(api.load(run, "cpu").config, max_clips=9, model=replace(TINY.model, context=64))
    data, rng, lengths = tts.load_utterances(config), np.random.default_rng(0), set[int]()
    for first in data.clips.split("train")[:12]:
        rows = tts.draw_clips(config, first, rng)
        assert rows[0] == first and len({data.speakers[i] for i in rows}) == 1
        frames, text = data.join(rows, rng)
        assert text.split() == [data.clips.texts[i] for i in rows]
        assert len(frames) + len(text) + 2 <= 64
        assert (frames == FLOOR).all(1).sum() >= GAP_FRAMES[0] * (len(rows) - 1)
        lengths.add(len(rows))
    assert max(lengths) > 1


def test_a_run_is_loaded_without_its_data_with_its_codebook_in_the_weights(run: Path):
    model = api.load(run, "cpu")
    names = {name: str(model.path / f"{name}.json") for name in ("voices", "tokenizer")}
    config = replace(model.config, data="gone", **names)
    assert torch.equal(tts.build(config).codebook, model.module.codebook) and model.module.codebook.any()
    with refuses("model.safetensors has no codebook of 9 frames"):
        tts.build(replace(config, codes=9))


def test_sounds_are_written_as_files(run: Path, tmp_path: Path):
    out = tmp_path / "a.wav"
    settings = ("--request", '{"speaker": "bob"}', "--temperature", 0)
    call("sample", run, "--prompt", "low", "--prompt", "higher", "--samples", 2, "--out", out, *settings).ok()
    with wave.open(str(out)) as file:
        assert file.getnframes() / SAMPLE_RATE > 3 * 0.4 + 4 * 0.06, "pauses between four sounds"
    result = call("predict", run, "low", "--speaker", "ann", "--out", tmp_path / "b.wav", "--json").ok()
    assert result.json["out"] == str(tmp_path / "b.wav")
    with wave.open(str(tmp_path / "b.wav")) as file:
        assert name_tones(np.frombuffer(file.readframes(file.getnframes()), "<i2").astype(float)) == ("low", "ann")
    facts = call("eval", run, "--scores", "--json").ok().json
    assert facts["end"] == 1 and facts["own_seconds"] == pytest.approx(facts["seconds"], abs=0.05)
    figures = json.loads((run / "figures.json").read_text())
    assert [figure["title"] for figure in figures] == ["Spoken and recorded", "The codebook"]


def test_the_first_folder_is_the_speaker(folder: Path, tmp_path: Path):
    for speaker in SPEAKERS:
        (tmp_path / speaker / "chapter").mkdir(parents=True)
        (tmp_path / speaker / "chapter" / "a.wav").write_bytes((folder / "0.wav").read_bytes())
        (tmp_path / speaker / "chapter" / "a.txt").write_text("low")
    assert sorted(entry.speaker for entry in list_entries(str(tmp_path))) == ["ann", "bob"]
    assert {entry.speaker for entry in list_entries(str(tmp_path / "ann"))} == {"chapter"}
    clips = tts.load_utterances(replace(TINY, data=str(tmp_path / "ann"), val_fraction=0.5))
    assert clips.speakers == ("",), "of a single speaker nobody is asked for"


def test_mistakes_are_one_line(run: Path, folder: Path, tmp_path: Path):
    assert_refused(call("sample", run, "--prompt", "low"), "--out sound.wav")
    assert_refused(call("sample", run, "--tokens", 3, "--out", "a.wav"), "--tokens is for texts", "makes sounds")
    assert_refused(call("predict", run, "low", "--speaker", "bod"), "of the speaker 'bod'", "'bob'")
    assert_refused(call("predict", run, "low!"), "'!'")
    assert_refused(call("predict", run, "low", "--samples", 5000), "samples is 5000")
    assert_refused(call("predict", run, "low", "--out", tmp_path / "none" / "a.wav"), "there is no folder")
    assert_refused(call("predict", run, "low" * 16), "text", "fill the context of 32 nodes")
    with refuses("voices: speakers is 3"):
        tts.load_voices('{"speakers": 3}')
    with refuses("no sound of the training is of the speaker 'ann'", "name none"):
        Voices().find("ann")
    flags = ("--data", folder / "clips.csv", "--out", tmp_path / "run", "--model.context", 13)
    assert_refused(call("train", "tts", *flags), "clips are longer than the context", "--model.context")
