"""Spans: text to text without pairs; gaps are cut into a text and asked for.

raw    text files, or a set by name
nodes  tokens of the text with a sentinel in each gap; sentinels, each followed by what is missing
edges  the source reads itself whole; the target is causal, and reads the top of the source by cross-attention
head   a logit for each token of the vocabulary
loss   cross-entropy of the target's next token

    anyformer train spans                                    minutes on two cores: the plays of Shakespeare
    anyformer predict RUN "To be, or ___ to be"
    anyformer train translation --init RUN --data pairs.tsv  goes on from it

T5's pre-training (Raffel et al. 2019, 1910.10683); the model is the recipe translation's.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..data.text.batches import NOTHING, sweep, windows
from ..data.text.spans import Spans
from ..data.tokenizers.bilingual import bilingual
from ..data.tokenizers.build import Tokenizer
from ..errors import InputError
from ..inference.translation import Request, hypotheses
from ..recipe import Place, begin
from ..training.config import TrainConfig
from . import language, translation
from .translation import Translator, evaluate, graph, loss
from .translation.config import T5, stacks

__all__ = ["PRESETS", "batches", "build", "evaluate", "graph", "loss", "predict"]
GAP = "___"


@dataclass(frozen=True, kw_only=True)
class Config(translation.Config):
    """A filler of gaps, its text and its training. `padded_vocab` must leave room for the sentinels."""

    rate: float = 0.15
    """How much of a text is missing."""
    span: float = 3.0
    """Tokens of a gap, in the mean."""
    sentinels: int = 64
    """The most gaps of a text."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.source_tokenizer:
            raise ValueError("source_tokenizer: what is missing and what is left are one text: leave it out")
        if not 0 < self.rate < 1 or not self.span >= 1 or self.sentinels < 1:
            about = f"rate {self.rate} must be above 0 and below 1, span {self.span} and sentinels {self.sentinels}"
            raise ValueError(f"{about} at least 1")


PRESETS = {
    # seconds: for tests
    "tiny": Config(
        data="plays",
        tokenizer="char",
        padded_vocab=128,
        rate=0.2,
        span=2.0,
        sentinels=8,
        **stacks(32, 1, 2, 32),
        train=TrainConfig(steps=20, batch=4, warmup=2, eval_every=10, eval_batches=4, save_every=10),
    ),
    # minutes on two cores
    "small": Config(
        data="plays",
        vocab_size=4000,
        padded_vocab=4064,
        start=0,
        end=0,
        scaled=True,
        label_smoothing=0.0,
        **stacks(128, 2, 4, 128, activation="relu", **T5),
        train=TrainConfig(steps=2000, batch=16, eval_every=250, save_every=500),
    ),
}


def build(config: Config) -> Translator:
    tokenizer = language.tokenizer_of(text_of(config))
    needed = tokenizer.vocab_size + config.sentinels
    if (config.padded_vocab or 0) < needed:
        about = f"padded_vocab is {config.padded_vocab}; {tokenizer.vocab_size} tokens and {config.sentinels} sentinels"
        raise InputError(f"{about} need {needed}: --padded-vocab {needed}")
    model = translation.made(config, bilingual(tokenizer, None, config.start, config.end))
    model.sentinels = config.sentinels
    return model


def text_of(config: Config) -> language.Text:
    names = ("data", "tokenizer", "vocab_size", "val_fraction", "padded_vocab")
    return language.Text(**{name: getattr(config, name) for name in names})


def spans(config: Config, tokenizer: Tokenizer) -> tuple[Spans, int]:
    """How windows are corrupted, and how long they are. Raises InputError where nothing fits."""
    how = Spans(config.rate, config.span, (config.padded_vocab or 0) - 1)
    rooms = config.encoder.context - 1, config.decoder.context - 1
    length = how.window(*rooms, 2 * sum(rooms))
    while length and how.hidden(length)[1] > config.sentinels:
        length -= 1
    if not length:
        raise InputError(f"no text fits into contexts of {rooms[0] + 1} and {rooms[1] + 1} tokens: make them longer")
    return how, length


