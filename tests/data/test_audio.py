"""Sound files, mel spectrograms and tables of files: what is read, and the message for what cannot be."""

import csv
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from anyformer.data.audio import read
from anyformer.data.audio.batches import spec_augment
from anyformer.data.audio.datasets import load_audio, load_tones
from anyformer.data.audio.features import HOP_LENGTH, SAMPLE_RATE, log_mel, mel_filters
from anyformer.data.audio.read import read_audio, read_blocks, split_at_pauses
from anyformer.data.sampling import Dataset
from data_kit import refuses

soundfile = pytest.importorskip("soundfile", reason="sound files are read through it: pip install 'anyformer[audio]'")
pytest.importorskip("soxr", reason="sound is resampled through it: pip install 'anyformer[audio]'")


def noise(n: int, seed: int = 0) -> np.ndarray:
    return (0.1 * np.random.default_rng(seed).standard_normal(n)).astype(np.float32)


SOUNDS = {
    "faint noise": noise(48_000) * 1e-3,
    "tone": (0.5 * np.sin(np.arange(80_000) * 0.3)).astype(np.float32),
    "silence": np.zeros(16_000, np.float32),
    "more than 30 s": noise(16_000 * 31),
    "shorter than a window": noise(100),
}


@pytest.mark.parametrize(("name", "mels"), [*((name, 80) for name in SOUNDS), ("tone", 128)])
def test_mel_spectrogram_equals_whispers(name: str, mels: int):
    transformers = pytest.importorskip("transformers", reason="the oracle of this test: pip install transformers")
    extract = transformers.WhisperFeatureExtractor(feature_size=mels)
    samples = SOUNDS[name]
    expected = extract(samples, sampling_rate=16_000, return_tensors="np")["input_features"][0]
    mel = log_mel(samples, mels, 3000)
    assert mel.shape == expected.shape == (mels, 3000) and mel.dtype == np.float32
    assert np.abs(mel - expected).max() <= 1e-4
    if len(samples) >= 400:
        samples = samples[: len(samples) // 320 * 320]
        expected = extract(samples, sampling_rate=16_000, padding=False, truncation=False)["input_features"][0]
        assert np.abs(log_mel(samples, mels) - expected).max() <= 1e-4


def test_mel_filters_rise_in_frequency():
    filters = mel_filters(80)
    assert filters.shape == (201, 80) and (filters >= 0).all()
    assert (np.diff(filters.argmax(0)) >= 0).all() and (filters.sum(0) > 0).all()


@pytest.mark.parametrize("samples", [1, 320, 321, 5000])
def test_the_number_of_frames_is_even_and_covers_all_samples(samples: int):
    frames = log_mel(noise(samples), 20).shape[1]
    assert frames % 2 == 0 and frames * HOP_LENGTH >= samples > (frames - 2) * HOP_LENGTH


def test_spec_augment_masks_bands_and_is_a_pure_function():
    mel = np.random.default_rng(0).standard_normal((80, 300)).astype(np.float32)
    before = mel.copy()
    first, again, other = (spec_augment(mel, np.random.Philox(key=key)) for key in (1, 1, 2))
    assert np.array_equal(first, again) and not np.array_equal(first, other) and np.array_equal(mel, before)
    changed = first != mel
    rows, columns = changed.all(axis=1).sum(), changed.all(axis=0).sum()
    assert rows + columns > 0 and rows <= 2 * 12 and columns <= 2 * 45
    assert (first[changed] == mel.mean()).all()


# --- sound files ---


@pytest.mark.parametrize(("extension", "rate"), [("wav", 8_000), ("flac", 16_000), ("wav", 44_100)])
def test_files_of_any_rate_become_mono_at_16_khz(extension: str, rate: int, tmp_path: Path):
    wave = 0.5 * np.sin(2 * np.pi * 440 * np.arange(rate * 2) / rate)
    soundfile.write(tmp_path / f"a.{extension}", np.stack([wave, 0.5 * wave], axis=1), rate)
    samples = read_audio(tmp_path / f"a.{extension}")
    expected = 0.375 * np.sin(2 * np.pi * 440 * np.arange(len(samples)) / SAMPLE_RATE)
    assert abs(len(samples) - 2 * SAMPLE_RATE) <= 2 and samples.dtype == np.float32
    assert np.abs(samples - expected)[200:-200].max() < 1e-2


def test_reading_in_blocks_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    soundfile.write(tmp_path / "a.wav", noise(44_100), 44_100)
    at_once = read_audio(tmp_path / "a.wav")
    monkeypatch.setattr(read, "BLOCK_SAMPLES", 1000)
    assert len(list(read_blocks(tmp_path / "a.wav"))) > 40
    assert np.abs(read_audio(tmp_path / "a.wav") - at_once).max() < 1e-5
    with refuses("a.wav: longer than 0.5 s"):
        read_audio(tmp_path / "a.wav", max_seconds=0.5)


def test_pieces_lose_nothing_and_end_at_pauses():
    samples = noise(100_000)
    samples[27_000:30_000] = 0

    def blocks() -> Iterator[np.ndarray]:
        yield from np.split(samples, 7_000 * np.arange(1, 15))

    pieces = list(split_at_pauses(blocks(), 32_000))
    assert np.array_equal(np.concatenate(pieces), samples) and max(map(len, pieces)) <= 32_000
    assert 27_000 <= len(pieces[0]) <= 30_000


def test_bad_sound_files(tmp_path: Path):
    soundfile.write(tmp_path / "a.wav", noise(8000), 8000)
    soundfile.write(tmp_path / "a.flac", noise(80_000), 8000)
    soundfile.write(tmp_path / "empty.wav", np.zeros(0), 8000)
    soundfile.write(tmp_path / "nan.wav", np.full(100, np.nan), 8000, subtype="FLOAT")
    wav, flac = (tmp_path / "a.wav").read_bytes(), (tmp_path / "a.flac").read_bytes()
    (tmp_path / "cut.wav").write_bytes(wav[:5000])
    (tmp_path / "cut.flac").write_bytes(flac[: len(flac) // 2])
    (tmp_path / "rate.wav").write_bytes(wav[:24] + bytes(4) + wav[28:])
    for name, message in {
        "cut.wav": "cut short, 4956 of 16000 bytes",
        "cut.flac": "cannot be read as sound",
        "empty.wav": "holds no sound",
        "nan.wav": "not finite numbers",
        "rate.wav": "",  # one of two messages, by the version of libsndfile
        "none.wav": "there is no such file",
    }.items():
        with refuses(name, message):
            read_audio(tmp_path / name)


# --- tables of sound files ---


def write_table(path: Path, rows: list[dict]) -> Path:
    if path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    else:
        with open(path, "w", newline="") as file:
            writer = csv.DictWriter(file, rows[0].keys(), delimiter="\t" if path.suffix == ".tsv" else ",")
            writer.writeheader()
            writer.writerows(rows)
    return path


def write_sounds(folder: Path, n: int = 6) -> list[dict]:
    for i in range(n):
        soundfile.write(folder / f"{i}.wav", noise(3000 + 500 * i, i), 16_000)
    return [{"path": f"{i}.wav", "text": f'say "{i}", please', "split": "val" if i < 2 else "train"} for i in range(n)]


@pytest.mark.parametrize("extension", ["csv", "tsv", "jsonl"])
def test_a_table_of_sounds_becomes_clips(extension: str, tmp_path: Path):
    path = write_table(tmp_path / f"clips.{extension}", write_sounds(tmp_path))
    for load in (load_audio, load_audio.__wrapped__):  # decoded, and from the disk cache
        dataset = load(str(path))
        assert isinstance(dataset, Dataset) and dataset.texts == [f'say "{i}", please' for i in range(6)]
        assert dataset.split("val").tolist() == [0, 1] and dataset.split("all").tolist() == list(range(6))
        for i in range(6):
            assert np.abs(dataset.read_clip(i) - read_audio(tmp_path / f"{i}.wav")).max() < 1e-4


def test_the_split_of_a_clip_does_not_depend_on_the_others(tmp_path: Path):
    rows = [{k: v for k, v in row.items() if k != "split"} for row in write_sounds(tmp_path, 12)]
    every = load_audio(str(write_table(tmp_path / "a.csv", rows)), val_fraction=0.5)
    half = load_audio(str(write_table(tmp_path / "b.csv", rows[::-2])), val_fraction=0.5)
    val = {every.texts[i] for i in every.split("val")}
    assert 0 < len(val) < 12 and {half.texts[i] for i in half.split("val")} == val & set(half.texts)


def test_one_of_few_clips_is_for_validation(tmp_path: Path):
    rows = [{k: v for k, v in row.items() if k != "split"} for row in write_sounds(tmp_path, 6)]
    for order in (rows, rows[::-1]):
        dataset = load_audio(str(write_table(tmp_path / "a.csv", order)), val_fraction=1e-9)
        (val,) = (dataset.texts[i] for i in dataset.split("val"))
        assert val == min(order, key=lambda row: val != row["text"])["text"] and len(dataset.split("train")) == 5


def test_broken_files_are_left_out_on_request_and_counted(tmp_path: Path):
    path = write_table(tmp_path / "clips.csv", write_sounds(tmp_path))
    before = load_audio(str(path))
    (tmp_path / "3.wav").write_text("no sound")  # the table itself does not change
    load_audio_again = load_audio.__wrapped__
    with refuses("3.wav: cannot be read as sound", "--skip-broken"):
        load_audio_again(str(path))
    dataset = load_audio_again(str(path), skip_broken=True)
    assert dataset.skipped == 1 and len(dataset.texts) == 5 and 'say "3", please' not in dataset.texts
    assert np.abs(dataset.read_clip(4) - read_audio(tmp_path / "5.wav")).max() < 1e-4
    assert dataset.sha256 != before.sha256


def test_tones_have_every_digit_in_both_splits():
    dataset = load_tones()
    for split in ("train", "val"):
        assert len({dataset.texts[i] for i in dataset.split(split)}) == 10
    assert len(dataset.texts) == 240 and len(dataset.split("val")) == 40


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", "path,transcript\na.wav,x\n", "there is no column 'text'"),
        ("a.csv", "path,text\na.wav, \n", "line 2): fill them in"),
        ("a.csv", "path,text,split\na.wav,x,trian\n", "did you mean 'train'"),
        ("a.csv", "path,text\n", "holds no lines"),
        ("a.csv", "path,text\na.wav,one,two\n", "more columns than the header"),
        ("a.csv", b"path,text\n\xff\n", "not UTF-8"),
        ("a.jsonl", "{'path'}\n", "line 1: not JSON"),
        ("a.jsonl", '{"path": "a.wav", "text": 3}\n', "text is 3; expected a text"),
        ("a.jsonl", "[1]\n", "should hold a JSON object, found list"),
        ("a.xml", "<x/>", "not a table of files"),
    ],
)
def test_bad_tables(name: str, content: str | bytes, message: str, tmp_path: Path):
    (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    with refuses(name, message):
        load_audio(str(tmp_path / name))
