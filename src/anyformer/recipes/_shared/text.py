"""A text and its vocabulary: the config fields, the prepared corpus and the tokenizer that a config names."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from ...data.io.cache import cache_by_files, data_files
from ...data.io.sources import split_sources
from ...data.sampling import sample_evenly
from ...data.text.documents import DocumentRows
from ...data.text.mixtures import Mixture, Prepare, Source, divide_columns, prepare_mixture
from ...data.text.prepare import Corpus, prepare_corpus
from ...data.text.read import RowOptions
from ...data.text.shards import corpus_files
from ...data.tokenizers.base import ids_json
from ...data.tokenizers.build import KINDS, Subwords, Tokenizer, load_tokenizer
from ...data.unusable import DuplicatePolicy, EmptyPolicy
from ...errors import InputError
from ...forms import Form, Task
from ...inference.completion import CompletionRequest, default_prompt, generate_text, parse_request
from ...parsing import check_range, check_types, parse_dataclass, path_field
from ...recipe import Examples, FileInput

TEXT_COLUMN = "text"  # of rows, where a config names none
N_EXAMPLES, SHORT_EXAMPLE, LONG_EXAMPLE = 3, 120, 4000  # characters: preferred, and at most
MAX_EXAMPLE_TOKENS, MAX_LINE_TOKENS, MIN_SHOWN_TOKENS = 4096, 32, 6  # read for examples; of a line; left of it
USUAL_SAMPLING = {"temperature": (0.0, 2.0), "repetition_penalty": (1.0, 2.0), "tokens": (1, 1000)}
DRAFT_FIELDS = (
    "order",
    "passes",
    "revise",
    "remask",
    "remask_above",
    "edit",
    "gap",
)  # of requests to recipes that write drafts
MAX_VOCAB_SIZE = 1 << 24  # the largest public vocabularies have 2^18 ids


@dataclass(frozen=True, kw_only=True)
class VocabularyConfig:
    """Data with texts, and their vocabulary."""

    data: str = path_field()
    tokenizer: str = path_field("char", [".json"])
    """char, byte, bpe (trained on the data), ids (numbers, for a model that came without any), or the path of a
    tokenizer.json or of a folder with a public vocabulary."""
    vocab_size: int = 1024
    """Size of a BPE vocabulary that is trained on the data."""
    padded_vocab: int | None = None
    """Rows of the embedding, if there are more than the tokenizer has ids."""
    family: str = ""
    """The public family that `export --to hf` writes if it can (`model_type` of config.json): that of an imported
    checkpoint. Empty: the first that can express the model."""

    def __post_init__(self) -> None:
        check_types(self)
        check_range(self, "vocab_size", "padded_vocab", at_least=1, at_most=MAX_VOCAB_SIZE)


@dataclass(frozen=True, kw_only=True)
class TextConfig(VocabularyConfig):
    """A text and its vocabulary."""

    data: str = path_field("plays")
    """The name of a set, a file (txt, md, rst, abc, jsonl, parquet, csv, each also .gz) or a directory of such; or a
    folder or URL of shards, which come with their tokenizer and validation split (`anyformer shard`). Several are mixed
    by their weights: --data a.jsonl:3 --data b.txt:1."""
    columns: str = "text"
    """Where the data are rows: the column (or field) of the text or of a conversation's messages, or several columns
    with commas between; of several sources maybe those of each, with spaces between."""
    empty: EmptyPolicy = "skip"
    """Rows without a text: skip, error, or few: skip where they are at most 1 %."""
    duplicates: DuplicatePolicy = "keep"
    """Rows that repeat the text of another one: keep or skip."""
    val_fraction: float = 0.1
    """Share of the text, at its end, that is kept for validation."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range(self, "val_fraction", at_least=0, below=1)


