"""The neural language model of 2003: a window of words and a hidden layer. B batch, T tokens, E embedding."""

import torch
from torch import Tensor, nn

from ..model.kernels.dropout import Dropout
from .recurrent import Body, RecurrentState


class WindowState(RecurrentState):
    """The ids read so far, of which the last `words` - 1 are read again."""

    def __init__(self, device: torch.device, words: int):
        super().__init__(device)
        self.words = words

    def trim(self, lengths: Tensor) -> None:
        """Keep the first lengths[b] ids of row b (what follows is padding). lengths: (B,)"""
        if self.state is not None:
            last = lengths.to(self.device)[:, None] + torch.arange(self.words - 1, device=self.device)
            self.state = (self.state[0].gather(1, last),)


class WindowLM(nn.Module):
    """A Neural Probabilistic Language Model (Bengio et al. 2003, JMLR 3): ids (B, T) -> logits (B, T, vocab_size).

    The embeddings of the last `words` tokens are concatenated, pass a hidden layer, and give logits of the next token;
    with `direct` they are also connected to the logits. `context` is the longest sequence in decoding.
    """

    def __init__(self, vocab_size: int, dim: int, hidden: int, words: int, context: int, direct: bool, dropout: float):
        super().__init__()
        self.words = words
        self.token = nn.Embedding(vocab_size + 1, dim)  # the last entry stands before the text
        self.body = Body(context, nn.Linear(words * dim, hidden))
        self.drop = Dropout(dropout)
        self.output = nn.Linear(hidden, vocab_size)
        self.direct = nn.Linear(words * dim, vocab_size, bias=False) if direct else None

    def hidden(self, ids: Tensor, cache: RecurrentState | None = None) -> Tensor:
        """The concatenated embeddings of each window: (B, T, words * E)."""
        before = ids.new_full((ids.shape[0], self.words - 1), self.token.num_embeddings - 1)
        if cache is not None and cache.state is not None:
            before = cache.state[0][:, cache.state[0].shape[1] - self.words + 1 :]
        ids = torch.cat([before, ids], dim=1)
        if cache is not None:
            cache.state = (ids,)
        return self.token(ids).unfold(1, self.words, 1).transpose(2, 3).flatten(2)

    def head(self, x: Tensor) -> Tensor:
        y = self.output(self.drop(torch.tanh(self.body.net(x))))
        return y if self.direct is None else y + self.direct(x)

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(self.hidden(ids))

    def new_cache(self, batch: int, size: int | None = None) -> RecurrentState:
        return WindowState(self.token.weight.device, self.words)
