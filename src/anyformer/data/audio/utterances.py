"""Texts with a speaker and the frames of their sound: what a model of speech learns to say.

Shapes: N samples, T frames, M mel bands, K entries of a codebook.
"""

import hashlib
import json
from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np

from ...errors import InputError, suggest
from ...parsing import parse_dataclass
from ..codebook import find_nearest, fit_codebook
from ..io.checks import load_json
from ..sampling import sample_evenly
from ..tokenizers.base import Tokenizer
from .datasets import AudioDataset
from .vocoder import FLOOR, compute_frames

CODEBOOK_CLIPS, SCORED_CLIPS = 600, 100  # of a split, that a codebook is fitted to, and measured on
MAX_SPEAKERS, MAX_FILE_BYTES = 100_000, 16 << 20
GAP_FRAMES = (4, 20)  # between two clips that are joined: at least, and below


@dataclass(frozen=True)
class Voices:
    """Who can speak, and what may be said to show a model with."""

    speakers: tuple[str, ...] = ()
    """The speaker at index i has the number i + 1; 0 is anyone."""
    examples: tuple[str, ...] = ()
    """Texts of the training."""

    def __post_init__(self) -> None:
        if len(self.speakers) > MAX_SPEAKERS:
            raise InputError(f"the sounds have {len(self.speakers):,} speakers: the limit is {MAX_SPEAKERS:,}")

    def find(self, speaker: str) -> int:
        """Return the number of a speaker. Raises InputError."""
        if speaker and speaker not in self.speakers:
            hint = suggest(speaker, self.speakers) if self.speakers else "the sounds of the training name none"
            raise InputError(f"no sound of the training is of the speaker '{speaker}': {hint}")
        return self.speakers.index(speaker) + 1 if speaker else 0

    def to_json(self) -> str:
        return json.dumps({"speakers": self.speakers, "examples": self.examples}, ensure_ascii=False)


def load_voices(text: str) -> Voices:
    """Load a voices.json: its path, or its content. Raises InputError."""
    return parse_dataclass(Voices, load_json(text, "voices", MAX_FILE_BYTES), "voices")


@dataclass(frozen=True)
class PromptIds:
    """The ids of a model that speaks: those of frames come first, then the end, a blank in place of a speaker or a text
    that is not told, a start, the speakers, and the tokens of texts."""

    codes: int
    tokenizer: Tokenizer
    voices: Voices
    padded_vocab: int = 0

    @property
    def end(self) -> int:
        return self.codes

    @property
    def blank(self) -> int:
        return self.codes + 1

    @property
    def start(self) -> int:
        return self.codes + 2

    @property
    def first_token(self) -> int:
        return self.start + 1 + len(self.voices.speakers)

    @property
    def size(self) -> int:
        return self.first_token + max(self.tokenizer.vocab_size, self.padded_vocab)

    def encode(self, text: str, speaker: str = "", is_hidden: bool = False) -> list[int]:
        """Return the ids of a speaker, of a text, and the start of its sound; hidden ones are blanks. Raises
        InputError."""
        number = self.voices.find(speaker)
        ids = [self.start + number if number else self.blank]
        ids += (self.tokenizer.encode(text) + self.first_token).tolist()
        return [*([self.blank] * len(ids) if is_hidden else ids), self.start]


@dataclass(frozen=True, eq=False)
class Utterances:
    """Clips of speech as frames of `mels` bands."""

    clips: AudioDataset
    mels: int

    @cached_property
    def speakers(self) -> tuple[str, ...]:
        """The speaker of each clip; nobody where all clips are of the same one."""
        names = self.clips.speakers
        return names if len(set(names)) > 1 else ("",) * len(self.clips.texts)

    @cached_property
    def sha256(self) -> str:
        """A hash of clips, texts and speakers."""
        names = json.dumps(self.speakers) if any(self.speakers) else ""
        return hashlib.sha256((self.clips.sha256 + names).encode()).hexdigest()

    def fit_voices(self, n_examples: int = 4) -> Voices:
        """Return the speakers and a few texts of the training split."""
        rows = self.clips.split("train")
        texts = sorted({self.clips.texts[i] for i in rows}, key=lambda text: (len(text), text))
        examples = sample_evenly(np.array(texts, object), n_examples).tolist()
        return Voices(tuple(sorted({self.speakers[i] for i in rows} - {""})), tuple(examples))

    def read_frames(self, i: int) -> np.ndarray:
        """Return the frames of clip i: (T, M)"""
        return compute_frames(self.clips.read_clip(i), self.mels)

    def join(self, rows: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, str]:
        """Return the frames of clips that are joined, with silence between them, and their texts."""
        frames = [self.read_frames(rows[0])]
        for i in rows[1:]:
            frames += [np.full((int(rng.integers(*GAP_FRAMES)), self.mels), FLOOR, np.float32), self.read_frames(i)]
        return np.concatenate(frames), " ".join(self.clips.texts[i] for i in rows)

    @cached_property
    def training_rows(self) -> dict[str, np.ndarray]:
        """The clips of the training split of each speaker."""
        rows = self.clips.split("train")
        names = np.array([self.speakers[i] for i in rows], object)
        return {name: rows[names == name] for name in sorted(set(names))}

    def stack_frames(self, split: str, count: int) -> np.ndarray:
        """Return the frames of up to `count` clips of a split, one after the other: (T, M)"""
        return np.concatenate([self.read_frames(i) for i in sample_evenly(self.clips.split(split), count)])

    def fit_codebook(self, size: int) -> np.ndarray:
        """Return the codebook of frames of the training split, fitted once: (K, M) float32"""
        return _fit_codebook(self, size)

    def measure_codebook(self, centers: np.ndarray) -> float:
        """Return what a codebook (K, M) leaves out of the frames of the validation split: the root of the mean squared
        error, in powers of ten of a band."""
        frames = self.stack_frames("val", SCORED_CLIPS)
        return float(np.sqrt(((frames - centers[find_nearest(frames, centers)]) ** 2).mean()))


@lru_cache(4)
def _fit_codebook(utterances: Utterances, size: int) -> np.ndarray:
    return fit_codebook(utterances.stack_frames("train", CODEBOOK_CLIPS), size)
