"""A melody as sound: a few harmonics that fade, as of a plucked string."""

import wave
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from .score import Sound

RATE = 22_050
HARMONICS = (1.0, 0.5, 0.3, 0.15, 0.08)
FADE_SECONDS, ATTACK_SECONDS, RELEASE_SECONDS = 0.6, 0.005, 0.04
A4, A4_HERTZ = 69, 440.0
MAX_SECONDS = 600


def synthesize(sounds: Sequence[Sound]) -> np.ndarray:
    """Return the samples of a melody at 22,050 Hz, float32 in -1 to 1: (N,), of at most ten minutes."""
    sounds = [sound for sound in sounds if sound.start + sound.seconds < MAX_SECONDS]
    end = max((sound.start + sound.seconds for sound in sounds), default=0.0)
    samples = np.zeros(round((end + RELEASE_SECONDS) * RATE) + 1, np.float32)
    for sound in sounds:
        wave_form, start = synthesize_note(sound), round(sound.start * RATE)
        part = samples[start : start + len(wave_form)]
        part += wave_form[: len(part)]
    return 0.9 * samples / max(1e-6, float(np.abs(samples).max()))


def synthesize_note(sound: Sound) -> np.ndarray:
    """Return a note with its harmonics, which fade the sooner the higher they are."""
    seconds = np.arange(round((sound.seconds + RELEASE_SECONDS) * RATE)) / RATE
    hertz = A4_HERTZ * 2 ** ((sound.pitch - A4) / 12)
    tones = [
        volume * np.sin(2 * np.pi * n * hertz * seconds) * np.exp(-seconds * n / FADE_SECONDS)
        for n, volume in enumerate(HARMONICS, 1)
        if n * hertz < RATE / 2
    ]
    attack, release = seconds / ATTACK_SECONDS, (sound.seconds + RELEASE_SECONDS - seconds) / RELEASE_SECONDS
    return (sum(tones) * np.clip(np.minimum(attack, release), 0, 1)).astype(np.float32)


def write_wav(samples: np.ndarray, path: Path) -> None:
    """Write samples in -1 to 1 as 16 bits."""
    with wave.open(str(path), "wb") as file:
        file.setparams((1, 2, RATE, 0, "NONE", ""))
        file.writeframes((samples * 32767).astype("<i2").tobytes())
