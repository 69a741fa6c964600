"""Translation: encode source texts, then search for the likeliest targets, in batches.

A model is an encoder-decoder (`encode`, `condition`, `alignment`) with its tokenizers as `pair_tokenizer`.

Shapes: B texts, K beams, S tokens of a source, T tokens of a target, C channels.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..errors import InputError
from ..model.edges import within
from ..parsing import check_range, check_types
from .beam import Hypothesis, beam_search
from .prompt_reading import pad_rows
from .structure import StructureParams, compile_structure

CUT_HINT = "or let it be cut: --request '{\"cut\": true}'"
EXTRA_TOKENS = 20  # that a translation may have in any case
NO_REPEAT_NGRAM = 4
MAX_CACHE_NODES = 1 << 14  # in all rows of a batch together, which bounds its memory


@dataclass(frozen=True, kw_only=True)
class TranslationRequest(StructureParams):
    """What to translate and how, in plain values. Raises InputError on values that make no sense."""

    input: str | Sequence[str]
    """One text or several."""
    beam: int = 4
    """Hypotheses kept at each step; 1 always takes the likeliest token."""
    n_best: int = 1
    """Translations of each text, best first; no more than `beam`."""
    tokens: int | None = None
    """The most new tokens. None: as many as the decoder's context holds."""
    length_penalty: float = 1.0
    """Scores are log-probabilities divided by the length to this power: 0 prefers short translations."""
    no_repeat_ngram: int | None = None
    """No run of so many tokens occurs twice in a translation; 0 allows all. None: 4, and 0 where tokens are characters
    or bytes, or the translation has a structure."""
    max_length_ratio: float = 3.0
    """A translation has at most so many tokens for each of the source, and 20 more; 0: no such limit."""
    cut: bool = False
    """Cut a source that exceeds the context instead of refusing it."""
    align: bool = False
    """Return with each translation what its tokens read of the source, "alignment"."""

    def __post_init__(self) -> None:
        check_types(self)
        check_range(self, "beam", "n_best", at_least=1, at_most=256)
        check_range(self, "n_best", at_least=1, at_most=self.beam)
        check_range(self, "tokens", at_least=1, at_most=10_000_000)
        check_range(self, "no_repeat_ngram", at_least=0, at_most=1000)
        check_range(self, "max_length_ratio", at_least=0, at_most=1000)
        check_range(self, "length_penalty", at_least=-10, at_most=10)
        self.check_structure()

    @property
    def texts(self) -> list[str]:
        return [self.input] if isinstance(self.input, str) else list(self.input)


def translate(model: Any, request: TranslationRequest) -> list[dict[str, Any]]:
    """Translate every text of a request. Raises InputError.

    Returns for each text {"input", "text", "score", "finish_reason"}; also "candidates", best first, where `n_best` >
    1, "cut", the number of tokens that a source was cut by, and "alignment" where it is asked for (`align_tokens`).
    """
    tokenizers = model.pair_tokenizer
    max_source = model.encoder.config.context - tokenizers.n_source_marks
    rows = [tokenizers.source.encode(text).tolist() for text in request.texts]
    for text, row in zip(request.texts, rows):
        if len(row) > max_source and not request.cut:
            about = f"the source {text[:40]!r}... has {len(row):,} tokens"
            raise InputError(f"{about}, and {max_source:,} fit into the context: shorten it, {CUT_HINT}")
    sources = [tokenizers.mark_source(row[:max_source]) for row in rows]
    results = []
    for text, row, hypotheses in zip(request.texts, rows, search_in_batches(model, sources, request)):
        candidates = [describe_hypothesis(model, hypothesis) for hypothesis in hypotheses]
        results.append({"input": text, **candidates[0]})
        results[-1] |= {"candidates": candidates} if request.n_best > 1 else {}
        results[-1] |= {"cut": len(row) - max_source} if len(row) > max_source else {}
        if request.align:
            results[-1]["alignment"] = align_tokens(model, row[:max_source], hypotheses[0].tokens)
    return results


