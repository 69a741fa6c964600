"""The layout of `tokenizer.json`, the file of the `tokenizers` library, for tokenizers that need no training."""

import json
from collections.abc import Sequence
from typing import Any

END = "<|endoftext|>"


def of_characters(characters: Sequence[str]) -> str:
    """One id a character: split at every character, look each up, glue them together. The last id is the end."""
    split = {"type": "Split", "pattern": {"Regex": "[\\s\\S]"}, "behavior": "Isolated", "invert": False}
    vocab = {c: i for i, c in enumerate(characters)}
    return _layout({"type": "WordLevel", "vocab": vocab, "unk_token": "<unk>"}, split, {"type": "Fuse"})


def of_bytes() -> str:
    """One id a byte: a byte-level BPE that merges nothing. The last id is the end."""
    vocab = {c: i for i, c in enumerate(byte_alphabet())}
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    return _layout({"type": "BPE", "vocab": vocab, "merges": []}, level, level)


def of_ids(vocab_size: int) -> str:
    """The numbers themselves, "12 7 3", for a model that came without a tokenizer. No id ends a text."""
    vocab = {str(i): i for i in range(vocab_size)}
    model = {"type": "WordLevel", "vocab": vocab, "unk_token": "<unk>"}
    return json.dumps(json.loads(_layout(model, {"type": "WhitespaceSplit"}, None)) | {"added_tokens": []})


def byte_alphabet() -> str:
    """The 256 printable characters that stand for the bytes 0..255 in a byte-level vocabulary, in order of the byte."""
    shown = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]  # these stand for themselves
    hidden = [b for b in range(256) if b not in shown]  # these are moved up, in order
    return "".join(chr(b if b in shown else 256 + hidden.index(b)) for b in range(256))


def same(own: Any, other: Any) -> bool:
    """Whether two JSON values are equal, but for settings that the library adds and leaves off."""
    if not (isinstance(own, dict) and isinstance(other, dict)):
        return own == other
    off = all(v is None or v is False for k, v in other.items() if k not in own)
    return off and all(k in other and same(v, other[k]) for k, v in own.items())


def _layout(model: dict, pre_tokenizer: dict, decoder: dict | None) -> str:
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    end = {"id": len(model["vocab"]), "content": END} | flags | {"special": True}
    fields: dict[str, Any] = {"version": "1.0", "truncation": None, "padding": None, "added_tokens": [end]}
    fields |= {"normalizer": None, "pre_tokenizer": pre_tokenizer, "post_processor": None}
    fields |= {"decoder": decoder, "model": model}
    return json.dumps(fields, ensure_ascii=False, indent=2)
