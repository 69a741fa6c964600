"""Diffusion: hide any share of a text and predict what is hidden, so that a draft is written in any order.

raw    text files or a set by name, as characters, bytes or BPE; with `lines`, one example a line (a solved grid)
nodes  tokens, with a position; a share of them hidden, drawn anew from (0, 1) for each row
edges  full: every node reads every other, except padding
head   a logit for each token of the vocabulary
loss   cross-entropy of the hidden tokens, each row divided by its share: a bound on the nats of the text

    anyformer train diffusion --data my.txt                      text: gaps filled, drafts revised
    anyformer train diffusion --data grids.txt --lines           a grid of 6 x 6 as 36 digits a line
    anyformer predict RUN "53__7____6__195"                      a gap is one `_` for each token
    anyformer predict RUN "The ____ sat" --request '{"passes": 2, "revise": 1}'

Masked diffusion (MDLM, 2406.07524; LLaDA, 2502.09992); the same bound is that of any-order models (2110.02037).
"""

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..data.io.cache import cache_by_files
from ..data.sampling import sample_indices, select_split, split_by_mask
from ..data.text.batches import IGNORE_INDEX
from ..data.text.masking import hide_shares, uniform
from ..data.text.mixtures import Mixture, Source
from ..data.text.prepare import Corpus, prepare_corpus
from ..data.text.read import RowOptions
from ..data.text.shards import corpus_files, holds_shards
from ..data.tokenizers.base import Tokenizer
from ..data.tokenizers.masked_tokenizer import MaskedTokenizer
from ..errors import InputError
from ..forms import Form, Task
from ..inference.completion import sample_seed
from ..inference.drafts import Draft, DraftSettings, write_drafts
from ..metrics import describe_bound
from ..model import LMHead, initialize
from ..model.kernels.cross_entropy import cross_entropy
from ..parsing import check_range, parse_dataclass, path_field
from ..recipe import BatchStream, Examples, Figure, LensView, SizeOption, StreamState, advance_stream, init_stream
from ..training.config import TrainConfig
from ._shared.encoder import EncoderConfig, TextEncoder, as_list, export_graph  # noqa: F401
from ._shared.presets import MUON, TINY_TRAIN, make_model_config, make_modern_config
from ._shared.sizes import Size, offer_sizes
from ._shared.text import N_EXAMPLES, TEXT_COLUMN, file_input, first_tokens, hide_tokens, load_config_tokenizer  # noqa: F401
from ._shared.text_lenses import lens_tokens, parse_request
from ._shared.trivial_baselines import Baselines, score_token_frequencies

GAP = "_"
MAX_SAMPLES, MAX_TOKENS = 1000, 1 << 20  # of a request


@dataclass(frozen=True, kw_only=True)
class Config(EncoderConfig):
    """An encoder, its text and its training."""

    data: str = path_field("plays")
    """The name of a set, a file (txt, md, jsonl, parquet, csv, each also .gz) or a directory of such."""
    columns: str = TEXT_COLUMN
    """Where the data are rows: the column (or field) of the text."""
    tokenizer: str = path_field("char", [".json"])
    """char, byte, bpe (trained on the data), or the path of a tokenizer.json."""
    lines: bool = False
    """Each line of a text file, or row of a jsonl file or table, is an example by itself, not a part of one text."""
    val_fraction: float = 0.1
    """Kept for validation: the end of the text."""
    tied: bool = True
    """The head reads the embedding's own weights (1608.05859)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range(self, "val_fraction", at_least=0, below=1)


TRAIN: dict[str, Any] = {"lr": 4e-3, "weight_decay": 0.01, **MUON}
SIZES = (Size(64, 2, 32, 0), Size(128, 4, 32, 800))  # of --minutes
PRESETS = {
    # seconds: for tests
    "tiny": Config(model=make_model_config(32, 2, 2, 32), train=TINY_TRAIN),
    # minutes on two cores
    "small": Config(
        model=make_modern_config(128, 4, 4, 128, init="zero"), train=TrainConfig(steps=2000, batch=16, **TRAIN)
    ),
    # words of 84 novels: a gap is of any length
    "novels": Config(
        data="eltec",
        tokenizer="bpe",
        vocab_size=8192,
        val_fraction=0.01,
        model=make_modern_config(128, 4, 4, 128, init="zero"),
        train=TrainConfig(steps=4000, batch=16, **TRAIN),
    ),
    # grids of up to 81 cells, one a line: 5 minutes on two cores
    "grid": Config(
        lines=True,
        tied=False,
        model=make_modern_config(96, 4, 4, 81, position="learned", init="zero"),
        train=TrainConfig(steps=3000, batch=64, **TRAIN),
    ),
}


def sizes(config: Config) -> Iterator[SizeOption]:
    yield from offer_sizes(config, SIZES, steps=1500)


class DiffusionModel(TextEncoder):
    """ids (B, T), with hidden tokens, and lengths (B,) -> logits (B, T, V)"""

    def __init__(self, config: Config, tokenizer: Tokenizer):
        super().__init__(config, tokenizer)
        self.head = LMHead(config.model.dim, self.vocab_size, self.nodes.token if config.tied else None)

    def forward(self, ids: Tensor, lengths: Tensor | None = None) -> Tensor:
        return self.head(self.hidden(ids, lengths))


def build(config: Config) -> DiffusionModel:
    model = DiffusionModel(config, load_text_tokenizer(config))
    initialize(model, config.model)
    return model


# --- data ---


def load_text_tokenizer(config: Config) -> Tokenizer:
    return load_config_tokenizer(config, lambda: load_corpus(config).tokenizer)


def load_corpus(config: Config) -> Corpus:
    """Return the tokens of the config's text, prepared once; a file that has changed is read again."""
    if config.lines and holds_shards(config.data):
        raise InputError(f"data '{config.data}' are shards, whose examples are no longer apart: name the texts")
    rows = RowOptions(config.columns or TEXT_COLUMN, lines=config.lines)
    return _prepare(config.data, config.tokenizer, config.vocab_size, config.val_fraction, rows)


