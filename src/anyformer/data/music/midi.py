"""Melodies to and from MIDI files, through mido."""

from collections import defaultdict
from fractions import Fraction
from io import BytesIO
from pathlib import Path
from typing import Any

from ...errors import InputError
from ..io.files import import_optional
from ..io.regular_file import read_regular
from .abc import Header, find_default_unit, find_sharps, format_length, normalize_key, normalize_metre, normalize_tune
from .score import find_whole_note_seconds, list_sounds, read_bars
from .spelling import guess_key, spell_pitch

NEEDS_MIDO = "MIDI files need mido: pip install 'anyformer[music]'"
MAX_MIDI_BYTES, MAX_NOTES = 4 << 20, 20_000
TICKS, VELOCITY = 480, 80  # of a quarter
DRUMS = 9  # a channel
GRID = 32  # steps of a whole note to which a melody is rounded
MAJOR_KEYS = ("Cb", "Gb", "Db", "Ab", "Eb", "Bb", "F", "C", "G", "D", "A", "E", "B", "F#", "C#")  # by sharps, from -7


def write_midi(tune: str, path: Path) -> None:
    """Write a tune as it is played to a MIDI file. Raises InputError without mido."""
    mido = import_optional("mido", NEEDS_MIDO)
    header, sounds = list_sounds(tune)
    whole_seconds, upbeat = find_whole_note_seconds(header.metre), read_bars(tune)[1][0].length
    late = max(Fraction(0), Fraction(header.metre) - upbeat)  # the first whole bar begins where one does
    beats, unit = map(int, header.metre.split("/"))
    file = mido.MidiFile(type=0, ticks_per_beat=TICKS)
    track = file.add_track()
    track.append(mido.MetaMessage("time_signature", numerator=beats, denominator=unit))
    track.append(mido.MetaMessage("key_signature", key=MAJOR_KEYS[find_sharps(header.key) + 7]))
    track.append(mido.MetaMessage("set_tempo", tempo=round(whole_seconds / 4 * 1e6)))
    events = []
    for sound in sounds:
        ends = (sound.start, sound.start + sound.seconds)
        start, stop = (round((seconds / whole_seconds + float(late)) * 4 * TICKS) for seconds in ends)
        events += [(start, 1, sound.pitch), (stop, 0, sound.pitch)]
    time = 0
    for tick, is_on, pitch in sorted(events):
        track.append(mido.Message("note_on", note=pitch, velocity=VELOCITY * is_on, time=tick - time))
        time = tick
    file.save(path)


def read_midi(path: Path) -> str:
    """Return the melody of a MIDI file as a tune in normal form: the voice with the most notes, rounded to
    thirty-second notes, of notes that begin together the highest. Raises InputError."""
    mido = import_optional("mido", NEEDS_MIDO)
    try:
        file = mido.MidiFile(file=BytesIO(read_regular(path, MAX_MIDI_BYTES)), clip=True)
        notes, metas = read_voice(file)
    except InputError:
        raise
    except Exception as error:  # mido raises many kinds, for a damaged file
        raise InputError(f"{path}: damaged MIDI file ({error or type(error).__name__})") from None
    if not notes:
        raise InputError(f"{path}: no notes in it")
    step = Fraction(4 * file.ticks_per_beat, GRID)
    time, key_message = metas.get("time_signature"), metas.get("key_signature")
    metre = normalize_metre(f"{time.numerator}/{time.denominator}" if time else "4/4")
    key = normalize_key(key_message.key if key_message else guess_key([pitch for _, _, pitch in notes]))
    header = Header(metre, find_default_unit(metre), key)
    steps = [(round(start / step), round(stop / step), pitch) for start, stop, pitch in notes]
    return normalize_tune(f"{header}{write_melody(steps, header)}")


def read_voice(file: Any) -> tuple[list[tuple[int, int, int]], dict[str, Any]]:
    """Return (start, stop, pitch) in ticks of the notes of the voice that has the most, and the first message of each
    kind of meta message."""
    voices: defaultdict[tuple[int, int], list[tuple[int, int, int]]] = defaultdict(list)
    metas: dict[str, Any] = {}
    for number, track in enumerate(file.tracks):
        tick, starts = 0, dict[tuple[int, int], int]()
        for message in track:
            tick += message.time
            if message.is_meta:
                metas.setdefault(message.type, message)
            elif message.type in ("note_on", "note_off") and message.channel != DRUMS:
                start = starts.pop((message.channel, message.note), None)
                if start is not None and tick > start:
                    voices[number, message.channel].append((start, tick, message.note))
                if message.type == "note_on" and message.velocity:
                    starts[message.channel, message.note] = tick
    notes = max(voices.values(), key=len, default=[])
    return sorted(notes, key=lambda note: (note[0], -note[2]))[:MAX_NOTES], metas


def write_melody(notes: list[tuple[int, int, int]], header: Header) -> str:
    """Return (start, stop, pitch) in steps of the grid as bars of ABC, with ties across bar lines."""
    bar = int(Fraction(header.metre) * GRID)
    beat = 3 * GRID // 8 if header.metre.endswith("/8") else GRID // 2 if header.metre in ("4/4", "2/2") else GRID // 4
    unit, text, local = Fraction(header.unit) * GRID, "", dict[str, int]()
    place = notes[0][0]  # rests before the first note are an upbeat
    starts = sorted({start for start, _, _ in notes})
    for i, start in enumerate(starts):
        _, stop, pitch = next(note for note in notes if note[0] == start)
        following = starts[i + 1] if i + 1 < len(starts) else max(stop, start + 1)
        stop = min(max(stop, start + 1), following)
        for begin, end, sound in ((start, stop, pitch), (stop, following, None)):
            place = begin
            while place < end:
                piece = min(end, place - place % bar + bar)
                name = "z" if sound is None else spell_pitch(sound, header.key, local)
                text += name + format_length((piece - place) / unit) + ("-" if sound and piece < end else "")
                place = piece
                text += "|" if place % bar == 0 else " " if place % bar % beat == 0 else ""
                local = {} if place % bar == 0 else local
    return text
