"""The words of a translator: a tokenizer for each side or one for both, and the ids that begin and end a text."""

from dataclasses import dataclass

from ...errors import InputError
from .build import Tokenizer

SOURCE, TARGET = "source_tokenizer.json", "tokenizer.json"


@dataclass(frozen=True, eq=False)
class Bilingual:
    """What a source is read with and a target is written with; the same object where one serves both."""

    source: Tokenizer
    target: Tokenizer
    start: int
    """The id that a target begins with."""
    end: int
    """The id that ends a target."""
    source_end: int
    """The id that ends a source."""

    @property
    def tokenizers(self) -> tuple[Tokenizer, Tokenizer]:
        return self.source, self.target

    @property
    def files(self) -> dict[str, str]:
        own = {} if self.source is self.target else {SOURCE: self.source.json()}
        return {TARGET: self.target.json(), **own}

    def sizes(self, padded: int | None = None) -> tuple[int, int]:
        """Entries of the source's embedding and of the target's: at least `padded`."""
        source, target = (max(one.vocab_size, padded or 0) for one in self.tokenizers)
        return source, target


def bilingual(
    target: Tokenizer, source: Tokenizer | None = None, start: int | None = None, end: int | None = None
) -> Bilingual:
    """`source`: None where one tokenizer serves both. Raises InputError where there is nothing that ends a text, or
    `end` means another token than the tokenizer's own."""
    last = ending(target, end)
    first = last if start is None else start
    return Bilingual(source or target, target, first, last, last if source is None else ending(source))


def ending(tokenizer: Tokenizer, end: int | None = None) -> int:
    found = tokenizer.end if end is None else end
    if tokenizer.end not in (None, found):
        raise InputError(f"end is {end}, but this tokenizer ends a text with {tokenizer.end}: leave --end out")
    if found is None:
        raise InputError("this tokenizer has no token that ends a text: name one of its ids with --end")
    return found
