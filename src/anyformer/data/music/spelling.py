"""Pitches to the notes of a key."""

from .abc import find_sharps
from .score import ACCIDENTALS, MIDDLE_C, SEMITONES, find_key_alterations

LETTERS = "CDEFGAB"
SIGNS = {alteration: sign for sign, alteration in ACCIDENTALS.items()}


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
