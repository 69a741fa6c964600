"""KVCache: what a stack has read stays read. The next node costs one step, not the whole text again.

Shapes: B batch, Q new nodes, K nodes that are read, H heads, D channels of a head.
"""

import math

import torch
from torch import Tensor

from .config import TransformerConfig


class KVCache:
    """Keys and values of the nodes already read, one pair for each layer, in memory taken once, when the layer is first
    asked.

    Row b holds `lengths[b]` nodes, at positions 0, 1, ... Rows may differ (`trim`), which is how prompts of unequal
    length share a batch. A layer whose rule reaches back a few nodes keeps only so many, in a ring: node p in slot
    p % room, where it takes the place of node p - room. What was computed from a memory (cross-attention) is kept too:
    a memory does not change.
    """

    def __init__(
        self, config: TransformerConfig, batch: int, size: int | None = None, device: torch.device | str = "cpu"
    ):
        self.batch, self.size, self.device = batch, size or config.context, torch.device(device)
        self.layers: list[tuple[Tensor, Tensor] | None] = [None] * config.n_layer
        self.memory: list[tuple[Tensor, Tensor] | None] = [None] * config.n_layer
        self.placed = config.position in ("learned", "sinusoidal")
        self.lengths = 0
        self.prefill_lengths: Tensor | None = None
        """How many nodes of each row are no padding, (B,), where they are read from position 0 on. A ring must know
        before: it would let go of what `trim` comes back to."""

    @property
    def lengths(self) -> int | Tensor:
        """Nodes in each row: one number, or (B,) where they differ."""
        return self._lengths

    @lengths.setter
    def lengths(self, lengths: int | Tensor) -> None:
        self._lengths = lengths
        self._filled = lengths if isinstance(lengths, int) else int(lengths.max())

    @property
    def max_length(self) -> int:
        """Nodes in the longest row."""
        return self._filled

    @property
    def unbounded(self) -> bool:
        """Whether it never fills: every layer keeps a ring, and no node carries its position in itself."""
        return not self.placed and all(pair is not None and pair[0].shape[2] < self.size for pair in self.layers)

    def positions(self, new: int) -> Tensor:
        """Where the next `new` nodes of each row will stand: (new,) or (B, new)."""
        ahead = torch.arange(new, device=self.device)
        return ahead + (self.lengths if isinstance(self.lengths, int) else self.lengths[:, None])

    def advance(self, new: int) -> None:
        self.lengths = self.lengths + new

    def trim(self, lengths: Tensor) -> None:
        """Row b keeps its first lengths[b] nodes (what came after was padding). lengths: (B,). Raises ValueError where
        a ring has let go of nodes that would have to come back."""
        told, self.prefill_lengths = self.prefill_lengths is not None and torch.equal(self.prefill_lengths, lengths.to(self.prefill_lengths.device)), None
        turned = any(pair is not None and pair[0].shape[2] < self.max_length for pair in self.layers)
        if turned and not told and bool((lengths < self.max_length).any()):
            raise ValueError("a layer that keeps a window only cannot go back: say before how many nodes are `real`")
        self.lengths = int(lengths[0]) if bool((lengths == lengths[0]).all()) else lengths.to(self.device)

    def reorder(self, rows: Tensor) -> None:
        """Row i becomes what row rows[i] was, memory included: a beam drops some rows and doubles others. rows: (B,)"""
        rows = rows.to(self.device)
        for tensor in (tensor for pair in self.layers if pair is not None for tensor in pair):
            tensor[:, :, : self.max_length] = tensor[rows, :, : self.max_length]
        self.memory = [pair and (pair[0][rows], pair[1][rows]) for pair in self.memory]
        if not isinstance(self.lengths, int):
            self.lengths = self.lengths[rows]

    def capacity(self, left_span: float) -> int:
        """How many nodes a layer keeps whose rule reaches back so far."""
        return int(min(self.size, left_span + 1))

    def slot_positions(self, left_span: float, new: int) -> Tensor | None:
        """Where the nodes stand whose keys `append` will give back, (K,) or (B, K), below 0 where there is none; or
        None: in their order, from 0 on."""
        room = self.capacity(left_span)
        if self.max_length == 0 or self.max_length + new <= room:
            return None
        if new == 1:
            return self.slots(room, 1)
        before, coming = self.slots(room, 0)[..., : self.max_length], self.positions(new)
        return torch.cat([before, coming], dim=-1)

    def slots(self, capacity: int, new: int) -> Tensor:
        """Which node each slot of a ring holds after `new` more, below 0 for none: (room,) or (B, room)."""
        last = (self.lengths if isinstance(self.lengths, int) else self.lengths[:, None]) + new - 1
        return last - (last - torch.arange(capacity, device=self.device)) % capacity

    def append(self, layer: int, k: Tensor, v: Tensor, left_span: float = math.inf) -> tuple[Tensor, Tensor]:
        """Write the new nodes' keys and values, give back those of all nodes that the rule may reach: (B, H, Q, D) ->
        (B, H, K, D). Raises ValueError where they do not fit, or the rule reaches further than it did."""
        room, end = self.capacity(left_span), self.max_length + k.shape[2]
        if room == self.size < end:
            raise ValueError(f"the cache holds {self.size} nodes and would need {end}: make it larger or crop")
        keys, values = pair = self.layers[layer] or self.take(room, k)
        if keys.shape[2] != room:
            raise ValueError(f"layer {layer} keeps {keys.shape[2]} nodes, and its rule now reads {room}")
        self.layers[layer] = pair
        if end <= room or k.shape[2] == 1:
            self.put(pair, k, v)
            return keys[:, :, :end], values[:, :, :end]
        read = k, v
        if self.max_length:  # the new nodes read some whose places they are about to take
            read = torch.cat([keys[:, :, : self.max_length], k], 2), torch.cat([values[:, :, : self.max_length], v], 2)
        self.put(pair, k, v)
        return read

    def take(self, capacity: int, k: Tensor) -> tuple[Tensor, Tensor]:
        shape = (self.batch, k.shape[1], capacity, k.shape[3])
        return k.new_zeros(shape), k.new_zeros(shape)

    def put(self, pair: tuple[Tensor, Tensor], k: Tensor, v: Tensor) -> None:
        """Each new node into its slot; of more than there are slots, the last real ones of each row."""
        new, room = k.shape[2], pair[0].shape[2]
        if isinstance(self.lengths, int) and (first := self.lengths % room) + new <= room:
            for kept, one in zip(pair, (k, v)):
                kept[:, :, first : first + new] = one
            return
        count, row = min(new, room), torch.arange(len(k), device=k.device)[:, None]
        real = k.new_full((len(k),), new, dtype=torch.long) if self.max_length or self.prefill_lengths is None else self.prefill_lengths
        last = (real.to(k.device)[:, None] - count + torch.arange(count, device=k.device)).clamp(min=0)  # (B, count)
        slot = self.positions(new).expand(len(k), -1).gather(1, last) % room
        for kept, one in zip(pair, (k, v)):
            kept[row, :, slot] = one[row, :, last]
