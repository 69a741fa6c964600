"""Transcribe sounds of any length: windows that are split at pauses, in batches.

A model has a `config` (mels, encoder.context, pad_to_context), `transcribe(mel, lengths)` and `decode_text(ids)`.
"""

from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..data.audio.batches import pad_mels
from ..data.audio.features import HOP_LENGTH, SAMPLE_RATE, log_mel
from ..data.audio.read import read_blocks, split_at_pauses

BATCH_SIZE = 16  # windows that are transcribed together


def transcribe_file(model: Any, path: Path) -> dict[str, Any]:
    """Transcribe a sound file; its segments are the windows that it is split into."""
    segments, end = [], 0.0
    for _, n, text in transcribe_windows(model, iter([read_blocks(path)])):
        start, end = end, end + n / SAMPLE_RATE
        segments.append({"start": start, "end": end, "text": text})
    return {"text": " ".join(filter(None, (s["text"] for s in segments))), "seconds": end, "segments": segments}


def transcribe_sounds(model: Any, names: Sequence[str], sounds: Iterator[Iterator[np.ndarray]]) -> list[dict[str, Any]]:
    """Transcribe sounds, given as blocks of samples."""
    texts: list[list[str]] = [[] for _ in names]
    samples = [0] * len(names)
    for i, n, text in transcribe_windows(model, sounds):
        texts[i].append(text)
        samples[i] += n
    joined = [" ".join(filter(None, pieces)) for pieces in texts]
    return [{"input": x, "text": text, "seconds": n / SAMPLE_RATE} for x, text, n in zip(names, joined, samples)]


def transcribe_windows(model: Any, sounds: Iterator[Iterator[np.ndarray]]) -> Iterator[tuple[int, int, str]]:
    """Yield the index of its sound, the number of samples and the text of each window, computed in batches."""
    c, device = model.config, next(model.parameters()).device
    size = 2 * c.encoder.context * HOP_LENGTH
    windows = ((i, piece) for i, sound in enumerate(sounds) for piece in split_at_pauses(sound, size))
    while batch := list(islice(windows, BATCH_SIZE)):
        mels = [log_mel(piece, c.mels, 2 * c.encoder.context if c.pad_to_context else None) for _, piece in batch]
        mel, lengths = (torch.from_numpy(array).to(device) for array in pad_mels(mels))
        for (i, piece), ids in zip(batch, model.transcribe(mel, lengths), strict=True):
            yield i, len(piece), model.decode_text(ids).strip()
