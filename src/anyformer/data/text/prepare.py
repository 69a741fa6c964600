"""Data to a file of token ids, once: the result is kept in the cache under a hash of all that it depends on.

    cache/tokens/HASH/tokens.bin       ids, little-endian uint16 or uint32, documents separated by the end of a text
    cache/tokens/HASH/tokenizer.json
    cache/tokens/HASH/meta.json        counts, and what they are counts of

Everything is read and written in pieces, so that memory stays bounded whatever the size of the data.
"""

import contextlib
import hashlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from ...errors import InputError, suggest
from ..io.resolve import cache_dir, resolve
from ..tokenizers import build as tok
from .read import Piece, decode_piece, text_format, read_pieces

FORMAT = 1  # a change of what is stored, or how text is cut, makes a new number
BLOCK = 256 << 10  # bytes of a piece: the tables and temporary arrays of larger ones fall out of the cache
BATCH_BYTES = 4 << 20  # bytes encoded at a time, so that every core has pieces to do
SUBWORD_BLOCK = 64 << 10  # bytes of a piece for the library, which needs some hundred bytes of memory a token
STALE_SECONDS = 24 * 3600  # seconds after which what a killed process left is removed
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True, eq=False)
class Corpus:
    """Token ids on disk, with their tokenizer. The first `n_train` are for training, the rest for validation."""

    tokens: np.memmap
    tokenizer: tok.Tokenizer
    n_train: int
    hash: str
    meta: dict[str, Any]

    def split(self, name: str) -> np.ndarray:
        """A view of one part, (N,): "train", "val" or "all"."""
        parts = {"train": slice(self.n_train), "val": slice(self.n_train, None), "all": slice(None)}
        if name not in parts:
            raise InputError(f"split '{name}': {suggest(name, parts)}")
        return np.asarray(self.tokens)[parts[name]]


def prepare_corpus(
    data: str,
    tokenizer: str = "char",
    vocab_size: int = 1024,
    val_fraction: float = 0.1,
    progress: Progress | None = None,
) -> Corpus:
    """The tokens of a file, a folder or a named set, from the cache where they were made before.

    `tokenizer` is char, byte, bpe (trained here, `vocab_size` ids) or the path of a tokenizer.json; the last
    `val_fraction` of the tokens is for validation; `progress(what, done, total)` is told bytes.
    Raises InputError for what cannot be used.
    """
    files = _files(data, progress)
    if tokenizer == "bpe":
        tok.check_vocab_size(vocab_size)
    if tokenizer not in tok.KINDS:
        given = tok.load_tokenizer(Path(tokenizer))
        return replace(_corpus(files, lambda: given, identity_of(given), val_fraction), tokenizer=given)
    size = SUBWORD_BLOCK if tokenizer == "bpe" else BLOCK
    texts = partial(_texts, files, "reading", size)
    identity = f"bpe {vocab_size}" if tokenizer == "bpe" else tokenizer
    return _corpus(files, partial(tok.build_tokenizer, tokenizer, texts, vocab_size), identity, val_fraction)


def encode_corpus(
    data: str, tokenizer: tok.Tokenizer, val_fraction: float = 0.1, progress: Progress | None = None
) -> Corpus:
    """As `prepare`, with a tokenizer that is there already, such as that of a run. Shares the cache with it."""
    found = _corpus(_files(data, progress), lambda: tokenizer, identity_of(tokenizer), val_fraction)
    return replace(found, tokenizer=tokenizer)  # the cache keeps the vocabulary alone


def identity_of(tokenizer: tok.Tokenizer) -> str:
    """What its ids depend on: the vocabulary, and which of them ends a text, which may be said beside it."""
    return tokenizer.to_json() + (f"end {tokenizer.end_id}" if tokenizer.extra_files else "")


@dataclass(frozen=True)
class _Files:
    paths: Sequence[Path]
    name: str  # as the user gave it
    progress: Progress | None
    total: int  # bytes

    def stamp(self) -> list[tuple[int, int]]:
        """Sizes in bytes and times of change, to notice a file that changes while it is read."""
        return [(s.st_size, s.st_mtime_ns) for s in (path.stat() for path in self.paths)]

    def tell(self, what: str, done: int) -> None:
        if self.progress:
            self.progress(what, min(done, self.total), self.total)  # compressed files give more bytes than they have


def _files(data: str, progress: Progress | None) -> _Files:
    paths = resolve(data)
    return _Files(paths, data, progress, sum(path.stat().st_size for path in paths))


def _corpus(files: _Files, make: Callable[[], tok.Tokenizer], identity: str, val_fraction: float) -> Corpus:
    if not 0 <= val_fraction < 1:
        raise InputError(f"a validation fraction of {val_fraction} leaves nothing to train on: 0 <= fraction < 1")
    before, sha256 = files.stamp(), _digest(files)
    content = hashlib.sha256(f"{FORMAT}\n{sha256}\n{identity}".encode()).hexdigest()
    folder = cache_dir() / "tokens" / content
    found = _open(folder)
    if found is None:
        folder.parent.mkdir(parents=True, exist_ok=True)
        _sweep_out(folder.parent)
        with _temporary(folder.parent) as new:
            _build(files, make(), new, sha256)
            if files.stamp() != before:
                raise InputError(f"data '{files.name}' changed while it was read: start again when it is complete")
            found = _install(new, folder)
    tokens, tokenizer, meta = found
    # As a fraction of whole numbers: in floating point 1 - 0.9 < 0.1, and a token would change sides.
    n_train = int(len(tokens) * (1 - Fraction(str(val_fraction))))
    return Corpus(tokens, tokenizer, n_train, content, meta)


