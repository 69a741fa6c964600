"""Name tables between anyformer's tensors and those of a public checkpoint, read in both directions.

An entry says: these local tensors, concatenated along the first axis, are that public tensor, perhaps transposed (some
families store linear maps as [in, out]). A bias may be missing on either side and is then zero.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
from torch import Tensor

from ..errors import InputError

PIECE_BYTES = 4 << 20  # copied at once, so that a tensor is never in memory twice
ConfigDict = dict[str, Any]
"""A recipe's config, or the config.json of a public checkpoint, as plain JSON values."""


class WeightSource(Protocol):
    """Named tensors of one or several files: shapes are known at once, values are read on demand."""

    @property
    def where(self) -> str: ...

    @property
    def shapes(self) -> Mapping[str, tuple[int, ...]]: ...

    def read_rows(self, name: str, start: int, stop: int) -> Tensor:
        """Return tensor[start:stop] in float32."""
        ...


@dataclass(frozen=True)
class TensorMapping:
    """One public tensor and the local tensors that it is made of."""

    local: tuple[str, ...]
    public: str | None
    """None: the family has no such bias, so the local one must be zero."""
    transposed: bool = False
    """The public tensor is [in, out]."""
    leading_axis: bool = False
    """The public tensor has one more axis, of length 1, in front."""
    ignorable: bool = False
    """With public None: the local bias has no effect on the output, so export drops it whatever its value."""
    optional: bool = False
    """The file may lack it (a head that this checkpoint came without); the local tensor keeps its initial value."""
    duplicate: bool = False
    """A tied tensor that some files store a second time: skipped on import, never written."""
    compute: Callable[[], Tensor] | None = None
    """Where the model has no such tensor, what it computes instead (a fixed position); the public tensor holds that."""

    def is_computed(self, tensors: Mapping[str, Tensor]) -> bool:
        return self.compute is not None and not any(name in tensors for name in self.local)


TensorMap = list[TensorMapping]


def map_tensor(local: str | Sequence[str], public: str | None, **options: Any) -> TensorMapping:
    return TensorMapping((local,) if isinstance(local, str) else tuple(local), public, **options)


def map_affine(local: str | Sequence[str], public: str, transposed: bool = False, **options: Any) -> TensorMap:
    """Map the weight and the bias of a linear map, a convolution or a norm."""
    names = (local,) if isinstance(local, str) else tuple(local)
    weight = TensorMapping(tuple(f"{name}.weight" for name in names), f"{public}.weight", transposed, **options)
    return [weight, TensorMapping(tuple(f"{name}.bias" for name in names), f"{public}.bias", **options)]


def map_weight(local: str, public: str, **options: Any) -> TensorMap:
    """Map a linear map that has no bias in the public file: a local bias must be zero."""
    return [map_tensor(f"{local}.weight", f"{public}.weight"), map_tensor(f"{local}.bias", None, **options)]


def map_lm_head(tied: bool) -> TensorMapping:
    """Map the output matrix; a tied one is the embedding, which some files store a second time."""
    if tied:
        return map_tensor("nodes.token.weight", "lm_head.weight", duplicate=True)
    return map_tensor("head.project.weight", "lm_head.weight")


