"""Sound files to samples, in bounded memory: libsndfile reads, soxr resamples to 16 kHz, channels are averaged."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from ...errors import InputError
from ..io.files import import_optional
from ..io.regular_file import check_regular
from .features import SAMPLE_RATE

BLOCK_SAMPLES = 1 << 19  # read at a time
UNKNOWN_SIZES = (0, 0x7FFFFFFF, 0x7FFFFFFF + 1, 0xFFFFFFFF)  # in the header of a stream whose length was not known
AUDIO_EXTENSIONS = (".wav", ".flac", ".ogg", ".mp3")


def read_blocks(path: Path) -> Iterator[np.ndarray]:
    """Yield the samples of a sound file, mono at 16 kHz, float32, in blocks. Raises InputError for a damaged file."""
    message = "sound files need soundfile and soxr: pip install 'anyformer[audio]'"
    soundfile, soxr = import_optional("soundfile", message), import_optional("soxr", message)
    check_regular(path)
    try:
        with soundfile.SoundFile(path) as file:
            check_header(file, path)
            stream = soxr.ResampleStream(file.samplerate, SAMPLE_RATE, 1, dtype="float32")
            count, block = 0, max(1, BLOCK_SAMPLES // file.channels)
            while count < file.frames:
                samples = file.read(block, dtype="float32", always_2d=True).mean(axis=1)
                count += len(samples)
                if not len(samples):
                    raise InputError(f"{path}: cut short, {count:,} of {file.frames:,} samples are there")
                if not np.isfinite(samples).all():
                    raise InputError(f"{path}: holds samples that are not finite numbers")
                yield stream.resample_chunk(samples, last=count >= file.frames)
    except soundfile.SoundFileError as error:
        reason = str(error).removeprefix(f"Error opening {str(path)!r}: ").rstrip(".")
        raise InputError(f"{path}: cannot be read as sound ({reason}): expected a complete wav or flac file") from None


def check_header(file: Any, path: Path) -> None:
    """Raise InputError for a file that libsndfile opens but that is damaged or has an impossible sample rate."""
    if not 100 <= file.samplerate <= 1_000_000:
        raise InputError(f"{path}: a sample rate of {file.samplerate}; expected one from 100 to 1,000,000")
    if file.frames < 1:
        raise InputError(f"{path}: holds no sound")
    for line in str(file.extra_info).splitlines():  # libsndfile corrects the header of a wav without an error
        name, _, sizes = line.partition(":")
        claimed, _, actual = sizes.rstrip(")").partition("(should be ")
        if name.strip() == "data" and actual and int(claimed) not in UNKNOWN_SIZES and int(claimed) > int(actual):
            raise InputError(f"{path}: cut short, {actual} of {claimed.strip()} bytes of sound are there")


def read_audio(path: Path, max_seconds: float = 3600.0) -> np.ndarray:
    """Read all samples of a file, (N,) float32. Raises InputError as `read_blocks`, and for a longer file."""
    blocks, n = [], 0
    for block in read_blocks(path):
        blocks.append(block)
        n += len(block)
        if n > max_seconds * SAMPLE_RATE:
            raise InputError(f"{path}: longer than {max_seconds:g} s: cut it into pieces")
    return np.concatenate(blocks)


def split_at_pauses(blocks: Iterable[np.ndarray], max_samples: int) -> Iterator[np.ndarray]:
    """Split sound into pieces of at most `max_samples`, each ending at the quietest moment of its last fifth, so that a
    word is rarely cut in two. Holds one piece and one block at a time."""
    pending = np.zeros(0, np.float32)
    for block in blocks:
        pending = np.concatenate([pending, block])
        while len(pending) > max_samples:
            end = find_pause(pending, max_samples - max_samples // 5, max_samples)
            yield pending[:end]
            pending = pending[end:]
    if len(pending):
        yield pending


def find_pause(samples: np.ndarray, start: int, stop: int) -> int:
    """Return the middle of the quietest 100 ms between two samples, or `stop` where they are closer than that."""
    width = SAMPLE_RATE // 10
    if stop - start <= width:
        return stop
    power = np.concatenate([[0.0], np.cumsum(np.square(samples[start:stop], dtype=np.float64))])
    return start + int(np.argmin(power[width:] - power[:-width])) + width // 2
