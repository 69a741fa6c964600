"""What came before: a window of words, one vector between two LSTMs, and the first attention.

They are decoded as any causal model here, and seen from outside a pair of them is an encoder and a decoder; what they
remember of a text is a state of fixed size, not keys and values.

Shapes: B batch, S source, T target, C channels, E embedding, H hidden.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from ..model.edges import Edges, full
from ..model.kernels.dropout import Dropout

State = tuple[Tensor, ...]  # each (B, ...)


class RecurrentState:
    """Where a recurrent decoder stands: a state for each row."""

    def __init__(self, device: torch.device):
        self.device, self.lengths, self.state = device, 0, None

    lengths: int
    state: State | None
    unbounded = False

    def trim(self, lengths: Tensor) -> None:
        """A state cannot be taken back: the rows must have been of one length. Raises ValueError."""
        if bool((lengths != lengths[0]).any()):
            raise ValueError("a recurrent decoder reads prompts of one length side by side, or one at a time")

    def reorder(self, rows: Tensor) -> None:
        """Row i becomes what row rows[i] was. rows: (B,)"""
        if self.state is not None:
            self.state = tuple(part[rows.to(part.device)] for part in self.state)


class WindowState(RecurrentState):
    """The state is the ids read so far, of which the last few are asked for again."""

    def __init__(self, device: torch.device, words: int):
        super().__init__(device)
        self.words = words

    def trim(self, lengths: Tensor) -> None:
        """Row b keeps its first lengths[b] ids (what came after was padding). lengths: (B,)"""
        if self.state is not None:
            last = lengths.to(self.device)[:, None] + torch.arange(self.words - 1, device=self.device)
            self.state = (self.state[0].gather(1, last),)


@dataclass(frozen=True)
class BodyConfig:
    """What decoding asks of a stack: how many nodes fit."""

    context: int


class Body(nn.Module):
    """A net where a Transformer would stand."""

    net: Any

    def __init__(self, context: int, net: nn.Module):
        super().__init__()
        self.config, self.net = BodyConfig(context), net


# --- 2003 ---


class WindowLM(nn.Module):
    """The neural language model of Bengio et al. 2003 (JMLR 3): the last `words` tokens are looked up in one table,
    stand side by side, pass a hidden layer, and give the next. `direct` also connects them to the answer straight.

    ids (B, T) -> logits (B, T, vocab_size): at each place what follows, from the `words` tokens up to it."""

    def __init__(self, vocab_size: int, dim: int, hidden: int, words: int, context: int, direct: bool, dropout: float):
        super().__init__()
        self.words = words
        self.token = nn.Embedding(vocab_size + 1, dim)  # the last one stands before the text
        think = nn.Linear(words * dim, hidden)
        self.body = Body(context, think)
        self.drop = Dropout(dropout)
        self.answer = nn.Linear(hidden, vocab_size)
        self.direct = nn.Linear(words * dim, vocab_size, bias=False) if direct else None

    def hidden(self, ids: Tensor, cache: RecurrentState | None = None) -> Tensor:
        """The words before each place, side by side: (B, T, words * E)"""
        before = ids.new_full((ids.shape[0], self.words - 1), self.token.num_embeddings - 1)
        if cache is not None and cache.state is not None:
            before = cache.state[0][:, cache.state[0].shape[1] - self.words + 1 :]
        ids = torch.cat([before, ids], dim=1)
        if cache is not None:
            cache.state = (ids,)
        return self.token(ids).unfold(1, self.words, 1).transpose(2, 3).flatten(2)

    def head(self, x: Tensor) -> Tensor:
        y = self.answer(self.drop(torch.tanh(self.body.net(x))))
        return y if self.direct is None else y + self.direct(x)

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(self.hidden(ids))

    def new_cache(self, batch: int, size: int | None = None) -> RecurrentState:
        return WindowState(self.token.weight.device, self.words)


# --- 2014 ---


class Told:
    """A decoder whose source was read: `model.reads` says how it goes on."""

    def __init__(self, model: "RecurrentSeq2Seq", memory: Tensor, memory_mask: Edges):
        self.model, self.memory = model, memory
        self.real = real(memory, memory_mask) if model.has_attention else None
        self.body: Body = model.decoder
        self.head: Callable[[Tensor], Tensor] = model.head

    def hidden(self, ids: Tensor, cache: RecurrentState | None = None) -> Tensor:
        state = None if cache is None else cache.state
        y, state = self.model.run_decoder(ids, self.model.init_state(self.memory) if state is None else state, self)
        if cache is not None:
            cache.state = state
        return y

    def new_cache(self, batch: int, size: int | None = None) -> RecurrentState:
        return RecurrentState(self.memory.device)


def real(memory: Tensor, memory_mask: Edges) -> Tensor:
    """Which nodes of the source are no padding: (B or 1, S) bool"""
    return memory_mask.build_mask(memory.shape[0], 1, memory.shape[1], device=memory.device)[:, 0, 0]


class RecurrentSeq2Seq(nn.Module):
    """Two recurrent nets, the second speaks of what the first has read. source (B, S), ids (B, T) -> (B, T, vocab_size)

    Embeddings of E channels, H hidden ones, `layers` deep."""

    has_attention: bool
    source: nn.Embedding
    encoder: Body
    decoder: Body

    def encode(self, source: Tensor, memory_mask: Edges = full) -> Tensor:
        raise NotImplementedError

    def init_state(self, memory: Tensor) -> State:
        """The decoder's first state."""
        raise NotImplementedError

    def run_decoder(self, ids: Tensor, state: State, told: Told) -> tuple[Tensor, State]:
        """What the head turns into logits, (B, T, ...), and the state after."""
        raise NotImplementedError

    def head(self, x: Tensor) -> Tensor:
        raise NotImplementedError

    def condition(self, memory: Tensor, memory_mask: Edges = full) -> Told:
        return Told(self, memory, memory_mask)

    def forward(self, source: Tensor, ids: Tensor, memory_mask: Edges = full) -> Tensor:
        given = self.condition(self.encode(source, memory_mask), memory_mask)
        return self.head(given.hidden(ids))

    def path_length_bounds(self, source: int, target: int) -> tuple[int, int]:
        """How many states lie between a word of the source and the last word of the target: the fewest and the most."""
        raise NotImplementedError

    def lengths(self, ids: Tensor, memory_mask: Edges) -> Tensor:
        """How many nodes of each row are no padding: (B,), on the CPU, where packing wants them."""
        return real(ids, memory_mask).sum(-1).expand(len(ids)).cpu()


