"""Convert tokenizers between a GGUF file's metadata and tokenizer.json.

GGUF has two tokenizer models: "gpt2", a byte-level BPE that names its pre-tokenizer, and "llama", SentencePiece's BPE,
whose scores order the merges and whose unknown characters fall back to bytes (1808.06226). llama.cpp has names for a
few pre-tokenizers; a tokenizer with another one cannot be written. A file may also hold a complete tokenizer.json,
which is then used as it is; files written here do.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any

import tokenizers
from tokenizers import AddedToken, Regex, decoders, normalizers, pre_tokenizers, processors

from ...errors import InputError, suggest
from .base import Tokenizer
from .special_tokens import TokenizerMetadata, parse_metadata
from .vocabularies import (
    MAX_TOKEN_LENGTH,
    MAX_TOKENS,
    add_special_tokens,
    build_bpe,
    build_byte_level_bpe,
    check_vocab,
    split_merge,
)

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)  # values of tokenizer.ggml.token_type
SPECIAL_ROLES = ("bos", "eos", "eot", "eom")  # eot and eom end a turn and a message
PREFIX = "tokenizer.ggml."
TOKENIZER_JSON, CHAT_TEMPLATE = "tokenizer.huggingface.json", "tokenizer.chat_template"
SPACE = "\u2581"  # SentencePiece's character for a space
_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}%s| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)"
# llama.cpp's names of pre-tokenizers: patterns that split a text one after the other. None: as GPT-2 does.
PRETOKENIZERS: dict[str, tuple[str, ...] | None] = {
    "gpt-2": None,
    "smollm": (r"\p{N}", _GPT2 + r"|\s+"),
    "llama-bpe": (_WORDS % "{1,3}",),
    "qwen2": (_WORDS % "",),
    "default": (r"[\p{P}\$\+<=>\^~\|]+", _GPT2, r"\p{N}+", r"[0-9][0-9][0-9]"),
}


def convert_from_gguf(metadata: Mapping[str, Any], where: str = "the GGUF file") -> dict[str, str]:
    """Return the files of a tokenizer, name -> text: tokenizer.json and what accompanies it.

    Args:
        metadata: the metadata of a GGUF file (tokenizer.ggml.tokens, ...).
        where: names the file in errors.

    Raises:
        InputError: the metadata are malformed or of an unknown kind.
    """
    values = {name.removeprefix(PREFIX): value for name, value in metadata.items()}
    if isinstance(text := metadata.get(TOKENIZER_JSON), str):
        tokens = get_list(values, "tokens", str, where) if "tokens" in values else []
        return {"tokenizer.json": text} | read_special_tokens(metadata, tokens, where).to_files()
    builders = {"gpt2": build_gpt2, "llama": build_sentencepiece}
    if not isinstance(model := values.get("model"), str) or model not in builders:
        raise InputError(f"{where}: tokenizer.ggml.model is {model!r}: {suggest(str(model), builders)}")
    tokens = get_list(values, "tokens", str, where)
    if any(len(token) > MAX_TOKEN_LENGTH for token in tokens):
        raise InputError(f"{where}: a token has more than {MAX_TOKEN_LENGTH} characters")
    vocab, types = check_vocab({token: i for i, token in enumerate(tokens)}, where), [NORMAL] * len(tokens)
    if twice := [token for i, token in enumerate(tokens) if vocab[token] != i]:
        raise InputError(f"{where}: tokenizer.ggml.tokens has {twice[0]!r} twice")
    if "token_type" in values:
        types = get_list(values, "token_type", int, where, len(tokens))
    tokenizer = builders[model](vocab, types, values, where)
    special_tokens = read_special_tokens(metadata, tokens, where)
    special = {i for i, kind in enumerate(types) if kind == CONTROL} | {*special_tokens.end_ids}
    special |= set() if special_tokens.bos_id is None else {special_tokens.bos_id}
    add_special_tokens(tokenizer, [tokens[i] for i in sorted(special)])
    user_defined = [token for token, i in vocab.items() if types[i] == USER_DEFINED and i not in special]
    tokenizer.add_tokens([AddedToken(token, special=False, normalized=False) for token in user_defined])
    add_bos_and_eos(tokenizer, values, special_tokens.names)
    return {"tokenizer.json": tokenizer.to_str()} | special_tokens.to_files()


def get_list(values: Mapping[str, Any], name: str, kind: type, where: str, length: int | None = None) -> list[Any]:
    items = values.get(name)
    if not isinstance(items, list) or len(items) > MAX_TOKENS or not all(type(item) is kind for item in items):
        raise InputError(f"{where}: tokenizer.ggml.{name} should be a list of {kind.__name__}")
    if length is not None and len(items) != length:
        raise InputError(f"{where}: tokenizer.ggml.{name} has {len(items):,} entries for {length:,} tokens")
    return items


def read_special_tokens(metadata: Mapping[str, Any], tokens: Sequence[str], where: str) -> TokenizerMetadata:
    values = {role: metadata.get(f"{PREFIX}{role}_token_id") for role in SPECIAL_ROLES}
    ids = {role: i for role, i in values.items() if i is not None}
    for role, i in ids.items():
        if type(i) is not int or not 0 <= i < len(tokens):
            raise InputError(f"{where}: tokenizer.ggml.{role}_token_id is {i!r}, and there are {len(tokens):,} tokens")
    names = {f"{role}_token": tokens[i] for role, i in ids.items() if role in ("bos", "eos")}
    end_ids, template = tuple(dict.fromkeys(i for r, i in ids.items() if r != "bos")), metadata.get(CHAT_TEMPLATE)
    return TokenizerMetadata(ids.get("bos"), end_ids, names, {}, template if isinstance(template, str) else None)


def build_gpt2(vocab: dict[str, int], types: Sequence[int], values: Mapping[str, Any], where: str) -> Any:
    name = values.get("pre", "default")
    if not isinstance(name, str) or name not in PRETOKENIZERS:
        raise InputError(f"{where}: tokenizer.ggml.pre {name!r} is unknown: {suggest(str(name), PRETOKENIZERS)}")
    merges = [split_merge(m, f"{where}: tokenizer.ggml.merges") for m in get_list(values, "merges", str, where)]
    tokenizer = build_byte_level_bpe(vocab, merges, where, ignore_merges=name == "llama-bpe")
    set_pretokenizer(tokenizer, name)
    return tokenizer


def set_pretokenizer(tokenizer: tokenizers.Tokenizer, name: str) -> None:
    """Make a byte-level BPE split words as llama.cpp's pre-tokenizer of this name does."""
    if name == "qwen2":
        tokenizer.normalizer = normalizers.NFC()
    if patterns := PRETOKENIZERS[name]:
        byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        splits = [pre_tokenizers.Split(Regex(pattern), "isolated") for pattern in patterns]
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence([*splits, byte_level])


