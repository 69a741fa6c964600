"""Mask-predict: translate by drafts. All words are written at once, and the least certain ones again.

raw    pairs of texts: a table, two files, JSON lines, or a set by name; one vocabulary for both sides, or two
nodes  tokens of the source, and tokens of the target, any share of them hidden, with a position each
edges  both sides are fully connected, and the target reads the top of the source by cross-attention
head   a logit for each token of the vocabulary, and one for each length from the mean node of the source
loss   cross-entropy of the hidden tokens, each row divided by its share, and of the length: a bound on the nats

    anyformer train mask_predict --data pairs.tsv                 your own pairs of sentences
    anyformer predict RUN "A dog." --request '{"passes": 4}'      ten passes by default

Mask-Predict (Ghazvininejad et al. 2019, 1904.09324), with the bound of masked diffusion (2406.07524).
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..data.text.batches import IGNORE_INDEX
from ..data.text.masking import hide_shares
from ..data.tokenizers.masked_tokenizer import MASK
from ..data.tokenizers.pair_tokenizer import PairTokenizer
from ..errors import InputError
from ..forms import Form, Task
from ..inference.drafts import Draft, DraftSettings, write_drafts
from ..inference.prompt_reading import pad_rows
from ..inference.translation import CUT_HINT
from ..metrics import describe_bound
from ..model import Edges, LMHead, TokenEmbedding, Transformer, full, initialize, within
from ..model.kernels.cross_entropy import cross_entropy
from ..model.pooling import mean_pool
from ..parsing import check_range, parse_dataclass
from ..recipe import BatchStream, LensNodes, LensView, SizeOption, StreamState
from ..training.config import TrainConfig
from ._shared import pairs
from ._shared.pairs import TranslatorConfig as Config
from ._shared.pairs import baselines, examples, file_input, load_pairs, load_tokenizers  # noqa: F401
from ._shared.presets import MODERN, MUON, TINY_PAIRS_TRAIN, make_stacks
from ._shared.sizes import Size, offer_sizes
from ._shared.text import first_tokens
from ._shared.text_lenses import describe_tokens, name_token, parse_request, to_row

MAX_LENGTHS = 64  # that are tried for a translation
BATCH_ROWS = 64  # sources that are encoded at once

TRAIN = TrainConfig(
    steps=3000, batch=24, lr=4e-3, warmup=50, weight_decay=0.01, clip=0.0, eval_every=300, save_every=300, **MUON
)
SHAPE: dict[str, Any] = {"dropout": 0.1, "init": "zero", **MODERN}
SIZES = (Size(64, 1, 8, 0), Size(96, 2, 8, 600), Size(128, 2, 16, 1200))  # of --minutes
PRESETS = {
    # seconds: for tests
    "tiny": Config(data="reverse", tokenizer="char", **make_stacks(32, 1, 2, 24), train=TINY_PAIRS_TRAIN),
    # captions, English to French: twenty minutes on two cores
    "multi30k": Config(vocab_size=6000, label_smoothing=0.0, **make_stacks(192, 3, 3, 64, **SHAPE), train=TRAIN),
}


def sizes(config: Config) -> Iterator[SizeOption]:
    yield from offer_sizes(config, SIZES, steps=2000)


class DraftTranslator(nn.Module):
    """source (B, S) ids, target (B, T) ids with hidden tokens -> logits (B, T, V)"""

    def __init__(self, config: Config, pair_tokenizer: PairTokenizer):
        super().__init__()
        source_size, target_size = pair_tokenizer.vocab_sizes(config.padded_vocab)
        self.mask_id, dim = target_size, config.decoder.dim
        self.source = TokenEmbedding(source_size + config.shared, config.encoder)
        self.target = TokenEmbedding(target_size + 1, config.decoder)  # the last id hides a token
        if config.shared:
            self.target.token = self.source.token
        self.encoder, self.decoder = Transformer(config.encoder), Transformer(config.decoder, cross=True)
        self.head = LMHead(dim, target_size + 1, self.target.token if config.tied else None)
        self.length_head = nn.Linear(dim, config.decoder.context + 1)
        self.pair_tokenizer, self.files = pair_tokenizer, pair_tokenizer.files
        self.label_smoothing = config.label_smoothing

    def encode(self, source: Tensor, lengths: Tensor) -> Tensor:
        """The memory: (B, S, C)"""
        return self.encoder(self.source(source), within(lengths))

    def decode(self, ids: Tensor, lengths: Tensor, memory: Tensor, memory_mask: Edges = full) -> Tensor:
        """The nodes after the decoder's last block: (B, T, C)"""
        return self.decoder(self.target(ids), within(lengths), memory, memory_mask)

    def forward(self, source: Tensor, source_lengths: Tensor, ids: Tensor, lengths: Tensor) -> Tensor:
        memory = self.encode(source, source_lengths)
        return self.head(self.decode(ids, lengths, memory, within(source_lengths)))


