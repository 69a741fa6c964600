"""A tokenizer as a GGUF file has it: the values that `gguf_vocabulary` reads.

llama.cpp has names for a few ways to cut words; a tokenizer that cuts otherwise cannot be written. The whole
tokenizer.json goes along, so that what we wrote comes back as it was.
"""

import json
from collections.abc import Mapping
from typing import Any

import tokenizers
from tokenizers import models, pre_tokenizers

from ...errors import InputError
from .base import Tokenizer
from .gguf_read import CONTROL, PRETOKENIZERS, SPACE, TEMPLATE, UNKNOWN, USER, WHOLE, set_pretokenizer
from .special_tokens import parse_metadata
from .vocabularies import build_byte_level_bpe

NORMAL, UNUSED, BYTE = 1, 5, 6  # kinds of tokens
NEVER = f"{SPACE} {SPACE}"  # a merge that finds nothing to merge among bytes: readers want one at least
RARE = -1e6  # the score of what no merge makes


def convert_to_gguf(tokenizer: Tokenizer, size: int) -> dict[str, Any]:
    """The values of `tokenizer` for an embedding of `size` rows, by their names in the file. None at all for a model
    that reads numbers. Raises InputError for a tokenizer that GGUF has no name for."""
    text = tokenizer.to_json()
    made = tokenizers.Tokenizer.from_str(text)
    described = json.loads(made.to_str())
    model = described["model"]
    if model["type"] == "WordLevel" and (described["pre_tokenizer"] or {}).get("type") == "WhitespaceSplit":
        return {}
    if model["type"] == "BPE" and "ByteLevel" in json.dumps(described["decoder"]):
        own = _byte_level(described)
    elif model["type"] == "BPE":
        own = _sentencepiece(described)
    elif model["type"] == "WordLevel":
        own = {"model": "llama", "add_space_prefix": False}
    else:
        raise InputError(f"GGUF has no name for a tokenizer of the type {model['type']}")
    shown = {token: i for token, i in made.get_vocab(with_added_tokens=True).items() if i < size}
    kinds = _kinds(described)
    if model["type"] == "WordLevel":  # characters: SentencePiece writes a space as a mark
        shown = {SPACE if token == " " else token: i for token, i in shown.items()}
    by_id = {i: token for token, i in shown.items()}
    tokens = [by_id.get(i, f"[PAD{i}]") for i in range(size)]
    values: dict[str, Any] = own | {"tokens": tokens}
    values["token_type"] = [kinds.get(token, NORMAL) if i in by_id else UNUSED for i, token in enumerate(tokens)]
    if own["model"] == "llama":
        values["scores"] = _scores(model, tokens)
    named = {f"tokenizer.ggml.{name}": value for name, value in (values | _marks(tokenizer)).items()}
    template = parse_metadata(tokenizer.extra_files).template
    return named | ({} if template is None else {TEMPLATE: template}) | {WHOLE: text}


def _byte_level(described: Mapping[str, Any]) -> dict[str, Any]:
    model = described["model"]
    pairs = [merge.split(" ") if isinstance(merge, str) else merge for merge in model["merges"]]
    merges = [f"{left} {right}" for left, right in pairs]
    return {"model": "gpt2", "pre": _rule(described), "merges": merges or [NEVER]}


def _rule(described: Mapping[str, Any]) -> str:
    """The name of the way in which words are cut. Without merges there is nothing to cut."""
    if not described["model"]["merges"]:
        return "gpt-2"
    for name in PRETOKENIZERS:
        if name == "default":
            continue
        like = build_byte_level_bpe({}, [], "")
        set_pretokenizer(like, name)
        if _cutting(json.loads(like.to_str())) == _cutting(described):
            return name
    digits = tokenizers.Tokenizer(models.BPE())
    digits.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    if _cutting(json.loads(digits.to_str())) == _cutting(described):
        return "smollm"
    known = ", ".join(name for name in PRETOKENIZERS if name != "default")
    raise InputError(f"this tokenizer cuts words in a way that GGUF has no name for: it knows {known}")


def _cutting(described: Mapping[str, Any]) -> Any:
    """What decides where words are cut; trim_offsets does not."""
    found = json.dumps([described["normalizer"], described["pre_tokenizer"]], sort_keys=True)
    return found.replace('"trim_offsets": true', '"trim_offsets": false')


def _sentencepiece(described: Mapping[str, Any]) -> dict[str, Any]:
    """Spaces become marks, by the normalizer in old files and before the words in new ones."""
    normalizer, before = described["normalizer"] or {}, described["pre_tokenizer"] or {}
    steps = normalizer.get("normalizers", [normalizer])
    kinds = [step.get("type") for step in steps]
    if not before and kinds in (["Replace"], ["Prepend", "Replace"]):
        return {"model": "llama", "add_space_prefix": "Prepend" in kinds}
    if not normalizer and before.get("type") == "Metaspace" and before.get("split") is False:
        return {"model": "llama", "add_space_prefix": before["prepend_scheme"] != "never"}
    raise InputError("GGUF has no name for a BPE that is neither of bytes nor SentencePiece's")


def _kinds(described: Mapping[str, Any]) -> dict[str, int]:
    kinds = {f"<0x{byte:02X}>": BYTE for byte in range(256)} if described["model"].get("byte_fallback") else {}
    kinds |= {token["content"]: CONTROL if token["special"] else USER for token in described["added_tokens"]}
    unknown = described["model"].get("unk_token")
    return kinds | ({unknown: UNKNOWN} if unknown is not None else {})


def _scores(model: Mapping[str, Any], tokens: list[str]) -> list[float]:
    """The earlier a token is made by a merge, the higher its score."""
    ranks: dict[str, int] = {}
    for rank, merge in enumerate(model.get("merges", [])):
        ranks.setdefault("".join(merge.split(" ") if isinstance(merge, str) else merge), rank)
    return [-float(ranks[token]) if token in ranks else RARE for token in tokens]


def _marks(tokenizer: Tokenizer) -> dict[str, Any]:
    """What begins a text and what ends it."""
    probe = tokenizer.encode("")
    leading = tokenizer.encode_prompt("")[: len(tokenizer.encode_prompt("")) - len(probe)].tolist()
    ends = list(tokenizer.end_ids)
    begin = leading[0] if leading else parse_metadata(tokenizer.extra_files).begin
    begin = ends[0] if begin is None and ends else begin
    found: dict[str, Any] = {"add_bos_token": bool(leading), "add_eos_token": False}
    found |= {} if begin is None else {"bos_token_id": begin}
    return found | {f"{kind}_token_id": end for kind, end in zip(("eos", "eot", "eom"), ends, strict=False)}
