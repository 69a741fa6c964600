"""A unigram vocabulary of SentencePiece (1804.10959) as a tokenizer.json: T5, XLNet, ALBERT, Marian and their kin.

Texts are normalized first by a table that the file holds, a trie of byte sequences and what each becomes. The library
that applies it trusts its numbers, so they are checked here.
"""

import base64
import json
import math
import struct
from collections.abc import Sequence
from typing import Any

import numpy as np

from ...errors import InputError

SPACE = "▁"  # stands for a space in pieces
NORMAL, UNKNOWN, CONTROL, USER, UNUSED, BYTE = 1, 2, 3, 4, 5, 6  # types of pieces
MAX_PIECE = 512  # characters
TRIE_BLOCK = 256  # units: a step goes to one of a block, by the next byte


def build_unigram(
    pieces: Sequence[tuple[str, float, int]], charsmap: bytes, prefix: bool, removes_spaces: bool, where: str
) -> str:
    """Return the tokenizer.json.

    Args:
        pieces: text, log-probability and type of each, in the order of their ids.
        charsmap: how characters are rewritten; empty: not at all.
        prefix: a text begins with a space.
        removes_spaces: at both ends of a text, and repeated ones.

    Raises:
        InputError: a piece or the table makes no sense.
    """
    unknown = [i for i, (_, _, kind) in enumerate(pieces) if kind == UNKNOWN]
    if len(unknown) != 1:
        raise InputError(f"{where} has {len(unknown)} pieces for what is unknown; expected one")
    for text, score, kind in pieces:
        if not text or len(text) > MAX_PIECE or not math.isfinite(score) or not NORMAL <= kind <= BYTE:
            raise InputError(f"{where}: the piece {text[:40]!r} has the score {score} and the type {kind}")
    is_split = not any(SPACE in text[1:] for text, _, kind in pieces if kind == NORMAL)
    space = {"type": "Metaspace", "replacement": SPACE, "prepend_scheme": "never", "split": is_split}
    decoders: list[dict[str, Any]] = [{"type": "Replace", "pattern": {"String": SPACE}, "content": " "}]
    decoders += [{"type": "ByteFallback"}, {"type": "Fuse"}]
    decoders += [{"type": "Strip", "content": " ", "start": 1, "stop": 0}] if prefix else []
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    added = [
        {"id": i, "content": text, **flags, "special": kind != USER}
        for i, (text, _, kind) in enumerate(pieces)
        if kind in (UNKNOWN, CONTROL, USER)
    ]
    model: dict[str, Any] = {"type": "Unigram", "unk_id": unknown[0], "vocab": [[text, s] for text, s, _ in pieces]}
    model["byte_fallback"] = any(kind == BYTE for _, _, kind in pieces)
    fields: dict[str, Any] = {"version": "1.0", "truncation": None, "padding": None, "added_tokens": added}
    fields |= {"normalizer": build_normalizer(charsmap, prefix, removes_spaces, where), "pre_tokenizer": space}
    fields |= {"post_processor": None, "decoder": {"type": "Sequence", "decoders": decoders}, "model": model}
    return json.dumps(fields, ensure_ascii=False)


def build_normalizer(charsmap: bytes, prefix: bool, removes_spaces: bool, where: str) -> dict[str, Any]:
    steps: list[dict[str, Any]] = []
    if charsmap:
        check_charsmap(charsmap, where)
        steps.append({"type": "Precompiled", "precompiled_charsmap": base64.b64encode(charsmap).decode()})
    if removes_spaces:
        steps.append({"type": "Replace", "pattern": {"Regex": "^ +| +$"}, "content": ""})
        steps.append({"type": "Replace", "pattern": {"Regex": " {2,}"}, "content": " "})
    steps += [{"type": "Prepend", "prepend": SPACE}] if prefix else []
    return {
        "type": "Sequence",
        "normalizers": [*steps, {"type": "Replace", "pattern": {"String": " "}, "content": SPACE}],
    }


def check_charsmap(charsmap: bytes, where: str) -> None:
    """Raise InputError for a table of characters that points beyond itself, or into a character.

    It holds the bytes of the trie (a number of 4 bytes), the trie (units of 4 bytes), and texts that end in a zero
    byte. A unit says where its block of next units begins, and whether the text that it stands for is rewritten; the
    first unit of that block then says where the new text begins.
    """
    problem = f"{where}: the table of characters is damaged"
    size = struct.unpack("<I", charsmap[:4])[0] if len(charsmap) >= 4 else 0
    if not 0 < size <= len(charsmap) - 4 or size % (4 * TRIE_BLOCK):
        raise InputError(problem)
    units = np.frombuffer(charsmap, "<u4", size // 4, offset=4).astype(np.int64)
    texts = np.frombuffer(charsmap, np.uint8, offset=4 + size)
    try:
        texts.tobytes().decode("utf-8")
    except UnicodeDecodeError:
        raise InputError(problem) from None
    targets = np.arange(len(units)) ^ ((units >> 10) << ((units & 512) >> 6))
    is_step = units < 1 << 31  # of the others, 31 bits are where a text begins
    if targets[is_step].max(initial=0) >= len(units):
        raise InputError(problem)
    starts = units[targets[is_step & (units >> 8 & 1 == 1)]] & 0x7FFFFFFF
    if starts.max(initial=0) >= max(len(texts), 1) or ((texts[starts] & 0xC0) == 0x80).any():
        raise InputError(problem)
