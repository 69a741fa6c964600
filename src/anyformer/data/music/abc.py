"""Tunes in ABC notation (abcnotation.com, standard 2.1), as their melody in one normal form.

    X:1                          M:6/8
    T:Bundle and Go -- Jig  ->   K:G
    M:6/8                        GBB BAG|FAA AGF|... G2:||:Eee efg|...
    L:1/8
    K:G
    vGBB BAG | FAA AGF | ...

The header is the metre, the unit of length where it is not ABC's default for the metre, and the key; then the melody in
one line: notes, rests, ties, tuplets, dotted pairs and bar lines, with the spaces that part groups of notes. Left out
are titles, names, words, fingerings, bowings, ornaments, grace notes, slurs and the lower notes of chords.
"""

import re
from collections.abc import Iterator
from fractions import Fraction
from typing import NamedTuple

from ...errors import InputError

MAX_TUNE_CHARACTERS, MAX_LENGTH_CHARACTERS = 20_000, 6  # of a tune, and of the number behind a note
MAX_SHARPS = 7  # or flats
ALPHABET = "\n #'(,-/0123456789:<=>ABCDEFGKLM]^_abcdefghilmoprxyz|"  # of tunes in normal form
MODES = {"": 0, "maj": 0, "ion": 0, "m": -3, "min": -3, "aeo": -3, "mix": -1, "dor": -2, "phr": -4, "lyd": 1, "loc": -5}
MODE_NAMES = {"maj": "", "ion": "", "min": "m", "aeo": "m"}
FIFTHS = "FCGDAEB"
METRES = {"C": "4/4", "C|": "2/2"}
BREAKS = re.compile(r"(?m)^(?=X:)")
FIELD = re.compile(r"([A-Za-z]):\s*(.*)")
BODY_FIELD = re.compile(r"[IKLMNPQRTUVWmrsw]:(?![|:])")
KEY = re.compile(r"([A-G])([#b]?)\s*([A-Za-z]*)")
IGNORED = re.compile(r'"[^"]*"|![^!\n]*!|\+\w+\+|\{[^}]*\}|=(20)?(?=\n)|\\|[.~H-Wh-wy`$*#@]')
LENGTH = r"\d*/*\d*"
TOKEN = re.compile(
    rf"(?P<bar>[|\[\]:]+(?:\s*\[?\d)?)|(?P<pitch>[_^=]*[A-Ga-g][,']*)(?P<length>{LENGTH})"
    rf"|[zx](?P<silence>{LENGTH})|(?P<tie>-)|\((?P<tuplet>\d(?::\d?)*)|(?P<dots>[<>]+)|(?P<space>\s+)"
    rf"|(?P<slur>[()])"
)
CHORD = re.compile(rf"\[([_^=]*[A-Ga-g][,']*)({LENGTH})[^\]|]*\]({LENGTH})")


class Header(NamedTuple):
    """What a tune says before its first note."""

    metre: str
    """"6/8"."""
    unit: str
    """The length of a note without a number: "1/8"."""
    key: str
    """A letter, maybe # or b, and the mode: "G", "Am", "Edor"."""

    def __str__(self) -> str:
        unit = "" if self.unit == find_default_unit(self.metre) else f"L:{self.unit}\n"
        return f"M:{self.metre}\n{unit}K:{self.key}\n"


def find_default_unit(metre: str) -> str:
    """Return the length of a note without a number, of a tune that names none: 1/16 in metres below 3/4, else 1/8."""
    return "1/16" if Fraction(metre) < Fraction(3, 4) else "1/8"


def split_tunes(text: str) -> list[str]:
    """Return the tunes of a file, each from its field X on."""
    return [part for part in BREAKS.split(text.replace("\r\n", "\n")) if part.startswith("X:")]


