"""One step of decoding as a CUDA graph: its kernels are launched all at once. One by one, launching the hundreds of
small kernels of a step takes several times as long as running them.

A graph reads and writes the same memory each time, so that no shape may grow: each step reads all slots of the cache,
and the rule of edges masks those that are not filled yet.

Shapes: B rows, V entries of the vocabulary.
"""

from collections.abc import Callable
from typing import TypeGuard

import torch
from torch import Tensor

from ..model.cache import KVCache, can_go_back
from ..model.compact_cache import CompactCache
from ..model.rope_scaling import depends_on_length

MIN_STEPS = 16  # for which capturing pays: it takes as long as some steps

Step = Callable[[Tensor, KVCache], Tensor]
"""Reads one more token of each row, (B,), and returns the logits of what follows: (B, V)."""


def choose_step(step: Step, cache: KVCache, tokens: int) -> Callable[[Tensor], Tensor]:
    """Return the step after what is in the cache: captured where there is a GPU and so many new tokens are worth it."""
    if can_be_static(cache) and cache.device.type == "cuda" and min(tokens, cache.size - cache.max_length) > MIN_STEPS:
        captured = CapturedStep(step, cache)
        if captured.can_be_captured():
            return captured.capture()
    return lambda new: step(new, cache)


def can_be_static(cache: KVCache) -> TypeGuard[CompactCache]:
    """Whether the cache holds keys and values alone, has room, and no layer keeps only a window of them."""
    if type(cache) is not CompactCache or depends_on_length(cache.config) or cache.max_length >= cache.size:
        return False
    return None not in cache.layers and can_go_back(cache)


class StaticCache(CompactCache):
    """A view of a cache that has the same shapes in every step. `set_lengths` says which slots are filled."""

    def __init__(self, cache: CompactCache):
        vars(self).update(vars(cache))  # shares its tensors
        self._lengths = self.filled = torch.zeros(cache.batch, dtype=torch.long, device=cache.device)
        self.max_length = self.size - 1  # all slots are read, that of the new token included

    def set_lengths(self, lengths: int | Tensor) -> None:
        self.filled.copy_(lengths) if isinstance(lengths, Tensor) else self.filled.fill_(lengths)

    def advance(self, new: int) -> None:
        """Nothing: the lengths are set before each step."""


class CapturedStep:
    """A step whose tensors keep their addresses. Before `capture` it runs kernel by kernel, on any device."""

    def __init__(self, step: Step, cache: CompactCache):
        self.step, self.cache, self.static = step, cache, StaticCache(cache)
        self.new = torch.zeros(cache.batch, dtype=torch.long, device=cache.device)
        self.replay: Callable[[], None] = self.run

    def run(self) -> None:
        self.logits = self.step(self.new, self.static)

    def can_be_captured(self) -> bool:
        """Whether the step reads no number from the GPU, which a graph cannot wait for. Runs it once, so that libraries
        allocate their workspaces; what it writes is overwritten by the first step."""
        self.static.set_lengths(self.cache.lengths)
        mode = torch.cuda.get_sync_debug_mode()
        with torch.cuda.device(self.cache.device):
            stream = torch.cuda.Stream()
            stream.wait_stream(torch.cuda.current_stream())
            torch.cuda.set_sync_debug_mode("error")
            try:
                with torch.cuda.stream(stream):
                    self.run()
            except RuntimeError:
                return False
            finally:
                torch.cuda.set_sync_debug_mode(mode)
                torch.cuda.current_stream().wait_stream(stream)
        return True

    def capture(self) -> "CapturedStep":
        with torch.cuda.device(self.cache.device):
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, capture_error_mode="thread_local"):
                self.run()
        self.replay = graph.replay
        return self

    def __call__(self, new: Tensor) -> Tensor:
        self.new.copy_(new)
        self.static.set_lengths(self.cache.lengths)
        self.replay()
        self.cache.advance(1)
        return self.logits.clone()  # the next step overwrites it
