"""Frames of a mel spectrogram back to sound, with the phases of Griffin and Lim (1984), accelerated (Perraudin 2013).

Frames are `features.log_mel` in another scale: powers of ten below the loudest band of the sound, which is 0.

Shapes: N samples, T frames, M mel bands, F = 1 + N_FFT / 2 frequencies.
"""

import io
import wave

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from .features import HOP_LENGTH, N_FFT, SAMPLE_RATE, log_mel, mel_filters

FLOOR = -5.0  # of a frame, in powers of ten: what is 50 dB below the loudest is not heard
ITERATIONS, MOMENTUM = 60, 0.99
FIT_ITERATIONS = 60  # of the powers that fit the bands
PEAK = 0.3  # of the samples of a sound that is made: the loudness of many recordings
HANN = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(N_FFT) / N_FFT)


def compute_frames(samples: np.ndarray, mels: int) -> np.ndarray:
    """Return the frames of a sound, FLOOR to 0, whatever its loudness: (N,) -> (T, M) float32"""
    bands = 4 * log_mel(samples, mels).T - 4
    return np.maximum(bands - bands.max(), FLOOR)


def invert_frames(frames: np.ndarray) -> np.ndarray:
    """Return a sound whose frames are near to these: (T, M) -> (T * HOP_LENGTH,) float32, its peak at PEAK"""
    bands = 10.0 ** frames.astype(np.float64) - 10.0**FLOOR  # what is at the floor is silent
    magnitudes = np.sqrt(fit_powers(bands.clip(0)))
    samples = find_phases(magnitudes)[: len(frames) * HOP_LENGTH]
    return (PEAK * samples / max(float(np.abs(samples).max()), 1e-9)).astype(np.float32)


def fit_powers(bands: np.ndarray) -> np.ndarray:
    """Return powers of frequencies, none below 0, whose mel bands are near to these: (T, M) -> (T, F), by the
    multiplicative updates of non-negative factors (Lee and Seung 2000)."""
    filters = mel_filters(bands.shape[1])  # (F, M)
    powers = bands @ filters.T
    targets = powers.copy()
    for _ in range(FIT_ITERATIONS):
        powers *= targets / (powers @ filters @ filters.T + 1e-12)
    return powers


def find_phases(magnitudes: np.ndarray) -> np.ndarray:
    """Return samples whose spectrum has nearly these magnitudes: (T, F) -> (N,)"""
    rng = np.random.Generator(np.random.Philox(key=0))
    spectrum = magnitudes * np.exp(2j * np.pi * rng.random(magnitudes.shape))
    before = np.zeros_like(spectrum)
    for _ in range(ITERATIONS):
        consistent = transform(overlap_add(spectrum), len(magnitudes))
        ahead = consistent + MOMENTUM * (consistent - before)
        spectrum = magnitudes * ahead / np.maximum(np.abs(ahead), 1e-16)
        before = consistent
    return overlap_add(spectrum)


def transform(samples: np.ndarray, frames: int) -> np.ndarray:
    """Return the spectrum of windows around every HOP_LENGTH-th sample: (N,) -> (T, F) complex"""
    padded = np.pad(samples, (N_FFT // 2, N_FFT))
    return np.fft.rfft(sliding_window_view(padded, N_FFT)[::HOP_LENGTH][:frames] * HANN)


def overlap_add(spectrum: np.ndarray) -> np.ndarray:
    """Return the samples whose windows have, in the least squares, this spectrum: (T, F) -> (T * HOP_LENGTH,)"""
    windows = np.fft.irfft(spectrum, N_FFT) * HANN
    n = (len(windows) - 1) * HOP_LENGTH + N_FFT
    samples, weights = np.zeros(n), np.full(n, 1e-8)
    for start, window in zip(range(0, n, HOP_LENGTH), windows):
        samples[start : start + N_FFT] += window
        weights[start : start + N_FFT] += HANN**2
    return (samples / weights)[N_FFT // 2 :][: len(windows) * HOP_LENGTH]


def encode_wav(samples: np.ndarray) -> bytes:
    """Return samples in -1 to 1 as a WAV file of 16 bits at 16 kHz."""
    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as file:
        file.setparams((1, 2, SAMPLE_RATE, 0, "NONE", ""))
        file.writeframes((samples.clip(-1, 1) * 32767).astype("<i2").tobytes())
    return buffer.getvalue()