class Seq2SeqLSTM(RecurrentSeq2Seq):
    """Sutskever et al. 2014 (1409.3215): an LSTM reads the source, from behind; all that the second one learns of it is
    the state that the first ends in, one vector of fixed size. The memory is that vector: (B, 1, 2 * layers * H)"""

    has_attention = False

    def __init__(self, vocab_sizes: tuple[int, int], dim: int, hidden: int, layers: int, context: int, dropout: float):
        super().__init__()
        between = dropout if layers > 1 else 0.0
        self.source, self.target = (nn.Embedding(size, dim) for size in vocab_sizes)
        self.encoder = Body(context, nn.LSTM(dim, hidden, layers, batch_first=True, dropout=between))
        self.decoder = Body(context, nn.LSTM(dim, hidden, layers, batch_first=True, dropout=between))
        self.drop, self.answer = Dropout(dropout), nn.Linear(hidden, vocab_sizes[1])

    def encode(self, source: Tensor, memory_mask: Edges = full) -> Tensor:
        lengths = self.lengths(source, memory_mask)
        at = torch.arange(source.shape[1], device=source.device)
        behind = (lengths.to(source.device)[:, None] - 1 - at).clamp(min=0)  # the last word first
        x = self.drop(self.source(source.gather(1, behind)))
        packed = pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
        _, (h, c) = self.encoder.net(packed)  # (layers, B, H) each
        return torch.cat([h, c]).transpose(0, 1).flatten(1)[:, None]

    def path_length_bounds(self, source: int, target: int) -> tuple[int, int]:
        """The first word of the source is read last; each goes through all that come after it."""
        depth = 2 * self.encoder.net.num_layers - 2
        return 1 + target + depth, source + target + depth

    def init_state(self, memory: Tensor) -> State:
        lstm = self.decoder.net
        h, c = memory[:, 0].view(len(memory), 2, lstm.num_layers, lstm.hidden_size).unbind(1)
        return h, c

    def run_decoder(self, ids: Tensor, state: State, told: Told) -> tuple[Tensor, State]:
        before = tuple(part.transpose(0, 1).contiguous() for part in state)
        y, after = self.decoder.net(self.drop(self.target(ids)), before)
        return y, tuple(part.transpose(0, 1) for part in after)

    def head(self, x: Tensor) -> Tensor:
        return self.answer(self.drop(x))


