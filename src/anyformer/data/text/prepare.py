"""Convert data to a file of token ids, once: the result is cached under a hash of everything that it depends on.

    cache/tokens/HASH/tokens.bin       ids, little-endian uint16 or uint32, an end-of-text token between documents
    cache/tokens/HASH/tokenizer.json
    cache/tokens/HASH/meta.json        counts, and of what

Everything is read and written in pieces, so that memory is bounded whatever the size of the data.
"""

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import cached_property, partial
from pathlib import Path
from typing import Any, cast

import numpy as np

from ...errors import InputError
from ...events import report_progress
from ..io.cache import build_directory, cache_dir, file_stamps, has_directory
from ..io.files import open_data
from ..io.resolve import resolve
from ..sampling import select_split
from ..tokenizers import build as tok
from ..tokenizers.base import dtype_for, encode_each
from ..unusable import check_empty, report_duplicates
from .read import ROW_OPTIONS, Piece, RowCounts, RowOptions, decode_piece, read_pieces, text_format
from .shard_writer import ShardWriter
from .shards import MAX_ARRAY_TOKENS, ShardedTokens, ShardIndex, Tokens, holds_shards, open_shards

FORMAT = 1  # increment when what is stored, or where text is cut, changes
BLOCK = 256 << 10  # bytes of a piece: tables and temporary arrays of larger pieces do not fit into the CPU cache
SUBWORD_BLOCK = 64 << 10  # for the tokenizers library, which needs some hundred bytes of memory a token
BATCH_BYTES = 4 << 20  # encoded at a time, so that every core has pieces to work on


@dataclass(frozen=True, eq=False)
class Corpus:
    """Token ids on disk, with their tokenizer. The first `n_train` are for training, the others for validation."""

    tokens: np.memmap | ShardedTokens
    tokenizer: tok.Tokenizer
    n_train: int
    hash: str
    meta: dict[str, Any]

    def split(self, name: str) -> Tokens:
        """Return a view of the tokens of "train", "val" or "all": (N,)."""
        slices = {"train": slice(self.n_train), "val": slice(self.n_train, None), "all": slice(None)}
        tokens = self.tokens if isinstance(self.tokens, ShardedTokens) else np.asarray(self.tokens)
        return tokens[select_split(name, slices)]

    @property
    def n_documents(self) -> int:
        return self.meta["n_documents"]

    @property
    def separator(self) -> int | None:
        """The id between documents; None if the tokenizer has no end-of-text token."""
        return self.tokenizer.end_id


def write_shards(
    data: str,
    location: str,
    tokenizer: str = "bpe",
    vocab_size: int = 1024,
    val_fraction: float = 0.1,
    rows: RowOptions = ROW_OPTIONS,
    shard_tokens: int = MAX_ARRAY_TOKENS,
) -> ShardIndex:
    """Write the tokens of a file, a folder or a named set as shards, into a folder or to a URL. Raises InputError.

    Nothing is kept in memory but one shard, and with `duplicates` "skip" a hash of each document. The index is written
    last: without it the folder holds no corpus.

    Args:
        location: a folder, s3://bucket/corpus or another URL of fsspec.
        shard_tokens: of each shard but the last.
        others: as of `prepare_corpus`.
    """
    files = TextFiles(data, rows)
    stamps = file_stamps(files.paths)
    make_texts = partial(files.read_texts, SUBWORD_BLOCK if tokenizer == "bpe" else BLOCK)
    writer = ShardWriter(location, lambda: tok.build_tokenizer(tokenizer, make_texts, vocab_size), shard_tokens)
    counts = _encode(files, writer.tokenizer, writer, writer.dtype, RowCounts(finds_repeated=rows.duplicates == "skip"))
    if file_stamps(files.paths) != stamps:
        raise InputError(f"data '{files.name}' changed while it was read: start again when it is complete")
    files.report_rows(counts)
    return writer.finish(_count_training(counts["n_tokens"], val_fraction), counts["n_documents"])


