"""Multimodal: throw it all into the set: numbers, categories, series, texts, images and sounds of one row.

raw    rows of a table (csv, tsv, jsonl, parquet) or a set by name; a schema says which column is what
nodes  a number, a vector or a category is one; slices of a series, tokens, patches, mel frames; each tells its field,
       and has a position in it or none; what a row lacks is simply no node
edges  full, padding excepted
head   a logit for each class, or a number, for each target, from a class node
loss   cross-entropy of the class, squared error of the number, the mean over what is known

    anyformer train multimodal                                        three minutes on two cores: exercises from a watch
    anyformer train multimodal --preset spoken-digits                 a spoken digit beside a written one
    anyformer train multimodal --preset table --data my.csv --target species

Of a table of your own the schema is inferred and shown before training: --print-schema > my.toml writes it out to be
corrected, and --schema my.toml gives it back. `anyformer worth RUN` tells what each field is worth.

A set of nodes of unlike kinds: Gato (2205.06175), FT-Transformer (2106.11959); fields left out: ModDrop (1501.00102).
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...data.images.cache import drawn
from ...data.tables import prepare as table
from ...data.tables.augment import batch, key, nodes_in, shaken, stretched, turned, without
from ...data.tables.cache import Rows
from ...data.tables.encode import entries
from ...data.tables.schema import Field, Schema
from ...data.text.labelled import shuffled
from ...errors import InputError, nearest
from ...inference.table_prediction import score, tensor, told
from ...model.block import Transformer
from ...model.config import TransformerConfig
from ...model.edges import within
from ...model.embeddings import Frames, Numbers, Patches, Scaled, Several, Slices, Tokens
from ...model.heads import Classifier, Regressor
from ...model.init import initialise
from ...recipe import Graph, Input, Place, begin
from .config import PRESETS, Config

__all__ = [
    "PRESETS",
    "Config",
    "MultimodalTransformer",
    "batches",
    "build",
    "changed",
    "evaluate",
    "fields",
    "graph",
    "inferred",
    "loss",
    "predict",
    "schema_of",
]


def nodes_of(field: Field, config: TransformerConfig) -> nn.Module:
    """What turns the values of a field into nodes, with their position among themselves."""
    position = {"learned": "learned", "fixed": "sinusoidal", "none": "none"}[field.position]
    config = replace(config, position=position, context=field.nodes, dropout=0.0)
    if field.kind in ("category", "text"):
        return Tokens(entries(field), config)
    if field.kind == "audio":
        return Frames(field.mels, config)
    if field.kind == "image":
        return Scaled(Patches(field.patch, config, field.channels, first=False), field.mean, field.std, image=True)
    if field.kind == "series":
        return Scaled(Slices(field.patch, field.channels, config), field.mean, field.std)
    return Scaled(Numbers(field.shape[0], config), field.mean, field.std)


class MultimodalTransformer(nn.Module):
    """A value of each field, (B, *field.shape), and present (B, N): which of their nodes are there -> an answer for
    each target: logits (B, classes), or (B, 1) a number of mean 0 and deviation 1."""

    def __init__(self, config: Config, known: Schema):
        super().__init__()
        self.schema, self.files = known, {"schema.json": known.json()}
        self.nodes = Several([nodes_of(one, config.model) for one in known.fields], config.model)
        self.body = Transformer(config.model)
        dim = config.model.dim
        self.heads = nn.ModuleList(
            Classifier(dim, len(one.values), "first") if one.kind == "class" else Regressor(dim, 1, "first")
            for one in known.targets
        )

    def forward(self, values: Sequence[Tensor], present: Tensor) -> list[Tensor]:
        x, lengths = self.nodes(values, present)
        x = self.body(x, within(lengths))
        return [head(x) for head in self.heads]

    def answers(self, batch: dict[str, Tensor]) -> list[Tensor]:
        return self([batch[key(one)] for one in self.schema.fields], batch["present"])


def rows(config: Config) -> Rows:
    """The rows of the config, decoded once; files that have changed since are read again."""
    return table.rows_of(config.data, config.schema, config.target, config.lenient)


def fitted(config: Config) -> Schema:
    """The schema with all that a model must know of the training rows. Raises InputError where it does not fit."""
    c = config.model
    found = table.fitted(config.data, config.schema, config.target, config.lenient, config.fold)
    if c.position != "none":
        raise InputError(f"model.position is {c.position}: positions belong to the fields, so it must be none")
    if found.nodes >= c.context:
        made = f"the fields make up to {found.nodes} nodes and a class node, and the context is {c.context}"
        raise InputError(f"{made}: --model.context {found.nodes + 1}, or less of them in the schema")
    return found


def schema_of(config: Config) -> Schema:
    """Which column is what, before anything is measured."""
    return table.schema_of(config.data, config.schema, config.target)


def inferred(config: Config) -> Schema | None:
    """The schema that was inferred, for a person to approve; None where nothing had to be."""
    return table.inferred(config.data, config.schema, config.target)


def build(config: Config) -> MultimodalTransformer:
    model = MultimodalTransformer(config, fitted(config))
    initialise(model, config.model)
    return model


def batches(config: Config, split: str, place: Place | None = None) -> Iterator[tuple[dict[str, Tensor], Place]]:
    """ "train": every row once an epoch, with fields left out at random, for ever. "val" and "all": one pass."""
    if not 0 <= config.absent < 1 or min(config.noise, config.stretch, config.turn) < 0:
        shaking = f"noise {config.noise}, stretch {config.stretch} and turn {config.turn}: from 0"
        raise InputError(f"absent is {config.absent}, below 1; {shaking}")
    c, found = config.train, rows(config)
    place = begin(place, config.data, found.sha256, skipped=found.skipped)
    part = found.part(split, config.fold)
    if split != "train":
        part = part[shuffled(len(part), 0, 1)]  # so that the first few batches hold every class
        for start in range(0, len(part), c.batch):
            yield tensors(batch(found, part[start : start + c.batch])), place
    known = fitted(config)
    while split == "train":
        at = drawn(part, c.batch, c.seed, place["step"])
        rng = np.random.Generator(np.random.Philox(key=c.seed, counter=(0, 0, place["step"], 3)))
        made = turned(known, stretched(known, batch(found, at), config.stretch, rng), config.turn, rng)
        made = tensors(shaken(known, without(known, made, config.absent, rng), config.noise, rng))
        place = place | {"step": place["step"] + 1, "tokens": place["tokens"] + int(made["present"].sum()) + c.batch}
        yield made, place


def tensors(made: dict[str, np.ndarray]) -> dict[str, Tensor]:
    return {name: tensor(value) for name, value in made.items()}


def losses(model: MultimodalTransformer, batch: dict[str, Tensor]) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Of each target, for each row: the loss (0 where the row does not tell it), what the model says, and what is right
    (NaN)."""
    for i, (one, said) in enumerate(zip(model.schema.targets, model.answers(batch), strict=True)):
        said, right = said.float(), batch["targets"][:, i]
        if one.kind == "class":
            yield F.cross_entropy(said, right.nan_to_num(-100).long(), reduction="none"), said.argmax(-1), right
        else:
            said, wanted = said[:, 0], (right - one.mean[0]) / one.std[0]
            yield (said - torch.where(wanted.isnan(), said, wanted)) ** 2, said * one.std[0] + one.mean[0], right


