"""Notes and bars of a tune in normal form (`abc`): lengths in whole notes, pitches as MIDI numbers."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import NamedTuple

from .abc import FIFTHS, TOKEN, Header, find_sharps, read_header, read_length

SEMITONES = {"C": 0, "D": 2, "E": 4, "F": 5, "G": 7, "A": 9, "B": 11}
ACCIDENTALS = {"^": 1, "^^": 2, "_": -1, "__": -2, "=": 0}
MIDDLE_C = 60
BEATS_A_SECOND = 2
COMPOUND = (6, 9, 12)  # eighths or quarters of a bar whose beats are of three each
MAX_WHOLE_NOTES = 4000
PITCHES = range(128)  # of MIDI


class Note(NamedTuple):
    """A note of a bar; two that are tied are one."""

    pitch: int | None
    """None: a rest."""
    length: Fraction
    is_tied: bool = False
    """The next note goes on with this one."""


@dataclass
class Bar:
    """What is between two bar lines."""

    opens: str
    notes: list[Note]
    closes: str = ""

    @property
    def length(self) -> Fraction:
        return sum((note.length for note in self.notes), Fraction(0))

    @property
    def is_inner(self) -> bool:
        """Whether it must last as long as the metre says: it is at no end of a part, where upbeats are."""
        return self.opens == self.closes == "|"


class Sound(NamedTuple):
    """A note as it is played, in seconds."""

    start: float
    seconds: float
    pitch: int


def find_key_alterations(key: str) -> dict[str, int]:
    """Return by how many semitones a key alters each letter that it alters."""
    sharps = find_sharps(key)
    if sharps >= 0:
        return {FIFTHS[i % 7]: 1 + (i >= 7) for i in range(sharps)}
    return {FIFTHS[-1 - i % 7]: -1 - (i >= 7) for i in range(-sharps)}


def read_bars(tune: str) -> tuple[Header, list[Bar]]:
    """Return the header of a tune in normal form, and its bars. Raises InputError."""
    header, body = read_header(tune)
    return header, list(parse_bars(body, header))


def parse_bars(body: str, header: Header) -> Iterator[Bar]:
    """Yield the bars of a melody in normal form, as far as it can be read."""
    alterations, unit = find_key_alterations(header.key), Fraction(header.unit)
    is_compound = int(header.metre.split("/")[0]) in COMPOUND
    bar, local, tuplet, factor = Bar("", []), {}, (0, Fraction(1)), Fraction(1)
    for match in TOKEN.finditer(body):
        if match["bar"]:
            bar.closes = re.sub(r"\s", "", match["bar"])
            if bar.notes:
                yield bar
            bar, local = Bar(bar.closes, []), {}
        elif match["tuplet"]:
            tuplet = read_tuplet(match["tuplet"], is_compound)
        elif match["tie"] and bar.notes:
            bar.notes[-1] = bar.notes[-1]._replace(is_tied=True)
        elif match["dots"] and bar.notes:
            share = Fraction(1, 2 ** min(3, len(match["dots"])))
            last, factor = (2 - share, share) if match["dots"][0] == ">" else (share, 2 - share)
            bar.notes[-1] = bar.notes[-1]._replace(length=bar.notes[-1].length * last)
        elif match["length"] is not None or match["silence"] is not None:
            pitch = read_pitch(match["pitch"], alterations, local) if match["pitch"] else None
            length = read_length(match["length"] or match["silence"] or "") * unit * factor
            length *= tuplet[1] if tuplet[0] else 1
            bar.notes.append(Note(pitch, length))
            tuplet, factor = (max(0, tuplet[0] - 1), tuplet[1]), Fraction(1)
    if bar.notes:
        yield bar


def read_tuplet(text: str, is_compound: bool) -> tuple[int, Fraction]:
    """Return how many notes a tuplet p:q:r has, and the factor of their lengths."""
    p, q, r = ([int(part) if part else 0 for part in text.split(":")] + [0, 0])[:3]
    q = q or {2: 3, 3: 2, 4: 3, 6: 2, 8: 3}.get(p, 3 if is_compound else 2)
    return r or p, Fraction(q, p or 1)


def read_pitch(text: str, alterations: dict[str, int], local: dict[str, int]) -> int:
    """Return the MIDI number of a note; its accidental, in `local`, holds until the end of the bar."""
    sign = text[: len(text) - len(text.lstrip("^_="))]
    name = text[len(sign) :]
    letter = name[0].upper()
    if sign:
        local[name] = ACCIDENTALS.get(sign, 0)
    octave = name[0].islower() + name.count("'") - name.count(",")
    return MIDDLE_C + SEMITONES[letter] + 12 * octave + local.get(name, alterations.get(letter, 0))


# --- bars that add up ---


def count_complete(tune: str) -> tuple[int, int]:
    """Return how many of a tune's inner bars last as long as its metre says, and how many inner bars there are."""
    header, bars = read_bars(tune)
    inner = [bar for bar in bars if bar.is_inner]
    return sum(bar.length == Fraction(header.metre) for bar in inner), len(inner)


# --- as it is played ---


def unfold(bars: Sequence[Bar]) -> list[Bar]:
    """Return the bars in the order in which they are played, each repeat once more."""
    played: list[Bar] = []
    start = 0
    for i, bar in enumerate(bars):
        start = i if bar.opens in ("|:", "::", "||") or ":|" in bar.opens else start
        played.append(bar)
        if bar.closes.startswith(":") and not bar.opens.endswith("2"):
            part = list(bars[start : i + 1])
            endings = [n for n, other in enumerate(part) if other.opens.endswith("1")]
            played += part[: endings[0] if endings else None]
    return played


def find_whole_note_seconds(metre: str) -> float:
    """Return how long a whole note lasts: there are two beats a second."""
    beats, unit = map(int, metre.split("/"))
    return (unit / 3 if beats in COMPOUND else unit) / BEATS_A_SECOND


def list_sounds(tune: str) -> tuple[Header, list[Sound]]:
    """Return the header of a tune in normal form, and its notes as they are played. Raises InputError."""
    header, bars = read_bars(tune)
    seconds = find_whole_note_seconds(header.metre)
    sounds: list[Sound] = []
    place, is_tied = Fraction(0), False
    for note in (note for bar in unfold(bars) for note in bar.notes):
        start, length = float(place) * seconds, float(note.length) * seconds
        if note.pitch is not None and is_tied and sounds[-1].pitch == note.pitch:
            sounds[-1] = sounds[-1]._replace(seconds=sounds[-1].seconds + length)
        elif note.pitch is not None and note.pitch in PITCHES and place < MAX_WHOLE_NOTES:
            sounds.append(Sound(start, length, note.pitch))
        place, is_tied = place + note.length, note.is_tied and bool(sounds)
    return header, sounds
