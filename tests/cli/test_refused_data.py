"""Images, sounds and episodes on the command line: what cannot be used is one line and exit code 2, without a run."""

import io
import sys
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from anyformer import events
from anyformer.data.audio import read as audio_files
from anyformer.data.audio.datasets import load_audio
from anyformer.data.images.cache import load_images
from anyformer.data.sampling import sample_indices
from cli_kit import assert_refused, call

RNG = np.random.default_rng(0)
SHORT = ("--preset", "tiny", "--device", "cpu", "--steps", 2, "--train.batch", 2)


def write_images(root: Path) -> Path:
    """Write two class folders with four images each."""
    image = pytest.importorskip("PIL.Image", reason="images are decoded by Pillow: pip install 'anyformer[vision]'")
    for i in range(8):
        path = root / ("ant", "bee")[i % 2] / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        image.fromarray(RNG.integers(0, 256, (8, 8)).astype(np.uint8)).save(path)
    return root


def write_sounds(root: Path, text: str = "one") -> Path:
    """Write a table of eight sounds."""
    soundfile = pytest.importorskip("soundfile", reason="sound is read through it: pip install 'anyformer[audio]'")
    root.mkdir(parents=True, exist_ok=True)
    for i in range(8):
        soundfile.write(root / f"{i}.wav", 0.1 * RNG.standard_normal(3200), 16_000)
    lines = [f"{i}.wav,{text},{'val' if i < 2 else 'train'}" for i in range(8)]
    (root / "clips.csv").write_text("\n".join(["path,text,split", *lines]))
    return root / "clips.csv"


def cut_image(root: Path) -> Path:
    path = write_images(root) / "bee" / "3.png"
    path.write_bytes(path.read_bytes()[:60])
    return root


def single_class(root: Path) -> Path:
    root.mkdir()
    names = np.array(["cat", "dog"])
    np.savez(root / "a.npz", images=np.zeros((8, 8, 8), np.uint8), labels=np.zeros(8, int), classes=names)
    return root / "a.npz"


def cut_sound(root: Path) -> Path:
    table = write_sounds(root)
    (root / "3.wav").write_bytes((root / "3.wav").read_bytes()[:1000])
    return table


def write_episodes(root: Path, **changes: np.ndarray) -> Path:
    root.mkdir()
    arrays = {"states": np.zeros((40, 2)), "actions": np.arange(40) % 2, "rewards": np.ones(40), "ends": [20, 40]}
    np.savez(root / "a.npz", **(arrays | changes))
    return root / "a.npz"


CASES: dict[str, tuple[str, Callable[[Path], Path], tuple[str, ...]]] = {
    "truncated image": ("vision", cut_image, ("3.png", "damaged or cut off", "--skip-unreadable")),
    "images of one class": ("vision", single_class, ("one class (cat)", "two or more")),
    "truncated sound": ("speech", cut_sound, ("3.wav", "cut short", "--skip-broken")),
    "empty transcript": (
        "speech",
        lambda root: write_sounds(root, ""),
        ("8 of 8 texts are empty", "clips.csv, line 2", "--empty skip"),
    ),
    "NaN state": ("control", lambda p: write_episodes(p, states=np.full((40, 2), np.nan)), ("states of step 0",)),
    "one action": ("control", lambda p: write_episodes(p, actions=np.zeros(40, int)), ("one action (0)",)),
}


@pytest.mark.parametrize("case", CASES)
def test_unusable_data_are_one_line(case: str, tmp_path: Path):
    recipe, make, parts = CASES[case]
    data, out = make(tmp_path / "data"), tmp_path / "run"
    assert_refused(call("train", recipe, *SHORT, "--data", data, "--out", out), *parts)
    assert not out.exists()


def test_an_unknown_environment_is_one_line():
    pytest.importorskip("gymnasium", reason="environments are gymnasium's: pip install 'anyformer[control]'")
    assert_refused(call("rollout", "CartPol-v1"), "there is no environment 'CartPol-v1'", "did you mean 'CartPole-v1'")


def test_data_left_out_on_request_are_counted(tmp_path: Path):
    flags = (*SHORT, "--skip-broken", "--data", cut_sound(tmp_path / "data"), "--out", tmp_path / "run")
    assert "1 of the data left out" in call("train", "speech", *flags).ok().err


def test_decoding_reports_progress(tmp_path: Path):
    steps: list[tuple[str, int, int]] = []
    with events.listen(lambda *step: steps.append(step)):
        load_images(str(write_images(tmp_path / "images")), 8, 8, 1)
        load_audio(str(write_sounds(tmp_path / "sounds")))
    for what in ("checking images", "decoding images", "checking sounds", "decoding sounds"):
        assert (what, 8, 8) in steps


# --- through a pipe ---


@pytest.mark.parametrize("recipe", ["vision", "speech"])
@pytest.mark.slow
def test_a_file_can_be_piped_in(recipe: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    run = tmp_path / "run"
    call("train", recipe, *SHORT, "--out", run).ok()
    folder = tmp_path / "d"
    file = write_images(folder) / "ant" / "0.png" if recipe == "vision" else write_sounds(folder).with_name("0.wav")
    direct = call("predict", run, file, "--device", "cpu", "--json").ok().json["results"]
    for content, name in ((file.read_bytes(), "-"), (f"{file}\n".encode(), str(file))):
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content)))
        piped = call("predict", run, "-", "--device", "cpu", "--json").ok().json["results"]
        assert piped == [direct[0] | {"input": name}]
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"caf\xe9\n")))
    assert_refused(call("predict", run, "-", "--device", "cpu"), "stdin is not UTF-8 at byte 3")
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"")))
    assert_refused(call("predict", run, "-", "--device", "cpu"), "nothing to answer: stdin holds no lines")
    (empty := tmp_path / "empty.txt").touch()
    assert_refused(call("predict", run, "--file", empty, "--device", "cpu"), "empty.txt holds no lines")


# --- memory ---


def test_a_folder_of_images_need_not_fit_in_memory(tmp_path: Path):
    """Decoding, measuring and drawing batches hold a few images at a time."""
    image = pytest.importorskip("PIL.Image", reason="images are decoded by Pillow: pip install 'anyformer[vision]'")
    for i in range(60):
        path = tmp_path / ("ant", "bee")[i % 2] / f"{i}.jpg"
        path.parent.mkdir(exist_ok=True)
        image.new("RGB", (64, 64), (i, 0, 0)).save(path)
    tracemalloc.start()
    dataset = load_images(str(tmp_path), 512, 512, 3)
    batch = dataset.pixels[sample_indices(dataset.split("train"), 2, 1, 0)]
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert dataset.pixels.nbytes == 60 * 512 * 512 * 3 == batch.nbytes * 30
    assert peak < dataset.pixels.nbytes / 5, f"{peak:,} bytes"


def test_sounds_need_not_fit_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Decoding holds a block of a file at a time."""
    soundfile = pytest.importorskip("soundfile", reason="sound is read through it: pip install 'anyformer[audio]'")
    monkeypatch.setattr(audio_files, "BLOCK_SAMPLES", 1 << 14)
    for i in range(4):
        soundfile.write(tmp_path / f"{i}.wav", np.zeros(1_000_000), 16_000)
    (tmp_path / "clips.csv").write_text("path,text\n" + "\n".join(f"{i}.wav,one" for i in range(4)))
    tracemalloc.start()
    dataset = load_audio(str(tmp_path / "clips.csv"))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(dataset.samples) == 4_000_000 and peak < dataset.samples.nbytes / 3, f"{peak:,} bytes"
