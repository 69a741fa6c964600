"""Read text files as documents in bounded memory: a document is a sequence of pieces of at most a few MiB each.

A piece ends where a tokenizer would end a token in any case: before a line break that follows a visible character.
Every common byte-level BPE starts a new pre-token there, so that encoding piece by piece gives the same ids as encoding
the document at once.
"""

import io
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ...errors import InputError
from ..io.checks import parse_json
from ..io.encodings import explain_encoding
from ..io.files import MAX_LINE_BYTES, import_optional, open_data, read_lines, suffix

TEXT_EXTENSIONS = (".txt", ".md", ".jsonl", ".parquet")  # each also with .gz added
PIECE_BYTES = 4 << 20
BOM = b"\xef\xbb\xbf"

# The best place to cut: newer tokenizers join a line break to punctuation before it. It is searched for from the end,
# since few lines of prose end without punctuation.
REVERSED_CUT = re.compile(rb"\n\r?[0-9A-Za-z]")
# `.*` is greedy, so that each pattern matches the last such place of a piece; the patterns are tried in this order.
NOT_AFTER_SPACE = (
    rb"(?<!\xc2[\x85\xa0])(?<!\xe1\x9a\x80)(?<!\xe2\x80[\x80-\x8a\xa8\xa9\xaf])(?<!\xe2\x81\x9f)(?<!\xe3\x80\x80)"
)
CUTS = (
    re.compile(rb".*[\x21-\x7e\x80-\xff]" + NOT_AFTER_SPACE + rb"(?=\r?\n)", re.DOTALL),
    re.compile(rb".*[0-9A-Za-z](?= [0-9A-Za-z])", re.DOTALL),  # no line breaks: between two words
)


class Piece(NamedTuple):
    """A part of one document: raw bytes, and whether the document ends with them."""

    data: bytes
    last: bool
    source: str  # the file, and the line or row in it where a file holds many documents
    start: int  # byte offset of this piece in its document


def text_format(path: Path) -> str:
    """Return the extension that says how to read a file: ".jsonl" for "a.JSONL.gz", ".txt" for an unknown one."""
    return suffix(path) if suffix(path) in TEXT_EXTENSIONS else ".txt"


def read_pieces(paths: Sequence[Path], size: int = PIECE_BYTES) -> Iterator[Piece]:
    """Yield the documents of these files as pieces of at most `size` bytes (at least 4). Raises InputError."""
    size, is_empty = max(size, 4), True  # 4 bytes hold any one character
    for path in paths:
        for piece in _read_file(path, size):
            is_empty = False
            yield piece
    if is_empty:
        others = f" and {len(paths) - 1} more" if len(paths) > 1 else ""
        raise InputError(f"{paths[0] if paths else 'no files'}{others}: empty, there is no text to read")


def decode_piece(piece: Piece) -> str:
    """Decode a piece. Raises InputError with the byte that is not UTF-8 and its offset."""
    try:
        return piece.data.decode("utf-8")
    except UnicodeDecodeError as error:
        line = "" if piece.start > len(BOM) else f" (line {piece.data.count(10, 0, error.start) + 1})"
        place = f"byte 0x{piece.data[error.start]:02X} at offset {piece.start + error.start}{line}"
        hint = f"{explain_encoding(piece.data, piece.source)}, or use --tokenizer byte"
        raise InputError(f"{piece.source}: {place} is not UTF-8: {hint}") from None


def _read_file(path: Path, size: int) -> Iterator[Piece]:
    match text_format(path):
        case ".jsonl":
            for source, line in read_lines(path, MAX_LINE_BYTES):
                if line.strip():
                    yield from _read_value(source, _parse_text_field(line, source), size)
        case ".parquet":
            yield from _read_parquet(path, size)
        case _:
            with open_data(path) as file:
                start = len(BOM) if file.read(len(BOM)) == BOM else file.seek(0)
                yield from _read_document(file, str(path), size, start)


def _read_document(file: Any, source: str, size: int, start: int = 0) -> Iterator[Piece]:
    """Cut an open file into pieces. One byte beyond a piece is buffered, to know which piece is the last."""
    buffer = b""
    while True:
        buffer += file.read(size + 1 - len(buffer))
        if len(buffer) <= size:
            break
        end = _find_cut(buffer, size)
        yield Piece(buffer[:end], False, source, start)
        buffer, start = buffer[end:], start + end
    if buffer:
        yield Piece(buffer, True, source, start)


def _find_cut(buffer: bytes, size: int) -> int:
    """Return how many of the first `size` bytes to take, never ending inside of a UTF-8 character."""
    if match := REVERSED_CUT.search(buffer[:size][::-1]):
        return size - match.end() + 1
    for pattern in CUTS:
        if match := pattern.match(buffer, 0, size):
            return match.end()
    starts = (end for end in range(size, size - 4, -1) if buffer[end] & 0xC0 != 0x80)  # where a character starts
    return next(starts, size)  # not UTF-8 in any case


def _read_value(source: str, text: Any, size: int) -> Iterator[Piece]:
    """Cut a document that is a value of a line or row into pieces."""
    if not isinstance(text, str):
        raise InputError(f"{source}: 'text' is {type(text).__name__}, not a string")
    try:
        return _read_document(io.BytesIO(text.encode("utf-8")), source, size)
    except UnicodeEncodeError as error:
        problem = f"'text' holds half a surrogate pair at character {error.start}"
        raise InputError(f"{source}: {problem}: write both halves") from None


def _parse_text_field(line: str, source: str) -> Any:
    expected = 'each line must be an object such as {"text": "..."}'
    value = parse_json(line, source, hint=f": {expected}")
    if "text" not in value:
        names = ", ".join(map(repr, list(value)[:5])) or "nothing"
        raise InputError(f"{source}: no field 'text' (has {names}): {expected}")
    return value["text"]


def _read_parquet(path: Path, size: int) -> Iterator[Piece]:
    message = f'{path}: a .parquet file needs pyarrow: pip install "anyformer[parquet]"'
    pyarrow, parquet = import_optional("pyarrow", message), import_optional("pyarrow.parquet", message)
    row = 0
    try:
        with open_data(path) as file:
            table = parquet.ParquetFile(file, buffer_size=1 << 20)  # unbuffered, a column chunk would be in memory
            names = table.schema_arrow.names
            if "text" not in names:
                raise InputError(f"{path}: no column 'text' (has {', '.join(names)}): rename the one with the text")
            for rows in table.iter_batches(batch_size=256, columns=["text"]):
                for text in rows.column(0).to_pylist():
                    yield from _read_value(f"{path}, row {row}", text, size)
                    row += 1
    except pyarrow.ArrowException as error:
        raise InputError(f"{path}: damaged parquet file ({str(error).splitlines()[0]})") from None
