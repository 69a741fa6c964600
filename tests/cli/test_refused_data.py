"""Images, sounds and episodes that cannot be used: on the command line each is one line, exit code 2, and no run."""

import io
import sys
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from anyformer import events
from anyformer.data.audio import features as audio
from anyformer.data.audio import read as clips
from anyformer.data.images import cache as album
from cli_kit import call, refused

RNG = np.random.default_rng(0)


def images(root: Path) -> Path:
    """Two class folders with four images each."""
    image = pytest.importorskip("PIL.Image", reason="images are decoded by Pillow: pip install 'anyformer[vision]'")
    for i in range(8):
        path = root / ("ant", "bee")[i % 2] / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        image.fromarray(RNG.integers(0, 256, (8, 8)).astype(np.uint8)).save(path)
    return root


def sounds(root: Path, text: str = "one") -> Path:
    """A table of eight sounds."""
    soundfile = pytest.importorskip("soundfile", reason="sound is read through it: pip install 'anyformer[audio]'")
    root.mkdir(parents=True, exist_ok=True)
    for i in range(8):
        soundfile.write(root / f"{i}.wav", 0.1 * RNG.standard_normal(3200), 16_000)
    lines = [f"{i}.wav,{text},{'val' if i < 2 else 'train'}" for i in range(8)]
    (root / "clips.csv").write_text("\n".join(["path,text,split", *lines]))
    return root / "clips.csv"


def cut_image(root: Path) -> Path:
    path = images(root) / "bee" / "3.png"
    path.write_bytes(path.read_bytes()[:60])
    return root


def empty_class(root: Path) -> Path:
    (images(root) / "cow").mkdir()
    return root


def one_class(root: Path) -> Path:
    for path in (images(root) / "bee").iterdir():
        path.unlink()
    (root / "bee").rmdir()
    return root


def one_label(root: Path) -> Path:
    root.mkdir()
    names = np.array(["cat", "dog"])
    np.savez(root / "a.npz", images=np.zeros((8, 8, 8), np.uint8), labels=np.zeros(8, int), classes=names)
    return root / "a.npz"


def cut_sound(root: Path) -> Path:
    table = sounds(root)
    (root / "3.wav").write_bytes((root / "3.wav").read_bytes()[:1000])
    return table


def rate_of_zero(root: Path) -> Path:
    table = sounds(root)
    raw = (root / "3.wav").read_bytes()
    (root / "3.wav").write_bytes(raw[:24] + bytes(4) + raw[28:])
    return table


def sound_that_is_no_number(root: Path) -> Path:
    table = sounds(root)
    sys.modules["soundfile"].write(root / "3.wav", np.full(3200, np.nan), 16_000, subtype="FLOAT")
    return table


def episodes(root: Path, **changes: np.ndarray) -> Path:
    root.mkdir()
    good = {"states": np.zeros((40, 2)), "actions": np.arange(40) % 2, "rewards": np.ones(40), "ends": [20, 40]}
    np.savez(root / "a.npz", **(good | changes))
    return root / "a.npz"


