"""Spans: fill gaps in a text; text to text without pairs, the gaps are cut into the text at random.

raw    text files, or a set by name
nodes  tokens of the text with a sentinel in each gap; sentinels, each followed by what is missing
edges  the source is fully connected; the target is causal, and reads the top of the source by cross-attention
head   a logit for each token of the vocabulary
loss   cross-entropy of the target's next token

    anyformer train spans                                    minutes on two cores: the plays of Shakespeare
    anyformer predict RUN "To be, or ___ to be"
    anyformer train translation --init RUN --data pairs.tsv  starts from it

T5's pre-training (Raffel et al. 2019, 1910.10683); the model is that of the recipe translation.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..data.text.batches import IGNORE_INDEX
from ..data.text.masking import SpanCorruption
from ..errors import InputError
from ..forms import Form, Task
from ..inference.beam import Hypothesis
from ..inference.structure import STRUCTURES
from ..inference.translation import TranslationRequest, search_in_batches
from ..metrics import describe_classes, sum_classes
from ..model.kernels.cross_entropy import iterate_logits
from ..parsing import check_range, parse_dataclass
from ..recipe import BatchStream, Examples, LensView, SizeOption, StreamState, advance_stream, init_stream
from ..training.config import TrainConfig
from ._shared.mixtures import count_sources, score_by_source, tag_batch
from ._shared.pairs import (  # noqa: F401
    Translator,
    TranslatorConfig,
    build_pair,
    build_translator,
    decode_batch,
    export_graph,
    loss,
)
from ._shared.presets import T5, TINY_PAIRS_TRAIN, make_stacks
from ._shared.sizes import Size, offer_sizes
from ._shared.text import (  # noqa: F401
    file_input,
    first_tokens,
    hide_tokens,
    load_mixture,
    load_text_tokenizer,
    refuse_draft_fields,
)
from ._shared.text_lenses import lens_pair, parse_request
from ._shared.trivial_baselines import Baselines, score_bigrams

GAP = "___"
MAX_BASELINE_BATCHES = 200  # of each split


@dataclass(frozen=True, kw_only=True)
class Config(TranslatorConfig):
    """A model that fills gaps, its text and its training. `padded_vocab` must leave room for the sentinels."""

    rate: float = 0.15
    """Share of a text that is missing."""
    span: float = 3.0
    """Mean length of a gap, in tokens."""
    sentinels: int = 64
    """The most gaps of a text."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.source_tokenizer:
            raise ValueError("source_tokenizer: source and target are parts of one text: leave it out")
        if self.source_start is not None:
            raise ValueError("source_start: a text with gaps begins as it is: leave it out")
        check_range(self, "rate", above=0, below=1)
        check_range(self, "span", "sentinels", at_least=1, at_most=1 << 20)


SIZES = (Size(64, 1, 8, 0), Size(96, 2, 8, 600))  # of --minutes
PRESETS = {
    # seconds: for tests
    "tiny": Config(
        data="plays",
        tokenizer="char",
        padded_vocab=128,
        rate=0.2,
        span=2.0,
        sentinels=8,
        **make_stacks(32, 1, 2, 32),
        train=TINY_PAIRS_TRAIN,
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
        **make_stacks(128, 2, 4, 128, activation="relu", **T5),
        train=TrainConfig(steps=2000, batch=16, eval_every=250, save_every=500),
    ),
}


def sizes(config: Config) -> Iterator[SizeOption]:
    yield from offer_sizes(config, SIZES, steps=1200)


def build(config: Config) -> Translator:
    tokenizer = load_text_tokenizer(config)
    size = tokenizer.vocab_size + config.sentinels
    if (config.padded_vocab or 0) < size:
        about = f"padded_vocab is {config.padded_vocab}; {tokenizer.vocab_size} tokens and {config.sentinels} sentinels"
        raise InputError(f"{about} need {size}: --padded-vocab {size}")
    model = build_translator(config, build_pair(config, tokenizer))
    model.sentinels = config.sentinels
    return model


def fit_corruption(config: Config) -> tuple[SpanCorruption, int]:
    """Return how windows are corrupted, and how long they are. Raises InputError where no window fits."""
    corruption = SpanCorruption(config.rate, config.span, (config.padded_vocab or 0) - 1)
    max_source, max_target = config.contexts[0] - 1, config.contexts[1] - 1
    length = corruption.longest_window(max_source, max_target, 2 * (max_source + max_target))
    while length and corruption.count_removed(length)[1] > config.sentinels:
        length -= 1
    if not length:
        raise InputError(f"no text fits into contexts of {max_source + 1} and {max_target + 1} tokens: increase them")
    return corruption, length


def batches(config: Config, split: str, state: StreamState | None = None) -> BatchStream:
    """Yield corrupted windows of the text: source, lengths, target and labels.

    "train": random windows without end, with other gaps at each step. "val" and "all": one pass, always the same gaps.
    """
    c, text = config.train, load_mixture(config)
    state = init_stream(state, config.data, text.sha256, **text.stream_values)
    corruption, length = fit_corruption(config)
    pair = build_pair(config, text.tokenizer)
    if split != "train":
        for i, (owners, ids, labels) in enumerate(text.eval_windows(split, length, c.batch)):
            is_full = (labels != IGNORE_INDEX).all(1)  # the last window may be shorter: it is left out
            if is_full.any():
                batch = make_batch(*corruption(ids[is_full], 0, i), pair.start_id, pair.end_id)
                yield tag_batch(batch, text, owners[is_full]), state
    while split == "train":
        ids, _ = text.train_windows(length, c.batch, c.seed, state["step"], c.accumulate)
        batch = make_batch(*corruption(ids, c.seed, state["step"]), pair.start_id, pair.end_id)
        count = batch["source"].numel() + batch["labels"].numel()
        state = advance_stream(state, count)
        yield batch, state


