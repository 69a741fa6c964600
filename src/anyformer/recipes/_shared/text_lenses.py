"""What the lens shows of recipes of texts: their tokens, and the head read at each of them.

Shapes: T tokens, C channels, V entries of the vocabulary.
"""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ...data.text.tagged_batches import encode_words
from ...data.tokenizers.base import Tokenizer
from ...data.tokenizers.masked_tokenizer import MASK
from ...errors import InputError
from ...inference.translation import TranslationRequest, search_translations
from ...model.heads import Classifier
from ...parsing import parse_dataclass
from ...recipe import LensNodes, LensView

REPEATED_TOKENS, REPEATS = 25, 4  # of the random text that repeats (2209.11895)
MAX_SCORES = 1 << 24  # numbers of one reading of the head: of longer texts, rows are left out
END = "⟨end⟩"


@dataclass(frozen=True)
class TextLensRequest:
    """A text to look at."""

    input: str | list[str] | None = None
    """A text; of several the first."""
    target: str | list[int] | None = None
    """Of pairs: the text, or the tokens, that are written. None: the model's own."""
    cut: bool = True
    """Without effect: what exceeds the context is always cropped."""

    @property
    def text(self) -> str:
        texts = [self.input] if isinstance(self.input, str) else self.input
        if not texts:
            raise InputError("the lens needs an input: --input TEXT")
        return texts[0]


def parse_request(request: dict[str, Any]) -> TextLensRequest:
    request = {"input" if name == "prompt" else name: value for name, value in request.items()}
    return parse_dataclass(TextLensRequest, request, "request")


def name_token(tokenizer: Tokenizer, token: int) -> str:
    """The text of a token, for display; special tokens by their name."""
    return tokenizer.decode([token]) or tokenizer.special_name(token)


def describe_tokens(ids: Sequence[int], name: Callable[[int], str]) -> LensNodes:
    return LensNodes([name(i) for i in ids], ["token"] * len(ids))


def crop(ids: Sequence[int], context: int, what: str, keep_end: bool = False) -> tuple[list[int], list[str]]:
    """Return the ids that fit into the context, the first or the last, and a note where some are left out."""
    ids, extra = list(ids), len(ids) - context
    if extra <= 0:
        return ids, []
    side = "first" if keep_end else "last"
    note = f"the {what} has {len(ids):,} tokens and the context {context:,}: the {side} {extra:,} are cropped"
    return ids[-context:] if keep_end else ids[:context], [note]


def to_row(model: Any, ids: Sequence[int]) -> Tensor:
    return torch.tensor([list(ids)], device=next(model.parameters()).device)


def lens_language(model: Any, request: dict[str, Any]) -> LensView:
    """Tokens of a text, and what follows each of them."""
    tokenizer, text = model.tokenizer, parse_request(request).text
    ids = tokenizer.encode_prompt(text).tolist() or list(tokenizer.end_ids[:1])
    if not ids:
        raise InputError("the input is empty and this vocabulary has no end-of-text token to start from")
    return lens_ids(model, ids)