def search_in_batches(model: Any, sources: list[list[int]], request: TranslationRequest) -> list[list[Hypothesis]]:
    """As `search_translations`, in batches of sources of similar length that bound memory."""
    order = sorted(range(len(sources)), key=lambda i: len(sources[i]))
    size = max(1, MAX_CACHE_NODES // (request.beam * max_target_tokens(model, request)))
    results = {}
    for start in range(0, len(order), size):
        indices = order[start : start + size]
        results |= dict(zip(indices, search_translations(model, [sources[i] for i in indices], request)))
    return [results[i] for i in range(len(sources))]


def max_target_tokens(model: Any, request: TranslationRequest) -> int:
    context = model.decoder.config.context
    return min(request.tokens or context, context)


def describe_hypothesis(model: Any, hypothesis: Hypothesis) -> dict[str, Any]:
    reason = "stop" if hypothesis.finished else "length"
    text = model.pair_tokenizer.target.decode(hypothesis.tokens)
    return {"text": text, "score": hypothesis.score, "finish_reason": reason}


@torch.inference_mode()
def search_translations(model: Any, sources: list[list[int]], request: TranslationRequest) -> list[list[Hypothesis]]:
    """Return the best translations of each source (ids with the end), computed in one batch."""
    ids, lengths = pad_rows(sources, next(model.decoder.parameters()).device)
    memory = model.encode(ids, within(lengths))
    ids, memory, lengths = (part.repeat_interleave(request.beam, 0) for part in (ids, memory, lengths))  # (B * K, ...)
    pair = model.pair_tokenizer
    constraint = compile_structure(request, pair.target, [pair.end_id])
    return beam_search(
        model.condition(memory, within(lengths), ids),
        [[pair.start_id]] * len(sources),
        beam=request.beam,
        tokens=[limit_tokens(model, request, len(source)) for source in sources],
        end=pair.end_id,
        n_best=request.n_best,
        penalty=request.length_penalty,
        no_repeat_ngram=default_ngram(model, request) if request.no_repeat_ngram is None else request.no_repeat_ngram,
        matchers=[] if constraint is None else [constraint.start() for _ in sources],
    )


def limit_tokens(model: Any, request: TranslationRequest, n_source: int) -> int:
    """Return the most tokens of the translation of a source of this length."""
    limit = max_target_tokens(model, request)
    return min(limit, int(request.max_length_ratio * n_source) + EXTRA_TOKENS) if request.max_length_ratio else limit


def default_ngram(model: Any, request: TranslationRequest) -> int:
    is_free = model.pair_tokenizer.target.kind not in ("char", "byte") and request.structure is None
    return NO_REPEAT_NGRAM if is_free else 0


# --- attention between the texts ---


def align_translation(model: Any, source: str, target: str) -> dict[str, Any]:
    """Return the cross-attention of a pair of texts, as `align_tokens` does."""
    tokenizers = model.pair_tokenizer
    return align_tokens(model, tokenizers.source.encode(source).tolist(), tokenizers.target.encode(target).tolist())


@torch.inference_mode()
def align_tokens(model: Any, source: list[int], target: list[int]) -> dict[str, Any]:
    """Return the cross-attention of a pair of texts, given as ids, in the layer where it is sharpest: "weights" [T][S],
    and the tokens of the target, "rows", and of the source, "columns". Raises InputError where there is none."""
    if not can_align(model):
        raise InputError("request: align: this model has no attention from one text to the other")
    tokenizers, device = model.pair_tokenizer, next(model.parameters()).device
    context = model.decoder.config.context  # a target may fill it: then nothing was read for its end
    encoder_input = torch.tensor([tokenizers.mark_source(source)], device=device)
    decoder_input = torch.tensor([[tokenizers.start_id, *target][:context]], device=device)
    lengths = torch.tensor([encoder_input.shape[1]], device=device)
    weights = model.alignment(encoder_input, decoder_input, within(lengths))
    weights = select_sharpest_layer(weights[:, :, 0]) if weights.ndim == 5 else weights[0]
    weights = weights[:, tokenizers.n_source_marks - 1 :]  # without the token that begins a source
    return {
        "weights": [[round(weight, 4) for weight in row] for row in weights.tolist()],
        "rows": [*(tokenizers.target.decode([i]) for i in target), "·"][:context],
        "columns": [*(tokenizers.source.decode([i]) for i in source), "·"],
    }


def can_align(model: Any) -> bool:
    """Whether the decoder reads the source by attention."""
    return hasattr(model, "alignment")


def select_sharpest_layer(weights: Tensor) -> Tensor:
    """Return the mean over heads of the layer with the lowest entropy: (layers, heads, T, S) -> (T, S)"""
    mean = weights.mean(1)
    entropy = -(mean * mean.clamp(min=1e-9).log()).sum(-1).mean(-1)
    return mean[int(entropy.argmin())]
