"""Sounds with their text: files decoded once into one array, clips drawn from it, joined, made into batches.

    fsdd          3,000 spoken digits; the official test part (the first five takes of each) is for validation
    tones         digits dialled on a telephone's keypad, made on the spot
    clips.csv     (tsv, jsonl) columns path and text, optionally split: train or val

    cache/sounds/HASH/samples.bin     16 kHz, little-endian int16, one clip after the other
    cache/sounds/HASH/clips.json      where each begins, in samples

Shapes: N samples, B batch, T frames, M mel bands, L tokens.
"""

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ...errors import InputError, nearest
from ..io import manifest
from ..io.download import appearing
from ..io.resolve import SETS, cache_dir, resolve
from . import features as audio

FORMAT = 1  # a change of what is stored makes a new number
WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
KEYS = {0: (941, 1336)} | {i + 1: ((697, 770, 852)[i // 3], (1209, 1336, 1477)[i % 3]) for i in range(9)}
TONES = "tones"
MOST_GAP = audio.RATE // 2  # samples of silence between two clips that are joined
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Entry:
    """A sound file and what is said in it."""

    where: str
    path: Path
    text: str
    val: bool | None = None


@dataclass(frozen=True, eq=False)
class Clips:
    """Clip i is samples[starts[i]:starts[i + 1]], 16 kHz, and says texts[i]."""

    samples: np.ndarray  # (N,) int16
    starts: np.ndarray
    texts: list[str]
    wheres: list[str]
    val: np.ndarray  # bool, for each clip
    sha256: str
    skipped: int = 0
    """Files that could not be read and were left out."""

    def sound(self, i: int) -> np.ndarray:
        return self.samples[self.starts[i] : self.starts[i + 1]].astype(np.float32) / 32768

    def part(self, split: str) -> np.ndarray:
        """The numbers of the clips of a part: "train", "val" or "all". Raises InputError where there are none."""
        parts = {"train": ~self.val, "val": self.val, "all": np.ones(len(self.val), bool)}
        if split not in parts:
            raise InputError(f"split '{split}': {nearest(split, parts)}")
        found = np.flatnonzero(parts[split])
        if not len(found):
            raise InputError(f"no clip of {len(self.val)} is left for {split}: bring more, or change --val-fraction")
        return found


def read(data: str, val_fraction: float = 0.1, skip: bool = False, progress: Progress | None = None) -> Clips:
    """The clips of a set or a table. `skip`: leave out files that cannot be read. Raises InputError."""
    if not 0 < val_fraction < 1:
        raise InputError(f"a validation fraction of {val_fraction} leaves a part without clips: 0 < fraction < 1")
    if data == TONES and not Path(data).exists():
        return tones()
    entries = listed(data)
    content = hashlib.sha256(f"{FORMAT} {skip}".encode())
    for i, entry in enumerate(entries, 1):
        content.update(f"\n{entry.text}\n{entry.val}\n{seal(entry.path)}".encode())
        if progress and (i % 50 == 0 or i == len(entries)):
            progress("checking sounds", i, len(entries))
    folder = cache_dir() / "sounds" / content.hexdigest()
    if not (folder / "clips.json").is_file():
        with appearing(folder) as new:
            decode(entries, new, skip, progress)
    kept = json.loads((folder / "clips.json").read_text("utf-8"))
    entries = [entries[i] for i in kept["clips"]]
    val = np.array([chosen(entry, val_fraction) if entry.val is None else entry.val for entry in entries])
    samples = np.memmap(folder / "samples.bin", np.dtype("<i2"), "r")
    texts, wheres = [entry.text for entry in entries], [entry.where for entry in entries]
    starts = np.array(kept["starts"], np.int64)
    return Clips(samples, starts, texts, wheres, val, content.hexdigest(), kept["skipped"])


def listed(data: str) -> list[Entry]:
    """Every sound with its text. Raises InputError."""
    path = Path(data).expanduser()
    if path.is_file():
        lines = manifest.read(path, ("path", "text"), ("split",))
        return [Entry(line.where, path.parent / line["path"], line["text"], side(line)) for line in lines]
    if data == "fsdd":
        names = [(file, *file.stem.split("_")) for file in resolve(data)]  # DIGIT_SPEAKER_TAKE.wav
        return [Entry(str(f), f, WORDS[int(digit)], int(take) < 5) for f, digit, _, take in names]
    if path.is_dir() or path.suffix or not data:
        raise InputError(f"data '{data}': expected a table of files: a csv, tsv or jsonl with columns path and text")
    sounds = [TONES, *(name for name, found in SETS.items() if found.about.endswith("sounds"))]
    raise InputError(f"data '{data}': no such table or set of sounds: {nearest(data, sounds)}")


def side(line: manifest.Line) -> bool | None:
    split = line["split"].lower()
    known = {"": None, "train": False, "val": True, "valid": True, "validation": True, "dev": True, "test": True}
    if split not in known:
        raise InputError(f"{line.where}: split is {split!r}: {nearest(split, list(known)[1:])}")
    return known[split]


def chosen(entry: Entry, fraction: float) -> bool:
    """By a hash of the file's name and its text: a clip is always on the same side, whatever the order."""
    draw = hashlib.sha256(f"{entry.path.name}\n{entry.text}".encode()).digest()[:8]
    return int.from_bytes(draw, "big") < fraction * (1 << 64)


def seal(path: Path) -> str:
    """sha256 of a file; of nothing, where it cannot be read: decoding will say why."""
    digest = hashlib.sha256()
    if path.is_file():
        with open(path, "rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()


def decode(entries: list[Entry], folder: Path, skip: bool, progress: Progress | None) -> None:
    """All sounds into one file, a block at a time, so that any amount fits into memory."""
    starts, kept = [0], []
    with open(folder / "samples.bin", "wb") as file:
        for i, entry in enumerate(entries):
            try:
                for block in audio.blocks(entry.path):
                    file.write((np.clip(block, -1, 32767 / 32768) * 32768).round().astype("<i2").tobytes())
            except InputError as error:
                if not skip:
                    raise InputError(f"{error}; to leave such files out: --skip-broken") from None
                file.truncate(2 * starts[-1])
                file.seek(2 * starts[-1])
                continue
            kept.append(i)
            starts.append(file.tell() // 2)
            if progress and i % 50 == 0:
                progress("decoding sounds", i, len(entries))
    if not kept:
        raise InputError(f"none of {len(entries)} sound files can be read, the first is {entries[0].path}")
    if progress:
        progress("decoding sounds", len(entries), len(entries))
    told = {"clips": kept, "starts": starts, "skipped": len(entries) - len(kept)}
    (folder / "clips.json").write_text(json.dumps(told), "utf-8")


def tones(takes: int = 24) -> Clips:
    """Every key some times, 60 to 140 ms long and of unlike loudness, in noise: always the same ones. The last sixth
    of the takes is for validation."""
    words = np.random.Philox(key=0).random_raw(10 * takes * 3)
    sounds = [tone(i % 10, *words[3 * i : 3 * i + 3].tolist()) for i in range(10 * takes)]
    samples = np.concatenate(sounds)
    starts = np.cumsum([0, *map(len, sounds)])
    texts = [WORDS[i % 10] for i in range(10 * takes)]
    val = np.arange(10 * takes) // 10 >= takes - takes // 6
    wheres = [f"tone {i}" for i in range(10 * takes)]
    return Clips(samples, starts, texts, wheres, val, hashlib.sha256(samples.tobytes()).hexdigest())


def tone(digit: int, length: int, loud: int, key: int) -> np.ndarray:
    """The two frequencies of a key (ITU-T Q.23), the rest drawn by three random words: (N,) int16"""
    t = np.arange(audio.RATE * (60 + length % 81) // 1000) / audio.RATE
    wave = sum(np.sin(2 * np.pi * frequency * t) for frequency in KEYS[digit])
    noise = np.random.Philox(key=key).random_raw(len(t)).astype(np.float64) / 2**63 - 1
    return ((wave * (2000 + loud % 8000) + 200 * noise).round()).astype(np.int16)


def joined(clips: Clips, which: np.ndarray, rng: np.random.Philox) -> tuple[np.ndarray, str]:
    """Clips in a row, each up to 6 dB softer or louder, up to half a second of silence before, between and after."""
    words = rng.random_raw(2 * len(which) + 1).tolist()
    gaps = [np.zeros(word % MOST_GAP, np.float32) for word in words[: len(which) + 1]]
    parts = [gaps[0]]
    for i, gap, word in zip(which, gaps[1:], words[len(which) + 1 :]):
        parts += [clips.sound(i) * 10 ** ((word % 1201 - 600) / 2000), gap]
    return np.concatenate(parts), " ".join(clips.texts[i] for i in which)