def build_sentencepiece(vocab: dict[str, int], types: Sequence[int], values: Mapping[str, Any], where: str) -> Any:
    scores = get_list(values, "scores", float, where, len(vocab))
    mergeable = {token for token, i in vocab.items() if types[i] not in (UNKNOWN, CONTROL, BYTE)}
    pairs = [
        (-scores[i], vocab[token[:cut]], vocab[token[cut:]], token[:cut], token[cut:])
        for token, i in vocab.items()
        if token in mergeable
        for cut in range(1, len(token))
        if token[:cut] in mergeable and token[cut:] in mergeable
    ]
    unknown = next((token for token, i in vocab.items() if types[i] == UNKNOWN), None)
    merges = [(left, right) for *_, left, right in sorted(pairs)]
    tokenizer = build_bpe(vocab, merges, where, unk_token=unknown, fuse_unk=True, byte_fallback=True)
    has_prefix = values.get("add_space_prefix", True)
    prepend, strip = ([normalizers.Prepend(SPACE)], [decoders.Strip(" ", 1, 0)]) if has_prefix else ([], [])
    tokenizer.normalizer = normalizers.Sequence([*prepend, normalizers.Replace(" ", SPACE)])
    decoder = [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse(), *strip]
    tokenizer.decoder = decoders.Sequence(decoder)
    return tokenizer


def add_bos_and_eos(tokenizer: tokenizers.Tokenizer, values: Mapping[str, Any], names: Mapping[str, str]) -> None:
    """Put bos before a text and eos after it, where the file or its kind of model specifies that."""
    # The pre-tokenizer llama-bpe implies bos unless the file specifies it.
    has_bos = values.get("add_bos_token", values["model"] == "llama" or values.get("pre") == "llama-bpe")
    bos, eos = names.get("bos_token"), names.get("eos_token")
    before = [bos] if has_bos and bos is not None else []
    after = [eos] if values.get("add_eos_token", False) and eos is not None else []
    if before or after:
        special = [(token, tokenizer.token_to_id(token)) for token in dict.fromkeys([*before, *after])]
        single = [*before, "$A", *after]
        tokenizer.post_processor = processors.TemplateProcessing(
            single=single, pair=[*single, *before, "$B:1", *after], special_tokens=special
        )


# --- tokenizer.json -> GGUF ---