def make_batch(source: np.ndarray, target: np.ndarray, start: int, end: int) -> dict[str, Tensor]:
    """Return source (B, S) with its end, its lengths (B,), target (B, T) from `start` on, and labels (B, T)."""
    source, labels = (np.pad(side, ((0, 0), (0, 1)), constant_values=end) for side in (source, target))
    lengths = np.full(len(source), source.shape[1])
    target = np.pad(target, ((0, 0), (1, 0)), constant_values=start)
    batch = {"source": source, "lengths": lengths, "target": target, "labels": labels}
    return {name: torch.from_numpy(array) for name, array in batch.items()}


def evaluate(model: Translator, batches: Iterator[dict[str, Tensor]]) -> dict[str, float]:
    """Return the mean nats per token of the gaps' texts (not smoothed), their exponential, and the accuracy."""

    def add(batch: dict[str, Tensor]) -> list[float]:
        return sum_classes(iterate_logits(*decode_batch(model, batch), batch["labels"]))

    return score_by_source(batches, add, describe_classes)


def describe_sources(config: Config, n_batches: int) -> dict[str, dict[str, Any]]:
    return count_sources(load_mixture(config), config, fit_corruption(config)[1], n_batches)


def baselines(config: Config) -> Baselines:
    """Score models of the gaps' texts alone."""
    rows: dict[str, list[np.ndarray]] = {"train": [], "val": []}
    for split in rows:
        for batch, _ in islice(batches(config, split), MAX_BASELINE_BATCHES):
            rows[split] += list(np.concatenate([batch["target"][:, :1], batch["labels"]], 1))
    return {"loss": score_bigrams(rows["train"], rows["val"], config.padded_vocab or 0)}


def examples(config: Config) -> Examples:
    return hide_tokens(load_mixture(config), GAP, round(config.span), config.encoder.context - 2)


def predict(model: Translator, request: dict[str, Any]) -> dict[str, Any]:
    """Fill the gaps of a text, or of several: {"input": "To be, or ___ to be", "beam": 4} and the other fields of
    `TranslationRequest`.

    Returns {"results": [{"input", "text", "gaps", "score"}, ...]}; "gaps" are the texts that fill each gap.
    """
    refuse_draft_fields(request)
    request = {"input": first_tokens(model.pair_tokenizer.source) + GAP} | request
    parsed = parse_dataclass(TranslationRequest, request, "request")
    if parsed.structure is not None:
        raise InputError(f"request: {parsed.structure[0]} is for whole answers; this model fills gaps")
    pieces = [re.split(re.escape(GAP), text) for text in parsed.texts]
    sources = [encode_gaps(model, text, parts) for text, parts in zip(parsed.texts, pieces)]
    hypotheses = search_in_batches(model, sources, replace(parsed, n_best=1))
    filled = [describe_gaps(model, parts, best) for parts, (best,) in zip(pieces, hypotheses)]
    return {"results": [{"input": text} | result for text, result in zip(parsed.texts, filled)]}


def predict_batch(model: Translator, inputs: list[str], settings: dict[str, Any]) -> list[dict[str, Any]]:
    return predict(model, settings | {"input": inputs})["results"]


def form(model: Translator, config: Config) -> Form:
    example, omit = first_tokens(model.pair_tokenizer.source) + GAP, ("n_best", "cut", "align", *STRUCTURES)
    task = Task("Fill the gaps", "text", TranslationRequest, "gaps", omit=omit, mark=GAP, examples=(example,))
    return Form((task,))


def lens(model: Translator, request: dict[str, Any]) -> LensView:
    """Show the tokens of a text with gaps, and of what fills them."""
    fields = parse_request(request)
    return lens_pair(model, encode_gaps(model, fields.text, re.split(re.escape(GAP), fields.text)), [], fields)


def encode_gaps(model: Translator, text: str, pieces: list[str]) -> list[int]:
    """Return the ids of a text, with a sentinel between its pieces. Raises InputError where it has no gap, or too many
    of them."""
    pair = model.pair_tokenizer
    if not 1 < len(pieces) <= model.sentinels + 1:
        raise InputError(f"{text[:40]!r} has {len(pieces) - 1} gaps; write 1 to {model.sentinels} of them as {GAP}")
    first = model.target.token.num_embeddings - 1  # sentinels count down from the last id
    ids = pair.source.encode(pieces[0]).tolist()
    for n, piece in enumerate(pieces[1:]):
        ids += [first - n, *pair.source.encode(piece).tolist()]
    if len(ids) > (room := model.encoder.config.context - pair.n_source_marks):
        raise InputError(f"{text[:40]!r} has {len(ids)} tokens; {room} fit")
    return pair.mark_source(ids)


def describe_gaps(model: Translator, pieces: list[str], best: Hypothesis) -> dict[str, Any]:
    first = model.target.token.num_embeddings - 1
    texts = split_at_sentinels(best.tokens, first, len(pieces) - 1)
    gaps = [model.pair_tokenizer.target.decode(tokens) for tokens in texts]
    filled = "".join(piece + gap for piece, gap in zip(pieces, [*gaps, ""], strict=True))
    return {"text": filled, "gaps": gaps, "score": best.score}


def split_at_sentinels(tokens: list[int], first: int, gaps: int) -> list[list[int]]:
    """Return what follows each sentinel, up to the next one; nothing for a sentinel that does not occur."""
    pieces: list[list[int]] = [[] for _ in range(gaps)]
    current = None
    for token in tokens:
        if first - gaps < token <= first:
            current = first - token
        elif current is not None:
            pieces[current].append(token)
    return pieces
