"""PrefixCache: a text that begins as an earlier one reads only its end.

Keys and values of a node depend on the nodes before it alone, so that those of a common beginning can be copied. They
are kept in blocks of BLOCK_NODES nodes, a tree in which each block is found by the one before it and by its own ids:
texts share blocks, as the pages of vLLM (2309.06180) and the tree of SGLang (2312.07104) do. If memory is short, the
block that was used the longest time ago goes first; it is never one that another one follows.
"""

from collections import OrderedDict
from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor

from ..model.config import TransformerConfig
from .row_cache import SharedRows

BLOCK_NODES = 16

Key = tuple[int, tuple[int, ...]]  # the number of the block before, 0 for none, and the ids of the block


class KeptBlock(NamedTuple):
    """BLOCK_NODES nodes of a text. kv: keys and values of all layers, (2 * layers, H, BLOCK_NODES, D)"""

    number: int
    kv: Tensor


class PrefixCache:
    """The beginnings of the texts that were read in rows of one model. Not for a model whose weights change.

    Args:
        max_bytes: The most that the keys and values kept here may take.
    """

    def __init__(self, rows: SharedRows, max_bytes: int):
        self.rows, self.max_bytes, self.n_bytes, self.n_blocks = rows, max_bytes, 0, 0
        self.max_nodes = find_max_nodes(rows.config)
        self.blocks: OrderedDict[Key, KeptBlock] = OrderedDict()
        """The one that was used the longest time ago first."""

    def restore(self, row: int, ids: Sequence[int]) -> int:
        """Fill an empty row with the beginning of a text, as far as it is known, but for its last id. Returns how many
        nodes were filled."""
        if len(ids) > self.max_nodes:
            return 0
        path = self.find(ids[:-1])
        if path:
            self.touch(path)
            self.rows.fill(row, [self.blocks[key].kv for key in path])
        return len(path) * BLOCK_NODES

    def save(self, row: int, ids: Sequence[int]) -> None:
        """Keep the nodes of a row that has read these ids, in whole blocks, as far as there is memory."""
        if len(ids) > self.max_nodes:
            return
        path = self.find(ids)
        self.touch(path)
        for start in range(len(path) * BLOCK_NODES, len(ids) - BLOCK_NODES + 1, BLOCK_NODES):
            kv = self.rows.copy_nodes(row, start, start + BLOCK_NODES)
            if kv is None or not self.make_room(kv.nbytes, path):
                break
            self.n_blocks += 1
            key = self.build_key(path, ids, start)
            self.blocks[key] = KeptBlock(self.n_blocks, kv)
            self.n_bytes += kv.nbytes
            path.append(key)
        self.touch(path)

    def find(self, ids: Sequence[int]) -> list[Key]:
        """Return the keys of the blocks with which a text begins."""
        path: list[Key] = []
        for start in range(0, len(ids) - BLOCK_NODES + 1, BLOCK_NODES):
            key = self.build_key(path, ids, start)
            if key not in self.blocks:
                break
            path.append(key)
        return path

    def build_key(self, path: Sequence[Key], ids: Sequence[int], start: int) -> Key:
        return self.blocks[path[-1]].number if path else 0, tuple(ids[start : start + BLOCK_NODES])

    def touch(self, path: Sequence[Key]) -> None:
        """Note that blocks were used: the first of a text last, so that none is dropped before those that follow it."""
        for key in reversed(path):
            self.blocks.move_to_end(key)

    def make_room(self, n_bytes: int, path: Sequence[Key]) -> bool:
        """Drop the oldest blocks until so many bytes fit, but none of this path. Returns whether they fit."""
        while self.blocks and self.n_bytes + n_bytes > self.max_bytes:
            oldest = next(iter(self.blocks))
            if oldest in path:
                return False
            self.n_bytes -= self.blocks.pop(oldest).kv.nbytes
        return self.n_bytes + n_bytes <= self.max_bytes


def find_max_nodes(config: TransformerConfig) -> int:
    """Return the length of a text up to which the keys of its beginning do not depend on it."""
    scaling = config.rope_scaling
    is_by_length = scaling is not None and scaling.rope_type in ("dynamic", "longrope")
    return scaling.original_max_position_embeddings if scaling is not None and is_by_length else config.context
