"""Sounds with transcripts, from a table of files or a named set, decoded once into the disk cache.

    fsdd          3,000 spoken digits; the official test part (the first five takes of each) is for validation
    tones         digits dialed on a telephone keypad, generated
    clips.csv     (tsv, jsonl, json) columns path and text, or others that are named, optionally split: train or val,
                  and speaker
    folder        a text file beside each sound, a.wav and a.txt; or lines "NAME text" in *.trans.txt, as in
                  LibriSpeech; the first folder below it is the speaker

    cache/sounds/HASH/samples.bin     16 kHz, little-endian int16, one clip after the other
    cache/sounds/HASH/clips.json      where each clip starts, in samples

The samples are memory-mapped, so that a set larger than memory can be trained on.
"""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ...errors import InputError, suggest
from ...events import report_progress
from ..io.archives import unpack_archive
from ..io.cache import build_cached, cache_by_files, cache_dir, data_files
from ..io.checks import sha256_file
from ..io.file_index import FileIndex, list_files
from ..io.files import read_lines
from ..io.manifest import read_manifest, split_columns
from ..io.resolve import resolve
from ..sampling import parse_split, select_split, split_by_mask
from ..unusable import DuplicatePolicy, EmptyPolicy, check_empty, select_distinct
from .features import SAMPLE_RATE
from .read import AUDIO_EXTENSIONS, read_blocks

