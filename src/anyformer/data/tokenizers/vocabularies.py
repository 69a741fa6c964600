"""Convert older vocabulary files to a tokenizer.json: GPT-2's two files, WordPiece's list, tiktoken's ranks.

All are rebuilt through the `tokenizers` library, so that the ids are those of the public tokenizers. Sizes are checked
before anything is built.
"""

import base64
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers, processors

from ...errors import InputError
from ..io.checks import parse_json, read_text
from .base import END, byte_alphabet
from .special_tokens import CONFIG, TOKENIZER_CONFIG

MAX_TOKENS = 2_000_000
MAX_TOKEN_LENGTH = 512  # bytes or characters; splitting a token below takes quadratic time
# The languages of Whisper (2212.04356), in the order of their tokens; the last was added in large-v3.
LANGUAGES = (  # noqa: SIM905
    "en zh de es ru ko fr ja pt tr pl ca nl ar sv it id hi fi vi he uk el ms cs ro da hu ta no th ur hr bg lt la mi ml "
    "cy sk te fa lv bn sr az sl kn et mk br eu is hy ne mn bs kk sq sw gl mr pa si km sn yo so af oc ka be tg sd gu am "
    "yi lo uz fo ht ps tk nn mt sa lb my bo tl mg as tt haw ln ha ba jw su yue"
).split()
WORD_END, CLIP_START = "</w>", "<|startoftext|>"  # of CLIP's vocabulary: what ends the last token of a word
CLIP_WORDS = r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
BYTE_TO_CHARACTER = dict(enumerate(byte_alphabet()))


def convert_folder(folder: Path, metadata: Mapping[str, str]) -> str:
    """Return the tokenizer.json of a folder of older files. `metadata`: the texts of its config files."""

    def config(name: str) -> dict[str, Any]:
        return parse_json(metadata[name], str(folder / name)) if name in metadata else {}

    if (folder / "vocab.json").is_file() and (folder / "merges.txt").is_file():
        return convert_gpt2(folder / "vocab.json", folder / "merges.txt")
    if (folder / "vocab.txt").is_file():
        return convert_wordpiece(folder / "vocab.txt", config(TOKENIZER_CONFIG))
    if ranks := sorted(folder.glob("*.tiktoken")):
        return convert_tiktoken(ranks[0], config(CONFIG))
    hint = " (SentencePiece models are read as tokenizer.model)" if any(folder.glob("*.model")) else ""
    expected = "tokenizer.json, vocab.json with merges.txt, vocab.txt or a .tiktoken file"
    raise InputError(f"{folder} holds no tokenizer: expected {expected}{hint}")


# --- byte-level BPE: vocab.json and merges.txt ---


def convert_gpt2(vocab: Path, merges: Path) -> str:
    """Convert GPT-2's two files: token -> id, and a merge on each line, the earliest first."""
    ids = check_vocab(parse_json(read_text(vocab), str(vocab)), str(vocab))
    pairs = []
    for number, line in enumerate(read_text(merges).split("\n"), 1):
        if not line.strip() or (number == 1 and line.startswith("#version")):
            continue
        pairs.append(split_merge(line.rstrip("\r"), f"{merges}, line {number}"))
    if any(token.endswith(WORD_END) for token in ids):
        return build_clip(ids, pairs, f"{vocab} and {merges.name}")
    tokenizer = build_byte_level_bpe(ids, pairs, f"{vocab} and {merges.name}")
    add_special_tokens(tokenizer, [END])
    return tokenizer.to_str()


