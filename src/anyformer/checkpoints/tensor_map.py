"""A family of checkpoints as a table of names, read in both directions.

A row says: these tensors of ours, one below the other, are that tensor of theirs, perhaps flipped (some store a linear
map as [in, out]). What is a bias may be missing on either side, and is then zero.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ..errors import InputError
from .safetensors_files import Weights

CHUNK = 4 << 20  # bytes moved at once: a tensor never lies in memory twice


@dataclass(frozen=True)
class Row:
    """One tensor of theirs. `theirs` None: their files have no such bias, so ours is zero."""

    ours: tuple[str, ...]
    theirs: str | None
    flip: bool = False
    """Theirs is [in, out]."""
    lead: bool = False
    """Theirs has one axis more, of length 1, in front."""
    idle: bool = False
    """With theirs None: ours changes nothing whatever it is, so it may be left out."""
    fresh: bool = False
    """Their file may lack it: a head that this checkpoint came without. Ours stays as it was made."""
    again: bool = False
    """A tied tensor that some files hold once more: passed over, and never written."""
    made: Callable[[], Tensor] | None = None
    """What ours computes where it has no such tensor, such as a fixed position: theirs holds just that."""


def row(ours: str | Sequence[str], theirs: str | None, **more: Any) -> Row:
    return Row((ours,) if isinstance(ours, str) else tuple(ours), theirs, **more)


def affine(ours: str | Sequence[str], theirs: str, flip: bool = False, **more: Any) -> list[Row]:
    """Weight and bias of a linear map, a convolution or a norm."""
    names = (ours,) if isinstance(ours, str) else tuple(ours)
    weight = Row(tuple(f"{name}.weight" for name in names), f"{theirs}.weight", flip, **more)
    return [weight, Row(tuple(f"{name}.bias" for name in names), f"{theirs}.bias", **more)]


def unbiased(ours: str | Sequence[str], theirs: str, **more: Any) -> list[Row]:
    """A linear map whose file has a weight only: our bias, if we have one, is zero."""
    names = (ours,) if isinstance(ours, str) else tuple(ours)
    weight = Row(tuple(f"{name}.weight" for name in names), f"{theirs}.weight")
    return [weight, *(Row((f"{name}.bias",), None, **more) for name in names)]


def lm_head(tied: bool, theirs: str = "lm_head.weight") -> Row:
    """The head's own matrix; tied, it is the embedding's, and some files hold it once more."""
    return Row(("nodes.token.weight",), theirs, again=True) if tied else Row(("head.project.weight",), theirs)


def layers(n: int, rows: Iterable[Row]) -> list[Row]:
    """The rows of one layer, for each: {i} in a name is the layer's number."""
    made = list(rows)
    return [
        replace(
            r,
            ours=tuple(name.replace("{i}", str(i)) for name in r.ours),
            theirs=None if r.theirs is None else r.theirs.replace("{i}", str(i)),
        )
        for i in range(n)
        for r in made
    ]


# --- theirs -> ours ---


def check(rows: Sequence[Row], own: Mapping[str, Tensor], weights: Weights) -> list[str]:
    """Every name and shape, before anything is read. Returns the tensors of ours that the file has nothing for (a fresh
    head). Raises InputError naming the key, the shape found and the shape expected."""
    fresh: list[str] = []
    for r in rows:
        if r.theirs is None:
            continue
        if r.theirs not in weights.shapes:
            if not r.fresh and not r.again:
                raise InputError(f"{weights.where} lacks {r.theirs}, expected with shape {expected(r, own)}")
            fresh += [name for name in r.ours if name in own and r.fresh]
        elif (wanted := expected(r, own)) != (found := list(weights.shapes[r.theirs])):
            raise InputError(f"{weights.where}: {r.theirs} has shape {found}, its config.json makes that {wanted}")
    there = {name for r in rows if r.theirs in weights.shapes and not r.again for name in r.ours}
    fresh = [name for name in fresh if name not in there]
    names = [r.theirs for r in rows if r.theirs is not None]
    if strange := sorted(weights.shapes.keys() - set(names)):
        raise InputError(
            f"{weights.where} has {strange[0]} (and {len(strange) - 1} more) with shape "
            f"{list(weights.shapes[strange[0]])}, which its config.json says nothing of"
        )
    covered = {name for r in rows for name in r.ours}
    if bare := sorted(own.keys() - covered):
        raise InputError(f"{weights.where} says nothing of {bare[0]}: this family has no such tensor")
    return fresh


