"""Notes outlive the context: facts hidden in a million tokens of novels, and sums with shown working.

A small language model of context 256 is trained on texts of up to 2,000 tokens in which each fact is followed by what
to write down (`facts`): writing notes is supervised. It is tested on texts of any length, beside the same model without
notes, beside that model with the lines that hold the word of the question, and beside full attention over 2,048
tokens. Another one learns sums of up to 8 digits with and without shown working (`sums`), and is tested on 16.
"""

import json
import math
import random
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import tokenizers

from .. import api
from ..data.tokenizers.base import Tokenizer
from ..data.tokenizers.build import TOKENIZER_FILE, load_tokenizer, train_bpe
from ..data.tokenizers.subwords import Subwords
from ..inference.decode import generate
from ..inference.notes import Crop, Notes, Reading, choose_crop, keep_newest, read_stream
from ..inference.sampling import SamplingParams
from ..parsing import check_range
from .facts import (
    CHANCE,
    NOTE_END,
    NOTE_START,
    NOTE_TOKENS,
    STAGES,
    HiddenFacts,
    choose_windows,
    cut_windows,
    hide_facts,
    list_keyword_lines,
    list_notes,
    make_sample_text,
    read_haystack,
    write_stories,
)
from .lab import LabResult, LabSettings, LabTable, Log
from .sums import END, read_answer, write_examples

CONTEXT, LONG_CONTEXT = 256, 2048
VOCAB_SIZE, BATCH = 1024, 8
SHAPE = {"dim": 96, "n_layer": 3, "n_head": 4, "head_dim": 32}
TRAIN = {"lr": 4e-3, "warmup": 20, "eval_batches": 8, "dtype": "float32"}
METHODS = ("notes", "no notes", "keyword", "full attention")
MAX_DIGITS, SUM_LENGTHS = 8, (2, 4, 6, 8, 10, 12, 14, 16)
TEST_SUMS = 40  # of each length
QUESTION_TOKENS = 24


