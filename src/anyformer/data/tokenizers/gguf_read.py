"""The vocabulary inside a GGUF file, as plain values, to the files of a tokenizer.

Two models are read: "gpt2", a byte-level BPE that names how it cuts words, and "llama", SentencePiece's BPE, whose
scores say what is merged first and whose rare characters fall back to bytes (1808.06226). A file may also carry a whole
tokenizer.json, which is then believed. The way back is `gguf_words`.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import tokenizers
from tokenizers import AddedToken, Regex, decoders, normalizers, pre_tokenizers, processors

from ...errors import InputError, suggest
from .special_tokens import TokenizerMetadata
from .vocabularies import MAX_TOKEN_LENGTH, MAX_TOKENS, build_bpe, build_byte_level_bpe, check_vocab

UNKNOWN, CONTROL, USER = 2, 3, 4  # kinds of tokens
MARKS = ("bos", "eos", "eot", "eom")  # the last two end a turn and a message
WHOLE, TEMPLATE = "tokenizer.huggingface.json", "tokenizer.chat_template"
SPACE = "\u2581"  # how SentencePiece writes it
_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}%s| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)"
# How words are cut, one pattern after the other. None: as GPT-2 does.
PRETOKENIZERS: dict[str, tuple[str, ...] | None] = {
    "gpt-2": None,
    "smollm": (r"\p{N}", _GPT2 + r"|\s+"),
    "llama-bpe": (_WORDS % "{1,3}",),
    "qwen2": (_WORDS % "",),
    "default": (r"[\p{P}\$\+<=>\^~\|]+", _GPT2, r"\p{N}+", r"[0-9][0-9][0-9]"),
}
BEGINS = {"llama-bpe"}  # these put bos before a text unless the file says otherwise


def convert_from_gguf(values: Mapping[str, Any], where: str = "the GGUF file") -> dict[str, str]:
    """The files of a tokenizer, name -> text: tokenizer.json and what belongs beside it. `values`: the metadata of a
    GGUF file by its names (tokenizer.ggml.tokens, ...). Raises InputError."""
    given = {name.removeprefix("tokenizer.ggml."): value for name, value in values.items()}
    if isinstance(whole := values.get(WHOLE), str):
        return {"tokenizer.json": whole} | _about(given, values.get(TEMPLATE), given.get("tokens") or [], where).files()
    builders = {"gpt2": _gpt2, "llama": _llama}
    if (model := given.get("model")) not in builders:
        raise InputError(f"{where}: tokenizer.ggml.model is {model!r}: {suggest(str(model), builders)}")
    tokens = _list(given, "tokens", str, where)
    if any(len(token) > MAX_TOKEN_LENGTH for token in tokens):
        raise InputError(f"{where}: a token has more than {MAX_TOKEN_LENGTH} characters")
    vocab = check_vocab({token: i for i, token in enumerate(tokens)}, where)
    if len(vocab) != len(tokens):
        twice = next(token for i, token in enumerate(tokens) if vocab[token] != i)
        raise InputError(f"{where}: tokenizer.ggml.tokens has {twice!r} twice")
    kinds = _list(given, "token_type", int, where, len(tokens)) if "token_type" in given else [1] * len(tokens)
    made = builders[model](vocab, kinds, given, where)
    special = {i: token for token, i in vocab.items() if kinds[i] == CONTROL}
    special |= {i: tokens[i] for i in _ids(given, len(tokens), where).values()}
    made.add_special_tokens([AddedToken(special[i], special=True, normalized=False) for i in sorted(special)])
    own = [token for token, i in vocab.items() if kinds[i] == USER and i not in special]
    made.add_tokens([AddedToken(token, special=False, normalized=False) for token in own])
    about = _about(given, values.get(TEMPLATE), tokens, where)
    _surround(made, given, about)
    return {"tokenizer.json": made.to_str()} | about.files()


def _list(given: Mapping[str, Any], name: str, kind: type, where: str, length: int | None = None) -> list[Any]:
    found = given.get(name)
    if not isinstance(found, list) or len(found) > MAX_TOKENS or not all(type(value) is kind for value in found):
        raise InputError(f"{where}: tokenizer.ggml.{name} should be a list of {kind.__name__}")
    if length is not None and len(found) != length:
        raise InputError(f"{where}: tokenizer.ggml.{name} has {len(found):,} entries for {length:,} tokens")
    return found


def _ids(given: Mapping[str, Any], n: int, where: str) -> dict[str, int]:
    """bos, eos and what else ends a turn, where they are named."""
    found = {kind: given[name] for kind in MARKS if given.get(name := f"{kind}_token_id") is not None}
    for kind, i in found.items():
        if type(i) is not int or not 0 <= i < n:
            raise InputError(f"{where}: tokenizer.ggml.{kind}_token_id is {i!r}, and there are {n:,} tokens")
    return found


def _gpt2(vocab: dict[str, int], kinds: Sequence[int], given: Mapping[str, Any], where: str) -> tokenizers.Tokenizer:
    name = given.get("pre", "default")
    if name not in PRETOKENIZERS:
        raise InputError(
            f"{where}: words are cut by an unknown rule, tokenizer.ggml.pre {name!r}: {suggest(name, PRETOKENIZERS)}"
        )
    merges = []
    for line in _list(given, "merges", str, where):
        left, space, right = line.partition(" ")
        if not (left and space and right):
            raise InputError(f"{where}: tokenizer.ggml.merges has {line[:40]!r}, which is not two tokens and a space")
        merges.append((left, right))
    made = build_byte_level_bpe(vocab, merges, where, ignore_merges=name == "llama-bpe")
    set_pretokenizer(made, name)
    return made


def set_pretokenizer(made: tokenizers.Tokenizer, name: str) -> None:
    """Cut words by the rule of this name."""
    if name == "qwen2":
        made.normalizer = normalizers.NFC()
    if cuts := PRETOKENIZERS[name]:
        level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        made.pre_tokenizer = pre_tokenizers.Sequence(
            [*(pre_tokenizers.Split(Regex(cut), "isolated") for cut in cuts), level]
        )


def _llama(vocab: dict[str, int], kinds: Sequence[int], given: Mapping[str, Any], where: str) -> tokenizers.Tokenizer:
    scores = _list(given, "scores", float, where, len(vocab))
    plain = {token for token, i in vocab.items() if kinds[i] not in (UNKNOWN, CONTROL, 6)}
    pairs = [
        (-scores[i], vocab[token[:cut]], vocab[token[cut:]], token[:cut], token[cut:])
        for token, i in vocab.items()
        if token in plain
        for cut in range(1, len(token))
        if token[:cut] in plain and token[cut:] in plain
    ]
    unknown = next((token for token, i in vocab.items() if kinds[i] == UNKNOWN), None)
    merges = [(left, right) for *_, left, right in sorted(pairs)]
    made = build_bpe(vocab, merges, where, unk_token=unknown, fuse_unk=True, byte_fallback=True)
    spaces = [normalizers.Replace(" ", SPACE)]
    steps = [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    if given.get("add_space_prefix", True):
        spaces.insert(0, normalizers.Prepend(SPACE))
        steps.append(decoders.Strip(" ", 1, 0))
    made.normalizer = normalizers.Sequence(spaces)
    made.decoder = decoders.Sequence(steps)
    return made


def _about(given: Mapping[str, Any], template: Any, tokens: Sequence[str], where: str) -> TokenizerMetadata:
    ids = _ids(given, len(tokens), where)
    names = {f"{kind}_token": tokens[i] for kind, i in ids.items() if kind in ("bos", "eos")}
    ends = tuple(dict.fromkeys(ids[kind] for kind in MARKS[1:] if kind in ids))
    return TokenizerMetadata(ids.get("bos"), ends, names, {}, template if isinstance(template, str) else None)


def _surround(made: tokenizers.Tokenizer, given: Mapping[str, Any], about: TokenizerMetadata) -> None:
    """bos before a text and eos after it, where the file or its kind of model says so."""
    begins = given.get("add_bos_token", given["model"] == "llama" or given.get("pre") in BEGINS)
    bos, eos = about.names.get("bos_token"), about.names.get("eos_token")
    before = [bos] if begins and bos is not None else []
    after = [eos] if given.get("add_eos_token", False) and eos is not None else []
    if before or after:
        special = [(token, made.token_to_id(token)) for token in dict.fromkeys([*before, *after])]
        single = [*before, "$A", *after]
        made.post_processor = processors.TemplateProcessing(
            single=single, pair=[*single, *before, "$B:1", *after], special_tokens=special
        )