def batches(config: Config, split: str, place: Place | None = None) -> Iterator[tuple[dict[str, Tensor], Place]]:
    """ "train": random windows for ever, with other gaps at each step. "val" and "all": one pass, the same gaps."""
    c, text = config.train, language.corpus(text_of(config))
    place = begin(place, config.data, text.meta["sha256"])
    how, length = spans(config, text.tokenizer)
    words = bilingual(text.tokenizer, None, config.start, config.end)
    start, end = words.start, words.end
    tokens = text.split(split)
    if split != "train":
        for i, (x, y) in enumerate(sweep(tokens, length, c.batch, split)):
            whole = (y != NOTHING).all(1)  # the last window may be short: it is left out
            if whole.any():
                yield batch(how(x[whole], 0, i), start, end), place
    while split == "train":
        x, _ = windows(tokens, length, c.batch, c.seed, place["step"], split)
        made = batch(how(x, c.seed, place["step"]), start, end)
        read = made["source"].numel() + made["next"].numel()
        place = place | {"step": place["step"] + 1, "tokens": place["tokens"] + read}
        yield made, place


def batch(sides: tuple[np.ndarray, np.ndarray], start: int, end: int) -> dict[str, Tensor]:
    """source (B, S) with its end, its lengths (B,), target (B, N) from `start` on, and next (B, N): what follows."""
    source, target = (np.pad(side, ((0, 0), (0, 1)), constant_values=end) for side in sides)
    lengths = np.full(len(source), source.shape[1])
    given = np.pad(target[:, :-1], ((0, 0), (1, 0)), constant_values=start)
    return {
        name: torch.from_numpy(np.ascontiguousarray(array))
        for name, array in {"source": source, "lengths": lengths, "target": given, "next": target}.items()
    }


def predict(model: Translator, request: dict[str, Any]) -> dict[str, Any]:
    """Fill the gaps of a text, or of several: {"input": "To be, or ___ to be", "beam": 4} and the other fields of
    `Request`. Returns {"results": [{"input", "text", "gaps", "score"}, ...]}: "gaps" is what belongs into each."""
    asked = Request.of({"input": opening(model.words.source)} | request)
    return {"results": [filled(model, text, asked) for text in asked.texts]}


def opening(tokenizer: Tokenizer) -> str:
    """A text with a gap, in words that the vocabulary has."""
    try:
        tokenizer.encode("To be, or  to be")
    except InputError:
        return f"{tokenizer.decode([0])}{GAP}{tokenizer.decode([1])}"
    return f"To be, or {GAP} to be"


def filled(model: Translator, text: str, asked: Request) -> dict[str, Any]:
    """One text with its gaps filled. Raises InputError where there is none, or one too many."""
    pieces = re.split(re.escape(GAP), text)
    if not 1 < len(pieces) <= model.sentinels + 1:
        raise InputError(f"{text[:40]!r} has {len(pieces) - 1} gaps; write 1 to {model.sentinels} of them as {GAP}")
    top = model.target.token.num_embeddings - 1
    ids = [int(i) for i in model.words.source.encode(pieces[0])]
    for n, piece in enumerate(pieces[1:]):
        ids += [top - n, *(int(i) for i in model.words.source.encode(piece))]
    if len(ids) >= model.encoder.config.context:
        raise InputError(f"{text[:40]!r} has {len(ids)} tokens; {model.encoder.config.context - 1} fit")
    best = hypotheses(model, [[*ids, model.words.source_end]], replace(asked, n_best=1))[0][0]
    gaps = [model.words.target.decode(part) for part in between(best.tokens, top, len(pieces) - 1)]
    said = "".join(piece + gap for piece, gap in zip(pieces, [*gaps, ""], strict=True))
    return {"input": text, "text": said, "gaps": gaps, "score": best.score}


def between(tokens: list[int], top: int, gaps: int) -> list[list[int]]:
    """What stands behind each sentinel, up to the next; nothing behind one that was not said."""
    found: list[list[int]] = [[] for _ in range(gaps)]
    current = None
    for token in tokens:
        if top - gaps < token <= top:
            current = top - token
        elif current is not None:
            found[current].append(token)
    return found
