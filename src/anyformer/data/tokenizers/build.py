"""Build a tokenizer from data, or load one: characters, bytes, or subwords.

Every tokenizer is saved as a `tokenizer.json` in the layout of the `tokenizers` library, so that any tool reads the
same ids from it; metadata of a checkpoint is saved in files beside it.
"""

import contextvars
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers
from tokenizers import decoders, models, pre_tokenizers, processors, trainers

from ...errors import InputError, suggest
from ..io.checks import read_text
from ..io.gguf_file import GGUFFile, is_gguf_file
from .base import CODE_POINTS, END, Bytes, Characters, Tokenizer, byte_alphabet, code_points, is_equal_json
from .gguf_vocabulary import convert_from_gguf
from .marian_vocabulary import convert_marian
from .sentencepiece_model import MODEL_FILES, convert_sentencepiece
from .special_tokens import read_metadata_files
from .subwords import Subwords
from .vocabularies import convert_folder

KINDS = ("char", "byte", "bpe")
TOKENIZER_FILE = "tokenizer.json"
MAX_FILE_BYTES = 512 << 20
MAX_TRAIN_CHARACTERS = 50_000_000  # a BPE is trained on at most this much, spread evenly over the data


def build_tokenizer(spec: str, make_texts: Callable[[], Iterator[str]], vocab_size: int) -> Tokenizer:
    """Build the tokenizer that `spec` names: char, byte, bpe or the path of a tokenizer.json. Raises InputError.

    `make_texts` starts a pass over the data, in texts of bounded size; `vocab_size` is of a BPE.
    """
    if spec == "char":
        return Characters(collect_characters(make_texts()))
    if spec == "byte":
        return Bytes()
    if spec == "bpe":
        return train_bpe(subsample_texts(make_texts, MAX_TRAIN_CHARACTERS), vocab_size)
    return load_tokenizer(Path(spec))


def collect_characters(texts: Iterable[str]) -> list[str]:
    """Return all characters that occur, sorted."""
    occurs = np.zeros(CODE_POINTS, bool)
    for text in texts:
        occurs[code_points(text)] = True
    return [chr(i) for i in np.flatnonzero(occurs)]


def subsample_texts(make_texts: Callable[[], Iterator[str]], max_characters: int) -> Iterator[str]:
    """Yield the texts, or if they have more than `max_characters`, about that many at even distances."""
    total = sum(len(text) for text in make_texts())
    n_read = n_yielded = 0
    for text in make_texts():
        n_read += len(text)
        if (n_yielded + len(text)) * total <= n_read * max_characters or total <= max_characters:
            n_yielded += len(text)
            yield text


def train_bpe(texts: Iterable[str], vocab_size: int) -> Subwords:
    """Train a byte-level BPE (arXiv:1508.07909, on bytes as in GPT-2), deterministically.

    Texts should have some 64 KiB: the library holds 256 of them at once. Little text may give fewer than `vocab_size`
    ids.
    """
    if vocab_size < 257:
        raise InputError(f"a BPE vocabulary of {vocab_size} is too small: 256 bytes and {END} need at least 257")
    bpe = tokenizers.Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    options: dict[str, Any] = {"initial_alphabet": list(byte_alphabet()), "special_tokens": [END]}
    trainer = trainers.BpeTrainer(vocab_size=vocab_size, show_progress=False, **options)
    # The library reads the texts in a thread of its own, where nothing would listen to their progress.
    context, iterator = contextvars.copy_context(), iter(texts)
    bpe.train_from_iterator(iter(lambda: context.run(next, iterator, None), None), trainer)
    return Subwords(bpe.to_str())


def load_tokenizer(path: Path) -> Tokenizer:
    """Load a tokenizer.json with its metadata files, a folder with one or with an older vocabulary, one side of
    Marian's (source.spm, target.spm), or a GGUF file.

    A file that Characters or Bytes wrote is loaded as these. Raises InputError for a bad file.
    """
    if path.is_dir() and not (path / TOKENIZER_FILE).is_file():
        metadata = read_metadata_files(path)
        has_model = any((path / name).is_file() for name in MODEL_FILES)
        has_only_model = has_model and not (path / "vocab.json").is_file()
        convert = convert_sentencepiece if has_only_model else convert_folder
        return Subwords(convert(path, metadata), metadata, f"{path}/")
    path = path / TOKENIZER_FILE if path.is_dir() else path
    if not path.is_file():
        is_path = path.suffix or len(path.parts) > 1
        hint = "no such file" if is_path else f"{suggest(str(path), KINDS)}, or a path to a tokenizer.json"
        raise InputError(f"tokenizer '{path}': {hint}")
    if is_gguf_file(path):
        return tokenizer_from_files(convert_from_gguf(GGUFFile(path).metadata, str(path)), path)
    if path.suffix == ".spm":
        return Subwords(convert_marian(path), read_metadata_files(path.parent), f"{path.parent}/")
    metadata = read_metadata_files(path.parent) if path.name == TOKENIZER_FILE else {}
    return tokenizer_from_files({**metadata, TOKENIZER_FILE: read_text(path, MAX_FILE_BYTES)}, path)


def tokenizer_from_files(files: Mapping[str, str], path: Path = Path(TOKENIZER_FILE)) -> Tokenizer:
    """Build the tokenizer of tokenizer.json and its metadata files, name -> text. Raises InputError."""
    text = files[TOKENIZER_FILE]
    try:
        return _parse_own(json.loads(text)) or Subwords(text, files, f"{path.parent}/")
    except InputError:
        raise
    except Exception as error:  # the library raises bare Exception
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError(f"{path}: not a tokenizer.json of the tokenizers library ({reason})") from None


def end_texts(tokenizer: Tokenizer) -> Subwords:
    """Return the same tokenizer with the end token after every text, as its tokenizer.json then says."""
    public = tokenizers.Tokenizer.from_str(tokenizer.to_json())
    single, pair = f"$A {END}", f"$A {END} $B:1 {END}:1"
    special = [(END, public.token_to_id(END))]
    public.post_processor = processors.TemplateProcessing(single=single, pair=pair, special_tokens=special)
    return Subwords(public.to_str(), tokenizer.extra_files)


def _parse_own(data: Any) -> Tokenizer | None:
    """Return Characters or Bytes if this is the content of a file that one of them wrote."""
    if not isinstance(data, dict) or not isinstance(data.get("model"), dict):
        raise ValueError("no model in it")
    candidates: list[Tokenizer] = [Bytes()]
    vocab = data["model"].get("vocab")
    if data["model"].get("type") == "WordLevel" and all(len(c) == 1 for c in vocab):
        candidates.append(Characters(sorted(vocab, key=vocab.__getitem__)))
    return next((own for own in candidates if is_equal_json(json.loads(own.to_json()), data)), None)