@dataclass(frozen=True, kw_only=True)
class Settings(LabSettings):
    """Facts hidden in novels, told by a model of context 256 that writes notes;
    and sums of 16 digits by one that has learned those of 8.

    facts  beside the model without notes, keywords, and full attention
    sums   with and without shown working
    """

    part: Literal["all", "facts", "sums"] = "all"
    """What to run."""
    haystack: str = "plays"
    """The text that facts are hidden in: the name of a set (eltec: novels), a file or a folder."""
    lengths: tuple[int, ...] = (2_000, 10_000, 100_000, 1_000_000)
    """Tokens of the texts that are tested."""
    streams: int = 8
    """Texts of each length; each is asked about ten questions."""
    facts: int = 24
    """Sentences of each text that tell a fact."""
    short_steps: int = 1500
    """Steps of training on short texts, where facts and notes are learned first."""
    dense_steps: int = 2000
    """Steps of training on texts of up to 2,000 tokens that are nothing but facts."""
    steps: int = 4000
    """Steps of training on texts of up to 2,000 tokens, in which facts are hidden."""
    sum_steps: int = 600
    """Steps of training on sums."""
    trained: Path | None = None
    """The folder of an earlier run of this lab, whose models are tested instead of training new ones."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range(self, "lengths", at_least=300, at_most=1 << 30)
        check_range(self, "streams", "facts", at_least=1, at_most=10_000)
        check_range(self, "short_steps", "dense_steps", "steps", "sum_steps", at_least=1, at_most=1_000_000)


def run(settings: Settings, log: Log) -> LabResult:
    parts = {"facts": run_facts, "sums": run_sums}
    results = [parts[name](settings, log) for name in parts if settings.part in ("all", name)]
    return LabResult(
        "Notes outlive the context",
        [sentence for result in results for sentence in result.summary],
        [table for result in results for table in result.tables],
        [figure for result in results for figure in result.figures],
        [text for result in results for text in result.texts],
        {name: value for result in results for name, value in result.facts.items()},
    )


# --- training ---


class Trainer:
    """Trains the models of the lab, each in a folder of its own, or loads those of an earlier run."""

    def __init__(self, settings: Settings, log: Log):
        self.settings, self.log = settings, log
        self.folder = (settings.trained or settings.out or Path()) / "models"

    def train(self, name: str, texts: Callable[[], Iterator[str]], steps: int, batch: int, **fields: Any) -> Any:
        """Return the decoder `name`, trained on texts that are rows of a jsonl."""
        if self.settings.trained is not None:
            return api.load(self.folder / name, self.settings.device).module
        self.folder.mkdir(parents=True, exist_ok=True)
        data, begin = self.folder / f"{name}.jsonl", time.process_time()
        data.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts()), encoding="utf-8")
        train = TRAIN | {"steps": steps, "batch": batch, "eval_every": max(1, steps // 4), "save_every": steps}
        train |= {"seed": self.settings.seed, "device": self.settings.device}
        fields = {"documents": "rows", "tied": False, "val_fraction": 0.02} | fields

        def on_record(record: dict[str, Any]) -> None:
            if "val_loss" in record:
                seconds = round(time.process_time() - begin, 1)
                values = {key: record[key] for key in ("step", "loss", "val_loss")}
                self.log({"model": name, **values, "cpu_seconds": seconds})

        out = self.folder / name
        return api.train(
            "language", "small", data=data, train=train, out=out, on_record=on_record, progress=False, **fields
        ).module


def train_on_facts(settings: Settings, log: Log, haystack: Sequence[str]) -> dict[str, Any]:
    """Train the model with notes, the same one without, and one that reads 2,048 tokens; each on short texts first."""
    trainer, path = Trainer(settings, log), (settings.trained or settings.out or Path()) / TOKENIZER_FILE
    if settings.trained is None:
        bpe = train_bpe(make_sample_text(random.Random(settings.seed), haystack), VOCAB_SIZE)
        vocabulary = tokenizers.Tokenizer.from_str(bpe.to_json())
        vocabulary.add_tokens(list_notes())
        Subwords(vocabulary.to_str()).save(path)
    tokenizer = load_tokenizer(path)
    marks = [tokenizer.encode(mark).tolist() for mark in (NOTE_START, NOTE_END)]
    fields: dict[str, Any] = {"note_start": NOTE_START, "note_end": NOTE_END, "note_tokens": NOTE_TOKENS}
    crops: dict[bool, Crop] = {True: Notes(tokenizer, *marks, NOTE_TOKENS).crop, False: keep_newest}

    def train(name: str, stage: str, has_notes: bool, steps: int, context: int, init: str = "") -> Any:
        def write() -> Iterator[str]:
            rng, n_left = random.Random(f"{settings.seed} {name}"), steps * CONTEXT * BATCH // context
            while n_left > 0:
                lines = write_stories(rng, haystack, has_notes, STAGES[stage])
                chosen = choose_windows(rng, cut_windows(lines, tokenizer, crops[has_notes], context, LONG_CONTEXT))
                yield from chosen
                n_left -= len(chosen)

        own = {"tokenizer": str(path), "model": SHAPE | {"context": context}} | (fields if has_notes else {})
        own |= {"init": trainer.folder / init} if init else {}
        return trainer.train(name, write, steps, CONTEXT * BATCH // context, **own)

    for about, has_notes in ((" with notes", True), ("", False)):
        short, dense = (f"{stage} texts{about}" for stage in ("short", "dense"))
        train(short, "short", has_notes, settings.short_steps, CONTEXT)
        train(dense, "dense", has_notes, settings.dense_steps, CONTEXT, short)
    return {
        "notes": train("notes", "hidden", True, settings.steps, CONTEXT, "dense texts with notes"),
        "no notes": train("no notes", "hidden", False, settings.steps, CONTEXT, "dense texts"),
        "full attention": train("full attention", "hidden", False, settings.steps, LONG_CONTEXT, "dense texts"),
    }


# --- facts ---


def run_facts(settings: Settings, log: Log) -> LabResult:
    train, test = read_haystack(settings.haystack)
    models = train_on_facts(settings, log, train)
    counts: dict[str, list[int]] = {}
    example = ""
    for length in settings.lengths:
        for number in range(settings.streams):
            rng = random.Random(f"{settings.seed} {length} {number}")
            tokenizer: Tokenizer = models["notes"].tokenizer
            text, begin = hide_facts(rng, test, tokenizer, length, settings.facts), time.process_time()
            reading = read_stream(models["notes"], text.ids)
            answers = answer_questions(models, tokenizer, text, reading.window)
            example = describe_reading(text, reading, answers["notes"])
            record: dict[str, Any] = {"tokens": len(text.ids), "text": number, "notes": reading.n_written}
            record |= compare_notes(text, reading)
            for method, texts in answers.items():
                pairs = [(q.n_facts, texts[i] == q.answer) for i, q in enumerate(text.questions)]
                record[method] = sum(is_right for _, is_right in pairs) / len(pairs)
                for n_facts, is_right in pairs:
                    count = counts.setdefault(f"{method}/{length}/{n_facts}", [0, 0])
                    count[:] = count[0] + is_right, count[1] + 1
            log(record | {"cpu_seconds": round(time.process_time() - begin, 1)})
    return describe_facts(settings, counts, example)


def answer_questions(
    models: dict[str, Any], tokenizer: Tokenizer, text: HiddenFacts, window: list[int]
) -> dict[str, list[str]]:
    """Return the answers to all questions of a text, by each method."""
    ids = [tokenizer.encode(question.text).tolist() for question in text.questions]
    size = CONTEXT - QUESTION_TOKENS
    lines = [list_keyword_lines(text.lines, question.keyword, tokenizer, size) for question in text.questions]
    return {
        "notes": ask(models["notes"], [window + question for question in ids]),
        "no notes": ask(models["no notes"], [text.ids[-size:] + question for question in ids]),
        "keyword": ask(models["no notes"], [row + question for row, question in zip(lines, ids)]),
        "full attention": ask(
            models["full attention"], [text.ids[QUESTION_TOKENS - LONG_CONTEXT :] + question for question in ids]
        ),
    }


def ask(model: Any, rows: list[list[int]]) -> list[str]:
    """Return the word that each row is continued with."""
    sampling, tokenizer = SamplingParams(temperature=0), model.tokenizer
    steps = generate(model, rows, tokens=2, sampling=sampling, seeds=[0] * len(rows), crop=choose_crop(model))
    return [tokenizer.decode(new).strip() for new in zip(*steps)]


def compare_notes(text: HiddenFacts, reading: Reading) -> dict[str, int]:
    """Return how many of the notes that follow from the facts are missing, and how many others were written."""
    expected, written = Counter(text.notes), Counter(note for _, note in reading.log)
    return {"missing": (expected - written).total(), "wrong": (written - expected).total()}


def describe_reading(text: HiddenFacts, reading: Reading, answers: list[str]) -> str:
    """Return the last notes of a reading, and the questions with their answers."""
    lines = [f"after {n_read:>9,} tokens  {note}" for n_read, note in reading.log[-30:]]
    pairs = zip(text.questions, answers)
    return "\n".join(
        [*lines, "", *(f"{q.text} {a}{'' if a == q.answer else f'  (right: {q.answer})'}" for q, a in pairs)]
    )


def describe_facts(settings: Settings, counts: dict[str, list[int]], example: str) -> LabResult:
    tables, figures, summary = [], [], []
    for n_facts in (1, 2, 3):
        rows, lines = [], []
        for method in METHODS:
            pairs = [counts.get(f"{method}/{length}/{n_facts}", [0, 0]) for length in settings.lengths]
            rows.append([method, *(f"{100 * right / total:.1f} %" if total else "" for right, total in pairs)])
            shares = [100 * right / max(1, total) for right, total in pairs]
            lines.append({"name": method, "x": [math.log10(length) for length in settings.lengths], "y": shares})
        totals = [counts.get(f"notes/{length}/{n_facts}", [0, 0])[1] for length in settings.lengths]
        title = f"Questions with {n_facts} supporting fact{'s' * (n_facts > 1)}"
        note = (
            f"{', '.join(map(str, totals))} questions, {settings.streams} texts of each length; chance is {CHANCE:.0%}."
        )
        tables.append(LabTable(title, ["", *(f"{length:,}" for length in settings.lengths)], rows, note))
        label = "tokens of the text, as a power of ten"
        figures.append(
            {"kind": "lines", "title": title, "note": "% right", "x_label": label, "lines": lines, "zero": True}
        )
        summary.append(f"{title}, {settings.lengths[-1]:,} tokens: " + ", ".join(f"{r[0]} {r[-1]}" for r in rows) + ".")
    texts = [(f"What was written in the last text, of {settings.lengths[-1]:,} tokens", example)]
    return LabResult("", summary, tables, figures, texts, {"counts": counts})


# --- sums ---


def run_sums(settings: Settings, log: Log) -> LabResult:
    trainer, shares = Trainer(settings, log), {}
    for name, has_working in (("sums with working", True), ("sums", False)):

        def write(has_working: bool = has_working) -> Iterator[str]:
            examples = write_examples(settings.seed, settings.sum_steps * 24, range(1, MAX_DIGITS + 1), has_working)
            return (f"{question}{answer}" for question, answer, _ in examples)

        shape = SHAPE | {"context": CONTEXT, "position": "none"}
        model = trainer.train(name, write, settings.sum_steps, BATCH, tokenizer="char", model=shape)
        for n_digits in SUM_LENGTHS:
            examples = write_examples(settings.seed + 1000, TEST_SUMS, [n_digits], has_working)
            right = sum(text == total for text, (_, _, total) in zip(solve(model, examples, has_working), examples))
            shares[f"{name}/{n_digits}"] = right / TEST_SUMS
            log({"model": name, "digits": n_digits, "right": right / TEST_SUMS})
    names = ("sums with working", "sums")
    rows = [[name, *(f"{shares[f'{name}/{n}']:.0%}" for n in SUM_LENGTHS)] for name in names]
    note = f"{TEST_SUMS} sums of each length; trained on up to {MAX_DIGITS} digits."
    table = LabTable("Sums that are right, by the digits of the numbers", ["", *map(str, SUM_LENGTHS)], rows, note)
    lines = [
        {"name": name, "x": list(SUM_LENGTHS), "y": [100 * shares[f"{name}/{n}"] for n in SUM_LENGTHS]}
        for name in names
    ]
    figure = {"kind": "lines", "title": "Sums", "note": "% right", "x_label": "digits", "lines": lines, "zero": True}
    summary = f"Sums of 16 digits: {rows[0][-1]} right with working, {rows[1][-1]} without."
    return LabResult("", [summary], [table], [figure], [], {"sums": shares})


def solve(model: Any, examples: Sequence[tuple[str, str, str]], has_working: bool) -> list[str]:
    """Return the sums that a model writes."""
    rows = [model.tokenizer.encode(question).tolist() for question, _, _ in examples]
    sampling, end = SamplingParams(temperature=0), int(model.tokenizer.encode(END)[0])
    steps = generate(
        model,
        rows,
        tokens=CONTEXT - max(map(len, rows)),
        sampling=sampling,
        seeds=[0] * len(rows),
        stop=lambda row, token: token == end,
    )
    ids = [[token for token in new if token is not None] for new in zip(*steps)]
    texts = [model.tokenizer.decode(new) for new in ids]
    return [read_answer(text) if has_working else text.partition(END)[0] for text in texts]
