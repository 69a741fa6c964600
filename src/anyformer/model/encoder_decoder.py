"""Encoder and decoder: two stacks, the second reads the top of the first by cross-attention (1706.03762).

Shapes: B batch, S nodes of the source, T tokens of the target, C channels.
"""

from typing import Any

import torch
from torch import Tensor, nn

from .block import Transformer
from .cache import KVCache
from .config import TransformerConfig
from .edges import Edges, causal, full
from .embeddings import Tokens


class EncoderDecoder(nn.Module):
    """What the source is made of is for its nodes to know: text (T5), sound (Whisper), anything that becomes (B, S, C).

    seen: which nodes of the source may be read, by each other and by the target (`within(lengths)` where it is padded).
    """

    def __init__(
        self, source: nn.Module, encoder: TransformerConfig, target: Tokens, decoder: TransformerConfig, head: nn.Module
    ):
        super().__init__()
        self.source, self.encoder = source, Transformer(encoder)
        self.target, self.decoder = target, Transformer(decoder, cross=True)
        self.head = head

    def encode(self, source: Any, seen: Edges = full) -> Tensor:
        """The memory: (B, S, C)"""
        return self.encoder(self.source(source), seen)

    def given(self, memory: Tensor, seen: Edges = full) -> "Given":
        return Given(self, memory, seen)

    def forward(self, source: Any, ids: Tensor, seen: Edges = full) -> Tensor:
        """Logits of what follows each token of the target: ids (B, T) -> (B, T, vocab_size)"""
        given = self.given(self.encode(source, seen), seen)
        return given.head(given.hidden(ids))

    def path(self, source: int, target: int) -> tuple[int, int]:
        """How many sublayers lie between a word of the source and the last word of the target, at least (the residual
        stream goes round all others) and at most: neither grows with the length."""
        return 1, 2 * len(self.encoder.blocks) + 3 * len(self.decoder.blocks)

    @torch.no_grad()
    def alignment(self, source: Any, ids: Tensor, seen: Edges = full) -> Tensor:
        """Where each token of the target looks: the weights of cross-attention, (layers, heads, B, T, S)."""
        found: list[Tensor] = []
        hooks = [
            block.get_submodule("cross").register_forward_pre_hook(lambda m, heard: found.append(m.looks(*heard[:3])))
            for block in self.decoder.blocks
        ]
        try:
            self(source, ids, seen)
        finally:
            for hook in hooks:
                hook.remove()
        return torch.stack(found).transpose(1, 2)


class Given:
    """The decoder with its source already read: to whoever decodes it looks like a language model."""

    def __init__(self, model: EncoderDecoder, memory: Tensor, seen: Edges):
        self.model, self.memory, self.seen = model, memory, seen
        self.body, self.head = model.decoder, model.head

    def hidden(self, ids: Tensor, cache: KVCache | None = None) -> Tensor:
        """The nodes after the decoder's last block, (B, T, C); with a cache, ids are the next ones of each row."""
        positions = None if cache is None else cache.positions(ids.shape[1])
        return self.body(self.model.target(ids, positions), causal, self.memory, self.seen, cache)
