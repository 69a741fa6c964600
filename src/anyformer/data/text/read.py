"""Files to documents, in bounded memory: a document comes as a run of pieces of a few MiB each.

A piece ends where a tokenizer would have ended a token anyway: just before a line break that follows a visible
character. Every common byte-level BPE starts a new pre-token there, so that piece by piece gives the same tokens as
the whole document at once.
"""

import gzip
import io
import json
import re
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ...errors import InputError

TEXT_EXTENSIONS = (".txt", ".md", ".jsonl", ".parquet")  # each also with .gz added
PIECE_BYTES = 4 << 20  # bytes
MAX_LINE_BYTES = 256 << 20  # bytes of one .jsonl line, so that a wrong file cannot fill the memory
BOM = b"\xef\xbb\xbf"

# Where to cut, best first: newer tokenizers glue a line break to punctuation before it. Looked for from behind, since
# prose ends few lines without punctuation.
LAST = re.compile(rb"\n\r?[0-9A-Za-z]")
# `.*` is greedy, so each of these finds the last such place of a piece, one byte after the other.
SPACES = rb"(?<!\xc2[\x85\xa0])(?<!\xe1\x9a\x80)(?<!\xe2\x80[\x80-\x8a\xa8\xa9\xaf])(?<!\xe2\x81\x9f)(?<!\xe3\x80\x80)"
CUTS = (
    re.compile(rb".*[\x21-\x7e\x80-\xff]" + SPACES + rb"(?=\r?\n)", re.DOTALL),
    re.compile(rb".*[0-9A-Za-z](?= [0-9A-Za-z])", re.DOTALL),  # no line breaks: between two words
)


class Piece(NamedTuple):
    """A part of one document. `data` is raw bytes; `last` says that the document ends here."""

    data: bytes
    last: bool
    source: str  # the file, and the line or row in it where a file holds many documents
    start: int  # byte offset of this piece in its document

    @property
    def where(self) -> str:
        """The place of this piece for a message: 'novel.txt, byte 4194304'."""
        return f"{self.source}, byte {self.start}"


def text_format(path: Path) -> str:
    """The ending that says how to read a file: '.jsonl' for 'a.jsonl' and 'a.JSONL.gz'; '.txt' for one unknown."""
    suffixes = [s.lower() for s in path.suffixes]
    if suffixes and suffixes[-1] == ".gz":
        suffixes.pop()
    return suffixes[-1] if suffixes and suffixes[-1] in TEXT_EXTENSIONS else ".txt"


def is_text_file(path: Path) -> bool:
    """Whether the name of a file found in a folder says that it holds text."""
    return path.name.lower().removesuffix(".gz").endswith(TEXT_EXTENSIONS)


def read_pieces(paths: Sequence[Path], size: int = PIECE_BYTES) -> Iterator[Piece]:
    """The documents of these files in order, as pieces of at most `size` bytes (at least 4). Empty ones are left out.

    Raises InputError for a file that cannot be read, and where there is no text at all.
    """
    size, empty = max(size, 4), True  # 4 bytes hold any one character
    for path in paths:
        for piece in _file_pieces(path, size):
            empty = False
            yield piece
    if empty:
        more = f" and {len(paths) - 1} more" if len(paths) > 1 else ""
        raise InputError(f"{paths[0] if paths else 'no files'}{more}: empty, there is no text to read")


def decode_piece(piece: Piece) -> str:
    """The text of a piece. Raises InputError with the offending byte, its offset and a way out if it is not UTF-8."""
    try:
        return piece.data.decode("utf-8")
    except UnicodeDecodeError as e:
        line = "" if piece.start > len(BOM) else f" (line {piece.data.count(10, 0, e.start) + 1})"
        raise InputError(
            f"{piece.source}: byte 0x{piece.data[e.start]:02X} at offset {piece.start + e.start}{line} is not UTF-8: "
            "save it as UTF-8, or use --tokenizer byte"
        ) from None


