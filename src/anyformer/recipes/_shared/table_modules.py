"""What reads the fields of a table: an embedding for each kind of field, a linear model of numbers and categories."""

from dataclasses import replace

from torch import nn

from ...data.tables.encode import count_ids
from ...data.tables.schema import Field, Schema, Target
from ...model import PatchEmbedding, TokenEmbedding, TransformerConfig
from ...model.embeddings import FrameEmbedding, Normalized, ScalarEmbedding, SeriesPatchEmbedding
from ...model.tabular import CategoryPath, LinearPath, NumberPath, PiecewiseLinear


def build_field_embedding(field: Field, config: TransformerConfig) -> nn.Module:
    """Build what turns the values of a field into nodes, with their position within the field."""
    position = {"learned": "learned", "fixed": "sinusoidal", "none": "none"}[field.position]
    config = replace(config, position=position, context=field.nodes, dropout=0.0)
    if field.kind in ("category", "text"):
        return TokenEmbedding(count_ids(field), config)
    if field.kind == "audio":
        return FrameEmbedding(field.mels, config)
    if field.kind == "image":
        patches = PatchEmbedding(field.patch, config, field.channels, cls_token=0)
        return Normalized(patches, field.mean, field.std, image=True)
    if field.kind == "series":
        return Normalized(SeriesPatchEmbedding(field.patch, field.channels, config), field.mean, field.std)
    if field.quantiles:
        return nn.Sequential(PiecewiseLinear(field.quantiles), ScalarEmbedding(len(field.quantiles) - 1, config))
    return Normalized(ScalarEmbedding(field.shape[0], config), field.mean, field.std)


def build_linear_path(schema: Schema) -> LinearPath:
    """Build the linear model of the numbers and categories; its outputs are those of all targets in turn."""
    outputs = sum(count_outputs(target) for target in schema.targets)
    parts: list[nn.Module | None] = []
    for column in schema.fields:
        if column.kind == "category":
            parts.append(CategoryPath(count_ids(column), outputs))
        elif column.kind in ("scalar", "date", "vector"):
            parts.append(NumberPath(column.mean, column.std, column.quantiles, outputs))
        else:
            parts.append(None)
    return LinearPath(parts, outputs)


def count_outputs(target: Target) -> int:
    return len(target.values) if target.kind == "class" else 1
