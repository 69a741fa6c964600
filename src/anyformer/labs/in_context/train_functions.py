"""Part functions: train a model of characters on texts of examples, and ask it for new functions."""

import random
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from ...model.config import TransformerConfig
from ...model.edges import causal
from ...training.device import autocast, resolve_device
from ..lab import LabResult, LabTable, Log
from .functions import (
    ALPHABET,
    HELD_OUT_PAIRS,
    MAX_LETTERS,
    SEPARATOR,
    SYMBOLS,
    Example,
    Prompt,
    answer_by_copying,
    answer_by_counts,
    answer_by_neighbor,
    draw_function,
    draw_prompt,
    draw_training_function,
    draw_word,
    encode_batch,
    write_text,
)
from .settings import Settings
from .training import Curriculum, TextModel, choose_dtype, configure_text_model, configure_training, fit

LINES = 17  # examples of a text
TOKENS = 3500  # of a batch, about
MAX_TEXTS = 64  # of a batch
LEARNED = 0.75  # of the last lines of a text: then words become longer, or have more letters
TEST_BATCH = 50
COUNTED = 50  # questions of each kind that the methods without training answer
MAX_PLACES = 2 * MAX_LETTERS + 2  # of a doubled word
CONTEXT = 1 + LINES * (3 * 6 + 2)  # letters of a text of the longest words, doubled


class Level(NamedTuple):
    """Of the curriculum: different letters of a text, and letters of a word."""

    letters: int
    low: int
    high: int


LEVELS = (
    Level(2, 1, 1), Level(4, 1, 1), Level(10, 1, 2), Level(10, 1, 3), Level(10, 2, 4), Level(10, 3, 5), Level(10, 4, 6),
)  # fmt: skip


class Kind(NamedTuple):
    """Functions that are tested together."""

    name: str
    shape: str
    change: str
    held_out: bool
    """Whether the images are held out of the training."""
    is_trained: bool = False


KINDS = (
    Kind("copying", "copy", "none", False, True),
    Kind("reversing", "reverse", "none", False, True),
    Kind("sorting", "sort", "none", False, True),
    Kind("new ciphers", "copy", "cipher", True),
    Kind("new shifts", "copy", "shift", True),
    Kind("removal of new letters", "copy", "remove", True),
    Kind("new replacements", "copy", "replace", True),
    *(Kind(f"{shape} + {change}", shape, change, False) for shape, change in sorted(HELD_OUT_PAIRS)),
)
NUMBERS = (0, 1, 2, 3, 4, 6, 8, 12, 16)  # of examples
METHODS: dict[str, Callable[[Prompt], bool]] = {
    "n-gram counts": answer_by_counts,
    "nearest example": answer_by_neighbor,
    "copying the word": answer_by_copying,
}


class ExamplesModel(TextModel):
    """A model of texts of examples, whose nodes know which letter of its word each of them is, and on which side of
    the separator: the look-ups to learn are then of one position instead of a varying distance."""

    def __init__(self, config: TransformerConfig):
        super().__init__(len(SYMBOLS), config)
        self.place = nn.Embedding(2 * MAX_PLACES, config.dim)
        nn.init.normal_(self.place.weight, std=0.1)

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(self.body(self.nodes(ids) + self.place(find_places(ids)), causal))


def find_places(ids: Tensor) -> Tensor:
    """Return how far each node is from the last separator or end of a line; on the side of answers MAX_PLACES more:
    (B, T) -> (B, T)"""
    is_mark, positions = ids >= SYMBOLS.index(SEPARATOR), torch.arange(ids.shape[1], device=ids.device).expand_as(ids)
    mark = torch.where(is_mark, positions, 0).cummax(1).values
    is_answer = ids.gather(1, mark) == SYMBOLS.index(SEPARATOR)
    return (positions - mark).clamp(max=MAX_PLACES - 1) + MAX_PLACES * is_answer


def run_functions(settings: Settings, log: Log) -> LabResult:
    device = resolve_device(settings.device)
    torch.manual_seed(settings.seed)
    config = configure_text_model(settings.width, settings.layers, CONTEXT)
    model = ExamplesModel(config).to(device)
    seconds, level = train(model, settings, device, log)
    facts: dict[str, Any] = {
        "seconds": seconds,
        "level": level,
        "parameters": sum(p.numel() for p in model.parameters()),
    }
    prompts = {kind.name: {n: list(draw_prompts(settings, kind, n)) for n in NUMBERS} for kind in KINDS}
    facts["accuracy"] = {}
    for name, by_number in prompts.items():
        facts["accuracy"][name] = {n: test(model.eval(), tests, device) for n, tests in by_number.items()}
        log({"functions": name} | {f"after_{n}": share for n, share in facts["accuracy"][name].items()})
    new = [kind.name for kind in KINDS if not kind.is_trained]
    facts["new"] = {n: sum(facts["accuracy"][name][n] for name in new) / len(new) for n in NUMBERS}
    for method, answer in METHODS.items():
        rights = {n: [answer(prompt) for name in new for prompt in prompts[name][n][:COUNTED]] for n in NUMBERS}
        facts[method] = {n: sum(right) / len(right) for n, right in rights.items()}
        log({"method": method} | {f"after_{n}": share for n, share in facts[method].items()})
    return describe(facts, write_examples(model, prompts, device))