def normalize_tune(text: str) -> str:
    """Return a tune in normal form. Raises InputError, if it is no tune of one voice in one metre and key."""
    header, body = read_header(text)
    melody = normalize_melody(body)
    if not re.search("[A-Ga-g]", melody):
        raise InputError("no notes after the key (K:)")
    return f"{header}{melody}"


def normalize_beginning(text: str, metre: str = "", key: str = "") -> str:
    """Return the beginning of a tune in normal form: fields M, L and K, or the metre and the key by themselves, and
    maybe first bars. Without all of them, as much as there is. Raises InputError."""
    text = text.replace("\\n", "\n").lstrip()  # as a shell passes it on between single quotes
    fields = {match[1]: match[2].strip() for match in map(FIELD.match, text.split("\n")) if match}
    metre, key = fields.get("M", metre), fields.get("K", key)
    if "K" in fields:
        header, melody = read_header(f"M:{metre or '4/4'}\n{text}")
    elif key:
        header, melody = read_header(f"M:{metre or '4/4'}\nL:{fields.get('L', '')}\nK:{key}\n{text}")
    elif not text or "M" in fields:
        return f"M:{normalize_metre(metre)}\n" if metre else ""
    else:
        raise InputError("the first bars need a key: a line K:G before them")
    return f"{header}{normalize_melody(melody, is_whole=False)}"


def read_header(text: str) -> tuple[Header, str]:
    """Return the header of a tune, and what comes after the key. Raises InputError."""
    if len(text) > MAX_TUNE_CHARACTERS:
        raise InputError(f"a tune of more than {MAX_TUNE_CHARACTERS:,} characters")
    fields: dict[str, str] = {}
    lines = [line.partition("%")[0].strip() for line in text.splitlines()]
    for number, line in enumerate(lines):
        if match := FIELD.match(line):
            fields.setdefault(match[1], match[2].strip())
        if "K" in fields:
            body = "\n".join(lines[number + 1 :])
            break
    else:
        raise InputError("no key (K:): a tune begins with lines M: and K:")
    metre = normalize_metre(fields.get("M", "4/4"))
    unit = fields.get("L", "").replace(" ", "") or find_default_unit(metre)
    if not re.fullmatch(r"1/(1|2|4|8|16|32)", unit):
        raise InputError(f"L:{unit}: expected a length such as 1/8")
    return Header(metre, unit, normalize_key(fields["K"])), body


def normalize_metre(text: str) -> str:
    metre = METRES.get(text.strip(), text.replace(" ", ""))
    if not re.fullmatch(r"[1-9]\d?/(1|2|4|8|16)", metre):
        raise InputError(f"M:{text}: expected a metre such as 6/8 or 4/4")
    return metre


def normalize_key(text: str) -> str:
    """Return a key with the mode in ABC's short form. Raises InputError."""
    if match := KEY.match(text):
        mode = "maj" if match[3] == "M" else match[3][:3].lower()
        key = f"{match[1]}{match[2]}{MODE_NAMES.get(mode, mode)}"
        if mode in MODES and abs(find_sharps(key)) <= MAX_SHARPS:
            return key
    raise InputError(f"K:{text[:40]}: expected a key such as G, Bb, Am or Edor")


def find_sharps(key: str) -> int:
    """Return how many sharps a normalized key has; flats count below 0."""
    letter, mode = key[0], key[1:].lstrip("#b")
    return FIFTHS.index(letter) - 1 + 7 * (key[1:2] == "#") - 7 * (key[1:2] == "b") + MODES[mode]


# --- the melody ---


def normalize_melody(text: str, is_whole: bool = True) -> str:
    """Return the melody of the lines after the key in one line; a `whole` one ends with a bar line. Raises
    InputError."""
    lines = []
    for line in text.split("\n"):
        if match := BODY_FIELD.match(line):
            refuse_change(match[0])
            continue
        lines.append(line)
    for field in re.findall(r"\[([A-Za-z]):[^\]]*\]", text):
        refuse_change(f"{field}:")
    body = re.sub(r"\[[A-Za-z]:[^\]]*\]", "", "\n".join(lines))
    body = IGNORED.sub("", body)
    body = CHORD.sub(lambda match: match[1] + (match[2] or match[3]), body)
    return join_parts(tokenize(body), is_whole)


