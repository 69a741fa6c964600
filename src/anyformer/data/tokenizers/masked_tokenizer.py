"""What an encoder wants around a text: its beginning and end, and an entry that hides a token.

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
from .build import Subwords, Tokenizer

MASK = "[MASK]"
MASK_TOKENS = (MASK, "<mask>")  # what tokenizers call it


@dataclass(frozen=True)
class MaskedTokenizer:
    """A tokenizer; the ids it puts before and after a text ([CLS] and [SEP], where it has such a rule); and the id that
    hides a token: the tokenizer's own, or one more entry after its ids (None where the vocabulary has no room)."""

    tokenizer: Tokenizer
    before: tuple[int, ...] = ()
    after: tuple[int, ...] = ()
    mask: int | None = None
    strips: bool = False
    """The space before a mask belongs to what it hides, as a byte-level BPE has it."""

    @staticmethod
    def from_tokenizer(tokenizer: Tokenizer, room: int | None = None) -> "MaskedTokenizer":
        """room: entries of the vocabulary, where they are given."""
        added = tokenizer.vocab_size if room is None or room > tokenizer.vocab_size else None
        if not isinstance(tokenizer, Subwords):
            return MaskedTokenizer(tokenizer, mask=added)
        public = tokenizers.Tokenizer.from_str(tokenizer.to_json())
        public.no_truncation(), public.no_padding()
        own = next((i for name in MASK_TOKENS if (i := public.token_to_id(name)) is not None), None)
        known = {token["id"]: token for token in json.loads(tokenizer.to_json()).get("added_tokens") or []}
        strips = tokenizer.kind == "bpe" if own is None else bool(known.get(own, {}).get("lstrip"))
        return MaskedTokenizer(tokenizer, *special_affixes(public), added if own is None else own, strips)

    @property
    def vocab_size(self) -> int:
        return max(self.tokenizer.vocab_size, 0 if self.mask is None else self.mask + 1)

    @property
    def extra(self) -> int:
        """Tokens around each text."""
        return len(self.before) + len(self.after)

    def encode(self, text: Any, context: int | None = None, cut: bool = False) -> list[int]:
        """The ids of a text, wrapped; [MASK] in it hides a token. Raises InputError for an empty text, and for one that
        is longer than the context, unless it may be cut."""
        if not isinstance(text, str):
            raise InputError(f"{text!r} is {type(text).__name__}, not a text")
        ids: list[int] = []
        *parts, last = re.split("|".join(map(re.escape, MASK_TOKENS)), text)
        for part in parts:
            ids += [*self.plain(part.rstrip(" ") if self.strips else part), self.require_mask]
        return self.fitted(ids + self.plain(last), context, cut, text)

    def plain(self, part: str) -> list[int]:
        return self.tokenizer.encode(part).tolist() if part else []

    def fitted(self, ids: Sequence[int], context: int | None, cut: bool, text: str) -> list[int]:
        """The ids between their beginning and end, if there is room for them."""
        shown = repr(text if len(text) <= 40 else f"{text[:40]}...")
        if not len(ids) + self.extra:
            raise InputError("an empty text has no nodes: give it a word")
        if context is not None and len(ids) + self.extra > context:
            if not cut:
                raise InputError(
                    f"{shown} has {len(ids) + self.extra} tokens, the context holds {context}: shorten it, or let it "
                    "be cut (cut)"
                )
            ids = ids[: context - self.extra]
        return [*self.before, *ids, *self.after]

    @property
    def require_mask(self) -> int:
        """The id that hides a token. Raises InputError where there is none."""
        if self.mask is None:
            raise InputError(
                f"the tokenizer has no {MASK}, and the vocabulary of {self.tokenizer.vocab_size} entries no room for "
                "it: set padded_vocab higher"
            )
        return self.mask

    def rows(self, x: np.ndarray, lengths: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Rows of a long text, each wrapped: ids (B, T), how many of a row are real (B,), and which of these are text
        (B, T) bool. x: (B, t), of which the first `lengths` are real."""
        B, t = x.shape
        ids = np.zeros((B, t + self.extra), np.int64)
        ids[:, : len(self.before)] = self.before
        ids[:, len(self.before) : len(self.before) + t] = x
        at = np.arange(ids.shape[1])
        ends = len(self.before) + lengths  # (B,) where the end begins
        for i, token in enumerate(self.after):
            ids[np.arange(B), ends + i] = token
        text = (at >= len(self.before)) & (at < ends[:, None])
        return ids, lengths + self.extra, text & (ids != (-1 if self.tokenizer.end_id is None else self.tokenizer.end_id))

    def shown(self, token: int) -> str:
        """A token for a person to read."""
        if token >= self.tokenizer.vocab_size:
            return MASK
        return self.tokenizer.decode([token])


def special_affixes(public: tokenizers.Tokenizer) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The ids that the tokenizer's post-processor puts before and after a text."""
    if public.post_processor is None:
        return (), ()
    found = public.encode("a")
    inside = [i for i, special in enumerate(found.special_tokens_mask) if not special]
    if not inside:
        return tuple(found.ids), ()
    return tuple(found.ids[: inside[0]]), tuple(found.ids[inside[-1] + 1 :])


def pad_ids(rows: Sequence[Sequence[int]]) -> tuple[np.ndarray, np.ndarray]:
    """Rows of unequal length as one array: ids (B, T), filled up with 0, and their lengths (B,)."""
    lengths = np.array([len(row) for row in rows], np.int64)
    ids = np.zeros((len(rows), lengths.max(initial=0)), np.int64)
    for i, row in enumerate(rows):
        ids[i, : len(row)] = row
    return ids, lengths
