"""Read a `tokenizer.model` of SentencePiece (1808.06226): a BPE, as Llama, Mistral and Gemma have it, or a unigram
vocabulary, as T5 has (there it is `spiece.model`).

The file is a protocol buffer. Only its pieces and a few settings are read, without the library: every length is checked
against the bytes that are there.
"""

import re
import string
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, normalizers, processors

from ...errors import InputError
from ..io.checks import parse_json
from ..io.regular_file import open_regular
from .gguf_vocabulary import PREFIX, convert_from_gguf
from .special_tokens import CONFIG, TOKENIZER_CONFIG
from .unigram_model import build_unigram
from .vocabularies import MAX_TOKENS

MODEL_FILES = ("tokenizer.model", "spiece.model")
MAX_BYTES = 64 << 20
# Numbers of the fields that are read, in sentencepiece_model.proto.
PIECES, TRAINER, NORMALIZER = 1, 2, 3
PIECE, SCORE, TYPE = 1, 2, 3
MODEL_TYPE, UNIGRAM, BPE = 3, 1, 2
SPACE_BEHIND = 24  # of the trainer: whether spaces are parts of the words before them
IDS = {"bos": (41, 1), "eos": (42, 2)}  # field of the trainer, and its default
CHARACTER_MAP, HAS_PREFIX, REMOVES_SPACES = 2, 3, 4
VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5  # wire types


def convert_sentencepiece(folder: Path, metadata: Mapping[str, str]) -> str:
    """Return the tokenizer.json of a folder with one of MODEL_FILES. `metadata`: the texts of its config files.

    Raises:
        InputError: the file is damaged, of another kind, or rewrites texts in a way that is not supported.
    """
    path = next(folder / name for name in MODEL_FILES if (folder / name).is_file())
    model, where = read_model(path), str(path)
    if model.kind == UNIGRAM:
        text = build_unigram(model.pieces, model.charsmap, model.has_prefix, model.removes_spaces, where)
        text = simplify_texts(text, where) if is_siglip(metadata, where) else text
        return add_tokens(text, metadata, str(folder / TOKENIZER_CONFIG))
    if model.charsmap or model.removes_spaces:
        raise InputError(f"{path} rewrites characters or removes spaces of texts, which is not supported in a BPE")
    tokens, scores, types = (list(column) for column in zip(*model.pieces)) if model.pieces else ([], [], [])
    values: dict[str, Any] = {"model": "llama", "tokens": tokens, "scores": scores, "token_type": types}
    values |= {f"{role}_token_id": i for role, i in model.ids.items()}
    values["add_space_prefix"] = model.has_prefix
    files = convert_from_gguf({f"{PREFIX}{name}": value for name, value in values.items()}, where)
    return add_tokens(files["tokenizer.json"], metadata, str(folder / TOKENIZER_CONFIG))


@dataclass(frozen=True)
class SentencePieceModel:
    """What is read of a file."""

    kind: int
    """UNIGRAM or BPE."""
    pieces: list[tuple[str, float, int]]
    """Text, score and type, in the order of their ids."""
    ids: dict[str, int]
    """Of the pieces that begin and end a text: "bos", "eos"."""
    charsmap: bytes
    """How characters are rewritten; empty: not at all."""
    has_prefix: bool
    """A text begins with a space."""
    removes_spaces: bool
    """At both ends of a text, and repeated ones."""


def read_model(path: Path) -> SentencePieceModel:
    """Read a model of either kind. Raises InputError."""
    with open_regular(path) as file:
        content = file.read(MAX_BYTES + 1)
    if len(content) > MAX_BYTES:
        raise InputError(f"{path} has more than {MAX_BYTES:,} bytes")
    fields = list(iterate_fields(content, str(path)))
    trainer, normalizer = (merge_fields(fields, number, str(path)) for number in (TRAINER, NORMALIZER))
    if (kind := trainer.get(MODEL_TYPE, UNIGRAM)) not in (UNIGRAM, BPE):
        raise InputError(f"{path} is a SentencePiece model of type {kind}; only BPE and unigram are supported")
    messages = [dict(iterate_fields(value, str(path))) for number, value in fields if number == PIECES]
    if len(messages) > MAX_TOKENS:
        raise InputError(f"{path} has {len(messages):,} pieces, more than the limit of {MAX_TOKENS:,}")
    pieces = [read_piece(message, str(path)) for message in messages]
    charsmap, removes_spaces = normalizer.get(CHARACTER_MAP, b""), bool(normalizer.get(REMOVES_SPACES, 1))
    if kind == UNIGRAM and (trainer.get(SPACE_BEHIND, 0) or not isinstance(charsmap, bytes)):
        raise InputError(f"{path} has spaces behind words, which is not supported")
    ids = {role: trainer.get(number, default) for role, (number, default) in IDS.items()}
    ids = {role: i for role, i in ids.items() if i < len(pieces)}  # none is -1, a large number here
    return SentencePieceModel(kind, pieces, ids, charsmap, bool(normalizer.get(HAS_PREFIX, 1)), removes_spaces)