@dataclass(frozen=True, kw_only=True)
class CausalTextConfig(TextConfig):
    """A text that is continued token by token, its documents and its notes. Raises InputError."""

    documents: Literal["joined", "apart", "rows"] = "joined"
    """Documents of the data (files, lines of a jsonl) in one window: joined, the model learns to ignore what is before
    an end-of-text token; or apart, each reads itself only, at positions from 0; rows: apart, and every window begins
    with a document, of which what exceeds the context is not read."""
    note_start: str = ""
    """Text between this and `note_end` is a note: it is read again when the context has slid past it. Empty: none."""
    note_end: str = ""
    """What ends a note; it may be a line break."""
    note_tokens: int = 32
    """Tokens of the longest note, its marks included; what is not ended by then is text like any other."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range(self, "note_tokens", at_least=3, at_most=1 << 20)
        if bool(self.note_start) != bool(self.note_end):
            raise InputError("note_start is what begins a note, and note_end what ends it: both are needed, or neither")


def load_corpus(config: Any) -> Corpus:
    """Return the tokens of the config's text, prepared once; a file that has changed is read again."""
    rows = RowOptions(config.columns or TEXT_COLUMN, config.empty, config.duplicates)
    return _prepare(config.data, config.tokenizer, config.vocab_size, config.val_fraction, rows)


@cache_by_files(lambda data, tokenizer, *_: [*corpus_files(data), *data_files(tokenizer)])
def _prepare(data: str, tokenizer: str, vocab_size: int, val_fraction: float, rows: RowOptions) -> Corpus:
    return prepare_corpus(data, tokenizer, vocab_size, val_fraction, rows)


def load_mixture(config: Any) -> Mixture:
    """Return the tokens of all sources of the config's text, prepared once; files that have changed are read again."""
    has_rows = isinstance(config, CausalTextConfig) and config.documents == "rows"
    if len(split_sources(config.data)) == 1:
        return (DocumentRows if has_rows else Mixture)((Source(load_corpus(config)),))
    if has_rows:
        raise InputError("documents is rows, which takes one source: name one, or use --documents apart")
    rows = RowOptions(config.columns or TEXT_COLUMN, config.empty, config.duplicates)
    return prepare_sources(config.data, config.tokenizer, config.vocab_size, config.val_fraction, rows, prepare_corpus)


def list_files(data: str, tokenizer: str, *_: Any) -> list[Path]:
    """Return the files of all sources of a text, and of its tokenizer."""
    files = [path for source in split_sources(data) for path in corpus_files(source.name)]
    return [*files, *data_files(tokenizer)]


@cache_by_files(list_files)
def prepare_sources(
    data: str, tokenizer: str, vocab_size: int, val_fraction: float, rows: RowOptions, prepare: Prepare
) -> Mixture:
    return prepare_mixture(split_sources(data), tokenizer, vocab_size, val_fraction, rows, prepare)


def load_config_tokenizer(config: VocabularyConfig, train: Callable[[], Tokenizer], spec: str = "") -> Tokenizer:
    """Return the tokenizer that a config names.

    Args:
        config: Its `padded_vocab` or `vocab_size` says how many ids there are for "ids".
        train: Builds the tokenizer from the data.
        spec: "ids", the path of a tokenizer, or whatever `train` understands; empty: the config's `tokenizer`. A
            trained tokenizer is a file of the checkpoint, so that a model is loaded without its data.
    """
    spec = spec or config.tokenizer
    if spec == "ids":
        return Subwords(ids_json(config.padded_vocab or config.vocab_size))
    if spec not in KINDS and Path(spec).exists():
        return load_tokenizer(Path(spec))
    return train()


def load_text_tokenizer(config: Any) -> Tokenizer:
    """Return the tokenizer of a text: from its file, or that of the prepared corpus."""
    return load_config_tokenizer(config, lambda: load_mixture(config).tokenizer)


# --- requests ---


def parse_completion(request: dict[str, Any], tokenizer: Tokenizer) -> CompletionRequest:
    """Return a request to continue texts. Raises InputError."""
    refuse_draft_fields(request)
    return parse_request(request, tokenizer)


def refuse_draft_fields(request: dict[str, Any]) -> None:
    """Raise InputError where a model that writes no drafts is asked for one."""
    if names := [name for name in DRAFT_FIELDS if name in request]:
        raise InputError(
            f"request: {names[0]}: this model was not trained to fill gaps in any order: anyformer train diffusion, or "
            "of pairs of texts mask_predict"
        )


# --- examples ---


