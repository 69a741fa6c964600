"""Several texts in one stream of training batches, each with a weight: a mixture. A single text is a mixture of one.

Each row of a batch is drawn from a source with a probability in proportion to its weight: rows are numbered through the
training, blocks of them are shuffled by the seed, and of the first n shuffled rows a source has its share, to within
a row or so. So the source of a row, and which of the source's windows it is, depend on the seed and the row's number
alone; a source visits all of its windows before any of them again, and the stream resumes at any batch.

    cache/tokenizers/HASH/tokenizer.json     learned from all sources, each in proportion to its weight
"""

import hashlib
import json
import shlex
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import lru_cache, partial
from itertools import chain, count, islice
from math import gcd, lcm
from operator import itemgetter
from pathlib import Path

import numpy as np

from ...errors import InputError
from ..io.cache import build_directory, cache_dir, has_directory
from ..io.sources import SourceName, shorten_names
from ..tokenizers import build as tok
from .batches import check_length, epoch_order, eval_windows, select_windows, train_windows
from .prepare import BLOCK, FORMAT, SUBWORD_BLOCK, Corpus, TextFiles, prepare_corpus
from .read import RowOptions
from .shards import holds_shards

ROW_BLOCK = 4096  # rows that are shuffled together
Prepare = Callable[[str, str, int, float, RowOptions], Corpus]
"""As `prepare_corpus`: data, tokenizer, size of its vocabulary, share for validation, how rows are read."""


@dataclass(frozen=True, eq=False)
class Source:
    """One text of a mixture."""

    corpus: Corpus
    weight: int = 1
    name: str = ""
    """Short and unique among the sources; "" of a text by itself."""


