"""Figures of a model that speaks: spectrograms of what it says, of recordings, and of what its codebook leaves."""

import numpy as np
import torch

from ...data.audio.utterances import Utterances
from ...data.audio.vocoder import FLOOR
from ...data.images.read import encode_png, import_pillow
from ...data.sampling import sample_evenly
from ...errors import InputError
from ...inference.speaking import SpeakingModel, SpeakingRequest, generate_frames
from ...recipe import Figure

MAX_SOUNDS, GAP = 8, 6  # of a figure, and pixels between two spectrograms
GRAY = 235


def draw_figures(model: SpeakingModel, utterances: Utterances, rows: np.ndarray) -> list[Figure]:
    """Draw what the model says beside recordings of the same text and speaker, and recordings beside what the codebook
    leaves of them. rows (N,): clips of the validation split. Nothing where Pillow is not installed."""
    try:
        import_pillow()
    except InputError:
        return []
    rows = sample_evenly(rows, MAX_SOUNDS)
    real, names = [utterances.read_frames(i) for i in rows], []
    spoken, coded, device = [], [], model.codebook.device
    for i, frames in zip(rows, real):
        text, speaker = utterances.clips.texts[i], utterances.speakers[i]
        speaker = speaker if speaker in model.ids.voices.speakers else ""
        spoken += generate_frames(model, SpeakingRequest(input=text, speaker=speaker))
        coded.append(model.codebook[model.encode(torch.from_numpy(frames).to(device))].cpu().numpy())
        names.append(f"{text}, {speaker}" if speaker else text)
    error = utterances.measure_codebook(model.codebook.cpu().numpy())
    left = f"what {len(model.codebook)} frames leave of them: no sound can be nearer"
    axes = "time to the right, low tones at the bottom, darker for louder"
    return [
        show_pairs("Spoken and recorded", f"what the model says, and then a recording; {axes}", spoken, real, names),
        show_pairs(
            "The codebook",
            f"recordings, and {left}; the error of a band is {error:.2f} powers of ten",
            real,
            coded,
            names,
        ),
    ]


def show_pairs(title: str, note: str, left: list[np.ndarray], right: list[np.ndarray], captions: list[str]) -> Figure:
    """Draw pairs of spectrograms (T, M) side by side."""
    images = []
    for frames, others, caption in zip(left, right, captions, strict=True):
        gap = np.full((GAP, frames.shape[1]), np.nan)
        images.append({"png": encode_png(shade(np.concatenate([frames, gap, others]))), "caption": caption})
    return {"kind": "images", "title": title, "note": note, "images": images}


def shade(frames: np.ndarray) -> np.ndarray:
    """Return a picture of frames (T, M), the loudest black: (M, T, 1)"""
    gray = 255 * np.nan_to_num(frames / FLOOR, nan=GRAY / 255)
    return gray.clip(0, 255).astype(np.uint8).T[::-1, :, None]