def loss(model: MultimodalTransformer, batch: dict[str, Tensor]) -> Tensor:
    """The mean over the targets of the mean over the rows that tell them."""
    means = [each.sum() / (~right.isnan()).sum().clamp(min=1) for each, _, right in losses(model, batch)]
    return torch.stack(means).mean()


def evaluate(model: MultimodalTransformer, batches: Iterator[dict[str, Tensor]]) -> dict[str, float]:
    """The loss; of a class how often the likeliest is right, and the mean F1 of the classes; of a number the root of
    the mean squared error, in its own unit, and the share of its variance that is told (R2). With several targets, each
    by its name."""
    parts = [[(*map(Tensor.cpu, one),) for one in losses(model, batch)] for batch in batches]
    found, nats = {}, []
    for i, one in enumerate(model.schema.targets):
        each, said, right = (torch.cat([part[i][k] for part in parts]) for k in range(3))
        known = ~right.isnan()
        nats.append(each.double().sum().item() / max(1, int(known.sum())))
        scores = score(one, said[known], right[known])
        found |= scores if len(model.schema.targets) == 1 else {f"{one.name}_{key}": x for key, x in scores.items()}
    return {"loss": sum(nats) / len(nats)} | found | {"rows": sum(len(part[0][1]) for part in parts)}


def graph(model: MultimodalTransformer) -> Graph:
    """Values as the data have them, and which nodes there are (0 or 1)."""
    below = {"category": entries, "text": entries, "image": lambda one: 256}
    inputs = {
        one.name: Input(" ".join(["batch", *map(str, one.shape)]), below.get(one.kind, lambda one: None)(one))
        for one in model.schema.fields
    }
    inputs["present"] = Input(f"batch {model.schema.nodes}", 2)

    def call(*given: Tensor) -> tuple[Tensor, ...]:
        return tuple(model(given[:-1], given[-1].bool()))

    return Graph(call, inputs, tuple(one.name for one in model.schema.targets))


def predict(model: MultimodalTransformer, request: dict[str, Any]) -> dict[str, Any]:
    """{"input": {field: value, ...}}, a list of such rows, or the path of a table of them; what a row lacks is simply
    missing. Returns {"results": [{"label", "probability", "probabilities"} or {"value"}, ...]}, with several targets
    each by its name. Without input: a few rows of the validation part, and what is right ("truth")."""
    if strange := [name for name in request if name != "input"]:
        raise InputError(f"a request has no '{strange[0]}': {nearest(strange[0], ('input',))}")
    return {"results": told(model, request.get("input", list(model.schema.examples)))}


# --- for whoever asks what a field is worth ---


def fields(config: Config) -> list[str]:
    return [one.name for one in fitted(config).fields]


def changed(
    config: Config, split: str, kept: Sequence[str], shuffle: str = "", seed: int = 0
) -> Iterator[dict[str, Tensor]]:
    """One pass with these fields alone, the values of one of them taken from other rows."""
    found = rows(config)
    part = found.part(split, config.fold)
    other = part[shuffled(len(part), seed, 2)]
    gone = [nodes for one, nodes in zip(found.schema.fields, nodes_in(found.schema)) if one.name not in kept]
    for start in range(0, len(part), config.train.batch):
        at = slice(start, start + config.train.batch)
        made = tensors(batch(found, part[at], {shuffle: other[at]}))
        for nodes in gone:
            made["present"][:, nodes] = False
        yield made