def build_clip(ids: dict[str, int], pairs: Sequence[tuple[str, str]], where: str) -> str:
    """Return the tokenizer.json of CLIP's vocabulary (2103.00020): lower case, one space between words, the last token
    of a word marked, and a text between two special tokens."""
    if missing := [token for token in (CLIP_START, END) if token not in ids]:
        raise InputError(f"{where}: a vocabulary with {WORD_END} is CLIP's, which needs {missing[0]}")
    options = {"unk_token": END, "end_of_word_suffix": WORD_END, "continuing_subword_prefix": ""}
    tokenizer = build_bpe(ids, pairs, where, **options)
    steps = [normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()]
    tokenizer.normalizer = normalizers.Sequence(steps)
    split = pre_tokenizers.Split(Regex(CLIP_WORDS), behavior="removed", invert=True)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(add_prefix_space=False)])
    tokenizer.decoder = decoders.ByteLevel()
    add_special_tokens(tokenizer, [CLIP_START, END])
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{CLIP_START} $A {END}",
        pair=f"{CLIP_START} $A {END} {END} $B:1 {END}:1",
        special_tokens=[(token, ids[token]) for token in (CLIP_START, END)],
    )
    return tokenizer.to_str()


def split_merge(line: str, where: str) -> tuple[str, str]:
    left, space, right = line.partition(" ")
    if not (left and space and right) or " " in right:
        raise InputError(f"{where}: {line[:40]!r} is not two tokens with a space between")
    return left, right


def add_special_tokens(tokenizer: tokenizers.Tokenizer, tokens: Iterable[str]) -> None:
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in tokens])


def check_vocab(vocab: Mapping[str, Any], where: str) -> dict[str, int]:
    """Return token -> id if every id is unique and in range. Raises InputError."""
    if not vocab or len(vocab) > MAX_TOKENS:
        raise InputError(f"{where}: {len(vocab):,} tokens; it should be 1 to {MAX_TOKENS:,}")
    tokens: dict[int, str] = {}
    for token, i in vocab.items():
        if type(i) is not int or not 0 <= i < 2 * MAX_TOKENS:
            raise InputError(f"{where}: the id of {token[:40]!r} is {i!r}; it should be a number from 0 on")
        if i in tokens:
            raise InputError(f"{where}: {token[:40]!r} and {tokens[i][:40]!r} have the same id {i}")
        tokens[i] = token
    return dict(vocab)


def build_byte_level_bpe(vocab: dict[str, int], merges: Sequence[tuple[str, str]], where: str, **options: Any) -> Any:
    """Build a BPE on bytes (1508.07909) that splits words as GPT-2 does."""
    tokenizer = build_bpe(vocab, merges, where, **options)
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def build_bpe(vocab: dict[str, int], merges: Sequence[tuple[str, str]], where: str, **options: Any) -> Any:
    """Build a BPE of the library. Raises InputError for a merge whose tokens the vocabulary lacks."""
    for left, right in merges:
        if missing := [token for token in (left, right, left + right) if token not in vocab]:
            raise InputError(f"{where}: the merge of {left!r} and {right!r} needs {missing[0]!r}, which is no token")
    return tokenizers.Tokenizer(models.BPE(vocab=vocab, merges=list(merges), **options))


# --- WordPiece: vocab.txt ---


def convert_wordpiece(path: Path, config: Mapping[str, Any]) -> str:
    """Convert BERT's list (1810.04805): a token on each line, its id the line number. `config`: tokenizer_config."""
    vocab: dict[str, int] = {}
    for i, line in enumerate(read_text(path).removesuffix("\n").split("\n")):
        token = line.rstrip("\r")
        if token in vocab:
            raise InputError(f"{path}, line {i + 1}: {token[:40]!r} is on line {vocab[token] + 1} already")
        vocab[token] = i
    vocab = check_vocab(vocab, str(path))
    if missing := [token for token in ("[UNK]", "[CLS]", "[SEP]") if token not in vocab]:
        raise InputError(f"{path}: a WordPiece vocabulary needs {missing[0]}, which is on no line")
    tokenizer = tokenizers.Tokenizer(models.WordPiece(vocab, unk_token="[UNK]"))
    accents = config.get("strip_accents")
    tokenizer.normalizer = normalizers.BertNormalizer(
        clean_text=True,
        handle_chinese_chars=config.get("tokenize_chinese_chars") is not False,
        strip_accents=accents if isinstance(accents, bool) else None,  # None: together with lower-casing
        lowercase=config.get("do_lower_case") is not False,
    )
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece(prefix="##")
    add_special_tokens(tokenizer, [t for t in ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]") if t in vocab])
    special = [(token, vocab[token]) for token in ("[CLS]", "[SEP]")]
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=special
    )
    return tokenizer.to_str()