def prepare_corpus(
    data: str,
    tokenizer: str = "char",
    vocab_size: int = 1024,
    val_fraction: float = 0.1,
    rows: RowOptions = ROW_OPTIONS,
) -> Corpus:
    """Return the tokens of a file, a folder or a named set, from the cache if it has them. Raises InputError.

    Data in shards (`shards.holds_shards`) come with their tokenizer and splits.

    Args:
        tokenizer: char, byte, bpe (trained on the data, with `vocab_size` ids) or the path of a tokenizer.json.
        val_fraction: the fraction of the tokens, at the end, that is for validation.
        rows: how documents are read from files of rows.
    """
    if holds_shards(data):
        tokens, own, index, digest = open_shards(data, tokenizer)
        return Corpus(tokens, own, index.n_train, digest, {"sha256": digest, "n_documents": index.n_documents})
    files = TextFiles(data, rows)
    if tokenizer not in tok.KINDS:
        loaded = tok.load_tokenizer(Path(tokenizer))
        # Token ids depend on the vocabulary, and on the end-of-text id, which extra files may change.
        identity = loaded.to_json() + (f"end {loaded.end_id}" if loaded.extra_files else "")
        return replace(_prepare(files, lambda: loaded, identity, val_fraction), tokenizer=loaded)
    identity = f"bpe {vocab_size}" if tokenizer == "bpe" else tokenizer
    size = SUBWORD_BLOCK if tokenizer == "bpe" else BLOCK
    make = partial(tok.build_tokenizer, tokenizer, partial(files.read_texts, size), vocab_size)
    return _prepare(files, make, identity, val_fraction)


class TextFiles:
    """The files that `data` names."""

    def __init__(self, data: str, rows: RowOptions):
        self.name, self.paths, self.rows = data, resolve(data), rows
        self.n_bytes = sum(path.stat().st_size for path in self.paths)

    def report(self, task: str, done: int) -> None:
        report_progress(task, min(done, self.n_bytes), self.n_bytes)  # compressed files hold more than their size

    def report_rows(self, meta: dict[str, Any]) -> None:
        """Say how many rows are empty or repeated. Raises InputError where too many are empty."""
        total, empty, first, repeated = meta.get("rows") or (0, 0, "", 0)
        check_empty([first] * empty, total, self.rows.empty, "documents are empty")
        report_duplicates(repeated, total, self.rows.duplicates, f"data '{self.name}'", "documents")

    def read_texts(self, size: int) -> Iterator[str]:
        done = 0
        for piece in read_pieces(self.paths, size, self.rows):
            self.report("reading", done := done + len(piece.data))
            yield decode_piece(piece)

    @cached_property
    def sha256(self) -> str:
        """A hash of the contents and formats of the files."""
        digest, done = hashlib.sha256(), 0
        for path in self.paths:
            kind = text_format(path) + (".gz" if path.suffix.lower() == ".gz" else "")
            digest.update(f"{kind} {path.stat().st_size}\n".encode())
            with open_data(path, decompress=False) as file:
                while block := file.read(BLOCK):
                    digest.update(block)
                    self.report("checking", done := done + len(block))
        return digest.hexdigest()


def _prepare(files: TextFiles, make: Callable[[], tok.Tokenizer], identity: str, val_fraction: float) -> Corpus:
    stamps, sha256 = file_stamps(files.paths), files.sha256
    if (options := (files.rows.columns, files.rows.duplicates)) != ("text", "keep"):
        identity += f"\n{options}"
    identity += "\nlines" * files.rows.lines
    content = hashlib.sha256(f"{FORMAT}\n{sha256}\n{identity}".encode()).hexdigest()
    folder = cache_dir() / "tokens" / content
    if not has_directory(folder):
        with build_directory(folder) as new:
            _build(files, make(), new, sha256)
            if file_stamps(files.paths) != stamps:
                raise InputError(f"data '{files.name}' changed while it was read: start again when it is complete")
    tokens, tokenizer, meta = _read_cache(folder)
    files.report_rows(meta)
    return Corpus(tokens, tokenizer, _count_training(len(tokens), val_fraction), content, meta)


def _count_training(n_tokens: int, val_fraction: float) -> int:
    # As a fraction of whole numbers: in floating point 1 - 0.9 < 0.1, which would move a token to the other split.
    return int(n_tokens * (1 - Fraction(str(val_fraction))))


