"""Msa: which columns of a protein alignment depend on each other, and so touch each other in the protein.

raw    an alignment of one family (FASTA, A3M, Stockholm, Clustal); maybe a structure of one member (PDB, mmCIF)
nodes  every place of some rows: what it holds is hidden from it; the residues of these rows are the memory
edges  a place reads the residues of its row, except that of its own column: one attention layer by position alone, and
       a Transformer by content, whose places read their column in other rows too (from the second layer on)
head   a logit for each residue and for a gap: what is usual in the column, plus what either attention says
loss   cross-entropy of every residue given all others of its row, close relatives sharing a weight; in training with
       a penalty on the couplings of the attention by position

    anyformer train msa --data family.fasta --minutes 10       of the best L pairs of dhfr .65 touch (DCA .62)
    anyformer predict RUN --out contacts.npy                   a score for each pair of columns; prints the best pairs
    anyformer eval RUN --scores                                with --structure: precision beside DCA in the same run

A score is the norm of a coupling, what the residue of one column changes of the logits of another, less what both
columns explain (APC). Attention by position alone learns the couplings of a Potts model (Bhattacharya et al. 2021),
which need a penalty (plmDCA: Ekeberg et al. 2013, 1211.1281); rows and columns in turn: MSA Transformer (Rao 2021).
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..data.io.cache import cache_by_files, data_files
from ..data.io.checks import load_json
from ..data.io.files import suffix
from ..data.io.resolve import resolve
from ..data.sampling import count_rows
from ..data.sequences.alignment import MAX_COLUMNS, STATES, Alignment, prepare_alignment
from ..data.sequences.structure import STRUCTURE_EXTENSIONS, Structure, load_structure
from ..errors import InputError
from ..forms import Form, Task
from ..metrics import score_classes
from ..model import LMHead, Transformer, TransformerConfig, initialize, same
from ..model.norm import build_norm
from ..model.pair_attention import PairAttention
from ..parsing import check_range, check_types, parse_dataclass, path_field
from ..recipe import (
    BatchStream,
    Examples,
    Figure,
    FileInput,
    Graph,
    GraphInput,
    LensNodes,
    LensView,
    SizeOption,
    StreamState,
    advance_stream,
    init_stream,
)
from ..training.config import TrainConfig
from ._shared.contact_figures import draw_contacts
from ._shared.contacts import correct_average_product, measure_precision, rank_pairs, score_baselines
from ._shared.encoder import as_list
from ._shared.presets import TINY_TRAIN, make_modern_config
from ._shared.sizes import Size, offer_sizes
from ._shared.trivial_baselines import Baselines

REFERENCE_ROWS = 16  # that a trained model keeps as examples
HEAD_DIM = 8  # of the attention by position alone
MAX_INPUTS, MAX_PAIRS = 1000, 100_000  # of a request


@dataclass(frozen=True, kw_only=True)
class Config:
    """A model of the rows of an alignment, its alignment and its training."""

    data: str = path_field("dhfr")
    """The name of a set (dhfr, s1a) or an alignment: .fasta, .a3m, .sto, .aln, each also .gz."""
    structure: str = path_field("", STRUCTURE_EXTENSIONS)
    """A structure of a member of the family, .pdb or .cif, each also .gz, to compare contacts with; sets by name have
    one. It is never trained on."""
    alignment: str = path_field("own", [".json"])
    """The columns and some rows that a trained model keeps: own (those of the data), or its alignment.json."""
    max_gaps: float = 0.3
    """Columns, and then rows, with this share of gaps or more are left out."""
    val_fraction: float = 0.05
    """The share of the rows that is for validation."""
    rows: int = 1
    """Rows that are read together, which a model of several layers gains from: they read each other's columns."""
    heads: int = 96
    """Heads of the attention by position alone."""
    penalty: float = 4.0
    """Of the couplings between columns, divided by the number of different rows: more for a noisier family."""
    model: TransformerConfig = field(default_factory=lambda: TransformerConfig(position="none"))
    """Of the attention by content. Its context becomes the number of columns."""
    train: TrainConfig = field(default_factory=TrainConfig)

    def __post_init__(self) -> None:
        check_types(self)
        check_range(self, "max_gaps", above=0, at_most=1)
        check_range(self, "val_fraction", above=0, below=1)
        check_range(self, "rows", at_least=1, at_most=4096)
        check_range(self, "heads", at_least=1, at_most=1024)
        check_range(self, "penalty", at_least=0, at_most=1e6)