def convert_to_gguf(tokenizer: Tokenizer, vocab_size: int) -> dict[str, Any]:
    """Return the metadata of a GGUF file for a tokenizer; empty for one that only splits numbers (`ids`).

    Args:
        vocab_size: rows of the embedding; rows without a token get placeholders.

    Raises:
        InputError: GGUF has no name for this kind of tokenizer or for its pre-tokenizer.
    """
    text = tokenizer.to_json()
    public = tokenizers.Tokenizer.from_str(text)
    content = json.loads(public.to_str())
    model = content["model"]
    is_words = model["type"] == "WordLevel"
    if is_words and (content["pre_tokenizer"] or {}).get("type") == "WhitespaceSplit":
        return {}
    values = describe_model(content)
    by_id = {i: token for token, i in public.get_vocab(with_added_tokens=True).items() if i < vocab_size}
    if is_words:  # single characters, among which llama.cpp expects SentencePiece's space
        by_id = {i: SPACE if token == " " else token for i, token in by_id.items()}
    tokens, types = [by_id.get(i, f"[PAD{i}]") for i in range(vocab_size)], get_token_types(content)
    values["tokens"] = tokens
    values["token_type"] = [types.get(token, NORMAL) if i in by_id else UNUSED for i, token in enumerate(tokens)]
    if values["model"] == "llama":  # the earlier the first merge that makes a token, the higher its score
        ranks: dict[str, int] = {}
        for rank, merge in enumerate(model.get("merges", [])):
            ranks.setdefault("".join(merge), rank)
        values["scores"] = [-float(ranks.get(token, 1_000_000)) for token in tokens]
    metadata = {f"{PREFIX}{name}": value for name, value in (values | find_special_ids(tokenizer)).items()}
    template = parse_metadata(tokenizer.extra_files).template
    return metadata | ({} if template is None else {CHAT_TEMPLATE: template}) | {TOKENIZER_JSON: text}


def describe_model(content: Mapping[str, Any]) -> dict[str, Any]:
    """Return the kind of a tokenizer in GGUF's words. Raises InputError."""
    model, normalizer = content["model"], content["normalizer"] or {}
    pre_tokenizer = content["pre_tokenizer"] or {}
    if model["type"] == "WordLevel":
        return {"model": "llama", "add_space_prefix": False}
    if model["type"] != "BPE":
        raise InputError(f"GGUF has no name for a tokenizer of the type {model['type']}")
    if "ByteLevel" in json.dumps(content["decoder"]):
        merges = [" ".join(merge) for merge in model["merges"]]
        dummy = f"{SPACE} {SPACE}"  # never applies to bytes; readers require at least one merge
        return {"model": "gpt2", "pre": find_pretokenizer(content), "merges": merges or [dummy]}
    # Spaces are replaced by the normalizer in old files, by the pre-tokenizer in new ones.
    steps = [step.get("type") for step in normalizer.get("normalizers", [normalizer])]
    if not pre_tokenizer and steps in (["Replace"], ["Prepend", "Replace"]):
        return {"model": "llama", "add_space_prefix": "Prepend" in steps}
    if not normalizer and pre_tokenizer.get("type") == "Metaspace" and pre_tokenizer.get("split") is False:
        return {"model": "llama", "add_space_prefix": pre_tokenizer["prepend_scheme"] != "never"}
    raise InputError("GGUF has no name for a BPE that is neither byte-level nor SentencePiece's")


def find_pretokenizer(content: Mapping[str, Any]) -> str:
    """Return llama.cpp's name of the pre-tokenizer; without merges, where words are split has no effect."""
    if not content["model"]["merges"]:
        return "gpt-2"
    names = [name for name in PRETOKENIZERS if name != "default"]
    candidates = [build_byte_level_bpe({}, [], "") for _ in names]
    for name, tokenizer in zip(names, candidates):
        set_pretokenizer(tokenizer, name)
    digits = build_byte_level_bpe({}, [], "")  # another way to write what "smollm" does
    digits.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Digits(True), digits.pre_tokenizer])
    for name, tokenizer in zip([*names, "smollm"], [*candidates, digits]):
        if describe_splitting(json.loads(tokenizer.to_str())) == describe_splitting(content):
            return name
    raise InputError(f"GGUF has no name for how this tokenizer splits words: it has {', '.join(names)}")


def describe_splitting(content: Mapping[str, Any]) -> str:
    """Return what determines where words are split, as text; trim_offsets does not."""
    text = json.dumps([content["normalizer"], content["pre_tokenizer"]], sort_keys=True)
    return text.replace('"trim_offsets": true', '"trim_offsets": false')


def get_token_types(content: Mapping[str, Any]) -> dict[str, int]:
    """Return token -> type, for tokens that are not NORMAL."""
    types = {f"<0x{byte:02X}>": BYTE for byte in range(256)} if content["model"].get("byte_fallback") else {}
    types |= {token["content"]: CONTROL if token["special"] else USER_DEFINED for token in content["added_tokens"]}
    unknown = content["model"].get("unk_token")
    return types | ({unknown: UNKNOWN} if unknown is not None else {})


def find_special_ids(tokenizer: Tokenizer) -> dict[str, Any]:
    """Return what begins a text and what ends it, as metadata."""
    prompt = tokenizer.encode_prompt("")
    leading = prompt[: len(prompt) - len(tokenizer.encode(""))].tolist()
    end_ids = list(tokenizer.end_ids)
    bos = leading[0] if leading else parse_metadata(tokenizer.extra_files).bos_id
    bos = end_ids[0] if bos is None and end_ids else bos
    values: dict[str, Any] = {"add_bos_token": bool(leading), "add_eos_token": False}
    values |= {} if bos is None else {"bos_token_id": bos}
    return values | {f"{role}_token_id": i for role, i in zip(SPECIAL_ROLES[1:], end_ids, strict=False)}