def build(config: Config) -> DraftTranslator:
    if config.copy or config.scaled:
        raise InputError("mask_predict has no copy and no scaled: leave them out")
    model = DraftTranslator(config, load_tokenizers(config))
    initialize(model, config.decoder)
    initialize(model.encoder, config.encoder)  # its own depth scales its output maps
    return model


def batches(config: Config, split: str, state: StreamState | None = None) -> BatchStream:
    """Yield batches of pairs of similar length: source, lengths; ids (B, T), some of them hidden, target_lengths,
    labels, and weight (B,), one over the share that is hidden."""
    mask_id = load_tokenizers(config).vocab_sizes(config.padded_vocab)[1]
    for i, (batch, new_state) in enumerate(pairs.batches(config, split, state)):
        seed, step = 0, i
        if split == "train":
            seed, step = config.train.seed, new_state["step"] - new_state.get("stride", 1)
        yield hide_targets(batch, mask_id, seed, step), new_state


def hide_targets(batch: dict[str, Tensor], mask_id: int, seed: int, step: int) -> dict[str, Tensor]:
    labels = batch["labels"].numpy()[:, :-1] if batch["labels"].shape[1] > 1 else batch["labels"].numpy()
    sizes = ((batch["labels"] != IGNORE_INDEX).sum(1) - 1).clamp(min=1)  # without the end of the text
    arrays = hide_shares(labels.clip(min=0), sizes.numpy(), mask_id, seed, step)
    hidden = dict(zip(("ids", "labels", "weight"), map(torch.from_numpy, arrays)))
    return {"source": batch["source"], "lengths": batch["lengths"], "target_lengths": sizes, **hidden}


def sum_rows(model: DraftTranslator, batch: dict[str, Tensor]) -> Tensor:
    """Return the bound on the nats of each target and its length: (B,)"""
    smoothing = model.label_smoothing if model.training else 0.0
    memory, sizes, labels = model.encode(batch["source"], batch["lengths"]), batch["target_lengths"], batch["labels"]
    nodes = model.decode(batch["ids"], sizes, memory, within(batch["lengths"]))
    nats = cross_entropy(model.head, nodes, labels, smoothing, reduction="none").view(labels.shape).sum(1)
    logits = model.length_head(mean_pool(memory, batch["lengths"])).float()
    return nats * batch["weight"] + F.cross_entropy(logits, sizes, reduction="none")


def loss_weight(batch: dict[str, Tensor]) -> Tensor:
    """The tokens of the targets, with the end of each: what a translator predicts that writes from left to right."""
    return (batch["target_lengths"] + 1).sum()


def loss(model: DraftTranslator, batch: dict[str, Tensor]) -> Tensor:
    return sum_rows(model, batch).sum() / loss_weight(batch)


def evaluate(model: DraftTranslator, batches: Iterator[dict[str, Tensor]]) -> dict[str, float]:
    """Return the bound on the nats of a token of the target, with its standard error and the number of pairs."""
    parts = [(sum_rows(model, batch).double().cpu(), batch["target_lengths"].cpu() + 1) for batch in batches]
    metrics = describe_bound(torch.cat([nats for nats, _ in parts]), torch.cat([sizes for _, sizes in parts]), 0)
    return {name: value for name, value in metrics.items() if name != "bits_per_byte"}