def map_layers(n: int, block: TensorMap) -> TensorMap:
    """Repeat the table of one block for n layers: {i} in a name is the layer's number."""
    block = list(block)
    return [
        replace(
            mapping,
            local=tuple(name.replace("{i}", str(i)) for name in mapping.local),
            public=None if mapping.public is None else mapping.public.replace("{i}", str(i)),
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
    missing: list[str] = []
    for mapping in table:
        if mapping.public is None:
            continue
        expected = compute_public_shape(mapping, tensors)
        if mapping.public not in weights.shapes:
            if not mapping.optional and not mapping.duplicate:
                raise InputError(f"{weights.where} lacks {mapping.public}, expected with shape {expected}")
            missing += [name for name in mapping.local if name in tensors and mapping.optional]
        elif expected != (shape := list(weights.shapes[mapping.public])):
            raise InputError(
                f"{weights.where}: {mapping.public} has shape {shape}, its config.json makes that {expected}"
            )
    loaded = {name for m in table if m.public in weights.shapes and not m.duplicate for name in m.local}
    if unknown := sorted(weights.shapes.keys() - {mapping.public for mapping in table}):
        raise InputError(
            f"{weights.where} has {unknown[0]} (and {len(unknown) - 1} more) with shape "
            f"{list(weights.shapes[unknown[0]])}, which its config.json does not account for"
        )
    check_complete(table, tensors, weights.where)
    return [name for name in missing if name not in loaded]


def check_complete(table: TensorMap, tensors: Mapping[str, Tensor], where: str) -> None:
    """Raise InputError for a tensor of the model that the table does not mention."""
    if unmapped := sorted(tensors.keys() - {name for mapping in table for name in mapping.local}):
        raise InputError(f"{where}: this family has no tensor for {unmapped[0]}")


def compute_public_shape(mapping: TensorMapping, tensors: Mapping[str, Tensor]) -> list[int]:
    """Return the shape of the public tensor that fits the local ones."""
    if mapping.compute is not None and mapping.is_computed(tensors):
        return list(mapping.compute().shape)
    parts = [list(get_local_shape(name, tensors)) for name in mapping.local]
    shape = [sum(part[0] for part in parts), *parts[0][1:]]
    shape = shape[::-1] if mapping.transposed else shape
    return [1, *shape] if mapping.leading_axis else shape


def get_local_shape(name: str, tensors: Mapping[str, Tensor]) -> Sequence[int]:
    """Return a tensor's shape; a bias that the model lacks is as long as its weight has rows."""
    return tensors[name].shape if name in tensors else tensors[name.removesuffix("bias") + "weight"].shape[:1]


def get_or_zeros(name: str, tensors: Mapping[str, Tensor]) -> Tensor:
    """Return a tensor; zeros for a bias that the model lacks."""
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
            for name in mapping.local:
                if name in tensors:
                    tensors[name].zero_()
        elif mapping.public in weights.shapes and not mapping.duplicate and not mapping.is_computed(tensors):
            copy_tensor(mapping, mapping.public, tensors, weights)


def copy_tensor(mapping: TensorMapping, public: str, tensors: Mapping[str, Tensor], weights: WeightSource) -> None:
    """Copy one public tensor into the local tensors that it is made of."""
    targets = [get_or_zeros(name, tensors) for name in mapping.local]
    shape = weights.shapes[public]
    step = count_piece_rows(shape)
    for start in range(0, shape[0], step):
        piece = weights.read_rows(public, start, min(shape[0], start + step))
        piece = piece[0] if mapping.leading_axis else piece
        copy_piece(piece.T if mapping.transposed else piece, targets, start, mapping.transposed)
    for name, target in zip(mapping.local, targets):
        if name not in tensors and target.any():
            raise InputError(f"{weights.where}: {public} is not zero, and this model has no {name}")


def count_piece_rows(shape: Sequence[int]) -> int:
    return max(1, PIECE_BYTES * shape[0] // max(1, 4 * math.prod(shape)))


def copy_piece(piece: Tensor, targets: Sequence[Tensor], start: int, transposed: bool) -> None:
    """Copy rows `start` and on of a tensor into the tensors that it is the concatenation of.

    A piece of a transposed tensor has all rows, and the columns from `start` on.
    """
    offset = 0  # of the target's first row
    for target in targets:
        if transposed:
            target[:, start : start + piece.shape[1]].copy_(piece[offset : offset + len(target)])
        else:
            first, last = max(offset, start), min(offset + len(target), start + len(piece))
            if first < last:
                target[first - offset : last - offset].copy_(piece[first - start : last - start])
        offset += len(target)


def has_biases(weights: WeightSource, *prefixes: str) -> bool:
    """Return whether any bias whose name begins with one of these prefixes (default: any bias) is not zero."""
    biases = [name for name in weights.shapes if name.endswith(".bias") and name.startswith(prefixes or ("",))]
    return any(bool(weights.read_rows(name, 0, weights.shapes[name][0]).any()) for name in biases)


def are_equal(weights: WeightSource, first: str, second: str) -> bool:
    """Return whether two stored tensors have the same values, compared piece by piece."""
    shape = weights.shapes[first]
    if shape != weights.shapes[second]:
        return False
    step = count_piece_rows(shape)
    starts = range(0, shape[0], step)
    pieces = ([weights.read_rows(name, i, min(shape[0], i + step)) for name in (first, second)] for i in starts)
    return all(torch.equal(a, b) for a, b in pieces)


# --- local -> public ---


def export_tensors(table: TensorMap, tensors: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    """Yield the public tensors with their names.

    Raises:
        InputError: the family has no place for a tensor of the model, or for a bias that is not zero.
    """
    check_complete(table, tensors, "export")
    exported: set[tuple[str, ...]] = set()
    for mapping in table:
        if mapping.duplicate:
            continue
        if mapping.public is None:
            for name in mapping.local:
                if name in tensors and not mapping.ignorable and tensors[name].any():
                    raise InputError(f"{name} is not zero, and this family has no place for it")
            continue
        if mapping.compute is not None and mapping.is_computed(tensors):
            yield mapping.public, mapping.compute().contiguous()
            continue
        parts = [get_or_zeros(name, tensors).detach() for name in mapping.local]
        value = parts[0] if len(parts) == 1 else torch.cat(parts)
        value = value.T if mapping.transposed else value
        value = value.clone() if mapping.local in exported else value  # safetensors refuses shared memory
        exported.add(mapping.local)
        yield mapping.public, (value[None] if mapping.leading_axis else value).contiguous()


def are_zero(tensors: Mapping[str, Tensor], names: Iterable[str]) -> bool:
    """Return whether those of the named tensors that exist are all zero."""
    return not any(bool(tensors[name].any()) for name in names if name in tensors)