def _digest(files: _Files) -> str:
    """sha256 over the files' contents and how they are read."""
    digest, done = hashlib.sha256(), 0
    for path in files.paths:
        kind = text_format(path) + (".gz" if path.suffix.lower() == ".gz" else "")
        digest.update(f"{kind} {path.stat().st_size}\n".encode())
        try:
            with open(path, "rb") as file:
                while block := file.read(BLOCK):
                    digest.update(block)
                    files.tell("checking", done := done + len(block))
        except OSError as e:
            raise InputError(f"{path}: cannot be read ({e.strerror or e})") from None
    return digest.hexdigest()


def _open(folder: Path) -> tuple[np.memmap, tok.Tokenizer, dict[str, Any]] | None:
    """What a folder of the cache holds; None if it is not there or its parts do not agree."""
    try:
        meta = json.loads((folder / "meta.json").read_text("utf-8"))
        tokens = np.memmap(folder / "tokens.bin", dtype=np.dtype(meta["dtype"]), mode="r")
        tokenizer = tok.load_tokenizer(folder / "tokenizer.json")
    except (OSError, ValueError, KeyError, TypeError):
        return None
    whole = len(tokens) == meta["n_tokens"] and tokenizer.vocab_size == meta["vocab_size"] and meta["format"] == FORMAT
    return (tokens, tokenizer, meta) if whole else None


def _install(new: Path, folder: Path) -> tuple[np.memmap, tok.Tokenizer, dict[str, Any]]:
    """Rename a finished folder to its place; where another process was faster, take what that one made."""
    for _ in range(3):
        with contextlib.suppress(OSError):  # there is one already
            os.rename(new, folder)
        if found := _open(folder):
            return found
        with contextlib.suppress(OSError):  # a damaged one: out of the way, under a name that is not trusted
            os.rename(folder, new.with_name(f"{new.name}-damaged"))
        shutil.rmtree(new.with_name(f"{new.name}-damaged"), ignore_errors=True)
    raise OSError(f"{folder}: cannot be replaced")


@contextlib.contextmanager
def _temporary(parent: Path) -> Generator[Path]:
    folder = Path(tempfile.mkdtemp(dir=parent, prefix=".new-"))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _sweep_out(parent: Path) -> None:
    """Remove what killed processes left behind long ago."""
    for folder in parent.glob(".new-*"):
        with contextlib.suppress(OSError):
            if time.time() - max(p.stat().st_mtime for p in [folder, *folder.iterdir()]) > STALE_SECONDS:
                shutil.rmtree(folder, ignore_errors=True)


def _build(files: _Files, tokenizer: tok.Tokenizer, folder: Path, sha256: str) -> None:
    """Write tokens.bin, tokenizer.json and meta.json into an empty folder, and onto the disk."""
    dtype = np.dtype(np.uint16 if tokenizer.vocab_size <= 1 << 16 else np.uint32).newbyteorder("<")
    with open(folder / "tokens.bin", "wb") as file:  # plain writes: the pages of a memmap would count as our memory
        counts = _encode(files, tokenizer, file, dtype)
        file.flush()
        os.fsync(file.fileno())
    tokenizer.save(folder / "tokenizer.json")
    meta = {"format": FORMAT, "data": files.name, "n_files": len(files.paths), "sha256": sha256}
    meta |= {"tokenizer": tokenizer.kind, "vocab_size": tokenizer.vocab_size, "dtype": dtype.str} | counts
    (folder / "meta.json").write_text(json.dumps(meta, indent=2) + "\n", "utf-8")


def _encode(files: _Files, tokenizer: tok.Tokenizer, file: BinaryIO, dtype: np.dtype) -> dict[str, int]:
    n_tokens, n_bytes, n_documents, fresh = 0, 0, 0, True
    separator = [] if tokenizer.end_id is None else [tokenizer.end_id]
    size = BLOCK if isinstance(tokenizer, tok.Characters | tok.Bytes) else SUBWORD_BLOCK
    for batch in _batches(read_pieces(files.paths, size)):
        for piece, ids in zip(batch, _ids(tokenizer, batch), strict=True):
            if fresh:
                if n_documents:  # between documents, so that a single one has none
                    n_tokens += file.write(np.array(separator, dtype).tobytes()) // dtype.itemsize
                n_documents += 1
            n_tokens += file.write(ids.astype(dtype, copy=False).tobytes()) // dtype.itemsize
            n_bytes += len(piece.data)
            fresh = piece.last
        files.tell("encoding", n_bytes)
    return {"n_tokens": n_tokens, "n_bytes": n_bytes, "n_documents": n_documents}


def _ids(tokenizer: tok.Tokenizer, batch: list[Piece]) -> list[np.ndarray]:
    texts: list[Any] = [p.data if isinstance(tokenizer, tok.Bytes) else decode_piece(p) for p in batch]
    try:
        return tokenizer.encode_batch(texts)
    except InputError:
        for piece, text in zip(batch, texts, strict=True):  # again one by one, to say where
            try:
                tokenizer.encode(text)
            except InputError as e:
                raise InputError(f"{piece.where}: {e}") from None
        raise


def _batches(stream: Iterable[Piece]) -> Iterator[list[Piece]]:
    """Pieces in lists of about BATCH bytes."""
    batch, size = [], 0
    for piece in stream:
        batch.append(piece)
        size += len(piece.data)
        if size >= BATCH_BYTES:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _texts(files: _Files, what: str, size: int) -> Iterator[str]:
    done = 0
    for piece in read_pieces(files.paths, size):
        files.tell(what, done := done + len(piece.data))
        yield decode_piece(piece)