@dataclass(frozen=True, eq=False)
class Mixture:
    """Texts with one tokenizer, and how much of each is trained on."""

    sources: tuple[Source, ...]

    @property
    def tokenizer(self) -> tok.Tokenizer:
        return self.sources[0].corpus.tokenizer

    @property
    def separator(self) -> int | None:
        """The id between documents; None if the tokenizer has no end-of-text token."""
        return self.sources[0].corpus.separator

    @property
    def n_documents(self) -> int:
        return sum(source.corpus.n_documents for source in self.sources)

    @property
    def weights(self) -> list[int]:
        return [source.weight for source in self.sources]

    @property
    def shares(self) -> list[float]:
        """The share of each source in the rows."""
        return [weight / sum(self.weights) for weight in self.weights]

    @property
    def stream_values(self) -> dict[str, list[str]]:
        """What a stream's state also says of several sources: a hash of each one's data."""
        hashes = [source.corpus.meta["sha256"] for source in self.sources]
        return {"sources": hashes} if len(hashes) > 1 else {}

    @property
    def sha256(self) -> str:
        """A hash of the data; of several sources also of their weights."""
        hashes = [source.corpus.meta["sha256"] for source in self.sources]
        pairs = json.dumps(list(zip(hashes, self.weights)))
        return hashlib.sha256(pairs.encode()).hexdigest() if len(hashes) > 1 else hashes[0]

    def check_length(self, split: str, needed: int, context: int) -> None:
        """Raise InputError if a source has fewer tokens than are needed."""
        for source in self.sources:
            with name_source(source):
                check_length(source.corpus.split(split), context, needed, split)

    def train_windows(
        self, context: int, batch: int, seed: int, step: int, accumulate: int = 1
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return a training batch: ids and labels (the next tokens), each (B, T) int64. Raises InputError.

        Args:
            accumulate: Of a single source in shards, as of `batches.train_windows`.
        """
        if len(self.sources) == 1:
            return train_windows(self.sources[0].corpus.split("train"), context, batch, seed, step, "train", accumulate)
        self.check_length("train", context + 1, context)
        ids, labels = np.empty((2, batch, context), np.int64)
        places = [find_place(self.weights, row, seed) for row in range(step * batch, (step + 1) * batch)]
        owners, indices = np.array(places, np.int64).reshape(-1, 2).T
        for number, source in enumerate(self.sources):
            rows = np.flatnonzero(owners == number)
            tokens = source.corpus.split("train")
            ids[rows], labels[rows] = select_windows(tokens, context, indices[rows], seed)
        return ids, labels

    def eval_windows(self, split: str, context: int, batch: int) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        """Yield the numbers of sources (<= B,), ascending, and ids and labels (<= B, T) of one pass over a split. Every
        batch has about as many rows of each source, as long as it has some, so that any part of them has all."""
        if len(self.sources) == 1:
            for ids, labels in eval_windows(self.sources[0].corpus.split(split), context, batch, split):
                yield np.zeros(len(ids), np.int64), ids, labels
            return
        rows = self._eval_rows(split, context)
        while part := sorted(islice(rows, batch), key=itemgetter(0)):
            owners, ids, labels = zip(*part)
            yield np.array(owners), np.concatenate(ids), np.concatenate(labels)

    def _eval_rows(self, split: str, context: int) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
        """Yield the rows of all sources in turns, in a random order each time: a part such as every second row has
        all of them too."""
        self.check_length(split, 2, context)
        streams = [eval_windows(source.corpus.split(split), context, 1, split) for source in self.sources]
        remaining = set(range(len(streams)))
        for turn in count():
            for number in epoch_order(len(streams), 0, turn).tolist():
                row = next(streams[number], None) if number in remaining else None
                if row is None:
                    remaining.discard(number)
                else:
                    yield number, *row
            if not remaining:
                return

    def count_rows(self, n: int, seed: int) -> list[int]:
        """Return how many of the first n rows of a training are of each source."""
        whole_blocks = n // ROW_BLOCK * ROW_BLOCK
        counts = count_shares(self.weights, whole_blocks)
        for row in range(whole_blocks, n):
            counts[find_place(self.weights, row, seed)[0]] += 1
        return counts


@contextmanager
def name_source(source: Source) -> Generator[None]:
    """Name the source in an error of the block."""
    try:
        yield
    except InputError as error:
        raise InputError(f"source '{source.name}': {error}" if source.name else str(error)) from None


# --- which row is of which source ---


def find_place(weights: Sequence[int], row: int, seed: int) -> tuple[int, int]:
    """Return of which source a row of the training is, and how many rows of it are before, in the shuffled order."""
    block, offset = divmod(row, ROW_BLOCK)
    n, total = block * ROW_BLOCK + shuffle_block(seed, block)[offset], sum(weights)
    for number, weight in enumerate(weights):
        before = n * weight // total
        if (n + 1) * weight // total > before:
            return number, before
        n, total = n - before, total - weight  # among the rows of the other sources
    raise AssertionError("the last source has all rows that are left")


@lru_cache(maxsize=8)
def shuffle_block(seed: int, block: int) -> list[int]:
    return epoch_order(ROW_BLOCK, seed, block).tolist()


def count_shares(weights: Sequence[int], n: int) -> list[int]:
    """Return how many of the first n rows, in the shuffled order, are of each source."""
    counts, total = [], sum(weights)
    for weight in weights:
        counts.append(n * weight // total)
        n, total = n - counts[-1], total - weight
    return counts


# --- preparing ---


def prepare_mixture(
    sources: Sequence[SourceName],
    tokenizer: str,
    vocab_size: int,
    val_fraction: float,
    rows: RowOptions,
    prepare: Prepare = prepare_corpus,
) -> Mixture:
    """Return the tokens of several sources, from the cache if it has them. Raises InputError.

    Args:
        tokenizer: As for `prepare_corpus`; char and bpe are learned from all sources, in proportion to the weights. If
            some of them are shards, all are read with the tokenizer of these.
        prepare: Prepares each source.
    """
    names, weights = shorten_names(sources), scale_weights([Fraction(source.weight) for source in sources])
    columns = divide_columns(rows.columns, len(sources))
    pairs = [(source.name, replace(rows, columns=text)) for source, text in zip(sources, columns, strict=True)]
    shards = next((pair for pair in pairs if holds_shards(pair[0])), None)
    if shards and tokenizer in tok.KINDS:
        tokenizer = str(store_tokenizer(prepare(shards[0], tokenizer, vocab_size, val_fraction, shards[1]).tokenizer))
    elif tokenizer in ("char", "bpe"):
        files = [TextFiles(name, options) for name, options in pairs]
        tokenizer = str(build_shared_tokenizer(tokenizer, files, weights, vocab_size))
    corpora = [prepare(name, tokenizer, vocab_size, val_fraction, options) for name, options in pairs]
    return Mixture(tuple(map(Source, corpora, weights, names)))


def divide_columns(columns: str, n_sources: int) -> list[str]:
    """Return the columns that are read of each source: the same ones, or as many words as there are sources."""
    try:
        words = shlex.split(columns)
    except ValueError:  # an apostrophe
        words = []
    return words if len(words) == n_sources else [columns] * n_sources


def scale_weights(weights: Sequence[Fraction]) -> list[int]:
    """Return the smallest whole numbers in the same proportion, so that rows are counted exactly."""
    denominator = lcm(*(weight.denominator for weight in weights))
    numbers = [int(weight * denominator) for weight in weights]
    return [number // gcd(*numbers) for number in numbers]


def store_tokenizer(tokenizer: tok.Tokenizer) -> Path:
    """Return the file of a tokenizer in the cache, with its metadata files beside it."""
    files = {tok.TOKENIZER_FILE: tokenizer.to_json(), **tokenizer.extra_files}
    folder = cache_dir() / "tokenizers" / hashlib.sha256(json.dumps(files, sort_keys=True).encode()).hexdigest()
    if not has_directory(folder):
        with build_directory(folder) as new:
            for name, text in files.items():
                (new / name).write_text(text, "utf-8")
    return folder / tok.TOKENIZER_FILE


def build_shared_tokenizer(kind: str, files: Sequence[TextFiles], weights: Sequence[int], vocab_size: int) -> Path:
    """Return the file of a tokenizer that is learned from several sources once."""
    sources = [(f.sha256, f.rows.columns, f.rows.duplicates) for f in files]
    facts = [FORMAT, kind, vocab_size if kind == "bpe" else 0, list(weights), sources]
    folder = cache_dir() / "tokenizers" / hashlib.sha256(json.dumps(facts).encode()).hexdigest()
    if not has_directory(folder):
        with build_directory(folder) as new:
            make_texts = [partial(f.read_texts, SUBWORD_BLOCK if kind == "bpe" else BLOCK) for f in files]
            if kind == "bpe":
                tokenizer = tok.train_bpe(mix_texts(make_texts, weights, tok.MAX_TRAIN_CHARACTERS), vocab_size)
            else:
                tokenizer = tok.Characters(tok.collect_characters(chain.from_iterable(make() for make in make_texts)))
            tokenizer.save(new / tok.TOKENIZER_FILE)
    return folder / tok.TOKENIZER_FILE


def mix_texts(
    make_texts: Sequence[Callable[[], Iterator[str]]], weights: Sequence[int], max_characters: int
) -> Iterator[str]:
    """Yield texts of all sources, as many characters as they have together or about `max_characters`, each source in
    proportion to its weight: several times where it is small, and at even distances where it is large."""
    sizes = [sum(map(len, make())) for make in make_texts]
    total = min(sum(sizes), max_characters)
    for make, size, weight in zip(make_texts, sizes, weights, strict=True):
        passes, remainder = divmod(total * weight // sum(weights), max(1, size))
        for _ in range(passes):
            yield from make()
        yield from tok.subsample_texts(make, remainder)
