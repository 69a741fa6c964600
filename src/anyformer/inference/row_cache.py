"""Caches of rows that come and go: `SharedRows` for keys and values, `SeparateRows` for any other state.

The first rows get a token at every step, together; the others read their prompts, short ones together too.

Shapes: n rows, T tokens, C channels, H heads, D channels of a head.
"""

import math
from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from ..model.cache import count_slots, find_slots
from ..model.compact_cache import CompactCache, count_node_bytes, find_cache_format
from ..model.edges import Edges, causal
from .decode import Decoder, HasOwnCache, new_cache
from .prompt_reading import pad_rows

SIZE_UNIT = 128  # nodes by which rows grow
MIN_ROWS = 4


class Rows(Protocol):
    """Rows 0, 1 ... of a decoder's cache."""

    def can_add(self, size: int) -> bool:
        """Whether there is memory for another row of at most so many nodes; of a first one there is."""
        ...

    def add(self, size: int) -> int:
        """Append an empty row that will hold at most so many nodes. Returns its index."""
        ...

    def read(self, start: int, ids: Sequence[Sequence[int]]) -> list[Tensor]:
        """Read the next ids of adjacent rows, of several only if they are empty. Returns the nodes of each, (T, C)."""
        ...

    def step(self, ids: Sequence[int]) -> Tensor:
        """Read the next id of each of the first n rows. Returns their nodes, (n, C)."""
        ...

    def swap(self, row: int, other: int) -> None: ...

    def reset(self, row: int) -> None:
        """Empty a row."""
        ...

    def erase(self, row: int) -> None:
        """Empty a row whose numbers are not finite: masked keys count nothing only if they are numbers."""
        ...

    def pop(self) -> None:
        """Remove the last row."""
        ...

    def is_unbounded(self, row: int) -> bool: ...


def build_rows(model: Decoder, max_bytes: int) -> Rows:
    return SeparateRows(model) if isinstance(model, HasOwnCache) else SharedRows(model, max_bytes)


