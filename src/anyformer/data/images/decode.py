"""One image file to pixels, and pixels to the size that a model takes. Decoding is Pillow's, bounded beforehand."""

import base64
import io
import warnings
from pathlib import Path
from typing import Any, Literal

import numpy as np

from ...errors import InputError

ENDINGS = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm")
FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF", "PPM")  # no format that runs a program to be read
MOST_PIXELS = 64 << 20  # of an image before it is decoded
MOST_BYTES = 256 << 20  # of an image file
Resample = Literal["nearest", "lanczos", "bilinear", "bicubic", "box", "hamming"]
RESAMPLE = ("nearest", "lanczos", "bilinear", "bicubic", "box", "hamming")  # in Pillow's order of numbers


def pillow() -> Any:
    """Pillow's Image. Raises InputError where it is not installed."""
    try:
        from PIL import Image
    except ImportError:
        raise InputError("decoding images needs Pillow: pip install 'anyformer[vision]'") from None
    return Image


def from_file(path: Path) -> np.ndarray:
    """An image file -> (H, W) or (H, W, 3) uint8, as a camera's orientation says. Raises InputError."""
    try:
        size = path.stat().st_size
        if size > MOST_BYTES:
            raise InputError(f"{path} has {size:,} bytes: images of more than {MOST_BYTES >> 20} MiB are not read")
        return from_bytes(path.read_bytes(), str(path))
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or error}") from None


def from_bytes(raw: bytes, where: str) -> np.ndarray:
    """The same for the bytes of an image file."""
    Image = pillow()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow warns of large images: we refuse them
            with Image.open(io.BytesIO(raw), formats=FORMATS) as image:
                wide, high = image.size
                if wide * high > MOST_PIXELS:
                    raise InputError(f"{where} has {wide} x {high} pixels: more than {MOST_PIXELS:,} are not read")
                image.load()
                return plain(image, where)
    except InputError:
        raise
    except Image.DecompressionBombError:
        raise InputError(f"{where} has more than {MOST_PIXELS:,} pixels, which are not read") from None
    except Image.UnidentifiedImageError:
        raise InputError(f"{where} is no image that can be read: {', '.join(FORMATS)} can") from None
    except (OSError, ValueError, SyntaxError, EOFError, IndexError, TypeError, KeyError) as error:
        raise InputError(f"{where} is damaged or cut off: {error}") from None


def plain(image: Any, where: str) -> np.ndarray:
    from PIL import ImageOps

    if image.mode.startswith(("I", "F")):
        raise InputError(f"{where} has pixels of more than 8 bits ({image.mode}): save it with 8 bits a channel")
    image = ImageOps.exif_transpose(image)
    return np.asarray(image if image.mode == "L" else image.convert("RGB"))


def fitted(pixels: np.ndarray, height: int, width: int, channels: int, resample: Resample = "bilinear") -> np.ndarray:
    """(H, W) or (H, W, 1 or 3) uint8 -> (height, width, channels): stretched, and grey or coloured, where need be."""
    pixels = pixels[:, :, 0] if pixels.ndim == 3 and pixels.shape[2] == 1 else pixels
    grey = pixels.ndim == 2
    if pixels.shape[:2] != (height, width) or (channels == 1 and not grey):
        image = pillow().fromarray(pixels).convert("L" if channels == 1 else "RGB")
        size, how = (width, height), RESAMPLE.index(resample)
        return np.asarray(image if image.size == size else image.resize(size, how)).reshape(height, width, channels)
    return np.repeat(pixels[:, :, None], channels, axis=2) if grey else pixels


# --- pixels to look at ---

RED = (214, 39, 40)


def png(pixels: np.ndarray, side: int = 96) -> str:
    """(H, W, 1 or 3) uint8 as a PNG in base64, its height about `side`: small ones in whole squares, large ones shrunk.
    Raises InputError where Pillow is not installed."""
    Image, buffer = pillow(), io.BytesIO()
    image = Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels)
    if pixels.shape[0] > side:
        image.thumbnail((side * pixels.shape[1] // pixels.shape[0], side))
    else:
        times = max(1, side // pixels.shape[0])
        image = image.resize((image.width * times, image.height * times), Image.Resampling.NEAREST)
    image.save(buffer, "PNG", optimize=True)
    return base64.b64encode(buffer.getvalue()).decode()


def beside_heat(pixels: np.ndarray, heat: np.ndarray) -> np.ndarray:
    """An image (H, W, 1 or 3) and, to its right, the same under red ink where `heat` (rows, columns) is high:
    (H, 2 W + gap, 3). Raises InputError where Pillow is not installed."""
    Image, (high, wide) = pillow(), pixels.shape[:2]
    ink = Image.fromarray((heat / max(float(heat.max()), 1e-9)).astype(np.float32))
    ink = np.asarray(ink.resize((wide, high), Image.Resampling.BILINEAR))[:, :, None] * 0.8
    colours = np.repeat(pixels, 3 // pixels.shape[2], axis=2)
    inked = np.rint(colours * (1 - ink) + np.array(RED) * ink).clip(0, 255).astype(np.uint8)
    gap = np.full((high, max(1, wide // 16), 3), 255, np.uint8)
    return np.concatenate([colours, gap, inked], axis=1)