def make_alignment_config(dim: int, n_layer: int, n_head: int) -> TransformerConfig:
    return make_modern_config(dim, n_layer, n_head, 256, position="none", init="zero", mlp_dim=2 * dim)


TRAIN = TrainConfig(
    steps=1000,
    batch=32,
    lr=1e-2,
    schedule="trapezoid",
    min_lr=0.0,
    weight_decay=0.0,
    warmup=20,
    clip=0.0,
    eval_every=200,
)
KINDS = {"alignment": {}}
SIZES = (Size(16, 1, 2, 0),)  # of --minutes
PRESETS = {
    # seconds: for tests
    "tiny": Config(
        data="s1a",
        val_fraction=0.1,
        rows=4,
        heads=4,
        penalty=1.0,
        model=make_alignment_config(32, 2, 2),
        train=replace(TINY_TRAIN, batch=2),
    ),
    # ten minutes on two cores
    "small": Config(model=make_alignment_config(32, 1, 2), train=TRAIN),
    # two layers, of which the second also reads the columns of 32 rows
    "columns": Config(rows=32, model=make_alignment_config(128, 2, 16), train=replace(TRAIN, batch=1, lr=3e-3)),
}


def sizes(config: Config) -> Iterator[SizeOption]:
    yield from offer_sizes(config, SIZES, steps=100)


# --- the model ---


@dataclass(frozen=True)
class Reference:
    """What a trained model keeps of its alignment."""

    width: int
    """Columns of the alignment."""
    columns: list[int]
    """Those that are kept, from 0."""
    rows: list[str]
    """Some of its rows, of the columns that are kept."""
    weight: float
    """Rows of the training split, close relatives counted as one."""


class AlignmentModel(nn.Module):
    """residues of some rows (B, R, L) -> logits of what stands at each place, given the others (B, R, L, states)"""

    def __init__(self, config: Config, reference: Reference):
        super().__init__()
        self.reference, self.n_columns, self.n_rows = reference, len(reference.columns), config.rows
        self.penalty = config.penalty / (reference.weight * self.n_columns)  # of a mean over columns
        self.files = {"alignment.json": json.dumps(vars(reference))}
        shape = replace(config.model, context=self.n_columns)
        self.usual = nn.Parameter(torch.zeros(self.n_columns, len(STATES)))
        self.pairs = PairAttention(self.n_columns, len(STATES), config.heads, HEAD_DIM)
        self.place = nn.Embedding(self.n_columns, shape.dim)
        self.residue, self.column = nn.Embedding(len(STATES), shape.dim), nn.Embedding(self.n_columns, shape.dim)
        self.norm, self.body = build_norm(shape), Transformer(shape, cross=True)
        self.head = LMHead(shape.dim, len(STATES))

    def forward(self, residues: Tensor) -> Tensor:
        B, R, L = residues.shape
        row = torch.arange(R, device=residues.device).repeat_interleave(L)
        column = torch.arange(L, device=residues.device).repeat(R)
        memory = self.norm(self.residue(residues) + self.column.weight).flatten(1, 2)  # (B, R L, C)
        places = self.place(column).expand(B, -1, -1)  # they know their column only
        x = self.body(places, same(column), memory, same(row) & ~same(column))
        by_position = self.pairs(residues.flatten(0, 1)).unflatten(0, (B, R))
        return self.usual + by_position + self.head(x).unflatten(1, (R, L))

    @property
    def device(self) -> torch.device:
        return self.usual.device


def build(config: Config) -> AlignmentModel:
    if config.model.position != "none":
        raise InputError(f"model.position is {config.model.position}: places know their columns, it must be none")
    model = AlignmentModel(config, load_reference(config))
    initialize(model, config.model)
    model.pairs.initialize()
    if config.alignment == "own":
        model.usual.data = torch.from_numpy(np.log(count_states(load_alignment(config)))).float()
    return model


