"""Sentences with a tag for each word to rows of tokens, labeled at the first token of each word.

Shapes: B batch, T tokens.
"""

from collections.abc import Sequence

import numpy as np

from ...errors import InputError
from ..tokenizers.masked_tokenizer import MaskedTokenizer
from ..unusable import LengthPolicy, check_unusable
from .batches import IGNORE_INDEX, pad_ids
from .tagged import TaggedTexts

Row = tuple[list[int], list[int]]  # ids, and for each the number of its tag or IGNORE_INDEX


def encode_words(tokenizer: MaskedTokenizer, words: Sequence[str], context: int) -> tuple[list[int], list[int]]:
    """Return the ids of a sentence, cut to the context, and the index of the first token of each word that fits."""
    ids, first = list(tokenizer.prefix_ids), []
    for pieces in tokenizer.tokenizer.encode_batch([f" {word}" if i else word for i, word in enumerate(words)]):
        if not len(pieces) or len(ids) + len(pieces) + len(tokenizer.suffix_ids) > context:
            break
        first.append(len(ids))
        ids += pieces.tolist()
    return [*ids, *tokenizer.suffix_ids], first


def encode_tagged(
    data: TaggedTexts, tokenizer: MaskedTokenizer, context: int, too_long: LengthPolicy
) -> dict[str, list[Row]]:
    """Return the rows of each split and of "all". Raises InputError where more sentences exceed the context than
    `too_long` allows, and where none is left."""
    rows: dict[str, list[Row]] = {}
    number, long = {name: i for i, name in enumerate(data.names)}, []
    for split, sentences in data.splits.items():
        rows[split] = []
        for words, tags, where in sentences:
            ids, first = encode_words(tokenizer, words, context)
            long += [where] if len(first) < len(words) else []
            if first and (len(first) == len(words) or too_long == "cut"):
                labels = np.full(len(ids), IGNORE_INDEX)
                labels[first] = [number[tag] for tag in tags[: len(first)]]
                rows[split].append((ids, labels.tolist()))
    if long:
        problem = f"sentences are longer than the context of {context} tokens (the first: {long[0]})"
        hint = "--too-long cut or skip, or a larger --model.context"
        check_unusable(len(long), len(data.split("all")), too_long, "--too-long", problem, hint)
    if empty := [split for split in rows if not rows[split]]:
        raise InputError(f"no sentence fits into the context of {context} tokens for {empty[0]}: a larger one")
    return rows | {"all": [row for part in rows.values() for row in part]}


def collate_tagged(rows: Sequence[Row]) -> dict[str, np.ndarray]:
    """Build a batch: ids (B, T), lengths (B,) and labels (B, T)."""
    ids, lengths = pad_ids([ids for ids, _ in rows])
    labels, _ = pad_ids([labels for _, labels in rows], IGNORE_INDEX)
    return {"ids": ids, "lengths": lengths, "labels": labels}
