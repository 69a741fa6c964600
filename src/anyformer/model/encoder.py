"""Encoder: tokens that all read each other. Delete the mask of a language model, and this is left (BERT, 1810.04805).

Shapes: B batch, T nodes, C channels.
"""

from torch import Tensor, nn

from .block import Transformer
from .config import TransformerConfig
from .edges import full, within
from .embeddings import Tokens


class Encoder(nn.Module):
    """ids (B, T) -> nodes after the last block (B, T, C). A head is for whoever inherits, so that the weights of
    `nodes` and `body` go from one task to the next."""

    def __init__(self, vocab_size: int, config: TransformerConfig, kinds: int = 0, normed: bool = False):
        super().__init__()
        self.nodes = Tokens(vocab_size, config, kinds, normed)
        self.body = Transformer(config)

    def hidden(self, ids: Tensor, lengths: Tensor | None = None, kind: Tensor | None = None) -> Tensor:
        """lengths (B,): how many nodes of each row are real, None for all; kind (B, T): which text each is of."""
        return self.body(self.nodes(ids, kind=kind), full if lengths is None else within(lengths))