@cache_by_files(lambda data, *_: corpus_files(data))
def _prepare(data: str, tokenizer: str, vocab_size: int, val_fraction: float, rows: RowOptions) -> Corpus:
    return prepare_corpus(data, tokenizer, vocab_size, val_fraction, rows)


@dataclass(frozen=True, eq=False)
class Lines:
    """Where the examples of a corpus are, and which of them are for training."""

    starts: np.ndarray
    stops: np.ndarray
    n_train: int

    def split(self, name: str) -> np.ndarray:
        """Return the indices of "train", "val" or "all"."""
        return select_split(name, self.splits)

    @cached_property
    def splits(self) -> dict[str, np.ndarray]:
        return split_by_mask(np.arange(len(self.starts)) >= self.n_train)

    def read(self, tokens: np.ndarray, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return examples, padded with 0, (B, T), and their lengths, (B,)."""
        sizes = self.stops[indices] - self.starts[indices]
        column = np.arange(sizes.max())
        ids = tokens[np.minimum(self.starts[indices, None] + column, self.stops[indices, None] - 1)]
        return np.where(column < sizes[:, None], ids, 0).astype(np.int64), sizes


@lru_cache(maxsize=8)
def find_lines(corpus: Corpus, context: int, data: str) -> Lines:
    """Find the examples of a corpus, at least one for each split. Raises InputError where one is longer than the
    context, or there is only one."""
    tokens = np.asarray(corpus.tokens)
    ends = np.flatnonzero(tokens == corpus.separator)
    starts, stops = np.concatenate([[0], ends + 1]), np.concatenate([ends, [len(tokens)]])
    longest = int((stops - starts).max())
    if longest > context:
        problem = f"data '{data}': an example has {longest} tokens, the context holds {context}"
        raise InputError(f"{problem}: --model.context {longest}, or train on the text as a whole, without --lines")
    if len(starts) < 2:
        raise InputError(f"data '{data}': a single example leaves none to validate on: bring at least two")
    return Lines(starts, stops, min(max(1, int((starts < corpus.n_train).sum())), len(starts) - 1))


def batches(config: Config, split: str, state: StreamState | None = None) -> BatchStream:
    """Yield batches; the keys are those of `make_batch`.

    "train" never ends; the tokens are hidden anew at each step. "val" and "all" yield every window or line once, with
    the same tokens hidden each time.
    """
    c, corpus = config.train, load_corpus(config)
    state = init_stream(state, config.data, corpus.meta["sha256"])
    mask_id = MaskedTokenizer.from_tokenizer(corpus.tokenizer, config.padded_vocab).require_mask_id()
    if split != "train":
        for i, (ids, sizes) in enumerate(eval_rows(config, corpus, split)):
            yield make_batch(mask_id, ids, sizes, 0, i), state
    while split == "train":
        ids, sizes = train_rows(config, corpus, state["step"])
        batch = make_batch(mask_id, ids, sizes, c.seed, state["step"])
        state = advance_stream(state, int(sizes.sum()))
        yield batch, state


def train_rows(config: Config, corpus: Corpus, step: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the rows of a training step: ids (B, T), and how many of each are text, (B,)."""
    c, text, context = config.train, Mixture((Source(corpus),)), config.model.context
    if config.lines:
        lines = find_lines(corpus, context, config.data)
        return lines.read(np.asarray(corpus.tokens), sample_indices(lines.split("train"), c.batch, c.seed, step))
    ids, _ = text.train_windows(context, c.batch, c.seed, step, c.accumulate)
    return ids, np.full(len(ids), context)


def eval_rows(config: Config, corpus: Corpus, split: str) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield the rows of one pass over a split, as `train_rows` returns them."""
    size, context = config.train.batch, config.model.context
    if config.lines:
        lines = find_lines(corpus, context, config.data)
        indices = lines.split(split)
        for start in range(0, len(indices), size):
            yield lines.read(np.asarray(corpus.tokens), indices[start : start + size])
        return
    for _, ids, labels in Mixture((Source(corpus),)).eval_windows(split, context, size):
        yield ids, (labels != IGNORE_INDEX).sum(1)


def make_batch(mask_id: int, ids: np.ndarray, sizes: np.ndarray, seed: int, step: int) -> dict[str, Tensor]:
    """Hide a share of each row, of which the first `sizes` (B,) ids are text.

    Returns:
        ids (B, T), with some hidden; labels (B, T), their ids, or IGNORE_INDEX; weight (B,), one over the share that is
        hidden; lengths (B,), if rows are padded.
    """
    hidden, labels, weight = hide_shares(ids, sizes, mask_id, seed, step)
    batch = {"ids": hidden, "labels": labels, "weight": weight}
    if (sizes != ids.shape[1]).any():
        batch["lengths"] = sizes
    return {name: torch.from_numpy(value) for name, value in batch.items()}


def baselines(config: Config) -> Baselines:
    return score_token_frequencies(Mixture((Source(load_corpus(config)),)))


def examples(config: Config) -> Examples:
    tokenizer = load_corpus(config).tokenizer
    if not config.lines:
        n = 4 if has_fixed_gaps(tokenizer) else 1
        return hide_tokens(Mixture((Source(load_corpus(config)),)), GAP * n, n, config.model.context)
    if not has_fixed_gaps(tokenizer):
        return Examples()
    rows = pick_rows(config, N_EXAMPLES)
    inputs = [show_gaps(tokenizer, row, gaps, GAP) for row, gaps in rows]
    return Examples({"input": inputs}, [tokenizer.decode(row) for row, _ in rows])


def pick_rows(config: Config, count: int) -> list[tuple[list[int], list[int]]]:
    """Return rows of the validation split, and which half of each to hide."""
    ids, sizes = next(eval_rows(config, load_corpus(config), "val"))
    rows = [row[:size].tolist() for row, size in zip(ids, sizes)][:count]
    orders = [np.argsort(uniform(0, i, (len(row),)), kind="stable").tolist() for i, row in enumerate(rows)]
    return [(row, sorted(order[: -(-len(row) // 2)])) for row, order in zip(rows, orders)]


# --- training ---


def sum_rows(model: DiffusionModel, batch: dict[str, Tensor]) -> Tensor:
    """Return the bound on the nats of each row: (B,)"""
    nodes, labels = model.hidden(batch["ids"], batch.get("lengths")), batch["labels"]
    nats = cross_entropy(model.head, nodes, labels, reduction="none")
    return nats.view(labels.shape).sum(1) * batch["weight"]


def loss_weight(batch: dict[str, Tensor]) -> Tensor:
    """The tokens of the rows, hidden or not."""
    ids = batch["ids"]
    return batch["lengths"].sum() if "lengths" in batch else torch.tensor(ids.numel(), device=ids.device)


def loss(model: DiffusionModel, batch: dict[str, Tensor]) -> Tensor:
    return sum_rows(model, batch).sum() / loss_weight(batch)


def evaluate(model: DiffusionModel, batches: Iterator[dict[str, Tensor]]) -> dict[str, float]:
    """Return the bound on the nats of a token, in bits a byte too, its standard error and the number of rows."""
    nats, sizes, n_bytes = [], [], 0
    for batch in batches:
        nats.append(sum_rows(model, batch).double().cpu())
        rows, T = batch["ids"].shape
        lengths = batch.get("lengths", torch.full((rows,), T)).cpu()
        sizes.append(lengths)
        text = torch.where(batch["labels"] == IGNORE_INDEX, batch["ids"], batch["labels"]).cpu()
        n_bytes += model.masked_tokenizer.tokenizer.count_bytes(text[torch.arange(T) < lengths[:, None]].numpy())
    return describe_bound(torch.cat(nats), torch.cat(sizes), n_bytes) if nats else {}


# --- answers ---


@dataclass(frozen=True, kw_only=True)
class Request(DraftSettings):
    """Texts with gaps, and how these are filled."""

    input: str | list[str] | None = None
    """A text with gaps, or several. None: a text of nothing but gaps."""
    gap: str = GAP
    """The character that stands for a token to be written. Of a vocabulary of larger units than characters, a run of it
    is one gap of unknown length."""
    tokens: int | None = None
    """Of a text that is written from nothing, and, of a vocabulary of larger units, of each gap. None: the context, and
    the best of 1 to 8."""
    samples: int = 1
    """Drafts of each text."""
    edit: bool = False
    """The text itself may be revised, not only what was written into its gaps."""
    allow: str = ""
    """Only tokens of these characters are written."""
    drafts: bool = False
    """Also return the text after every pass."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range(self, "tokens", at_least=1, at_most=MAX_TOKENS)
        check_range(self, "samples", at_least=1, at_most=MAX_SAMPLES)
        if len(self.gap) != 1:
            raise InputError(f"gap is {self.gap!r}; it must be one character")
        if self.edit and not self.revise:
            raise InputError("edit: a text is edited in revisions: set revise to 1 or more")


MAX_GAP_TOKENS = 8  # that are tried for a gap of unknown length
SHOWN_PASSES = 6  # of the report's figure


@torch.inference_mode()
def predict(model: DiffusionModel, request: dict[str, Any]) -> dict[str, Any]:
    """Fill the gaps of texts: the fields of `Request`.

    {"input": "The ____ sat"} returns {"results": [{"input", "text", "passes"}, ...]}, of several samples one after the
    other; "passes" is how often the model has read the text, "drafts" the text after every pass, if asked for.
    """
    fields = parse_dataclass(Request, request, "request")
    tokenizer = model.masked_tokenizer.tokenizer
    texts: list[Any] = [None] if fields.input is None else as_list(fields.input)
    rows = [[lay_out(model, fields, text, n) for n in list_lengths(model, fields, text)] for text in texts]
    drafts = [
        [Draft(*row, fields, sample_seed(fields.seed, sample)) for row in candidates]
        for candidates in rows
        for sample in range(fields.samples)
    ]
    histories: list[list[str]] = [[] for _ in drafts]
    for _ in write_passes(model, [draft for group in drafts for draft in group], fields.allow):
        for history, group in zip(histories, drafts if fields.drafts else ()):
            shown = show_draft(model, max(group, key=Draft.rate), fields.gap)
            history += [shown] if history[-1:] != [shown] else []
    results = []
    for i, group in enumerate(drafts):
        best, text = max(group, key=Draft.rate), texts[i // fields.samples]
        result = {"input": text, "text": tokenizer.decode(best.ids), "passes": best.n_reads}
        results.append(result | ({"drafts": histories[i]} if fields.drafts else {}))
    return {"results": results}


def write_passes(model: DiffusionModel, drafts: Sequence[Draft], allow: str = "") -> Iterator[None]:
    """Fill and revise drafts; yields after every pass."""
    is_allowed = find_allowed(model.masked_tokenizer.tokenizer, allow).to(next(model.parameters()).device)
    mask_id = model.masked_tokenizer.require_mask_id()
    return write_drafts(lambda ids, lengths, _: model(ids, lengths), drafts, mask_id, is_allowed)


def predict_batch(model: DiffusionModel, inputs: list[str], settings: dict[str, Any]) -> list[dict[str, Any]]:
    if settings.get("samples", 1) != 1:
        raise InputError("samples: one draft of each row of a file")
    return predict(model, settings | {"input": inputs})["results"]


def form(model: DiffusionModel, config: Config) -> Form:
    text = first_tokens(model.masked_tokenizer.tokenizer)
    usual = {"temperature": (0.0, 1.5), "revise": (0, 8), "passes": (1, 32), "samples": (1, 4)}
    settings, example = {"drafts": True}, (text[: len(text) // 2] + GAP + text[len(text) // 2 :])[: model.context]
    task = Task("Fill gaps", "text", Request, "drafts", mark=GAP, usual=usual, settings=settings, examples=(example,))
    return Form((task,))


def figures(model: DiffusionModel, config: Config) -> list[Figure]:
    """Show how a row of the validation split, half of it hidden, is filled and revised, pass by pass."""
    ((row, gaps),) = pick_rows(config, 1)
    draft = Draft(row, gaps, gaps, DraftSettings(passes=SHOWN_PASSES, revise=1), 0)
    drafts = [show_draft(model, draft)]
    drafts += [show_draft(model, draft) for _ in write_passes(model, [draft])]
    side = math.isqrt(len(row))
    if config.lines and side**2 == len(row) == len(drafts[0]):  # a square grid
        drafts = ["\n".join(text[i : i + side] for i in range(0, len(text), side)) for text in drafts]
    right = sum(draft.ids[i] == row[i] for i in gaps)
    note = f"a row of the validation split of which {len(gaps)} tokens are hidden, filled in {SHOWN_PASSES} passes "
    note += f"and revised once: {right} of them are those of the row"
    return [{"kind": "drafts", "title": "A draft, pass by pass", "note": note, "drafts": drafts}]


def lens(model: DiffusionModel, request: dict[str, Any]) -> LensView:
    """Show the tokens of a text with gaps, and what is predicted at each."""
    ids, _, _ = lay_out(model, Request(edit=True, revise=1), parse_request(request).text, 1)
    return lens_tokens(model, ids)


def list_lengths(model: DiffusionModel, fields: Request, text: str | None) -> Sequence[int]:
    """Return the numbers of tokens that are tried for the gaps of a text, or of a text that is all gaps."""
    if text is None:
        return [min(fields.tokens or model.context, model.context)]
    is_fixed = has_fixed_gaps(model.masked_tokenizer.tokenizer)
    return [1] if is_fixed else [fields.tokens] if fields.tokens else range(1, MAX_GAP_TOKENS + 1)


def has_fixed_gaps(tokenizer: Tokenizer) -> bool:
    """Whether a character is a token, so that a gap says how many tokens are missing."""
    return tokenizer.kind in ("char", "byte")


def lay_out(model: DiffusionModel, fields: Request, text: str | None, n: int) -> tuple[list[int], list[int], list[int]]:
    """Return the ids of a text with n mask tokens for each gap, which positions may be revised, and which are gaps.
    Raises InputError."""
    tokenizer, mask_id = model.masked_tokenizer.tokenizer, model.masked_tokenizer.require_mask_id()
    if text is None:
        return [mask_id] * n, list(range(n)), list(range(n))
    gap = re.escape(fields.gap)
    first, *others = re.split(gap if has_fixed_gaps(tokenizer) else f" ?{gap}+", text)
    if not others and not fields.edit:
        raise InputError(f"{shorten(text)} has no gap: write {fields.gap} for each token that is missing")
    ids = tokenizer.encode(first).tolist()
    gaps: list[int] = []
    for part in others:
        gaps += range(len(ids), len(ids) + n)
        ids += [mask_id] * n + tokenizer.encode(part).tolist()
    if not ids:
        raise InputError("an empty text has no tokens: give it some")
    if len(ids) > model.context:
        raise InputError(f"{shorten(text)} has {len(ids):,} tokens, the context holds {model.context:,}: shorten it")
    return ids, list(range(len(ids))) if fields.edit else gaps, gaps


def find_allowed(tokenizer: Tokenizer, characters: str) -> Tensor:
    """Return which tokens may be written, (V,) bool: not the end of a text, and of these characters only, if any are
    named. Raises InputError if there is none."""
    is_allowed = torch.ones(tokenizer.vocab_size, dtype=torch.bool)
    if characters:
        texts = (tokenizer.decode([token]) for token in range(tokenizer.vocab_size))
        is_allowed = torch.tensor([bool(text) and set(text) <= set(characters) for text in texts])
    is_allowed[list(tokenizer.end_ids)] = False
    if not bool(is_allowed.any()):
        raise InputError(f"allow is {shorten(characters)}: no token of the vocabulary is of these characters")
    return is_allowed


def show_draft(model: DiffusionModel, draft: Draft, gap: str = GAP) -> str:
    return show_gaps(model.masked_tokenizer.tokenizer, draft.ids, draft.open, gap)


def show_gaps(tokenizer: Tokenizer, ids: Sequence[int], gaps: Sequence[int], gap: str) -> str:
    """Return the text of some ids, with a gap for each token that is hidden."""
    text, start, hidden = "", 0, set(gaps)
    for stop in range(1, len(ids) + 1):
        if stop == len(ids) or (stop in hidden) != (start in hidden):
            text += gap * (stop - start) if start in hidden else tokenizer.decode(ids[start:stop])
            start = stop
    return text


def shorten(text: str) -> str:
    return repr(text if len(text) <= 40 else f"{text[:40]}...")