def refuse_change(field: str) -> None:
    if field[0] in "KLMV":
        raise InputError(f"{field} after the first note: one metre, key and voice is read")


def tokenize(body: str) -> Iterator[tuple[str, str]]:
    """Yield kind and normal text of the parts of a melody. Raises InputError."""
    place = 0
    while place < len(body):
        match = TOKEN.match(body, place)
        if match is None:
            raise InputError(f"{body[place]!r} in {body[max(0, place - 8) : place + 8]!r} is no note and no bar line")
        place = match.end()
        kind = match.lastgroup or ""
        if kind == "length":
            yield "note", match["pitch"] + format_length(read_length(match["length"]))
        elif kind == "silence":
            yield "note", "z" + format_length(read_length(match["silence"]))
        elif kind == "tuplet":
            yield kind, f"({match['tuplet'].rstrip(':')}"
        elif kind != "slur":
            yield kind, match[0]


def read_length(text: str) -> Fraction:
    """Return the factor that is written behind a note: "" is 1, "3/2", "/" is 1/2, "//" is 1/4."""
    slashes = text.count("/")
    numerator, _, denominator = text.partition("/" * slashes) if slashes else (text, "", "")
    if len(text) > MAX_LENGTH_CHARACTERS or 0 in (int(numerator or 1), int(denominator or 1)):
        raise InputError(f"the length {text[:20]!r} of a note: expected for example 2, 3/2 or /")
    return Fraction(int(numerator or 1), int(denominator) if denominator else 2**slashes)


def format_length(length: Fraction) -> str:
    if length.denominator == 1:
        return "" if length == 1 else str(length.numerator)
    below = {2: "/", 4: "//"}.get(length.denominator, f"/{length.denominator}") if length.numerator == 1 else ""
    return below or f"{length.numerator}/{length.denominator}"


def join_parts(parts: Iterator[tuple[str, str]], is_whole: bool = True) -> str:
    """Join the parts of a melody: one space between groups of notes and none around bar lines, which are written in one
    way, and ties between notes of one pitch only."""
    text = bar = tied_pitch = ""
    has_space, place = False, 0
    for kind, part in parts:
        if kind == "space":
            has_space = True
        elif kind == "bar":
            bar += re.sub(r"\s", "", part)
        elif kind == "tie":
            tied_pitch, place = find_pitch(text), len(text)
        else:
            if kind == "note" and tied_pitch:
                text = f"{text[:place]}-{text[place:]}" if tied_pitch == find_pitch(part) else text
                tied_pitch = ""
            gap = format_bar(bar, not text) if bar else " " if has_space and text and kind != "dots" else ""
            text, bar, has_space = f"{text}{gap}{part}", "", False
    ending = format_bar(bar, not text) if bar else ""
    return text + ((":|" if bar.startswith(":") else "|]") if is_whole else ending)


def find_pitch(text: str) -> str:
    """Return the pitch of the note at the end of a melody; "" if there is none."""
    match = re.search(r"([_^=]*[A-Ga-g][,']*)[\d/]*$", text[-2 * MAX_LENGTH_CHARACTERS :])
    return match[1] if match else ""


def format_bar(bar: str, is_first: bool) -> str:
    """Return a bar line, or several that follow each other, in one way: | || |: :| :: |1 :|2."""
    ends, starts = bar.startswith(":") and not is_first, bar.endswith(":")
    if bar[-1].isdigit():
        return f":|{bar[-1]}" if ends else f"|{bar[-1]}"
    if is_first:
        return "|:" if starts else ""
    if ends:
        return "::" if starts and bar != ":" else ":|"
    return "|:" if starts else "||" if len(bar) > 1 else "|"
