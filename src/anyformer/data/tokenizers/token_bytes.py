"""The bytes of each token of any tokenizer whose texts are those of its tokens, one after the other.

Of a byte-level vocabulary they are read from the names of the tokens, of others from what the decoder writes after
another token. A tokenizer that joins its tokens in another way is refused.
"""

import json
import random
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import tokenizers

from ...errors import InputError
from .base import Tokenizer, byte_alphabet

BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")  # of SentencePiece: a byte of a character that has no token
N_CHECKED, CHECKED_TOKENS = 64, 12  # texts of random tokens that must be those of their bytes


@dataclass(frozen=True)
class TokenBytes:
    """What each token of a vocabulary writes, by id; b"" for tokens without a text: special ones, and unused ids."""

    pieces: Sequence[bytes]
    first_pieces: Sequence[bytes]
    """At the start of a text, where SentencePiece and WordPiece write no space before a word."""


def read_token_bytes(tokenizer: Tokenizer) -> TokenBytes:
    """Return the bytes of all tokens. Raises InputError for a tokenizer that does not join tokens one by one."""
    text = tokenizer.to_json()
    public, content = tokenizers.Tokenizer.from_str(text), json.loads(text)
    special = {token["id"] for token in content.get("added_tokens") or [] if token.get("special")}
    names = {i: name for name, i in public.get_vocab(with_added_tokens=True).items() if i not in special}
    decoder = json.dumps(content["decoder"])
    if '"ByteLevel"' in decoder:
        values = {character: byte for byte, character in enumerate(byte_alphabet())}
        pieces = first_pieces = {i: name_to_bytes(name, values) for i, name in names.items()}
    else:
        pieces = decode_after_anchor(public, names)
        if '"ByteFallback"' in decoder:
            matches = {i: BYTE_TOKEN.fullmatch(name) for i, name in names.items()}
            pieces |= {i: bytes([int(match[1], 16)]) for i, match in matches.items() if match}
        readable = [i for i, piece in pieces.items() if is_utf8(piece)]
        texts = public.decode_batch([[i] for i in readable])
        first_pieces = pieces | {i: text.encode() for i, text in zip(readable, texts)}
    check_pieces(tokenizer, pieces, first_pieces)
    lists = [[table.get(i, b"") for i in range(tokenizer.vocab_size)] for table in (pieces, first_pieces)]
    return TokenBytes(*lists)


def name_to_bytes(name: str, values: dict[str, int]) -> bytes:
    """Return the bytes of a token of a byte-level vocabulary; of one that was added, its text."""
    return bytes(map(values.__getitem__, name)) if all(map(values.__contains__, name)) else name.encode()


def decode_after_anchor(public: Any, names: dict[int, str]) -> dict[int, bytes]:
    """Return what the decoder writes for each token after another one."""
    anchor = next((i for i, name in names.items() if name.isalnum() and public.decode([i]) == name), None)
    anchor = next(iter(names)) if anchor is None else anchor
    before = public.decode([anchor])
    texts = public.decode_batch([[anchor, i] for i in names])
    return {i: text[len(before) :].encode() for i, text in zip(names, texts) if text.startswith(before)}


def check_pieces(tokenizer: Tokenizer, pieces: dict[int, bytes], first_pieces: dict[int, bytes]) -> None:
    """Raise InputError if the texts of random tokens are not what these write."""
    rng = random.Random(0)
    readable = [i for i, piece in pieces.items() if piece and is_utf8(piece)]
    differing = [i for i in readable if pieces[i] != first_pieces[i]]
    for ids in (readable, differing) if readable else ():
        for first in rng.choices(ids, k=N_CHECKED) if ids else ():
            row = rng.choices(readable, k=CHECKED_TOKENS)
            text = b"".join([first_pieces[first], *(pieces[i] for i in row)])
            if tokenizer.decode([first, *row]) != text.decode():
                raise InputError(
                    "the tokenizer of this model does not write its tokens one after the other, as a schema, a regex, "
                    "a grammar or choices need: use a model of characters, bytes, BPE or SentencePiece"
                )


def is_utf8(piece: bytes) -> bool:
    try:
        piece.decode()
    except UnicodeDecodeError:
        return False
    return True
