"""Clips and their text to batches. Pure functions: what a row holds depends on its draw alone.

Shapes: N samples, B batch, T frames, M mel bands, L tokens.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ...errors import InputError
from ..text.batches import NOTHING
from ..tokenizers.characters import Tokenizer
from . import features as audio
from .read import Clips, joined


@dataclass(frozen=True)
class Shape:
    """What a model takes."""

    mels: int
    nodes: int
    """The longest sound, in pairs of frames."""
    tokens: int
    """The longest text, what begins it included."""
    fewest: int = 1
    most: int = 1
    """Clips in a row."""
    gaps: bool = False
    """Clips have silence around them, a single one too."""
    whole: bool = False
    """Every sound is filled up with silence to the longest."""
    augment: bool = False
    prompt: tuple[int, ...] = ()
    """What begins a text."""
    end: int | None = None

    @property
    def frames(self) -> int:
        return 2 * self.nodes


@dataclass(frozen=True)
class Draw:
    """What is random in a row; `first`: the first clip is not drawn but this one of its part."""

    rng: np.random.Philox
    first: int | None = None


def example(
    shape: Shape, clips: Clips, part: np.ndarray, tokenizer: Tokenizer, draw: Draw
) -> tuple[np.ndarray, np.ndarray]:
    """One row: its mel spectrogram (M, T) and the ids of its text (L,). Raises InputError for a clip that does not fit;
    where several in a row with their gaps are too long, the row says less."""
    size, *words = draw.rng.random_raw(shape.most + 1).tolist()
    which = part[[word % len(part) for word in words[: shape.fewest + size % (shape.most - shape.fewest + 1)]]]
    if draw.first is not None:
        which[0] = part[draw.first]
    sound, text = clips.sound(which[0]), clips.texts[which[0]]
    for n in range(len(which), 0, -1) if shape.gaps else ():
        row, said = joined(clips, which[:n], draw.rng)
        if len(row) <= shape.frames * audio.HOP:
            sound, text = row, said
            break
    where = clips.wheres[which[0]]
    try:
        ids = tokenizer.encode(text)
    except InputError as error:
        raise InputError(f"{where}: {error}") from None
    check(shape, len(sound), len(ids), where)
    mel = audio.log_mel(sound, shape.mels, shape.frames if shape.whole else None)
    return (audio.spec_augment(mel, draw.rng) if shape.augment else mel), ids


def check(shape: Shape, samples: int, tokens: int, where: str) -> None:
    """Raises InputError for what is longer than the model's contexts."""
    nodes, need = -(-samples // (2 * audio.HOP)), tokens + len(shape.prompt)
    if nodes > shape.nodes:
        longest = shape.frames * audio.HOP / audio.RATE
        found = f"{samples / audio.RATE:.1f} s long, and the model hears {longest:g} s"
        raise InputError(f"{where}: {found}: cut it, or raise --encoder.context to {nodes}")
    if need > shape.tokens:
        raise InputError(f"{where}: a text of {tokens} tokens: shorten it, or raise --decoder.context to {need}")


def collate(shape: Shape, rows: Sequence[tuple[np.ndarray, np.ndarray]]) -> dict[str, np.ndarray]:
    """mel (B, M, T), lengths (B,) in nodes, ids (B, L), and which comes next (B, L); padded on the right."""
    mel = np.zeros((len(rows), shape.mels, max(one.shape[1] for one, _ in rows)), np.float32)
    ends = [] if shape.end is None else [shape.end]
    texts = [[*shape.prompt, *text.tolist(), *ends] for _, text in rows]
    width, first = max(map(len, texts)) - 1, len(shape.prompt) - 1
    ids, nexts = np.zeros((len(rows), width), np.int64), np.full((len(rows), width), NOTHING)
    for i, (one, _) in enumerate(rows):
        mel[i, :, : one.shape[1]] = one
        ids[i, : len(texts[i]) - 1] = texts[i][:-1]
        nexts[i, first : len(texts[i]) - 1] = texts[i][first + 1 :]
    lengths = np.array([one.shape[1] // 2 for one, _ in rows])
    return {"mel": mel, "lengths": lengths, "ids": ids, "next": nexts}