def is_siglip(metadata: Mapping[str, str], where: str) -> bool:
    """Return whether the files beside a vocabulary say that it is SigLIP's."""
    names = {TOKENIZER_CONFIG: "tokenizer_class", CONFIG: "model_type"}
    values = [parse_json(metadata[file], where).get(name) for file, name in names.items() if file in metadata]
    return any(str(value).lower().startswith("siglip") for value in values)


def simplify_texts(text: str, where: str) -> str:
    """Return a tokenizer.json that reads texts as SigLIP (2303.15343) does: lower case, no ASCII punctuation, one
    space between words; and </s> after them."""
    tokenizer, end = Tokenizer.from_str(text), "</s>"
    if (end_id := tokenizer.token_to_id(end)) is None:
        raise InputError(f"{where} has no {end}, which ends a text of SigLIP")
    punctuation = Regex(f"[{re.escape(string.punctuation)}]")
    steps = [normalizers.Lowercase(), normalizers.Replace(punctuation, ""), normalizers.Replace(Regex(r"\s+"), " ")]
    steps.append(normalizers.Strip())
    tokenizer.normalizer = normalizers.Sequence([*steps, *([tokenizer.normalizer] if tokenizer.normalizer else [])])
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"$A {end}", pair=f"$A {end} $B:1 {end}:1", special_tokens=[(end, end_id)]
    )
    return tokenizer.to_str()


def read_piece(fields: dict[int, Any], where: str) -> tuple[str, float, int]:
    """Return the text, the score and the type of a piece. Raises InputError."""
    score, kind = fields.get(SCORE, bytes(4)), fields.get(TYPE, 1)
    if not isinstance(score, bytes) or len(score) != 4 or not isinstance(kind, int):
        raise InputError(f"{where}: a piece has no score or no type")
    return decode_text(fields.get(PIECE, b""), where), struct.unpack("<f", score)[0], kind


def add_tokens(text: str, metadata: Mapping[str, str], where: str) -> str:
    """Add the tokens that tokenizer_config.json has beyond the vocabulary. Raises InputError for ids out of order."""
    config = parse_json(metadata[TOKENIZER_CONFIG], where) if TOKENIZER_CONFIG in metadata else {}
    added, tokenizer = config.get("added_tokens_decoder") or {}, Tokenizer.from_str(text)
    if not isinstance(added, dict) or not all(i.isdecimal() and isinstance(token, dict) for i, token in added.items()):
        raise InputError(f"{where}: added_tokens_decoder should be an object of ids and tokens")
    for i, token in sorted(added.items(), key=lambda item: int(item[0])):
        content = token.get("content")
        if not isinstance(content, str) or not content:
            raise InputError(f"{where}: the added token {i} has no content")
        tokenizer.add_tokens([AddedToken(content, special=bool(token.get("special")), normalized=False)])
        if tokenizer.token_to_id(content) != int(i):
            raise InputError(f"{where}: the added token {content!r} should have the id {i}, which is not the next one")
    return tokenizer.to_str()


# --- protocol buffers ---


def iterate_fields(content: bytes, where: str) -> Iterator[tuple[int, Any]]:
    """Yield the fields of a message: number and value, an int or bytes. Raises InputError where they are cut off."""
    offset = 0
    while offset < len(content):
        tag, offset = read_varint(content, offset, where)
        if tag & 7 == VARINT:
            value, offset = read_varint(content, offset, where)
            yield tag >> 3, value
            continue
        if tag & 7 == BYTES:
            length, offset = read_varint(content, offset, where)
        elif tag & 7 in (FIXED32, FIXED64):
            length = 4 if tag & 7 == FIXED32 else 8
        else:
            raise InputError(f"{where} is not a SentencePiece model: byte {offset:,} has an unknown type of field")
        if length > len(content) - offset:
            raise InputError(f"{where} is truncated, or is not a SentencePiece model")
        yield tag >> 3, content[offset : offset + length]
        offset += length


def read_varint(content: bytes, offset: int, where: str) -> tuple[int, int]:
    """Return a number of 7 bits a byte, and the offset behind it."""
    value = 0
    for shift in range(0, 64, 7):
        if offset >= len(content):
            raise InputError(f"{where} is truncated, or is not a SentencePiece model")
        byte, offset = content[offset], offset + 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, offset
    raise InputError(f"{where} is not a SentencePiece model: a number has more than 64 bits")


def merge_fields(fields: list[tuple[int, Any]], number: int, where: str) -> dict[int, Any]:
    """Return the fields of the messages of this number."""
    messages = [value for field, value in fields if field == number and isinstance(value, bytes)]
    return {field: value for message in messages for field, value in iterate_fields(message, where)}


def decode_text(value: Any, where: str) -> str:
    try:
        return value.decode("utf-8")
    except (UnicodeDecodeError, AttributeError):
        raise InputError(f"{where}: a piece is no text") from None
