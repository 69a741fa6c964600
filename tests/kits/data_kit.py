"""What the tests of the data room share."""

import hashlib
import json
import os
import re
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from hypothesis import strategies as st

from anyformer.data.tables.read import Table
from anyformer.data.text import read as text
from anyformer.data.tokenizers import build as tok
from anyformer.errors import InputError

DATA = os.environ.get("ANYFORMER_DATA")
needs_data = pytest.mark.skipif(not DATA, reason="ANYFORMER_DATA is not set: no real texts or tokenizers here")
SAMPLE = "Now is the winter of our discontent\nMade glorious summer by this sun of York;\r\n\n  Été — 夏 🌞\n" * 20
ANY_TEXT = st.text(st.characters(codec="utf-8"), max_size=60)


def refuses(*parts: str):
    """One line that holds these parts in this order."""
    return pytest.raises(InputError, match=r"\A[^\n]*" + "[^\n]*".join(map(re.escape, parts)) + r"[^\n]*\Z")


def write(path: Path, content: str | bytes) -> Path:
    """Write a file, with the folders above it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def documents(*paths: Path, size: int = text.PIECE) -> list[bytes]:
    """The documents of these files, each put together again from its pieces."""
    found, part = [], b""
    for piece in text.pieces(paths, size):
        part += piece.data
        if piece.last:
            found.append(part)
            part = b""
    assert part == b"", "the last piece must end its document"
    return found


def gpt2() -> tok.Subwords:
    """The tokenizer of GPT-2, from its two files."""
    folder = Path(DATA or "") / "tokenizers" / "gpt2"
    bpe = tokenizers.models.BPE.from_file(str(folder / "vocab.json"), str(folder / "merges.txt"))
    public = tokenizers.Tokenizer(bpe)
    public.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    public.decoder = tokenizers.decoders.ByteLevel()
    public.add_special_tokens([tok.END])
    return tok.Subwords(public.to_str())


def of_list(rows: list[dict[str, Any]]) -> Table:
    """A table of rows that are there already."""
    content = hashlib.sha256(json.dumps(rows).encode()).hexdigest()
    return Table(lambda: ((f"row {i}", row) for i, row in enumerate(rows)), Path(), content, closed=True)
