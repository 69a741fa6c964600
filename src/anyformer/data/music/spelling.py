"""Pitches to the notes of a key, and tunes to other keys."""

import re

from .abc import Header, find_sharps, read_header
from .score import ACCIDENTALS, MIDDLE_C, SEMITONES, find_key_alterations

LETTERS = "CDEFGAB"
SIGNS = {alteration: sign for sign, alteration in ACCIDENTALS.items()}
MAX_SHARPS = 4  # of keys that tunes are moved to
PITCH = re.compile(r"([_^=]*)([A-Ga-g])([,']*)")


def move_tune(tune: str, steps: int) -> str | None:
    """Return a tune some steps of the scale higher, in the mode that it has; None where no key of few sharps or flats
    is there, or a note has no usual name."""
    header, body = read_header(tune)
    key = move_key(header.key, steps)
    if key is None:
        return None
    old, new = find_key_alterations(header.key), find_key_alterations(key)
    is_usual = True

    def move(match: re.Match[str]) -> str:
        nonlocal is_usual
        letter, degree = match[2].upper(), LETTERS.index(match[2].upper()) + steps
        octave, moved = divmod(degree, 7)
        octave += match[2].islower() + match[3].count("'") - match[3].count(",")
        sign = match[1] and SIGNS.get(ACCIDENTALS[match[1]] - old.get(letter, 0) + new.get(LETTERS[moved], 0), "?")
        is_usual = is_usual and sign != "?"
        return sign + name_octave(LETTERS[moved], octave)

    melody = PITCH.sub(move, body)
    return f"{Header(header.metre, header.unit, key)}{melody}" if is_usual else None


def move_key(key: str, steps: int) -> str | None:
    """Return the key of the same mode some steps higher that has the fewest sharps or flats; None if they are many."""
    letter, mode = LETTERS[(LETTERS.index(key[0]) + steps) % 7], key[1:].lstrip("#b")
    keys = [f"{letter}{sign}{mode}" for sign in ("", "#", "b")]
    best = min(keys, key=lambda name: abs(find_sharps(name)))
    return best if abs(find_sharps(best)) <= MAX_SHARPS else None


def name_octave(letter: str, octave: int) -> str:
    """Return a letter as ABC writes it in an octave; 0 begins at middle C."""
    return letter.lower() + "'" * (octave - 1) if octave > 0 else letter + "," * -octave


def spell_pitch(pitch: int, key: str, local: dict[str, int]) -> str:
    """Return the name of a MIDI number in a key; `local` holds the accidentals of the bar so far, and gets its own."""
    alterations = find_key_alterations(key)
    for sign in (None, 0, 1, -1) if find_sharps(key) >= 0 else (None, 0, -1, 1):
        for letter in LETTERS:
            for octave in range((pitch - MIDDLE_C) // 12 - 1, (pitch - MIDDLE_C) // 12 + 2):
                name = name_octave(letter, octave)
                current = local.get(name, alterations.get(letter, 0))
                alteration = current if sign is None else sign
                if MIDDLE_C + 12 * octave + SEMITONES[letter] + alteration == pitch:
                    if alteration == current:
                        return name
                    local[name] = alteration
                    return SIGNS[alteration] + name
    raise AssertionError("every pitch is a letter or a sharp one")


def guess_key(pitches: list[int]) -> str:
    """Return the major key with the fewest sharps or flats that has the most of these pitches."""
    keys = sorted(
        (f"{letter}{sign}" for letter in LETTERS for sign in ("", "#", "b")), key=lambda k: abs(find_sharps(k))
    )

    def count(key: str) -> int:
        scale = {(SEMITONES[letter] + find_key_alterations(key).get(letter, 0)) % 12 for letter in LETTERS}
        return sum(pitch % 12 in scale for pitch in pitches)

    return max(keys[:12], key=count)