CASES: dict[str, tuple[str, Callable[[Path], Path], tuple[str, ...]]] = {
    "a truncated image": ("vision", cut_image, ("3.png", "damaged or cut off", "--skip-unreadable")),
    "a class folder without images": ("vision", empty_class, ("class folder", "cow", "holds no image")),
    "a folder with one class": ("vision", one_class, ("one class (ant)", "nothing to tell apart")),
    "labels of one class": ("vision", one_label, ("one class (cat)", "nothing to tell apart")),
    "a truncated sound": ("speech", cut_sound, ("3.wav", "cut short", "--skip-broken")),
    "a sample rate of zero": ("speech", rate_of_zero, ("3.wav",)),
    "a sound of NaN": ("speech", sound_that_is_no_number, ("3.wav", "no finite numbers")),
    "an empty transcript": ("speech", lambda root: sounds(root, ""), ("clips.csv, line 2", "text is empty")),
    "a reading of NaN": ("control", lambda p: episodes(p, states=np.full((40, 2), np.nan)), ("states of step 0",)),
    "an action below 0": ("control", lambda p: episodes(p, actions=np.arange(40) % 2 - 1), ("action -1 at step 0",)),
    "one action": (
        "control",
        lambda p: episodes(p, actions=np.zeros(40, int)),
        ("one action (0)", "nothing to choose"),
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_data_that_cannot_be_used_is_one_line(case: str, tmp_path: Path):
    recipe, make, parts = CASES[case]
    data, out = make(tmp_path / "data"), tmp_path / "run"
    refused(call("train", recipe, "--preset", "tiny", "--device", "cpu", "--data", data, "--out", out), *parts)
    assert not out.exists()


def test_an_environment_that_does_not_exist_is_one_line(tmp_path: Path):
    pytest.importorskip("gymnasium", reason="environments are gymnasium's: pip install 'anyformer[control]'")
    refused(call("rollout", "CartPol-v1"), "there is no environment 'CartPol-v1'", "did you mean 'CartPole-v1'")


@pytest.mark.parametrize(
    ("recipe", "make", "flag"), [("vision", cut_image, "unreadable"), ("speech", cut_sound, "broken")]
)
def test_what_is_left_out_on_request_is_counted(recipe: str, make: Callable, flag: str, tmp_path: Path):
    few = ("--preset", "tiny", "--device", "cpu", "--steps", 2, "--train.batch", 2, f"--skip-{flag}")
    said = call("train", recipe, *few, "--data", make(tmp_path / "data"), "--out", tmp_path / "run").well()
    assert "1 of the data left out" in said.err


def test_decoding_tells_how_far_it_is(tmp_path: Path):
    told: list[tuple[str, int, int]] = []
    with events.listening(lambda *step: told.append(step)):
        album.album(str(images(tmp_path / "images")), 8, 8, 1)
        clips.read(str(sounds(tmp_path / "sounds")), progress=events.progress)
    for what in ("checking images", "decoding images", "checking sounds", "decoding sounds"):
        assert (what, 8, 8) in told


# --- through a pipe ---


@pytest.mark.parametrize("recipe", ["vision", "speech"])
def test_a_file_comes_through_stdin(recipe: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    run, few = tmp_path / "run", ("--preset", "tiny", "--device", "cpu", "--steps", 2, "--train.batch", 2)
    call("train", recipe, *few, "--out", run).well()
    file = images(tmp_path / "d") / "ant" / "0.png" if recipe == "vision" else sounds(tmp_path / "d").with_name("0.wav")
    direct = call("predict", run, file, "--device", "cpu", "--json").well().json["results"]
    for content, name in ((file.read_bytes(), "-"), (f"{file}\n".encode(), str(file))):
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content)))
        piped = call("predict", run, "-", "--device", "cpu", "--json").well().json["results"]
        assert piped == [direct[0] | {"input": name}]
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"caf\xe9\n")))
    refused(call("predict", run, "-", "--device", "cpu"), "stdin is not UTF-8 at byte 3")


# --- memory ---


def test_a_folder_larger_than_memory_would_do(tmp_path: Path):
    """Decoding, measuring and drawing batches hold a few images at a time, whatever the folder holds."""
    image = pytest.importorskip("PIL.Image", reason="images are decoded by Pillow: pip install 'anyformer[vision]'")
    for i in range(60):
        path = tmp_path / ("ant", "bee")[i % 2] / f"{i}.jpg"
        path.parent.mkdir(exist_ok=True)
        image.new("RGB", (64, 64), (i, 0, 0)).save(path)
    tracemalloc.start()
    found = album.album(str(tmp_path), 512, 512, 3)
    batch = found.pixels[album.drawn(found.split("train"), 2, 1, 0)]
    peak, whole = tracemalloc.get_traced_memory()[1], found.pixels.nbytes
    tracemalloc.stop()
    assert whole == 60 * 512 * 512 * 3 and batch.nbytes * 30 == whole
    assert peak < whole / 5, f"{peak:,} bytes for a folder of {whole:,}"


def test_sounds_longer_than_memory_would_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Decoding holds a block of a file at a time, and clips are read from disk as they are needed."""
    soundfile = pytest.importorskip("soundfile", reason="sound is read through it: pip install 'anyformer[audio]'")
    monkeypatch.setattr(audio, "BLOCK", 1 << 14)
    for i in range(4):
        soundfile.write(tmp_path / f"{i}.wav", np.zeros(1_000_000), 16_000)
    (tmp_path / "clips.csv").write_text("path,text\n" + "\n".join(f"{i}.wav,one" for i in range(4)))
    tracemalloc.start()
    found = clips.read(str(tmp_path / "clips.csv"))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(found.samples) == 4_000_000 and peak < found.samples.nbytes / 3, f"{peak:,} bytes"
