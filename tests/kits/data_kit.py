"""Helpers of the data tests: sample texts, files, and the form of errors."""

import hashlib
import json
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import strategies as st

from anyformer.data.text import read as text
from anyformer.data.tokenizers import build as tok
from anyformer.errors import InputError

if TYPE_CHECKING:
    from anyformer.data.tables.read import Table

DATA = os.environ.get("ANYFORMER_DATA")
needs_data = pytest.mark.skipif(not DATA, reason="ANYFORMER_DATA is not set: no real texts or tokenizers here")
# A recipe whose own data take seconds to read is tested on these.
SMALL_DATA = {
    "chat": Path(__file__).parent.parent / "data_files" / "chats.jsonl",
    "preference": Path(__file__).parent.parent / "data_files" / "pairs.jsonl",
    "grpo": Path(__file__).parent.parent / "data_files" / "prompts.jsonl",
    "music": Path(__file__).parent.parent / "data_files" / "tunes.abc",
    "classify": Path(__file__).parent.parent / "data_files" / "moods.csv",
    "msa": Path(__file__).parent.parent / "data_files" / "family.a3m",
    "spans": Path(__file__).parent.parent / "data_files" / "sentences.txt",
}
SAMPLE = "Now is the winter of our discontent\nMade glorious summer by this sun of York;\r\n\n  Été — 夏 🌞\n" * 20
ANY_TEXT = st.text(st.characters(codec="utf-8"), max_size=60)


def refuses(*parts: str):
    """Expect an InputError of one line that holds these parts in this order."""
    return pytest.raises(InputError, match=r"\A[^\n]*" + "[^\n]*".join(map(re.escape, parts)) + r"[^\n]*\Z")


def write(path: Path, content: str | bytes) -> Path:
    """Write a file and create the folders above it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def read_documents(*paths: Path, size: int = text.PIECE_BYTES) -> list[bytes]:
    """Return the documents of these files, each joined from its pieces."""
    documents, part = [], b""
    for piece in text.read_pieces(paths, size):
        part += piece.data
        if piece.last:
            documents.append(part)
            part = b""
    assert part == b"", "the last piece must end its document"
    return documents


def load_gpt2() -> tok.Tokenizer:
    """Load the tokenizer of GPT-2 from its two files."""
    return tok.load_tokenizer(Path(DATA or "") / "tokenizers" / "gpt2")


def make_table(rows: list[dict[str, Any]]) -> "Table":
    """Build a table of these rows."""
    from anyformer.data.tables.read import Table

    content = hashlib.sha256(json.dumps(rows).encode()).hexdigest()
    return Table(lambda: ((f"row {i}", row) for i, row in enumerate(rows)), Path(), content, self_contained=True)