def lens_ids(model: Any, ids: list[int]) -> LensView:
    """As `lens_language`, of tokens."""
    tokenizer = model.tokenizer
    ids, notes = crop(ids, model.body.config.context, "input", keep_end=True)
    n_rows = max(1, min(len(ids), MAX_SCORES // model.nodes.token.num_embeddings))
    if n_rows < len(ids):
        notes.append(f"the head is read at the last {n_rows:,} tokens")
    nodes, inputs = describe_tokens(ids, lambda i: name_token(tokenizer, i)), to_row(model, ids)
    rows = [(f"after {nodes.labels[i]}", i) for i in range(len(ids) - n_rows, len(ids))]

    def forward() -> Tensor:
        return model.head(model.hidden(inputs)[:, -n_rows:])[0].float()

    def repeat() -> LensView:
        repeated = draw_repeated_ids(model.body.config.context, model.nodes.token.num_embeddings)
        return replace(lens_ids(model, repeated), stacks={"body": describe_tokens(repeated, str)})

    return LensView({"body": nodes}, forward, rows, lambda i: name_token(tokenizer, i), notes=notes, repeat=repeat)


def draw_repeated_ids(context: int, vocab_size: int) -> list[int]:
    """Random different tokens, and the same again, as often as fits."""
    ids = random.Random(0).sample(range(vocab_size), max(1, min(REPEATED_TOKENS, context // 2, vocab_size)))
    return (REPEATS * ids)[:context]


# --- encoders ---


def encode_text(model: Any, request: dict[str, Any]) -> tuple[list[int], list[str]]:
    """Return the ids of a request's text as far as the context reaches, and notes."""
    tokenizer, text = model.masked_tokenizer, parse_request(request).text
    ids, fits = tokenizer.encode(text), tokenizer.encode(text, model.context, cut=True)
    extra = len(ids) - len(fits)
    about = f"the input has {len(ids):,} tokens and the context {model.context:,}: the last {extra:,} are cropped"
    return fits, [about] if extra else []


def name_encoder_token(model: Any, token: int) -> str:
    tokenizer = model.masked_tokenizer
    return MASK if token == tokenizer.mask_id else name_token(tokenizer.tokenizer, token)


def lens_masked(model: Any, request: dict[str, Any]) -> LensView:
    return lens_tokens(model, *encode_text(model, request))


def lens_tokens(model: Any, ids: list[int], notes: Sequence[str] = ()) -> LensView:
    """Tokens, hidden ones among them, and what the head predicts at each."""
    mask_id = model.masked_tokenizer.mask_id
    masks = [i for i, token in enumerate(ids) if token == mask_id]
    limit = max(1, MAX_SCORES // model.vocab_size)
    places = sorted(sorted(range(len(ids)), key=lambda i: i not in masks)[:limit])
    nodes, inputs = describe_tokens(ids, lambda i: name_encoder_token(model, i)), to_row(model, ids)
    rows = [(f"at {nodes.labels[i]}", i) for i in places]

    def forward() -> Tensor:
        return model.head(model.hidden(inputs)[:, places])[0].float()

    answer = places.index(masks[0]) if masks else len(places) - 1
    return LensView({"body": nodes}, forward, rows, lambda i: name_encoder_token(model, i), answer=answer, notes=notes)


def read_classes(head: Classifier, x: Tensor) -> Tensor:
    """The logits of the answer, and below it those that each node would give alone: (1, T, C) -> (1 + T, classes)"""
    return torch.cat([head(x), head.project(x[0])]).float()


def name_class_rows(nodes: LensNodes) -> list[tuple[str, int | None]]:
    return [("answer", None), *((f"by {label} alone", i) for i, label in enumerate(nodes.labels))]


def lens_classify(model: Any, request: dict[str, Any]) -> LensView:
    """Tokens of a text, the class, and the class that each token would give alone."""
    ids, notes = encode_text(model, request)
    nodes, inputs = describe_tokens(ids, lambda i: name_encoder_token(model, i)), to_row(model, ids)

    def forward() -> Tensor:
        return read_classes(model.head, model.hidden(inputs))

    rows = name_class_rows(nodes)
    return LensView({"body": nodes}, forward, rows, lambda i: model.names[i], answer=0, notes=notes)


def lens_words(model: Any, words: list[str]) -> LensView:
    """Tokens of words, and a tag read at the first token of each."""
    ids, first = encode_words(model.masked_tokenizer, words, model.context)
    if not first:
        raise InputError("the input has no word that fits into the context")
    left_out = len(words) - len(first)
    notes = [f"the last {left_out:,} of {len(words):,} words exceed the context and are cropped"] if left_out else []
    nodes, inputs = describe_tokens(ids, lambda i: name_encoder_token(model, i)), to_row(model, ids)

    def forward() -> Tensor:
        return model.head(model.hidden(inputs)[0, first]).float()

    rows = [(f"of {word}", node) for word, node in zip(words, first)]
    return LensView({"body": nodes}, forward, rows, lambda i: model.names[i], answer=0, notes=notes)


# --- pairs ---


def lens_pair(model: Any, source: list[int], notes: list[str], request: TextLensRequest) -> LensView:
    """A source (ids with the end) and the target that is written, and what follows each token of it."""
    pair, limit = model.pair_tokenizer, model.decoder.config.context - 1
    target = request.target
    if target is None:
        ((best,),) = search_translations(model, [source], TranslationRequest(input="", beam=1))
        target = best.tokens[:limit]
    written, more_notes = crop(
        pair.target.encode(target).tolist() if isinstance(target, str) else target, limit, "target"
    )
    inputs, outputs = to_row(model, source), to_row(model, [pair.start_id, *written])
    if int(outputs.max()) >= model.target.token.num_embeddings or int(outputs.min()) < 0:
        raise InputError(f"request: target has ids outside of the vocabulary of {model.target.token.num_embeddings:,}")

    def name_target(token: int) -> str:
        return END if token == pair.end_id else name_token(pair.target, token)

    def name_source(token: int) -> str:
        return END if token == pair.source_end_id else name_token(pair.source, token)

    def forward() -> Tensor:
        decoder = model.condition(model.encode(inputs), source=inputs)
        return decoder.head(decoder.hidden(outputs))[0].float()

    labels = ["⟨start⟩", *map(name_target, written)]
    stacks = {"encoder": describe_tokens(source, name_source), "decoder": LensNodes(labels, ["token"] * len(labels))}
    rows = [(f"after {label}", i) for i, label in enumerate(labels)]
    shared = {"target": list(map(int, written))}
    return LensView(stacks, forward, rows, name_target, answer=0, notes=[*notes, *more_notes], shared=shared)


def lens_translation(model: Any, request: dict[str, Any]) -> LensView:
    fields, tokenizer = parse_request(request), model.pair_tokenizer
    ids = tokenizer.source.encode(fields.text).tolist()
    ids, notes = crop(ids, model.encoder.config.context - tokenizer.n_source_marks, "input")
    return lens_pair(model, tokenizer.mark_source(ids), notes, fields)
