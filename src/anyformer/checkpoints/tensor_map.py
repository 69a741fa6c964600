"""Name tables between anyformer's tensors and those of a public checkpoint, read in both directions.

An entry says: these local tensors, concatenated along the first axis, are that public tensor, perhaps transposed (some
families store linear maps as [in, out]). A bias may be missing on either side and is then zero.
"""

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ..errors import InputError

PIECE_BYTES = 4 << 20  # copied at once, so that a tensor is never in memory twice
ConfigDict = dict[str, Any]
"""A recipe's config, or the config.json of a public checkpoint, as plain JSON values."""


class WeightSource:
    """Base class of named tensors of one or several files: shapes are known at once, values are read on demand."""

    where: str
    shapes: dict[str, tuple[int, ...]]

    def read_rows(self, name: str, start: int, stop: int) -> Tensor:
        """Return tensor[start:stop] in float32."""
        raise NotImplementedError


@dataclass(frozen=True)
class TensorMapping:
    """One public tensor and the local tensors that it is made of."""

    local: tuple[str, ...]
    public: str | None  # None: the family has no such bias, so the local one must be zero
    transposed: bool = False  # the public tensor is [in, out]
    leading_axis: bool = False  # the public tensor has one more axis, of length 1, in front
    shape: tuple[int, ...] | None = None  # the public tensor's, where its axes are others; () is read as (1,)
    unused_rows: int = 0  # the public tensor has so many more rows in front, which nothing reads
    ignorable: bool = False  # with public None: the bias has no effect, so export drops it whatever its value
    optional: bool = False  # a file may lack it (a head); the local tensor then keeps its initial value
    duplicate: bool = False  # a tied tensor that some files store again: skipped on import, never written


TensorMap = list[TensorMapping]
Names = Mapping[Any, str]
"""Local name, or a tuple of local names whose tensors are concatenated -> public name."""


def map_tensor(local: str, public: str | None, **options: Any) -> TensorMapping:
    return TensorMapping((local,), public, **options)


def map_affine(names: Names, local: str = "", public: str = "", transposed: bool = False, **options: Any) -> TensorMap:
    """Map weights and biases of linear maps, convolutions or norms; `local`, `public`: prefixes of their names."""
    table = []
    for parts, name in names.items():
        modules = [f"{local}{part}" for part in ([parts] if isinstance(parts, str) else parts)]
        for kind, is_transposed in (("weight", transposed), ("bias", False)):
            tensors = tuple(f"{module}.{kind}" for module in modules)
            table.append(TensorMapping(tensors, f"{public}{name}.{kind}", is_transposed, **options))
    return table


def map_weight(names: Names, local: str = "", public: str = "", **options: Any) -> TensorMap:
    """Map weights of maps that have no bias in the public file: a local bias must be zero."""
    table = map_affine(names, local, public)
    return [replace(m, public=None, **options) if m.local[0].endswith(".bias") else m for m in table]


def map_lm_head(tied: bool, embedding: str = "nodes.token", public: str = "lm_head") -> TensorMapping:
    """Map the output matrix; a tied one is the embedding, which some files store a second time."""
    return map_tensor(f"{embedding if tied else 'head.project'}.weight", f"{public}.weight", duplicate=tied)


def map_layers(n: int, block: TensorMap) -> TensorMap:
    """Repeat the table of one block for n layers: {i} in a name is the layer's number."""
    return [
        replace(
            mapping,
            local=tuple(name.replace("{i}", str(i)) for name in mapping.local),
            public=mapping.public and mapping.public.replace("{i}", str(i)),
        )
        for i in range(n)
        for mapping in block
    ]


# --- public -> local ---


def check_shapes(table: TensorMap, tensors: Mapping[str, Tensor], weights: WeightSource) -> list[str]:
    """Compare every name and shape of a file with a model, without reading values.

    Args:
        tensors: the model's tensors by name; they may lie on the meta device.

    Returns:
        The model's tensors that the file has no values for.

    Raises:
        InputError: names the tensor, its shape and the expected shape.
    """
    where, missing, loaded = weights.where, [], set()
    for mapping in (mapping for mapping in table if mapping.public is not None):
        expected, shape = compute_public_shape(mapping, tensors), weights.shapes.get(str(mapping.public))
        if shape is None:
            if not mapping.optional and not mapping.duplicate:
                raise InputError(f"{where} lacks {mapping.public}, expected with shape {expected}")
            missing += [name for name in mapping.local if name in tensors and mapping.optional]
        elif expected != list(shape):
            raise InputError(
                f"{where}: {mapping.public} has shape {list(shape)}, its config.json makes that {expected}"
            )
        elif not mapping.duplicate:
            loaded.update(mapping.local)
    if unknown := sorted(weights.shapes.keys() - {mapping.public for mapping in table}):
        raise InputError(
            f"{where} has {unknown[0]} (and {len(unknown) - 1} more) with shape {list(weights.shapes[unknown[0]])}, "
            "which its config.json does not account for"
        )
    check_complete(table, tensors, where)
    return [name for name in missing if name not in loaded]


def check_complete(table: TensorMap, tensors: Mapping[str, Tensor], where: str) -> None:
    """Raise InputError for a tensor of the model that the table does not mention."""
    if unmapped := sorted(tensors.keys() - {name for mapping in table for name in mapping.local}):
        raise InputError(f"{where}: this family has no tensor for {unmapped[0]}")


