"""Encoder and decoder: two stacks, the second reads the top of the first by cross-attention (1706.03762).

Shapes: B batch, S nodes of the source, T tokens of the target, C channels.
"""

from typing import Any

import torch
from torch import Tensor, nn

from .transformer import Transformer
from .cache import KVCache
from .config import TransformerConfig
from .edges import Edges, causal, full
from .embeddings import TokenEmbedding


class Encoder(nn.Module):
    """ids (B, T) -> nodes after the last block (B, T, C). A head is for whoever inherits, so that the weights of
    `nodes` and `body` go from one task to the next."""

    def __init__(self, vocab_size: int, config: TransformerConfig, kinds: int = 0, normed: bool = False):
        super().__init__()
        self.nodes = TokenEmbedding(vocab_size, config, kinds, normed)
        self.body = Transformer(config)

    def hidden(self, ids: Tensor, lengths: Tensor | None = None, kind: Tensor | None = None) -> Tensor:
        """lengths (B,): how many nodes of each row are real, None for all; kind (B, T): which text each is of."""
        return self.body(self.nodes(ids, kind=kind), full if lengths is None else within(lengths))


class EncoderDecoder(nn.Module):
    """What the source is made of is for its nodes to know: text (T5), sound (Whisper), anything that becomes (B, S, C).

    seen: which nodes of the source may be read, by each other and by the target (`within(lengths)` where it is padded).
    """

    def __init__(
        self, source: nn.Module, encoder: TransformerConfig, target: TokenEmbedding, decoder: TransformerConfig, head: nn.Module
    ):
        super().__init__()
        self.source, self.encoder = source, Transformer(encoder)
        self.target, self.decoder = target, Transformer(decoder, cross=True)
        self.head = head

    def encode(self, source: Any, memory_mask: Edges = full) -> Tensor:
        """The memory: (B, S, C)"""
        return self.encoder(self.source(source), memory_mask)

    def condition(self, memory: Tensor, memory_mask: Edges = full) -> "ConditionedDecoder":
        return ConditionedDecoder(self, memory, memory_mask)

    def forward(self, source: Any, ids: Tensor, memory_mask: Edges = full) -> Tensor:
        """Logits of what follows each token of the target: ids (B, T) -> (B, T, vocab_size)"""
        given = self.condition(self.encode(source, memory_mask), memory_mask)
        return given.head(given.hidden(ids))

    def path_length_bounds(self, source: int, target: int) -> tuple[int, int]:
        """How many sublayers lie between a word of the source and the last word of the target, at least (the residual
        stream goes round all others) and at most: neither grows with the length."""
        return 1, 2 * len(self.encoder.blocks) + 3 * len(self.decoder.blocks)

    @torch.no_grad()
    def alignment(self, source: Any, ids: Tensor, memory_mask: Edges = full) -> Tensor:
        """Where each token of the target looks: the weights of cross-attention, (layers, heads, B, T, S)."""
        found: list[Tensor] = []
        hooks = [
            block.get_submodule("cross").register_forward_pre_hook(lambda m, heard: found.append(m.looks(*heard[:3])))
            for block in self.decoder.blocks
        ]
        try:
            self(source, ids, memory_mask)
        finally:
            for hook in hooks:
                hook.remove()
        return torch.stack(found).transpose(1, 2)


class ConditionedDecoder:
    """The decoder with its source already read: to whoever decodes it looks like a language model."""

    def __init__(self, model: EncoderDecoder, memory: Tensor, memory_mask: Edges):
        self.model, self.memory, self.memory_mask = model, memory, memory_mask
        self.body, self.head = model.decoder, model.head

    def hidden(self, ids: Tensor, cache: KVCache | None = None) -> Tensor:
        """The nodes after the decoder's last block, (B, T, C); with a cache, ids are the next ones of each row."""
        positions = None if cache is None else cache.positions(ids.shape[1])
        return self.body(self.model.target(ids, positions), causal, self.memory, self.memory_mask, cache)
