"""Answers of a guaranteed structure: valid under a JSON schema, of a regex or a grammar, or one of some choices.

A `Constraint` is compiled once for a request, by llguidance, and its `Matcher` says for one answer, before each token,
which tokens can follow. Other tokens get probability 0. That changes the distribution of whole answers: a text counts
as likely as its tokens are among those that could follow, not as it is in the model (2405.21047). By how much is in
`log_kept_mass`; `exact_sampling` draws from the model's own distribution instead.

Shapes: B rows, V entries of the vocabulary.
"""

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor

from ..data.tokenizers.base import Tokenizer
from ..data.tokenizers.token_bytes import TokenBytes, read_token_bytes
from ..errors import InputError
from .grammars import build_grammar, explain_error
from .token_filter import TokenFilter

LIMITS = {  # of the compiler, for requests from strangers: a mask takes at most some 100 ms, a lexer some 100 MB
    "max_items_in_row": 2_000,
    "initial_lexer_fuel": 1_000_000,
    "step_lexer_fuel": 200_000,
    "step_max_items": 50_000,
    "max_lexer_states": 50_000,
    "max_grammar_size": 500_000,
    "verbose_errors": False,
}
STRUCTURES = ("json_schema", "regex", "grammar", "choices")
REPLACEMENT = "\ufffd"  # of bytes that are no text
DEAD_END = "NoExtensionBias"  # the error of llguidance where no token can follow
MAX_CHECKED = 1 << 16  # characters of choices that are tried with a vocabulary that cannot write everything
SHOWN_CHARACTERS = 5  # in a message
VOCABULARIES: WeakKeyDictionary[Tokenizer, "Vocabulary"] = WeakKeyDictionary()
LOCK = threading.Lock()


@dataclass(frozen=True, kw_only=True)
class StructureParams:
    """What an answer may be, in plain values; at most one of these."""

    json_schema: dict[str, Any] | str | None = None
    """The answer is JSON that is valid under this schema: an object, or its text."""
    regex: str | None = None
    """The whole answer matches this regular expression, in the syntax of Rust; \\d is 0 to 9."""
    grammar: str | None = None
    """The answer is of this grammar: Lark's syntax, or GBNF (EBNF with ::=)."""
    choices: Sequence[str] | None = None
    """The answer is one of these texts."""

    @property
    def structure(self) -> tuple[str, Any] | None:
        """The field that is set, and its value."""
        return next(((name, value) for name in STRUCTURES if (value := getattr(self, name)) is not None), None)

    def check_structure(self) -> None:
        """Raise InputError if there are several."""
        names = [name for name in STRUCTURES if getattr(self, name) is not None]
        if len(names) > 1:
            raise InputError(f"{names[0]} and {names[1]} exclude each other: an answer has one structure")


def import_llguidance() -> Any:
    try:
        import llguidance
    except ImportError:
        raise InputError("structure needs llguidance: pip install 'anyformer[structure]'") from None
    return llguidance


class WordList:
    """The tokens of a vocabulary, as llguidance asks for them."""

    is_tokenizer_wrapper, bos_token_id = True, None

    def __init__(self, tokens: Sequence[bytes]):
        self.tokens, self.eos_token_id = [*tokens, b""], len(tokens)
        self.special_token_ids = [i for i, token in enumerate(self.tokens) if not token]

    def __call__(self, text: bytes) -> list[int]:
        raise NotImplementedError("grammars are compiled without forced tokens")


class Vocabulary:
    """The tokens of a tokenizer, compiled. After its own ids come tokens that differ at the start of a text."""

    def __init__(self, tokens: TokenBytes):
        self.size, self.pieces = len(tokens.pieces), tokens.pieces
        pairs = zip(tokens.pieces, tokens.first_pieces, strict=True)
        self.differing = [i for i, (piece, first) in enumerate(pairs) if piece != first]
        self.first_ids = {token: self.size + i for i, token in enumerate(self.differing)}
        words = WordList([*tokens.pieces, *(tokens.first_pieces[i] for i in self.differing)])
        self.words, self.compiled = words, import_llguidance().LLTokenizer(words)
        self.writes_all = {bytes([byte]) for byte in range(256)} <= set(words.tokens)
        """Every byte is a token."""
        self.alphabet = None if self.writes_all else read_alphabet(words.tokens)

    def check_choices(self, choices: Sequence[str]) -> None:
        """Raise InputError for a choice that the tokens cannot be joined to; many long ones are not looked at."""
        if self.writes_all or sum(map(len, choices)) > MAX_CHECKED:
            return
        pieces = set(self.words.tokens) - {b""}
        longest = max(map(len, pieces), default=0)
        for choice in choices:
            data, ends = choice.encode(errors="replace"), {0}
            for end in range(1, len(data) + 1):
                if any(start in ends and data[start:end] in pieces for start in range(max(0, end - longest), end)):
                    ends.add(end)
            if len(data) not in ends:
                raise InputError(f"choices: {choice[:40]!r} has what the vocabulary of this model cannot write")


