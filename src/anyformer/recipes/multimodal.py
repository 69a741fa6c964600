"""Multimodal: the numbers, categories, series, texts, images and sounds of one row as one set of nodes.

raw    rows of a table (csv, tsv, jsonl, parquet) or a set by name; a schema says what each column is
nodes  one for a number, a date, a vector or a category; slices of a series, tokens, patches, mel frames; each
       carries its field, and its position in the field or none; what a row lacks has no node
edges  full, padding excepted
head   a logit for each class, or a number, for each target, from a class node
loss   cross-entropy of the class, squared error of the number, the mean over the known labels

    anyformer train multimodal                                        three minutes on two cores: exercises from a watch
    anyformer train multimodal --preset spoken-digits                 a spoken digit and a written one
    anyformer train multimodal --preset table --data my.csv --target species

For a table of your own the schema is inferred and shown before training (docs/tables.md): --print-schema > my.toml
writes it to a file to correct, and --schema my.toml uses that. `anyformer worth RUN` measures what each field
contributes.

A set of nodes of several kinds: Gato (2205.06175), FT-Transformer (2106.11959); fields left out: ModDrop (1501.00102).
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import partial
from itertools import islice
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..data.sampling import count_rows, sample_indices
from ..data.tables import prepare
from ..data.tables.augment import add_noise, drop_fields, rotate_vectors, stretch_time
from ..data.tables.batches import build_batch, node_slices, value_key
from ..data.tables.cache import TableDataset
from ..data.tables.datasets import NAMED_SETS, open_table
from ..data.tables.encode import count_ids, resolve_row_paths
from ..data.tables.schema import Schema
from ..data.text.labeled import epoch_order
from ..data.unusable import DuplicatePolicy, EmptyPolicy
from ..errors import InputError
from ..forms import Form, Task
from ..inference.table_prediction import describe_row, example_row, predict_rows, to_tensor
from ..model import Classifier, Regressor, Transformer, TransformerConfig, initialize
from ..model.edges import within
from ..model.embeddings import MultiFieldEmbedding
from ..parsing import check_range, check_types, parse_dataclass, path_field
from ..recipe import (
    BatchStream,
    DataDefaults,
    Examples,
    Figure,
    FileInput,
    Graph,
    GraphInput,
    SizeOption,
    StreamState,
    advance_stream,
    init_stream,
)
from ..search_space import SearchChoice, SearchSpace
from ..training.config import TrainConfig
from ..training.device import evaluation_autocast
from ._shared.figures import draw_confusion
from ._shared.presets import MUON, TINY_TRAIN, make_model_config, make_modern_config
from ._shared.row_lenses import lens_multimodal as lens  # noqa: F401
from ._shared.sizes import Size, offer_sizes
from ._shared.table_baselines import score_table, train_gradient_boosting
from ._shared.table_modules import build_field_embedding, build_linear_path, count_outputs
from ._shared.table_targets import collect_results, evaluate_targets, measure_errors, select_known
from ._shared.trivial_baselines import Baselines


@dataclass(frozen=True, kw_only=True)
class Config:
    """A model of rows, its table and its training."""

    data: str = path_field("watch")
    """The name of a set (watch, breast-cancer, spoken-digits, car, sensors), a .csv, .tsv, .jsonl or .parquet."""
    schema: str = path_field("own", [".toml", ".json"])
    """What each column is: own (a set's own schema; for other tables it is inferred), inferred, or a schema.toml: its
    path, or its content."""
    target: str = ""
    """Where the schema is inferred: the column to predict, or several with commas between."""
    fold: str = "1/10"
    """Which part of how many is for validation, where the data do not say: the latest rows, whole groups, or rows of
    each class."""
    group: str = ""
    """A column, such as a person: rows of one value stay together, in training or in validation."""
    order: str = ""
    """A column of dates or numbers: the latest rows are for validation."""
    empty: EmptyPolicy = "skip"
    """What becomes of rows without a target."""
    duplicates: DuplicatePolicy = "keep"
    """What becomes of rows that are equal to another one."""
    field_dropout: float = 0.1
    """Probability that a field of a row is left out in training, though never all fields of a row: where fields are
    missing, the answers are then less sure."""
    noise: float = 0.0
    """Noise added in training to every number, reading or channel, in units of its standard deviation."""
    stretch: float = 0.0
    """Training plays the series of a row faster or slower by up to this share."""
    max_rotation: float = 0.0
    """Training rotates the series of three channels of a row, vectors in space, by up to so many degrees: a device is
    never worn in exactly the same way."""
    linear_path: bool = False
    """Add a linear model of the numbers and categories to the output of the Transformer."""
    lenient: bool = False
    """Leave out and count damaged values (a reading that is NaN, an image or sound that cannot be read)."""
    model: TransformerConfig = field(default_factory=TransformerConfig)
    """Its context bounds the nodes of a row; positions belong to the fields, so its own is none."""
    train: TrainConfig = field(default_factory=TrainConfig)

    def __post_init__(self) -> None:
        check_types(self)
        check_range(self, "field_dropout", at_least=0, below=1)
        check_range(self, "noise", at_least=0, at_most=100)
        check_range(self, "stretch", at_least=0, at_most=10)
        check_range(self, "max_rotation", at_least=0, at_most=180)


EPOCHS, FEW_ROWS, MAX_STEPS = 40, 800, 10_000  # over the rows of a table that are more than a few, at most
MODERN: dict[str, Any] = {"position": "none", "init": "zero"}
ADAMW = TrainConfig(steps=2500, batch=64, warmup=50, min_lr=0.0, eval_every=200, save_every=400)
MUON_TRAIN = replace(ADAMW, steps=1500, lr=3e-3, weight_decay=0.01, clip=0.0, **MUON)
KINDS = {
    "table": {"target": "{target}"},
    "labeled sounds": {"preset": "spoken-digits", "target": "{label}"},
}
SIZES = (Size(32, 1, 32, 0), Size(48, 2, 64, 400))  # of --minutes
PRESETS = {
    # seconds: for tests
    "tiny": Config(
        data="sensors", fold="1/5", model=make_model_config(32, 2, 2, 64, position="none"), train=TINY_TRAIN
    ),
    # three minutes on two cores; a fold is a person
    "watch": Config(
        noise=0.1,
        stretch=0.4,
        max_rotation=20.0,
        model=make_model_config(64, 3, 4, 64, position="none", dropout=0.1),
        train=ADAMW,
    ),
    # seconds on two cores for some hundred rows; early stopping decides how many of the steps are done
    "table": Config(
        data="breast-cancer",
        schema="inferred",
        target="diagnosis",
        linear_path=True,
        model=make_model_config(32, 2, 4, 256, position="none", dropout=0.1),
        train=replace(ADAMW, steps=150, warmup=20, eval_every=10, patience=5),
    ),
    # minutes on two cores
    "spoken-digits": Config(
        data="spoken-digits",
        field_dropout=0.3,
        model=make_modern_config(96, 3, 4, 128, dropout=0.1, **MODERN),
        train=MUON_TRAIN,
    ),
    # minutes of CPU: a simulated car is steered from five sensors (docs/car.md)
    "car": Config(
        data="car",
        field_dropout=0.3,
        model=make_modern_config(64, 3, 4, 64, **MODERN),
        train=replace(MUON_TRAIN, steps=500, eval_every=125, save_every=125),
    ),
    # for many rows of many kinds: bring --data and a GPU
    "base": Config(
        data="spoken-digits",
        field_dropout=0.3,
        lenient=True,
        empty="few",
        duplicates="skip",
        model=make_modern_config(512, 8, 8, 1024, dropout=0.1, **MODERN),
        train=replace(MUON_TRAIN, steps=50_000, batch=128, warmup=1000),
    ),
}


def search_space(config: Config) -> SearchSpace:
    return {"field_dropout": SearchChoice((0.0, 0.1, 0.3)), "noise": SearchChoice((0.0, 0.1, 0.3))}


def sizes(config: Config) -> Iterator[SizeOption]:
    yield from offer_sizes(config, SIZES, steps=800)


class MultimodalTransformer(nn.Module):
    """values of each field (B, *field.shape), present (B, N): which nodes exist -> for each target logits (B, classes)
    or a number of mean 0 and deviation 1 (B, 1)"""

    def __init__(self, config: Config, schema: Schema):
        super().__init__()
        self.set_schema(schema)
        parts = [build_field_embedding(field, config.model) for field in schema.fields]
        self.nodes = MultiFieldEmbedding(parts, config.model)
        self.body = Transformer(config.model)
        dim = config.model.dim
        self.heads = nn.ModuleList(
            Classifier(dim, len(target.values), "first") if target.kind == "class" else Regressor(dim, 1, "first")
            for target in schema.targets
        )
        self.linear = build_linear_path(schema) if config.linear_path else None

    def forward(self, values: Sequence[Tensor], present: Tensor) -> list[Tensor]:
        x, lengths = self.nodes(values, present)
        x = self.body(x, within(lengths))
        outputs = [head(x) for head in self.heads]
        if self.linear is None:
            return outputs
        is_present = torch.stack([present[:, nodes.start] for nodes in node_slices(self.schema)], 1)
        terms = self.linear(values, is_present).split([count_outputs(target) for target in self.schema.targets], 1)
        return [output + term for output, term in zip(outputs, terms, strict=True)]

    def set_schema(self, schema: Schema) -> None:
        self.schema, self.files = schema, {"schema.json": schema.to_json()}

    def predict_batch(self, batch: dict[str, Tensor]) -> list[Tensor]:
        return self([batch[value_key(field)] for field in self.schema.fields], batch["present"])


# --- rows and their schema ---


def load_rows(config: Config) -> TableDataset:
    """Load the rows of the config, encoded once; files that have changed since are read again."""
    return prepare.fit_table(table_source(config), config.fold)


def table_source(config: Config) -> prepare.TableSource:
    names = (field.name for field in fields(prepare.TableSource))
    return prepare.TableSource(**{name: getattr(config, name) for name in names})


def fit_schema(config: Config) -> Schema:
    """Return the schema with what a model must know of the training rows. Raises InputError if the model's position or
    context does not fit it."""
    c = config.model
    schema = prepare.fit_schema(table_source(config), config.fold)
    if c.position != "none":
        raise InputError(f"model.position is {c.position}: positions belong to the fields, so it must be none")
    if schema.nodes >= c.context:
        nodes = f"the fields make up to {schema.nodes} nodes and a class node, and the context is {c.context}"
        raise InputError(f"{nodes}: --model.context {schema.nodes + 1}, or fewer of them in the schema")
    return schema


def read_schema(config: Config) -> Schema:
    """Return what each column is, before anything is measured."""
    return prepare.resolve_schema(table_source(config))


def data_defaults(overrides: dict[str, Any]) -> DataDefaults | None:
    """Choose the preset for tables, with as many steps as the rows need, and a larger model where a row holds texts,
    series, images or sounds; None for the sets by name."""
    if overrides["data"] in NAMED_SETS:
        return None
    preset, names = PRESETS["table"], [field.name for field in fields(Config) if field.type is str]
    schema = read_schema(replace(preset, **{name: overrides[name] for name in names if name in overrides}))
    n_rows, is_plain = sum(1 for _ in open_table(overrides["data"]).rows()), all(f.nodes == 1 for f in schema.fields)
    model = {} if is_plain else {"model": {"dim": 64}}
    n_steps = preset.train.steps if is_plain else 300
    steps = min(MAX_STEPS, max(n_steps, EPOCHS * (n_rows - FEW_ROWS) // preset.train.batch))
    every = max(preset.train.eval_every, steps // 20)
    train = {"train": {"steps": steps, "eval_every": every, "save_every": every}}
    return DataDefaults("table", model | train, f"{n_rows:,} rows: --preset table")


def infer_schema(config: Config) -> Schema | None:
    """Return the inferred schema, for a person to approve; None where one is given."""
    return prepare.infer_missing_schema(table_source(config))


def build(config: Config) -> MultimodalTransformer:
    model = MultimodalTransformer(config, fit_schema(config))
    initialize(model, config.model)
    if model.linear is not None:
        model.linear.reset_parameters()
    return model


def batches(config: Config, split: str, state: StreamState | None = None) -> BatchStream:
    """Yield batches: the values of each field (B, *field.shape), present (B, N), and the labels of each target (B,).

    "train" never ends and yields every row once an epoch, augmented. "val" and "all" yield every row once.
    """
    c, dataset = config.train, load_rows(config)
    n_rows = count_rows(split, lambda name: dataset.split(name, config.fold))
    state = init_stream(state, config.data, dataset.sha256, skipped=dataset.skipped, rows=n_rows)
    indices = dataset.split(split, config.fold)
    if split != "train":
        indices = indices[epoch_order(len(indices), 0, 1)]  # so that the first few batches hold every class
        for start in range(0, len(indices), c.batch):
            yield to_tensors(build_batch(dataset, indices[start : start + c.batch])), state
    schema = fit_schema(config)
    while split == "train":
        rows = sample_indices(indices, c.batch, c.seed, state["step"])
        rng = np.random.Generator(np.random.Philox(key=c.seed, counter=(0, 0, state["step"], 3)))
        batch = stretch_time(schema, build_batch(dataset, rows), config.stretch, rng)
        batch = drop_fields(schema, rotate_vectors(schema, batch, config.max_rotation, rng), config.field_dropout, rng)
        tensors = to_tensors(add_noise(schema, batch, config.noise, rng))
        state = advance_stream(state, int(tensors["present"].sum()) + c.batch)
        yield tensors, state


def to_tensors(batch: dict[str, np.ndarray]) -> dict[str, Tensor]:
    return {name: to_tensor(value) for name, value in batch.items()}


# --- loss and evaluation ---


def loss(model: MultimodalTransformer, batch: dict[str, Tensor]) -> Tensor:
    """Return the mean over the targets of the mean over the rows whose label is known."""
    return torch.stack([result.mean_loss() for result in evaluate_targets(model, batch)]).mean()


def loss_terms(model: MultimodalTransformer, batch: dict[str, Tensor]) -> Tensor:
    """Return the terms that `loss` is the sum of, one for each target: each is a mean over another number of rows."""
    means = [result.mean_loss() for result in evaluate_targets(model, batch)]
    return torch.stack(means) / len(means)


def loss_weight(batch: dict[str, Tensor]) -> Tensor:
    """Return the number of known labels of each target, (targets,)"""
    return torch.stack([select_known(labels).sum() for name, labels in batch.items() if name.startswith("labels/")])


def evaluate(model: MultimodalTransformer, batches: Iterator[dict[str, Tensor]]) -> dict[str, float]:
    """Return the loss; of a class accuracy and macro F1, of a number RMSE in its own unit and R2. With several targets,
    each metric has the target's name in front."""
    metrics, means, results = {}, [], collect_results(model, batches)
    for target, result in zip(model.schema.targets, results, strict=True):
        means.append(result.losses.double().sum().item() / max(1, int(result.is_known.sum())))
        prefix = "" if len(results) == 1 else f"{target.name}_"
        metrics |= {prefix + name: value for name, value in result.scores(target).items()}
    return {"loss": sum(means) / len(means)} | metrics | {"rows": len(results[0].losses)}


# --- how sure it is ---


@torch.inference_mode()
def finish_model(model: MultimodalTransformer, config: Config) -> None:
    """Measure how far predicted numbers are off on the validation split, into the schema of the model."""
    model.set_schema(model.schema.with_measurements(measure_errors(model, val_batches(model, config))))


def val_batches(model: MultimodalTransformer, config: Config) -> Iterator[dict[str, Tensor]]:
    """Yield what the final evaluation covers of the validation split, on the device of the model."""
    device = next(model.parameters()).device
    for batch, _ in islice(batches(config, "val"), 0, None, config.train.final_every):
        yield {name: value.to(device) for name, value in batch.items()}


@torch.inference_mode()
def figures(model: MultimodalTransformer, config: Config) -> list[Figure]:
    """Draw the confusion matrix of each target that is a class, on what the final evaluation covers of the split."""
    drawn = []
    with evaluation_autocast(model, config.train.dtype):
        results = collect_results(model, val_batches(model, config))
    for target, result in zip(model.schema.targets, results, strict=True):
        if target.kind == "class":
            title = f"Confusion matrix of {target.name}"
            drawn += draw_confusion(result.confusion(target), target.values, "rows", title)
    return drawn


def baselines(config: Config) -> Baselines:
    """Score the most frequent class or the mean, and a linear model of the fields that are numbers."""
    dataset = load_rows(config)
    return score_table(dataset, *(dataset.split(split, config.fold) for split in ("train", "val")))


def train_peers(config: Config) -> Baselines:
    """Train gradient boosting on the same split."""
    dataset = load_rows(config)
    train, val = (dataset.split(split, config.fold) for split in ("train", "val"))
    return train_gradient_boosting(dataset, train, val, config.train.seed)


def fold_overrides(config: Config, fold: int, folds: int) -> dict[str, Any]:
    """Select a part for validation. Raises InputError where the data name the rows for validation."""
    if (load_rows(config).val_flags >= 0).any():
        raise InputError("--folds: the data say which rows are for validation: take that column out of the schema")
    # Where the rows have an order, every part has earlier ones.
    return {"fold": f"{fold}/{folds + 1 if fit_schema(config).order else folds}"}


def export_graph(model: MultimodalTransformer) -> Graph:
    """Describe the model as a graph of the values of each field and which nodes exist (0 or 1)."""
    inputs = {}
    for column in model.schema.fields:
        upper_bound = count_ids(column) if column.kind in ("category", "text") else None
        axes = " ".join(["batch", *map(str, column.shape)])
        inputs[column.name] = GraphInput(axes, 256 if column.kind == "image" else upper_bound)
    inputs["present"] = GraphInput(f"batch {model.schema.nodes}", 2)

    def call(*tensors: Tensor) -> tuple[Tensor, ...]:
        return tuple(model(tensors[:-1], tensors[-1].bool()))

    return Graph(call, inputs, tuple(target.name for target in model.schema.targets))


def examples(config: Config) -> Examples:
    """Take rows with their targets, which `predict` returns as "truth"."""
    dataset = load_rows(config)
    rows = prepare.select_examples(open_table(config.data), dataset, dataset.split("val", config.fold))
    return Examples({"input": rows} if rows else {})


@dataclass(frozen=True)
class Request:
    """Rows of which to predict the targets."""

    input: Any = None
    """A row {field: value}, its JSON, or the path of a table; or a list of such."""


def predict(model: MultimodalTransformer, request: dict[str, Any]) -> dict[str, Any]:
    """Predict the targets of rows: {"input": {field: value, ...}}, a list of such, or the path of a table; a single row
    may also stand for itself, {field: value, ...}. A field that a row lacks is missing.

    Returns {"results": [{"label", "probability", "probabilities"} or {"value", "interval"}, ...]}, with several targets
    each by its name.
    """
    is_row = "input" not in request and any(field.name in request for field in model.schema.fields)
    inputs = request if is_row else parse_dataclass(Request, request, "request").input
    return {"results": predict_rows(model, [] if inputs is None else inputs)}


def file_input(model: MultimodalTransformer, config: Config) -> FileInput:
    names = tuple(field.name for field in model.schema.fields)
    return FileInput(names, read_row=partial(resolve_row_paths, model.schema))


def form(model: MultimodalTransformer, config: Config) -> Form:
    title = f"Predict {' and '.join(target.name for target in model.schema.targets)}"
    fields, example = describe_row(model.schema), example_row(model.schema)
    return Form((Task(title, "row", Request, "targets", row=fields, examples=(example,)),))


def predict_batch(
    model: MultimodalTransformer, inputs: list[dict[str, Any]], settings: dict[str, Any]
) -> list[dict[str, Any]]:
    return predict(model, settings | {"input": inputs})["results"]


# --- ablation: `anyformer worth` ---


def field_names(config: Config) -> list[str]:
    return [field.name for field in fit_schema(config).fields]


def ablate_fields(
    config: Config, split: str, kept: Sequence[str], shuffle: str = "", seed: int = 0
) -> Iterator[dict[str, Tensor]]:
    """Yield one pass with these fields only, the values of one of them taken from other rows."""
    dataset = load_rows(config)
    indices = dataset.split(split, config.fold)
    others = indices[epoch_order(len(indices), seed, 2)]
    fields = zip(dataset.schema.fields, node_slices(dataset.schema))
    absent = [nodes for field, nodes in fields if field.name not in kept]
    for start in range(0, len(indices), config.train.batch):
        rows = slice(start, start + config.train.batch)
        batch = to_tensors(build_batch(dataset, indices[rows], {shuffle: others[rows]}))
        for nodes in absent:
            batch["present"][:, nodes] = False
        yield batch
