"""The words of a translator: a tokenizer for each side or one for both, and the ids that begin and end a text."""

from dataclasses import dataclass

from ...errors import InputError
from .build import Tokenizer

SOURCE, TARGET = "source_tokenizer.json", "tokenizer.json"


@dataclass(frozen=True, eq=False)
class PairTokenizer:
    """What a source is read with and a target is written with; the same object where one serves both."""

    source: Tokenizer
    target: Tokenizer
    start_id: int
    """The id that a target begins with."""
    end_id: int
    """The id that ends a target."""
    source_end_id: int
    """The id that ends a source."""

    @property
    def tokenizers(self) -> tuple[Tokenizer, Tokenizer]:
        return self.source, self.target

    @property
    def files(self) -> dict[str, str]:
        own = {} if self.source is self.target else {SOURCE: self.source.to_json()}
        return {TARGET: self.target.to_json(), **own}

    def sizes(self, padded: int | None = None) -> tuple[int, int]:
        """Entries of the source's embedding and of the target's: at least `padded`."""
        source, target = (max(one.vocab_size, padded or 0) for one in self.tokenizers)
        return source, target


def build_pair_tokenizer(
    target: Tokenizer, source: Tokenizer | None = None, start: int | None = None, end: int | None = None
) -> PairTokenizer:
    """`source`: None where one tokenizer serves both. Raises InputError where there is nothing that ends a text, or
    `end` means another token than the tokenizer's own."""
    last = find_end_id(target, end)
    first = last if start is None else start
    return PairTokenizer(source or target, target, first, last, last if source is None else find_end_id(source))


def find_end_id(tokenizer: Tokenizer, end: int | None = None) -> int:
    found = tokenizer.end_id if end is None else end
    if tokenizer.end_id not in (None, found):
        raise InputError(f"end is {end}, but this tokenizer ends a text with {tokenizer.end_id}: leave --end out")
    if found is None:
        raise InputError("this tokenizer has no token that ends a text: name one of its ids with --end")
    return found
