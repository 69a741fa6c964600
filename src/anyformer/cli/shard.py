"""anyformer shard DATA --to FOLDER|URL: write the tokens of data that are larger than a machine as shards."""

import json
from dataclasses import asdict, dataclass
from typing import Annotated

from ..data.text.read import RowOptions
from ..data.unusable import DuplicatePolicy, EmptyPolicy
from ..parsing import check_range
from .flags import POSITIONAL, JsonFlag
from .terminal import print_status, show_progress

MAX_VOCAB_SIZE, MAX_SHARD_TOKENS = 1 << 24, 1 << 28


@dataclass(frozen=True, kw_only=True)
class Command:
    """Turn texts into shards of tokens, which `language`, `masked` and `spans` train on
    from where they are: a folder, or a bucket. The tokenizer comes with them. Memory
    does not grow with the data; index.json is written when all shards are complete."""

    data: Annotated[str, POSITIONAL]
    """A file or folder of texts or rows, the name of a set, a URL, or owner/name on the Hugging Face hub."""
    to: str
    """A new folder, or a URL of fsspec: s3://bucket/corpus needs anyformer[s3], gs:// anyformer[gs]."""
    tokenizer: str = "bpe"
    """char, byte, bpe (trained on the data), or the path of a tokenizer.json or of a public vocabulary."""
    vocab_size: int = 32768
    """Size of a BPE vocabulary that is trained on the data."""
    columns: str = "text"
    """Where the data are rows: the column of the text, or several with commas between."""
    empty: EmptyPolicy = "skip"
    """Rows without a text: skip, error, or few: skip where they are at most 1 %."""
    duplicates: DuplicatePolicy = "keep"
    """Rows that repeat the text of another one: keep, or skip, which takes 100 bytes of memory for each row."""
    val_fraction: float = 0.01
    """Share of the tokens, at the end, that is for validation."""
    shard_tokens: int = 1 << 25
    """Tokens of a shard: it is fetched as one, and an update reads from 8 or more."""
    json: JsonFlag = False

    def __post_init__(self) -> None:
        check_range(self, "val_fraction", at_least=0, below=1)
        check_range(self, "vocab_size", at_least=1, at_most=MAX_VOCAB_SIZE)
        check_range(self, "shard_tokens", at_least=1, at_most=MAX_SHARD_TOKENS)


def run(options: Command) -> None:
    from ..data.io.remote import fetch_data
    from ..data.text.prepare import write_shards

    rows = RowOptions(options.columns, options.empty, options.duplicates)
    with show_progress():
        index = write_shards(
            fetch_data(options.data),
            options.to,
            options.tokenizer,
            options.vocab_size,
            options.val_fraction,
            rows,
            options.shard_tokens,
        )
    if options.json:
        facts = {name: value for name, value in asdict(index).items() if name != "shards"}
        print(json.dumps({"to": options.to, "n_shards": len(index.shards)} | facts))
        return
    sizes = f"{index.n_tokens:,} tokens of {index.n_documents:,} documents in {len(index.shards):,} shards"
    print_status(f"{sizes} · {index.vocab_size:,} ids · {index.n_tokens - index.n_train:,} for validation")
    print_status(f"train  anyformer train {options.to}")