@dataclass(frozen=True, kw_only=True)
class Request(DraftSettings):
    """Texts to translate, and how drafts of their translations are written."""

    input: str | list[str]
    """A text, or several."""
    passes: int | None = 10
    """Passes in which a translation is written, about as many tokens in each. None: a token in each."""
    lengths: int = 5
    """The likeliest lengths, in tokens, of each of which a draft is written; the best is the answer."""
    cut: bool = False
    """Cut a source that exceeds the context instead of refusing it."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range(self, "lengths", at_least=1, at_most=MAX_LENGTHS)


@torch.inference_mode()
def predict(model: DraftTranslator, request: dict[str, Any]) -> dict[str, Any]:
    """Translate a text, or several: the fields of `Request`. Returns {"results": [{"input", "text", "score", "passes"},
    ...]}: the score is the mean log-probability of a token when it was written."""
    fields = parse_dataclass(Request, {"input": first_tokens(model.pair_tokenizer.source)} | request, "request")
    texts = [fields.input] if isinstance(fields.input, str) else fields.input
    rows = [encode_source(model, text, fields.cut) for text in texts]
    order, results = sorted(range(len(rows)), key=lambda i: len(rows[i])), {}
    for start in range(0, len(order), BATCH_ROWS):
        part = order[start : start + BATCH_ROWS]
        results |= dict(zip(part, write_translations(model, [rows[i] for i in part], fields)))
    return {"results": [{"input": text} | results[i] for i, text in enumerate(texts)]}


def predict_batch(model: DraftTranslator, inputs: list[str], settings: dict[str, Any]) -> list[dict[str, Any]]:
    return predict(model, settings | {"input": inputs})["results"]


def form(model: DraftTranslator, config: Config) -> Form:
    usual = {"temperature": (0.0, 1.5), "revise": (0, 8), "passes": (1, 32), "lengths": (1, 16)}
    example = first_tokens(model.pair_tokenizer.source)
    return Form((Task("Translate", "text", Request, "drafts", usual=usual, omit=("cut",), examples=(example,)),))


def lens(model: DraftTranslator, request: dict[str, Any]) -> LensView:
    """Show the tokens of a source, and a target of the likeliest length that is all hidden."""
    source, pair = encode_source(model, parse_request(request).text, True), model.pair_tokenizer
    inputs = to_row(model, source)
    lengths = torch.tensor([len(source)], device=inputs.device)
    n = 1 + int(model.length_head(mean_pool(model.encode(inputs, lengths), lengths))[0, 1:].argmax())
    hidden, sizes = torch.full((1, n), model.mask_id, device=inputs.device), lengths.new_tensor([n])

    def forward() -> Tensor:
        return model(inputs, lengths, hidden, sizes)[0].float()

    def name_target(token: int) -> str:
        return MASK if token == model.mask_id else name_token(pair.target, token)

    stacks = {
        "encoder": describe_tokens(source, lambda token: name_token(pair.source, token)),
        "decoder": LensNodes([f"{MASK} {i + 1}" for i in range(n)], ["token"] * n),
    }
    rows = [(f"token {i + 1}", i) for i in range(n)]
    return LensView(stacks, forward, rows, name_target, answer=0)


def encode_source(model: DraftTranslator, text: str, cut: bool) -> list[int]:
    tokenizers = model.pair_tokenizer
    most = model.encoder.config.context - tokenizers.n_source_marks
    ids = tokenizers.source.encode(text).tolist()
    if len(ids) > most and not cut:
        about = f"the source {text[:40]!r}... has {len(ids):,} tokens"
        raise InputError(f"{about}, and {most:,} fit into the context: shorten it, {CUT_HINT}")
    return tokenizers.mark_source(ids[:most])


def write_translations(model: DraftTranslator, sources: list[list[int]], fields: Request) -> list[dict[str, Any]]:
    """Write drafts of the likeliest lengths for each source. Returns the best of each."""
    ids, lengths = pad_rows(sources, next(model.parameters()).device)
    memory = model.encode(ids, lengths)
    sizes = model.length_head(mean_pool(memory, lengths))[:, 1:].topk(
        min(fields.lengths, model.length_head.out_features - 1)
    )
    groups = [
        [Draft([model.mask_id] * n, range(n), range(n), fields, fields.seed, source=i) for n in (row + 1).tolist()]
        for i, row in enumerate(sizes.indices)
    ]
    tokenizer = model.pair_tokenizer.target
    is_allowed = torch.ones(tokenizer.vocab_size, dtype=torch.bool, device=ids.device)
    is_allowed[list({model.pair_tokenizer.start_id, model.pair_tokenizer.end_id} - {-1})] = False

    def read(drafts: Tensor, n_tokens: Tensor, rows: list[int]) -> Tensor:
        index = torch.tensor(rows, device=ids.device)
        return model.head(model.decode(drafts, n_tokens, memory[index], within(lengths[index])))

    for _ in write_drafts(read, [draft for group in groups for draft in group], model.mask_id, is_allowed):
        pass
    best = [max(group, key=Draft.rate) for group in groups]
    return [{"text": tokenizer.decode(d.ids), "score": d.rate(), "passes": d.n_reads} for d in best]


def score(model: Any, config: Any, split: str = "val", **request: Any) -> dict[str, Any]:
    """Translate a whole split and compare: sacreBLEU with its signature, chrF, and the share of exact matches.
    `request` holds further fields of `Request`."""
    return pairs.score_answers(partial(predict, model), config, split, request)
