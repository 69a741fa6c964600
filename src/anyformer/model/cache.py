"""KVCache: the keys and values of nodes that a stack has read, so that the next node costs one step.

Shapes: B batch, Q new nodes, K nodes that are read, H heads, D channels of a head.
"""

import torch
from torch import Tensor

from .config import LEARNED, TransformerConfig
from .edges import Edges, causal


def count_slots(edges: Edges, size: int) -> tuple[int, int]:
    """How many of `size` nodes a layer with this rule keeps, and how many of them are pinned."""
    capacity = edges.pinned + edges.left_span + 1
    return (int(capacity), edges.pinned) if capacity < size else (size, 0)


def find_slots(positions: Tensor, capacity: int, pinned: int) -> Tensor:
    """The slot of each node: its own if it is pinned, else one of the ring behind."""
    return torch.where(positions < pinned, positions, pinned + (positions - pinned) % (capacity - pinned))


class KVCache:
    """Keys and values of the nodes already read, a pair for each layer, allocated at the first use of the layer.

    Row b holds `lengths[b]` nodes, at positions 0, 1 ...; at most `size`, the context by default. Rows may differ in
    length (`trim`), so that prompts of unequal length share a batch. A layer whose rule has a finite left span keeps
    only that many nodes, in a ring buffer of R slots: node p in slot p % R, where it overwrites node p - R. The first
    nodes, if the rule pins some, have slots of their own before it. Keys and values of a memory (cross-attention) are
    kept too: a memory does not change.
    """

    def __init__(
        self, config: TransformerConfig, batch: int, size: int | None = None, device: torch.device | str = "cpu"
    ):
        self.config, self.batch, self.size, self.device = config, batch, size or config.context, torch.device(device)
        self.layers: list[tuple[Tensor, Tensor] | None] = [None] * config.n_layer
        self.memory: list[tuple[Tensor, Tensor] | None] = [None] * config.n_layer
        self.embeds_positions = config.position in (*LEARNED, "sinusoidal")
        self.reset()

    def reset(self, prefill_lengths: Tensor | None = None) -> None:
        """Forget all nodes but the memory. `prefill_lengths` (B,): of the rows that will be read next, without their
        padding; a ring buffer needs them before padding overwrites keys."""
        self.lengths, self.prefill_lengths = 0, prefill_lengths

    @property
    def lengths(self) -> int | Tensor:
        """Nodes in each row: one number, or (B,) where rows differ."""
        return self._lengths

    @lengths.setter
    def lengths(self, lengths: int | Tensor) -> None:
        self._lengths = lengths
        self.max_length = lengths if isinstance(lengths, int) else int(lengths.max())
        """Nodes in the longest row."""

    @property
    def is_unbounded(self) -> bool:
        """Whether it never fills: every layer keeps a ring buffer, and no position is added to the nodes."""
        return not self.embeds_positions and all(kv is not None and kv[0].shape[2] < self.size for kv in self.layers)

    def positions(self, new: int) -> Tensor:
        """The positions of the next `new` nodes of each row: (new,) or (B, new)."""
        steps = torch.arange(new, device=self.device)
        return steps + (self.lengths if isinstance(self.lengths, int) else self.lengths[:, None])

    def advance(self, new: int) -> None:
        """Count `new` more nodes in each row, after all layers have stored them. Reads nothing from the device."""
        self._lengths, self.max_length = self._lengths + new, self.max_length + new

    def trim(self, lengths: Tensor) -> None:
        """Keep the first lengths[b] nodes of row b. Raises ValueError if a ring buffer has overwritten some of them."""
        prefill_lengths, self.prefill_lengths = self.prefill_lengths, None
        is_announced = prefill_lengths is not None and torch.equal(prefill_lengths, lengths.to(prefill_lengths.device))
        has_overwritten = any(kv is not None and kv[0].shape[2] < self.max_length for kv in self.layers)
        if has_overwritten and not is_announced and bool((lengths < self.max_length).any()):
            raise ValueError("a layer that keeps a window cannot go back: reset it with `prefill_lengths` before")
        self.lengths = int(lengths[0]) if bool((lengths == lengths[0]).all()) else lengths.to(self.device)

    def reorder(self, rows: Tensor) -> None:
        """Make row i a copy of row rows[i], memory included, as beam search needs. rows: (B,)"""
        rows = rows.to(self.device)
        for tensor in (tensor for kv in self.layers if kv is not None for tensor in kv):
            tensor[:, :, : self.max_length] = tensor[rows, :, : self.max_length]
        self.memory = [kv and (kv[0][rows], kv[1][rows]) for kv in self.memory]
        if not isinstance(self.lengths, int):
            self.lengths = self.lengths[rows]

    def slot_positions(self, edges: Edges, new: int) -> Tensor | None:
        """The positions of the keys that `update` will return, (K,) or (B, K), below 0 for an empty slot; None if they
        are 0, 1 ... in order."""
        capacity, pinned = count_slots(edges, self.size)
        if self.max_length == 0 or self.max_length + new <= capacity:
            return None
        if new == 1:
            return self._ring_positions(capacity, pinned, 1)
        stored = self._ring_positions(capacity, pinned, 0)[..., : self.max_length]
        return torch.cat([stored, self.positions(new)], dim=-1)

    def _ring_positions(self, capacity: int, pinned: int, new: int) -> Tensor:
        """The position in each slot of a ring buffer after `new` more nodes: (capacity,) or (B, capacity)."""
        last = (self.lengths if isinstance(self.lengths, int) else self.lengths[:, None]) + new - 1
        slot = torch.arange(capacity, device=self.device)
        newest = last - (last - slot) % (capacity - pinned)
        return torch.where(slot < pinned, slot.where(slot <= last, -1), newest.where(newest >= pinned, -1))

    def update(self, layer: int, k: Tensor, v: Tensor, edges: Edges = causal) -> tuple[Tensor, Tensor]:
        """Store the keys and values of new nodes, (B, H, Q, D) each, and return those of all nodes that the rule may
        reach, (B, H, K, D). Raises ValueError if they do not fit, or if the span of the layer has changed."""
        (capacity, pinned), end = count_slots(edges, self.size), self.max_length + k.shape[2]
        if capacity == self.size < end:
            raise ValueError(f"the cache holds {self.size} nodes and would need {end}: make it larger or crop")
        kv = self.layers[layer]
        if kv is None:
            shape = (self.batch, k.shape[1], capacity, k.shape[3])
            kv = self.layers[layer] = k.new_zeros(shape), k.new_zeros(shape)
        if kv[0].shape[2] != capacity:
            raise ValueError(f"layer {layer} keeps {kv[0].shape[2]} nodes, but its rule now reads {capacity}")
        if end <= capacity or k.shape[2] == 1:
            self.write(kv, k, v, pinned)
            return self.read(kv, end)
        keys, values = k, v
        if self.max_length:  # new nodes read some that they are about to overwrite
            stored_keys, stored_values = self.read(kv, self.max_length)
            keys, values = torch.cat([stored_keys, k], 2), torch.cat([stored_values, v], 2)
        self.write(kv, k, v, pinned)
        return keys, values

    def read(self, kv: tuple[Tensor, Tensor], end: int) -> tuple[Tensor, Tensor]:
        """Keys and values of the first `end` slots."""
        return kv[0][:, :, :end], kv[1][:, :, :end]

    def write(self, kv: tuple[Tensor, Tensor], k: Tensor, v: Tensor, pinned: int = 0) -> None:
        """Write each new node into its slot; of more nodes than slots, the pinned ones and the last of each row that
        are not padding."""
        new, capacity, ring, start = k.shape[2], kv[0].shape[2], kv[0].shape[2] - pinned, self.lengths
        if isinstance(start, int):
            slot = start if start < pinned else pinned + (start - pinned) % ring
            if slot + new <= capacity:
                for stored, source in zip(kv, (k, v)):
                    stored[:, :, slot : slot + new] = source
                return
        is_padded = self.max_length == 0 and self.prefill_lengths is not None
        if new == 1 and not is_padded and isinstance(start, Tensor):
            slots = start if capacity == self.size else find_slots(start, capacity, pinned)
            index = slots.view(-1, 1, 1, 1).expand(len(k), *k.shape[1:])
            for stored, source in zip(kv, (k, v)):
                stored.scatter_(2, index, source)
            return
        row, order = torch.arange(len(k), device=k.device)[:, None], torch.arange(new, device=k.device)
        lengths = self.prefill_lengths if is_padded else k.new_full((len(k),), new, dtype=torch.long)
        last = lengths.to(k.device)[:, None] - 1
        index, position = (last - order[:ring]).clamp(min=0), self.positions(new).expand(len(k), -1)
        if pinned:
            index = torch.cat([index, order[:pinned].where(position[:, :pinned] < pinned, last)], dim=1)
        slot = find_slots(position.gather(1, index), capacity, pinned)
        for stored, source in zip(kv, (k, v)):
            stored[row, :, slot] = source[row, :, index]


def can_go_back(cache: KVCache) -> bool:
    """Whether no layer keeps only a window, whose old keys the new ones overwrite."""
    return all(kv is None or kv[0].shape[2] >= cache.size for kv in cache.layers)
