"""Samples to frames of a log-mel spectrogram, as Whisper computes it (2212.04356).

25 ms windows every 10 ms, mel bands, the logarithm of their power, clipped at 8 decades below the loudest.

Shapes: N samples, T frames, M mel bands.
"""

from functools import lru_cache

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

SAMPLE_RATE = 16_000
N_FFT = 400  # samples of a window, 25 ms
HOP_LENGTH = 160  # samples between windows, 10 ms
BLOCK_FRAMES = 1024  # frames transformed at a time
HZ_PER_MEL = 200 / 3  # below 1 kHz, where the mel scale is linear
LOG_STEP = np.log(6.4) / 27  # per mel, above 1 kHz


@lru_cache(maxsize=4)
def mel_filters(mels: int) -> np.ndarray:
    """Build the triangular filters of Slaney's Auditory Toolbox (1998), each of area 1: (1 + N_FFT / 2, M)."""
    kilohertz = 1000 / HZ_PER_MEL  # in mels
    top = kilohertz + float(np.log(SAMPLE_RATE / 2 / 1000)) / LOG_STEP
    scale = np.linspace(0.0, top, mels + 2)
    edges = np.where(scale < kilohertz, scale * HZ_PER_MEL, 1000 * np.exp(LOG_STEP * (scale - kilohertz)))
    bins = np.linspace(0.0, SAMPLE_RATE / 2, N_FFT // 2 + 1)[:, None]
    rising = (bins - edges[:-2]) / (edges[1:-1] - edges[:-2])
    falling = (edges[2:] - bins) / (edges[2:] - edges[1:-1])
    return np.maximum(0.0, np.minimum(rising, falling)) * 2 / (edges[2:] - edges[:-2])


def log_mel(samples: np.ndarray, mels: int = 80, frames: int | None = None) -> np.ndarray:
    """Compute the log-mel spectrogram of (N,) samples at 16 kHz: (M, T) float32, mostly between -1 and 1.

    Args:
        frames: T, with samples cut or silence appended (Whisper: 3000). None: as many as the samples fill, rounded up
            to an even number, so that a convolution of stride 2 gives the same result with and without padding.
    """
    n = frames if frames is not None else 2 * max(1, -(-len(samples) // (2 * HOP_LENGTH)))
    samples = samples[: n * HOP_LENGTH]
    samples = np.pad(samples, (0, n * HOP_LENGTH - len(samples)))
    half = N_FFT // 2
    samples = np.pad(samples, half, mode="reflect" if len(samples) > half else "symmetric").astype(np.float64)
    windows = sliding_window_view(samples, N_FFT)[::HOP_LENGTH][:n]  # (T, N_FFT), a view
    hann = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(N_FFT) / N_FFT)
    filters, power = mel_filters(mels), np.empty((n, mels))
    for start in range(0, n, BLOCK_FRAMES):
        spectrum = np.fft.rfft(windows[start : start + BLOCK_FRAMES] * hann)
        power[start : start + BLOCK_FRAMES] = (spectrum.real**2 + spectrum.imag**2) @ filters
    log_power = np.log10(np.maximum(power, 1e-10))
    return ((np.maximum(log_power, log_power.max() - 8) + 4) / 4).T.astype(np.float32)