FORMAT_VERSION = 1  # to be raised when the stored content changes
DIGIT_WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
KEYPAD_HZ = {0: (941, 1336)} | {i + 1: ((697, 770, 852)[i // 3], (1209, 1336, 1477)[i % 3]) for i in range(9)}
NAMED_SETS = ("tones", "fsdd")
COLUMNS = "path,text"  # of a table
TEXT_EXTENSIONS = (".txt", ".lab")  # of a text beside its sound
EXPECTED = "expected a table of files with columns path and text (csv, tsv, jsonl), or a folder of sounds with texts"


class AudioEntry(NamedTuple):
    """A sound file with its transcript."""

    place: str  # where the data list it, for messages
    path: Path
    text: str
    is_val: bool | None  # None: the data name no split
    speaker: str = ""


@dataclass(frozen=True, eq=False)
class AudioDataset:
    """Clips with transcripts: clip i is samples[starts[i]:starts[i + 1]] and its text is texts[i]."""

    samples: np.ndarray  # (N,) int16 at 16 kHz
    starts: np.ndarray
    texts: list[str]
    places: list[str]  # where the data list each clip, for messages
    is_val: np.ndarray  # bool, for each clip
    sha256: str  # of the content
    skipped: int = 0  # files that could not be read
    paths: tuple[Path, ...] = ()  # the file of each clip; none where they are generated
    speakers: tuple[str, ...] = ()  # of each clip; none where they are generated

    def read_clip(self, i: int) -> np.ndarray:
        """Return the samples of clip i, float32 between -1 and 1."""
        return self.samples[self.starts[i] : self.starts[i + 1]].astype(np.float32) / 32768

    def split(self, name: str) -> np.ndarray:
        """Return the indices of the clips of "train", "val" or "all". Raises InputError where there are none."""
        indices = select_split(name, split_by_mask(self.is_val))
        if not len(indices):
            raise InputError(f"no clip of {len(self.is_val)} is left for {name}: add clips, or change --val-fraction")
        return indices


@cache_by_files(lambda data, *_, **__: data_files(data))
def load_audio(
    data: str,
    val_fraction: float = 0.1,
    skip_broken: bool = False,
    empty: EmptyPolicy = "few",
    columns: str = COLUMNS,
    duplicates: DuplicatePolicy = "keep",
) -> AudioDataset:
    """Load the clips of a table of files, of a folder or of a named set. Raises InputError.

    Where the data name no split, `val_fraction` of the clips are for validation. `skip_broken`: leave out broken files.
    `empty`: what becomes of clips without a text. `columns`: the names of a table's columns of the sound and its text,
    with a comma between. `duplicates`: what becomes of entries that repeat a file and its text.
    """
    if data == "tones" and not Path(data).exists():
        return load_tones()
    entries = list_entries(data, empty, columns, duplicates)
    content = hash_entries(entries, skip_broken)
    folder = cache_dir() / "sounds" / content
    stored = build_cached(folder, "clips.json", lambda new: decode_entries(entries, new, skip_broken))
    entries = [entries[i] for i in stored["clips"]]
    is_val = select_validation(entries, val_fraction)
    samples, starts = np.memmap(folder / "samples.bin", np.dtype("<i2"), "r"), np.array(stored["starts"], np.int64)
    texts, places = [entry.text for entry in entries], [entry.place for entry in entries]
    paths, speakers = tuple(entry.path.absolute() for entry in entries), tuple(entry.speaker for entry in entries)
    return AudioDataset(samples, starts, texts, places, is_val, content, stored["skipped"], paths, speakers)


def list_entries(
    data: str, empty: EmptyPolicy = "few", columns: str = COLUMNS, duplicates: DuplicatePolicy = "keep"
) -> list[AudioEntry]:
    """List the sound files of a table, of a folder or of a named set. Raises InputError."""
    path = unpack_archive(Path(data).expanduser())
    if data == "fsdd" and not path.exists():
        names = [(file, *file.stem.split("_")) for file in resolve(data)]  # DIGIT_SPEAKER_TAKE.wav
        return [AudioEntry(str(f), f, DIGIT_WORDS[int(digit)], int(take) < 5, who) for f, digit, who, take in names]
    if path.is_dir():
        entries = list_folder(path)
    elif path.is_file():
        entries = list_table(path, split_columns(columns, COLUMNS))
    elif path.suffix or not data:
        raise InputError(f"data '{data}': there is no such file: {EXPECTED}")
    else:
        raise InputError(f"data '{data}': no such table or set of sounds: {suggest(data, NAMED_SETS)}")
    check_empty([entry.place for entry in entries if not entry.text], len(entries), empty, "texts are empty")
    entries = [entry for entry in entries if entry.text]
    return select_distinct(entries, lambda entry: (entry.path, entry.text), duplicates, f"data '{data}'", "clips")


def list_table(path: Path, columns: tuple[str, ...]) -> list[AudioEntry]:
    entries, index, (name, text) = [], FileIndex(path.parent, AUDIO_EXTENSIONS), columns
    for where, row in read_manifest(path, columns, ("split", "speaker"), (text,), ("speaker",)):
        is_val = parse_split(row["split"], f"{where}: split") if row["split"] else None
        entries.append(AudioEntry(where, index.find(row[name]), row[text], is_val, row["speaker"]))
    return entries


def list_folder(folder: Path) -> list[AudioEntry]:
    """List the sounds of a folder that have a text: in a file beside them, or in a list of lines "NAME text"."""
    lists = list_files(folder, (".trans.txt",))
    texts = {
        (path.parent / name).with_suffix(""): (where, text.strip())
        for path in lists
        for where, line in read_lines(path)
        for name, _, text in [line.strip().partition(" ")]
    }
    entries: list[AudioEntry] = []
    for sound in list_files(folder, AUDIO_EXTENSIONS):
        beside = [path for path in map(sound.with_suffix, TEXT_EXTENSIONS) if path.is_file()]
        where, text = texts.get(sound.with_suffix(""), (str(sound), None))
        if text is None and beside:
            where, text = str(beside[0]), " ".join(line.strip() for _, line in read_lines(beside[0]))
        if text is not None:
            *folders, _ = sound.relative_to(folder).parts
            entries.append(AudioEntry(where, sound, text, None, folders[0] if folders else ""))
    if not entries:
        raise InputError(f"data '{folder}' has no sounds with a text each: {EXPECTED}")
    return entries


def hash_entries(entries: list[AudioEntry], skip_broken: bool) -> str:
    """Hash the content of all files and their texts. A missing file counts as empty: decoding reports it."""
    content = hashlib.sha256(f"{FORMAT_VERSION} {skip_broken}".encode())
    for i, entry in enumerate(entries, 1):
        file_hash = sha256_file(*[entry.path] if entry.path.is_file() else [])
        content.update(f"\n{entry.text}\n{entry.is_val}\n{file_hash}".encode())
        if i % 50 == 0 or i == len(entries):
            report_progress("checking sounds", i, len(entries))
    return content.hexdigest()


def select_validation(entries: list[AudioEntry], fraction: float) -> np.ndarray:
    """Return which clips are for validation, (N,) bool: as the data say, or by a hash of file name and text, whatever
    their order; where the data say nothing, at least one of several."""
    hashes = [hash_entry(entry) for entry in entries]
    is_val = np.array([h < fraction if e.is_val is None else e.is_val for e, h in zip(entries, hashes, strict=True)])
    if len(entries) > 1 and fraction > 0 and not is_val.any() and all(entry.is_val is None for entry in entries):
        is_val[np.argmin(hashes)] = True
    return is_val


def hash_entry(entry: AudioEntry) -> float:
    """Return a number from 0 to 1 that depends on file name and text alone."""
    digest = hashlib.sha256(f"{entry.path.name}\n{entry.text}".encode()).digest()[:8]
    return int.from_bytes(digest, "big") / (1 << 64)


def decode_entries(entries: list[AudioEntry], folder: Path, skip_broken: bool) -> dict[str, Any]:
    """Decode all sounds into one file, a block at a time to bound memory. Returns what clips.json holds."""
    starts, readable = [0], []
    with open(folder / "samples.bin", "wb") as file:
        for i, entry in enumerate(entries):
            try:
                for block in read_blocks(entry.path):
                    file.write((np.clip(block, -1, 32767 / 32768) * 32768).round().astype("<i2").tobytes())
            except InputError as error:
                if not skip_broken:
                    raise InputError(f"{error}; to leave such files out: --skip-broken") from None
                file.truncate(2 * starts[-1])
                file.seek(2 * starts[-1])
                continue
            readable.append(i)
            starts.append(file.tell() // 2)
            if i % 50 == 0:
                report_progress("decoding sounds", i, len(entries))
    if not readable:
        raise InputError(f"none of {len(entries)} sound files can be read, the first is {entries[0].path}")
    report_progress("decoding sounds", len(entries), len(entries))
    return {"clips": readable, "starts": starts, "skipped": len(entries) - len(readable)}


def load_tones() -> AudioDataset:
    """Generate every key 24 times, 60 to 140 ms long, at various levels, in noise; the last four are "val"."""
    digits, takes = np.tile(np.arange(10), 24), np.repeat(np.arange(24), 10)
    words = np.random.Philox(key=0).random_raw((240, 3)).tolist()
    clips = [generate_tone(digit, *row) for digit, row in zip(digits.tolist(), words, strict=True)]
    samples, starts = np.concatenate(clips), np.cumsum([0, *map(len, clips)])
    texts, places = [DIGIT_WORDS[digit] for digit in digits], [f"tone {i}" for i in range(len(clips))]
    return AudioDataset(samples, starts, texts, places, takes >= 20, hashlib.sha256(samples.tobytes()).hexdigest())


def generate_tone(digit: int, length: int, level: int, key: int) -> np.ndarray:
    """Generate the two tones of a key (ITU-T Q.23), with length, level and noise from random words: (N,) int16."""
    t = np.arange(SAMPLE_RATE * (60 + length % 81) // 1000) / SAMPLE_RATE
    wave = sum(np.sin(2 * np.pi * frequency * t) for frequency in KEYPAD_HZ[digit])
    noise = np.random.Philox(key=key).random_raw(len(t)).astype(np.float64) / 2**63 - 1
    return ((wave * (2000 + level % 8000) + 200 * noise).round()).astype(np.int16)
