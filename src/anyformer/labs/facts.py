"""Facts hidden in a text: who went where, who took what, and questions with one, two and three supporting facts.

A small world is simulated, as in bAbI (1502.05698), and its sentences are hidden among those of a text, as in BABILong
(2406.10149). After each sentence comes what a reader should write down: where a person is and what they hold, and where
a thing is and was before. Everything depends on a seed.
"""

import random
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from ..data.io.resolve import resolve
from ..data.text.read import decode_piece, read_pieces
from ..data.tokenizers.base import Tokenizer
from ..errors import InputError
from ..inference.notes import Crop

PEOPLE = ("Mary", "John", "Daniel", "Sandra")
PLACES = ("bathroom", "bedroom", "garden", "hallway", "kitchen", "office")
THINGS = ("football", "apple", "milk")
MOVES = ("went to", "moved to", "journeyed to", "travelled to")
TAKES = ("picked up", "took", "grabbed")
DROPS = ("dropped", "put down", "left")
CHANCE = 1 / len(PLACES)
FACT_OR_QUESTION = re.compile(rf"(?m)^((?:{'|'.join(PEOPLE)}) (?:{'|'.join(MOVES + TAKES + DROPS)}) the \w+\.$|Where )")

NOTE_START, NOTE_END, NOTE_TOKENS = "[", "]\n", 16
HELD_OUT = 8  # every so many files of a haystack, one is for tests; of a single file, its last part
SENTENCE = (15, 300)  # characters of the sentences of a haystack
MIDST_SHARE = 0.6  # of the texts with notes begin in the midst of a story
GAP = (2.0, 3.8)  # the power of two of the sentences of a gap
SILENT_SHARE = 0.1  # of the windows to train on in which nothing is told or asked
WINDOW_SHARE = 0.6  # of the others


class Stage(NamedTuple):
    """How the texts of a stage of the training are made."""

    densities: tuple[float, ...]
    """Of a text, the share of facts among its sentences: one of these."""
    log_facts: float
    """The power of two of the most facts of a text."""
    recite: float
    """Share of the facts that are followed by a line with all rooms."""
    gap: float
    """Share of the facts that are followed by many sentences without any."""
    ask: float
    """Share of the facts that are followed by a question, and of the questions by another one."""


STAGES = {  # one after the other: how to look something up is learned soonest where there is nothing else
    "short": Stage((1.0,), 2.6, 0.4, 0.0, 0.8),
    "dense": Stage((1.0,), 5.5, 0.0, 0.0, 0.6),
    "hidden": Stage((0.2, 0.5, 0.8, 1.0, 1.0, 1.0), 5.5, 0.0, 0.3, 0.4),
}


class Event(NamedTuple):
    """A sentence, and the notes that follow from it."""

    sentence: str
    notes: list[str]


class Question(NamedTuple):
    """A question, its answer, the number of facts that it follows from, and the word to look for."""

    text: str
    answer: str
    n_facts: int
    keyword: str