def _read_cache(folder: Path) -> tuple[np.memmap, tok.Tokenizer, dict[str, Any]]:
    meta = json.loads((folder / "meta.json").read_text("utf-8"))
    tokens = np.memmap(folder / "tokens.bin", dtype=np.dtype(meta["dtype"]), mode="r")
    return tokens, tok.load_tokenizer(folder / "tokenizer.json"), meta


def _build(files: TextFiles, tokenizer: tok.Tokenizer, folder: Path, sha256: str) -> None:
    dtype = np.dtype(dtype_for(tokenizer.vocab_size)).newbyteorder("<")
    with open(folder / "tokens.bin", "wb") as file:  # not a memmap, whose pages count as memory of this process
        counts = _encode(files, tokenizer, file, dtype)
    tokenizer.save(folder / "tokenizer.json")
    meta = {"format": FORMAT, "data": files.name, "n_files": len(files.paths), "sha256": sha256}
    meta |= {"tokenizer": tokenizer.kind, "vocab_size": tokenizer.vocab_size, "dtype": dtype.str} | counts
    (folder / "meta.json").write_text(json.dumps(meta, indent=2) + "\n", "utf-8")


def _encode(
    files: TextFiles, tokenizer: tok.Tokenizer, file: Any, dtype: np.dtype, counts: RowCounts | None = None
) -> dict[str, Any]:
    n_bytes, n_documents, starts_document, counts = 0, 0, True, RowCounts() if counts is None else counts
    separator = b"" if tokenizer.end_id is None else np.array(tokenizer.end_id, dtype).tobytes()
    is_bytes, is_table = isinstance(tokenizer, tok.Bytes), isinstance(tokenizer, tok.Characters | tok.Bytes)
    for batch in _batch_pieces(read_pieces(files.paths, BLOCK if is_table else SUBWORD_BLOCK, files.rows, counts)):
        texts: list[Any] = [piece.data if is_bytes else decode_piece(piece) for piece in batch]
        places = (f"{piece.source}, byte {piece.start}" for piece in batch)
        for piece, ids in zip(batch, encode_each(tokenizer, texts, places), strict=True):
            if starts_document:
                file.write(separator if n_documents else b"")  # between documents, so that a single one has none
                n_documents += 1
            file.write(ids.astype(dtype, copy=False).tobytes())
            n_bytes += len(piece.data)
            starts_document = piece.last
        files.report("encoding", n_bytes)
    rows = counts.total, counts.empty, counts.first_empty, counts.repeated
    return {"n_tokens": file.tell() // dtype.itemsize, "n_bytes": n_bytes, "n_documents": n_documents, "rows": rows}


def _batch_pieces(stream: Iterable[Piece]) -> Iterator[list[Piece]]:
    """Collect pieces in lists of about BATCH_BYTES."""
    batch, size = [], 0
    for piece in stream:
        batch.append(piece)
        size += len(piece.data)
        if size >= BATCH_BYTES:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def shorten_documents(corpus: Corpus, limit: int, policy: str) -> tuple[Corpus, int, int]:
    """Return a corpus without what exceeds `limit` tokens of a document ("cut"), or without such documents (any other
    policy), how many they are, and the tokens of the longest. Separators stay."""
    tokens = np.asarray(corpus.tokens)
    ends = np.flatnonzero(tokens == corpus.separator) if corpus.separator is not None else np.zeros(0, np.int64)
    starts, stops = np.concatenate([[0], ends + 1]), np.concatenate([ends, [len(tokens)]])
    is_long = stops - starts > limit
    keep = np.ones(len(tokens), bool)
    for start, stop in zip(starts[is_long].tolist(), stops[is_long].tolist()):
        keep[start + limit if policy == "cut" else start : stop if policy == "cut" else stop + 1] = False
    digest = hashlib.sha256(f"{corpus.hash} {limit} {policy}".encode()).hexdigest()
    n_documents = corpus.n_documents - (0 if policy == "cut" else int(is_long.sum()))
    meta = corpus.meta | {"n_documents": n_documents, "n_tokens": int(keep.sum())}
    n_train = int(keep[: corpus.n_train].sum())
    shorter = Corpus(cast(Any, tokens[keep]), corpus.tokenizer, n_train, digest, meta)
    return shorter, int(is_long.sum()), int((stops - starts).max())