def compute_public_shape(mapping: TensorMapping, tensors: Mapping[str, Tensor]) -> list[int]:
    """Return the shape of the public tensor that fits the local ones."""
    if mapping.shape is not None:
        return list(mapping.shape or (1,))
    parts = [list(get_local_shape(name, tensors)) for name in mapping.local]
    shape = [sum(part[0] for part in parts), *parts[0][1:]]
    shape[0] += mapping.unused_rows
    shape = shape[::-1] if mapping.transposed else shape
    return [1, *shape] if mapping.leading_axis else shape


def get_local_shape(name: str, tensors: Mapping[str, Tensor]) -> Sequence[int]:
    """Return a tensor's shape; a bias that the model lacks is as long as its weight has rows."""
    return tensors[name].shape if name in tensors else tensors[name.removesuffix("bias") + "weight"].shape[:1]


def get_or_zeros(name: str, tensors: Mapping[str, Tensor]) -> Tensor:
    return tensors[name] if name in tensors else torch.zeros(get_local_shape(name, tensors))


@torch.no_grad()
def load_weights(table: TensorMap, tensors: Mapping[str, Tensor], weights: WeightSource) -> None:
    """Copy the file's values into the model's tensors, piece by piece.

    Raises:
        InputError: names or shapes differ, or a bias that the model lacks is not zero in the file.
    """
    check_shapes(table, tensors, weights)
    for mapping in table:
        if mapping.public is None:
            for name in tensors.keys() & set(mapping.local):
                tensors[name].zero_()
        elif mapping.public in weights.shapes and not mapping.duplicate:
            copy_tensor(mapping, mapping.public, tensors, weights)


def copy_tensor(mapping: TensorMapping, public: str, tensors: Mapping[str, Tensor], weights: WeightSource) -> None:
    """Copy one public tensor into the local tensors that it is made of."""
    targets = [get_or_zeros(name, tensors) for name in mapping.local]
    targets = targets if mapping.shape is None else [target.view(mapping.shape or (1,)) for target in targets]
    for start, piece in read_pieces(weights, public):
        piece = piece[0] if mapping.leading_axis else piece
        offset = mapping.unused_rows  # of the target's first row
        for target in targets:
            if mapping.transposed:  # the piece has some columns of each target
                target[:, start : start + len(piece)].copy_(piece.T[offset : offset + len(target)])
            else:
                first, last = max(offset, start), min(offset + len(target), start + len(piece))
                if first < last:
                    target[first - offset : last - offset].copy_(piece[first - start : last - start])
            offset += len(target)
    for name, target in zip(mapping.local, targets):
        if name not in tensors and target.any():
            raise InputError(f"{weights.where}: {public} is not zero, and this model has no {name}")


def read_pieces(weights: WeightSource, name: str) -> Iterator[tuple[int, Tensor]]:
    """Yield a stored tensor in pieces of about PIECE_BYTES: the first row and the rows from there on."""
    shape = weights.shapes[name]
    step = max(1, PIECE_BYTES * shape[0] // max(1, 4 * math.prod(shape)))
    for start in range(0, shape[0], step):
        yield start, weights.read_rows(name, start, min(shape[0], start + step))


def has_biases(weights: WeightSource, *prefixes: str) -> bool:
    """Return whether any bias whose name begins with one of these prefixes (default: any bias) is not zero."""
    biases = [name for name in weights.shapes if name.endswith(".bias") and name.startswith(prefixes or ("",))]
    return any(bool(weights.read_rows(name, 0, weights.shapes[name][0]).any()) for name in biases)


def are_equal(weights: WeightSource, first: str, second: str) -> bool:
    """Return whether two stored tensors have the same values, compared piece by piece."""
    pieces = zip(read_pieces(weights, first), read_pieces(weights, second))
    return weights.shapes[first] == weights.shapes[second] and all(torch.equal(a, b) for (_, a), (_, b) in pieces)


# --- local -> public ---


def export_tensors(table: TensorMap, tensors: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    """Yield the public tensors with their names.

    Raises:
        InputError: the family has no place for a tensor of the model, or for a bias that is not zero.
    """
    check_complete(table, tensors, "export")
    exported: set[tuple[str, ...]] = set()
    for mapping in table:
        if mapping.public is None:
            for name in mapping.local:
                if name in tensors and not mapping.ignorable and tensors[name].any():
                    raise InputError(f"{name} is not zero, and this family has no place for it")
        elif not mapping.duplicate:
            parts = [get_or_zeros(name, tensors).detach() for name in mapping.local]
            value = parts[0] if len(parts) == 1 else torch.cat(parts)
            if mapping.unused_rows:
                value = torch.cat([value.new_zeros(mapping.unused_rows, *value.shape[1:]), value])
            value = value.T if mapping.transposed else value
            value = value if mapping.shape is None else value.reshape(mapping.shape)
            value = value.clone() if mapping.local in exported else value  # safetensors refuses shared memory
            exported.add(mapping.local)
            yield mapping.public, (value[None] if mapping.leading_axis else value).contiguous()


def are_zero(tensors: Mapping[str, Tensor], pattern: str) -> bool:
    """Return whether all tensors whose names match a pattern are zero."""
    return not any(bool(tensor.any()) for name, tensor in tensors.items() if re.fullmatch(pattern, name))