def load_reference(config: Config) -> Reference:
    """Return the columns and rows of a stored model, or those of the data. Raises InputError."""
    if config.alignment != "own":
        reference = parse_dataclass(Reference, load_json(config.alignment, "alignment"), config.alignment)
        length = len(reference.columns)
        is_valid = 2 <= length <= MAX_COLUMNS and 1 <= len(reference.rows) <= REFERENCE_ROWS
        is_valid &= all(0 <= column < reference.width <= 1 << 28 for column in reference.columns)
        is_valid &= reference.weight > 0
        if not is_valid or any(len(row) != length or set(row) - set(STATES) for row in reference.rows):
            raise InputError(f"{config.alignment}: no alignment.json of a model: its columns and rows do not fit")
        return reference
    data = load_alignment(config)
    train, rng = data.split("train"), np.random.Generator(np.random.Philox(key=0))
    shares = data.weights[train] / data.weights[train].sum()
    chosen = rng.choice(train, min(REFERENCE_ROWS, len(train)), replace=False, p=shares)
    rows = [spell(row) for row in data.ids[chosen]]
    return Reference(data.width, data.columns.tolist(), rows, float(data.weights[train].sum()))


def spell(ids: np.ndarray) -> str:
    return "".join(STATES[i] for i in ids)


# --- data ---


def load_alignment(config: Config) -> Alignment:
    """Return the alignment of the config, read once; a file that has changed is read again."""
    return _prepare(config.data, config.max_gaps, config.val_fraction)


@cache_by_files(lambda data, *_: data_files(data))
def _prepare(data: str, max_gaps: float, val_fraction: float) -> Alignment:
    paths = [path for path in resolve(data) if suffix(path) not in STRUCTURE_EXTENSIONS]
    if len(paths) != 1:
        raise InputError(f"data '{data}' are {len(paths)} files: give one alignment")
    return prepare_alignment(paths[0], max_gaps, val_fraction)


def find_structure(config: Config) -> Structure | None:
    """Return the structure of the config, or that of a set by name; None without one. Raises InputError."""
    paths = [Path(config.structure)] if config.structure else resolve(config.data)
    paths = [path for path in paths if config.structure or suffix(path) in STRUCTURE_EXTENSIONS]
    return load_structure(paths[0], load_alignment(config)) if paths else None


def count_states(alignment: Alignment) -> np.ndarray:
    """Return the weighted frequencies of the training rows, each state counted once more: (L, states)"""
    train = alignment.split("train")
    hot = np.eye(len(STATES), dtype=np.float32)[alignment.ids[train]]
    counts = np.tensordot(alignment.weights[train], hot, 1) + 1
    return counts / counts.sum(1, keepdims=True)


def batches(config: Config, split: str, state: StreamState | None = None) -> BatchStream:
    """Yield batches: residues and labels, both (B, R, L). "train" never ends and draws rows by their weights; "val" and
    "all" yield every row once."""
    c, data = config.train, load_alignment(config)
    state = init_stream(state, config.data, data.sha256, rows=count_rows(split, data.split))
    indices = data.split(split)
    if split != "train":
        for rows in group_rows(indices, c.batch, config.rows):
            yield make_batch(data.ids[rows]), state
    shares = data.weights[indices] / data.weights[indices].sum()
    while split == "train":
        rng = np.random.Generator(np.random.Philox(key=c.seed, counter=(0, 0, state["step"], 7)))
        batch = make_batch(data.ids[rng.choice(indices, (c.batch, config.rows), p=shares)])
        state = advance_stream(state, batch["residues"].numel())
        yield batch, state


def group_rows(indices: np.ndarray, batch: int, rows: int) -> Iterator[np.ndarray]:
    """Yield all indices once as (B, R), each row beside its neighbors: those that do not fill R come last."""
    n_full = len(indices) // rows * rows
    full = indices[:n_full].reshape(-1, rows)
    yield from (full[start : start + batch] for start in range(0, len(full), batch))
    if n_full < len(indices):
        yield indices[None, n_full:]