def train(model: TextModel, settings: Settings, device: torch.device, log: Log) -> tuple[float, int]:
    """Train on the answers; return the seconds of processor time, and the level that was reached."""
    rng, curriculum = random.Random(settings.seed), Curriculum(len(LEVELS), LEARNED, decay=0.9)
    dtype = choose_dtype(device)

    def compute_loss(step: int) -> tuple[Tensor, dict[str, Any]]:
        level = LEVELS[curriculum.level]
        texts = [draw_text(rng, level) for _ in range(min(MAX_TEXTS, TOKENS // (LINES * (2 * level.high + 2))))]
        ids, is_answer = (values.to(device) for values in encode_batch([write_text(lines) for lines in texts]))
        with autocast(device, dtype):
            scores = model(ids[:, :-1])
        labels, mask = ids[:, 1:], is_answer[:, 1:]
        shares = [row.all().item() for row in read_last_answers(scores, ids, is_answer, texts)]
        curriculum.update(sum(shares) / len(shares))
        return cross_entropy(scores[mask].float(), labels[mask]), {
            "level": curriculum.level,
            "right": curriculum.average,
        }

    config = configure_training(settings.function_steps, settings.lr, settings.seed)
    return fit(model, compute_loss, config, log), curriculum.level


def draw_text(rng: random.Random, level: Level) -> list[Example]:
    """Examples of a function of the training."""
    function, letters = draw_training_function(rng), "".join(rng.sample(ALPHABET, level.letters))
    words = [draw_word(rng, letters, level.low, level.high) for _ in range(LINES)]
    return [Example(word, function(word)) for word in words]


def read_last_answers(
    scores: Tensor, ids: Tensor, is_answer: Tensor, texts: Sequence[Sequence[Example]]
) -> Iterator[Tensor]:
    """Yield for each text whether each token of its last answer is the likeliest one. All of them are if and only if
    the answer is what greedy decoding writes."""
    is_right = scores.argmax(-1) == ids[:, 1:]
    for row, (right, mask) in enumerate(zip(is_right, is_answer[:, 1:])):
        yield right[mask][-len(texts[row][-1].answer) - 1 :]


def draw_prompts(settings: Settings, kind: Kind, n_examples: int) -> Iterator[Prompt]:
    rng = random.Random(f"{settings.seed} {kind.name} {n_examples}")
    for _ in range(settings.function_tests):
        yield draw_prompt(rng, draw_function(rng, kind.shape, kind.change, kind.held_out), n_examples)


@torch.no_grad()
def test(model: TextModel, prompts: Sequence[Prompt], device: torch.device) -> float:
    """Return the share of questions that are answered right."""
    n_right = 0
    for start in range(0, len(prompts), TEST_BATCH):
        texts = [[*prompt.examples, prompt.question] for prompt in prompts[start : start + TEST_BATCH]]
        ids, is_answer = (values.to(device) for values in encode_batch([write_text(lines) for lines in texts]))
        scores = model(ids[:, :-1])
        n_right += sum(row.all().item() for row in read_last_answers(scores, ids, is_answer, texts))
    return n_right / len(prompts)


@torch.no_grad()
def write_examples(model: TextModel, prompts: dict[str, dict[int, list[Prompt]]], device: torch.device) -> str:
    """Return one prompt of each kind with eight examples, and what the model answers."""
    lines = []
    for name, by_number in prompts.items():
        prompt = by_number[8][0]
        text = write_text(prompt.examples) + prompt.question.word + ">"
        for _ in range(2 * len(prompt.question.word) + 1):
            ids, _ = encode_batch([text])
            text += SYMBOLS[int(model(ids.to(device))[0, -1].argmax())]
            if text.endswith("\n"):
                break
        answer, right = text.rstrip().rpartition(">")[2], prompt.question.answer
        shown = "  ".join(f"{word}>{answer}" for word, answer in prompt.examples)
        lines.append(
            f"{name}: {shown}  {prompt.question.word}>{answer}{'' if answer == right else f' (right: {right})'}"
        )
    return "\n".join(lines)


def describe(facts: dict[str, Any], examples: str) -> LabResult:
    accuracy, methods = facts["accuracy"], {name: facts[name] for name in METHODS}
    columns = ["examples", *map(str, NUMBERS)]
    rows = [[name, *(f"{values[n]:.1%}" for n in NUMBERS)] for name, values in accuracy.items()]
    rows += [[name, *(f"{values[n]:.1%}" for n in NUMBERS)] for name, values in methods.items()]
    note = "Copying, reversing and sorting were trained; the others were not, and the last rows are of these."
    table = LabTable("Answers that are right in every letter", columns, rows, note)
    changes = {kind.name: accuracy[kind.name] for kind in KINDS if kind.held_out}
    pairs = {kind.name: accuracy[kind.name] for kind in KINDS if not kind.held_out and not kind.is_trained}
    figures = [
        draw_lines("Changes that were never trained", changes | {"n-gram counts": facts["n-gram counts"]}),
        draw_lines("Pairs of a rearrangement and a change that were never trained", pairs),
    ]
    worst = min((kind.name for kind in KINDS if not kind.is_trained), key=lambda name: accuracy[name][8])
    summary = [
        f"Functions on words that were never trained: {facts['new'][8]:.1%} of the answers are right after 8 examples, "
        f"{facts['new'][0]:.1%} without; n-gram counts of the same text {facts['n-gram counts'][8]:.1%}. "
        f"Worst: {worst}, {accuracy[worst][8]:.1%}.",
        f"{facts['parameters']:,} parameters, {facts['seconds']:,.0f} seconds of processor time; level "
        f"{facts['level'] + 1} of {len(LEVELS)} of the curriculum.",
    ]
    return LabResult("", summary, [table], figures, [("Eight examples, a word, and the answer", examples)], facts)


def draw_lines(title: str, values: dict[str, dict[int, float]]) -> dict[str, Any]:
    lines = [{"name": name, "x": list(NUMBERS), "y": [100 * row[n] for n in NUMBERS]} for name, row in values.items()]
    note = "% of the answers right in every letter"
    return {"kind": "lines", "title": title, "note": note, "x_label": "examples", "zero": True, "lines": lines}
