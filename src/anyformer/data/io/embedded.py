"""Images and sounds that tables hold as bytes, alone or as {"bytes": ..., "path": ...}: saved once below the cache
directory, or beside an uploaded table, so that the readers of files read them too."""

import hashlib
import os
import re
from pathlib import Path
from typing import Any

from ...confinement import get_confinement
from .cache import cache_dir

FOLDER = "embedded"
SIGNATURES = {
    ".png": rb"\x89PNG",
    ".jpg": rb"\xff\xd8\xff",
    ".gif": rb"GIF8",
    ".webp": rb"RIFF....WEBP",
    ".bmp": rb"BM",
    ".tif": rb"II\*\0|MM\0\*",
    ".wav": rb"RIFF....WAVE",
    ".flac": rb"fLaC",
    ".ogg": rb"OggS",
    ".mp3": rb"ID3|\xff[\xf2\xf3\xfb]",
}


def is_embedded(name: str) -> bool:
    """Whether a file is one that was saved here."""
    return FOLDER in name and Path(name).parent == cache_dir() / FOLDER


def read_embedded(value: Any) -> bytes | None:
    """Return the bytes of a file that is the value of a cell; None for any other value."""
    value = value.get("bytes") if isinstance(value, dict) else value
    return value if isinstance(value, bytes) else None


def find_extension(content: bytes) -> str:
    """Return the usual ending of files that begin with these bytes; "" where they are no image and no sound."""
    return next((ending for ending, magic in SIGNATURES.items() if re.match(magic, content[:16], re.DOTALL)), "")


def save_embedded(value: Any) -> Any:
    """Return the path of a file with the bytes of a cell if they are an image or a sound, else the value."""
    content = read_embedded(value)
    if content is None or not (extension := find_extension(content)):
        return value
    folder = get_confinement() or cache_dir()
    path = folder / FOLDER / f"{hashlib.sha256(content).hexdigest()[:32]}{extension}"
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        new = Path(f"{path}.{os.getpid()}")
        new.write_bytes(content)
        new.replace(path)
    return str(path)
