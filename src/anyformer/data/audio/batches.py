"""Clips and their transcripts to batches. Pure functions: an example depends on its random generator alone.

Shapes: N samples, B batch, T frames, M mel bands, L tokens.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ...errors import InputError
from ..text.batches import IGNORE_INDEX
from ..tokenizers.base import Tokenizer
from .datasets import AudioDataset
from .features import HOP_LENGTH, SAMPLE_RATE, log_mel

MAX_GAP = SAMPLE_RATE // 2  # samples of silence between two clips that are joined


@dataclass(frozen=True)
class ExampleSpec:
    """What a model takes, and how an example is made for it."""

    mels: int
    max_nodes: int  # of a sound, in pairs of frames
    max_tokens: int  # of a text, including its prompt
    min_clips: int = 1  # that are joined into one example
    max_clips: int = 1
    with_gaps: bool = False  # silence surrounds the clips, even a single one
    pad_to_context: bool = False  # every sound is padded with silence to max_nodes
    augment: bool = False
    prompt: tuple[int, ...] = ()  # tokens before every text
    end: int | None = None

    @property
    def max_frames(self) -> int:
        return 2 * self.max_nodes


def build_example(
    spec: ExampleSpec,
    dataset: AudioDataset,
    indices: np.ndarray,
    tokenizer: Tokenizer,
    rng: np.random.Philox,
    first: int | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Build an example: its mel spectrogram (M, T) and the token ids of its text (L,). Raises InputError.

    The clips are drawn from `indices`, the first one is indices[first] if given. Where several clips with their gaps
    are too long, fewer are joined.
    """
    size, *words = rng.random_raw(spec.max_clips + 1).tolist()
    count = spec.min_clips + size % (spec.max_clips - spec.min_clips + 1)
    clips = indices[[word % len(indices) for word in words[:count]]]
    if first is not None:
        clips[0] = indices[first]
    samples, text = dataset.read_clip(clips[0]), dataset.texts[clips[0]]
    for n in range(len(clips), 0, -1) if spec.with_gaps else ():
        joined, joined_text = join_clips(dataset, clips[:n], rng)
        if len(joined) <= spec.max_frames * HOP_LENGTH:
            samples, text = joined, joined_text
            break
    place = dataset.places[clips[0]]
    try:
        ids = tokenizer.encode(text)
    except InputError as error:
        raise InputError(f"{place}: {error}") from None
    nodes, context = -(-len(samples) // (2 * HOP_LENGTH)), len(ids) + len(spec.prompt)
    if nodes > spec.max_nodes:
        seconds, limit = len(samples) / SAMPLE_RATE, spec.max_frames * HOP_LENGTH / SAMPLE_RATE
        lengths = f"{seconds:.1f} s long, the limit is {limit:g} s"
        raise InputError(f"{place}: {lengths}: cut it, or raise --encoder.context to {nodes}")
    if context > spec.max_tokens:
        raise InputError(f"{place}: a text of {len(ids)} tokens: shorten it, or raise --decoder.context to {context}")
    mel = log_mel(samples, spec.mels, spec.max_frames if spec.pad_to_context else None)
    return (spec_augment(mel, rng) if spec.augment else mel), ids


def join_clips(dataset: AudioDataset, clips: np.ndarray, rng: np.random.Philox) -> tuple[np.ndarray, str]:
    """Join clips, each at up to 6 dB more or less, with up to half a second of silence before, between and after."""
    words = rng.random_raw(2 * len(clips) + 1).tolist()
    gaps = [np.zeros(word % MAX_GAP, np.float32) for word in words[: len(clips) + 1]]
    pieces = [gaps[0]]
    for i, gap, word in zip(clips, gaps[1:], words[len(clips) + 1 :]):
        pieces += [dataset.read_clip(i) * 10 ** ((word % 1201 - 600) / 2000), gap]
    return np.concatenate(pieces), " ".join(dataset.texts[i] for i in clips)


def spec_augment(mel: np.ndarray, rng: np.random.Philox) -> np.ndarray:
    """Set two bands of time and two of frequency, each up to 15 % of its axis, to the mean (SpecAugment 1904.08779)."""
    masked, mean = mel.copy(), mel.mean()
    words = iter(rng.random_raw(8).tolist())
    for axis in (0, 1, 0, 1):
        size = mel.shape[axis]
        width = next(words) % (int(0.15 * size) + 1)
        start = next(words) % (size - width + 1)
        np.moveaxis(masked, axis, 0)[start : start + width] = mean
    return masked


def collate(spec: ExampleSpec, examples: Sequence[tuple[np.ndarray, np.ndarray]]) -> dict[str, np.ndarray]:
    """Pad examples to a batch: mel (B, M, T), lengths (B,) in nodes, ids (B, L) and labels (B, L), the next tokens."""
    mels, lengths = pad_mels([mel for mel, _ in examples])
    ends = [] if spec.end is None else [spec.end]
    texts = [[*spec.prompt, *ids.tolist(), *ends] for _, ids in examples]
    width, start = max(map(len, texts)) - 1, len(spec.prompt) - 1
    ids, labels = np.zeros((len(examples), width), np.int64), np.full((len(examples), width), IGNORE_INDEX)
    for i in range(len(examples)):
        ids[i, : len(texts[i]) - 1] = texts[i][:-1]
        labels[i, start : len(texts[i]) - 1] = texts[i][start + 1 :]
    return {"mel": mels, "lengths": lengths, "ids": ids, "labels": labels}


def pad_mels(mels: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Return frames (M, T) of several lengths as one array (B, M, T), and their lengths in nodes (B,)."""
    padded = np.zeros((len(mels), len(mels[0]), max(mel.shape[1] for mel in mels)), np.float32)
    for row, mel in zip(padded, mels):
        row[:, : mel.shape[1]] = mel
    return padded, np.array([mel.shape[1] // 2 for mel in mels])