def make_batch(ids: np.ndarray) -> dict[str, Tensor]:
    residues = torch.from_numpy(ids.astype(np.int64))
    return {"residues": residues, "labels": residues}


def baselines(config: Config) -> Baselines:
    data = load_alignment(config)
    shares, val = count_states(data), data.ids[data.split("val")]
    nats = -np.log(shares[np.arange(val.shape[1]), val]).mean()
    return {"loss": {"guessing evenly": float(np.log(len(STATES))), "frequencies of columns": float(nats)}}


def examples(config: Config) -> Examples:
    data = load_alignment(config)
    return Examples({"input": [spell(row) for row in data.ids[data.split("val")[:3]]]})


# --- training ---


def loss(model: AlignmentModel, batch: dict[str, Tensor]) -> Tensor:
    """Return the mean nats of a residue, in training with the penalty of a Potts model: on the squared couplings."""
    nats = F.cross_entropy(model(batch["residues"]).float().flatten(0, 2), batch["labels"].flatten())
    return nats + model.penalty * model.pairs.sum_couplings() if model.training else nats


def evaluate(model: AlignmentModel, batches: Iterator[dict[str, Tensor]]) -> dict[str, float]:
    """Return the mean nats of a residue given the others of its row, their exponential, and the accuracy."""
    return score_classes((model(b["residues"]).float().flatten(0, 2), b["labels"].flatten()) for b in batches)


def score(model: AlignmentModel, config: Config, split: str = "val", **request: Any) -> dict[str, Any]:
    """Return the share of contacts among the best pairs of columns, of the model and of what came before. Raises
    InputError without a structure."""
    structure = find_structure(config)
    if structure is None:
        raise InputError("contacts are compared with a structure: train with --structure FILE.pdb")
    maps = {"": measure_couplings(model), "attention": measure_attention(model)} | score_baselines(
        load_alignment(config)
    )
    precisions = {name: measure_precision(scores, structure) for name, scores in maps.items()}
    return {
        f"precision at {n}{m and f', {m}'}": value for m, values in precisions.items() for n, value in values.items()
    }


# --- couplings ---


def measure_couplings(model: AlignmentModel) -> np.ndarray:
    """Return the norms of the couplings of each pair of kept columns, gaps left out, with APC: (L, L)"""
    return correct_average_product(model.pairs.measure_couplings(first=1).double().cpu().numpy())


@torch.no_grad()
def measure_attention(model: AlignmentModel) -> np.ndarray:
    """Return how much columns read of each other by position, the mean over heads, with APC: (L, L)"""
    return correct_average_product(model.pairs.attention_weights().mean(0).double().cpu().numpy())


def predict_array(model: AlignmentModel, request: dict[str, Any]) -> tuple[np.ndarray, list[dict[str, Any]]]:
    """Return a map of scores over all columns of the alignment (W, W), 0 for those that were left out, and its best
    pairs."""
    fields = parse_dataclass(Request, request, "request")
    scores, columns = measure_couplings(model), np.array(model.reference.columns)
    full = np.zeros((model.reference.width, model.reference.width), np.float32)
    full[np.ix_(columns, columns)] = scores
    return full, list_pairs(model, scores, fields.pairs or 20)


def list_pairs(model: AlignmentModel, scores: np.ndarray, count: int) -> list[dict[str, Any]]:
    """Describe the best pairs of columns that lie at least six kept columns apart."""
    columns = model.reference.columns
    best = rank_pairs(scores, np.arange(len(columns)))[:count].tolist()
    return [{"columns": [columns[i], columns[j]], "score": round(float(scores[i, j]), 6)} for i, j in best]


# --- answers ---


@dataclass(frozen=True)
class Request:
    """Aligned sequences to judge, and pairs of columns to list."""

    input: str | list[str] | None = None
    """An aligned sequence, - for a gap, of all columns or of those that are kept; or several. None: an example."""
    pairs: int = 0
    """Also return so many pairs of columns that depend on each other most."""

    def __post_init__(self) -> None:
        check_range(self, "pairs", at_least=0, at_most=MAX_PAIRS)


