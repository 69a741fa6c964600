"""Recall: a language model that also looks up what followed the last few tokens wherever it has read them before.

raw    text files or a set by name, as characters, bytes or BPE
nodes  tokens, with a position
edges  causal, or local and global in turn
head   a logit for each token, added to what counts of n-grams say (their log-probability), which each node weighs
loss   cross-entropy of the next token, the position's own occurrence left out of the counts

    anyformer train recall                        a minute on two cores: the plays of Shakespeare

Counting takes a moment and knows by heart what is near; the Transformer learns the rest. Kneser-Ney smoothing (1995),
in the form of Chen and Goodman (1999); a memory beside a language model: 1612.04426, 1911.00172.
"""

import json
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..data.text.batches import NOTHING
from ..data.text.ngrams import Counts, Order, count
from ..data.text.prepare import Corpus
from ..data.tokenizers.build import Tokenizer
from ..errors import InputError
from ..model.cache import KVCache
from ..model.heads import LMHead
from ..model.init import initialise
from ..model.ngram_mixture import Diary, Recall
from . import language
from .language import batches, evaluate, predict, stream
from .language.config import MINUTE, MODERN, sized

__all__ = ["PRESETS", "batches", "build", "evaluate", "loss", "predict", "stream"]
LONGEST = 16  # tokens of an n-gram
PARTS = ("contexts", "starts", "tokens", "counts")


@dataclass(frozen=True, kw_only=True)
class Config(language.Config):
    """A language model with a memory of counts, its text and its training."""

    counts: str = "6"
    """The longest n-gram that is looked up, in tokens before the one that follows; or the counts.json of a run."""


PRESETS = {
    # seconds: for tests
    "tiny": Config(
        counts="3",
        model=sized(32, 2, 2, 32),
        train=replace(language.PRESETS["tiny"].train, steps=20),
    ),
    # a minute on two cores
    "small": Config(model=sized(128, 4, 4, 128, **MODERN), train=MINUTE),
    # seconds: the counts, and a Transformer that has hardly begun
    "counts": Config(
        model=sized(64, 1, 4, 64, **MODERN),
        train=replace(MINUTE, steps=2, batch=64, warmup=0, eval_every=2, eval_batches=1, save_every=2),
    ),
    # little more than a minute on two cores
    "fast": Config(model=sized(128, 4, 4, 256, **MODERN), train=replace(MINUTE, steps=800, batch=8, eval_every=400)),
    # seventeen minutes on two cores
    "quarter": Config(
        model=sized(192, 6, 6, 256, dropout=0.1, **MODERN),
        train=replace(MINUTE, steps=3000, batch=16, lr=3e-3, eval_every=500, save_every=500),
    ),
}


