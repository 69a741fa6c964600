"""Translation before the Transformer: one vector between two LSTMs, and the first attention, both of 2014.

They are decoded like an encoder-decoder Transformer. Their cache is a state of fixed size instead of keys and values.

Shapes: B batch, S source, T target, E embedding, H hidden.
"""

from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from ..model.edges import Edges, full
from ..model.encoder_decoder import ConditionedDecoder
from ..model.kernels.dropout import Dropout

State = tuple[Tensor, ...]  # each (B, ...)


class RecurrentState:
    """The cache of a recurrent decoder: a state for each row, with the methods of KVCache that decoding calls."""

    is_unbounded = False

    def __init__(self, device: torch.device):
        self.device = device
        self.reset()

    def reset(self, prefill_lengths: Tensor | None = None) -> None:
        """Forget what was read: the next tokens are the first ones of their rows."""
        self.state: State | None = None

    def trim(self, lengths: Tensor) -> None:
        """Raise ValueError unless all rows have the same length: a state cannot go back."""
        if bool((lengths != lengths[0]).any()):
            raise ValueError("a recurrent decoder reads prompts of one length in a batch, or one at a time")

    def reorder(self, rows: Tensor) -> None:
        """Make row i a copy of row rows[i]. rows: (B,)"""
        if self.state is not None:
            self.state = tuple(part[rows.to(part.device)] for part in self.state)


class Body(nn.Module):
    """A net in the place of a Transformer; decoding reads the context from its config."""

    net: Any

    def __init__(self, context: int, net: nn.Module):
        super().__init__()
        self.config, self.net = SimpleNamespace(context=context), net


class RecurrentDecoder(ConditionedDecoder):
    def new_cache(self, batch: int, size: int | None = None) -> RecurrentState:
        return RecurrentState(self.memory.device)


class RecurrentSeq2Seq(nn.Module):
    """A recurrent encoder and decoder: source (B, S), ids (B, T) -> logits (B, T, vocab_size)."""

    source: nn.Embedding
    encoder: Body
    decoder: Body
    # methods of the subclasses
    encode: Any  # (source, memory_mask) -> memory
    init_state: Any  # (memory) -> the decoder's first state
    run_decoder: Any  # (ids, state, memory, memory_mask) -> input of the head, next state, attention (B, T, S) or None
    head: Any
    path_length_bounds: Any  # (source words, target words) -> fewest and most states from a source word to the last

    def decode(
        self, ids: Tensor, memory: Tensor, memory_mask: Edges = full, cache: RecurrentState | None = None
    ) -> Tensor:
        """The input of the head for each token, (B, T, ...). With a cache, ids are the next ones of each row."""
        state = self.init_state(memory) if cache is None or cache.state is None else cache.state
        y, state, _ = self.run_decoder(ids, state, memory, memory_mask)
        if cache is not None:
            cache.state = state
        return y

    def condition(self, memory: Tensor, memory_mask: Edges = full, source: Any = None) -> RecurrentDecoder:
        return RecurrentDecoder(self, memory, memory_mask)

    def forward(self, source: Tensor, ids: Tensor, memory_mask: Edges = full) -> Tensor:
        return self.head(self.decode(ids, self.encode(source, memory_mask), memory_mask))


def build_source_mask(memory: Tensor, memory_mask: Edges) -> Tensor:
    """Which nodes of the source are not padding: (B or 1, S) bool"""
    return memory_mask.build_mask(memory.shape[0], 1, memory.shape[1], device=memory.device)[:, 0, 0]


def count_real(ids: Tensor, memory_mask: Edges) -> Tensor:
    """The length of each source without padding: (B,), on the CPU, where packing needs it."""
    return build_source_mask(ids, memory_mask).sum(-1).expand(len(ids)).cpu()


class LSTM(nn.LSTM):
    """torch's LSTM, in the dtype of its weights on a CPU: in bfloat16 there is none for processors without instructions
    for it."""

    def forward(self, input: Any, hx: Any = None) -> Any:
        if input.data.device.type != "cpu":
            return super().forward(input, hx)
        with torch.autocast("cpu", enabled=False):
            dtype = self.weight_ih_l0.dtype
            return super().forward(input.to(dtype), hx and tuple(part.to(dtype) for part in hx))


