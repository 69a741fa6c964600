"""Collections of tunes: files in ABC notation and MIDI files, as melodies in normal form, divided by how they begin."""

import hashlib
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from ...errors import InputError
from ..io.files import open_data, suffix
from ..io.resolve import resolve
from ..unusable import EmptyPolicy, check_unusable
from .abc import normalize_tune, read_header, split_tunes
from .midi import read_midi

ABC_EXTENSIONS, MIDI_EXTENSIONS = (".abc",), (".mid", ".midi")
MAX_FILE_BYTES = 256 << 20
BEGINNING = 12  # notes of two tunes that are taken for the same


@dataclass(frozen=True, eq=False)
class Tunes:
    """Different tunes in normal form, and which of them are for validation."""

    texts: tuple[str, ...]
    validation: frozenset[str]
    sha256: str

    def split(self, name: str) -> list[str]:
        """Return the tunes of "train", "val" or "all"."""
        return [text for text in self.texts if name == "all" or (text in self.validation) == (name == "val")]


def read_tunes(data: str, val_fraction: float = 0.1, policy: EmptyPolicy = "skip") -> Tunes:
    """Return the tunes of a file, a folder or a named set. Raises InputError.

    Tunes that begin with the same notes are in the same split, since collections repeat each other.

    Args:
        policy: What becomes of tunes that cannot be read: of several voices, or with another metre or key on the way.
    """
    texts: dict[str, None] = {}
    problems: list[str] = []
    total = 0
    for place, tune in list_tunes(list_files(data)):
        total += 1
        try:
            texts[normalize_tune(tune)] = None
        except InputError as error:
            problems.append(f"{place}: {error}")
    if not texts:
        raise InputError(f"data '{data}': no tune in it{f' ({problems[0]})' if problems else ': each begins with X:'}")
    hint = "mend them, or leave them out: --empty skip"
    if problems:
        check_unusable(
            len(problems), total, policy, "--empty", f"tunes cannot be read (the first: {problems[0]})", hint
        )
    beginnings = {text: hash_beginning(text) for text in texts}
    order = sorted(beginnings.values())
    last = order[max(0, round(len(order) * val_fraction) - 1)]
    validation = frozenset(text for text, digest in beginnings.items() if digest <= last)
    if len(validation) == len(texts):
        raise InputError(f"data '{data}': two tunes that begin differently are needed, one of them for validation")
    digest = hashlib.sha256("\0".join(texts).encode()).hexdigest()
    return Tunes(tuple(texts), validation, digest)


def list_files(data: str) -> list[Path]:
    """Return the files with tunes that `data` names. Raises InputError."""
    folder = Path(data).expanduser()
    if data and folder.is_dir():
        files = sorted(path for path in folder.rglob("*") if suffix(path) in (*ABC_EXTENSIONS, *MIDI_EXTENSIONS))
        if not files:
            raise InputError(f"data '{data}': no .abc and no .mid file in this folder")
        return files
    return resolve(data)


def list_tunes(files: Sequence[Path]) -> Iterator[tuple[str, str]]:
    """Yield the place and the text of each tune. Raises InputError for a damaged file."""
    for path in files:
        if suffix(path) in MIDI_EXTENSIONS:
            yield str(path), read_midi(path)
            continue
        with open_data(path) as file:
            content = file.read(MAX_FILE_BYTES + 1)
        if len(content) > MAX_FILE_BYTES:
            raise InputError(f"{path}: larger than {MAX_FILE_BYTES >> 20} MiB: divide it into several files")
        text = content.decode("utf-8", "replace")  # what is no ASCII is in titles and names
        for number, tune in enumerate(split_tunes(text), 1):
            yield f"{path}, tune {number}", tune


def list_beginning(tune: str) -> str:
    """Return the letters of the first notes of a tune, by which it is recognized in other settings and metres."""
    _, melody = read_header(tune)
    return "".join(re.findall(r"[A-Ga-g]", melody)[:BEGINNING]).upper()


def hash_beginning(tune: str) -> str:
    return hashlib.sha256(list_beginning(tune).encode()).hexdigest()


# --- tunes to read and to continue ---


def format_tune(tune: str, number: int = 1, bars_a_line: int = 4) -> str:
    """Return a tune in normal form as a file of ABC notation, some bars in each line. Raises InputError."""
    header, melody = read_header(tune)
    pieces = re.split(r"(?<=[|\]])(?=[^|\]:\d])|(?<=:)(?=[^|:\d])", melody)
    lines = ["".join(pieces[i : i + bars_a_line]) for i in range(0, len(pieces), bars_a_line)]
    fields = f"X:{number}\nT:Tune {number}\nM:{header.metre}\nL:{header.unit}\nK:{header.key}\n"
    return fields + "\n".join(lines) + "\n"


def find_copy(tune: str, training: str) -> str:
    """Return the longest run of characters of a tune's melody that is in a text too, as in the tunes of training."""
    _, melody = read_header(tune)
    longest = ""
    for last in range(len(melody)):
        run = melody[max(0, last - len(longest)) : last + 1]  # one longer than the longest
        longest = run if len(run) > len(longest) and run in training else longest
    return longest
