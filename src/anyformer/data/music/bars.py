"""Bars that last as long as the metre says: which characters may follow the beginning of a tune in normal form.

A bar ends where it is full. The first one of a part may be shorter, an upbeat; then the last one of a part may lack as
much as an upbeat before it has. A tune ends with a bar line that ends a part.
"""

from copy import copy
from fractions import Fraction
from functools import lru_cache
from typing import Self

from ...errors import InputError
from .abc import Header, read_header
from .score import parse_bars

LINES = ("|", "||", "|:", "::", ":|", "|1", "|2", ":|1", ":|2", "|]")
ENDS = ("|]", ":|")  # lines that end a tune
LINE_PREFIXES = {line[:n] for line in LINES for n in range(1, len(line) + 1)}
PITCHES, ACCIDENTALS = "ABCDEFGabcdefg", "^_="
NOTES = PITCHES + "xz"
NOTE_STARTS = NOTES + ACCIDENTALS + "("  # of a note, a rest or a tuplet
VOLTAS = "12"  # first and second endings
MAX_BAR = 200  # characters; a longer one is not measured, and anything may follow


@lru_cache(1 << 14)
def measure_bar(bar: str, header: Header) -> Fraction | None:
    """Return how long the notes of a bar last, in whole notes; None if they cannot be read."""
    try:
        return sum((part.length for part in parse_bars(bar, header)), Fraction(0))
    except InputError:
        return None


class BarRule:
    """A tune in normal form as it grows, character by character; until its key is known, any character may follow."""

    def __init__(self, text: str = ""):
        self.text, self.header, self.metre = "", None, Fraction(1)
        self.bar, self.line = "", ""
        """What has been written of a bar, and of the bar line behind it; if that is there, the bar has ended."""
        self.may_be_upbeat, self.ends_part = True, False
        self.upbeats: frozenset[Fraction] = frozenset()
        for character in text:
            self.append(character)

    def copy(self) -> Self:
        return copy(self)

    def append(self, character: str) -> None:
        if self.header is None:
            self.append_to_header(character)
        elif self.is_line(character):
            self.end_bar()
            self.line += character
        else:
            if self.line:
                self.begin_bar()
            self.bar += character

    def append_to_header(self, character: str) -> None:
        self.text += character
        if character == "\n" and self.text.splitlines()[-1].startswith("K:"):
            try:
                self.header, _ = read_header(self.text)
                self.metre = Fraction(self.header.metre)
            except InputError:  # a key that there is not: whatever follows is no tune
                self.text = ""

    def is_line(self, character: str) -> bool:
        """Whether a character is of a bar line, and not of a tuplet such as (3:2:3 or of the length of a note."""
        if character in VOLTAS:
            return self.line + character in LINE_PREFIXES
        return character in "|:]" and not (character == ":" and not self.line and self.is_in_tuplet)

    @property
    def is_in_tuplet(self) -> bool:
        """Whether the bar ends with the numbers of a tuplet."""
        return self.bar.rstrip(":0123456789").endswith("(")

    @property
    def is_note_last(self) -> bool:
        """Whether the bar ends with a whole note or rest."""
        return self.bar[-1:] not in ("", *" ^_=(<>") and not self.is_in_tuplet

    @property
    def length(self) -> Fraction | None:
        return self.measure("")

    def end_bar(self) -> None:
        if not self.line and self.bar:
            length = self.length or Fraction(0)
            if self.may_be_upbeat and length < self.metre:
                self.upbeats |= {length}
            self.ends_part = not self.may_be_upbeat and length != self.metre

    def begin_bar(self) -> None:
        is_ending = self.line[-1] in VOLTAS
        self.may_be_upbeat = self.line != "|" and not is_ending
        self.bar = self.line = ""
        self.ends_part = False

    # --- what may follow ---

    @property
    def may_end(self) -> bool:
        """Whether the tune may end here."""
        return self.header is None or self.line.endswith(ENDS)

    def allows(self, character: str) -> bool:
        """Whether this character may follow."""
        if self.header is None:
            return True
        if self.is_line(character):
            is_first = not self.line  # : ends a part
            may_begin = character == ":" or self.may_close
            return self.line + character in LINE_PREFIXES and (not is_first or (self.is_note_last and may_begin))
        if self.line:  # a bar that lacks the upbeat is the last of its part
            return character in NOTE_STARTS and self.line in LINES and not (self.ends_part and self.line == "|")
        return self.allows_in_bar(character)

    @property
    def may_close(self) -> bool:
        """Whether the bar may end with a line that ends no part."""
        length, following = self.length, self.measure("c")
        if length is None or following is None or not self.header:
            return True
        if following - length != Fraction(self.header.unit):  # a tuplet or a dotted pair lacks a note
            return False
        is_short = 0 < length < self.metre and self.may_be_upbeat
        return length == self.metre or is_short or self.metre - length in self.upbeats

    def may_follow(self, character: str) -> bool:
        """Whether this character may stand behind the last one of the bar, as ABC is written."""
        last = self.bar[-1:]
        if self.is_in_tuplet:
            return character.isdigit() or (last != "(" and character in ":" + NOTES + ACCIDENTALS)
        if last and last in ACCIDENTALS:
            return character in PITCHES or character == last != self.bar[-2:-1]
        if last in " <>-":
            return character in NOTE_STARTS or (last, character) in {("-", " "), ("<", "<"), (">", ">")}
        return (
            character in NOTE_STARTS + "/<>- " or character.isdigit() or (character in ",'" and last in PITCHES + ",'")
        )

    def allows_in_bar(self, character: str) -> bool:
        length = self.length
        if length is None or not self.may_follow(character):
            return length is None
        if character == "(":
            return self.fits("(3c/c/c/")
        if character in NOTE_STARTS + " ":
            return length < self.metre
        if character.isdigit():
            if self.bar.endswith("("):  # a tuplet of so many notes
                return self.fits(character + "c/" * int(character))
            return any(self.fits(character + divisor) for divisor in ("", "/2"))  # 3 may become 3/2
        if character in "<>":
            return self.fits(character) and self.measure(character) != self.metre
        return self.measure(character) is not None

    def measure(self, text: str) -> Fraction | None:
        """Return how long the bar is with this text behind it; None if that cannot be read."""
        return measure_bar(self.bar + text, self.header) if self.header and len(self.bar) <= MAX_BAR else None

    def fits(self, text: str) -> bool:
        """Whether the bar is not too long with this text behind it."""
        length = self.measure(text)
        return length is not None and length <= self.metre
