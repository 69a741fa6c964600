"""Tunes: ABC notation in one normal form, their bars and pitches, other keys, MIDI and sound."""

import wave
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from anyformer.data.music.abc import ALPHABET, find_sharps, normalize_beginning, normalize_tune
from anyformer.data.music.midi import read_midi, write_midi
from anyformer.data.music.score import count_complete, list_sounds, read_bars, unfold
from anyformer.data.music.spelling import guess_key, spell_pitch
from anyformer.data.music.synthesis import RATE, synthesize, write_wav
from anyformer.data.music.tunes import find_copy, format_tune, list_beginning, read_tunes
from data_kit import SMALL_DATA, needs_data, refuses, write

JIG = """X:1
T:A jig -- with all that is left out
C:Someone
M: 6/8
L:1/8
K: G major % of the fiddle
w:la la
vGB"4"B {AB}(BAG) | .F~AA !trill![AC]GF |\\
u"Slow"G2 A B>AG | A-A2 A3 :|
[|(3efg a2 b/ c'// |1 G,2=F _E2D:|[2 G6 |]
"""
NORMAL = "M:6/8\nK:G\nGBB BAG|FAA AGF|G2 A B>AG|A-A2 A3:|(3efg a2 b/ c'//|1G,2=F _E2D:|2G6|]"


def sounds(tune: str) -> list[tuple[float, float, int]]:
    return [(round(start, 4), round(seconds, 4), pitch) for start, seconds, pitch in list_sounds(tune)[1]]


# --- the normal form ---


def test_a_tune_has_one_normal_form():
    assert normalize_tune(JIG) == NORMAL and set(NORMAL) <= set(ALPHABET)
    assert normalize_tune("X:1\n" + NORMAL) == normalize_tune(format_tune(NORMAL)) == NORMAL
    assert format_tune(NORMAL, 7).startswith("X:7\nT:Tune 7\nM:6/8\nL:1/8\nK:G\nGBB BAG|FAA AGF|")
    assert normalize_tune("X:1\nM:C|\nL:1/16\nK:Amin\nA4-|B4") == "M:2/2\nL:1/16\nK:Am\nA4|B4|]"  # a slur
    assert normalize_tune("X:1\nM:2/4\nL:1/16\nK:EDor\n:A4||B4::c3/2d1/2-(3d/e/f/|") .splitlines()[1:] == [
        "K:Edor", "|:A4||B4::c3/2d/-(3d/e/f/|]",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("X:1\nM:6/8\n", ("no key (K:)",)),
        ("X:1\nM:6/8\nK:H\nABc|", ("K:H", "expected a key such as G")),
        ("X:1\nM:none\nK:G\nABc|", ("M:none", "6/8 or 4/4")),
        ("X:1\nM:6/8\nL:2/7\nK:G\nABc|", ("L:2/7", "1/8")),
        ("X:1\nM:6/8\nK:G\n|]", ("no notes",)),
        ("X:1\nM:6/8\nK:G\nABc|&ABc|", ("'&'", "is no note")),
        ("X:1\nM:6/8\nK:G\nABc/0|", ("length '/0'",)),
        ("X:1\nM:6/8\nK:G\nABc|\nK:D\nABc|", ("K:", "after the first note")),
        ("X:1\nM:6/8\nK:G\nABc|[M:9/8]ABc|", ("M:", "after the first note")),
    ],
)
def test_what_is_no_tune_is_refused_in_one_line(text: str, parts: tuple[str, ...]):
    with refuses(*parts):
        normalize_tune(text)


def test_a_beginning_is_normalized_as_far_as_it_goes():
    assert normalize_beginning("M:C\\nK:Gmaj\\n GBB | d") == "M:4/4\nK:G\nGBB|d"  # from a shell, between single quotes
    assert normalize_beginning("", "6/8", "Em") == "M:6/8\nK:Em\n" and normalize_beginning("") == ""
    assert normalize_beginning("GAB |", "3/4", "D") == "M:3/4\nK:D\nGAB|" and normalize_beginning("M:9/8") == "M:9/8\n"
    with refuses("the first bars need a key"):
        normalize_beginning("GAB|")


# --- bars and pitches ---


def test_bars_last_as_long_as_their_notes():
    header, bars = read_bars(NORMAL)
    lengths = [Fraction(1, 8) * n for n in (6, 6, 6, 6, Fraction(19, 4), 6, 6)]
    assert [bar.length for bar in bars] == lengths and header.metre == "6/8"
    assert count_complete(NORMAL) == (2, 2)  # the others touch a repeat or an end, where an upbeat may be
    assert count_complete("M:4/4\nK:C\nC|D8|E7|F2F2F2F2|G4|]") == (2, 3)
    played = [bars.index(bar) for bar in unfold(bars)]
    assert played == [0, 1, 2, 3, 0, 1, 2, 3, 4, 5, 4, 6]
    assert [bar.opens for bar in unfold(read_bars("M:2/4\nK:C\nC8||D8|E8::F8:|")[1])] == [
        "", "||", "|", "||", "|", "::", "::",
    ]  # fmt: skip