class Recaller(language.LanguageModel):
    """ids (B, T) -> logits (B, T, vocab_size)"""

    def __init__(self, config: Config, tokenizer: Tokenizer):
        super().__init__(config, tokenizer)
        vocab = self.nodes.token.num_embeddings
        self.head = Recall(LMHead(config.model.dim, vocab, self.nodes.token if config.tied else None), config.model.dim)
        self.memory = nn.ModuleList()
        self.discounts, sizes = tables(config)
        for contexts, entries in sizes:
            order = nn.Module()
            for name, size in zip(PARTS, (contexts, contexts + 1, entries, entries)):
                order.register_buffer(name, torch.zeros(size, dtype=torch.int64))
            self.memory.append(order)
        about = {"discounts": self.discounts, "sizes": sizes}
        self.files |= {"counts.json": json.dumps(about)}
        self.known: Counts | None = None

    def remember(self, counts: Counts) -> None:
        """Take over what was counted."""
        for order, known in zip(self.memory, counts.orders, strict=True):
            for name in PARTS:
                order.get_buffer(name).copy_(torch.from_numpy(getattr(known, name)))

    @property
    def counts(self) -> Counts:
        """The memory as it is looked up in. Raises InputError where the file that it came from makes no sense."""
        if self.known is None:
            vocab, orders = self.nodes.token.num_embeddings, []
            for order, taken in zip(self.memory, self.discounts, strict=True):
                orders.append(Order(*(order.get_buffer(n).cpu().numpy() for n in PARTS), np.array(taken), vocab))
            found = Counts(tuple(orders), vocab)
            if not found.sound():
                raise InputError("the counts of this checkpoint are damaged: bring model.safetensors back")
            self.known = found
        return self.known

    def hidden(self, ids: Tensor, cache: KVCache | None = None, nexts: Tensor | None = None) -> Tensor:
        """The nodes after the last block and beside them what the counts say, (B, T, C + vocab_size). nexts: what
        follows, where these are rows of the text that was counted."""
        if isinstance(cache, Diary):
            said = torch.cat([self.look_up(rows)[:, -ids.shape[1] :] for rows in cache.write(ids, self.counts.longest)])
            said = said[cache.order]
        else:
            said = self.look_up(ids, nexts)
        return torch.cat([super().hidden(ids, cache), said], dim=-1)

    def look_up(self, ids: Tensor, nexts: Tensor | None = None) -> Tensor:
        """Log-probabilities of what follows each token: (B, T, vocab_size)"""
        own = None if nexts is None else nexts.masked_fill(nexts == NOTHING, -1).cpu().numpy()
        found = self.counts.probabilities(ids.cpu().numpy(), own)
        return torch.from_numpy(found).clamp_(min=1e-9).log_().to(ids.device)

    def forward(self, ids: Tensor, cache: KVCache | None = None, nexts: Tensor | None = None) -> Tensor:
        return self.head(self.hidden(ids, cache, nexts))

    def new_cache(self, batch: int, size: int | None = None) -> KVCache:
        return Diary(self.body.config, batch, size, next(self.body.parameters()).device)


def tables(config: Config) -> tuple[list[list[float]], list[tuple[int, int]]]:
    """The discounts of each order, and how many contexts and entries it has. Raises InputError."""
    if config.counts.isdigit():
        orders = counted(config).orders
        return [o.discounts.tolist() for o in orders], [(len(o.contexts), len(o.tokens)) for o in orders]
    path = Path(config.counts)
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        room = path.with_name("model.safetensors").stat().st_size // 8  # numbers: no more than the file can hold
        sizes = [(int(contexts), int(entries)) for contexts, entries in found["sizes"]]
        taken = [[float(one) for one in row] for row in found["discounts"]]
    except OSError as error:
        raise InputError(f"counts is '{config.counts}': a number of tokens, or a counts.json ({error})") from None
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise InputError(f"{path} does not hold the sizes of counts: {error}") from None
    bad = len(sizes) != len(taken) or any(len(row) != 4 for row in taken) or not sizes
    if bad or any(min(pair) < 1 for pair in sizes) or 2 * sum(map(sum, sizes)) > room:
        raise InputError(f"{path} does not hold the sizes of counts that lie beside it")
    return taken, sizes


def counted(config: Config) -> Counts:
    """The n-grams of the training part, counted once. Raises InputError."""
    longest, text = int(config.counts), language.corpus(config)
    vocab = max(text.tokenizer.vocab_size, config.padded_vocab or 0)
    if not 1 <= longest <= LONGEST:
        raise InputError(f"counts is {longest}; it must be from 1 to {LONGEST} tokens")
    try:
        return kept(text, longest, vocab)
    except ValueError as error:
        raise InputError(f"counts is {longest}: {error}: lower --counts") from None


@lru_cache(maxsize=2)
def kept(text: Corpus, longest: int, vocab_size: int) -> Counts:
    """A text that is open is one object (`language.corpus`), so that it is counted once."""
    return count(np.asarray(text.split("train"), np.int64), longest, vocab_size)


def build(config: Config) -> Recaller:
    model = Recaller(config, language.tokenizer_of(config))
    initialise(model, config.model)
    nn.init.zeros_(model.get_parameter("head.weigh.weight"))
    if config.counts.isdigit():
        model.remember(counted(config))
    return model


def loss(model: Recaller, batch: dict[str, Tensor]) -> Tensor:
    logits = model(batch["ids"], nexts=batch["next"] if model.training else None)
    return F.cross_entropy(logits.flatten(0, 1).float(), batch["next"].flatten())
