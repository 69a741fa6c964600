"""Words with times, and subtitles: files of SubRip (srt) or WebVTT (vtt) that show them. Imports no torch."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

MAX_CHARACTERS, MAX_SECONDS, MAX_PAUSE = 84, 7.0, 0.8  # of a cue: two lines of 42, and what is read with ease
MAX_LINE = 42
SENTENCE_ENDS = tuple(".?!。？！")
FORMATS = ("srt", "vtt")


@dataclass(frozen=True)
class Word:
    """A word with the punctuation around it; start and end in seconds."""

    text: str
    start: float
    end: float

    def to_json(self) -> dict[str, str | float]:
        return {"word": self.text, "start": round(self.start, 3), "end": round(self.end, 3)}


def find_cues(words: Sequence[Word]) -> Iterator[Word]:
    """Yield the words that are shown together, as one text each: a cue ends with a sentence, or before a pause."""
    cue: list[Word] = []
    for word in words:
        text = " ".join(part.text for part in [*cue, word])
        is_too_long = len(text) > MAX_CHARACTERS or (cue and word.end - cue[0].start > MAX_SECONDS)
        if cue and (is_too_long or word.start - cue[-1].end > MAX_PAUSE or cue[-1].text.endswith(SENTENCE_ENDS)):
            yield join_words(cue)
            cue = []
        cue.append(word)
    if cue:
        yield join_words(cue)


def join_words(cue: Sequence[Word]) -> Word:
    return Word(" ".join(word.text for word in cue), cue[0].start, max(cue[-1].end, cue[0].start))


def format_subtitles(words: Sequence[Word], kind: str) -> str:
    """Return the text of a file. `kind`: srt or vtt."""
    cues = [*find_cues(words)]
    parts = ["WEBVTT"] if kind == "vtt" else []
    for i, cue in enumerate(cues, start=1):
        times = f"{format_time(cue.start, kind)} --> {format_time(cue.end, kind)}"
        text = break_lines(cue.text)
        parts.append(
            "\n".join([*([str(i)] if kind == "srt" else []), times, escape_vtt(text) if kind == "vtt" else text])
        )
    return "\n\n".join(parts) + "\n"


def escape_vtt(text: str) -> str:
    """Write `<`, `&` and `>` as HTML does: WebVTT has tags."""
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def break_lines(text: str) -> str:
    """Break a text that is longer than a line at the space nearest to its middle."""
    spaces = [i for i, character in enumerate(text) if character == " "]
    if len(text) <= MAX_LINE or not spaces:
        return text
    middle = min(spaces, key=lambda i: abs(2 * i - len(text)))
    return f"{text[:middle]}\n{text[middle + 1 :]}"


def format_time(seconds: float, kind: str) -> str:
    """Return 00:01:02,345 (srt), or with a point (vtt)."""
    milliseconds = round(seconds * 1000)
    minutes, milliseconds = divmod(milliseconds, 60_000)
    hours, minutes = divmod(minutes, 60)
    seconds, milliseconds = divmod(milliseconds, 1000)
    point = "," if kind == "srt" else "."
    return f"{hours:02}:{minutes:02}:{seconds:02}{point}{milliseconds:03}"


def find_subtitle_format(path: Path) -> str | None:
    """Return the format that a file's ending names, or None."""
    ending = path.suffix.lower().removeprefix(".")
    return ending if ending in FORMATS else None
