"""The tokenizers of an encoder-decoder: one for each side or one for both, and the ids that start and end a text."""

from collections.abc import Iterable
from dataclasses import dataclass

from ...errors import InputError
from .base import Tokenizer
from .marian_vocabulary import have_one_vocabulary


@dataclass(frozen=True, eq=False)
class PairTokenizer:
    """The tokenizers of source and target, the same object if one serves both, and the ids that start or end a text."""

    source: Tokenizer
    target: Tokenizer
    start_id: int  # of a target
    end_id: int  # of a target
    source_end_id: int
    source_start_id: int | None = None

    def mark_source(self, ids: Iterable[int]) -> list[int]:
        """Return the ids of a source with those that begin and end one."""
        start = [] if self.source_start_id is None else [self.source_start_id]
        return [*start, *ids, self.source_end_id]

    @property
    def n_source_marks(self) -> int:
        """How many ids `mark_source` adds."""
        return len(self.mark_source([]))

    @property
    def tokenizers(self) -> tuple[Tokenizer, Tokenizer]:
        return self.source, self.target

    @property
    def has_one_vocabulary(self) -> bool:
        """Whether both sides give an id to the same piece."""
        return self.source is self.target or have_one_vocabulary(self.source, self.target)

    @property
    def files(self) -> dict[str, str]:
        """The files of a checkpoint, name -> text."""
        source = {} if self.source is self.target else {"source_tokenizer.json": self.source.to_json()}
        return {"tokenizer.json": self.target.to_json(), **source}

    def vocab_sizes(self, padded: int | None = None) -> tuple[int, int]:
        """Return the rows of the source's and the target's embedding: at least `padded`."""
        source, target = (max(tokenizer.vocab_size, padded or 0) for tokenizer in self.tokenizers)
        return source, target


def build_pair_tokenizer(
    target: Tokenizer,
    source: Tokenizer | None = None,
    start: int | None = None,
    end: int | None = None,
    source_start: int | None = None,
) -> PairTokenizer:
    """Build a PairTokenizer; `source` is None if the target's tokenizer serves both. Raises InputError."""
    end_id = _find_end_id(target, end)
    source_end_id = _find_end_id(source, None) if source else end_id
    return PairTokenizer(
        source or target, target, end_id if start is None else start, end_id, source_end_id, source_start
    )


def _find_end_id(tokenizer: Tokenizer, end: int | None) -> int:
    end_id = tokenizer.end_id if end is None else end
    if tokenizer.end_id not in (None, end_id):
        raise InputError(f"end is {end}, but this tokenizer ends a text with {tokenizer.end_id}: leave --end out")
    if end_id is None:
        raise InputError("this tokenizer has no token that ends a text: name one of its ids with --end")
    return end_id
