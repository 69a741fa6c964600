"""Read text files as documents in bounded memory: a document is a sequence of pieces of at most a few MiB each.

    book.txt            one document; also .md, .rst, .abc and whatever else holds text
    lines.txt           with `lines`, each line is a document
    texts.jsonl         {"text": "..."} in each line; also .parquet, .csv, .tsv, .json, with a column `text` or another
    chats.jsonl         {"messages": [{"role": "user", "content": "..."}, ...]}, with "messages" as the column

Of a conversation, and of a row with several columns, the document is a paragraph "user: ..." for each part.

A piece ends where a tokenizer would end a token in any case: before a line break that follows a visible character.
Every common byte-level BPE starts a new pre-token there, so that encoding piece by piece gives the same ids as encoding
the document at once.
"""

import hashlib
import io
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from ...errors import InputError
from ..io.checks import parse_json
from ..io.encodings import explain_encoding
from ..io.files import MAX_LINE_BYTES, import_optional, open_data, read_lines, suffix
from ..io.manifest import read_rows
from ..unusable import DuplicatePolicy, EmptyPolicy

TEXT_EXTENSIONS = (".txt", ".md", ".rst", ".abc", ".jsonl", ".parquet")  # each also with .gz added
TABLE_EXTENSIONS = (".csv", ".tsv", ".json", ".ndjson")  # read as a whole
EXPECTED = 'each line must be an object such as {"text": "..."}'
ROLE_KEYS, CONTENT_KEYS = ("role", "from", "speaker"), ("content", "value", "text")  # of a message
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


@dataclass(frozen=True)
class RowOptions:
    """How documents are read from files of rows."""

    columns: str = "text"
    """The column of the text, or several with commas between."""
    empty: EmptyPolicy = "skip"
    duplicates: DuplicatePolicy = "keep"
    lines: bool = False
    """Whether each line of a text file is a document."""

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(name.strip() for name in self.columns.split(","))


ROW_OPTIONS = RowOptions()


@dataclass
class RowCounts:
    """How many rows have been read, and what of them was left out or repeated another one."""

    total: int = 0
    empty: int = 0
    repeated: int = 0
    first_empty: str = ""
    finds_repeated: bool = True  # takes some 100 bytes of memory for each document
    seen: set[bytes] = field(default_factory=set)  # hashes of the documents

    def add(self, text: str, source: str) -> bool:
        """Count a document; return whether another one is equal to it."""
        self.total += 1
        if not text:
            self.empty, self.first_empty = self.empty + 1, self.first_empty or source
            return False
        if not self.finds_repeated:
            return False
        digest = hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=12).digest()
        is_repeated = digest in self.seen
        self.seen.add(digest)
        self.repeated += is_repeated
        return is_repeated


def text_format(path: Path) -> str:
    """Return the extension that says how to read a file: ".jsonl" for "a.JSONL.gz", ".txt" for an unknown one."""
    return suffix(path) if suffix(path) in (*TEXT_EXTENSIONS, *TABLE_EXTENSIONS) else ".txt"


def read_pieces(
    paths: Sequence[Path],
    size: int = PIECE_BYTES,
    options: RowOptions = ROW_OPTIONS,
    counts: RowCounts | None = None,
) -> Iterator[Piece]:
    """Yield the documents of these files as pieces of at most `size` bytes (at least 4). Raises InputError.

    Args:
        options: How rows are read, where files hold rows.
        counts: Are filled as the rows are read.
    """
    size, is_empty = max(size, 4), True  # 4 bytes hold any one character
    counts = RowCounts() if counts is None else counts
    for path in paths:
        for piece in _read_file(path, size, options, counts):
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


