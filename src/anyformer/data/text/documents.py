"""Documents as rows: every window of a training begins with a document, at its first token."""

from collections.abc import Iterator
from functools import lru_cache

import numpy as np

from ...errors import InputError
from ..sampling import sample_indices
from .batches import IGNORE_INDEX, check_length
from .mixtures import Mixture
from .prepare import Corpus
from .shards import ShardedTokens


@lru_cache(maxsize=8)
def find_documents(corpus: Corpus, split: str) -> tuple[np.ndarray, np.ndarray]:
    """Return where the documents of a split begin and end, (N,) each. Raises InputError for tokens in shards."""
    tokens = corpus.split(split)
    if isinstance(tokens, ShardedTokens) or corpus.separator is None:
        raise InputError("documents is rows, which needs the texts themselves, not shards: use --documents apart")
    ends = np.flatnonzero(tokens == corpus.separator)
    return np.concatenate([[0], ends + 1]), np.concatenate([ends, [len(tokens)]])


class DocumentRows(Mixture):
    """One text whose windows begin with a document each; after a short one, others follow."""

    def train_windows(
        self, context: int, batch: int, seed: int, step: int, accumulate: int = 1
    ) -> tuple[np.ndarray, np.ndarray]:
        (source,) = self.sources
        self.check_length("train", context + 1, context)
        tokens, (starts, _) = np.asarray(source.corpus.split("train")), find_documents(source.corpus, "train")
        starts = starts[: max(1, np.searchsorted(starts, len(tokens) - context))]  # a whole window each
        chosen = sample_indices(starts, batch, seed, step)
        rows = tokens[chosen[:, None] + np.arange(context + 1)].astype(np.int64)  # (B, T + 1)
        return np.ascontiguousarray(rows[:, :-1]), np.ascontiguousarray(rows[:, 1:])

    def eval_windows(self, split: str, context: int, batch: int) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        """Yield a row for each document, padded with id 0 and label IGNORE_INDEX."""
        (source,) = self.sources
        check_length(tokens := np.asarray(source.corpus.split(split)), context, 2, split)
        starts, stops = find_documents(source.corpus, split)
        places = np.arange(context + 1)
        for first in range(0, len(starts), batch):
            start, stop = starts[first : first + batch, None], stops[first : first + batch, None]
            rows = tokens[np.minimum(start + places, len(tokens) - 1)].astype(np.int64)
            is_inside = start + places < np.minimum(stop + 1, len(tokens))  # the separator is predicted too
            labels = np.where(is_inside, rows, IGNORE_INDEX)[:, 1:]
            yield np.zeros(len(rows), np.int64), np.where(is_inside, rows, 0)[:, :-1], labels
