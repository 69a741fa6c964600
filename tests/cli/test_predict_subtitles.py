"""`anyformer predict RUN SOUND --out FILE.srt`: when each word was said."""

import wave
from pathlib import Path

import numpy as np

from cli_kit import assert_refused, call, nothing_changes


def write_sound(path: Path, seconds: float) -> Path:
    samples = (8000 * np.sin(np.arange(round(16000 * seconds)) * 0.3)).astype("<i2")
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(16000)
        file.writeframes(samples.tobytes())
    return path


def test_subtitles_are_written_or_one_line_says_why_not(tmp_path: Path):
    run = tmp_path / "run"
    call("train", "speech", "--preset", "tiny", "--steps", 2, "--device", "cpu", "--out", run).ok()
    sound, out = write_sound(tmp_path / "a.wav", 2.5), tmp_path / "a.srt"
    result = call("predict", run, sound, "--out", out).ok()
    assert result.out == "" and "a.srt: " in result.err and " words in 2.5 s of sound" in result.err
    facts = call("predict", run, sound, "--out", tmp_path / "a.vtt", "--json").ok().json
    assert facts["seconds"] == 2.5
    answer = call("predict", run, sound, "--words", "true", "--json").ok().json["results"][0]
    assert len(answer["words"]) == facts["words"]
    assert (tmp_path / "a.vtt").read_text().startswith("WEBVTT\n")
    assert out.read_text().count(" --> ") == (tmp_path / "a.vtt").read_text().count(" --> ")
    with nothing_changes(tmp_path):
        assert_refused(call("predict", run, sound, sound, "--out", out), "subtitles of one sound")
        assert_refused(call("predict", run, "--file", sound, "--out", out), "subtitles of one sound")
        assert_refused(call("predict", run, sound, "--out", tmp_path / "none" / "a.srt"), "there is no folder")
        assert_refused(call("predict", run, sound, "--out", out, "--language", "fr"), "trained on one language")
        assert_refused(call("predict", run, sound, "--out", out, "--task", "sing"), "task is 'sing'")