def _read_file(path: Path, size: int, options: RowOptions, counts: RowCounts) -> Iterator[Piece]:
    if text_format(path) in (".jsonl", ".parquet", *TABLE_EXTENSIONS):
        for source, row in _read_rows(path, options.names):
            text = _format_row(row, options.names, source)
            is_repeated = counts.add(text, source)
            if text and not (is_repeated and options.duplicates == "skip"):
                yield from _read_text(source, text, options.columns, size)
        return
    if options.lines:
        for source, line in read_lines(path, MAX_LINE_BYTES):
            text = line.rstrip("\r\n")
            is_repeated = counts.add(text, source)
            if text and not (is_repeated and options.duplicates == "skip"):
                yield from _read_text(source, text, options.columns, size)
        return
    with open_data(path) as file:
        start = len(file.read(len(BOM) * file.peek(len(BOM)).startswith(BOM)))
        yield from _read_document(file, str(path), size, start)


def _read_rows(path: Path, columns: tuple[str, ...]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield (place, row) of a file of rows; of JSON lines and parquet in bounded memory."""
    match text_format(path):
        case ".jsonl":
            for source, line in read_lines(path, MAX_LINE_BYTES):
                if line.strip():
                    yield source, parse_json(line, source, hint=f": {EXPECTED}")
        case ".parquet":
            yield from _read_parquet(path, columns)
        case _:
            yield from read_rows(path)


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


def _format_row(row: dict[str, Any], columns: tuple[str, ...], source: str) -> str:
    """Return the document that is a row."""
    if missing := [name for name in columns if name not in row]:
        names = ", ".join(map(repr, list(row)[:5])) or "nothing"
        raise InputError(f"{source}: no field {missing[0]!r} (has {names}): {EXPECTED}; --columns names another field")
    texts = {name: format_text(row[name], f"{source}: {name!r}") for name in columns}
    return texts[columns[0]] if len(columns) == 1 else format_parts(texts.items())


def _read_text(source: str, text: str, columns: str, size: int) -> Iterator[Piece]:
    """Cut a document that is a text into pieces."""
    try:
        return _read_document(io.BytesIO(text.encode("utf-8")), source, size)
    except UnicodeEncodeError as error:
        problem = f"{columns!r} holds half a surrogate pair at character {error.start}"
        raise InputError(f"{source}: {problem}: write both halves") from None


def format_text(value: Any, place: str) -> str:
    """Return a text as it is, the messages of a conversation or the texts of a list as paragraphs, and a missing value
    as "". Raises InputError."""
    if isinstance(value, list) and value and all(isinstance(message, dict) for message in value):
        keys = [next((key for key in names if key in value[0]), "") for names in (ROLE_KEYS, CONTENT_KEYS)]
        if not all(keys):
            raise InputError(f"{place} holds {', '.join(value[0])} in each message: expected role and content")
        role, content = keys
        return format_parts([(str(message.get(role) or ""), str(message.get(content) or "")) for message in value])
    if isinstance(value, list) and all(isinstance(turn, str) for turn in value):
        return "\n\n".join(filter(None, value))
    if not isinstance(value, str | None):
        raise InputError(f"{place} is {type(value).__name__}, not a string")
    return value or ""


def format_parts(parts: Iterable[tuple[str, str]]) -> str:
    """Return a paragraph "name: text" for each part that is not empty."""
    return "\n\n".join(f"{name}: {text}" for name, text in parts if text)


def _read_parquet(path: Path, columns: tuple[str, ...]) -> Iterator[tuple[str, dict[str, Any]]]:
    message = f'{path}: a .parquet file needs pyarrow: pip install "anyformer[parquet]"'
    pyarrow, parquet = import_optional("pyarrow", message), import_optional("pyarrow.parquet", message)
    row = 0
    try:
        with open_data(path) as file:
            table = parquet.ParquetFile(file, buffer_size=1 << 20)  # unbuffered, a column chunk would be in memory
            names = table.schema_arrow.names
            if missing := [name for name in columns if name not in names]:
                hint = "--columns names the one with the text"
                raise InputError(f"{path}: no column {missing[0]!r} (has {', '.join(names)}): {hint}")
            for rows in table.iter_batches(batch_size=256, columns=list(columns)):
                for values in rows.to_pylist():
                    yield f"{path}, row {row}", values
                    row += 1
    except pyarrow.ArrowException as error:
        raise InputError(f"{path}: damaged parquet file ({str(error).splitlines()[0]})") from None