def read_alphabet(tokens: Sequence[bytes]) -> str | None:
    """Return the characters that are tokens, None if there are other tokens."""
    texts = {token.decode(errors="replace") for token in tokens if token}
    return "".join(sorted(texts)) if all(len(text) == 1 for text in texts) and REPLACEMENT not in texts else None


def load_vocabulary(tokenizer: Tokenizer) -> Vocabulary:
    """Return the compiled vocabulary of a tokenizer; the first time takes some 2 s for 50,000 tokens."""
    with LOCK:
        if tokenizer not in VOCABULARIES:
            VOCABULARIES[tokenizer] = Vocabulary(read_token_bytes(tokenizer))
        return VOCABULARIES[tokenizer]


class Constraint:
    """What the answers of a request may be, compiled for a tokenizer.

    Args:
        name: The field of `StructureParams`.
        value: Its value.
        end_ids: The tokens that end an answer. Default: those of the tokenizer. Without any, it ends as soon as it is
            complete.

    Raises:
        InputError: If the structure is malformed or cannot be met, or the vocabulary cannot write it.
    """

    def __init__(self, name: str, value: Any, tokenizer: Tokenizer, end_ids: Sequence[int] | None = None):
        self.name, self.tokenizer, self.vocabulary = name, tokenizer, load_vocabulary(tokenizer)
        self.end_ids = [*(tokenizer.end_ids if end_ids is None else end_ids)]
        self.grammar = build_grammar(name, value, self.vocabulary.alphabet)
        if name == "choices":
            self.vocabulary.check_choices(value)
        self.start_state = self.compile(self.vocabulary.compiled)
        self.byte_state: Any = None
        self.starts = {False: Matcher(self, is_start=False)}
        """What answers begin with: those after a text, and those that begin one."""
        if self.starts[False].is_complete:
            raise InputError(f"{name}: its only answer is the empty text")
        self.starts[False].check_alive()

    def compile(self, vocabulary: Any) -> Any:
        """Return llguidance's matcher for a vocabulary. Raises InputError."""
        llguidance = import_llguidance()
        limits = llguidance.LLParserLimits(**LIMITS)
        state = llguidance.LLMatcher(vocabulary, self.grammar, log_level=0, limits=limits)
        if state.is_error():
            raise InputError(f"{self.name}: {explain_error(state.get_error(), self.name == 'grammar')}")
        return state

    def start(self, context_ids: Sequence[int] = ()) -> "Matcher":
        """Return the matcher of a new answer, after tokens of which the last are `context_ids`."""
        is_start = False
        if differing := self.vocabulary.differing:
            piece = self.vocabulary.pieces[differing[0]].decode(errors="replace")
            before, text = (self.tokenizer.decode([*context_ids, *ids]) for ids in ([], [differing[0]]))
            is_start = text != before + piece
        if is_start and is_start not in self.starts:
            self.starts[is_start] = Matcher(self, is_start)
        return self.starts[is_start].copy()

    def read(self, data: bytes) -> Any:
        """Return llguidance's matcher, byte by byte, after these bytes."""
        with LOCK:
            if self.byte_state is None:
                words = WordList([bytes([byte]) for byte in range(256)])
                self.byte_state = self.compile(import_llguidance().LLTokenizer(words))
            state = self.byte_state.deep_copy()
        state.consume_tokens(list(data))
        return state

    def accepts(self, text: str) -> bool:
        """Whether the text is a whole answer."""
        state = self.read(text.encode())
        return not state.is_error() and state.is_accepting()


def compile_structure(
    params: StructureParams, tokenizer: Tokenizer, end_ids: Sequence[int] | None = None
) -> Constraint | None:
    """Compile what a request asks for, None if nothing. Raises InputError."""
    return None if params.structure is None else Constraint(*params.structure, tokenizer, end_ids)