def test_pitches_follow_the_key_and_the_accidentals_of_the_bar():
    pitches = [pitch for _, _, pitch in sounds("M:4/4\nK:D\nFf^F=F|F_BB,c'^^c|]")]
    assert pitches == [66, 78, 66, 65, 66, 70, 59, 85, 74]
    assert [find_sharps(key) for key in ("C", "Am", "Edor", "Bb", "F#m", "Dmix", "Ephr")] == [0, 0, 2, -2, 3, 1, 0]
    assert sounds("M:4/4\nK:C\nC2-C2 z2 D>E|]") == [(0, 1, 60), (1.5, 0.375, 62), (1.875, 0.125, 64)]


def test_pitches_are_spelled_in_their_key():
    local: dict[str, int] = {}
    assert [spell_pitch(pitch, "D", local) for pitch in (66, 78, 65, 65, 66, 70, 57)] == [
        "F", "f", "=F", "F", "^F", "^A", "A,",
    ]  # fmt: skip
    assert spell_pitch(70, "Dm", {}) == "B" and spell_pitch(66, "F", {}) == "_G"
    assert [guess_key(list(scale)) for scale in ((60, 62, 64, 65), (62, 66, 69, 73), (65, 70, 74, 75))] == [
        "C",
        "D",
        "Bb",
    ]


# --- collections ---


def test_tunes_that_begin_alike_are_in_one_split(tmp_path: Path):
    text = SMALL_DATA["music"].read_text() + "\n" + NORMAL.join(["X:1\n", "\n\nX:2\n"]) + NORMAL.replace("G6", "G2G4")
    write(tmp_path / "a" / "b.abc", text + "\n\nX:3\nK:G\nABc|&\n")
    write(tmp_path / "readme.txt", "no tunes")
    tunes = read_tunes(str(tmp_path), 0.2)
    assert len(tunes.texts) == 26 and set(tunes.split("train")) | set(tunes.split("val")) == set(tunes.texts)
    assert 5 <= len(tunes.split("val")) <= 6
    assert not {*map(list_beginning, tunes.split("train"))} & {*map(list_beginning, tunes.split("val"))}
    with refuses("1 of 27 tunes cannot be read", "b.abc, tune 27", "'&'", "--empty skip"):
        read_tunes(str(tmp_path), 0.2, "error")
    with refuses("no .abc and no .mid"):
        read_tunes(str(write(tmp_path / "c" / "a.txt", "").parent))
    with refuses("no tune in it"):
        read_tunes(str(write(tmp_path / "a.abc", "%abc\n")))


def test_the_longest_copy_is_found():
    assert find_copy("M:4/4\nK:C\nABcd|efga|", "xxBcd|efyy\0ga|") == "Bcd|ef" and find_copy("M:4/4\nK:C\nA", "") == ""


@pytest.mark.slow
@needs_data
def test_the_collections_are_read_nearly_whole():
    tunes = read_tunes("tunes-ryan")
    complete, bars = np.array([count_complete(tune) for tune in tunes.texts[::10]]).sum(0)
    assert len(tunes.texts) == 1005 and len(tunes.split("val")) in range(100, 106) and 0.98 < complete / bars < 1
    assert all(normalize_tune("X:1\n" + tune) == tune for tune in tunes.texts[::50])


# --- MIDI and sound ---


def test_midi_and_back_is_the_same_melody(tmp_path: Path):
    pytest.importorskip("mido", reason="pip install 'anyformer[music]'")
    tune = "M:6/8\nK:Em\nE|G2B e>dB|A-A2 ^c3|=c6|B3-B2:|"
    write_midi(tune, tmp_path / "a.mid")
    again = read_midi(tmp_path / "a.mid")
    assert sounds(again) == sounds(tune)
    assert again.startswith("M:6/8\nK:G\nE|G2B e3/2d/B|A3 ^c3|c6|B5E|")  # one sharp, and repeats are written out
    write(tmp_path / "b.mid", (tmp_path / "a.mid").read_bytes()[:40])
    with refuses("b.mid: damaged MIDI file"):
        read_midi(tmp_path / "b.mid")


def test_a_wav_has_the_pitches_of_the_tune(tmp_path: Path):
    tune = "M:4/4\nK:C\nA4 e4|]"  # 440 and 659.3 hertz, a second each
    write_wav(synthesize(list_sounds(tune)[1]), tmp_path / "a.wav")
    with wave.open(str(tmp_path / "a.wav")) as file:
        assert file.getframerate() == RATE and file.getnchannels() == 1
        samples = np.frombuffer(file.readframes(file.getnframes()), "<i2") / 32768
    assert 2 < len(samples) / RATE < 2.1 and 0.5 < np.abs(samples).max() < 1
    for start, hertz in ((0.0, 440.0), (1.0, 659.26)):
        part = samples[round(start * RATE) : round((start + 1) * RATE)]
        loudest = np.abs(np.fft.rfft(part * np.hanning(len(part)))).argmax() * RATE / len(part)
        assert abs(loudest - hertz) < 1.5
    assert len(synthesize([])) < RATE