@dataclass
class World:
    """Four people carry three things through six rooms; each person at most one of them."""

    rng: random.Random
    drops: float = 0.12
    """Share of the steps in which a person who carries something puts it down."""
    takes: float = 0.28
    """Of those in which one who carries nothing takes what is there."""
    rooms: dict[str, str] = field(default_factory=dict)
    holders: dict[str, str] = field(default_factory=dict)
    spots: dict[str, tuple[str, str]] = field(default_factory=dict)
    """Where a thing is, and where it was before; "" if that is not told."""

    def step(self) -> Event:
        """Let something happen, and tell it. Its notes repeat what has to be looked up, so that each of them follows
        from the sentence, from the note before it or from a single older one."""
        person, chance = self.rng.choice(PEOPLE), self.rng.random()
        held = [thing for thing in THINGS if self.holders.get(thing) == person]
        room = self.rooms.get(person, "")
        free = [t for t in THINGS if t not in self.holders and self.spots.get(t, (room, ""))[0] == room]
        if room and held and chance < self.drops:
            del self.holders[held[0]]
            return Event(f"{person} {self.rng.choice(DROPS)} the {held[0]}.", [f"{person} has=nothing"])
        if room and free and not held and chance < self.drops + self.takes:
            thing = self.rng.choice(free)
            self.holders[thing] = person
            self.spots.setdefault(thing, (room, ""))
            notes = [f"{person} has={thing}", f"{person}={room}", f"{thing}={room}"]
            return Event(f"{person} {self.rng.choice(TAKES)} the {thing}.", notes)
        self.rooms[person] = new = self.rng.choice([place for place in PLACES if place != room])
        notes = [f"{person}={new}", f"{person} has={held[0] if held else 'nothing'}"]
        for thing in held:
            self.spots[thing] = new, room
            notes += [f"{thing} was={room}", f"{thing}={new}"]
        return Event(f"{person} {self.rng.choice(MOVES)} the {new}.", notes)

    def skip(self, n: int) -> Iterator[str]:
        """Let so much happen untold, and yield the notes that hold then, the newest last."""
        notes: dict[str, str] = {}
        for _ in range(n):
            for note in self.step().notes:
                key = note.partition("=")[0]
                notes.pop(key, None)
                notes[key] = note
        return map(mark_note, notes.values())

    def recite(self) -> str:
        """Return a line that says where everyone and everything is, each behind its name: the easiest look-ups."""
        rooms = self.rooms | {thing: room for thing, (room, _) in self.spots.items()}
        names = self.rng.sample(sorted(rooms), len(rooms))
        return f"Now {', '.join(f'{name} {rooms[name]}' for name in names)}.\n"

    def list_questions(self) -> list[Question]:
        """Return all questions that have an answer now."""
        questions = [Question(f"Where is {person}?", room, 1, person) for person, room in self.rooms.items()]
        for thing, (room, before) in self.spots.items():
            questions.append(Question(f"Where is the {thing}?", room, 2, thing))
            if before:
                questions.append(Question(f"Where was the {thing} before the {room}?", before, 3, thing))
        return questions


# --- the text around them ---


def read_haystack(data: str) -> tuple[list[str], list[str]]:
    """Return the sentences of a text, to train on and to test on: other files, or of a single one other parts. Raises
    InputError."""
    train: list[str] = []
    test: list[str] = []
    paths = resolve(data)
    for i, path in enumerate(paths):
        sentences = list_sentences("".join(map(decode_piece, read_pieces([path]))))
        cut = len(sentences) * (HELD_OUT - 1) // HELD_OUT if len(paths) == 1 else len(sentences) * (i % HELD_OUT > 0)
        train += sentences[:cut]
        test += sentences[cut:]
    if not train or not test:
        raise InputError(f"haystack '{data}': it needs sentences, to train on and to test on")
    return train, test


def list_sentences(text: str) -> list[str]:
    """Return the sentences of a text, without brackets, which are the marks of notes."""
    text = re.sub(r"\s+", " ", re.sub(r"[\[\]]", "", text))
    low, high = SENTENCE
    return [sentence for sentence in re.split(r"(?<=[.!?]) ", text) if low < len(sentence) < high]


def write_stories(rng: random.Random, haystack: Sequence[str], has_notes: bool, stage: Stage) -> Iterator[str]:
    """Yield the lines of a text to train on: facts, their notes, sentences of the haystack, questions with answers.

    Most texts with notes begin in the midst of a story, with the notes on what has happened, as a window does that has
    slid. More is carried than in the texts of a test: where a thing was before is the rarest note."""
    world, density = World(rng, drops=0.08, takes=0.52), rng.choice(stage.densities)
    if has_notes and rng.random() < MIDST_SHARE:
        yield from world.skip(int(2 ** rng.uniform(0, 5.3)))
    for _ in range(int(2 ** rng.uniform(0, stage.log_facts))):
        while rng.random() > density:
            yield f"{rng.choice(haystack)}\n"
        event = world.step()
        yield f"{event.sentence}\n"
        if has_notes:
            yield from map(mark_note, event.notes)
        if rng.random() < stage.recite:
            yield world.recite()
        has_gap = rng.random() < stage.gap
        if has_gap:  # what is asked behind it has left the context: in long texts nearly every question is of this kind
            yield from (f"{line}\n" for line in rng.choices(haystack, k=int(2 ** rng.uniform(*GAP))))
        while rng.random() < (max(0.8, stage.ask) if has_gap else stage.ask):
            questions = world.list_questions()
            n_facts = rng.choice((1, 2, 2, 3, 3))
            if chosen := [question for question in questions if question.n_facts == n_facts]:
                question = rng.choice(chosen)
                yield f"{question.text} {question.answer}\n"


