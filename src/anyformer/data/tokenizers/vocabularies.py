"""A tokenizer.json from what checkpoints carried before it: GPT-2's two files, WordPiece's list, tiktoken's ranks.

All are rebuilt through the `tokenizers` library, so that the ids are those of the public tokenizers. Sizes are bounded
before anything is built. What a GGUF file holds is read in `gguf_vocabulary`.
"""

import base64
import binascii
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers, processors

from ...errors import InputError
from .base import END, byte_alphabet
from .special_tokens import CONFIG, DESCRIBED, read_object, read_text

MAX_TOKENS = 2_000_000
MAX_TOKEN_LENGTH = 512  # bytes or characters; what is split below costs the square of it
# The languages of Whisper (2212.04356), in the order of their tokens; the last came with its third large model.
LANGUAGES = (  # noqa: SIM905
    "en zh de es ru ko fr ja pt tr pl ca nl ar sv it id hi fi vi he uk el ms cs ro da hu ta no th ur hr bg lt la mi ml "
    "cy sk te fa lv bn sr az sl kn et mk br eu is hy ne mn bs kk sq sw gl mr pa si km sn yo so af oc ka be tg sd gu am "
    "yi lo uz fo ht ps tk nn mt sa lb my bo tl mg as tt haw ln ha ba jw su yue"
).split()
TASKS = ("translate", "transcribe", "startoflm", "startofprev", "nospeech", "notimestamps")
TIMES = [f"<|{i / 50:.2f}|>" for i in range(1501)]  # every 20 ms of 30 s
SHOWN = dict(enumerate(byte_alphabet()))  # byte -> the character that stands for it


def convert_folder(folder: Path, extra_files: Mapping[str, str]) -> str:
    """The tokenizer.json that a checkpoint's older files stand for. `beside`: the texts of its config files."""
    if (folder / "vocab.json").is_file() and (folder / "merges.txt").is_file():
        return convert_gpt2(folder / "vocab.json", folder / "merges.txt")
    if (folder / "vocab.txt").is_file():
        return convert_wordpiece(folder / "vocab.txt", _object(extra_files, DESCRIBED, folder))
    if ranks := sorted(folder.glob("*.tiktoken")):
        return convert_tiktoken(ranks[0], _object(extra_files, CONFIG, folder))
    more = " (a SentencePiece model alone is not read)" if any(folder.glob("*.model")) else ""
    raise InputError(
        f"{folder} holds no tokenizer: expected tokenizer.json, vocab.json with merges.txt, vocab.txt or a .tiktoken "
        f"file{more}"
    )


def _object(extra_files: Mapping[str, str], name: str, folder: Path) -> dict[str, Any]:
    return read_object(extra_files[name], str(folder / name)) if name in extra_files else {}


# --- byte-level BPE: vocab.json and merges.txt ---


def convert_gpt2(vocab: Path, merges: Path) -> str:
    """GPT-2's two files: token -> id, and one merge a line, the earliest first."""
    ids = check_vocab(read_object(read_text(vocab), str(vocab)), str(vocab))
    pairs = []
    for number, line in enumerate(read_text(merges).split("\n"), 1):
        if not line.strip() or (number == 1 and line.startswith("#version")):
            continue
        parts = line.rstrip("\r").split(" ")
        if len(parts) != 2 or not all(parts):
            raise InputError(f"{merges}, line {number}: {line[:40]!r} is not two tokens with a space between")
        pairs.append((parts[0], parts[1]))
    made = build_byte_level_bpe(ids, pairs, f"{vocab} and {merges.name}")
    made.add_special_tokens([AddedToken(END, special=True, normalized=False)])
    return made.to_str()


def check_vocab(vocab: Mapping[str, Any], where: str) -> dict[str, int]:
    """token -> id, every id once, none absurd. Raises InputError."""
    if not vocab or len(vocab) > MAX_TOKENS:
        raise InputError(f"{where}: {len(vocab):,} tokens; it should be 1 to {MAX_TOKENS:,}")
    seen: dict[int, str] = {}
    for token, i in vocab.items():
        if type(i) is not int or not 0 <= i < 2 * MAX_TOKENS:
            raise InputError(f"{where}: the id of {token[:40]!r} is {i!r}; it should be a number from 0 on")
        if i in seen:
            raise InputError(f"{where}: {token[:40]!r} and {seen[i][:40]!r} have the same id {i}")
        seen[i] = token
    return dict(vocab)


def build_byte_level_bpe(vocab: dict[str, int], merges: Sequence[tuple[str, str]], where: str, **more: Any) -> Any:
    """A BPE on bytes (1508.07909) that cuts words as GPT-2 does."""
    made = build_bpe(vocab, merges, where, **more)
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    return made


def build_bpe(vocab: dict[str, int], merges: Sequence[tuple[str, str]], where: str, **more: Any) -> tokenizers.Tokenizer:
    """A BPE of the library. Raises InputError where a merge names a token that is not there."""
    for left, right in merges:
        if lacking := [token for token in (left, right, left + right) if token not in vocab]:
            raise InputError(f"{where}: the merge of {left!r} and {right!r} needs {lacking[0]!r}, which is no token")
    return tokenizers.Tokenizer(models.BPE(vocab=vocab, merges=list(merges), **more))


# --- WordPiece: vocab.txt ---


