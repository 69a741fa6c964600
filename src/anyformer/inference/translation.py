"""Text in, another text out: sources are read whole, then their translations are searched for, in batches.

Knows tokenizers by what they do (encode, decode), not by their kind.
"""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from ..errors import InputError, suggest
from ..model.edges import Edges, within
from ..model.encoder_decoder import ConditionedDecoder
from .beam import Hypothesis, beam_search
from .completion import Tokenizer

BEAMS = 256  # the most
NODES = 1 << 14  # of a cache, in all rows together: bounds the memory of a batch


class Words(Protocol):
    """A tokenizer for each side, and the ids that begin and end a text."""

    @property
    def source(self) -> Tokenizer: ...
    @property
    def target(self) -> Tokenizer: ...
    @property
    def start(self) -> int: ...
    @property
    def end(self) -> int: ...
    @property
    def source_end(self) -> int: ...


class Pair(Protocol):
    """An encoder and decoder of texts, and their words."""

    pair_tokenizer: Any  # Words
    source: Any
    encoder: Any
    decoder: Any

    def encode(self, source: Tensor, memory_mask: Edges) -> Tensor: ...
    def condition(self, memory: Tensor, memory_mask: Edges) -> ConditionedDecoder: ...


@dataclass(frozen=True, kw_only=True)
class TranslationRequest:
    """What to translate and how. Plain values, so that it can come from a command line or over a wire."""

    input: str | Sequence[str]
    """One text or several."""
    beam: int = 4
    """Hypotheses kept at each step; 1 always takes the likeliest token."""
    n_best: int = 1
    """Translations of each text, best first; no more than `beam`."""
    tokens: int | None = None
    """The most new tokens. None: as many as the decoder's context holds."""
    length_penalty: float = 1.0
    """Log-probabilities are divided by their length to this power: 0 favours short ones."""
    cut: bool = False
    """Cut a source that is longer than the context instead of refusing it."""

    @staticmethod
    def of(values: dict[str, Any]) -> "TranslationRequest":
        """From plain values. Raises InputError on unknown names and values that mean nothing."""
        names = [field.name for field in dataclasses.fields(TranslationRequest)]
        for name in values:
            if name not in names:
                raise InputError(f"a request has no '{name}': {suggest(name, names)}")
        return TranslationRequest(**values)

    def __post_init__(self) -> None:
        if not all(isinstance(text, str) for text in self.texts):
            raise InputError("input must be a text, or a list of texts")
        for name, most in {"beam": BEAMS, "n_best": self.beam, "tokens": 1 << 31}.items():
            value = getattr(self, name)
            if not (value is None and name == "tokens") and not (type(value) is int and 1 <= value <= most):
                raise InputError(f"{name} is {value!r}; it must be a whole number from 1 to {most}")
        if not isinstance(self.length_penalty, int | float) or not -10 <= self.length_penalty <= 10:
            raise InputError(f"length_penalty is {self.length_penalty!r}; it must be between -10 and 10")

    @property
    def texts(self) -> list[str]:
        return [self.input] if isinstance(self.input, str) else list(self.input)


def translate(model: Pair, request: TranslationRequest) -> list[dict[str, Any]]:
    """The answer to each text, in their order: {"input", "text", "score", "finish_reason"}; "candidates", best first,
    where more than one is wanted; "cut", how many tokens of the source were left out, where some were. Raises
    InputError for a text that is too long or that the vocabulary lacks."""
    words: Words = model.pair_tokenizer
    room, answers = model.encoder.config.context - 1, {}
    rows = [[int(i) for i in words.source.encode(text)] for text in request.texts]
    for text, row in zip(request.texts, rows):
        if len(row) > room and not request.cut:
            begins = f"the source {text[:40]!r}... has {len(row):,} tokens"
            raise InputError(f"{begins}, and {room:,} fit into the context: shorten it, or let it be cut (cut)")
    order = sorted(range(len(rows)), key=lambda i: len(rows[i]))  # like lengths together
    width = max(1, NODES // (request.beam * length(model, request)))
    for first in range(0, len(order), width):
        some = order[first : first + width]
        for i, found in zip(some, search_translations(model, [[*rows[i][:room], words.source_end_id] for i in some], request)):
            answers[i] = answer(request, request.texts[i], len(rows[i]) - room, found, words.target)
    return [answers[i] for i in range(len(rows))]


def length(model: Pair, request: TranslationRequest) -> int:
    """The most tokens that a translation may have."""
    context = model.decoder.config.context
    return min(request.tokens or context, context)


@torch.inference_mode()
def search_translations(model: Pair, sources: list[list[int]], request: TranslationRequest) -> list[list[Hypothesis]]:
    """The best translations of each source, all read in one batch."""
    where, beam = next(model.decoder.parameters()).device, request.beam
    lengths = torch.tensor([len(row) for row in sources], device=where)
    ids = torch.zeros(len(sources), max(map(len, sources)), dtype=torch.long)
    for padded, row in zip(ids, sources):
        padded[: len(row)] = torch.tensor(row)
    memory = model.encode(ids.to(where), within(lengths)).repeat_interleave(beam, 0)  # (B * K, S, C)
    return beam_search(
        model.condition(memory, within(lengths.repeat_interleave(beam))),
        [[model.pair_tokenizer.start_id]] * len(sources),
        beam=beam,
        tokens=length(model, request),
        end=model.pair_tokenizer.end_id,
        n_best=request.n_best,
        penalty=request.length_penalty,
    )


def answer(request: TranslationRequest, text: str, over: int, found: list[Hypothesis], tokenizer: Tokenizer) -> dict[str, Any]:
    said = [
        {"text": tokenizer.decode(h.tokens), "score": h.score, "finish_reason": "stop" if h.finished else "length"}
        for h in found
    ]
    more = {"candidates": said} if request.n_best > 1 else {}
    return {"input": text, **said[0], **more, **({"cut": over} if over > 0 else {})}


# --- where it looks ---


@torch.inference_mode()
def align_translation(model: Any, source: str, target: str) -> dict[str, Any]:
    """Where a model that looks back looks before each token of a translation: {"weights" [T][S], "rows", "columns"},
    the tokens of both sides. Of several layers, the most decided one."""
    words, where = model.pair_tokenizer, next(model.parameters()).device
    ids = [known.encode(text).tolist() for known, text in zip((words.source, words.target), (source, target))]
    read = torch.tensor([[*ids[0], words.source_end_id]], device=where)
    said = torch.tensor([[words.start_id, *ids[1]]], device=where)
    weights = model.alignment(read, said, within(torch.tensor([read.shape[1]], device=where)))
    weights = select_sharpest_layer(weights[:, :, 0]) if weights.ndim == 5 else weights[0]
    columns, rows = ([*(known.decode([i]) for i in row), "·"] for known, row in zip((words.source, words.target), ids))
    return {"weights": [[round(w, 4) for w in row] for row in weights.tolist()], "rows": rows, "columns": columns}


def select_sharpest_layer(weights: Tensor) -> Tensor:
    """Of all layers, the mean of the heads where it is most decided. (layers, heads, T, S) -> (T, S)"""
    mean = weights.mean(1)
    spread = -(mean * mean.clamp(min=1e-9).log()).sum(-1).mean(-1)
    return mean[int(spread.argmin())]
