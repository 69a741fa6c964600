"""Sound to slices of a mel spectrogram, in bounded memory.

Files are read through libsndfile, resampled to 16 kHz, and their channels averaged. The spectrogram is Whisper's
(2212.04356): 25 ms windows every 10 ms, mel bands, the logarithm of their power, at most 8 decades below the loudest.

Shapes: N samples, T frames (of 160 samples), M mel bands.
"""

from collections.abc import Iterable, Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from ...errors import InputError

RATE = 16_000  # samples a second
WINDOW = 400  # samples, 25 ms
HOP = 160  # samples, 10 ms
BLOCK = 1 << 19  # samples read at a time
FRAMES = 1024  # frames transformed at a time
FLOOR = 1e-10  # power of what is taken for silence
DECADES = 8.0  # from the loudest down: what is quieter counts as that
ENDLESS = (0, 0x7FFFFFFF, 0x7FFFFFFF + 1, 0xFFFFFFFF)  # bytes that a header promises where a stream was recorded


# --- files to samples ---


def blocks(path: Path) -> Iterator[np.ndarray]:
    """The samples of a sound file, mono at 16 kHz, float32, a block at a time.

    Raises InputError with the file's name where it is missing, not a sound, cut short, empty, or holds no numbers.
    """
    soundfile, soxr = libraries()
    if not path.is_file():
        raise InputError(f"{path}: there is no such sound file")
    try:
        with soundfile.SoundFile(path) as file:
            check(file, path)
            stream = soxr.ResampleStream(file.samplerate, RATE, 1, dtype="float32")
            heard, size = 0, max(1, BLOCK // file.channels)
            while heard < file.frames:
                sound = file.read(size, dtype="float32", always_2d=True).mean(axis=1)
                heard += len(sound)
                if not len(sound):
                    raise InputError(f"{path}: cut short, {heard:,} of {file.frames:,} samples are there")
                if not np.isfinite(sound).all():
                    raise InputError(f"{path}: holds samples that are no finite numbers")
                yield stream.resample_chunk(sound, last=heard >= file.frames)
    except soundfile.SoundFileError as error:
        reason = str(error).removeprefix(f"Error opening {str(path)!r}: ").rstrip(".")
        raise InputError(f"{path}: cannot be read as sound ({reason}): expected a whole wav or flac file") from None


def libraries() -> tuple[Any, Any]:
    """soundfile and soxr. Raises InputError where they are not installed."""
    try:
        import soundfile
        import soxr
    except (ImportError, OSError):  # OSError: soundfile without its own library
        raise InputError("sound files need soundfile and soxr: pip install 'anyformer[audio]'") from None
    return soundfile, soxr


def check(file: Any, path: Path) -> None:
    """Raises InputError for a file that opens all the same, but should not be used."""
    if not 100 <= file.samplerate <= 1_000_000:
        raise InputError(f"{path}: a sample rate of {file.samplerate}; expected one from 100 to 1,000,000")
    if file.frames < 1:
        raise InputError(f"{path}: holds no sound")
    for line in str(file.extra_info).splitlines():  # libsndfile mends the header of a wav in silence
        name, _, sizes = line.partition(":")
        promised, _, found = sizes.partition("(should be ")
        if name.strip() == "data" and found and int(promised) not in ENDLESS and int(promised) > int(found.rstrip(")")):
            raise InputError(f"{path}: cut short, {found.rstrip(')')} of {promised.strip()} bytes of sound are there")


def read(path: Path, seconds: float = 3600.0) -> np.ndarray:
    """All samples of a file: (N,) float32. Raises InputError as `blocks`, and for more than so many seconds."""
    parts, n = [], 0
    for block in blocks(path):
        parts.append(block)
        n += len(block)
        if n > seconds * RATE:
            raise InputError(f"{path}: longer than {seconds:g} s: cut it into pieces")
    return np.concatenate(parts)


def windows(sound: Iterable[np.ndarray], longest: int) -> Iterator[np.ndarray]:
    """Sound in pieces of at most `longest` samples, each cut at the quietest moment of its last fifth, so that a word
    is rarely cut in two. Holds one window and one block at a time."""
    kept = np.zeros(0, np.float32)
    for block in sound:
        kept = np.concatenate([kept, block])
        while len(kept) > longest:
            at = quietest(kept, longest - longest // 5, longest)
            yield kept[:at]
            kept = kept[at:]
    if len(kept):
        yield kept


def quietest(sound: np.ndarray, start: int, stop: int) -> int:
    """The middle of the quietest tenth of a second between these samples, or `stop` where they are fewer."""
    width = RATE // 10
    if stop - start <= width:
        return stop
    power = np.concatenate([[0.0], np.cumsum(np.square(sound[start:stop], dtype=np.float64))])
    return start + int(np.argmin(power[width:] - power[:-width])) + width // 2


# --- samples to mel frames ---


@lru_cache(maxsize=4)
def filters(mels: int) -> np.ndarray:
    """Triangles on the mel scale of Slaney's Auditory Toolbox (1998), linear to 1 kHz and logarithmic above, each of
    area 1: (1 + WINDOW / 2, M)."""
    edges = hertz(np.linspace(0.0, mel(RATE / 2), mels + 2))
    bins = np.linspace(0.0, RATE / 2, WINDOW // 2 + 1)[:, None]
    rising = (bins - edges[:-2]) / (edges[1:-1] - edges[:-2])
    falling = (edges[2:] - bins) / (edges[2:] - edges[1:-1])
    return np.maximum(0.0, np.minimum(rising, falling)) * 2 / (edges[2:] - edges[:-2])


STEP = np.log(6.4) / 27  # of the logarithmic part, a mel
LINEAR = 200 / 3  # hertz a mel below 1 kHz


def mel(frequency: float) -> float:
    return frequency / LINEAR if frequency < 1000 else 1000 / LINEAR + float(np.log(frequency / 1000)) / STEP


def hertz(mels: np.ndarray) -> np.ndarray:
    return np.where(mels < 1000 / LINEAR, mels * LINEAR, 1000 * np.exp(STEP * (mels - 1000 / LINEAR)))


def log_mel(sound: np.ndarray, mels: int = 80, frames: int | None = None) -> np.ndarray:
    """The log-mel spectrogram of (N,) samples at 16 kHz: (M, T) float32, mostly between -1 and 1.

    frames: how many there shall be, sound cut or silence added (Whisper: 3000); None: as many as the sound fills, an
    even number, so that a convolution of stride 2 sees the same sound whether or not padding follows.
    """
    n = frames if frames is not None else 2 * max(1, -(-len(sound) // (2 * HOP)))
    sound = sound[: n * HOP]
    sound = np.pad(sound, (0, n * HOP - len(sound)))
    side = WINDOW // 2
    sound = np.pad(sound, side, mode="reflect" if len(sound) > side else "symmetric").astype(np.float64)
    slices = sliding_window_view(sound, WINDOW)[::HOP][:n]  # (T, WINDOW), a view
    hann = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(WINDOW) / WINDOW)
    bank, made = filters(mels), np.empty((n, mels))
    for start in range(0, n, FRAMES):
        wave = np.fft.rfft(slices[start : start + FRAMES] * hann)
        made[start : start + FRAMES] = (wave.real**2 + wave.imag**2) @ bank
    made = np.log10(np.maximum(made, FLOOR))
    return ((np.maximum(made, made.max() - DECADES) + 4) / 4).T.astype(np.float32)


def spec_augment(mel: np.ndarray, rng: np.random.Philox, masks: int = 2, share: float = 0.15) -> np.ndarray:
    """SpecAugment (1904.08779): bands of time and of frequency replaced by the mean, `masks` of each, none wider than
    this share of its axis. (M, T) -> (M, T), a copy; the same for the same state of `rng`."""
    made, mean = mel.copy(), mel.mean()
    words = iter(rng.random_raw(4 * masks).tolist())
    for axis in (0, 1) * masks:
        whole = mel.shape[axis]
        width = next(words) % (int(share * whole) + 1)
        first = next(words) % (whole - width + 1)
        made[(slice(first, first + width),) if axis == 0 else (slice(None), slice(first, first + width))] = mean
    return made