class SharedRows:
    """Rows of keys and values in one tensor for each layer, which grows with the rows and their sizes."""

    def __init__(self, model: Decoder, max_bytes: int):
        self.model, self.config = model, model.body.config
        self.parameter = next(model.body.parameters())
        self.format = find_cache_format(model.body)
        self.max_nodes = max_bytes // count_node_bytes(self.config, self.format)
        self.edges: list[Edges] = [causal] * self.config.n_layer  # known once a layer has been used
        self.clear()

    def clear(self) -> None:
        self.capacity, self.size = 0, 0  # rows and nodes of a row that there is memory for
        self.lengths: list[int] = []
        self.layers: list[tuple[Tensor, Tensor] | None] = [None] * self.config.n_layer
        self.view: RowView | None = None  # of the last step

    def find_sizes(self, size: int) -> tuple[int, int]:
        """Return the rows and the nodes of a row that there must be memory for with another row."""
        size = min(self.config.context, -(-size // SIZE_UNIT) * SIZE_UNIT)
        is_full = len(self.lengths) == self.capacity
        return max(MIN_ROWS, 2 * self.capacity) if is_full else self.capacity, max(self.size, size)

    def can_add(self, size: int) -> bool:
        return not self.lengths or math.prod(self.find_sizes(size)) <= self.max_nodes

    def add(self, size: int) -> int:
        sizes, self.view = self.find_sizes(size), None
        if sizes != (self.capacity, self.size):
            self.capacity, self.size = sizes
            self.layers = [kv and self.grow(kv, layer) for layer, kv in enumerate(self.layers)]
        self.lengths.append(0)
        return len(self.lengths) - 1

    def grow(self, kv: tuple[Tensor, Tensor], layer: int) -> tuple[Tensor, Tensor]:
        larger = self.allocate(kv[0], layer)
        for new, old in zip(larger, kv):
            new[: len(old), :, : old.shape[2]] = old
        return larger

    def allocate(self, like: Tensor, layer: int) -> tuple[Tensor, Tensor]:
        """Return memory for the keys and values of a layer, `like` (n, H, T, D)."""
        nodes, _ = count_slots(self.edges[layer], self.size)
        shape = (self.capacity, like.shape[1], nodes, like.shape[3])
        return like.new_zeros(shape), like.new_zeros(shape)

    def read(self, start: int, ids: Sequence[Sequence[int]]) -> list[Tensor]:
        view, self.view = RowView(self, start, start + len(ids)), None
        inputs, lengths = pad_rows(ids, view.device)
        if len(ids) > 1:
            view.reset(lengths)
        nodes = self.model.hidden(inputs, view)
        if len(ids) > 1:
            view.trim(lengths)
        for row, part in enumerate(ids, start):
            self.lengths[row] += len(part)
        return [row[: len(part)] for row, part in zip(nodes, ids)]

    def step(self, ids: Sequence[int]) -> Tensor:
        if self.view is None or self.view.batch != len(ids):
            self.view = RowView(self, 0, len(ids))
        nodes = self.model.hidden(torch.tensor(ids, device=self.view.device)[:, None], self.view)[:, 0]
        for row in range(len(ids)):
            self.lengths[row] += 1
        return nodes

    def swap(self, row: int, other: int) -> None:
        if row == other:
            return
        self.view = None
        length = max(self.lengths[row], self.lengths[other])
        self.lengths[row], self.lengths[other] = self.lengths[other], self.lengths[row]
        rows, others = torch.tensor([row, other]), torch.tensor([other, row])
        for tensor in (tensor for kv in self.layers if kv is not None for tensor in kv):
            tensor[rows, :, :length] = tensor[others, :, :length]

    def reset(self, row: int) -> None:
        self.lengths[row], self.view = 0, None

    def erase(self, row: int) -> None:
        self.reset(row)
        for tensor in (tensor for kv in self.layers if kv is not None for tensor in kv):
            tensor[row] = 0

    def copy_nodes(self, row: int, start: int, stop: int) -> Tensor | None:
        """Return a copy of the keys and values of some nodes of a row, (2 * layers, H, T, D); None if a layer that
        keeps a window has overwritten the first nodes of the row."""
        tensors = [tensor for kv in self.layers if kv is not None for tensor in kv]
        if any(tensor.shape[2] < self.lengths[row] for tensor in tensors):
            return None
        return torch.stack([tensor[row, :, start:stop] for tensor in tensors])

    def fill(self, row: int, parts: Sequence[Tensor]) -> None:
        """Fill an empty row with nodes that were copied, the first of a text."""
        nodes = torch.cat(list(parts), dim=2).unflatten(0, (-1, 2))  # (layers, 2, H, T, D)
        self.lengths[row], self.view = nodes.shape[3], None
        for layer, (keys, values) in enumerate(nodes):
            kv = self.layers[layer] = self.layers[layer] or self.allocate(keys[None], layer)
            for stored, source in zip(kv, (keys, values)):
                stored[row, :, : source.shape[1]] = source

    def pop(self) -> None:
        self.lengths.pop()
        self.view = None
        if not self.lengths:
            self.clear()  # the memory of the largest batch is not kept

    def is_unbounded(self, row: int) -> bool:
        return RowView(self, row, row + 1).is_unbounded


class RowView(CompactCache):
    """Adjacent rows of `SharedRows` as a cache of their own."""

    def __init__(self, rows: SharedRows, start: int, stop: int):
        super().__init__(rows.config, stop - start, rows.size, rows.parameter.device, rows.format)
        self.rows, self.span = rows, slice(start, stop)
        self.layers = [kv and (kv[0][self.span], kv[1][self.span]) for kv in rows.layers]
        lengths = rows.lengths[self.span]
        self.lengths = lengths[0] if len(set(lengths)) == 1 else torch.tensor(lengths, device=self.device)
        self.slots: dict[tuple[int, ...], Tensor] = {}  # of the next node of each row, the same in every layer

    def advance(self, new: int) -> None:
        super().advance(new)
        self.slots.clear()

    def store(self, layer: int, k: Tensor, v: Tensor, edges: Edges) -> tuple[Tensor, Tensor]:
        if self.layers[layer] is None:
            self.rows.edges[layer] = edges
            kv = self.rows.layers[layer] = self.rows.allocate(k, layer)
            self.layers[layer] = kv[0][self.span], kv[1][self.span]
        return super().store(layer, k, v, edges)

    def write(self, kv: tuple[Tensor, Tensor], k: Tensor, v: Tensor, pinned: int = 0) -> None:
        if k.shape[2] > 1 or isinstance(self.lengths, int):
            return super().write(kv, k, v, pinned)
        n, heads, capacity = kv[0].shape[:3]
        key = (n, heads, capacity, pinned)
        if key not in self.slots:
            starts = torch.arange(n * heads, device=self.device) * capacity
            self.slots[key] = starts + find_slots(self.lengths, capacity, pinned).repeat_interleave(heads)
        for stored, source in zip(kv, (k, v)):
            stored.view(-1, stored.shape[3]).index_copy_(0, self.slots[key], source.reshape(-1, stored.shape[3]))


class SeparateRows:
    """A cache for each row, of a decoder whose cache is its own: rows do not share a step."""

    def __init__(self, model: Decoder):
        self.model: Any = model
        self.caches: list[Any] = []
        self.device = next(self.model.parameters()).device

    def can_add(self, size: int) -> bool:
        return True

    def add(self, size: int) -> int:
        self.caches.append(new_cache(self.model, 1, min(self.model.body.config.context, size)))
        return len(self.caches) - 1

    def read(self, start: int, ids: Sequence[Sequence[int]]) -> list[Tensor]:
        pairs = zip(self.caches[start:], ids)
        return [self.model.hidden(torch.tensor([part], device=self.device), cache)[0] for cache, part in pairs]

    def step(self, ids: Sequence[int]) -> Tensor:
        return torch.cat(self.read(0, [[token] for token in ids]))

    def swap(self, row: int, other: int) -> None:
        self.caches[row], self.caches[other] = self.caches[other], self.caches[row]

    def reset(self, row: int) -> None:
        self.caches[row].reset()

    erase = reset

    def pop(self) -> None:
        self.caches.pop()

    def is_unbounded(self, row: int) -> bool:
        return self.caches[row].is_unbounded