@torch.inference_mode()
def predict(model: AlignmentModel, request: dict[str, Any]) -> dict[str, Any]:
    """Judge aligned sequences: the fields of `Request`.

    Returns {"results": [{"input", "text", "score"}]}: the likeliest residue of each kept column given the others, and
    the mean log-probability of the residues themselves. With "pairs": {"pairs": [{"columns": [i, j], "score"}]} too,
    columns from 0.
    """
    fields = parse_dataclass(Request, request, "request")
    texts = as_list(model.reference.rows[0] if fields.input is None else fields.input)
    if len(texts) > MAX_INPUTS:
        raise InputError(f"request: {len(texts):,} sequences, at most {MAX_INPUTS:,} in one request")
    results = [judge_row(model, text, f"input {i}" if len(texts) > 1 else "input") for i, text in enumerate(texts)]
    pairs = {"pairs": list_pairs(model, measure_couplings(model), fields.pairs)} if fields.pairs else {}
    return {"results": results} | pairs


def judge_row(model: AlignmentModel, text: str, where: str) -> dict[str, Any]:
    ids = read_row(model, text, where)
    logs = model(ids[None, None].to(model.device))[0, 0].float().log_softmax(-1).cpu()
    score = float(logs.gather(1, ids[:, None]).mean())
    return {"input": text, "text": spell(logs.argmax(-1).numpy()), "score": round(score, 6)}


def read_row(model: AlignmentModel, text: str, where: str) -> Tensor:
    """Return the ids of an aligned sequence: (L,). Raises InputError."""
    reference, row = model.reference, text.strip().replace(".", "-").upper()
    if len(row) == reference.width:
        row = "".join(row[column] for column in reference.columns)
    if len(row) != len(reference.columns):
        widths = f"{reference.width:,}, or {len(reference.columns):,} where gappy ones are left out"
        raise InputError(f"{where} has {len(row):,} columns; the alignment has {widths}")
    if wrong := [letter for letter in row if not ("A" <= letter <= "Z" or letter == "-")]:
        raise InputError(f"{where}: {wrong[0]!r} is no residue: expected letters, and - for a gap")
    return torch.tensor([max(0, STATES.find(letter)) for letter in row])


def file_input(model: AlignmentModel, config: Config) -> FileInput:
    return FileInput(("sequence",))


def predict_batch(model: AlignmentModel, inputs: list[str], settings: dict[str, Any]) -> list[dict[str, Any]]:
    return predict(model, settings | {"input": inputs})["results"]


def form(model: AlignmentModel, config: Config) -> Form:
    fields: dict[str, Any] = {"usual": {"pairs": (0, 100)}, "examples": (model.reference.rows[0],)}
    return Form((Task("Judge an aligned sequence", "text", Request, "json", **fields),))


def export_graph(model: AlignmentModel) -> Graph:
    inputs = {"residues": GraphInput(f"batch {model.n_columns}", len(STATES))}
    return Graph(lambda residues: model(residues[:, None])[:, 0], inputs, ("logits",))


def lens(model: AlignmentModel, request: dict[str, Any]) -> LensView:
    """The columns of an aligned sequence, each predicted from the others."""
    fields = parse_dataclass(Request, request, "request")
    text = as_list(model.reference.rows[0] if fields.input is None else fields.input)[0]
    ids = read_row(model, text, "input").to(model.device)
    labels = [f"{column} {STATES[i]}" for column, i in zip(model.reference.columns, ids.tolist())]
    rows: list[Any] = [(label, i) for i, label in enumerate(labels)]
    nodes = LensNodes(labels, ["place"] * len(labels))
    notes = ["each place reads the residues of its row, its own excepted; self-attention has a single row here"]
    return LensView({"body": nodes}, lambda: model(ids[None, None])[0, 0], rows, STATES.__getitem__, notes=notes)


def figures(model: AlignmentModel, config: Config) -> list[Figure]:
    """Draw the map of scores; beside a structure how many of the best pairs are contacts, and the fold."""
    structure, scores = find_structure(config), measure_couplings(model)
    maps = {"this model": scores} | (score_baselines(load_alignment(config)) if structure is not None else {})
    return draw_contacts(maps, structure)