class Matcher:
    """One answer under a constraint, as it grows."""

    def __init__(self, constraint: Constraint, is_start: bool):
        self.constraint, self.state = constraint, constraint.start_state.deep_copy()
        self.is_start, self.written = is_start, bytearray()
        self.is_complete = self.is_dead = self.is_over = False
        """Nothing can follow; nothing that the vocabulary has; the answer has ended."""
        self.log_kept_mass = 0.0
        """The sum over the tokens of log P(a token that may follow), in nats."""
        self.look_ahead()

    def copy(self) -> "Matcher":
        other = object.__new__(Matcher)
        other.__dict__ |= self.__dict__ | {"state": self.state.deep_copy(), "written": bytearray(self.written)}
        return other

    def extend(self, token: int) -> "Matcher":
        """Return the matcher after one more token; this one stays as it is."""
        other = self.copy()
        other.consume(token)
        return other

    def consume(self, token: int) -> None:
        """Append a token, one that is allowed, and find out which may follow; after the end nothing is appended.

        Raises InputError if that takes more than `LIMITS`."""
        self.is_over = self.is_over or token in self.constraint.end_ids
        if self.is_over:
            return
        self.advance(token)
        self.look_ahead()

    def advance(self, token: int) -> None:
        """Append a token."""
        vocabulary = self.constraint.vocabulary
        index = vocabulary.first_ids.get(token, token) if self.is_start else token
        self.written += vocabulary.words.tokens[index]
        self.is_start = False
        self.state.consume_token(index)
        self.check()

    def look_ahead(self) -> None:
        """Find out which tokens may follow, and set `is_complete` or `is_dead` where none may."""
        self.bits = np.frombuffer(self.state.compute_bitmask(), np.uint8)
        is_stuck = self.state.get_error().startswith(DEAD_END)
        if not is_stuck:
            self.check()
        self.is_accepting = self.state.is_accepting() and not is_stuck
        can_grow = self.has_next() and not (self.is_accepting and not self.constraint.end_ids and self.written)
        self.is_complete, self.is_dead = self.is_accepting and not can_grow, not self.is_accepting and not can_grow

    def has_next(self) -> bool:
        """Whether a token that has a text may follow."""
        vocabulary = self.constraint.vocabulary
        if vocabulary.differing:
            return bool(self.unpack().any())
        full, remaining = divmod(vocabulary.size, 8)  # after these bits comes the end
        return bool(self.bits[:full].any() or int(self.bits[full]) & ((1 << remaining) - 1))

    def unpack(self) -> np.ndarray:
        """Return which tokens that have a text may follow: (V,) bool"""
        vocabulary = self.constraint.vocabulary
        bits = np.unpackbits(self.bits, bitorder="little").view(bool)
        allowed = bits[: vocabulary.size]
        if self.is_start:
            allowed[vocabulary.differing] = bits[vocabulary.size :][: len(vocabulary.differing)]
        return allowed

    @property
    def mask(self) -> np.ndarray:
        """Which tokens may follow: (V,) bool"""
        allowed = self.unpack()
        allowed[self.constraint.end_ids] = self.is_accepting
        return allowed

    def check_alive(self) -> None:
        """Raise InputError where no token may follow."""
        if self.is_dead:
            raise InputError(f"{self.constraint.name}: {self.explain_dead_end()}")

    def check(self) -> None:
        if self.state.is_error():
            raise InputError(f"{self.constraint.name}: too complex ({explain_error(self.state.get_error())})")

    def accepts(self, text: str) -> bool:
        """Whether a text is a whole answer."""
        return self.constraint.accepts(text)

    def explain_dead_end(self) -> str:
        """Say what the vocabulary lacks here."""
        characters = list_next_characters(self.constraint.read(bytes(self.written)))
        shown = ", ".join(map(repr, characters))
        after = f" after {self.written.decode(errors='replace')[-40:]!r}" if self.written else ""
        if shown:
            return f"the vocabulary of this model cannot write {shown}{after}"
        limit = ", of those that this model can write" if self.constraint.vocabulary.alphabet is not None else ""
        return f"no text meets it{limit}{after}"


def list_next_characters(state: Any) -> list[str]:
    """Return some characters that can follow, by a matcher of bytes."""
    characters: list[str] = []
    for byte in list_bytes(state):
        branch, data = state.deep_copy(), bytearray([byte])
        while branch.consume_token(data[-1]) and (following := list_bytes(branch)) and following[0] in range(128, 192):
            data.append(following[0])
            if len(data.decode(errors="ignore")):
                break
        characters.append(data.decode(errors="replace"))
        if len(characters) == SHOWN_CHARACTERS:
            break
    return characters


def list_bytes(state: Any) -> list[int]:
    bits = np.unpackbits(np.frombuffer(state.compute_bitmask(), np.uint8), bitorder="little")[:256]
    return [] if state.is_error() else np.flatnonzero(bits).tolist()


def stack_allowed(logits: Tensor, matchers: Sequence[TokenFilter | None]) -> Tensor:
    """Return which tokens may follow in each row, all where there is no matcher: (B, V) bool, as logits (B, V)."""
    allowed = np.empty(logits.shape, bool)
    for row, matcher in enumerate(matchers):
        if matcher is None or matcher.is_over:
            allowed[row] = True
        else:
            row_allowed = matcher.mask[: logits.shape[1]]
            allowed[row, : len(row_allowed)] = row_allowed
            allowed[row, len(row_allowed) :] = False  # a model may have more outputs than its tokenizer has tokens
    return torch.from_numpy(allowed).to(logits.device)


def constrain(logits: Tensor, matchers: Sequence[TokenFilter], temperature: float = 1.0) -> Tensor:
    """Exclude the tokens that may not follow, and add what the probability of the others was to the `log_kept_mass` of
    each matcher: (B, V) -> (B, V). Raises InputError where no token may follow."""
    live = [(row, matcher) for row, matcher in enumerate(matchers) if not matcher.is_over]
    if not live:
        return logits
    for _, matcher in live:
        matcher.check_alive()
    masked = logits.where(stack_allowed(logits, matchers), -torch.inf)
    both = [masked, logits] if temperature in (0, 1) else [masked / temperature, logits / temperature]
    kept, everything = (part.logsumexp(-1).tolist() for part in both)
    for row, matcher in live:
        matcher.log_kept_mass += min(0.0, kept[row] - everything[row])
    return masked
