"""Encoder, and encoder-decoder: two stacks, the second of which reads the top of the first (1706.03762).

Shapes: B batch, S nodes of the source, T tokens, C channels.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from .cache import KVCache
from .config import TransformerConfig
from .edges import Edges, causal, full, same, within
from .embeddings import TokenEmbedding
from .inspection import attention_weights
from .transformer import Transformer


class Encoder(nn.Module):
    """Tokens that all read each other (BERT, 1810.04805): ids (B, T) -> nodes (B, T, C).

    Subclasses add a head, so that the weights of `nodes` and `body` can move from one task to the next.

    Attributes:
        edges: the rule of each layer; padding and other documents are left out of it.
    """

    edges: Sequence[Edges]

    def __init__(self, vocab_size: int, config: TransformerConfig, token_types: int = 0, embedding_norm: bool = False):
        super().__init__()
        self.nodes = TokenEmbedding(vocab_size, config, token_types, embedding_norm)
        self.body, self.edges = Transformer(config), [full] * config.n_layer

    def hidden(
        self,
        ids: Tensor,
        lengths: Tensor | None = None,
        token_types: Tensor | None = None,
        document: Tensor | None = None,
        positions: Tensor | None = None,
    ) -> Tensor:
        """The nodes after the last block.

        Shapes:
            ids, token_types, positions: (B, T)
            lengths: (B,), the nodes of each row that are not padding; None for all
            document: (B, T) ids of packed documents, which do not read each other
        """
        limits = full if lengths is None else within(lengths)
        limits = limits if document is None else limits & same(document)
        rules = {rule: rule & limits for rule in dict.fromkeys(self.edges)}  # layers still share rules
        return self.body(self.nodes(ids, positions, token_types), [rules[rule] for rule in self.edges])


class EncoderDecoder(nn.Module):
    """A source of any kind, and a text decoded from it: T5, Whisper.

    Args:
        source: raw input -> nodes (B, S, C).
        target: embedding of the decoder's tokens.

    `memory_mask` is a rule for which nodes of the source may be read, by each other and by the target:
    `within(lengths)` where the source is padded.
    """

    def __init__(
        self,
        source: nn.Module,
        encoder: TransformerConfig,
        target: TokenEmbedding,
        decoder: TransformerConfig,
        head: nn.Module,
    ):
        super().__init__()
        self.source, self.encoder = source, Transformer(encoder)
        self.target, self.decoder = target, Transformer(decoder, cross=True)
        self.head = head

    def encode(self, source: Any, memory_mask: Edges = full) -> Tensor:
        """The memory: (B, S, C)"""
        return self.encoder(self.source(source), memory_mask)

    def decode(self, ids: Tensor, memory: Tensor, memory_mask: Edges = full, cache: KVCache | None = None) -> Tensor:
        """The nodes after the decoder's last block: (B, T, C). With a cache, ids are the next ones of each row."""
        positions = None if cache is None else cache.positions(ids.shape[1])
        return self.decoder(self.target(ids, positions), causal, memory, memory_mask, cache)

    def condition(self, memory: Tensor, memory_mask: Edges = full, source: Any = None) -> "ConditionedDecoder":
        """A decoder that reads this memory. `source` is what was encoded, for a head that copies."""
        return ConditionedDecoder(self, memory, memory_mask)

    def forward(self, source: Any, ids: Tensor, memory_mask: Edges = full) -> Tensor:
        """Logits of what follows each token of the target: ids (B, T) -> (B, T, vocab_size)"""
        return self.head(self.decode(ids, self.encode(source, memory_mask), memory_mask))

    def path_length_bounds(self, source: int, target: int) -> tuple[int, int]:
        """The fewest and the most sublayers between the first of `source` words and the last of `target` words: the
        residual stream goes around all but one. Neither grows with the lengths."""
        return 1, 2 * len(self.encoder.blocks) + 3 * len(self.decoder.blocks)

    @torch.no_grad()
    def alignment(self, source: Any, ids: Tensor, memory_mask: Edges = full) -> Tensor:
        """The weights of cross-attention, of each target token over the source: (layers, heads, B, T, S)."""
        weights = attention_weights(self.decoder, lambda: self(source, ids, memory_mask), "cross")
        return weights.transpose(1, 2)


class ConditionedDecoder:
    """A decoder with a memory: it is decoded like a language model."""

    def __init__(self, model: Any, memory: Tensor, memory_mask: Edges):
        self.model, self.memory, self.memory_mask = model, memory, memory_mask
        self.body, self.head = model.decoder, model.head

    def hidden(self, ids: Tensor, cache: KVCache | None = None) -> Tensor:
        """The nodes after the last block, (B, T, C). With a cache, ids are the next ones of each row."""
        return self.model.decode(ids, self.memory, self.memory_mask, cache)
