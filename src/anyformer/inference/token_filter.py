"""Which tokens may follow, as a text grows: what a structure (`structure.Matcher`) and a rule of texts have in common.

Shapes: V entries of the vocabulary.
"""

from typing import Protocol, Self
from weakref import WeakKeyDictionary

import numpy as np

from ..data.tokenizers.base import Tokenizer
from ..data.tokenizers.token_bytes import read_token_bytes
from ..errors import InputError

PIECES: WeakKeyDictionary[Tokenizer, list[str]] = WeakKeyDictionary()


class TokenFilter(Protocol):
    """Which tokens may follow in one text, which it reads token by token."""

    is_over: bool
    """The text has ended: any token may follow."""
    log_kept_mass: float
    """The sum over the tokens of log P(a token that may follow), in nats."""

    @property
    def is_complete(self) -> bool:
        """Whether nothing can follow."""

    @property
    def mask(self) -> np.ndarray:
        """Which tokens may follow: (V,) bool"""

    def consume(self, token: int) -> None: ...

    def check_alive(self) -> None:
        """Raise InputError where no token may follow."""

    def accepts(self, text: str) -> bool:
        """Whether a text is a whole answer."""


class TextRule(Protocol):
    """Which characters may follow in one text, which it reads character by character."""

    @property
    def may_end(self) -> bool: ...

    def allows(self, character: str) -> bool: ...

    def append(self, character: str) -> None: ...

    def copy(self) -> Self: ...


class RuleFilter:
    """The tokens of a vocabulary that a rule allows, behind a text that the rule has read."""

    is_complete = False

    def __init__(self, rule: TextRule, tokenizer: Tokenizer):
        self.rule, self.pieces, self.end_ids = rule, list_pieces(tokenizer), list(tokenizer.end_ids)
        self.is_over, self.log_kept_mass = False, 0.0
        self.allowed: np.ndarray | None = None

    @property
    def mask(self) -> np.ndarray:
        if self.allowed is None:
            may_follow = {piece[0] for piece in self.pieces if piece}
            may_follow = {character for character in may_follow if self.rule.allows(character)}
            self.allowed = np.array([piece[:1] in may_follow and self.allows_rest(piece) for piece in self.pieces])
            self.allowed[self.end_ids] = self.rule.may_end
        return self.allowed

    def allows_rest(self, piece: str) -> bool:
        """Whether the characters behind the first one may follow it."""
        if len(piece) == 1:
            return True
        rule = self.rule.copy()
        rule.append(piece[0])
        for character in piece[1:]:
            if not rule.allows(character):
                return False
            rule.append(character)
        return True

    def consume(self, token: int) -> None:
        self.is_over = self.is_over or token in self.end_ids
        if not self.is_over:
            for character in self.pieces[token]:
                self.rule.append(character)
            self.allowed = None

    def check_alive(self) -> None:
        if not self.mask.any():
            raise InputError("the vocabulary of this model has nothing that may follow here")

    def accepts(self, text: str) -> bool:
        return True


def list_pieces(tokenizer: Tokenizer) -> list[str]:
    """Return the text of each token of a vocabulary."""
    if tokenizer not in PIECES:
        PIECES[tokenizer] = [piece.decode(errors="replace") for piece in read_token_bytes(tokenizer).pieces]
    return PIECES[tokenizer]
