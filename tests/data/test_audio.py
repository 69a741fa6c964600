"""Sound files, mel frames, tables of files: what comes in, and what is said of what cannot."""

import csv
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from anyformer.data.audio import features as audio
from anyformer.data.audio import read as clips
from anyformer.data.io import manifest
from anyformer.errors import InputError

soundfile = pytest.importorskip("soundfile", reason="sound files are read through it: pip install 'anyformer[audio]'")
pytest.importorskip("soxr", reason="sound is resampled through it: pip install 'anyformer[audio]'")


def noise(n: int, seed: int = 0) -> np.ndarray:
    return (0.1 * np.random.default_rng(seed).standard_normal(n)).astype(np.float32)


SOUNDS = {
    "noise": noise(50_000),
    "faint": noise(48_000) * 1e-3,
    "tone": (0.5 * np.sin(np.arange(80_000) * 0.3)).astype(np.float32),
    "silence": np.zeros(16_000, np.float32),
    "more than 30 s": noise(16_000 * 31),
    "an instant": noise(100),
}


@pytest.mark.parametrize("mels", [80, 128])
@pytest.mark.parametrize("name", SOUNDS)
def test_mel_frames_are_whispers(name: str, mels: int):
    transformers = pytest.importorskip("transformers", reason="the oracle of this test: pip install transformers")
    theirs = transformers.WhisperFeatureExtractor(feature_size=mels)
    sound = SOUNDS[name]
    want = theirs(sound, sampling_rate=16_000, return_tensors="np")["input_features"][0]
    got = audio.log_mel(sound, mels, 3000)
    assert got.shape == want.shape == (mels, 3000) and got.dtype == np.float32
    assert np.abs(got - want).max() <= 1e-4
    if name != "an instant":
        whole = sound[: len(sound) // 320 * 320]
        want = theirs(whole, sampling_rate=16_000, padding=False, truncation=False)["input_features"][0]
        assert np.abs(audio.log_mel(whole, mels) - want).max() <= 1e-4


def test_the_filters_have_equal_area_and_rising_centres():
    bank = audio.filters(80)
    assert bank.shape == (201, 80) and (bank >= 0).all()
    assert (np.diff(bank.argmax(0)) >= 0).all() and (bank.sum(0) > 0).all()


@pytest.mark.parametrize("samples", [1, 159, 320, 321, 5000])
def test_frames_are_even_in_number_and_lose_no_sound(samples: int):
    frames = audio.log_mel(noise(samples), 20).shape[1]
    assert frames % 2 == 0 and frames * audio.HOP >= samples > (frames - 2) * audio.HOP


@pytest.mark.parametrize("ending", ["wav", "flac"])
@pytest.mark.parametrize("rate", [8_000, 16_000, 44_100])
def test_files_of_any_rate_become_mono_at_16_khz(ending: str, rate: int, tmp_path: Path):
    wave = 0.5 * np.sin(2 * np.pi * 440 * np.arange(rate * 2) / rate)
    soundfile.write(tmp_path / f"a.{ending}", np.stack([wave, 0.5 * wave], axis=1), rate)
    got = audio.read(tmp_path / f"a.{ending}")
    want = 0.375 * np.sin(2 * np.pi * 440 * np.arange(len(got)) / audio.RATE)
    assert abs(len(got) - 2 * audio.RATE) <= 2 and got.dtype == np.float32
    assert np.abs(got - want)[200:-200].max() < 1e-2


def test_a_file_is_read_in_blocks_that_change_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    soundfile.write(tmp_path / "a.wav", noise(44_100), 44_100)
    at_once = audio.read(tmp_path / "a.wav")
    monkeypatch.setattr(audio, "BLOCK", 1000)
    assert len(list(audio.blocks(tmp_path / "a.wav"))) > 40
    assert np.abs(audio.read(tmp_path / "a.wav") - at_once).max() < 1e-5


def test_windows_lose_nothing_and_cut_where_it_is_quiet():
    sound = noise(100_000)
    sound[27_000:30_000] = 0

    def pieces() -> Iterator[np.ndarray]:
        yield from np.split(sound, 7_000 * np.arange(1, 15))

    found = list(audio.windows(pieces(), 32_000))
    assert np.array_equal(np.concatenate(found), sound) and max(map(len, found)) <= 32_000
    assert 27_000 <= len(found[0]) <= 30_000


def test_spec_augment_hides_bands_and_is_a_pure_function():
    mel = np.random.default_rng(0).standard_normal((80, 300)).astype(np.float32)
    before = mel.copy()
    first, again, other = (audio.spec_augment(mel, np.random.Philox(key=key)) for key in (1, 1, 2))
    assert np.array_equal(first, again) and not np.array_equal(first, other) and np.array_equal(mel, before)
    changed = first != mel
    rows, columns = changed.all(axis=1).sum(), changed.all(axis=0).sum()
    assert rows + columns > 0 and rows <= 2 * 12 and columns <= 2 * 45
    assert (first[changed] == mel.mean()).all()


def damaged(tmp_path: Path) -> dict[str, tuple[Path, str]]:
    soundfile.write(tmp_path / "a.wav", noise(8000), 8000)
    soundfile.write(tmp_path / "a.flac", noise(80_000), 8000)
    soundfile.write(tmp_path / "empty.wav", np.zeros(0), 8000)
    soundfile.write(tmp_path / "nan.wav", np.full(100, np.nan), 8000, subtype="FLOAT")
    (tmp_path / "text.wav").write_text("this is no sound")
    wav, flac = (tmp_path / "a.wav").read_bytes(), (tmp_path / "a.flac").read_bytes()
    (tmp_path / "cut.wav").write_bytes(wav[:5000])
    (tmp_path / "cut.flac").write_bytes(flac[: len(flac) // 2])
    (tmp_path / "rate.wav").write_bytes(wav[:24] + bytes(4) + wav[28:])
    says = {
        "cut.wav": "cut short, 4956 of 16000 bytes",
        "cut.flac": "cannot be read as sound",
        "empty.wav": "holds no sound",
        "nan.wav": "no finite numbers",
        "text.wav": "cannot be read as sound",
        "rate.wav": "cannot be read as sound|sample rate",
        "none.wav": "there is no such sound file",
    }
    return {name: (tmp_path / name, message) for name, message in says.items()}


@pytest.mark.parametrize("name", ["cut.wav", "cut.flac", "empty.wav", "nan.wav", "text.wav", "rate.wav", "none.wav"])
def test_a_sound_that_cannot_be_read_is_named_in_one_line(name: str, tmp_path: Path):
    path, message = damaged(tmp_path)[name]
    with pytest.raises(InputError, match=message) as error:
        audio.read(path)
    assert name in str(error.value) and "\n" not in str(error.value)


# --- tables ---


def table(tmp_path: Path, ending: str, rows: list[dict]) -> Path:
    path = tmp_path / f"clips.{ending}"
    if ending == "jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    else:
        with open(path, "w", newline="") as file:
            writer = csv.DictWriter(file, rows[0].keys(), delimiter="\t" if ending == "tsv" else ",")
            writer.writeheader()
            writer.writerows(rows)
    return path


def rows(tmp_path: Path, n: int = 6) -> list[dict]:
    for i in range(n):
        soundfile.write(tmp_path / f"{i}.wav", noise(3000 + 500 * i, i), 16_000)
    return [{"path": f"{i}.wav", "text": f'say "{i}", please', "split": "val" if i < 2 else "train"} for i in range(n)]


@pytest.mark.parametrize("ending", ["csv", "tsv", "jsonl"])
def test_a_table_of_sounds_becomes_clips(ending: str, tmp_path: Path):
    path = table(tmp_path, ending, rows(tmp_path))
    for _ in range(2):  # decoded, and from the cache
        found = clips.read(str(path))
        assert found.texts == [f'say "{i}", please' for i in range(6)]
        assert found.part("val").tolist() == [0, 1] and found.part("all").tolist() == list(range(6))
        for i in range(6):
            assert np.abs(found.sound(i) - audio.read(tmp_path / f"{i}.wav")).max() < 1e-4


def test_a_sound_that_changes_is_decoded_anew(tmp_path: Path):
    path = table(tmp_path, "csv", rows(tmp_path))
    before = clips.read(str(path))
    soundfile.write(tmp_path / "3.wav", noise(999), 16_000)
    after = clips.read(str(path))
    assert len(after.sound(3)) == 999 != len(before.sound(3)) and after.sha256 != before.sha256


def test_broken_files_are_left_out_only_when_asked_and_counted(tmp_path: Path):
    path = table(tmp_path, "csv", rows(tmp_path))
    (tmp_path / "3.wav").write_text("no sound")
    with pytest.raises(InputError, match=r"3\.wav: cannot be read as sound"):
        clips.read(str(path))
    found = clips.read(str(path), skip=True)
    assert found.skipped == 1 and len(found.texts) == 5 and 'say "3", please' not in found.texts
    assert np.abs(found.sound(4) - audio.read(tmp_path / "5.wav")).max() < 1e-4


BAD = {
    "no column": ([{"path": "a.wav", "transcript": "x"}], "there is no column 'text'"),
    "empty text": ([{"path": "a.wav", "text": " "}], "line 2: text is empty"),
    "strange split": ([{"path": "a.wav", "text": "x", "split": "trian"}], "did you mean 'train'"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_table_that_cannot_be_used_is_named_in_one_line(case: str, tmp_path: Path):
    content, message = BAD[case]
    path = table(tmp_path, "csv", content)
    with pytest.raises(InputError, match=message) as error:
        clips.read(str(path))
    assert "clips.csv" in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", "path,text\n", "holds no lines"),
        ("a.csv", "path,text\na.wav,one,two\n", "more columns than the header"),
        ("a.jsonl", "{'path'}\n", "line 1: not JSON"),
        ("a.jsonl", '{"path": "a.wav", "text": 3}\n', "text is 3; expected a text"),
        ("a.jsonl", "[1]\n", "list, not an object"),
        ("a.csv", b"path,text\n\xff\n", "not UTF-8"),
        ("a.xml", "<x/>", "not a table of files"),
    ],
)
def test_lines_that_mean_nothing_are_refused(name: str, content: str | bytes, message: str, tmp_path: Path):
    (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(InputError, match=message):
        manifest.read(tmp_path / name, ("path", "text"))
