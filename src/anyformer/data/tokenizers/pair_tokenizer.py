"""The tokenizers of an encoder-decoder: one for each side or one for both, and the ids that start and end a text."""

from dataclasses import dataclass

from ...errors import InputError
from .base import Tokenizer

SOURCE_FILE, TARGET_FILE = "source_tokenizer.json", "tokenizer.json"


@dataclass(frozen=True, eq=False)
class PairTokenizer:
    """The tokenizers of source and target; the same object if one serves both."""

    source: Tokenizer
    target: Tokenizer
    start_id: int
    """The id that starts a target."""
    end_id: int
    """The id that ends a target."""
    source_end_id: int
    """The id that ends a source."""

    @property
    def tokenizers(self) -> tuple[Tokenizer, Tokenizer]:
        return self.source, self.target

    @property
    def files(self) -> dict[str, str]:
        """The files of a checkpoint, name -> text."""
        source = {} if self.source is self.target else {SOURCE_FILE: self.source.to_json()}
        return {TARGET_FILE: self.target.to_json(), **source}

    def vocab_sizes(self, padded: int | None = None) -> tuple[int, int]:
        """Return the rows of the source's and the target's embedding: at least `padded`."""
        source, target = (max(tokenizer.vocab_size, padded or 0) for tokenizer in self.tokenizers)
        return source, target


def build_pair_tokenizer(
    target: Tokenizer, source: Tokenizer | None = None, start: int | None = None, end: int | None = None
) -> PairTokenizer:
    """Build a PairTokenizer; `source` is None if the target's tokenizer serves both. Raises InputError."""
    end_id = find_end_id(target, end)
    start_id = end_id if start is None else start
    return PairTokenizer(source or target, target, start_id, end_id, find_end_id(source) if source else end_id)


def find_end_id(tokenizer: Tokenizer, end: int | None = None) -> int:
    """Return the id that ends a text: `end`, or the tokenizer's own. Raises InputError."""
    end_id = tokenizer.end_id if end is None else end
    if tokenizer.end_id not in (None, end_id):
        raise InputError(f"end is {end}, but this tokenizer ends a text with {tokenizer.end_id}: leave --end out")
    if end_id is None:
        raise InputError("this tokenizer has no token that ends a text: name one of its ids with --end")
    return end_id
