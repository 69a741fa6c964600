"""A tokenizer with what an encoder needs: special tokens around a text, and an id that masks a token.

Shapes: B batch, T tokens.
"""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import tokenizers

from ...errors import InputError
from ..text.batches import segment
from .base import Tokenizer
from .subwords import PROBES, Subwords, can_encode

MASK = "[MASK]"
MASK_TOKENS = (MASK, "<mask>")  # usual names
MASK_PATTERN = re.compile("|".join(map(re.escape, MASK_TOKENS)))


@dataclass(frozen=True)
class MaskedTokenizer:
    """A tokenizer, the special tokens that it puts around a text, and the id that masks a token.

    Attributes:
        prefix_ids: before a text: [CLS].
        suffix_ids: after a text: [SEP].
        mask_id: the tokenizer's own, or an additional id after all others; None if the vocabulary has no room for it.
        mask_strips_space: whether the space before a mask belongs to the masked token, as in a byte-level BPE.
    """

    tokenizer: Tokenizer
    prefix_ids: tuple[int, ...] = ()
    suffix_ids: tuple[int, ...] = ()
    mask_id: int | None = None
    mask_strips_space: bool = False

    @staticmethod
    def from_tokenizer(tokenizer: Tokenizer, capacity: int | None = None) -> "MaskedTokenizer":
        """Find the special tokens of a tokenizer. `capacity`: rows of the embedding, if they are fixed."""
        additional = tokenizer.vocab_size if capacity is None or capacity > tokenizer.vocab_size else None
        if not isinstance(tokenizer, Subwords):
            return MaskedTokenizer(tokenizer, mask_id=additional)
        public = tokenizers.Tokenizer.from_str(tokenizer.to_json())
        public.no_truncation(), public.no_padding()
        mask_id = next((i for name in MASK_TOKENS if (i := public.token_to_id(name)) is not None), None)
        if mask_id is None:
            return MaskedTokenizer(tokenizer, *_special_affixes(public), additional, tokenizer.kind == "bpe")
        added_tokens = json.loads(tokenizer.to_json()).get("added_tokens") or []
        strips = any(token["id"] == mask_id and token.get("lstrip") for token in added_tokens)
        return MaskedTokenizer(tokenizer, *_special_affixes(public), mask_id, strips)

    @property
    def vocab_size(self) -> int:
        return max(self.tokenizer.vocab_size, 0 if self.mask_id is None else self.mask_id + 1)

    @property
    def n_special(self) -> int:
        """The number of special tokens around each text."""
        return len(self.prefix_ids) + len(self.suffix_ids)

    def encode(self, text: Any, context: int | None = None, cut: bool = False) -> list[int]:
        """Return the ids of a text with the special tokens around it; [MASK] in it masks a token.

        Raises InputError for an empty text, and for one that is longer than the context, unless it may be cut.
        """
        return self.encode_batch([text], context, cut)[0]

    def encode_batch(self, texts: Sequence[Any], context: int | None = None, cut: bool = False) -> list[list[int]]:
        """Return the ids of several texts, each as `encode` does."""
        parts = [self._split_at_masks(text) for text in texts]
        encoded = iter(self.tokenizer.encode_batch([part for row in parts for part in row if part]))
        rows = []
        for text, (first, *others) in zip(texts, parts, strict=True):
            ids = next(encoded).tolist() if first else []
            for part in others:
                ids += [self.require_mask_id(), *(next(encoded).tolist() if part else ())]
            rows.append(self._fit(text, ids, context, cut))
        return rows

    def _split_at_masks(self, text: Any) -> list[str]:
        """Return what stands before, between and after the masks of a text."""
        if not isinstance(text, str):
            raise InputError(f"{text!r} is {type(text).__name__}, not a text")
        *parts, last = MASK_PATTERN.split(text)
        return [*(part.rstrip(" ") if self.mask_strips_space else part for part in parts), last]

    def _fit(self, text: str, ids: list[int], context: int | None, cut: bool) -> list[int]:
        """Put the special tokens around the ids of a text, which must not exceed the context."""
        length = len(ids) + self.n_special
        if not length:
            raise InputError("an empty text has no nodes: give it a word")
        if context is not None and length > context:
            if not cut:
                start = repr(text if len(text) <= 40 else f"{text[:40]}...")
                problem = f"{start} has {length} tokens, the context holds {context}"
                raise InputError(f"{problem}: shorten it, or let it be cut: --request '{{\"cut\": true}}'")
            ids = ids[: context - self.n_special]
        return [*self.prefix_ids, *ids, *self.suffix_ids]

    def require_mask_id(self) -> int:
        """Return the id that masks a token. Raises InputError if there is none."""
        if self.mask_id is None:
            size = f"the vocabulary of {self.tokenizer.vocab_size} entries"
            raise InputError(f"the tokenizer has no {MASK}, and {size} no room for it: set padded_vocab higher")
        return self.mask_id

    def wrap_rows(self, windows: np.ndarray, lengths: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Put the special tokens around windows (B, t) of a long text, of which the first `lengths` (B,) are text.

        Returns:
            ids (B, T), lengths (B,), and which ids are text (B, T) bool; the end-of-text token is not.
        """
        B, t = windows.shape
        n_prefix = len(self.prefix_ids)
        ids = np.zeros((B, t + self.n_special), np.int64)
        ids[:, :n_prefix] = self.prefix_ids
        ids[:, n_prefix : n_prefix + t] = windows
        ends = n_prefix + lengths  # (B,) where the suffix starts
        for i, token in enumerate(self.suffix_ids):
            ids[np.arange(B), ends + i] = token
        index = np.arange(ids.shape[1])
        is_text = (index >= n_prefix) & (index < ends[:, None])
        if self.tokenizer.end_id is not None:
            is_text &= ids != self.tokenizer.end_id
        return ids, lengths + self.n_special, is_text

    def segment_rows(self, windows: np.ndarray, lengths: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Find the documents in the rows of `wrap_rows`: document and positions (B, T), see `text.batches.segment`.

        The special tokens before a window belong to its first document, those after it to its last.
        """
        document, _ = segment(windows, self.tokenizer.end_id)
        index = np.arange(windows.shape[1] + self.n_special)
        column = np.clip(index - len(self.prefix_ids), 0, np.maximum(lengths, 1)[:, None] - 1)  # (B, T)
        document = np.take_along_axis(document, column, axis=1)
        is_start = np.diff(document, axis=1, prepend=0) != 0
        return document, index - np.maximum.accumulate(np.where(is_start, index, 0), axis=1)

    def token_text(self, token: int) -> str:
        """Return the text of a token, for display."""
        return MASK if token >= self.tokenizer.vocab_size else self.tokenizer.decode([token])


def _special_affixes(public: tokenizers.Tokenizer) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return the ids that the tokenizer's post-processor puts before and after a text."""
    if public.post_processor is None:
        return (), ()
    probe = next((text for text in (*PROBES, *public.get_vocab(False)) if can_encode(public, text)), "")
    encoding = public.encode(probe)
    inside = [i for i, is_special in enumerate(encoding.special_tokens_mask) if not is_special]
    first, last = (inside[0], inside[-1]) if inside else (len(encoding.ids), len(encoding.ids))
    return tuple(encoding.ids[:first]), tuple(encoding.ids[last + 1 :])
