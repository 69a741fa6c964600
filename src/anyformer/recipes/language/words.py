"""The text of a language model and its vocabulary, as tokens."""

from functools import lru_cache
from pathlib import Path

from ...data.io.resolve import resolve
from ...data.text.prepare import Corpus, prepare
from ...data.tokenizers.build import KINDS, Subwords, Tokenizer
from ...data.tokenizers.build import load as load_tokenizer
from ...data.tokenizers.json_layout import of_ids
from ...events import report_progress
from .config import Text


def corpus(config: Text) -> Corpus:
    """The tokens of the config's text, prepared once; a file that has changed since is read again."""
    files = resolve(config.data) if Path(config.data).exists() else []
    stamp = tuple((str(path.resolve()), path.stat().st_mtime_ns, path.stat().st_size) for path in files)
    return prepared(config.data, config.tokenizer, config.vocab_size, config.val_fraction, stamp)


@lru_cache(maxsize=4)
def prepared(data: str, tokenizer: str, vocab_size: int, val_fraction: float, stamp: tuple) -> Corpus:
    return prepare(data, tokenizer, vocab_size, val_fraction, report_progress)


def load_tokenizer_for(config: Text) -> Tokenizer:
    if config.tokenizer == "ids":
        return Subwords(of_ids(config.padded_vocab or config.vocab_size))
    kept = Path(config.tokenizer)  # once trained, the tokenizer is a file of the checkpoint and the text is not needed
    known = config.tokenizer not in KINDS and kept.exists()
    return load_tokenizer(kept) if known else corpus(config).tokenizer