class RNNSearch(RecurrentSeq2Seq):
    """Bahdanau et al. 2014 (1409.0473), called RNNsearch: a net reads the source in both directions and keeps a vector
    for each word; before each new word the second looks back at them all, and a small net scores how well each fits
    what is wanted now. The softmax of the scores weighs them: attention. The memory: (B, S, 2 * H)"""

    has_attention = True

    def __init__(self, vocab_sizes: tuple[int, int], dim: int, hidden: int, layers: int, context: int, dropout: float):
        super().__init__()
        between = dropout if layers > 1 else 0.0
        self.source, self.target = (nn.Embedding(size, dim) for size in vocab_sizes)
        both = nn.GRU(dim, hidden, layers, batch_first=True, bidirectional=True, dropout=between)
        self.encoder = Body(context, both)
        self.decoder = Body(context, nn.GRUCell(dim + 2 * hidden, hidden))
        self.opens = nn.Linear(hidden, hidden)
        self.asks, self.has = nn.Linear(hidden, hidden, bias=False), nn.Linear(2 * hidden, hidden, bias=False)
        self.fits = nn.Linear(hidden, 1, bias=False)
        self.speak = nn.Linear(dim + 3 * hidden, 2 * dim)  # in pairs, of which the larger counts (1302.4389)
        self.drop, self.answer = Dropout(dropout), nn.Linear(dim, vocab_sizes[1])

    def encode(self, source: Tensor, memory_mask: Edges = full) -> Tensor:
        packed = pack_padded_sequence(
            self.drop(self.source(source)), self.lengths(source, memory_mask), batch_first=True, enforce_sorted=False
        )
        y, _ = self.encoder.net(packed)
        return pad_packed_sequence(y, batch_first=True, total_length=source.shape[1])[0]

    def path_length_bounds(self, source: int, target: int) -> tuple[int, int]:
        """Its own state, looked at from the last one; or along both chains."""
        return 2 + self.encoder.net.num_layers, source + target + self.encoder.net.num_layers

    def init_state(self, memory: Tensor) -> State:
        """From what the backward net says of the first word; and where it has looked, nowhere yet."""
        return (torch.tanh(self.opens(memory[:, 0, memory.shape[2] // 2 :])),)

    def run_decoder(self, ids: Tensor, state: State, told: Told) -> tuple[Tensor, State]:
        memory, keys, cell = told.memory, self.has(told.memory), self.decoder.net
        words, s, said = self.drop(self.target(ids)), state[0], []
        for word in words.unbind(1):
            found, _ = self.attend(s, memory, keys, told.real)
            s = cell(torch.cat([word, found], dim=-1), s)
            said.append(torch.cat([word, found, s], dim=-1))
        return torch.stack(said, dim=1), (s,)

    def attend(self, s: Tensor, memory: Tensor, keys: Tensor, real: Tensor | None) -> tuple[Tensor, Tensor]:
        """What is found in the memory, (B, 2 H), and how much of each place, (B, S). s: (B, H)"""
        score = self.fits(torch.tanh(self.asks(s)[:, None] + keys))[..., 0]
        weights = (score if real is None else score.masked_fill(~real, -torch.inf)).softmax(-1)
        return (weights[:, None] @ memory)[:, 0], weights

    def head(self, x: Tensor) -> Tensor:
        return self.answer(self.drop(self.speak(x).unflatten(-1, (-1, 2)).amax(-1)))

    @torch.no_grad()
    def alignment(self, source: Tensor, ids: Tensor, memory_mask: Edges = full) -> Tensor:
        """Where it looks before each word of the target: (B, T, S)"""
        memory = self.encode(source, memory_mask)
        keys, there, cell = self.has(memory), real(memory, memory_mask), self.decoder.net
        s, looks = self.init_state(memory)[0], []
        for word in self.target(ids).unbind(1):
            found, weights = self.attend(s, memory, keys, there)
            s = cell(torch.cat([word, found], dim=-1), s)
            looks.append(weights)
        return torch.stack(looks, dim=1)