def convert_wordpiece(path: Path, described: Mapping[str, Any]) -> str:
    """BERT's list (1810.04805): one token a line, its id the number of the line. `described`: tokenizer_config.json."""
    lines = read_text(path).split("\n")
    lines = [line.rstrip("\r") for line in (lines[:-1] if not lines[-1] else lines)]
    vocab: dict[str, int] = {}
    for i, token in enumerate(lines):
        if token in vocab:
            raise InputError(f"{path}, line {i + 1}: {token[:40]!r} stands on line {vocab[token] + 1} already")
        vocab[token] = i
    vocab = check_vocab(vocab, str(path))
    if lacking := [token for token in ("[UNK]", "[CLS]", "[SEP]") if token not in vocab]:
        raise InputError(f"{path}: a WordPiece vocabulary needs {lacking[0]}, which stands on no line")
    made = tokenizers.Tokenizer(models.WordPiece(vocab, unk_token="[UNK]"))
    accents = described.get("strip_accents")
    made.normalizer = normalizers.BertNormalizer(
        clean_text=True,
        handle_chinese_chars=described.get("tokenize_chinese_chars") is not False,
        strip_accents=accents if isinstance(accents, bool) else None,  # None: as lower-casing goes
        lowercase=described.get("do_lower_case") is not False,
    )
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    made.decoder = decoders.WordPiece(prefix="##")
    special = [token for token in ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]") if token in vocab]
    made.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special])
    made.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[(token, vocab[token]) for token in ("[CLS]", "[SEP]")],
    )
    return made.to_str()


# --- tiktoken: ranks ---


def convert_tiktoken(path: Path, config: Mapping[str, Any]) -> str:
    """Ranks of byte strings, for GPT-2's words or Whisper's. `config`: config.json, which names the model and its size;
    without it, a file called multilingual.tiktoken is Whisper's."""
    ranks = read_ranks(path)
    speech = config.get("model_type") == "whisper" or (not config and path.stem == "multilingual")
    size = config.get("vocab_size")
    special = whisper_tokens(len(ranks), size if isinstance(size, int) else 0) if speech else [END]
    shown = [_shown(token) for token in ranks]
    vocab = {token: i for i, token in enumerate([*shown, *special])}
    pairs = [halves for token, i in ranks.items() if len(token) > 1 and (halves := split_token(token, ranks, i))]
    merges = [(_shown(left), _shown(right)) for left, right in pairs]
    made = build_byte_level_bpe(vocab, merges, str(path), ignore_merges=True)  # a word that is a token is never cut
    made.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special])
    if speech:
        first, quiet = "<|startoftranscript|>", "<|notimestamps|>"
        made.post_processor = processors.TemplateProcessing(
            single=f"{first} {quiet} $A {END}",
            pair=f"{first} {quiet} $A $B:1 {END}:1",
            special_tokens=[(token, vocab[token]) for token in (first, quiet, END)],
        )
    return made.to_str()


def read_ranks(path: Path) -> dict[bytes, int]:
    """A line is base64 of the bytes, a space, the rank; ranks count up from 0. Raises InputError."""
    ranks: dict[bytes, int] = {}
    for number, line in enumerate(read_text(path).splitlines(), 1):
        if not line.strip():
            continue
        token, rank = _rank(line, f"{path}, line {number}")
        if rank != len(ranks) or token in ranks or rank >= MAX_TOKENS:
            raise InputError(
                f"{path}, line {number}: rank {rank} of {token[:40]!r}; expected a new token, {len(ranks)}"
            )
        ranks[token] = rank
    if lacking := [b for b in range(256) if bytes([b]) not in ranks]:
        raise InputError(f"{path}: byte {lacking[0]} has no rank; every byte needs one")
    return ranks


def _rank(line: str, where: str) -> tuple[bytes, int]:
    word, _, rank = line.partition(" ")
    try:
        token = b"" if word == "=" else base64.b64decode(word, validate=True)  # "=": nothing, as Whisper has it
        if len(token) <= MAX_TOKEN_LENGTH and rank.isascii() and rank.isdigit() and len(rank) < 10:
            return token, int(rank)
    except (binascii.Error, ValueError):
        pass
    raise InputError(f"{where}: {line[:40]!r} is not base64 of a token, a space and a rank")


def split_token(token: bytes, ranks: Mapping[bytes, int], rank: int) -> tuple[bytes, bytes] | None:
    """The two tokens whose merge gives this one: what the merges of lower rank leave of it. None if they leave more."""
    parts = [token[i : i + 1] for i in range(len(token))]
    while len(parts) > 2:
        found = [ranks.get(left + right, rank) for left, right in pairwise(parts)]
        at = min(range(len(found)), key=found.__getitem__)
        if found[at] >= rank:
            return None
        parts[at : at + 2] = [parts[at] + parts[at + 1]]
    return parts[0], parts[1]


def whisper_tokens(ranks: int, size: int) -> list[str]:
    """The special tokens after so many ranks. `size` of the model's vocabulary tells how many languages it knows."""
    languages = 100 if size == ranks + 2 + 100 + len(TASKS) + len(TIMES) else 99
    words = ["startoftranscript", *LANGUAGES[:languages], *TASKS]
    return [END, *(f"<|{word}|>" for word in words), *TIMES]


def _shown(token: bytes) -> str:
    return token.decode("latin-1").translate(SHOWN)