def _file_pieces(path: Path, size: int) -> Iterator[Piece]:
    try:
        with gzip.open(path) if path.suffix.lower() == ".gz" else open(path, "rb") as file:
            match text_format(path):
                case ".jsonl":
                    yield from _jsonl(file, path, size)
                case ".parquet":
                    yield from _parquet(file, path, size)
                case _:
                    yield from _document(file, str(path), size, _skip_bom(file))
    except (gzip.BadGzipFile, EOFError, zlib.error) as e:
        raise InputError(f"{path}: damaged gzip file ({e}): fetch or compress it again") from None
    except OSError as e:
        raise InputError(f"{path}: cannot be read ({e.strerror or e})") from None


def _skip_bom(file: Any) -> int:
    return len(BOM) if file.read(len(BOM)) == BOM else file.seek(0)


def _document(file: Any, source: str, size: int, start: int = 0) -> Iterator[Piece]:
    """One document read from an open file; one byte more than a piece is held, to know which piece is the last."""
    held = b""
    while True:
        held += file.read(size + 1 - len(held))
        if len(held) <= size:
            break
        at = _cut(held, size)
        yield Piece(held[:at], False, source, start)
        held, start = held[at:], start + at
    if held:
        yield Piece(held, True, source, start)


def _cut(held: bytes, size: int) -> int:
    """Where to end a piece: how many of the first `size` bytes to take, never inside a UTF-8 character."""
    if found := LAST.search(held[:size][::-1]):
        return size - found.end() + 1
    for pattern in CUTS:
        if found := pattern.match(held, 0, size):
            return found.end()
    for at in range(size, size - 4, -1):
        if held[at] & 0xC0 != 0x80:  # a character starts here
            return at
    return size  # not UTF-8 in any case


def _texts(source: str, text: Any, size: int) -> Iterator[Piece]:
    """A document that came as a value of a line or row."""
    if not isinstance(text, str):
        raise InputError(f"{source}: 'text' is {type(text).__name__}, not a string")
    try:
        return _document(io.BytesIO(text.encode("utf-8")), source, size)
    except UnicodeEncodeError as e:
        raise InputError(
            f"{source}: 'text' holds half a surrogate pair at character {e.start}: write it whole"
        ) from None


def _jsonl(file: Any, path: Path, size: int) -> Iterator[Piece]:
    _skip_bom(file)
    number = 0
    while line := file.readline(MAX_LINE_BYTES + 1):
        number += 1
        if len(line) > MAX_LINE_BYTES:
            raise InputError(
                f"{path}, line {number}: longer than {MAX_LINE_BYTES >> 20} MiB: one document a line, please"
            )
        if line.strip():
            source = f"{path}, line {number}"
            yield from _texts(source, _text_field(line, source), size)


def _text_field(line: bytes, source: str) -> Any:
    wanted = 'each line must be an object such as {"text": "..."}'
    try:
        value = json.loads(line.decode("utf-8"))
    except UnicodeDecodeError as e:
        raise InputError(
            f"{source}: byte 0x{line[e.start]:02X} at offset {e.start} is not UTF-8: save it as UTF-8"
        ) from None
    except json.JSONDecodeError as e:
        raise InputError(f"{source}: not JSON ({e.msg}, column {e.colno}): {wanted}") from None
    except RecursionError:
        raise InputError(f"{source}: nested too deeply: {wanted}") from None
    if not isinstance(value, dict) or "text" not in value:
        has = f"has {', '.join(map(repr, list(value)[:5])) or 'nothing'}" if isinstance(value, dict) else "is no object"
        raise InputError(f"{source}: no field 'text' ({has}): {wanted}")
    return value["text"]


def _parquet(file: Any, path: Path, size: int) -> Iterator[Piece]:
    try:
        import pyarrow
        import pyarrow.parquet as parquet
    except ImportError:
        raise InputError(f'{path}: a .parquet file needs pyarrow: pip install "anyformer[parquet]"') from None
    row = 0
    try:
        table = parquet.ParquetFile(file, buffer_size=1 << 20)  # a buffer, else a whole column chunk is held
        names = table.schema_arrow.names
        if "text" not in names:
            raise InputError(f"{path}: no column 'text' (has {', '.join(names)}): rename the one with the text")
        for rows in table.iter_batches(batch_size=256, columns=["text"]):
            for text in rows.column(0).to_pylist():
                yield from _texts(f"{path}, row {row}", text, size)
                row += 1
    except pyarrow.ArrowException as e:
        raise InputError(f"{path}: damaged parquet file ({str(e).splitlines()[0]})") from None