# --- tiktoken: ranks ---


def convert_tiktoken(path: Path, config: Mapping[str, Any]) -> str:
    """Convert ranks of byte strings, with GPT-2's or Whisper's word splits and special tokens.

    `config`: config.json, which has the model's type and vocabulary size; without it, multilingual.tiktoken is
    Whisper's.
    """
    ranks = read_ranks(path)
    is_whisper = config.get("model_type") == "whisper" or (not config and path.stem == "multilingual")
    special = whisper_tokens(len(ranks), config.get("vocab_size")) if is_whisper else [END]
    vocab = {token: i for i, token in enumerate([*map(_to_characters, ranks), *special])}
    pairs = [halves for token, i in ranks.items() if len(token) > 1 and (halves := split_token(token, ranks, i))]
    merges = [(_to_characters(left), _to_characters(right)) for left, right in pairs]
    tokenizer = build_byte_level_bpe(
        vocab, merges, str(path), ignore_merges=True
    )  # a word that is an entry is one token
    add_special_tokens(tokenizer, special)
    if is_whisper:
        start = "<|startoftranscript|> <|notimestamps|>"
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{start} $A {END}",
            pair=f"{start} $A $B:1 {END}:1",
            special_tokens=[(token, vocab[token]) for token in (*start.split(), END)],
        )
    return tokenizer.to_str()


def read_ranks(path: Path) -> dict[bytes, int]:
    """Read lines of base64, a space and the rank; ranks count up from 0. Raises InputError."""
    ranks: dict[bytes, int] = {}
    for number, line in enumerate(read_text(path).splitlines(), 1):
        if not line.strip():
            continue
        where = f"{path}, line {number}"
        token, rank = _parse_rank(line, where)
        if rank != len(ranks) or token in ranks or rank >= MAX_TOKENS:
            raise InputError(f"{where}: rank {rank} of {token[:40]!r}; expected a new token, {len(ranks)}")
        ranks[token] = rank
    if missing := [b for b in range(256) if bytes([b]) not in ranks]:
        raise InputError(f"{path}: byte {missing[0]} has no rank; every byte needs one")
    return ranks


def _parse_rank(line: str, where: str) -> tuple[bytes, int]:
    word, _, rank = line.partition(" ")
    try:
        token = b"" if word == "=" else base64.b64decode(word, validate=True)  # "=": the empty token of Whisper
        if len(token) <= MAX_TOKEN_LENGTH and rank.isascii() and rank.isdigit() and len(rank) < 10:
            return token, int(rank)
    except ValueError:
        pass
    raise InputError(f"{where}: {line[:40]!r} is not base64 of a token, a space and a rank")


def split_token(token: bytes, ranks: Mapping[bytes, int], rank: int) -> tuple[bytes, bytes] | None:
    """Return the two tokens whose merge gives this one, by the merges of lower rank; None if more than two remain."""
    parts = [token[i : i + 1] for i in range(len(token))]
    while len(parts) > 2:
        merge_ranks = [ranks.get(left + right, rank) for left, right in pairwise(parts)]
        index = min(range(len(merge_ranks)), key=merge_ranks.__getitem__)
        if merge_ranks[index] >= rank:
            return None
        parts[index : index + 2] = [parts[index] + parts[index + 1]]
    return parts[0], parts[1]


def whisper_tokens(n_ranks: int, size: Any) -> list[str]:
    """Return Whisper's special tokens. The `size` of the model's vocabulary tells how many languages it has."""
    tasks = ("translate", "transcribe", "startoflm", "startofprev", "nospeech", "notimestamps")
    times = [f"{i / 50:.2f}" for i in range(1501)]  # every 20 ms of 30 s
    n_languages = 100 if size == n_ranks + 2 + 100 + len(tasks) + len(times) else 99
    words = ("startoftranscript", *LANGUAGES[:n_languages], *tasks, *times)
    return [END, *(f"<|{word}|>" for word in words)]


def _to_characters(token: bytes) -> str:
    return token.decode("latin-1").translate(BYTE_TO_CHARACTER)