def choose_windows(rng: random.Random, windows: Iterable[str]) -> list[str]:
    """Return a share of the windows of a text to train on, few of those in which nothing is told or asked: their novels
    would be most of what is learned."""
    pairs = ((window, 1.0 if FACT_OR_QUESTION.search(window) else SILENT_SHARE) for window in windows)
    return [window for window, share in pairs if rng.random() < WINDOW_SHARE * share]


def mark_note(note: str) -> str:
    return f"{NOTE_START}{note}{NOTE_END}"


def list_notes() -> list[str]:
    """Return all notes that there can be. Each is one token of the vocabulary."""
    keys = [*PEOPLE, *THINGS, *(f"{thing} was" for thing in THINGS)]
    notes = [f"{key}={place}" for key in keys for place in PLACES]
    return notes + [f"{person} has={thing}" for person in PEOPLE for thing in (*THINGS, "nothing")]


def cut_windows(lines: Iterator[str], tokenizer: Tokenizer, crop: Crop, context: int, limit: int) -> Iterator[str]:
    """Yield a text of up to `limit` tokens in the windows in which a model of this context reads it."""
    window: list[int] = []
    n_tokens = 0
    for line in lines:
        ids = tokenizer.encode(line).tolist()
        for token in ids:
            window.append(token)
            if len(window) > context:
                yield tokenizer.decode(window[:context])
                window = crop(window, max(1, context // 2))
        n_tokens += len(ids)
        if n_tokens > limit:
            break
    yield tokenizer.decode(window)


class HiddenFacts(NamedTuple):
    """A text with facts in it, as ids, and all questions that it answers."""

    ids: list[int]
    lines: list[str]
    questions: list[Question]
    notes: list[str]
    """What should be written down, in order."""


def hide_facts(
    rng: random.Random, haystack: Sequence[str], tokenizer: Tokenizer, n_tokens: int, n_facts: int
) -> HiddenFacts:
    """Hide facts at random places in a text of about so many tokens."""
    world = World(rng)
    events = [world.step() for _ in range(n_facts)]
    facts = [event.sentence for event in events]
    size = n_tokens - sum(len(tokenizer.encode(f"{fact}\n")) for fact in facts)
    lines: list[str] = []
    place = rng.randrange(len(haystack))
    while size > 0:
        batch = [haystack[(place + i) % len(haystack)] for i in range(1000)]
        for line, ids in zip(batch, tokenizer.encode_batch([f"{line}\n" for line in batch])):
            if size > 0:
                lines.append(line)
            size -= len(ids)
        place += 1000
    for place, fact in zip(sorted((rng.randrange(len(lines) + 1) for _ in facts), reverse=True), reversed(facts)):
        lines.insert(place, fact)
    text = "".join(f"{line}\n" for line in lines)
    notes = [note for event in events for note in event.notes]
    return HiddenFacts(tokenizer.encode(text).tolist(), lines, world.list_questions(), notes)


def make_sample_text(rng: random.Random, haystack: Sequence[str]) -> Iterator[str]:
    """Yield texts to train a vocabulary on."""
    for _ in range(100):
        lines = [line for _ in range(20) for line in write_stories(rng, haystack, True, STAGES["short"])]
        yield "".join([*lines, *(f"{line}\n" for line in rng.choices(haystack, k=200))])


def list_keyword_lines(lines: Sequence[str], keyword: str, tokenizer: Tokenizer, size: int) -> list[int]:
    """Return the ids of the newest lines that hold a word, in order, of at most so many ids together."""
    chosen: list[list[int]] = []
    pattern = re.compile(rf"\b{keyword}\b")
    for line in reversed(lines):
        if pattern.search(line):
            ids = tokenizer.encode(f"{line}\n").tolist()
            size -= len(ids)
            if size < 0:
                break
            chosen.append(ids)
    return [token for ids in reversed(chosen) for token in ids]