def expected(r: Row, own: Mapping[str, Tensor]) -> list[int]:
    """The shape of theirs that fits ours."""
    if computed(r, own):
        return list(r.made().shape) if r.made else []
    parts = [list(shape_of(name, own)) for name in r.ours]
    whole = [sum(part[0] for part in parts), *parts[0][1:]]
    whole = whole[::-1] if r.flip else whole
    return [1, *whole] if r.lead else whole


def computed(r: Row, own: Mapping[str, Tensor]) -> bool:
    return r.made is not None and not any(name in own for name in r.ours)


def shape_of(name: str, own: Mapping[str, Tensor]) -> Sequence[int]:
    """A bias we have none of is as long as its weight is high."""
    return own[name].shape if name in own else own[name.removesuffix("bias") + "weight"].shape[:1]


@torch.no_grad()
def fill(rows: Sequence[Row], own: Mapping[str, Tensor], weights: Weights) -> list[str]:
    """Move the file's numbers into our tensors, a piece at a time. Returns what stayed fresh. Raises InputError."""
    fresh = check(rows, own, weights)
    for r in rows:
        if r.theirs is None:
            for name in r.ours:
                if name in own:
                    own[name].zero_()
        elif r.theirs in weights.shapes and not r.again and not computed(r, own):
            move(r, own, weights)
    return fresh


def move(r: Row, own: Mapping[str, Tensor], weights: Weights) -> None:
    """One tensor of theirs into those of ours."""
    assert r.theirs is not None
    targets = [own[name] if name in own else torch.zeros(shape_of(name, own)) for name in r.ours]
    at, high = 0, weights.shapes[r.theirs][0]
    step = max(1, CHUNK * high // max(1, 4 * size(weights.shapes[r.theirs])))
    for at in range(0, high, step):
        piece = weights.rows(r.theirs, at, min(high, at + step))
        piece = piece[0] if r.lead else piece
        place(piece.T if r.flip else piece, targets, (0 if r.lead else at), r.flip)
    for name, target in zip(r.ours, targets):
        if name not in own and target.any():
            raise InputError(f"{weights.where}: {r.theirs} is not zero, and this model has no {name}")


def place(piece: Tensor, targets: Sequence[Tensor], at: int, flip: bool) -> None:
    """A piece of the whole into the tensors that the whole is made of, which lie one below the other. Of a flipped
    tensor, a piece has all rows and the columns from `at` on."""
    first = 0
    for target in targets:
        if flip:
            target[:, at : at + piece.shape[1]].copy_(piece[first : first + len(target)])
        else:
            start, stop = max(first, at), min(first + len(target), at + len(piece))
            if start < stop:
                target[start - first : stop - first].copy_(piece[start - at : stop - at])
        first += len(target)


def size(shape: Sequence[int]) -> int:
    total = 1
    for side in shape:
        total *= side
    return total


# --- ours -> theirs ---


def give(rows: Sequence[Row], own: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    """Their tensors, by their names. Raises InputError for a bias of ours that their files have no place for."""
    given: set[tuple[str, ...]] = set()
    for r in rows:
        if r.again:
            continue
        if r.theirs is None:
            for name in r.ours:
                if name in own and not r.idle and own[name].any():
                    raise InputError(f"{name} is not zero, and this family has no place for it")
            continue
        if r.made is not None and computed(r, own):
            yield r.theirs, r.made().contiguous()
            continue
        parts = [own[name].detach() if name in own else torch.zeros(shape_of(name, own)) for name in r.ours]
        whole = parts[0] if len(parts) == 1 else torch.cat(parts)
        whole = whole.T if r.flip else whole
        whole = whole.clone() if r.ours in given else whole  # a file does not hold one piece of memory twice
        given.add(r.ours)
        yield r.theirs, (whole[None] if r.lead else whole).contiguous()


def zero(own: Mapping[str, Tensor], *names: str) -> bool:
    """Whether all of these tensors (those there are) are zero."""
    return not any(bool(own[name].any()) for name in names if name in own)


Values = dict[str, Any]
"""A recipe's config, or theirs, as JSON has it."""