class Seq2SeqLSTM(RecurrentSeq2Seq):
    """Sequence to Sequence Learning with Neural Networks (Sutskever et al. 2014, 1409.3215).

    An LSTM reads the source in reverse; its last state, one vector of fixed size, starts the LSTM that writes the
    target. The memory is that vector: (B, 1, 2 * layers * H).
    """

    def __init__(self, vocab_sizes: tuple[int, int], dim: int, hidden: int, layers: int, context: int, dropout: float):
        super().__init__()
        between_layers = dropout if layers > 1 else 0.0
        self.source, self.target = (nn.Embedding(size, dim) for size in vocab_sizes)
        self.encoder = Body(context, LSTM(dim, hidden, layers, batch_first=True, dropout=between_layers))
        self.decoder = Body(context, LSTM(dim, hidden, layers, batch_first=True, dropout=between_layers))
        self.drop, self.output = Dropout(dropout), nn.Linear(hidden, vocab_sizes[1])

    def encode(self, source: Tensor, memory_mask: Edges = full) -> Tensor:
        lengths = count_real(source, memory_mask)
        index = torch.arange(source.shape[1], device=source.device)
        reverse = (lengths.to(source.device)[:, None] - 1 - index).clamp(min=0)  # the last word first
        x = self.drop(self.source(source.gather(1, reverse)))
        packed = pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
        _, (h, c) = self.encoder.net(packed)  # (layers, B, H) each
        return torch.cat([h, c]).transpose(0, 1).flatten(1)[:, None]

    def path_length_bounds(self, source: int, target: int) -> tuple[int, int]:
        """The first word of the source is read last; every word passes through all states after it."""
        depth = 2 * self.encoder.net.num_layers - 2
        return 1 + target + depth, source + target + depth

    def init_state(self, memory: Tensor) -> State:
        lstm = self.decoder.net
        h, c = memory[:, 0].view(len(memory), 2, lstm.num_layers, lstm.hidden_size).unbind(1)
        return h, c

    def run_decoder(self, ids: Tensor, state: State, memory: Tensor, mask: Edges) -> tuple[Tensor, State, None]:
        before = tuple(part.transpose(0, 1).contiguous() for part in state)
        y, after = self.decoder.net(self.drop(self.target(ids)), before)
        return y, tuple(part.transpose(0, 1) for part in after), None

    def head(self, x: Tensor) -> Tensor:
        return self.output(self.drop(x))


class RNNSearch(RecurrentSeq2Seq):
    """Neural Machine Translation by Jointly Learning to Align and Translate (Bahdanau et al. 2014, 1409.0473).

    A bidirectional GRU reads the source and keeps a vector for each word. Before each word of the target the decoder
    reads a weighted mean of them, by the softmax of scores of a small net: attention. The memory: (B, S, 2 * H).
    """

    def __init__(self, vocab_sizes: tuple[int, int], dim: int, hidden: int, layers: int, context: int, dropout: float):
        super().__init__()
        between_layers = dropout if layers > 1 else 0.0
        self.source, self.target = (nn.Embedding(size, dim) for size in vocab_sizes)
        encoder = nn.GRU(dim, hidden, layers, batch_first=True, bidirectional=True, dropout=between_layers)
        self.encoder = Body(context, encoder)
        self.decoder = Body(context, nn.GRUCell(dim + 2 * hidden, hidden))
        self.initial = nn.Linear(hidden, hidden)
        self.query, self.key = nn.Linear(hidden, hidden, bias=False), nn.Linear(2 * hidden, hidden, bias=False)
        self.score = nn.Linear(hidden, 1, bias=False)
        self.maxout = nn.Linear(dim + 3 * hidden, 2 * dim)  # the larger of each pair counts (1302.4389)
        self.drop, self.output = Dropout(dropout), nn.Linear(dim, vocab_sizes[1])

    def encode(self, source: Tensor, memory_mask: Edges = full) -> Tensor:
        x, lengths = self.drop(self.source(source)), count_real(source, memory_mask)
        y, _ = self.encoder.net(pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False))
        return pad_packed_sequence(y, batch_first=True, total_length=source.shape[1])[0]

    def path_length_bounds(self, source: int, target: int) -> tuple[int, int]:
        """From the word's own state, read by the last one of the target; or along both chains."""
        return 2 + self.encoder.net.num_layers, source + target + self.encoder.net.num_layers

    def init_state(self, memory: Tensor) -> State:
        """From the backward net's state at the first word."""
        return (torch.tanh(self.initial(memory[:, 0, memory.shape[2] // 2 :])),)

    def run_decoder(self, ids: Tensor, state: State, memory: Tensor, mask: Edges) -> tuple[Tensor, State, Tensor]:
        keys, is_real, s = self.key(memory), build_source_mask(memory, mask), state[0]
        outputs, weights = [], []
        for word in self.drop(self.target(ids)).unbind(1):
            context, word_weights = self.attend(s, memory, keys, is_real)
            s = self.decoder.net(torch.cat([word, context], dim=-1), s)
            outputs.append(torch.cat([word, context, s], dim=-1))
            weights.append(word_weights)
        return torch.stack(outputs, dim=1), (s,), torch.stack(weights, dim=1)

    def attend(self, s: Tensor, memory: Tensor, keys: Tensor, is_real: Tensor) -> tuple[Tensor, Tensor]:
        """The weighted mean of the memory, (B, 2 H), and the weights, (B, S). s: (B, H)"""
        scores = self.score(torch.tanh(self.query(s)[:, None] + keys))[..., 0]
        weights = scores.masked_fill(~is_real, -torch.inf).softmax(-1)
        return (weights[:, None] @ memory)[:, 0], weights

    def head(self, x: Tensor) -> Tensor:
        return self.output(self.drop(self.maxout(x).unflatten(-1, (-1, 2)).amax(-1)))

    @torch.no_grad()
    def alignment(self, source: Tensor, ids: Tensor, memory_mask: Edges = full) -> Tensor:
        """The attention weights of each target token over the source: (B, T, S)."""
        memory = self.encode(source, memory_mask)
        return self.run_decoder(ids, self.init_state(memory), memory, memory_mask)[2]