def first_tokens(tokenizer: Tokenizer) -> str:
    """Return a text that the vocabulary can encode, to answer where there are no data."""
    return tokenizer.decode(range(min(8, tokenizer.vocab_size)))


def choose_examples(texts: Sequence[str]) -> list[int]:
    """Return the indices of a few texts, at equal distances, to show a model with: of short ones if there are any."""
    short = [i for i, text in enumerate(texts) if len(text) <= SHORT_EXAMPLE]
    return sample_evenly(np.array(short or range(len(texts))), N_EXAMPLES).tolist()


def hide_tokens(text: Mixture, mark: str, n_hidden: int, context: int) -> Examples:
    """Take lines of the validation split, of at most `context` tokens, each with some tokens in its middle replaced by
    `mark`."""
    tokenizer, lines = text.tokenizer, []
    for source in text.sources:
        tokens = np.asarray(source.corpus.split("val")[: MAX_EXAMPLE_TOKENS // len(text.sources)])
        separator = text.separator
        documents = [tokens] if separator is None else np.split(tokens, np.flatnonzero(tokens == separator))
        texts = [tokenizer.decode(ids[ids != separator].tolist()) for ids in documents]
        lines += [line for text in texts for line in text.split("\n")][1:-1]
    rows = [tokenizer.encode(line.strip())[: min(context, MAX_LINE_TOKENS)].tolist() for line in lines]
    hidden = [row for row in (hide_middle(tokenizer, ids, mark, n_hidden) for ids in rows) if row is not None]
    chosen = [hidden[i] for i in choose_examples([text for text, _ in hidden])] if hidden else []
    return Examples({"input": [text for text, _ in chosen]}, [line for _, line in chosen]) if chosen else Examples()


def hide_middle(tokenizer: Tokenizer, ids: list[int], mark: str, n_hidden: int) -> tuple[str, str] | None:
    """Return the text of the ids with some in its middle replaced, and the text itself; None if it is too short."""
    line, middle = tokenizer.decode(ids), (len(ids) - n_hidden) // 2
    before, until = tokenizer.decode(ids[:middle]), tokenizer.decode(ids[: middle + n_hidden])
    if len(ids) < n_hidden + MIN_SHOWN_TOKENS or not (line.startswith(until) and until.startswith(before)):
        return None
    return f"{before}{mark}{line[len(until) :]}", line


# --- files of texts and prompts ---


def file_input(model: Any, config: Any) -> FileInput:
    columns = divide_columns(config.columns or TEXT_COLUMN, len(split_sources(config.data)))[0]
    return FileInput((columns.partition(",")[0].strip(),), tsv_quotes=False)


def form(model: Any, config: Any) -> Form:
    settings: dict[str, Any] = {
        "usual": USUAL_SAMPLING,
        "omit": ("notes",) if model.tokenizer.has_chat_template else ("messages", "notes"),
    }
    prompts, chats = (default_prompt(model.tokenizer),), ([{"role": "user", "content": greet(model.tokenizer)}],)
    tasks = [
        Task("Continue a text", "prompt", CompletionRequest, "completions", "prompt", examples=prompts, **settings)
    ]
    if model.tokenizer.has_chat_template:
        tasks.insert(
            0, Task("Chat", "messages", CompletionRequest, "completions", "messages", examples=chats, **settings)
        )
    return Form(tuple(tasks))


def greet(tokenizer: Tokenizer) -> str:
    """Return a message that the vocabulary can encode."""
    try:
        tokenizer.encode("Hello!")
    except InputError:
        return first_tokens(tokenizer)
    return "Hello!"


def predict_batch(model: Any, inputs: Sequence[Any], settings: dict[str, Any]) -> list[dict[str, Any]]:
    """Continue prompts in one batch: for each its first sample and, if there are several, all "samples"."""
    request = parse_dataclass(CompletionRequest, settings | {"prompt": inputs}, "request")
    results = [completion.result() for completion in list(generate_text(model, model.tokenizer, request))[-1]]
    groups = [results[i : i + request.samples] for i in range(0, len(results), request.samples)]
    return [group[0] | ({"samples": group} if len(group) > 1 else {}) for group in groups]
