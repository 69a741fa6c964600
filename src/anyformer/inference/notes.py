"""Notes: what a model writes between two marks outlives its context.

When a row outgrows the context, its notes and its newest tokens are read again from position 0 (a scratchpad,
2112.00114, that stays in view). A note is "key = value"; a later one of the same key replaces it. Of a note that has no
"=", the whole text is its key.

A text of any length is read in windows (`read_stream`): wherever the likeliest next token begins a note, the model
writes it, and reads on with it.

Shapes: B rows, T tokens, V entries of the vocabulary.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol, runtime_checkable

import torch

from ..data.tokenizers.base import Tokenizer
from ..errors import InputError
from ..events import report_notice
from .decode import Decoder, generate
from .prompt_reading import pad_rows
from .sampling import SamplingParams

Crop = Callable[[Sequence[int], int], list[int]]
"""Takes the ids of a row and how many of them may be read, and returns those that are."""
MAX_ROWS = 16  # windows of a text that are read at once
MAX_LOGITS = 1 << 24  # of one read: a large vocabulary has fewer rows
MAX_NOTES = 16  # that are written one after the other, before the next token of the text is read


class Note(NamedTuple):
    """A note in a row of ids: where it is, marks included, and its text."""

    start: int
    stop: int
    text: str

    @property
    def key(self) -> str:
        return self.text.partition("=")[0].strip()


@dataclass(frozen=True)
class Notes:
    """The notes of a model: the ids that begin and end them, and the most ids of one."""

    tokenizer: Tokenizer
    start: list[int]
    end: list[int]
    max_tokens: int

    def find(self, ids: Sequence[int]) -> list[Note]:
        """Return all notes in a row of ids that are ended, in order."""
        notes, ids, i = [], list(ids), 0
        while i < len(ids):
            stop = self.find_end(ids, i) if ids[i] == self.start[0] else None
            if stop is not None:
                inside = ids[i + len(self.start) : stop - len(self.end)]
                notes.append(Note(i, stop, self.tokenizer.decode(inside).strip()))
            i = stop or i + 1
        return notes

    def find_end(self, ids: list[int], start: int) -> int | None:
        """Return the index behind the note that begins at `start`; None if none begins there, or it is not ended."""
        first = start + len(self.start)
        if ids[start:first] != self.start:
            return None
        last = min(len(ids), start + self.max_tokens) - len(self.end)
        stops = (i + len(self.end) for i in range(first, last + 1) if ids[i : i + len(self.end)] == self.end)
        return next(stops, None)

    def select(self, notes: Sequence[Note], size: int) -> list[Note]:
        """Return the last note of each key, in order; of more ids than `size` together, the newest."""
        selected: list[Note] = []
        for note in reversed(notes):
            if note.key not in {other.key for other in selected} and (size := size - (note.stop - note.start)) >= 0:
                selected.append(note)
        return selected[::-1]

    def list_texts(self, ids: Sequence[int]) -> list[str]:
        """Return the texts of the notes that hold after these ids."""
        return [note.text for note in self.select(self.find(ids), len(ids))]

    def crop(self, ids: Sequence[int], size: int) -> list[int]:
        """Return the notes in a row, and after them its newest ids: at most `size` together, of which notes have half.

        No note is cut: one that goes on is among the newest ids, because `size` is at least twice the longest note."""
        size = max(size, 2 * self.max_tokens)
        if len(ids) <= size:
            return list(ids)
        notes = self.find(ids)
        selected = self.select(notes, size // 2)
        for cut in range(len(ids) - size, len(ids) + 1):
            stored = [note for note in selected if note.stop <= cut]
            is_inside = any(note.start < cut < note.stop for note in notes)
            if not is_inside and sum(note.stop - note.start for note in stored) + len(ids) - cut <= size:
                break
        return [token for note in stored for token in ids[note.start : note.stop]] + list(ids[cut:])


@runtime_checkable
class HasNotes(Protocol):
    """A decoder that may have notes."""

    notes: Notes | None


def build_notes(config: Any, tokenizer: Tokenizer) -> Notes | None:
    """Return the notes of a causal model whose config has `note_start`; None if it has none. Raises InputError."""
    if not config.note_start:
        return None
    if config.window is not None and config.global_every > config.model.n_layer:
        raise InputError(
            "note_start: with local layers only nothing is read again, also no notes: lower --global-every"
        )
    if 4 * config.note_tokens > config.model.context:
        problem = f"note_tokens is {config.note_tokens} and the context {config.model.context}"
        raise InputError(f"{problem}: a note may have a quarter of the context (--note-tokens)")
    try:
        start, end = (tokenizer.encode(text).tolist() for text in (config.note_start, config.note_end))
    except InputError as error:
        raise InputError(f"note_start or note_end: {error}") from None
    return Notes(tokenizer, start, end, config.note_tokens)


def find_notes(model: Decoder) -> Notes | None:
    return model.notes if isinstance(model, HasNotes) else None


def keep_newest(ids: Sequence[int], size: int) -> list[int]:
    return list(ids[-size:])


def choose_crop(model: Decoder) -> Crop:
    """Return what a row of this model keeps when it outgrows the context."""
    notes = find_notes(model)
    return keep_newest if notes is None else notes.crop


def require_notes(model: Decoder) -> Notes:
    """Return the notes of a model. Raises InputError if it was trained without."""
    notes = find_notes(model)
    if notes is None:
        hint = "train on texts with notes in them, with --note-start and --note-end"
        raise InputError(f"notes: this model was trained without them: {hint} (docs/notes.md)")
    return notes


# --- reading a text of any length ---


@dataclass
class Reading:
    """A row that reads a text: what is in its context, and what it has written."""

    window: list[int]
    n_written: int = 0
    n_unended: int = 0
    """Notes that were begun and not ended within `note_tokens`: they are dropped."""
    log: list[tuple[int, str]] = field(default_factory=list)
    """Of each note, how many ids of the text were read before it, and its text."""


@torch.inference_mode()
def read_stream(model: Decoder, ids: Sequence[int], keep: int | None = None, window: Sequence[int] = ()) -> Reading:
    """Read ids of any number, and let the model write notes on the way, greedily.

    After each id the model may begin a note. As long as it writes none, what it reads next is known, so that many
    windows are read at once; the result is that of reading one id after the other.

    Args:
        keep: As of `generate`.
        window: What is in the context already.

    Raises:
        InputError: If the model was trained without notes.
    """
    notes, context = require_notes(model), model.body.config.context
    keep = min(keep or max(1, context // 2), context)
    reading, n_read, n_rows = Reading(list(window)), 0, 1
    max_rows = max(1, min(MAX_ROWS, MAX_LOGITS // (context * notes.tokenizer.vocab_size)))
    while n_read < len(ids):
        rows = list_windows(notes, reading.window, ids[n_read:], context, keep, n_rows)
        place = find_start(model, notes.start[0], rows)
        row, stop = (len(rows) - 1, len(rows[-1].ids)) if place is None else place
        reading.window = rows[row].ids[:stop]
        n_read += rows[row].n_before + stop - rows[row].n_old
        n_rows = min(max_rows, 2 * n_rows) if place is None else 1
        if place is not None:
            write_notes(model, notes, reading, n_read, keep)
    return reading


def read_prompt(model: Decoder, ids: Sequence[int], keep: int | None) -> list[int]:
    """Return what is in the context after a prompt of any length, and say what was dropped of its notes."""
    reading = read_stream(model, ids, keep)
    if reading.n_unended:
        limit = require_notes(model).max_tokens
        report_notice(f"{reading.n_unended:,} notes did not end within {limit} tokens (--note-tokens) and were dropped")
    return reading.window


class Window(NamedTuple):
    """A window of a text that is to be read."""

    ids: list[int]
    n_old: int
    """The first ids, which were read before."""
    n_before: int
    """Ids of the text that the windows before it read first."""


def list_windows(
    notes: Notes, window: list[int], ids: Sequence[int], context: int, keep: int, count: int
) -> list[Window]:
    """Return the next windows of a text, as they are if no notes are written."""
    rows: list[Window] = []
    n_before = 0
    while len(rows) < count and n_before < len(ids):
        n_old = len(window)
        if n_old == context:
            window = notes.crop([*window, ids[n_before]], keep)
            n_old = len(window) - 1
        n_new = min(context - n_old, len(ids) - n_before)
        window = [*window[:n_old], *ids[n_before : n_before + n_new]]
        rows.append(Window(window, n_old, n_before))
        n_before += n_new
    return rows


def find_start(model: Decoder, start: int, rows: Sequence[Window]) -> tuple[int, int] | None:
    """Return the first row, and how many of its ids, after which the likeliest next id is `start`; None if none."""
    inputs, lengths = pad_rows([row.ids for row in rows], next(model.body.parameters()).device)
    first = min(row.n_old for row in rows)
    begins = (model.head(model.hidden(inputs)[:, first:]).argmax(-1) == start).cpu()  # (B, T - first)
    for number, (row, length) in enumerate(zip(rows, lengths.tolist())):
        hits = torch.nonzero(begins[number, row.n_old - first : length - first])
        if len(hits):
            return number, row.n_old + int(hits[0]) + 1
    return None


def write_notes(model: Decoder, notes: Notes, reading: Reading, n_read: int, keep: int) -> None:
    """Write notes as long as the model begins another one."""
    for _ in range(MAX_NOTES):
        new = write_note(model, notes, reading.window, keep)
        if new[:1] != notes.start[:1]:
            return
        if notes.find_end(new, 0) is None:
            reading.n_unended += 1
            return
        reading.n_written += 1
        reading.log.append((n_read, notes.find(new)[0].text))
        for token in new:
            reading.window.append(token)
            if len(reading.window) > model.body.config.context:
                reading.window = notes.crop(reading.window, keep)


def write_note(model: Decoder, notes: Notes, window: list[int], keep: int) -> list[int]:
    """Continue a row until a note has ended, or none has begun."""
    new: list[int] = []

    def stop(_: int, token: int) -> bool:
        new.append(token)
        return new[: len(notes.start)] != notes.start[: len(new)] or notes.find_end(new, 0) is not None

    settings: dict[str, Any] = {"sampling": SamplingParams(temperature=0), "seeds": [0], "stop": stop}
    for _ in generate(model, [window], tokens=notes.max_tokens, keep=keep, crop=notes.crop, **settings):
        pass
    return new
